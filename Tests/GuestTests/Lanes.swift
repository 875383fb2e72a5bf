// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing

@testable import PacketTraits

extension Guest {
  /// A kind of socket, by what passes between two of them.
  enum Kind: String, CaseIterable, CustomTestStringConvertible {
    case udp4 = "UDP over IPv4"
    case udp6 = "UDP over IPv6"
    case fromIPv6 = "UDP over IPv4 from an IPv6 socket"
    case toIPv6 = "UDP over IPv4 to an IPv6 socket"
    case lite4 = "UDP-Lite over IPv4"
    case lite6 = "UDP-Lite over IPv6"
    case liteMapped = "UDP-Lite over IPv4 between IPv6 sockets"
    case raw4 = "raw over IPv4"
    case raw6 = "raw over IPv6"
    case header4 = "raw with a header of its own over IPv4"
    case header6 = "raw with a header of its own over IPv6"
    case ping4 = "ICMP to raw over IPv4"
    case ping6 = "ICMP to raw over IPv6"
    case pong4 = "raw to ICMP over IPv4"
    case pong6 = "raw to ICMP over IPv6"
    case packet4 = "UDP to packet over IPv4"
    case packet6 = "UDP to packet over IPv6"

    var testDescription: String { rawValue }

    /// The protocol that the packets are of.
    var family: InternetAddress.Family {
      switch self {
      case .udp4, .fromIPv6, .toIPv6, .lite4, .liteMapped, .raw4, .header4, .ping4, .pong4, .packet4:
        .ipv4
      default: .ipv6
      }
    }

    var isUDP: Bool { [.udp4, .udp6, .fromIPv6, .toIPv6, .packet4, .packet6].contains(self) }
    var isICMP: Bool { [.ping4, .ping6, .pong4, .pong6].contains(self) }

    /// Those whose sender is of another kind than that of all before.
    static let senders: [Kind] = asked(of: [
      .udp4, .udp6, .fromIPv6, .lite4, .lite6, .liteMapped, .raw4, .raw6, .header4, .header6, .ping4,
      .ping6,
    ])

    /// Those of which a message can be sent in pieces, whatever the pieces are.
    static let corking: [Kind] = asked(of: [
      .udp4, .udp6, .fromIPv6, .lite4, .lite6, .liteMapped, .raw4, .raw6,
    ])

    /// Those whose receiver is of another kind than that of all before.
    static let receivers: [Kind] = asked(of: [
      .udp4, .udp6, .toIPv6, .lite4, .lite6, .liteMapped, .raw4, .raw6, .pong4, .pong6, .packet4,
      .packet6,
    ])
  }

  /// Two sockets of some kind in the cable's receiving namespace, where what one sends comes to
  /// the other over the loopback interface. The sender is connected.
  final class Lane {
    static let identifier: UInt16 = 0x4321
    private static let udpLite: Int32 = 136
    /// A protocol for experiments (RFC 3692)
    static let experiment: Int32 = 253

    let kind: Kind
    let namespace: NetworkNamespace
    let inbox: FileDescriptor
    let outbox: FileDescriptor
    let destination: InternetAddress
    private var others: [FileDescriptor] = []

