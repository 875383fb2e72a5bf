// SPDX-License-Identifier: MIT

import CNetworkLab
import CTraits
import Foundation
import Glibc
import NetworkLab
import PacketTraits
import Synchronization
import SystemPackage
import Testing

@testable import TraitRegistry

extension Guest {
  @Suite("Registry")
  struct RegistryTests {
    @Test("is there, as sockets have traits")
    func support() throws {
      #expect(try Traits.isSupportedByKernel())
      var registry = try RegistryConnection()
      _ = try registry.keys()
    }

    @Test(
      "gives back what was registered", arguments: TraitSize.allCases, (0..<16).map { UInt32($0) })
    func roundTrip(size: TraitSize, bits: UInt32) throws {
      var registry = try RegistryConnection()
      let name = Guest.uniqueName()
      let flags = KeyFlags(rawValue: bits)
      let key = try registry.add(name, size: size, flags: flags)
      #expect(key.name == name)
      #expect(key.size == size)
      #expect(key.flags == flags)
      #expect(try registry.key(key.id) == key)
      #expect(try registry.key(named: name) == key)
      #expect(try registry.keys().filter { $0.id == key.id } == [key])

      #expect(try registry.remove(key.id) == key)
      expect(.noSuchKey, naming: "there is no such key") { try registry.key(key.id) }
      expect(.noSuchKey, naming: "there is no such key") { try registry.key(named: name) }
      #expect(try !registry.keys().contains { $0.id == key.id || $0.name == name })
    }

    @Test("takes the longest and oddest names")
    func names() throws {
      var registry = try RegistryConnection()
      for name in ["a", "0", "-._", "abcdefghijklmnopqrstuvwxyz01234"] {
        let key = try registry.add(name, size: .bytes4)
        #expect(key.name == name)
        #expect(try registry.remove(named: name) == key)
      }
    }

    @Test("lists keys in order of their numbers")
    func order() throws {
      try Guest.withKeys([.bytes4, .bytes8, .bytes16, .bytes4, .bytes8]) { ids in
        var registry = try RegistryConnection()
        let listed = try registry.keys().map(\.id)
        #expect(listed == listed.sorted())
        #expect(Set(listed).isSuperset(of: ids))
        #expect(Set(listed).count == listed.count)
      }
    }

    @Test("refuses a name or number that is taken")
    func taken() throws {
      try Guest.withKeys([.bytes4]) { ids in
        var registry = try RegistryConnection()
        let key = try registry.key(ids[0])
        expect(.keyExists, naming: "\"\(key.name)\" is key \(key.id)") {
          try registry.add(key.name, size: .bytes8)
        }
        expect(.keyExists, naming: "key \(key.id) is taken by \"\(key.name)\"") {
          try registry.add(Guest.uniqueName(), size: .bytes4, id: key.id)
        }
        #expect(try registry.key(ids[0]) == key)
      }
    }

    @Test("gives a number back to its former name only")
    func formerName() throws {
      var registry = try RegistryConnection()
      let name = Guest.uniqueName()
      let key = try registry.add(name, size: .bytes4)
      try registry.remove(key.id)
      expect(.invalidArgument, naming: "key \(key.id) was \"\(name)\" before") {
        try registry.add(Guest.uniqueName(), size: .bytes4, id: key.id)
      }
      // The size may be another one: the name says who it belongs to.
      let again = try registry.add(name, size: .bytes8, id: key.id)
      #expect(again.id == key.id)
      #expect(again.size == .bytes8)
      try registry.remove(again.id)
    }

    @Test("has 64 keys, and gives out the number that has been free for longest")
    func full() throws {
      var registry = try RegistryConnection()
      try #require(try registry.keys().isEmpty, "keys are left over from somebody else")
      try Guest.withKeys([TraitSize](repeating: .bytes4, count: 64)) { ids in
        #expect(Set(ids) == Set(TraitID.allCases))
        #expect(try registry.keys().map(\.id) == TraitID.allCases)
        expect(.registryFull, naming: "all 64 keys are in use") {
          try registry.add(Guest.uniqueName(), size: .bytes4)
        }

        let freed = [ids[40], ids[3], ids[17]]
        for id in freed { try registry.remove(id) }
        var given: [TraitID] = []
        for _ in freed { given.append(try registry.add(Guest.uniqueName(), size: .bytes16).id) }
        #expect(given == freed)
      }
      #expect(try registry.keys().isEmpty)
    }

