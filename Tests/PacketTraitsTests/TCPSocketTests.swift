// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing

@testable import PacketTraits

/// Both ends of a connection over the loopback interface, which do not wait for ever.
struct Connected: ~Copyable {
  let client: TCPConnection
  let server: TCPConnection

  init(_ family: InternetAddress.Family = .ipv4) throws {
    let listener = try loopbackListener(family)
    let client = try TCPConnection.connect(
      to: try listener.localAddress(), timeout: hangLimit)
    let server = try listener.accept(timeout: hangLimit)
    for descriptor in [client.unsafeFileDescriptor, server.unsafeFileDescriptor] {
      try descriptor.setTimeout(SO_RCVTIMEO, hangLimit)
      try descriptor.setTimeout(SO_SNDTIMEO, hangLimit)
    }
    self.client = client
    self.server = server
  }

  /// Gives up both, for ends that have owners of their own.
  consuming func release() -> (client: FileDescriptor, server: FileDescriptor) {
    (client.release(), server.release())
  }
}

func loopbackListener(_ family: InternetAddress.Family = .ipv4) throws -> TCPListener {
  let listener = try TCPListener(family)
  let host = family == .ipv4 ? "127.0.0.1" : "::1"
  try listener.listen(at: try #require(InternetAddress(host, port: 0)))
  return listener
}

/// What a descriptor stands for; nil if it is not open.
private func identity(_ descriptor: FileDescriptor) -> [UInt64]? {
  var status = stat()
  guard fstat(descriptor.rawValue, &status) == 0 else { return nil }
  return [UInt64(status.st_dev), UInt64(status.st_ino)]
}

/// Bytes that tell where in a stream they are.
func streamBytes(_ count: Int) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
}

/// Closes with a reset.
func reset(_ connection: consuming TCPConnection) throws {
  try connection.unsafeFileDescriptor.setOption(
    SOL_SOCKET, SO_LINGER, bytesOf: linger(l_onoff: 1, l_linger: 0))
  try connection.close()
}

private func someTraits() throws -> Traits {
  var traits = Traits()
  try traits.set(0xdead_beef, for: TraitKey<UInt32>(id(3)))
  try traits.set(42, for: TraitKey<UInt64>(id(9)))
  return traits
}

@Suite("TCP sockets")
struct TCPSocketTests {
  static let families = InternetAddress.Family.allCases
  static let isSupported = (try? Traits.isSupportedByKernel()) ?? false

  private func receive(
    _ connection: borrowing TCPConnection, room: Int = 100, flags: MessageFlags = []
  ) throws -> ([UInt8], ReceivedBytes) {
    var bytes = [UInt8](repeating: 0xee, count: room)
    let received = try connection.receive(into: &bytes, flags: flags)
    #expect(bytes.count == room)
    #expect(bytes[received.length...].allSatisfy { $0 == 0xee })
    return (Array(bytes[..<received.length]), received)
  }

  /// Reads so many bytes, however they come.
  private func receiveAll(_ connection: borrowing TCPConnection, _ count: Int) throws -> [UInt8] {
    var all: [UInt8] = []
    while all.count < count {
      let (bytes, received) = try receive(connection, room: min(count - all.count, 65536))
      try #require(!received.isEndOfStream, "the stream ended after \(all.count) bytes")
      all += bytes
    }
    return all
  }

  private func expectCode(
    _ code: TraitError.Code, _ underlying: Errno? = nil,
    sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
  ) {
    let error = #expect(throws: TraitError.self, sourceLocation: sourceLocation) { try body() }
    #expect(error?.code == code, sourceLocation: sourceLocation)
    if let underlying {
      #expect(error?.underlyingError == underlying, sourceLocation: sourceLocation)
    }
  }

