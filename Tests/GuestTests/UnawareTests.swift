// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

extension Guest {
  @Suite("Programs that do not know traits", .cable)
  struct UnawareTests {
    static let kinds: [Kind] = [.udp4, .udp6, .toIPv6]

    /// Keys enough for a packet that has no room for more, and what three datagrams have of
    /// them: nothing, one value, all.
    private func withLane(_ kind: Kind, _ body: (Lane, [Traits]) throws -> Void) throws {
      try Guest.withKeys([TraitSize](repeating: .bytes4, count: 48)) { ids in
        let lane = try Lane(kind)
        let values = ids.enumerated().map { ($1, Guest.value(.bytes4, $0)) }
        try body(lane, [Traits(), try Traits([values[7]]), try Traits(values)])
      }
    }

    /// What the datagrams of a lane are marked with, so that there is something to be told:
    /// ECT(0).
    private func mark(_ lane: Lane) throws {
      var tos: Int32 = 2
      let (level, name) =
        lane.kind.family == .ipv4 ? (Int32(IPPROTO_IP), IP_TOS) : (Int32(IPPROTO_IPV6), IPV6_TCLASS)
      try #require(setsockopt(lane.outbox.rawValue, level, name, &tos, 4) == 0)
      // And to be told when answered.
      var on: Int32 = 1
      let (receivesLevel, receives) =
        lane.kind.family == .ipv4 ? (Int32(IPPROTO_IP), IP_RECVTOS) : (Int32(IPPROTO_IPV6), IPV6_RECVTCLASS)
      try #require(setsockopt(lane.outbox.rawValue, receivesLevel, receives, &on, 4) == 0)
      var time = timeval(tv_sec: 10, tv_usec: 0)
      setsockopt(
        lane.outbox.rawValue, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    // MARK: In C

    /// Where the server has its socket from.
    enum Origin: String, CaseIterable, CustomTestStringConvertible {
      case own = "of its own"
      case inherited = "inherited"
      case inheritedAsking = "inherited, that asks for traits"
      case inheritedSending = "inherited, that asks for traits and sends some"

      var testDescription: String { rawValue }
      var asks: Bool { self == .inheritedAsking || self == .inheritedSending }
    }

    /// Runs the server while `body` sends to it: what it printed, line by line.
    private func serve(
      _ lane: Lane, _ origin: Origin, room: Int, _ body: () throws -> Void
    ) throws -> [[String]] {
      let family = lane.kind == .udp4 ? "4" : "6"
      let program = try Command.built("plain-server")
      let server: Command
      if origin == .own {
        let port = Guest.port + 1
        server = try Command([
          "ip", "netns", "exec", lane.namespace.name, program, family, "\(port)", "\(room)",
        ])
        let there = try #require(InternetAddress(lane.destination.host, port: port))
        try #require(there.withSockaddr { connect(lane.outbox.rawValue, $0, $1) } == 0)
      } else {
        server = try Command(
          [program, family, "inherited=3", "\(room)"], inheriting: [lane.inbox])
      }
      try awaitAnswer(lane)
      try body()
      let quit = [UInt8]("quit".utf8)
      try lane.outbox.sendMessage(quit.span.bytes)
      let outcome = try server.wait()
      try #require(outcome.status == 0, "\(outcome.errors)")
      return outcome.output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    }

    /// Says hello until it is answered.
    private func awaitAnswer(_ lane: Lane) throws {
      let hello = [UInt8]("hello".utf8)
      var isSaid = false
      for _ in 0..<2000 {
        if !isSaid { isSaid = (try? lane.outbox.sendMessage(hello.span.bytes)) != nil }
        do {
          let answer = try Guest.arrival(lane.outbox, flags: .doNotWait)
          #expect(answer.payload == hello)
          return
        } catch Errno.connectionRefused {
          // Nobody was there, and nothing will come of it.
          isSaid = false
        } catch Errno.wouldBlock {}
        usleep(10_000)
      }
      Issue.record("the server does not answer")
    }

    @Test(
      "a server in C is told the same, loses nothing and answers as ever", arguments: kinds, Origin.allCases)
    func plain(kind: Kind, origin: Origin) throws {
      try withLane(kind) { lane, datagrams in
        try mark(lane)
        let keys = datagrams[2].keys
        if origin.asks { try lane.inbox.setReceivedTraits(keys) }
        if origin == .inheritedSending { try Guest.insisting { try lane.inbox.setSentTraits(datagrams[1]) } }
        try lane.outbox.setReceivedTraits(keys)
        // No room beyond what it asked for; for one trait, but for a byte and exactly; for all.
        for room in [0, 39, 40, 1168] {
          let lines = try serve(lane, origin, room: room) {
            for (number, traits) in (datagrams + datagrams).enumerated() {
              let payload = TagProgram.payload(8, length: 100)
              _ = try Guest.insisting {
                try lane.outbox.sendMessage(payload.span.bytes, traits: traits)
              }
              let answer = try Guest.arrival(lane.outbox)
              #expect(answer.payload == payload, "datagram \(number)")
              // What its parent set it to send it sends, and does not know of it.
              #expect(try answer.traits == (origin == .inheritedSending ? datagrams[1] : Traits()))
              // Its type of service
              #expect(answer.control[16] == 2, "datagram \(number)")
            }
          }
          try #require(lines.count == 6, "\(lines)")
          let plain = lines[0]
          #expect(plain[2...3] == ["flags", "0"])
          #expect(plain.last == "2", "\(plain)")
          #expect(plain[plain.count - 2] == (kind == .toIPv6 ? "::ffff:127.0.0.1" : lane.destination.host))
          #expect(plain.count == 6 + 3 + 2)
          for (line, traits) in zip(lines, datagrams + datagrams) {
            var expected = plain
            if origin.asks, !traits.isEmpty {
              if room < ctraits_cmsg_len(traits.recordByteCount) {
                // MSG_CTRUNC
                expected[3] = "8"
              } else {
                let size = try #require(Int(plain[5].dropLast())) + ctraits_cmsg_space(traits.recordByteCount)
                expected[5] = "\(size):"
                expected.insert("\(SOL_TRAITS)/\(SCM_TRAITS)", at: expected.count - 2)
              }
            }
            #expect(line == expected, "\(room) bytes more, \(traits.count) traits")
          }
        }
      }
    }

    // MARK: With SwiftNIO

    /// What a handler was given of a datagram.
    private struct Seen: Equatable {
      let payload: [UInt8]
      let remote: String
      let congestion: NIOExplicitCongestionNotificationState?
      let destination: String?
      let interface: Int?
    }

    /// Notes each datagram, and answers it with what it came with.
    private final class Echo: ChannelInboundHandler {
      typealias InboundIn = AddressedEnvelope<ByteBuffer>
      typealias OutboundOut = AddressedEnvelope<ByteBuffer>

      let seen: NIOLockedValueBox<[Seen]>
      let errors: NIOLockedValueBox<[String]>

      init(_ seen: NIOLockedValueBox<[Seen]>, _ errors: NIOLockedValueBox<[String]>) {
        self.seen = seen
        self.errors = errors
      }

      func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let envelope = unwrapInboundIn(data)
        let info = envelope.metadata?.packetInfo
        seen.withLockedValue {
          $0.append(
            Seen(
              payload: Array(envelope.data.readableBytesView), remote: "\(envelope.remoteAddress)",
              congestion: envelope.metadata?.ecnState, destination: info.map { "\($0.destinationAddress)" },
              interface: info?.interfaceIndex))
        }
        context.write(data, promise: nil)
      }

      func channelReadComplete(context: ChannelHandlerContext) { context.flush() }

      func errorCaught(context: ChannelHandlerContext, error: any Error) {
        errors.withLockedValue { $0.append("\(error)") }
      }
    }

    @Test(
      "a server with SwiftNIO is told the same, loses nothing and answers as ever", arguments: kinds,
      [false, true])
    func swiftNIO(kind: Kind, asks: Bool) throws {
      // One datagram a call, and several.
      for atOnce in [1, 4] { try serveWithNIO(kind, asks: asks, atOnce: atOnce) }
    }

    private func serveWithNIO(_ kind: Kind, asks: Bool, atOnce: Int) throws {
      try withLane(kind) { lane, datagrams in
        try mark(lane)
        let keys = datagrams[2].keys
        if asks { try lane.inbox.setReceivedTraits(keys) }
        try lane.outbox.setReceivedTraits(keys)

        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        defer { try? group.syncShutdownGracefully() }
        let seen = NIOLockedValueBox<[Seen]>([])
        let errors = NIOLockedValueBox<[String]>([])
        let descriptor = try lane.inbox.duplicate()
        let channel = try DatagramBootstrap(group: group)
          .channelOption(.explicitCongestionNotification, value: true)
          .channelOption(.receivePacketInfo, value: true)
          .channelOption(.datagramVectorReadMessageCount, value: atOnce)
          .channelInitializer { channel in
            channel.eventLoop.makeCompletedFuture {
              try channel.pipeline.syncOperations.addHandler(Echo(seen, errors))
            }
          }
          .withBoundSocket(descriptor.rawValue).wait()
        try awaitAnswer(lane)
        seen.withLockedValue { $0 = [] }

        // All of them at once, so that several are read by one call.
        let sent = datagrams + datagrams
        for (number, traits) in sent.enumerated() {
          let payload = TagProgram.payload(UInt32(number), length: 100)
          _ = try Guest.insisting {
            try lane.outbox.sendMessage(payload.span.bytes, traits: traits)
          }
        }
        for number in sent.indices {
          let answer = try Guest.arrival(lane.outbox)
          #expect(answer.payload == TagProgram.payload(UInt32(number), length: 100))
          #expect(try answer.traits.isEmpty)
        }
        try channel.close().wait()
        #expect(errors.withLockedValue { $0 } == [])
        let told = seen.withLockedValue { $0 }
        try #require(told.count == sent.count)
        for (number, one) in told.enumerated() {
          #expect(one.payload == TagProgram.payload(UInt32(number), length: 100))
          // As the first, which had no traits.
          #expect(one.remote == told[0].remote)
          #expect(one.congestion == told[0].congestion)
          #expect(one.destination == told[0].destination)
          #expect(one.interface == told[0].interface)
        }
        #expect(told[0].destination?.contains(lane.destination.host) == true, "\(told[0])")
        // NIO does not ask an IPv6 socket for what an IPv4 datagram has.
        if kind != .toIPv6 { #expect(told[0].congestion == .transportCapableFlag0) }
        #expect(told[0].interface != nil)
      }
    }
  }
}
