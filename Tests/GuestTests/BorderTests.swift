// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// Two keys, one of which crosses namespaces, and a value for each.
private struct Pair {
  let local: TraitID
  let crossing: TraitID

  let localValue = (1...16).map { UInt8($0) }
  let crossingValue = (101...116).map { UInt8($0) }

  /// Steps that set both.
  var setting: [ScriptStep] {
    [.set(local.rawValue, localValue), .set(crossing.rawValue, crossingValue)]
  }

  /// What is left of both behind a border.
  var scrubbed: Traits {
    get throws { try Traits([(crossing, crossingValue)]) }
  }

  /// Steps by which a classifier looks at a packet that has at least the key which crosses.
  var looking: [ScriptStep] { [.need(crossing.rawValue), .get(local.rawValue)] }

  /// Whether a classifier saw the one key and not the other.
  func isScrubbed(_ results: ScriptResults) -> Bool {
    results.steps.map(\.status) == [16, -ENOENT] && results.steps[0].value == crossingValue
  }

  static func with(_ body: (Pair) throws -> Void) throws {
    try Guest.withKeys([.bytes16]) { local in
      try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { crossing in
        try body(Pair(local: local[0], crossing: crossing[0]))
      }
    }
  }
}

/// Three namespaces in a row: a cable leads from outside to the host, and a device from the
/// host inside.
private struct Row {
  let outside: NetworkNamespace
  let host: NetworkNamespace
  let inside: NetworkNamespace
  let cable: VethPair

  static func with(_ body: (Row) throws -> Void) throws {
    let outside = try NetworkNamespace("outside")
    defer { outside.remove() }
    let host = try NetworkNamespace("host")
    defer { host.remove() }
    let inside = try NetworkNamespace("inside")
    defer { inside.remove() }
    let cable = try VethPair(from: outside, to: host)
    try body(Row(outside: outside, host: host, inside: inside, cable: cable))
  }

  /// Makes the host a router between the cable and a device.
  func forward(to device: String) throws {
    try host.setParameter("net/ipv4/ip_forward", "1")
    try host.setParameter("net/ipv6/conf/all/forwarding", "1")
    try outside.ip(lines: routesToInside())
    try host.ip(lines: ["route add 10.88.0.2/32 dev \(device)", "route add fd88::2/128 dev \(device)"])
  }

  /// By way of the host.
  func routesToInside(from number: Int? = nil) -> [String] {
    [
      "route add 10.88.0.2/32 via \(cable.receiver.ipv4)" + (number.map { " src 10.88.0.\($0)" } ?? ""),
      "route add fd88::2/128 via \(cable.receiver.ipv6)" + (number.map { " src fd88::\($0)" } ?? ""),
    ]
  }

  /// Gives the device "over" its addresses, those of `number`.
  static func configure(_ number: Int, prefix: (Int, Int) = (24, 64), device: String = "over") -> [String] {
    [
      "address add 10.88.0.\(number)/\(prefix.0) dev \(device)",
      "address add fd88::\(number)/\(prefix.1) dev \(device) nodad", "link set \(device) up",
    ]
  }
}

/// A device inside, called "over", that lies on a device of the host.
enum Border: String, CaseIterable, CustomTestStringConvertible, Sendable {
  case vlan = "VLAN"
  case macvlan
  case ipvlanL2 = "ipvlan in mode l2"
  case ipvlanL3 = "ipvlan in mode l3"
  case ipvlanL3S = "ipvlan in mode l3s"
  case macsec = "MACsec"
  case macsecUnprotected = "MACsec, frames unprotected"
  case macsecUnchecked = "MACsec, frames unchecked"
  case hsr = "HSR"
  case l2tp = "L2TP"
  case xfrm = "xfrm interface"
  case vti = "VTI"
  case vti6 = "VTI over IPv6"
  case netkit

  var testDescription: String { rawValue }

