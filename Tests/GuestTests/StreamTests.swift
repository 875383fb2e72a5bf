// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A TCP connection between the ends of a cable, whose client's port is known as well.
private final class Stream {
  static let clientPort: UInt16 = 4300

  private var ends: [FileDescriptor] = []
  var listener: FileDescriptor { ends[0] }
  var client: FileDescriptor { ends[1] }
  var server: FileDescriptor { ends[2] }

  private static func socket(_ namespace: NetworkNamespace, _ family: Int32) throws -> FileDescriptor {
    try namespace.run {
      let descriptor = Glibc.socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
      guard descriptor >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
      var on: Int32 = 1
      setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, 4)
      // TCP_NODELAY: each write is a segment.
      setsockopt(descriptor, Int32(IPPROTO_TCP), 1, &on, 4)
      // Reads that would wait for ever fail.
      var limit = timeval(tv_sec: 20, tv_usec: 0)
      setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
      return FileDescriptor(rawValue: descriptor)
    }
  }

  private static func address(_ host: String?, port: UInt16, _ family: Int32) throws -> [UInt8] {
    // struct sockaddr_in, struct sockaddr_in6
    var address: [UInt8] = []
    address.append(native: UInt16(family))
    address.append(native: port.bigEndian)
    let v4 = try host.map { try bytes(of: $0) } ?? [0, 0, 0, 0]
    guard family == AF_INET6 else { return address + v4 + [UInt8](repeating: 0, count: 8) }
    let v6 = try host.map {
      $0.contains(":") ? try bytes(of: $0) : [UInt8](repeating: 0, count: 10) + [255, 255] + v4
    }
    return address + [0, 0, 0, 0] + (v6 ?? [UInt8](repeating: 0, count: 16)) + [0, 0, 0, 0]
  }

  private static func call(
    _ what: String, _ address: [UInt8], _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws {
    let status = address.withUnsafeBytes {
      body($0.assumingMemoryBound(to: sockaddr.self).baseAddress!, socklen_t($0.count))
    }
    guard status == 0 else { throw LabError("\(what): \(Errno(rawValue: errno))") }
  }

  /// - Parameters:
  ///   - listening: What the listener sends.
  ///   - connecting: What the client sends, from the SYN on.
  init(_ cable: VethPair, _ route: Guest.Route, listening: Traits, connecting: Traits) throws {
    let server = route == .ipv4 ? AF_INET : AF_INET6
    let client = route == .ipv6 ? AF_INET6 : AF_INET
    ends.append(try Self.socket(cable.receiver.namespace, server))
    try Guest.insisting { try listener.setSentTraits(listening) }
    try Self.call("bind", try Self.address(nil, port: Guest.port, server)) { bind(listener.rawValue, $0, $1) }
    guard listen(listener.rawValue, 4) == 0 else { throw LabError("listen: \(Errno(rawValue: errno))") }
    ends.append(try Self.socket(cable.sender.namespace, client))
    try Guest.insisting { try self.client.setSentTraits(connecting) }
    try Self.call("bind", try Self.address(nil, port: Self.clientPort, client)) {
      bind(self.client.rawValue, $0, $1)
    }
    let to = route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4
    try Self.call("connect", try Self.address(to, port: Guest.port, client)) {
      connect(self.client.rawValue, $0, $1)
    }
    let accepted = accept(listener.rawValue, nil, nil)
    guard accepted >= 0 else { throw LabError("accept: \(Errno(rawValue: errno))") }
    ends.append(FileDescriptor(rawValue: accepted))
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(accepted, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit {
    for end in ends { try? end.close() }
  }

  /// Writes at one end, and expects the same at the other.
  static func pass(_ bytes: [UInt8], from: FileDescriptor, to: FileDescriptor) throws {
    let (near, far) = (from.rawValue, to.rawValue)
    var received: [UInt8] = []
    var written = 0
    var room = [UInt8](repeating: 0, count: 65536)
    while received.count < bytes.count {
      if written < bytes.count {
        let count = bytes.withUnsafeBytes {
          send(near, $0.baseAddress! + written, $0.count - written, Int32(MSG_DONTWAIT))
        }
        if count > 0 { written += count }
      }
      let count = recv(far, &room, room.count, written < bytes.count ? Int32(MSG_DONTWAIT) : 0)
      if count > 0 {
        received += room[..<count]
      } else {
        try #require(count < 0 && written < bytes.count, "recv: \(count), errno \(errno)")
        usleep(1000)
      }
    }
    #expect(received == bytes)
  }

  /// Ends the connection by one FIN after the other, each acknowledged by a socket.
  func finish() throws {
    var byte: UInt8 = 0
    shutdown(client.rawValue, Int32(SHUT_WR))
    #expect(recv(server.rawValue, &byte, 1, 0) == 0)
    shutdown(server.rawValue, Int32(SHUT_WR))
    #expect(recv(client.rawValue, &byte, 1, 0) == 0)
  }
}

/// Counts the segments that one end of the cable receives for a port, and those that have values.
private struct SegmentCounter {
  private let all: SkbProgram
  private let with: SkbProgram
  private let values: [(TraitID, [UInt8])]

  init(_ end: VethPair.End, port: UInt16, _ values: [(TraitID, [UInt8])]) throws {
    self.values = values
    all = try SkbProgram(.trace, port: port, [])
    with = try SkbProgram(
      .classifier, port: port, [.need(values[0].0.rawValue)] + values.map { .get($0.0.rawValue) })
    try all.attachToTracepoint()
    try with.attach(to: end, .ingress)
  }

  func counts() throws -> (all: UInt64, with: UInt64) { (try all.results().runs, try with.results().runs) }

  /// Expects all to have all values.
  func expectAll(atLeast count: UInt64, sourceLocation: SourceLocation = #_sourceLocation) throws {
    // The last one may be under way.
    for _ in 0..<100 where try all.results().runs != with.results().runs { usleep(10_000) }
    let (all, with) = try counts()
    #expect(all >= count, sourceLocation: sourceLocation)
    #expect(with == all || Guest.storesMayFail, sourceLocation: sourceLocation)
    if with > 0 {
      let found = try self.with.results().steps.dropFirst()
      #expect(found.map(\.status) == values.map { Int32($0.1.count) }, sourceLocation: sourceLocation)
      #expect(
        zip(found, values).allSatisfy { Array($0.value.prefix($1.1.count)) == $1.1 },
        sourceLocation: sourceLocation)
    }
  }

  func detach() throws {
    try all.detach()
    try with.detach()
  }
}

extension Guest {
  @Suite("Streams", .cable)
  struct StreamTests {
    /// Keys that cross, for what the client and what the server sends: `count` of 16 bytes each.
    private func withValues(
      _ count: Int, _ body: (_ out: [(TraitID, [UInt8])], _ back: [(TraitID, [UInt8])]) throws -> Void
    ) throws {
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: count), flags: .crossesNetworkNamespaces) {
        out in
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: count), flags: .crossesNetworkNamespaces) {
          try body(distinct(out), distinct($0).map { ($0, $1.reversed()) })
        }
      }
    }

    @Test(
      "each segment has its socket's traits, from the SYN to the last acknowledgment",
      arguments: Route.allCases,
      [1, 12])
    func segments(route: Route, count: Int) throws {
      let cable = try suiteCable()
      // 2: a cookie stands for each request that is answered.
      for cookies in [1, 2] {
        try cable.receiver.namespace.setParameter("net/ipv4/tcp_syncookies", "\(cookies)")
        defer { try? cable.receiver.namespace.setParameter("net/ipv4/tcp_syncookies", "1") }
        try withValues(count) { out, back in
          let forward = try SegmentCounter(cable.receiver, port: Guest.port, out)
          let backward = try SegmentCounter(cable.sender, port: Stream.clientPort, back)
          let before = try settled { _ in false }
          do {
            let stream = try Stream(cable, route, listening: Traits(back), connecting: Traits(out))
            #expect(try stream.client.sentTraits() == Traits(out))
            #expect(try stream.server.sentTraits() == Traits(back))
            try Stream.pass(TagProgram.payload(1, length: 100), from: stream.client, to: stream.server)
            try Stream.pass(TagProgram.payload(2, length: 200_000), from: stream.client, to: stream.server)
            try Stream.pass(TagProgram.payload(3, length: 200_000), from: stream.server, to: stream.client)
            try stream.finish()
            try forward.expectAll(atLeast: 5)
            try backward.expectAll(atLeast: 5)
          }
          try forward.detach()
          try backward.detach()
          let after = try settled { $0.isAtMost(before) }
          #expect(after.isAtMost(before))
        }
      }
    }

    @Test("what is sent again has its socket's traits of that moment", arguments: [Route.ipv4, .ipv6])
    func again(route: Route) throws {
      let cable = try suiteCable()
      try withValues(2) { out, back in
        let stream = try Stream(cable, route, listening: Traits(), connecting: Traits([out[0]]))
        let forward = try SegmentCounter(cable.receiver, port: Guest.port, [out[1]])
        // What comes goes back to where it came from, and nobody there knows it.
        let away = try ScriptProgram(.ipProtocol(6), [], then: .transmit)
        try away.program.attach(to: cable.receiver)
        let payload = TagProgram.payload(1, length: 100)
        #expect(try stream.client.writeAll(payload) == 100)
        for _ in 0..<200 where try away.results().runs < 2 { usleep(10_000) }
        #expect(try away.results().runs >= 2)
        // Written with the one, transmitted with the other
        try Guest.insisting { try stream.client.setSentTraits(Traits([out[1]])) }
        try away.program.detach()
        var room = [UInt8](repeating: 0, count: 200)
        let count = recv(stream.server.rawValue, &room, room.count, 0)
        #expect(Array(room.prefix(max(count, 0))) == payload)
        try forward.expectAll(atLeast: 1)
        try forward.detach()
      }
    }

    @Test("a reset has its socket's traits", arguments: [Route.ipv4, .ipv6])
    func reset(route: Route) throws {
      let cable = try suiteCable()
      try withValues(1) { out, back in
        let stream = try Stream(cable, route, listening: Traits(), connecting: Traits(out))
        let forward = try SegmentCounter(cable.receiver, port: Guest.port, out)
        var off = linger(l_onoff: 1, l_linger: 0)
        setsockopt(stream.client.rawValue, SOL_SOCKET, SO_LINGER, &off, socklen_t(MemoryLayout<linger>.size))
        // The descriptor stays, and the connection goes.
        var nowhere = sockaddr(
          sa_family: sa_family_t(AF_UNSPEC), sa_data: (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        #expect(connect(stream.client.rawValue, &nowhere, socklen_t(MemoryLayout<sockaddr>.size)) == 0)
        var byte: UInt8 = 0
        #expect(recv(stream.server.rawValue, &byte, 1, 0) == -1)
        #expect(errno == ECONNRESET)
        try forward.expectAll(atLeast: 1)
        try forward.detach()
      }
    }

    @Test("a connection begins with its listener's traits, and goes its own way", arguments: Route.allCases)
    func inheritance(route: Route) throws {
      let cable = try suiteCable()
      try withValues(2) { out, back in
        let stream = try Stream(cable, route, listening: Traits(back), connecting: Traits())
        try Guest.insisting { try stream.listener.setSentTraits(Traits()) }
        #expect(try stream.server.sentTraits() == Traits(back))
        try Guest.insisting { try stream.server.setSentTraits(Traits([back[1]])) }
        #expect(try stream.listener.sentTraits().isEmpty)
        let backward = try SegmentCounter(cable.sender, port: Stream.clientPort, [back[1]])
        try Stream.pass(TagProgram.payload(1, length: 100), from: stream.server, to: stream.client)
        try backward.expectAll(atLeast: 1)
        try Guest.insisting { try stream.server.setSentTraits(Traits()) }
        let before = try backward.counts()
        try Stream.pass(TagProgram.payload(2, length: 100), from: stream.server, to: stream.client)
        let after = try backward.counts()
        #expect(after.all > before.all)
        #expect(after.with == before.with)
        try backward.detach()
      }
    }

    @Test(
      "a removed key ends on a connection, also for the next one under its number",
      arguments: [Route.ipv4, .ipv6])
    func removal(route: Route) throws {
      let cable = try suiteCable()
      try withValues(2) { out, back in
        let stream = try Stream(cable, route, listening: Traits(), connecting: Traits(out))
        var registry = try RegistryConnection()
        let removed = try registry.remove(out[0].0)
        let forward = try SegmentCounter(cable.receiver, port: Guest.port, [out[0]])
        try registry.add(removed.name, size: .bytes16, id: removed.id, flags: .crossesNetworkNamespaces)
        try Stream.pass(TagProgram.payload(1, length: 100), from: stream.client, to: stream.server)
        #expect(try stream.client.sentTraits() == Traits([out[1]]))
        let counts = try forward.counts()
        #expect(counts.all > 0)
        #expect(counts.with == 0)
        try forward.detach()
      }
    }

    @Test(
      "sockets of streams refuse what those of datagrams refuse, and what is not theirs",
      arguments: [Route.ipv4, .ipv6])
    func refused(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { ids in
        let stream = try Stream(cable, route, listening: Traits(), connecting: Traits())
        let free = try Guest.freeKey()
        #expect(throws: Errno.noSuchFileOrDirectory) {
          try stream.client.setSentTraits(try Traits([(free, [1, 2, 3, 4])]))
        }
        #expect(throws: Errno.invalidArgument) {
          try stream.client.setSentTraits(try Traits([(ids[0], [UInt8](repeating: 1, count: 8))]))
        }
        let own = try Traits([(ids[0], [1, 2, 3, 4])])
        try asUser(65534) {
          #expect(throws: Errno.notPermitted) { try stream.client.setSentTraits(own) }
        }
        #expect(try stream.client.sentTraits().isEmpty)
        try Stream.pass(TagProgram.payload(1, length: 100), from: stream.client, to: stream.server)
      }
    }

    @Test(
      "connections come and go while traits are set, and leave nothing behind",
      arguments: [Route.ipv4, .ipv6])
    func many(route: Route) throws {
      let cable = try suiteCable()
      try withValues(2) { out, back in
        let before = try settled { _ in false }
        for round in 0..<30 {
          let stream = try Stream(cable, route, listening: Traits(back), connecting: Traits(out))
          let (client, server, listener) = (stream.client, stream.server, stream.listener)
          try repeating {
            for end in [client, server, listener] {
              try Guest.insisting { try end.setSentTraits(Traits(out)) }
              try end.setSentTraits(Traits())
            }
          } during: { _ in
            let payload = TagProgram.payload(UInt32(round), length: 30_000)
            try Stream.pass(payload, from: client, to: server)
            try Stream.pass(payload, from: server, to: client)
          }
        }
        let after = try settled { $0.isAtMost(before) }
        #expect(after.isAtMost(before))
      }
    }
  }
}
