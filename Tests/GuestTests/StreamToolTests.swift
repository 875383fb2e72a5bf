// SPDX-License-Identifier: MIT

import Foundation
import NetworkLab
import PacketTraits
import Testing
import TraitRegistry

extension Guest {
  @Suite("traitctl over TCP", .cable)
  struct StreamToolTests {
    /// Starts traitctl at one end of the cable.
    private func traitctl(_ end: VethPair.End, _ arguments: [String]) throws -> Command {
      try Command(
        ["ip", "netns", "exec", end.namespace.name, try Command.built("traitctl")] + arguments)
    }

    /// Sends as soon as somebody listens, which takes a while on a slow kernel.
    private func send(_ arguments: [String]) throws -> Command.Outcome {
      let cable = try suiteCable()
      let deadline = ContinuousClock.now + .seconds(60)
      while true {
        let outcome = try traitctl(cable.sender, ["send", "--tcp"] + arguments).wait()
        let isEarly = outcome.errors.contains("Connection refused")
        let hasFailed =
          Guest.storesMayFail
          && ["Cannot allocate memory", "No buffer space available"].contains(where: outcome.errors.contains)
        guard outcome.status != 0, isEarly || hasFailed, ContinuousClock.now < deadline else {
          return outcome
        }
        usleep(50_000)
      }
    }

    private struct Entry: Decodable, Equatable {
      var name: String
      var value: UInt64?
    }

    private struct Line: Decodable {
      var event: String
      var peer: String
      var length: Int?
      var synTraits: [Entry]?
      var traits: [Entry]?
      var error: String?

      enum CodingKeys: String, CodingKey {
        case event, peer, length, traits, error
        case synTraits = "syn_traits"
      }
    }

    private func names(_ ids: [TraitID]) throws -> [String] {
      var registry = try RegistryConnection()
      var names: [String] = []
      for id in ids { names.append(try registry.key(id).name) }
      return names
    }

    /// What listen prints of one connection, as words by line, and its peer.
    private func listening(
      _ arguments: [String], _ sending: () throws -> Void
    ) throws -> [String] {
      let cable = try suiteCable()
      let listener = try traitctl(
        cable.receiver,
        ["listen", "--tcp", "--port", "\(Guest.port)", "--count", "1", "--timeout", "60"] + arguments)
      try sending()
      let outcome = try listener.wait(limit: .seconds(120))
      #expect(outcome.status == 0, "\(outcome.errors)")
      // On standard output there are data alone.
      #expect(outcome.errors.hasPrefix("traitctl: receiving at "), "\(outcome.errors)")
      return outcome.output.split(separator: "\n").map(String.init)
    }

