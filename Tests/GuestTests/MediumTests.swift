// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// What a packet goes through between a router and a receiver, by whatever devices, tunnels or
/// routes are set up at both ends of the cable between them.
enum Medium: String, CaseIterable, CustomTestStringConvertible, Sendable {
  case plain = "a cable"
  case vlan = "VLAN"
  /// Two tags: a veth takes the outer one beside the packet.
  case qinq = "QinQ"
  case macvlan
  case ipvlan
  case bridge
  case bonding
  case ipip = "IPIP"
  case sit = "SIT"
  case ip6tnl = "IPv6 tunnel"
  case gre = "GRE"
  case greKeyed = "GRE with a key and checksums"
  case gretap = "GRE, Ethernet"
  case ip6gre = "GRE over IPv6"
  case ip6gretap = "GRE, Ethernet over IPv6"
  case vxlan = "VXLAN"
  case vxlan6 = "VXLAN over IPv6"
  case geneve = "Geneve"
  case geneve6 = "Geneve over IPv6"
  case mpls = "route, MPLS"
  case seg6 = "route, segments of IPv6 in a header of its own"
  case seg6Inline = "route, segments of IPv6 in the packet's header"
  case ioam6 = "route, in-band measurement of IPv6"
  case transport = "IPsec, transport"
  case tunnel = "IPsec, tunnel"
  case xfrm = "IPsec, interface"
  case program = "route, BPF"
  case nested = "Geneve in GRE in IPIP"

  var testDescription: String { rawValue }

  var routes: [Guest.Route] {
    switch self {
    case .ipip, .program: [.ipv4]
    case .sit, .seg6Inline, .ioam6: [.ipv6]
    default: [.ipv4, .ipv6]
    }
  }

  /// How a packet looks when it comes out of the cable.
  func incoming(_ route: Guest.Route) -> ScriptPackets {
    switch self {
    case .plain, .vlan, .macvlan, .ipvlan, .bridge, .bonding: .port(Guest.port)
    case .qinq: .ethertype(0x8100)
    case .ipip, .program, .nested: .ipProtocol(4)
    case .sit: .ipProtocol(41)
    case .ip6tnl: .ipProtocol(route == .ipv6 ? 41 : 4)
    case .gre, .greKeyed, .gretap, .ip6gre, .ip6gretap: .ipProtocol(47)
    case .vxlan, .vxlan6: .port(4789)
    case .geneve, .geneve6: .port(6081)
    case .mpls: .ethertype(0x8847)
    case .seg6, .seg6Inline: .ipProtocol(43)
    case .ioam6: .ipProtocol(0)
    case .transport, .tunnel, .xfrm: .ipProtocol(50)
    }
  }

  /// Whether each packet has a number of its own on the wire: of IPsec's 8 bytes, the last 4.
  var isNumbered: Bool { [.transport, .tunnel, .xfrm].contains(self) }

  /// Whether headers are put in front of a packet.
  var evicts: Bool { ![.plain, .vlan, .macvlan, .ipvlan, .bridge, .bonding].contains(self) }

  /// `ip` makes it at one end of the cable.
  private func device(at end: VethPair.End, to other: VethPair.End) -> [String] {
    let (v4, v6) = (
      "local \(end.ipv4) remote \(other.ipv4)", "local \(end.ipv6) remote \(other.ipv6)"
    )
    switch self {
    case .vlan: return ["link add link \(end.interface) name over type vlan id 7"]
    case .qinq:
      return [
        "link add link \(end.interface) name outer type vlan proto 802.1ad id 6", "link set outer up",
        "link add link outer name over type vlan id 7",
      ]
    case .macvlan: return ["link add link \(end.interface) name over type macvlan mode bridge"]
    case .ipvlan: return ["link add link \(end.interface) name over type ipvlan mode l2"]
    case .ipip: return ["link add over type ipip \(v4)"]
    case .sit: return ["link add over type sit \(v4)"]
    case .ip6tnl: return ["link add over type ip6tnl mode any encaplimit none \(v6)"]
    case .gre: return ["link add over type gre \(v4)"]
    case .greKeyed: return ["link add over type gre \(v4) key 77 csum"]
    case .gretap: return ["link add over type gretap \(v4)"]
    case .ip6gre: return ["link add over type ip6gre encaplimit none \(v6)"]
    case .ip6gretap: return ["link add over type ip6gretap encaplimit none \(v6)"]
    case .vxlan: return ["link add over type vxlan id 7 dstport 4789 \(v4)"]
    case .vxlan6: return ["link add over type vxlan id 7 dstport 4789 udp6zerocsumrx \(v6)"]
    case .geneve: return ["link add over type geneve id 7 remote \(other.ipv4)"]
    case .geneve6: return ["link add over type geneve id 7 udp6zerocsumrx remote \(other.ipv6)"]
    case .nested:
      let (own, peer) = end.ipv4.hasSuffix(".1") ? (1, 2) : (2, 1)
      return [
        "link add first type ipip \(v4)", "address add 10.91.0.\(own)/24 dev first", "link set first up",
        "link add second type gre local 10.91.0.\(own) remote 10.91.0.\(peer)",
        "address add 10.92.0.\(own)/24 dev second", "link set second up",
        "link add over type geneve id 7 remote 10.92.0.\(peer)",
      ]
    default: return []
    }
  }