  /// How the packets look where they come in from outside.
  var incoming: ScriptPackets {
    switch self {
    case .macsec, .macsecUnchecked: .ethertype(0x88e5)
    case .hsr: .ethertype(0x892f)
    case .xfrm, .vti, .vti6: .ipProtocol(50)
    case .l2tp: .port(6002)
    default: .port(Guest.port)
    }
  }

  /// How the packets look where they go outside.
  var outgoing: ScriptPackets {
    if case .port(6002) = incoming { return .port(6001) }
    return incoming
  }

  /// Whether datagrams come twice: along a ring both ways, and where an unprotected frame is
  /// for the device and for the one below it.
  fileprivate var doubles: Bool { self == .hsr || self == .macsecUnprotected }

  /// Whether it counts as hardware, having no link operations: what a packet has ends
  /// before the device sees it.
  fileprivate var isEnd: Bool { self == .l2tp }

  /// Whether it needs memory of the kind that stores outside of the headroom need.
  fileprivate var isSecured: Bool { [.xfrm, .vti, .vti6].contains(self) }

  /// Whether the datagrams' other end is that of the cable.
  fileprivate var isRouted: Bool { [.ipvlanL3, .ipvlanL3S, .netkit].contains(self) }

  fileprivate func outsideAddress(_ route: Guest.Route, _ row: Row) throws -> InternetAddress {
    if isRouted { return try row.cable.sender.address(route.family, port: Guest.port) }
    return try #require(InternetAddress(route == .ipv6 ? "fd88::1" : "10.88.0.1", port: Guest.port))
  }

  private static let secret = "0x" + String(repeating: "5a", count: 20)

  /// Security associations and policies of one end of an IPsec tunnel, as `ip` takes them.
  private static func tunnel(
    from near: String, to far: String, host: Int, spi: (out: Int, in: Int), states: String = "",
    policies: String = ""
  ) -> [String] {
    let peer = 3 - host
    let template = "proto esp reqid 1 mode tunnel"
    var lines = [
      "xfrm state add src \(near) dst \(far) proto esp spi \(spi.out) reqid 1 mode tunnel flag af-unspec "
        + "aead rfc4106(gcm(aes)) \(secret) 128 \(states)",
      "xfrm state add src \(far) dst \(near) proto esp spi \(spi.in) reqid 1 mode tunnel flag af-unspec "
        + "aead rfc4106(gcm(aes)) \(secret) 128 \(states)",
    ]
    for (mine, other) in [
      ("10.88.0.\(host)/32", "10.88.0.\(peer)/32"), ("fd88::\(host)/128", "fd88::\(peer)/128"),
    ] {
      lines += [
        "xfrm policy add src \(mine) dst \(other) dir out \(policies) tmpl src \(near) dst \(far) \(template)",
        "xfrm policy add src \(other) dst \(mine) dir in \(policies) tmpl src \(far) dst \(near) \(template)",
      ]
    }
    return lines
  }

