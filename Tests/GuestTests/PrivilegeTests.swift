// SPDX-License-Identifier: MIT

import CNetworkLab
import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// Whoever runs `traits-attempt`.
enum Somebody: String, CaseIterable, CustomTestStringConvertible {
  case user = "another user"
  case userElsewhere = "another user in another network namespace"
  case userNamespace = "root of a user namespace"
  case networkNamespace = "root of a user and a network namespace"
  case others = "root without CAP_NET_ADMIN and CAP_NET_RAW"
  case admin = "another user with CAP_NET_ADMIN"
  case raw = "another user with CAP_NET_RAW"
  case elsewhere = "root in another network namespace"

  var testDescription: String { rawValue }

  /// What the program is run with.
  fileprivate func prefix(_ other: NetworkNamespace) -> [String] {
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    let elsewhere = ["ip", "netns", "exec", other.name]
    return switch self {
    case .user: user
    case .userElsewhere: elsewhere + user
    case .userNamespace: user + ["unshare", "--user", "--map-root-user"]
    case .networkNamespace:
      user + [
        "unshare", "--user", "--map-root-user", "--net", "bash", "-c",
        // There nobody has done so before.
        "ip link set lo up && echo 0 0 >/proc/sys/net/ipv4/ping_group_range && exec \"$@\"", "bash",
      ]
    case .others: ["setpriv", "--bounding-set", "-net_admin,-net_raw"]
    case .admin: user + ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]
    case .raw: user + ["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"]
    case .elsewhere: elsewhere
    }
  }

  /// Whether keys that are not open are for them: on any socket.
  var isPrivileged: Bool { [.admin, .raw, .elsewhere].contains(self) }

  /// Whether they are on a socket of their own making.
  func isPrivileged(_ flags: KeyFlags) -> Bool {
    isPrivileged || self == .networkNamespace && !flags.contains(.crossesNetworkNamespaces)
  }
}

/// How a socket that somebody else made comes to a program.
enum Handing: String, CaseIterable, CustomTestStringConvertible {
  case inherited
  case passed = "passed along a unix socket"

  var testDescription: String { rawValue }
}

extension Guest {
  /// Runs `traits-attempt`: a line for each action.
  ///
  /// - Parameter namespace: Where it is run, where `somebody` is not elsewhere.
  static func attempt(
    _ somebody: Somebody, _ socket: String, _ actions: [String], in namespace: NetworkNamespace? = nil,
    elsewhere: NetworkNamespace, inheriting descriptors: [FileDescriptor] = []
  ) throws -> [String] {
    let enter = namespace.map { ["ip", "netns", "exec", $0.name] } ?? []
    let command = enter + somebody.prefix(elsewhere) + [try programForAll(), socket] + actions
    let outcome = try Command(command, inheriting: descriptors).wait()
    try #require(outcome.status == 0, "\(command): \(outcome.errors)")
    return outcome.output.split(separator: "\n").map(String.init)
  }

  /// The same with a socket that is handed over.
  static func attempt(
    _ somebody: Somebody, _ handing: Handing, _ socket: FileDescriptor, _ actions: [String],
    elsewhere: NetworkNamespace
  ) throws -> [String] {
    switch handing {
    case .inherited:
      return try attempt(
        somebody, "inherited=3", actions, elsewhere: elsewhere, inheriting: [socket])
    case .passed:
      var ends: [Int32] = [0, 0]
      try #require(
        socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
      defer { for end in ends { close(end) } }
      try #require(lab_pass_descriptor(ends[0], socket.rawValue) == 0)
      return try attempt(
        somebody, "passed=3", actions, elsewhere: elsewhere,
        inheriting: [FileDescriptor(rawValue: ends[1])])
    }
  }

  /// `traits-attempt`, where everybody may run it: the way to the build directory may be
  /// closed.
  private static func programForAll() throws -> String {
    let path = "/tmp/traits-attempt.\(getpid())"
    if access(path, X_OK) != 0 {
      try Command.require("install", "-m", "755", try Command.built("traits-attempt"), path)
    }
    return path
  }

