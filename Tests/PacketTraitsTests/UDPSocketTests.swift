// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing

@Suite("UDP sockets")
struct UDPSocketTests {
  static let families = InternetAddress.Family.allCases

  private func loopback(_ family: InternetAddress.Family) throws -> InternetAddress {
    try #require(InternetAddress(family == .ipv4 ? "127.0.0.1" : "::1", port: 0))
  }

  private func inbox(_ family: InternetAddress.Family) throws -> UDPSocket {
    let socket = try UDPSocket(family)
    try socket.bind(to: try loopback(family))
    try socket.setReceiveTimeout(hangLimit)
    return socket
  }

  private func receive(
    _ socket: borrowing UDPSocket, room: Int = 100, flags: MessageFlags = []
  ) throws -> ([UInt8], ReceivedDatagram) {
    var bytes = [UInt8](repeating: 0xee, count: room)
    let datagram = try socket.receive(into: &bytes, flags: flags)
    #expect(bytes.count == room)
    #expect(bytes[datagram.length...].allSatisfy { $0 == 0xee })
    return (Array(bytes[..<datagram.length]), datagram)
  }

  @Test("receive what is sent, without traits where none were set", arguments: families)
  func roundTrip(family: InternetAddress.Family) throws {
    let inbox = try inbox(family)
    let outbox = try UDPSocket(family)
    try outbox.bind(to: try loopback(family))
    for payload in [[], [1], Array(0..<100)] as [[UInt8]] {
      #expect(try outbox.send(payload.span.bytes, to: try inbox.localAddress()) == payload.count)
      let (bytes, datagram) = try receive(inbox)
      #expect(bytes == payload)
      #expect(datagram.datagramLength == payload.count)
      #expect(datagram.source == (try outbox.localAddress()))
      #expect(try datagram.traits.isEmpty)
      #expect(!datagram.isPayloadTruncated)
      #expect(!datagram.areTraitsTruncated)
    }
  }

  @Test("tell that the payload is cut off, and how long it was", arguments: families)
  func truncation(family: InternetAddress.Family) throws {
    let inbox = try inbox(family)
    let outbox = try UDPSocket(family)
    let payload = [UInt8](0..<50)
    try outbox.send(payload.span.bytes, to: try inbox.localAddress())
    let (bytes, datagram) = try receive(inbox, room: 20)
    #expect(bytes == Array(0..<20))
    #expect(datagram.length == 20)
    #expect(datagram.datagramLength == 50)
    #expect(datagram.isPayloadTruncated)
    #expect(!datagram.areTraitsTruncated)
  }

  @Test("receive into a span as into an array", arguments: families)
  func span(family: InternetAddress.Family) throws {
    let inbox = try inbox(family)
    let outbox = try UDPSocket(family)
    try outbox.send(([1, 2, 3, 4] as [UInt8]).span.bytes, to: try inbox.localAddress())
    var bytes: InlineArray<3, UInt8> = [0, 0, 0]
    let datagram: ReceivedDatagram
    do {
      var elements = bytes.mutableSpan
      var payload = elements.mutableBytes
      datagram = try inbox.receive(into: &payload)
    }
    #expect(datagram.length == 3)
    #expect(datagram.datagramLength == 4)
    #expect([bytes[0], bytes[1], bytes[2]] == [1, 2, 3])
  }

  private func expectNothing(
    _ socket: borrowing UDPSocket, flags: MessageFlags = [],
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    do throws(TraitError) {
      var bytes: [UInt8] = [0]
      _ = try socket.receive(into: &bytes, flags: flags)
      Issue.record("there was a datagram", sourceLocation: sourceLocation)
    } catch {
      #expect(error.code == .wouldBlock, sourceLocation: sourceLocation)
      #expect(error.underlyingError == .wouldBlock, sourceLocation: sourceLocation)
    }
  }

  /// What one recvmsg() gives.
  private func message(
    _ socket: borrowing UDPSocket, room: Int = 100, controlRoom: Int = 64,
    flags: MessageFlags = []
  ) throws -> (message: ReceivedMessage, payload: [UInt8], control: [UInt8]) {
    var bytes = [UInt8](repeating: 0xee, count: room)
    var controlBytes = [UInt8](repeating: 0xee, count: controlRoom)
    let message: ReceivedMessage
    do {
      var elements = bytes.mutableSpan
      var payload = elements.mutableBytes
      var controlElements = controlBytes.mutableSpan
      var control = controlElements.mutableBytes
      message = try socket.unsafeFileDescriptor.receiveMessage(
        into: &payload, control: &control, flags: flags)
    }
    return (
      message, Array(bytes[..<message.length]), Array(controlBytes[..<message.controlLength])
    )
  }

