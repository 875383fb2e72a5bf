// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import PacketTraits
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
      "gives back what was registered", arguments: TraitSize.allCases, (0..<8).map { UInt32($0) })
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
      return [
        ("an empty name", new, [name(""), size(4)], "name"),
        ("a capital", new, [name("Wrong"), size(4)], "name"),
        ("a space", new, [name("wro ng"), size(4)], "name"),
        ("a slash", new, [name("wro/ng"), size(4)], "name"),
        ("a byte above 127", new, [name("wrong\u{e9}"), size(4)], "name"),
        ("32 characters", new, [name(String(repeating: "w", count: 32)), size(4)], "name"),
        (
          "a name without its NUL", new,
          [.init(Int(TRAITS_A_KEY_NAME), bytes: Array(repeating: 119, count: 40)), size(4)], "name"
        ),
        ("size 0", new, [name("wrong"), size(0)], "size"),
        ("size 2", new, [name("wrong"), size(2)], "size"),
        ("size 5", new, [name("wrong"), size(5)], "size"),
        ("size 12", new, [name("wrong"), size(12)], "size"),
        ("size 32", new, [name("wrong"), size(32)], "size"),
        ("size 2^32 - 4", new, [name("wrong"), size(.max - 3)], "size"),
        ("number 64", new, [name("wrong"), size(4), id(64)], "id"),
        ("number 2^32 - 1", new, [name("wrong"), size(4), id(.max)], "id"),
        ("flags 8", new, [name("wrong"), size(4), flags(8)], "flags"),
        ("flags 2^31", new, [name("wrong"), size(4), flags(1 << 31)], "flags"),
        ("no name", new, [size(4)], nil),
        ("no size", new, [name("wrong")], nil),
        ("nothing", new, [], nil),
        (
          "a size of 2 bytes", new,
          [name("wrong"), .init(Int(TRAITS_A_KEY_SIZE), bytes: [4, 0])], "size"
        ),
        ("an unknown attribute", new, [name("wrong"), size(4), .init(99, UInt32(1))], "attribute 99"),
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
        for change in [["add", "wrong", "--size", "4"], ["del", name]] {
          let refused = try Command(inside + change).wait()
          #expect(refused.status == 1)
          #expect(refused.errors.contains("CAP_NET_ADMIN in the initial user namespace"), "\(refused.errors)")
        }
        #expect(try registry.key(ids[0]).name == name)
      }
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