  /// What `traits-attempt` takes for a value whose bytes are all the same, and what it prints.
  fileprivate static func record(_ id: TraitID, _ size: TraitSize, _ byte: UInt8) -> String {
    "\(id.rawValue):\(size.rawValue):\(byte)"
  }

  fileprivate static func printed(_ traits: Traits) -> String {
    guard !traits.isEmpty else { return "-" }
    return traits.map { element in
      "\(element.id.rawValue):"
        + element.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }.joined(separator: ",")
  }

  fileprivate static func hex(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
  }
}

extension Guest {
  @Suite("Privilege", .cable)
  struct PrivilegeTests {
    /// A key with each set of flags.
    private func withKeys(_ body: ([(id: TraitID, flags: KeyFlags)]) throws -> Void) throws {
      var registry = try RegistryConnection()
      var keys: [(id: TraitID, flags: KeyFlags)] = []
      defer { for key in keys { _ = try? registry.remove(key.id) } }
      for bits in 0..<8 as Range<UInt32> {
        let flags = KeyFlags(rawValue: bits)
        keys.append((try registry.add(Guest.uniqueName(), size: .bytes4, flags: flags).id, flags))
      }
      try body(keys)
    }

    // MARK: Sockets of one's own

    /// A kind of socket that somebody may make.
    private struct Own {
      let name: String
      let domain: Int32
      let type: UInt32
      let proto: Int32

      var arguments: String { "new=\(domain),\(type),\(proto)" }
      var host: String { domain == AF_INET6 ? "::1" : "127.0.0.1" }
      var isPacket: Bool { domain == AF_PACKET }

      static let all = [
        Own(name: "UDP over IPv4", domain: AF_INET, type: SOCK_DGRAM.rawValue, proto: 0),
        Own(name: "UDP over IPv6", domain: AF_INET6, type: SOCK_DGRAM.rawValue, proto: 0),
        Own(name: "UDP-Lite over IPv4", domain: AF_INET, type: SOCK_DGRAM.rawValue, proto: 136),
        Own(name: "ICMP over IPv4", domain: AF_INET, type: SOCK_DGRAM.rawValue, proto: 1),
        Own(name: "ICMP over IPv6", domain: AF_INET6, type: SOCK_DGRAM.rawValue, proto: 58),
      ]
      static let privileged = [
        Own(name: "raw over IPv4", domain: AF_INET, type: SOCK_RAW.rawValue, proto: 253),
        Own(name: "raw over IPv6", domain: AF_INET6, type: SOCK_RAW.rawValue, proto: 253),
        Own(name: "packet", domain: AF_PACKET, type: SOCK_DGRAM.rawValue, proto: 0),
      ]
    }

    @Test(
      "on a socket of their own they can name the keys that are open to them, and no others",
      arguments: Somebody.allCases)
    func own(somebody: Somebody) throws {
      let namespace = try suiteCable().receiver.namespace
      let elsewhere = try suiteCable().sender.namespace
      for there in [namespace, elsewhere] {
        try there.setParameter("net/ipv4/ping_group_range", "0 2147483647")
      }
      try withKeys { keys in
        // Who has CAP_NET_RAW may have sockets of more kinds.
        let kinds: [Own] =
          switch somebody {
          case .user: Own.all
          case .raw, .networkNamespace: Own.all + Own.privileged
          default: [Own.all[1]]
          }
        for kind in kinds {
          var actions = kind.isPacket ? [] : ["to=\(kind.host),\(Int(kind.type) == 3 ? 0 : 4249)"]
          var expected = kind.isPacket ? [] : ["ok"]
          // An echo request, for those that send nothing else.
          actions.append("payload=" + Guest.hex([kind.domain == AF_INET6 ? 128 : 8] + [0, 0, 0, 0, 0, 0, 1]))
          expected.append("ok")
          for (id, flags) in keys {
            let isPrivileged = somebody.isPrivileged(flags)
            let reads = isPrivileged || flags.contains(.openRead)
            let writes = isPrivileged || flags.contains(.openWrite)
            actions += ["recv=", "recv=\(id.rawValue)", "asked"]
            expected += ["ok", reads ? "ok" : "EPERM", reads ? "\(id.rawValue)" : "-"]
            let record = Guest.record(id, .bytes4, 7)
            if kind.isPacket {
              actions += ["send=", "send=\(record)", "sent"]
              expected += [String](repeating: "EOPNOTSUPP", count: 3)
            } else {
              actions += ["send=", "send=\(record)", "sent", "send=", "message=\(record)"]
              let result = writes ? "ok" : "EPERM"
              // What is set is shown to who may receive it.
              expected += ["ok", result, reads && writes ? "\(id.rawValue):07070707" : "-", "ok", result]
            }
          }
          // One among others that they may name is one too many.
          let readable = keys.filter { somebody.isPrivileged($0.flags) || $0.flags.contains(.openRead) }
          let writable = keys.filter { somebody.isPrivileged($0.flags) || $0.flags.contains(.openWrite) }
          actions += ["recv=\(keys.map { "\($0.id.rawValue)" }.joined(separator: ","))"]
          expected += [readable.count == keys.count ? "ok" : "EPERM"]
          if !kind.isPacket {
            let all = keys.map { Guest.record($0.id, .bytes4, 7) }.joined(separator: ",")
            let result = writable.count == keys.count ? "ok" : "EPERM"
            actions += ["send=\(all)", "message=\(all)"]
            expected += [result, result]
          }
          let lines = try Guest.attempt(
            somebody, kind.arguments, actions, in: namespace, elsewhere: elsewhere)
          expect(lines, expected, actions, "\(kind.name)")
        }
      }
    }

