// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits

/// A socket that more than one task has.
private final class SharedSocket: Sendable {
  let socket: UDPSocket

  init(_ socket: consuming UDPSocket) { self.socket = socket }
}

/// A pair of Unix sockets. The sending one has room for a few datagrams and then is full until the
/// other one is read, which a UDP socket on the loopback interface never is.
private struct Narrow: ~Copyable {
  let outbox: SharedSocket
  let inbox: UDPSocket

  init() throws {
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
    outbox = SharedSocket(UDPSocket(OwnedDescriptor(FileDescriptor(rawValue: ends[0]))))
    inbox = UDPSocket(OwnedDescriptor(FileDescriptor(rawValue: ends[1])))
  }

  /// Sends until there is no room.
  ///
  /// - Returns: How many datagrams were sent.
  func fill() throws -> Int {
    var count = 0
    while true {
      do throws(TraitError) {
        _ = try outbox.socket.send(([0xff] as [UInt8]).span.bytes, traits: Traits(), flags: .doNotWait)
        count += 1
      } catch {
        guard error.code == .wouldBlock else { throw error }
        return count
      }
    }
  }
}

@Suite("Tasks with UDP sockets", .timeLimit(.minutes(8)))
struct UDPTaskTests {
  static let families = InternetAddress.Family.allCases

  /// The ways to receive.
  enum Receiving: CaseIterable {
    case array, span, batch
  }

  private func receive(
    _ shared: SharedSocket, _ way: Receiving, flags: MessageFlags = []
  ) async throws -> (payload: [UInt8], source: InternetAddress?) {
    switch way {
    case .array:
      var bytes = [UInt8](repeating: 0, count: 100)
      let datagram = try await shared.socket.receive(into: &bytes, flags: flags)
      #expect(try datagram.traits.isEmpty)
      return (Array(bytes[..<datagram.length]), datagram.source)
    case .span:
      var bytes = [UInt8](repeating: 0, count: 100)
      let datagram: ReceivedDatagram
      do {
        var elements = bytes.mutableSpan
        var room = elements.mutableBytes
        datagram = try await shared.socket.receive(into: &room, flags: flags)
      }
      return (Array(bytes[..<datagram.length]), datagram.source)
    case .batch:
      var batch = ReceiveBatch(capacity: 4, payloadCapacity: 100)
      #expect(try await shared.socket.receive(into: &batch, flags: flags) == 1)
      return (batch.payload(at: 0), batch.datagram(at: 0).source)
    }
  }

