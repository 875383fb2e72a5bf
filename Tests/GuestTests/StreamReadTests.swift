// SPDX-License-Identifier: MIT

import CNetworkLab
import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A TCP socket whose peer is this test: segments come when and as it says. The peer has addresses
/// that nobody has, so nothing answers for it.
private final class WrittenStream {
  private nonisolated(unsafe) static var count: UInt16 = 0
  private static let peerEthernet: [UInt8] = [2, 0, 0, 0, 0, 0x99]

  let cable: VethPair
  let route: Guest.Route
  /// No two streams have the same ones, so that there can be several.
  let port: UInt16
  let peerPort: UInt16
  let listener: FileDescriptor
  private(set) var server: FileDescriptor!

  private let receiver: [UInt8]
  private let from: [UInt8]
  private let to: [UInt8]
  /// Sequence number of the stream's first byte.
  private var first: UInt32 = 0
  private var acknowledged: UInt32 = 0

  /// Where in a frame the first byte of the payload is.
  static func payloadPosition(_ route: Guest.Route) -> UInt8 { route == .ipv6 ? 74 : 54 }

  struct Flags: OptionSet {
    let rawValue: UInt8
    static let finish = Flags(rawValue: 1)
    static let synchronize = Flags(rawValue: 2)
    static let reset = Flags(rawValue: 4)
    static let push = Flags(rawValue: 8)
    static let acknowledge = Flags(rawValue: 16)
    static let urgent = Flags(rawValue: 32)
  }