    private func expect(
      _ lines: [String], _ expected: [String], _ actions: [String], _ comment: String,
      sourceLocation: SourceLocation = #_sourceLocation
    ) {
      let name = Comment(rawValue: comment)
      #expect(lines.count == expected.count, name, sourceLocation: sourceLocation)
      for (action, (line, right)) in zip(actions, zip(lines, expected)) {
        #expect(line == right, "\(comment): \(action)", sourceLocation: sourceLocation)
      }
    }

    // MARK: Sockets of others

    private static let unprivileged = Somebody.allCases.filter { !$0.isPrivileged }

    @Test(
      "a descriptor keeps what was set, and gives nobody more than that",
      arguments: unprivileged, Handing.allCases)
    func handed(somebody: Somebody, handing: Handing) throws {
      try hand(.udp6, to: somebody, handing)
    }

    @Test("a descriptor of any kind keeps what was set", arguments: Kind.allCases)
    func handedKind(kind: Kind) throws {
      try hand(kind, to: .user, .passed)
    }

    @Test("who has the capability may name keys on a descriptor of any kind", arguments: Kind.allCases)
    func handedToPrivileged(kind: Kind) throws {
      try withKeys { keys in
        let lane = try Lane(kind)
        let closed = keys.filter { $0.flags.isEmpty || $0.flags == .crossesNetworkNamespaces }.map(\.id)
        for somebody in kind == .udp4 ? [Somebody.admin, .raw, .elsewhere] : [.raw] {
          let mask = closed.map { "\($0.rawValue)" }.sorted { Int($0)! < Int($1)! }.joined(separator: ",")
          let reading = ["recv=\(mask)", "asked"]
          expect(
            try Guest.attempt(
              somebody, .inherited, lane.inbox, reading, elsewhere: try suiteCable().sender.namespace),
            ["ok", mask], reading, "\(somebody)")
          let message = lane.message(3)
          let writing = [
            "payload=\(Guest.hex(message))", "send=\(Guest.record(closed[0], .bytes4, 1))",
            "message=\(Guest.record(closed[1], .bytes4, 2))",
          ]
          expect(
            try Guest.attempt(
              somebody, .passed, lane.outbox, writing, elsewhere: try suiteCable().sender.namespace),
            ["ok", "ok", "ok"], writing, "\(somebody)")
          try lane.expect(
            3, try Traits([(closed[0], [1, 1, 1, 1]), (closed[1], [2, 2, 2, 2])]))
        }
      }
    }