  @Test("receive what comes while they wait, and what is there", arguments: Receiving.allCases, families)
  func roundTrip(way: Receiving, family: InternetAddress.Family) async throws {
    let inbox = SharedSocket(try loopbackSocket(family))
    let destination = try inbox.socket.localAddress()
    let outbox = try loopbackSocket(family)
    for isThere in [false, true, false] {
      if isThere { #expect(try await outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: destination) == 3) }
      let receiving = Task { try await receive(inbox, way) }
      if !isThere {
        // So that it waits.
        try await Task.sleep(for: .milliseconds(20))
        var control = ControlData()
        control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(0x10))
        if family == .ipv4 {
          try await outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: destination, control: control)
        } else {
          try await outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: destination)
        }
      }
      let received = try await outcome(receiving)
      #expect(received.payload == [1, 2, 3])
      #expect(received.source == (try outbox.localAddress()))
    }
  }

  @Test("send and receive batches")
  func batches() async throws {
    let inbox = try loopbackSocket()
    let outbox = try loopbackSocket()
    var batch = SendBatch()
    #expect(try await outbox.send(batch).isEmpty)
    for number in 0..<3 as Range<UInt8> { batch.append([number].span.bytes, to: try inbox.localAddress()) }
    batch.append([UInt8](repeating: 0, count: 70_000).span.bytes, to: try inbox.localAddress())
    batch.append(([3] as [UInt8]).span.bytes, to: try inbox.localAddress())
    let results = try await outbox.send(batch)
    #expect(results.map { try? $0.get() } == [1, 1, 1, nil, 1])
    var room = ReceiveBatch(capacity: 8, payloadCapacity: 10)
    #expect(try await inbox.receive(into: &room) == 4)
    #expect((0..<4).map { room.payload(at: $0) } == [[0], [1], [2], [3]])
  }

  @Test("wait without a thread, however many they are", arguments: Receiving.allCases)
  func threads(way: Receiving) async throws {
    allowDescriptors()
    // Many times more than processors, and with that than threads in the pool.
    let count = min(64 * Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), 128)
    let waiting = try (0..<count).map { _ in SharedSocket(try loopbackSocket()) }
    let begun = Counter()
    try await withThrowingTaskGroup(of: [UInt8].self) { group in
      for inbox in waiting {
        group.addTask {
          begun.count()
          return try await receive(inbox, way).payload
        }
      }
      try await until { begun.value == count }
      // Another task gets its turn, while all of them wait.
      let start = ContinuousClock.now
      try await Task.detached { try await Task.sleep(for: .milliseconds(10)) }.value
      #expect(ContinuousClock.now - start < hangLimit / 2)
      let outbox = try UDPSocket(.ipv4)
      for inbox in waiting {
        try await outbox.send(([7] as [UInt8]).span.bytes, to: try inbox.socket.localAddress())
      }
      for try await payload in group { #expect(payload == [7]) }
    }
  }

  @Test("that receive are told that they were cancelled, and lose nothing", arguments: Receiving.allCases)
  func cancellation(way: Receiving) async throws {
    let inbox = SharedSocket(try loopbackSocket())
    func expectCancelled(_ task: Task<[UInt8], any Error>) async {
      let error = await #expect(throws: TraitError.self) { try await task.value }
      #expect(error?.code == .cancelled)
      #expect(error?.underlyingError == .canceled)
    }
    for delay in [0, 0, 0, 1, 5, 50] {
      let task = Task { try await receive(inbox, way).payload }
      if delay > 0 { try await Task.sleep(for: .milliseconds(delay)) }
      task.cancel()
      await expectCancelled(task)
    }
    try await UDPSocket(.ipv4).send(([1] as [UInt8]).span.bytes, to: try inbox.socket.localAddress())
    await expectCancelled(
      Task {
        withUnsafeCurrentTask { $0?.cancel() }
        return try await receive(inbox, way).payload
      })
    #expect(try await receive(inbox, way).payload == [1])
  }

  @Test("do not wait where they are told not to")
  func unwaiting() async throws {
    let inbox = SharedSocket(try loopbackSocket())
    for way in Receiving.allCases {
      let error = await #expect(throws: TraitError.self) { try await receive(inbox, way, flags: .doNotWait) }
      #expect(error?.code == .wouldBlock)
    }
    let narrow = try Narrow()
    _ = try narrow.fill()
    let byte: [UInt8] = [1]
    let single = await #expect(throws: TraitError.self) {
      try await narrow.outbox.socket.send(byte.span.bytes, flags: .doNotWait)
    }
    #expect(single?.code == .wouldBlock)
    var batch = SendBatch()
    for _ in 0..<3 { batch.append(byte.span.bytes) }
    let results = try await narrow.outbox.socket.send(batch, flags: .doNotWait)
    #expect(results.count == 3)
    for result in results { #expect(throws: TraitError.self) { try result.get() } }
  }

  @Test("that send wait for room")
  func room() async throws {
    let narrow = try Narrow()
    let filled = try narrow.fill()
    let outbox = narrow.outbox
    let sending = Task {
      try await outbox.socket.send(([1] as [UInt8]).span.bytes)
      try await outbox.socket.send(([2] as [UInt8]).span.bytes, control: ControlData())
    }
    try await Task.sleep(for: .milliseconds(50))
    var bytes: [UInt8] = [0]
    for _ in 0..<filled {
      _ = try await narrow.inbox.receive(into: &bytes)
      #expect(bytes == [0xff])
    }
    for number in [1, 2] as [UInt8] {
      _ = try await narrow.inbox.receive(into: &bytes)
      #expect(bytes == [number])
    }
    try await outcome(sending)
  }

  @Test("that send a batch wait for room, and send all of it in order")
  func roomForBatch() async throws {
    let narrow = try Narrow()
    let outbox = narrow.outbox
    let total = 600
    let sending = Task {
      var batch = SendBatch()
      for number in 0..<total {
        // The kernel takes no such control message: this one fails, and no other.
        var control = ControlData()
        if number % 100 == 50 { control.append(level: .socket, type: .init(rawValue: 0x7fff), Int32(0)) }
        let payload = withUnsafeBytes(of: UInt32(number)) { Array($0) }
        batch.append(payload.span.bytes, control: control)
      }
      return try await outbox.socket.send(batch)
    }
    let right = (0..<total).filter { $0 % 100 != 50 }
    var received: [Int] = []
    var bytes: [UInt8] = [0, 0, 0, 0]
    while received.count < right.count {
      if received.count % 64 == 0 { try await Task.sleep(for: .milliseconds(5)) }
      let length = try await narrow.inbox.receive(into: &bytes).length
      try #require(length == 4)
      received.append(Int(bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }))
    }
    #expect(received == right)
    let results = try await outcome(sending)
    #expect(results.count == total)
    for (number, result) in results.enumerated() {
      if number % 100 == 50 {
        let error = #expect(throws: TraitError.self) { try result.get() }
        #expect(error?.underlyingError == .invalidArgument)
      } else {
        #expect(result == .success(4))
      }
    }
  }

  @Test("that send know what was sent when they are cancelled")
  func cancelledSending() async throws {
    let narrow = try Narrow()
    let outbox = narrow.outbox
    let sending = Task {
      var batch = SendBatch()
      for number in 0..<UInt16(1000) {
        let payload = withUnsafeBytes(of: number) { Array($0) }
        batch.append(payload.span.bytes)
      }
      return try await outbox.socket.send(batch)
    }
    try await until { isFull(outbox.socket.unsafeFileDescriptor) }
    // So that it waits.
    try await Task.sleep(for: .milliseconds(20))
    sending.cancel()
    let results = try await sending.value
    #expect(results.count == 1000)
    let sent = results.prefix { $0 == .success(2) }.count
    try #require(sent > 0 && sent < 1000)
    for result in results[sent...] {
      let error = #expect(throws: TraitError.self) { try result.get() }
      #expect(error?.code == .cancelled)
    }
    let single = Task { try await outbox.socket.send(([1] as [UInt8]).span.bytes) }
    try await Task.sleep(for: .milliseconds(20))
    single.cancel()
    let error = await #expect(throws: TraitError.self) { try await single.value }
    #expect(error?.code == .cancelled)
    // As many came, and no more.
    var bytes: [UInt8] = [0, 0]
    for number in 0..<UInt16(sent) {
      _ = try await narrow.inbox.receive(into: &bytes)
      #expect(bytes.withUnsafeBytes { $0.loadUnaligned(as: UInt16.self) } == number)
    }
    let nothing = await #expect(throws: TraitError.self) {
      try await narrow.inbox.receive(into: &bytes, flags: .doNotWait)
    }
    #expect(nothing?.code == .wouldBlock)
  }

  /// A UDP socket in a network of its own, where nobody has any other address: datagrams wait for a
  /// neighbor (ARP), and take the socket's room meanwhile.
  private static func lonelySocket() throws -> UDPSocket {
    try inNewNetwork {
      try Command.require("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
      try Command.require("ip", "address", "add", "192.0.2.1/24", "dev", "near")
      for name in ["near", "far"] { try Command.require("ip", "link", "set", name, "up") }
      // The kernel gives up after one question, which takes a second.
      try setKernelParameter("net/ipv4/neigh/near/mcast_solicit", "1")
      let socket = try UDPSocket(.ipv4)
      // The kernel's least.
      try socket.setSendBufferSize(1)
      return socket
    }
  }

  @Test(
    "that send wait for room of a UDP socket",
    .enabled(
      if: (try? lonelySocket().localAddress()) != nil, "it takes the right to make a network, and ip(8)"))
  func neighbor() async throws {
    let outbox = SharedSocket(try Self.lonelySocket())
    let destination = try #require(InternetAddress("192.0.2.2", port: 4000))
    let byte: [UInt8] = [1]
    var batch = SendBatch()
    for _ in 0..<100 { batch.append(byte.span.bytes, to: destination) }
    let first = try await outbox.socket.send(batch, flags: .doNotWait)
    let room = first.prefix { $0 == .success(1) }.count
    try #require(room > 0 && room < 50, "there is room for \(room)")
    let start = ContinuousClock.now
    let sending = Task { [batch] in
      var rest = batch
      rest.removeFirst(batch.count - room)
      try await outbox.socket.send(byte.span.bytes, to: destination)
      return try await outbox.socket.send(rest)
    }
    let results = try await outcome(sending)
    #expect(results.allSatisfy { $0 == .success(1) })
    #expect(ContinuousClock.now - start > .milliseconds(200), "it did not wait")
  }

  @Test("end their waits when the socket is shut down", arguments: Receiving.allCases, [false, true])
  func shutDown(way: Receiving, isNonblocking: Bool) async throws {
    let inbox = SharedSocket(try loopbackSocket())
    try inbox.socket.withFileDescriptor { try $0.setNonblocking(isNonblocking) }
    let waiting = Task { try await receive(inbox, way) }
    try await Task.sleep(for: .milliseconds(20))
    try inbox.socket.shutdown(.receiving)
    for task in [waiting, Task { try await receive(inbox, way) }] {
      let received = try await outcome(task)
      #expect(received.payload.isEmpty)
      #expect(received.source == nil)
    }
    let error = await #expect(throws: TraitError.self) { try await receive(inbox, way, flags: .doNotWait) }
    #expect(error?.code == .wouldBlock)
    // Linux takes datagrams also after that.
    let outbox = try loopbackSocket()
    try await outbox.send(([5] as [UInt8]).span.bytes, to: try inbox.socket.localAddress())
    #expect(try await receive(inbox, way).payload == [5])

    try outbox.shutdown(.sending)
    let broken = await #expect(throws: TraitError.self) {
      try await outbox.send(([5] as [UInt8]).span.bytes, to: try inbox.socket.localAddress())
    }
    #expect(broken?.underlyingError == .brokenPipe)
  }

  @Test("are told of an error of the socket while they wait", arguments: Receiving.allCases)
  func errors(way: Receiving) async throws {
    let shared = SharedSocket(try loopbackSocket())
    try shared.socket.connect(to: try Refusing.udp())
    let waiting = Task { try await receive(shared, way).payload }
    try await Task.sleep(for: .milliseconds(20))
    try await shared.socket.send(([1] as [UInt8]).span.bytes)
    let error = await #expect(throws: TraitError.self) { try await outcome(waiting) }
    #expect(error?.code == .systemCall)
    #expect(error?.underlyingError == .connectionRefused)
  }
}
