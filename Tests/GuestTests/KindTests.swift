// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

extension Guest {
  /// What holds for a socket whatever its kind is.
  @Suite("Sockets of every kind", .cable)
  struct KindTests {
    /// What came of setsockopt(): 0 or errno.
    private func set(_ socket: FileDescriptor, _ name: Int32, _ value: UnsafeRawPointer?, _ length: Int) -> Int32 {
      Guest.insistingStatus {
        setsockopt(socket.rawValue, SOL_TRAITS, name, value, socklen_t(length)) == 0 ? 0 : errno
      }
    }

    @Test("TRAITS_RECV is set and read, and refused as it should be", arguments: Kind.receivers)
    func receiveOption(kind: Kind) throws {
      try Sample.with { sample in
        let free = try Guest.freeKey()
        let lane = try Lane(kind)
        var mask = TraitMask(sample.ids).rawValue
        #expect(set(lane.inbox, TRAITS_RECV, &mask, 8) == 0)
        var (longer, unknown) = ([mask, 0], mask | TraitMask(free).rawValue)
        for length in [0, 4, 7, 9, 12, 16] {
          #expect(set(lane.inbox, TRAITS_RECV, &longer, length) == EINVAL, "\(length) bytes")
        }
        #expect(set(lane.inbox, TRAITS_RECV, &unknown, 8) == ENOENT)
        #expect(set(lane.inbox, TRAITS_RECV, UnsafeRawPointer(bitPattern: 8), 8) == EFAULT)
        #expect(set(lane.inbox, 99, &mask, 8) == ENOPROTOOPT)
        #expect(try lane.inbox.receivedTraits() == TraitMask(sample.ids))
        for (room, right) in [(0, 0), (7, EINVAL), (8, 0), (9, 0)] {
          var bytes = [UInt8](repeating: 0xee, count: 16)
          var length = socklen_t(room)
          let status = getsockopt(lane.inbox.rawValue, SOL_TRAITS, TRAITS_RECV, &bytes, &length)
          #expect((status == 0 ? 0 : errno) == right, "\(room) bytes of room")
          #expect(length == 8)
          #expect(bytes.native(0, as: UInt64.self) == (room < 8 ? 0xeeee_eeee_eeee_eeee : mask))
        }
        // None of what failed has changed what comes.
        try lane.send(1, sample.traits)
        try lane.expect(1, sample.traits)
      }
    }

    @Test("TRAITS_SEND is set and read, and refused as it should be", arguments: Kind.senders)
    func sendOption(kind: Kind) throws {
      try Sample.with { sample in
        let free = try Guest.freeKey()
        let lane = try Lane(kind, keys: sample.ids)
        let records = sample.traits.records
        #expect(set(lane.outbox, TRAITS_SEND, records, 72) == 0)
        for length in [1, 23, 25, 71] {
          #expect(set(lane.outbox, TRAITS_SEND, records, length) == EINVAL, "\(length) bytes")
        }
        let twice = records + records
        #expect(set(lane.outbox, TRAITS_SEND, twice, 144) == EINVAL)
        let unknown = try Traits([(free, [1, 2, 3, 4])]).records
        #expect(set(lane.outbox, TRAITS_SEND, unknown, 24) == ENOENT)
        #expect(set(lane.outbox, TRAITS_SEND, UnsafeRawPointer(bitPattern: 8), 24) == EFAULT)
        for (room, right) in [(0, 0), (71, EINVAL), (72, 0), (80, 0)] {
          var bytes = [UInt8](repeating: 0xee, count: 80)
          var length = socklen_t(room)
          let status = getsockopt(lane.outbox.rawValue, SOL_TRAITS, TRAITS_SEND, &bytes, &length)
          #expect((status == 0 ? 0 : errno) == right, "\(room) bytes of room")
          #expect(length == 72)
          #expect(Array(bytes[..<72]) == (room < 72 ? [UInt8](repeating: 0xee, count: 72) : records))
        }
        try lane.send(1)
        try lane.expect(1, sample.traits)
        #expect(set(lane.outbox, TRAITS_SEND, nil, 0) == 0)
        try lane.send(2)
        try lane.expect(2, Traits())
      }
    }

