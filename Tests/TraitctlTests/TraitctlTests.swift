// SPDX-License-Identifier: MIT

import ArgumentParser
import Foundation
import Glibc
import NetworkLab
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits
@testable import TraitRegistry
@testable import traitctl

let isSupported = (try? Traits.isSupportedByKernel()) ?? false

func traitctl(_ arguments: String...) throws -> Command.Outcome {
  try Command([try Command.built("traitctl")] + arguments).wait()
}

/// Listens on a port of the loopback interface that nobody has.
func loopbackListener() throws -> TCPListener {
  let listener = try TCPListener(.ipv4)
  try listener.listen(at: try #require(InternetAddress("127.0.0.1", port: 0)))
  return listener
}

/// All bytes up to the end of the stream.
func readAll(_ connection: borrowing TCPConnection) throws -> [UInt8] {
  var received: [UInt8] = []
  var bytes = [UInt8](repeating: 0, count: 100)
  while true {
    let read = try connection.receive(into: &bytes)
    if read.isEndOfStream { return received }
    received += bytes[..<read.length]
  }
}

@Suite("traitctl")
struct TraitctlTests {
  @Test(
    "explains itself",
    arguments: [
      ([], ["keys", "listen", "send", "69 if this kernel has no packet traits"]),
      (["keys"], ["add", "del", "list", "watch", "stats"]),
      (
        ["keys", "add"],
        [
          "--size", "--merge", "exact, drop, first, last, min, max, or, and", "with equal values", "--id",
          "--open-read", "--open-write", "--cross-netns", "4, 8 or 16",
        ]
      ),
      (["keys", "del"], ["name or number"]),
      (["keys", "list"], ["--json"]),
      (["keys", "watch"], ["\"all\"", "\"has\"", "\"add\"", "\"del\"", "--json"]),
      (
        ["keys", "stats"],
        ["discarded", "allocated", "evicted", "lost", "--keys", "read", "dropped", "--json"]
      ),
      (
        ["listen"],
        [
          "--tcp", "--address", "--port", "--key", "--save-syn", "--count", "--timeout", "--json",
          "one line at its end",
        ]
      ),
      (
        ["send"],
        [
          "--tcp", "--address", "--port", "--trait <name=value>", "--sticky", "--count", "--interval", "--json",
          "after 0x",
        ]
      ),
    ] as [([String], [String])])
  func help(command: [String], words: [String]) throws {
    let outcome = try Command([try Command.built("traitctl")] + command + ["--help"]).wait()
    #expect(outcome.status == 0)
    // Wherever its lines end.
    let text = outcome.output.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    for word in words { #expect(text.contains(word), "\(outcome.output)") }
  }

  @Test("does not list the 64 numbers of keys in a help", arguments: [["keys", "add"], ["keys", "del"]])
  func shortHelp(command: [String]) throws {
    let outcome = try Command([try Command.built("traitctl")] + command + ["--help"]).wait()
    #expect(outcome.status == 0)
    #expect(!outcome.output.contains("61, 62, 63"), "\(outcome.output)")
  }

  @Test(
    "refuses wrong arguments with exit status 64 and says what is wrong",
    arguments: [
      (["nonsense"], "nonsense"),
      (["keys", "add"], "<name>"),
      (["keys", "add", "a"], "--size"),
      (["keys", "add", "a", "--size", "5"], "'4', '8' or '16'"),
      (["keys", "add", "a", "--size", "4"], "--merge"),
      (["keys", "add", "a", "--size", "4", "--merge", "sum"], "'sum'"),
      (["keys", "add", "a", "--size", "4", "--merge", "exact", "--id", "64"], "'64'"),
      (["keys", "add", "a", "--size", "4", "--merge", "exact", "--id", "-1"], "--id"),
      (["keys", "add", "a", "--size", "4", "--merge", "exact", "--id", "+5"], "'+5'"),
      (["keys", "add", "a", "--size", "+4", "--merge", "exact"], "'+4'"),
      (["keys", "add", "a", "--size", "4", "--merge", "exact", "--open"], "--open"),
      (["keys", "add", "Bad", "--size", "4", "--merge", "exact"], "the name \"Bad\" has B in it"),
      (["keys", "add", "", "--size", "4", "--merge", "exact"], "the name is empty"),
      (["keys", "del"], "<key>"),
      (["keys", "del", ""], "the name is empty"),
      (["keys", "del", "12", "--name", "--bad"], "--bad"),
      (["keys", "del", "a b"], "has   in it"),
      (["listen", "--port", "1", "--key", "A"], "the name \"A\" has A in it"),
      (["send", "--port", "1", "--address", "::1", "--trait", "A=1"], "the name \"A\" has A in it"),
      (["listen"], "--port"),
      (["listen", "--port", "65536"], "65536"),
      (["listen", "--port", "1", "--count", "0"], "--count is 0, but must be 1 or more"),
      (["listen", "--port", "1", "--timeout", "0"], "--timeout is 0.0, but must be"),
      (["listen", "--port", "1", "--timeout", "nan"], "--timeout is nan, but must be"),
      (["listen", "--port", "1", "--address", "localhost"], "--address is \"localhost\", but must be"),
      (["listen", "--port", "1", "--save-syn"], "--save-syn is for connections: it takes --tcp"),
      (["send", "--tcp", "--port", "1", "--address", "::1"], "<text> is empty, but must have something"),
      (["send", "--address", "::1"], "--port"),
      (["send", "--port", "1"], "--address"),
      (["send", "--port", "0", "--address", "::1"], "--port is 0, but must be 1 to 65535"),
      (["send", "--port", "1", "--address", "a.b"], "--address is \"a.b\", but must be"),
      (["send", "--port", "1", "--address", "::1", "--count", "0"], "--count is 0, but must be 1 or more"),
      (["send", "--port", "1", "--address", "::1", "--interval", "-1"], "--interval"),
      (["send", "--port", "1", "--address", "::1", "--interval", "nan"], "--interval is nan, but must be"),
      (["send", "--port", "1", "--address", "::1", "--trait", "flow"], "'flow'"),
      (["send", "--port", "1", "--address", "::1", "--trait", "=1"], "'=1'"),
      (["send", "--port", "1", "--address", "::1", "--trait", "flow="], "'flow='"),
      (
        ["send", "--port", "1", "--address", "::1", "--trait", "a=1", "--trait", "b=1", "--trait", "a=2"],
        "--trait gives a two values"
      ),
    ] as [([String], String)])
  func wrongArguments(arguments: [String], message: String) throws {
    let outcome = try Command([try Command.built("traitctl")] + arguments).wait()
    #expect(outcome.status == 64)
    #expect(outcome.output.isEmpty)
    #expect(outcome.errors.hasPrefix("traitctl: "), "\(outcome.errors)")
    #expect(outcome.errors.contains(message), "\(outcome.errors)")
  }

  @Test(
    "says that a kernel has no packet traits, with exit status 69",
    .disabled(if: isSupported, "this kernel has packet traits"),
    arguments: [
      ["traitctl", "keys", "list"], ["traitctl", "keys", "list", "--json"],
      ["traitctl", "keys", "add", "a", "--size", "4", "--merge", "exact"], ["traitctl", "keys", "del", "a"],
      ["traitctl", "keys", "watch"], ["traitctl", "keys", "watch", "--json"],
      ["traitctl", "keys", "stats"], ["traitctl", "keys", "stats", "--keys"],
      ["traitctl", "listen", "--port", "0"],
      ["traitctl", "listen", "--tcp", "--port", "0"],
      ["traitctl", "send", "--tcp", "--address", "127.0.0.1", "--port", "9", "--trait", "a=1", "x"],
      ["traitctl", "send", "--address", "127.0.0.1", "--port", "9", "--trait", "a=1"],
      ["traits-demo"],
    ])
  func unsupported(command: [String]) throws {
    let outcome = try Command([try Command.built(command[0])] + command.dropFirst()).wait()
    #expect(outcome.status == 69)
    #expect(outcome.output.isEmpty)
    #expect(outcome.errors.hasSuffix(": this kernel has no packet traits\n"), "\(outcome.errors)")
  }

  @Test(
    "ends in silence when nobody reads its output",
    arguments: [["--help"], ["keys", "add", "--help"], ["listen", "--help"], ["send", "--help"]])
  func brokenPipe(arguments: [String]) throws {
    let outcome = try withoutReader(arguments)
    #expect(outcome.output == "0\n")
    #expect(outcome.errors.isEmpty)
  }

  @Test("sends without traits on any kernel")
  func sendsPlain() throws {
    let socket = try UDPSocket(.ipv4)
    try socket.bind(to: try #require(InternetAddress("127.0.0.1", port: 0)))
    try socket.setReceiveTimeout(.seconds(10))
    let local = try socket.localAddress()
    let outcome = try Command([
      try Command.built("traitctl"), "send", "--address", "127.0.0.1", "--port", "\(local.port)", "hello",
    ]).wait()
    #expect(outcome.status == 0, "\(outcome.errors)")
    #expect(outcome.output == "\(local)  length 5\n")
    var bytes = [UInt8](repeating: 0, count: 100)
    #expect(try socket.receive(into: &bytes).length == 5)
    #expect(Array(bytes.prefix(5)) == Array("hello".utf8))
  }

  @Test("writes to a connection without traits on any kernel", arguments: [false, true])
  func sendsPlainOverTCP(isJSON: Bool) throws {
    let listener = try loopbackListener()
    let local = try listener.localAddress()
    var command = [
      try Command.built("traitctl"), "send", "--tcp", "--address", "127.0.0.1", "--port",
      "\(local.port)", "--count", "3", "hello",
    ]
    let sender = try Command(command + (isJSON ? ["--json"] : []))
    let connection = try listener.accept(timeout: .seconds(30))
    try connection.setReceiveTimeout(.seconds(30))
    #expect(try readAll(connection) == Array("hellohellohello".utf8))
    let outcome = try sender.wait()
    #expect(outcome.status == 0, "\(outcome.errors)")
    let line = isJSON ? #"{"destination":"\#(local)","length":5,"traits":[]}"# : "\(local)  length 5"
    #expect(outcome.output == String(repeating: line + "\n", count: 3))

    // Bound and not listening: nobody answers, and no other test's listener gets the port.
    let silent = try TCPListener(.ipv4)
    try silent.unsafeFileDescriptor.bindSocket(to: try #require(InternetAddress("127.0.0.1", port: 0)))
    let nobody = try silent.localAddress()
    command[6] = "\(nobody.port)"
    let refused = try Command(command).wait()
    #expect(refused.status == 1)
    #expect(refused.output.isEmpty)
    #expect(refused.errors == "traitctl: there is no connection to \(nobody): Connection refused\n")
    withExtendedLifetime(silent.unsafeFileDescriptor) {}
  }

  @Test("ends a connection in order though the peer has said something", arguments: [false, true])
  func sendsToTalker(isLasting: Bool) throws {
    let listener = try loopbackListener()
    let sender = try Command([
      try Command.built("traitctl"), "send", "--tcp", "--address", "127.0.0.1", "--port",
      "\(try listener.localAddress().port)", "hello",
    ])
    let connection = try listener.accept(timeout: .seconds(30))
    try connection.setReceiveTimeout(.seconds(30))
    try connection.sendAll(Array("welcome".utf8).span.bytes)
    // With its greeting unread this would be a reset.
    #expect(try readAll(connection) == Array("hello".utf8))
    // A peer that stays is not waited for for ever.
    if !isLasting { try connection.close() }
    let outcome = try sender.wait()
    #expect(outcome.status == 0, "\(outcome.errors)")
  }

  @Test("says that a connection was reset, though all was written")
  func sendsToResetter() throws {
    let listener = try loopbackListener()
    let sender = try Command([
      try Command.built("traitctl"), "send", "--tcp", "--address", "127.0.0.1", "--port",
      "\(try listener.localAddress().port)", "hello",
    ])
    let connection = try listener.accept(timeout: .seconds(30))
    try connection.setReceiveTimeout(.seconds(30))
    var bytes = [UInt8](repeating: 0, count: 100)
    // They are there, and left unread.
    #expect(try connection.receive(into: &bytes, flags: .peek).length == 5)
    try connection.close()
    let outcome = try sender.wait()
    #expect(outcome.status == 1)
    #expect(outcome.errors.hasSuffix("Connection reset by peer\n"), "\(outcome.errors)")
  }

  @Test("prints flags that it does not know as a number")
  func unknownFlags() throws {
    func report(_ flags: KeyFlags) throws -> KeyReport {
      KeyReport(
        RegisteredKey(
          id: try #require(TraitID(rawValue: 5)), name: "flow", size: .bytes8, flags: flags, merge: .last))
    }
    #expect(try report([]).text == "5 flow 8 last -")
    #expect(try report([.openRead, .owned]).text == "5 flow 8 last open-read,owned")
    let later = try report([.openWrite, KeyFlags(rawValue: 0x8000_0100)])
    #expect(later.text == "5 flow 8 last open-write,0x80000100")
    #expect(try report(KeyFlags(rawValue: 0x100)).text == "5 flow 8 last 0x100")
    let text = String(decoding: try JSONEncoder().encode(later), as: UTF8.self)
    #expect(text.contains(#""other_flags":2147483904"#), "\(text)")
  }

  @Test("says in JSON that a source is not known by null")
  func unknownSource() throws {
    let report = DatagramReport(source: nil, length: 5, traits: [], traitsTruncated: false)
    let text = String(decoding: try JSONEncoder().encode(report), as: UTF8.self)
    #expect(text.contains(#""source":null"#), "\(text)")
    #expect(report.text.hasPrefix("unknown  length 5"))
  }

  @Test("takes a pipe that nobody reads for the end, and no other error")
  func brokenPipeError() throws {
    let end = #expect(throws: ExitCode.self) {
      try reportingErrors { throw Errno.brokenPipe }
    }
    #expect(end == .success)
    let failure = #expect(throws: ExitCode.self) {
      try reportingErrors { throw Errno.ioError }
    }
    #expect(failure == .failure)
    let unsupported = #expect(throws: ExitCode.self) {
      try reportingErrors { throw TraitError(.unsupportedKernel, "this is a test") }
    }
    #expect(unsupported == ExitCode(69))
  }

  @Test("sends on when nobody reads what it prints, and says other errors")
  func readersPrinter() throws {
    var printToReader = ReadersPrinter()
    var calls = 0
    for _ in 0..<4 {
      try printToReader {
        calls += 1
        if calls == 2 { throw Errno.brokenPipe }
      }
    }
    #expect(calls == 2)
    var other = ReadersPrinter()
    for _ in 0..<2 {
      #expect(throws: Errno.ioError) { try other { throw Errno.ioError } }
    }
  }
}

/// Runs traitctl with its output a pipe that has no reader any more, for sure;
/// the outcome's output is its exit status.
func withoutReader(_ arguments: [String]) throws -> Command.Outcome {
  try Command(
    [
      "bash", "-c", "exec 3> >(exec true); wait $!; \"$0\" \"$@\" >&3; echo $?",
      try Command.built("traitctl"),
    ] + arguments
  ).wait()
}

@Suite("Connections that traitctl takes")
struct ConnectionsTests {
  /// What was reported, as a line of text and as JSON.
  private final class Lines: Sendable {
    private let lines = Mutex<[(text: String, json: String)]>([])

    @Sendable func add(_ event: any ConnectionEvent) throws {
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
      let json = String(decoding: try encoder.encode(event), as: UTF8.self)
      lines.withLock { $0.append((event.text, json)) }
    }

    var all: [(text: String, json: String)] { lines.withLock { $0 } }

    /// Waits until there are so many. The limit only ends a hang.
    func until(_ count: Int) async throws {
      let limit = ContinuousClock.now + .seconds(120)
      while all.count < count, ContinuousClock.now < limit { try await Task.sleep(for: .milliseconds(1)) }
      try #require(all.count == count, "there are \(all.map(\.text)), and not \(count)")
    }
  }

  @Test("are told of from their beginning to their end, several at once")
  func lines() async throws {
    let listener = try loopbackListener()
    let address = try listener.localAddress()
    let lines = Lines()
    let connections = Connections(listener, keyNames: [:], savesSYN: false, report: lines.add)
    let serving = Task { try await connections.serve(count: 2, timeout: .seconds(120)) }
    let first = try await TCPConnection.connect(to: address)
    try await lines.until(1)
    let second = try await TCPConnection.connect(to: address)
    try await lines.until(2)
    try await second.sendAll(([1, 2, 3] as [UInt8]).span.bytes)
    try await lines.until(3)
    try await first.sendAll(([4] as [UInt8]).span.bytes)
    try await lines.until(4)
    let (one, two) = (try first.localAddress(), try second.localAddress())
    try first.close()
    try await lines.until(5)
    // By a reset.
    var off = linger(l_onoff: 1, l_linger: 0)
    setsockopt(
      second.unsafeFileDescriptor.rawValue, SOL_SOCKET, SO_LINGER, &off, socklen_t(MemoryLayout<linger>.size))
    try second.close()
    #expect(try await serving.value == .complete)
    #expect(
      lines.all.map(\.text) == [
        "\(one)  connected", "\(two)  connected", "\(two)  length 3", "\(one)  length 1",
        "\(one)  ended", "\(two)  ended: no bytes could be received: Connection reset by peer",
      ])
    #expect(
      lines.all.map(\.json).prefix(5) == [
        #"{"event":"connection","peer":"\#(one)","syn_traits":null}"#,
        #"{"event":"connection","peer":"\#(two)","syn_traits":null}"#,
        #"{"event":"read","length":3,"peer":"\#(two)","traits":[],"traits_truncated":false}"#,
        #"{"event":"read","length":1,"peer":"\#(one)","traits":[],"traits_truncated":false}"#,
        #"{"error":null,"event":"end","peer":"\#(one)"}"#,
      ])
  }

  @Test("that do not come are waited for no longer than asked for")
  func idle() async throws {
    let nothing = Connections(try loopbackListener(), keyNames: [:], savesSYN: false) { _ in }
    let start = ContinuousClock.now
    #expect(try await nothing.serve(count: 1, timeout: .milliseconds(100)) == .idle(ended: 0))
    #expect(ContinuousClock.now - start >= .milliseconds(100))

    // One that says nothing is no arrival either, and one that has ended counts.
    let listener = try loopbackListener()
    let address = try listener.localAddress()
    let lines = Lines()
    let connections = Connections(listener, keyNames: [:], savesSYN: false, report: lines.add)
    let silent = try await TCPConnection.connect(to: address)
    let gone = try await TCPConnection.connect(to: address)
    try gone.close()
    // As many as were reported. On a slow machine the time may be over before.
    let end = try await connections.serve(count: 3, timeout: .seconds(1))
    #expect(end == .idle(ended: lines.all.count { $0.text.hasSuffix("ended") }))
    #expect(lines.all.count <= 3)
    withExtendedLifetime(silent.peerAddress) {}
  }

  @Test("are waited for anew once it has been told of one, however long that took")
  func slowReport() async throws {
    // In a process of its own, where no other test has the threads meanwhile.
    let process = try OwnProcess()
    let result = await #expect(processExitsWith: .success) { [path = process.path as String] in
      await OwnProcess.reportingIssues(to: path) { try await ConnectionsTests.reportSlowly() }
    }
    process.recordFailure(result)
  }

  private static func reportSlowly() async throws {
    let listener = try loopbackListener()
    let address = try listener.localAddress()
    let connections = Connections(listener, keyNames: [:], savesSYN: false) { event in
      // As a pipe that nobody empties. The time is over meanwhile.
      if event is ConnectionReport { usleep(5_500_000) }
    }
    let connection = try await TCPConnection.connect(to: address)
    try connection.shutdown(.sending)
    let end = try await connections.serve(count: 1, timeout: .seconds(5))
    try #require(end == .complete, "\(end)")
  }

  @Test("wait while there are no descriptors for them, and are taken then")
  func descriptors() async throws {
    // Not by taking all descriptors: Dispatch crashes a process that has none, whenever it looks
    // at its threads.
    let isShort = Mutex(true)
    let listener = try loopbackListener()
    let address = try listener.localAddress()
    let lines = Lines()
    let attempts = Mutex(0)
    let connections = Connections(
      listener, keyNames: [:], savesSYN: false,
      shortage: {
        guard isShort.withLock({ $0 }) else { return nil }
        attempts.withLock { $0 += 1 }
        return TraitError(.systemCall, "this is a test", underlyingError: .tooManyOpenFiles)
      },
      report: { event in
        try lines.add(event)
        // The connection got the last one, and has none to wait with.
        if event is ConnectionReport { isShort.withLock { $0 = true } }
      })
    func untilTriedAgain() async throws {
      let limit = ContinuousClock.now + .seconds(120)
      let count = attempts.withLock { $0 } + 2
      while attempts.withLock({ $0 }) < count, ContinuousClock.now < limit {
        try await Task.sleep(for: .milliseconds(1))
      }
      try #require(attempts.withLock { $0 } >= count, "it was not tried again")
    }
    let serving = Task { try await connections.serve(count: 1, timeout: nil) }
    let client = try await TCPConnection.connect(to: address)
    try await untilTriedAgain()
    try #require(lines.all.isEmpty)
    isShort.withLock { $0 = false }
    try await lines.until(1)
    try client.shutdown(.sending)
    try await untilTriedAgain()
    try #require(lines.all.count == 1, "\(lines.all.map(\.text))")
    isShort.withLock { $0 = false }
    #expect(try await serving.value == .complete)
    #expect(lines.all.last?.text.hasSuffix("  ended") == true, "\(lines.all.map(\.text))")
  }

  @Test("are left when nobody reads what is told")
  func unread() async throws {
    let listener = try loopbackListener()
    let address = try listener.localAddress()
    let connections = Connections(listener, keyNames: [:], savesSYN: false) { _ in
      throw Errno.brokenPipe
    }
    let serving = Task { try await connections.serve(count: nil, timeout: nil) }
    _ = try await TCPConnection.connect(to: address)
    await #expect(throws: Errno.brokenPipe) { try await serving.value }
  }

  @Test("are shown with the traits of their SYN and of what is read")
  func reports() throws {
    var traits = Traits()
    try traits.set(17, for: TraitKey<UInt32>(TraitID(rawValue: 5)!))
    let own = try traits.map { try TraitReport($0, name: "flow") }
    #expect(ConnectionReport(peer: "a", synTraits: own).text == "a  connected  flow=17")
    #expect(ConnectionReport(peer: "a", synTraits: []).text == "a  connected")
    let read = ReadReport(peer: "a", length: 3, traits: own, traitsTruncated: true)
    #expect(read.text == "a  length 3  flow=17  (traits truncated)")
    let json = String(
      decoding: try JSONEncoder().encode(ConnectionReport(peer: "a", synTraits: own)), as: UTF8.self)
    #expect(json.contains(#""name":"flow""#) && json.contains(#""syn_traits":[{"#))
  }
}