  /// Sets up both ends of the cable, so that the router reaches the receiver as 10.88.0.2 and fd88::2.
  ///
  /// - Returns: What must live as long as that is to work.
  func setUp(_ line: Line) throws -> SkbProgram? {
    let ends = [
      (line.routing, line.far.sender, line.far.receiver, 1),
      (line.receiving, line.far.receiver, line.far.sender, 2),
    ]
    switch self {
    case .plain, .transport, .tunnel, .mpls, .seg6, .seg6Inline, .ioam6, .xfrm, .program:
      // The receiver's own addresses, for routes to lead to
      try line.receiving.ip(lines: [
        "link set lo up", "address add 10.88.0.2/32 dev lo", "address add fd88::2/128 dev lo nodad",
      ])
    case .bridge:
      // One network from the sender to the receiver, and no route in between
      try line.routing.ip(lines: [
        "link add over type bridge", "link set \(line.near.receiver.interface) master over",
        "link set \(line.far.sender.interface) master over", "link set over up",
      ])
      try line.sending.ip(lines: Self.addresses(1, line.near.sender.interface))
      try line.receiving.ip(lines: Self.addresses(2, line.far.receiver.interface))
      return nil
    case .bonding:
      let (slave, peer) = (line.far.sender.interface, line.far.receiver.interface)
      try line.routing.ip(
        lines: [
          "link add over type bond mode active-backup", "link set \(slave) down",
          "link set \(slave) master over", "link set over up",
        ] + Self.addresses(1, "over"))
      try line.receiving.ip(lines: Self.addresses(2, peer))
    case .macvlan, .ipvlan:
      try line.routing.ip(
        lines: device(at: line.far.sender, to: line.far.receiver) + Self.addresses(1, "over"))
      try line.receiving.ip(lines: Self.addresses(2, line.far.receiver.interface))
    default:
      for (namespace, end, other, number) in ends {
        try namespace.ip(lines: device(at: end, to: other) + Self.addresses(number, "over"))
      }
    }

    let (v4, v6) = (line.far.receiver.ipv4, line.far.receiver.ipv6)
    let out = line.far.sender.interface
    var program: SkbProgram?
    switch self {
    case .plain, .transport, .tunnel:
      try line.routing.ip(lines: ["route add 10.88.0.2 via \(v4)", "route add fd88::2 via \(v6)"])
    case .mpls:
      try line.receiving.setParameter("net/mpls/platform_labels", "100")
      try line.receiving.setParameter("net/mpls/conf/\(line.far.receiver.interface)/input", "1")
      try line.receiving.ip("-f", "mpls", "route", "add", "77", "dev", "lo")
      try line.routing.ip(lines: [
        "route add 10.88.0.2/32 encap mpls 77 via inet \(v4) dev \(out)",
        "route add fd88::2/128 encap mpls 77 via inet6 \(v6) dev \(out)",
      ])
    case .seg6, .seg6Inline:
      for device in ["all", line.far.receiver.interface] {
        try line.receiving.setParameter("net/ipv6/conf/\(device)/seg6_enabled", "1")
      }
      let encap = "encap seg6 mode \(self == .seg6 ? "encap" : "inline") segs \(v6) dev \(out)"
      if self == .seg6 { try line.routing.ip(lines: ["route add 10.88.0.2/32 \(encap)"]) }
      try line.routing.ip(lines: ["route add fd88::2/128 \(encap)"])
    case .ioam6:
      try line.receiving.ip(lines: ["link set ip6tnl0 up"])
      try line.routing.ip(lines: [
        "route add fd88::2/128 encap ioam6 mode encap tundst \(v6) trace prealloc type 0x800000 ns 1 "
          + "size 4 via \(v6) dev \(out)"
      ])
    case .program:
      try line.receiving.ip(lines: [
        "link add over type ipip local \(v4) remote \(line.far.sender.ipv4)", "link set over up",
      ])
      let script = try SkbProgram(
        .route, port: Guest.port,
        [.encapsulate(from: try bytes(of: line.far.sender.ipv4), to: try bytes(of: v4))])
      try script.addRoute("10.88.0.2/32 via \(v4) dev \(out)", in: line.routing)
      program = script
    default: break
    }
    if isNumbered { try setUpSecurity(line) }
    try line.sending.ip(lines: [
      "route replace 10.88.0.0/24 via \(line.near.receiver.ipv4)",
      "route replace fd88::/64 via \(line.near.receiver.ipv6)",
    ])
    return program
  }

