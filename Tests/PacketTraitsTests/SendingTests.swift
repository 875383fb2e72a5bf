// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits

/// A socket on a loopback address, which does not wait for ever.
func loopbackSocket(_ family: InternetAddress.Family = .ipv4) throws -> UDPSocket {
  let socket = try UDPSocket(family)
  let host = family == .ipv4 ? "127.0.0.1" : "::1"
  try socket.bind(to: try #require(InternetAddress(host, port: 0)))
  try socket.setReceiveTimeout(hangLimit)
  return socket
}

func turnOn(_ socket: borrowing UDPSocket, _ level: Int32, _ option: Int32) throws {
  var on: Int32 = 1
  try #require(setsockopt(socket.unsafeFileDescriptor.rawValue, level, option, &on, 4) == 0)
}

private func someTraits() throws -> Traits {
  var traits = Traits()
  try traits.set(0xdead_beef, for: TraitKey<UInt32>(id(3)))
  try traits.set(42, for: TraitKey<UInt64>(id(9)))
  try traits.set(1 << 127, for: TraitKey<UInt128>(id(63)))
  return traits
}

@Suite("Sending")
struct SendingTests {
  static let families = InternetAddress.Family.allCases
  static let isSupported = (try? Traits.isSupportedByKernel()) ?? false

  @Test("goes where the socket is connected to, or to an address", arguments: families)
  func connected(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let outbox = try loopbackSocket(family)
    #expect(throws: Errno(rawValue: EDESTADDRREQ)) { try outbox.send(([1] as [UInt8]).span.bytes) }
    try outbox.connect(to: try inbox.localAddress())
    #expect(try outbox.send(([1, 2] as [UInt8]).span.bytes) == 2)
    #expect(try outbox.send(([3] as [UInt8]).span.bytes, to: try inbox.localAddress()) == 1)
    #expect(try outbox.send(([4] as [UInt8]).span.bytes, traits: Traits()) == 1)
    for payload in [[1, 2], [3], [4]] as [[UInt8]] {
      var bytes = [UInt8](repeating: 0, count: 10)
      let datagram = try inbox.receive(into: &bytes)
      #expect(Array(bytes[..<datagram.length]) == payload)
      #expect(datagram.source == (try outbox.localAddress()))
    }
  }

  @Test("with control data does what the messages say, or sends nothing", arguments: families)
  func controlData(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let outbox = try loopbackSocket(family)
    let payload: [UInt8] = [1, 2, 3, 4]
    // Of segments of 2 bytes each: UDP_SEGMENT (udp(7))
    var control = ControlData()
    control.append(level: .init(rawValue: Int32(IPPROTO_UDP)), type: .init(rawValue: 103), UInt16(2))
    #expect(try outbox.send(payload.span.bytes, to: try inbox.localAddress(), control: control) == 4)
    for part in [[1, 2], [3, 4]] as [[UInt8]] {
      var bytes = [UInt8](repeating: 0, count: 10)
      let datagram = try inbox.receive(into: &bytes)
      #expect(Array(bytes[..<datagram.length]) == part)
    }
    var wrong = ControlData()
    wrong.append(level: .init(rawValue: Int32(IPPROTO_UDP)), type: .init(rawValue: 103), Int32(2))
    let error = #expect(throws: TraitError.self) {
      try outbox.send(payload.span.bytes, to: try inbox.localAddress(), control: wrong)
    }
    #expect(error?.underlyingError == .invalidArgument)
    var bytes = [UInt8](repeating: 0, count: 10)
    let nothing = #expect(throws: TraitError.self) { try inbox.receive(into: &bytes, flags: .doNotWait) }
    #expect(nothing?.code == .wouldBlock)
  }

  @Test("of a batch goes on where there was no room any more")
  func restOfBatch() throws {
    // A Unix socket has room for a few datagrams, and says so.
    var ends: [Int32] = [0, 0]
    try #require(socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0, &ends) == 0)
    defer { for end in ends { close(end) } }
    let (near, far) = (FileDescriptor(rawValue: ends[0]), FileDescriptor(rawValue: ends[1]))
    var batch = SendBatch()
    let total = 600
    for number in 0..<total {
      let payload = withUnsafeBytes(of: UInt32(number)) { Array($0) }
      batch.append(payload.span.bytes)
    }
    var received: [UInt32] = []
    var rounds = 0
    while batch.count > 0 {
      rounds += 1
      let results = near.sendMessages(batch, flags: .doNotWait)
      let sent = results.prefix { (try? $0.get()) != nil }.count
      #expect(results.dropFirst(sent).allSatisfy { $0 == .failure(.wouldBlock) })
      batch.removeFirst(sent)
      #expect(batch.count == results.count - sent)
      var inbox = ReceiveBatch(capacity: total, payloadCapacity: 4)
      for index in 0..<(try far.receiveMessages(into: &inbox)) {
        received.append(inbox.payload(at: index).withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) })
      }
    }
    #expect(rounds > 1, "there was room for all")
    #expect(received == (0..<UInt32(total)).map { $0 })
  }

  @Test("of a batch that never becomes empty keeps no bytes of what was sent")
  func endlessBatch() throws {
    let inbox = try loopbackSocket()
    try turnOn(inbox, Int32(IPPROTO_IP), IP_RECVTOS)
    let destination = try inbox.localAddress()
    let outbox = try loopbackSocket()
    // The length of the payload changes, and is 0 at times; every fifth has no control data.
    func payload(_ number: Int) -> [UInt8] {
      (0..<number % 7 * 40).map { UInt8(truncatingIfNeeded: number &+ $0) }
    }
    func tos(_ number: Int) -> UInt8 { number.isMultiple(of: 5) ? 0 : UInt8(number % 50 + 1) * 4 }
    func control(_ number: Int) -> ControlData {
      var control = ControlData()
      if tos(number) != 0 {
        control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(tos(number)))
      }
      return control
    }
    var batch = SendBatch()
    batch.append(payload(0).span.bytes, to: destination, control: control(0))
    var arrivals = ReceiveBatch(capacity: 2, payloadCapacity: 300)
    var largest = 0
    for round in 0..<1_000 {
      batch.append(payload(round + 1).span.bytes, to: destination, control: control(round + 1))
      #expect(batch.count == 2)
      #expect(
        try outbox.send(batch).map { try $0.get() } == [payload(round).count, payload(round + 1).count])
      var received = 0
      while received < 2 {
        for index in 0..<(try inbox.receive(into: &arrivals)) {
          let number = round + received
          #expect(arrivals.payload(at: index) == payload(number), "round \(round)")
          let found = try arrivals.withControl(at: index) { control in
            try ControlMessage.all(in: control).map { control.extracting($0.dataRange).array }
          }
          #expect(found == [[tos(number)]], "round \(round)")
          received += 1
        }
      }
      batch.removeFirst()
      largest = max(largest, batch.byteCount)
    }
    // Half of it may be of what was sent.
    #expect(largest <= 2 * (240 + control(1).bytes.count))
    batch.removeFirst()
    #expect(batch.byteCount == 0)
  }

  @Test("of a batch, removed one by one, moves each datagram and byte once at most", arguments: [1, 7, 64, 1_000])
  func removing(count: Int) throws {
    let inbox = try loopbackSocket(.ipv4)
    let outbox = try loopbackSocket(.ipv4)
    try outbox.connect(to: try inbox.localAddress())
    var batch = SendBatch()
    var total = 0
    for number in 0..<count {
      var control = ControlData()
      control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(number % 64 * 4))
      // The first ones are large and the last ones small, then the other way round.
      let length = number % 2 == 0 ? count - number : number + 1
      batch.append([UInt8](repeating: UInt8(truncatingIfNeeded: number), count: length).span.bytes, control: control)
      total += 1 + length + control.bytes.count
    }
    for number in 0..<count {
      #expect(batch.count == count - number)
      batch.removeFirst()
    }
    #expect(batch.count == 0)
    #expect(batch.byteCount == 0)
    #expect(batch.movedCount <= total, "\(batch.movedCount) of \(total)")
    // What is appended after removals is what is sent.
    for number in 0..<5 { batch.append([UInt8(number)].span.bytes) }
    batch.removeFirst(2)
    batch.append(([5] as [UInt8]).span.bytes)
    #expect(try outbox.send(batch).map { try $0.get() } == [1, 1, 1, 1])
    var bytes: [UInt8] = [0]
    for number in 2...5 {
      #expect(try inbox.receive(into: &bytes).length == 1)
      #expect(bytes == [UInt8(number)])
    }
  }

  @Test("of a datagram in pieces ends with the first that says so", arguments: families)
  func more(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let outbox = try loopbackSocket(family)
    try outbox.connect(to: try inbox.localAddress())
    try outbox.send(([1, 2] as [UInt8]).span.bytes, flags: .more)
    try outbox.send(([3] as [UInt8]).span.bytes, flags: .more)
    try outbox.send(([4, 5] as [UInt8]).span.bytes)
    var bytes = [UInt8](repeating: 0, count: 10)
    let datagram = try inbox.receive(into: &bytes)
    #expect(Array(bytes[..<datagram.length]) == [1, 2, 3, 4, 5])
  }

  @Test("of a datagram in pieces begins anew after one that failed", arguments: families)
  func moreFailure(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let outbox = try loopbackSocket(family)
    try outbox.connect(to: try inbox.localAddress())
    // Together more than a datagram can have; each alone is not.
    let half = [UInt8](repeating: 1, count: 40_000)
    try outbox.send(half.span.bytes, flags: .more)
    #expect(throws: Errno.messageTooLong) { try outbox.send(half.span.bytes) }
    try outbox.send(([2, 3] as [UInt8]).span.bytes)
    // What is too long for any datagram IPv4 refuses before it looks at the pieces.
    try outbox.send(([4] as [UInt8]).span.bytes, flags: .more)
    let tooLong = [UInt8](repeating: 1, count: 65_536)
    #expect(throws: Errno.messageTooLong) { try outbox.send(tooLong.span.bytes) }
    try outbox.send(([5] as [UInt8]).span.bytes)
    for payload in [[2, 3], family == .ipv4 ? [4, 5] : [5]] as [[UInt8]] {
      var bytes = [UInt8](repeating: 0, count: 10)
      let datagram = try inbox.receive(into: &bytes)
      #expect(datagram.datagramLength == payload.count)
      #expect(Array(bytes[..<datagram.length]) == payload)
    }
  }

  @Test("passes control messages on to the kernel")
  func control() throws {
    let inbox = try loopbackSocket()
    try turnOn(inbox, Int32(IPPROTO_IP), IP_RECVTOS)
    let outbox = try loopbackSocket()
    var control = ControlData()
    control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(0x14))
    // UDP_SEGMENT, udp(7)
    control.append(level: .init(rawValue: 17), type: .init(rawValue: 103), UInt16(3))
    let payload = [UInt8](0..<8)
    let length = try outbox.unsafeFileDescriptor.sendMessage(
      payload.span.bytes, to: try inbox.localAddress(), control: control)
    #expect(length == 8)

    var batch = ReceiveBatch(capacity: 8, payloadCapacity: 100)
    var received: [[UInt8]] = []
    while received.count < 3 {
      for index in 0..<(try inbox.receive(into: &batch)) {
        received.append(batch.payload(at: index))
        let tos = try batch.withControl(at: index) { control in
          try ControlMessage.all(in: control).map { control.extracting($0.dataRange).array }
        }
        #expect(tos == [[0x14]])
      }
    }
    #expect(received == [[0, 1, 2], [3, 4, 5], [6, 7]])

    // That of a message which is none the kernel refuses: it did get these bytes.
    var wrong = ControlData()
    wrong.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(-1))
    #expect(throws: Errno.invalidArgument) {
      try outbox.unsafeFileDescriptor.sendMessage(
        payload.span.bytes, to: try inbox.localAddress(), control: wrong)
    }
  }

  @Test("waits no longer than it may")
  func timeout() throws {
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
    let (full, other) = (FileDescriptor(rawValue: ends[0]), FileDescriptor(rawValue: ends[1]))
    defer {
      try? full.close()
      try? other.close()
    }
    let bytes = [UInt8](repeating: 7, count: 100)
    #expect(throws: Errno.wouldBlock) {
      while true { try full.sendMessage(bytes.span.bytes, flags: .doNotWait) }
    }

    try expectTimeout { time in
      try full.setTimeout(SO_SNDTIMEO, time)
      _ = #expect(throws: Errno.wouldBlock) { try full.sendMessage(bytes.span.bytes) }
    }
    try full.setTimeout(SO_SNDTIMEO, hangLimit)
    try whileInterrupted { _ in
      _ = #expect(throws: Errno.interrupted) {
        try full.sendMessage(bytes.span.bytes, retryOnInterrupt: false)
      }
    }
  }

  @Test("has a time-out of its own")
  func sendTimeout() throws {
    let socket = try UDPSocket(.ipv4)
    func timeouts() throws -> [Duration] {
      try [SO_RCVTIMEO, SO_SNDTIMEO].map { name in
        var value = timeval()
        var length = socklen_t(MemoryLayout<timeval>.size)
        try #require(
          getsockopt(socket.unsafeFileDescriptor.rawValue, SOL_SOCKET, name, &value, &length) == 0)
        return .seconds(value.tv_sec) + .microseconds(value.tv_usec)
      }
    }
    try socket.setSendTimeout(.seconds(3))
    #expect(try timeouts() == [.zero, .seconds(3)])
    try socket.setReceiveTimeout(.seconds(5))
    try socket.setSendTimeout(nil)
    #expect(try timeouts() == [.seconds(5), .zero])
    #expect(throws: Errno.invalidArgument) { try socket.setSendTimeout(.seconds(-1)) }
  }

  @Test("has room that can be set")
  func bufferSize() throws {
    let socket = try UDPSocket(.ipv4)
    try socket.setSendBufferSize(20_000)
    var size: Int32 = 0
    var length = socklen_t(4)
    try #require(
      getsockopt(socket.unsafeFileDescriptor.rawValue, SOL_SOCKET, SO_SNDBUF, &size, &length) == 0)
    #expect(size == 40_000)
  }

  @Test(
    "of traits is refused where the kernel has none",
    .disabled(if: isSupported, "this kernel has packet traits"),
    arguments: families)
  func unsupported(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let destination = try inbox.localAddress()
    let socket = try UDPSocket(family)
    let traits = try someTraits()
    let payload: [UInt8] = [1, 2, 3]

    func expectUnsupported(
      _ body: () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation
    ) {
      let error = #expect(throws: TraitError.self, sourceLocation: sourceLocation) { try body() }
      #expect(error?.code == .unsupportedKernel, sourceLocation: sourceLocation)
      #expect(error?.message == "this kernel has no packet traits", sourceLocation: sourceLocation)
      #expect(error?.underlyingError != nil, sourceLocation: sourceLocation)
    }
    expectUnsupported { try socket.setSentTraits(traits) }
    expectUnsupported { try socket.setSentTraits(Traits()) }
    expectUnsupported { _ = try socket.sentTraits() }
    expectUnsupported { try socket.send(payload.span.bytes, to: destination, traits: traits) }
    var batch = SendBatch()
    batch.append(payload.span.bytes, to: destination)
    batch.append(payload.span.bytes, to: destination, traits: traits)
    expectUnsupported { _ = try socket.send(batch) }
    var control = ControlData()
    control.append(traits)
    batch.removeAll()
    batch.append(payload.span.bytes, to: destination, control: control)
    expectUnsupported { _ = try socket.send(batch) }
    // Nor does it pass over records that are malformed, as those of no whole number.
    var malformed = ControlData()
    malformed.append(level: .traits, type: .traits, UInt32(1))
    expectUnsupported {
      try socket.send(payload.span.bytes, to: destination, control: malformed)
    }
    batch.removeAll()
    batch.append(payload.span.bytes, to: destination, control: malformed)
    expectUnsupported { _ = try socket.send(batch) }
    #expect(throws: Errno.protocolNotAvailable) { try socket.unsafeFileDescriptor.setSentTraits(traits) }
    #expect(throws: Errno.self) { try socket.unsafeFileDescriptor.sentTraits() }

    // Nothing was sent so far. Without traits there is nothing to be refused,
    // and in the layer beneath they are passed over.
    try socket.send(([4] as [UInt8]).span.bytes, to: destination, traits: Traits())
    try socket.unsafeFileDescriptor.sendMessage(([5] as [UInt8]).span.bytes, to: destination, traits: traits)
    for payload in [[4], [5]] as [[UInt8]] {
      var bytes = [UInt8](repeating: 0, count: 10)
      let datagram = try inbox.receive(into: &bytes)
      #expect(Array(bytes[..<datagram.length]) == payload)
    }
  }

  @Test("on what is no socket says so")
  func noSocket() throws {
    let (read, write) = try FileDescriptor.pipe()
    defer {
      try? read.close()
      try? write.close()
    }
    let traits = try someTraits()
    let nothing: [UInt8] = []
    #expect(throws: Errno.notSocket) { try write.setSentTraits(traits) }
    #expect(throws: Errno.notSocket) { try write.sentTraits() }
    #expect(throws: Errno.notSocket) { try write.sendMessage(nothing.span.bytes, traits: traits) }
    var batch = SendBatch()
    batch.append(nothing.span.bytes)
    batch.append(nothing.span.bytes, traits: traits)
    #expect(write.sendMessages(batch) == [.failure(.notSocket), .failure(.notSocket)])
    var room = ReceiveBatch(capacity: 1, payloadCapacity: 1)
    #expect(throws: Errno.notSocket) { try read.receiveMessages(into: &room) }
  }

  static let setErrors: [(Errno, TraitError.Code, String)] = [
    (.protocolNotAvailable, .unsupportedKernel, "this kernel has no packet traits"),
    (.notSupportedOnSocket, .unsupportedSocket, "does not send traits"),
    (.noSuchFileOrDirectory, .noSuchKey, "[3, 9, 63]"),
    (.notPermitted, .notPermitted, "CAP_NET_ADMIN or CAP_NET_RAW is needed"),
    (.invalidArgument, .invalidArgument, "another size than its key"),
    (.noMemory, .systemCall, "cannot be set"),
  ]

  @Test("tells why the socket's traits cannot be set", arguments: setErrors)
  func setError(error: Errno, code: TraitError.Code, text: String) throws {
    let outcome = TraitError(settingSent: try someTraits(), error)
    #expect(outcome.code == code)
    #expect(outcome.message.contains(text), "\(outcome)")
    #expect(outcome.underlyingError == error)
  }

  static let sendErrors: [(Errno, TraitError.Code, String)] = [
    (.wouldBlock, .wouldBlock, "in time"),
    (.noSuchFileOrDirectory, .noSuchKey, "[3, 9, 63]"),
    (.notPermitted, .notPermitted, "or a packet filter refuses"),
    (.invalidArgument, .invalidArgument, "another size than its key, or the datagram was begun"),
    (.noSpace, .limitExceeded, "more than the 192 bytes"),
    (.noBufferSpace, .systemCall, "could not be sent"),
  ]

  @Test("tells why a datagram cannot be sent", arguments: sendErrors)
  func sendError(error: Errno, code: TraitError.Code, text: String) throws {
    let outcome = TraitError(sending: try someTraits(), error)
    #expect(outcome.code == code)
    #expect(outcome.message.contains(text), "\(outcome)")
    #expect(outcome.underlyingError == error)
    // What a datagram without traits suffers has nothing to do with traits.
    let without = TraitError(sending: Traits(), error)
    #expect(without.code == (error == .wouldBlock ? .wouldBlock : .systemCall))
  }
}