  @Test("give a message with flags only if there is something to be told", arguments: families)
  func messageFlags(family: InternetAddress.Family) throws {
    let inbox = try inbox(family)
    let outbox = try UDPSocket(family)
    let destination = try inbox.localAddress()
    let payload = [UInt8](0..<50)
    for _ in 0..<3 { try outbox.send(payload.span.bytes, to: destination) }

    let whole = try message(inbox)
    #expect(whole.message.flags == [])
    #expect(whole.payload == payload)
    #expect(whole.message.messageLength == 50)
    let cut = try message(inbox, room: 20)
    #expect(cut.message.flags == .truncated)
    #expect(cut.payload == Array(0..<20))
    #expect(cut.message.messageLength == 20)
    // Asked for, the length is that of the message, and no index of the buffer.
    let asked = try message(inbox, room: 20, flags: .truncated)
    #expect(asked.message.flags == .truncated)
    #expect(asked.payload == Array(0..<20))
    #expect(asked.message.messageLength == 50)
  }

  @Test("leave a datagram in the queue when peeking")
  func peek() throws {
    let inbox = try inbox(.ipv4)
    let outbox = try UDPSocket(.ipv4)
    try outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: try inbox.localAddress())
    #expect(try receive(inbox, flags: .peek).0 == [1, 2, 3])
    #expect(try receive(inbox).0 == [1, 2, 3])
    expectNothing(inbox, flags: .doNotWait)
  }

  @Test("stop waiting when the time is over")
  func timeout() throws {
    let inbox = try inbox(.ipv4)
    try inbox.setReceiveTimeout(.milliseconds(30))
    let start = ContinuousClock.now
    expectNothing(inbox)
    #expect(ContinuousClock.now - start >= .milliseconds(20))
    // A time-out of nothing is no wait without end.
    try inbox.setReceiveTimeout(.zero)
    expectNothing(inbox)
    #expect(throws: Errno.invalidArgument) { try inbox.setReceiveTimeout(.seconds(-1)) }
    // Longer than the kernel counts is without end, and no trap.
    try inbox.setReceiveTimeout(.seconds(Int64.max))
    expectNothing(inbox, flags: .doNotWait)
  }

  @Test("stop waiting when the time is over, however many signals come")
  func interruptedTimeout() throws {
    let inbox = try inbox(.ipv4)
    try expectTimeout { time in
      try inbox.setReceiveTimeout(time)
      expectNothing(inbox)
    }
  }

  @Test("receive what comes after signals", arguments: [nil, .seconds(30)] as [Duration?])
  func interrupted(timeout: Duration?) throws {
    let inbox = try inbox(.ipv4)
    try inbox.setReceiveTimeout(timeout)
    let destination = try inbox.localAddress()
    let outbox = try UDPSocket(.ipv4)
    try whileInterrupted { signals in
      let before = signals.count
      _ = try repeating {
        // Not before the receiver has been interrupted many times. Signals come for 10 seconds.
        let end = ContinuousClock.now + .seconds(10)
        while signals.count - before <= 3, ContinuousClock.now < end { usleep(1000) }
        usleep(100_000)
        try outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: destination)
      } during: { _ in
        let (bytes, _) = try receive(inbox)
        #expect(bytes == [1, 2, 3])
        #expect(signals.count - before > 3, "there were too few signals to prove anything")
      }
    }
  }

  @Test("tell of a signal who wants to know")
  func notRetried() throws {
    let inbox = try inbox(.ipv4)
    try whileInterrupted { _ in
      _ = #expect(throws: Errno.interrupted) {
        var bytes: [UInt8] = [0]
        var control: [UInt8] = []
        var elements = bytes.mutableSpan
        var payload = elements.mutableBytes
        var controlElements = control.mutableSpan
        var raw = controlElements.mutableBytes
        _ = try inbox.unsafeFileDescriptor.receiveMessage(
          into: &payload, control: &raw, retryOnInterrupt: false)
      }
    }
  }

  @Test("of IPv6 receive IPv4 from mapped addresses, unless told not to")
  func mapped() throws {
    let inbox = try UDPSocket(.ipv6)
    try inbox.bind(to: .any(.ipv6, port: 0))
    try inbox.setReceiveTimeout(hangLimit)
    let port = try inbox.localAddress().port
    let outbox = try UDPSocket(.ipv4)
    let destination = try #require(InternetAddress("127.0.0.1", port: port))
    try outbox.send(([7] as [UInt8]).span.bytes, to: destination)
    let (_, datagram) = try receive(inbox)
    #expect(datagram.source?.host == "::ffff:127.0.0.1")

    let only = try UDPSocket(.ipv6)
    try only.setIPv6Only(true)
    try only.bind(to: .any(.ipv6, port: 0))
    let refused = try #require(
      InternetAddress("127.0.0.1", port: try only.localAddress().port))
    try outbox.send(([7] as [UInt8]).span.bytes, to: refused)
    expectNothing(only, flags: .doNotWait)
    // What is of IPv6 and was sent later does come.
    let accepted = try #require(InternetAddress("::1", port: refused.port))
    try UDPSocket(.ipv6).send(([8] as [UInt8]).span.bytes, to: accepted)
    try only.setReceiveTimeout(hangLimit)
    #expect(try receive(only).0 == [8])
    expectNothing(only, flags: .doNotWait)
  }

  private static let mayMakeNetworks = (try? inNewNetwork { true }) == true

  @Test(
    "of IPv6 receive IPv4, whatever the default is",
    .enabled(if: mayMakeNetworks, "it takes the right to make a network namespace"))
  func bindV6Only() throws {
    func isOnly(_ descriptor: Int32) throws -> Bool {
      var value: Int32 = -1
      var length = socklen_t(4)
      try #require(
        getsockopt(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &value, &length) == 0)
      return value != 0
    }
    try inNewNetwork {
      try setKernelParameter("net/ipv6/bindv6only", "1")
      let plain = Glibc.socket(AF_INET6, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
      defer { Glibc.close(plain) }
      #expect(try isOnly(plain), "the parameter has no effect, so that nothing is proven")
      let socket = try UDPSocket(.ipv6)
      #expect(try !isOnly(socket.unsafeFileDescriptor.rawValue))
    }
  }

  @Test("hand over control messages of other options")
  func otherControlMessages() throws {
    let inbox = try inbox(.ipv4)
    var on: Int32 = 1
    try #require(
      setsockopt(inbox.unsafeFileDescriptor.rawValue, SOL_SOCKET, SO_TIMESTAMP, &on, 4) == 0)
    let outbox = try UDPSocket(.ipv4)
    let bytes: [UInt8] = [1, 2, 3]
    try outbox.send(bytes.span.bytes, to: try inbox.localAddress())
    try outbox.send(bytes.span.bytes, to: try inbox.localAddress())

    let whole = try message(inbox)
    #expect(whole.payload == bytes)
    #expect(whole.message.flags == [])
    let messages = try ControlMessage.all(in: whole.control.span.bytes)
    #expect(messages.map(\.level) == [.socket])
    #expect(messages.map(\.dataRange.count) == [16])

    let cut = try message(inbox, controlRoom: 0)
    #expect(cut.message.flags == .controlTruncated)
    #expect(cut.message.controlLength == 0)
  }

  @Test("are not the only ones that fill a batch, which shows nothing of what was in memory before")
  func batchMemory() throws {
    // TCP counts bytes that it throws away (MSG_TRUNC), and writes none.
    let server = try FileDescriptor.owned(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
    defer { try? server.close() }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let client = try FileDescriptor.owned(socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
    defer { try? client.close() }
    let isConnected = withUnsafeMutableBytes(of: &address) { bytes in
      let address = bytes.assumingMemoryBound(to: sockaddr.self).baseAddress!
      return bind(server.rawValue, address, length) == 0 && listen(server.rawValue, 1) == 0
        && getsockname(server.rawValue, address, &length) == 0
        && connect(client.rawValue, address, length) == 0
    }
    try #require(isConnected, "errno \(errno)")
    let peer = try FileDescriptor.owned(accept(server.rawValue, nil, nil))
    defer { try? peer.close() }
    try client.writeAll([UInt8](repeating: 1, count: 64))

    for _ in 0..<4 {
      let used = try #require(malloc(3000))
      memset(used, 0x53, 3000)
      free(used)
    }
    var batch = ReceiveBatch(capacity: 1, payloadCapacity: 3000, controlCapacity: 0)
    try peer.receiveMessages(into: &batch)
    #expect(batch.payload(at: 0) == [UInt8](repeating: 0, count: 64))
  }

  @Test("are close-on-exec")
  func closeOnExec() throws {
    let socket = try UDPSocket(.ipv4)
    #expect(fcntl(socket.unsafeFileDescriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
  }

  /// What a descriptor stands for; nil if it is not open. Its number alone may
  /// have been given to another file, by another test, since it was closed.
  private func identity(_ descriptor: FileDescriptor) -> [UInt64]? {
    var status = stat()
    guard fstat(descriptor.rawValue, &status) == 0 else { return nil }
    return [UInt64(status.st_dev), UInt64(status.st_ino)]
  }

  private func drop(_ socket: consuming UDPSocket) {}

  @Test("close what they own when dropped, and not what they gave up")
  func ownership() throws {
    let descriptor = try UDPSocket(.ipv4).release()
    let original = try #require(identity(descriptor))

    let again = try UDPSocket(owning: descriptor).release()
    #expect(again == descriptor)
    #expect(identity(descriptor) == original)

    drop(try UDPSocket(owning: descriptor))
    #expect(identity(descriptor) != original, "it is still open")
  }

  @Test("live as long as the variable that holds them")
  func scope() throws {
    var descriptor = FileDescriptor(rawValue: -1)
    var original: [UInt64]?
    do {
      let socket = try UDPSocket(.ipv4)
      descriptor = socket.unsafeFileDescriptor
      original = identity(descriptor)
      #expect(identity(descriptor) == original)
    }
    #expect(identity(descriptor) != original, "it is still open")
  }

  @Test("close once, and report an error of that")
  func closing() throws {
    // A number so high that no other test is given it when it is free.
    let source = try UDPSocket(.ipv4)
    let number = fcntl(source.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, 900)
    try #require(number >= 900)
    let descriptor = FileDescriptor(rawValue: number)
    let original = try #require(identity(descriptor))

    do {
      let socket = try UDPSocket(owning: descriptor)
      try socket.close()
      #expect(identity(descriptor) == nil, "it is still open")
      // Whoever has the number now must not lose it to the socket that is gone.
      try #require(fcntl(source.unsafeFileDescriptor.rawValue, F_DUPFD_CLOEXEC, number) == number)
    }
    #expect(identity(descriptor) == original, "it was closed a second time")

    let robbed = try UDPSocket(owning: descriptor)
    Glibc.close(number)
    do throws(Errno) {
      try robbed.close()
      Issue.record("there was no error")
    } catch {
      #expect(error == .badFileDescriptor)
    }
  }

  @Test("are not made of descriptors of other kinds, which stay open")
  func otherKinds() throws {
    let stream = Int32(SOCK_STREAM.rawValue)
    let datagram = Int32(SOCK_DGRAM.rawValue)
    for (family, type, proto) in [
      (AF_INET, stream, 0), (AF_INET6, stream, 0), (AF_UNIX, datagram, 0), (AF_UNIX, stream, 0),
      // UDP-Lite
      (AF_INET, datagram, 136),
    ] {
      let number = socket(family, type | Int32(SOCK_CLOEXEC.rawValue), Int32(proto))
      // Not every kernel has all of these.
      guard number >= 0 else { continue }
      let descriptor = FileDescriptor(rawValue: number)
      defer { try? descriptor.close() }
      let original = identity(descriptor)
      let error = #expect(throws: TraitError.self) {
        try UDPSocket(owning: descriptor).unsafeFileDescriptor
      }
      #expect(error?.code == .unsupportedSocket)
      #expect(
        error?.message.hasPrefix(
          "descriptor \(number) is a socket of domain \(family), type \(type) and protocol ") == true,
        "\(String(describing: error))")
      #expect(identity(descriptor) == original)
    }
  }

  @Test("say whether this kernel has packet traits", arguments: families)
  func support(family: InternetAddress.Family) throws {
    let socket = try UDPSocket(family)
    if try Traits.isSupportedByKernel() {
      try socket.setReceivedTraits([])
      #expect(try socket.receivedTraits() == [])
    } else {
      let error = #expect(throws: TraitError.self) { try socket.setReceivedTraits([]) }
      #expect(error?.code == .unsupportedKernel)
      #expect(error?.message == "this kernel has no packet traits")
      #expect(error?.underlyingError == .protocolNotAvailable)
      let asked = #expect(throws: TraitError.self) { try socket.receivedTraits() }
      #expect(asked?.code == .unsupportedKernel)
      #expect(asked?.message == "this kernel has no packet traits")
      #expect(asked?.underlyingError != nil)
    }
  }

  @Test("pass on the errors of system calls")
  func errors() throws {
    let (read, write) = try FileDescriptor.pipe()
    defer {
      try? read.close()
      try? write.close()
    }
    #expect(throws: Errno.notSocket) { try read.setReceivedTraits([]) }
    #expect(throws: Errno.notSocket) { try read.receivedTraits() }
    #expect(throws: Errno.notSocket) {
      var bytes: [UInt8] = [0]
      var control: [UInt8] = []
      var elements = bytes.mutableSpan
      var payload = elements.mutableBytes
      var controlElements = control.mutableSpan
      var raw = controlElements.mutableBytes
      _ = try read.receiveMessage(into: &payload, control: &raw)
    }
    let none = #expect(throws: TraitError.self) { try UDPSocket(owning: read).unsafeFileDescriptor }
    #expect(none?.code == .unsupportedSocket)
    #expect(none?.underlyingError == .notSocket)
    let closed = #expect(throws: TraitError.self) {
      try UDPSocket(owning: FileDescriptor(rawValue: -1)).unsafeFileDescriptor
    }
    #expect(closed?.code == .systemCall)
    #expect(closed?.underlyingError == .badFileDescriptor)

    let outbox = try inbox(.ipv4)
    #expect(throws: Errno.addressInUse) {
      try UDPSocket(.ipv4).bind(to: try outbox.localAddress())
    }
    #expect(throws: Errno.messageTooLong) {
      try outbox.send([UInt8](repeating: 0, count: 70_000).span.bytes, to: try outbox.localAddress())
    }
  }
}