  @Test("receive what the other end sends, to the end of the stream", arguments: families)
  func roundTrip(family: InternetAddress.Family) throws {
    let listener = try loopbackListener(family)
    let client = try TCPConnection.connect(to: try listener.localAddress())
    let server = try listener.accept(timeout: hangLimit)
    #expect(client.peerAddress == (try listener.localAddress()))
    #expect(server.peerAddress == (try client.localAddress()))
    #expect(try server.localAddress() == client.peerAddress)
    try server.setReceiveTimeout(hangLimit)
    try client.setReceiveTimeout(hangLimit)

    #expect(try client.send(([1, 2, 3] as [UInt8]).span.bytes) == 3)
    let (bytes, received) = try receive(server)
    #expect(bytes == [1, 2, 3])
    #expect(try received.traits.isEmpty)
    #expect(!received.areTraitsTruncated)
    #expect(!received.isEndOfStream)
    // More than there is room for stays.
    try server.sendAll(([4, 5, 6, 7] as [UInt8]).span.bytes)
    #expect(try receive(client, room: 3).0 == [4, 5, 6])
    #expect(try receive(client, room: 3).0 == [7])
    // Nothing sent is nothing received, and nothing read into says nothing.
    #expect(try client.send(RawSpan()) == 0)
    expectCode(.wouldBlock) { _ = try receive(server, flags: .doNotWait) }
    try client.sendAll(([8] as [UInt8]).span.bytes)
    #expect(try !receive(server, room: 0).1.isEndOfStream)

    try client.shutdown(.sending)
    #expect(try receive(server).0 == [8])
    for _ in 0..<2 {
      let (nothing, end) = try receive(server)
      #expect(nothing.isEmpty)
      #expect(end.isEndOfStream)
    }
    // The other direction goes on.
    try server.sendAll(([9] as [UInt8]).span.bytes)
    #expect(try receive(client).0 == [9])
  }

  @Test("receive into a span as into an array")
  func span() throws {
    let ends = try Connected()
    try ends.client.sendAll(([1, 2, 3, 4] as [UInt8]).span.bytes)
    var bytes: InlineArray<3, UInt8> = [0, 0, 0]
    let received: ReceivedBytes
    do {
      var elements = bytes.mutableSpan
      var room = elements.mutableBytes
      received = try ends.server.receive(into: &room)
    }
    #expect(received.length == 3)
    #expect([bytes[0], bytes[1], bytes[2]] == [1, 2, 3])
  }

  @Test("leave bytes in the queue when peeking, and never throw them away")
  func peek() throws {
    let ends = try Connected()
    try ends.client.sendAll(([1, 2, 3] as [UInt8]).span.bytes)
    #expect(try receive(ends.server, flags: .peek).0 == [1, 2, 3])
    // To ask for the length of the whole would, as tcp(7) says.
    #expect(try receive(ends.server, flags: [.peek, .truncated]).0 == [1, 2, 3])
    #expect(try receive(ends.server, flags: .truncated).0 == [1, 2, 3])
    expectCode(.wouldBlock, .wouldBlock) { _ = try receive(ends.server, flags: .doNotWait) }
  }