  /// Makes the device, and what it needs outside.
  fileprivate func make(_ row: Row) throws {
    let (near, far) = (row.cable.receiver, row.cable.sender)
    let to = "link set over netns \(row.inside.name)"
    var isAddressed = true
    switch self {
    case .vlan:
      try row.outside.ip(
        lines: ["link add link \(far.interface) name over type vlan id 5"] + Row.configure(1))
      try row.host.ip(lines: ["link add link \(near.interface) name over type vlan id 5", to])
    case .macvlan, .ipvlanL2:
      let type = self == .macvlan ? "macvlan mode bridge" : "ipvlan mode l2"
      try row.outside.ip(lines: Row.configure(1, device: far.interface))
      try row.host.ip(lines: ["link add link \(near.interface) name over type \(type)", to])
    case .ipvlanL3, .ipvlanL3S:
      let mode = self == .ipvlanL3 ? "l3" : "l3s"
      try row.outside.ip(lines: row.routesToInside())
      try row.host.ip(lines: ["link add link \(near.interface) name over type ipvlan mode \(mode)", to])
    case .macsec, .macsecUnprotected, .macsecUnchecked:
      let options =
        switch self {
        case .macsec: "encrypt on"
        case .macsecUnprotected: "protect off validate check"
        default: "encrypt off validate disabled"
        }
      let ends = [(row.outside, far, near, 1), (row.host, near, far, 2)]
      for (namespace, end, other, number) in ends {
        let peer = try other.ethernetAddress().map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
          .joined(separator: ":")
        let key = { (number: Int) in "key 0\(number) " + String(repeating: "0\(number)", count: 16) }
        try namespace.ip(lines: [
          "link add link \(end.interface) name over type macsec port 1 \(options)",
          "macsec add over tx sa 0 pn 1 on \(key(number))",
          "macsec add over rx port 1 address \(peer)",
          "macsec add over rx port 1 address \(peer) sa 0 pn 1 on \(key(3 - number))",
        ])
      }
      try row.outside.ip(lines: Row.configure(1))
      try row.host.ip(lines: [to])
    case .hsr:
      let second = try VethPair(from: row.outside, to: row.host, network: 2)
      try row.outside.ip(
        lines: [
          "link add over type hsr slave1 \(far.interface) slave2 \(second.sender.interface) version 1"
        ] + Row.configure(1))
      try row.host.ip(
        lines: [
          "link add over netns \(row.inside.name) type hsr slave1 \(near.interface) "
            + "slave2 \(second.receiver.interface) version 1"
        ])
    case .l2tp:
      try row.outside.ip(
        lines: [
          "l2tp add tunnel tunnel_id 1 peer_tunnel_id 2 encap udp local \(far.ipv4) remote \(near.ipv4) "
            + "udp_sport 6001 udp_dport 6002",
          "l2tp add session name over tunnel_id 1 session_id 1 peer_session_id 2",
        ] + Row.configure(1))
      try row.host.ip(lines: [
        "l2tp add tunnel tunnel_id 2 peer_tunnel_id 1 encap udp local \(near.ipv4) remote \(far.ipv4) "
          + "udp_sport 6002 udp_dport 6001",
        "l2tp add session name over tunnel_id 2 session_id 2 peer_session_id 1", to,
      ])
    case .xfrm, .vti, .vti6:
      let (own, peer) = self == .vti6 ? (near.ipv6, far.ipv6) : (near.ipv4, far.ipv4)
      try row.outside.ip(
        lines: Row.configure(1, prefix: (32, 128), device: far.interface) + row.routesToInside(from: 1)
          + Self.tunnel(from: peer, to: own, host: 1, spi: (257, 258)))
      let type =
        switch self {
        case .xfrm: "xfrm dev \(near.interface) if_id 7"
        case .vti: "vti local \(own) remote \(peer) key 7"
        default: "vti6 local \(own) remote \(peer) key 7"
        }
      try row.host.ip(
        lines: ["link add over type \(type)", to]
          + Self.tunnel(
            from: own, to: peer, host: 2, spi: (258, 257), states: self == .xfrm ? "if_id 7" : "",
            policies: self == .xfrm ? "if_id 7" : "mark 7"))
    case .netkit:
      // Without options it makes the other end itself, and calls it nk0.
      try row.host.ip(lines: [
        "link add primary type netkit", "link set nk0 name over", to, "link set primary up",
      ])
      try row.inside.ip(lines: Row.configure(2, prefix: (32, 128)))
      try row.forward(to: "primary")
      isAddressed = false
    }
    if isAddressed { try row.inside.ip(lines: Row.configure(2, prefix: isRouted ? (32, 128) : (24, 64))) }
    if isRouted {
      try row.inside.ip(lines: ["route add default dev over", "route add ::/0 dev over"])
    }
  }
}

extension Guest {
  @Suite("Borders between network namespaces")
  struct BorderTests {
    @Test(
      "through a device inside, in and out, come the keys that cross", arguments: Border.asked)
    func device(border: Border) throws {
      try Row.with { row in
        try border.make(row)
        try Pair.with { pair in
          for route in [Route.ipv4, .ipv6] {
            try inward(border, route, row, pair)
            try outward(border, route, row, pair)
          }
        }
      }
    }

