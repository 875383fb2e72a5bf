// SPDX-License-Identifier: MIT

import CNetworkLab
import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A socket of a stream, which is open until its test is over.
private final class StreamSocket {
  let descriptor: FileDescriptor
  var raw: Int32 { descriptor.rawValue }
  private var isOpen = true

  /// Those of the test that runs: there is one at a time.
  private nonisolated(unsafe) static var all: [StreamSocket] = []

  static func closeAll() {
    for socket in all { socket.close() }
    all = []
  }

  init(_ raw: Int32) {
    descriptor = FileDescriptor(rawValue: raw)
    Self.all.append(self)
    // Calls that would wait for ever fail.
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    for name in [SO_RCVTIMEO, SO_SNDTIMEO] {
      setsockopt(raw, SOL_SOCKET, name, &limit, socklen_t(MemoryLayout<timeval>.size))
    }
  }

  convenience init(_ namespace: NetworkNamespace, _ family: InternetAddress.Family) throws {
    self.init(
      try namespace.run {
        let raw = Glibc.socket(family.domain, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard raw >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
        return raw
      })
  }

  func close() {
    if isOpen { Glibc.close(raw) }
    isOpen = false
  }

  func set(_ level: Int32, _ name: Int32, _ value: Int32) throws {
    var value = value
    guard setsockopt(raw, level, name, &value, 4) == 0 else {
      throw LabError("option \(name) of level \(level): \(Errno(rawValue: errno))")
    }
  }

  func bind(to address: InternetAddress) throws {
    try call("bind") { address.withSockaddr { Glibc.bind(raw, $0, $1) } }
  }

  func listen(backlog: Int32 = 64) throws {
    try call("listen") { Glibc.listen(raw, backlog) }
  }

  func connect(to address: InternetAddress) throws {
    try call("connect to \(address)") { address.withSockaddr { Glibc.connect(raw, $0, $1) } }
  }

  /// Sends the SYN, and does not wait for an answer.
  func beginConnecting(to address: InternetAddress) throws {
    let flags = fcntl(raw, F_GETFL)
    _ = fcntl(raw, F_SETFL, flags | O_NONBLOCK)
    defer { _ = fcntl(raw, F_SETFL, flags) }
    let status = address.withSockaddr { Glibc.connect(raw, $0, $1) }
    guard status == 0 || errno == EINPROGRESS else { throw LabError("connect: \(Errno(rawValue: errno))") }
  }

  /// Ends the connection, and leaves the descriptor for another one.
  func disconnect() throws {
    var nowhere = sockaddr()
    nowhere.sa_family = sa_family_t(AF_UNSPEC)
    try call("disconnect") { Glibc.connect(raw, &nowhere, socklen_t(MemoryLayout<sockaddr>.size)) }
  }

  func accept() throws -> StreamSocket {
    let accepted = Glibc.accept(raw, nil, nil)
    guard accepted >= 0 else { throw LabError("accept: \(Errno(rawValue: errno))") }
    return StreamSocket(accepted)
  }

  func becomes(ready event: Int32, within milliseconds: Int32) -> Bool {
    var waiting = pollfd(fd: raw, events: Int16(event), revents: 0)
    return poll(&waiting, 1, milliseconds) == 1
  }

  private func call(_ what: String, _ body: () -> Int32) throws {
    guard body() == 0 else { throw LabError("\(what): \(Errno(rawValue: errno))") }
  }

  // MARK: Traits

  /// What came of an attempt: 0 or an errno value.
  static func attempt(_ call: () -> Int32) -> Int32 { call() == 0 ? 0 : errno }

  /// Asks for the traits of SYNs.
  func keep(_ keys: some Sequence<TraitID>) throws {
    var mask = TraitMask(keys).rawValue
    guard setsockopt(raw, SOL_TRAITS, TRAITS_SAVE_SYN, &mask, 8) == 0 else { throw Errno(rawValue: errno) }
  }

  /// What is asked for.
  func kept() throws -> TraitMask {
    var mask: UInt64 = 0
    var length = socklen_t(8)
    guard getsockopt(raw, SOL_TRAITS, TRAITS_SAVE_SYN, &mask, &length) == 0, length == 8 else {
      throw Errno(rawValue: errno)
    }
    return TraitMask(rawValue: mask)
  }

  /// What was kept, as the kernel gives it.
  func synRecords() throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 64 * 24)
    var length = socklen_t(bytes.count)
    guard getsockopt(raw, SOL_TRAITS, TRAITS_SYN, &bytes, &length) == 0 else { throw Errno(rawValue: errno) }
    return Array(bytes[..<Int(length)])
  }

  func synTraits() throws -> Traits {
    let records = try synRecords()
    return try Traits(records: records.span.bytes)
  }
}

