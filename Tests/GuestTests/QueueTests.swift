// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

extension Guest.Kind {
  /// What a receiver of this kind can be told of each message beside its traits: options by
  /// level and name.
  fileprivate var otherOptions: [(Int32, Int32)] {
    let ip4 = [
      (Int32(IPPROTO_IP), IP_PKTINFO), (Int32(IPPROTO_IP), IP_RECVTTL), (Int32(IPPROTO_IP), IP_RECVTOS),
    ]
    let ip6 = [
      (Int32(IPPROTO_IPV6), IPV6_RECVPKTINFO), (Int32(IPPROTO_IPV6), IPV6_RECVHOPLIMIT),
      (Int32(IPPROTO_IPV6), IPV6_RECVTCLASS),
    ]
    // SO_TIMESTAMP
    let stamp = (SOL_SOCKET, Int32(29))
    return switch self {
    case .toIPv6, .liteMapped:
      [stamp, (Int32(IPPROTO_IPV6), IPV6_RECVPKTINFO), (Int32(IPPROTO_IP), IP_RECVTOS)]
    // PACKET_AUXDATA
    case .packet4, .packet6: [stamp, (263, 8)]
    default: [stamp] + (family == .ipv4 ? ip4 : ip6)
    }
  }
}

extension Guest {
  @Suite("Flags of receiving, and the error queue", .cable)
  struct QueueTests {
    private func turnOn(_ socket: FileDescriptor, _ level: Int32, _ name: Int32, _ value: Int32 = 1) throws {
      var value = value
      try #require(
        setsockopt(socket.rawValue, level, name, &value, 4) == 0, "option \(name) of \(level): errno \(errno)"
      )
    }

    // MARK: Flags

    @Test("MSG_PEEK gives the traits, and leaves them for the read after it", arguments: Kind.receivers)
    func peek(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        try lane.send(1, sample.traits)
        try lane.send(2, sample.others)
        for _ in 0..<3 { try lane.expect(1, sample.traits, flags: .peek) }
        try lane.expect(1, sample.traits)
        try lane.expect(2, sample.others, flags: .peek)
        // Who asks for less in between gets less.
        try lane.inbox.setReceivedTraits(TraitMask(sample.ids[1]))
        let less = try Traits([(sample.ids[1], try #require(sample.others.bytes(of: sample.ids[1])))])
        try lane.expect(2, less, flags: .peek)
        try lane.expect(2, less)
        lane.expectNothing()
      }
    }

    @Test("a message that is cut short has all of its traits", arguments: Kind.receivers, [false, true])
    func truncated(kind: Kind, isLengthAsked: Bool) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        try lane.send(1, sample.traits)
        let whole = try lane.arrival(flags: .peek).payload
        for flags in [MessageFlags.peek, []] {
          for room in flags.isEmpty ? [1] : [0, 1, whole.count - 1] {
            let arrival = try lane.arrival(
              payloadRoom: room, flags: isLengthAsked ? flags.union(.truncated) : flags)
            #expect(arrival.payload == Array(whole[..<room]))
            #expect(arrival.message.flags.contains(.truncated), "\(room) bytes of room")
            // ICMP sockets do not tell.
            let tells = isLengthAsked && ![.pong4, .pong6].contains(kind)
            #expect(arrival.message.messageLength == (tells ? whole.count : room))
            #expect(try arrival.traits == sample.traits)
            #expect(!arrival.message.flags.contains(.controlTruncated))
          }
        }
        lane.expectNothing()
        try lane.send(2, sample.others)
        try lane.expect(2, sample.others)
      }
    }

