// SPDX-License-Identifier: MIT

internal import CNetworkLab
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// Runs `body` on a thread of its own, and waits for it.
///
/// For what a thread cannot undo, or what must not happen to other threads: to
/// enter a network namespace, to give up privilege.
public func onOwnThread<Value: ~Copyable>(_ body: () throws -> Value) throws -> Value {
  let outcome = ThreadOutcome<Value>()
  try withoutActuallyEscaping(body) { body in
    let work = ThreadWork {
      do { outcome.result = .success(try body()) } catch { outcome.result = .failure(error) }
    }
    try withExtendedLifetime(work) {
      var thread = pthread_t()
      let error = pthread_create(
        &thread, nil,
        { argument in
          Unmanaged<ThreadWork>.fromOpaque(argument!).takeUnretainedValue().run()
          return nil
        }, Unmanaged.passUnretained(work).toOpaque())
      guard error == 0 else {
        throw LabError("a thread cannot be made: \(String(cString: strerror(error)))")
      }
      pthread_join(thread, nil)
    }
  }
  guard let result = outcome.result.take() else {
    throw LabError("the thread ended without an outcome")
  }
  return try result.get()
}

private final class ThreadWork {
  let run: () -> Void

  init(_ run: @escaping () -> Void) { self.run = run }
}

private final class ThreadOutcome<Value: ~Copyable> {
  var result: Result<Value, any Error>?
}

/// Runs `body` on a thread without privilege, and waits for it.
///
/// - Parameter user: Whom to become, not 0.
public func asUser<Value: ~Copyable>(
  _ user: UInt32 = 65534, _ body: () throws -> Value
) throws -> Value {
  try onOwnThread {
    let error = lab_drop_thread_privilege(user)
    guard error == 0 else {
      throw LabError("cannot become user \(user): \(String(cString: strerror(error)))")
    }
    return try body()
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
    try run {
      let descriptor = open("/proc/sys/" + path, O_WRONLY | O_CLOEXEC)
      guard descriptor >= 0 else {
        throw LabError("/proc/sys/\(path): \(String(cString: strerror(errno)))")
      }
      defer { close(descriptor) }
      guard write(descriptor, value, value.utf8.count) == value.utf8.count else {
        throw LabError("/proc/sys/\(path) = \(value): \(String(cString: strerror(errno)))")
      }
    }
  }
}
