// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

extension Guest {
  /// How a datagram goes from one socket to another over the loopback interface.
  enum Way: String, CaseIterable, CustomTestStringConvertible {
    case ipv4 = "IPv4"
    case ipv6 = "IPv6"
    case fromIPv6 = "IPv4 from an IPv6 socket"
    case toIPv6 = "IPv4 to an IPv6 socket"

    var sender: InternetAddress.Family { self == .ipv6 || self == .fromIPv6 ? .ipv6 : .ipv4 }
    var receiver: InternetAddress.Family { self == .ipv6 || self == .toIPv6 ? .ipv6 : .ipv4 }
    var host: String { self == .ipv6 ? "::1" : self == .fromIPv6 ? "::ffff:127.0.0.1" : "127.0.0.1" }
    var testDescription: String { rawValue }
  }

  /// Two sockets in one namespace.
  struct Loop: ~Copyable {
    let inbox: UDPSocket
    let outbox: UDPSocket
    let destination: InternetAddress

    private init(inbox: consuming UDPSocket, outbox: consuming UDPSocket, destination: InternetAddress) {
      self.inbox = inbox
      self.outbox = outbox
      self.destination = destination
    }

    /// - Parameter keys: To be received.
    init(_ way: Way, _ keys: [TraitID]) throws {
      self = try suiteCable().receiver.namespace.run {
        let inbox = try UDPSocket(way.receiver)
        try inbox.bind(to: .any(way.receiver, port: Guest.port))
        try inbox.setReceiveTimeout(.seconds(10))
        try inbox.setReceivedTraits(TraitMask(keys))
        let outbox = try UDPSocket(way.sender)
        let destination = try #require(InternetAddress(way.host, port: Guest.port))
        return Loop(inbox: inbox, outbox: outbox, destination: destination)
      }
    }

    /// Expects a datagram with these traits and no others.
    func expect(
      _ payload: [UInt8], _ traits: Traits, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      let arrival = try inbox.arrival()
      #expect(arrival.payload == payload, sourceLocation: sourceLocation)
      #expect(try arrival.traits == traits, sourceLocation: sourceLocation)
      #expect(
        arrival.control.count == (traits.isEmpty ? 0 : ctraits_cmsg_space(traits.recordByteCount)),
        sourceLocation: sourceLocation)
      #expect(!arrival.message.flags.contains(.controlTruncated), sourceLocation: sourceLocation)
    }

    /// Expects that nothing is there: what is sent over the loopback interface
    /// has arrived when the call is over.
    func expectNothing(sourceLocation: SourceLocation = #_sourceLocation) {
      do {
        let arrival = try inbox.arrival(flags: .doNotWait)
        Issue.record("a datagram is there: \(arrival.payload)", sourceLocation: sourceLocation)
      } catch {
        #expect(error as? Errno == .wouldBlock, sourceLocation: sourceLocation)
      }
    }
  }

  /// A value of this size, other than that of another number.
  static func value(_ size: TraitSize, _ number: Int) -> [UInt8] {
    (0..<size.rawValue).map { UInt8(truncatingIfNeeded: number &* 37 &+ $0 &+ 1) }
  }

  static let profile = getenv("PACKET_TRAITS_PROFILE").map { String(cString: $0) } ?? "plain"

  /// Sends, again and again where memory is made to be short: a call that fails
  /// sends nothing.
  static func insisting<Value>(_ body: () throws -> Value) throws -> Value {
    for _ in 0..<200 where profile == "faults" {
      do { return try body() } catch let error as TraitError {
        guard error.underlyingError == .noBufferSpace || error.underlyingError == .noMemory else {
          throw error
        }
      } catch let error as Errno {
        guard error == .noBufferSpace || error == .noMemory else { throw error }
      }
    }
    return try body()
  }

  /// The same for a call that is awaited.
  static func insisting<Value>(
    isolation actor: isolated (any Actor)? = #isolation, _ body: () async throws -> Value
  ) async throws -> Value {
    for _ in 0..<200 where profile == "faults" {
      do { return try await body() } catch let error as TraitError {
        guard error.underlyingError == .noBufferSpace || error.underlyingError == .noMemory else {
          throw error
        }
      }
    }
    return try await body()
  }

  /// Room for control data and payload, for one message of a socket of any kind.
  static func receive(
    _ descriptor: FileDescriptor, flags: MessageFlags = []
  ) throws -> (payload: [UInt8], traits: Traits) {
    var time = timeval(tv_sec: 10, tv_usec: 0)
    setsockopt(
      descriptor.rawValue, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    var batch = ReceiveBatch(capacity: 1, payloadCapacity: 4096)
    try descriptor.receiveMessages(into: &batch, flags: flags)
    return (batch.payload(at: 0), try batch.datagram(at: 0).traits)
  }

  static func receiveIfThere(_ descriptor: FileDescriptor) throws -> (payload: [UInt8], traits: Traits)? {
    do {
      return try receive(descriptor, flags: .doNotWait)
    } catch Errno.wouldBlock {
      return nil
    }
  }
}

extension UDPSocket {
  fileprivate func send(
    _ payload: [UInt8], to destination: InternetAddress, traits: Traits, flags: MessageFlags = []
  ) throws {
    _ = try Guest.insisting {
      try send(payload.span.bytes, to: destination, traits: traits, flags: flags)
    }
  }

  fileprivate func insistOnSentTraits(_ traits: Traits) throws {
    try Guest.insisting { try setSentTraits(traits) }
  }
}

extension FileDescriptor {
  fileprivate func insistOnSentTraits(_ traits: Traits) throws {
    try Guest.insisting { try setSentTraits(traits) }
  }
}

extension Guest {
  @Suite("Sending", .cable)
  struct SendTests {
    // MARK: Arrival

    @Test("a datagram has the trait it is sent with", arguments: Way.allCases, TraitSize.allCases)
    func one(way: Way, size: TraitSize) throws {
      try Guest.withKeys([size]) { ids in
        let loop = try Loop(way, ids)
        for number in 0..<10 as Range<UInt32> {
          let traits = try Traits([(ids[0], Guest.value(size, Int(number)))])
          try loop.outbox.send(TagProgram.payload(number), to: loop.destination, traits: traits)
          try loop.expect(TagProgram.payload(number), traits)
          // And not the next one.
          try loop.outbox.send(TagProgram.payload(number), to: loop.destination)
          try loop.expect(TagProgram.payload(number), Traits())
        }
      }
    }

    @Test("as many as fit arrive", arguments: Way.allCases, TraitSize.allCases)
    func full(way: Way, size: TraitSize) throws {
      let count = 192 / size.rawValue
      try Guest.withKeys([TraitSize](repeating: size, count: count)) { ids in
        let loop = try Loop(way, ids)
        // From the message alone, from the socket alone, and half from each.
        let all = try Traits(ids.enumerated().map { ($1, Guest.value(size, $0)) })
        let even = try Traits(ids.enumerated().filter { $0.0 % 2 == 0 }.map { ($1, Guest.value(size, $0)) })
        let odd = try Traits(ids.enumerated().filter { $0.0 % 2 == 1 }.map { ($1, Guest.value(size, $0)) })
        try loop.outbox.send(TagProgram.payload(1), to: loop.destination, traits: all)
        try loop.expect(TagProgram.payload(1), all)
        try loop.outbox.insistOnSentTraits(all)
        try Guest.insisting { try loop.outbox.send(TagProgram.payload(2), to: loop.destination) }
        try loop.expect(TagProgram.payload(2), all)
        try loop.outbox.insistOnSentTraits(even)
        try loop.outbox.send(TagProgram.payload(3), to: loop.destination, traits: odd)
        try loop.expect(TagProgram.payload(3), all)
      }
    }

