// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

private let four: [UInt8] = [1, 2, 3, 4]
private let eight: [UInt8] = [11, 12, 13, 14, 15, 16, 17, 18]
private let sixteen = (21...36).map { UInt8($0) }

extension Guest {
  @Suite("Programs that have an skb", .cable)
  struct SkbProgramTests {
    /// Sends a datagram, over which an XDP program runs `tags` and then a
    /// classifier `steps`, both at the receiving interface.
    private func run(
      _ route: Route, tagging tags: [ScriptStep], _ steps: [ScriptStep], receiving ids: [TraitID],
      by hook: SkbProgram.Hook = .tcx
    ) throws -> (steps: [ScriptResults.Step], arrival: Arrival, changes: TraitStatistics) {
      let cable = try suiteCable()
      let tag = try ScriptProgram(port: Guest.port, tags)
      if !tags.isEmpty { try tag.program.attach(to: cable.receiver) }
      let script = try SkbProgram(.classifier, port: Guest.port, steps)
      try script.attach(to: cable.receiver, .ingress, by: hook)
      let inbox = try cable.inbox(route, ids)
      var arrival: Arrival?
      let changes = try Guest.changes {
        try cable.outbox(route).send(TagProgram.payload(77), to: try cable.destination(route))
        arrival = try inbox.arrival()
      }
      let arrived = try #require(arrival)
      #expect(arrived.payload == TagProgram.payload(77))
      if !tags.isEmpty {
        let set = try tag.results()
        #expect(set.runs == 1)
        #expect(set.steps.allSatisfy { $0.status == 0 })
      }
      let results = try script.results()
      #expect(results.runs == 1)
      try script.detach()
      try tag.program.detach()
      return (results.steps, arrived, changes)
    }