  /// - Parameters:
  ///   - asked: What the listener asks for, and its connections with it.
  ///   - room: SO_RCVBUF of the listener, if not the usual one.
  init(_ cable: VethPair, _ route: Guest.Route, _ asked: [TraitID], room: Int32? = nil) throws {
    self.cable = cable
    self.route = route
    Self.count = (Self.count + 1) % 4096
    port = 20_000 + Self.count
    peerPort = 40_000 + Self.count
    receiver = try cable.receiver.ethernetAddress()
    let peer = route == .ipv6 ? "fd77:1::99" : "10.77.1.99"
    from = try bytes(of: peer)
    to = try bytes(of: route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4)
    try cable.receiver.namespace.ip(
      "neigh", "replace", peer, "lladdr", "02:00:00:00:00:99", "dev", cable.receiver.interface, "nud",
      "permanent")

    let family: InternetAddress.Family = route == .ipv4 ? .ipv4 : .ipv6
    listener = try Guest.Lane.open(cable.receiver.namespace, family.domain, SOCK_STREAM.rawValue, 0)
    var on: Int32 = 1
    setsockopt(listener.rawValue, SOL_SOCKET, SO_REUSEADDR, &on, 4)
    if var room { setsockopt(listener.rawValue, SOL_SOCKET, SO_RCVBUF, &room, 4) }
    var limit = timeval(tv_sec: 10, tv_usec: 0)
    setsockopt(listener.rawValue, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    try listener.setReceivedTraits(TraitMask(asked))
    try Guest.Lane.bind(listener, .any(family, port: port))
    try #require(listen(listener.rawValue, 4) == 0, "listen: errno \(errno)")
    try shakeHands()
    try accept()
  }

  deinit {
    // Nobody acknowledges a FIN.
    try? send([], at: sent, [.reset, .acknowledge])
    try? server?.close()
    try? listener.close()
  }

  private func shakeHands() throws {
    let tap = try cable.sender.namespace.openTap(on: cable.sender.interface)
    defer { try? tap.close() }
    var limit = timeval(tv_sec: 10, tv_usec: 0)
    setsockopt(tap.rawValue, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    first = UInt32.random(in: 0...(.max))
    try send([], at: -1, .synchronize)
    var frame = [UInt8](repeating: 0, count: 2048)
    let start = Int(Self.payloadPosition(route)) - 20
    while true {
      let count = recv(tap.rawValue, &frame, frame.count, 0)
      try #require(count > 0, "no answer to the SYN: errno \(errno)")
      let ports = [port, peerPort].flatMap { [UInt8($0 >> 8), UInt8($0 & 255)] }
      guard count >= start + 20, Array(frame[..<6]) == Self.peerEthernet,
        Array(frame[start..<start + 4]) == ports, frame[start + 13] == 0x12
      else { continue }
      acknowledged = frame[start + 4..<start + 8].reduce(0) { $0 << 8 | UInt32($1) } &+ 1
      break
    }
    try send([], at: 0)
  }

  private func accept() throws {
    let accepted = Glibc.accept(listener.rawValue, nil, nil)
    try #require(accepted >= 0, "accept: errno \(errno)")
    server = FileDescriptor(rawValue: accepted)
    var limit = timeval(tv_sec: 10, tv_usec: 0)
    setsockopt(accepted, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  /// Bytes after the last one that was sent.
  private var sent = 0

  /// Sends a segment.
  ///
  /// - Parameters:
  ///   - position: Of the first byte in the stream.
  ///   - urgent: Bytes up to the one that is urgent, and with it.
  func send(_ payload: [UInt8], at position: Int, _ flags: Flags = .acknowledge, urgent: Int = 0) throws {
    sent = max(sent, position + payload.count)
    func big16(_ number: Int) -> [UInt8] { [UInt8(number >> 8 & 255), UInt8(number & 255)] }
    func big32(_ number: UInt32) -> [UInt8] {
      (0..<4).map { UInt8(truncatingIfNeeded: number >> (24 - 8 * $0)) }
    }
    let sequence = UInt32(truncatingIfNeeded: Int(first) + position)
    var tcp = big16(Int(peerPort)) + big16(Int(port)) + big32(sequence)
    tcp += big32(flags.contains(.acknowledge) ? acknowledged : 0)
    tcp += [0x50, flags.rawValue] + big16(65535) + [0, 0] + big16(urgent) + payload
    let pseudo = from + to + big32(UInt32(tcp.count)) + [0, 0, 0, 6]
    tcp.replaceSubrange(16..<18, with: Self.checksum(pseudo + tcp))
    var header: [UInt8]
    if route == .ipv6 {
      header = [0x86, 0xdd, 0x60, 0, 0, 0] + big16(tcp.count) + [6, 64] + from + to
    } else {
      var ip = [0x45, 0] + big16(20 + tcp.count) + [0, 1, 0, 0, 64, 6, 0, 0] + from + to
      ip.replaceSubrange(10..<12, with: Self.checksum(ip))
      header = [8, 0] + ip
    }
    try cable.sender.namespace.send(
      frame: receiver + Self.peerEthernet + header + tcp, outOf: cable.sender.interface)
  }

  private static func checksum(_ bytes: [UInt8]) -> [UInt8] {
    var sum = stride(from: 0, to: bytes.count, by: 2).reduce(0) {
      $0 + Int(bytes[$1]) << 8 + ($1 + 1 < bytes.count ? Int(bytes[$1 + 1]) : 0)
    }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return [UInt8(~sum >> 8 & 255), UInt8(~sum & 255)]
  }

  /// Bytes that could be read now.
  var pending: Int {
    var count: Int32 = 0
    // FIONREAD
    _ = ioctl(server.rawValue, 0x541b, &count)
    return Int(count)
  }

  /// Waits until so many bytes could be read.
  func await(_ count: Int, sourceLocation: SourceLocation = #_sourceLocation) throws {
    for _ in 0..<1000 where pending < count { usleep(5000) }
    try #require(pending == count, sourceLocation: sourceLocation)
  }

  /// A counter of the server's namespace, as `nstat` knows it, without its first word.
  func counter(_ name: String) throws -> Int {
    let text = try cable.receiver.namespace.run {
      let file = try FileDescriptor.open("/proc/thread-self/net/netstat", .readOnly)
      return try file.closeAfter {
        var text: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 16384)
        while true {
          let count = try part.withUnsafeMutableBytes { try file.read(into: $0) }
          if count == 0 { return String(decoding: text, as: UTF8.self) }
          text += part[..<count]
        }
      }
    }
    let lines = text.split(separator: "\n").filter { $0.hasPrefix("TcpExt:") }.map {
      $0.split(separator: " ")
    }
    let index = try #require(lines.first?.firstIndex { $0 == name }, "there is no counter \(name)")
    return try #require(Int(lines[1][index]))
  }
}

/// What segments have of one key, and what reads then return: of how many segments, and what they have.
private struct ReadCase: CustomTestStringConvertible {
  let merge: MergePolicy
  let values: [UInt8?]
  let reads: [(count: Int, value: UInt8?)]

  init(_ merge: MergePolicy, _ values: [UInt8?], _ reads: [(Int, UInt8?)]) {
    self.merge = merge
    self.values = values
    self.reads = reads
  }

  var testDescription: String {
    "\(merge): " + values.map { $0.map { "\($0)" } ?? "-" }.joined(separator: " ")
  }
}

private let cases: [ReadCase] = [
  ReadCase(.exact, [5, 5, 5], [(3, 5)]),
  ReadCase(.exact, [5, 7, 7], [(1, 5), (2, 7)]),
  ReadCase(.exact, [5, nil, 5], [(1, 5), (1, nil), (1, 5)]),
  ReadCase(.exact, [nil, nil, 9], [(2, nil), (1, 9)]),
  ReadCase(.drop, [5, 5, 5], [(3, 5)]),
  ReadCase(.drop, [5, 7, 5], [(3, nil)]),
  ReadCase(.drop, [nil, 7, 7], [(3, nil)]),
  ReadCase(.first, [9, 3, 7], [(3, 9)]),
  ReadCase(.first, [nil, 3, 7], [(3, 3)]),
  ReadCase(.last, [9, 3, 7], [(3, 7)]),
  ReadCase(.last, [9, 3, nil], [(3, 3)]),
  ReadCase(.minimum, [9, 3, 7], [(3, 3)]),
  ReadCase(.minimum, [9, nil, 7], [(3, 7)]),
  ReadCase(.maximum, [3, 9, 7], [(3, 9)]),
  ReadCase(.bitwiseOr, [1, 2, 8], [(3, 11)]),
  ReadCase(.bitwiseAnd, [15, 7, 13], [(3, 5)]),
]

/// In which order three segments come; what was there already is dropped.
private let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1], [0, 0, 2, 2, 1, 1, 0]]

extension Guest {
  @Suite("Reads of a stream", .cable, .serialized)
  struct StreamReadTests {
    /// Bytes of a segment; each begins with its row.
    static let length = 100

    private static func segment(_ row: Int, length: Int = length) -> [UInt8] {
      [UInt8(row)] + (1..<length).map { UInt8(truncatingIfNeeded: row &* 31 &+ $0) | 0x80 }
    }

    private static func value(_ byte: UInt8, _ size: TraitSize = .bytes8) -> [UInt8] {
      [UInt8](repeating: byte, count: size.rawValue)
    }

    private static func traits(_ id: TraitID, _ byte: UInt8?, _ size: TraitSize = .bytes8) throws -> Traits {
      try Traits(byte.map { [(id, value($0, size))] } ?? [])
    }

