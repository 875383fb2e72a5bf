// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// What a packet has to which a classifier or a control group's program was the
/// first to give traits, when it was the program's packet number `run`.
private func packet(
  given values: [(TraitID, [UInt8])], by script: SkbProgram, run: UInt64 = 1,
  sourceLocation: SourceLocation = #_sourceLocation
) throws -> PacketModel {
  for _ in 0..<500 where try script.results().runs < run { usleep(10_000) }
  let results = try script.results()
  #expect(results.runs == run, sourceLocation: sourceLocation)
  var packet = PacketModel()
  packet.expect(
    results.steps, of: setting(values), [Int32](repeating: 0, count: values.count),
    sourceLocation: sourceLocation)
  return packet
}

extension Guest {
  /// Takes all that a tap has: no clone is made for one whose queue is full.
  static func empty(_ tap: FileDescriptor) {
    var byte: UInt8 = 0
    while recv(tap.rawValue, &byte, 1, Int32(MSG_DONTWAIT)) >= 0 {}
  }

  /// How many packets the test of memory sends.
  static let longRun = GuestCondition.isLong ? 1_000_000 : 20_000

  @Suite("Stores outside of the headroom", .cable)
  struct EvictionTests {
    // MARK: Headers

    /// What puts headers in front of a packet.
    enum Tunnel: String, CaseIterable, CustomTestStringConvertible {
      /// Two tags: a veth takes the outer one beside the packet.
      case qinq = "QinQ"
      case ipip = "IPIP"
      case gre = "GRE"
      case vxlan = "VXLAN"
      case geneve = "Geneve"

      var testDescription: String { rawValue }

      var routes: [Route] { self == .ipip ? [.ipv4, .mapped] : Route.allCases }

      /// `ip` makes it at one end of a cable.
      func lines(at end: VethPair.End, to other: VethPair.End, number: Int) -> [String] {
        let name = "over\(number)"
        let make =
          switch self {
          case .qinq: "link add link outer\(number) name \(name) type vlan id 7"
          case .ipip: "link add \(name) type ipip local \(end.ipv4) remote \(other.ipv4)"
          case .gre: "link add \(name) type gre local \(end.ipv4) remote \(other.ipv4)"
          case .vxlan:
            "link add \(name) type vxlan id 7 dstport 4789 local \(end.ipv4) remote \(other.ipv4)"
          case .geneve: "link add \(name) type geneve id 7 remote \(other.ipv4)"
          }
        let outer =
          self == .qinq
          ? [
            "link add link \(end.interface) name outer\(number) type vlan proto 802.1ad id 6",
            "link set outer\(number) up",
          ] : []
        return outer + [
          make, "address add 10.88.0.\(number)/24 dev \(name)",
          "address add fd88::\(number)/64 dev \(name) nodad", "link set \(name) up",
        ]
      }
    }

