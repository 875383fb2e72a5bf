// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import Testing
import TraitRegistry

extension Guest {
  /// Those of `Examples`, which docs/man/traits.7 has.
  @Suite("Programs of the manual page")
  struct ExampleTests {
    enum Language: String, CaseIterable, CustomTestStringConvertible {
      case c = "C"
      case swift = "Swift"

      var testDescription: String { rawValue }
      var receive: String { self == .c ? "example-receive" : "example-swift-receive" }
      var send: String { self == .c ? "example-send" : "example-swift-send" }

      /// How its programs are told of a key.
      func argument(_ key: RegisteredKey) -> String { self == .c ? "\(key.id)" : key.name }
    }

    /// A program of this package, in a namespace.
    private func start(
      _ namespace: NetworkNamespace, _ program: String, _ arguments: [String]
    ) throws -> Command {
      try Command(["ip", "netns", "exec", namespace.name, try Command.built(program)] + arguments)
    }

    /// Waits until somebody is bound to a port, or has given up.
    private func awaitSocket(_ port: UInt16, in namespace: NetworkNamespace, of program: Command) throws {
      // The local port is the end of a line's second word, in hexadecimal.
      let digits = String(port, radix: 16, uppercase: true)
      let end = ":" + String(repeating: "0", count: 4 - digits.count) + digits
      for _ in 0..<1000 where try !program.hasFinished() {
        let table = try Command.require("ip", "netns", "exec", namespace.name, "cat", "/proc/net/udp6")
        let isBound = table.split(separator: "\n").contains {
          $0.split(separator: " ").dropFirst().first?.hasSuffix(end) == true
        }
        if isBound { return }
        usleep(10_000)
      }
    }

    private func withKey(_ size: TraitSize, _ body: (RegisteredKey, NetworkNamespace) throws -> Void) throws {
      let namespace = try NetworkNamespace("examples")
      defer { namespace.remove() }
      try Guest.withKeys([size]) { ids in
        var registry = try RegistryConnection()
        try body(try registry.key(ids[0]), namespace)
      }
    }

    @Test("a key's number is found by its name, in another network namespace as well")
    func number() throws {
      try withKey(.bytes8) { key, namespace in
        let found = try start(namespace, "example-key", [key.name]).wait()
        #expect(found.status == 0, "\(found.errors)")
        #expect(found.output == "\(key.id)\n")

        let other = try start(namespace, "example-key", ["no.such.key"]).wait()
        #expect(other.status == 1)
        #expect(other.output.isEmpty)
        #expect(other.errors.hasSuffix("key 'no.such.key': No such file or directory\n"), "\(other.errors)")
      }
    }

    @Test("what one sends the other receives and prints", arguments: Language.allCases, Language.allCases)
    func exchange(sender: Language, receiver: Language) throws {
      try withKey(.bytes8) { key, namespace in
        let value = UInt64.max - 4711
        let receiving = try start(
          namespace, receiver.receive, ["\(Guest.port)", receiver.argument(key)])
        try awaitSocket(Guest.port, in: namespace, of: receiving)
        let arguments = ["::1", "\(Guest.port)", sender.argument(key), "\(value)"]
        var sent = try start(namespace, sender.send, arguments).wait()
        // Where memory is made to be short, one that fails has sent nothing.
        for _ in 0..<100 where Guest.storesMayFail && sent.status != 0 {
          sent = try start(namespace, sender.send, arguments).wait()
        }
        #expect(sent.status == 0, "\(sent.output)\(sent.errors)")
        let received = try receiving.wait()
        #expect(received.status == 0, "\(received.errors)")
        #expect(received.output == "5 bytes\nkey \(key.id): \(value)\n", "\(received.errors)")
      }
    }

    @Test("a key that is not registered, or of another size, is told", arguments: Language.allCases)
    func wrongKey(language: Language) throws {
      try withKey(.bytes4) { key, namespace in
        let other = try start(
          namespace, language.send, ["::1", "\(Guest.port)", language.argument(key), "1"]
        ).wait()
        #expect(other.status == 1)
        #expect(!(other.output + other.errors).isEmpty)

        let none = language == .c ? "\(try Guest.freeKey())" : "no.such.key"
        for (program, arguments) in [
          (language.receive, ["\(Guest.port)", none]),
          (language.send, ["::1", "\(Guest.port)", none, "1"]),
        ] {
          let outcome = try start(namespace, program, arguments).wait()
          #expect(outcome.status == 1)
          #expect(!(outcome.output + outcome.errors).isEmpty)
        }
      }
    }
  }
}