/// Streams from one end of a cable to the other.
private struct Harbour {
  let cable: VethPair
  let route: Guest.Route

  /// Where connections go.
  var destination: InternetAddress {
    get throws { try cable.receiver.address(route.family, port: Guest.port) }
  }

  func socket() throws -> StreamSocket {
    let socket = try StreamSocket(cable.receiver.namespace, route == .ipv4 ? .ipv4 : .ipv6)
    try socket.set(SOL_SOCKET, SO_REUSEADDR, 1)
    return socket
  }

  /// A listener that keeps these of a SYN.
  func listener(
    _ keys: some Sequence<TraitID>, port: UInt16 = Guest.port, backlog: Int32 = 64, isShared: Bool = false
  ) throws -> StreamSocket {
    let socket = try socket()
    if isShared { try socket.set(SOL_SOCKET, SO_REUSEPORT, 1) }
    try socket.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: port))
    try socket.keep(keys)
    try socket.listen(backlog: backlog)
    return socket
  }

  func client(port: UInt16 = 0) throws -> StreamSocket {
    let client = try StreamSocket(cable.sender.namespace, route.family)
    try client.set(SOL_SOCKET, SO_REUSEADDR, 1)
    try client.bind(to: try cable.sender.address(route.family, port: port))
    return client
  }

  func connected() throws -> StreamSocket {
    let client = try client()
    try client.connect(to: try destination)
    return client
  }

  /// What a program of this kind gives to a segment of a client's.
  func traits(
    of client: StreamSocket, _ segment: SynProgram.Segment, _ keys: [TraitID?]
  ) throws -> Traits {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let status = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(client.raw, $0, &length) }
    }
    guard status == 0 else { throw LabError("getsockname: \(Errno(rawValue: errno))") }
    // The port is at the same place in both kinds of addresses.
    let port = withUnsafeBytes(of: &storage) { UInt16($0[2]) << 8 | UInt16($0[3]) }
    let host = try bytes(of: route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4)
    let address = host.count == 16 ? host : [UInt8](repeating: 0, count: 10) + [255, 255] + host
    let values = SynProgram.values(segment, from: address, port: port)
    return try Traits(zip(keys, values).compactMap { key, value in key.map { ($0, value) } })
  }

  /// Whether the listeners' end has these in memory.
  static func savedInUse() throws -> Int { try objectsInUse("traits_saved") }

  /// How many saved records there are when it does not change any more, or is right.
  static func settledSaved(_ right: Int) throws -> Int {
    var last = try savedInUse()
    // Requests that were not completed end with their timers, which have seconds.
    for _ in 0..<150 where last != right {
      usleep(100_000)
      last = try savedInUse()
    }
    return last
  }

  /// A counter of the receiver's namespace, as nstat(8) names it.
  func counter(_ name: String) throws -> UInt64 {
    let text = try cable.receiver.namespace.run {
      try Command.require("cat", "/proc/thread-self/net/netstat")
    }
    let lines = text.split(separator: "\n").filter { $0.hasPrefix("TcpExt:") }.map {
      $0.split(separator: " ")
    }
    try #require(lines.count == 2 && lines[0].count == lines[1].count)
    let index = try #require(lines[0].firstIndex { $0 == name })
    return try #require(UInt64(lines[1][index]))
  }

  /// Sets a parameter of the receiver's namespace for as long as `body` runs.
  func with<Value>(_ parameter: String, _ value: Int, instead: Int, _ body: () throws -> Value) throws
    -> Value
  {
    let namespace = cable.receiver.namespace
    try namespace.setParameter("net/ipv4/" + parameter, "\(value)")
    defer { try? namespace.setParameter("net/ipv4/" + parameter, "\(instead)") }
    return try body()
  }
}

extension Guest {
  @Suite("What is kept of a SYN", .cable)
  struct SavedSynTests {
    private static let sizes: [TraitSize] = [.bytes4, .bytes8, .bytes16]

