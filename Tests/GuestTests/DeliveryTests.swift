// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

extension Guest {
  @Suite("Delivery", .cable)
  struct DeliveryTests {
    /// Expects what `tag.bpf.c` gives a datagram: keys of 4, 8 and 16 bytes.
    private func expectTagged(
      _ arrival: Arrival, _ sequence: UInt32, _ ids: [TraitID],
      sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
      #expect(
        arrival.payload == TagProgram.payload(sequence), "datagram \(sequence)",
        sourceLocation: sourceLocation)
      let right = try tagged(sequence, ids)
      let traits = try arrival.traits
      #expect(traits == right, "datagram \(sequence)", sourceLocation: sourceLocation)
    }

    private func tagged(_ sequence: UInt32, _ ids: [TraitID]) throws -> Traits {
      var traits = Traits()
      try traits.set(TagProgram.value4(sequence), for: TraitKey<UInt32>(ids[0]))
      try traits.set(TagProgram.value8(sequence), for: TraitKey<UInt64>(ids[1]))
      try traits.setBytes(TagProgram.value16(sequence), for: ids[2])
      return traits
    }

    @Test(
      "traits arrive, without any copy", arguments: Route.allCases,
      [XDPProgram.Mode.driver, .generic])
    func passage(route: Route, mode: XDPProgram.Mode) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver, mode: mode)
        let attached = try #require(try XDPProgram.attached(to: cable.receiver))
        #expect(attached == (tag.program.id, mode))

        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let before = try Guest.statistics()
        for sequence in 0..<50 as Range<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          try expectTagged(arrival, sequence, ids)
          #expect(
            arrival.message.source?.host
              == (route == .mapped
                ? "::ffff:\(cable.sender.ipv4)" : route == .ipv4 ? cable.sender.ipv4 : cable.sender.ipv6))
          #expect(try arrival.controlMessages.map(\.isTraits) == [true])
        }
        let after = try Guest.statistics()
        #expect(after.set - before.set == 50)
        #expect(after.copied == before.copied)
        #expect(after.discarded == before.discarded)
        #expect(after.scrubbed == before.scrubbed)
        #expect(after.allocated == before.allocated)
        #expect(after.evicted == before.evicted)
        #expect(after.lost == before.lost)
        let counts = try tag.counts()
        #expect(counts.seen == 50)
        #expect(counts.tagged == 50)
        #expect(counts.failed == 0)
        #expect(counts.stale == 0)
        try tag.program.detach()
      }
    }

    @Test("traits arrive over the loopback interface", arguments: Route.allCases)
    func loopback(route: Route) throws {
      let namespace = try suiteCable().receiver.namespace
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: "lo", in: namespace, mode: .generic)
        let inbox = try suiteCable().inbox(route, ids)
        let outbox = try namespace.run { try UDPSocket(route.family) }
        let host = route == .ipv6 ? "::1" : "127.0.0.1"
        let destination = try #require(InternetAddress(host, port: Guest.port))
        for sequence in 0..<20 as Range<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: destination)
          try expectTagged(try inbox.arrival(), sequence, ids)
        }
        try tag.program.detach()
      }
    }

    @Test("a value of each size arrives alone", arguments: Route.allCases, TraitSize.allCases)
    func alone(route: Route, size: TraitSize) throws {
      let cable = try suiteCable()
      try Guest.withKeys([size]) { ids in
        let value = (1...size.rawValue).map { UInt8($0 * 11) }
        let script = try ScriptProgram(port: Guest.port, [.set(ids[0].rawValue, value)])
        try script.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        try cable.outbox(route).send(TagProgram.payload(1), to: try cable.destination(route))
        let arrival = try inbox.arrival()
        #expect(arrival.payload == TagProgram.payload(1))
        #expect(try arrival.traits.map(\.bytes) == [value])
        #expect(arrival.control.count == ctraits_cmsg_space(24))
        #expect(try script.results().steps.map(\.status) == [0])
        try script.program.detach()
      }
    }

    @Test(
      "a store takes 48 values of 4 bytes, 24 of 8, 12 of 16", arguments: Route.allCases, TraitSize.allCases)
    func full(route: Route, size: TraitSize) throws {
      let cable = try suiteCable()
      let count = 192 / size.rawValue
      try Guest.withKeys([TraitSize](repeating: size, count: count) + [.bytes4]) { ids in
        let values = (0..<count).map { number in
          (0..<size.rawValue).map { UInt8(truncatingIfNeeded: number * 16 + $0 + 1) }
        }
        var steps = (0..<count).map { ScriptProgram.Step.set(ids[$0].rawValue, values[$0]) }
        // One more than there is room for.
        steps.append(.set(ids[count].rawValue, [1, 2, 3, 4]))
        steps.append(.get(ids[count].rawValue))
        let script = try ScriptProgram(port: Guest.port, steps)
        try script.program.attach(to: cable.receiver)

        let inbox = try cable.inbox(route, ids)
        var right = Traits()
        for number in 0..<count { try right.setBytes(values[number], for: ids[number]) }
        #expect(right.valueByteCount == 192)
        // A kernel that puts a seal behind each store has no room for that one.
        var passages = Passages()
        let changes = try Guest.changes {
          try cable.outbox(route).send(TagProgram.payload(1), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(1))
          try passages.expect(arrival, right)
        }
        #expect(changes.lost == passages.lost)

        let statuses = try script.results().steps.map(\.status)
        #expect(statuses == [Int32](repeating: 0, count: count) + [-ENOSPC, -ENOENT])
        try script.program.detach()
      }
    }

    @Test("only keys that were asked for are handed over", arguments: Route.allCases)
    func mask(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route)
        let outbox = try cable.outbox(route)
        // Every subset, the empty one among them: a receiver that is unaware.
        for bits in 0..<8 {
          let asked = (0..<3).filter { bits & 1 << $0 != 0 }.map { ids[$0] }
          try inbox.setReceivedTraits(TraitMask(asked))
          try outbox.send(TagProgram.payload(5), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == TagProgram.payload(5))
          #expect(try arrival.traits.map(\.id) == asked.sorted())
          #expect(arrival.control.count == (asked.isEmpty ? 0 : ctraits_cmsg_space(24 * asked.count)))
          #expect(!arrival.message.flags.contains(.controlTruncated))
        }
        try tag.program.detach()
      }
    }

    @Test(
      "a datagram without traits has none of the one before it", arguments: Route.allCases,
      [XDPProgram.Mode.driver, .generic])
    func without(route: Route, mode: XDPProgram.Mode) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(
          port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2], every: 2)
        try tag.program.attach(to: cable.receiver, mode: mode)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        // More than a ring or a pool has buffers, so that these are used again.
        for sequence in 0..<600 as Range<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          if sequence.isMultiple(of: 2) {
            try expectTagged(arrival, sequence, ids)
          } else {
            #expect(arrival.payload == TagProgram.payload(sequence))
            #expect(arrival.control.isEmpty)
            #expect(!arrival.message.flags.contains(.controlTruncated))
          }
        }
        #expect(try tag.counts().stale == 0)
        #expect(try tag.counts().tagged == 300)
        try tag.program.detach()
      }
    }

    @Test("too small a control buffer gets no traits, and is told", arguments: Route.allCases)
    func controlBuffer(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let needed = ctraits_cmsg_len(3 * 24)
        for room in 0..<needed + 10 {
          try outbox.send(TagProgram.payload(9), to: try cable.destination(route))
          let arrival = try inbox.arrival(controlRoom: room)
          #expect(arrival.payload == TagProgram.payload(9), "\(room) bytes of room")
          #expect(
            arrival.message.flags.contains(.controlTruncated) == (room < needed),
            "\(room) bytes of room")
          if room < needed {
            #expect(arrival.control.isEmpty, "\(room) bytes of room")
          } else {
            try expectTagged(arrival, 9, ids)
          }
        }
        try tag.program.detach()
      }
    }

    @Test(
      "other control messages are complete, whether there is room for traits or not",
      arguments: Route.allCases)
    func otherControlMessages(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        // An IPv4 datagram has a type of service, on an IPv6 socket too.
        let options: [(Int32, Int32)] =
          switch route {
          case .ipv4: [(Int32(IPPROTO_IP), IP_PKTINFO), (Int32(IPPROTO_IP), IP_RECVTOS)]
          case .ipv6: [(Int32(IPPROTO_IPV6), IPV6_RECVPKTINFO), (Int32(IPPROTO_IPV6), IPV6_RECVTCLASS)]
          case .mapped: [(Int32(IPPROTO_IPV6), IPV6_RECVPKTINFO), (Int32(IPPROTO_IP), IP_RECVTOS)]
          }
        for (level, name) in options {
          var on: Int32 = 1
          try #require(setsockopt(inbox.unsafeFileDescriptor.rawValue, level, name, &on, 4) == 0)
        }

        // What arrives of these without traits is the measure.
        try inbox.setReceivedTraits([])
        try outbox.send(TagProgram.payload(3), to: try cable.destination(route))
        let measure = try inbox.arrival()
        #expect(try measure.controlMessages.count >= 2)
        #expect(try measure.traits.isEmpty)

        try inbox.setReceivedTraits(TraitMask(ids))
        let others = measure.control.count
        for room in [others, others + 8, others + ctraits_cmsg_len(72) - 1] {
          try outbox.send(TagProgram.payload(3), to: try cable.destination(route))
          let arrival = try inbox.arrival(controlRoom: room)
          #expect(arrival.control == measure.control, "\(room) bytes of room")
          #expect(arrival.message.flags.contains(.controlTruncated), "\(room) bytes of room")
          #expect(arrival.payload == TagProgram.payload(3))
        }

        try outbox.send(TagProgram.payload(3), to: try cable.destination(route))
        let all = try inbox.arrival(controlRoom: others + ctraits_cmsg_space(72))
        #expect(Array(all.control.prefix(others)) == measure.control)
        #expect(!all.message.flags.contains(.controlTruncated))
        try expectTagged(all, 3, ids)

        // As the library's own buffer has room for both.
        try outbox.send(TagProgram.payload(3), to: try cable.destination(route))
        var bytes = [UInt8](repeating: 0, count: 100)
        var elements = bytes.mutableSpan
        var payload = elements.mutableBytes
        let datagram = try inbox.receive(into: &payload)
        #expect(try datagram.traits.count == 3)
        #expect(!datagram.areTraitsTruncated)
        try tag.program.detach()
      }
    }

    @Test("peeking gives the same traits, as often as one likes", arguments: Route.allCases)
    func peek(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        try cable.outbox(route).send(TagProgram.payload(8), to: try cable.destination(route))
        for _ in 0..<3 { try expectTagged(try inbox.arrival(flags: .peek), 8, ids) }
        try expectTagged(try inbox.arrival(), 8, ids)
        expectNothing(inbox)
        try tag.program.detach()
      }
    }

    private func expectNothing(
      _ socket: borrowing UDPSocket, sourceLocation: SourceLocation = #_sourceLocation
    ) {
      do {
        _ = try socket.arrival(flags: .doNotWait)
        Issue.record("a datagram is left", sourceLocation: sourceLocation)
      } catch {
        #expect(error as? Errno == .wouldBlock, sourceLocation: sourceLocation)
      }
    }

    @Test("an open key is handed over without privilege", arguments: Route.allCases)
    func withoutPrivilege(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4], flags: .openRead) { open in
        try Guest.withKeys([.bytes8]) { closed in
          let tag = try TagProgram(port: Guest.port, key4: open[0], key8: closed[0])
          try tag.program.attach(to: cable.receiver)
          let inbox = try cable.receiver.namespace.run {
            try asUserInNamespace(route, open: open[0], closed: closed[0])
          }
          try cable.outbox(route).send(TagProgram.payload(4), to: try cable.destination(route))
          let arrival = try inbox.arrival()
          #expect(try arrival.traits.map(\.id) == open)
          #expect(
            try arrival.traits.value(for: TraitKey<UInt32>(open[0])) == TagProgram.value4(4))
          try tag.program.detach()
        }
      }
    }

    /// A thread that is made by one in a namespace is in it, too.
    private func asUserInNamespace(
      _ route: Route, open: TraitID, closed: TraitID
    ) throws -> UDPSocket {
      try asUser {
        let socket = try UDPSocket(route == .ipv4 ? .ipv4 : .ipv6)
        try socket.bind(to: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
        try socket.setReceiveTimeout(.seconds(10))
        expect(.notPermitted, naming: "is not open to all") {
          try socket.setReceivedTraits(TraitMask([open, closed]))
        }
        try socket.setReceivedTraits(TraitMask(open))
        return socket
      }
    }

    @Test("a removed key's values end on packets in flight, other keys' do not", arguments: Route.allCases)
    func removalInFlight(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        for sequence in 0..<3 as Range<UInt32> {
          try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
        }
        // All three wait in the socket's queue.
        try awaitDatagrams(tag, 3)

        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[1])
        let first = try inbox.arrival()
        #expect(first.payload == TagProgram.payload(0))
        #expect(try first.traits.map(\.id) == [ids[0], ids[2]].sorted())

        // The same key anew, asked for anew: the old value is not its.
        try registry.add(removed.name, size: removed.size, id: removed.id)
        try inbox.setReceivedTraits(TraitMask(ids))
        let second = try inbox.arrival()
        #expect(second.payload == TagProgram.payload(1))
        #expect(try second.traits.map(\.id) == [ids[0], ids[2]].sorted())
        #expect(
          try second.traits.value(for: TraitKey<UInt32>(ids[0])) == TagProgram.value4(1))
        _ = try inbox.arrival()

        // And what is set from now on is.
        try outbox.send(TagProgram.payload(7), to: try cable.destination(route))
        try expectTagged(try inbox.arrival(), 7, ids)
        try tag.program.detach()
      }
    }

    private func awaitDatagrams(_ tag: TagProgram, _ count: UInt64) throws {
      for _ in 0..<500 {
        if try tag.counts().seen >= count {
          // The program runs before the socket's queue is reached.
          usleep(50_000)
          return
        }
        usleep(10_000)
      }
      Issue.record("the program saw \(try tag.counts().seen) datagrams and not \(count)")
    }

    @Test("a removed key's values are not those of another key with its number")
    func numberOfAnotherKey() throws {
      let cable = try suiteCable()
      var registry = try RegistryConnection()
      try #require(try registry.keys().isEmpty, "keys are left over from somebody else")
      try Guest.withKeys([TraitSize](repeating: .bytes8, count: 64)) { ids in
        let script = try ScriptProgram(
          port: Guest.port,
          [
            .set(ids[20].rawValue, [1, 2, 3, 4, 5, 6, 7, 8]),
            .set(ids[21].rawValue, [8, 7, 6, 5, 4, 3, 2, 1]),
          ])
        try script.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(.ipv4, [ids[20], ids[21]])
        let outbox = try cable.outbox()
        try outbox.send(TagProgram.payload(0), to: try cable.destination())
        // What came is looked at without taking it: it waits in the queue.
        #expect(try inbox.arrival(flags: .peek).traits.map(\.id) == [ids[20], ids[21]].sorted())

        try registry.remove(ids[20])
        let other = try registry.add(Guest.uniqueName(), size: .bytes8)
        try #require(other.id == ids[20], "with all others in use it must be the one just freed")
        #expect(try inbox.receivedTraits() == TraitMask(ids[21]))
        try inbox.setReceivedTraits(TraitMask([ids[20], ids[21]]))
        #expect(try inbox.arrival().traits.map(\.id) == [ids[21]])

        try outbox.send(TagProgram.payload(1), to: try cable.destination())
        #expect(try inbox.arrival().traits.map(\.id) == [ids[20], ids[21]].sorted())
        try script.program.detach()
      }
    }

    @Test("a packet that a tap has seen keeps its traits, in memory of their own", arguments: Route.allCases)
    func tap(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let tap = try cable.receiver.namespace.openTap()
        let before = try Guest.statistics()
        var passages = Passages()
        do {
          defer { try? tap.close() }
          for sequence in 0..<10 as Range<UInt32> {
            try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
            let arrival = try inbox.arrival()
            #expect(arrival.payload == TagProgram.payload(sequence), "datagram \(sequence)")
            try passages.expect(arrival, tagged(sequence, ids), "datagram \(sequence)")
          }
          // The tap saw each payload, at the end of its frame.
          var seen: Set<UInt32> = []
          var frame = [UInt8](repeating: 0, count: 4096)
          while true {
            let count = recv(tap.rawValue, &frame, frame.count, Int32(MSG_DONTWAIT))
            guard count > 0 else { break }
            for sequence in 0..<10 as Range<UInt32>
            where frame[..<count].suffix(36).elementsEqual(TagProgram.payload(sequence)) {
              seen.insert(sequence)
            }
          }
          #expect(seen.count == 10)
        }
        let between = try Guest.statistics()
        #expect(between.set - before.set == 10)
        #expect(between.evicted - before.evicted == 10 - passages.lost)
        // The tap asked for nothing: the clone lost its part, and there was no
        // need for another piece of memory.
        #expect(between.allocated - before.allocated == 10 - passages.lost)
        #expect(between.discarded == before.discarded)
        #expect(between.copied == before.copied)
        #expect(between.lost - before.lost == passages.lost)

        // When the tap is gone traits stay where they are.
        try outbox.send(TagProgram.payload(11), to: try cable.destination(route))
        try expectTagged(try inbox.arrival(), 11, ids)
        #expect(try Guest.statistics().evicted == between.evicted)
        try tag.program.detach()
      }
    }

    @Test("traits keep their values while keys come and go")
    func concurrency() throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        var registry = try RegistryConnection()
        let name = try registry.key(ids[1]).name
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
        try tag.program.attach(to: cable.receiver)
        let inbox = try cable.inbox(.ipv6, ids)
        let outbox = try cable.outbox(.ipv6)
        var complete = 0
        var sequence: UInt32 = 0
        let other = Guest.uniqueName()
        let id = ids[1]
        // Removes and registers the key of 8 bytes, which stays the same
        // number, and another one beside it. Each state lasts long enough for
        // datagrams to come in it.
        try repeating {
          var registry = try RegistryConnection()
          try registry.remove(named: name)
          try registry.add(other, size: .bytes16)
          usleep(5000)
          try registry.add(name, size: .bytes8, id: id)
          try registry.remove(named: other)
          usleep(5000)
        } during: { changes in
          let end = ContinuousClock.now + .seconds(60)
          var failed: UInt64 = 0
          while try changes.count() < 50 || complete < 50 || failed < 50 {
            sequence += 1
            // The key may be gone just now; then it is not asked for.
            _ = try? inbox.setReceivedTraits(TraitMask(ids))
            try outbox.send(TagProgram.payload(sequence), to: try cable.destination(.ipv6))
            let arrival = try inbox.arrival()
            let traits = try arrival.traits
            try #require(arrival.payload == TagProgram.payload(sequence))
            try #require(
              try traits.value(for: TraitKey<UInt32>(ids[0])) == TagProgram.value4(sequence))
            try #require(traits.bytes(of: ids[2]) == TagProgram.value16(sequence))
            // With it registered again, or not yet removed.
            if let value = try traits.value(for: TraitKey<UInt64>(id)) {
              try #require(value == TagProgram.value8(sequence))
              complete += 1
            }
            try #require(traits.keys.isSubset(of: TraitMask(ids)))
            failed = try tag.counts().failed
            try #require(
              ContinuousClock.now < end,
              "after 60 seconds: \(sequence) datagrams, \(complete) with the key, \(failed) without")
          }
        }

        try inbox.setReceivedTraits(TraitMask(ids))
        try outbox.send(TagProgram.payload(5), to: try cable.destination(.ipv6))
        try expectTagged(try inbox.arrival(), 5, ids)
        try tag.program.detach()
      }
    }
  }
}
