// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A segment of TCP, as it came along the cable: as the sender made it, which may be several packets of
/// a real wire.
private struct Segment {
  /// Where its bytes begin in the stream.
  let offset: Int
  let payload: [UInt8]
  let isSYN: Bool
  let traits: Traits

  var range: Range<Int> { offset..<offset + payload.count }

  /// - Parameter begin: The client's port and the sequence number of the SYN, once they are known.
  init?(frame: [UInt8], traits: Traits, begin: inout (port: Int, sequence: UInt32)?) {
    func number(_ at: Int) -> Int { Int(frame[at]) << 8 | Int(frame[at + 1]) }
    guard frame.count >= 54 else { return nil }
    let start: Int
    let end: Int
    switch number(12) {
    case 0x0800:
      guard frame[23] == 6 else { return nil }
      start = 14 + Int(frame[14] & 15) * 4
      end = 14 + number(16)
    case 0x86dd:
      guard frame[20] == 6 else { return nil }
      start = 54
      end = 54 + number(18)
    default:
      return nil
    }
    guard end <= frame.count, start + 20 <= end, number(start + 2) == Int(Guest.port) else { return nil }
    let sequence = UInt32(number(start + 4)) << 16 | UInt32(number(start + 6))
    isSYN = frame[start + 13] & 2 != 0
    if isSYN { begin = (number(start), sequence) }
    // Of a connection before there may be a last one.
    guard let begin, begin.port == number(start) else { return nil }
    offset = isSYN ? 0 : Int(Int32(bitPattern: sequence &- begin.sequence &- 1))
    payload = Array(frame[(start + Int(frame[start + 12] >> 4) * 4)..<end])
    self.traits = traits
  }
}

/// A TCP connection along a cable, and all segments that come to its server.
private final class TracedStream {
  static let maximumRead = 70_000

  let cable: VethPair
  let route: Guest.Route
  private(set) var client = FileDescriptor(rawValue: -1)
  private(set) var server = FileDescriptor(rawValue: -1)
  private var listener = FileDescriptor(rawValue: -1)
  private let tap: FileDescriptor
  private var begin: (port: Int, sequence: UInt32)?

  static func option(_ descriptor: FileDescriptor, _ level: Int32, _ name: Int32, _ value: Int32) throws {
    var value = value
    guard setsockopt(descriptor.rawValue, level, name, &value, 4) == 0 else {
      throw LabError("option \(name) of level \(level): \(Errno(rawValue: errno))")
    }
  }

  private static func socket(_ namespace: NetworkNamespace, _ family: Int32) throws -> FileDescriptor {
    try namespace.run {
      let descriptor = Glibc.socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
      guard descriptor >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
      let socket = FileDescriptor(rawValue: descriptor)
      try option(socket, SOL_SOCKET, SO_REUSEADDR, 1)
      // Reads and writes that would wait for ever fail.
      var limit = timeval(tv_sec: 20, tv_usec: 0)
      for name in [SO_RCVTIMEO, SO_SNDTIMEO] {
        setsockopt(descriptor, SOL_SOCKET, name, &limit, socklen_t(MemoryLayout<timeval>.size))
      }
      return socket
    }
  }

  /// Where the listener is, for the client.
  var destination: InternetAddress {
    get throws { try cable.receiver.address(route.family, port: Guest.port) }
  }

