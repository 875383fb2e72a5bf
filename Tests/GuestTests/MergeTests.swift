// SPDX-License-Identifier: MIT

import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

/// What packets that become one have of one key, and what the whole has then. The policy's
/// own description is net/traits/merge.c; this is what it means where packets are merged.
private struct MergeCase: CustomTestStringConvertible {
  /// Of four packets that follow each other.
  let values: [UInt8?]
  /// What GRO makes of datagrams: the value of each that is left, and of how many it is.
  var datagrams: [(count: Int, value: UInt8?)]
  /// What reassembly makes of fragments.
  let fragments: UInt8?

  init(_ values: [UInt8?], _ datagrams: [(Int, UInt8?)], _ fragments: UInt8?) {
    self.values = values
    self.datagrams = datagrams
    self.fragments = fragments
  }

  var testDescription: String { values.map { $0.map { "\($0)" } ?? "-" }.joined(separator: " ") }
}

/// Packets of which GRO and reassembly make one: what each has, and what is to come of it.
private let cases: [(merge: MergePolicy, cases: [MergeCase])] = [
  (
    .exact,
    [
      MergeCase([5, 5, 5, 5], [(4, 5)], 5),
      MergeCase([5, 5, 7, 7], [(2, 5), (2, 7)], nil),
      MergeCase([5, nil, 5, 5], [(1, 5), (1, nil), (2, 5)], nil),
      MergeCase([nil, nil, nil, 5], [(3, nil), (1, 5)], nil),
    ]
  ),
  (
    .drop,
    [
      MergeCase([5, 5, 5, 5], [(4, 5)], 5),
      MergeCase([5, 5, 7, 7], [(2, 5), (2, 7)], nil),
      MergeCase([5, nil, nil, nil], [(1, 5), (3, nil)], nil),
    ]
  ),
  (
    .first,
    [
      MergeCase([5, 5, 5, 5], [(4, 5)], 5),
      MergeCase([9, 3, 7, 3], [(4, 9)], 9),
      MergeCase([nil, nil, 7, 3], [(4, 7)], 7),
      MergeCase([5, nil, nil, nil], [(4, 5)], 5),
    ]
  ),
  (
    .last,
    [
      MergeCase([9, 3, 7, 5], [(4, 5)], 5),
      MergeCase([9, 3, nil, nil], [(4, 3)], 3),
      MergeCase([nil, nil, nil, 5], [(4, 5)], 5),
    ]
  ),
  (
    .minimum,
    [
      MergeCase([9, 3, 7, 5], [(4, 3)], 3),
      MergeCase([9, nil, 7, nil], [(4, 7)], 7),
    ]
  ),
  (
    .maximum,
    [
      MergeCase([3, 9, 7, 5], [(4, 9)], 9),
      MergeCase([3, nil, nil, 5], [(4, 5)], 5),
    ]
  ),
  (
    .bitwiseOr,
    [
      MergeCase([1, 2, 8, 8], [(4, 11)], 11),
      MergeCase([1, nil, nil, 8], [(4, 9)], 9),
    ]
  ),
  (
    .bitwiseAnd,
    [
      MergeCase([15, 7, 13, 5], [(4, 5)], 5),
      MergeCase([15, nil, 13, nil], [(4, 13)], 13),
    ]
  ),
]

extension Guest {
  @Suite("Packets that become one", .serialized)
  struct MergeTests {
    /// A value of which each byte counts.
    private func value(_ byte: UInt8, _ size: TraitSize) -> [UInt8] {
      [UInt8](repeating: byte, count: size.rawValue)
    }

    /// Sizes that a policy may have: the arithmetic ones are of numbers.
    private func sizes(_ merge: MergePolicy) -> [TraitSize] {
      [.minimum, .maximum, .bitwiseOr, .bitwiseAnd].contains(merge)
        ? [.bytes4, .bytes8] : TraitSize.allCases
    }

    private func withCable(gro: [String], _ body: (VethPair) throws -> Void) throws {
      try VethPair.with { cable in
        let outcome = try cable.receiver.namespace.run {
          try Command(["ethtool", "-K", cable.receiver.interface] + gro).wait()
        }
        try #require(outcome.status == 0, "\(outcome.errors)")
        try body(cable)
      }
    }