  @Test("of IPv6 take connections of IPv4, unless told not to")
  func mapped() throws {
    let listener = try TCPListener(.ipv6)
    try listener.listen(at: .any(.ipv6, port: 0))
    let port = try listener.localAddress().port
    let client = try TCPConnection.connect(to: try #require(InternetAddress("127.0.0.1", port: port)))
    let server = try listener.accept(timeout: hangLimit)
    #expect(server.peerAddress.host == "::ffff:127.0.0.1")
    #expect(server.peerAddress.port == (try client.localAddress().port))

    let only = try TCPListener(.ipv6)
    try only.setIPv6Only(true)
    try only.listen(at: .any(.ipv6, port: 0))
    let refused = try #require(InternetAddress("127.0.0.1", port: try only.localAddress().port))
    expectCode(.systemCall, .connectionRefused) { _ = try TCPConnection.connect(to: refused) }
    let accepted = try #require(InternetAddress("::1", port: refused.port))
    _ = try TCPConnection.connect(to: accepted)
  }

  @Test("connect from the address that is asked for, and say why there is no connection")
  func connecting() throws {
    let listener = try loopbackListener()
    let source = try #require(InternetAddress("127.0.0.3", port: 0))
    let destination = try listener.localAddress()
    let client = try TCPConnection.connect(to: destination, from: source)
    #expect(try client.localAddress().host == "127.0.0.3")
    // Its port is not kept from connections to others.
    #expect(try client.unsafeFileDescriptor.option(Int32(IPPROTO_IP), IP_BIND_ADDRESS_NO_PORT) == 1)
    #expect(try listener.accept(timeout: hangLimit).peerAddress == (try client.localAddress()))
    expectCode(.systemCall, .addressInUse) {
      _ = try TCPConnection.connect(to: destination, from: try client.localAddress())
    }
    // One address of each version.
    expectCode(.systemCall) {
      _ = try TCPConnection.connect(to: destination, from: InternetAddress("::1", port: 0))
    }
    let nobody = try Refusing.tcp()
    let error = #expect(throws: TraitError.self) { _ = try TCPConnection.connect(to: nobody) }
    #expect(error?.underlyingError == .connectionRefused)
    #expect(error?.message == "there is no connection to \(nobody)")
  }

  @Test("give up connecting in time, whatever signals come")
  func connectTimeout() throws {
    let full = try FullListener()
    let start = ContinuousClock.now
    expectCode(.wouldBlock) {
      _ = try TCPConnection.connect(to: full.address, timeout: .milliseconds(100))
    }
    #expect(ContinuousClock.now - start >= .milliseconds(90))
    try expectTimeout { time in
      expectCode(.wouldBlock) { _ = try TCPConnection.connect(to: full.address, timeout: time) }
    }
  }

  @Test("stop waiting for a connection when the time is over, whatever signals come")
  func acceptTimeout() throws {
    let listener = try loopbackListener()
    expectCode(.wouldBlock, .wouldBlock) { _ = try listener.accept(timeout: .zero) }
    expectCode(.wouldBlock) { _ = try listener.accept(timeout: .seconds(-1)) }
    try expectTimeout { time in
      expectCode(.wouldBlock) { _ = try listener.accept(timeout: time) }
    }
  }

  @Test("take a connection that comes after signals")
  func acceptInterrupted() throws {
    let listener = try loopbackListener()
    let destination = try listener.localAddress()
    try whileInterrupted { _ in
      _ = try repeating {
        usleep(100_000)
        _ = try TCPConnection.connect(to: destination)
      } during: { _ in
        _ = try listener.accept()
      }
    }
  }

  @Test("of others take connections, and tell of a signal who wants to know")
  func borrowedListener() throws {
    let listener = try loopbackListener()
    let descriptor = listener.unsafeFileDescriptor
    let client = try TCPConnection.connect(to: try listener.localAddress())
    // The client may know of the connection before the listener does.
    try #require(SocketWait.poll(descriptor, for: POLLIN, until: .now + hangLimit) != nil)
    let accepted = try descriptor.acceptSocket()
    defer { try? accepted.descriptor.close() }
    #expect(accepted.peer == (try client.localAddress()))
    #expect(fcntl(accepted.descriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
    #expect(throws: Errno.wouldBlock) { try descriptor.acceptSocket() }

    try descriptor.setNonblocking(false)
    try whileInterrupted { _ in
      _ = #expect(throws: Errno.interrupted) {
        try descriptor.acceptSocket(retryOnInterrupt: false)
      }
    }
    try expectTimeout { time in
      try descriptor.setTimeout(SO_RCVTIMEO, time)
      _ = #expect(throws: Errno.wouldBlock) { try descriptor.acceptSocket() }
    }
    let plain = try UDPSocket(.ipv4)
    #expect(throws: Errno.notSupportedOnSocket) { try plain.unsafeFileDescriptor.acceptSocket() }
  }

  @Test("stop waiting for bytes when the time is over, whatever signals come")
  func receiveTimeout() throws {
    let ends = try Connected()
    try expectTimeout { time in
      try ends.server.setReceiveTimeout(time)
      expectCode(.wouldBlock, .wouldBlock) { _ = try receive(ends.server) }
    }
    #expect(throws: Errno.invalidArgument) { try ends.server.setReceiveTimeout(.seconds(-1)) }
    #expect(throws: Errno.invalidArgument) { try ends.server.setSendTimeout(.seconds(-1)) }
  }