  static func call(
    _ what: String, _ address: InternetAddress, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws {
    let status = address.withSockaddr(body)
    guard status == 0 else { throw LabError("\(what): \(Errno(rawValue: errno))") }
  }

  /// - Parameters:
  ///   - keys: Those that are looked for in segments.
  ///   - sticky: What the client's segments have from the SYN on.
  ///   - connects: Whether there is a connection, or the client is only about to make one.
  init(
    _ cable: VethPair, _ route: Guest.Route, _ keys: [TraitID], sticky: Traits = Traits(),
    connects: Bool = true
  ) throws {
    self.cable = cable
    self.route = route
    tap = try cable.receiver.namespace.openTap(on: cable.receiver.interface)
    try look(for: keys)
    // SO_RCVBUFFORCE: what is not read yet must not be lost.
    try Self.option(tap, SOL_SOCKET, 33, 64 << 20)
    let family = route == .ipv4 ? InternetAddress.Family.ipv4 : .ipv6
    let server = try Self.socket(cable.receiver.namespace, route == .ipv4 ? AF_INET : AF_INET6)
    listener = server
    try Self.call("bind", .any(family, port: Guest.port)) { bind(server.rawValue, $0, $1) }
    // TCP_FASTOPEN: requests that may wait, which come with data.
    try Self.option(server, Int32(IPPROTO_TCP), 23, 4)
    guard listen(server.rawValue, 4) == 0 else { throw LabError("listen: \(Errno(rawValue: errno))") }
    let client = try Self.socket(cable.sender.namespace, route == .ipv6 ? AF_INET6 : AF_INET)
    self.client = client
    // TCP_NODELAY: what is written goes out at once.
    try Self.option(client, Int32(IPPROTO_TCP), 1, 1)
    try Guest.insisting { try client.setSentTraits(sticky) }
    guard connects else { return }
    try Self.call("connect", try destination) { connect(client.rawValue, $0, $1) }
    try accept()
  }

  deinit {
    for end in [client, server, listener, tap] where end.rawValue >= 0 { try? end.close() }
  }

  func accept() throws {
    let accepted = Glibc.accept(listener.rawValue, nil, nil)
    guard accepted >= 0 else { throw LabError("accept: \(Errno(rawValue: errno))") }
    server = FileDescriptor(rawValue: accepted)
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(accepted, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  /// Closes the client's socket, whatever is still to be sent.
  func abandon() throws {
    var off = linger(l_onoff: 1, l_linger: 0)
    setsockopt(client.rawValue, SOL_SOCKET, SO_LINGER, &off, socklen_t(MemoryLayout<linger>.size))
    try client.close()
    client = FileDescriptor(rawValue: -1)
  }

  /// Looks for these keys in segments, from now on.
  func look(for keys: [TraitID]) throws { try tap.setReceivedTraits(TraitMask(keys)) }

  /// Writes all of it in one call.
  func write(
    _ bytes: [UInt8], _ traits: Traits = Traits(), flags: Int32 = 0, to destination: InternetAddress? = nil
  ) throws {
    let count = try Guest.insisting {
      try client.sendMessage(
        bytes.span.bytes, to: destination, traits: traits, flags: MessageFlags(rawValue: flags))
    }
    #expect(count == bytes.count)
  }

  /// The frame that came next, or nil if none did.
  private func nextFrame() throws -> (bytes: [UInt8], traits: Traits)? {
    var batch = ReceiveBatch(capacity: 1, payloadCapacity: Self.maximumRead)
    var isThere = true
    do {
      try tap.receiveMessages(into: &batch, flags: .doNotWait)
    } catch {
      guard error == .wouldBlock else { throw error }
      isThere = false
    }
    return isThere ? (batch.payload(at: 0), try batch.datagram(at: 0).traits) : nil
  }

  /// The segment that came next, or nil if none did.
  private func next() throws -> Segment? {
    while let frame = try nextFrame() {
      if let segment = Segment(frame: frame.bytes, traits: frame.traits, begin: &begin) { return segment }
    }
    return nil
  }

  /// What came so far and was not looked at before.
  func segmentsSoFar() throws -> [Segment] {
    var segments: [Segment] = []
    while let segment = try next() { segments.append(segment) }
    return segments
  }

  /// Takes what the server receives, and expects it to be `stream`, whole.
  ///
  /// - Parameters:
  ///   - start: How many bytes came before these.
  ///   - writing: Writes some of it, again and again until it says that there is no more.
  /// - Returns: The segments that brought it, and those without data.
  func receive(
    _ stream: [UInt8], after start: Int = 0, writing: (() throws -> Bool)? = nil
  ) throws -> (data: [Segment], others: [Segment]) {
    var segments: [Segment] = []
    var received: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 1 << 16)
    var isWriting = writing != nil
    while received.count < stream.count {
      if isWriting, let writing { isWriting = try writing() }
      let count = recv(server.rawValue, &room, room.count, isWriting ? Int32(MSG_DONTWAIT) : 0)
      if count > 0 {
        received += room[..<count]
      } else {
        try #require(count < 0 && isWriting, "recv: \(count), errno \(errno)")
        usleep(500)
      }
      segments += try segmentsSoFar()
    }
    #expect(received == stream)
    segments += try segmentsSoFar()
    var covered = start
    for segment in segments.filter({ !$0.payload.isEmpty }).sorted(by: { $0.offset < $1.offset }) {
      let range = segment.range
      try #require(
        range.lowerBound >= start && range.upperBound <= start + stream.count && range.lowerBound <= covered)
      #expect(segment.payload == Array(stream[(range.lowerBound - start)..<(range.upperBound - start)]))
      covered = max(covered, range.upperBound)
    }
    #expect(covered == start + stream.count)
    return (segments.filter { !$0.payload.isEmpty }, segments.filter { $0.payload.isEmpty })
  }
}

/// Loses all segments that come along a cable, until it ends.
private struct Hole {
  private let program: ScriptProgram

  init(_ cable: VethPair) throws {
    // What comes goes back to where it came from, and nobody there knows it.
    program = try ScriptProgram(.ipProtocol(6), [], then: .transmit)
    try program.program.attach(to: cable.receiver)
  }

  /// Waits until so many segments were lost.
  func wait(_ count: UInt64) throws {
    for _ in 0..<500 where try program.results().runs < count { usleep(10_000) }
    try #require(try program.results().runs >= count)
  }

  func end() throws { try program.program.detach() }
}

extension Guest {
  @Suite("Writes to streams", .cable)
  struct StreamWriteTests {
    private func value(_ byte: UInt8, _ size: TraitSize = .bytes16) -> [UInt8] {
      [UInt8](repeating: byte, count: size.rawValue)
    }

    private func number(_ number: UInt32) -> [UInt8] {
      withUnsafeBytes(of: number) { Array($0) }
    }

    /// Keys that cross to the other end of the cable.
    private func withKeys(
      _ count: Int, merge: MergePolicy = .exact, size: TraitSize = .bytes16,
      _ body: ([TraitID]) throws -> Void
    ) throws {
      try Guest.withKeys(
        [TraitSize](repeating: size, count: count), merge: merge, flags: .crossesNetworkNamespaces, body)
    }

