// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// Whether the guest suites are to run.
enum GuestCondition {
  /// In the virtual machine nothing is an excuse: what is missing is a failure.
  static let isAsked = getenv("PACKET_TRAITS_GUEST").map { String(cString: $0) } == "1"

  static let isSupported = (try? Traits.isSupportedByKernel()) ?? false

  static let isEquipped = geteuid() == 0 && getenv("PACKET_TRAITS_BPF") != nil

  /// "qemu/vm test --long": tests that do more have hours.
  static let isLong = getenv("PACKET_TRAITS_LONG") != nil
}

/// The suites that need a kernel with packet traits, root, and a machine to
/// spare. One test at a time, as the registry and the counters are the
/// machine's.
@Suite(
  "Guest", .serialized,
  .enabled(
    if: GuestCondition.isAsked || GuestCondition.isSupported,
    "this kernel has no packet traits (and PACKET_TRAITS_GUEST=1 is not set)"),
  .enabled(
    if: GuestCondition.isAsked || GuestCondition.isEquipped,
    "it takes root, and PACKET_TRAITS_BPF must be the directory of the compiled BPF programs"),
  .timeLimit(.minutes(GuestCondition.isLong ? 240 : 10)))
enum Guest {}

extension Guest {
  static let port: UInt16 = 4243

  /// How a datagram reaches a socket.
  enum Route: String, CaseIterable, CustomTestStringConvertible {
    case ipv4 = "IPv4"
    case ipv6 = "IPv6"
    case mapped = "IPv4 to an IPv6 socket"

    var family: InternetAddress.Family { self == .ipv6 ? .ipv6 : .ipv4 }
    var testDescription: String { rawValue }
  }

  static func statistics() throws -> TraitStatistics {
    var registry = try RegistryConnection()
    return try registry.statistics()
  }

  /// What `body` adds to the counters.
  static func changes(_ body: () throws -> Void) throws -> TraitStatistics {
    let before = try statistics()
    try body()
    return try statistics() - before
  }

  /// Registers keys for as long as `body` runs, with names of their own.
  static func withKeys<Value>(
    _ sizes: [TraitSize], merge: MergePolicy = .exact, flags: KeyFlags = [], _ body: ([TraitID]) throws -> Value
  ) throws -> Value {
    var ids: [TraitID] = []
    defer {
      // Some tests remove keys themselves.
      if var registry = try? RegistryConnection() {
        for id in ids { _ = try? registry.remove(id) }
      }
    }
    do {
      var registry = try RegistryConnection()
      for size in sizes {
        ids.append(try registry.add(uniqueName(), size: size, merge: merge, flags: flags).id)
      }
    }
    return try body(ids)
  }

  /// A number that no key has now. Any can be a test's: numbers go round.
  static func freeKey() throws -> TraitID {
    var registry = try RegistryConnection()
    let taken = Set(try registry.keys().map(\.id))
    return try #require(TraitID.allCases.first { !taken.contains($0) })
  }

  private nonisolated(unsafe) static var nameCount = 0

  /// A name that no key had since the machine was started.
  static func uniqueName() -> String {
    nameCount += 1
    return "guest.\(getpid()).\(nameCount)"
  }
}

extension RegistryConnection {
  /// Registers a key of which it does not matter how it is merged.
  @discardableResult
  mutating func add(
    _ name: String, size: TraitSize, id: TraitID? = nil, flags: KeyFlags = []
  ) throws(TraitError) -> RegisteredKey {
    try add(name, size: size, merge: .exact, id: id, flags: flags)
  }
}

extension TraitStatistics {
  /// What was counted since.
  static func - (after: TraitStatistics, before: TraitStatistics) -> TraitStatistics {
    TraitStatistics(
      set: after.set - before.set, copied: after.copied - before.copied,
      discarded: after.discarded - before.discarded, scrubbed: after.scrubbed - before.scrubbed,
      allocated: after.allocated - before.allocated, evicted: after.evicted - before.evicted,
      lost: after.lost - before.lost)
  }

  /// What is to be counted; nothing of what is not named.
  static func only(
    set: UInt64 = 0, copied: UInt64 = 0, discarded: UInt64 = 0, scrubbed: UInt64 = 0,
    allocated: UInt64 = 0, evicted: UInt64 = 0, lost: UInt64 = 0
  ) -> TraitStatistics {
    TraitStatistics(
      set: set, copied: copied, discarded: discarded, scrubbed: scrubbed, allocated: allocated,
      evicted: evicted, lost: lost)
  }
}

/// What was received, with the control data in raw form as well.
struct Arrival {
  let payload: [UInt8]
  let message: ReceivedMessage
  let control: [UInt8]

  var traits: Traits {
    get throws { try Traits(controlMessages: control.span.bytes) }
  }

  var controlMessages: [ControlMessage] {
    get throws { try ControlMessage.all(in: control.span.bytes) }
  }
}

