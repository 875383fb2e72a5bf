// SPDX-License-Identifier: MIT

internal import Glibc
public import SystemPackage

/// A program that runs beside this one, its output caught.
///
/// It leads a process group of its own, which is killed as a whole: whatever
/// the program started goes with it, unless that made a group of its own, too.
public final class Command {
  /// What a program left when it ended.
  public struct Outcome: Sendable {
    /// Its exit status, or 128 and the number of the signal that ended it.
    public let status: Int32
    public let output: String
    public let errors: String
  }

  private let arguments: [String]
  private let process: pid_t
  private let output: Int32
  private let errors: Int32
  private var hasEnded = false

  /// Runs a program to its end.
  ///
  /// - Parameters:
  ///   - arguments: The program, a path or a name to be looked up in `PATH`,
  ///     and its arguments.
  ///   - limit: How long it may take, before it is killed.
  public static func run(_ arguments: String..., limit: Duration = .seconds(60)) throws -> Outcome {
    try Command(arguments).wait(limit: limit)
  }

  /// As ``run(_:limit:)``, but an exit status other than 0 is an error.
  @discardableResult
  public static func require(_ arguments: String...) throws -> String {
    let outcome = try Command(arguments).wait()
    guard outcome.status == 0 else {
      throw LabError(
        "\(arguments.joined(separator: " ")): exit status \(outcome.status): \(outcome.errors)")
    }
    return outcome.output
  }