@Suite("Values at the command line")
struct TraitArgumentTests {
  @Test(
    "are what listen prints",
    arguments: [
      (.bytes4, [0, 0, 0, 0]), (.bytes4, [1, 2, 3, 4]), (.bytes4, [0xff, 0xff, 0xff, 0xff]),
      (.bytes8, [0, 0, 0, 0, 0, 0, 0, 0x80]), (.bytes8, [8, 7, 6, 5, 4, 3, 2, 1]),
      (.bytes8, [UInt8](repeating: 0xff, count: 8)),
      (.bytes16, Array(0..<16)), (.bytes16, [UInt8](repeating: 0xfe, count: 16)),
    ] as [(TraitSize, [UInt8])])
  func roundTrip(size: TraitSize, bytes: [UInt8]) throws {
    var traits = Traits()
    try traits.setBytes(bytes.span.bytes, for: TraitID(rawValue: 7)!)
    let text = try TraitReport(try #require(traits.first), name: "a.b_c-1").text
    let argument = try #require(TraitArgument(argument: text))
    #expect(argument.name == "a.b_c-1")
    #expect(try argument.bytes(size: size) == bytes)
  }

  @Test(
    "may be hexadecimal",
    arguments: [
      ("0x0", .bytes4, 0), ("0xdeadBEEF", .bytes4, 0xdead_beef), ("0x10", .bytes8, 16),
      ("0xffffffffffffffff", .bytes8, .max),
    ] as [(String, TraitSize, UInt64)])
  func hexadecimal(text: String, size: TraitSize, value: UInt64) throws {
    let bytes = try #require(TraitArgument(argument: "a=\(text)")).bytes(size: size)
    #expect(bytes == withUnsafeBytes(of: value.littleEndian) { Array($0.prefix(size.rawValue)) })
  }

  @Test(
    "that are none of the key's size are refused, with what is right",
    arguments: [
      ("-1", .bytes4, "0 to 4294967295"), ("+1", .bytes4, "0 to 4294967295"),
      ("4294967296", .bytes4, "0 to 4294967295"), ("0x100000000", .bytes4, "0 to 4294967295"),
      ("-0", .bytes4, "0 to 4294967295"), ("0x-0", .bytes4, "0 to 4294967295"),
      ("0x", .bytes4, "0 to 4294967295"), ("0x-1", .bytes4, "0 to 4294967295"),
      ("0x+1", .bytes4, "0 to 4294967295"), ("ff", .bytes4, "0 to 4294967295"),
      (" 1", .bytes4, "0 to 4294967295"), ("1=2", .bytes4, "0 to 4294967295"),
      ("18446744073709551616", .bytes8, "0 to 18446744073709551615"),
      ("1", .bytes16, "32 hexadecimal digits"),
      ("000102030405060708090a0b0c0d0e0", .bytes16, "32 hexadecimal digits"),
      ("000102030405060708090a0b0c0d0e0f0", .bytes16, "32 hexadecimal digits"),
      ("000102030405060708090a0b0c0d0e0g", .bytes16, "32 hexadecimal digits"),
      ("０00102030405060708090a0b0c0d0e", .bytes16, "32 hexadecimal digits"),
    ] as [(String, TraitSize, String)])
  func refused(text: String, size: TraitSize, right: String) throws {
    let argument = try #require(TraitArgument(argument: "a=\(text)"))
    let error = #expect(throws: TraitError.self) { try argument.bytes(size: size) }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("the value \"\(text)\" of a must be") == true)
    #expect(error?.message.contains(right) == true)
  }
}

@Suite("Asking for all keys")
struct AskForAllTests {
  private let keys = (0..<4).map {
    RegisteredKey(
      id: TraitID(rawValue: UInt32($0))!, name: "key\($0)", size: .bytes4, flags: [], merge: .exact)
  }

