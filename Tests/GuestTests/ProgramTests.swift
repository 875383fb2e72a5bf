// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

extension Guest {
  @Suite("XDP programs", .cable)
  struct ProgramTests {
    /// Runs a script over one datagram.
    private func run(
      _ steps: [ScriptProgram.Step], receiving ids: [TraitID], mode: XDPProgram.Mode = .driver
    ) throws -> (steps: [ScriptProgram.Result], arrival: Arrival) {
      let cable = try suiteCable()
      let script = try ScriptProgram(port: Guest.port, steps)
      try script.program.attach(to: cable.receiver, mode: mode)
      let inbox = try cable.inbox(.ipv4, ids)
      try cable.outbox().send(TagProgram.payload(77), to: try cable.destination())
      let arrival = try inbox.arrival()
      #expect(arrival.payload == TagProgram.payload(77))
      let results = try script.results()
      #expect(results.runs == 1)
      try script.program.detach()
      return (results.steps, arrival)
    }

    @Test("set, overwrite, get and delete", arguments: [XDPProgram.Mode.driver, .generic])
    func operations(mode: XDPProgram.Mode) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let sixteen = (1...16).map { UInt8($0) }
        let (steps, arrival) = try run(
          [
            .get(keys[0]),
            .set(keys[2], sixteen),
            .set(keys[0], [1, 2, 3, 4]),
            .set(keys[1], [1, 1, 1, 1, 1, 1, 1, 1]),
            .get(keys[0]),
            .get(keys[1]),
            .get(keys[2]),
            .set(keys[0], [9, 9, 9, 9]),
            .get(keys[0]),
            .delete(keys[1]),
            .get(keys[1]),
            .delete(keys[1]),
            .get(keys[0]),
            .get(keys[2]),
          ], receiving: ids, mode: mode)
        #expect(
          steps.map(\.status) == [
            -ENOENT, 0, 0, 0, 4, 8, 16, 0, 4, 0, -ENOENT, -ENOENT, 4, 16,
          ])
        #expect(Array(steps[4].value.prefix(4)) == [1, 2, 3, 4])
        #expect(Array(steps[5].value.prefix(8)) == [UInt8](repeating: 1, count: 8))
        #expect(steps[6].value == sixteen)
        #expect(Array(steps[8].value.prefix(4)) == [9, 9, 9, 9])
        #expect(Array(steps[12].value.prefix(4)) == [9, 9, 9, 9])
        #expect(steps[13].value == sixteen)