    /// Keys, and a program that gives values of them to each segment.
    ///
    /// - Parameter isRefused: Whether the program may try to set what is no key any more.
    private func withProgram(
      _ route: Route, dropsOthers: Bool = false, isRefused: Bool = false,
      _ body: (Harbour, [TraitID], SynProgram) throws -> Void
    ) throws {
      let harbour = Harbour(cable: try suiteCable(), route: route)
      let before = try Harbour.savedInUse()
      try Guest.withKeys(Self.sizes) { ids in
        let program = try SynProgram(port: Guest.port, ids, dropsOthers: dropsOthers)
        try program.program.attach(to: harbour.cable.receiver)
        defer { StreamSocket.closeAll() }
        try body(harbour, ids, program)
        #expect(try (program.counts().failed > 0) == isRefused)
        try program.program.detach()
      }
      let after = try Harbour.settledSaved(before)
      #expect(after == before, "records that are still there: \(after), \(before) before")
    }

    @Test(
      "an accepted socket has what its listener asked for of the SYN, or of what a cookie came back with",
      arguments: Route.allCases, [SynProgram.Segment.syn, .other])
    func kept(route: Route, segment: SynProgram.Segment) throws {
      try withProgram(route) { harbour, ids, program in
        // 2: a cookie stands for each request.
        try harbour.with("tcp_syncookies", segment == .syn ? 1 : 2, instead: 1) {
          let listener = try harbour.listener([ids[0], ids[2]])
          var registry = try RegistryConnection()
          let before = try registry.statistics()
          let client = try harbour.connected()
          let accepted = try listener.accept()
          let right = try harbour.traits(of: client, segment, [ids[0], nil, ids[2]])
          // It can be read again.
          for _ in 0..<3 { #expect(try accepted.synTraits() == right) }
          #expect(try ids.map { try registry.statistics(of: $0).read } == [3, 0, 3])
          let changes = try registry.statistics() - before
          #expect(changes.copied == 1)
          #expect(changes.allocated == 1)
          #expect(changes.lost == 0)
          // The listener has the mask, and the connection the values.
          #expect(try listener.kept() == TraitMask([ids[0], ids[2]]))
          #expect(try listener.synTraits().isEmpty)
          #expect(try accepted.kept() == [])
          #expect(try client.synTraits().isEmpty)

          // The next one, once nothing is asked for
          try listener.keep([])
          let unasked = try harbour.connected()
          let plain = try listener.accept()
          #expect(try plain.synTraits().isEmpty)
          #expect(try unasked.synTraits().isEmpty)
          #expect(try accepted.synTraits() == right)
        }
      }
    }

    @Test("a SYN that has none of the keys is kept nothing of", arguments: Route.allCases)
    func nothing(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        try Guest.withKeys([.bytes4]) { others in
          let listener = try harbour.listener(others)
          let before = try Harbour.savedInUse()
          _ = try harbour.connected()
          #expect(try listener.accept().synRecords().isEmpty)
          #expect(try Harbour.savedInUse() == before)
        }
      }
    }

    @Test("a listener that sends and keeps hands on what it sends alone", arguments: Route.allCases)
    func beside(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        let listener = try harbour.listener(ids)
        let sent = try Traits([(ids[0], [1, 2, 3, 4])])
        try Guest.insisting { try listener.descriptor.setSentTraits(sent) }
        #expect(try listener.kept() == TraitMask(ids))
        let client = try harbour.connected()
        let accepted = try listener.accept()
        #expect(try accepted.descriptor.sentTraits() == sent)
        #expect(try accepted.kept() == [])
        #expect(try accepted.synTraits() == harbour.traits(of: client, .syn, ids))
        // One goes, the other stays.
        try listener.keep([])
        #expect(try listener.descriptor.sentTraits() == sent)
        try listener.keep([ids[1]])
        try Guest.insisting { try listener.descriptor.setSentTraits(Traits()) }
        #expect(try listener.kept() == TraitMask(ids[1]))
        let next = try harbour.connected()
        let later = try listener.accept()
        #expect(try later.descriptor.sentTraits().isEmpty)
        #expect(try later.synTraits() == harbour.traits(of: next, .syn, [nil, ids[1], nil]))
      }
    }

    // MARK: Options

