// SPDX-License-Identifier: MIT

import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits

/// A connection that more than one task has.
private final class SharedConnection: Sendable {
  let connection: TCPConnection

  init(_ connection: consuming TCPConnection) { self.connection = connection }

  /// The ends of a connection, each for tasks of its own.
  static func pair(
    _ family: InternetAddress.Family = .ipv4
  ) throws -> (client: SharedConnection, server: SharedConnection) {
    let ends = try Connected(family).release()
    return (
      SharedConnection(try TCPConnection(owning: ends.client)),
      SharedConnection(try TCPConnection(owning: ends.server))
    )
  }
}

private final class SharedListener: Sendable {
  let listener: TCPListener

  init(_ listener: consuming TCPListener) { self.listener = listener }
}

@Suite("Tasks with TCP sockets", .timeLimit(.minutes(8)))
struct TCPTaskTests {
  static let families = InternetAddress.Family.allCases

  /// Expects that a task which waits ends by being cancelled, whenever that is.
  private func expectCancelled(
    sourceLocation: SourceLocation = #_sourceLocation,
    _ body: @escaping @Sendable () async throws -> Void
  ) async throws {
    for delay in [0, 0, 0, 1, 5, 50] {
      let task = Task { try await body() }
      if delay > 0 { try await Task.sleep(for: .milliseconds(delay)) }
      task.cancel()
      let error = await #expect(throws: TraitError.self, sourceLocation: sourceLocation) {
        try await task.value
      }
      #expect(error?.code == .cancelled, sourceLocation: sourceLocation)
      #expect(error?.underlyingError == .canceled, sourceLocation: sourceLocation)
    }
  }

  @Test("connect, accept, send and receive", arguments: families)
  func roundTrip(family: InternetAddress.Family) async throws {
    let listener = SharedListener(try loopbackListener(family))
    let address = try listener.listener.localAddress()
    let echo = Task {
      let connection = try await listener.listener.accept()
      var bytes = [UInt8](repeating: 0, count: 1000)
      while true {
        let received = try await connection.receive(into: &bytes)
        if received.isEndOfStream { break }
        try await connection.sendAll(bytes.span.bytes.extracting(0..<received.length))
      }
      try connection.close()
    }
    // So that they wait.
    try await Task.sleep(for: .milliseconds(20))
    let connection = try await TCPConnection.connect(to: address)
    #expect(connection.peerAddress == address)
    #expect(fcntl(connection.unsafeFileDescriptor.rawValue, F_GETFL) & O_NONBLOCK == 0)
    for length in [1, 10, 1000] {
      try await Task.sleep(for: .milliseconds(5))
      let payload = streamBytes(length)
      #expect(try await connection.send(payload.span.bytes) == length)
      var back: [UInt8] = []
      while back.count < length {
        var bytes = [UInt8](repeating: 0, count: 1000)
        let received = try await connection.receive(into: &bytes)
        try #require(!received.isEndOfStream)
        back += bytes[..<received.length]
      }
      #expect(back == payload)
    }
    try connection.shutdown(.sending)
    var bytes = [UInt8](repeating: 0, count: 10)
    #expect(try await connection.receive(into: &bytes).isEndOfStream)
    try await outcome(echo)
  }

  @Test("throw when nobody takes the connection, and give up connecting when cancelled")
  func connecting() async throws {
    let nobody = try Refusing.tcp()
    let error = await #expect(throws: TraitError.self) {
      _ = try await TCPConnection.connect(to: nobody)
    }
    #expect(error?.code == .systemCall)
    #expect(error?.underlyingError == .connectionRefused)

    let full = try FullListener()
    let address = full.address
    try await expectCancelled { _ = try await TCPConnection.connect(to: address) }
  }

  @Test("are told that they were cancelled, and lose nothing by it")
  func cancellation() async throws {
    let listener = SharedListener(try loopbackListener())
    try await expectCancelled { _ = try await listener.listener.accept() }
    // Nor is there a connection at the other end.
    let address = try listener.listener.localAddress()
    try await expectCancelledBefore { _ = try await TCPConnection.connect(to: address) }
    #expect(throws: Errno.resourceTemporarilyUnavailable) {
      _ = try listener.listener.unsafeFileDescriptor.acceptSocket()
    }
    let client = try await TCPConnection.connect(to: try listener.listener.localAddress())
    let server = SharedConnection(try await listener.listener.accept())

    try await expectCancelled {
      var bytes = [UInt8](repeating: 0, count: 10)
      _ = try await server.connection.receive(into: &bytes)
    }
    try await client.sendAll(([1, 2, 3] as [UInt8]).span.bytes)
    try await expectCancelledBefore {
      var bytes = [UInt8](repeating: 0, count: 10)
      _ = try await server.connection.receive(into: &bytes)
    }
    var bytes = [UInt8](repeating: 0, count: 10)
    #expect(try await server.connection.receive(into: &bytes).length == 3)
    #expect(bytes.prefix(3) == [1, 2, 3])
    try await expectCancelledBefore {
      _ = try await server.connection.send(([9] as [UInt8]).span.bytes)
    }
    #expect(throws: TraitError.self) {
      _ = try client.receive(into: &bytes, flags: .doNotWait)
    }
  }

  /// The same of a task that was cancelled before it could wait, or find what is there.
  private func expectCancelledBefore(_ body: @escaping @Sendable () async throws -> Void) async throws {
    let task = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await body()
    }
    let error = await #expect(throws: TraitError.self) { try await task.value }
    #expect(error?.code == .cancelled)
  }

  @Test("do not wait where they are told not to")
  func unwaiting() async throws {
    let (client, server) = try SharedConnection.pair(.ipv4)
    var bytes = [UInt8](repeating: 0, count: 10)
    let nothing = await #expect(throws: TraitError.self) {
      _ = try await server.connection.receive(into: &bytes, flags: .doNotWait)
    }
    #expect(nothing?.code == .wouldBlock)
    // What is no part of the stream is not its end.
    let noError = await #expect(throws: TraitError.self) {
      _ = try await server.connection.receive(into: &bytes, flags: [.doNotWait, .errorQueue])
    }
    #expect(noError?.code == .wouldBlock)

    let payload = streamBytes(16 << 20)
    var sent = 0
    let full = await #expect(throws: TraitError.self) {
      try await client.connection.sendAll(payload.span.bytes, flags: .doNotWait, sent: &sent)
    }
    #expect(full?.code == .wouldBlock)
    #expect(sent > 0 && sent < payload.count)
  }

  @Test(
    "that send wait for a slow reader, and know what was sent when they are cancelled",
    arguments: families)
  func slowReader(family: InternetAddress.Family) async throws {
    let (client, server) = try SharedConnection.pair(family)
    try client.connection.setSendBufferSize(20_000)
    let payload = streamBytes(4 << 20)
    let sending = Task {
      try await client.connection.sendAll(payload.span.bytes)
      try client.connection.shutdown(.sending)
    }
    var received: [UInt8] = []
    var bytes = [UInt8](repeating: 0, count: 65536)
    while true {
      // Now and then nothing is taken for so long that the sender waits.
      if received.count % 16 == 0 { try await Task.sleep(for: .milliseconds(1)) }
      let read = try await server.connection.receive(into: &bytes)
      if read.isEndOfStream { break }
      received += bytes[..<read.length]
    }
    try await outcome(sending)
    #expect(received == payload)

    let (other, reader) = try SharedConnection.pair(family)
    try other.connection.setSendBufferSize(20_000)
    let stuck = Task { () -> (Int, TraitError.Code?) in
      var sent = 0
      do throws(TraitError) {
        try await other.connection.sendAll(payload.span.bytes, sent: &sent)
      } catch {
        return (sent, error.code)
      }
      return (sent, nil)
    }
    let end = ContinuousClock.now + hangLimit
    while !isFull(other.connection.unsafeFileDescriptor), ContinuousClock.now < end {
      try await Task.sleep(for: .milliseconds(1))
    }
    // So that it waits.
    try await Task.sleep(for: .milliseconds(50))
    stuck.cancel()
    let (sent, code) = await stuck.value
    #expect(code == .cancelled)
    try #require(sent > 0 && sent < payload.count)
    try other.connection.shutdown(.sending)
    var count = 0
    while true {
      let read = try await reader.connection.receive(into: &bytes)
      if read.isEndOfStream { break }
      #expect(bytes[..<read.length] == payload[count..<count + read.length])
      count += read.length
    }
    #expect(count == sent)
  }

  @Test("are told of the end of the stream, of a reset and of a shutdown while they wait")
  func ends() async throws {
    enum Ending: CaseIterable { case shutdown, close, reset, ownShutdown }
    for ending in Ending.allCases {
      let descriptors = try Connected().release()
      let server = SharedConnection(try TCPConnection(owning: descriptors.server))
      let waiting = Task { () -> Result<Bool, TraitError> in
        var bytes = [UInt8](repeating: 0, count: 10)
        do throws(TraitError) {
          return .success(try await server.connection.receive(into: &bytes).isEndOfStream)
        } catch {
          return .failure(error)
        }
      }
      let limit = Task {
        try await Task.sleep(for: hangLimit)
        waiting.cancel()
      }
      try await Task.sleep(for: .milliseconds(20))
      let client = try TCPConnection(owning: descriptors.client)
      switch ending {
      case .shutdown: try client.shutdown(.sending)
      case .close: try client.close()
      case .reset: try reset(client)
      case .ownShutdown: try server.connection.shutdown(.receiving)
      }
      let result = await waiting.value
      limit.cancel()
      if ending == .reset {
        guard case .failure(let error) = result else {
          Issue.record("there was no error")
          continue
        }
        #expect(error.code == .systemCall)
        #expect(error.underlyingError == .connectionReset)
      } else {
        #expect(result == .success(true), "\(ending)")
      }
    }
  }

  @Test("that wait for room are told when the connection is gone")
  func sendingEnds() async throws {
    let descriptors = try Connected().release()
    let client = SharedConnection(try TCPConnection(owning: descriptors.client))
    try client.connection.setSendBufferSize(20_000)
    let sending = Task {
      try await client.connection.sendAll(streamBytes(4 << 20).span.bytes)
    }
    try await Task.sleep(for: .milliseconds(50))
    try reset(try TCPConnection(owning: descriptors.server))
    let error = await #expect(throws: TraitError.self) { try await outcome(sending) }
    #expect(error?.code == .systemCall)
    #expect(error?.underlyingError == .connectionReset || error?.underlyingError == .brokenPipe)
  }

  @Test("wait without a thread, however many they are")
  func threads() async throws {
    allowDescriptors()
    // Many times more than processors, and with that than threads in the pool.
    let count = min(64 * Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))), 128)
    let listener = SharedListener(try loopbackListener())
    let address = try listener.listener.localAddress()
    // One task each that accepts, and then receives.
    let tasks = (0..<count).map { _ in
      Task {
        let connection = try await listener.listener.accept()
        var bytes: [UInt8] = [0]
        let received = try await connection.receive(into: &bytes)
        return received.isEndOfStream ? -1 : Int(bytes[0])
      }
    }
    // Here others get their turn, while all of them wait.
    try await Task.sleep(for: .milliseconds(50))
    var clients: [SharedConnection] = []
    for _ in 0..<count {
      clients.append(SharedConnection(try await TCPConnection.connect(to: address)))
    }
    try await Task.sleep(for: .milliseconds(20))
    for (number, client) in clients.enumerated() {
      _ = try await client.connection.send(([UInt8(number)] as [UInt8]).span.bytes)
    }
    var numbers: [Int] = []
    for task in tasks { numbers.append(try await outcome(task)) }
    // Each got a connection, and each connection one task.
    #expect(numbers.sorted() == Array(0..<count))
  }

  @Test("receive and send at once on one connection")
  func bothDirections() async throws {
    let (client, server) = try SharedConnection.pair()
    try client.connection.setSendBufferSize(20_000)
    try server.connection.setSendBufferSize(20_000)
    let payload = streamBytes(1 << 20)
    func exchange(_ end: SharedConnection) -> Task<[UInt8], any Error> {
      Task {
        async let sent: Void = {
          try await end.connection.sendAll(payload.span.bytes)
          try end.connection.shutdown(.sending)
        }()
        var received: [UInt8] = []
        var bytes = [UInt8](repeating: 0, count: 10_000)
        while true {
          let read = try await end.connection.receive(into: &bytes)
          if read.isEndOfStream { break }
          received += bytes[..<read.length]
        }
        try await sent
        return received
      }
    }
    let (one, other) = (exchange(client), exchange(server))
    #expect(try await outcome(one) == payload)
    #expect(try await outcome(other) == payload)
  }

  @Test("end the connection when they are done with it, however they waited")
  func ownership() async throws {
    let descriptors = try Connected().release()
    let server = SharedConnection(try TCPConnection(owning: descriptors.server))
    do {
      let client = SharedConnection(try TCPConnection(owning: descriptors.client))
      try client.connection.setSendBufferSize(20_000)
      // Both have waited, so that the connection has descriptors for both.
      for isSending in [false, true] {
        let task = Task {
          if isSending {
            try await client.connection.sendAll(streamBytes(4 << 20).span.bytes)
          } else {
            var bytes: [UInt8] = [0]
            _ = try await client.connection.receive(into: &bytes)
          }
        }
        try await Task.sleep(for: .milliseconds(30))
        task.cancel()
        let error = await #expect(throws: TraitError.self) { try await task.value }
        #expect(error?.code == .cancelled)
      }
    }
    // Whatever was sent, and then the end: no descriptor is left that keeps it open.
    let reading = Task {
      var bytes = [UInt8](repeating: 0, count: 65536)
      while !(try await server.connection.receive(into: &bytes).isEndOfStream) {}
    }
    try await outcome(reading)
  }

  @Test("are told when the listener takes no more")
  func listenerShutDown() async throws {
    let listener = SharedListener(try loopbackListener())
    let waiting = Task { _ = try await listener.listener.accept() }
    try await Task.sleep(for: .milliseconds(20))
    try #require(shutdown(listener.listener.unsafeFileDescriptor.rawValue, Int32(SHUT_RD)) == 0)
    let error = await #expect(throws: TraitError.self) { try await outcome(waiting) }
    #expect(error?.code == .systemCall)
    #expect(error?.underlyingError == .invalidArgument)
  }
}
