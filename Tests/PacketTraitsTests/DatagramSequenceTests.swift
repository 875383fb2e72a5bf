// SPDX-License-Identifier: MIT

import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits

/// What several tasks write down.
private final class Notes: Sendable {
  private let numbers = Mutex<[Int]>([])

  func add(_ number: Int) { numbers.withLock { $0.append(number) } }

  var all: [Int] { numbers.withLock { $0 } }
  var count: Int { numbers.withLock { $0.count } }
}

@Suite("Sequences of datagrams", .timeLimit(.minutes(8)))
struct DatagramSequenceTests {
  static let families = InternetAddress.Family.allCases

  private func send(_ payload: [UInt8], to destination: InternetAddress) throws {
    try UDPSocket(destination.family).send(payload.span.bytes, to: destination)
  }

  /// Leaves an error in the socket's queue of errors, which nobody reads: from
  /// then on poll(2) says "error" without an end.
  private func leaveError(_ socket: borrowing UDPSocket) throws {
    try turnOn(socket, Int32(IPPROTO_IP), IP_RECVERR)
    try socket.send(([1] as [UInt8]).span.bytes, to: try Refusing.udp())
    var polled = pollfd(fd: socket.unsafeFileDescriptor.rawValue, events: 0, revents: 0)
    try #require(poll(&polled, 1, 100_000) == 1)
  }