@Suite("Control data")
struct ControlDataTests {
  @Test("is read as it was written", arguments: 0..<40)
  func roundTrip(length: Int) throws {
    var control = ControlData()
    #expect(control.isEmpty)
    let first = (0..<length).map { UInt8($0 + 1) }
    control.append(level: .socket, type: .init(rawValue: -5), data: first.span.bytes)
    control.append(level: .ipv6, type: .init(rawValue: .max), UInt16(0x1234))
    control.append(Traits())
    let traits = try someTraits()
    control.append(traits)
    #expect(!control.isEmpty)
    #expect(
      control.bytes.count == ctraits_cmsg_space(length) + ctraits_cmsg_space(2) + ctraits_cmsg_space(72))

    let messages = try ControlMessage.all(in: control.bytes.span.bytes)
    #expect(messages.map(\.level) == [.socket, .ipv6, .traits])
    #expect(messages.map(\.type.rawValue) == [-5, .max, SCM_TRAITS])
    let data = messages.map { Array(control.bytes[$0.dataRange]) }
    #expect(data[0] == first)
    #expect(data[1] == withUnsafeBytes(of: UInt16(0x1234)) { Array($0) })
    #expect(data[2] == traits.records)
    #expect(try Traits(controlMessages: control.bytes.span.bytes) == traits)
    // As the tests of the parser build them.
    let padding = [UInt8](repeating: 0, count: ctraits_cmsg_space(length) - ctraits_cmsg_len(length))
    #expect(
      Array(control.bytes.prefix(ctraits_cmsg_space(length)))
        == Array(controlMessage(level: SOL_SOCKET, type: -5, first).prefix(ctraits_cmsg_len(length)))
        + padding)
  }

  @Test("tells its traits, for what is said of a batch's datagrams")
  func traits() throws {
    let traits = try someTraits()
    let payload: [UInt8] = [1]
    var control = ControlData()
    control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(0))
    #expect(control.traits.isEmpty)
    // Malformed ones, which the kernel is to find.
    control.append(level: .traits, type: .traits, data: payload.span.bytes)
    #expect(control.traits.isEmpty)
    control.append(traits)
    #expect(control.traits == traits)
    var other = Traits()
    try other.set(7, for: TraitKey<UInt32>(id(3)))
    try other.set(8, for: TraitKey<UInt32>(id(4)))
    control.append(level: .traits, type: .traits, data: other.records.span.bytes)
    var both = traits
    try both.set(7, for: TraitKey<UInt32>(id(3)))
    try both.set(8, for: TraitKey<UInt32>(id(4)))
    #expect(control.traits == both)

    var batch = SendBatch()
    batch.append(payload.span.bytes)
    batch.append(payload.span.bytes, control: control)
    batch.append(payload.span.bytes, traits: traits)
    #expect((0..<3).map { batch.traits(at: $0) } == [Traits(), both, traits])
  }

  @Test("has numbers of the size of their type")
  func numbers() throws {
    var control = ControlData()
    let type = ControlMessage.MessageType(rawValue: 1)
    control.append(level: .ipv4, type: type, 0x81 as UInt8)
    control.append(level: .ipv4, type: type, 0x8182 as UInt16)
    control.append(level: .ipv4, type: type, 0x8182_8384 as UInt32)
    control.append(level: .ipv4, type: type, -0x102_0304 as Int32)
    let data = try ControlMessage.all(in: control.bytes.span.bytes).map {
      Array(control.bytes[$0.dataRange])
    }
    #expect(
      data == [
        [0x81], withUnsafeBytes(of: 0x8182 as UInt16) { Array($0) },
        withUnsafeBytes(of: 0x8182_8384 as UInt32) { Array($0) },
        withUnsafeBytes(of: -0x102_0304 as Int32) { Array($0) },
      ])
  }

  @Test("of traits alone is the same without memory of its own", arguments: [0, 1, 2, 11, 42, 43, 48])
  func message(count: Int) throws {
    var traits = Traits()
    for number in 0..<count { try traits.set(UInt32(number) + 1, for: TraitKey<UInt32>(id(UInt32(number)))) }
    var control = ControlData()
    control.append(traits)
    #expect(ControlData.withMessage(of: traits) { Array($0) } == control.bytes)
    #expect(control.bytes.count == (count == 0 ? 0 : ctraits_cmsg_space(24 * count)))
  }
}