  private static func addresses(_ number: Int, _ device: String) -> [String] {
    [
      "address add 10.88.0.\(number)/24 dev \(device)", "address add fd88::\(number)/64 dev \(device) nodad",
      "link set \(device) up",
    ]
  }

  /// No cipher and no digest: what is on the wire can be compared, and the guest spares itself
  /// the arithmetic.
  private func setUpSecurity(_ line: Line) throws {
    for isNewer in [false, true] {
      let spi = isNewer ? 258 : 257
      let source = isNewer ? line.near.sender.ipv6 : line.near.sender.ipv4
      let destination = isNewer ? "fd88::2" : "10.88.0.2"
      let bits = isNewer ? 128 : 32
      let isTransport = self == .transport
      let begin = isTransport ? source : isNewer ? line.far.sender.ipv6 : line.far.sender.ipv4
      let end = isTransport ? destination : isNewer ? line.far.receiver.ipv6 : line.far.receiver.ipv4
      let mode = isTransport ? "transport" : "tunnel"
      let number = self == .xfrm ? "if_id 7" : ""
      let lines = { (direction: String) in
        [
          "xfrm state add src \(begin) dst \(end) proto esp spi \(spi) reqid 1 mode \(mode) "
            + "auth digest_null \"\" enc cipher_null \"\" \(number)",
          "xfrm policy add src \(source)/\(bits) dst \(destination)/\(bits) dir \(direction) \(number) "
            + "tmpl src \(begin) dst \(end) proto esp reqid 1 mode \(mode)",
        ]
      }
      try line.routing.ip(lines: lines("out"))
      try line.receiving.ip(lines: lines("in"))
    }
    guard self == .xfrm else { return }
    for (namespace, end) in [
      (line.routing, line.far.sender.interface), (line.receiving, line.far.receiver.interface),
    ] {
      try namespace.ip(lines: ["link add over type xfrm dev \(end) if_id 7", "link set over up"])
    }
    try line.routing.ip(lines: ["route add 10.88.0.2/32 dev over", "route add fd88::2/128 dev over"])
  }
}

/// Frames that come out of a cable, without what differs from one to the next by itself.
struct Wiretap: ~Copyable {
  private let socket: FileDescriptor

  init(_ end: VethPair.End) throws {
    socket = try end.namespace.openTap(on: end.interface)
  }

  deinit { try? socket.close() }

  /// All that came since, of those that have a datagram's payload in them.
  func frames(with marks: [[UInt8]], _ medium: Medium) -> [[UInt8]] {
    var room = [UInt8](repeating: 0, count: 4096)
    var frames: [[UInt8]] = []
    while true {
      let count = recv(socket.rawValue, &room, room.count, Int32(MSG_DONTWAIT))
      guard count >= 0 else { return frames }
      let frame = Array(room[..<count])
      if marks.contains(where: { frame.indexes(of: $0).count > 0 }) { frames.append(normal(frame, medium)) }
    }
  }

  /// Without the identification and the checksum of each IPv4 header, and without ESP's number.
  private func normal(_ frame: [UInt8], _ medium: Medium) -> [UInt8] {
    var frame = frame
    func clear(_ range: Range<Int>) {
      for index in range where index < frame.count { frame[index] = 0 }
    }
    // Wherever one may begin: the source and destination addresses of this test, behind version,
    // length and protocol.
    for start in 14..<max(15, frame.count - 20) where frame[start] == 0x45 {
      let (source, destination) = (frame[start + 12], frame[start + 16])
      guard source == 10, destination == 10 else { continue }
      clear(start + 4..<start + 6)
      clear(start + 10..<start + 12)
      if medium.isNumbered, frame[start + 9] == 50 { clear(start + 24..<start + 28) }
    }
    if medium.isNumbered, frame.count > 62, frame[12] == 0x86, frame[20] == 50 { clear(58..<62) }
    return frame
  }
}

extension [UInt8] {
  fileprivate func indexes(of other: [UInt8]) -> [Int] {
    guard count >= other.count else { return [] }
    return (0...count - other.count).filter { start in
      self[start] == other[0] && self[start..<start + other.count] == other[...]
    }
  }
}

