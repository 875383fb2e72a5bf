// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// A network card that the machine has two of, where each receives what the other one sends:
/// qemu/steps/guest.sh plugs them into a hub.
enum Card: String, CaseIterable, CustomTestStringConvertible, Sendable {
  case virtio = "virtio_net, mergeable buffers"
  /// The XDP buffer begins behind the start of the skb's head, by 12 bytes.
  case virtioSmall = "virtio_net, small buffers"
  case vmxnet3
  /// From QEMU 8.0 on
  case igb

  var testDescription: String { rawValue }

  /// Their Ethernet addresses, as guest.sh has them.
  var addresses: [String] {
    let number = 1 + 2 * (Self.allCases.firstIndex(of: self) ?? 0)
    return [number, number + 1].map {
      "02:00:00:00:77:" + ($0 < 16 ? "0" : "") + String($0, radix: 16)
    }
  }

  /// The cards by the names that they have now, if both are there.
  func interfaces() throws -> [String]? {
    let lines = try Command.require("ip", "-brief", "link", "show").split(separator: "\n")
    let names = addresses.compactMap { address in
      lines.first { $0.split(separator: " ").contains(Substring(address)) }?
        .split(separator: " ").first.map(String.init)
    }
    return names.count == 2 ? names : nil
  }

  /// The cards that every QEMU has.
  static let virtioCards: [Card] = [.virtio, .virtioSmall]

  /// The cards that this guest's QEMU does not offer, as guest.sh found out.
  private static let missing: [Substring] =
    getenv("PACKET_TRAITS_MISSING").map { String(cString: $0) }?.split(separator: " ") ?? []

  /// Whether tests of the card are to run. In the guest they do unless QEMU does not offer the
  /// card: one that fails to come up is a failure.
  var isExpected: Bool {
    if GuestCondition.isAsked { return !Self.missing.contains { $0 == rawValue } }
    return ((try? interfaces()) ?? nil) != nil
  }

  /// Why its tests are skipped. A skip in the guest is a failure, unless its reason begins like this.
  var absence: Comment {
    GuestCondition.isAsked
      ? "no \(rawValue): QEMU does not offer this card"
      : "no \(rawValue): this machine does not have two of them with a hub in between"
  }

  /// The cards by their names, as soon as both are there: they come back some time after the
  /// namespaces of the test before were removed.
  func awaitInterfaces() throws -> [String] {
    var found = try interfaces()
    for _ in 0..<200 where found == nil {
      usleep(50_000)
      found = try interfaces()
    }
    return try #require(found, "the machine has no two cards of \(rawValue)")
  }

  /// Both cards, in namespaces of their own, to where they come back from afterwards.
  func with(_ body: (VethPair) throws -> Void) throws {
    let interfaces = try awaitInterfaces()
    let sending = try NetworkNamespace("sender")
    defer { sending.remove() }
    let receiving = try NetworkNamespace("receiver")
    defer { receiving.remove() }
    try body(VethPair(joined: (interfaces[0], sending), (interfaces[1], receiving), network: 8))
  }

  /// How many values of 16 bytes a program has room for: 256 bytes of headroom hold a full
  /// store, unless it has to begin at a multiple of 8 bytes behind a header of 12; igb has 192.
  var room: Int {
    switch self {
    case .virtio, .vmxnet3: 12
    case .virtioSmall: 11
    case .igb: 8
    }
  }

  /// Whether the driver has metadata of programs.
  var hasMetadata: Bool { self != .vmxnet3 }
}

extension VethPair.End {
  /// Waits until the card receives: igb restarts with the first program, and when the last one
  /// is gone, which takes it two seconds.
  fileprivate func awaitCarrier() throws {
    for _ in 0..<200 {
      let link = try Command.require("ip", "-n", namespace.name, "-brief", "link", "show", "dev", interface)
      if link.contains("LOWER_UP") { return }
      usleep(50_000)
    }
    throw LabError("\(interface) has no carrier after 10 seconds")
  }

  /// Attaches a program, and waits until the card receives with it.
  fileprivate func attach(_ program: XDPProgram) throws {
    try program.attach(to: self)
    try awaitCarrier()
  }

  /// Detaches a program, and waits until the card receives without it.
  fileprivate func detach(_ program: XDPProgram) throws {
    try program.detach()
    try awaitCarrier()
  }
}