    private func inward(_ border: Border, _ route: Route, _ row: Row, _ pair: Pair) throws {
      let inbox = try row.inside.inbox(route, [pair.local, pair.crossing])
      let outbox = try row.outside.run { try UDPSocket(route.family) }
      let destination = try #require(
        InternetAddress(route == .ipv6 ? "fd88::2" : "10.88.0.2", port: Guest.port))
      try awaitPassage(from: outbox, to: destination, inbox)

      let tag = try ScriptProgram(border.incoming, pair.setting)
      try tag.program.attach(to: row.cable.receiver)
      let changes = try pass(
        outbox, destination, inbox, pair, border, "in, \(route)")
      // Those whose store found no memory have nothing left to be scrubbed.
      if case .port(Guest.port) = border.incoming {
        #expect(changes.set == 5, "\(route)")
        #expect(changes.scrubbed + changes.lost == 5, "\(route)")
      } else {
        // Tagged by its type, or in its tunnel, is whatever else the machine sends.
        #expect(changes.set >= 5, "\(route)")
        #expect(changes.scrubbed + changes.lost >= 5, "\(route)")
      }
      try tag.program.detach()
    }

    private func outward(_ border: Border, _ route: Route, _ row: Row, _ pair: Pair) throws {
      let inbox = try row.outside.inbox(route, [pair.local, pair.crossing])
      let outbox = try row.inside.run { try UDPSocket(route.family) }
      let destination = try border.outsideAddress(route, row)
      try awaitPassage(from: outbox, to: destination, inbox)

      let tag = try SkbProgram(.classifier, port: Guest.port, pair.setting)
      try tag.attach(to: "over", in: row.inside, .egress)
      // In the host's namespace, before the cable, which is a border as well.
      let seen = try SkbProgram(.classifier, border.outgoing, pair.looking)
      try seen.attach(to: row.cable.receiver, .egress)
      let changes = try pass(
        outbox, destination, inbox, pair, border, isOutward: true, "out, \(route)")
      let results = try seen.results()
      if Guest.storesMayFail {
        // One that was seen with what it has to have arrived with it; others were lost on their
        // way, or never given anything.
        #expect(changes.scrubbed <= changes.set * (border == .hsr ? 2 : 1), "\(route)")
        #expect(results.runs <= changes.set, "\(route)")
        #expect(results.runs == 0 || pair.isScrubbed(results), "\(route)")
      } else {
        #expect(changes.set == 5, "\(route)")
        // A ring takes a copy each way.
        #expect(changes.scrubbed == (border.isEnd ? 0 : border == .hsr ? 10 : 5), "\(route)")
        #expect(results.runs == (border.isEnd ? 0 : 5), "\(route)")
        #expect(border.isEnd || pair.isScrubbed(results), "\(route)")
      }
      try seen.detach()
      try tag.detach()
    }

