// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import Testing

@Suite("Programs that are run")
struct CommandTests {
  @Test("leave their output, their errors and their status")
  func outcome() throws {
    let outcome = try Command.run("sh", "-c", "echo out; echo err >&2; exit 3")
    #expect(outcome.status == 3)
    #expect(outcome.output == "out\n")
    #expect(outcome.errors == "err\n")
    #expect(try Command.run("sh", "-c", "kill -9 $$").status == 137)
    #expect(try Command.require("echo", "a b") == "a b\n")
    let error = #expect(throws: LabError.self) {
      try Command.require("sh", "-c", "echo no >&2; exit 1")
    }
    #expect(error?.description.hasSuffix("exit status 1: no\n") == true)
    #expect(throws: LabError.self) { try Command.run("/no/such/program") }
  }

  @Test("may print more than a pipe holds, to both")
  func longOutput() throws {
    let outcome = try Command.run(
      "sh", "-c", "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2")
    #expect(outcome.status == 0)
    #expect(outcome.output.utf8.count == 1_000_000)
    #expect(outcome.errors.utf8.count == 1_000_000)
  }

  @Test("read what they are given, and then the end")
  func input() throws {
    #expect(try Command(["cat"], input: "one\ntwo\n").wait().output == "one\ntwo\n")
    #expect(try Command(["cat"]).wait().output.isEmpty)
  }

  /// Whether the process is there and not merely waiting to be waited for.
  private func isRunning(_ process: pid_t) -> Bool {
    guard let file = fopen("/proc/\(process)/stat", "r") else { return false }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 512)
    let count = fread(&bytes, 1, bytes.count, file)
    let text = String(decoding: bytes[..<count], as: UTF8.self)
    guard let end = text.lastIndex(of: ")") else { return false }
    let state = text[text.index(end, offsetBy: 2)...].prefix(1)
    return state != "Z" && state != "X"
  }

  private func expectGone(
    _ processes: [pid_t], sourceLocation: SourceLocation = #_sourceLocation
  ) {
    for process in processes {
      // Killed is not yet gone.
      for _ in 0..<20_000 where isRunning(process) { usleep(5000) }
      #expect(!isRunning(process), "process \(process) runs on", sourceLocation: sourceLocation)
    }
  }

  /// The numbers that a program printed, in an error's text.
  private func processes(in text: String) -> [pid_t] {
    let printed = text.split(separator: "it printed: ").last ?? ""
    return printed.split(separator: "\n").compactMap { pid_t($0) }
  }

  @Test(
    "are killed at the limit, with all that they started",
    arguments: [
      "echo $$; sleep 1000 & echo $!; echo >$0; wait",
      // Gone itself, but for what holds its output.
      "echo $$; sleep 1000 & echo $!; echo >$0",
      // Goes on without output, deaf to polite signals.
      "trap '' TERM INT HUP; echo $$; sleep 1000 >/dev/null 2>&1 & echo $!; exec >&- 2>&-; echo >$0; wait",
    ])
  func limit(script: String) throws {
    var ends: [Int32] = [0, 0]
    try #require(pipe(&ends) == 0)
    defer { for end in ends { close(end) } }
    let command = try Command(["sh", "-c", script, "/proc/\(getpid())/fd/\(ends[1])"])
    // On a busy machine it may take long until all of them run.
    var running = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
    try #require(poll(&running, 1, 100_000) == 1, "nothing was printed")
    let start = ContinuousClock.now
    let error = #expect(throws: LabError.self) { try command.wait(limit: .milliseconds(500)) }
    let time = ContinuousClock.now - start
    #expect(time >= .milliseconds(500))
    #expect(time < .seconds(20))
    let text = try #require(error?.description)
    #expect(text.contains("had not ended after 0.5 seconds and was killed"), "\(text)")
    let processes = processes(in: text)
    #expect(processes.count == 2, "\(text)")
    expectGone(processes)
  }

  @Test("are killed when nobody waits for them, with all that they started")
  func dropped() throws {
    var ends: [Int32] = [0, 0]
    try #require(pipe(&ends) == 0)
    defer { for end in ends { close(end) } }
    var text = [UInt8](repeating: 0, count: 64)
    var count = 0
    do {
      // By its path: a shell may know no descriptors above 9.
      let command = try Command(
        ["sh", "-c", "sleep 1000 & echo $$ $! >/proc/\(getpid())/fd/\(ends[1]); wait"])
      var printed = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
      try #require(poll(&printed, 1, 100_000) == 1, "nothing was printed")
      count = read(ends[0], &text, text.count)
      withExtendedLifetime(command) {}
    }
    let printed = String(decoding: text[..<max(0, count)], as: UTF8.self)
    let processes = printed.split(whereSeparator: { $0 == " " || $0 == "\n" }).compactMap { pid_t($0) }
    #expect(processes.count == 2, "\(printed)")
    expectGone(processes)
  }

  @Test("are waited for, whatever signals come")
  func interrupted() throws {
    // Where there are too few signals to prove anything, as on a busy machine, more slowly.
    for pause in ["0.05", "0.2", "0.8"] {
      let (outcome, signals) = try whileInterrupted(every: 1000) { signals in
        let before = signals.count
        let outcome = try Command.run(
          "sh", "-c",
          "for i in 1 2 3 4 5; do echo $i; sleep \(pause); done; exec >&- 2>&-; sleep 0.2; exit 7")
        return (outcome, signals.count - before)
      }
      #expect(outcome.status == 7)
      #expect(outcome.output == "1\n2\n3\n4\n5\n")
      #expect(outcome.errors.isEmpty)
      if signals > 20 { return }
    }
    Issue.record("there were too few signals to prove anything")
  }

  @Test("begin with the default actions of signals")
  func signals() throws {
    // Other tests have no use for this one. Blocked signals are there already,
    // on the threads of a pool.
    let former = signal(SIGURG, SIG_IGN)
    defer { signal(SIGURG, former) }
    let text = try Command.require("grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status")
    let masks = text.split(separator: "\n").compactMap { line in
      line.split(separator: "\t").last.flatMap { UInt64($0, radix: 16) }
    }
    #expect(masks.count == 2)
    // But for the two that the C library keeps for itself.
    #expect(masks.allSatisfy { $0 & 0x7fff_ffff == 0 }, "\(text)")
  }
}

@Suite("Repeated work")
struct RepetitionTests {
  @Test("is done until the other is over, and its error is told")
  func rounds() throws {
    let count = try repeating {
      usleep(100)
    } during: { rounds in
      while try rounds.count() < 20 { usleep(100) }
      return try rounds.count()
    }
    #expect(count >= 20)

    let error = #expect(throws: LabError.self) {
      try repeating {
        throw LabError("broken")
      } during: { rounds in
        while true { _ = try rounds.count() }
      }
    }
    #expect(error?.description == "broken")
    // Also if nobody asks.
    #expect(throws: LabError.self) {
      try repeating {
        throw LabError("broken")
      } during: { _ in
        usleep(50_000)
      }
    }
  }
}