    /// Requests that the library does not make, to see that the kernel checks.
    static let wrongRequests: [(String, Int, [GenericRequest.Attribute], String?)] = {
      let new = Int(TRAITS_CMD_KEY_NEW)
      let del = Int(TRAITS_CMD_KEY_DEL)
      let get = Int(TRAITS_CMD_KEY_GET)
      func id(_ value: UInt32) -> GenericRequest.Attribute { .init(Int(TRAITS_A_KEY_ID), value) }
      func name(_ value: String) -> GenericRequest.Attribute { .init(Int(TRAITS_A_KEY_NAME), value) }
      func size(_ value: UInt32) -> GenericRequest.Attribute { .init(Int(TRAITS_A_KEY_SIZE), value) }
      func flags(_ value: UInt32) -> GenericRequest.Attribute { .init(Int(TRAITS_A_KEY_FLAGS), value) }
      func merge(_ value: UInt32) -> GenericRequest.Attribute { .init(Int(TRAITS_A_KEY_MERGE), value) }
      return [
        ("an empty name", new, [name(""), size(4), merge(0)], "name"),
        ("a capital", new, [name("Wrong"), size(4), merge(0)], "name"),
        ("a space", new, [name("wro ng"), size(4), merge(0)], "name"),
        ("a slash", new, [name("wro/ng"), size(4), merge(0)], "name"),
        ("a byte above 127", new, [name("wrong\u{e9}"), size(4), merge(0)], "name"),
        ("32 characters", new, [name(String(repeating: "w", count: 32)), size(4), merge(0)], "name"),
        (
          "a name without its NUL", new,
          [.init(Int(TRAITS_A_KEY_NAME), bytes: Array(repeating: 119, count: 40)), size(4), merge(0)], "name"
        ),
        ("size 0", new, [name("wrong"), size(0), merge(0)], "size"),
        ("size 2", new, [name("wrong"), size(2), merge(0)], "size"),
        ("size 5", new, [name("wrong"), size(5), merge(0)], "size"),
        ("size 12", new, [name("wrong"), size(12), merge(0)], "size"),
        ("size 32", new, [name("wrong"), size(32), merge(0)], "size"),
        ("size 2^32 - 4", new, [name("wrong"), size(.max - 3), merge(0)], "size"),
        ("number 64", new, [name("wrong"), size(4), merge(0), id(64)], "id"),
        ("number 2^32 - 1", new, [name("wrong"), size(4), merge(0), id(.max)], "id"),
        ("flags 16", new, [name("wrong"), size(4), merge(0), flags(16)], "flags"),
        ("flags 2^31", new, [name("wrong"), size(4), merge(0), flags(1 << 31)], "flags"),
        ("no name", new, [size(4), merge(0)], nil),
        ("no size", new, [name("wrong"), merge(0)], nil),
        ("no policy", new, [name("wrong"), size(4)], nil),
        ("policy 8", new, [name("wrong"), size(4), merge(8)], "merge"),
        ("policy 2^32 - 1", new, [name("wrong"), size(4), merge(.max)], "merge"),
        ("min of 16 bytes", new, [name("wrong"), size(16), merge(4)], "merge"),
        ("max of 16 bytes", new, [name("wrong"), size(16), merge(5)], "merge"),
        ("or of 16 bytes", new, [name("wrong"), size(16), merge(6)], "merge"),
        ("and of 16 bytes", new, [name("wrong"), size(16), merge(7)], "merge"),
        (
          "a policy of 8 bytes", new,
          [name("wrong"), size(4), .init(Int(TRAITS_A_KEY_MERGE), bytes: [0, 0, 0, 0, 0, 0, 0, 0])], "merge"
        ),
        ("nothing", new, [], nil),
        (
          "a size of 2 bytes", new,
          [name("wrong"), .init(Int(TRAITS_A_KEY_SIZE), bytes: [4, 0]), merge(0)], "size"
        ),
        (
          "an unknown attribute", new, [name("wrong"), size(4), merge(0), .init(99, UInt32(1))],
          "attribute 99"
        ),
        ("removal of nothing", del, [], nil),
        ("removal of number 64", del, [id(64)], "id"),
        ("a look at nothing", get, [], nil),
        ("a look at number 64", get, [id(64)], "id"),
      ]
    }()