@Suite("Addresses")
struct InternetAddressTests {
  @Test(
    "are read and written",
    arguments: [
      ("192.0.2.1", "192.0.2.1:53"), ("0.0.0.0", "0.0.0.0:53"),
      ("2001:db8::1", "[2001:db8::1]:53"), ("::", "[::]:53"),
      ("::ffff:192.0.2.1", "[::ffff:192.0.2.1]:53"), ("fe80::1%7", "[fe80::1%7]:53"),
    ])
  func notation(host: String, whole: String) throws {
    let address = try #require(InternetAddress(host, port: 53))
    #expect(address.host == host)
    #expect(address.description == whole)
    #expect(address.port == 53)
    #expect(address.family == (host.contains(":") ? .ipv6 : .ipv4))
    #expect(address == InternetAddress(host, port: 53))
    #expect(address != InternetAddress(host, port: 54))
  }

  @Test("have the number of the interface that they name")
  func scope() throws {
    #expect(InternetAddress("fe80::1%lo", port: 1)?.scope == if_nametoindex("lo"))
    #expect(InternetAddress("fe80::1%4294967295", port: 1)?.scope == .max)
    #expect(InternetAddress("fe80::1", port: 1)?.scope == 0)
  }

  @Test(
    "that are none are refused",
    arguments: [
      "", "localhost", "1.2.3", "1.2.3.4.5", "256.1.1.1", "::1::", "fe80::1%", "fe80::1%nosuchif",
      "1.2.3.4%1", "fe80::1%+5", "fe80::1%-5", "fe80::1%0", "fe80::1% 5", "fe80::1%0x5", "fe80::1%4294967296",
      "fe80::1%5%5",
    ])
  func refused(host: String) {
    #expect(InternetAddress(host, port: 1) == nil)
  }