    @Test(
      "overwrite a value in the headroom, where it stays", arguments: Route.allCases,
      SkbProgram.Hook.allCases)
    func overwrite(route: Route, hook: SkbProgram.Hook) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let keys = ids.map(\.rawValue)
        let (steps, arrival, changes) = try run(
          route, tagging: [.set(keys[0], four), .set(keys[1], eight)],
          [.get(keys[0]), .set(keys[0], [9, 9, 9, 9]), .get(keys[0]), .get(keys[1])],
          receiving: ids, by: hook)
        #expect(steps.map(\.status) == [4, 0, 4, 8])
        #expect(Array(steps[0].value.prefix(4)) == four)
        #expect(Array(steps[2].value.prefix(4)) == [9, 9, 9, 9])
        #expect(Array(steps[3].value.prefix(8)) == eight)
        #expect(try arrival.traits == Traits([(ids[0], [9, 9, 9, 9]), (ids[1], eight)]))
        #expect(changes == .only(set: 1))
      }
    }

    @Test("delete values in the headroom, one or all", arguments: Route.allCases, [1, 2])
    func delete(route: Route, count: Int) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let keys = ids.map(\.rawValue)
        let (steps, arrival, changes) = try run(
          route, tagging: [.set(keys[0], four), .set(keys[1], eight)],
          [.delete(keys[0]), .get(keys[0]), .delete(keys[0])]
            + (count == 2 ? [.delete(keys[1]), .get(keys[1])] : [.get(keys[1])]),
          receiving: ids)
        #expect(steps.map(\.status) == [0, -ENOENT, -ENOENT] + (count == 2 ? [0, -ENOENT] : [8]))
        #expect(try arrival.traits == Traits(count == 2 ? [] : [(ids[1], eight)]))
        if count == 2 { #expect(arrival.control.isEmpty) }
        #expect(changes == .only(set: 1))
      }
    }

    @Test("add a value to those in the headroom, which is evicted", arguments: Route.allCases)
    func grow(route: Route) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let steps: [ScriptStep] = [
          .set(keys[2], sixteen), .get(keys[0]), .get(keys[1]), .get(keys[2]),
          // There it has room.
          .delete(keys[2]), .set(keys[2], sixteen), .set(keys[0], [8, 7, 6, 5]),
        ]
        let (results, arrival, changes) = try run(
          route, tagging: [.set(keys[0], four), .set(keys[1], eight)], steps, receiving: ids)
        var packet = PacketModel(inHeadroom: [(ids[0], four), (ids[1], eight)])
        packet.expect(results, of: steps, [0, 4, 8, 16, 0, 0, 0])
        try packet.expect(
          arrival, Traits([(ids[0], [8, 7, 6, 5]), (ids[1], eight), (ids[2], sixteen)]))
        packet.expect(changes, .only(set: 1, allocated: 1, evicted: 1))
      }
    }

    @Test(
      "are the first to set one, and may be the last to delete one", arguments: Route.allCases,
      SkbProgram.Hook.allCases)
    func begin(route: Route, hook: SkbProgram.Hook) throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let steps: [ScriptStep] = [
          .get(keys[0]), .delete(keys[0]), .set(keys[2], sixteen), .set(keys[0], four),
          .set(keys[1], eight), .get(keys[2]),
        ]
        let (results, arrival, changes) = try run(
          route, tagging: [], steps, receiving: ids, by: hook)
        var packet = PacketModel()
        packet.expect(results, of: steps, [-ENOENT, -ENOENT, 0, 0, 0, 16])
        try packet.expect(
          arrival, Traits([(ids[0], four), (ids[1], eight), (ids[2], sixteen)]))
        packet.expect(changes, .only(set: 1, allocated: 1))

        let end: [ScriptStep] = [.set(keys[0], four), .delete(keys[0]), .get(keys[0])]
        let (ended, without, _) = try run(
          route, tagging: [], end, receiving: ids, by: hook)
        var other = PacketModel()
        other.expect(ended, of: end, [0, 0, -ENOENT])
        #expect(without.control.isEmpty)
      }
    }

    @Test("are told exactly what was wrong", arguments: [false, true])
    func errors(isTagged: Bool) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let free = try Guest.freeKey().rawValue
        let small = ids[0].rawValue
        let large = ids[1].rawValue

        let wrong: [(ScriptStep, Int32)] = [
          (.get(small), -ENOENT),
          (.get(free), -ENOENT),
          (.get(64), -EINVAL),
          (.get(.max), -EINVAL),
          (.get(small, flags: 1), -EINVAL),
          (.delete(small), -ENOENT),
          (.delete(free), -ENOENT),
          (.delete(64), -EINVAL),
          (.delete(small, flags: 1 << 40), -EINVAL),
          (.set(free, four), -ENOENT),
          (.set(64, four), -EINVAL),
          (.set(.max, four), -EINVAL),
          (.set(small, eight), -EINVAL),
          (.set(large, eight, size: 4), -EINVAL),
          (.set(large, eight, size: 16), -EINVAL),
          (.set(small, eight, size: 0), -EINVAL),
          (.set(small, eight, size: 1), -EINVAL),
          (.set(small, eight, size: 2), -EINVAL),
          (.set(small, eight, size: 3), -EINVAL),
          (.set(small, eight, size: 5), -EINVAL),
          (.set(small, eight, size: 12), -EINVAL),
          (.set(small, eight, size: 32), -EINVAL),
          (.set(small, four, flags: 1), -EINVAL),
          (.set(small, four, flags: 1 << 63), -EINVAL),
        ]
        let right: [(ScriptStep, Int32)] = [
          (.set(large, eight), 0),
          (.get(large, flags: 1), -EINVAL),
          (.get(large, size: 0), -ENOSPC),
          (.get(large, size: 4), -ENOSPC),
          (.get(large, size: 7), -ENOSPC),
          (.get(large, size: 8), 8),
          (.get(large, size: 32), 8),
          (.delete(large, flags: 1), -EINVAL),
          (.get(large), 8),
        ]
        let cases = wrong + right + wrong
        let former = [UInt8](repeating: 1, count: 8)
        let (results, arrival, changes) = try run(
          .ipv4, tagging: isTagged ? [.set(large, former)] : [], cases.map(\.0), receiving: ids)
        var packet = PacketModel(inHeadroom: isTagged ? [(ids[1], former)] : [])
        packet.expect(results, of: cases.map(\.0), cases.map(\.1))
        try packet.expect(arrival, Traits([(ids[1], eight)]))
        // What failed began nothing and moved nothing.
        packet.expect(changes, .only(set: 1, allocated: isTagged ? 0 : 1))
      }
    }

    @Test(
      "cannot go beyond 216 bytes, and then nothing changes", arguments: Route.allCases, TraitSize.allCases)
    func full(route: Route, size: TraitSize) throws {
      let count = 192 / size.rawValue
      try Guest.withKeys([TraitSize](repeating: size, count: count + 1) + [.bytes4]) { ids in
        let values = (0...count).map { number in
          (0..<size.rawValue).map { UInt8(truncatingIfNeeded: number * 16 + $0 + 1) }
        }
        var steps = (0..<count).map { ScriptStep.set(ids[$0].rawValue, values[$0]) }
        steps += [
          .set(ids[count].rawValue, values[count]), .get(ids[count].rawValue),
          .set(ids[count + 1].rawValue, four),
          // Room is made.
          .delete(ids[1].rawValue), .set(ids[count].rawValue, values[count]),
        ]
        let (results, arrival, changes) = try run(route, tagging: [], steps, receiving: ids)
        var packet = PacketModel()
        packet.expect(
          results, of: steps,
          [Int32](repeating: 0, count: count) + [-ENOSPC, -ENOENT, -ENOSPC, 0, 0])
        try packet.expect(
          arrival, Traits((0...count).filter { $0 != 1 }.map { (ids[$0], values[$0]) }))
        packet.expect(changes, .only(set: 1, allocated: 1))
      }
    }

    @Test("on the way out over the loopback interface", arguments: Route.allCases, SkbProgram.Hook.allCases)
    func loopback(route: Route, hook: SkbProgram.Hook) throws {
      let namespace = try suiteCable().receiver.namespace
      try Guest.withKeys([.bytes8, .bytes16]) { ids in
        let steps: [ScriptStep] = [.set(ids[0].rawValue, eight), .set(ids[1].rawValue, sixteen)]
        let script = try SkbProgram(.classifier, port: Guest.port, steps)
        try script.attach(to: "lo", in: namespace, .egress, by: hook)
        let inbox = try namespace.inbox(route, ids)
        let outbox = try namespace.run { try UDPSocket(route.family) }
        let host = route == .ipv6 ? "::1" : "127.0.0.1"
        let destination = try #require(InternetAddress(host, port: Guest.port))
        var counted = TraitStatistics.only()
        let changes = try Guest.changes {
          for sequence in 0..<10 as Range<UInt32> {
            try outbox.send(TagProgram.payload(sequence), to: destination)
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(sequence))
            var packet = PacketModel()
            packet.expect(try script.results().steps, of: steps, [0, 0])
            try packet.expect(arrival, Traits([(ids[0], eight), (ids[1], sixteen)]))
            counted += packet.changes
          }
        }
        if !Guest.storesMayFail { #expect(counted == .only(set: 10, allocated: 10)) }
        #expect(changes == counted)
        try script.detach()
      }
    }

    @Test(
      "on the way out to another namespace, where keys arrive that cross", arguments: Route.allCases,
      SkbProgram.Hook.allCases)
    func border(route: Route, hook: SkbProgram.Hook) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { local in
        try Guest.withKeys([.bytes16], flags: .crossesNetworkNamespaces) { crossing in
          for ids in [local, crossing, local + crossing] {
            let steps = ids.map { ScriptStep.set($0.rawValue, $0 == local[0] ? four : sixteen) }
            let script = try SkbProgram(.classifier, port: Guest.port, steps)
            try script.attach(to: cable.sender, .egress, by: hook)
            let inbox = try cable.inbox(route, local + crossing)
            var packet = PacketModel()
            let changes = try Guest.changes {
              try cable.outbox(route).send(TagProgram.payload(3), to: try cable.destination(route))
              let arrival = try inbox.arrival()
              #expect(arrival.payload == TagProgram.payload(3))
              packet.expect(
                try script.results().steps, of: steps, [Int32](repeating: 0, count: steps.count))
              packet.enterNamespace(keeping: crossing)
              try packet.expect(
                arrival, Traits(ids.contains(crossing[0]) ? [(crossing[0], sixteen)] : []))
            }
            packet.expect(
              changes, .only(set: 1, scrubbed: ids.contains(local[0]) ? 1 : 0, allocated: 1))
            try script.detach()
          }
        }
      }
    }

    @Test("of control groups, on the way out and in", arguments: Route.allCases)
    func groups(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { local in
        try Guest.withKeys([.bytes8, .bytes16], flags: .crossesNetworkNamespaces) { crossing in
          let keys = (local + crossing).map(\.rawValue)
          let before: [ScriptStep] = [
            .get(keys[1]), .set(keys[1], eight), .set(keys[2], sixteen), .get(keys[1]),
          ]
          let sending = try SkbProgram(.groupEgress, port: Guest.port, before)
          let after: [ScriptStep] = [
            .get(keys[1]), .set(keys[0], four), .set(keys[1], [8, 7, 6, 5, 4, 3, 2, 1]),
            .delete(keys[2]), .get(keys[2]), .set(keys[2], four), .set(64, four),
          ]
          let receiving = try SkbProgram(.groupIngress, port: Guest.port, after)
          try sending.attachToAllGroups(.egress)
          try receiving.attachToAllGroups(.ingress)
          let inbox = try cable.inbox(route, local + crossing)
          var packet = PacketModel()
          let changes = try Guest.changes {
            try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(4))
            let sent = try sending.results()
            #expect(sent.runs == 1)
            packet.expect(sent.steps, of: before, [-ENOENT, 0, 0, 8])
            let received = try receiving.results()
            #expect(received.runs == 1)
            packet.expect(received.steps, of: after, [8, 0, 0, 0, -ENOENT, -EINVAL, -EINVAL])
            try packet.expect(
              arrival, Traits([(local[0], four), (crossing[0], [8, 7, 6, 5, 4, 3, 2, 1])]))
          }
          packet.expect(changes, .only(set: 1, allocated: 1))
          try sending.detach()
          try receiving.detach()
        }
      }
    }

    @Test("of control groups see what XDP has set", arguments: Route.allCases)
    func groupsAfterXDP(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let script = try SkbProgram(
          .groupIngress, port: Guest.port,
          [.get(keys[0]), .get(keys[1]), .get(keys[2]), .set(keys[2], sixteen)])
        try script.attachToAllGroups(.ingress)
        let inbox = try cable.inbox(route, ids)
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
          #expect(try inbox.arrival().traits.bytes(of: ids[2]) == sixteen)
        }
        let results = try script.results()
        #expect(results.steps.map(\.status) == [4, 8, 16, 0])
        #expect(results.steps[0].value.native(0, as: UInt32.self) == TagProgram.value4(4))
        #expect(results.steps[1].value.native(0, as: UInt64.self) == TagProgram.value8(4))
        #expect(results.steps[2].value == TagProgram.value16(4))
        #expect(changes == .only(set: 1))
        try script.detach()
        try tag.program.detach()
      }
    }

    @Test("of sockets read what the packet has", arguments: Route.allCases, [false, true])
    func socketFilter(route: Route, isEvicted: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let keys = ids.map(\.rawValue)
        let tag = try ScriptProgram(
          port: Guest.port, [.set(keys[0], four), .set(keys[1], eight)])
        try tag.program.attach(to: cable.receiver)
        let growth = [ScriptStep.set(keys[2], sixteen)]
        let classifier = try SkbProgram(.classifier, port: Guest.port, growth)
        if isEvicted { try classifier.attach(to: cable.receiver, .ingress) }
        let steps: [ScriptStep] = [
          .get(keys[0]), .get(keys[1]), .get(keys[2]), .get(64), .get(keys[1], size: 4),
        ]
        let filter = try SkbProgram(.socketFilter, port: Guest.port, steps)
        // Whether the socket asked for anything is another matter.
        for asked in [[], ids] {
          let inbox = try cable.inbox(route, asked)
          try filter.attach(to: inbox.unsafeFileDescriptor)
          let values = [(ids[0], four), (ids[1], eight)]
          var packet = PacketModel(inHeadroom: values)
          let changes = try Guest.changes {
            try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(4))
            if isEvicted { packet.expect(try classifier.results().steps, of: growth, [0]) }
            if asked.isEmpty {
              #expect(arrival.control.isEmpty)
            } else {
              try packet.expect(arrival, Traits(values + (isEvicted ? [(ids[2], sixteen)] : [])))
            }
          }
          packet.expect(
            changes, isEvicted ? .only(set: 1, allocated: 1, evicted: 1) : .only(set: 1))
          let results = try filter.results()
          #expect(results.runs == (asked.isEmpty ? 1 : 2))
          packet.expect(
            results.steps, of: steps, [4, 8, isEvicted ? 16 : -ENOENT, -EINVAL, -ENOSPC])
        }
        try classifier.detach()
        try tag.program.detach()
      }
    }

    @Test("of tracepoints read what the packet has", arguments: Route.allCases, [false, true])
    func trace(route: Route, isInHeadroom: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes8, .bytes16], flags: .crossesNetworkNamespaces) { ids in
        let keys = ids.map(\.rawValue)
        let free = try Guest.freeKey().rawValue
        let set: [ScriptStep] = [.set(keys[0], eight), .set(keys[1], sixteen)]
        let tag = try ScriptProgram(port: Guest.port, set)
        let classifier = try SkbProgram(.classifier, port: Guest.port, set)
        if isInHeadroom {
          try tag.program.attach(to: cable.receiver)
        } else {
          try classifier.attach(to: cable.sender, .egress)
        }
        let steps: [ScriptStep] = [
          .get(keys[0]), .get(keys[1]), .get(free), .get(64), .get(keys[0], flags: 1),
          .get(keys[0], size: 4),
        ]
        let trace = try SkbProgram(.trace, port: Guest.port, steps)
        try trace.attachToTracepoint()
        let inbox = try cable.inbox(route, ids)
        let values = [(ids[0], eight), (ids[1], sixteen)]
        var packet = PacketModel(inHeadroom: isInHeadroom ? values : [])
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(4))
          if !isInHeadroom { packet.expect(try classifier.results().steps, of: set, [0, 0]) }
          try packet.expect(arrival, Traits(values))
        }
        packet.expect(changes, .only(set: 1, allocated: isInHeadroom ? 0 : 1))
        let results = try trace.results()
        #expect(results.runs == 1)
        packet.expect(results.steps, of: steps, [8, 16, -ENOENT, -EINVAL, -EINVAL, -ENOSPC])
        try trace.detach()
        try classifier.detach()
        try tag.program.detach()
      }
    }

    @Test("of netfilter set, get and delete", arguments: [Route.ipv4, .ipv6], [false, true])
    func netfilter(route: Route, isTagged: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let keys = ids.map(\.rawValue)
        let tag = try ScriptProgram(port: Guest.port, [.set(keys[0], four)])
        if isTagged { try tag.program.attach(to: cable.receiver) }
        let steps: [ScriptStep] = [
          .get(keys[0]), .get(64), .set(keys[1], eight), .get(keys[1]), .delete(keys[0]), .get(keys[0]),
          .set(keys[1], four), .set(keys[1], eight, flags: 1),
        ]
        let script = try SkbProgram(.netfilter, port: Guest.port, steps)
        try script.attachToInput(route.family, in: cable.receiver.namespace)
        let inbox = try cable.inbox(route, ids)
        var packet = PacketModel(inHeadroom: isTagged ? [(ids[0], four)] : [])
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(4))
          let results = try script.results()
          #expect(results.runs == 1)
          packet.expect(
            results.steps, of: steps,
            [isTagged ? 4 : -ENOENT, -EINVAL, 0, 8, isTagged ? 0 : -ENOENT, -ENOENT, -EINVAL, -EINVAL])
          try packet.expect(arrival, Traits([(ids[1], eight)]))
        }
        packet.expect(changes, .only(set: 1, allocated: 1, evicted: isTagged ? 1 : 0))
        try script.detach()
        try tag.program.detach()
      }
    }

    @Test("of sockmaps set, get and delete", arguments: Route.allCases)
    func verdict(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let keys = ids.map(\.rawValue)
        let tag = try ScriptProgram(port: Guest.port, [.set(keys[0], four)])
        try tag.program.attach(to: cable.receiver)
        let steps: [ScriptStep] = [
          .get(keys[0]), .get(64), .set(keys[1], eight), .get(keys[1]), .delete(keys[0]), .get(keys[0]),
          .set(keys[1], four),
        ]
        let script = try SkbProgram(.verdict, port: Guest.port, steps)
        // Which asked for nothing: the program did.
        let inbox = try cable.inbox(route)
        try script.attachToReceived(by: inbox.unsafeFileDescriptor)
        var packet = PacketModel(inHeadroom: [(ids[0], four)])
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
          #expect(try inbox.arrival().payload == TagProgram.payload(4))
          let results = try script.results()
          #expect(results.runs == 1)
          #expect(results.steps[0].value.prefix(4) == four[...])
          packet.expect(results.steps, of: steps, [4, -EINVAL, 0, 8, 0, -ENOENT, -EINVAL])
        }
        packet.expect(changes, .only(set: 1, allocated: 1, evicted: 1))
        try script.detach()
        try tag.program.detach()
      }
    }

    // MARK: Loading

    private static let refusals: [(String, String)] = [
      ("filter_sets", "calling kernel function bpf_skb_trait_set is not allowed"),
      ("filter_deletes", "calling kernel function bpf_skb_trait_del is not allowed"),
      ("classifier_as_xdp", "calling kernel function bpf_xdp_trait_set is not allowed"),
      ("xdp_as_classifier", "calling kernel function bpf_skb_trait_set is not allowed"),
      ("xdp_gets_as_classifier", "calling kernel function bpf_skb_trait_get is not allowed"),
      ("classifier_traces", "calling kernel function bpf_trace_skb_trait_get is not allowed"),
      ("trace_gets_as_classifier", "calling kernel function bpf_skb_trait_get is not allowed"),
      ("choice_as_classifier", "calling kernel function bpf_skb_trait_get is not allowed"),
      ("choice_as_callback", "calling kernel function bpf_sock_ops_trait_get is not allowed"),
      ("classifier_as_choice", "calling kernel function bpf_sk_reuseport_trait_get is not allowed"),
      ("classifier_as_callback", "calling kernel function bpf_sock_ops_trait_get is not allowed"),
      ("netfilter_traces", "calling kernel function bpf_trace_skb_trait_get is not allowed"),
      ("lookup_gets", "calling kernel function bpf_skb_trait_get is not allowed"),
      ("lookup_as_choice", "calling kernel function bpf_sk_reuseport_trait_get is not allowed"),
      ("message_gets", "calling kernel function bpf_skb_trait_get is not allowed"),
      ("option_gets", "must point to scalar, or struct with scalar"),
      ("callback_as_classifier", "must point to scalar, or struct with scalar"),
      ("group_as_callback", "must point to scalar, or struct with scalar"),
      ("packet_is_stack", "arg#0 expected pointer to ctx, but got fp"),
      ("packet_is_map", "must point to scalar, or struct with scalar"),
      ("packet_is_other_context", "must point to scalar, or struct with scalar"),
      ("packet_is_not_trusted", "R1 must be referenced or trusted"),
      ("packet_is_other_argument", "must point to scalar, or struct with scalar"),
      ("packet_of_a_socket", "R1 must be referenced or trusted"),
      ("packet_of_an_iterator", "R1 must be referenced or trusted"),
      ("packet_behind_another", "R1 must be referenced or trusted"),
      ("packet_is_the_hook", "must point to scalar, or struct with scalar"),
      ("size_is_unbounded", "R4 unbounded memory access"),
      ("size_is_too_large", "memory, len pair leads to invalid memory access"),
      ("map_is_smaller", "memory, len pair leads to invalid memory access"),
      ("value_is_a_number", "memory, len pair leads to invalid memory access"),
      ("value_is_null", "Possibly NULL pointer passed to trusted arg2"),
      ("value_is_null_and_nothing", "Possibly NULL pointer passed to trusted arg2"),
      ("value_is_read_only", "write into map forbidden"),
      ("value_is_the_packet", "memory, len pair leads to invalid memory access"),
    ]

    @Test("are refused if they call what is not for them, or with what is not right", arguments: refusals)
    func refusal(function: String, message: String) {
      let error = #expect(throws: LabError.self) { try BPFProgram("refused", function: function) }
      #expect(
        error?.description.contains(message) == true,
        "\(error?.description.suffix(2000) ?? "it was loaded")")
    }

    @Test(
      "are loaded otherwise",
      arguments: [
        "filter_gets", "group_gets", "group_sets", "trace_gets", "netfilter_sets", "verdict_sets",
        "choice_gets", "callback_gets", "filter_alone", "group_alone", "trace_alone", "choice_alone",
      ])
    func loading(function: String) throws {
      _ = try BPFProgram("refused", function: function)
    }

    @Test("are actions of classifiers as well")
    func action() throws {
      _ = try SkbProgram(.action, port: Guest.port, [.get(0), .set(0, four), .delete(0)])
    }

    @Test(
      "take CAP_NET_ADMIN, if they use traits",
      arguments: [
        ("filter_gets", "filter_alone", "bpf_skb_trait_get"),
        ("group_gets", "group_alone", "bpf_skb_trait_get"),
        ("group_sets", "group_alone", "bpf_skb_trait_set"),
        ("trace_gets", "trace_alone", "bpf_trace_skb_trait_get"),
        ("choice_gets", "choice_alone", "bpf_sk_reuseport_trait_get"),
      ])
    func privilege(user: String, other: String, name: String) throws {
      let error = #expect(throws: LabError.self) {
        try withCapabilities([.bpf, .performanceMonitoring]) {
          _ = try BPFProgram("refused", function: user)
        }
      }
      #expect(
        error?.description.contains("calling kernel function \(name) is not allowed") == true,
        "\(error?.description.suffix(2000) ?? "it was loaded")")
      // It is not for want of something else.
      try withCapabilities([.bpf, .performanceMonitoring]) {
        _ = try BPFProgram("refused", function: other)
      }
      for capability in [Capability.netAdmin, .systemAdmin] {
        try withCapabilities([.bpf, .performanceMonitoring, capability]) {
          _ = try BPFProgram("refused", function: user)
        }
      }
    }
  }
}