    @Test("traits of the socket are on every datagram, until they are others", arguments: Way.asked)
    func sticky(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let loop = try Loop(way, ids)
        #expect(try loop.outbox.sentTraits().isEmpty)
        let first = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[2], Guest.value(.bytes16, 2))])
        let second = try Traits([(ids[1], Guest.value(.bytes8, 3))])
        for (traits, number) in [(first, 1), (second, 2), (Traits(), 3), (first, 4)] as [(Traits, UInt32)] {
          try loop.outbox.insistOnSentTraits(traits)
          #expect(try loop.outbox.sentTraits() == traits)
          for _ in 0..<3 {
            try Guest.insisting { try loop.outbox.send(TagProgram.payload(number), to: loop.destination) }
            try loop.expect(TagProgram.payload(number), traits)
          }
        }
        // A duplicate is the same socket.
        let duplicate = try UDPSocket(owning: try loop.outbox.unsafeFileDescriptor.duplicate())
        #expect(try duplicate.sentTraits() == first)
        try Guest.insisting { try duplicate.send(TagProgram.payload(5), to: loop.destination) }
        try loop.expect(TagProgram.payload(5), first)
      }
    }

    @Test(
      "traits of a datagram are over those of the socket, and leave them as they are", arguments: Way.allCases
    )
    func over(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let loop = try Loop(way, ids)
        let sticky = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 2))])
        let own = try Traits([(ids[1], Guest.value(.bytes8, 3)), (ids[2], Guest.value(.bytes16, 4))])
        let both = try Traits([
          (ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 3)),
          (ids[2], Guest.value(.bytes16, 4)),
        ])
        try loop.outbox.insistOnSentTraits(sticky)
        try loop.outbox.send(TagProgram.payload(1), to: loop.destination, traits: own)
        try loop.expect(TagProgram.payload(1), both)
        #expect(try loop.outbox.sentTraits() == sticky)
        try Guest.insisting { try loop.outbox.send(TagProgram.payload(2), to: loop.destination) }
        try loop.expect(TagProgram.payload(2), sticky)
        // The receiver asks for one of them.
        try loop.inbox.setReceivedTraits(TraitMask(ids[2]))
        try loop.outbox.send(TagProgram.payload(3), to: loop.destination, traits: own)
        try loop.expect(TagProgram.payload(3), try Traits([(ids[2], Guest.value(.bytes16, 4))]))
      }
    }

    @Test("a connected socket sends them, and one that is not", arguments: Way.allCases)
    func connected(way: Way) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let loop = try Loop(way, ids)
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 9))])
        try loop.outbox.connect(to: loop.destination)
        _ = try Guest.insisting { try loop.outbox.send(TagProgram.payload(1).span.bytes, traits: traits) }
        try loop.expect(TagProgram.payload(1), traits)
        try loop.outbox.send(TagProgram.payload(2), to: loop.destination, traits: traits)
        try loop.expect(TagProgram.payload(2), traits)
      }
    }

    @Test("records may come in any order, beside other control messages", arguments: Way.allCases)
    func otherMessages(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let loop = try Loop(way, ids)
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 2))])
        let records = traits.records
        for (first, second) in [(0, 24), (24, 0)] {
          var control = ControlData()
          if way == .ipv6 {
            control.append(level: .ipv6, type: .init(rawValue: IPV6_HOPLIMIT), Int32(9))
          } else {
            control.append(level: .ipv4, type: .init(rawValue: IP_TTL), Int32(9))
          }
          let turned = Array(records[first..<first + 24] + records[second..<second + 24])
          control.append(level: .traits, type: .traits, data: turned.span.bytes)
          control.append(level: .socket, type: .init(rawValue: SO_MARK), UInt32(5))
          _ = try Guest.insisting {
            try loop.outbox.unsafeFileDescriptor.sendMessage(
              TagProgram.payload(1).span.bytes, to: loop.destination, control: control)
          }
          try loop.expect(TagProgram.payload(1), traits)
        }
        // A message without records says nothing.
        var empty = ControlData()
        let nothing: [UInt8] = []
        empty.append(level: .traits, type: .traits, data: nothing.span.bytes)
        try loop.outbox.unsafeFileDescriptor.sendMessage(
          TagProgram.payload(2).span.bytes, to: loop.destination, control: empty)
        try loop.expect(TagProgram.payload(2), Traits())
      }
    }

    @Test("every piece of what is segmented has them", arguments: Way.allCases, [false, true])
    func segments(way: Way, isJoined: Bool) throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let loop = try Loop(way, ids)
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes16, 2))])
        let udp = ControlMessage.Level(rawValue: 17)
        // UDP_SEGMENT and UDP_GRO of udp(7)
        let (segment, receiveSegments) = (ControlMessage.MessageType(rawValue: 103), Int32(104))
        if isJoined {
          var on: Int32 = 1
          try #require(setsockopt(loop.inbox.unsafeFileDescriptor.rawValue, 17, receiveSegments, &on, 4) == 0)
        }
        let payload = TagProgram.payload(7, length: 2500)
        var control = ControlData()
        control.append(level: udp, type: segment, UInt16(1000))
        control.append(traits)
        _ = try Guest.insisting {
          try loop.outbox.unsafeFileDescriptor.sendMessage(
            payload.span.bytes, to: loop.destination, control: control)
        }
        if isJoined {
          let arrival = try loop.inbox.arrival(payloadRoom: 4096)
          #expect(arrival.payload == payload)
          #expect(try arrival.traits == traits)
          // Traits come last.
          #expect(try arrival.controlMessages.map(\.level) == [udp, .traits])
        } else {
          try loop.expect(Array(payload[..<1000]), traits)
          try loop.expect(Array(payload[1000..<2000]), traits)
          try loop.expect(Array(payload[2000...]), traits)
        }
        loop.expectNothing()
      }
    }

    @Test(
      "a datagram that is fragmented on its way arrives, for who does not ask as well",
      arguments: Way.allCases)
    func fragments(way: Way) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let loop = try Loop(way, [])
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        // As long as can be: more than one packet of the loopback interface has.
        let payload = TagProgram.payload(3, length: 65_400)
        try suiteCable().receiver.namespace.ip("link", "set", "lo", "mtu", "1500")
        defer { _ = try? suiteCable().receiver.namespace.ip("link", "set", "lo", "mtu", "65536") }
        try loop.outbox.send(payload, to: loop.destination, traits: traits)
        let arrival = try loop.inbox.arrival(payloadRoom: 66_000)
        #expect(arrival.payload == payload)
        #expect(arrival.control.isEmpty)
      }
    }

    @Test("every receiver of a multicast datagram gets them", arguments: [Way.ipv4, .ipv6])
    func multicast(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let (namespace, interface) = try (suiteCable().receiver.namespace, suiteCable().receiver.interface)
        // The loopback interface takes part in IPv4's multicast alone.
        let group = try namespace.run {
          try #require(
            InternetAddress(way == .ipv4 ? "239.1.2.3" : "ff02::4321%\(interface)", port: Guest.port))
        }
        // Two receivers on one port, of which each asks for something else.
        func member(_ keys: [TraitID]) throws -> UDPSocket {
          try namespace.run {
            let member = try UDPSocket(way.receiver)
            try turnOn(member, SOL_SOCKET, SO_REUSEADDR)
            try member.bind(to: .any(way.receiver, port: Guest.port))
            try join(member.unsafeFileDescriptor, group)
            try member.setReceiveTimeout(.seconds(10))
            try member.setReceivedTraits(TraitMask(keys))
            return member
          }
        }
        let first = try member([ids[0]])
        let second = try member(ids)
        let outbox = try namespace.run { try UDPSocket(way.sender) }
        if way == .ipv4 {
          // Out by the loopback interface.
          var interface = in_addr(s_addr: UInt32(0x7f00_0001).bigEndian)
          try #require(
            setsockopt(
              outbox.unsafeFileDescriptor.rawValue, Int32(IPPROTO_IP), IP_MULTICAST_IF, &interface, 4) == 0)
        }
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 2))])
        try outbox.send(TagProgram.payload(1), to: group, traits: traits)
        let one = try first.arrival()
        #expect(one.payload == TagProgram.payload(1))
        #expect(try one.traits == Traits([(ids[0], Guest.value(.bytes4, 1))]))
        let both = try second.arrival()
        #expect(both.payload == TagProgram.payload(1))
        #expect(try both.traits == traits)
      }
    }

    private func bind(_ socket: FileDescriptor, to address: InternetAddress) throws {
      try #require(address.withSockaddr { Glibc.bind(socket.rawValue, $0, $1) } == 0)
    }

    private func join(_ socket: FileDescriptor, _ group: InternetAddress) throws {
      let status: Int32
      if group.family == .ipv4 {
        var request = ip_mreq()
        inet_pton(AF_INET, group.host, &request.imr_multiaddr)
        inet_pton(AF_INET, "127.0.0.1", &request.imr_interface)
        status = setsockopt(
          socket.rawValue, Int32(IPPROTO_IP), IP_ADD_MEMBERSHIP, &request,
          socklen_t(MemoryLayout<ip_mreq>.size))
      } else {
        var request = ipv6_mreq()
        inet_pton(AF_INET6, "ff02::4321", &request.ipv6mr_multiaddr)
        request.ipv6mr_interface = group.scope
        status = setsockopt(
          socket.rawValue, Int32(IPPROTO_IPV6), IPV6_JOIN_GROUP, &request,
          socklen_t(MemoryLayout<ipv6_mreq>.size))
      }
      try #require(status == 0, "errno \(errno)")
    }

    private func turnOn(_ socket: borrowing UDPSocket, _ level: Int32, _ name: Int32) throws {
      var on: Int32 = 1
      try #require(setsockopt(socket.unsafeFileDescriptor.rawValue, level, name, &on, 4) == 0)
    }

    @Test("a tap sees the datagrams as they are without traits, and they keep them", arguments: Way.allCases)
    func tap(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let loop = try Loop(way, ids)
        let tap = try suiteCable().receiver.namespace.openTap()
        defer { try? tap.close() }
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes16, 2))])
        // The same bytes both ways, the packet's number apart.
        func frames() throws -> [[UInt8]] {
          var frames: [[UInt8]] = []
          var frame = [UInt8](repeating: 0, count: 4096)
          while true {
            let count = recv(tap.rawValue, &frame, frame.count, Int32(MSG_DONTWAIT))
            guard count > 0 else {
              try #require(count < 0 && errno == EAGAIN, "recv: \(count), errno \(errno)")
              return frames
            }
            // Behind IPv4's identification and header checksum
            if frame[..<count].suffix(36).elementsEqual(TagProgram.payload(1)) {
              frames.append(Array(frame[26..<count]))
            }
          }
        }
        try loop.outbox.send(TagProgram.payload(1), to: loop.destination)
        try loop.expect(TagProgram.payload(1), Traits())
        let plain = try frames()
        #expect(plain.count == 2, "once when it leaves, once when it comes")
        try loop.outbox.send(TagProgram.payload(1), to: loop.destination, traits: traits)
        try loop.expect(TagProgram.payload(1), traits)
        #expect(try frames() == plain)
      }
    }

    @Test(
      "of a key that crosses namespaces they arrive in another one, of others not", arguments: Route.allCases)
    func namespaces(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8], flags: .crossesNetworkNamespaces) { crossing in
        try Guest.withKeys([.bytes4, .bytes16]) { local in
          let inbox = try cable.inbox(route, crossing + local)
          let outbox = try cable.outbox(route)
          let kept = try Traits([
            (crossing[0], Guest.value(.bytes4, 1)), (crossing[1], Guest.value(.bytes8, 2)),
          ])
          var all = kept
          try all.setBytes(Guest.value(.bytes4, 3), for: local[0])
          try all.setBytes(Guest.value(.bytes16, 4), for: local[1])
          for (number, (sticky, own)) in [(Traits(), all), (all, Traits())].enumerated() {
            try outbox.insistOnSentTraits(sticky)
            for sequence in 0..<5 as Range<UInt32> {
              try outbox.send(
                TagProgram.payload(sequence), to: try cable.destination(route), traits: own)
              let arrival = try inbox.arrival()
              #expect(arrival.payload == TagProgram.payload(sequence))
              if Guest.profile == "faults" {
                #expect(try arrival.traits == kept || arrival.traits.isEmpty)
              } else {
                #expect(try arrival.traits == kept, "way \(number)")
              }
            }
          }
        }
      }
    }

    // MARK: Pieces

    @Test("a datagram in pieces has the traits it was begun with", arguments: Way.asked)
    func corked(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let loop = try Loop(way, ids)
        let first = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 1))])
        let part = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        let sticky = try Traits([(ids[0], Guest.value(.bytes4, 5))])
        let others = [
          try Traits([(ids[0], Guest.value(.bytes4, 2))]),
          try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes8, 2))]),
        ]
        try loop.outbox.connect(to: loop.destination)
        // Of one that fails for lack of memory the pieces before are gone, too: all
        // are sent again, and none alone.
        func datagram(_ pieces: () throws -> Void) throws { try Guest.insisting(pieces) }
        func set(_ traits: Traits) throws {
          try Guest.insisting { try loop.outbox.setSentTraits(traits) }
        }
        func piece(_ byte: UInt8, _ traits: Traits?, isLast: Bool = false) throws {
          let flags: MessageFlags = isLast ? [] : .more
          let payload = [byte]
          if let traits {
            try loop.outbox.send(payload.span.bytes, traits: traits, flags: flags)
          } else {
            try loop.outbox.send(payload.span.bytes, flags: flags)
          }
        }
        for withSticky in [false, true] {
          try datagram {
            try set(withSticky ? sticky : Traits())
            try piece(1, first)
            // Neither what is set meanwhile nor what others say changes it.
            try set(sticky)
            try piece(2, first)
            try piece(3, part)
            for other in others {
              Guest.expectError(.invalidArgument) { try piece(9, other) }
              Guest.expectError(.invalidArgument) { try piece(9, other, isLast: true) }
            }
            loop.expectNothing()
            try piece(4, nil, isLast: true)
          }
          try loop.expect([1, 2, 3, 4], first)
        }

        // Begun without any, none can come later; and the next has its own.
        try set(Traits())
        try datagram {
          try piece(1, nil)
          Guest.expectError(.invalidArgument) { try piece(9, part) }
          try piece(2, nil, isLast: true)
        }
        try loop.expect([1, 2], Traits())
        try datagram { try piece(3, part, isLast: true) }
        try loop.expect([3], part)

        // Begun with the socket's, these hold.
        try datagram {
          try set(sticky)
          try piece(5, nil)
          try set(Traits())
          try piece(6, sticky)
          try piece(7, nil, isLast: true)
        }
        try loop.expect([5, 6, 7], sticky)
      }
    }

    @Test("a later piece with control data that was never looked at is no error", arguments: Way.allCases)
    func laterPiece(way: Way) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let loop = try Loop(way, ids)
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        try loop.outbox.connect(to: loop.destination)
        try loop.outbox.send([1], to: loop.destination, traits: traits, flags: .more)
        // A message that claims to be shorter than its own header, as of a buffer used again.
        let control = [UInt8](repeating: 0, count: 24)
        let sent = control.withUnsafeBytes { control in
          var byte: UInt8 = 2
          return withUnsafeMutableBytes(of: &byte) { payload in
            var vector = iovec(iov_base: payload.baseAddress, iov_len: 1)
            return withUnsafeMutablePointer(to: &vector) { vector in
              var header = msghdr()
              header.msg_iov = vector
              header.msg_iovlen = 1
              header.msg_control = UnsafeMutableRawPointer(mutating: control.baseAddress)
              header.msg_controllen = control.count
              return sendmsg(loop.outbox.unsafeFileDescriptor.rawValue, &header, 0)
            }
          }
        }
        #expect(sent == 1, "errno \(errno)")
        try loop.expect([1, 2], traits)
      }
    }

    @Test("a piece that fails takes those before with it", arguments: Way.allCases)
    func corkedFailure(way: Way) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let loop = try Loop(way, ids)
        let (first, second) = (
          try Traits([(ids[0], Guest.value(.bytes4, 1))]), try Traits([(ids[0], Guest.value(.bytes4, 2))])
        )
        try loop.outbox.connect(to: loop.destination)
        // Together more than a datagram can have; each alone is not.
        let half = [UInt8](repeating: 1, count: 40_000)
        try Guest.insisting {
          try loop.outbox.send(half.span.bytes, traits: first, flags: .more)
          let error = #expect(throws: TraitError.self) {
            try loop.outbox.send(half.span.bytes, traits: first)
          }
          // Where memory is short that may be the reason.
          if let error, error.underlyingError != .messageTooLong { throw error }
        }
        // The next one is begun anew, and with other traits.
        try loop.outbox.send([5], to: loop.destination, traits: second)
        try loop.expect([5], second)
        loop.expectNothing()
      }
    }

    // MARK: Memory

    @Test("no memory is left behind, whatever becomes of a message", arguments: Way.asked)
    func memory(way: Way) throws {
      try Guest.withKeys([.bytes8, .bytes16]) { ids in
        let sticky = try Traits([(ids[0], Guest.value(.bytes8, 1))])
        let own = try Traits([(ids[0], Guest.value(.bytes8, 2)), (ids[1], Guest.value(.bytes16, 3))])
        let half = [UInt8](repeating: 1, count: 40_000)

        /// What becomes of messages: with traits of their own, with those of the socket.
        func pass(_ count: Int) throws {
          for number in 0..<count {
            let loop = try Loop(way, ids)
            try loop.outbox.connect(to: loop.destination)
            if number % 2 == 1 { try loop.outbox.insistOnSentTraits(sticky) }
            let right = number % 2 == 1 ? sticky : own
            let traits = number % 2 == 1 ? Traits() : own
            /// One that is whole, or a piece.
            func send(_ payload: [UInt8], flags: MessageFlags = []) throws {
              try loop.outbox.send(payload.span.bytes, traits: traits, flags: flags)
            }

            // It arrives.
            try Guest.insisting { try send([1]) }
            try loop.expect([1], right)
            // It cannot be read from memory, after its packet was begun.
            try Guest.insisting {
              let nowhere = UnsafeRawPointer(bitPattern: 8)
              try #require(Glibc.send(loop.outbox.unsafeFileDescriptor.rawValue, nowhere, 100, 0) == -1)
              let error = Errno(rawValue: errno)
              if error != .badAddress { throw error }
            }
            // A piece does not fit, and takes the others with it.
            try Guest.insisting {
              try send(half, flags: .more)
              let error = #expect(throws: TraitError.self) { try send(half) }
              if let error, error.underlyingError != .messageTooLong { throw error }
            }
            loop.expectNothing()
            // More data says other traits, and is refused; the rest follows.
            try Guest.insisting {
              try send([2], flags: .more)
              let other = try Traits([(ids[0], Guest.value(.bytes8, 9))])
              let byte: [UInt8] = [9]
              Guest.expectError(.invalidArgument) {
                try loop.outbox.send(byte.span.bytes, traits: other, flags: .more)
              }
              try send([3])
            }
            try loop.expect([2, 3], right)
            // The sockets are closed, with one in the queue and another under way, and
            // with what the socket sends set once more.
            try Guest.insisting { try send([4]) }
            try Guest.insisting { try send([5], flags: .more) }
            if number % 4 == 3 { try loop.outbox.insistOnSentTraits(own) }
          }
        }

        try pass(4)
        let before = try settled { _ in false }
        let changes = try Guest.changes { try pass(40) }
        // Six each if the socket gives them, of which one cannot be read from memory; without, five.
        #expect(Guest.storesMayFail ? changes.set >= 220 : changes.set == 220)
        let after = try settled { $0 == before }
        #expect(after == before)
      }
    }

    // MARK: Batches and sequences

    @Test("each datagram of a batch has its own, or its own error", arguments: Way.allCases)
    func batch(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes16] + [TraitSize](repeating: .bytes16, count: 11)) { ids in
        let free = try Guest.freeKey()
        let loop = try Loop(way, ids)
        // 176 bytes: with 16 more they are 192.
        let sticky = try Traits(ids[2...].enumerated().map { ($1, Guest.value(.bytes16, $0)) })
        try loop.outbox.insistOnSentTraits(sticky)
        var batch = SendBatch()
        var expected: [([UInt8], Traits)] = []
        var codes: [TraitError.Code?] = []
        func add(_ payload: [UInt8], _ values: [(TraitID, [UInt8])], _ code: TraitError.Code? = nil) throws {
          let own = try Traits(values)
          batch.append(payload.span.bytes, to: loop.destination, traits: own)
          codes.append(code)
          guard code == nil else { return }
          var all = sticky
          for element in own { try all.setBytes(element.bytes, for: element.id) }
          expected.append((payload, all))
        }
        try add([0], [(free, Guest.value(.bytes4, 0))], .noSuchKey)
        try add([1], [(ids[0], Guest.value(.bytes4, 1))])
        try add([2], [])
        try add([3], [(ids[0], Guest.value(.bytes8, 1))], .invalidArgument)
        try add([4], [(ids[0], Guest.value(.bytes4, 4)), (ids[1], Guest.value(.bytes16, 4))], .limitExceeded)
        try add([5], [(ids[1], Guest.value(.bytes16, 5))])
        try add([6], [(ids[2], Guest.value(.bytes16, 99))])
        try add([7], [(ids[0], Guest.value(.bytes4, 7)), (free, Guest.value(.bytes4, 7))], .noSuchKey)

        // Where memory is short single ones fail: then all are sent again, and
        // what has come is thrown away.
        let results = try Guest.insisting {
          let results = try loop.outbox.send(batch)
          for case .failure(let error) in results
          where error.underlyingError == .noBufferSpace || error.underlyingError == .noMemory {
            while (try? loop.inbox.arrival(flags: .doNotWait)) != nil {}
            throw error
          }
          return results
        }
        #expect(
          results.map { result -> TraitError.Code? in
            if case .failure(let error) = result { error.code } else { nil }
          } == codes)
        var room = ReceiveBatch(capacity: 3, payloadCapacity: 100)
        var received: [([UInt8], Traits)] = []
        while received.count < expected.count {
          for index in 0..<(try loop.inbox.receive(into: &room)) {
            received.append((room.payload(at: index), try room.datagram(at: index).traits))
          }
        }
        #expect(received.map(\.0) == expected.map(\.0))
        #expect(received.map(\.1) == expected.map(\.1))
        loop.expectNothing()
      }
    }

    @Test("a sequence gives datagrams with their traits", arguments: Way.allCases)
    func sequence(way: Way) async throws {
      let size = TraitSize.bytes8
      var registry = try RegistryConnection()
      let key = try registry.add(Guest.uniqueName(), size: size)
      defer { _ = try? registry.remove(key.id) }
      let loop = try Loop(way, [key.id])
      let sequence = try loop.inbox.datagrams(queueCapacity: 4)
      // One that is open until the tasks are over.
      let outbox = try loop.outbox.unsafeFileDescriptor.duplicate()
      defer { try? outbox.close() }
      let destination = loop.destination
      let received = try await withThrowingTaskGroup(of: Int?.self) { group in
        group.addTask {
          for number in 0..<100 as Range<UInt32> {
            let traits = try Traits([(key.id, Guest.value(size, Int(number)))])
            _ = try Guest.insisting {
              try outbox.sendMessage(TagProgram.payload(number).span.bytes, to: destination, traits: traits)
            }
            if number.isMultiple(of: 7) { try await Task.sleep(for: .milliseconds(2)) }
          }
          return nil
        }
        group.addTask {
          // Nothing else would end it if one did not come.
          try await Task.sleep(for: .seconds(60))
          return 0
        }
        group.addTask {
          var number: UInt32 = 0
          for try await datagram in sequence {
            #expect(datagram.payload == TagProgram.payload(number))
            #expect(try datagram.traits.bytes(of: key.id) == Guest.value(size, Int(number)))
            #expect(datagram.source != nil)
            number += 1
            if number == 100 { break }
          }
          return Int(number)
        }
        defer { group.cancelAll() }
        while let outcome = try await group.next() {
          if let outcome { return outcome }
        }
        return 0
      }
      #expect(received == 100, "it did not come to its end within a minute")
    }

    @Test("tasks send and receive datagrams with their traits", arguments: Way.allCases)
    func tasks(way: Way) async throws {
      let size = TraitSize.bytes8
      var registry = try RegistryConnection()
      let key = try registry.add(Guest.uniqueName(), size: size)
      defer { _ = try? registry.remove(key.id) }
      let loop = try Loop(way, [key.id])
      func traits(_ number: Int) throws -> Traits { try Traits([(key.id, Guest.value(size, number))]) }
      var bytes = [UInt8](repeating: 0, count: 100)
      for number in 0..<4 {
        let payload = TagProgram.payload(UInt32(number))
        try await Guest.insisting {
          switch number {
          case 0: _ = try await loop.outbox.send(payload.span.bytes, to: loop.destination)
          case 1:
            var control = ControlData()
            control.append(try traits(number))
            _ = try await loop.outbox.send(payload.span.bytes, to: loop.destination, control: control)
          default:
            _ = try await loop.outbox.send(
              payload.span.bytes, to: loop.destination, traits: try traits(number))
          }
        }
        let datagram = try await loop.inbox.receive(into: &bytes)
        #expect(Array(bytes[..<datagram.length]) == payload)
        #expect(try datagram.traits == (number == 0 ? Traits() : traits(number)))
      }

      var batch = SendBatch()
      for number in 0..<8 {
        batch.append([UInt8(number)].span.bytes, to: loop.destination, traits: try traits(number))
      }
      // As it is above: where memory is short all are sent again.
      try await Guest.insisting {
        for result in try await loop.outbox.send(batch) {
          guard case .failure(let error) = result else { continue }
          while (try? loop.inbox.arrival(flags: .doNotWait)) != nil {}
          throw error
        }
      }
      var room = ReceiveBatch(capacity: 3, payloadCapacity: 100)
      var received: [Traits] = []
      while received.count < 8 {
        for index in 0..<(try await loop.inbox.receive(into: &room)) {
          #expect(room.payload(at: index) == [UInt8(received.count)])
          received.append(try room.datagram(at: index).traits)
        }
      }
      #expect(received == (try (0..<8).map(traits)))
      loop.expectNothing()
    }

    // MARK: Other kinds of sockets

    private func open(_ family: Int32, _ type: UInt32, _ proto: Int32) throws -> FileDescriptor {
      try suiteCable().receiver.namespace.run {
        let number = socket(family, Int32(type | SOCK_CLOEXEC.rawValue), proto)
        try #require(number >= 0, "socket(\(family), \(type), \(proto)): errno \(errno)")
        return FileDescriptor(rawValue: number)
      }
    }

    /// Sends by one socket and receives by another, sticky and with the message.
    private func expectPassage(
      from outbox: FileDescriptor, to inbox: FileDescriptor, _ destination: InternetAddress,
      _ ids: [TraitID], payload: [UInt8], received: ([UInt8]) -> Bool,
      sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      try inbox.setReceivedTraits(TraitMask(ids))
      #expect(try inbox.receivedTraits() == TraitMask(ids), sourceLocation: sourceLocation)
      let sticky = try Traits([(ids[0], Guest.value(.bytes4, 1))])
      let own = try Traits([(ids[0], Guest.value(.bytes4, 2)), (ids[1], Guest.value(.bytes16, 3))])
      try outbox.insistOnSentTraits(sticky)
      #expect(try outbox.sentTraits() == sticky, sourceLocation: sourceLocation)
      for (traits, right) in [(own, own), (Traits(), sticky)] {
        _ = try Guest.insisting {
          try outbox.sendMessage(payload.span.bytes, to: destination, traits: traits)
        }
        let (bytes, arrived) = try Guest.receive(inbox)
        #expect(received(bytes), "\(bytes)", sourceLocation: sourceLocation)
        #expect(arrived == right, sourceLocation: sourceLocation)
      }
      try outbox.insistOnSentTraits(Traits())
      try outbox.sendMessage(payload.span.bytes, to: destination)
      #expect(try Guest.receive(inbox).traits.isEmpty, sourceLocation: sourceLocation)
    }

    private func loopback(_ family: InternetAddress.Family, port: UInt16 = 0) throws -> InternetAddress {
      try #require(InternetAddress(family == .ipv4 ? "127.0.0.1" : "::1", port: port))
    }

    @Test("UDP-Lite sockets send and receive them", arguments: InternetAddress.Family.allCases)
    func udpLite(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let inbox = try open(family.domain, SOCK_DGRAM.rawValue, 136)
        defer { try? inbox.close() }
        let outbox = try open(family.domain, SOCK_DGRAM.rawValue, 136)
        defer { try? outbox.close() }
        let destination = try loopback(family, port: Guest.port)
        try bind(inbox, to: destination)
        try expectPassage(
          from: outbox, to: inbox, destination, ids, payload: TagProgram.payload(1),
          received: { $0 == TagProgram.payload(1) })
      }
    }

    @Test("raw sockets send and receive them", arguments: InternetAddress.Family.allCases)
    func raw(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        // A protocol for experiments (RFC 3692)
        let inbox = try open(family.domain, SOCK_RAW.rawValue, 253)
        defer { try? inbox.close() }
        let outbox = try open(family.domain, SOCK_RAW.rawValue, 253)
        defer { try? outbox.close() }
        let payload = TagProgram.payload(1)
        try expectPassage(
          from: outbox, to: inbox, try loopback(family), ids, payload: payload,
          received: { $0.suffix(payload.count) == payload[...] })

        // And with an IP header of their own.
        let writer = try open(family.domain, SOCK_RAW.rawValue, Int32(IPPROTO_RAW))
        defer { try? writer.close() }
        let header: [UInt8] =
          family == .ipv4
          ? [0x45, 0, 0, 56, 0, 0, 0, 0, 64, 253, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]
          : [0x60, 0, 0, 0, 0, 36, 253, 64] + [UInt8](repeating: 0, count: 15) + [1]
            + [UInt8](repeating: 0, count: 15) + [1]
        try expectPassage(
          from: writer, to: inbox, try loopback(family), ids, payload: header + payload,
          received: { $0.suffix(payload.count) == payload[...] })
      }
    }

    /// An echo message (RFC 792, RFC 4443), whose checksum is right for IPv4.
    private func echo(_ type: UInt8, _ family: InternetAddress.Family, _ identifier: UInt16) -> [UInt8] {
      var bytes =
        [type, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 255), 0, 1] + TagProgram.payload(4)
      if family == .ipv4 {
        var sum: UInt32 = 0
        for index in stride(from: 0, to: bytes.count, by: 2) {
          sum += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
        }
        while sum > 0xffff { sum = sum >> 16 + sum & 0xffff }
        bytes[2] = ~UInt8(sum >> 8)
        bytes[3] = ~UInt8(sum & 255)
      }
      return bytes
    }

    @Test("ICMP sockets (\"ping\") send and receive them", arguments: InternetAddress.Family.allCases)
    func ping(family: InternetAddress.Family) throws {
      let (request, reply): (UInt8, UInt8) = family == .ipv4 ? (8, 0) : (128, 129)
      let proto: Int32 = family == .ipv4 ? Int32(IPPROTO_ICMP) : 58
      try suiteCable().receiver.namespace.setParameter("net/ipv4/ping_group_range", "0 2147483647")
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let ping = try open(family.domain, SOCK_DGRAM.rawValue, proto)
        defer { try? ping.close() }
        let raw = try open(family.domain, SOCK_RAW.rawValue, proto)
        defer { try? raw.close() }
        // Its port is the identifier of its messages.
        try bind(ping, to: try loopback(family, port: 0x4321))
        let own = try Traits([(ids[0], Guest.value(.bytes4, 2)), (ids[1], Guest.value(.bytes16, 3))])
        let sticky = try Traits([(ids[0], Guest.value(.bytes4, 1))])

        // What it sends the raw socket sees, among the kernel's replies.
        try raw.setReceivedTraits(TraitMask(ids))
        try ping.insistOnSentTraits(sticky)
        #expect(try ping.sentTraits() == sticky)
        for (traits, right) in [(own, own), (Traits(), sticky)] {
          _ = try Guest.insisting {
            try ping.sendMessage(
              echo(request, family, 0).span.bytes, to: try loopback(family), traits: traits)
          }
          while true {
            let (bytes, arrived) = try Guest.receive(raw)
            let message = family == .ipv4 ? Array(bytes.dropFirst(20)) : bytes
            guard message.first == request else { continue }
            #expect(message.suffix(36) == TagProgram.payload(4)[...])
            #expect(arrived == right)
            break
          }
        }

        // What the raw socket answers in the kernel's place it receives.
        try ping.setReceivedTraits(TraitMask(ids))
        #expect(try ping.receivedTraits() == TraitMask(ids))
        _ = try Guest.insisting {
          try raw.sendMessage(
            echo(reply, family, 0x4321).span.bytes, to: try loopback(family), traits: own)
        }
        var seen = false
        while !seen {
          let (bytes, arrived) = try Guest.receive(ping)
          #expect(bytes.suffix(36) == TagProgram.payload(4)[...])
          // The kernel's own replies came first; it gives them no traits.
          seen = arrived == own
          #expect(seen || arrived.isEmpty)
        }
      }
    }

    @Test("packet sockets receive them, and do not send any")
    func packet() throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let tap = try suiteCable().receiver.namespace.openTap()
        defer { try? tap.close() }
        try tap.setReceivedTraits(TraitMask(ids))
        #expect(try tap.receivedTraits() == TraitMask(ids))
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1)), (ids[1], Guest.value(.bytes16, 2))])
        #expect(throws: Errno.notSupportedOnSocket) { try tap.setSentTraits(traits) }
        #expect(throws: Errno.notSupportedOnSocket) { try tap.setSentTraits(Traits()) }
        #expect(throws: Errno.notSupportedOnSocket) { try tap.sentTraits() }

        for way in Way.allCases {
          let loop = try Loop(way, ids)
          try loop.outbox.send(TagProgram.payload(8), to: loop.destination, traits: traits)
          try loop.expect(TagProgram.payload(8), traits)
          // As it leaves and as it comes.
          var seen = 0
          while let (frame, arrived) = try Guest.receiveIfThere(tap) {
            guard frame.suffix(36) == TagProgram.payload(8)[...] else { continue }
            #expect(arrived == traits)
            seen += 1
          }
          #expect(seen == 2)
        }
      }
    }

    @Test("no other socket does")
    func otherSockets() throws {
      let stream = SOCK_STREAM.rawValue
      for (family, type, proto) in [
        (AF_UNIX, SOCK_DGRAM.rawValue, Int32(0)), (AF_UNIX, stream, 0), (AF_NETLINK, SOCK_RAW.rawValue, 0),
      ] {
        let descriptor = try open(family, type, proto)
        defer { try? descriptor.close() }
        #expect(throws: Errno.notSupportedOnSocket, "family \(family), type \(type)") {
          try descriptor.setSentTraits(Traits())
        }
        #expect(throws: Errno.notSupportedOnSocket, "family \(family), type \(type)") {
          try descriptor.sentTraits()
        }
      }
    }

    @Test("a message with traits is refused where the packets would have none")
    func otherMessage() throws {
      try Guest.withKeys([.bytes4]) { ids in
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        let (sender, receiver) = try packetPair()
        defer {
          try? sender.close()
          try? receiver.close()
        }
        #expect(throws: Errno.notSupportedOnSocket) {
          try sender.sendMessage(TagProgram.payload(0).span.bytes, traits: traits)
        }
        // What arrives is what was sent after that.
        try sender.sendMessage(TagProgram.payload(1).span.bytes)
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = try bytes.withUnsafeMutableBytes { try receiver.read(into: $0) }
        #expect(bytes[..<count] == TagProgram.payload(1)[...])
      }
    }

    /// Packet sockets of the loopback interface, for a protocol that nothing else uses.
    private func packetPair() throws -> (FileDescriptor, FileDescriptor) {
      let namespace = try suiteCable().receiver.namespace
      return try (
        namespace.openPacketSocket(on: "lo", type: 0x88b5), namespace.openPacketSocket(on: "lo", type: 0x88b5)
      )
    }

    // MARK: Errors

    @Test("TRAITS_SEND is read with enough room, and tells how much that is", arguments: [Way.ipv4, .ipv6])
    func getLength(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let loop = try Loop(way, [])
        for count in 0...3 {
          let traits = try Traits(
            zip(ids[..<count], [TraitSize.bytes4, .bytes8, .bytes16]).map { ($0, Guest.value($1, 7)) })
          try loop.outbox.insistOnSentTraits(traits)
          for room in 0...80 {
            var bytes = [UInt8](repeating: 0xee, count: 81)
            var length = socklen_t(room)
            let status = getsockopt(
              loop.outbox.unsafeFileDescriptor.rawValue, SOL_TRAITS, TRAITS_SEND, &bytes, &length)
            let error = errno
            #expect(length == 24 * count, "with \(room) bytes of room")
            if room == 0 {
              #expect(status == 0)
            } else if room >= 24 * count {
              #expect(status == 0)
              #expect(Array(bytes[..<(24 * count)]) == traits.records)
              #expect(bytes[(24 * count)...].allSatisfy { $0 == 0xee })
              continue
            } else {
              #expect(status == -1)
              #expect(error == EINVAL)
            }
            #expect(bytes.allSatisfy { $0 == 0xee }, "with \(room) bytes of room")
          }
        }
      }
    }

    @Test("what is malformed is refused, sets nothing and sends nothing", arguments: Way.allCases)
    func malformed(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let loop = try Loop(way, ids)
        let (four, eight) = (ids[0].rawValue, ids[1].rawValue)
        func record(
          _ key: UInt32, _ length: UInt16, flags: UInt16 = 0, _ value: [UInt8] = [1, 1, 1, 1]
        ) -> [UInt8] {
          var bytes = withUnsafeBytes(of: key) { Array($0) }
          withUnsafeBytes(of: length) { bytes += $0 }
          withUnsafeBytes(of: flags) { bytes += $0 }
          return bytes + value + [UInt8](repeating: 0, count: 16 - value.count)
        }
        let right = record(four, 4)
        let wrong: [(String, [UInt8])] = [
          ("23 bytes", Array(right.dropLast())), ("25 bytes", right + [0]), ("1 byte", [0]),
          ("65 records", [UInt8]((0..<65).flatMap { _ in right })), ("a key twice", right + right),
          ("a key twice, with one between", right + record(eight, 8) + right),
          ("key 64", record(64, 4)), ("the largest key", right + record(.max, 4)),
          ("flags", record(four, 4, flags: 1)), ("flags above", record(four, 4, flags: 0x8000)),
          ("no length", record(four, 0, [])), ("length 2", record(four, 2, [1, 1])),
          ("length 5", record(four, 5)), ("length 12", record(eight, 12)), ("length 17", record(four, 17)),
          ("the largest length", record(four, .max)),
          ("another size than the key's", record(four, 8)), ("too small for the key", record(eight, 4)),
          ("a byte behind the value", record(four, 4, [1, 1, 1, 1, 1])),
          ("the last byte", record(eight, 8, [UInt8](repeating: 0, count: 15) + [1])),
        ]
        let sticky = try Traits([(ids[1], Guest.value(.bytes8, 5))])
        try loop.outbox.insistOnSentTraits(sticky)
        let descriptor = loop.outbox.unsafeFileDescriptor
        for (what, bytes) in wrong {
          #expect(
            setsockopt(descriptor.rawValue, SOL_TRAITS, TRAITS_SEND, bytes, socklen_t(bytes.count)) == -1,
            "\(what)")
          #expect(errno == EINVAL, "\(what)")
          #expect(try loop.outbox.sentTraits() == sticky, "\(what)")
          var control = ControlData()
          control.append(level: .traits, type: .traits, data: bytes.span.bytes)
          #expect(throws: Errno.invalidArgument, "\(what)") {
            try descriptor.sendMessage(
              TagProgram.payload(0).span.bytes, to: loop.destination, control: control)
          }
        }

        // Two messages, and one of another type.
        var twice = ControlData()
        for _ in 0..<2 { twice.append(level: .traits, type: .traits, data: right.span.bytes) }
        var unknown = ControlData()
        unknown.append(level: .traits, type: .init(rawValue: 2), data: right.span.bytes)
        for control in [twice, unknown] {
          #expect(throws: Errno.invalidArgument) {
            try descriptor.sendMessage(
              TagProgram.payload(0).span.bytes, to: loop.destination, control: control)
          }
        }
        // A length that is less than none.
        #expect(setsockopt(descriptor.rawValue, SOL_TRAITS, TRAITS_SEND, right, .max) == -1)
        #expect(errno == EINVAL)
        loop.expectNothing()
        try Guest.insisting { try loop.outbox.send(TagProgram.payload(1), to: loop.destination) }
        try loop.expect(TagProgram.payload(1), sticky)
      }
    }

    @Test("a pointer to nowhere is refused", arguments: [Way.ipv4, .ipv6])
    func fault(way: Way) throws {
      let loop = try Loop(way, [])
      let descriptor = loop.outbox.unsafeFileDescriptor.rawValue
      let nowhere = UnsafeMutableRawPointer(bitPattern: 8)
      #expect(setsockopt(descriptor, SOL_TRAITS, TRAITS_SEND, nowhere, 24) == -1)
      #expect(errno == EFAULT)
      try Guest.withKeys([.bytes4]) { ids in
        try loop.outbox.insistOnSentTraits(try Traits([(ids[0], Guest.value(.bytes4, 1))]))
        var length: socklen_t = 24
        #expect(getsockopt(descriptor, SOL_TRAITS, TRAITS_SEND, nowhere, &length) == -1)
        #expect(errno == EFAULT)
      }
    }

    @Test("a key that is not registered is refused, sets nothing and sends nothing", arguments: Way.allCases)
    func unregistered(way: Way) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let loop = try Loop(way, ids)
        let free = try Guest.freeKey()
        let right = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        var both = right
        try both.setBytes(Guest.value(.bytes4, 1), for: free)
        try loop.outbox.insistOnSentTraits(right)
        for traits in [try Traits([(free, Guest.value(.bytes4, 1))]), both] {
          expect(.noSuchKey, naming: "is not registered") { try loop.outbox.insistOnSentTraits(traits) }
          #expect(try loop.outbox.sentTraits() == right)
          expect(.noSuchKey, naming: "is not registered") {
            try loop.outbox.send(TagProgram.payload(0), to: loop.destination, traits: traits)
          }
        }
        loop.expectNothing()
      }
    }

    @Test("a value of another size than its key is refused, and says so")
    func size() throws {
      try Guest.withKeys([.bytes8]) { ids in
        let loop = try Loop(.ipv4, ids)
        let traits = try Traits([(ids[0], Guest.value(.bytes4, 1))])
        expect(.invalidArgument, naming: "another size than its key") {
          try loop.outbox.insistOnSentTraits(traits)
        }
        expect(.invalidArgument, naming: "another size than its key") {
          try loop.outbox.send(TagProgram.payload(0), to: loop.destination, traits: traits)
        }
        loop.expectNothing()
      }
    }

    @Test("more than 192 bytes together are refused, and nothing is sent", arguments: Way.allCases)
    func limit(way: Way) throws {
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12) + [.bytes4]) { ids in
        let loop = try Loop(way, ids)
        let sticky = try Traits(ids[..<12].enumerated().map { ($1, Guest.value(.bytes16, $0)) })
        try loop.outbox.insistOnSentTraits(sticky)
        expect(.limitExceeded, naming: "more than the 192 bytes") {
          try loop.outbox.send(
            TagProgram.payload(0), to: loop.destination,
            traits: try Traits([(ids[12], Guest.value(.bytes4, 1))]))
        }
        loop.expectNothing()
        // In the place of one of them there is room.
        var other = sticky
        try other.setBytes(Guest.value(.bytes16, 77), for: ids[5])
        try loop.outbox.send(
          TagProgram.payload(1), to: loop.destination,
          traits: try Traits([(ids[5], Guest.value(.bytes16, 77))]))
        try loop.expect(TagProgram.payload(1), other)
        // Of the option alone there can be too many as well.
        let records = ids[..<12].enumerated().flatMap { index, id in
          (try? Traits([(id, Guest.value(.bytes16, index))]).records) ?? []
        }
        let more = try Traits([(ids[12], Guest.value(.bytes4, 1))]).records
        let all = records + more
        #expect(
          setsockopt(
            loop.outbox.unsafeFileDescriptor.rawValue, SOL_TRAITS, TRAITS_SEND, all, socklen_t(all.count)) == -1)
        #expect(errno == ENOSPC)
        #expect(try loop.outbox.sentTraits() == sticky)
      }
    }

    // MARK: Privilege

    @Test("it takes privilege, unless the key is open to be written", arguments: Way.allCases)
    func privilege(way: Way) throws {
      try Guest.withKeys([.bytes4]) { closed in
        try Guest.withKeys([.bytes4], flags: .openRead) { readable in
          try Guest.withKeys([.bytes4], flags: .openWrite) { writable in
            let loop = try Loop(way, closed + readable + writable)
            func traits(_ ids: [TraitID]) throws -> Traits {
              try Traits(ids.map { ($0, Guest.value(.bytes4, 3)) })
            }
            // Set by who may, used by who may not: what was granted stays.
            try loop.outbox.insistOnSentTraits(try traits(closed))
            let own = try suiteCable().receiver.namespace.run { try UDPSocket(way.sender) }
            try asUser {
              try own.insistOnSentTraits(try traits(writable))
              for ids in [closed, readable, closed + writable] {
                expect(.notPermitted, naming: "is not open to all") {
                  try own.insistOnSentTraits(try traits(ids))
                }
                // Readable is another matter.
                #expect(try own.sentTraits() == Traits())
                for socket in [loop.outbox.unsafeFileDescriptor, own.unsafeFileDescriptor] {
                  #expect(throws: Errno.notPermitted) {
                    try socket.sendMessage(
                      TagProgram.payload(0).span.bytes, to: loop.destination, traits: try traits(ids))
                  }
                }
              }
              loop.expectNothing()
              try own.send(TagProgram.payload(1), to: loop.destination, traits: try traits(writable))
              try loop.expect(TagProgram.payload(1), try traits(writable))
              try loop.outbox.send(TagProgram.payload(2), to: loop.destination, traits: try traits(writable))
              try loop.expect(TagProgram.payload(2), try traits(closed + writable))
              // To set none takes no privilege where nothing is there that does.
              try own.insistOnSentTraits(Traits())
              try own.send(TagProgram.payload(3), to: loop.destination)
              try loop.expect(TagProgram.payload(3), Traits())
            }
          }
        }
      }
    }

    @Test("who may not set what a socket sends may neither remove nor read it", arguments: Way.allCases)
    func removalTakesPrivilege(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { closed in
        try Guest.withKeys([.bytes4], flags: [.openRead, .openWrite]) { open in
          let loop = try Loop(way, closed + open)
          var traits = try Traits([
            (closed[0], Guest.value(.bytes4, 1)), (closed[1], Guest.value(.bytes8, 2)),
            (open[0], Guest.value(.bytes4, 3)),
          ])
          let visible = try Traits([(open[0], Guest.value(.bytes4, 3))])
          try loop.outbox.insistOnSentTraits(traits)
          try asUser {
            for new in [Traits(), visible, try Traits([(open[0], Guest.value(.bytes4, 4))]), traits] {
              expect(.notPermitted, naming: "is not open to all") { try loop.outbox.insistOnSentTraits(new) }
            }
            #expect(try loop.outbox.sentTraits() == visible)
            try loop.outbox.send(TagProgram.payload(1), to: loop.destination)
          }
          try loop.expect(TagProgram.payload(1), traits)
          #expect(try loop.outbox.sentTraits() == traits)

          // The keys that are gone are nobody's.
          var registry = try RegistryConnection()
          for id in closed {
            _ = try registry.remove(id)
            traits.remove(id)
          }
          try asUser {
            #expect(try loop.outbox.sentTraits() == traits)
            try loop.outbox.insistOnSentTraits(Traits())
          }
          try loop.outbox.send(TagProgram.payload(2), to: loop.destination)
          try loop.expect(TagProgram.payload(2), Traits())
        }
      }
    }

    @Test(
      "it takes privilege over the socket's namespace, over all for keys that cross namespaces",
      arguments: [false, true])
    func privilegeInNamespace(isSticky: Bool) throws {
      let traitctl = try Command.built("traitctl")
      try Guest.withKeys([.bytes4]) { local in
        try Guest.withKeys([.bytes4], flags: .crossesNetworkNamespaces) { crossing in
          try Guest.withKeys([.bytes4], flags: [.crossesNetworkNamespaces, .openWrite]) { open in
            var registry = try RegistryConnection()
            // Root of its own user and network namespace sends there.
            func send(_ id: TraitID) throws -> Command.Outcome {
              try Command.insisting(
                [
                  "unshare", "--user", "--map-root-user", "--net", "bash", "-c",
                  "ip link set lo up && exec \"$@\"", "bash", traitctl, "send", "--address", "127.0.0.1",
                  "--port", "4244", "--trait", "\(try registry.key(id).name)=1",
                ] + (isSticky ? ["--sticky"] : []))
            }
            for id in [local[0], open[0]] {
              let allowed = try send(id)
              #expect(allowed.status == 0, "\(allowed.errors)")
              #expect(allowed.output.hasPrefix("127.0.0.1:4244  length 0  "))
            }
            let refused = try send(crossing[0])
            #expect(refused.status == 1)
            #expect(refused.output.isEmpty)
            #expect(refused.errors.contains("is not open to all"), "\(refused.errors)")
          }
        }
      }
    }

    // MARK: Keys that go

    @Test(
      "a removed key ends on every socket, also for the next key with its number", arguments: Way.allCases)
    func removal(way: Way) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let loop = try Loop(way, ids)
        let kept = try Traits([(ids[1], Guest.value(.bytes8, 2))])
        var both = kept
        try both.setBytes(Guest.value(.bytes4, 1), for: ids[0])
        try loop.outbox.insistOnSentTraits(both)
        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[0])
        #expect(try loop.outbox.sentTraits() == kept)
        try Guest.insisting { try loop.outbox.send(TagProgram.payload(1), to: loop.destination) }
        try loop.expect(TagProgram.payload(1), kept)

        try registry.add(removed.name, size: removed.size, id: removed.id)
        try loop.inbox.setReceivedTraits(TraitMask(ids))
        #expect(try loop.outbox.sentTraits() == kept)
        try Guest.insisting { try loop.outbox.send(TagProgram.payload(2), to: loop.destination) }
        try loop.expect(TagProgram.payload(2), kept)
        // Of the new key the datagram has what it is given itself.
        let own = try Traits([(ids[0], Guest.value(.bytes4, 9))])
        var all = kept
        try all.setBytes(Guest.value(.bytes4, 9), for: ids[0])
        try loop.outbox.send(TagProgram.payload(3), to: loop.destination, traits: own)
        try loop.expect(TagProgram.payload(3), all)
        try loop.outbox.insistOnSentTraits(both)
        #expect(try loop.outbox.sentTraits() == both)
      }
    }

    // MARK: traitctl

    @Test("traitctl send sends what traitctl listen prints", arguments: [false, true], [false, true])
    func tool(isJSON: Bool, isSticky: Bool) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        var registry = try RegistryConnection()
        var names: [String] = []
        for id in ids { names.append(try registry.key(id).name) }
        let namespace = try suiteCable().receiver.namespace
        let traitctl = try Command.built("traitctl")
        let enter = ["ip", "netns", "exec", namespace.name, traitctl]
        let listener = try Command(
          enter + ["listen", "--port", "\(Guest.port)", "--count", "3", "--timeout", "60"]
            + (isJSON ? ["--json"] : []))
        var outcome: Command.Outcome?
        let deadline = ContinuousClock.now + .seconds(60)
        // Until it listens, however long it takes to start.
        while try !listener.hasFinished(), ContinuousClock.now < deadline {
          outcome = try Command.insisting(
            enter + [
              "send", "--address", "::1", "--port", "\(Guest.port)", "--trait", "\(names[0])=4000000000",
              "--trait", "\(names[1])=0xffffffffffffffff", "--trait",
              "\(names[2])=000102030405060708090a0b0c0d0eff", "hello",
            ] + (isJSON ? ["--json"] : []) + (isSticky ? ["--sticky"] : []))
          #expect(outcome?.status == 0, "\(outcome?.errors ?? "")")
        }
        let heard = try listener.wait()
        #expect(heard.status == 0, "\(heard.errors)")
        let lines = heard.output.split(separator: "\n")
        #expect(lines.count == 3)
        let sent = try #require(outcome?.output.split(separator: "\n").first)
        if isJSON {
          #expect(sent.hasPrefix("{\"destination\":\"[::1]:\(Guest.port)\",\"length\":5,\"traits\":[{"))
          #expect(sent.contains("\"value\":18446744073709551615"))
          let values = sent.drop { $0 != "[" }.dropFirst().drop { $0 != "[" }.dropLast()
          for line in lines { #expect(line.contains(values), "\(line) of \(sent)") }
        } else {
          // In the order of the keys' numbers, which is not that of the arguments.
          #expect(sent.hasPrefix("[::1]:\(Guest.port)  length 5  "))
          let values = sent.split(separator: " ").dropFirst(3)
          #expect(
            Set(values) == [
              "\(names[0])=4000000000", "\(names[1])=18446744073709551615",
              "\(names[2])=000102030405060708090a0b0c0d0eff",
            ])
          for line in lines {
            #expect(line.hasPrefix("[::1]:"))
            #expect(Array(line.split(separator: " ").dropFirst(1)) == ["length", "5"] + Array(values))
          }
        }
      }
    }

    @Test("traitctl send sends as many as it is told, and says why it cannot")
    func toolErrors() throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        var registry = try RegistryConnection()
        let (four, sixteen) = (try registry.key(ids[0]).name, try registry.key(ids[1]).name)
        func send(_ arguments: String...) throws -> Command.Outcome {
          try Command.insisting(
            [try Command.built("traitctl"), "send", "--address", "127.0.0.1", "--port", "4245"] + arguments)
        }
        let three = try send("--count", "3", "--interval", "0.01", "--trait", "\(four)=7", "x")
        #expect(three.status == 0, "\(three.errors)")
        #expect(three.output == String(repeating: "127.0.0.1:4245  length 1  \(four)=7\n", count: 3))
        // Also if nobody reads what it prints.
        let inbox = try UDPSocket(.ipv4)
        try inbox.bind(to: try #require(InternetAddress("127.0.0.1", port: 0)))
        try inbox.setReceiveTimeout(.seconds(10))
        let unread = try Command([
          "bash", "-c", "exec 3> >(exec true); wait $!; \"$0\" \"$@\" >&3; echo $?",
          try Command.built("traitctl"), "send", "--address", "127.0.0.1", "--port",
          "\(try inbox.localAddress().port)", "--count", "3", "y",
        ]).wait()
        #expect(unread.output == "0\n")
        #expect(unread.errors.isEmpty, "\(unread.errors)")
        for _ in 0..<3 { #expect(try inbox.arrival().payload == Array("y".utf8)) }
        for (argument, status, message) in [
          ("no.such.key=1", 1, "there is no such key"),
          ("\(four)=4294967296", 64, "must be a number from 0 to 4294967295"),
          ("\(four)=x", 64, "must be a number from 0 to 4294967295"),
          ("\(sixteen)=1", 64, "must be 32 hexadecimal digits"),
        ] as [(String, Int32, String)] {
          let outcome = try send("--trait", argument)
          #expect(outcome.status == status, "\(argument)")
          #expect(outcome.output.isEmpty)
          #expect(outcome.errors.contains(message), "\(outcome.errors)")
        }
      }
    }
  }

  /// Expects an error with this code, whatever it says.
  static func expectError<Value>(
    _ code: TraitError.Code, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Value
  ) {
    let error = #expect(throws: TraitError.self, sourceLocation: sourceLocation) { _ = try body() }
    #expect(error?.code == code, sourceLocation: sourceLocation)
  }
}