    @Test("TRAITS_SAVE_SYN takes a mask, and TRAITS_SYN is read with enough room", arguments: Route.allCases)
    func options(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        let listener = try harbour.listener(ids)
        var longer = [UInt8](repeating: 0, count: 17)
        for length in 0...16 as ClosedRange<socklen_t> where length != 8 {
          let status = StreamSocket.attempt {
            setsockopt(listener.raw, SOL_TRAITS, TRAITS_SAVE_SYN, longer, length)
          }
          #expect(status == EINVAL, "\(length) bytes")
        }
        let nowhere = UnsafeRawPointer(bitPattern: 8)
        #expect(
          StreamSocket.attempt { setsockopt(listener.raw, SOL_TRAITS, TRAITS_SAVE_SYN, nowhere, 8) } == EFAULT
        )
        let free = try Guest.freeKey()
        #expect(throws: Errno.noSuchFileOrDirectory) { try listener.keep([ids[0], free]) }
        #expect(try listener.kept() == TraitMask(ids))
        for room in 0...16 {
          longer = [UInt8](repeating: 0xee, count: 17)
          var length = socklen_t(room)
          let status = StreamSocket.attempt {
            getsockopt(listener.raw, SOL_TRAITS, TRAITS_SAVE_SYN, &longer, &length)
          }
          #expect(length == 8)
          #expect(status == (room == 0 || room >= 8 ? 0 : EINVAL))
          #expect(longer[(room >= 8 ? 8 : 0)...].allSatisfy { $0 == 0xee })
        }