    // MARK: GRO

    /// Sends datagrams in one go, so that they are received in one go, tagged by rows.
    ///
    /// - Returns: What arrived, in the datagrams that they were joined to.
    private func datagrams(
      _ cable: VethPair, _ route: Route, _ inbox: borrowing UDPSocket, count: Int, tagged table: TableProgram
    ) throws -> [(count: Int, traits: Traits)] {
      // SOL_UDP: UDP_SEGMENT
      let outbox = try cable.outbox(route)
      try setOption(outbox, 17, 103, Int32(100))
      let payload = TagProgram.payload(1, length: 100 * count)
      let before = try table.runs()
      try outbox.send(payload, to: try cable.destination(route))
      var joined: [(Int, Traits)] = []
      var received: [UInt8] = []
      while received.count < payload.count {
        let arrival = try inbox.arrival(payloadRoom: 100 * count)
        received += arrival.payload
        joined.append((arrival.payload.count / 100, try arrival.traits))
      }
      // In order, whether joined or not
      #expect(received == payload)
      #expect(try table.runs() - before == count)
      return joined
    }

    @Test(
      "datagrams are joined, or stay apart, by each key's policy", arguments: MergePolicy.allCases,
      [Route.ipv4, .ipv6])
    func gro(merge: MergePolicy, route: Route) throws {
      try withCable(gro: ["gro", "on"]) { cable in
        for size in sizes(merge) {
          try Guest.withKeys([size], merge: merge) { ids in
            let inbox = try cable.inbox(route, ids)
            // SOL_UDP: UDP_GRO
            try setOption(inbox, 17, 104, Int32(1))
            for item in try #require(cases.first { $0.merge == merge }).cases {
              let table = try TableProgram(
                .port(Guest.port), [(ids[0], size)], item.values.map { [$0.map { value($0, size) }] })
              try table.program.attach(to: cable.receiver)
              let right = try item.datagrams.map {
                ($0.count, try Traits($0.value.map { [(ids[0], value($0, size))] } ?? []))
              }
              var joined = try datagrams(cable, route, inbox, count: item.values.count, tagged: table)
              // What is to be merged stays apart where memory is lacking, and is in order all the same.
              for _ in 0..<20 where Guest.storesMayFail && joined.map(\.count) != right.map(\.0) {
                joined = try datagrams(cable, route, inbox, count: item.values.count, tagged: table)
              }
              #expect(
                joined.map(\.count) == right.map(\.0), "\(merge), \(size) bytes, \(item.testDescription)")
              // Where memory is lacking they have to be right, or nothing.
              for (found, right) in zip(joined, right) where !(Guest.storesMayFail && found.traits.isEmpty) {
                #expect(found.traits == right.1, "\(merge), \(size) bytes, \(item.testDescription)")
              }
              try table.program.detach()
            }
          }
        }
      }
    }

    @Test(
      "as a list travel those that have the same, and each has it in the end",
      arguments: [MergePolicy.exact, .first], [Route.ipv4, .ipv6])
    func list(merge: MergePolicy, route: Route) throws {
      try withCable(gro: ["gro", "on", "rx-gro-list", "on"]) { cable in
        try Guest.withKeys([.bytes8], merge: merge) { ids in
          let inbox = try cable.inbox(route, ids)
          for (values, packets) in [
            ([5, 5, 5, 5], 1), ([5, 5, 7, 7], 2), ([5, nil, 5, 5], 3), ([nil, nil, nil, nil], 1),
            ([1, 2, 3, 4], 4),
          ] as [([UInt8?], UInt64)] {
            let table = try TableProgram(
              .port(Guest.port), [(ids[0], .bytes8)], values.map { [$0.map { value($0, .bytes8) }] })
            try table.program.attach(to: cable.receiver)
            let seen = try SkbProgram(.classifier, port: Guest.port, [])
            try seen.attach(to: cable.receiver, .ingress)
            let joined = try datagrams(cable, route, inbox, count: values.count, tagged: table)
            #expect(try seen.results().runs == packets, "\(values)")
            #expect(joined.map(\.count) == values.map { _ in 1 })
            for (found, byte) in zip(joined, values) where !(Guest.storesMayFail && found.traits.isEmpty) {
              #expect(
                try found.traits == Traits(byte.map { [(ids[0], value($0, .bytes8))] } ?? []), "\(values)")
            }
            try seen.detach()
            try table.program.detach()
          }
        }
      }
    }

    @Test("one key keeps packets apart, whatever the others' policies are")
    func mixed() throws {
      try withCable(gro: ["gro", "on"]) { cable in
        try Guest.withKeys([.bytes4], merge: .exact) { exact in
          try Guest.withKeys([.bytes4, .bytes8], merge: .last) { last in
            let keys = [(exact[0], TraitSize.bytes4), (last[0], .bytes4), (last[1], .bytes8)]
            let inbox = try cable.inbox(.ipv4, keys.map(\.0))
            try setOption(inbox, 17, 104, Int32(1))
            let rows: [[UInt8?]] = [[1, 1, nil], [1, 2, nil], [2, 3, nil], [2, nil, 4], [2, nil, 5]]
            let table = try TableProgram(
              .port(Guest.port), keys,
              rows.map { row in zip(row, keys).map { byte, key in byte.map { value($0, key.1) } } })
            try table.program.attach(to: cable.receiver)
            let before = try statistics(of: last[1])
            let joined = try datagrams(cable, .ipv4, inbox, count: rows.count, tagged: table)
            #expect(joined.map(\.count) == [2, 3])
            if !Guest.storesMayFail {
              #expect(
                try joined.map(\.traits) == [
                  Traits([(exact[0], value(1, .bytes4)), (last[0], value(2, .bytes4))]),
                  Traits([
                    (exact[0], value(2, .bytes4)), (last[0], value(3, .bytes4)),
                    (last[1], value(5, .bytes8)),
                  ]),
                ])
            }
            // Set on two packets, received with one.
            let after = try statistics(of: last[1])
            #expect(after.set - before.set == 2)
            if !Guest.storesMayFail { #expect(after.read - before.read == 1) }
            try table.program.detach()
          }
        }
      }
    }

    @Test("packets whose traits do not fit into one store stay apart")
    func full() throws {
      try withCable(gro: ["gro", "on"]) { cable in
        try Guest.withKeys([TraitSize](repeating: .bytes16, count: 14), merge: .first) { ids in
          let inbox = try cable.inbox(.ipv4, ids)
          try setOption(inbox, 17, 104, Int32(1))
          // Six and six fit, seven and seven do not.
          for (count, right) in [(6, [4]), (7, [1, 1, 1, 1])] {
            let rows = [0, 1].map { row in
              (0..<14).map { $0 < count ? row == 0 : row == 1 && $0 < 2 * count }.map {
                $0 ? value(UInt8(row + 1), .bytes16) : nil
              }
            }
            let table = try TableProgram(.port(Guest.port), ids.map { ($0, .bytes16) }, rows)
            try table.program.attach(to: cable.receiver)
            let joined = try datagrams(cable, .ipv4, inbox, count: 4, tagged: table)
            // Without memory for a store that grows they stay apart, and lose nothing.
            if !Guest.storesMayFail { #expect(joined.map(\.count) == right) }
            if count == 7 {
              #expect(
                try joined.map(\.traits)
                  == (0..<4).map { row in
                    try Traits((0..<7).map { (ids[$0 + row % 2 * 7], value(UInt8(row % 2 + 1), .bytes16)) })
                  })
            }
            try table.program.detach()
          }
        }
      }
    }

    @Test("what was joined and is taken apart again has what the whole had", arguments: [Route.ipv4, .ipv6])
    func forwarded(route: Route) throws {
      try Line.with { line in
        let outcome = try line.routing.run {
          try Command([
            "ethtool", "-K", line.near.receiver.interface, "gro", "on", "rx-udp-gro-forwarding", "on",
          ]).wait()
        }
        try #require(outcome.status == 0, "\(outcome.errors)")
        try Guest.withKeys([.bytes8], merge: .first, flags: .crossesNetworkNamespaces) { ids in
          let destination = try line.far.receiver.address(route.family, port: Guest.port)
          let inbox = try line.receiving.inbox(route, ids)
          let outbox = try line.near.outbox(route)
          try awaitPassage(from: outbox, to: destination, inbox)
          let values: [UInt8?] = [nil, 9, 3, 7]
          let table = try TableProgram(
            .port(Guest.port), [(ids[0], .bytes8)], values.map { [$0.map { value($0, .bytes8) }] })
          try table.program.attach(to: line.near.receiver)
          let seen = try SkbProgram(.classifier, port: Guest.port, [])
          try seen.attach(to: line.near.receiver, .ingress)
          // SOL_UDP: UDP_SEGMENT
          try setOption(outbox, 17, 103, Int32(100))
          let payload = TagProgram.payload(1, length: 400)
          try outbox.send(payload, to: destination)
          var received: [UInt8] = []
          for _ in values {
            let arrival = try inbox.arrival()
            received += arrival.payload
            let traits = try arrival.traits
            let right = try Traits([(ids[0], value(9, .bytes8))])
            #expect(traits == right || (Guest.storesMayFail && traits.isEmpty))
          }
          #expect(received == payload)
          #expect(try table.runs() == 4)
          // Where memory is lacking, some may not be.
          let runs = try seen.results().runs
          #expect(runs == 1 || Guest.storesMayFail && runs <= 4, "they were not joined")
          try seen.detach()
          try table.program.detach()
        }
      }
    }

    @Test(
      "segments of TCP are joined, or stay apart, and in order",
      arguments: [MergePolicy.exact, .drop, .last],
      [Route.ipv4, .ipv6])
    func tcp(merge: MergePolicy, route: Route) throws {
      try withCable(gro: ["gro", "on"]) { cable in
        try Guest.withKeys([.bytes8], merge: merge) { ids in
          let (near, far) = try connection(route, along: cable)
          defer {
            try? near.close()
            try? far.close()
          }
          let table = try TableProgram(
            .ipProtocol(6), [(ids[0], .bytes8)], (1...5 as ClosedRange<UInt8>).map { [value($0, .bytes8)] })
          try table.program.attach(to: cable.receiver)
          let seen = try SkbProgram(.classifier, port: Guest.port, [.get(ids[0].rawValue)])
          try seen.attach(to: cable.receiver, .ingress)
          let bytes = (0..<60_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
          var received: [UInt8] = []
          for _ in 0..<10 {
            received = []
            // Less than a window, so that it is sent in one go.
            #expect(try near.writeAll(bytes.prefix(12_000)) == 12_000)
            while received.count < 12_000 {
              let count = try withUnsafeTemporaryAllocation(byteCount: 65_536, alignment: 1) { room in
                let count = try far.read(into: room)
                received += room[..<count]
                return count
              }
              try #require(count > 0)
            }
            #expect(received == Array(bytes.prefix(12_000)))
          }
          let segments = try table.runs()
          let packets = try seen.results().runs
          if merge == .exact {
            #expect(packets == segments, "packets that differ were joined")
          } else {
            #expect(packets < segments, "nothing was joined")
            let statistics = try statistics(of: ids[0])
            #expect(statistics.set == segments)
            if merge == .drop {
              // The last one may have come alone.
              #expect(statistics.dropped > 0)
              #expect(statistics.dropped < segments)
            } else {
              #expect(try seen.results().steps[0].status == 8 || Guest.storesMayFail)
              #expect(statistics.dropped == 0)
            }
          }
          try seen.detach()
          try table.program.detach()
        }
      }
    }

    // MARK: Fragments

    /// Each policy where IP puts fragments together; where connection tracking does, by the
    /// same function, those of which one keeps nothing and one depends on the order.
    static let reassemblies: [(NetworkPathTests.Reassembly, MergePolicy)] =
      NetworkPathTests.Reassembly.asked.flatMap { reassembly in
        (reassembly.isTracked ? [.exact, .last] : MergePolicy.allCases).map { (reassembly, $0) }
      }

    @Test(
      "a datagram that is put together of fragments has what each key's policy says",
      arguments: reassemblies)
    func reassembly(reassembly: NetworkPathTests.Reassembly, merge: MergePolicy) throws {
      let route = reassembly.route
      // In which order they come. What comes twice is dropped.
      let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [0, 0, 2, 1, 1, 3]]
      try VethPair.with { cable in
        try reassembly.prepare(cable)
        try Guest.withKeys([.bytes8], merge: merge) { ids in
          let inbox = try cable.inbox(route, ids)
          let payload = TagProgram.payload(1, length: 4000)
          let frame = udpFrame(
            source: try cable.sender.ethernetAddress(), destination: try cable.receiver.ethernetAddress(),
            from: try bytes(of: route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4),
            to: try bytes(of: route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4),
            port: Guest.port, payload: payload)
          var number: UInt8 = 0
          for item in try #require(cases.first { $0.merge == merge }).cases {
            // What follows the IP header of a fragment: UDP, or a header of its own
            let table = try TableProgram(
              .ipProtocol(route == .ipv4 ? 17 : 44), [(ids[0], .bytes8)],
              orders.joined().map { [item.values[$0].map { value($0, .bytes8) }] })
            try table.program.attach(to: cable.receiver)
            for order in orders {
              number += 1
              let fragments = Guest.fragments(of: frame, each: 1008, number: number)
              try #require(fragments.count == 4)
              for index in order {
                try cable.sender.namespace.send(frame: fragments[index], outOf: cable.sender.interface)
              }
              let arrival = try inbox.arrival(payloadRoom: 5000)
              #expect(arrival.payload == payload)
              let traits = try arrival.traits
              let right = try Traits(item.fragments.map { [(ids[0], value($0, .bytes8))] } ?? [])
              // Without memory for its store one of them may have had none.
              #expect(
                traits == right || Guest.storesMayFail, "\(merge), \(item.testDescription), \(order)")
            }
            #expect(try table.runs() == UInt64(orders.joined().count))
            try table.program.detach()
          }
        }
      }
    }

    @Test(
      "values of a key that was removed while fragments waited are not merged",
      arguments: [Route.ipv4, .ipv6])
    func removed(route: Route) throws {
      try VethPair.with { cable in
        try Guest.withKeys([.bytes8, .bytes8], merge: .last) { ids in
          let inbox = try cable.inbox(route, ids)
          let payload = TagProgram.payload(1, length: 4000)
          let frame = udpFrame(
            source: try cable.sender.ethernetAddress(), destination: try cable.receiver.ethernetAddress(),
            from: try bytes(of: route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4),
            to: try bytes(of: route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4),
            port: Guest.port, payload: payload)
          let table = try TableProgram(
            .ipProtocol(route == .ipv4 ? 17 : 44), ids.map { ($0, .bytes8) },
            (1...4 as ClosedRange<UInt8>).map { [value($0, .bytes8), value(10 + $0, .bytes8)] })
          try table.program.attach(to: cable.receiver)
          let fragments = Guest.fragments(of: frame, each: 1008, number: 9)
          func send(_ indices: Range<Int>) throws {
            for index in indices {
              try cable.sender.namespace.send(frame: fragments[index], outOf: cable.sender.interface)
            }
          }
          try send(0..<3)
          #expect(try table.runs() == 3)
          // Another key under the same number: of it only the last fragment has a value.
          var registry = try RegistryConnection()
          let former = try registry.remove(ids[0])
          try registry.add(former.name, size: .bytes8, merge: .first, id: ids[0])
          try inbox.setReceivedTraits(TraitMask(ids))
          try send(3..<4)
          let arrival = try inbox.arrival(payloadRoom: 5000)
          #expect(arrival.payload == payload)
          let traits = try arrival.traits
          let right = try Traits([(ids[0], value(4, .bytes8)), (ids[1], value(14, .bytes8))])
          #expect(traits == right || Guest.storesMayFail)
          try table.program.detach()
        }
      }
    }

    @Test(
      "of fragments that never become a datagram nothing is left",
      arguments: NetworkPathTests.Reassembly.asked)
    func incomplete(reassembly: NetworkPathTests.Reassembly) throws {
      let route = reassembly.route
      let before = try extensionsInUse()
      try VethPair.with { cable in
        try reassembly.prepare(cable)
        try Guest.withKeys([.bytes8], merge: .last) { ids in
          let inbox = try cable.inbox(route, ids)
          let payload = TagProgram.payload(1, length: 4000)
          let frame = udpFrame(
            source: try cable.sender.ethernetAddress(), destination: try cable.receiver.ethernetAddress(),
            from: try bytes(of: route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4),
            to: try bytes(of: route == .ipv6 ? cable.receiver.ipv6 : cable.receiver.ipv4),
            port: Guest.port, payload: payload)
          let values: [UInt8?] = [1, 2, 3, 4]
          let table = try TableProgram(
            .ipProtocol(route == .ipv4 ? 17 : 44), [(ids[0], .bytes8)],
            values.map { [$0.map { value($0, .bytes8) }] })
          try table.program.attach(to: cable.receiver)
          func send(_ fragments: [[UInt8]]) throws {
            for fragment in fragments {
              try cable.sender.namespace.send(frame: fragment, outOf: cable.sender.interface)
            }
          }
          // One is missing; then two of which one covers part of the other (RFC 5722).
          let parts = Guest.fragments(of: frame, each: 1008, number: 1)
          try send([parts[0], parts[1], parts[3]])
          let others = Guest.fragments(of: frame, each: 1008, number: 2)
          let across = Guest.fragments(of: frame, each: 1400, number: 2)
          try send([others[0], others[1], across[1], others[3]])
          // A whole one that comes afterwards has nothing of them.
          let whole = Guest.fragments(of: frame, each: 1400, number: 3)
          try #require(whole.count == 3)
          let runs = try table.runs()
          #expect(runs == 7)
          try send(whole)
          let arrival = try inbox.arrival(payloadRoom: 5000)
          #expect(arrival.payload == payload)
          // Of rows 3, 0 and 1
          let right = try Traits([(ids[0], value(2, .bytes8))])
          #expect(try arrival.traits == right || Guest.storesMayFail)
          try table.program.detach()
        }
      }
      // With the namespace go its fragments.
      let after = try settled { $0 == before }
      #expect(after == before)
    }

    private func statistics(of id: TraitID) throws -> KeyStatistics {
      var registry = try RegistryConnection()
      return try registry.statistics(of: id)
    }
  }
}