    private func hand(_ kind: Kind, to somebody: Somebody, _ handing: Handing) throws {
      let elsewhere = try suiteCable().sender.namespace
      try withKeys { keys in
        func key(_ flags: KeyFlags) throws -> TraitID {
          try #require(keys.first { $0.flags == flags }).id
        }
        let (closed, crossing) = (try key([]), try key(.crossesNetworkNamespaces))
        let (readable, writable) = (try key(.openRead), try key(.openWrite))
        let lane = try Lane(kind, keys: [closed, crossing])
        let sticky = try Traits([(closed, [1, 1, 1, 1]), (crossing, [2, 2, 2, 2])])
        try lane.setSentTraits(sticky)

        // Reading: what was asked for comes, and nothing else can be asked for.
        for number in 0..<4 as Range<UInt32> {
          try lane.send(number, try Traits([(writable, [9, 9, 9, 9]), (readable, [8, 8, 8, 8])]))
        }
        let mask = [closed, crossing].map(\.rawValue).sorted().map { "\($0)" }.joined(separator: ",")
        let reading = [
          "receive", "recv=\(closed.rawValue),\(writable.rawValue)", "recv=\(writable.rawValue)",
          // Not even what is there already
          "recv=\(closed.rawValue)", "recv=\(closed.rawValue),\(readable.rawValue)", "asked", "peek",
          "receive",
          // What they gave up is gone.
          "recv=\(readable.rawValue)", "receive", "recv=\(closed.rawValue)", "asked", "recv=", "receive",
          "recv=\(crossing.rawValue)", "asked",
        ]
        let length = try lengthReceived(kind, lane)
        let values = "\(length) \(Guest.printed(sticky))"
        let readValue = "\(length) \(readable.rawValue):08080808"
        expect(
          try Guest.attempt(somebody, handing, lane.inbox, reading, elsewhere: elsewhere),
          [
            values, "EPERM", "EPERM", "EPERM", "EPERM", mask, values, values, "ok", readValue, "EPERM",
            "\(readable.rawValue)", "ok", "\(length) -", "EPERM", "-",
          ], reading, "reading")
        #expect(try lane.inbox.receivedTraits().isEmpty)

        // Writing: what was set goes along, and nothing else can be said.
        try lane.inbox.setReceivedTraits(TraitMask(keys.map(\.id)))
        let message = Guest.hex(lane.message(7))
        let writing = [
          "payload=\(message)", "message=", "message=\(Guest.record(closed, .bytes4, 1))",
          "message=\(Guest.record(closed, .bytes4, 5))",
          "message=\(Guest.record(writable, .bytes4, 5)),\(Guest.record(crossing, .bytes4, 2))",
          "message=\(Guest.record(readable, .bytes4, 5))", "send=\(Guest.record(closed, .bytes4, 5))",
          "send=\(Guest.record(closed, .bytes4, 1)),\(Guest.record(crossing, .bytes4, 2))", "sent",
          "message=\(Guest.record(writable, .bytes4, 5))", "send=\(Guest.record(writable, .bytes4, 6))",
          "send=", "message=", "errors",
        ]
        expect(
          try Guest.attempt(somebody, handing, lane.outbox, writing, elsewhere: elsewhere),
          [
            "ok", "ok", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM", "-", "ok", "EPERM", "EPERM",
            "ok", "EAGAIN",
          ], writing, "writing")
        #expect(try lane.outbox.sentTraits() == sticky)
        var both = sticky
        try both.setBytes([5, 5, 5, 5], for: writable)
        for traits in [sticky, both, sticky] { try lane.expect(7, traits) }
        lane.expectNothing()
      }
    }

    /// The length of what arrives, with the headers that come along.
    private func lengthReceived(_ kind: Kind, _ lane: Lane) throws -> Int {
      try lane.arrival(flags: .peek).payload.count
    }

