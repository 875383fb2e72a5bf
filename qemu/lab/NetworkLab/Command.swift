// SPDX-License-Identifier: MIT

internal import Glibc

/// A program that runs beside this one, its output caught.
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
  ///   - limit: Seconds after which it is killed.
  public static func run(_ arguments: String..., limit: Int = 60) throws -> Outcome {
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

  /// Starts a program, and goes on.
  public init(_ arguments: [String]) throws {
    // Sockets and not pipes, as these can be made close-on-exec at once.
    let (output, outputEnd) = try Self.channel()
    let (errors, errorsEnd) = try Self.channel()
    defer {
      close(outputEnd)
      close(errorsEnd)
    }

    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    posix_spawn_file_actions_adddup2(&actions, outputEnd, 1)
    posix_spawn_file_actions_adddup2(&actions, errorsEnd, 2)

    var pointers = arguments.map { strdup($0) } + [nil]
    defer { pointers.forEach { free($0) } }
    var process: pid_t = 0
    let error = posix_spawnp(&process, arguments[0], &actions, nil, &pointers, environ)
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
    if !hasEnded {
      kill(process, SIGKILL)
      var status: Int32 = 0
      waitpid(process, &status, 0)
    }
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

  /// Whether the program has ended, or will without anybody's help: it has
  /// closed its output.
  public func hasFinished() throws -> Bool {
    var waiting = pollfd(fd: output, events: 0, revents: 0)
    return poll(&waiting, 1, 0) > 0 && Int32(waiting.revents) & POLLHUP != 0
  }

  /// Waits for the program's end.
  ///
  /// - Parameter limit: Seconds after which it is killed.
  public func wait(limit: Int = 60) throws -> Outcome {
    precondition(!hasEnded, "the program has been waited for")
    var texts: [Int32: [UInt8]] = [output: [], errors: []]
    var open = [output, errors]
    let end = ContinuousClock.now + .seconds(limit)
    var buffer = [UInt8](repeating: 0, count: 65536)
    while !open.isEmpty {
      var waiting = open.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
      let left = end - ContinuousClock.now
      guard left > .zero else {
        throw LabError(
          "\(arguments.joined(separator: " ")) had not ended after \(limit) seconds; it printed: "
            + texts.values.map { String(decoding: $0, as: UTF8.self) }.joined())
      }
      guard poll(&waiting, nfds_t(waiting.count), Int32(left.components.seconds * 1000 + 1000)) > 0
      else { continue }
      for entry in waiting where entry.revents != 0 {
        let count = read(entry.fd, &buffer, buffer.count)
        if count > 0 {
          texts[entry.fd]?.append(contentsOf: buffer[..<count])
        } else {
          open.removeAll { $0 == entry.fd }
        }
      }
    }
    var status: Int32 = 0
    while waitpid(process, &status, 0) < 0 && errno == EINTR {}
    hasEnded = true
    let signal = status & 0x7f
    return Outcome(
      status: signal == 0 ? (status >> 8) & 0xff : 128 + signal,
      output: String(decoding: texts[output] ?? [], as: UTF8.self),
      errors: String(decoding: texts[errors] ?? [], as: UTF8.self))
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
