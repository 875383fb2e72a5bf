// SPDX-License-Identifier: MIT

import NetworkLab
import Testing

extension Guest {
  /// A short run of qemu/fuzz: `qemu/vm fuzz` makes it long.
  @Suite("Socket calls with right and wrong arguments")
  struct FuzzTests {
    /// Each call with how many of it had which outcome, the name of an error or 0.
    private func outcomes(_ output: String) throws -> [String: [String: Int]] {
      var outcomes: [String: [String: Int]] = [:]
      for line in output.split(separator: "\n").dropFirst() where !line.hasPrefix("compared") {
        let words = line.split(separator: " ")
        try #require(words.count == 3, "\(line)")
        guard let number = Int(words[2]) else { throw LabError("no number: \(line)") }
        outcomes[String(words[0]), default: [:]][String(words[1])] = number
      }
      return outcomes
    }

    private func run(calls: Int, seconds: Int) throws -> String {
      let outcome = try Command([
        try Command.built("traits-fuzz"), "--calls", "\(calls)", "--seconds", "\(seconds)",
      ]).wait(limit: .seconds(300))
      try #require(outcome.status == 0, "\(outcome.output)\(outcome.errors)")
      // The table, for the log.
      print(outcome.output)
      return outcome.output
    }

    @Test("do what they are to do, each and one after the other")
    func model() throws {
      // Where memory is lacking, what each is to do is not known.
      guard !Guest.storesMayFail else { return _ = try run(calls: 0, seconds: 2) }
      let output = try run(calls: 20_000, seconds: 0)
      let outcomes = try outcomes(output)
      // Not all is refused, and not all is taken.
      for (call, errors) in [
        ("setsockopt-recv", ["EPERM", "ENOENT", "EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("setsockopt-send", ["EPERM", "ENOENT", "EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("setsockopt-save", ["EPERM", "ENOENT", "EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("getsockopt-recv", ["EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("getsockopt-send", ["EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("getsockopt-save", ["EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("getsockopt-syn", ["EFAULT", "EINVAL", "EOPNOTSUPP"]),
        ("sendmsg", ["EPERM", "ENOENT", "EFAULT", "EINVAL", "ENOSPC"]), ("sendmmsg", ["EPERM", "EINVAL"]),
        ("recvmsg", ["EFAULT"]), ("recvmmsg", []), ("connect", []),
      ] {
        let counts = try #require(outcomes[call], "\(call) was not called")
        let share = Double(counts["0", default: 0]) / Double(counts.values.reduce(0, +))
        #expect(share > 0.25, "\(call): \(counts)")
        for error in errors { #expect(counts[error, default: 0] > 0, "\(call), \(error)") }
      }
      // There are no such options.
      for call in ["setsockopt-other", "getsockopt-other"] {
        let counts = try #require(outcomes[call], "\(call) was not called")
        #expect(counts["ENOPROTOOPT", default: 0] > 0 && counts["0"] == nil, "\(call): \(counts)")
      }
      // Of datagrams; of reads of streams, those among them with bytes of several writes; of SYNs.
      let wanted = ["traits": 100, "reads": 200, "joined": 50, "read-traits": 30, "syns": 50]
      for (what, least) in wanted {
        let compared = output.split(separator: "\n").compactMap { line in
          line.hasPrefix("compared \(what) ") ? Int(line.dropFirst(10 + what.count)) : nil
        }
        #expect(try #require(compared.first) >= least, "\(what): \(output)")
      }
    }

    @Test("leave the kernel whole when threads, sockets and keys get in each other's way")
    func threads() throws {
      let outcomes = try outcomes(run(calls: 0, seconds: 5))
      for call in ["setsockopt-recv", "setsockopt-send", "setsockopt-save", "sendmsg", "recvmsg", "connect"] {
        #expect(outcomes[call]?["0", default: 0] ?? 0 > 0, "\(call): \(String(describing: outcomes[call]))")
      }
    }
  }
}