    @Test("a message has its own traits over those of the socket, or is refused", arguments: Kind.senders)
    func message(kind: Kind) throws {
      try Sample.with { sample in
        let free = try Guest.freeKey()
        let lane = try Lane(kind, keys: sample.ids)
        let sticky = try Traits([(sample.ids[0], try #require(sample.others.bytes(of: sample.ids[0])))])
        try lane.setSentTraits(sticky)
        let own = try Traits([(sample.ids[1], try #require(sample.traits.bytes(of: sample.ids[1])))])
        var both = sticky
        try both.setBytes(try #require(own.bytes(of: sample.ids[1])), for: sample.ids[1])
        for (traits, right) in [(own, both), (sample.traits, sample.traits), (Traits(), sticky)] {
          try lane.send(1, traits)
          try lane.expect(1, right)
        }
        #expect(throws: Errno.noSuchFileOrDirectory) { try lane.send(9, try Traits([(free, [1, 2, 3, 4])])) }
        // 23 bytes, and a second message
        let records = sample.traits.records
        for pieces in [[records[..<23]], [records[..<24], records[..<24]]] {
          var control = ControlData()
          for piece in pieces {
            let data = Array(piece)
            control.append(level: .traits, type: .traits, data: data.span.bytes)
          }
          let message = lane.message(9)
          #expect(throws: Errno.invalidArgument) {
            try lane.outbox.sendMessage(message.span.bytes, control: control)
          }
        }
        lane.expectNothing()
      }
    }

    @Test("of many messages that one call sends each has its own", arguments: Kind.senders)
    func sentTogether(kind: Kind) throws {
      try Sample.with { sample in
        let free = try Guest.freeKey()
        let lane = try Lane(kind, keys: sample.ids)
        let wrong = try Traits([(free, [1, 2, 3, 4])])
        let all = [sample.traits, Traits(), wrong, sample.others]
        var batch = SendBatch()
        for (number, traits) in all.enumerated() {
          let message = lane.message(UInt32(number))
          batch.append(message.span.bytes, to: nil, traits: traits)
        }
        // Where memory is short single ones fail: all are sent again.
        let results = try Guest.insisting {
          let results = lane.outbox.sendMessages(batch)
          for case .failure(let error) in results where error == .noBufferSpace || error == .noMemory {
            while (try? lane.arrival(flags: .doNotWait)) != nil {}
            throw error
          }
          return results
        }
        for (number, traits) in all.enumerated() {
          if traits == wrong {
            #expect(results[number] == .failure(.noSuchFileOrDirectory))
          } else {
            #expect(results[number] == .success(lane.message(UInt32(number)).count))
            try lane.expect(UInt32(number), traits)
          }
        }
        lane.expectNothing()
      }
    }

    @Test("of many messages that one call receives each has its own", arguments: Kind.receivers)
    func receivedTogether(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let all = [sample.traits, Traits(), sample.others, sample.traits, Traits()]
        for (number, traits) in all.enumerated() { try lane.send(UInt32(number), traits) }
        var batch = ReceiveBatch(capacity: 8, payloadCapacity: 1024)
        try #require(try lane.inbox.receiveMessages(into: &batch) == all.count)
        for (number, traits) in all.enumerated() {
          #expect(lane.isMessage(batch.payload(at: number), UInt32(number)))
          let datagram = batch.datagram(at: number)
          #expect(try datagram.traits == traits, "message \(number)")
          #expect(!datagram.areTraitsTruncated)
        }
      }
    }

    @Test("a message has what an XDP program gave it", arguments: Kind.receivers)
    func fromXDP(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let program = try ScriptProgram(
          .ipProtocol(lane.ipProtocol), sample.traits.map { .set($0.id.rawValue, $0.bytes) })
        try program.program.attach(to: "lo", in: lane.namespace, mode: .generic)
        var passages = Passages()
        for number in 0..<5 as Range<UInt32> {
          // What the sender says of the same keys is written over.
          try lane.send(number, number % 2 == 0 ? Traits() : sample.others)
          let arrival = try lane.arrival()
          #expect(lane.isMessage(arrival.payload, number))
          try passages.expect(arrival, sample.traits, "message \(number)")
        }
        try program.program.detach()
        try lane.send(9)
        try lane.expect(9, Traits())
      }
    }

    @Test(
      "every receiver of a multicast message gets what it asks for", arguments: [Kind.lite4, .lite6, .raw4, .raw6])
    func multicast(kind: Kind) throws {
      try Sample.with { sample in
        let (namespace, interface) = try (suiteCable().receiver.namespace, suiteCable().receiver.interface)
        let isIPv4 = kind.family == .ipv4
        let isRaw = kind == .raw4 || kind == .raw6
        // The loopback interface takes part in IPv4's multicast alone.
        let group = try namespace.run {
          try #require(
            InternetAddress(isIPv4 ? "239.1.2.3" : "ff02::4321%\(interface)", port: isRaw ? 0 : Guest.port))
        }
        func socket() throws -> FileDescriptor {
          try Lane.open(
            namespace, kind.family.domain, isRaw ? SOCK_RAW.rawValue : SOCK_DGRAM.rawValue,
            isRaw ? Lane.experiment : 136)
        }
        func member(_ keys: [TraitID]) throws -> FileDescriptor {
          let member = try socket()
          var on: Int32 = 1
          setsockopt(member.rawValue, SOL_SOCKET, SO_REUSEADDR, &on, 4)
          if !isRaw { try Lane.bind(member, .any(kind.family, port: Guest.port)) }
          // struct ip_mreq, struct ipv6_mreq
          var request: [UInt8]
          if isIPv4 {
            request = [239, 1, 2, 3, 127, 0, 0, 1]
          } else {
            request = [0xff, 2] + [UInt8](repeating: 0, count: 12) + [0x43, 0x21]
            request.append(native: group.scope)
          }
          let (level, name) =
            isIPv4 ? (Int32(IPPROTO_IP), IP_ADD_MEMBERSHIP) : (Int32(IPPROTO_IPV6), IPV6_JOIN_GROUP)
          try #require(
            setsockopt(member.rawValue, level, name, request, socklen_t(request.count)) == 0, "errno \(errno)")
          try member.setReceivedTraits(TraitMask(keys))
          return member
        }
        let first = try member([sample.ids[0]])
        defer { try? first.close() }
        let second = try member(sample.ids)
        defer { try? second.close() }
        let outbox = try socket()
        defer { try? outbox.close() }
        if isIPv4 {
          var interface = in_addr(s_addr: UInt32(0x7f00_0001).bigEndian)
          try #require(setsockopt(outbox.rawValue, Int32(IPPROTO_IP), IP_MULTICAST_IF, &interface, 4) == 0)
        }
        let payload = TagProgram.payload(6)
        _ = try Guest.insisting {
          try outbox.sendMessage(payload.span.bytes, to: group, traits: sample.traits)
        }
        let less = try Traits([(sample.ids[0], try #require(sample.traits.bytes(of: sample.ids[0])))])
        for (member, traits) in [(first, less), (second, sample.traits)] {
          let arrived = try Guest.receive(member)
          #expect(arrived.payload.suffix(36) == payload[...])
          #expect(arrived.traits == traits)
        }
      }
    }

    @Test("a message in pieces has what it was begun with", arguments: Kind.corking)
    func pieces(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        try lane.setSentTraits(sample.others)
        try lane.send(piece: 1, sample.traits)
        try lane.setSentTraits(Traits())
        #expect(throws: Errno.invalidArgument) { try lane.send(piece: 9, sample.others) }
        try lane.send(piece: 2, sample.traits)
        lane.expectNothing()
        try lane.send(piece: 3, isLast: true)
        let arrival = try lane.arrival()
        #expect(arrival.payload.suffix(3) == [1, 2, 3])
        #expect(try arrival.traits == sample.traits)
      }
    }
  }
}