  /// Starts a program, and goes on. Signals do to it what they do by default,
  /// whatever this process made of them.
  ///
  /// - Parameters:
  ///   - arguments: The program, a path or a name to be looked up in `PATH`,
  ///     and its arguments.
  ///   - input: What the program can read, a few kilobytes at most.
  ///   - descriptors: What the program has as descriptors 3, 4 and so on, beside
  ///     the three that every program has.
  public init(
    _ arguments: [String], input: String = "", inheriting descriptors: [FileDescriptor] = []
  ) throws {
    // Sockets and not pipes, as these can be made close-on-exec at once.
    let (output, outputEnd) = try Self.channel()
    let (errors, errorsEnd) = try Self.channel()
    let inputEnd = try Self.channel(holding: input)
    defer { for end in [outputEnd, errorsEnd, inputEnd] { close(end) } }

    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, inputEnd, 0)
    posix_spawn_file_actions_adddup2(&actions, outputEnd, 1)
    posix_spawn_file_actions_adddup2(&actions, errorsEnd, 2)
    // First to numbers that are none of those that they are to have.
    var inherited: [Int32] = []
    defer { for descriptor in inherited { close(descriptor) } }
    for descriptor in descriptors {
      let copy = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, Int32(3 + descriptors.count))
      guard copy >= 0 else { throw LabError("fcntl: \(String(cString: strerror(errno)))") }
      inherited.append(copy)
    }
    for (index, descriptor) in inherited.enumerated() {
      posix_spawn_file_actions_adddup2(&actions, descriptor, Int32(3 + index))
    }

    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var signals = sigset_t()
    sigemptyset(&signals)
    posix_spawnattr_setsigmask(&attributes, &signals)
    sigfillset(&signals)
    posix_spawnattr_setsigdefault(&attributes, &signals)
    // Group 0 is the one of the program's own number.
    posix_spawnattr_setpgroup(&attributes, 0)
    posix_spawnattr_setflags(
      &attributes,
      Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK))

    var pointers = arguments.map { strdup($0) } + [nil]
    defer { pointers.forEach { free($0) } }
    var process: pid_t = 0
    let error = posix_spawnp(&process, arguments[0], &actions, &attributes, &pointers, environ)
    guard error == 0 else {
      close(output)
      close(errors)
      throw LabError("\(arguments[0]) cannot be run: \(String(cString: strerror(error)))")
    }
    self.arguments = arguments
    self.process = process
    self.output = output
    self.errors = errors
  }

  deinit {
    if !hasEnded { killAll() }
    close(output)
    close(errors)
  }

  private static func channel() throws -> (Int32, Int32) {
    var ends: [Int32] = [0, 0]
    guard
      socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0
    else { throw LabError("socketpair: \(String(cString: strerror(errno)))") }
    return (ends[0], ends[1])
  }

  /// A socket to read this text from, and then its end.
  private static func channel(holding text: String) throws -> Int32 {
    let (end, otherEnd) = try channel()
    defer { close(otherEnd) }
    // What is written at once fits, or waiting for a reader would be for ever.
    let count = send(otherEnd, text, text.utf8.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
    guard count == text.utf8.count else {
      close(end)
      throw LabError("the input of \(text.utf8.count) bytes is too long")
    }
    return end
  }

  /// Whether the program has ended, or will without anybody's help: it has
  /// closed its output.
  public func hasFinished() throws -> Bool {
    var waiting = pollfd(fd: output, events: 0, revents: 0)
    return poll(&waiting, 1, 0) > 0 && Int32(waiting.revents) & POLLHUP != 0
  }

  /// Waits for the program's end, and for that of its output: whatever it
  /// started and left behind with it counts, too.
  ///
  /// - Parameter limit: How long that may take. Then the whole process group is
  ///   killed, and an error tells what was printed so far.
  public func wait(limit: Duration = .seconds(60)) throws -> Outcome {
    precondition(!hasEnded, "the program has been waited for")
    let end = ContinuousClock.now + limit
    var texts: [Int32: [UInt8]] = [output: [], errors: []]
    guard try collect(&texts, until: end), let status = try reap(until: end) else {
      killAll()
      throw LabError(
        "\(arguments.joined(separator: " ")) had not ended after \(limit) and was killed; it printed: "
          + [output, errors].map { String(decoding: texts[$0] ?? [], as: UTF8.self) }.joined())
    }
    let signal = status & 0x7f
    return Outcome(
      status: signal == 0 ? (status >> 8) & 0xff : 128 + signal,
      output: String(decoding: texts[output] ?? [], as: UTF8.self),
      errors: String(decoding: texts[errors] ?? [], as: UTF8.self))
  }

  /// Reads output and errors to their ends.
  ///
  /// - Returns: Whether they came in time.
  private func collect(
    _ texts: inout [Int32: [UInt8]], until end: ContinuousClock.Instant
  ) throws -> Bool {
    var open = [output, errors]
    var buffer = [UInt8](repeating: 0, count: 65536)
    while !open.isEmpty {
      let left = end - ContinuousClock.now
      guard left > .zero else { return false }
      // Rounded up, and no more than poll() takes: the time is looked at again.
      let (seconds, attoseconds) = left.components
      let milliseconds = min(seconds, 1_000_000) * 1000 + attoseconds / 1_000_000_000_000_000 + 1
      var waiting = open.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
      guard poll(&waiting, nfds_t(waiting.count), Int32(milliseconds)) >= 0 else {
        guard errno == EINTR else { throw LabError("poll: \(String(cString: strerror(errno)))") }
        continue
      }
      for entry in waiting where entry.revents != 0 {
        let count = read(entry.fd, &buffer, buffer.count)
        if count > 0 {
          texts[entry.fd]?.append(contentsOf: buffer[..<count])
        } else if count == 0 {
          open.removeAll { $0 == entry.fd }
        } else if errno != EINTR {
          throw LabError("read: \(String(cString: strerror(errno)))")
        }
      }
    }
    return true
  }

  /// Waits for the process itself, which may go on without its output.
  ///
  /// - Returns: Its status, as waitpid(2) has it, or nil if it did not end in
  ///   time.
  private func reap(until end: ContinuousClock.Instant) throws -> Int32? {
    while true {
      var status: Int32 = 0
      let ended = waitpid(process, &status, WNOHANG)
      if ended == process {
        hasEnded = true
        return status
      }
      guard ended == 0 || errno == EINTR else {
        // Somebody else waited for it: its number may be another's by now.
        hasEnded = true
        throw LabError("waitpid: \(String(cString: strerror(errno)))")
      }
      guard ContinuousClock.now < end else { return nil }
      usleep(1000)
    }
  }

  /// Ends the program and what it started.
  private func killAll() {
    // Until it is waited for nobody else can have its number, or its group's.
    guard !hasEnded else { return }
    kill(-process, SIGKILL)
    var status: Int32 = 0
    while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    hasEnded = true
  }
}

extension Command {
  /// The path of one of this package's programs, built beside this one.
  public static func built(_ program: String) throws -> String {
    var path = [CChar](repeating: 0, count: Int(PATH_MAX))
    let length = readlink("/proc/self/exe", &path, path.count)
    guard length > 0 else { throw LabError("/proc/self/exe: \(String(cString: strerror(errno)))") }
    let own = String(decoding: path[..<length].map(UInt8.init(bitPattern:)), as: UTF8.self)
    let built = own.split(separator: "/", omittingEmptySubsequences: false).dropLast() + [program[...]]
    let result = built.joined(separator: "/")
    guard access(result, X_OK) == 0 else {
      throw LabError("\(result) has not been built: \(String(cString: strerror(errno)))")
    }
    return result
  }
}