    /// Lets each segment have what its first byte says.
    private func tagging(
      _ cable: VethPair, _ route: Route, _ keys: [(TraitID, TraitSize)], _ rows: [[UInt8?]],
      mode: XDPProgram.Mode = .driver
    ) throws -> TableProgram {
      let table = try TableProgram(
        .ipProtocol(6), keys,
        rows.map { row in zip(row, keys).map { byte, key in byte.map { Self.value($0, key.1) } } },
        rowAt: WrittenStream.payloadPosition(route))
      try table.program.attach(to: cable.receiver, mode: mode)
      return table
    }

    /// Where stores may be lost, one of the values may have been.
    private func expect(
      _ arrival: Arrival, _ payload: [UInt8], _ traits: Traits, _ comment: @autoclosure () -> Comment? = nil,
      sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      #expect(arrival.payload == payload, comment(), sourceLocation: sourceLocation)
      let found = try arrival.traits
      #expect(found == traits || Guest.storesMayFail, comment(), sourceLocation: sourceLocation)
      #expect(!arrival.message.flags.contains(.controlTruncated), comment(), sourceLocation: sourceLocation)
      // One message, or none
      #expect(try arrival.controlMessages.count == (found.isEmpty ? 0 : 1), sourceLocation: sourceLocation)
    }

    // MARK: What a read has

    @Test(
      "one read of three segments has what each key's policy says, in whatever order they came",
      arguments: Route.allCases)
    func three(route: Route) throws {
      let cable = try suiteCable()
      // A store that is in the headroom, and one that a tap has driven out
      for isTapped in route == .ipv4 ? [false, true] : [false] {
        let tap = isTapped ? try cable.receiver.namespace.openTap() : nil
        defer { try? tap?.close() }
        for item in cases {
          try Guest.withKeys([.bytes8], merge: item.merge) { ids in
            let stream = try WrittenStream(cable, route, ids)
            let table = try tagging(cable, route, [(ids[0], .bytes8)], item.values.map { [$0] })
            var position = 0
            for order in orders {
              for row in order { try stream.send(Self.segment(row), at: position + row * Self.length) }
              position += 3 * Self.length
              try stream.await(3 * Self.length)
              var row = 0
              for read in item.reads {
                let payload = (row..<row + read.count).flatMap { Self.segment($0) }
                let right = try Self.traits(ids[0], read.value)
                let comment: Comment = "\(item.testDescription), \(order)"
                // Looked at first, as often as one likes
                for _ in 0..<2 where !Guest.storesMayFail {
                  try expect(try Guest.arrival(stream.server, flags: .peek), payload, right, comment)
                }
                if !Guest.storesMayFail {
                  try expect(try Guest.arrival(stream.server), payload, right, comment)
                } else {
                  _ = try Guest.arrival(stream.server, payloadRoom: payload.count)
                }
                row += read.count
              }
              // What was lost may have let more be read at once.
              while stream.pending > 0 { _ = try Guest.arrival(stream.server) }
            }
            try table.program.detach()
          }
        }
      }
    }

    @Test(
      "a message of three segments has what each key's policy says, for a program of a sockmap",
      arguments: Route.allCases)
    func message(route: Route) throws {
      let cable = try suiteCable()
      for item in cases {
        try Guest.withKeys([.bytes8], merge: item.merge) { ids in
          // The program asks, and nobody else.
          let stream = try WrittenStream(cable, route, [])
          let verdict = try SkbProgram(.verdict, port: Guest.port, [.get(ids[0].rawValue, size: 8)])
          try verdict.attachToReceived(by: stream.server, messageLength: UInt32(3 * Self.length))
          let table = try tagging(cable, route, [(ids[0], .bytes8)], item.values.map { [$0] })
          for round in 0..<2 {
            for row in 0..<3 { try stream.send(Self.segment(row), at: (3 * round + row) * Self.length) }
            var bytes: [UInt8] = []
            while bytes.count < 3 * Self.length { bytes += try Guest.arrival(stream.server).payload }
            #expect(bytes == (0..<3).flatMap { Self.segment($0) })
            let results = try verdict.results()
            // The message, and not each of its segments.
            #expect(results.runs == UInt64(round + 1))
            guard !Guest.storesMayFail else { continue }
            // It cannot be kept in parts.
            let right = item.reads.count == 1 ? item.reads[0].value : nil
            let step = results.steps[0]
            #expect(step.status == (right == nil ? -ENOENT : 8), "\(item.testDescription)")
            if let right {
              #expect(Array(step.value.prefix(8)) == Self.value(right), "\(item.testDescription)")
            }
          }
          try verdict.detach()
          try table.program.detach()
        }
      }
    }

    @Test("three reads of one segment have its traits each", arguments: Route.allCases)
    func pieces(route: Route) throws {
      let cable = try suiteCable()
      for mode in [XDPProgram.Mode.driver, .generic] {
        for merge in MergePolicy.allCases {
          try Guest.withKeys([.bytes4, .bytes8], merge: merge) { ids in
            let stream = try WrittenStream(cable, route, ids)
            let table = try tagging(
              cable, route, [(ids[0], .bytes4), (ids[1], .bytes8)], [[3, 9], [3, 9]], mode: mode)
            // Of one alone, and of one that was joined to it
            try stream.send(Self.segment(0, length: 90), at: 0)
            try stream.send(Self.segment(1, length: 90), at: 90)
            try stream.await(180)
            let bytes = Self.segment(0, length: 90) + Self.segment(1, length: 90)
            let right = try Traits([(ids[0], Self.value(3, .bytes4)), (ids[1], Self.value(9))])
            for piece in 0..<6 {
              let arrival = try Guest.arrival(stream.server, payloadRoom: 30)
              try expect(arrival, Array(bytes[piece * 30..<piece * 30 + 30]), right)
            }
            try table.program.detach()
          }
        }
      }
    }