    @Test("headers are pushed in front of a packet that is forwarded", arguments: Tunnel.allCases)
    func tunnel(tunnel: Tunnel) throws {
      let near = try suiteCable()
      let routing = near.receiver.namespace
      let receiving = try NetworkNamespace("behind")
      defer { receiving.remove() }
      let far = try VethPair(from: routing, to: receiving, network: 2)
      defer { _ = try? routing.ip("link", "del", far.sender.interface) }
      try routing.setParameter("net/ipv4/ip_forward", "1")
      try routing.setParameter("net/ipv6/conf/all/forwarding", "1")
      try routing.ip(lines: tunnel.lines(at: far.sender, to: far.receiver, number: 1))
      defer { _ = try? routing.ip("link", "del", "over1") }
      try receiving.ip(lines: tunnel.lines(at: far.receiver, to: far.sender, number: 2))
      try near.sender.namespace.ip(lines: [
        "route replace 10.88.0.0/24 via \(near.receiver.ipv4)",
        "route replace fd88::/64 via \(near.receiver.ipv6)",
      ])
      try receiving.ip(lines: [
        "route add 10.77.1.0/24 via 10.88.0.1 dev over2"
      ])
      if tunnel != .ipip {
        try receiving.ip("route", "add", "fd77:1::/64", "via", "fd88::1", "dev", "over2")
      }

      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12), flags: .crossesNetworkNamespaces) {
        ids in
        for route in tunnel.routes {
          let host = route == .ipv6 ? "fd88::2" : "10.88.0.2"
          let destination = try #require(InternetAddress(host, port: Guest.port))
          let inbox = try receiving.inbox(route, ids)
          let outbox = try near.outbox(route)
          try awaitPassage(from: outbox, to: destination, inbox)

          // A small store stays out of the way of the headers. One of 216 bytes
          // begins right before the packet.
          for count in [1, 12] {
            let values = distinct(ids.prefix(count))
            let tag = try ScriptProgram(port: Guest.port, setting(values))
            try tag.program.attach(to: near.receiver)
            var passages = Passages()
            let changes = try Guest.changes {
              for sequence in 0..<10 as Range<UInt32> {
                let payload = TagProgram.payload(sequence, length: 200)
                try outbox.send(payload, to: destination)
                let arrival = try inbox.arrival()
                #expect(arrival.payload == payload)
                try passages.expect(arrival, Traits(values), "\(route), \(count) values")
              }
            }
            #expect(changes.set == 10)
            #expect(changes.discarded == 0)
            #expect(changes.lost == passages.lost)
            #expect(changes.scrubbed == 0)
            if count == 12 {
              #expect(changes.evicted == 10 - passages.lost, "\(route)")
              #expect(changes.allocated == 10 - passages.lost, "\(route)")
            }
            try tag.program.detach()
          }
        }
      }
    }

    @Test("a classifier pushes headers, and takes them away again", arguments: Route.allCases, [1, 12])
    func vlan(route: Route, count: Int) throws {
      let cable = try suiteCable()
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: count)) { ids in
        let values = distinct(ids)
        let tag = try ScriptProgram(port: Guest.port, setting(values))
        try tag.program.attach(to: cable.receiver)
        let steps =
          [.pushVLAN(5), .pushVLAN(6), .get(ids[0].rawValue), .popVLAN, .popVLAN]
          + ids.map { ScriptStep.get($0.rawValue) }
        let script = try SkbProgram(.classifier, port: Guest.port, steps)
        try script.attach(to: cable.receiver, .ingress)
        let inbox = try cable.inbox(route, ids)
        var packet = PacketModel(inHeadroom: values)
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(2), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(2))
          let results = try script.results().steps
          if count == 12 { packet.leaveHeadroom(isLost: results[2].status == -ENOENT) }
          packet.expect(
            results, of: steps, [0, 0, 16, 0, 0] + [Int32](repeating: 16, count: count))
          try packet.expect(arrival, Traits(values))
        }
        packet.expect(
          changes, count == 1 ? .only(set: 1) : .only(set: 1, allocated: 1, evicted: 1))
        try script.detach()
        try tag.program.detach()
      }
    }

    /// A helper for classifiers that changes where headers are, or the packet's end, and back.
    enum Helper: String, CaseIterable, CustomTestStringConvertible {
      case adjustRoom = "bpf_skb_adjust_room"
      case changeTail = "bpf_skb_change_tail"
      case changeProtocol = "bpf_skb_change_proto"
      case changeHead = "bpf_skb_change_head"

      var testDescription: String { rawValue }

      func steps(_ route: Route) -> [ScriptStep] {
        switch self {
        case .adjustRoom: [.adjustRoom(24), .adjustRoom(-24)]
        case .changeTail: [.changeTail(8), .changeTail(-8)]
        // From IPv6 room is taken away, and bytes of the header with it.
        case .changeProtocol: route == .ipv6 ? [.changeProtocol(0x0800)] : [.changeProtocol(0x86dd), .changeProtocol(0x0800)]
        case .changeHead: [.changeHead(16)]
        }
      }

      /// Whether the packet is in the end what it was, so that somebody receives it.
      func restores(_ route: Route) -> Bool { self != .changeHead && !(self == .changeProtocol && route == .ipv6) }

      /// Whether a header comes to lie lower than any was before.
      func pushes(_ route: Route) -> Bool { self != .changeTail && !(self == .changeProtocol && route == .ipv6) }
    }

    @Test(
      "helpers of classifiers move headers, and a store gives way", arguments: Helper.asked,
      [Route.ipv4, .ipv6])
    func helper(helper: Helper, route: Route) throws {
      let cable = try suiteCable()
      for count in [1, 12] {
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: count)) { ids in
          let values = distinct(ids)
          let tag = try ScriptProgram(port: Guest.port, setting(values))
          try tag.program.attach(to: cable.receiver)
          let moves = helper.steps(route)
          let steps = moves + ids.map { ScriptStep.get($0.rawValue) }
          let script = try SkbProgram(.classifier, port: Guest.port, steps)
          try script.attach(to: cable.receiver, .ingress)
          let inbox = try cable.inbox(route, ids)
          var packet = PacketModel(inHeadroom: values)
          let isSealed = Guest.profile != "plain"
          let leaves = count == 12 && (helper.pushes(route) || isSealed)
          let changes = try Guest.changes {
            try cable.outbox(route).send(TagProgram.payload(2), to: try cable.destination(route))
            let arrival = helper.restores(route) ? try inbox.arrival() : nil
            if arrival == nil { try awaitRuns(script, 1) }
            let results = try script.results().steps
            if leaves { packet.leaveHeadroom(isLost: results[moves.count].status == -ENOENT) }
            packet.expect(
              results, of: steps,
              [Int32](repeating: 0, count: moves.count) + [Int32](repeating: 16, count: count))
            if let arrival {
              #expect(arrival.payload == TagProgram.payload(2))
              try packet.expect(arrival, Traits(values))
            }
          }
          packet.expect(changes, leaves ? .only(set: 1, allocated: 1, evicted: 1) : .only(set: 1))
          try script.detach()
          try tag.program.detach()
        }
      }
    }

    @Test("a classifier writes metadata in front of a header that it pushed", arguments: [Route.ipv4, .ipv6])
    func metadataMoves(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 11)) { ids in
        let values = distinct(ids)
        // The store of 200 bytes ends where the metadata begins.
        let tag = try ScriptProgram(port: Guest.port, [.adjustMeta(-16)] + setting(values))
        try tag.program.attach(to: cable.receiver)
        let steps =
          [.pushVLAN(5), .pushVLAN(6), .writeMeta([UInt8](repeating: 0xff, count: 8)), .popVLAN, .popVLAN]
          + ids.map { ScriptStep.get($0.rawValue) }
        let script = try SkbProgram(.classifier, port: Guest.port, steps)
        try script.attach(to: cable.receiver, .ingress)
        let inbox = try cable.inbox(route, ids)
        var packet = PacketModel(inHeadroom: values)
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(2), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(2))
          let results = try script.results().steps
          packet.leaveHeadroom(isLost: results[5].status == -ENOENT)
          packet.expect(
            results, of: steps, [0, 0, 0, 0, 0] + [Int32](repeating: 16, count: ids.count))
          try packet.expect(arrival, Traits(values))
        }
        #expect(try tag.results().steps.map(\.status) == [Int32](repeating: 0, count: 12))
        packet.expect(changes, .only(set: 1, allocated: 1, evicted: 1))
        try script.detach()
        try tag.program.detach()
      }
    }

    // MARK: Pieces

    @Test(
      "each fragment has the traits, and so has the datagram that is put together", arguments: Route.allCases)
    func fragmentation(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { ids in
        let values = distinct(ids)
        let sending = try SkbProgram(.groupEgress, port: Guest.port, setting(values))
        try sending.attachToAllGroups(.egress)
        let steps = [ScriptStep.get(ids[0].rawValue)]
        let fragment = try SkbProgram(.classifier, port: 0, steps)
        try fragment.attach(to: cable.receiver, .ingress)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let payload = TagProgram.payload(1, length: 4000)
        var counted = TraitStatistics.only()
        let changes = try Guest.changes {
          for run in 1...5 as ClosedRange<UInt64> {
            try outbox.send(payload, to: try cable.destination(route))
            let arrival = try inbox.arrival(payloadRoom: 5000)
            #expect(arrival.payload == payload)
            var sent = try packet(given: values, by: sending, run: run)
            let results = try fragment.results()
            #expect(results.runs == 3 * run)
            sent.expect(results.steps, of: steps, [16])
            try sent.expect(arrival, Traits(values))
            counted += sent.changes
          }
        }
        if !Guest.storesMayFail {
          #expect(counted == .only(set: 5, allocated: 5))
        }
        #expect(changes == counted)
        try fragment.detach()
        try sending.detach()
      }
    }

    @Test("a router that fragments gives each fragment the traits", arguments: [1, 12])
    func routerFragments(count: Int) throws {
      let near = try suiteCable()
      let routing = near.receiver.namespace
      let receiving = try NetworkNamespace("behind")
      defer { receiving.remove() }
      let far = try VethPair(from: routing, to: receiving, network: 2)
      defer { _ = try? routing.ip("link", "del", far.sender.interface) }
      try routing.setParameter("net/ipv4/ip_forward", "1")
      try routing.ip("link", "set", far.sender.interface, "mtu", "600")
      try near.sender.namespace.ip("route", "replace", "10.77.2.0/24", "via", near.receiver.ipv4)
      try receiving.ip("route", "add", "10.77.1.0/24", "via", far.sender.ipv4)

      try Guest.withKeys([TraitSize](repeating: .bytes16, count: count), flags: .crossesNetworkNamespaces) {
        ids in
        let values = distinct(ids)
        let tag = try ScriptProgram(port: Guest.port, setting(values))
        try tag.program.attach(to: near.receiver)
        let steps = ids.map { ScriptStep.get($0.rawValue) }
        let fragment = try SkbProgram(.classifier, port: 0, steps)
        try fragment.attach(to: far.receiver, .ingress)
        let inbox = try far.inbox(.ipv4, ids)
        let outbox = try near.outbox(.ipv4)
        // Without "do not fragment".
        try setOption(outbox, Int32(IPPROTO_IP), IP_MTU_DISCOVER, Int32(IP_PMTUDISC_DONT))
        let payload = TagProgram.payload(1, length: 1400)
        var counted = TraitStatistics.only()
        let changes = try Guest.changes {
          for run in 1...5 as ClosedRange<UInt64> {
            try outbox.send(payload, to: try far.destination(.ipv4))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == payload)
            let results = try fragment.results()
            #expect(results.runs == 3 * run)
            var sent = PacketModel(inHeadroom: values)
            sent.leaveHeadroom(isLost: results.steps[0].status == -ENOENT)
            sent.expect(results.steps, of: steps, [Int32](repeating: 16, count: count))
            try sent.expect(arrival, Traits(values))
            counted += sent.changes
          }
        }
        if !Guest.storesMayFail {
          #expect(counted == .only(set: 5, allocated: 5, evicted: 5))
        }
        #expect(changes == counted)
        try fragment.detach()
        try tag.program.detach()
      }
    }

    @Test("each segment of a packet that is segmented late has the traits", arguments: Route.allCases)
    func segmentation(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { ids in
        let values = distinct(ids)
        let script = try SkbProgram(.classifier, port: Guest.port, setting(values))
        try script.attach(to: cable.sender, .egress)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        // SOL_UDP, UDP_SEGMENT
        try setOption(outbox, 17, 103, Int32(100))
        let payload = TagProgram.payload(1, length: 500)
        var sent = PacketModel()
        let changes = try Guest.changes {
          try outbox.send(payload, to: try cable.destination(route))
          sent = try packet(given: values, by: script)
          for number in 0..<5 {
            let arrival = try inbox.arrival()
            #expect(arrival.payload == Array(payload[number * 100..<(number + 1) * 100]))
            try sent.expect(arrival, Traits(values), "segment \(number)")
          }
        }
        #expect(try script.results().runs == 1)
        sent.expect(changes, .only(set: 1, allocated: 1))
        try script.detach()
      }
    }

    // MARK: Keys

    @Test("a removed key's values end on packets in flight", arguments: Route.allCases)
    func removalInFlight(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes16, .bytes16]) { ids in
        let values = distinct(ids)
        let script = try SkbProgram(.classifier, port: Guest.port, setting(values))
        try script.attach(to: cable.receiver, .ingress)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let destination = try cable.destination(route)
        var packets: [PacketModel] = []
        for sequence in 0..<2 as Range<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: destination)
          packets.append(try packet(given: values, by: script, run: UInt64(sequence + 1)))
        }
        try packets[0].expect(try inbox.arrival(flags: .peek), Traits(values))

        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[0])
        for number in packets.indices { packets[number].lose(ids[0]) }
        try packets[0].expect(try inbox.arrival(), Traits([values[1]]))
        // The same key anew, asked for anew: the old value is not its.
        try registry.add(removed.name, size: removed.size, id: removed.id)
        try inbox.setReceivedTraits(TraitMask(ids))
        try packets[1].expect(try inbox.arrival(), Traits([values[1]]))

        try outbox.send(TagProgram.payload(7), to: destination)
        try packet(given: values, by: script, run: 3).expect(try inbox.arrival(), Traits(values))
        try script.detach()
      }
    }

    @Test("values are right while keys come and go and clones share them", arguments: Route.allCases)
    func concurrency(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        // The clone shares what XDP set; the packet's own is then changed.
        let script = try SkbProgram(
          .classifier, port: Guest.port,
          [.set(keys[0], [1, 2, 3, 4]), .get(keys[1]), .set(keys[1], [UInt8](repeating: 5, count: 8))])
        try script.attach(to: cable.receiver, .ingress)
        let tap = try cable.receiver.namespace.openTap()
        defer { try? tap.close() }
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let destination = try cable.destination(route)
        let id = ids[1]
        let name = Guest.uniqueName()
        let before = try Guest.statistics()
        var registry = try RegistryConnection()
        let former = try registry.key(id).name
        var (with, without) = (0, 0)
        var lost: UInt64 = 0
        try repeating {
          var registry = try RegistryConnection()
          try registry.remove(named: former)
          try registry.add(name, size: .bytes16)
          usleep(3000)
          try registry.add(former, size: .bytes8, id: id)
          try registry.remove(named: name)
          usleep(3000)
        } during: { changes in
          let end = ContinuousClock.now + .seconds(60)
          var sequence: UInt32 = 0
          while try changes.count() < 50 || with < 50 || without < 50 {
            sequence += 1
            _ = try? inbox.setReceivedTraits(TraitMask(ids))
            try outbox.send(TagProgram.payload(sequence), to: destination)
            let arrival = try inbox.arrival()
            try #require(arrival.payload == TagProgram.payload(sequence))
            Guest.empty(tap)
            let traits = try arrival.traits
            // Without memory for the clone nothing is left of what XDP set; the
            // classifier then begins anew, if there is memory for that.
            let isLost = Guest.storesMayFail && traits.bytes(of: ids[2]) == nil
            if isLost { lost += 1 }
            let statuses = try script.results().steps.map(\.status)
            let isRefused = statuses.map { $0 == -ENOMEM }
            if isLost {
              try #require(statuses[1] == -ENOENT)
            } else {
              // What has left the headroom has room, and the tap shares it no more.
              try #require(!isRefused.contains(true))
              try #require(traits.bytes(of: ids[2]) == TagProgram.value16(sequence))
            }
            try #require(traits.bytes(of: ids[0]) == (isRefused[0] ? nil : [1, 2, 3, 4]))
            if let value = traits.bytes(of: id) {
              var tagged: [UInt8] = []
              tagged.append(native: TagProgram.value8(sequence))
              // The classifier may have come when the key was gone.
              try #require(
                value == [UInt8](repeating: 5, count: 8) && !isRefused[2]
                  || value == tagged && !isLost)
              with += 1
            } else if !isLost {
              // Not for lack of memory, but as the key was gone.
              without += 1
            }
            try #require(traits.keys.isSubset(of: TraitMask(ids)))
            try #require(
              ContinuousClock.now < end, "after 60 seconds: \(with) with the key, \(without) without")
          }
        }
        let after = try Guest.statistics()
        #expect(after.discarded == before.discarded)
        #expect(after.lost - before.lost == lost)
        // Of at least 100.
        #expect((lost > 0) == Guest.storesMayFail)
        try script.detach()
        try tag.program.detach()
      }
    }

    // MARK: Clones

    @Test("each socket of a group has the traits", arguments: Route.allCases)
    func multicast(route: Route) throws {
      let cable = try suiteCable()
      let host = route == .ipv6 ? "ff05::4243" : "239.42.43.1"
      try cable.sender.namespace.ip(
        "route", "replace", route == .ipv6 ? "ff05::/16" : "239.0.0.0/8", "dev",
        cable.sender.interface, "table", route == .ipv6 ? "local" : "main")
      let destination = try #require(InternetAddress(host, port: Guest.port))
      let index = try cable.receiver.index()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        func member(_ keys: [TraitID]) throws -> UDPSocket {
          try cable.receiver.namespace.run {
            let socket = try UDPSocket(route == .ipv4 ? .ipv4 : .ipv6)
            try setOption(socket, SOL_SOCKET, SO_REUSEADDR, Int32(1))
            try socket.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
            try socket.setReceiveTimeout(.seconds(10))
            try socket.setReceivedTraits(TraitMask(keys))
            // struct ip_mreqn, struct ipv6_mreq
            var request = try bytes(of: host)
            if route != .ipv6 { request += [0, 0, 0, 0] }
            request.append(native: index)
            // IPV6_ADD_MEMBERSHIP, IP_ADD_MEMBERSHIP
            let (level, name) = route == .ipv6 ? (IPPROTO_IPV6, 20) : (IPPROTO_IP, 35)
            try setOption(socket, Int32(level), Int32(name), request)
            return socket
          }
        }
        let first = try member(ids)
        let second = try member([ids[1]])
        let unaware = try member([])
        let outbox = try cable.outbox(route)
        var passages = Passages()
        let changes = try Guest.changes {
          for sequence in 0..<10 as Range<UInt32> {
            try outbox.send(TagProgram.payload(sequence), to: destination)
            var right = Traits()
            try right.set(TagProgram.value8(sequence), for: TraitKey<UInt64>(ids[1]))
            let one = try second.arrival()
            #expect(one.payload == TagProgram.payload(sequence))
            let isComplete = try passages.expect(one, right)
            try right.set(TagProgram.value4(sequence), for: TraitKey<UInt32>(ids[0]))
            try right.setBytes(TagProgram.value16(sequence), for: ids[2])
            let all = try first.arrival()
            #expect(all.payload == TagProgram.payload(sequence))
            // They share the traits, and what became of them.
            #expect(try all.traits == (isComplete ? right : Traits()))
            let none = try unaware.arrival()
            #expect(none.payload == TagProgram.payload(sequence))
            #expect(none.control.isEmpty)
          }
        }
        #expect(changes == .only(set: 10, allocated: 10, evicted: 10).losing(passages.lost))
        try tag.program.detach()
      }
    }

    @Test("what is written to a packet is not seen on its clone", arguments: [Route.ipv4, .ipv6])
    func clone(route: Route) throws {
      let cable = try suiteCable()
      let namespace = cable.receiver.namespace
      // Where the clone goes: it is for another Ethernet address, and ends there.
      let side = try VethPair(from: namespace, to: namespace, network: 3)
      defer { _ = try? namespace.ip("link", "del", side.sender.interface) }
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let values = [(ids[0], [1, 1, 1, 1]), (ids[1], distinct([ids[1]])[0].1)]
        let tag = try ScriptProgram(port: Guest.port, setting(values))
        try tag.program.attach(to: cable.receiver)
        let cloning: [ScriptStep] = [.get(keys[0]), .clone(to: try side.sender.index())]
        let writing: [ScriptStep] = [
          .set(keys[0], [2, 2, 2, 2]), .delete(keys[1]), .get(keys[0]), .get(keys[1]),
        ]
        let original = try SkbProgram(.classifier, port: Guest.port, cloning + writing)
        try original.attach(to: cable.receiver, .ingress)
        let others: [ScriptStep] = [
          .get(keys[0]), .get(keys[1]), .set(keys[0], [3, 3, 3, 3]), .get(keys[0]),
        ]
        let cloned = try SkbProgram(.classifier, port: Guest.port, others)
        try cloned.attach(to: side.receiver, .ingress)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        var counted = TraitStatistics.only()
        let changes = try Guest.changes {
          for sequence in 0..<10 as Range<UInt32> {
            try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
            // The packet waits in the socket's queue meanwhile, so that the clone
            // is not the only one that has the store.
            for _ in 0..<500 where try cloned.results().runs <= sequence { usleep(10_000) }
            let first = try original.results()
            #expect(first.runs == UInt64(sequence + 1))
            let second = try cloned.results()
            #expect(second.runs == UInt64(sequence + 1))

            var packet = PacketModel(inHeadroom: values)
            packet.expect(first.steps.prefix(2), of: cloning, [4, 0])
            packet.leaveHeadroom(isLost: second.steps[0].status == -ENOENT)
            var clone = packet.clone()
            packet.expect(first.steps.dropFirst(2), of: writing, [0, 0, 4, -ENOENT])
            if !packet.isShared { clone.becomeAlone() }
            clone.expect(second.steps, of: others, [4, 16, 0, 4])
            counted += packet.changes
            counted += clone.changes

            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(sequence))
            try packet.expect(arrival, Traits([(ids[0], [2, 2, 2, 2])]))
          }
        }
        #expect(try original.results().runs == 10)
        #expect(try cloned.results().runs == 10)
        if !Guest.storesMayFail { #expect(counted == .only(set: 10, allocated: 20, evicted: 10)) }
        #expect(changes == counted)
        try cloned.detach()
        try original.detach()
        try tag.program.detach()
      }
    }

    // MARK: Back into XDP

    @Test(
      "an XDP program sees them if enough headroom is left, and what it sets is added",
      arguments: [Route.ipv4, .ipv6], [XDPProgram.Mode.driver, .generic])
    func backIntoXDP(route: Route, mode: XDPProgram.Mode) throws {
      // All in one namespace, so that no border is crossed.
      let namespace = try NetworkNamespace("ring")
      defer { namespace.remove() }
      let cable = try VethPair(from: namespace, to: namespace, network: 1)
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 13)) { ids in
        let keys = ids.map(\.rawValue)
        let fresh = [UInt8](repeating: 0xab, count: 16)
        // 88 bytes fit beside the 128 that are left to the program: values of 64.
        for count in [4, 5, 12] {
          let values = distinct(ids.prefix(count))
          let classifier = try SkbProgram(.classifier, port: Guest.port, setting(values))
          try classifier.attach(to: cable.sender, .egress)
          let script = try ScriptProgram(
            port: Guest.port,
            [.get(keys[0]), .set(keys[0], fresh), .set(keys[12], fresh), .get(keys[0])])
          try script.program.attach(to: cable.receiver, mode: mode)
          let inbox = try namespace.inbox(route, ids)
          var sent = PacketModel()
          let changes = try Guest.changes {
            try send(route, through: cable, TagProgram.payload(6))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(6))
            sent = try packet(given: values, by: classifier)
            // Where both do not fit, the values that were there stay.
            var right = try sent.traits()
            for id in [ids[0], ids[12]].sorted()
            where right.bytes(of: id) != nil || right.count < 12 {
              try right.setBytes(fresh, for: id)
            }
            #expect(try arrival.traits == right, "\(count) values")
            if !Guest.storesMayFail {
              #expect(
                try right
                  == Traits(
                    [(ids[0], fresh)] + values.dropFirst() + (count == 12 ? [] : [(ids[12], fresh)])))
            }
          }
          // Of those that were set, as there may not have been memory for all.
          let isVisible = (1...4).contains(sent.values.count)
          let hasFirst = sent.values[keys[0]] != nil
          #expect(
            try script.results().steps.map(\.status)
              == [isVisible && hasFirst ? 16 : -ENOENT, 0, 0, 16], "\(count) values")
          #expect(changes.lost == 0)
          #expect(changes.set == sent.changes.set + (isVisible ? 0 : 1), "\(count) values")
          #expect(changes.allocated == sent.changes.allocated, "\(count) values")
          // Out of the packet's memory, or into it: that of the program, if both fit.
          let fits = sent.values.count + (hasFirst ? 1 : 2) <= 12
          #expect(changes.copied == (isVisible || (!sent.values.isEmpty && fits) ? 1 : 0), "\(count) values")
          #expect(changes.discarded == (fits ? 0 : 1), "\(count) values")
          try script.program.detach()
          try classifier.detach()
        }
      }
    }

    /// Sends a frame along a cable both of whose ends are in one namespace.
    private func send(_ route: Route, through cable: VethPair, _ payload: [UInt8]) throws {
      // From an address that is nobody's: one's own would not be let in.
      let far = route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4
      let from = route == .ipv6 ? "fd77:1::99" : "10.77.1.99"
      let frame = udpFrame(
        source: [2, 0, 0, 0, 0, 9], destination: try cable.receiver.ethernetAddress(),
        from: try bytes(of: from), to: try bytes(of: far), port: Guest.port, payload: payload)
      try cable.sender.namespace.send(frame: frame, outOf: cable.sender.interface)
    }

    @Test(
      "a program that sends a packet on without seeing them gives them up", arguments: [Route.ipv4, .ipv6],
      [true, false])
    func sentOnUnseen(route: Route, isTransmitted: Bool) throws {
      let namespace = try NetworkNamespace("ring")
      defer { namespace.remove() }
      let cable = try VethPair(from: namespace, to: namespace, network: 1)
      let second = try VethPair(from: namespace, to: namespace, network: 2)
      // Back where it came from, or along the second cable
      let end = isTransmitted ? cable.sender : second.receiver
      let action = isTransmitted ? ScriptProgram.Action.transmit : .redirect(try second.sender.index())
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 12)) { ids in
        for count in [1, 12] {
          let values = distinct(ids.prefix(count))
          let classifier = try SkbProgram(.classifier, port: Guest.port, setting(values))
          try classifier.attach(to: cable.sender, .egress)
          let script = try ScriptProgram(port: Guest.port, [.get(ids[0].rawValue)], then: action)
          try script.program.attach(to: cable.receiver)
          let back = try SkbProgram(.classifier, port: Guest.port, [.get(ids[0].rawValue)])
          try back.attach(to: end, .ingress)
          // A driver takes back only from where frames are expected.
          let other = try ScriptProgram(port: Guest.port, [.get(ids[0].rawValue)])
          try other.program.attach(to: end)
          let changes = try Guest.changes {
            try send(route, through: cable, TagProgram.payload(6))
            for _ in 0..<500 {
              if try back.results().runs > 0 { break }
              usleep(10_000)
            }
          }
          let sent = try packet(given: values, by: classifier)
          let isVisible = (1...4).contains(sent.values.count)
          let status: Int32 = isVisible && sent.values[ids[0].rawValue] != nil ? 16 : -ENOENT
          if !Guest.storesMayFail { #expect(status == (count == 1 ? 16 : -ENOENT)) }
          #expect(try back.results().runs == 1)
          #expect(try script.results().steps.map(\.status) == [status])
          #expect(try other.results().steps.map(\.status) == [status])
          #expect(try back.results().steps.map(\.status) == [status])
          #expect(changes.discarded == (sent.values.isEmpty || isVisible ? 0 : 1))
          #expect(changes.lost == 0)
          for program in [other.program, script.program] { try program.detach() }
          try back.detach()
          try classifier.detach()
        }
      }
    }

    @Test("between interfaces of one namespace all keys are kept", arguments: [Route.ipv4, .ipv6])
    func oneNamespace(route: Route) throws {
      let namespace = try NetworkNamespace("ring")
      defer { namespace.remove() }
      let cable = try VethPair(from: namespace, to: namespace, network: 1)
      try Guest.withKeys([.bytes16]) { local in
        try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { crossing in
          let values = distinct(local + crossing)
          let script = try SkbProgram(.classifier, port: Guest.port, setting(values))
          try script.attach(to: cable.sender, .egress)
          let inbox = try namespace.inbox(route, local + crossing)
          var sent = PacketModel()
          let changes = try Guest.changes {
            try send(route, through: cable, TagProgram.payload(6))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(6))
            sent = try packet(given: values, by: script)
            try sent.expect(arrival, Traits(values))
          }
          sent.expect(changes, .only(set: 1, allocated: 1))
          try script.detach()
        }
      }
    }

    // MARK: Memory

    @Test("no memory is left behind, whatever becomes of a packet", arguments: Route.allCases)
    func memory(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8, .bytes16]) { ids in
        let values: [(TraitID, [UInt8])] = [
          (ids[0], [1, 2, 3, 4, 5, 6, 7, 8]), (ids[1], [UInt8](repeating: 7, count: 16)),
        ]
        // Every packet has traits in the headroom, which then must leave it.
        let tag = try ScriptProgram(port: Guest.port, setting([values[0]]))
        try tag.program.attach(to: cable.receiver)
        let script = try SkbProgram(.classifier, port: Guest.port, setting([values[1]]))
        try script.attach(to: cable.receiver, .ingress)
        let destination = try cable.destination(route)
        let outbox = try cable.outbox(route)
        let count = Guest.longRun / Route.allCases.count / 4

        // What came of the packets, where that can be seen: those that lost their
        // traits to a clone, those that kept them in the headroom as the classifier
        // could add none, and of the former those to which it gave new ones.
        var (lost, refused, begun) = (UInt64(0), UInt64(0), UInt64(0))

        /// Expects two traits, or what is left of them without memory.
        func expect(_ arrival: Arrival, isCloned: Bool) throws {
          let traits = try arrival.traits
          let isLost = Guest.storesMayFail && isCloned && traits.bytes(of: ids[0]) == nil
          if isLost { lost += 1 }
          var left = isLost ? [] : [values[0]]
          if try wasRefused() {
            // A store that has left the headroom grows without more memory.
            try #require(isLost || !isCloned)
            if !isLost { refused += 1 }
          } else {
            if isLost { begun += 1 }
            left.append(values[1])
          }
          let right = try Traits(left)
          try #require(traits == right)
        }

        /// Whether the last packet's classifier found no memory.
        func wasRefused() throws -> Bool {
          guard Guest.storesMayFail else { return false }
          return try script.results().steps[0].status == -ENOMEM
        }

        /// To sockets that ask for traits and to one that does not; with a tap,
        /// for which there are clones; to sockets that are closed with packets
        /// in their queues; and to none.
        func pass(_ count: Int) throws {
          for asked in [ids, []] {
            let inbox = try cable.inbox(route, asked)
            for sequence in 0..<count {
              try outbox.send(TagProgram.payload(UInt32(sequence)), to: destination)
              let arrival = try inbox.arrival()
              try #require(arrival.payload == TagProgram.payload(UInt32(sequence)))
              if asked.isEmpty {
                try #require(arrival.control.isEmpty)
                if try wasRefused() { refused += 1 }
              } else {
                try expect(arrival, isCloned: false)
              }
            }
          }
          let tap = try cable.receiver.namespace.openTap()
          defer { try? tap.close() }
          do {
            let inbox = try cable.inbox(route, ids)
            for sequence in 0..<count {
              try outbox.send(TagProgram.payload(UInt32(sequence)), to: destination)
              let arrival = try inbox.arrival()
              try #require(arrival.payload == TagProgram.payload(UInt32(sequence)))
              try expect(arrival, isCloned: true)
              Guest.empty(tap)
            }
          }
          for start in stride(from: 0, to: count, by: 100) {
            let inbox = try cable.inbox(route, ids)
            for sequence in start..<min(start + 100, count) {
              try outbox.send(TagProgram.payload(UInt32(sequence)), to: destination)
              Guest.empty(tap)
            }
            _ = inbox.unsafeFileDescriptor
          }
          // A refusal may come back.
          for sequence in 0..<min(count, 100) {
            _ = try? outbox.send(TagProgram.payload(UInt32(sequence)), to: destination)
            Guest.empty(tap)
          }
        }

        try pass(50)
        let before = try settled { _ in false }
        (lost, refused, begun) = (0, 0, 0)
        let changes = try Guest.changes { try pass(count) }
        // Every packet's store had to leave the headroom, if those were sent that
        // nobody receives.
        let stores = changes.evicted + changes.lost + refused
        #expect((count * 4...count * 4 + 100).contains(Int(stores)))
        #expect(changes.allocated >= changes.evicted + begun)
        #expect(changes.discarded == 0)
        if Guest.storesMayFail {
          // Not all of the clones are received.
          #expect(changes.lost >= lost)
          // About half of each.
          let some = UInt64(count / 4)...UInt64(count * 3 / 4)
          #expect(some.contains(lost))
          #expect(some.contains(refused / 2))
          #expect(changes.evicted >= some.lowerBound * 4)
          #expect(begun > 0)
        } else {
          #expect(changes.evicted >= UInt64(count * 4))
          #expect(changes.lost == 0)
        }
        let after = try settled { $0 == before }
        #expect(after == before)
        try script.detach()
        try tag.program.detach()
      }
    }

    @Test(
      "TCP carries its bytes while its packets have traits, which end with it",
      arguments: [Route.ipv4, .ipv6], [false, true])
    func tcp(route: Route, isXDP: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { ids in
        let script = try SkbProgram(.classifier, port: Guest.port, setting(distinct(ids)))
        try script.attach(to: cable.sender, .egress)
        let classifier = try SkbProgram(.classifier, port: Guest.port, [.get(ids[0].rawValue)])
        try classifier.attach(to: cable.receiver, .ingress)
        // With it the interface takes packets one by one, and merges them.
        let program = try ScriptProgram(port: Guest.port, [])
        if isXDP { try program.program.attach(to: cable.receiver) }

        func pass(_ rounds: Int) throws {
          let (near, far) = try connection(route, along: cable)
          defer { for end in [near, far] { try? end.close() } }
          for round in 0..<rounds {
            let payload = TagProgram.payload(UInt32(round), length: 65_536)
            try #require(try near.writeAll(payload) == payload.count)
            var got = [UInt8](repeating: 0, count: payload.count)
            var count = 0
            while count < got.count {
              let read = try got[count...].withUnsafeMutableBytes { try far.read(into: $0) }
              try #require(read > 0)
              count += read
            }
            try #require(got == payload, "round \(round)")
          }
        }
        try pass(2)
        let before = try settled { _ in false }
        let former = try script.results().runs
        let changes = try Guest.changes { try pass(30) }
        let sent = try script.results().runs - former
        if Guest.storesMayFail {
          // A packet has traits if there was memory for them.
          #expect(changes.set > 10)
          #expect(changes.set < sent)
          #expect(changes.allocated >= changes.set)
        } else {
          #expect(changes.set > 30)
          #expect(changes.allocated > 30)
          #expect(changes.lost == 0)
        }
        #expect(changes.discarded == 0)
        // The classifier of the receiver saw them, too, with their traits.
        let status = try classifier.results().steps.map(\.status)
        #expect(status == [16] || status == [-ENOENT] && Guest.storesMayFail)
        let after = try settled { $0 == before }
        #expect(after == before)
        for program in [script, classifier] { try program.detach() }
        try program.program.detach()
      }
    }
  }
}