  @Test("with a NUL in them are refused, wherever it is")
  func nul() {
    // Not arguments, which the runner would print as they are.
    for host in [
      "\0", "1.2.3.4\0", "1.2.3.4\0.5", "\u{0}1.2.3.4", "::1\0", "fe80::1\0%1", "fe80::1%lo\0",
      "fe80::1%1\0",
    ] {
      #expect(InternetAddress(host, port: 1) == nil, "\(host.debugDescription)")
    }
  }
}

extension FileDescriptor {
  fileprivate static func owned(_ number: Int32) throws(Errno) -> FileDescriptor {
    guard number >= 0 else { throw Errno(rawValue: errno) }
    return FileDescriptor(rawValue: number)
  }
}

@Suite("Descriptors that come with a message")
struct PassedDescriptorTests {
  /// A pair of Unix sockets, of which one has sent a descriptor to the other.
  private func withPassed(_ body: (FileDescriptor) throws -> Void) throws {
    var ends: [Int32] = [0, 0]
    try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
    defer { for end in ends { close(end) } }
    var control = ControlData()
    var number = ends[0]
    withUnsafeBytes(of: &number) {
      control.append(level: .socket, type: .init(rawValue: Int32(SCM_RIGHTS)), data: $0.bytes)
    }
    let payload: [UInt8] = [1]
    try FileDescriptor(rawValue: ends[0]).sendMessage(payload.span.bytes, control: control)
    try body(FileDescriptor(rawValue: ends[1]))
  }

