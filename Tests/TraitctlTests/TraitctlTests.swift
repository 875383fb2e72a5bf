// SPDX-License-Identifier: MIT

import NetworkLab
import PacketTraits
import Testing

let isSupported = (try? Traits.isSupportedByKernel()) ?? false

func traitctl(_ arguments: String...) throws -> Command.Outcome {
  try Command([try Command.built("traitctl")] + arguments).wait()
}

@Suite("traitctl")
struct TraitctlTests {
  @Test(
    "explains itself",
    arguments: [
      ([], ["keys", "listen", "69 if this kernel has no packet traits"]),
      (["keys"], ["add", "del", "list", "stats"]),
      (["keys", "add"], ["--size", "--id", "--open-read", "--open-write", "--cross-netns", "4, 8 or 16"]),
      (["keys", "del"], ["name or number"]),
      (["keys", "list"], ["--json"]),
      (["keys", "stats"], ["discarded", "--json"]),
      (["listen"], ["--address", "--port", "--key", "--count", "--timeout", "--json"]),
    ] as [([String], [String])])
  func help(command: [String], words: [String]) throws {
    let outcome = try Command([try Command.built("traitctl")] + command + ["--help"]).wait()
    #expect(outcome.status == 0)
    for word in words { #expect(outcome.output.contains(word), "\(outcome.output)") }
  }

  @Test(
    "refuses wrong arguments with exit status 64 and says what is wrong",
    arguments: [
      (["nonsense"], "nonsense"),
      (["keys", "add"], "<name>"),
      (["keys", "add", "a"], "--size"),
      (["keys", "add", "a", "--size", "5"], "'4', '8' or '16'"),
      (["keys", "add", "a", "--size", "4", "--id", "64"], "'64'"),
      (["keys", "add", "a", "--size", "4", "--id", "-1"], "--id"),
      (["keys", "add", "a", "--size", "4", "--open"], "--open"),
      (["keys", "del"], "<key>"),
      (["listen"], "--port"),
      (["listen", "--port", "65536"], "65536"),
      (["listen", "--port", "1", "--count", "0"], "--count is 0, but must be 1 or more"),
      (["listen", "--port", "1", "--timeout", "0"], "--timeout is 0.0, but must be"),
      (["listen", "--port", "1", "--timeout", "nan"], "--timeout is nan, but must be"),
      (["listen", "--port", "1", "--address", "localhost"], "--address is \"localhost\", but must be"),
    ] as [([String], String)])
  func wrongArguments(arguments: [String], message: String) throws {
    let outcome = try Command([try Command.built("traitctl")] + arguments).wait()
    #expect(outcome.status == 64)
    #expect(outcome.output.isEmpty)
    #expect(outcome.errors.contains(message), "\(outcome.errors)")
  }

  @Test(
    "says that a kernel has no packet traits, with exit status 69",
    .disabled(if: isSupported, "this kernel has packet traits"),
    arguments: [
      ["traitctl", "keys", "list"], ["traitctl", "keys", "list", "--json"],
      ["traitctl", "keys", "add", "a", "--size", "4"], ["traitctl", "keys", "del", "a"],
      ["traitctl", "keys", "stats"], ["traitctl", "listen", "--port", "0"],
      ["traits-demo"],
    ])
  func unsupported(command: [String]) throws {
    let outcome = try Command([try Command.built(command[0])] + command.dropFirst()).wait()
    #expect(outcome.status == 69)
    #expect(outcome.output.isEmpty)
    #expect(outcome.errors.hasSuffix(": this kernel has no packet traits\n"), "\(outcome.errors)")
  }
}