extension Guest {
  @Suite("Drivers that hand traits over")
  struct DriverTests {
    // Cards that QEMU may lack have functions of their own: only a function is skipped by name.

    @Test(
      "what XDP sets in virtio_net arrives, without any copy", arguments: Card.asked(of: Card.virtioCards),
      [Route.ipv4, .ipv6])
    func card(card: Card, route: Route) throws { try pass(card, route) }

    @Test(
      "what XDP sets in vmxnet3 arrives, without any copy",
      .enabled(if: Card.vmxnet3.isExpected, Card.vmxnet3.absence), arguments: [Route.ipv4, .ipv6])
    func vmxnet3(route: Route) throws { try pass(.vmxnet3, route) }

    @Test(
      "what XDP sets in igb arrives, without any copy",
      .enabled(if: Card.igb.isExpected, Card.igb.absence), arguments: [Route.ipv4, .ipv6])
    func igb(route: Route) throws { try pass(.igb, route) }

    private func pass(_ card: Card, _ route: Route) throws {
      try card.with { wire in
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12)) { ids in
          let inbox = try wire.inbox(route, ids)
          let outbox = try wire.outbox(route)
          try awaitPassage(from: outbox, to: try wire.destination(route), inbox)
          // A few, as many as there is room for and one more, and some beside metadata.
          for (count, metadata) in [(1, 0), (min(card.room + 1, 12), 0), (2, 8)] {
            let values = distinct(ids.prefix(count))
            let before: [ScriptStep] =
              metadata > 0 ? [.adjustMeta(-8), .writeMeta([UInt8](repeating: 0xa5, count: 8))] : []
            let tag = try ScriptProgram(port: Guest.port, before + setting(values))
            try wire.receiver.attach(tag.program)
            let right = try Traits(Array(values.prefix(card.room)))
            let changes = try Guest.changes {
              for sequence in 0..<30 as Range<UInt32> {
                // Of all lengths that one frame has: short ones are copied by some drivers.
                let payload = TagProgram.payload(sequence, length: 36 + Int(sequence) * 48)
                try outbox.send(payload, to: try wire.destination(route))
                let arrival = try inbox.arrival()
                #expect(arrival.payload == payload, "datagram \(sequence)")
                #expect(try arrival.traits == right, "datagram \(sequence) with \(count) values")
              }
            }
            let results = try tag.results()
            #expect(results.runs == 30)
            // ENOTSUPP, which is the kernel's own
            let refused: [Int32] = card.hasMetadata ? [0, 0] : [-524, -1]
            #expect(
              results.steps.map(\.status) == (before.isEmpty ? [] : refused)
                + [Int32](repeating: 0, count: min(count, card.room))
                + [Int32](repeating: -ENOSPC, count: max(count - card.room, 0)))
            // A seal behind each store has no room next to a full one.
            if Guest.profile == "plain" {
              #expect(changes == .only(set: 30), "\(count) values")
            } else {
              #expect(changes.set == 30)
              #expect(changes.lost == 0 || Guest.storesMayFail)
              #expect(changes.discarded == 0)
            }
            try wire.receiver.detach(tag.program)
          }
          // Nothing is left of them.
          try outbox.send(TagProgram.payload(1), to: try wire.destination(route))
          #expect(try inbox.arrival().hasTraits == false)
        }
      }
    }

    @Test(
      "what a program sets in virtio_net follows the packet where it is redirected",
      arguments: Card.virtioCards)
    func redirected(card: Card) throws { try redirect(card) }

    @Test(
      "what a program sets in vmxnet3 follows the packet where it is redirected",
      .enabled(if: Card.vmxnet3.isExpected, Card.vmxnet3.absence))
    func redirectedByVmxnet3() throws { try redirect(.vmxnet3) }

    @Test(
      "what a program sets in igb follows the packet where it is redirected",
      .enabled(if: Card.igb.isExpected, Card.igb.absence))
    func redirectedByIgb() throws { try redirect(.igb) }

    private func redirect(_ card: Card) throws {
      try card.with { wire in
        let behind = try NetworkNamespace("behind")
        defer { behind.remove() }
        let far = try VethPair(from: wire.receiver.namespace, to: behind, network: 2)
        // Frames come in at the other end only where a program is there, too.
        let receiving = try ScriptProgram(port: 1, [])
        try receiving.program.attach(to: far.receiver)
        try Guest.withKeys([.bytes16, .bytes16], flags: .crossesNetworkNamespaces) { ids in
          let values = distinct(ids)
          let tag = try ScriptProgram(
            port: Guest.port, setting(values), then: .redirect(try far.sender.index()))
          try wire.receiver.attach(tag.program)
          // Both are for the veth: the card does not look at where a frame is sent.
          let (address, source) = (try far.receiver.ethernetAddress(), try wire.sender.ethernetAddress())
          for route in [Route.ipv4, .ipv6] {
            let isNewer = route == .ipv6
            let inbox = try behind.inbox(route, ids)
            var passages = Passages()
            for sequence in 0..<10 as Range<UInt32> {
              let payload = TagProgram.payload(sequence, length: 300)
              let frame = udpFrame(
                source: source, destination: address,
                from: try bytes(of: isNewer ? far.sender.ipv6 : far.sender.ipv4),
                to: try bytes(of: isNewer ? far.receiver.ipv6 : far.receiver.ipv4), port: Guest.port,
                payload: payload)
              // The card passes on only what is for it, unless it is told to take everything.
              try wire.receiver.namespace.ip("link", "set", wire.receiver.interface, "promisc", "on")
              try wire.sender.namespace.send(frame: frame, outOf: wire.sender.interface)
              let arrival = try inbox.arrival()
              #expect(arrival.payload == payload)
              try passages.expect(arrival, Traits(values), "\(route), frame \(sequence)")
            }
          }
          try wire.receiver.detach(tag.program)
        }
        try receiving.program.detach()
      }
    }

    /// How igb makes packets where it has no headroom: from copies of their headers. Only a program
    /// that takes something away from the packet's start has room for traits then.
    @Test(
      "what XDP sets in igb is copied along where the driver copies the packet",
      .enabled(if: Card.igb.isExpected, Card.igb.absence), arguments: [Route.ipv4, .ipv6])
    func copiedByIgb(route: Route) throws {
      try Card.igb.with { wire in
        func set(copies: Bool) throws {
          _ = try wire.receiver.namespace.run {
            try Command.require(
              "ethtool", "--set-priv-flags", wire.receiver.interface, "legacy-rx", copies ? "on" : "off")
          }
          try wire.receiver.awaitCarrier()
        }
        let (address, source) = (
          try wire.receiver.ethernetAddress(), try wire.sender.ethernetAddress()
        )
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12)) { ids in
          try set(copies: true)
          defer { try? set(copies: false) }
          let inbox = try wire.inbox(route, ids)
          let outbox = try wire.outbox(route)

          // No headroom, no traits.
          let refused = try ScriptProgram(port: Guest.port, setting(distinct(ids.prefix(1))))
          try wire.receiver.attach(refused.program)
          try outbox.send(TagProgram.payload(1), to: try wire.destination(route))
          #expect(try inbox.arrival().hasTraits == false)
          #expect(try refused.results().steps.map(\.status) == [-ENOSPC])
          try wire.receiver.detach(refused.program)

          for count in [1, 12] {
            let values = distinct(ids.prefix(count))
            let type: UInt16 = 0x88b5
            let front = 256
            let tag = try ScriptProgram(
              .ethertype(type), [.adjustHead(Int32(front))] + setting(values))
            try wire.receiver.attach(tag.program)
            let isNewer = route == .ipv6
            var passages = Passages()
            let changes = try Guest.changes {
              for sequence in 0..<20 as Range<UInt32> {
                // Short ones are copied as a whole, of others the headers.
                let payload = TagProgram.payload(sequence, length: 36 + Int(sequence) * 60)
                let frame = udpFrame(
                  source: source, destination: address,
                  from: try bytes(of: isNewer ? wire.sender.ipv6 : wire.sender.ipv4),
                  to: try bytes(of: isNewer ? wire.receiver.ipv6 : wire.receiver.ipv4), port: Guest.port,
                  payload: payload)
                let outer = address + source + [UInt8(type >> 8), UInt8(type & 0xff)]
                let padding = [UInt8](repeating: 0xa5, count: front - outer.count)
                try wire.sender.namespace.send(
                  frame: outer + padding + frame, outOf: wire.sender.interface)
                let arrival = try inbox.arrival()
                #expect(arrival.payload == payload)
                try passages.expect(arrival, Traits(values), "frame \(sequence), \(count) values")
              }
            }
            #expect(try tag.results().steps.map(\.status) == [Int32](repeating: 0, count: count + 1))
            #expect(changes.set == 20)
            #expect(changes.copied == passages.complete)
            #expect(changes.lost == passages.lost)
            #expect(changes.discarded == 0)
            try wire.receiver.detach(tag.program)
          }
        }
      }
    }

    @Test(
      "what XDP sets on a packet of several buffers arrives", arguments: [Card.virtio], [Route.ipv4, .ipv6])
    func multiBuffer(card: Card, route: Route) throws {
      try card.with { wire in
        func setMTU(_ length: String) throws {
          for end in [wire.sender, wire.receiver] {
            try end.namespace.ip("link", "set", end.interface, "mtu", length)
          }
        }
        try setMTU("9000")
        // The cards stay, and programs for one buffer are for frames that fit into it.
        defer { try? setMTU("1500") }
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12)) { ids in
          let inbox = try wire.inbox(route, ids)
          let outbox = try wire.outbox(route)
          for count in [1, 12] {
            let values = distinct(ids.prefix(count))
            let tag = try ScriptProgram(.port(Guest.port), setting(values), takesFragments: true)
            try tag.program.attach(to: wire.receiver)
            var passages = Passages()
            for sequence in 0..<5 as Range<UInt32> {
              let payload = TagProgram.payload(sequence, length: 3000 + Int(sequence) * 1400)
              try outbox.send(payload, to: try wire.destination(route))
              let arrival = try inbox.arrival(payloadRoom: 9000)
              #expect(arrival.payload == payload)
              try passages.expect(arrival, Traits(values), "\(payload.count) bytes, \(count) values")
            }
            #expect(try tag.results().runs == 5)
            try tag.program.detach()
          }
        }
      }
    }

    // MARK: A device that user space feeds

    @Test(
      "what XDP sets on a frame that was written to a tap device arrives",
      arguments: [XDPProgram.Mode.driver, .generic], [Route.ipv4, .ipv6])
    func tap(mode: XDPProgram.Mode, route: Route) throws {
      let namespace = try NetworkNamespace("receiver")
      defer { namespace.remove() }
      let tap = try namespace.openTapDevice("fed0")
      defer { try? tap.close() }
      try namespace.ip(lines: [
        "link set fed0 address 02:00:00:00:00:10 up", "address add 10.77.6.2/24 dev fed0",
        "address add fd77:6::2/64 dev fed0 nodad",
      ])
      let isNewer = route == .ipv6
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12)) { ids in
        // Where a write must not wait the device runs the program, and else the stack.
        for (count, waits) in [(1, false), (12, false), (1, true), (12, true)] {
          try #require(fcntl(tap.rawValue, F_SETFL, O_RDWR | (waits ? 0 : O_NONBLOCK)) == 0)
          let values = distinct(ids.prefix(count))
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: "fed0", in: namespace, mode: mode)
          let inbox = try namespace.inbox(route, ids)
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<20 as Range<UInt32> {
              let payload = TagProgram.payload(sequence, length: 36 + Int(sequence) * 70)
              let frame = udpFrame(
                source: [2, 0, 0, 0, 0, 9], destination: [2, 0, 0, 0, 0, 0x10],
                from: try bytes(of: isNewer ? "fd77:6::1" : "10.77.6.1"),
                to: try bytes(of: isNewer ? "fd77:6::2" : "10.77.6.2"), port: Guest.port, payload: payload)
              let written = try Guest.insisting { try tap.writeAll(frame) }
              #expect(written == frame.count)
              let arrival = try inbox.arrival()
              #expect(arrival.payload == payload)
              try passages.expect(arrival, Traits(values), "frame \(sequence), \(count) values, waits: \(waits)")
            }
          }
          #expect(changes.set == 20)
          #expect(changes.lost == passages.lost)
          #expect(changes.discarded == 0)
          if Guest.profile == "plain" { #expect(changes.evicted == 0) }
          try tag.program.detach()
        }
      }
    }
  }
}