    /// Five datagrams, each of which arrives with the key that crosses.
    private func pass(
      _ outbox: borrowing UDPSocket, _ destination: InternetAddress, _ inbox: borrowing UDPSocket,
      _ pair: Pair, _ border: Border, isOutward: Bool = false, _ comment: Comment
    ) throws -> TraitStatistics {
      let right = isOutward && border.isEnd ? Traits() : try pair.scrubbed
      var passages = Passages()
      let before = try Guest.statistics()
      for sequence in 0..<5 as Range<UInt32> {
        let payload = TagProgram.payload(sequence, length: 100)
        if border.isSecured {
          let arrival = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox).arrival
          #expect(arrival.payload == payload, comment)
          try passages.expect(arrival, right, comment)
          continue
        }
        try outbox.send(payload, to: destination)
        var arrival = try inbox.arrival()
        for _ in 0..<10 where border.doubles && arrival.payload != payload { arrival = try inbox.arrival() }
        #expect(arrival.payload == payload, comment)
        try passages.expect(arrival, right, comment)
      }
      let changes = try Guest.statistics() - before
      #expect(changes.lost == 0 || Guest.storesMayFail, comment)
      #expect(changes.discarded == 0, comment)
      return changes
    }

    // MARK: Copies

    /// What brings a copy of a frame inside, while the host gets the frame.
    enum Copier: String, CaseIterable, CustomTestStringConvertible {
      case macvlanBroadcast = "macvlan, broadcast"
      case macvlanSource = "macvlan in mode source"
      case ipvlanBroadcast = "ipvlan, broadcast"

      var testDescription: String { rawValue }
    }

    @Test("a copy that comes inside has the keys that cross, the original has all", arguments: Copier.asked)
    func copy(copier: Copier) throws {
      try Row.with { row in
        let lower = row.cable.receiver.interface
        let sender = try row.cable.sender.ethernetAddress()
        let type =
          switch copier {
          case .macvlanBroadcast: "macvlan mode bridge"
          case .macvlanSource: "macvlan mode source"
          case .ipvlanBroadcast: "ipvlan mode l2"
          }
        try row.host.ip(lines: [
          "link add link \(lower) name over type \(type)", "link set over netns \(row.inside.name)",
        ])
        try row.inside.ip(lines: Row.configure(2))
        if copier == .macvlanSource {
          let address = sender.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
          try row.inside.ip(
            "link", "set", "over", "type", "macvlan", "macaddr", "add", address)
        }
        // The same address in both namespaces: who gets the frame takes it for its own.
        try row.host.ip("address", "add", "10.88.0.2/32", "dev", "lo")
        let destination =
          copier == .macvlanSource
          ? try row.cable.receiver.ethernetAddress() : [UInt8](repeating: 0xff, count: 6)

        try Pair.with { pair in
          let tag = try ScriptProgram(port: Guest.port, pair.setting)
          try tag.program.attach(to: row.cable.receiver)
          let inbox = try row.inside.inbox(.ipv4, [pair.local, pair.crossing])
          let other = try row.host.inbox(.ipv4, [pair.local, pair.crossing])
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              let payload = TagProgram.payload(sequence)
              try row.outside.send(
                frame: udpFrame(
                  source: sender, destination: destination, from: [10, 77, 1, 1], to: [10, 88, 0, 2],
                  port: Guest.port, payload: payload),
                outOf: row.cable.sender.interface)
              let arrival = try inbox.arrival()
              #expect(arrival.payload == payload)
              try passages.expect(arrival, pair.scrubbed)
              let original = try other.arrival()
              #expect(original.payload == payload)
              try passages.expect(
                original, Traits([(pair.local, pair.localValue), (pair.crossing, pair.crossingValue)]))
            }
          }
          // The copy and the original shared an extension until one of them was scrubbed.
          Guest.expectChanges(changes, .only(set: 5, scrubbed: 5, allocated: 10, evicted: 5))
          #expect((passages.lost > 0) == (changes.lost > 0))
          try tag.program.detach()
        }
      }
    }

    // MARK: Redirection

    /// How a program sends a packet to an interface of another namespace.
    enum Redirection: String, CaseIterable, CustomTestStringConvertible {
      case map = "by a map, native XDP"
      case genericMap = "by a map, generic XDP"
      case cable = "along a cable, native XDP"
      case peer = "to the other end of a cable, tc"

      var testDescription: String { rawValue }
    }

    @Test(
      "what a program redirects inside has the keys that cross", arguments: Redirection.asked,
      [Route.ipv4, .ipv6])
    func redirect(redirection: Redirection, route: Route) throws {
      try Row.with { row in
        // A map names an interface inside, so that the packet is there before it takes the
        // cable. Otherwise the cable leads there.
        let isMap = redirection == .map || redirection == .genericMap
        let cable = try VethPair(from: isMap ? row.inside : row.host, to: row.inside, network: 3)
        try Pair.with { pair in
          let action: ScriptProgram.Action =
            switch redirection {
            case .map, .genericMap: .redirectByMap(cable.sender)
            case .cable: .redirect(try cable.sender.index())
            case .peer: .pass
            }
          let tag = try ScriptProgram(.port(Guest.port), pair.setting, then: action)
          try tag.program.attach(
            to: row.cable.receiver, mode: redirection == .genericMap ? .generic : .driver)
          let through = try SkbProgram(
            .classifier, .port(Guest.port), [], through: redirection == .peer ? cable.sender : nil)
          try through.attach(to: row.cable.receiver, .ingress)
          // A driver takes frames from another one only if it runs a program.
          let idle = try ScriptProgram(port: Guest.port, [])
          try idle.program.attach(to: cable.receiver)

          let inbox = try row.inside.inbox(route, [pair.local, pair.crossing])
          let from = route == .ipv6 ? "fd77:3::99" : "10.77.3.99"
          let to = route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              let payload = TagProgram.payload(sequence)
              try row.outside.send(
                frame: udpFrame(
                  source: [2, 0, 0, 0, 0, 9], destination: try cable.receiver.ethernetAddress(),
                  from: try bytes(of: from), to: try bytes(of: to), port: Guest.port, payload: payload),
                outOf: row.cable.sender.interface)
              let arrival = try inbox.arrival()
              #expect(arrival.payload == payload)
              try passages.expect(arrival, pair.scrubbed)
            }
          }
          // Generic XDP needs more headroom than a socket leaves: copied with the packet, the
          // store moves to where XDP has it.
          Guest.expectChanges(
            changes,
            redirection == .genericMap
              ? .only(set: 5, copied: 10, scrubbed: 5, allocated: 5) : .only(set: 5, scrubbed: 5))
          #expect(changes.lost == passages.lost)
          try idle.program.detach()
          try through.detach()
          try tag.program.detach()
        }
      }
    }

    // MARK: Out of a namespace in other ways

    @Test("a VXLAN whose other end is on the same machine hands packets over without a tunnel")
    func vxlanBypass() throws {
      try Row.with { row in
        let near = row.cable.receiver.ipv4
        let address = "02:00:00:00:00:08"
        try row.host.ip(
          lines: [
            "link add over type vxlan id 7 dstport 4789 local \(near)",
            "link add behind address \(address) type vxlan id 8 dstport 4789 local \(near)",
            "link set over netns \(row.inside.name)",
          ] + Row.configure(1, device: "behind"))
        try row.inside.ip(lines: Row.configure(2))
        try Command.require(
          "bridge", "-n", row.inside.name, "fdb", "append", address, "dev", "over", "dst", near, "vni", "8")
        try Pair.with { pair in
          let inbox = try row.host.inbox(.ipv4, [pair.local, pair.crossing])
          let tag = try SkbProgram(.classifier, port: Guest.port, pair.setting)
          try tag.attach(to: "over", in: row.inside, .egress)
          // Had it taken the tunnel there would be a datagram for the tunnel's port.
          let tunnel = try SkbProgram(.classifier, port: 4789, [])
          try tunnel.attach(to: "lo", in: row.host, .ingress)
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              // As a bridge would send it: a packet that has a route is not received.
              try row.inside.send(
                frame: udpFrame(
                  source: [2, 0, 0, 0, 0, 7], destination: [2, 0, 0, 0, 0, 8], from: [10, 88, 0, 2],
                  to: [10, 88, 0, 1], port: Guest.port, payload: TagProgram.payload(sequence)),
                outOf: "over")
              let arrival = try inbox.arrival()
              #expect(arrival.payload == TagProgram.payload(sequence))
              try passages.expect(arrival, pair.scrubbed)
            }
          }
          if Guest.storesMayFail {
            // Without memory for the first key a packet may have the second one alone, which crosses.
            #expect(changes.scrubbed + changes.lost <= changes.set)
            #expect(passages.complete <= changes.set)
          } else {
            expectScrubbed(changes)
            #expect(passages.complete == 5)
          }
          #expect(try tunnel.results().runs == 0)
          try tunnel.detach()
          try tag.detach()
        }
      }
    }

    @Test("a CAN frame has the keys that cross at the other end of a virtual cable")
    func can() throws {
      try Row.with { row in
        try row.host.ip(lines: [
          "link add near type vxcan peer name over netns \(row.inside.name)", "link set near up",
        ])
        try row.inside.ip("link", "set", "over", "up")
        try Pair.with { pair in
          // ETH_P_CAN
          let tag = try SkbProgram(.classifier, .ethertype(0x000c), pair.setting)
          try tag.attach(to: "near", in: row.host, .egress)
          let seen = try SkbProgram(.classifier, .ethertype(0x000c), pair.looking)
          try seen.attach(to: "over", in: row.inside, .ingress)
          // struct can_frame: identifier, length, eight bytes
          let frame: [UInt8] = [0x23, 0x01, 0, 0, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
          let changes = try Guest.changes {
            try Guest.send(until: seen) { _ in
              try row.host.send(frame: frame, outOf: "near", type: 0x000c)
            }
          }
          #expect(pair.isScrubbed(try seen.results()))
          expectScrubbed(changes)
          try seen.detach()
          try tag.detach()
        }
      }
    }

    /// Five packets whose traits were scrubbed.
    private func expectScrubbed(
      _ changes: TraitStatistics, sourceLocation: SourceLocation = #_sourceLocation
    ) {
      if Guest.storesMayFail {
        // Without memory for the first key a packet may have the second one alone, which crosses.
        #expect(changes.set >= changes.scrubbed, sourceLocation: sourceLocation)
      } else {
        #expect(changes.set == 5, sourceLocation: sourceLocation)
        #expect(changes.scrubbed == 5, sourceLocation: sourceLocation)
        #expect(changes.lost == 0, sourceLocation: sourceLocation)
      }
    }

    @Test("a modem's device sends out packets with the keys that cross", arguments: [false, true])
    func modem(isBridged: Bool) throws {
      try Row.with { row in
        try row.host.ip(lines: [
          "link add link \(row.cable.receiver.interface) name over type rmnet mux_id 1",
          "link set over netns \(row.inside.name)",
        ])
        try row.inside.ip(lines: Row.configure(2))
        let side = try VethPair(from: row.inside, to: row.inside, network: 3)
        try Pair.with { pair in
          // ETH_P_MAP, which it puts in front of packets of its own
          let seen = try SkbProgram(
            .classifier, isBridged ? .port(Guest.port) : .ethertype(0x00f9), pair.looking)
          try seen.attach(to: row.cable.receiver, .egress)
          let tag = try SkbProgram(.classifier, port: Guest.port, pair.setting)
          let outbox = try row.inside.run { try UDPSocket(.ipv4) }
          if isBridged {
            try row.inside.ip("link", "set", side.receiver.interface, "master", "over")
            try tag.attach(to: side.sender, .egress)
          } else {
            try tag.attach(to: "over", in: row.inside, .egress)
          }
          let changes = try Guest.changes {
            try Guest.send(until: seen) { sequence in
              if isBridged {
                try row.inside.send(
                  frame: udpFrame(
                    source: [2, 0, 0, 0, 0, 9], destination: [2, 0, 0, 0, 0, 8],
                    from: [10, 88, 0, 3], to: [10, 88, 0, 1], port: Guest.port,
                    payload: TagProgram.payload(sequence)),
                  outOf: side.sender.interface)
              } else {
                try outbox.send(
                  TagProgram.payload(sequence),
                  to: try #require(InternetAddress("10.88.0.1", port: Guest.port)))
              }
            }
          }
          #expect(pair.isScrubbed(try seen.results()))
          expectScrubbed(changes)
          try tag.detach()
          try seen.detach()
        }
      }
    }
  }
}