  @Test("tell how many bytes the kernel took, and send the rest after them", arguments: families)
  func partial(family: InternetAddress.Family) throws {
    let ends = try Connected(family)
    try ends.client.setSendBufferSize(20_000)
    let payload = streamBytes(4 << 20)
    var sent = try ends.client.send(payload.span.bytes, flags: .doNotWait)
    try #require(sent > 0 && sent < payload.count, "\(sent) bytes were taken, so that nothing is proven")
    // Until there is no room for a single one. What the peer's kernel acknowledges later makes
    // some again, until its own room is full.
    var before: Int
    let end = ContinuousClock.now + hangLimit
    repeat {
      before = sent
      expectCode(.wouldBlock, .wouldBlock) {
        try ends.client.sendAll(payload.span.bytes, flags: .doNotWait, sent: &sent)
      }
      if sent != before { usleep(1000) }
    } while sent != before && ContinuousClock.now < end
    try #require(sent == before && sent < payload.count)

    let descriptor = ends.client.unsafeFileDescriptor
    var received: [UInt8] = []
    try whileInterrupted { _ in
      // The reader is another thread; what is left goes while signals come.
      let reader = Reader(ends.server.unsafeFileDescriptor, count: payload.count)
      try reader.run {
        try descriptor.sendAll(payload.span.bytes, sent: &sent)
      }
      received = reader.bytes
    }
    #expect(sent == payload.count)
    #expect(received == payload)
  }

  @Test("stop waiting for room when the time is over, and tell what was sent")
  func sendTimeout() throws {
    let ends = try Connected()
    try ends.client.setSendBufferSize(20_000)
    try ends.client.setSendTimeout(.milliseconds(200))
    let payload = streamBytes(16 << 20)
    var sent = 0
    let start = ContinuousClock.now
    expectCode(.wouldBlock, .wouldBlock) { try ends.client.sendAll(payload.span.bytes, sent: &sent) }
    #expect(ContinuousClock.now - start >= .milliseconds(190))
    #expect(sent > 0 && sent < payload.count)
    try ends.client.shutdown(.sending)
    let received = try receiveAll(ends.server, sent)
    #expect(received == Array(payload[..<sent]))
    #expect(try receive(ends.server).1.isEndOfStream)
  }

