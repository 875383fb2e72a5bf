// SPDX-License-Identifier: MIT

import Foundation
import NetworkLab
import PacketTraits
import Testing
import TraitRegistry

extension Guest {
  @Suite("traitctl and the demo")
  struct ToolTests {
    private func traitctl(_ arguments: String...) throws -> Command.Outcome {
      try Command([try Command.built("traitctl")] + arguments).wait()
    }

    private struct Key: Decodable, Equatable {
      var id: UInt32
      var name: String
      var size: Int
      var open_read: Bool
      var open_write: Bool
      var cross_netns: Bool
      var owned: Bool
      var merge: String
    }

    @Test("keys are added, listed and deleted")
    func keys() throws {
      let name = Guest.uniqueName()
      let added = try traitctl(
        "keys", "add", name, "--size", "16", "--merge", "last", "--open-read", "--cross-netns")
      #expect(added.status == 0, "\(added.errors)")
      let id = try #require(UInt32(added.output.dropLast()))
      defer {
        if var registry = try? RegistryConnection() { _ = try? registry.remove(named: name) }
      }

      let listed = try traitctl("keys", "list")
      #expect(listed.status == 0)
      let line = try #require(listed.output.split(separator: "\n").first { $0.contains(name) })
      #expect(
        line.split(separator: " ") == ["\(id)", name[...], "16", "last", "open-read,cross-netns"])

      let json = try traitctl("keys", "list", "--json")
      let keys = try json.output.split(separator: "\n").map {
        try JSONDecoder().decode(Key.self, from: Data($0.utf8))
      }
      #expect(
        keys.filter { $0.name == name } == [
          Key(id: id, name: name, size: 16, open_read: true, open_write: false, cross_netns: true,
            owned: false, merge: "last")
        ])

      let deleted = try traitctl("keys", "del", "\(id)")
      #expect(deleted.status == 0, "\(deleted.errors)")
      #expect(deleted.output.isEmpty)
      var registry = try RegistryConnection()
      #expect(try !registry.keys().contains { $0.name == name })