    @Test(
      "by corking nobody finds out or changes what they cannot name", arguments: Kind.corking)
    func corked(kind: Kind) throws {
      try withKeys { keys in
        let closed = try #require(keys.first { $0.flags.isEmpty }).id
        let writable = try #require(keys.first { $0.flags == .openWrite }).id
        let lane = try Lane(kind, keys: [closed, writable])
        let sticky = try Traits([(closed, [1, 1, 1, 1])])
        try lane.setSentTraits(sticky)
        let actions = [
          "payload=0102", "more=", "more=\(Guest.record(closed, .bytes4, 1))",
          "message=\(Guest.record(closed, .bytes4, 2))", "message=\(Guest.record(writable, .bytes4, 2))",
          "send=", "payload=03", "message=",
        ]
        expect(
          try Guest.attempt(
            .user, .inherited, lane.outbox, actions, elsewhere: try suiteCable().sender.namespace),
          ["ok", "ok", "EPERM", "EPERM", "EINVAL", "EPERM", "ok", "ok"], actions, "")
        let arrival = try lane.arrival()
        #expect(arrival.payload.suffix(3) == [1, 2, 3])
        #expect(try arrival.traits == sticky)
        lane.expectNothing()
      }
    }

    @Test("what a user's socket sends does not tell what is set on the way", arguments: Kind.senders)
    func reflected(kind: Kind) throws {
      // A classifier sets a key that is closed on what the user's socket sends; a clone
      // of it comes back in the error queue, with its time stamp.
      try withKeys { keys in
        let closed = try #require(keys.first { $0.flags.isEmpty }).id
        let readable = try #require(keys.first { $0.flags == .openRead }).id
        let lane = try Lane(kind, keys: [closed, readable])
        try lane.stampSent(.software)
        let values: [(TraitID, [UInt8])] = [(closed, [1, 1, 1, 1]), (readable, [2, 2, 2, 2])]
        let program = try SkbProgram(
          .classifier, .ipProtocol(lane.ipProtocol), values.map { .set($0.0.rawValue, $0.1) })
        try program.attach(to: "lo", in: lane.namespace, .egress)
        let actions = [
          "recv=\(closed.rawValue)", "recv=\(readable.rawValue)", "payload=\(Guest.hex(lane.message(4)))",
          "message=", "errors",
        ]
        // Where memory is short the program may not have been able to. What it said last may be of
        // the answer to an echo request.
        var isSeen = false
        for _ in 0..<(Guest.storesMayFail ? 50 : 1) {
          let lines = try Guest.attempt(
            .user, .inherited, lane.outbox, actions, elsewhere: try suiteCable().sender.namespace)
          let arrival = try lane.arrival()
          let results = try program.results()
          if Guest.storesMayFail, try arrival.traits.isEmpty || lines.last?.hasSuffix(" -") == true {
            continue
          }
          if Guest.storesMayFail, results.steps.contains(where: { $0.status == -ENOMEM }) { continue }
          isSeen = true
          #expect(results.runs > 0 && results.steps.map(\.status) == [0, 0], "\(results)")
          #expect(lines.dropLast() == ["EPERM", "ok", "ok", "ok"])
          #expect(lines.last?.hasSuffix(" \(readable.rawValue):02020202") == true, "\(lines)")
          #expect(lane.isMessage(arrival.payload, 4))
          #expect(try arrival.traits == Traits(values))
          break
        }
        #expect(isSeen)
        try program.detach()
      }
    }

    // MARK: Keys that go

    /// Removes a key, and registers another one that gets its number.
    private func replace(_ id: TraitID, _ size: TraitSize = .bytes4) throws {
      var registry = try RegistryConnection()
      try registry.remove(id)
      let other = try registry.add(Guest.uniqueName(), size: size)
      try #require(other.id == id, "with all others in use it must be the one just freed")
    }

    /// All numbers in use, so that one that is freed is the next one's.
    private func withAllKeys(_ body: ([TraitID]) throws -> Void) throws {
      var registry = try RegistryConnection()
      try #require(try registry.keys().isEmpty, "keys are left over from somebody else")
      try Guest.withKeys([TraitSize](repeating: .bytes4, count: 64)) { ids in try body(ids.sorted()) }
    }

