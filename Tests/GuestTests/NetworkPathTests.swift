// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// Two cables with a router in between. What it receives from the sender can be tagged.
struct Line {
  let sending: NetworkNamespace
  let routing: NetworkNamespace
  let receiving: NetworkNamespace
  let near: VethPair
  let far: VethPair

  static func with(_ body: (Line) throws -> Void) throws {
    let sending = try NetworkNamespace("sender")
    defer { sending.remove() }
    let routing = try NetworkNamespace("router")
    defer { routing.remove() }
    let receiving = try NetworkNamespace("receiver")
    defer { receiving.remove() }
    let near = try VethPair(from: sending, to: routing, network: 1)
    let far = try VethPair(from: routing, to: receiving, network: 2)
    try routing.setParameter("net/ipv4/ip_forward", "1")
    try routing.setParameter("net/ipv6/conf/all/forwarding", "1")
    try sending.ip(lines: [
      "route add default via \(near.receiver.ipv4)", "route add ::/0 via \(near.receiver.ipv6)",
    ])
    try receiving.ip(lines: [
      "route add default via \(far.sender.ipv4)", "route add ::/0 via \(far.sender.ipv6)",
    ])
    try body(
      Line(sending: sending, routing: routing, receiving: receiving, near: near, far: far))
  }

  /// Sends five datagrams that XDP tags at the router, and expects each with all values.
  ///
  /// - Returns: What was counted, and how many of them had their values.
  func pass(
    _ route: Guest.Route, to destination: InternetAddress, _ values: [(TraitID, [UInt8])], length: Int = 200
  ) throws -> (changes: TraitStatistics, complete: UInt64) {
    let inbox = try receiving.inbox(route, values.map(\.0))
    let outbox = try near.outbox(route)
    try awaitPassage(from: outbox, to: destination, inbox)
    let tag = try ScriptProgram(port: Guest.port, setting(values))
    try tag.program.attach(to: near.receiver)
    var passages = Passages()
    var count: UInt64 = 0
    let changes = try Guest.changes {
      for sequence in 0..<5 as Range<UInt32> {
        let payload = TagProgram.payload(sequence, length: length)
        let passage = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox)
        count += passage.count
        #expect(passage.arrival.payload == payload, "\(route), \(values.count) values")
        try passages.expect(passage.arrival, Traits(values), "\(route), \(values.count) values")
      }
    }
    #expect(changes.set == count, "\(route), \(values.count) values")
    // Packets that did not arrive may have lost theirs before.
    #expect(
      count == 5 ? changes.lost == passages.lost : changes.lost >= passages.lost,
      "\(route), \(values.count) values")
    #expect(changes.discarded == 0, "\(route), \(values.count) values")
    #expect(changes.scrubbed == 0, "\(route), \(values.count) values")
    try tag.program.detach()
    return (changes, passages.complete)
  }
}

