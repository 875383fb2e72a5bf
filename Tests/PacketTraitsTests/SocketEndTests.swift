// SPDX-License-Identifier: MIT

import Glibc
import SystemPackage
import Testing

@testable import PacketTraits

/// The file behind a descriptor; nil if it is not open.
private func identity(_ descriptor: FileDescriptor) -> [UInt64]? {
  var status = stat()
  guard fstat(descriptor.rawValue, &status) == 0 else { return nil }
  return [UInt64(status.st_dev), UInt64(status.st_ino)]
}

@Suite("The end of a socket", .timeLimit(.minutes(8)))
struct SocketEndTests {
  enum Ending: CaseIterable {
    case close, scope
  }

  private func end(_ socket: consuming UDPSocket, by ending: Ending) throws {
    switch ending {
    case .close: try socket.close()
    case .scope: break
    }
  }

  @Test("ends its sequences, and frees the port", arguments: Ending.allCases)
  func sequences(ending: Ending) async throws {
    let inbox = try UDPSocket(.ipv4)
    // An address that no other test has.
    try inbox.bind(to: try #require(InternetAddress("127.0.0.18", port: 0)))
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams()
    let other = try inbox.datagrams()
    let looks = Counter()
    let waiting = (0..<4).map { number in
      Task {
        var iterator = (number == 0 ? other : sequence).makeAsyncIterator()
        let datagram = try await iterator.next(isolation: nil) { looks.count() }
        return datagram == nil && !Task.isCancelled
      }
    }
    try await until { looks.value >= 4 }
    try end(inbox, by: ending)
    for task in waiting { #expect(try await outcome(task), "it goes on") }

    let again = try UDPSocket(.ipv4)
    var isBound = false
    // A program that is being started has a copy of the descriptor until it runs.
    try await until {
      do throws(Errno) {
        if !isBound { try again.bind(to: destination) }
        isBound = true
      } catch {
        guard error == .addressInUse else { throw error }
      }
      return isBound
    }
    // What comes there now is not the sequence's.
    try await UDPSocket(.ipv4).send(([1] as [UInt8]).span.bytes, to: destination)
    let late = Task {
      var iterator = sequence.makeAsyncIterator()
      return try await iterator.next() == nil && !Task.isCancelled
    }
    #expect(try await outcome(late))
    var bytes: [UInt8] = [0]
    #expect(try await again.receive(into: &bytes).length == 1)
  }

  @Test("leaves what a sequence has received, and no more")
  func queue() async throws {
    let sequence: DatagramSequence
    do {
      let inbox = try loopbackSocket()
      let destination = try inbox.localAddress()
      let outbox = try UDPSocket(.ipv4)
      for number in 0..<6 as Range<UInt8> { try await outbox.send([number].span.bytes, to: destination) }
      sequence = try inbox.datagrams(queueCapacity: 4)
      var iterator = sequence.makeAsyncIterator()
      #expect(try await iterator.next()?.payload == [0])
    }
    let rest = Task {
      var payloads: [[UInt8]] = []
      for try await datagram in sequence { payloads.append(datagram.payload) }
      return payloads
    }
    #expect(try await outcome(rest) == [[1], [2], [3]])
  }

  @Test("does not come when the descriptor is released: the sequences go on")
  func released() async throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams()
    let descriptor = inbox.release()
    defer { try? descriptor.close() }
    let waiting = Task {
      var iterator = sequence.makeAsyncIterator()
      return try await iterator.next()?.payload
    }
    try await Task.sleep(for: .milliseconds(20))
    try await UDPSocket(.ipv4).send(([1] as [UInt8]).span.bytes, to: destination)
    #expect(try await outcome(waiting) == [1])
  }

  @Test("closes the descriptors that tasks have waited with, whoever holds them still")
  func slots() async throws {
    let socket = try loopbackSocket()
    let descriptor: FileDescriptor
    let original: [UInt64]?
    // As the poller's thread holds it for a moment.
    let held: SocketReadiness
    do {
      let slot = ReadinessSlot(for: .receiving)
      held = try slot.readiness(of: socket.unsafeFileDescriptor)
      descriptor = held.descriptor
      original = identity(descriptor)
      #expect(original != nil)
      #expect(identity(descriptor) == identity(socket.unsafeFileDescriptor))
    }
    #expect(identity(descriptor) != original, "it is still open")
    #expect(try !held.foundNothing())
    try held.tellChanges()
    // Nobody would ever end this wait.
    try await outcome(Task { try await held.wait(since: held.generation) })
    held.close()
  }

  @Test("does not come while a descriptor is borrowed")
  func borrowing() throws {
    // Of a temporary value.
    try UDPSocket(.ipv4).withFileDescriptor { descriptor throws in
      #expect(try descriptor.option(SOL_SOCKET, SO_TYPE) == Int32(SOCK_DGRAM.rawValue))
    }
    try TCPListener(.ipv4).withFileDescriptor { descriptor throws in
      #expect(try descriptor.option(SOL_SOCKET, SO_TYPE) == Int32(SOCK_STREAM.rawValue))
    }
    let listener = try loopbackListener()
    let number = try TCPConnection.connect(to: try listener.localAddress()).withFileDescriptor {
      descriptor throws(Errno) in
      try descriptor.option(SOL_SOCKET, SO_PROTOCOL)
    }
    #expect(number == Int32(IPPROTO_TCP))
    do throws(Errno) {
      try UDPSocket(.ipv4).withFileDescriptor { _ throws(Errno) in throw .noMemory }
      Issue.record("there was no error")
    } catch {
      #expect(error == .noMemory)
    }
  }
}