    @Test(
      "a removed key is not asked for any more, and the next one with its number neither",
      arguments: Kind.receivers)
    func removedFromMask(kind: Kind) throws {
      try withAllKeys { ids in
        let lane = try Lane(kind, keys: [ids[3], ids[4]])
        try replace(ids[3])
        #expect(try lane.inbox.receivedTraits() == TraitMask(ids[4]))
        let both = try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])])
        try lane.send(1, both)
        try lane.expect(1, try Traits([(ids[4], [4, 4, 4, 4])]))
        try lane.inbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        try lane.send(2, both)
        try lane.expect(2, both)
      }
    }

    @Test("a removed key's value is not sent any more, nor for the next one", arguments: Kind.senders)
    func removedFromSent(kind: Kind) throws {
      try withAllKeys { ids in
        let lane = try Lane(kind, keys: [ids[3], ids[4]])
        try lane.setSentTraits(try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])]))
        let kept = try Traits([(ids[4], [4, 4, 4, 4])])
        try replace(ids[3])
        try lane.inbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        #expect(try lane.outbox.sentTraits() == kept)
        try lane.send(1)
        try lane.expect(1, kept)
        // Of what is set anew nothing is missing.
        let both = try Traits([(ids[3], [5, 5, 5, 5]), (ids[4], [4, 4, 4, 4])])
        try lane.send(2, try Traits([(ids[3], [5, 5, 5, 5])]))
        try lane.expect(2, both)
        try lane.setSentTraits(both)
        try lane.send(3)
        try lane.expect(3, both)
      }
    }

    @Test("a removed key's value ends in queues, also for the next one", arguments: Kind.receivers)
    func removedFromQueue(kind: Kind) throws {
      try withAllKeys { ids in
        let lane = try Lane(kind, keys: [ids[3], ids[4]])
        try lane.send(1, try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])]))
        try replace(ids[3])
        try lane.inbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        try lane.expect(1, try Traits([(ids[4], [4, 4, 4, 4])]))
      }
    }

    @Test(
      "a removed key's value ends in a datagram under way, also for the next one", arguments: Kind.corking)
    func removedFromCork(kind: Kind) throws {
      try withAllKeys { ids in
        let lane = try Lane(kind, keys: [ids[3], ids[4]])
        let begun = try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])])
        try lane.send(piece: 1, begun)
        try replace(ids[3])
        try lane.inbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        // It has no value of the next one, so that none can be repeated.
        #expect(throws: Errno.invalidArgument) {
          try lane.send(piece: 9, begun, isLast: true)
        }
        try lane.send(piece: 2, isLast: true)
        let arrival = try lane.arrival()
        #expect(arrival.payload.suffix(2) == [1, 2])
        #expect(try arrival.traits == Traits([(ids[4], [4, 4, 4, 4])]))
      }
    }

    @Test("a removed key's value ends in error queues, also for the next one", arguments: Kind.senders)
    func removedFromErrors(kind: Kind) throws {
      try withAllKeys { ids in
        let lane = try Lane(kind, keys: [])
        try lane.stampSent(.software)
        try lane.outbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        try lane.send(1, try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])]))
        try replace(ids[3])
        try lane.outbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        let error = try Guest.arrival(lane.outbox, flags: .errorQueue)
        #expect(lane.isMessage(error.payload, 1))
        #expect(try error.traits == Traits([(ids[4], [4, 4, 4, 4])]))
      }
    }

    @Test("a removed key ends on a descriptor that was handed over", arguments: Handing.allCases)
    func removedFromHanded(handing: Handing) throws {
      try withAllKeys { ids in
        let lane = try Lane(.udp4, keys: [ids[3], ids[4]])
        try lane.setSentTraits(try Traits([(ids[3], [3, 3, 3, 3]), (ids[4], [4, 4, 4, 4])]))
        try lane.send(1)
        try replace(ids[3])
        let elsewhere = try suiteCable().sender.namespace
        #expect(
          try Guest.attempt(.user, handing, lane.inbox, ["asked", "receive"], elsewhere: elsewhere)
            == ["\(ids[4].rawValue)", "36 \(ids[4].rawValue):04040404"])
        #expect(
          try Guest.attempt(.user, handing, lane.outbox, ["sent", "message="], elsewhere: elsewhere)
            == ["-", "ok"])
        #expect(try lane.outbox.sentTraits() == Traits([(ids[4], [4, 4, 4, 4])]))
        try lane.inbox.setReceivedTraits(TraitMask([ids[3], ids[4]]))
        #expect(try lane.arrival().traits == Traits([(ids[4], [4, 4, 4, 4])]))
      }
    }
  }
}
