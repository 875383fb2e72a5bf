// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import PacketTraits
import SystemPackage
import Testing

@Suite("UDP sockets")
struct UDPSocketTests {
  static let families: [SocketAddress.Family] = [.ipv4, .ipv6]

  private func loopback(_ family: SocketAddress.Family) throws -> SocketAddress {
    try #require(SocketAddress(family == .ipv4 ? "127.0.0.1" : "::1", port: 0))
  }

  private func inbox(_ family: SocketAddress.Family) throws -> UDPSocket {
    let socket = try UDPSocket(family)
    try socket.bind(to: try loopback(family))
    try socket.setReceiveTimeout(.seconds(10))
    return socket
  }

  private func receive(
    _ socket: borrowing UDPSocket, room: Int = 100, flags: MessageFlags = []
  ) throws -> ([UInt8], ReceivedDatagram) {
    var bytes = [UInt8](repeating: 0xee, count: room)
    let datagram: ReceivedDatagram
    do {
      var elements = bytes.mutableSpan
      var payload = elements.mutableBytes
      datagram = try socket.receive(into: &payload, flags: flags)
    }
    return (Array(bytes[..<datagram.length]), datagram)
  }

  @Test("receive what is sent, without traits where none were set", arguments: families)
  func roundTrip(family: SocketAddress.Family) throws {
    let inbox = try inbox(family)
    let outbox = try UDPSocket(family)
    try outbox.bind(to: try loopback(family))
    for payload in [[], [1], Array(0..<100)] as [[UInt8]] {
      #expect(try outbox.send(payload.span.bytes, to: try inbox.localAddress()) == payload.count)
      let (bytes, datagram) = try receive(inbox)
      #expect(bytes == payload)
      #expect(datagram.datagramLength == payload.count)
      #expect(datagram.source == (try outbox.localAddress()))
      #expect(datagram.traits.isEmpty)
      #expect(!datagram.isPayloadTruncated)
      #expect(!datagram.areTraitsTruncated)
    }
  }

  @Test("tell that the payload is cut off, and how long it was", arguments: families)
  func truncation(family: SocketAddress.Family) throws {
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

  @Test("leave a datagram in the queue when peeking")
  func peek() throws {
    let inbox = try inbox(.ipv4)
    let outbox = try UDPSocket(.ipv4)
    try outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: try inbox.localAddress())
    #expect(try receive(inbox, flags: .peek).0 == [1, 2, 3])
    #expect(try receive(inbox).0 == [1, 2, 3])
    let error = #expect(throws: TraitError.self) { try receive(inbox, flags: .doNotWait) }
    #expect(error?.code == .wouldBlock)
  }

  @Test("stop waiting when the time is over")
  func timeout() throws {
    let inbox = try inbox(.ipv4)
    try inbox.setReceiveTimeout(.milliseconds(30))
    let start = ContinuousClock.now
    let error = #expect(throws: TraitError.self) { try receive(inbox) }
    #expect(error?.code == .wouldBlock)
    #expect(error?.underlyingError == .wouldBlock)
    #expect(ContinuousClock.now - start >= .milliseconds(20))
    // A timeout of nothing is no wait without end.
    try inbox.setReceiveTimeout(.zero)
    #expect(throws: TraitError.self) { try receive(inbox) }
    #expect(throws: Errno.invalidArgument) { try inbox.setReceiveTimeout(.seconds(-1)) }
  }

  @Test("of IPv6 receive IPv4 from mapped addresses, unless told not to")
  func mapped() throws {
    let inbox = try UDPSocket(.ipv6)
    try inbox.bind(to: .any(.ipv6, port: 0))
    try inbox.setReceiveTimeout(.seconds(10))
    let port = try inbox.localAddress().port
    let outbox = try UDPSocket(.ipv4)
    let destination = try #require(SocketAddress("127.0.0.1", port: port))
    try outbox.send(([7] as [UInt8]).span.bytes, to: destination)
    let (_, datagram) = try receive(inbox)
    #expect(datagram.source?.host == "::ffff:127.0.0.1")

    let only = try UDPSocket(.ipv6)
    try only.setIPv6Only(true)
    try only.bind(to: .any(.ipv6, port: 0))
    let refused = try #require(SocketAddress("127.0.0.1", port: try only.localAddress().port))
    try outbox.send(([7] as [UInt8]).span.bytes, to: refused)
    #expect(throws: TraitError.self) { try receive(only, flags: .doNotWait) }
  }

  @Test("hand over control messages of other options")
  func otherControlMessages() throws {
    let inbox = try inbox(.ipv4)
    var on: Int32 = 1
    try #require(
      setsockopt(inbox.fileDescriptor.rawValue, SOL_SOCKET, SO_TIMESTAMP, &on, 4) == 0)
    let outbox = try UDPSocket(.ipv4)
    var bytes: [UInt8] = [1, 2, 3]
    try outbox.send(bytes.span.bytes, to: try inbox.localAddress())
    try outbox.send(bytes.span.bytes, to: try inbox.localAddress())

