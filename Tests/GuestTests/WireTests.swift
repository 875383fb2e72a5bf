// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// Two network cards of the machine, of which each receives what the other one sends. In namespaces of their own for all tests of a
/// suite.
struct WireTrait: SuiteTrait, TestScoping {
  @TaskLocal static var wire: VethPair?

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: () async throws -> Void
  ) async throws {
    let interfaces = try Card.virtio.awaitInterfaces()
    // With the namespaces the cards come back to where they were.
    let sending = try NetworkNamespace("sender")
    defer { sending.remove() }
    let receiving = try NetworkNamespace("receiver")
    defer { receiving.remove() }
    let wire = try VethPair(
      joined: (interfaces[0], sending), (interfaces[1], receiving), network: 9)
    try await Self.$wire.withValue(wire) { try await function() }
  }
}

extension Guest {
  @Suite(
    "Over the wire, from one virtio card to another", .serialized, WireTrait(),
    .enabled(
      if: GuestCondition.isAsked || ((try? Card.virtio.interfaces()) ?? nil) != nil,
      "this machine has no two cards with a hub between them"))
  struct WireTests {
    private func wire() throws -> VethPair { try #require(WireTrait.wire) }

    @Test("a sender's traits are not on it, of keys that cross namespaces neither", arguments: Route.allCases)
    func sent(route: Route) throws {
      let wire = try wire()
      try Guest.withKeys(Sample.sizes, flags: .crossesNetworkNamespaces) { ids in
        let sample = try Sample(ids)
        let inbox = try wire.inbox(route, ids)
        let outbox = try wire.outbox(route)
        let tap = try wire.receiver.namespace.openTap()
        defer { try? tap.close() }
        /// Behind IPv4's identification and header checksum.
        func frame(_ payload: [UInt8]) throws -> [UInt8] {
          var room = [UInt8](repeating: 0, count: 4096)
          while true {
            let count = recv(tap.rawValue, &room, room.count, Int32(MSG_DONTWAIT))
            try #require(count > 0, "recv: \(count), errno \(errno)")
            if room[..<count].suffix(payload.count) == payload[...] { return Array(room[26..<count]) }
          }
        }
        let payload = TagProgram.payload(1, length: 400)
        try outbox.send(payload, to: try wire.destination(route))
        #expect(try inbox.arrival().payload == payload)
        let plain = try frame(payload)
        for (sticky, own) in [
          (sample.traits, Traits()), (Traits(), sample.traits), (sample.others, sample.traits),
        ] {
          try Guest.insisting { try outbox.setSentTraits(sticky) }
          _ = try Guest.insisting {
            try outbox.send(payload.span.bytes, to: try wire.destination(route), traits: own)
          }
          let arrival = try inbox.arrival()
          #expect(arrival.payload == payload)
          #expect(try arrival.hasTraits == false)
          #expect(!arrival.message.flags.contains(.controlTruncated))
          #expect(try frame(payload) == plain)
        }
      }
    }

    @Test("what XDP sets where it arrives does, and nothing of the sender's", arguments: Route.allCases)
    func tagged(route: Route) throws { try tag(route, .generic) }

    @Test(
      "what XDP sets in the driver where it arrives does, and nothing of the sender's",
      arguments: Route.allCases)
    func native(route: Route) throws { try tag(route, .driver) }

    private func tag(_ route: Route, _ mode: XDPProgram.Mode) throws {
      let wire = try wire()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16], flags: .crossesNetworkNamespaces) { ids in
        try Guest.withKeys([.bytes4], flags: .crossesNetworkNamespaces) { senders in
          let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
          try tag.program.attach(to: wire.receiver, mode: mode)
          let inbox = try wire.inbox(route, ids + senders)
          let outbox = try wire.outbox(route)
          let sticky = try Traits([(senders[0], [1, 2, 3, 4]), (ids[0], [5, 6, 7, 8])])
          try Guest.insisting { try outbox.setSentTraits(sticky) }
          var passages = Passages()
          for sequence in 0..<50 as Range<UInt32> {
            // Of all lengths that one frame has.
            let payload = TagProgram.payload(sequence, length: 36 + Int(sequence) * 27)
            try Guest.insisting { try outbox.send(payload, to: try wire.destination(route)) }
            let arrival = try inbox.arrival()
            #expect(arrival.payload == payload, "datagram \(sequence)")
            try passages.expect(
              arrival,
              try Traits([
                (ids[0], withUnsafeBytes(of: TagProgram.value4(sequence)) { Array($0) }),
                (ids[1], withUnsafeBytes(of: TagProgram.value8(sequence)) { Array($0) }),
                (ids[2], TagProgram.value16(sequence)),
              ]), "datagram \(sequence)")
          }
          let counts = try tag.counts()
          #expect(counts.seen == 50)
          #expect(counts.tagged == 50)
          // The packet came without any.
          #expect(counts.stale == 0)
          #expect(counts.failed == 0)
          try tag.program.detach()
        }
      }
    }

    @Test("in buffers that a card uses again nothing is left of the packet before", arguments: Route.allCases)
    func usedAgain(route: Route) throws {
      let wire = try wire()
      try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
        let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2], every: 3)
        try tag.program.attach(to: wire.receiver, mode: .generic)
        let inbox = try wire.inbox(route, ids)
        let outbox = try wire.outbox(route)
        try outbox.setReceivedTraits(TraitMask(ids))
        var tagged = 0
        for sequence in 0..<100 as Range<UInt32> {
          let payload = TagProgram.payload(sequence)
          try outbox.send(payload, to: try wire.destination(route))
          let arrival = try inbox.arrival()
          #expect(arrival.payload == payload)
          let traits = try arrival.traits
          if sequence % 3 == 0 {
            if !Guest.storesMayFail || !traits.isEmpty {
              #expect(traits.bytes(of: ids[2]) == TagProgram.value16(sequence), "datagram \(sequence)")
              #expect(traits.count == 3)
              tagged += 1
            }
          } else {
            #expect(traits.isEmpty, "datagram \(sequence)")
          }
          try inbox.send(payload, to: try #require(arrival.message.source))
          let answer = try outbox.arrival()
          #expect(answer.payload == payload)
          #expect(try answer.hasTraits == false)
        }
        #expect(tagged > 0)
        #expect(try tag.counts().stale == 0)
        try tag.program.detach()
      }
    }
  }
}