  private func expectCloseOnExec(_ control: RawSpan) throws {
    let all = try ControlMessage.all(in: control)
    let message = try #require(all.first { $0.type.rawValue == Int32(SCM_RIGHTS) })
    let passed = control.extracting(message.dataRange).unsafeLoadUnaligned(as: Int32.self)
    #expect(passed >= 0)
    #expect(fcntl(passed, F_GETFD) & FD_CLOEXEC != 0)
    close(passed)
  }

  @Test("are close-on-exec, one by one")
  func one() throws {
    try withPassed { descriptor in
      var payload = [UInt8](repeating: 0, count: 8)
      var control = [UInt8](repeating: 0, count: 128)
      let message: ReceivedMessage
      do {
        var payloadElements = payload.mutableSpan
        var payloadBytes = payloadElements.mutableBytes
        var controlElements = control.mutableSpan
        var controlBytes = controlElements.mutableBytes
        message = try descriptor.receiveMessage(into: &payloadBytes, control: &controlBytes)
      }
      try expectCloseOnExec(control.span.bytes.extracting(0..<message.controlLength))
    }
  }

  @Test("are close-on-exec in batches")
  func batch() throws {
    try withPassed { descriptor in
      var batch = ReceiveBatch(capacity: 2, payloadCapacity: 8)
      #expect(try descriptor.receiveMessages(into: &batch) == 1)
      try batch.withControl(at: 0) { control throws in try expectCloseOnExec(control) }
    }
  }
}