    /// Where memory is lacking, bytes have less than they might have: never anything else.
    private func expect(
      _ found: Traits, _ right: Traits, _ comment: @autoclosure () -> Comment? = nil,
      sourceLocation: SourceLocation = #_sourceLocation
    ) {
      guard found != right, Guest.storesMayFail else {
        #expect(found == right, comment(), sourceLocation: sourceLocation)
        return
      }
      #expect(found.allSatisfy { right.contains($0) }, comment(), sourceLocation: sourceLocation)
    }

    private func withParameter(
      _ end: VethPair.End, _ name: String, _ value: String, _ usual: String, _ body: () throws -> Void
    ) throws {
      try end.namespace.setParameter(name, value)
      defer { try? end.namespace.setParameter(name, usual) }
      try body()
    }

    private static func stream(_ count: Int) -> [UInt8] {
      (0..<count).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8 ^ $0 >> 16) }
    }

    // MARK: One write

    @Test(
      "each segment of a write has its traits, over those of the socket", arguments: Route.allCases,
      [true, false])
    func write(route: Route, offload: Bool) throws {
      let cable = try suiteCable()
      try withKeys(3) { ids in
        let sticky = try Traits([(ids[0], value(1)), (ids[1], value(1))])
        let own = try Traits([(ids[1], value(2)), (ids[2], value(2))])
        let both = try Traits([(ids[0], value(1)), (ids[1], value(2)), (ids[2], value(2))])
        try cable.sender.withOffload("tso", offload) {
          let line = try TracedStream(cable, route, ids, sticky: sticky)
          let stream = Self.stream(300_000)
          // 150,000 bytes with traits, the rest without
          var written = 0
          let (data, others) = try line.receive(stream) {
            let limit = written < 150_000 ? 150_000 : 300_000
            do {
              written += try line.client.sendMessage(
                Array(stream[written..<limit]).span.bytes, traits: limit == 150_000 ? own : Traits(),
                flags: .doNotWait)
            } catch Errno.wouldBlock, Errno.noBufferSpace {}
            return written < stream.count
          }
          #expect(data.contains { $0.payload.count > 1500 } == offload)
          #expect(others.contains { $0.isSYN })
          for segment in data {
            #expect(segment.offset >= 150_000 || segment.range.upperBound <= 150_000)
            if segment.offset >= 150_000 {
              #expect(segment.traits == sticky)
            } else {
              // Without memory for both, those of the bytes
              #expect(segment.traits == both || Guest.storesMayFail && segment.traits == own)
            }
          }
          for segment in others { #expect(segment.traits == sticky) }
        }
      }
    }

    @Test("a write of any kind of call has its traits", arguments: Route.allCases)
    func kinds(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1) { ids in
        let own = try Traits([(ids[0], value(3))])
        let stream = Self.stream(100_000)
        // MSG_ZEROCOPY, which SO_ZEROCOPY allows; MSG_EOR; MSG_OOB; and none
        for flags in [0x400_0000, Int32(MSG_EOR), 0] {
          let line = try TracedStream(cable, route, ids)
          try TracedStream.option(line.client, SOL_SOCKET, 60, 1)
          var written = 0
          let (data, _) = try line.receive(stream) {
            do {
              // Pages of the array itself, that stays as it is
              written += try line.client.sendMessage(
                stream.span.bytes.extracting(written..<stream.count), traits: own,
                flags: MessageFlags(rawValue: flags | Int32(MSG_DONTWAIT)))
            } catch Errno.wouldBlock, Errno.noBufferSpace {}
            return written < stream.count
          }
          for segment in data { #expect(segment.traits == own) }
        }
      }
    }

    @Test("segments of bytes that nobody acknowledged share what they have, and leave nothing behind")
    func memory() throws {
      let cable = try suiteCable()
      try withKeys(2, merge: .last) { ids in
        let before = try settled { _ in false }
        for round in 0..<20 as Range<UInt8> {
          let line = try TracedStream(cable, round % 2 == 0 ? .ipv4 : .ipv6, ids)
          let hole = try Hole(cable)
          for number in 0..<20 as Range<UInt8> {
            try line.write(
              Self.stream(700), try Traits([(ids[Int(number % 2)], value(number))]),
              flags: number % 3 == 0 ? Int32(MSG_MORE) : 0)
          }
          // Refused when there are traits already: for a message of another kind
          var control = ControlData()
          control.append(try Traits([(ids[0], value(round))]))
          control.append(level: .socket, type: .init(rawValue: 99), UInt32(1))
          #expect(throws: Errno.invalidArgument) {
            try Guest.insisting { try line.client.sendMessage(Self.stream(10).span.bytes, control: control) }
          }
          try hole.wait(1)
          try hole.end()
          try line.abandon()
        }
        let after = try settled { $0.isAtMost(before) }
        #expect(after.isAtMost(before))
      }
    }

    // MARK: Several writes