    @Test("shows the SYN's traits and those of each write", arguments: Route.allCases, [false, true])
    func written(route: Route, isJSON: Bool) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes8], flags: .crossesNetworkNamespaces) { keys in
        // As they are printed
        let ids = keys.sorted { $0.rawValue < $1.rawValue }
        let names = try names(ids)
        let host = try cable.destination(route).host
        let bind = route == .ipv4 ? ["--address", host] : []
        for sticky in [false, true] {
          let lines = try listening(
            ["--save-syn", "--key", names[0], "--key", names[1]] + bind + (isJSON ? ["--json"] : [])
          ) {
            let sent = try send(
              [
                "--address", host, "--port", "\(Guest.port)", "--trait", "\(names[0])=7", "--trait",
                "\(names[1])=0x10", "--count", "2", "--interval", "0.3", "hello",
              ] + (sticky ? ["--sticky"] : []))
            #expect(sent.status == 0, "\(sent.errors)")
            let line = "\(try cable.destination(route))  length 5  \(names[0])=7  \(names[1])=16\n"
            #expect(sent.output == line + line)
          }
          guard !Guest.storesMayFail else { continue }
          let values = [Entry(name: names[0], value: 7), Entry(name: names[1], value: 16)].sorted {
            ids[names.firstIndex(of: $0.name)!] < ids[names.firstIndex(of: $1.name)!]
          }
          if isJSON {
            let decoded = try lines.map { try JSONDecoder().decode(Line.self, from: Data($0.utf8)) }
            #expect(decoded.map(\.event) == ["connection", "read", "read", "end"])
            #expect(Set(decoded.map(\.peer)).count == 1)
            #expect(decoded.first?.synTraits == (sticky ? values : []))
            #expect(decoded.compactMap(\.length) == [5, 5])
            #expect(decoded.compactMap(\.traits) == [values, values])
            #expect(decoded.last?.error == nil)
          } else {
            let text = values.map { "  \($0.name)=\($0.value ?? 0)" }.joined()
            let peer = lines.first.map { String($0.prefix { $0 != " " }) } ?? ""
            #expect(peer.contains(route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4))
            #expect(
              lines == [
                "\(peer)  connected\(sticky ? text : "")", "\(peer)  length 5\(text)",
                "\(peer)  length 5\(text)", "\(peer)  ended",
              ])
          }
        }
      }
    }

    @Test("keeps nothing of a SYN and receives no key that it was not asked for")
    func unasked() throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4, .bytes4], flags: .crossesNetworkNamespaces) { ids in
        let names = try names(ids)
        let lines = try listening(["--json", "--key", names[1]]) {
          let sent = try send([
            "--address", cable.receiver.ipv4, "--port", "\(Guest.port)", "--sticky", "--trait",
            "\(names[0])=1", "x",
          ])
          #expect(sent.status == 0, "\(sent.errors)")
        }
        let decoded = try lines.map { try JSONDecoder().decode(Line.self, from: Data($0.utf8)) }
        #expect(decoded.map(\.event) == ["connection", "read", "end"])
        #expect(decoded.first?.synTraits == nil)
        #expect(decoded.compactMap(\.traits) == [[]])
      }
    }

    @Test("says when too few connections came, and ends when it is interrupted")
    func ends() throws {
      let cable = try suiteCable()
      let few = try traitctl(
        cable.receiver, ["listen", "--tcp", "--port", "0", "--count", "2", "--timeout", "0.1"]
      ).wait()
      #expect(few.status == 1)
      #expect(
        few.errors.contains("0 of 2 connections came and ended, and then nothing came for 0.1 seconds"),
        "\(few.errors)")
      let open = try traitctl(cable.receiver, ["listen", "--tcp", "--port", "0", "--timeout", "0.1"]).wait()
      #expect(open.status == 0, "\(open.errors)")
      let interrupted = try Command([
        "bash", "-c",
        """
        exec 3< <(exec "$0" listen --tcp --port 0 2>&1)
        read -r line <&3 && echo "$line"
        kill -INT $!
        wait $!; echo $?
        """, try Command.built("traitctl"),
      ]).wait()
      #expect(interrupted.output.contains("receiving at"), "\(interrupted.output)")
      #expect(interrupted.output.hasSuffix("\n130\n"), "\(interrupted.output)")
    }

    @Test("errors are told, with exit status 1")
    func errors() throws {
      let cable = try suiteCable()
      let address = ["--address", cable.receiver.ipv4, "--port", "\(Guest.port)"]
      for (arguments, message) in [
        (
          ["send", "--tcp"] + address + ["x"],
          "there is no connection to \(cable.receiver.ipv4):\(Guest.port)"
        ),
        (["send", "--tcp", "--trait", "no.such.key=1"] + address + ["x"], "there is no such key"),
        (["listen", "--tcp", "--port", "0", "--key", "no.such.key"], "there is no such key"),
        (
          ["listen", "--tcp", "--port", "0", "--address", "192.0.2.77"], "192.0.2.77:0 cannot be received at"
        ),
      ] {
        let outcome = try traitctl(cable.sender, arguments).wait()
        #expect(outcome.status == 1, "\(arguments)")
        #expect(outcome.output.isEmpty)
        #expect(outcome.errors.contains(message), "\(outcome.errors)")
        #expect(outcome.errors.hasPrefix("traitctl: "))
      }
    }
  }
}