  @Test("say that nobody reads any more by an error, and by no signal")
  func brokenPipe() throws {
    let ends = try Connected()
    try ends.client.shutdown(.sending)
    // A signal would be this process's death.
    expectCode(.systemCall, .brokenPipe) { _ = try ends.client.send(([1] as [UInt8]).span.bytes) }
    var sent = 0
    expectCode(.systemCall, .brokenPipe) {
      try ends.client.sendAll(([1] as [UInt8]).span.bytes, sent: &sent)
    }
    #expect(sent == 0)
    #expect(throws: Errno.brokenPipe) {
      try ends.client.unsafeFileDescriptor.sendAll(([1] as [UInt8]).span.bytes, sent: &sent)
    }
  }

  @Test("say that the peer has reset the connection, once, and then that it is gone")
  func resetByPeer() throws {
    let descriptors = try Connected().release()
    let server = try TCPConnection(owning: descriptors.server)
    try reset(try TCPConnection(owning: descriptors.client))
    expectCode(.systemCall, .connectionReset) { _ = try receive(server) }
    expectCode(.systemCall, .brokenPipe) { _ = try server.send(([1] as [UInt8]).span.bytes) }
    #expect(throws: Errno.socketNotConnected) { try server.shutdown(.both) }
    #expect(try receive(server).1.isEndOfStream)
  }

  @Test("hand over control messages of other options, and say when there is no room for them")
  func otherControlMessages() throws {
    let ends = try Connected()
    try ends.server.unsafeFileDescriptor.setOption(SOL_SOCKET, SO_TIMESTAMP, Int32(1))
    func message(controlRoom: Int) throws -> (ReceivedMessage, [UInt8]) {
      try ends.client.sendAll(([1, 2, 3] as [UInt8]).span.bytes)
      var bytes = [UInt8](repeating: 0, count: 10)
      var controlBytes = [UInt8](repeating: 0, count: controlRoom)
      let message: ReceivedMessage
      do {
        var elements = bytes.mutableSpan
        var payload = elements.mutableBytes
        var controlElements = controlBytes.mutableSpan
        var control = controlElements.mutableBytes
        message = try ends.server.unsafeFileDescriptor.receiveMessage(into: &payload, control: &control)
      }
      #expect(message.length == 3)
      #expect(message.source == nil)
      return (message, Array(controlBytes[..<message.controlLength]))
    }
    // The kernel begins to stamp what comes a while after it was asked for it.
    for _ in 0..<1000 where try message(controlRoom: 64).1.isEmpty { usleep(10_000) }
    let (whole, control) = try message(controlRoom: 64)
    #expect(!whole.flags.contains(.controlTruncated))
    #expect(try ControlMessage.all(in: control.span.bytes).map(\.level) == [.socket])
    #expect(try message(controlRoom: 0).0.flags.contains(.controlTruncated))
    // Above it they are passed over.
    try ends.client.sendAll(([4] as [UInt8]).span.bytes)
    let (bytes, received) = try receive(ends.server)
    #expect(bytes == [4])
    #expect(!received.areTraitsTruncated)
  }

  @Test("take what a kernel gave as control data for what it is, whatever the bytes")
  func hostileControlData() throws {
    func received(_ control: [UInt8], flags: MessageFlags = [], length: Int = 5) -> ReceivedBytes {
      let message = ReceivedMessage(
        length: length, messageLength: length, controlLength: control.count, source: nil, flags: flags)
      return ReceivedBytes(message, room: 10, control: control.span.bytes)
    }
    var data = ControlData()
    data.append(level: .socket, type: .init(rawValue: 29), Int32(1))
    let other = data.bytes
    data.append(try someTraits())
    #expect(try received(data.bytes).traits == someTraits())
    #expect(received(data.bytes, flags: .controlTruncated).areTraitsTruncated == false)
    #expect(received(other, flags: .controlTruncated).areTraitsTruncated)
    #expect(try received(other).traits.isEmpty)
    #expect(received([], length: 0).isEndOfStream)

    // Whatever it is, the bytes of the stream are the caller's.
    func expectUnreadable(_ code: TraitError.Code, _ control: [UInt8]) {
      let received = received(control, flags: .controlTruncated)
      #expect(received.length == 5)
      #expect(!received.isEndOfStream)
      #expect(!received.areTraitsTruncated)
      expectCode(code) { _ = try received.traits }
    }
    for length in 1..<16 {
      expectUnreadable(.malformedControlData, Array(data.bytes.prefix(length)))
    }
    var twice = data
    twice.append(try someTraits())
    expectUnreadable(.malformedControlData, twice.bytes)
    // A length that goes beyond the end, and records that are none.
    var long = data.bytes
    long[other.count] = 0xff
    expectUnreadable(.malformedControlData, long)
    var flagged = data.bytes
    flagged[other.count + 16 + 6] = 1
    expectUnreadable(.malformedRecords, flagged)
  }

  @Test("are close-on-exec, and nonblocking where they listen alone")
  func flags() throws {
    let listener = try loopbackListener()
    let client = try TCPConnection.connect(to: try listener.localAddress())
    let server = try listener.accept(timeout: hangLimit)
    for descriptor in [listener.unsafeFileDescriptor, client.unsafeFileDescriptor, server.unsafeFileDescriptor] {
      #expect(fcntl(descriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
    }
    #expect(fcntl(listener.unsafeFileDescriptor.rawValue, F_GETFL) & O_NONBLOCK != 0)
    #expect(fcntl(client.unsafeFileDescriptor.rawValue, F_GETFL) & O_NONBLOCK == 0)
    #expect(fcntl(server.unsafeFileDescriptor.rawValue, F_GETFL) & O_NONBLOCK == 0)

    let plain = FileDescriptor(rawValue: socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
    let taken = try TCPListener(owning: plain)
    #expect(fcntl(taken.unsafeFileDescriptor.rawValue, F_GETFL) & O_NONBLOCK != 0)
    expectCode(.systemCall, .invalidArgument) { _ = try taken.accept(timeout: .seconds(1)) }
  }

  @Test("have the options that they were given")
  func options() throws {
    let ends = try Connected()
    let descriptor = ends.client.unsafeFileDescriptor
    try ends.client.setNoDelay(true)
    #expect(try descriptor.option(Int32(IPPROTO_TCP), TCP_NODELAY) == 1)
    try ends.client.setNoDelay(false)
    #expect(try descriptor.option(Int32(IPPROTO_TCP), TCP_NODELAY) == 0)
    try ends.client.setSendBufferSize(20_000)
    #expect(try descriptor.option(SOL_SOCKET, SO_SNDBUF) == 40_000)
    try ends.client.setReceiveBufferSize(30_000)
    #expect(try descriptor.option(SOL_SOCKET, SO_RCVBUF) == 60_000)

    let first = try loopbackListener()
    let address = try first.localAddress()
    #expect(throws: Errno.addressInUse) { try TCPListener(.ipv4).listen(at: address) }
    #expect(throws: Errno.protocolNotAvailable) { try first.setIPv6Only(true) }
    let second = try loopbackListener(.ipv6)
    #expect(throws: Errno.invalidArgument) { try second.setIPv6Only(true) }
  }

  private func drop(_ connection: consuming TCPConnection) {}

  @Test("close what they own when dropped, once, and not what they gave up")
  func ownership() throws {
    // Numbers so high that no other test is given them when they are free.
    let ends = try Connected()
    let number = fcntl(ends.client.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, 950)
    try #require(number >= 950)
    let descriptor = FileDescriptor(rawValue: number)
    let original = try #require(identity(descriptor))

    #expect(try TCPConnection(owning: descriptor).release() == descriptor)
    #expect(identity(descriptor) == original)
    do {
      let connection = try TCPConnection(owning: descriptor)
      try connection.close()
      #expect(identity(descriptor) == nil, "it is still open")
      // Whoever has the number now must not lose it to the connection that is gone.
      try #require(fcntl(ends.client.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, number) == number)
    }
    #expect(identity(descriptor) == original, "it was closed a second time")
    drop(try TCPConnection(owning: descriptor))
    #expect(identity(descriptor) == nil, "it is still open")

    let listening = try loopbackListener().release()
    let listener = try #require(identity(listening))
    #expect(try TCPListener(owning: listening).release() == listening)
    #expect(identity(listening) == listener)
    do { _ = try TCPListener(owning: listening) }
    #expect(identity(listening) != listener, "it is still open")

    Glibc.close(fcntl(ends.client.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, number))
    let robbed = try Connected().release()
    let client = try TCPConnection(owning: robbed.client)
    try robbed.server.close()
    let high = fcntl(client.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, 970)
    try #require(high >= 970)
    let gone = try TCPConnection(owning: FileDescriptor(rawValue: high))
    Glibc.close(high)
    do throws(Errno) {
      try gone.close()
      Issue.record("there was no error")
    } catch {
      #expect(error == .badFileDescriptor)
    }
  }

  @Test("of others are used through a duplicate, and stay open")
  func duplicate() throws {
    let ends = try Connected()
    do {
      let other = try TCPConnection(duplicating: ends.client.unsafeFileDescriptor)
      #expect(other.unsafeFileDescriptor != ends.client.unsafeFileDescriptor)
      #expect(fcntl(other.unsafeFileDescriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
      #expect(other.peerAddress == ends.client.peerAddress)
      try other.sendAll(([1] as [UInt8]).span.bytes)
    }
    try ends.client.sendAll(([2] as [UInt8]).span.bytes)
    #expect(try receiveAll(ends.server, 2) == [1, 2])
  }

  @Test("are not made of descriptors of other kinds, which stay open")
  func otherKinds() throws {
    let stream = Int32(SOCK_STREAM.rawValue)
    for (family, type, proto) in [
      (AF_INET, Int32(SOCK_DGRAM.rawValue), 0), (AF_UNIX, stream, 0),
      // Multipath TCP
      (AF_INET, stream, 262),
    ] {
      let number = socket(family, type | Int32(SOCK_CLOEXEC.rawValue), Int32(proto))
      // Not every kernel has all of these.
      guard number >= 0 else { continue }
      let descriptor = FileDescriptor(rawValue: number)
      defer { try? descriptor.close() }
      let original = identity(descriptor)
      expectCode(.unsupportedSocket) { _ = try TCPConnection(owning: descriptor) }
      expectCode(.unsupportedSocket) { _ = try TCPConnection(duplicating: descriptor) }
      let error = #expect(throws: TraitError.self) { _ = try TCPListener(owning: descriptor) }
      #expect(error?.code == .unsupportedSocket)
      #expect(
        error?.message.hasSuffix("not one of TCP over IPv4 or IPv6") == true,
        "\(String(describing: error))")
      #expect(identity(descriptor) == original)
    }
    let unconnected = FileDescriptor(rawValue: socket(AF_INET, stream, 0))
    defer { try? unconnected.close() }
    expectCode(.systemCall, .socketNotConnected) { _ = try TCPConnection(owning: unconnected) }
    expectCode(.systemCall, .badFileDescriptor) {
      _ = try TCPConnection(owning: FileDescriptor(rawValue: -1))
    }
  }

  @Test(
    "with traits are refused where the kernel has none",
    .disabled(if: isSupported, "this kernel has packet traits"), arguments: families)
  func unsupported(family: InternetAddress.Family) throws {
    let traits = try someTraits()
    let listener = try loopbackListener(family)
    let destination = try listener.localAddress()
    let ends = try Connected(family)
    func expectUnsupported(
      sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
    ) {
      let error = #expect(throws: TraitError.self, sourceLocation: sourceLocation) { try body() }
      #expect(error?.code == .unsupportedKernel, sourceLocation: sourceLocation)
      #expect(error?.message == "this kernel has no packet traits", sourceLocation: sourceLocation)
      #expect(error?.underlyingError == .protocolNotAvailable, sourceLocation: sourceLocation)
    }
    expectUnsupported { try listener.setSavedSYNTraits([]) }
    expectUnsupported { _ = try listener.savedSYNTraits() }
    expectUnsupported { try listener.setReceivedTraits([]) }
    expectUnsupported { _ = try listener.receivedTraits() }
    expectUnsupported { try listener.setSentTraits(traits) }
    expectUnsupported { _ = try listener.sentTraits() }
    expectUnsupported { _ = try ends.server.synTraits() }
    expectUnsupported { try ends.server.setReceivedTraits([]) }
    expectUnsupported { _ = try ends.server.receivedTraits() }
    expectUnsupported { try ends.server.setSentTraits(Traits()) }
    expectUnsupported { _ = try ends.server.sentTraits() }
    expectUnsupported { _ = try TCPConnection.connect(to: destination, traits: traits) }
    expectUnsupported { _ = try TCPConnection.connect(to: destination, receiving: TraitMask(id(3))) }
    // No SYN was sent.
    expectCode(.wouldBlock) { _ = try listener.accept(timeout: .milliseconds(50)) }
    expectUnsupported { _ = try ends.client.send(([1] as [UInt8]).span.bytes, traits: traits) }
    expectUnsupported { try ends.client.sendAll(([1] as [UInt8]).span.bytes, traits: traits) }
    // Nothing was sent so far.
    try ends.client.sendAll(([2] as [UInt8]).span.bytes, traits: Traits())
    #expect(try receive(ends.server).0 == [2])

    let descriptor = ends.server.unsafeFileDescriptor
    #expect(throws: Errno.protocolNotAvailable) { try descriptor.setSavedSYNTraits([]) }
    #expect(throws: Errno.protocolNotAvailable) { try descriptor.savedSYNTraits() }
    #expect(throws: Errno.protocolNotAvailable) { try descriptor.synTraits() }
    // Getters as setters, though the kernel says it in two ways.
    #expect(throws: Errno.protocolNotAvailable) { try descriptor.receivedTraits() }
    #expect(throws: Errno.protocolNotAvailable) { try descriptor.sentTraits() }
    let datagrams = try UDPSocket(family)
    #expect(throws: Errno.protocolNotAvailable) { try datagrams.unsafeFileDescriptor.receivedTraits() }
    #expect(throws: Errno.protocolNotAvailable) { try datagrams.unsafeFileDescriptor.sentTraits() }
  }

  static let writeErrors: [(Errno, TraitError.Code, String)] = [
    (.wouldBlock, .wouldBlock, "in time"),
    (.noSuchFileOrDirectory, .noSuchKey, "[3, 9]"),
    (.notPermitted, .notPermitted, "CAP_NET_ADMIN or CAP_NET_RAW is needed"),
    (.invalidArgument, .invalidArgument, "another size than its key"),
    (.noSpace, .limitExceeded, "more than the 192 bytes"),
    (.notSupportedOnSocket, .unsupportedSocket, "are not given traits"),
    (.brokenPipe, .systemCall, "could not be sent"),
  ]

  @Test("tell why bytes cannot be sent", arguments: writeErrors)
  func writeError(error: Errno, code: TraitError.Code, text: String) throws {
    let outcome = TraitError(writing: try someTraits(), error)
    #expect(outcome.code == code)
    #expect(outcome.message.contains(text), "\(outcome)")
    #expect(outcome.underlyingError == error)
    // What bytes without traits suffer has nothing to do with traits.
    let without = TraitError(writing: Traits(), error)
    #expect(without.code == (error == .wouldBlock ? .wouldBlock : .systemCall))
  }

  static let saveErrors: [(Errno, TraitError.Code, String)] = [
    (.protocolNotAvailable, .unsupportedKernel, "this kernel has no packet traits"),
    (.notSupportedOnSocket, .unsupportedSocket, "keeps no traits of a SYN"),
    (.noSuchFileOrDirectory, .noSuchKey, "one of the keys [3, 9] that were to be kept of a SYN"),
    (.notPermitted, .notPermitted, "CAP_NET_ADMIN or CAP_NET_RAW is needed"),
    (.noMemory, .systemCall, "cannot be kept"),
  ]

  @Test("tell why traits of a SYN cannot be kept", arguments: saveErrors)
  func saveError(error: Errno, code: TraitError.Code, text: String) throws {
    let outcome = TraitError(saving: try someTraits().keys, error)
    #expect(outcome.code == code)
    #expect(outcome.message.contains(text), "\(outcome)")
    #expect(outcome.underlyingError == error)
  }
}