    /// What a policy makes of two values, nil for none; `nil` in place of all that if they stay apart.
    private func merged(_ merge: MergePolicy, _ first: UInt32?, _ second: UInt32?) -> UInt32?? {
      if first == second { return .some(first) }
      switch merge {
      case .exact: return nil
      case .first: return .some(first ?? second)
      case .last: return .some(second ?? first)
      case .drop: return .some(nil)
      default: break
      }
      guard let first, let second else { return .some(first ?? second) }
      switch merge {
      case .minimum: return min(first, second)
      case .maximum: return max(first, second)
      case .bitwiseOr: return first | second
      case .bitwiseAnd: return first & second
      default: return .some(nil)
      }
    }

    private func traits(_ id: TraitID, _ value: UInt32?) throws -> Traits {
      try Traits(value.map { [(id, number($0))] } ?? [])
    }

    private static let pairs: [(UInt32?, UInt32?)] = [(1, 2), (6, 3), (1, 1), (nil, 2), (1, nil), (nil, nil)]

    @Test(
      "bytes that are appended to others share a segment by each key's policy",
      arguments: MergePolicy.allCases,
      [Route.ipv4, .ipv6])
    func appended(merge: MergePolicy, route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1, merge: merge, size: .bytes4) { ids in
        for (first, second) in Self.pairs {
          let line = try TracedStream(cable, route, ids)
          let stream = Self.stream(300)
          try line.write(Array(stream[..<100]), try traits(ids[0], first), flags: Int32(MSG_MORE))
          try line.write(Array(stream[100...]), try traits(ids[0], second))
          let (data, _) = try line.receive(stream)
          let outcome = merged(merge, first, second)
          let comment: Comment = "\(merge): \(String(describing: first)), \(String(describing: second))"
          if let outcome, !(Guest.storesMayFail && data.count == 2) {
            #expect(data.map(\.range) == [0..<300], comment)
            for segment in data { expect(segment.traits, try traits(ids[0], outcome), comment) }
          } else {
            #expect(data.map(\.range) == [0..<100, 100..<300], comment)
            #expect(try data.map(\.traits) == [traits(ids[0], first), traits(ids[0], second)], comment)
          }
        }
      }
    }

    @Test(
      "segments that are sent again share one by each key's policy", arguments: MergePolicy.allCases,
      [Route.ipv4, .ipv6])
    func collapsed(merge: MergePolicy, route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1, merge: merge, size: .bytes4) { ids in
        try withParameter(cable.sender, "net/ipv4/tcp_autocorking", "0", "1") {
          for (first, second) in Self.pairs {
            let line = try TracedStream(cable, route, ids)
            let stream = Self.stream(300)
            let hole = try Hole(cable)
            try line.write(Array(stream[..<100]), try traits(ids[0], first))
            try line.write(Array(stream[100...]), try traits(ids[0], second))
            // Each of them, and at least the first again
            try hole.wait(3)
            try hole.end()
            let (data, _) = try line.receive(stream)
            let outcome = merged(merge, first, second)
            let comment: Comment = "\(merge): \(String(describing: first)), \(String(describing: second))"
            if let outcome, !(Guest.storesMayFail && data.first?.range == 0..<100) {
              #expect(data.first?.range == 0..<300, comment)
              for segment in data { expect(segment.traits, try traits(ids[0], outcome), comment) }
            } else {
              #expect(data.allSatisfy { $0.range == 0..<100 || $0.range == 100..<300 }, comment)
              for segment in data {
                #expect(try segment.traits == traits(ids[0], segment.offset == 0 ? first : second), comment)
              }
            }
          }
        }
      }
    }

    /// Whether a segment can have this, if write number `n` has the value `n` + 1.
    private func isRight(
      _ merge: MergePolicy, _ found: UInt32?, _ writes: ClosedRange<UInt32>, of count: UInt32
    ) -> Bool {
      let (low, high) = (writes.lowerBound, writes.upperBound)
      guard let found else { return merge == .drop }
      switch merge {
      case .exact: return low == high && found == low
      case .drop: return low == high && found == low
      // It may have been cut from a larger one, with bytes of other writes before it and after it.
      case .first, .minimum: return found >= 1 && found <= low
      case .last, .maximum: return found >= high && found <= count
      case .bitwiseOr: return writes.allSatisfy { $0 & ~found == 0 }
      case .bitwiseAnd: return writes.allSatisfy { found & ~$0 == 0 }
      default: return false
      }
    }

    @Test(
      "however a stream is cut and joined, each segment has what its bytes have by each key's policy",
      arguments: MergePolicy.allCases, [Route.ipv4, .ipv6])
    func bulk(merge: MergePolicy, route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1, merge: merge, size: .bytes4) { ids in
        // 2: the size of segments is found by trying larger ones, from small ones on.
        for probing in route == .ipv4 ? ["0", "2"] : ["0"] {
          try withParameter(cable.sender, "net/ipv4/tcp_mtu_probing", probing, "0") {
            try cable.sender.withOffload("tso", probing == "0") {
              let line = try TracedStream(cable, route, ids)
              let stream = Self.stream(1_500_000)
              let length = 2900
              var written = 0
              let (data, _) = try line.receive(stream) {
                // As much as fits waits to be sent.
                while written < stream.count {
                  let number = written / length
                  let end = min((number + 1) * length, stream.count)
                  do {
                    written += try line.client.sendMessage(
                      Array(stream[written..<end]).span.bytes, traits: try traits(ids[0], UInt32(number) + 1),
                      flags: .doNotWait)
                  } catch Errno.wouldBlock, Errno.noBufferSpace {
                    break
                  }
                }
                return written < stream.count
              }
              if probing == "2" {
                let sizes = Set(data.map(\.payload.count))
                #expect((sizes.max() ?? 0) > 1100 && sizes.contains { $0 > 500 && $0 < 1100 })
              }
              for segment in data {
                let first = UInt32(segment.offset / length) + 1
                let last = UInt32((segment.range.upperBound - 1) / length) + 1
                let found = segment.traits.bytes(of: ids[0]).map {
                  UInt32($0[0]) | UInt32($0[1]) << 8 | UInt32($0[2]) << 16 | UInt32($0[3]) << 24
                }
                #expect(
                  isRight(merge, found, first...last, of: UInt32((stream.count - 1) / length + 1)),
                  "\(merge): \(String(describing: found)) for writes \(first) to \(last)")
              }
            }
          }
        }
      }
    }

    @Test(
      "a write that fails changes nothing, and one without traits counts", arguments: [Route.ipv4, .ipv6])
    func beside(route: Route) throws {
      let cable = try suiteCable()
      for merge in [MergePolicy.exact, .last, .drop] {
        try withKeys(1, merge: merge) { ids in
          let own = try Traits([(ids[0], value(4))])
          let line = try TracedStream(cable, route, ids)
          let stream = Self.stream(300)
          try line.write(Array(stream[..<100]), own, flags: Int32(MSG_MORE))
          // Bytes that cannot be read, with other traits: no segment is to have both.
          let other = try Traits([(ids[0], value(5))])
          var control = ControlData()
          control.append(other)
          var bytes = control.bytes
          let status = bytes.withUnsafeMutableBytes { control in
            var vector = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: 8), iov_len: 50)
            return withUnsafeMutablePointer(to: &vector) { vector in
              var message = msghdr()
              message.msg_iov = vector
              message.msg_iovlen = 1
              message.msg_control = control.baseAddress
              message.msg_controllen = control.count
              return sendmsg(line.client.rawValue, &message, Int32(MSG_MORE))
            }
          }
          #expect(status == -1)
          #expect(errno == EFAULT || Guest.storesMayFail && errno == ENOBUFS)
          try line.write(Array(stream[100..<200]), own, flags: Int32(MSG_MORE))
          // As programs write that know of no traits
          try #expect(line.client.writeAll(stream[200...]) == 100)
          let (data, _) = try line.receive(stream)
          switch merge {
          case .exact:
            #expect(data.map(\.range) == [0..<200, 200..<300])
            #expect(data.map(\.traits) == [own, Traits()])
          case .last:
            #expect(data.map(\.range) == [0..<300])
            #expect(data.map(\.traits) == [own])
          default:
            #expect(data.map(\.range) == [0..<300])
            #expect(data.map(\.traits) == [Traits()])
          }
        }
      }
    }

    // MARK: Again

    @Test(
      "what is sent again has its traits, over those that the socket has by then",
      arguments: [Route.ipv4, .ipv6])
    func again(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(4) { ids in
        let line = try TracedStream(
          cable, route, ids, sticky: try Traits([(ids[0], value(1)), (ids[1], value(1))]))
        let hole = try Hole(cable)
        let stream = Self.stream(100)
        try line.write(stream, try Traits([(ids[1], value(2)), (ids[2], value(2))]))
        try hole.wait(2)
        try Guest.insisting {
          try line.client.setSentTraits(try Traits([(ids[1], value(3)), (ids[3], value(3))]))
        }
        try hole.end()
        let (data, _) = try line.receive(stream)
        for segment in data {
          expect(
            segment.traits, try Traits([(ids[1], value(2)), (ids[2], value(2)), (ids[3], value(3))]))
        }
      }
    }

    @Test("a key that was removed ends on what is sent again", arguments: [Route.ipv4, .ipv6])
    func removed(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(2) { ids in
        let line = try TracedStream(cable, route, ids, sticky: try Traits([(ids[0], value(1))]))
        let hole = try Hole(cable)
        let stream = Self.stream(100)
        try line.write(stream, try Traits([(ids[0], value(2)), (ids[1], value(2))]))
        try hole.wait(2)
        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[0])
        try registry.add(removed.name, size: .bytes16, id: removed.id, flags: .crossesNetworkNamespaces)
        try line.look(for: ids)
        try hole.end()
        let (data, _) = try line.receive(stream)
        for segment in data { #expect(try segment.traits == Traits([(ids[1], value(2))])) }
      }
    }

    @Test("a segment that is cut to be sent again is cut with its traits", arguments: [Route.ipv4, .ipv6])
    func cut(route: Route) throws {
      let cable = try suiteCable()
      let sender = cable.sender
      let network = route == .ipv4 ? "10.77.1.0/24" : "fd77:1::/64"
      func setMTU(_ words: String) throws {
        let version = route == .ipv4 ? "-4" : "-6"
        let source = route == .ipv4 ? " scope link src \(sender.ipv4)" : " metric 256"
        let line =
          "\(version) route replace \(network) dev \(sender.interface) proto kernel\(source) \(words)"
        let outcome = try Command(
          ["ip", "-n", sender.namespace.name] + line.split(separator: " ").map(String.init)
        ).wait()
        try #require(outcome.status == 0, "\(line): \(outcome.errors)")
      }
      try withKeys(2) { ids in
        let sticky = try Traits([(ids[0], value(1))])
        let line = try TracedStream(cable, route, ids, sticky: sticky)
        let hole = try Hole(cable)
        let stream = Self.stream(1400)
        try line.write(stream, try Traits([(ids[1], value(2))]))
        try hole.wait(2)
        try setMTU("mtu 1280")
        defer { try? setMTU("") }
        try hole.end()
        let (data, _) = try line.receive(stream)
        #expect(data.count > 1)
        for segment in data { expect(segment.traits, try Traits([(ids[0], value(1)), (ids[1], value(2))])) }
      }
    }

    // MARK: Fast Open

    @Test("a SYN has the traits of the data that comes with it", arguments: Route.allCases)
    func fastOpen(route: Route) throws {
      let cable = try suiteCable()
      for end in [cable.sender, cable.receiver] {
        try end.namespace.setParameter("net/ipv4/tcp_fastopen", "519")
      }
      defer {
        for end in [cable.sender, cable.receiver] {
          try? end.namespace.setParameter("net/ipv4/tcp_fastopen", "1")
        }
      }
      try withKeys(2) { ids in
        let sticky = try Traits([(ids[0], value(1))])
        let own = try Traits([(ids[1], value(2))])
        let both = try Traits([(ids[0], value(1)), (ids[1], value(2))])
        let stream = Self.stream(4000)
        for isLost in [false, true] {
          let line = try TracedStream(cable, route, ids, sticky: sticky, connects: false)
          // Nobody may set this, so nothing may be sent.
          try asUser(65534) {
            #expect(throws: Errno.notPermitted) {
              // MSG_FASTOPEN
              try line.client.sendMessage(
                stream.span.bytes, to: try line.destination, traits: own,
                flags: MessageFlags(rawValue: 0x2000_0000))
            }
          }
          #expect(try line.segmentsSoFar().isEmpty)
          let hole = isLost ? try Hole(cable) : nil
          var count = 0
          do {
            count = try Guest.insisting {
              try line.client.sendMessage(
                stream.span.bytes, to: try line.destination, traits: own,
                flags: MessageFlags(rawValue: 0x2000_0000 | Int32(MSG_DONTWAIT)))
            }
          } catch let error as Errno {
            Issue.record("\(error)")
          }
          // As much as goes with a SYN
          #expect(count > 1000 && count < 1460)
          try hole?.wait(1)
          try hole?.end()
          try line.accept()
          try line.write(Array(stream[count...]), own)
          let (data, others) = try line.receive(stream)
          let syn = (data + others).filter(\.isSYN)
          #expect(!syn.isEmpty)
          for segment in syn {
            #expect(segment.payload.isEmpty == isLost)
            if isLost { #expect(segment.traits == sticky) }
          }
          for segment in data { expect(segment.traits, both) }
          for segment in others { #expect(segment.traits == sticky) }
        }
      }
    }

    // MARK: Errors

    @Test(
      "traits beside what is no message at all send nothing, not even a SYN", arguments: [Route.ipv4, .ipv6])
    func malformed(route: Route) throws {
      let cable = try suiteCable()
      for end in [cable.sender, cable.receiver] {
        try end.namespace.setParameter("net/ipv4/tcp_fastopen", "519")
      }
      defer {
        for end in [cable.sender, cable.receiver] {
          try? end.namespace.setParameter("net/ipv4/tcp_fastopen", "1")
        }
      }
      try withKeys(1) { ids in
        let line = try TracedStream(cable, route, ids, connects: false)
        var control = ControlData()
        control.append(try Traits([(ids[0], value(1))]))
        // A header that says less than its own length
        var bytes = control.bytes
        bytes.append(native: UInt64(4))
        bytes += [UInt8](repeating: 0, count: 8)
        let payload = Self.stream(10)
        let count = try line.destination.withSockaddr { address, length in
          payload.withUnsafeBytes { payload in
            bytes.withUnsafeMutableBytes { control in
              var vector = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: payload.baseAddress), iov_len: payload.count)
              return withUnsafeMutablePointer(to: &vector) { vector in
                var message = msghdr()
                message.msg_name = UnsafeMutableRawPointer(mutating: address)
                message.msg_namelen = length
                message.msg_iov = vector
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = control.count
                // MSG_FASTOPEN
                return sendmsg(line.client.rawValue, &message, 0x2000_0000)
              }
            }
          }
        }
        #expect(count == -1)
        #expect(errno == EINVAL)
        usleep(50_000)
        #expect(try line.segmentsSoFar().isEmpty)
      }
    }

    @Test("what is refused sends nothing", arguments: Route.allCases)
    func refused(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(13) { ids in
        let line = try TracedStream(cable, route, ids)
        let free = try Guest.freeKey()
        func record(_ id: TraitID, _ length: UInt16, flags: UInt16 = 0) -> [UInt8] {
          var bytes: [UInt8] = []
          bytes.append(native: id.rawValue)
          bytes.append(native: length)
          bytes.append(native: flags)
          return bytes + value(1)
        }
        let right = record(ids[0], 16)
        func expectRefused(
          _ expected: Errno, _ what: String, _ messages: [(Int32, [UInt8])],
          sourceLocation: SourceLocation = #_sourceLocation
        ) {
          var control = ControlData()
          for (type, bytes) in messages {
            control.append(level: .traits, type: .init(rawValue: type), data: bytes.span.bytes)
          }
          #expect(throws: expected, "\(what)", sourceLocation: sourceLocation) {
            try line.client.sendMessage(Self.stream(10).span.bytes, control: control)
          }
        }
        expectRefused(.noSuchFileOrDirectory, "not registered", [(1, record(free, 16))])
        expectRefused(.invalidArgument, "another size", [(1, record(ids[0], 8))])
        expectRefused(.invalidArgument, "no size", [(1, record(ids[0], 5))])
        expectRefused(.invalidArgument, "flags", [(1, record(ids[0], 16, flags: 1))])
        expectRefused(.invalidArgument, "a key twice", [(1, right + right)])
        expectRefused(.invalidArgument, "half a record", [(1, Array(right.prefix(12)))])
        expectRefused(.invalidArgument, "twice", [(1, right), (1, record(ids[1], 16))])
        expectRefused(.invalidArgument, "another type", [(2, right)])
        expectRefused(.invalidArgument, "right ones before", [(1, right), (2, right)])
        try asUser(65534) { expectRefused(.notPermitted, "another user", [(1, right)]) }
        // 12 of the socket and 12 of the message are one too many together, if one differs.
        let full = try Traits(ids[..<12].map { ($0, value(1)) })
        try Guest.insisting { try line.client.setSentTraits(full) }
        expectRefused(.noSpace, "too many", [(1, record(ids[12], 16))])
        #expect(throws: Errno.noSpace) {
          try line.client.sendMessage(
            Self.stream(10).span.bytes,
            traits: try Traits(ids[..<11].map { ($0, value(2)) } + [(ids[12], value(2))]))
        }
        expectRefused(.noSpace, "too many, alone", [(1, ids.flatMap { record($0, 16) })])
        // A message of another level that is wrong is wrong in the old way.
        var marked = ControlData()
        marked.append(level: .socket, type: .init(rawValue: SO_MARK), UInt32(1))
        let bytes = Self.stream(10)
        let (client, mark) = (line.client, marked)
        try asUser(65534) {
          #expect(throws: Errno.invalidArgument) {
            try client.sendMessage(bytes.span.bytes, control: mark)
          }
          return
        }
        var unknown = ControlData()
        unknown.append(try Traits([(ids[0], value(2))]))
        unknown.append(level: .socket, type: .init(rawValue: 99), UInt32(1))
        let beside = unknown
        #expect(throws: Errno.invalidArgument) {
          try client.sendMessage(bytes.span.bytes, control: beside)
        }
        #expect(try line.segmentsSoFar().allSatisfy { $0.payload.isEmpty })
        // Of keys that are there already it may have others.
        let stream = Self.stream(100)
        try line.write(stream, try Traits([(ids[0], value(2))]))
        let (data, _) = try line.receive(stream)
        for segment in data {
          #expect(
            try segment.traits == Traits(ids[..<12].map { ($0, value($0 == ids[0] ? 2 : 1)) })
              || Guest.storesMayFail)
        }
        // An empty one says nothing.
        var empty = ControlData()
        let nothing: [UInt8] = []
        empty.append(level: .traits, type: .traits, data: nothing.span.bytes)
        try Guest.insisting { try line.client.setSentTraits(Traits()) }
        #expect(try line.client.sendMessage(stream.span.bytes, control: empty) == 100)
        let (more, _) = try line.receive(stream, after: 100)
        for segment in more { #expect(segment.traits.isEmpty) }
      }
    }

    @Test("what the socket was given since takes what room there is", arguments: [Route.ipv4, .ipv6])
    func outgrown(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(13) { ids in
        let line = try TracedStream(cable, route, ids)
        let hole = try Hole(cable)
        let stream = Self.stream(100)
        let own = try Traits([(ids[12], value(2))])
        try line.write(stream, own)
        try hole.wait(1)
        try Guest.insisting { try line.client.setSentTraits(try Traits(ids[..<12].map { ($0, value(1)) })) }
        let before = try Guest.statistics()
        try hole.end()
        let (data, _) = try line.receive(stream)
        for segment in data {
          if Guest.storesMayFail && segment.traits == own { continue }
          // In the order of keys, as many as there is room for
          let kept = ids[..<12].sorted { $0.rawValue < $1.rawValue }.prefix(11)
          #expect(try segment.traits == Traits(kept.map { ($0, value(1)) } + [(ids[12], value(2))]))
        }
        #expect(try Guest.statistics().lost > before.lost)
      }
    }

    // MARK: Sockets above TCP

    @Test(
      "a socket that encrypts what it sends refuses them, and works as ever", arguments: [Route.ipv4, .ipv6])
    func encrypting(route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1) { ids in
        let line = try TracedStream(cable, route, ids)
        let name: [CChar] = Array("tls".utf8CString)
        // TCP_ULP; SOL_TLS: TLS_TX, with TLS 1.2 and AES-GCM of 128 bits
        try #require(setsockopt(line.client.rawValue, Int32(IPPROTO_TCP), 31, name, 3) == 0, "errno \(errno)")
        var cipher: [UInt8] = []
        cipher.append(native: UInt16(0x0303))
        cipher.append(native: UInt16(51))
        cipher += [UInt8](repeating: 7, count: 8 + 16 + 4 + 8)
        try #require(
          setsockopt(line.client.rawValue, 282, 1, cipher, socklen_t(cipher.count)) == 0, "errno \(errno)")
        let own = try Traits([(ids[0], value(1))])
        #expect(throws: Errno.invalidArgument) {
          try line.client.sendMessage(Self.stream(10).span.bytes, traits: own)
        }
        // SOL_TLS: TLS_SET_RECORD_TYPE, on its own and with traits
        for isWith in [true, false] {
          var control = ControlData()
          control.append(level: .init(rawValue: 282), type: .init(rawValue: 1), UInt8(22))
          if isWith {
            control.append(own)
            #expect(throws: Errno.invalidArgument) {
              try line.client.sendMessage(Self.stream(10).span.bytes, control: control)
            }
          } else {
            #expect(try line.client.sendMessage(Self.stream(10).span.bytes, control: control) == 10)
          }
        }
        // One record: a header of 5 bytes, 8 of nonce, 16 of tag
        var room = [UInt8](repeating: 0, count: 100)
        #expect(recv(line.server.rawValue, &room, 100, 0) == 5 + 8 + 10 + 16)
        #expect(room[0] == 22)
        #expect(try line.segmentsSoFar().allSatisfy { $0.traits.isEmpty })
      }
    }

    /// Sockets that have TCP beneath them.
    enum Upper: String, CaseIterable, CustomTestStringConvertible {
      case multipath = "MPTCP"
      /// Without a device for remote memory it falls back on TCP when it connects.
      case sharedMemory = "SMC"

      var testDescription: String { rawValue }

      func socket(_ route: Route) -> Int32 {
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        return switch self {
        // IPPROTO_MPTCP
        case .multipath: Glibc.socket(route == .ipv4 ? AF_INET : AF_INET6, type, 262)
        // SMCPROTO_SMC and SMCPROTO_SMC6
        case .sharedMemory: Glibc.socket(AF_SMC, type, route == .ipv4 ? 0 : 1)
        }
      }
    }

    @Test("a socket that is not TCP alone refuses them", arguments: Upper.asked, [Route.ipv4, .ipv6])
    func upper(kind: Upper, route: Route) throws {
      let cable = try suiteCable()
      try withKeys(1) { ids in
        func open(_ namespace: NetworkNamespace) throws -> FileDescriptor {
          try namespace.run {
            let descriptor = kind.socket(route)
            guard descriptor >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
            return FileDescriptor(rawValue: descriptor)
          }
        }
        let listener = try open(cable.receiver.namespace)
        defer { try? listener.close() }
        try TracedStream.option(listener, SOL_SOCKET, SO_REUSEADDR, 1)
        let address = try cable.receiver.address(route.family, port: Guest.port)
        try TracedStream.call("bind", address) { bind(listener.rawValue, $0, $1) }
        try #require(listen(listener.rawValue, 1) == 0)
        let client = try open(cable.sender.namespace)
        defer { try? client.close() }
        let own = try Traits([(ids[0], value(1))])
        #expect(throws: Errno.notSupportedOnSocket) { try client.setReceivedTraits(TraitMask(ids)) }
        // Not connected yet, and connected
        #expect(throws: Errno.notSupportedOnSocket) {
          try client.sendMessage(
            Self.stream(10).span.bytes, traits: own, flags: MessageFlags(rawValue: 0x2000_0000))
        }
        try TracedStream.call("connect", address) { connect(client.rawValue, $0, $1) }
        let accepted = accept(listener.rawValue, nil, nil)
        try #require(accepted >= 0)
        defer { close(accepted) }
        var room = [UInt8](repeating: 0, count: 100)
        switch kind {
        case .multipath:
          #expect(throws: Errno.notSupportedOnSocket) {
            try client.sendMessage(Self.stream(10).span.bytes, traits: own)
          }
          #expect(throws: Errno.notSupportedOnSocket) { try client.setSentTraits(own) }
        case .sharedMemory:
          // Now it is the socket of TCP itself.
          #expect(try client.sendMessage(Self.stream(10).span.bytes, traits: own) == 10 || Guest.storesMayFail)
          #expect(recv(accepted, &room, 100, 0) == 10 || Guest.storesMayFail)
          #expect(try client.sentTraits().isEmpty)
        }
        #expect(try client.sendMessage(Self.stream(20).span.bytes) == 20)
        #expect(recv(accepted, &room, 100, 0) == 20)
        #expect(Array(room[..<20]) == Self.stream(20))
      }
    }
  }
}