    var control = [UInt8](repeating: 0, count: 64)
    let message: ReceivedMessage
    do {
      var payloadElements = bytes.mutableSpan
      var payload = payloadElements.mutableBytes
      var controlElements = control.mutableSpan
      var raw = controlElements.mutableBytes
      message = try inbox.fileDescriptor.receiveMessage(into: &payload, control: &raw)
    }
    #expect(message.length == 3)
    #expect(!message.flags.contains(.controlTruncated))
    let messages = try ControlMessage.all(in: control.span.bytes.extracting(0..<message.controlLength))
    #expect(messages.map(\.level) == [SOL_SOCKET])
    #expect(messages.map(\.data.count) == [16])

    let cut: ReceivedMessage
    do {
      var payloadElements = bytes.mutableSpan
      var payload = payloadElements.mutableBytes
      var none: [UInt8] = []
      var controlElements = none.mutableSpan
      var raw = controlElements.mutableBytes
      cut = try inbox.fileDescriptor.receiveMessage(into: &payload, control: &raw)
    }
    #expect(cut.flags.contains(.controlTruncated))
    #expect(cut.controlLength == 0)
  }

  @Test("are close-on-exec")
  func closeOnExec() throws {
    let socket = try UDPSocket(.ipv4)
    #expect(fcntl(socket.fileDescriptor.rawValue, F_GETFD) & FD_CLOEXEC != 0)
  }

  @Test("close what they own when dropped, and not what they gave up")
  func ownership() throws {
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
    let other = FileDescriptor(rawValue: ends[1])
    defer { try? other.close() }

    let released = UDPSocket(owning: FileDescriptor(rawValue: ends[0])).release()
    #expect(recv(ends[1], nil, 0, Int32(MSG_DONTWAIT)) == -1)
    #expect(errno == EAGAIN)

    drop(UDPSocket(owning: released))
    var byte: UInt8 = 0
    #expect(recv(ends[1], &byte, 1, Int32(MSG_DONTWAIT)) == 0, "the other end is still open")
  }

  private func drop(_ socket: consuming UDPSocket) {}

  @Test("report closing errors")
  func closing() throws {
    let socket = try UDPSocket(.ipv4)
    try socket.close()
    #expect(throws: Errno.badFileDescriptor) {
      try UDPSocket(owning: FileDescriptor(rawValue: -1)).close()
    }
  }

  @Test("say whether this kernel has packet traits", arguments: families)
  func support(family: SocketAddress.Family) throws {
    let socket = try UDPSocket(family)
    if try Traits.isSupportedByKernel() {
      try socket.setReceivedTraits([])
      #expect(try socket.receivedTraits() == [])
    } else {
      let error = #expect(throws: TraitError.self) { try socket.setReceivedTraits([]) }
      #expect(error?.code == .unsupportedKernel)
      #expect(error?.message == "this kernel has no packet traits")
      #expect(error?.underlyingError == .protocolNotAvailable)
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
    var bytes: [UInt8] = [0]
    var elements = bytes.mutableSpan
    var payload = elements.mutableBytes
    do {
      _ = try read.receiveDatagram(into: &payload)
      Issue.record("a pipe gave a datagram")
    } catch {
      #expect(error.code == .systemCall)
      #expect(error.underlyingError == .notSocket)
    }
  }
}

@Suite("Addresses")
struct SocketAddressTests {
  @Test(
    "are read and written",
    arguments: [
      ("192.0.2.1", "192.0.2.1:53"), ("0.0.0.0", "0.0.0.0:53"),
      ("2001:db8::1", "[2001:db8::1]:53"), ("::", "[::]:53"),
      ("::ffff:192.0.2.1", "[::ffff:192.0.2.1]:53"), ("fe80::1%7", "[fe80::1%7]:53"),
    ])
  func notation(host: String, whole: String) throws {
    let address = try #require(SocketAddress(host, port: 53))
    #expect(address.host == host)
    #expect(address.description == whole)
    #expect(address.port == 53)
    #expect(address.family == (host.contains(":") ? .ipv6 : .ipv4))
    #expect(address == SocketAddress(host, port: 53))
    #expect(address != SocketAddress(host, port: 54))
  }

  @Test(
    "that are none are refused",
    arguments: [
      "", "localhost", "1.2.3", "1.2.3.4.5", "256.1.1.1", "::1::", "fe80::1%", "fe80::1%nosuchif",
      "1.2.3.4%1",
    ])
  func refused(host: String) {
    #expect(SocketAddress(host, port: 1) == nil)
  }
}