        let client = try harbour.connected()
        let accepted = try listener.accept()
        let right = try harbour.traits(of: client, .syn, ids).records
        #expect(right.count == 72)
        for room in [0, 1, 24, 71, 72, 73, 100] {
          var bytes = [UInt8](repeating: 0xee, count: 101)
          var length = socklen_t(room)
          let status = StreamSocket.attempt {
            getsockopt(accepted.raw, SOL_TRAITS, TRAITS_SYN, &bytes, &length)
          }
          // No room at all is the question for the length.
          #expect(status == (room == 0 || room >= 72 ? 0 : EINVAL), "\(room) bytes of room")
          #expect(length == 72)
          let written = room >= 72 ? 72 : 0
          #expect(Array(bytes[..<written]) == Array(right[..<written]))
          #expect(bytes[written...].allSatisfy { $0 == 0xee })
        }
        var length = socklen_t(100)
        let wrong = UnsafeMutableRawPointer(bitPattern: 8)
        #expect(
          StreamSocket.attempt { getsockopt(accepted.raw, SOL_TRAITS, TRAITS_SYN, wrong, &length) } == EFAULT)
        // It cannot be set, as other options that can only be read.
        for socket in [listener, accepted] {
          let status = StreamSocket.attempt { setsockopt(socket.raw, SOL_TRAITS, TRAITS_SYN, right, 72) }
          #expect(status == ENOPROTOOPT)
        }
        #expect(try accepted.synRecords() == right)
      }
    }

    @Test("to name a key takes privilege; who has the socket reads what was kept", arguments: Route.allCases)
    func privilege(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        try Guest.withKeys([.bytes4], flags: .openRead) { open in
          let listener = try harbour.listener(ids)
          let fresh = try harbour.socket()
          let client = try harbour.connected()
          let right = try harbour.traits(of: client, .syn, ids)
          try asUser {
            #expect(throws: Errno.notPermitted) { try fresh.keep(ids) }
            #expect(throws: Errno.notPermitted) { try fresh.keep(open + [ids[1]]) }
            #expect(try fresh.kept() == [])
            try fresh.keep(open)
            #expect(try fresh.kept() == TraitMask(open))
            // What was granted stays with the listener, and goes with its connections.
            #expect(throws: Errno.notPermitted) { try listener.keep([ids[0]]) }
            #expect(try listener.kept() == TraitMask(ids))
            let accepted = try listener.accept()
            #expect(try accepted.synTraits() == right)
            // To ask for less takes no privilege for what is not asked for any more.
            try listener.keep([])
            #expect(try listener.kept() == [])
          }
        }
      }
    }

    @Test("sockets of other protocols have neither option")
    func otherSockets() throws {
      let stream = Int32(SOCK_STREAM.rawValue)
      let datagram = Int32(SOCK_DGRAM.rawValue)
      let raw = Int32(SOCK_RAW.rawValue)
      let sockets: [(Int32, Int32, Int32)] = [
        (AF_INET, datagram, 0), (AF_INET6, datagram, 0), (AF_INET, raw, 253), (AF_INET6, raw, 253),
        (AF_PACKET, raw, 0), (AF_UNIX, stream, 0), (AF_UNIX, datagram, 0),
        // IPPROTO_MPTCP
        (AF_INET, stream, 262), (AF_INET6, stream, 262),
      ]
      for (family, type, proto) in sockets {
        let socket = StreamSocket(Glibc.socket(family, type | Int32(SOCK_CLOEXEC.rawValue), proto))
        try #require(socket.raw >= 0)
        for name in [TRAITS_SAVE_SYN, TRAITS_SYN] {
          var mask: UInt64 = 0
          var length = socklen_t(8)
          let set = StreamSocket.attempt { setsockopt(socket.raw, SOL_TRAITS, name, &mask, length) }
          let get = StreamSocket.attempt { getsockopt(socket.raw, SOL_TRAITS, name, &mask, &length) }
          #expect([set, get] == [EOPNOTSUPP, EOPNOTSUPP], "family \(family), type \(type), option \(name)")
        }
      }
    }

    // MARK: Ways to a connection

    /// Lets no segment get to the client.
    private func silence(_ harbour: Harbour) throws -> ScriptProgram {
      let silence = try ScriptProgram(.ipProtocol(6), [], then: .drop)
      try silence.program.attach(to: harbour.cable.sender)
      return silence
    }

    @Test("a connection that begins with data has what its SYN had", arguments: Route.allCases)
    func fastOpen(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        // Servers, without cookies; clients, without cookies (ip-sysctl.rst)
        try harbour.with("tcp_fastopen", 0x202, instead: 1) {
          try harbour.cable.sender.namespace.setParameter("net/ipv4/tcp_fastopen", "\(0x5)")
          defer { try? harbour.cable.sender.namespace.setParameter("net/ipv4/tcp_fastopen", "1") }
          let listener = try harbour.listener(ids)
          // TCP_FASTOPEN
          try listener.set(Int32(IPPROTO_TCP), 23, 16)
          let client = try harbour.client()
          // No acknowledgment comes of it.
          let silence = try silence(harbour)
          let payload = TagProgram.payload(1, length: 100)
          let destination = try harbour.destination
          let flags = Int32(MSG_FASTOPEN | MSG_NOSIGNAL | MSG_DONTWAIT)
          let sent = destination.withSockaddr { sendto(client.raw, payload, payload.count, flags, $0, $1) }
          #expect(sent == payload.count, "errno \(errno)")
          let accepted = try listener.accept()
          #expect(try program.counts().others == 0)
          let right = try harbour.traits(of: client, .syn, ids)
          #expect(try accepted.synTraits() == right)
          var room = [UInt8](repeating: 0, count: 200)
          #expect(recv(accepted.raw, &room, room.count, 0) == payload.count)
          #expect(Array(room[..<payload.count]) == payload)
          try silence.program.detach()
          // The handshake is completed, and nothing has changed.
          try #require(client.becomes(ready: POLLOUT, within: 20_000))
          for _ in 0..<200 where try program.counts().others == 0 { usleep(50_000) }
          #expect(try program.counts().others > 0)
          #expect(try accepted.synTraits() == right)
        }
      }
    }

    @Test("a SYN that is sent again changes nothing of what was kept", arguments: Route.allCases)
    func again(route: Route) throws {
      let harbour = Harbour(cable: try suiteCable(), route: route)
      let before = try Harbour.savedInUse()
      try Guest.withKeys([.bytes8, .bytes4]) { ids in
        defer { StreamSocket.closeAll() }
        let listener = try harbour.listener(ids)
        let silence = try silence(harbour)
        let values = (1...2).map { number in [UInt8](repeating: UInt8(number), count: 8) }
        let first = try ScriptProgram(.ipProtocol(6), [.set(ids[0].rawValue, values[0])])
        try first.program.attach(to: harbour.cable.receiver)
        let client = try harbour.client()
        try client.beginConnecting(to: try harbour.destination)
        for _ in 0..<200 where try first.results().runs == 0 { usleep(10_000) }
        try first.program.detach()
        // The next one has another value, and one of another key besides.
        let second = try ScriptProgram(
          .ipProtocol(6), [.set(ids[0].rawValue, values[1]), .set(ids[1].rawValue, [1, 2, 3, 4])])
        try second.program.attach(to: harbour.cable.receiver)
        for _ in 0..<1000 where try second.results().runs == 0 { usleep(10_000) }
        #expect(try second.results().runs > 0)
        try silence.program.detach()
        let accepted = try listener.accept()
        #expect(try accepted.synTraits() == Traits([(ids[0], values[0])]))
        #expect(try Harbour.savedInUse() == before + 1)
        try second.program.detach()
      }
      #expect(try Harbour.settledSaved(before) == before)
    }

    @Test("what was kept ends when the socket is disconnected, and it begins anew", arguments: Route.allCases)
    func reuse(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        let before = try Harbour.savedInUse()
        let listener = try harbour.listener(ids)
        let client = try harbour.connected()
        let accepted = try listener.accept()
        listener.close()
        #expect(try accepted.synTraits() == harbour.traits(of: client, .syn, ids))
        #expect(try Harbour.savedInUse() == before + 1)
        try accepted.disconnect()
        #expect(try accepted.synTraits().isEmpty)
        #expect(try Harbour.settledSaved(before) == before)

        // It connects elsewhere,
        do {
          let server = try StreamSocket(harbour.cable.sender.namespace, route == .ipv4 ? .ipv4 : .ipv6)
          try server.set(SOL_SOCKET, SO_REUSEADDR, 1)
          try server.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
          try server.listen()
          let sender = harbour.cable.sender
          let host = route == .ipv6 ? sender.ipv6 : (route == .mapped ? "::ffff:" : "") + sender.ipv4
          try accepted.connect(to: try #require(InternetAddress(host, port: Guest.port)))
          let other = try server.accept()
          #expect(try accepted.synTraits().isEmpty)
          #expect(try other.synTraits().isEmpty)
          server.close()
        }

        // and then listens itself.
        try accepted.disconnect()
        try accepted.set(SOL_SOCKET, SO_REUSEADDR, 1)
        try accepted.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
        try accepted.keep([ids[1]])
        try accepted.listen()
        #expect(try accepted.synTraits().isEmpty)
        let next = try harbour.connected()
        let grandchild = try accepted.accept()
        #expect(try grandchild.synTraits() == harbour.traits(of: next, .syn, [nil, ids[1], nil]))
        #expect(try accepted.synTraits().isEmpty)
      }
    }

    // MARK: Several listeners, and none

    /// Where a connection is when its listener is closed.
    enum Stage: String, CaseIterable, CustomTestStringConvertible {
      case queued = "in the queue"
      case completed = "completed by the segment that comes next"
      case resumed = "taken over by its timer"

      var testDescription: String { rawValue }
    }

    @Test(
      "a connection that moves to another listener keeps what the first one asked for",
      arguments: Route.allCases,
      Stage.asked)
    func migration(route: Route, stage: Stage) throws {
      try withProgram(route, dropsOthers: stage != .queued) { harbour, ids, program in
        try harbour.with("tcp_migrate_req", 1, instead: 0) {
          let moved = try harbour.counter("TCPMigrateReqSuccess")
          let first = try harbour.listener([ids[0], ids[1]], isShared: true)
          // What the client says is dropped behind its SYN, unless it is to be in the queue.
          let client = try harbour.connected()
          if stage == .queued { try #require(first.becomes(ready: POLLIN, within: 20_000)) }
          let second = try harbour.listener([ids[2]], isShared: true)
          first.close()
          if stage == .resumed {
            // Not for ever: the request ends after half a minute.
            let end = ContinuousClock.now + .seconds(20)
            while try harbour.counter("TCPMigrateReqSuccess") == moved, ContinuousClock.now < end {
              usleep(10_000)
            }
          }
          try program.program.detach()
          // One that has no values: nothing else can be shown.
          #expect(Glibc.send(client.raw, "?", 1, Int32(MSG_NOSIGNAL)) == 1)
          let accepted = try second.accept()
          #expect(try harbour.counter("TCPMigrateReqSuccess") == moved + 1)
          #expect(
            try accepted.synTraits() == harbour.traits(of: client, .syn, [ids[0], ids[1], nil]))
          #expect(try second.kept() == TraitMask(ids[2]))
        }
      }
    }

    @Test(
      "connections have what that listener of several asked for which accepts them", arguments: Route.allCases
    )
    func shared(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        let masks: [[TraitID?]] = [[ids[0], nil, nil], [nil, ids[1], ids[2]]]
        var listeners: [StreamSocket] = []
        for mask in masks { listeners.append(try harbour.listener(mask.compactMap { $0 }, isShared: true)) }
        var counts = [0, 0]
        // Each goes to one of them at random.
        while counts.min()! < 3 {
          try #require(counts.max()! < 200)
          let client = try harbour.connected()
          let index = try #require((0..<2).first { listeners[$0].becomes(ready: POLLIN, within: 1000) })
          let accepted = try listeners[index].accept()
          #expect(try accepted.synTraits() == harbour.traits(of: client, .syn, masks[index]))
          for socket in [client, accepted] { socket.close() }
          counts[index] += 1
        }
      }
    }

    @Test(
      "a listener that is closed leaves nothing of connections that nobody accepted",
      arguments: Route.allCases)
    func pending(route: Route) throws {
      // withProgram() sees to it that nothing is left.
      try withProgram(route) { harbour, ids, program in
        let before = try Harbour.savedInUse()
        let listener = try harbour.listener(ids)
        let clients = try (0..<10).map { _ in try harbour.connected() }
        try #require(listener.becomes(ready: POLLIN, within: 20_000))
        let silence = try silence(harbour)
        let waiting = try (0..<10).map { _ in
          let client = try harbour.client()
          try client.beginConnecting(to: try harbour.destination)
          return client
        }
        let end = ContinuousClock.now + .seconds(20)
        while try Harbour.savedInUse() < before + 20, ContinuousClock.now < end { usleep(10_000) }
        #expect(try Harbour.savedInUse() >= before + 20)
        listener.close()
        for client in clients + waiting { client.close() }
        try silence.program.detach()
      }
    }

    // MARK: Keys that are removed

    /// What becomes of a key.
    enum Removal: String, CaseIterable, CustomTestStringConvertible {
      case gone
      case again = "another key under its number"

      var testDescription: String { rawValue }
    }

    @Test(
      "a key that is removed is out of what was kept, also for the next one", arguments: Route.allCases,
      Removal.allCases)
    func removal(route: Route, removal: Removal) throws {
      try withProgram(route, isRefused: removal == .gone) { harbour, ids, program in
        let listener = try harbour.listener(ids)
        let client = try harbour.connected()
        let right = try harbour.traits(of: client, .syn, [ids[0], nil, ids[2]])
        // Between the SYN and accept()
        try #require(listener.becomes(ready: POLLIN, within: 20_000))
        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[1])
        if removal == .again {
          // It is open to all, the former one was not.
          try registry.add(removed.name, size: removed.size, id: removed.id, flags: .openRead)
        }
        let accepted = try listener.accept()
        #expect(try accepted.synTraits() == right)
        #expect(try listener.kept() == TraitMask([ids[0], ids[2]]))

        // In the mask as well: the program sets values of the key that has the number now.
        let next = try harbour.connected()
        let later = try listener.accept()
        #expect(try later.synTraits() == harbour.traits(of: next, .syn, [ids[0], nil, ids[2]]))
        if removal == .again {
          try listener.keep(ids)
          let last = try harbour.connected()
          #expect(try listener.accept().synTraits() == harbour.traits(of: last, .syn, ids))
        } else {
          let fresh = try registry.add(removed.name, size: removed.size, id: removed.id)
          #expect(fresh.id == ids[1])
        }
        #expect(try accepted.synTraits() == right)
      }
    }

    // MARK: Many

    @Test(
      "handshakes, half of them in a flood of SYNs, leave nothing, and none has another's traits",
      arguments: Route.allCases)
    func many(route: Route) throws {
      // Of all three together at least 200,000.
      let count = GuestCondition.isLong ? 34_000 : 400
      try withProgram(route) { harbour, ids, program in
        let extensions = try settled { _ in false }
        let saved = try Harbour.savedInUse()
        let (sender, receiver) = (harbour.cable.sender, harbour.cable.receiver)
        // What nobody completes is soon over.
        try receiver.namespace.setParameter("net/ipv4/tcp_synack_retries", "1")
        defer { try? receiver.namespace.setParameter("net/ipv4/tcp_synack_retries", "5") }
        // Addresses to come from, and a way back to those where nobody is.
        let isIPv6 = route == .ipv6
        let hosts = (101...105).map { isIPv6 ? "fd77:1::\($0)" : "10.77.1.\($0)" }
        let length = isIPv6 ? "64" : "24"
        try sender.namespace.ip(
          lines: hosts.map {
            "address add \($0)/\(length) dev \(sender.interface)" + (isIPv6 ? " nodad" : "")
          })
        try receiver.namespace.ip(lines: [
          isIPv6 ? "route add fd99::/64 via \(sender.ipv6)" : "route add 10.99.0.0/16 via \(sender.ipv4)"
        ])
        defer {
          try? sender.namespace.ip(
            lines: hosts.map { "address del \($0)/\(length) dev \(sender.interface)" })
          try? receiver.namespace.ip(lines: [isIPv6 ? "route del fd99::/64" : "route del 10.99.0.0/16"])
        }
        func raw(_ address: InternetAddress) -> [UInt8] {
          address.withSockaddr { [UInt8](UnsafeRawBufferPointer(start: $0, count: Int($1))) }
        }
        let to = raw(try harbour.destination)
        let from = try hosts.flatMap { raw(try #require(InternetAddress($0, port: 0))) }
        let addresses = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: to.count + from.count)
        defer { addresses.deallocate() }
        _ = addresses.initialize(from: to + from)

        for flood in [0, 40] as [UInt32] {
          let cookies = try harbour.counter("SyncookiesRecv")
          let listener = try harbour.listener(ids, backlog: 40)
          _ = fcntl(listener.raw, F_SETFL, fcntl(listener.raw, F_GETFL) | O_NONBLOCK)
          var handshakes = lab_handshakes()
          handshakes.listener = listener.raw
          handshakes.from_count = UInt32(hosts.count)
          handshakes.address_length = UInt32(to.count)
          handshakes.keys = (ids[0].rawValue, ids[1].rawValue, ids[2].rawValue)
          handshakes.count = UInt32(count)
          handshakes.together = 32
          handshakes.flood = flood
          handshakes.to = UnsafeRawPointer(addresses.baseAddress!)
          handshakes.from = handshakes.to + to.count
          let error = try sender.namespace.run { lab_connect_many(&handshakes) }
          let failed = handshakes.failed.map { String(cString: $0) } ?? "nothing"
          try #require(error == 0, "\(failed): \(Errno(rawValue: error))")
          #expect(handshakes.wrong == 0)
          #expect(handshakes.of_nothing == 0)
          #expect(handshakes.of_syn + handshakes.of_acknowledgment == UInt32(count))
          // Only a connection that a cookie made has those of an acknowledgment.
          let returned = try harbour.counter("SyncookiesRecv") - cookies
          #expect(UInt64(handshakes.of_acknowledgment) <= returned)
          if flood == 0 {
            #expect(handshakes.of_acknowledgment == 0)
          } else {
            #expect(2 * handshakes.of_acknowledgment >= UInt32(count))
          }
          listener.close()
          print(
            "\(route.rawValue), \(flood) SYNs of nobody for each 32: \(handshakes.of_syn) with the traits of "
              + "their SYN, \(handshakes.of_acknowledgment) with those of what the cookie came back with")
        }
        #expect(try Harbour.settledSaved(saved) == saved)
        let after = try settled { $0 == extensions }
        #expect(after == extensions)
      }
    }

    @Test(
      "connections come and go while the mask and keys change, and leave nothing",
      arguments: Route.allCases)
    func changing(route: Route) throws {
      try withProgram(route) { harbour, ids, program in
        let listener = try harbour.listener(ids)
        let descriptor = listener.raw
        let mask = TraitMask(ids).rawValue
        try repeating {
          for keys in [0, mask] {
            var keys = keys
            guard setsockopt(descriptor, SOL_TRAITS, TRAITS_SAVE_SYN, &keys, 8) == 0 else {
              throw Errno(rawValue: errno)
            }
          }
        } during: { changes in
          var (all, none) = (0, 0)
          while try all + none < 300 || changes.count() < 300 {
            let client = try harbour.connected()
            let accepted = try listener.accept()
            let traits = try accepted.synTraits()
            // All or none of what was asked for, and its own.
            if traits.isEmpty {
              none += 1
            } else {
              try #require(try traits == harbour.traits(of: client, .syn, ids))
              all += 1
            }
            for socket in [client, accepted] { socket.close() }
          }
          print("\(route.rawValue): \(all) with traits, \(none) without, \(try changes.count()) changes")
        }
      }
    }
  }
}