  /// A registry and a socket, of which a key may be gone when it is asked for.
  private func ask(
    _ attempts: Int = 100,
    closed: TraitMask = [],
    removingBefore isRemoved: (_ round: Int) -> TraitMask
  ) throws -> (names: [String], mask: TraitMask, rounds: Int) {
    var mask: TraitMask = []
    var rounds = 0
    let granted = try askForAll(attempts: attempts) { () throws(TraitError) in
      rounds += 1
      return keys.filter { rounds == 1 || !isRemoved(rounds - 1).contains($0.id) }
    } asking: { asked throws(TraitError) in
      if !asked.isDisjoint(with: closed) { throw TraitError(.notPermitted, "closed") }
      // One by one all are still there, and together not.
      if asked.count > 1, !asked.isDisjoint(with: isRemoved(rounds)) {
        throw TraitError(.noSuchKey, "gone")
      }
      mask = asked
    }
    return (granted.map(\.name), mask, rounds)
  }

  @Test("gives those that are granted")
  func granted() throws {
    let all = try ask { _ in [] }
    #expect(all.names == ["key0", "key1", "key2", "key3"])
    #expect(all.mask.rawValue == 15)
    #expect(all.rounds == 1)
    let open = try ask(closed: TraitMask(rawValue: 0b0101)) { _ in [] }
    #expect(open.names == ["key1", "key3"])
    #expect(open.mask.rawValue == 0b1010)
    let none = try ask(closed: .all) { _ in [] }
    #expect(none.names.isEmpty)
    #expect(none.mask.isEmpty)
  }

  @Test("lists anew when a key is removed meanwhile, but not for ever")
  func removed() throws {
    let once = try ask { _ in TraitMask(rawValue: 0b0010) }
    #expect(once.names == ["key0", "key2", "key3"])
    #expect(once.mask.rawValue == 0b1101)
    #expect(once.rounds == 2)

    // Another one each time.
    let error = #expect(throws: TraitError.self) {
      try ask(7) { TraitMask(rawValue: 1 << UInt64($0 % 4)) }
    }
    #expect(error?.code == .registryChanging)
    #expect(error?.message == "keys were removed each of the 7 times that they were asked for")
  }

  @Test("passes on other errors")
  func other() throws {
    let error = #expect(throws: TraitError.self) {
      try askForAll { () throws(TraitError) in
        keys
      } asking: { _ throws(TraitError) in
        throw TraitError(.unsupportedKernel, "none")
      }
    }
    #expect(error?.code == .unsupportedKernel)
  }
}