    @Test(
      "a segment that overlaps another one has a part in the bytes that it brought", arguments: Route.allCases
    )
    func overlap(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8], merge: .exact) { ids in
        // The stream's byte at 0 is 0, at 50 it is 1, at 100 it is 2: whoever begins there has that row.
        var bytes = (0..<250).map { UInt8(truncatingIfNeeded: $0 &* 7) | 0x80 }
        for row in 0..<3 { bytes[row * 50] = UInt8(row) }
        // Where each segment begins and ends, and whose the bytes are then
        for (segments, reads) in [
          ([(0, 100), (50, 150), (100, 250)], [(100, 1), (50, 2), (100, 3)]),
          ([(100, 250), (50, 150), (0, 100)], [(100, 1), (50, 2), (100, 3)]),
          ([(0, 100), (100, 250), (50, 150)], [(100, 1), (150, 3)]),
          ([(100, 250), (0, 100), (50, 150)], [(100, 1), (150, 3)]),
          // One covers all that came before it.
          ([(50, 100), (0, 250)], [(250, 1)]),
          ([(50, 100), (100, 150), (0, 250)], [(250, 1)]),
        ] as [([(Int, Int)], [(Int, UInt8)])] {
          let stream = try WrittenStream(cable, route, ids)
          let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [2], [3]])
          for segment in segments { try stream.send(Array(bytes[segment.0..<segment.1]), at: segment.0) }
          try stream.await(bytes.count)
          var position = 0
          for read in reads where !Guest.storesMayFail {
            let arrival = try Guest.arrival(stream.server)
            try expect(
              arrival, Array(bytes[position..<position + read.0]), try Self.traits(ids[0], read.1),
              "\(segments)")
            position += read.0
          }
          try table.program.detach()
        }
      }
    }

    @Test("values that do not fit into one store end a read", arguments: [Route.ipv4, .ipv6])
    func full(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 14), merge: .first) { ids in
        let stream = try WrittenStream(cable, route, ids)
        // Six and six fit, seven and seven do not.
        for (count, reads) in [(6, [0...1]), (7, [0...0, 1...1])] {
          let rows = (0...1).map { row -> [UInt8?] in
            let own = row * count..<row * count + count
            return (0..<14).map { own.contains($0) ? UInt8(row + 1) : nil }
          }
          let table = try tagging(cable, route, ids.map { ($0, .bytes16) }, rows)
          let position = count == 6 ? 0 : 2 * Self.length
          for row in 0...1 { try stream.send(Self.segment(row), at: position + row * Self.length) }
          try stream.await(2 * Self.length)
          for read in reads where !Guest.storesMayFail {
            var right = Traits()
            for row in read {
              for key in 0..<count {
                try right.setBytes(Self.value(UInt8(row + 1), .bytes16), for: ids[row * count + key])
              }
            }
            try expect(try Guest.arrival(stream.server), read.flatMap { Self.segment($0) }, right)
          }
          while stream.pending > 0 { _ = try Guest.arrival(stream.server) }
          try table.program.detach()
        }
      }
    }

    // MARK: Where a read ends

    @Test(
      "a read ends for exact keys that were asked for, also if it is to wait for all, and for no others",
      arguments: Route.allCases)
    func ends(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8], merge: .exact) { exact in
        try Guest.withKeys([.bytes8], merge: .last) { last in
          let rows: [[UInt8?]] = [[1, 1], [2, 2], [nil, 3]]
          let all = (0..<3).flatMap { Self.segment($0) }
          // MSG_WAITALL
          for flags in [MessageFlags(), MessageFlags(rawValue: 0x100)] {
            let asking = try WrittenStream(cable, route, exact + last)
            let table = try tagging(cable, route, [(exact[0], .bytes8), (last[0], .bytes8)], rows)
            for row in 0..<3 { try asking.send(Self.segment(row), at: row * Self.length) }
            try asking.await(all.count)
            for row in 0..<3 where !Guest.storesMayFail {
              let arrival = try Guest.arrival(asking.server, payloadRoom: row < 2 ? 300 : 100, flags: flags)
              let right = try Traits(
                rows[row][0].map { [(exact[0], Self.value($0)), (last[0], Self.value(UInt8(row + 1)))] }
                  ?? [(last[0], Self.value(3))])
              try expect(arrival, Self.segment(row), right)
            }
            let other = try WrittenStream(cable, route, last)
            let before = try other.counter("TCPRcvCoalesce")
            for row in 0..<3 { try other.send(Self.segment(row), at: row * Self.length) }
            try other.await(all.count)
            try expect(
              try Guest.arrival(other.server, payloadRoom: 300, flags: flags), all,
              try Self.traits(last[0], 3))
            // Nor do they keep segments apart in the queue.
            #expect(try other.counter("TCPRcvCoalesce") - before == 2 || Guest.storesMayFail)
            try table.program.detach()
          }
        }
      }
    }

    @Test("while a read waits for all, what comes later may end it", arguments: [Route.ipv4, .ipv6])
    func later(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      try Guest.withKeys([.bytes8], merge: .exact) { ids in
        let stream = try WrittenStream(cable, route, ids)
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [1], [2]])
        try stream.send(Self.segment(0), at: 0)
        let server = stream.server!
        nonisolated(unsafe) var first: Arrival?
        try repeating {
          guard first == nil else { return }
          first = try Guest.arrival(server, payloadRoom: 300, flags: MessageFlags(rawValue: 0x100))
        } during: { _ in
          for row in 1...2 {
            usleep(100_000)
            try stream.send(Self.segment(row), at: row * Self.length)
          }
        }
        let arrival = try #require(first)
        try expect(arrival, Self.segment(0) + Self.segment(1), try Self.traits(ids[0], 1))
        try expect(try Guest.arrival(server), Self.segment(2), try Self.traits(ids[0], 2))
        try table.program.detach()
      }
    }

    @Test("whoever asked for nothing, or cannot be told, reads as ever", arguments: Route.allCases)
    func unaware(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8], merge: .exact) { ids in
        let all = (0..<3).flatMap { Self.segment($0) }
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [2], [3]])
        func stream(_ asked: [TraitID]) throws -> WrittenStream {
          let stream = try WrittenStream(cable, route, asked)
          for row in 0..<3 { try stream.send(Self.segment(row), at: row * Self.length) }
          try stream.await(all.count)
          return stream
        }
        var room = [UInt8](repeating: 0, count: 1000)

        let unaware = try stream([])
        try expect(try Guest.arrival(unaware.server), all, Traits())

        let plain = try stream(ids)
        #expect(recv(plain.server.rawValue, &room, room.count, Int32(MSG_PEEK)) == 300)
        #expect(read(plain.server.rawValue, &room, room.count) == 300)
        #expect(Array(room[..<300]) == all)

        // No buffer for control messages: it is said that there was something, as it is of datagrams.
        let without = try stream(ids)
        let arrival = try Guest.arrival(without.server, controlRoom: 0)
        #expect(arrival.payload == all)
        #expect(arrival.message.flags.contains(.controlTruncated) || Guest.storesMayFail)

        // A buffer that is too small: the rest is as with one that is not.
        let small = try stream(ids)
        for row in 0..<3 where !Guest.storesMayFail {
          let arrival = try Guest.arrival(small.server, controlRoom: 39)
          #expect(arrival.payload == Self.segment(row))
          #expect(arrival.message.flags.contains(.controlTruncated))
          #expect(try arrival.traits.isEmpty)
        }

        let spliced = try stream(ids)
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        #expect(lab_splice(spliced.server.rawValue, ends[1], 1000) == 300)
        #expect(read(ends[0], &room, room.count) == 300)
        #expect(Array(room[..<300]) == all)

        let copied = try stream(ids)
        // struct tcp_zerocopy_receive: what is not mapped is copied
        var request: [UInt8] = []
        let count = try room.withUnsafeMutableBytes { room in
          request.append(native: UInt64(0))
          for _ in 0..<4 { request.append(native: UInt32(0)) }
          request.append(native: UInt64(UInt(bitPattern: room.baseAddress!)))
          request.append(native: UInt32(room.count))
          request += [UInt8](repeating: 0, count: 28)
          var length = socklen_t(request.count)
          // TCP_ZEROCOPY_RECEIVE
          let status = getsockopt(copied.server.rawValue, Int32(IPPROTO_TCP), 35, &request, &length)
          try #require(status == 0, "errno \(errno)")
          let count: Int32 = request.native(32)
          return count
        }
        #expect(count == 300)
        #expect(Array(room[..<300]) == all)
        try table.program.detach()
      }
    }

    @Test("data that is thrown away has its traits, an urgent byte has none", arguments: [Route.ipv4, .ipv6])
    func otherReads(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      try Guest.withKeys([.bytes8], merge: .exact) { ids in
        let stream = try WrittenStream(cable, route, ids)
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[2], [2], [3], [1]])
        for row in 0..<2 { try stream.send(Self.segment(row), at: row * Self.length) }
        try stream.await(200)
        // MSG_TRUNC: nothing is copied
        let arrival = try Guest.arrival(stream.server, payloadRoom: 200, flags: MessageFlags(rawValue: 0x20))
        #expect(arrival.message.length == 200)
        #expect(try arrival.traits == Self.traits(ids[0], 2))

        // Its last byte is urgent, and comes apart from the others.
        try stream.send(Self.segment(2), at: 200, [.acknowledge, .urgent], urgent: Self.length)
        try stream.send(Self.segment(3), at: 300)
        for _ in 0..<1000 where stream.pending < 99 { usleep(5000) }
        // MSG_OOB
        let urgent = try Guest.arrival(stream.server, flags: MessageFlags(rawValue: 1))
        #expect(urgent.payload == [Self.segment(2).last!])
        #expect(try !urgent.hasTraits)
        try expect(try Guest.arrival(stream.server), Self.segment(2).dropLast(), try Self.traits(ids[0], 3))
        try expect(try Guest.arrival(stream.server), Self.segment(3), try Self.traits(ids[0], 1))
        try table.program.detach()
      }
    }

    @Test("the end of a stream takes no value away, nor brings one", arguments: [Route.ipv4, .ipv6])
    func finish(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      for merge in [MergePolicy.exact, .drop] {
        try Guest.withKeys([.bytes8], merge: merge) { ids in
          let stream = try WrittenStream(cable, route, ids)
          let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1]])
          try stream.send(Self.segment(0), at: 0)
          // A FIN alone, whose frame ends before the byte that has the row
          try stream.send([], at: Self.length, [.acknowledge, .finish])
          try stream.await(Self.length)
          try expect(try Guest.arrival(stream.server), Self.segment(0), try Self.traits(ids[0], 1))
          try expect(try Guest.arrival(stream.server), [], Traits())
          try table.program.detach()
        }
      }
    }

    // MARK: What TCP joins by itself

    @Test("segments are joined in the queue by policy, and exact ones stay apart", arguments: Route.allCases)
    func coalesced(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      for isTapped in route == .ipv4 ? [false, true] : [false] {
        let tap = isTapped ? try cable.receiver.namespace.openTap() : nil
        defer { try? tap?.close() }
        for item in cases {
          try Guest.withKeys([.bytes8], merge: item.merge) { ids in
            let stream = try WrittenStream(cable, route, ids)
            let table = try tagging(cable, route, [(ids[0], .bytes8)], item.values.map { [$0] })
            let before = try stream.counter("TCPRcvCoalesce")
            // In the queue of what came too early, and from there into the other one
            for row in [2, 1, 0] { try stream.send(Self.segment(row), at: row * Self.length) }
            try stream.await(300)
            let joined = try stream.counter("TCPRcvCoalesce") - before
            // A tap shares the packet: what it shares is not added to.
            if !isTapped { #expect(joined == 3 - item.reads.count, "\(item.testDescription)") }
            // Byte after byte shows what each piece of the queue has.
            var row = 0
            for read in item.reads {
              let right = try Self.traits(ids[0], read.value)
              let arrival = try Guest.arrival(stream.server)
              try expect(arrival, (row..<row + read.count).flatMap { Self.segment($0) }, right)
              row += read.count
            }
            try table.program.detach()
          }
        }
      }
    }

    @Test("under memory pressure segments are collapsed by policy", arguments: Route.allCases)
    func collapsed(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      // Each segment begins with the last byte of the one before, which keeps them from being joined at once.
      let count = 24
      for (merge, isEarly) in [
        (MergePolicy.first, false), (.last, false), (.exact, false), (.drop, false), (.last, true),
        (.exact, true),
      ] {
        try Guest.withKeys([.bytes8], merge: merge) { ids in
          let stream = try WrittenStream(cable, route, ids, room: 4096)
          // Four after each other have the same.
          let rows = (0..<count).map { [UInt8($0 / 4 + 1)] as [UInt8?] }
          let table = try tagging(cable, route, [(ids[0], .bytes8)], rows)
          var bytes = (0...count * 99).map { UInt8(truncatingIfNeeded: $0 &* 7) | 0x80 }
          for row in 0..<count { bytes[row * 99] = UInt8(row) }
          let before = try stream.counter("TCPRcvCollapsed")
          func send(_ rows: some Sequence<Int>) throws {
            for row in rows { try stream.send(Array(bytes[row * 99..<row * 99 + 100]), at: row * 99) }
          }
          // The first one comes last, so that all others wait in the queue of those that are early.
          if isEarly { try send(1..<count) }
          for _ in 0..<20 where stream.pending < count * 99 + 1 {
            try send(0..<count)
            usleep(20_000)
          }
          try stream.await(count * 99 + 1)
          #expect(try stream.counter("TCPRcvCollapsed") > before, "nothing was collapsed")
          if merge == .exact {
            // The byte that two have is that of the earlier one, or of the later if that came first.
            var position = 0
            for four in 0..<count / 4 {
              let arrival = try Guest.arrival(stream.server)
              #expect(try arrival.traits == Self.traits(ids[0], UInt8(four + 1)))
              #expect(arrival.payload == Array(bytes[position..<position + arrival.payload.count]))
              position += arrival.payload.count
              #expect(abs(position - (four + 1) * 4 * 99) <= 1)
            }
            #expect(position == bytes.count)
          } else {
            let value: UInt8? = merge == .first ? 1 : merge == .last ? UInt8(count / 4) : nil
            try expect(
              try Guest.arrival(stream.server), bytes, try Self.traits(ids[0], value), "\(merge), \(isEarly)")
          }
          try table.program.detach()
        }
      }
    }

    @Test(
      "a segment that lies within another one ends no stretch that is collapsed", arguments: Route.allCases)
    func nested(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      try Guest.withKeys([.bytes8]) { ids in
        let stream = try WrittenStream(cable, route, ids, room: 4096)
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [1], [1], [2]])
        let fillers = 20
        // Which row a segment has is the byte that it begins with.
        var bytes = (0..<500 + fillers * 99).map { UInt8(truncatingIfNeeded: $0 &* 7) | 0x80 }
        for (position, row) in [(0, 0), (100, 0), (250, 1), (200, 2), (350, 3)] {
          bytes[position] = UInt8(row)
        }
        // The third is joined to the first, which then ends behind the second; the fourth differs.
        var segments = [100..<200, 250..<300, 200..<400, 350..<500]
        for filler in 0..<fillers {
          let begin = 499 + filler * 99
          bytes[begin] = 3
          segments.append(begin..<begin + 100)
        }
        let before = try stream.counter("TCPRcvCollapsed")
        for segment in segments { try stream.send(Array(bytes[segment]), at: segment.lowerBound) }
        for _ in 0..<20 where stream.pending < bytes.count {
          for segment in [0..<100] + segments {
            try stream.send(Array(bytes[segment]), at: segment.lowerBound)
          }
          usleep(20_000)
        }
        try stream.await(bytes.count)
        #expect(try stream.counter("TCPRcvCollapsed") > before, "nothing was collapsed")
        var read: [UInt8] = []
        var border = 0
        while read.count < bytes.count {
          let arrival = try Guest.arrival(stream.server)
          if try arrival.traits == Self.traits(ids[0], 1) {
            #expect(border == read.count)
            border += arrival.payload.count
          } else {
            #expect(try arrival.traits == Self.traits(ids[0], 2))
          }
          read += arrival.payload
        }
        #expect(read == bytes)
        #expect((350...400).contains(border))
        try table.program.detach()
      }
    }

    // MARK: kTLS

    /// A connection that the kernel encrypts from near to far.
    private func encrypted(_ route: Route, along cable: VethPair, _ asked: [TraitID], room: Int32? = nil)
      throws
      -> (near: FileDescriptor, far: FileDescriptor)
    {
      let ends = try connection(route == .ipv6 ? .ipv6 : .ipv4, along: cable)
      try ends.far.setReceivedTraits(TraitMask(asked))
      if var room { setsockopt(ends.far.rawValue, SOL_SOCKET, SO_RCVBUF, &room, 4) }
      var limit = timeval(tv_sec: 10, tv_usec: 0)
      setsockopt(ends.far.rawValue, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
      var on: Int32 = 1
      // TCP_NODELAY
      setsockopt(ends.near.rawValue, Int32(IPPROTO_TCP), 1, &on, 4)
      // struct tls12_crypto_info_aes_gcm_128: the number of a record is what its nonce ends with.
      var secret: [UInt8] = []
      secret.append(native: UInt16(0x0303))
      secret.append(native: UInt16(51))
      secret += [UInt8](repeating: 0, count: 8) + (1...20).map { UInt8($0) } + [UInt8](repeating: 0, count: 8)
      for (end, direction) in [(ends.near, Int32(1)), (ends.far, 2)] {
        // TCP_ULP; SOL_TLS: TLS_TX, TLS_RX
        try #require(
          setsockopt(end.rawValue, Int32(IPPROTO_TCP), 31, "tls", 3) == 0, "TCP_ULP: errno \(errno)")
        try #require(
          setsockopt(end.rawValue, 282, direction, secret, socklen_t(secret.count)) == 0,
          "SOL_TLS: errno \(errno)")
      }
      return ends
    }

    private func arrivalOfRecords(_ socket: FileDescriptor, room: Int = 65536, flags: MessageFlags = [])
      throws -> Arrival
    {
      let arrival = try Guest.arrival(socket, payloadRoom: room, flags: flags)
      // What kind of record it is comes first: SOL_TLS, TLS_GET_RECORD_TYPE.
      let messages = try arrival.controlMessages
      #expect(messages.first?.level.rawValue == 282)
      #expect(messages.dropFirst().map(\.isTraits) == (try arrival.traits.isEmpty ? [] : [true]))
      #expect(!arrival.message.flags.contains(.controlTruncated))
      return arrival
    }

    @Test(
      "one read of three records of kTLS has what each key's policy says", arguments: [Route.ipv4, .ipv6])
    func records(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      let before = try settled { _ in false }
      for item in cases {
        // Decrypted by one who stops nowhere, and kept: or by those who ask
        for isDecrypted in item.merge == .exact ? [false, true] : [false] {
          try Guest.withKeys([.bytes8], merge: item.merge) { ids in
            let (near, far) = try encrypted(route, along: cable, ids)
            defer {
              try? near.close()
              try? far.close()
            }
            // Behind headers with time stamps, the last byte of the nonce
            let table = try TableProgram(
              .ipProtocol(6), [(ids[0], .bytes8)], item.values.map { [$0.map { Self.value($0) }] },
              rowAt: (route == .ipv6 ? 86 : 66) + 12)
            try table.program.attach(to: cable.receiver)
            for row in 0..<3 { #expect(try near.writeAll(Self.segment(row)) == Self.length) }
            // 29 bytes around each
            var pending: Int32 = 0
            for _ in 0..<1000 where pending < 3 * 129 {
              usleep(5000)
              _ = ioctl(far.rawValue, 0x541b, &pending)
            }
            #expect(try table.runs() == 3)
            if isDecrypted {
              var all = [UInt8](repeating: 0, count: 1000)
              #expect(recv(far.rawValue, &all, all.count, Int32(MSG_PEEK)) == 3 * Self.length)
            }
            var row = 0
            for read in item.reads {
              let payload = (row..<row + read.count).flatMap { Self.segment($0) }
              let right = try Self.traits(ids[0], read.value)
              for flags in [MessageFlags.peek, .peek, []] {
                let arrival = try arrivalOfRecords(far, flags: flags)
                #expect(arrival.payload == payload, "\(item.testDescription)")
                #expect(try arrival.traits == right, "\(item.testDescription)")
              }
              row += read.count
            }
            try table.program.detach()
          }
        }
      }
      // The parser's packet holds what it was given last, and no more.
      let after = try settled { $0.isAtMost(before) }
      #expect(after.isAtMost(before))
    }

    @Test("a record of kTLS has what its segments have together", arguments: [Route.ipv4, .ipv6])
    func record(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      let before = try settled { _ in false }
      // One is larger than the socket has room for: the kernel copies it out bit by bit.
      for (length, room) in [(8000, nil), (16000, 4096)] as [(Int, Int32?)] {
        for (merge, values) in [
          (MergePolicy.exact, [7]), (.exact, [1, 2]), (.first, [1, 2]), (.last, [1, 2]),
          (.maximum, [1, 9, 2]),
          (.drop, [nil, 2]),
        ] as [(MergePolicy, [UInt8?])] where room == nil || merge != .maximum {
          try Guest.withKeys([.bytes8], merge: merge) { ids in
            let (near, far) = try encrypted(route, along: cable, ids, room: room)
            defer {
              try? near.close()
              try? far.close()
            }
            // Segment after segment
            let table = try TableProgram(
              .ipProtocol(6), [(ids[0], .bytes8)], values.map { [$0.map { Self.value($0) }] })
            try table.program.attach(to: cable.receiver)
            let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 13) }
            #expect(try near.writeAll(bytes) == length)
            let arrival = try arrivalOfRecords(far)
            #expect(arrival.payload == bytes)
            let segments = Int(try table.runs())
            #expect(segments > 2)
            let right: UInt8?
            switch merge {
            case .exact: right = values.count == 1 ? 7 : nil
            case .first: right = 1
            // Segments that were sent again may be among those of a socket that has no room.
            case .last:
              right = room == nil ? values[(segments - 1) % 2] : try arrival.traits.bytes(of: ids[0])?.first
            case .maximum: right = 9
            default: right = nil
            }
            #expect(try arrival.traits == Self.traits(ids[0], right), "\(merge), \(values), \(length) bytes")
            if merge == .last { #expect(right == 1 || right == 2) }
            try table.program.detach()
            // Nothing of that is on the next one.
            #expect(try near.writeAll(bytes) == length)
            let next = try arrivalOfRecords(far)
            #expect(next.payload == bytes)
            #expect(try next.traits == Traits(), "\(merge), \(values), \(length) bytes")
          }
        }
      }
      let after = try settled { $0.isAtMost(before) }
      #expect(after.isAtMost(before))
    }

    // MARK: Who asks, and keys that come and go

    @Test(
      "a connection has its listener's mask, and what came before it was asked is not there",
      arguments: Route.allCases)
    func asked(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      try Guest.withKeys([.bytes8], merge: .last) { ids in
        let stream = try WrittenStream(cable, route, ids)
        #expect(try stream.listener.receivedTraits() == TraitMask(ids))
        #expect(try stream.server.receivedTraits() == TraitMask(ids))
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [2]])
        try stream.server.setReceivedTraits(TraitMask([]))
        #expect(try stream.listener.receivedTraits() == TraitMask(ids))
        try stream.send(Self.segment(0), at: 0)
        try stream.await(100)
        try stream.server.setReceivedTraits(TraitMask(ids))
        try expect(try Guest.arrival(stream.server), Self.segment(0), Traits())
        try stream.send(Self.segment(1), at: 100)
        try expect(try Guest.arrival(stream.server), Self.segment(1), try Self.traits(ids[0], 2))

        // Who gives up what was asked for is not told any more.
        try stream.send(Self.segment(0), at: 200)
        try stream.await(100)
        try stream.server.setReceivedTraits(TraitMask([]))
        try expect(try Guest.arrival(stream.server), Self.segment(0), Traits())
        try table.program.detach()
      }
    }

    @Test("values of a removed key are not delivered, nor do they end a read", arguments: Route.allCases)
    func removed(route: Route) throws {
      let cable = try suiteCable()
      guard !Guest.storesMayFail else { return }
      try Guest.withKeys([.bytes8, .bytes8], merge: .exact) { ids in
        let stream = try WrittenStream(cable, route, ids)
        let table = try tagging(
          cable, route, [(ids[0], .bytes8), (ids[1], .bytes8)], [[1, 7], [2, 7], [3, 7]])
        for row in 0..<3 { try stream.send(Self.segment(row), at: row * Self.length) }
        try stream.await(300)
        let single = try WrittenStream(cable, route, ids)
        try single.send(Self.segment(0), at: 0)
        try single.await(100)
        var registry = try RegistryConnection()
        let former = try registry.remove(ids[0])
        try registry.add(former.name, size: .bytes8, id: ids[0])
        #expect(try stream.server.receivedTraits() == TraitMask([ids[1]]))
        // Not even if the next key under that number is asked for.
        for stream in [stream, single] { try stream.server.setReceivedTraits(TraitMask(ids)) }
        try expect(try Guest.arrival(single.server), Self.segment(0), try Self.traits(ids[1], 7))
        try expect(
          try Guest.arrival(stream.server), (0..<3).flatMap { Self.segment($0) }, try Self.traits(ids[1], 7))
        // A row of the new key is
        try stream.send(Self.segment(1), at: 300)
        try expect(
          try Guest.arrival(stream.server), Self.segment(1),
          try Traits([(ids[0], Self.value(2)), (ids[1], Self.value(7))]))
        try table.program.detach()
      }
    }

    @Test("who may ask, and for what", arguments: [Route.ipv4, .ipv6])
    func refused(route: Route) throws {
      let cable = try suiteCable()
      let stream = try WrittenStream(cable, route, [])
      let server: FileDescriptor = stream.server
      let free = TraitMask(try Guest.freeKey())
      #expect(throws: Errno.noSuchFileOrDirectory) { try server.setReceivedTraits(free) }
      let short: [UInt8] = [0, 0, 0, 0]
      #expect(setsockopt(server.rawValue, SOL_TRAITS, TRAITS_RECV, short, 4) == -1)
      #expect(errno == EINVAL)
      try Guest.withKeys([.bytes8]) { ids in
        let mask = TraitMask(ids)
        try asUser(65534) {
          #expect(throws: Errno.notPermitted) { try server.setReceivedTraits(mask) }
          return
        }
        #expect(try server.receivedTraits() == TraitMask([]))
      }
      try Guest.withKeys([.bytes8], flags: .openRead) { ids in
        let mask = TraitMask(ids)
        try asUser(65534) { try server.setReceivedTraits(mask) }
        #expect(try server.receivedTraits() == mask)
      }
    }

    @Test(
      "connections come and go while masks change and data is queued, and leave nothing behind",
      arguments: [Route.ipv4, .ipv6])
    func many(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8], merge: .exact) { ids in
        let table = try tagging(cable, route, [(ids[0], .bytes8)], [[1], [1], [2], [nil], [3]])
        let before = try settled { _ in false }
        for round in 0..<20 {
          let stream = try WrittenStream(cable, route, ids)
          let server = stream.server!
          try repeating {
            try server.setReceivedTraits(TraitMask([]))
            try server.setReceivedTraits(TraitMask(ids))
          } during: { _ in
            for row in [0, 1, 4, 3, 2] { try stream.send(Self.segment(row), at: row * Self.length) }
          }
          try stream.await(500)
          // Some are closed with data that nobody read.
          if round % 2 == 0 {
            var bytes: [UInt8] = []
            while bytes.count < 500 { bytes += try Guest.arrival(server).payload }
            #expect(bytes == (0..<5).flatMap { Self.segment($0) })
          }
        }
        let after = try settled { $0.isAtMost(before) }
        #expect(after.isAtMost(before))
        try table.program.detach()
      }
    }
  }
}