extension Guest {
  @Suite("What packets go through")
  struct MediumTests {
    /// Keys of 16 bytes, the last of which does not cross namespaces.
    private func withValues(_ count: Int, _ body: ([(TraitID, [UInt8])]) throws -> Void) throws {
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: count - 1), flags: .crossesNetworkNamespaces) {
        crossing in
        try Guest.withKeys([.bytes16]) { try body(distinct(crossing + $0)) }
      }
    }

    @Test("traits go through a device or tunnel, whose bytes are the same", arguments: Medium.asked)
    func through(medium: Medium) throws {
      try Line.with { line in
        let program = try medium.setUp(line)
        for route in medium.routes {
          let destination = try #require(
            InternetAddress(route == .ipv6 ? "fd88::2" : "10.88.0.2", port: Guest.port))
          let outbox = try line.near.outbox(route)
          try outward(medium, line, route, from: outbox, to: destination)
          try full(medium, line, route, from: outbox, to: destination)
          try inward(medium, line, route, from: outbox, to: destination)
        }
        if let program {
          // It saw them all.
          #expect(try program.results().steps.map(\.status) == [0])
          try program.detach()
        }
      }
    }

    /// What is set before headers are put in front arrives, if it crosses; and the bytes on the
    /// wire are those of packets without traits.
    private func outward(
      _ medium: Medium, _ line: Line, _ route: Route, from outbox: borrowing UDPSocket,
      to destination: InternetAddress
    ) throws {
      let payloads = (0..<3 as Range<UInt32>).map { TagProgram.payload($0, length: 200) }
      let wire = try Wiretap(line.far.receiver)
      func send(_ inbox: borrowing UDPSocket) throws -> [Traits] {
        var traits: [Traits] = []
        for payload in payloads {
          let arrival = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox).arrival
          #expect(arrival.payload == payload, "\(route)")
          traits.append(try arrival.traits)
        }
        return traits
      }
      var bare: [[UInt8]] = []
      do {
        let inbox = try line.receiving.inbox(route)
        try awaitPassage(from: outbox, to: destination, inbox)
        _ = wire.frames(with: payloads, medium)
        _ = try send(inbox)
        bare = wire.frames(with: payloads, medium)
        // Some are seen once more when nothing is left around them.
        #expect(bare.count >= 3 || Guest.storesMayFail, "\(route)")
      }
      for count in [2, 12] {
        try withValues(count) { values in
          let inbox = try line.receiving.inbox(route, values.map(\.0))
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: line.near.receiver)
          let right = try Traits(Array(values.dropLast()))
          for traits in try send(inbox) {
            #expect(
              traits == right || (Guest.storesMayFail && traits.isEmpty), "\(route), \(count) values")
          }
          let frames = wire.frames(with: payloads, medium)
          #expect(frames == bare || Guest.storesMayFail, "\(route), \(count) values")
          try tag.program.detach()
        }
      }
    }

    /// A full store leaves the headroom at most once, and is never anything but whole.
    private func full(
      _ medium: Medium, _ line: Line, _ route: Route, from outbox: borrowing UDPSocket,
      to destination: InternetAddress
    ) throws {
      try withValues(12) { values in
        let inbox = try line.receiving.inbox(route, values.map(\.0))
        let tag = try ScriptProgram(port: Guest.port, setting(values))
        try tag.program.attach(to: line.near.receiver)
        var passages = Passages()
        let changes = try Guest.changes {
          for sequence in 0..<10 as Range<UInt32> {
            let payload = TagProgram.payload(sequence, length: 200)
            let arrival = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox).arrival
            #expect(arrival.payload == payload)
            try passages.expect(arrival, Traits(Array(values.dropLast())), "\(route)")
          }
        }
        print(
          "full store, \(medium.rawValue), \(route.rawValue): \(changes.set) set, \(changes.evicted) evicted, "
            + "\(changes.copied) copied, \(changes.allocated) allocated")
        #expect(changes.discarded == 0)
        #expect(changes.evicted <= changes.set)
        #expect(changes.evicted > 0 || !medium.evicts)
        #expect(changes.lost == passages.lost || Guest.storesMayFail)
        if !Guest.storesMayFail { #expect(changes.set == 10) }
        try tag.program.detach()
      }
    }

    /// What is set where the packet arrives, headers and all, is there when they are taken away.
    private func inward(
      _ medium: Medium, _ line: Line, _ route: Route, from outbox: borrowing UDPSocket,
      to destination: InternetAddress
    ) throws {
      for count in [2, 12] {
        try withValues(count) { values in
          let inbox = try line.receiving.inbox(route, values.map(\.0))
          let tag = try ScriptProgram(medium.incoming(route), setting(values))
          try tag.program.attach(to: line.far.receiver)
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              let payload = TagProgram.payload(sequence, length: 200)
              let arrival = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox).arrival
              #expect(arrival.payload == payload, "\(route)")
              try passages.expect(arrival, Traits(values), "\(route), \(count) values")
            }
          }
          #expect(changes.set >= 5)
          #expect(changes.discarded == 0)
          #expect(changes.scrubbed == 0)
          #expect(changes.lost == passages.lost || Guest.storesMayFail)
          try tag.program.detach()
        }
      }
    }
  }
}