    init(_ kind: Kind, keys: [TraitID] = []) throws {
      let namespace = try suiteCable().receiver.namespace
      self.kind = kind
      self.namespace = namespace
      let family = kind.family
      let host =
        family == .ipv6 ? "::1" : [.fromIPv6, .liteMapped].contains(kind) ? "::ffff:127.0.0.1" : "127.0.0.1"
      let icmp = family == .ipv4 ? Int32(IPPROTO_ICMP) : 58
      let (datagram, raw) = (SOCK_DGRAM.rawValue, SOCK_RAW.rawValue)
      func socket(_ family: InternetAddress.Family, _ type: UInt32, _ proto: Int32) throws -> FileDescriptor {
        try Self.open(namespace, family.domain, type, proto)
      }
      let port: UInt16
      switch kind {
      case .udp4, .udp6, .fromIPv6, .toIPv6:
        inbox = try socket(kind == .toIPv6 ? .ipv6 : family, datagram, 0)
        outbox = try socket(kind == .fromIPv6 ? .ipv6 : family, datagram, 0)
        port = Guest.port
      case .lite4, .lite6, .liteMapped:
        inbox = try socket(kind == .lite4 ? .ipv4 : .ipv6, datagram, Self.udpLite)
        outbox = try socket(kind == .lite4 ? .ipv4 : .ipv6, datagram, Self.udpLite)
        port = Guest.port
      case .raw4, .raw6:
        inbox = try socket(family, raw, Self.experiment)
        outbox = try socket(family, raw, Self.experiment)
        port = 0
      case .header4, .header6:
        inbox = try socket(family, raw, Self.experiment)
        outbox = try socket(family, raw, Int32(IPPROTO_RAW))
        port = 0
      case .ping4, .ping6:
        inbox = try socket(family, raw, icmp)
        try namespace.setParameter("net/ipv4/ping_group_range", "0 2147483647")
        outbox = try socket(family, datagram, icmp)
        port = 0
      case .pong4, .pong6:
        try namespace.setParameter("net/ipv4/ping_group_range", "0 2147483647")
        inbox = try socket(family, datagram, icmp)
        outbox = try socket(family, raw, icmp)
        port = 0
      case .packet4, .packet6:
        inbox = try namespace.openPacketSocket(on: "lo", type: family == .ipv4 ? 0x0800 : 0x86dd)
        outbox = try socket(family, datagram, 0)
        // Nobody there would be told of by a packet as well.
        let listener = try socket(family, datagram, 0)
        others.append(listener)
        port = Guest.port
        try Self.bind(listener, .any(family, port: port))
      }
      destination = try #require(InternetAddress(host, port: port))
      switch kind {
      case .udp4, .udp6, .fromIPv6, .lite4, .lite6: try Self.bind(inbox, .any(family, port: port))
      case .toIPv6, .liteMapped: try Self.bind(inbox, .any(.ipv6, port: port))
      case .pong4, .pong6:
        try Self.bind(inbox, try #require(InternetAddress(host, port: Self.identifier)))
      case .ping4, .ping6:
        try Self.bind(outbox, try #require(InternetAddress(host, port: Self.identifier)))
        try onlyRequests()
      default: break
      }
      let status = destination.withSockaddr { connect(outbox.rawValue, $0, $1) }
      try #require(status == 0, "connect: errno \(errno)")
      var time = timeval(tv_sec: 10, tv_usec: 0)
      setsockopt(
        inbox.rawValue, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
      try inbox.setReceivedTraits(TraitMask(keys))
    }

    deinit {
      for descriptor in others + [inbox, outbox] { try? descriptor.close() }
    }

    static func open(
      _ namespace: NetworkNamespace, _ family: Int32, _ type: UInt32, _ proto: Int32
    ) throws -> FileDescriptor {
      try namespace.run {
        let number = Glibc.socket(family, Int32(type | SOCK_CLOEXEC.rawValue), proto)
        try #require(number >= 0, "socket(\(family), \(type), \(proto)): errno \(errno)")
        if family == AF_INET6, type == SOCK_DGRAM.rawValue {
          var off: Int32 = 0
          setsockopt(number, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &off, 4)
        }
        return FileDescriptor(rawValue: number)
      }
    }

    static func bind(_ socket: FileDescriptor, _ address: InternetAddress) throws {
      let status = address.withSockaddr { Glibc.bind(socket.rawValue, $0, $1) }
      try #require(status == 0, "bind to \(address): errno \(errno)")
    }

    /// Keeps the kernel's own replies away from a raw socket (raw(7), RFC 3542).
    private func onlyRequests() throws {
      // ICMP_FILTER and ICMP6_FILTER, both 1: a bit for each type that is not wanted.
      if kind.family == .ipv4 {
        var filter: UInt32 = ~(1 << 8)
        try #require(setsockopt(inbox.rawValue, 255, 1, &filter, 4) == 0)
      } else {
        var filter = [UInt32](repeating: .max, count: 8)
        filter[4] = ~1
        try #require(setsockopt(inbox.rawValue, 58, 1, &filter, 32) == 0)
      }
      // What came before that, as of neighbours along the cable.
      var room: UInt8 = 0
      while recv(inbox.rawValue, &room, 1, Int32(MSG_DONTWAIT)) >= 0 {}
    }

    /// What a socket of this kind is to send.
    func message(_ number: UInt32) -> [UInt8] {
      let payload = TagProgram.payload(number)
      switch kind {
      case .header4: return Self.header4(of: payload.count, UInt8(Self.experiment)) + payload
      case .header6: return Self.header6(of: payload.count, UInt8(Self.experiment)) + payload
      case .ping4, .ping6: return Self.echo(kind.family, isReply: false, 0, payload)
      case .pong4, .pong6: return Self.echo(kind.family, isReply: true, Self.identifier, payload)
      default: return payload
      }
    }

    /// Whether that is it, headers apart.
    func isMessage(_ received: [UInt8], _ number: UInt32) -> Bool {
      received.suffix(36) == TagProgram.payload(number)[...]
    }

    static func header4(of count: Int, _ proto: UInt8) -> [UInt8] {
      [0x45, 0, 0, UInt8(20 + count), 0, 0, 0, 0, 64, proto, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]
    }

    static func header6(of count: Int, _ proto: UInt8) -> [UInt8] {
      let loopback = [UInt8](repeating: 0, count: 15) + [1]
      return [0x60, 0, 0, 0, 0, UInt8(count), proto, 64] + loopback + loopback
    }

    /// An echo message (RFC 792, RFC 4443).
    static func echo(
      _ family: InternetAddress.Family, isReply: Bool, _ identifier: UInt16, _ payload: [UInt8]
    ) -> [UInt8] {
      let type: UInt8 = family == .ipv4 ? (isReply ? 0 : 8) : (isReply ? 129 : 128)
      return icmp(
        family, [type, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 255), 0, 1] + payload)
    }

    /// With the checksum of an IPv4 message; that of IPv6 is the kernel's task.
    static func icmp(_ family: InternetAddress.Family, _ message: [UInt8]) -> [UInt8] {
      guard family == .ipv4 else { return message }
      var bytes = message
      var sum: UInt32 = 0
      for index in stride(from: 0, to: bytes.count, by: 2) {
        sum += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
      }
      while sum > 0xffff { sum = sum >> 16 + sum & 0xffff }
      bytes[2] = ~UInt8(sum >> 8)
      bytes[3] = ~UInt8(sum & 255)
      return bytes
    }

    /// The protocol of what is sent, as the IP header says it.
    var ipProtocol: UInt8 {
      switch kind {
      case .lite4, .lite6, .liteMapped: 136
      case .raw4, .raw6, .header4, .header6: UInt8(Self.experiment)
      case .ping4, .ping6, .pong4, .pong6: kind.family == .ipv4 ? 1 : 58
      default: 17
      }
    }

    /// What the sender is to be told of each packet that it sends (timestamping.rst).
    struct Stamps: OptionSet {
      let rawValue: UInt32

      /// SOF_TIMESTAMPING_TX_SOFTWARE: when the device has it.
      static let software = Stamps(rawValue: 1 << 1)
      /// SOF_TIMESTAMPING_TX_SCHED: when it is queued.
      static let scheduled = Stamps(rawValue: 1 << 8)
      /// SOF_TIMESTAMPING_OPT_TSONLY: without the packet.
      static let alone = Stamps(rawValue: 1 << 11)
    }

    /// Lets the sender's error queue tell when packets were sent.
    func stampSent(_ stamps: Stamps) throws {
      // SO_TIMESTAMPING; SOF_TIMESTAMPING_SOFTWARE is needed for any to be told of.
      var flags = stamps.rawValue | 1 << 4
      try #require(setsockopt(outbox.rawValue, SOL_SOCKET, 37, &flags, 4) == 0, "errno \(errno)")
    }

    func send(_ number: UInt32, _ traits: Traits = Traits(), flags: MessageFlags = []) throws {
      let message = message(number)
      _ = try Guest.insisting {
        try outbox.sendMessage(message.span.bytes, traits: traits, flags: flags)
      }
    }

    func setSentTraits(_ traits: Traits) throws {
      try Guest.insisting { try outbox.setSentTraits(traits) }
    }

    /// Sends one byte, as part of a message.
    func send(piece: UInt8, _ traits: Traits = Traits(), isLast: Bool = false) throws {
      let bytes = [piece]
      _ = try Guest.insisting {
        try outbox.sendMessage(bytes.span.bytes, traits: traits, flags: isLast ? [] : .more)
      }
    }

    /// Receives one message.
    func arrival(
      payloadRoom: Int = 4096, controlRoom: Int = 4096, flags: MessageFlags = []
    ) throws -> Arrival {
      try Guest.arrival(inbox, payloadRoom: payloadRoom, controlRoom: controlRoom, flags: flags)
    }

    /// Receives one message, and expects it to be this one with these traits.
    func expect(
      _ number: UInt32, _ traits: Traits, flags: MessageFlags = [],
      sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      let arrival = try arrival(flags: flags)
      #expect(isMessage(arrival.payload, number), sourceLocation: sourceLocation)
      #expect(try arrival.traits == traits, sourceLocation: sourceLocation)
      #expect(!arrival.message.flags.contains(.controlTruncated), sourceLocation: sourceLocation)
    }

    /// What is sent over the loopback interface has arrived when the call is over.
    func expectNothing(sourceLocation: SourceLocation = #_sourceLocation) {
      do {
        let arrival = try arrival(flags: .doNotWait)
        Issue.record("a message is there: \(arrival.payload)", sourceLocation: sourceLocation)
      } catch {
        #expect(error as? Errno == .wouldBlock, sourceLocation: sourceLocation)
      }
    }
  }

  /// Receives from a socket of any kind.
  static func arrival(
    _ socket: FileDescriptor, payloadRoom: Int = 4096, controlRoom: Int = 4096,
    flags: MessageFlags = []
  ) throws -> Arrival {
    var payloadBytes = [UInt8](repeating: 0, count: payloadRoom)
    var controlBytes = [UInt8](repeating: 0xee, count: controlRoom)
    let message: ReceivedMessage
    do {
      var payloadElements = payloadBytes.mutableSpan
      var payload = payloadElements.mutableBytes
      var controlElements = controlBytes.mutableSpan
      var control = controlElements.mutableBytes
      message = try socket.receiveMessage(into: &payload, control: &control, flags: flags)
    }
    return Arrival(
      payload: Array(payloadBytes[..<message.length]), message: message,
      control: Array(controlBytes[..<message.controlLength]))
  }

  /// Makes a call that returns an errno value, positive or negative, again and again where memory is
  /// made to be short.
  static func insistingStatus<Status: SignedInteger>(_ call: () -> Status) -> Status {
    var status = call()
    for _ in 0..<200 where storesMayFail && [ENOMEM, ENOBUFS].contains(Int32(status.magnitude)) {
      status = call()
    }
    return status
  }

  /// Some keys of all sizes, and what a packet may have of them.
  struct Sample {
    let ids: [TraitID]
    let traits: Traits
    let others: Traits

    static let sizes: [TraitSize] = [.bytes4, .bytes8, .bytes16]

    init(_ ids: [TraitID]) throws {
      self.ids = ids
      traits = try Traits(zip(ids, Self.sizes).map { ($0, Guest.value($1, 1)) })
      others = try Traits(zip(ids, Self.sizes).map { ($0, Guest.value($1, 2)) })
    }

    static func with(_ body: (Sample) throws -> Void) throws {
      try Guest.withKeys(sizes) { try body(Sample($0)) }
    }
  }
}

extension Arrival {
  /// Whether there is a control message with traits.
  var hasTraits: Bool {
    get throws { try controlMessages.contains(where: \.isTraits) }
  }
}