      // Its number again, under its name; and deleted by its name.
      let again = try traitctl("keys", "add", name, "--size", "4", "--merge", "exact", "--id", "\(id)")
      #expect(again.output == "\(id)\n", "\(again.errors)")
      #expect(try traitctl("keys", "del", name).status == 0)
    }

    @Test("a name of digits alone is deleted with --name")
    func digits() throws {
      var registry = try RegistryConnection()
      try registry.add("4711", size: .bytes4)
      let number = try traitctl("keys", "del", "4711")
      #expect(number.status == 1)
      #expect(number.errors == "traitctl: there is no key 4711: numbers are 0 to 63\n")
      let name = try traitctl("keys", "del", "--name", "4711")
      #expect(name.status == 0, "\(name.errors)")
    }

    @Test("errors are told, with exit status 1")
    func errors() throws {
      try Guest.withKeys([.bytes4]) { ids in
        var registry = try RegistryConnection()
        let name = try registry.key(ids[0]).name
        for (arguments, message) in [
          (["keys", "add", name, "--size", "4", "--merge", "drop"], "\"\(name)\" is key \(ids[0])"),
          (
            ["keys", "add", "wrong", "--size", "16", "--merge", "min"],
            "because of its merge: min, max, or, and are of sizes 4 and 8"
          ),
          (["keys", "del", "no.such.key"], "there is no such key"),
          (["listen", "--port", "0", "--key", "no.such.key"], "there is no such key"),
        ] {
          let outcome = try Command([try Command.built("traitctl")] + arguments).wait()
          #expect(outcome.status == 1, "\(arguments)")
          #expect(outcome.output.isEmpty)
          #expect(outcome.errors.contains(message), "\(outcome.errors)")
          #expect(outcome.errors.hasPrefix("traitctl: "))
        }
      }
    }

    @Test("changes are watched, line by line")
    func watch() throws {
      struct Change: Decodable {
        var change: String
        var keys: [Key]
      }
      for json in [false, true] {
        let name = Guest.uniqueName()
        let tool = try Command.built("traitctl")
        let script = """
          exec 3< <(exec "$0" keys watch\(json ? " --json" : ""))
          trap 'kill $!' EXIT
          read -r first <&3; echo "$first"
          "$0" keys add \(name) --size 8 --merge drop --open-read >/dev/null
          "$0" keys del \(name)
          while read -r line <&3; do
            case $line in *\(name)*) echo "$line";; esac
            case $line in *del*) exit 0;; esac
          done
          """
        let outcome = try Command(["bash", "-c", script, tool]).wait(limit: .seconds(60))
        #expect(outcome.status == 0, "\(outcome.errors)")
        let lines = outcome.output.split(separator: "\n").map(String.init)
        try #require(lines.count == 3, "\(outcome.output)")
        if json {
          let changes = try lines.map { try JSONDecoder().decode(Change.self, from: Data($0.utf8)) }
          #expect(changes.map(\.change) == ["all", "add", "del"])
          #expect(changes[1].keys.map(\.name) == [name])
          #expect(changes[1].keys.map(\.merge) == ["drop"])
          #expect(changes[2].keys == changes[1].keys)
        } else {
          #expect(lines[0].hasPrefix("all "))
          #expect(lines[1].hasPrefix("add ") && lines[1].hasSuffix(" \(name) 8 drop open-read"))
          #expect(lines[2] == "del" + lines[1].dropFirst(3))
        }
      }
    }

    @Test("what happened to each key's values is shown")
    func keyStatistics() throws {
      try Guest.withKeys([.bytes4]) { ids in
        var registry = try RegistryConnection()
        let name = try registry.key(ids[0]).name
        let text = try traitctl("keys", "stats", "--keys")
        #expect(text.status == 0, "\(text.errors)")
        let lines = text.output.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        #expect(lines.first == ["ID", "NAME", "SET", "READ", "DROPPED", "SCRUBBED"])
        #expect(lines.contains(["\(ids[0])", name, "0", "0", "0", "0"]))
        let json = try traitctl("keys", "stats", "--keys", "--json")
        #expect(
          json.output.contains(
            #"{"dropped":0,"id":\#(ids[0]),"name":"\#(name)","read":0,"scrubbed":0,"set":0}"#), "\(json.output)")
      }
    }

    @Test("a list that nobody reads ends in silence")
    func brokenPipe() throws {
      try Guest.withKeys([.bytes4]) { _ in
        let outcome = try Command([
          "bash", "-c", "exec 3> >(exec true); wait $!; \"$0\" keys list >&3; echo $?",
          try Command.built("traitctl"),
        ]).wait()
        #expect(outcome.output == "0\n")
        #expect(outcome.errors.isEmpty)
      }
    }

    @Test("statistics are those of the kernel")
    func statistics() throws {
      struct Statistics: Decodable {
        var set: UInt64
        var copied: UInt64
        var discarded: UInt64
        var scrubbed: UInt64
        var allocated: UInt64
        var evicted: UInt64
        var lost: UInt64
      }
      let right = try Guest.statistics()
      let json = try traitctl("keys", "stats", "--json")
      let got = try JSONDecoder().decode(Statistics.self, from: Data(json.output.utf8))
      #expect(got.set == right.set)
      #expect(got.copied == right.copied)
      #expect(got.discarded == right.discarded)
      #expect(got.scrubbed == right.scrubbed)
      #expect(got.allocated == right.allocated)
      #expect(got.evicted == right.evicted)
      #expect(got.lost == right.lost)
      let text = try traitctl("keys", "stats")
      #expect(
        text.output.split(whereSeparator: { $0 == " " || $0 == "\n" }) == [
          "set", "\(right.set)", "copied", "\(right.copied)", "discarded", "\(right.discarded)",
          "scrubbed", "\(right.scrubbed)", "allocated", "\(right.allocated)",
          "evicted", "\(right.evicted)", "lost", "\(right.lost)",
        ])
    }

    @Test("listen prints what arrives, as text or JSON", arguments: [false, true])
    func listen(isJSON: Bool) throws {
      try VethPair.with { cable in
        try Guest.withKeys([.bytes4, .bytes8, .bytes16]) { ids in
          var registry = try RegistryConnection()
          var names: [String] = []
          for id in ids { names.append(try registry.key(id).name) }
          let tag = try TagProgram(port: Guest.port, key4: ids[0], key8: ids[1], key16: ids[2])
          try tag.program.attach(to: cable.receiver)

          let listener = try Command(
            [
              "ip", "netns", "exec", cable.receiver.namespace.name, try Command.built("traitctl"),
              "listen", "--port", "\(Guest.port)", "--count", "3", "--timeout", "20",
            ] + (isJSON ? ["--json"] : ["--key", names[0], "--key", names[2]]))
          let outbox = try cable.outbox()
          // The first ones come before anybody listens: on a slow kernel, all
          // of the first seconds.
          let deadline = ContinuousClock.now + .seconds(60)
          while try !listener.hasFinished(), ContinuousClock.now < deadline {
            try outbox.send(TagProgram.payload(6), to: try cable.destination())
            usleep(50_000)
          }
          let outcome = try listener.wait()
          #expect(outcome.status == 0, "\(outcome.errors)")
          // On standard output there are data alone.
          #expect(outcome.errors == "traitctl: receiving at [::]:\(Guest.port)\n")
          let lines = outcome.output.split(separator: "\n")
          #expect(lines.count == 3)
          let hexadecimal16 = TagProgram.value16(6).map { String(format: "%02x", $0) }.joined()
          for line in lines {
            if isJSON {
              struct Line: Decodable {
                struct Entry: Decodable {
                  var id: UInt32
                  var name: String
                  var size: Int
                  var value: UInt64?
                  var bytes: String
                }
                var source: String
                var length: Int
                var traits: [Entry]
                var traits_truncated: Bool
              }
              let decoded = try JSONDecoder().decode(Line.self, from: Data(line.utf8))
              #expect(decoded.source.hasPrefix("[::ffff:\(cable.sender.ipv4)]:"))
              #expect(decoded.length == 36)
              #expect(!decoded.traits_truncated)
              let entries = Dictionary(decoded.traits.map { ($0.name, $0) }) { first, _ in first }
              #expect(entries.count == 3)
              #expect(entries[names[0]]?.value == UInt64(TagProgram.value4(6)))
              #expect(entries[names[1]]?.value == TagProgram.value8(6))
              #expect(entries[names[2]]?.value == nil)
              #expect(entries[names[2]]?.bytes == hexadecimal16)
              #expect(entries[names[2]]?.id == ids[2].rawValue)
            } else {
              #expect(line.contains("length 36"))
              #expect(line.contains("\(names[0])=\(TagProgram.value4(6))"))
              #expect(line.contains("\(names[2])=\(hexadecimal16)"))
              #expect(!line.contains("\(names[1])="))
            }
          }
          try tag.program.detach()
        }
      }
    }

    @Test("listen says when too few datagrams came")
    func timeout() throws {
      let outcome = try traitctl("listen", "--port", "0", "--count", "2", "--timeout", "0.1")
      #expect(outcome.status == 1)
      #expect(
        outcome.errors.contains("0 of 2 datagrams came, and then none for 0.1 seconds"),
        "\(outcome.errors)")
      let open = try traitctl("listen", "--port", "0", "--timeout", "0.1")
      #expect(open.status == 0)
    }

    @Test("the demo ends well, and leaves nothing behind")
    func demo() throws {
      var registry = try RegistryConnection()
      let keys = try registry.keys()
      let namespaces = try Command.require("ip", "netns", "list")
      let outcome = try Command([try Command.built("traits-demo")]).wait(limit: .seconds(120))
      #expect(outcome.status == 0, "\(outcome.output)\(outcome.errors)")
      #expect(outcome.output.contains("driver mode"))
      #expect(outcome.output.contains("tagged by the program: 200 of 200 datagrams"))
      #expect(outcome.output.hasSuffix("demo: all is right\n"))
      #expect(try registry.keys() == keys)
      #expect(try Command.require("ip", "netns", "list") == namespaces)
    }
  }
}
