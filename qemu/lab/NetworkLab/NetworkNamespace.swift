// SPDX-License-Identifier: MIT

internal import CNetworkLab
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// Runs `body` on a thread in a network namespace without a name, which has
/// nothing but a loopback interface that is down, and waits for it.
public func inNewNetwork<Value: ~Copyable>(_ body: () throws -> Value) throws -> Value {
  try onOwnThread {
    let error = lab_make_network_namespace()
    guard error == 0 else {
      throw LabError("a network namespace cannot be made: \(String(cString: strerror(error)))")
    }
    return try body()
  }
}

/// Sets a kernel parameter, as `net/ipv4/ip_forward`: of the thread's network
/// namespace if it is under `net`.
public func setKernelParameter(_ path: String, _ value: String) throws {
  let descriptor = open("/proc/sys/" + path, O_WRONLY | O_CLOEXEC)
  guard descriptor >= 0 else {
    throw LabError("/proc/sys/\(path): \(String(cString: strerror(errno)))")
  }
  defer { close(descriptor) }
  guard write(descriptor, value, value.utf8.count) == value.utf8.count else {
    throw LabError("/proc/sys/\(path) = \(value): \(String(cString: strerror(errno)))")
  }
}

/// A network namespace of this program's making.
public struct NetworkNamespace: Sendable {
  /// As `ip netns` knows it.
  public let name: String

  private static let made = Atomic<Int>(0)

  /// Makes a namespace, with its loopback interface up.
  ///
  /// - Parameter purpose: Becomes part of the name.
  public init(_ purpose: String) throws {
    let number = Self.made.add(1, ordering: .relaxed).newValue
    name = "traits-\(getpid())-\(number)-\(purpose)"
    try Command.require("ip", "netns", "add", name)
    do {
      try ip("link", "set", "lo", "up")
    } catch {
      remove()
      throw error
    }
  }

  /// Removes the namespace, with the interfaces in it.
  public func remove() {
    do {
      try Command.require("ip", "netns", "del", name)
    } catch {
      _ = try? FileDescriptor.standardError.writeAll("\(error)\n".utf8)
    }
  }

  /// Runs `ip` with these arguments in the namespace.
  @discardableResult
  public func ip(_ arguments: String...) throws -> String {
    let command = ["ip", "-n", name] + arguments
    let outcome = try Command(command).wait()
    guard outcome.status == 0 else {
      throw LabError(
        "\(command.joined(separator: " ")): exit status \(outcome.status): \(outcome.errors)")
    }
    return outcome.output
  }

  /// Runs `ip` once in the namespace, for all of these lines of arguments.
  public func ip(lines: [String]) throws {
    let command = ["ip", "-n", name, "-batch", "-"]
    let outcome = try Command(command, input: lines.map { $0 + "\n" }.joined()).wait()
    guard outcome.status == 0 else {
      throw LabError(
        "\(command.joined(separator: " ")): exit status \(outcome.status): \(outcome.errors)\(lines)")
    }
  }

  /// Runs `body` on a thread in the namespace, and waits for it. Sockets that
  /// it makes stay in the namespace.
  public func run<Value: ~Copyable>(_ body: () throws -> Value) throws -> Value {
    try onOwnThread {
      let descriptor = open("/var/run/netns/\(name)", O_RDONLY | O_CLOEXEC)
      guard descriptor >= 0 else {
        throw LabError("network namespace \(name): \(String(cString: strerror(errno)))")
      }
      defer { close(descriptor) }
      let error = lab_enter_network_namespace(descriptor)
      guard error == 0 else {
        throw LabError("network namespace \(name): \(String(cString: strerror(error)))")
      }
      return try body()
    }
  }

  /// Sets a kernel parameter of the namespace, as `net/ipv4/ip_forward`.
  public func setParameter(_ path: String, _ value: String) throws {
    try run { try setKernelParameter(path, value) }
  }
}