extension UDPSocket {
  /// Receives, and keeps what was written and no more.
  func arrival(
    payloadRoom: Int = 2048, controlRoom: Int = 4096, flags: MessageFlags = []
  ) throws -> Arrival {
    var payloadBytes = [UInt8](repeating: 0, count: payloadRoom)
    var controlBytes = [UInt8](repeating: 0xee, count: controlRoom)
    let message: ReceivedMessage
    do {
      var payloadElements = payloadBytes.mutableSpan
      var payload = payloadElements.mutableBytes
      var controlElements = controlBytes.mutableSpan
      var control = controlElements.mutableBytes
      message = try unsafeFileDescriptor.receiveMessage(into: &payload, control: &control, flags: flags)
    }
    return Arrival(
      payload: Array(payloadBytes[..<message.length]), message: message,
      control: Array(controlBytes[..<message.controlLength]))
  }

  func send(_ payload: [UInt8], to destination: InternetAddress) throws {
    try send(payload.span.bytes, to: destination)
  }
}

extension NetworkNamespace {
  /// A socket that receives on the tests' port.
  func inbox(_ route: Guest.Route = .ipv4, _ keys: [TraitID] = []) throws -> UDPSocket {
    try run {
      let socket = try UDPSocket(route == .ipv4 ? .ipv4 : .ipv6)
      try socket.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
      try socket.setReceiveTimeout(.seconds(10))
      try socket.setReceivedTraits(TraitMask(keys))
      return socket
    }
  }
}

extension VethPair.End {
  /// Has the interface do this work of the stack's or not, and then as it did at first.
  ///
  /// - Parameter feature: As ethtool(8) calls it: `tx` for checksums, `tso`. It is on at first.
  func withOffload(_ feature: String, _ isOn: Bool, _ body: () throws -> Void) throws {
    func set(_ to: String) throws {
      _ = try namespace.run { try Command.require("ethtool", "-K", interface, feature, to) }
    }
    try set(isOn ? "on" : "off")
    defer { try? set("on") }
    try body()
  }
}

extension VethPair {
  /// A socket at the receiver's end.
  func inbox(_ route: Guest.Route = .ipv4, _ keys: [TraitID] = []) throws -> UDPSocket {
    try receiver.namespace.inbox(route, keys)
  }

  /// A socket at the sender's end.
  func outbox(_ route: Guest.Route = .ipv4) throws -> UDPSocket {
    try sender.namespace.run { try UDPSocket(route.family) }
  }

  func destination(_ route: Guest.Route = .ipv4) throws -> InternetAddress {
    try receiver.address(route.family, port: Guest.port)
  }
}

/// Two namespaces with a cable between them, for all tests of a suite: to make
/// them takes longer than most tests.
struct CableTrait: SuiteTrait, TestScoping {
  @TaskLocal static var cable: VethPair?

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: () async throws -> Void
  ) async throws {
    let sending = try NetworkNamespace("sender")
    defer { sending.remove() }
    let receiving = try NetworkNamespace("receiver")
    defer { receiving.remove() }
    let cable = try VethPair(from: sending, to: receiving)
    try await Self.$cable.withValue(cable) { try await function() }
  }
}

extension SuiteTrait where Self == CableTrait {
  static var cable: CableTrait { CableTrait() }
}

func suiteCable() throws -> VethPair {
  try #require(CableTrait.cable, "the suite has no cable")
}

extension Traits {
  init(_ values: [(TraitID, [UInt8])]) throws {
    self.init()
    for (id, bytes) in values { try setBytes(bytes, for: id) }
  }

  mutating func setBytes(_ bytes: [UInt8], for id: TraitID) throws {
    try setBytes(bytes.span.bytes, for: id)
  }
}

/// Steps that set values, by key.
func setting(_ values: [(TraitID, [UInt8])]) -> [ScriptStep] {
  values.map { .set($0.rawValue, $1) }
}

/// A value of 16 bytes for each key.
func distinct(_ ids: some Sequence<TraitID>) -> [(TraitID, [UInt8])] {
  ids.enumerated().map { number, id in
    (id, (0..<16).map { UInt8(truncatingIfNeeded: number * 16 + $0 + 1) })
  }
}

func setOption(
  _ socket: borrowing UDPSocket, _ level: Int32, _ name: Int32, _ value: [UInt8]
) throws {
  guard setsockopt(socket.unsafeFileDescriptor.rawValue, level, name, value, socklen_t(value.count)) == 0
  else { throw LabError("option \(name) of level \(level): \(Errno(rawValue: errno))") }
}

func setOption(
  _ socket: borrowing UDPSocket, _ level: Int32, _ name: Int32, _ value: Int32
) throws {
  var bytes: [UInt8] = []
  bytes.append(native: value)
  try setOption(socket, level, name, bytes)
}

func bytes(of address: String) throws -> [UInt8] {
  var bytes = [UInt8](repeating: 0, count: 16)
  let family = address.contains(":") ? AF_INET6 : AF_INET
  guard inet_pton(family, address, &bytes) == 1 else { throw LabError("\(address) is no address") }
  return Array(bytes.prefix(family == AF_INET6 ? 16 : 4))
}