/// A listener that takes no more connections: each further SYN goes unanswered.
struct FullListener: ~Copyable {
  private let listener: TCPListener
  let address: InternetAddress

  init() throws {
    let listener = try TCPListener(.ipv4)
    try listener.listen(at: try #require(InternetAddress("127.0.0.1", port: 0)), backlog: 0)
    let address = try listener.localAddress()
    let descriptor = listener.unsafeFileDescriptor.rawValue
    /// How many connections wait to be accepted, and how many may: of a listener, `TCP_INFO` has
    /// them in two fields that are other numbers of a connection (tcpi_unacked, tcpi_sacked).
    func queue() throws -> (length: UInt32, limit: UInt32) {
      var words = [UInt32](repeating: 0, count: 26)
      var length = socklen_t(4 * words.count)
      try #require(
        getsockopt(descriptor, Int32(IPPROTO_TCP), 11, &words, &length) == 0, "errno \(errno)")
      return (words[6], words[7])
    }
    for number in 1...8 as ClosedRange<UInt32> {
      let (length, limit) = try queue()
      if length > limit { break }
      // Closed again, and in the queue still.
      _ = try TCPConnection.connect(to: address, timeout: hangLimit)
      let end = ContinuousClock.now + hangLimit
      while try queue().length < number, ContinuousClock.now < end { usleep(1000) }
    }
    let (length, limit) = try queue()
    try #require(length > limit, "the listener takes connections without an end")
    self.listener = listener
    self.address = address
  }
}

/// Reads bytes of a stream on a thread of its own.
private final class Reader: @unchecked Sendable {
  private let descriptor: FileDescriptor
  private let count: Int
  private(set) var bytes: [UInt8] = []

  init(_ descriptor: FileDescriptor, count: Int) {
    self.descriptor = descriptor
    self.count = count
  }

  /// Reads while `body` runs, and after it until all bytes are there.
  func run(_ body: () throws -> Void) throws {
    var thread = pthread_t()
    let status = pthread_create(
      &thread, nil,
      { argument in
        Unmanaged<Reader>.fromOpaque(argument!).takeUnretainedValue().read()
        return nil
      }, Unmanaged.passUnretained(self).toOpaque())
    try #require(status == 0)
    let result = Result { try body() }
    pthread_join(thread, nil)
    try result.get()
  }

  private func read() {
    var room = [UInt8](repeating: 0, count: 65536)
    while bytes.count < count {
      let got = recv(descriptor.rawValue, &room, room.count, 0)
      guard got > 0 else { return }
      bytes += room[..<got]
    }
  }
}