    @Test(
      "without a byte of the room they need no trait comes, MSG_CTRUNC does, and all else is whole",
      arguments: Kind.receivers)
    func controlTruncated(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        for (level, name) in kind.otherOptions { try turnOn(lane.inbox, level, name) }
        try lane.send(1, sample.traits)
        let measure = try lane.arrival()
        let others = try measure.controlMessages
        #expect(others.count == kind.otherOptions.count)
        #expect(try measure.hasTraits == false)
        #expect(!measure.message.flags.contains(.controlTruncated))
        let size = measure.control.count

        try lane.inbox.setReceivedTraits(TraitMask(sample.ids))
        let needed = size + ctraits_cmsg_len(sample.traits.recordByteCount)
        for room in [size, size + 15, size + 16, size + 16 + 24, needed - 1] {
          for flags in [MessageFlags.peek, []] {
            if flags == .peek { try lane.send(1, sample.traits) }
            let arrival = try lane.arrival(controlRoom: room, flags: flags)
            #expect(lane.isMessage(arrival.payload, 1))
            #expect(arrival.message.flags.contains(.controlTruncated), "\(room - size) bytes more")
            #expect(arrival.control.count == size, "\(room - size) bytes more")
            #expect(try arrival.controlMessages == others, "\(room - size) bytes more")
          }
        }
        for room in [needed, needed + 1, size + ctraits_cmsg_space(sample.traits.recordByteCount)] {
          try lane.send(2, sample.others)
          let arrival = try lane.arrival(controlRoom: room)
          #expect(!arrival.message.flags.contains(.controlTruncated))
          let messages = try arrival.controlMessages
          #expect(Array(messages.dropLast()) == others, "\(room - size) bytes more")
          // They come last.
          #expect(messages.last?.level == .traits)
          #expect(try arrival.traits == sample.others)
        }
        lane.expectNothing()
      }
    }

    // MARK: The error queue

    /// Lets errors be queued: IP_RECVERR and IPV6_RECVERR.
    private func queueErrors(_ lane: Lane) throws {
      if lane.kind.family == .ipv6 {
        try turnOn(lane.outbox, Int32(IPPROTO_IPV6), IPV6_RECVERR)
      } else {
        try turnOn(lane.outbox, Int32(IPPROTO_IP), IP_RECVERR)
        if [.fromIPv6, .liteMapped].contains(lane.kind) {
          try turnOn(lane.outbox, Int32(IPPROTO_IPV6), IPV6_RECVERR)
        }
      }
    }

    /// Where an error comes from: SO_EE_ORIGIN_ of linux/errqueue.h.
    private enum Origin: UInt8 {
      case local = 1
      case icmp = 2
      case icmp6 = 3
      case timestamp = 4
      case zeroCopy = 5
    }

    /// The next message of the sender's error queue, which has one of these.
    private func error(_ lane: Lane, _ origin: Origin, controlRoom: Int = 4096) throws -> Arrival {
      var arrival: Arrival?
      // An ICMP error may take a moment.
      for _ in 0..<200 where arrival == nil {
        do {
          arrival = try Guest.arrival(lane.outbox, controlRoom: controlRoom, flags: .errorQueue)
        } catch Errno.wouldBlock {
          usleep(5000)
        }
      }
      let error = try #require(arrival, "no error was queued")
      #expect(error.message.flags.contains(.errorQueue))
      let message = try #require(
        try error.controlMessages.first {
          // IP_RECVERR, IPV6_RECVERR
          $0.level == .ipv4 && $0.type.rawValue == 11 || $0.level == .ipv6 && $0.type.rawValue == 25
        })
      // ee_origin of struct sock_extended_err
      #expect(error.control[message.dataRange][message.dataRange.lowerBound + 4] == origin.rawValue)
      return error
    }

    private func expectNoError(_ lane: Lane, sourceLocation: SourceLocation = #_sourceLocation) {
      #expect(throws: Errno.wouldBlock, sourceLocation: sourceLocation) {
        try Guest.arrival(lane.outbox, flags: .errorQueue)
      }
    }

    @Test(
      "a port that is closed: what is queued has no traits",
      arguments: [Kind.udp4, .udp6, .fromIPv6, .lite4, .lite6, .liteMapped])
    func portUnreachable(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        try queueErrors(lane)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        try lane.setSentTraits(sample.others)
        // Nobody is at this port.
        let closed = try #require(InternetAddress(lane.destination.host, port: Guest.port + 40))
        try #require(closed.withSockaddr { connect(lane.outbox.rawValue, $0, $1) } == 0)
        for traits in [sample.traits, Traits()] {
          try lane.send(1, traits)
          let arrival = try error(lane, kind.family == .ipv4 ? .icmp : .icmp6)
          // It is the ICMP message that is queued, and no datagram of the socket.
          #expect(lane.isMessage(arrival.payload, 1))
          #expect(try arrival.traits.isEmpty)
          #expect(try arrival.hasTraits == false)
          #expect(!arrival.message.flags.contains(.controlTruncated))
          expectNoError(lane)
        }
      }
    }

    /// What a router tells of a packet that the lane's sender sent: an ICMP message.
    private func unreachable(_ lane: Lane) -> [UInt8] {
      let message = lane.message(1)
      let payload: [UInt8]
      switch lane.kind {
      case .raw4, .raw6: payload = message
      // What the kernel put in: the socket's number.
      case .ping4, .ping6:
        payload =
          Array(message[..<4]) + [UInt8(Lane.identifier >> 8), UInt8(Lane.identifier & 255)]
          + Array(message[6...])
      default: preconditionFailure("ports are the kernel's to say")
      }
      if lane.kind.family == .ipv4 {
        // Destination unreachable, this host
        return Lane.icmp(
          .ipv4, [3, 1, 0, 0, 0, 0, 0, 0] + Lane.header4(of: payload.count, lane.ipProtocol) + payload)
      }
      return [1, 3, 0, 0, 0, 0, 0, 0] + Lane.header6(of: payload.count, lane.ipProtocol) + payload
    }

    @Test(
      "an error that a router tells of: what is queued has the traits of the router's message",
      arguments: [Kind.raw4, .raw6, .ping4, .ping6])
    func unreachable(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        try queueErrors(lane)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        try lane.setSentTraits(sample.others)
        let router = try Lane.open(
          lane.namespace, kind.family.domain, SOCK_RAW.rawValue,
          kind.family == .ipv4 ? Int32(IPPROTO_ICMP) : 58)
        defer { try? router.close() }
        for traits in [Traits(), sample.traits] {
          let message = unreachable(lane)
          _ = try Guest.insisting {
            try router.sendMessage(message.span.bytes, to: lane.destination, traits: traits)
          }
          let arrival = try error(lane, kind.family == .ipv4 ? .icmp : .icmp6)
          #expect(try arrival.traits == traits)
          #expect(try arrival.hasTraits == !traits.isEmpty)
          #expect(!arrival.message.flags.contains(.controlTruncated))
          expectNoError(lane)
        }
      }
    }

    @Test(
      "a time stamp of what was sent: with the packet come its traits, alone it has none",
      arguments: Kind.senders)
    func timestamp(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        let sticky = try Traits([(sample.ids[0], try #require(sample.others.bytes(of: sample.ids[0])))])
        try lane.setSentTraits(sticky)
        for stamps in [Lane.Stamps.software, .scheduled, [.software, .scheduled]] {
          try lane.stampSent(stamps)
          for (own, all) in [(sample.traits, sample.traits), (Traits(), sticky)] {
            try lane.send(1, own)
            for _ in stamps == [.software, .scheduled] ? [0, 1] : [0] {
              let arrival = try error(lane, .timestamp)
              #expect(lane.isMessage(arrival.payload, 1))
              #expect(try arrival.traits == all)
              #expect(try arrival.controlMessages.last?.level == .traits)
            }
            expectNoError(lane)
            // The packet itself has lost nothing.
            try lane.expect(1, all)
          }
        }
        try lane.stampSent([.software, .scheduled, .alone])
        try lane.send(2, sample.traits)
        for _ in 0..<2 {
          let arrival = try error(lane, .timestamp)
          #expect(arrival.payload.isEmpty)
          #expect(try arrival.hasTraits == false)
          #expect(!arrival.message.flags.contains(.controlTruncated))
        }
        expectNoError(lane)
        try lane.expect(2, sample.traits)
      }
    }

    @Test("without room for them all else of an error is whole", arguments: Kind.senders)
    func errorTruncated(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        try lane.stampSent(.software)
        try lane.send(1, sample.traits)
        // Nobody asked for traits; the time and the error are the measure.
        let measure = try error(lane, .timestamp)
        let others = try measure.controlMessages
        #expect(try measure.hasTraits == false)
        let size = measure.control.count
        let needed = size + ctraits_cmsg_len(sample.traits.recordByteCount)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        for room in [size, needed - 1, needed] {
          try lane.send(1, sample.traits)
          let arrival = try error(lane, .timestamp, controlRoom: room)
          #expect(
            arrival.message.flags.contains(.controlTruncated) == (room < needed), "\(room - size) bytes more")
          #expect(try Array(arrival.controlMessages.prefix(others.count)) == others)
          #expect(try arrival.traits == (room < needed ? Traits() : sample.traits))
          expectNoError(lane)
        }
      }
    }

    @Test(
      "a socket that asked for nothing when the error was queued gets nothing", arguments: Kind.senders)
    func errorUnasked(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        try lane.stampSent(.software)
        try lane.send(1, sample.traits)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        let unasked = try error(lane, .timestamp)
        #expect(try unasked.hasTraits == false)
        try lane.send(2, sample.traits)
        let asked = try error(lane, .timestamp)
        #expect(try asked.traits == sample.traits)
      }
    }

    @Test("the end of a transmission without a copy has none", arguments: [Kind.udp4, .udp6, .fromIPv6])
    func zeroCopy(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        // SO_ZEROCOPY, MSG_ZEROCOPY
        try turnOn(lane.outbox, SOL_SOCKET, 60)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        for number in 0..<3 as Range<UInt32> {
          try lane.send(number, sample.traits, flags: MessageFlags(rawValue: 0x400_0000))
          let arrival = try error(lane, .zeroCopy)
          #expect(arrival.payload.isEmpty)
          #expect(try arrival.hasTraits == false)
          #expect(!arrival.message.flags.contains(.controlTruncated))
          expectNoError(lane)
          try lane.expect(number, sample.traits)
        }
      }
    }

    @Test("a message that is too long for its way: what is queued has none", arguments: Kind.senders)
    func local(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        try queueErrors(lane)
        // Never fragmented: IP_PMTUDISC_DO
        try turnOn(
          lane.outbox, Int32(kind.family == .ipv4 ? IPPROTO_IP : IPPROTO_IPV6),
          kind.family == .ipv4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER, 2)
        try lane.namespace.ip("link", "set", "lo", "mtu", "1500")
        defer { _ = try? lane.namespace.ip("link", "set", "lo", "mtu", "65536") }
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        let payload = TagProgram.payload(3, length: 4000)
        let long =
          switch kind {
          case .ping4, .ping6: Lane.echo(kind.family, isReply: false, 0, payload)
          default: payload
          }
        #expect(throws: Errno.messageTooLong) {
          try Guest.insisting { try lane.outbox.sendMessage(long.span.bytes, traits: sample.traits) }
        }
        let arrival = try error(lane, .local)
        #expect(try arrival.hasTraits == false)
        #expect(!arrival.message.flags.contains(.controlTruncated))
        lane.expectNothing()
      }
    }

    @Test("a packet socket's own time stamps have what the frame was given on its way out")
    func packetTimestamp() throws {
      let end = try suiteCable().receiver
      try Sample.with { sample in
        let socket = try end.namespace.openPacketSocket(on: end.interface, type: 0x88b5)
        defer { try? socket.close() }
        try socket.setReceivedTraits(TraitMask(sample.ids))
        // SO_TIMESTAMPING, when the device has it
        try turnOn(socket, SOL_SOCKET, 37, 1 << 1 | 1 << 4)
        let program = try SkbProgram(
          .classifier, .ethertype(0x88b5), sample.traits.map { .set($0.id.rawValue, $0.bytes) })
        try program.attach(to: end, .egress)
        // struct sockaddr_ll
        var address: [UInt8] = []
        address.append(native: UInt16(AF_PACKET))
        address.append(native: UInt16(0x88b5).bigEndian)
        address.append(native: try end.index())
        address += [0, 0, 0, 6] + [UInt8](repeating: 0xff, count: 6) + [0, 0]
        let payload = TagProgram.payload(5)
        // Where memory is short the program may not have been able to.
        for _ in 0..<(Guest.storesMayFail ? 50 : 1) {
          let sent = address.withUnsafeBytes {
            sendto(
              socket.rawValue, payload, payload.count, 0,
              $0.assumingMemoryBound(to: sockaddr.self).baseAddress, socklen_t($0.count))
          }
          try #require(sent == payload.count, "errno \(errno)")
          let arrival = try Guest.arrival(socket, flags: .errorQueue)
          let isRefused = try program.results().steps.contains { $0.status == -ENOMEM }
          if Guest.storesMayFail, isRefused { continue }
          #expect(arrival.payload.suffix(36) == payload[...])
          #expect(try arrival.traits == sample.traits)
          break
        }
        try program.detach()
      }
    }
  }
}