extension Guest {
  @Suite("Paths through the network")
  struct NetworkPathTests {
    /// Keys that cross, as most paths end in another namespace.
    private func withValues(_ count: Int, _ body: ([(TraitID, [UInt8])]) throws -> Void) throws {
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: count), flags: .crossesNetworkNamespaces) {
        try body(distinct($0))
      }
    }

    // MARK: Who writes before a push, or without one

    @Test(
      "IPsec moves headers over a store, which gives way", arguments: ["transport", "tunnel"],
      [Route.ipv4, .ipv6])
    func ipsec(mode: String, route: Route) throws {
      try Line.with { line in
        let isTunnel = mode == "tunnel"
        let isNewer = route == .ipv6
        let source = isNewer ? line.near.sender.ipv6 : line.near.sender.ipv4
        let destination = isNewer ? line.far.receiver.ipv6 : line.far.receiver.ipv4
        let begin = isTunnel ? (isNewer ? line.far.sender.ipv6 : line.far.sender.ipv4) : source
        let bits = isNewer ? 128 : 32
        let ends = "src \(begin) dst \(destination)"
        let lines = { (direction: String) in
          [
            "xfrm state add \(ends) proto esp spi 257 reqid 1 mode \(mode) "
              + "aead rfc4106(gcm(aes)) 0x" + String(repeating: "5a", count: 20) + " 128",
            "xfrm policy add src \(source)/\(bits) dst \(destination)/\(bits) dir \(direction) "
              + "tmpl \(ends) proto esp reqid 1 mode \(mode)",
          ]
        }
        try line.routing.ip(lines: lines("out"))
        try line.receiving.ip(lines: lines("in"))
        try withValues(12) { values in
          // No datagram goes out in the clear.
          let seen = try SkbProgram(.classifier, .ipProtocol(50), values.map { .get($0.0.rawValue) })
          try seen.attach(to: line.far.sender, .egress)
          let changes = try line.pass(route, to: try line.far.destination(route), values).changes
          let results = try seen.results()
          #expect(results.runs >= 5)
          if !Guest.storesMayFail || results.steps[0].status == 16 {
            #expect(results.steps.map(\.value) == values.map(\.1))
          }
          let right = TraitStatistics.only(set: changes.set, allocated: changes.set, evicted: changes.set)
          #expect(changes.set == 5 || Guest.storesMayFail)
          #expect(changes == right.losing(changes.lost))
          try seen.detach()
        }
      }
    }

    @Test("WireGuard clears the header's fields, and keeps what the packet has", arguments: [1, 12])
    func wireGuard(count: Int) throws {
      try Line.with { line in
        func key(_ operation: String, _ input: String = "") throws -> String {
          let outcome = try Command(["wg", operation], input: input).wait()
          guard outcome.status == 0 else { throw LabError("wg \(operation): \(outcome.errors)") }
          return outcome.output
        }
        let secrets = try (0..<2).map { _ in try key("genkey") }
        let ends = [(line.routing, line.far.sender), (line.receiving, line.far.receiver)]
        for (number, (namespace, _)) in ends.enumerated() {
          try namespace.ip("link", "add", "over", "type", "wireguard")
          let peer = try key("pubkey", secrets[1 - number]).split(separator: "\n").joined()
          // It opens a file by its name, which a socket on standard input does not have.
          let path = FilePath("/tmp/wireguard-key-\(getpid())-\(number)")
          let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
          _ = try file.closeAfter { try file.writeAll(secrets[number].utf8) }
          defer { unlink(path.string) }
          try namespace.run {
            let arguments = [
              "wg", "set", "over", "listen-port", "\(5000 + number)", "private-key", path.string, "peer",
              peer,
              "allowed-ips", "0.0.0.0/0,::/0", "endpoint", "\(ends[1 - number].1.ipv4):\(5001 - number)",
            ]
            let outcome = try Command(arguments).wait()
            guard outcome.status == 0 else { throw LabError("wg set: \(outcome.errors)") }
          }
          try namespace.ip(lines: [
            "address add 10.88.0.\(number + 1)/24 dev over",
            "address add fd88::\(number + 1)/64 dev over nodad", "link set over up",
          ])
        }
        try withValues(count) { values in
          for route in [Route.ipv4, .ipv6] {
            let seen = try SkbProgram(
              .classifier, port: 5001, [.need(values[0].0.rawValue)] + values.map { .get($0.0.rawValue) })
            try seen.attach(to: line.far.sender, .egress)
            let destination = try #require(
              InternetAddress(route == .ipv6 ? "fd88::2" : "10.88.0.2", port: Guest.port))
            let complete = try line.pass(route, to: destination, values).complete
            let results = try seen.results()
            #expect(results.runs == complete)
            #expect(complete == 5 || Guest.storesMayFail)
            if complete > 0 { #expect(results.steps.dropFirst().map(\.value) == values.map(\.1)) }
            try seen.detach()
          }
        }
      }
    }

    @Test("an action that writes in front of the packet moves a store away", arguments: [Route.ipv4, .ipv6])
    func pedit(route: Route) throws {
      try VethPair.with { cable in
        try withValues(12) { values in
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: cable.receiver)
          try cable.receiver.addAction(
            // 40 bytes before the network header
            "pedit munge offset -40 u32 set 0xdeadbeef")
          let inbox = try cable.inbox(route, values.map(\.0))
          let outbox = try cable.outbox(route)
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
              let arrival = try inbox.arrival()
              #expect(arrival.payload == TagProgram.payload(sequence))
              try passages.expect(arrival, Traits(values))
            }
          }
          #expect(changes == .only(set: 5, allocated: 5, evicted: 5).losing(passages.lost))
          try tag.program.detach()
        }
      }
    }

    @Test(
      "what an action mirrors has the traits, and so has the original; what it redirects takes them along",
      arguments: ["mirror", "redirect"], [Route.ipv4, .ipv6])
    func mirred(operation: String, route: Route) throws {
      try VethPair.with { cable in
        try withValues(3) { values in
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: cable.receiver)
          try cable.receiver.namespace.ip(lines: ["link add other type dummy", "link set other up"])
          try cable.receiver.addAction("mirred ingress \(operation) dev other")
          let isMirrored = operation == "mirror"
          let inbox = try cable.inbox(route, values.map(\.0))
          let outbox = try cable.outbox(route)
          var passages = Passages()
          let changes = try Guest.changes {
            for sequence in 0..<5 as Range<UInt32> {
              let payload = TagProgram.payload(sequence)
              try outbox.send(payload, to: try cable.destination(route))
              // By way of the other device, and the original
              for _ in 0..<(isMirrored ? 2 : 1) {
                let arrival = try inbox.arrival()
                #expect(arrival.payload == payload)
                try passages.expect(arrival, Traits(values))
              }
            }
          }
          // A clone and its original share what was evicted: both lose it, or none.
          if isMirrored {
            #expect(passages.lost == 2 * changes.lost)
            #expect(changes == .only(set: 5, allocated: 5, evicted: 5).losing(changes.lost))
          } else {
            #expect(changes == .only(set: 5))
            #expect(passages.lost == 0)
          }
          try tag.program.detach()
        }
      }
    }

    // MARK: Several that become one

    /// Who puts fragments together.
    enum Reassembly: String, CaseIterable, CustomTestStringConvertible {
      case ipv4 = "IPv4"
      case ipv6 = "IPv6"
      case conntrack4 = "IPv4, connection tracking"
      case conntrack6 = "IPv6, connection tracking"

      var testDescription: String { rawValue }
      var route: Route { self == .ipv4 || self == .conntrack4 ? .ipv4 : .ipv6 }
      var isTracked: Bool { self == .conntrack4 || self == .conntrack6 }

      /// Has fragments put together where they arrive by who is to do that.
      func prepare(_ cable: VethPair) throws {
        guard isTracked else { return }
        let rules = """
          table inet tests {
            chain first { type filter hook prerouting priority 0; ct state new accept; }
          }
          """
        let outcome = try cable.receiver.namespace.run {
          try Command(["nft", "-f", "-"], input: rules).wait()
        }
        try #require(outcome.status == 0, "\(outcome.errors)")
      }
    }

    @Test(
      "a datagram that is put together of fragments with the same has it, too", arguments: Reassembly.asked,
      [1, 12])
    func reassembly(reassembly: Reassembly, count: Int) throws {
      try VethPair.with { cable in
        try reassembly.prepare(cable)
        try withValues(count) { values in
          // What follows the IP header of a fragment: UDP, or a header of its own
          let tag = try ScriptProgram(.ipProtocol(reassembly.route == .ipv4 ? 17 : 44), setting(values))
          try tag.program.attach(to: cable.receiver)
          let inbox = try cable.inbox(reassembly.route, values.map(\.0))
          let route = reassembly.route
          let payload = TagProgram.payload(1, length: 4000)
          let source = try cable.sender.ethernetAddress()
          let destination = try cable.receiver.ethernetAddress()
          let from = try bytes(of: route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4)
          let to = try bytes(of: route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4)
          let frame = udpFrame(
            source: source, destination: destination, from: from, to: to, port: Guest.port, payload: payload)
          for isReversed in [false, true] {
            let changes = try Guest.changes {
              for number in 0..<5 {
                let fragments = Guest.fragments(
                  of: frame, each: 1400, number: UInt8(isReversed ? 10 + number : number))
                #expect(fragments.count == 3)
                for fragment in isReversed ? fragments.reversed() : fragments {
                  try cable.sender.namespace.send(frame: fragment, outOf: cable.sender.interface)
                }
                let arrival = try inbox.arrival(payloadRoom: 5000)
                #expect(arrival.payload == payload)
                let traits = try arrival.traits
                #expect(try traits == Traits(values) || (Guest.storesMayFail && traits.isEmpty))
              }
            }
            // The one that comes last takes the place of the first, by a clone, so that two
            // stores leave the headroom. A kernel that puts a seal behind each store has no
            // room for a full one there.
            let evicted: UInt64 = count == 12 && Guest.profile != "plain" ? 15 : isReversed ? 0 : 10
            let lost = Guest.storesMayFail ? min(changes.lost, evicted) : 0
            // A header in front is taken out there, by moving all that is before it.
            let copied: UInt64 = route == .ipv6 && evicted == 0 ? 5 : 0
            #expect(
              changes == .only(set: 15, copied: copied, allocated: evicted, evicted: evicted).losing(lost),
              "\(isReversed ? "the last one first" : "in order")")
          }
          try tag.program.detach()
        }
      }
    }

    // MARK: One that becomes several

    @Test("a tunnel over IPv6 whose packets are too long gives each fragment the traits", arguments: [1, 12])
    func ipv6Fragments(count: Int) throws {
      try Line.with { line in
        // IPv4 in IPsec over IPv6: what may be fragmented goes through whatever its length.
        let ends = "src \(line.far.sender.ipv6) dst \(line.far.receiver.ipv6)"
        let lines = { (direction: String) in
          [
            "xfrm state add \(ends) proto esp spi 257 reqid 1 mode tunnel flag af-unspec "
              + "aead rfc4106(gcm(aes)) 0x" + String(repeating: "5a", count: 20) + " 128",
            "xfrm policy add src \(line.near.sender.ipv4)/32 dst \(line.far.receiver.ipv4)/32 dir \(direction) "
              + "tmpl \(ends) proto esp reqid 1 mode tunnel",
          ]
        }
        try line.routing.ip(lines: lines("out"))
        try line.receiving.ip(lines: lines("in"))
        try withValues(count) { values in
          let fragment = try SkbProgram(
            .classifier, port: 0, [.need(values[0].0.rawValue)] + values.map { .get($0.0.rawValue) })
          try fragment.attach(to: line.far.sender, .egress)
          let inbox = try line.receiving.inbox(.ipv4, values.map(\.0))
          let outbox = try line.near.outbox(.ipv4)
          // Without "do not fragment".
          try setOption(outbox, Int32(IPPROTO_IP), IP_MTU_DISCOVER, Int32(IP_PMTUDISC_DONT))
          let destination = try line.far.destination(.ipv4)
          try awaitPassage(from: outbox, to: destination, inbox)
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: line.near.receiver)
          let payload = TagProgram.payload(1, length: 1450)
          var count: UInt64 = 0
          let changes = try Guest.changes {
            for _ in 0..<5 {
              let passage = try Guest.passage(of: payload, from: outbox, to: destination, into: inbox)
              #expect(passage.arrival.payload == payload)
              let traits = try passage.arrival.traits
              #expect(try traits == Traits(values) || (Guest.storesMayFail && traits.isEmpty))
              count += passage.count
            }
          }
          // Both fragments of a packet have its traits, or none if they were lost before.
          let lost = Guest.storesMayFail ? min(changes.lost, count) : 0
          let results = try fragment.results()
          #expect(results.runs == 2 * (count - lost))
          if results.runs > 0 { #expect(results.steps.dropFirst().map(\.value) == values.map(\.1)) }
          #expect(
            changes == .only(set: count, allocated: count, evicted: count).losing(lost))
          try tag.program.detach()
          try fragment.detach()
        }
      }
    }

    // MARK: Sockets that asked for nothing

    /// A socket in whose queue packets wait.
    enum Queue: String, CaseIterable, CustomTestStringConvertible {
      case udp = "UDP"
      case udp6 = "UDP over IPv6"
      case raw
      case packet
      /// Copies of what is too long for its frames
      case ring = "packet ring"
      case tcp = "TCP"

      var testDescription: String { rawValue }
    }

    @Test(
      "packets that wait for a socket that asked for nothing hold no memory for traits",
      arguments: Queue.asked)
    func unasked(queue: Queue) throws {
      try VethPair.with { cable in
        let route: Route = queue == .udp6 ? .ipv6 : .ipv4
        try withValues(1) { values in
          let script = try SkbProgram(.classifier, port: Guest.port, setting(values))
          // A packet socket has its copy before a classifier that receives.
          if queue == .packet || queue == .ring {
            try script.attach(to: cable.sender, .egress)
          } else {
            try script.attach(to: cable.receiver, .ingress)
          }
          // It takes the datagrams from its queue, or is the one whose queue grows.
          let inbox = try cable.inbox(route)
          let outbox = try cable.outbox(route)
          let descriptor = try waiting(queue, at: cable)
          defer { for end in descriptor { try? end.close() } }
          let before = try settled { _ in false }
          let changes = try Guest.changes {
            for sequence in 0..<50 as Range<UInt32> {
              if queue == .tcp {
                try descriptor[1].writeAll(TagProgram.payload(sequence, length: 100))
                continue
              }
              try outbox.send(TagProgram.payload(sequence, length: 1000), to: try cable.destination(route))
              if queue != .udp && queue != .udp6 { _ = try inbox.arrival() }
            }
            // TCP may join what it could not send at once.
            try awaitRuns(script, queue == .tcp ? 10 : 50, orMore: true)
          }
          let least: UInt64 = Guest.storesMayFail ? 1 : queue == .tcp ? 10 : 50
          #expect(changes.set >= least)
          #expect(changes.allocated >= least)
          #expect(changes.lost == 0)
          let after = try settled { $0 == before }
          #expect(after == before)
          // They do wait.
          var bytes = [UInt8](repeating: 0, count: 2000)
          if queue == .udp || queue == .udp6 {
            #expect(try inbox.arrival().payload == TagProgram.payload(0, length: 1000))
          } else {
            let count = try bytes.withUnsafeMutableBytes { try descriptor[0].read(into: $0) }
            #expect(count > 0)
          }
          try script.detach()
        }
      }
    }

    /// The socket in question, if it is none for UDP; for TCP the sender's, too.
    private func waiting(_ queue: Queue, at cable: VethPair) throws -> [FileDescriptor] {
      switch queue {
      case .udp, .udp6: return []
      case .tcp:
        let (near, far) = try connection(.ipv4, along: cable)
        // TCP_NODELAY: each write is a segment.
        var on: Int32 = 1
        setsockopt(near.rawValue, Int32(IPPROTO_TCP), 1, &on, 4)
        return [far, near]
      case .raw, .packet, .ring:
        return try cable.receiver.namespace.run {
          let descriptor =
            queue == .raw
            ? socket(AF_INET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), Int32(IPPROTO_UDP))
            : try cable.receiver.namespace.openTap().rawValue
          guard descriptor >= 0 else { throw LabError("socket: \(Errno(rawValue: errno))") }
          if queue == .ring {
            // PACKET_COPY_THRESH, and PACKET_RX_RING with struct tpacket_req: frames of 256 bytes,
            // which no datagram fits into
            var threshold: Int32 = 1
            let request: [UInt32] = [4096, 1, 256, 16]
            guard setsockopt(descriptor, SOL_PACKET, 7, &threshold, 4) == 0,
              setsockopt(descriptor, SOL_PACKET, 5, request, 16) == 0
            else { throw LabError("a ring: \(Errno(rawValue: errno))") }
          }
          return [FileDescriptor(rawValue: descriptor)]
        }
      }
    }
  }
}

extension VethPair.End {
  /// Has each packet that comes in go through an action of a classifier.
  fileprivate func addAction(_ action: String) throws {
    for arguments in [
      "qdisc add dev \(interface) clsact", "filter add dev \(interface) ingress matchall action \(action)",
    ] {
      let outcome = try Command(
        ["tc", "-n", namespace.name] + arguments.split(separator: " ").map(String.init)
      ).wait()
      try #require(outcome.status == 0, "\(outcome.errors)")
    }
  }
}