@Suite("Addresses of bytes")
struct AddressBytesTests {
  @Test("are those that their notation says", arguments: ["192.0.2.1", "0.0.0.0", "2001:db8::1", "::"])
  func roundTrip(host: String) throws {
    let address = try #require(InternetAddress(host, port: 4711))
    let bytes = address.bytes
    #expect(bytes.count == (address.family == .ipv4 ? 4 : 16))
    #expect(InternetAddress(bytes: bytes.span.bytes, port: 4711) == address)
  }

  @Test("are in network byte order, and have a scope over IPv6 alone")
  func order() throws {
    let newer: [UInt8] = [0xfe, 0x80] + [UInt8](repeating: 0, count: 13) + [7]
    let linkLocal = InternetAddress(bytes: newer.span.bytes, port: 1, scope: 3)
    #expect(linkLocal?.description == "[fe80::7%3]:1")
    let older: [UInt8] = [192, 0, 2, 9]
    let found = InternetAddress(bytes: older.span.bytes, port: 1, scope: 3)
    let address = try #require(found)
    #expect(address.description == "192.0.2.9:1")
    #expect(address.scope == 0)
  }

  @Test("are of 4 or 16 bytes", arguments: [0, 1, 3, 5, 8, 15, 17])
  func wrongLength(count: Int) {
    let bytes = [UInt8](repeating: 1, count: count)
    #expect(InternetAddress(bytes: bytes.span.bytes, port: 1) == nil)
  }
}