    @Test("refuses what is wrong, and says which attribute", arguments: wrongRequests.indices)
    func refused(index: Int) throws {
      let (what, command, attributes, attribute) = Self.wrongRequests[index]
      var registry = try RegistryConnection()
      let before = try registry.keys()
      let error = #expect(throws: TraitError.self, "\(what)") {
        try registry.key(command, attributes, "it failed")
      }
      #expect(error?.code == .invalidArgument, "\(what): \(String(describing: error))")
      if let attribute {
        #expect(
          error?.message.hasPrefix("it failed, because of its \(attribute): ") == true,
          "\(what): \(String(describing: error))")
      }
      #expect(try registry.keys() == before)
    }

    @Test("finds no key whose number and name do not belong together")
    func numberAndName() throws {
      try Guest.withKeys([.bytes4, .bytes4]) { ids in
        var registry = try RegistryConnection()
        let other = try registry.key(ids[1])
        for command in [TRAITS_CMD_KEY_GET, TRAITS_CMD_KEY_DEL] {
          expect(.noSuchKey, naming: "there is no such key") {
            try registry.key(
              Int(command),
              [
                .init(Int(TRAITS_A_KEY_ID), ids[0].rawValue),
                .init(Int(TRAITS_A_KEY_NAME), other.name),
              ], "it failed")
          }
        }
        let both = try registry.key(
          Int(TRAITS_CMD_KEY_GET),
          [
            .init(Int(TRAITS_A_KEY_ID), other.id.rawValue),
            .init(Int(TRAITS_A_KEY_NAME), other.name),
          ], "it failed")
        #expect(both == other)
      }
    }

    @Test("is open to all for looking, and to nobody without privilege for changing")
    func privilege() throws {
      try Guest.withKeys([.bytes4]) { ids in
        var own = try RegistryConnection()
        let keys = try own.keys()
        try asUser {
          var registry = try RegistryConnection()
          #expect(try registry.keys() == keys)
          #expect(try registry.key(ids[0]) == keys.first { $0.id == ids[0] })
          _ = try registry.statistics()
          expect(.notPermitted, naming: "CAP_NET_ADMIN") {
            try registry.add(Guest.uniqueName(), size: .bytes4)
          }
          expect(.notPermitted, naming: "CAP_NET_ADMIN") { try registry.remove(ids[0]) }
        }
        #expect(try own.keys() == keys)
      }
    }

    @Test("is one for all network namespaces")
    func networkNamespaces() throws {
      let namespace = try NetworkNamespace("registry")
      defer { namespace.remove() }
      try Guest.withKeys([.bytes4]) { _ in
        var own = try RegistryConnection()
        let keys = try own.keys()
        let added = try namespace.run {
          var registry = try RegistryConnection()
          #expect(try registry.keys() == keys)
          return try registry.add(Guest.uniqueName(), size: .bytes8)
        }
        #expect(try own.key(added.id) == added)
        try namespace.run {
          var registry = try RegistryConnection()
          try registry.remove(added.id)
        }
        #expect(try own.keys() == keys)
      }
    }

    @Test("cannot be changed by root of another user namespace, but looked at")
    func userNamespace() throws {
      let traitctl = try Command.built("traitctl")
      try Guest.withKeys([.bytes4]) { ids in
        var registry = try RegistryConnection()
        let name = try registry.key(ids[0]).name
        let inside = ["unshare", "--user", "--map-root-user", "--net", traitctl, "keys"]
        let listed = try Command(inside + ["list"]).wait()
        #expect(listed.status == 0, "\(listed.errors)")
        #expect(listed.output.contains(name))
        for change in [["add", "wrong", "--size", "4", "--merge", "exact"], ["del", name]] {
          let refused = try Command(inside + change).wait()
          #expect(refused.status == 1)
          #expect(refused.errors.contains("CAP_NET_ADMIN in the initial user namespace"), "\(refused.errors)")
        }
        #expect(try registry.key(ids[0]).name == name)
      }
    }

    @Test("keeps which policy a key has", arguments: MergePolicy.allCases)
    func policy(merge: MergePolicy) throws {
      var registry = try RegistryConnection()
      let key = try registry.add(Guest.uniqueName(), size: .bytes8, merge: merge)
      #expect(key.merge == merge)
      #expect(try registry.key(key.id) == key)
      #expect(try registry.remove(key.id) == key)
    }

    @Test("speaks with the kernel's own client, by the specification as it is")
    func specification() throws {
      struct Key: Decodable, Equatable {
        var id: UInt32
        var name: String
        var size: Int
        var flags: Set<String>
        var merge: String
      }
      struct Counters: Decodable {
        var id: UInt32
        var set: UInt64
      }
      let tree = try #require(getenv("PACKET_TRAITS_TREE").map { String(cString: $0) })
      func run(_ arguments: [String]) throws -> Command.Outcome {
        try Command(
          [
            "python3", "\(tree)/tools/net/ynl/cli.py", "--output-json", "--spec",
            "\(tree)/Documentation/netlink/specs/traits.yaml",
          ] + arguments
        ).wait(limit: .seconds(60))
      }
      func reply<Value: Decodable>(_ type: Value.Type, _ arguments: String...) throws -> Value {
        let outcome = try run(arguments)
        guard outcome.status == 0 else { throw LabError("\(arguments): \(outcome.errors)") }
        return try JSONDecoder().decode(Value.self, from: Data(outcome.output.utf8))
      }

      let name = Guest.uniqueName()
      let request =
        #"{"name": "\#(name)", "size": 8, "merge": "last", "flags": ["open-read", "cross-netns"]}"#
      let key = try reply(Key.self, "--do", "key-new", "--json", request)
      #expect(
        key
          == Key(id: key.id, name: name, size: 8, flags: ["open-read", "cross-netns"], merge: "last"))
      var registry = try RegistryConnection()
      let registered = try registry.key(named: name)
      #expect(registered.id.rawValue == key.id)
      #expect(registered.merge == .last)
      #expect(registered.flags == [.openRead, .crossesNetworkNamespaces])

      #expect(try reply([Key].self, "--dump", "key-get").contains(key))
      #expect(try reply(Key.self, "--do", "key-get", "--json", #"{"name": "\#(name)"}"#) == key)
      #expect(
        try reply([Counters].self, "--dump", "key-stats-get").contains { $0.id == key.id && $0.set == 0 })
      #expect(try reply([String: UInt64].self, "--do", "stats-get").keys.contains("evicted"))
      let refused = try run([
        "--do", "key-new", "--json", #"{"name": "\#(name)", "size": 8, "merge": "last"}"#,
      ])
      #expect(refused.status != 0)
      #expect((refused.output + refused.errors).contains("is key \(key.id)"), "\(refused.errors)")
      #expect(try reply(Key.self, "--do", "key-del", "--json", #"{"id": \#(key.id)}"#) == key)
    }

    // MARK: Keys that end with who made them

    @Test("removes what a connection owns when it is closed, and nothing else")
    func owned() throws {
      var registry = try RegistryConnection()
      let before = try registry.keys()
      let kept: RegisteredKey
      let others: [RegisteredKey]
      do {
        var owner = try RegistryConnection()
        var second = try RegistryConnection()
        others = try (0..<3).map { _ in
          try owner.add(Guest.uniqueName(), size: .bytes8, flags: .owned)
        }
        kept = try owner.add(Guest.uniqueName(), size: .bytes8)
        let fourth = try second.add(Guest.uniqueName(), size: .bytes8, flags: .owned)
        #expect(try registry.keys().count == before.count + 5)
        // Others may remove it, too.
        try registry.remove(others[1].id)
        #expect(try owner.keys().count == before.count + 4)
        try second.remove(fourth.id)
      }
      #expect(try registry.keys() == (before + [kept]).sorted { $0.id < $1.id })
      // Under a number that was owned a key is a new one.
      let again = try registry.add(others[0].name, size: .bytes4, id: others[0].id)
      #expect(again.flags.isEmpty)
      try registry.remove(again.id)
      try registry.remove(kept.id)
    }

    @Test("removes what a program owned that is killed")
    func killed() throws {
      var registry = try RegistryConnection()
      let name = Guest.uniqueName()
      let before = try registry.keys()
      let child: pid_t
      do {
        var owner = try RegistryConnection()
        try owner.add(name, size: .bytes4, flags: .owned)
        child = lab_fork_idle()
        try #require(child > 0)
      }
      // Closed here, the connection is still open there: it is the socket that counts.
      #expect(try registry.keys().contains { $0.name == name })
      kill(child, SIGKILL)
      #expect(waitpid(child, nil, 0) == child)
      #expect(try registry.keys() == before)
    }

    // MARK: Changes

    /// The next change, which is to come within ten seconds.
    private func next(
      _ iterator: inout RegistryChanges.AsyncIterator, sourceLocation: SourceLocation = #_sourceLocation
    ) async throws -> RegistryChange {
      try #require(try await iterator.next(), sourceLocation: sourceLocation)
    }

    @Test("tells of keys that come and go, in order, in every network namespace", .timeLimit(.minutes(1)))
    func changes() async throws {
      let namespace = try NetworkNamespace("changes")
      defer { namespace.remove() }
      var registry = try RegistryConnection()
      let before = try registry.keys()
      for changes in [try RegistryChanges(), try namespace.run { try RegistryChanges() }] {
        var iterator = changes.makeAsyncIterator()
        #expect(try await next(&iterator) == .keys(before))
        let first = try registry.add(Guest.uniqueName(), size: .bytes4, merge: .last, flags: .openRead)
        let second = try registry.add(Guest.uniqueName(), size: .bytes16, merge: .drop)
        try registry.remove(first.id)
        #expect(try await next(&iterator) == .added(first))
        #expect(try await next(&iterator) == .added(second))
        #expect(try await next(&iterator) == .removed(first))
        // What nobody waits for is kept; who waits is told.
        let removed = Task {
          var iterator = changes.makeAsyncIterator()
          return try await iterator.next()
        }
        try await Task.sleep(for: .milliseconds(50))
        try registry.remove(second.id)
        #expect(try await removed.value == .removed(second))
      }
    }

    @Test("tells of owned keys, and without privilege", .timeLimit(.minutes(1)))
    func changesOfOthers() async throws {
      let changes = try asUser { try RegistryChanges() }
      var iterator = changes.makeAsyncIterator()
      guard case .keys(let before) = try await next(&iterator) else {
        Issue.record("the first is no list")
        return
      }
      let key = try {
        var owner = try RegistryConnection()
        return try owner.add(Guest.uniqueName(), size: .bytes4, flags: .owned)
      }()
      #expect(!before.contains(key))
      #expect(try await next(&iterator) == .added(key))
      #expect(try await next(&iterator) == .removed(key))
    }

    @Test("lists all keys again where there was no room for changes", .timeLimit(.minutes(1)))
    func missedChanges() async throws {
      let changes = try RegistryChanges(receiveBufferSize: 1)
      var iterator = changes.makeAsyncIterator()
      var registry = try RegistryConnection()
      #expect(try await next(&iterator) == .keys(try registry.keys()))
      // More than there is room for, and an end that only a list tells of.
      for _ in 0..<200 {
        let key = try registry.add(Guest.uniqueName(), size: .bytes4)
        try registry.remove(key.id)
      }
      let last = try registry.add(Guest.uniqueName(), size: .bytes4)
      var lists = 0
      var table: [TraitID: RegisteredKey] = [:]
      while table[last.id] != last {
        switch try await next(&iterator) {
        case .keys(let all):
          lists += 1
          table = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0) })
        case .added(let key): table[key.id] = key
        case .removed(let key): table[key.id] = nil
        }
      }
      #expect(lists >= 1)
      #expect(try table.values.sorted { $0.id < $1.id } == registry.keys())
      try registry.remove(last.id)
    }

    @Test("tells nobody any more whose task is cancelled", .timeLimit(.minutes(1)))
    func cancelledChanges() async throws {
      let changes = try RegistryChanges()
      let task = Task {
        var count = 0
        for try await _ in changes { count += 1 }
        return count
      }
      try await Task.sleep(for: .milliseconds(100))
      task.cancel()
      #expect(try await task.value == 1)
    }

    // MARK: Races

    /// Which registration of the key is the latest one, of those that are complete.
    private static let epoch = Atomic<UInt64>(0)

    /// How many packets arrived with a value of it.
    private static let arrived = Atomic<UInt64>(0)

    @Test(
      "no value is read under another key than it was written under, however fast keys change",
      arguments: [Route.ipv4, .ipv6])
    func churn(route: Route) throws {
      // Of both families together at least 60,000 changes and 200,000 packets with traits.
      let (changes, packets): (UInt64, UInt64) = GuestCondition.isLong ? (30_000, 100_000) : (300, 1_000)
      let sending = try NetworkNamespace("sender")
      defer { sending.remove() }
      let receiving = try NetworkNamespace("receiver")
      defer { receiving.remove() }
      let cable = try VethPair(from: sending, to: receiving)
      try Guest.withKeys([.bytes8, .bytes16], flags: .crossesNetworkNamespaces) { ids in
        let (id, steady) = (ids[0], ids[1])
        let name = try {
          var registry = try RegistryConnection()
          return try registry.key(id).name
        }()
        let inbox = try cable.inbox(route, ids)
        let outbox = try cable.outbox(route)
        let destination = try cable.destination(route)
        let (near, far) = (outbox.unsafeFileDescriptor, inbox.unsafeFileDescriptor)
        let constant = [UInt8](repeating: 0x5a, count: 16)
        Self.epoch.store(0, ordering: .releasing)
        Self.arrived.store(0, ordering: .releasing)
        var batch = SendBatch()
        for _ in 0..<16 { batch.append(TagProgram.payload(1).span.bytes, to: destination) }
        var arrivals = ReceiveBatch(capacity: 16, payloadCapacity: 100)
        var (with, without) = (UInt64(0), UInt64(0))
        try repeating {
          // A new key with the former one's number and name; packets that are under way have
          // values of the former one.
          var registry = try RegistryConnection()
          // Not so fast that hardly any packet has a value.
          let enough = 4 * Self.epoch.load(ordering: .relaxed)
          for _ in 0..<1000 where Self.arrived.load(ordering: .relaxed) < enough { usleep(100) }
          try Guest.insisting { try registry.remove(id) }
          let key = try Guest.insisting {
            try registry.add(name, size: .bytes8, merge: .last, id: id, flags: .crossesNetworkNamespaces)
          }
          guard key.id == id else { throw LabError("key \(key.id) in place of \(id)") }
          let epoch = Self.epoch.load(ordering: .relaxed) + 1
          Self.epoch.store(epoch, ordering: .releasing)
          try far.setReceivedTraits(TraitMask(ids))
          let traits = try Traits([(id, withUnsafeBytes(of: epoch) { Array($0) }), (steady, constant)])
          try Guest.insisting { try near.setSentTraits(traits) }
        } during: { rounds in
          // Each is a removal and a registration.
          while try 2 * UInt64(rounds.count()) < changes || with < packets {
            let before = Self.epoch.load(ordering: .acquiring)
            let results = try outbox.send(batch)
            var left = results.count { (try? $0.get()) != nil }
            while left > 0 {
              let count = try inbox.receive(into: &arrivals)
              left -= count
              for index in 0..<count {
                let traits = try arrivals.datagram(at: index).traits
                if let value = traits.bytes(of: id) {
                  let epoch = value.withUnsafeBytes { $0.loadUnaligned(as: UInt64.self) }
                  // That of a key that was registered then, or of one that came later.
                  try #require(
                    epoch >= before && epoch <= Self.epoch.load(ordering: .acquiring),
                    "epoch \(epoch), but it was \(before) before")
                  with += 1
                  Self.arrived.store(with, ordering: .relaxed)
                } else {
                  without += 1
                }
                let other = traits.bytes(of: steady)
                try #require(other == constant || other == nil)
              }
            }
          }
          print(
            "churn: \(2 * (try rounds.count())) changes of keys, \(with) packets with a value, \(without) without"
          )
        }
      }
    }

    // MARK: Counters of a key

    @Test("counts what happens to the values of each key", arguments: [Route.ipv4, .ipv6])
    func keyStatistics(route: Route) throws {
      let sending = try NetworkNamespace("sender")
      defer { sending.remove() }
      let receiving = try NetworkNamespace("receiver")
      defer { receiving.remove() }
      let cable = try VethPair(from: sending, to: receiving)
      try Guest.withKeys([.bytes4, .bytes8], flags: .crossesNetworkNamespaces) { crossing in
        try Guest.withKeys([.bytes16]) { local in
          let inbox = try cable.inbox(route, [crossing[0]] + local)
          let outbox = try cable.outbox(route)
          let sticky = try Traits([
            (crossing[0], [1, 2, 3, 4]), (crossing[1], [UInt8](repeating: 8, count: 8)),
            (local[0], [UInt8](repeating: 16, count: 16)),
          ])
          try Guest.insisting { try outbox.setSentTraits(sticky) }
          for sequence in 0..<5 as Range<UInt32> {
            try Guest.insisting {
              try outbox.send(TagProgram.payload(sequence), to: try cable.destination(route))
            }
            _ = try inbox.arrival()
          }
          var registry = try RegistryConnection()
          let found = try (crossing + local).map { try registry.statistics(of: $0) }
          #expect(found.map(\.id) == crossing + local)
          #expect(try found.map(\.name) == (crossing + local).map { try registry.key($0).name })
          #expect(found.map(\.set) == [5, 5, 5])
          #expect(found.map(\.dropped) == [0, 0, 0])
          if !Guest.storesMayFail {
            #expect(found.map(\.read) == [5, 0, 0])
            #expect(found.map(\.scrubbed) == [0, 0, 5])
          }
          let listed = try registry.keyStatistics().filter { (crossing + local).contains($0.id) }
          #expect(listed == found.sorted { $0.id < $1.id })
        }
      }
      var registry = try RegistryConnection()
      let key = try registry.add(Guest.uniqueName(), size: .bytes4)
      let fresh = try registry.statistics(of: key.id)
      #expect([fresh.set, fresh.read, fresh.dropped, fresh.scrubbed] == [0, 0, 0, 0])
      try registry.remove(key.id)
      expect(.noSuchKey, naming: "there is no such key") { try registry.statistics(of: key.id) }
    }

    @Test("lists keys consistently while they change")
    func dumpWhileChanging() throws {
      try Guest.withKeys([TraitSize](repeating: .bytes4, count: 40)) { ids in
        let name = Guest.uniqueName()
        var registry = try RegistryConnection()
        var counts: [Int: Int] = [:]
        try repeating {
          var other = try RegistryConnection()
          try other.add(name, size: .bytes4)
          usleep(2000)
          try other.remove(named: name)
          usleep(2000)
        } during: { changes in
          let end = ContinuousClock.now + .seconds(60)
          var rounds = 0
          // Both states are to be seen, and often.
          while rounds < 50 || counts[40, default: 0] < 20 || counts[41, default: 0] < 20 {
            rounds = try changes.count()
            let listed = try registry.keys()
            #expect(Set(listed.map(\.id)).isSuperset(of: ids))
            #expect(listed.count == 40 || listed.count == 41)
            #expect(listed.map(\.id) == listed.map(\.id).sorted())
            counts[listed.count, default: 0] += 1
            try #require(
              ContinuousClock.now < end,
              "after 60 seconds there were \(rounds) changes, and lists by length: \(counts)")
          }
        }
      }
    }
  }
}

/// Expects an error of this code, whose message has these words in it.
func expect<Value>(
  _ code: TraitError.Code, naming words: String, sourceLocation: SourceLocation = #_sourceLocation,
  _ body: () throws -> Value
) {
  do {
    _ = try body()
    Issue.record("there was no error", sourceLocation: sourceLocation)
  } catch let error as TraitError {
    #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
    #expect(error.message.contains(words), "\(error)", sourceLocation: sourceLocation)
  } catch {
    Issue.record(error, sourceLocation: sourceLocation)
  }
}