        var right = Traits()
        try right.setBytes([9, 9, 9, 9], for: ids[0])
        try right.setBytes(sixteen, for: ids[2])
        #expect(try arrival.traits == right)
      }
    }

    @Test("is told exactly what was wrong", arguments: [XDPProgram.Mode.driver, .generic])
    func errors(mode: XDPProgram.Mode) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        var registry = try RegistryConnection()
        let taken = Set(try registry.keys().map(\.id))
        let free = try #require(TraitID.allCases.first { !taken.contains($0) }).rawValue
        let four = ids[0].rawValue
        let eight = ids[1].rawValue
        let value: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]

        let cases: [(ScriptProgram.Step, Int32)] = [
          (.get(four), -ENOENT),
          (.get(free), -ENOENT),
          (.get(64), -EINVAL),
          (.delete(four), -ENOENT),
          (.delete(64), -EINVAL),
          (.set(free, [1, 2, 3, 4]), -ENOENT),
          (.set(64, [1, 2, 3, 4]), -EINVAL),
          (.set(.max, [1, 2, 3, 4]), -EINVAL),
          (.set(four, value, size: 8), -EINVAL),
          (.set(eight, value, size: 4), -EINVAL),
          (.set(eight, value, size: 16), -EINVAL),
          (.set(four, value, size: 1), -EINVAL),
          (.set(four, value, size: 2), -EINVAL),
          (.set(four, value, size: 3), -EINVAL),
          (.set(four, value, size: 5), -EINVAL),
          (.set(four, value, size: 12), -EINVAL),
          (.set(four, value, size: 32), -EINVAL),
          (.set(four, [1, 2, 3, 4], flags: 1), -EINVAL),
          (.set(four, [1, 2, 3, 4], flags: 1 << 63), -EINVAL),
          (.get(four), -ENOENT),
          // From here on there is a store.
          (.set(eight, value), 0),
          (.get(four), -ENOENT),
          (.get(eight, flags: 1), -EINVAL),
          (.get(eight, size: 4), -ENOSPC),
          (.get(eight, size: 7), -ENOSPC),
          (.get(eight, size: 8), 8),
          (.get(eight, size: 32), 8),
          (.get(free), -ENOENT),
          (.get(64), -EINVAL),
          (.set(eight, value, size: 4), -EINVAL),
          (.delete(eight, flags: 1), -EINVAL),
          (.delete(free), -ENOENT),
          (.delete(64), -EINVAL),
          (.get(eight), 8),
        ]
        let (steps, arrival) = try run(cases.map(\.0), receiving: ids, mode: mode)
        for (number, (result, (_, right))) in zip(steps, cases).enumerated() {
          #expect(result.status == right, "step \(number)")
        }
        // A failed set changed nothing.
        #expect(try arrival.traits.map(\.id) == [ids[1]])
        #expect(try arrival.traits.bytes(of: ids[1]) == value)
      }
    }

    @Test("delete all traits, which then are none")
    func deleteAll() throws {
      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let (steps, arrival) = try run(
          [
            .set(ids[0].rawValue, [1, 2, 3, 4]),
            .set(ids[1].rawValue, [UInt8](repeating: 7, count: 16)),
            .delete(ids[0].rawValue), .delete(ids[1].rawValue),
          ], receiving: ids)
        #expect(steps.map(\.status) == [0, 0, 0, 0])
        #expect(arrival.control.isEmpty)
      }
    }

    @Test("end a store with its last trait", arguments: [XDPProgram.Mode.driver, .generic])
    func lastTrait(mode: XDPProgram.Mode) throws {
      try Guest.withKeys([.bytes8]) { ids in
        let value: [UInt8] = [8, 7, 6, 5, 4, 3, 2, 1]
        let changes = try Guest.changes {
          let (steps, arrival) = try run(
            [
              .set(ids[0].rawValue, [UInt8](repeating: 1, count: 8)), .delete(ids[0].rawValue),
              .get(ids[0].rawValue), .delete(ids[0].rawValue), .set(ids[0].rawValue, value),
            ], receiving: ids, mode: mode)
          #expect(steps.map(\.status) == [0, 0, -ENOENT, -ENOENT, 0])
          #expect(try arrival.traits == Traits([(ids[0], value)]))
        }
        // It was begun twice.
        #expect(changes == .only(set: 2))
      }
    }

    @Test("make room in a full store by deleting")
    func refill() throws {
      try Guest.withKeys([TraitSize](repeating: .bytes16, count: 13)) { ids in
        let value = { (number: Int) in [UInt8](repeating: UInt8(number + 1), count: 16) }
        var steps = (0..<12).map { ScriptProgram.Step.set(ids[$0].rawValue, value($0)) }
        steps.append(.set(ids[12].rawValue, value(12)))
        steps.append(.delete(ids[5].rawValue))
        steps.append(.set(ids[12].rawValue, value(12)))
        let before = try Guest.statistics()
        let (results, arrival) = try run(steps, receiving: ids)
        #expect(results.map(\.status) == [Int32](repeating: 0, count: 12) + [-ENOSPC, 0, 0])
        // A kernel that puts a seal behind each store has no room for a full one.
        var passages = Passages()
        try passages.expect(
          arrival, Traits((0..<13).filter { $0 != 5 }.map { (ids[$0], value($0)) }))
        #expect(try Guest.statistics().lost - before.lost == passages.lost)
      }
    }

    @Test("use metadata and traits on one packet")
    func metadata() throws {
      try Guest.withKeys([.bytes8]) { ids in
        let meta: [UInt8] = [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7]
        let value: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
        let before = try Guest.statistics()
        let (steps, arrival) = try run(
          [
            .adjustMeta(-8), .writeMeta(meta), .set(ids[0].rawValue, value), .readMeta,
            .get(ids[0].rawValue), .adjustMeta(-8), .writeMeta(value), .get(ids[0].rawValue),
          ], receiving: ids)
        #expect(steps.map(\.status) == [0, 0, 0, 8, 8, 0, 0, 8])
        #expect(Array(steps[3].value.prefix(8)) == meta)
        #expect(Array(steps[7].value.prefix(8)) == value)
        #expect(try arrival.traits.bytes(of: ids[0]) == value)
        #expect(try Guest.statistics().discarded == before.discarded)
      }
    }

    @Test("push and pull headers beside a store")
    func headers() throws {
      try Guest.withKeys([.bytes8]) { ids in
        let value: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
        let before = try Guest.statistics()
        let (steps, arrival) = try run(
          [
            .set(ids[0].rawValue, value), .adjustHead(-40), .get(ids[0].rawValue),
            .adjustHead(40), .get(ids[0].rawValue),
          ], receiving: ids)
        #expect(steps.map(\.status) == [0, 0, 8, 0, 8])
        #expect(try arrival.traits.bytes(of: ids[0]) == value)
        #expect(try Guest.statistics().discarded == before.discarded)
      }
    }

    @Test("move the packet's end beside a store", arguments: [XDPProgram.Mode.driver, .generic])
    func tail(mode: XDPProgram.Mode) throws {
      try Guest.withKeys([.bytes8]) { ids in
        let value: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
        let before = try Guest.statistics()
        let (steps, arrival) = try run(
          [
            .set(ids[0].rawValue, value), .adjustTail(16), .get(ids[0].rawValue),
            .adjustTail(-16), .get(ids[0].rawValue),
          ], receiving: ids, mode: mode)
        #expect(steps.map(\.status) == [0, 0, 8, 0, 8])
        #expect(try arrival.traits.bytes(of: ids[0]) == value)
        #expect(try Guest.statistics().discarded == before.discarded)
      }
    }

    @Test(
      "take the store's room for headers or metadata: the store is discarded, and counted",
      arguments: [false, true])
    func overrun(forMetadata: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8]) { ids in
        let headroom = try HeadroomProgram(port: Guest.port, key: ids[0], forMetadata: forMetadata)
        try headroom.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(.ipv4, ids)
        let outbox = try cable.outbox()
        let before = try Guest.statistics()
        for sequence in 1...5 as ClosedRange<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: try cable.destination())
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(sequence))
          #expect(arrival.control.isEmpty)
          let results = try headroom.results()
          #expect(results.runs == UInt64(sequence))
          #expect(results.set == 0)
          #expect(results.before == 8)
          // Of 256 bytes of headroom 40 are the frame's own.
          #expect(results.taken > 180)
          #expect(results.after == -ENOENT)
          #expect(results.restored == 0)
        }
        let after = try Guest.statistics()
        #expect(after.set - before.set == 5)
        #expect(after.discarded - before.discarded == 5)
        #expect(after.copied == before.copied)
        try headroom.program.detach()
      }
    }

    @Test("cannot be loaded without privilege")
    func privilege() throws {
      // The directory may be closed to the user.
      try BPFProgram.content(of: "script")
      let error = #expect(throws: LabError.self) {
        try asUser { try ScriptProgram(port: Guest.port, [.get(0)]).results().runs }
      }
      let description = error?.description ?? ""
      #expect(description.hasPrefix("script.bpf.o : Operation not permitted"), "\(description)")
    }
  }

  @Suite("Delivery across interfaces")
  struct ForwardingTests {
    @Test("on entry to another namespace only keys that cross are kept", arguments: [Route.ipv4, .ipv6])
    func namespaces(route: Route) throws {
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
        "route add 10.77.2.0/24 via \(near.receiver.ipv4)",
        "route add fd77:2::/64 via \(near.receiver.ipv6)",
      ])
      try receiving.ip(lines: [
        "route add 10.77.1.0/24 via \(far.sender.ipv4)",
        "route add fd77:1::/64 via \(far.sender.ipv6)",
      ])

      try Guest.withKeys([.bytes4]) { local in
        try Guest.withKeys([.bytes8, .bytes16], flags: .crossesNetworkNamespaces) { crossing in
          let tag = try TagProgram(
            port: Guest.port, key4: local[0], key8: crossing[0], key16: crossing[1])
          try tag.program.attach(to: near.receiver)
          let inbox = try far.inbox(route, local + crossing)
          let outbox = try near.outbox(route)

          // The first ones may wait for a neighbour to be found.
          for _ in 0..<3 {
            try outbox.send(TagProgram.payload(0), to: try far.destination(route))
            _ = try inbox.arrival()
          }
          let before = try Guest.statistics()
          for sequence in 1...10 as ClosedRange<UInt32> {
            try outbox.send(TagProgram.payload(sequence), to: try far.destination(route))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(sequence))
            var right = Traits()
            try right.set(TagProgram.value8(sequence), for: TraitKey<UInt64>(crossing[0]))
            try right.setBytes(TagProgram.value16(sequence), for: crossing[1])
            #expect(try arrival.traits == right)
          }
          let after = try Guest.statistics()
          #expect(after.set - before.set == 10)
          #expect(after.scrubbed - before.scrubbed == 10)
          #expect(after.discarded == before.discarded)
          try tag.program.detach()
        }
      }
    }

    /// An array takes no socket: it cannot be copied.
    private final class Inbox {
      let socket: UDPSocket

      init(_ socket: consuming UDPSocket) { self.socket = socket }
    }

    @Test(
      "a broadcast gives each interface's program a packet and a store of its own",
      arguments: [XDPProgram.Mode.driver, .generic])
    func broadcast(mode: XDPProgram.Mode) throws {
      let sending = try NetworkNamespace("sender")
      defer { sending.remove() }
      let routing = try NetworkNamespace("router")
      defer { routing.remove() }
      let near = try VethPair(from: sending, to: routing, network: 1)
      let namespaces = try (0..<4).map { _ in try NetworkNamespace("receiver") }
      defer { for namespace in namespaces { namespace.remove() } }
      let cables = try namespaces.enumerated().map {
        try VethPair(from: routing, to: $1, network: 2 + $0)
      }
      let address: [UInt8] = [10, 99, 0, 1]
      for namespace in namespaces { try namespace.ip("address", "add", "10.99.0.1/32", "dev", "lo") }

      try Guest.withKeys([.bytes4, .bytes4], flags: .crossesNetworkNamespaces) { ids in
        let broadcast = try BroadcastProgram(port: Guest.port, common: ids[0], own: ids[1])
        // Those without a program come first, in between and last, wherever
        // the map has them.
        for (number, cable) in cables.enumerated() {
          try broadcast.add(cable.sender, isMarked: number % 2 == 0)
        }
        try broadcast.spread.attach(to: near.receiver, mode: mode)
        // A driver takes frames from another one only if it runs a program.
        let idle = try namespaces.indices.map { _ in
          try ScriptProgram(port: Guest.port, [.get(ids[0].rawValue)])
        }
        for (cable, script) in zip(cables, idle) { try script.program.attach(to: cable.receiver) }
        let inboxes = try cables.map { Inbox(try $0.inbox(.ipv4, ids)) }

        let before = try Guest.statistics()
        // Where the first clone is made the traits of all may be lost, which is
        // counted once; where a packet's head is copied, those of that one.
        var lost: UInt64 = 0
        var lostForAll: UInt64 = 0
        for sequence in 1...5 as ClosedRange<UInt32> {
          var passages = Passages()
          let payload = TagProgram.payload(sequence).prefix(4) + [0, 0, 0, 0, 1, 2, 3, 4]
          try sending.send(
            frame: udpFrame(
              source: [2, 0, 0, 0, 0, 9], destination: [UInt8](repeating: 0xff, count: 6),
              from: [10, 77, 1, 99], to: address, port: Guest.port, payload: Array(payload)),
            outOf: near.sender.interface)
          for (number, cable) in cables.enumerated() {
            let arrival = try inboxes[number].socket.arrival()
            var expected = Array(payload)
            var right = Traits()
            try right.setBytes([0xff, 0xff, 0xff, 0xff], for: ids[0])
            if number % 2 == 0 {
              let index = try cable.sender.index()
              expected.replaceSubrange(4..<8, with: withUnsafeBytes(of: index.bigEndian) { Array($0) })
              try right.set(index, for: TraitKey<UInt32>(ids[1]))
            }
            #expect(arrival.payload == expected, "interface \(number)")
            try passages.expect(arrival, right, "interface \(number)")
          }
          // Then the programs of two interfaces did not find it, and set none.
          let isLostForAll = try broadcast.counts().failed > lostForAll * 2
          if isLostForAll { lostForAll += 1 }
          #expect(!isLostForAll || passages.lost == 4)
          lost += isLostForAll ? 1 : passages.lost
        }
        let counts = try broadcast.counts()
        #expect(counts.failed == lostForAll * 2)
        #expect(counts.foreign == 0)
        #expect(try Guest.statistics().lost - before.lost == lost)
        // A frame's store is copied with its bytes.
        if mode == .driver || !Guest.storesMayFail {
          #expect(lost == 0)
          #expect(lostForAll == 0)
        }
        for script in idle { try script.program.detach() }
        try broadcast.spread.detach()
      }
    }

    @Test(
      "XDP_TX and XDP_REDIRECT carry traits to the program of the next interface", arguments: [true, false])
    func nextProgram(isTransmitted: Bool) throws {
      // All in one namespace, so that no border is crossed.
      let namespace = try NetworkNamespace("ring")
      defer { namespace.remove() }
      let first = try VethPair(from: namespace, to: namespace, network: 1)
      let second = try VethPair(from: namespace, to: namespace, network: 2)
      // From the first cable's near end to its far end; from there back, or
      // along the second cable.
      let end = isTransmitted ? first.sender : second.receiver

      try Guest.withKeys([.bytes4, .bytes16]) { ids in
        let value = (1...16).map { UInt8($0) }
        let action =
          isTransmitted
          ? ScriptProgram.Action.transmit : .redirect(try second.sender.index())
        let setter = try ScriptProgram(
          port: Guest.port,
          [.set(ids[0].rawValue, [1, 2, 3, 4]), .set(ids[1].rawValue, value)], then: action)
        try setter.program.attach(to: first.receiver)
        let getter = try ScriptProgram(
          port: Guest.port,
          [.get(ids[0].rawValue), .get(ids[1].rawValue), .set(ids[0].rawValue, [5, 6, 7, 8])])
        try getter.program.attach(to: end)

        let inbox = try namespace.run {
          let socket = try UDPSocket(.ipv4)
          try socket.bind(to: .any(.ipv4, port: Guest.port))
          try socket.setReceiveTimeout(.seconds(10))
          try socket.setReceivedTraits(TraitMask(ids))
          return socket
        }
        let ipv4 = end.ipv4.split(separator: ".").compactMap { UInt8($0) }
        let ethernet = try end.ethernetAddress()
        let before = try Guest.statistics()
        for sequence in 0..<5 as Range<UInt32> {
          let frame = udpFrame(
            source: [2, 0, 0, 0, 0, 9], destination: ethernet,
            from: [10, 77, isTransmitted ? 1 : 2, 99],
            to: ipv4, port: Guest.port,
            payload: TagProgram.payload(sequence))
          try namespace.send(frame: frame, outOf: first.sender.interface)
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(sequence))
          var right = Traits()
          try right.setBytes([5, 6, 7, 8], for: ids[0])
          try right.setBytes(value, for: ids[1])
          #expect(try arrival.traits == right)
        }
        let results = try getter.results()
        #expect(results.runs == 5)
        #expect(results.steps.map(\.status) == [4, 16, 0])
        #expect(Array(results.steps[0].value.prefix(4)) == [1, 2, 3, 4])
        #expect(results.steps[1].value == value)
        #expect(try Guest.statistics().discarded == before.discarded)
        try getter.program.detach()
        try setter.program.detach()
      }
    }
  }
}