  /// Takes the error that the next call would fail with.
  private func takeError(_ socket: borrowing UDPSocket) throws {
    var error: Int32 = 0
    for _ in 0..<10_000 where error == 0 {
      var length = socklen_t(4)
      try #require(
        getsockopt(socket.unsafeFileDescriptor.rawValue, SOL_SOCKET, SO_ERROR, &error, &length) == 0)
      if error == 0 { usleep(1000) }
    }
    try #require(error == ECONNREFUSED)
  }

  @Test("give what comes, in order", arguments: families)
  func order(family: InternetAddress.Family) async throws {
    let inbox = try loopbackSocket(family)
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams(queueCapacity: 3)
    // Half of them before anybody asks.
    let payloads = (0..<50).map { [UInt8](repeating: UInt8($0), count: $0) }
    for payload in payloads[..<25] { try send(payload, to: destination) }
    let sending = Task {
      let outbox = try loopbackSocket(family)
      for payload in payloads[25...] {
        try await Task.sleep(for: .milliseconds(2))
        try await outbox.send(payload.span.bytes, to: destination)
      }
    }
    var received: [[UInt8]] = []
    for try await datagram in sequence {
      #expect(datagram.source?.family == family)
      #expect(datagram.datagramLength == datagram.payload.count)
      #expect(try datagram.traits.isEmpty)
      #expect(!datagram.isPayloadTruncated)
      #expect(!datagram.areTraitsTruncated)
      received.append(datagram.payload)
      if received.count == payloads.count { break }
    }
    #expect(received == payloads)
    try await sending.value
  }

  @Test("have room for any datagram, if not told otherwise")
  func room() async throws {
    let inbox = try loopbackSocket()
    let payload = [UInt8](repeating: 0x5a, count: 65_507)
    var whole = try inbox.datagrams().makeAsyncIterator()
    try send(payload, to: try inbox.localAddress())
    #expect(try await whole.next()?.payload == payload)

    var short = try inbox.datagrams(payloadCapacity: 100).makeAsyncIterator()
    try send(payload, to: try inbox.localAddress())
    let datagram = try #require(try await short.next())
    #expect(datagram.payload == Array(payload[..<100]))
    #expect(datagram.datagramLength == 65_507)
    #expect(datagram.isPayloadTruncated)
  }

  @Test("hand over control messages of other options, and say when there was no room", arguments: families)
  func control(family: InternetAddress.Family) async throws {
    let inbox = try loopbackSocket(family)
    let destination = try inbox.localAddress()
    var iterator = try inbox.datagrams(queueCapacity: 1).makeAsyncIterator()
    try send([1], to: destination)
    #expect(try await iterator.next()?.control == [])
    try turnOn(inbox, SOL_SOCKET, SO_TIMESTAMP)
    // The one that came before is received with it as well.
    for number in 2...3 as ClosedRange<UInt8> { try send([number], to: destination) }
    for _ in 2...3 {
      let datagram = try #require(try await iterator.next())
      let messages = try ControlMessage.all(in: datagram.control.span.bytes)
      #expect(messages.map(\.level) == [.socket])
      #expect(messages.map(\.dataRange.count) == [16])
      #expect(!datagram.isControlTruncated)
      #expect(try datagram.traits.isEmpty)
    }
    let message = ReceivedMessage(
      length: 0, messageLength: 0, controlLength: 0, source: nil, flags: .controlTruncated)
    let cut = Datagram(
      ReceivedDatagram(message, control: RawSpan()), payload: [], control: [], flags: message.flags)
    #expect(cut.isControlTruncated)
    #expect(cut.areTraitsTruncated)
  }

  @Test("end when the task is cancelled, while it waits or before")
  func cancellation() async throws {
    let inbox = try loopbackSocket()
    let sequence = try inbox.datagrams()
    for delay in [0, 0, 0, 1, 5, 50] {
      let task = Task {
        var iterator = sequence.makeAsyncIterator()
        let datagram = try await iterator.next()
        // And it stays ended.
        let another = try await iterator.next()
        return (datagram == nil, another == nil)
      }
      if delay > 0 { try await Task.sleep(for: .milliseconds(delay)) }
      task.cancel()
      let (isOver, staysOver) = try await task.value
      #expect(isOver)
      #expect(staysOver)
    }
    // Cancelled just before it waits, when there is nobody any more to wake it.
    let readiness = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor)
    let late = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await readiness.wait(since: readiness.generation)
    }
    try await late.value
    // What came meanwhile is there for who asks next.
    try send([1], to: try inbox.localAddress())
    let cancelled = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      var iterator = sequence.makeAsyncIterator()
      return try await iterator.next() == nil
    }
    #expect(try await cancelled.value)
    var iterator = sequence.makeAsyncIterator()
    #expect(try await iterator.next()?.payload == [1])
  }

  @Test("wait without a thread, however many they are")
  func threads() async throws {
    allowDescriptors()
    // Many times more than processors, and with that than threads in the pool.
    let count = 64 * Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))
    var destinations: [InternetAddress] = []
    var tasks: [Task<[UInt8]?, any Error>] = []
    let begun = Notes()
    for _ in 0..<min(count, 256) {
      let inbox = try loopbackSocket()
      destinations.append(try inbox.localAddress())
      let descriptor = inbox.release()
      defer { try? descriptor.close() }
      let sequence = try descriptor.datagrams(queueCapacity: 1, payloadCapacity: 16)
      tasks.append(
        Task {
          begun.add(0)
          var iterator = sequence.makeAsyncIterator()
          return try await iterator.next()?.payload
        })
    }
    try await until { begun.count == tasks.count }
    // Here others get their turn, while all of them wait.
    try await Task.sleep(for: .milliseconds(50))
    for (number, destination) in destinations.enumerated() {
      try send([UInt8(number % 256)], to: destination)
    }
    for (number, task) in tasks.enumerated() {
      #expect(try await task.value == [UInt8(number % 256)])
    }
  }

  @Test("keep no more in this program than the queue has room for")
  func bound() async throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    for number in 0..<20 as Range<UInt8> { try send([number], to: destination) }
    let sequence = try inbox.datagrams(queueCapacity: 4)
    var iterator = sequence.makeAsyncIterator()
    #expect(try await iterator.next()?.payload == [0])
    // Those that nobody has asked for are with the kernel still.
    var bytes: [UInt8] = [0]
    _ = try await inbox.receive(into: &bytes, flags: .doNotWait)
    #expect(bytes == [4])
    var received: [[UInt8]] = []
    for _ in 0..<4 { received.append(try await iterator.next()?.payload ?? []) }
    #expect(received == [[1], [2], [3], [5]])
    // Another iterator goes on with the same queue.
    var other = sequence.makeAsyncIterator()
    #expect(try await other.next()?.payload == [6])
  }

  @Test("lose nothing to who breaks out, with room for one")
  func breakingOut() async throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    for number in 0..<5 as Range<UInt8> { try send([number], to: destination) }
    for number in 0..<3 as Range<UInt8> {
      for try await datagram in try inbox.datagrams(queueCapacity: 1) {
        #expect(datagram.payload == [number])
        break
      }
    }
    var bytes: [UInt8] = [0]
    for number in 3..<5 as Range<UInt8> {
      _ = try await inbox.receive(into: &bytes, flags: .doNotWait)
      #expect(bytes == [number])
    }
  }

  @Test("give each datagram to one of many tasks, and lose none", arguments: [1, 2, 7])
  func sharing(queueCapacity: Int) async throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams(queueCapacity: queueCapacity)
    let total = 600
    let received = Notes()
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<8 {
        group.addTask {
          for try await datagram in sequence {
            received.add(Int(datagram.payload[0]) << 8 | Int(datagram.payload[1]))
          }
        }
      }
      // Some at once, and now and then with a pause, in which all wait.
      for number in 0..<total {
        try send([UInt8(number >> 8), UInt8(number & 255)], to: destination)
        if number % 20 == 19 {
          try await until { received.count == number + 1 }
        }
      }
      group.cancelAll()
      try await group.waitForAll()
    }
    #expect(received.all.sorted() == Array(0..<total))
  }

  @Test("tell who waits of what another task has received with its own")
  func leftOver() async throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    let outbox = try UDPSocket(.ipv4)
    let sequence = try inbox.datagrams()
    let both = [1, 2] as [UInt8]
    for round in 0..<200 {
      let received = Notes()
      let other = Task {
        received.add(0)
        var iterator = sequence.makeAsyncIterator()
        if let datagram = try await iterator.next() { received.add(Int(datagram.payload[0])) }
      }
      try await until { received.count == 1 }
      try await Task.sleep(for: .milliseconds(1))
      // Two come, and are taken before the other task can be told of them: then
      // its wait is for a socket that has nothing any more.
      for payload in [both[...0], both[1...]] {
        let bytes = Array(payload)
        try await outbox.send(bytes.span.bytes, to: destination)
      }
      var iterator = sequence.makeAsyncIterator()
      let own = try #require(try await iterator.next()).payload[0]
      let end = ContinuousClock.now + hangLimit
      while received.count < 2, ContinuousClock.now < end { try await Task.sleep(for: .milliseconds(1)) }
      other.cancel()
      try await other.value
      try #require(received.count == 2, "round \(round): it was not told")
      #expect(Set(received.all.dropFirst() + [Int(own)]) == [1, 2])
    }
  }

  @Test(
    "tell who is about to wait of what another task receives before he does", arguments: [false, true])
  func beforeWait(tellsChanges: Bool) async throws {
    let inbox = try loopbackSocket()
    if tellsChanges {
      try leaveError(inbox)
      try takeError(inbox)
    }
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams()
    let looks = Notes()
    let waiting = Task {
      var iterator = sequence.makeAsyncIterator()
      return try await iterator.next(isolation: nil) {
        looks.add(0)
        guard looks.count == 1 else { return }
        // He has found nothing and does not wait yet. Two come, and another
        // takes both out of the socket.
        do {
          for number in 1...2 as ClosedRange<UInt8> { try send([number], to: destination) }
          var other = sequence.makeAsyncIterator()
          #expect(try await other.next()?.payload == [1])
        } catch {
          Issue.record(error)
        }
      }?.payload
    }
    #expect(try await outcome(waiting) == [2])
  }

  @Test("end when the socket is shut down, after what is there", arguments: [false, true])
  func shutDown(tellsChanges: Bool) async throws {
    let inbox = try loopbackSocket()
    if tellsChanges {
      try leaveError(inbox)
      try takeError(inbox)
    }
    let descriptor = inbox.unsafeFileDescriptor
    let destination = try inbox.localAddress()
    let sequence = try inbox.datagrams()
    let looks = Notes()
    // Those that look, and those that wait already.
    let waiting = (0..<3).map { _ in
      Task {
        var iterator = sequence.makeAsyncIterator()
        let datagram = try await iterator.next(isolation: nil) { looks.add(0) }
        return datagram == nil && !Task.isCancelled
      }
    }
    try await until { looks.count >= 3 }
    // On a socket that is not connected it does what it is to do, and says so.
    try #require(shutdown(descriptor.rawValue, Int32(SHUT_RD)) == 0 || errno == ENOTCONN)
    for task in waiting { #expect(try await outcome(task)) }

    // Linux takes datagrams also after that; who iterates anew gets them.
    for number in 1...2 as ClosedRange<UInt8> { try send([number], to: destination) }
    let late = Task {
      var payloads: [[UInt8]] = []
      for try await datagram in sequence { payloads.append(datagram.payload) }
      return Task.isCancelled ? nil : payloads
    }
    #expect(try await outcome(late) == [[1], [2]])

    // One that comes with the end, just after the look.
    let last = Task {
      var iterator = sequence.makeAsyncIterator()
      let datagram = try await iterator.next(isolation: nil) {
        do { try send([3], to: destination) } catch { Issue.record(error) }
      }
      return datagram?.payload
    }
    #expect(try await outcome(last) == [3])

    var bytes = [UInt8](repeating: 0, count: 10)
    let nothing = try await inbox.receive(into: &bytes)
    #expect(nothing.length == 0)
    #expect(nothing.source == nil)
    let error = #expect(throws: TraitError.self) { try inbox.receive(into: &bytes, flags: .doNotWait) }
    #expect(error?.code == .wouldBlock)
    var batch = ReceiveBatch(capacity: 4, payloadCapacity: 10)
    #expect(try await inbox.receive(into: &batch) == 1)
    #expect(batch.datagram(at: 0).length == 0)
    #expect(batch.message(at: 0).source == nil)
  }

  @Test("end all waits that began after a look before the change", arguments: [false, true])
  func generations(tellsChanges: Bool) async throws {
    let inbox = try loopbackSocket()
    let readiness = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor)
    if tellsChanges { try readiness.tellChanges() }
    func hasEnded(since generation: UInt64) async throws -> Bool {
      try await outcome(
        Task {
          try await readiness.wait(since: generation)
          return !Task.isCancelled
        })
    }
    let first = readiness.generation
    readiness.resumeAll()
    for _ in 0..<3 { #expect(try await hasEnded(since: first)) }

    let second = readiness.generation
    try send([1], to: try inbox.localAddress())
    if tellsChanges { try await until { readiness.generation != second } }
    for _ in 0..<3 { #expect(try await hasEnded(since: second)) }
  }

  @Test("cost nothing for datagrams that no task waits for")
  func unwanted() async throws {
    let inbox = try loopbackSocket()
    let poller = try SocketPoller()
    let readiness = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor, poller: poller)
    // What a datagram between a look in vain and the poll behind it leads to
    try readiness.tellChanges()
    for number in 0..<50 {
      try send([UInt8(number)], to: try inbox.localAddress())
      try await Task.sleep(for: .milliseconds(2))
    }
    // Two that nobody waited for, and one more when the poller stopped telling of changes
    #expect((1...3).contains(poller.wakes.load(ordering: .relaxed)))

    // A wait works as before, and so does the next one.
    for _ in 0..<2 {
      var bytes = [UInt8](repeating: 0, count: 10)
      for _ in 0..<50 where (try? receiveNow(inbox, &bytes)) == nil { break }
      let generation = readiness.generation
      let waiting = Task {
        try await readiness.wait(since: generation)
        return !Task.isCancelled
      }
      try await Task.sleep(for: .milliseconds(20))
      try send([1], to: try inbox.localAddress())
      #expect(try await outcome(waiting))
    }
  }

  /// In a function of its own, as an async one would call the method that suspends.
  private func receiveNow(_ socket: borrowing UDPSocket, _ bytes: inout [UInt8]) throws -> Int {
    try socket.receive(into: &bytes, flags: .doNotWait).length
  }

  @Test("fail when nobody tells them any more")
  func endOfPoller() async throws {
    let inbox = try loopbackSocket()
    let poller = try SocketPoller()
    let readiness = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor, poller: poller)
    try readiness.tellChanges()
    let waiting = Task {
      while !Task.isCancelled { try await readiness.wait(since: readiness.generation) }
    }
    // Somebody closes a descriptor that is not his, and gets its number. The
    // thread sees it when it waits again.
    let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
    try #require(null >= 0)
    try #require(dup2(null, poller.epoll) == poller.epoll)
    defer {
      close(null)
      close(poller.epoll)
    }
    try send([1], to: try inbox.localAddress())
    await #expect(throws: Errno.invalidArgument) { try await outcome(waiting) }
    // Those that come later, too.
    let late = Task { try await readiness.wait(since: readiness.generation) }
    await #expect(throws: Errno.invalidArgument) { try await outcome(late) }
    #expect(throws: Errno.invalidArgument) {
      _ = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor, poller: poller)
    }
  }

  @Test("throw an error of the socket, and go on for who iterates anew", arguments: families)
  func errors(family: InternetAddress.Family) async throws {
    let outbox = try loopbackSocket(family)
    let back = try Refusing.refusingSocket(family)
    try outbox.connect(to: try back.localAddress())
    let sequence = try outbox.datagrams()
    let waiting = Task {
      var iterator = sequence.makeAsyncIterator()
      do {
        _ = try await iterator.next()
        Issue.record("there was a datagram")
      } catch let error as TraitError {
        #expect(error.code == .systemCall)
        #expect(error.underlyingError == .connectionRefused)
      }
      return try await iterator.next() == nil
    }
    try await Task.sleep(for: .milliseconds(20))
    // The answer is that nobody is there (ICMP).
    try await outbox.send(([1] as [UInt8]).span.bytes)
    #expect(try await waiting.value, "it went on after the error")

    try await back.send(([2] as [UInt8]).span.bytes, to: try outbox.localAddress())
    for try await datagram in sequence {
      #expect(datagram.payload == [2])
      break
    }
  }

  @Test("wait for a datagram, not for what nobody reads in the queue of errors")
  func errorQueue() async throws {
    let outbox = try loopbackSocket()
    try leaveError(outbox)
    let sequence = try outbox.datagrams()
    var iterator = sequence.makeAsyncIterator()
    let error = await #expect(throws: TraitError.self) { try await iterator.next() }
    #expect(error?.underlyingError == .connectionRefused)
    var polled = pollfd(fd: outbox.unsafeFileDescriptor.rawValue, events: 0, revents: 0)
    try #require(poll(&polled, 1, 0) == 1)
    #expect(throws: Errno.wouldBlock) {
      var batch = ReceiveBatch(capacity: 1, payloadCapacity: 1)
      try outbox.unsafeFileDescriptor.receiveMessages(into: &batch, flags: .doNotWait)
    }

    let readiness = try SocketReadiness(duplicating: outbox.unsafeFileDescriptor)
    let waits = Notes()
    let waiting = Task {
      while !Task.isCancelled {
        try await readiness.wait(since: readiness.generation)
        waits.add(0)
        #expect(try readiness.foundNothing())
      }
    }
    try await until { waits.count > 0 }
    try await Task.sleep(for: .milliseconds(100))
    let before = waits.count
    #expect(before < 10, "it was woken for nothing, again and again")

    // A datagram is what it waits for.
    let datagrams = Task {
      var iterator = sequence.makeAsyncIterator()
      return try await iterator.next()?.payload
    }
    try await Task.sleep(for: .milliseconds(50))
    try send([7], to: try outbox.localAddress())
    #expect(try await datagrams.value == [7])
    try await until { waits.count > before }
    waiting.cancel()
    try await waiting.value
  }

  @Test("are of sockets that have datagrams, and of no others")
  func kinds() throws {
    func closing(_ body: (Int32, Int32) throws -> Void, _ descriptors: [Int32]) rethrows {
      defer { for descriptor in descriptors { close(descriptor) } }
      try body(descriptors[0], descriptors[1])
    }
    func pair(_ type: __socket_type) throws -> [Int32] {
      var pair: [Int32] = [-1, -1]
      try #require(socketpair(AF_UNIX, Int32(type.rawValue), 0, &pair) == 0)
      return pair
    }
    for type in [SOCK_DGRAM, SOCK_STREAM] {
      try closing(
        { first, _ in
          #expect(throws: Errno.notSupportedOnSocket) { try FileDescriptor(rawValue: first).datagrams() }
        }, pair(type))
    }
    let stream = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(stream) }
    #expect(throws: Errno.notSupportedOnSocket) { try FileDescriptor(rawValue: stream).datagrams() }
    var ends: [Int32] = [-1, -1]
    try #require(pipe(&ends) == 0)
    closing(
      { first, _ in
        #expect(throws: Errno.notSocket) { try FileDescriptor(rawValue: first).datagrams() }
      }, ends)
    #expect(throws: Errno.badFileDescriptor) { try FileDescriptor(rawValue: -1).datagrams() }
  }

  @Test(
    "wait for a datagram, not for what is in the ring of a packet socket",
    .enabled(if: geteuid() == 0, "needs CAP_NET_RAW"))
  func ring() async throws {
    // SOL_PACKET, PACKET_RX_RING, struct tpacket_req. Frames of a protocol that is for experiments
    // (ETH_P_802_EX1): those of other tests would be told of as well.
    let experiment = UInt16(0x88b5).bigEndian
    let ring = socket(AF_PACKET, Int32(SOCK_DGRAM.rawValue), Int32(experiment))
    try #require(ring >= 0, "errno \(errno)")
    defer { close(ring) }
    let request: [UInt32] = [4096, 1, 2048, 2]
    try #require(setsockopt(ring, 263, 5, request, 16) == 0, "errno \(errno)")
    // struct sockaddr_ll: family, protocol, interface, and no hardware address
    let loopback = [UInt8](
      [UInt16(AF_PACKET), experiment].flatMap { number in withUnsafeBytes(of: number) { Array($0) } }
        + withUnsafeBytes(of: if_nametoindex("lo")) { Array($0) } + [UInt8](repeating: 0, count: 12))
    let sent = loopback.withUnsafeBytes {
      sendto(ring, "x", 1, 0, $0.baseAddress?.assumingMemoryBound(to: sockaddr.self), 20)
    }
    try #require(sent == 1, "errno \(errno)")
    var polled = pollfd(fd: ring, events: Int16(POLLIN), revents: 0)
    try #require(poll(&polled, 1, 100_000) == 1)

    let readiness = try SocketReadiness(duplicating: FileDescriptor(rawValue: ring))
    let waits = Notes()
    let waiting = Task {
      while !Task.isCancelled {
        let generation = readiness.generation
        #expect(try readiness.foundNothing())
        try await readiness.wait(since: generation)
        waits.add(0)
      }
    }
    try await until { waits.count > 0 }
    try await Task.sleep(for: .milliseconds(100))
    #expect(waits.count < 10, "it was woken for nothing, again and again")
    waiting.cancel()
    try await waiting.value
  }

  @Test("have a descriptor of their own, and close it")
  func ownership() async throws {
    func identity(_ descriptor: FileDescriptor) -> [UInt64]? {
      var status = stat()
      guard fstat(descriptor.rawValue, &status) == 0 else { return nil }
      return [UInt64(status.st_dev), UInt64(status.st_ino)]
    }
    let descriptor: FileDescriptor
    let original: [UInt64]?
    let destination: InternetAddress
    do {
      let sequence: DatagramSequence
      do {
        let inbox = try UDPSocket(.ipv4)
        // An address that no other test has.
        try inbox.bind(to: try #require(InternetAddress("127.0.0.17", port: 0)))
        destination = try inbox.localAddress()
        let descriptor = inbox.release()
        sequence = try descriptor.datagrams()
        try descriptor.close()
      }
      // The descriptor that it was made of is closed.
      try send([3], to: destination)
      var iterator = sequence.makeAsyncIterator()
      #expect(try await iterator.next()?.payload == [3])
    }
    // Nobody has the port any more, once no program is being started that has a copy of the
    // descriptor until it runs.
    let again = try UDPSocket(.ipv4)
    var isBound = false
    try await until {
      do throws(Errno) {
        if !isBound { try again.bind(to: destination) }
        isBound = true
      } catch {
        guard error == .addressInUse else { throw error }
      }
      return isBound
    }

    do {
      let readiness = try SocketReadiness(duplicating: again.unsafeFileDescriptor)
      descriptor = readiness.descriptor
      #expect(descriptor != again.unsafeFileDescriptor)
      original = identity(descriptor)
      #expect(original != nil)
      #expect(identity(descriptor) == identity(again.unsafeFileDescriptor))
      #expect(fcntl(descriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
      // Until here: it is otherwise gone after its last use.
      withExtendedLifetime(readiness) {}
    }
    #expect(identity(descriptor) != original, "it is still open")
    #expect(throws: Errno.badFileDescriptor) {
      _ = try FileDescriptor(rawValue: -1).datagrams()
    }
  }

  @Test("are forgotten by the thread that waits, when they go")
  func forgotten() async throws {
    let poller = try SocketPoller()
    // What epoll(7) watches, each a line (proc(5)).
    func watched() throws -> Int {
      let text = try String(contentsOfFile: "/proc/self/fdinfo/\(poller.epoll)", encoding: .utf8)
      return text.split(separator: "\n").filter { $0.hasPrefix("tfd:") }.count
    }
    let inbox = try loopbackSocket()
    #expect(try watched() == 0)
    do {
      let readiness = try SocketReadiness(duplicating: inbox.unsafeFileDescriptor, poller: poller)
      let wait = Task { try await readiness.wait(since: readiness.generation) }
      try await until { try watched() != 0 }
      #expect(try watched() == 1)
      wait.cancel()
      try await wait.value
      withExtendedLifetime(readiness) {}
    }
    // Though the socket itself is still open.
    #expect(try watched() == 0)
    withExtendedLifetime(inbox) {}
  }
}