@Suite("Batches")
struct BatchTests {
  static let families = InternetAddress.Family.allCases

  @Test("receive what is there, each datagram by itself", arguments: families)
  func receive(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    let isIPv4 = family == .ipv4
    try turnOn(
      inbox, Int32(isIPv4 ? IPPROTO_IP : IPPROTO_IPV6), isIPv4 ? IP_RECVTTL : IPV6_RECVHOPLIMIT)
    let outboxes = [try loopbackSocket(family).release(), try loopbackSocket(family).release()]
    defer { for outbox in outboxes { try? outbox.close() } }
    let destination = try inbox.localAddress()
    for number in 0..<10 {
      let payload = [UInt8](repeating: UInt8(number), count: number * 10)
      var control = ControlData()
      control.append(
        level: isIPv4 ? .ipv4 : .ipv6, type: .init(rawValue: isIPv4 ? IP_TTL : IPV6_HOPLIMIT),
        Int32(number + 20))
      try outboxes[number % 2].sendMessage(payload.span.bytes, to: destination, control: control)
    }

    var batch = ReceiveBatch(capacity: 4, payloadCapacity: 45, controlCapacity: 61)
    #expect(batch.controlCapacity == 64)
    #expect(batch.count == 0)
    var number = 0
    for expected in [4, 4, 2] {
      #expect(try inbox.receive(into: &batch) == expected)
      #expect(batch.count == expected)
      for index in 0..<batch.count {
        let datagram = batch.datagram(at: index)
        #expect(datagram.datagramLength == number * 10)
        #expect(datagram.length == min(number * 10, 45))
        #expect(datagram.isPayloadTruncated == (number >= 5))
        #expect(try datagram.traits.isEmpty)
        #expect(!datagram.areTraitsTruncated)
        #expect(datagram.source == (try localAddress(outboxes[number % 2])))
        #expect(
          batch.payload(at: index) == [UInt8](repeating: UInt8(number), count: min(number * 10, 45)))
        let lives = try batch.withControl(at: index) { control in
          try ControlMessage.all(in: control).map {
            control.extracting($0.dataRange).array.native(0, as: Int32.self)
          }
        }
        #expect(lives == [Int32(number + 20)])
        number += 1
      }
    }
    let error = #expect(throws: TraitError.self) { try inbox.receive(into: &batch, flags: .doNotWait) }
    #expect(error?.code == .wouldBlock)
    #expect(batch.count == 0)
  }

  @Test("tell how long a datagram is, also of a descriptor and without flags")
  func payloadTruncation() throws {
    let inbox = try loopbackSocket()
    let outbox = try loopbackSocket()
    for length in [11, 10] {
      let payload = [UInt8](repeating: 1, count: length)
      try outbox.send(payload.span.bytes, to: try inbox.localAddress())
    }
    var batch = ReceiveBatch(capacity: 2, payloadCapacity: 10)
    #expect(try inbox.unsafeFileDescriptor.receiveMessages(into: &batch) == 2)
    for (index, length) in [11, 10].enumerated() {
      #expect(batch.message(at: index).length == 10)
      #expect(batch.message(at: index).messageLength == length)
      #expect(batch.datagram(at: index).datagramLength == length)
      #expect(batch.datagram(at: index).isPayloadTruncated == (length > 10))
    }
  }

  @Test("tell of control messages that had no room")
  func controlTruncation() throws {
    let inbox = try loopbackSocket()
    try turnOn(inbox, Int32(IPPROTO_IP), IP_PKTINFO)
    let outbox = try loopbackSocket()
    for _ in 0..<2 { try outbox.send(([1] as [UInt8]).span.bytes, to: try inbox.localAddress()) }
    var batch = ReceiveBatch(capacity: 2, payloadCapacity: 10, controlCapacity: 8)
    #expect(try inbox.receive(into: &batch) == 2)
    for index in 0..<2 {
      #expect(batch.datagram(at: index).areTraitsTruncated)
      #expect(batch.message(at: index).flags == .controlTruncated)
      #expect(batch.payload(at: index) == [1])
    }
  }

  @Test("wait for the first datagram, and for no other")
  func waiting() throws {
    let inbox = try loopbackSocket()
    let destination = try inbox.localAddress()
    let outbox = try UDPSocket(.ipv4)
    var batch = ReceiveBatch(capacity: 100, payloadCapacity: 10)
    try inbox.setReceiveTimeout(.milliseconds(100))
    let start = ContinuousClock.now
    let error = #expect(throws: TraitError.self) { try inbox.receive(into: &batch) }
    #expect(error?.code == .wouldBlock)
    #expect(ContinuousClock.now - start >= .milliseconds(90))

    try inbox.setReceiveTimeout(nil)
    _ = try repeating {
      usleep(50_000)
      try outbox.send(([1, 2, 3] as [UInt8]).span.bytes, to: destination)
    } during: { _ in
      let count = try inbox.receive(into: &batch)
      #expect(count >= 1)
      #expect(count < 100, "it waited until the batch was full")
      #expect(batch.payload(at: 0) == [1, 2, 3])
    }
  }

  @Test("are sent in order, with a result for each", arguments: families)
  func send(family: InternetAddress.Family) throws {
    let inbox = try loopbackSocket(family)
    try turnOn(
      inbox, family == .ipv4 ? Int32(IPPROTO_IP) : Int32(IPPROTO_IPV6),
      family == .ipv4 ? IP_RECVTOS : IPV6_RECVTCLASS)
    let destination = try inbox.localAddress()
    let outbox = try loopbackSocket(family)
    var tos = ControlData()
    tos.append(
      level: family == .ipv4 ? .ipv4 : .ipv6,
      type: .init(rawValue: family == .ipv4 ? IP_TOS : IPV6_TCLASS), Int32(0x18))
    var batch = SendBatch()
    #expect(try outbox.send(batch).isEmpty)
    func payload(_ number: UInt8, _ count: Int) -> [UInt8] { [UInt8](repeating: number, count: count) }
    // Too long, and without an address: each first, in the middle and last.
    for number in 0..<9 as Range<UInt8> {
      switch number {
      case 0, 4: batch.append(payload(number, 70_000).span.bytes, to: destination)
      case 3, 8: batch.append(payload(number, 1).span.bytes)
      case 5: batch.append(payload(number, 0).span.bytes, to: destination)
      case 6: batch.append(payload(number, 2).span.bytes, to: destination, control: tos)
      default: batch.append(payload(number, 1).span.bytes, to: destination)
      }
    }
    #expect(batch.count == 9)
    let (tooLong, nowhere) = (Errno.messageTooLong, Errno(rawValue: EDESTADDRREQ))
    let results = try outbox.send(batch)
    #expect(
      results.map { $0.mapError { $0.underlyingError ?? Errno(rawValue: 0) } } == [
        .failure(tooLong), .success(1), .success(1), .failure(nowhere), .failure(tooLong), .success(0),
        .success(2), .success(1), .failure(nowhere),
      ])
    #expect(
      results.allSatisfy {
        if case .failure(let error) = $0 { error.code == .systemCall } else { true }
      })
    #expect(
      outbox.unsafeFileDescriptor.sendMessages(batch).map { (try? $0.get()) ?? -1 }
        == [-1, 1, 1, -1, -1, 0, 2, 1, -1])

    var room = ReceiveBatch(capacity: 20, payloadCapacity: 10)
    var received: [[UInt8]] = []
    while received.count < 10 {
      for index in 0..<(try inbox.receive(into: &room)) {
        received.append(room.payload(at: index))
        let values = try room.withControl(at: index) { control in
          try ControlMessage.all(in: control).map { control.extracting($0.dataRange).array[0] }
        }
        #expect(values == [received.last == [6, 6] ? 0x18 : 0])
      }
    }
    #expect(received == [[1], [2], [], [6, 6], [7], [1], [2], [], [6, 6], [7]])

    batch.removeAll(keepingCapacity: true)
    #expect(batch.count == 0)
    batch.append(([9] as [UInt8]).span.bytes, to: destination)
    #expect(try outbox.send(batch).map { try $0.get() } == [1])
    #expect(try inbox.receive(into: &room) == 1)
    #expect(room.payload(at: 0) == [9])
  }

  @Test("of more datagrams than the kernel takes at once are sent, all of them")
  func many() throws {
    // Where nothing is lost: who sends waits until there is room.
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
    let (outbox, inbox) = (FileDescriptor(rawValue: ends[0]), FileDescriptor(rawValue: ends[1]))
    defer {
      try? outbox.close()
      try? inbox.close()
    }
    // The kernel takes 1024 (UIO_MAXIOV) and says nothing of the others.
    let payloads = (0..<2500 as Range<UInt32>).map { number in
      withUnsafeBytes(of: number) { Array($0) } + [UInt8](repeating: 7, count: Int(number % 61))
    }
    var batch = SendBatch()
    for payload in payloads { batch.append(payload.span.bytes) }
    let received = Mutex<[[UInt8]]>([])
    // Its room is used by the reader's thread alone.
    let room = Mutex(ReceiveBatch(capacity: 16, payloadCapacity: 100))
    _ = try repeating {
      room.withLock { room in
        guard (try? inbox.receiveMessages(into: &room, flags: .doNotWait)) != nil else { return }
        for index in 0..<room.count {
          let payload = room.payload(at: index)
          received.withLock { $0.append(payload) }
        }
      }
      usleep(10)
    } during: { _ in
      let results = outbox.sendMessages(batch)
      #expect(results == payloads.map { .success($0.count) })
      let end = ContinuousClock.now + hangLimit
      while received.withLock(\.count) < payloads.count, ContinuousClock.now < end { usleep(1000) }
    }
    #expect(received.withLock { $0 } == payloads)
  }

  @Test("are not overtaken by what is behind them when there is no room")
  func order() throws {
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
    let (outbox, inbox) = (FileDescriptor(rawValue: ends[0]), FileDescriptor(rawValue: ends[1]))
    defer {
      try? outbox.close()
      try? inbox.close()
    }
    var batch = SendBatch()
    let byte: [UInt8] = [1]
    for _ in 0..<20_000 { batch.append(byte.span.bytes) }
    // Somebody makes room all the time, so that what is tried later may go.
    let fullRounds = try repeating {
      var bytes: [UInt8] = [0]
      recv(inbox.rawValue, &bytes, 1, Int32(MSG_DONTWAIT))
    } during: { reader in
      var fullRounds = 0
      let deadline = ContinuousClock.now + hangLimit
      while fullRounds < 20, ContinuousClock.now < deadline {
        let rounds = try reader.count()
        let results = outbox.sendMessages(batch, flags: .doNotWait)
        #expect(results.count == 20_000)
        guard let sent = results.firstIndex(of: .failure(.wouldBlock)) else { continue }
        fullRounds += 1
        #expect(results[..<sent].allSatisfy { $0 == .success(1) })
        #expect(results[sent...].allSatisfy { $0 == .failure(.wouldBlock) })
        while try reader.count() < rounds + 50 { usleep(100) }
      }
      return fullRounds
    }
    #expect(fullRounds == 20, "there was room all the time")
  }
}

/// The address of a socket that the test owns.
private func localAddress(_ descriptor: FileDescriptor) throws -> InternetAddress {
  let socket = try UDPSocket(owning: descriptor)
  let address = try socket.localAddress()
  _ = socket.release()
  return address
}