extension Guest {
  /// The IP packet of a frame in fragments, each in a frame.
  static func fragments(of frame: [UInt8], each length: Int, number: UInt8) -> [[UInt8]] {
    let isNewer = frame[12] == 0x86
    let start = 14 + (isNewer ? 40 : 20)
    let body = frame[start...]
    return stride(from: 0, to: body.count, by: length).map { offset in
      let part = body.dropFirst(offset).prefix(length)
      let isLast = offset + length >= body.count
      var header = Array(frame[..<start])
      if isNewer {
        // Payload length, next header; the fragment's header: next header, offset in
        // bytes with the bit that tells of more, number
        header.replaceSubrange(
          18..<21, with: [UInt8((part.count + 8) >> 8), UInt8((part.count + 8) & 0xff), 44])
        header += [17, 0, UInt8(offset >> 8), UInt8(offset & 0xff) | (isLast ? 0 : 1), 0, 0, 1, number]
      } else {
        // Total length, number; offset in units of 8 bytes with the bit that tells of more
        let total = part.count + 20
        header.replaceSubrange(16..<18, with: [UInt8(total >> 8), UInt8(total & 0xff)])
        header.replaceSubrange(18..<20, with: [1, number])
        header.replaceSubrange(
          20..<22, with: [UInt8(offset / 8 / 256) | (isLast ? 0 : 0x20), UInt8(offset / 8 & 0xff)])
        header.replaceSubrange(24..<26, with: [0, 0])
        var sum = stride(from: 14, to: 34, by: 2).reduce(0) {
          $0 + Int(header[$1]) << 8 + Int(header[$1 + 1])
        }
        while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
        header.replaceSubrange(24..<26, with: [UInt8(~sum >> 8 & 0xff), UInt8(~sum & 0xff)])
      }
      return header + part
    }
  }
}