/// Sends until something arrives: the first ones may wait for a neighbour.
func awaitPassage(
  from outbox: borrowing UDPSocket, to destination: InternetAddress, _ inbox: borrowing UDPSocket
) throws {
  try inbox.setReceiveTimeout(.milliseconds(100))
  for round in 0..<100 {
    // There may be no way yet at all.
    _ = try? outbox.send(TagProgram.payload(999), to: destination)
    guard (try? inbox.arrival()) != nil else { continue }
    // What waited comes as well.
    if round > 0 { while (try? inbox.arrival()) != nil {} }
    try inbox.setReceiveTimeout(.seconds(10))
    return
  }
  throw LabError("no datagram came to \(destination) within 10 seconds")
}

/// How many objects of a cache of the kernel's are in use.
func objectsInUse(_ cache: String) throws -> Int {
  let path = "/sys/kernel/slab/\(cache)/"
  guard try Command.require("cat", path + "aliases") == "0\n" else {
    throw LabError("\(path): shared with other caches, unless booted with slab_nomerge")
  }
  // What a processor keeps at hand is counted as if it were in use.
  let shrink = open(path + "shrink", O_WRONLY | O_CLOEXEC)
  guard shrink >= 0 else { throw LabError("\(path)shrink: \(Errno(rawValue: errno))") }
  defer { close(shrink) }
  guard write(shrink, "1\n", 2) == 2 else {
    throw LabError("\(path)shrink: \(Errno(rawValue: errno))")
  }
  let text = try Command.require("cat", path + "objects")
  guard let number = text.split(whereSeparator: \.isWhitespace).first.flatMap({ Int($0) }) else {
    throw LabError("\(path)objects: \(text)")
  }
  return number
}

/// How many objects of the caches for extensions are in use.
func extensionsInUse() throws -> [Int] {
  try ["skbuff_traits_cache", "skbuff_ext_cache"].map(objectsInUse)
}

/// How many objects of the caches for extensions are in use when it does not change any more, or is right.
func settled(_ isRight: ([Int]) -> Bool) throws -> [Int] {
  var last = try extensionsInUse()
  var isSame = 0
  for _ in 0..<50 where !isRight(last) && isSame < 5 {
    usleep(100_000)
    let next = try extensionsInUse()
    isSame = next == last ? isSame + 1 : 0
    last = next
  }
  return last
}

/// Waits until a program has seen so many packets.
func awaitRuns(_ program: SkbProgram, _ count: UInt64, orMore: Bool = false) throws {
  for _ in 0..<500 where try program.results().runs < count { usleep(10_000) }
  let runs = try program.results().runs
  guard orMore ? runs >= count : runs == count else { throw LabError("a program saw \(runs) packets, not \(count)") }
}

/// Both ends of a TCP connection.
func connection(
  _ route: Guest.Route, along cable: VethPair
) throws -> (near: FileDescriptor, far: FileDescriptor) {
  let family = route == .ipv6 ? AF_INET6 : AF_INET
  func stream() throws -> FileDescriptor {
    let descriptor = socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
    return FileDescriptor(rawValue: descriptor)
  }
  // struct sockaddr_in, struct sockaddr_in6
  var address: [UInt8] = []
  address.append(native: UInt16(family))
  address.append(native: Guest.port.bigEndian)
  if route == .ipv6 {
    address += [0, 0, 0, 0] + (try bytes(of: cable.receiver.ipv6)) + [0, 0, 0, 0]
  } else {
    address += try bytes(of: cable.receiver.ipv4) + [UInt8](repeating: 0, count: 8)
  }
  func call(_ what: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) throws {
    let status = address.withUnsafeBytes {
      body($0.assumingMemoryBound(to: sockaddr.self).baseAddress!, socklen_t($0.count))
    }
    guard status == 0 else { throw LabError("\(what): \(Errno(rawValue: errno))") }
  }
  let server = try cable.receiver.namespace.run { try stream() }
  defer { try? server.close() }
  var on: Int32 = 1
  setsockopt(server.rawValue, SOL_SOCKET, SO_REUSEADDR, &on, 4)
  try call("bind") { bind(server.rawValue, $0, $1) }
  guard listen(server.rawValue, 1) == 0 else { throw LabError("listen: \(Errno(rawValue: errno))") }
  let near = try cable.sender.namespace.run { try stream() }
  try call("connect") { connect(near.rawValue, $0, $1) }
  let far = accept(server.rawValue, nil, nil)
  guard far >= 0 else { throw LabError("accept: \(Errno(rawValue: errno))") }
  return (near, FileDescriptor(rawValue: far))
}

extension CaseIterable where Self: RawRepresentable, RawValue == String {
  /// All cases, or the one that PACKET_TRAITS_CASE names if it is among them: "qemu/vm mutate"
  /// has no time for more.
  static var asked: [Self] { asked(of: Array(allCases)) }

  /// The same of some of the cases.
  static func asked(of some: [Self]) -> [Self] {
    guard let name = getenv("PACKET_TRAITS_CASE").map({ String(cString: $0) }) else { return some }
    let named = some.filter { $0.rawValue == name }
    return named.isEmpty ? some : named
  }
}
