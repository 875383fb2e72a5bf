// SPDX-License-Identifier: MIT

internal import CNetworkLab
internal import Glibc
internal import Synchronization

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

/// Work that a thread of its own does again and again.
public final class Repetition: Sendable {
  private let work: @Sendable () throws -> Void
  private let isOver = Atomic(false)
  private let rounds = Mutex<Result<Int, any Error>>(.success(0))

  fileprivate init(_ work: @escaping @Sendable () throws -> Void) { self.work = work }

  /// How often the work was done so far.
  ///
  /// - Throws: What the work threw, which ended it.
  public func count() throws -> Int { try rounds.withLock { try $0.get() } }

  fileprivate func run() {
    do {
      while !isOver.load(ordering: .acquiring) {
        try work()
        rounds.withLock { $0 = $0.map { $0 + 1 } }
      }
    } catch {
      rounds.withLock { $0 = .failure(error) }
    }
  }

  fileprivate func end() { isOver.store(true, ordering: .releasing) }
}

/// Does `work` again and again on a thread of its own for as long as `body`
/// runs. The last round is brought to its end.
///
/// - Throws: What `body` throws, or what `work` throws.
public func repeating<Value>(
  _ work: @escaping @Sendable () throws -> Void, during body: (Repetition) throws -> Value
) throws -> Value {
  let repetition = Repetition(work)
  var thread = pthread_t()
  let error = pthread_create(
    &thread, nil,
    { argument in
      Unmanaged<Repetition>.fromOpaque(argument!).takeUnretainedValue().run()
      return nil
    }, Unmanaged.passUnretained(repetition).toOpaque())
  guard error == 0 else {
    throw LabError("a thread cannot be made: \(String(cString: strerror(error)))")
  }
  let result = Result { try body(repetition) }
  repetition.end()
  pthread_join(thread, nil)
  let value = try result.get()
  _ = try repetition.count()
  return value
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

/// A capability, as capabilities(7) has them.
public enum Capability: Int, Sendable {
  case netAdmin = 12
  case systemAdmin = 21
  case performanceMonitoring = 38
  case bpf = 39
}

/// Runs `body` on a thread that has no other capabilities than these, and waits
/// for it. It stays the user who it is.
public func withCapabilities<Value: ~Copyable>(
  _ capabilities: Set<Capability>, _ body: () throws -> Value
) throws -> Value {
  try onOwnThread {
    let error = lab_keep_thread_capabilities(capabilities.reduce(0) { $0 | 1 << UInt64($1.rawValue) })
    guard error == 0 else {
      throw LabError("capabilities cannot be given up: \(String(cString: strerror(error)))")
    }
    return try body()
  }
}

/// Signals (`SIGUSR2`) that are sent to a thread, and end system calls in it
/// that wait (signal(7)).
public struct Interruptions: Sendable {
  private static let handled = Atomic(0)

  /// Held by who sends them: the count is that of one thread.
  fileprivate static let turn = Mutex(())

  /// How many were handled so far.
  public var count: Int { Self.handled.load(ordering: .relaxed) }

  fileprivate static func handle() throws {
    var action = sigaction()
    action.__sigaction_handler.sa_handler = { _ in
      Interruptions.handled.add(1, ordering: .relaxed)
    }
    guard sigaction(SIGUSR2, &action, nil) == 0 else {
      throw LabError("sigaction: \(String(cString: strerror(errno)))")
    }
  }
}

/// Interrupts this thread for as long as `body` runs, though no more than 10
/// seconds, so that what signals put off comes to its end. One thread at a
/// time: others wait for their turn.
///
/// - Parameter pause: Microseconds from one signal to the next.
public func whileInterrupted<Value: Sendable>(
  every pause: UInt32 = 5000, _ body: (Interruptions) throws -> Value
) throws -> Value {
  try Interruptions.handle()
  // The threads of a pool have signals blocked.
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGUSR2)
  var former = sigset_t()
  pthread_sigmask(SIG_UNBLOCK, &signals, &former)
  defer { pthread_sigmask(SIG_SETMASK, &former, nil) }

  let thread = pthread_self()
  return try Interruptions.turn.withLock { _ in
    let end = ContinuousClock.now + .seconds(10)
    return try repeating {
      if ContinuousClock.now < end { pthread_kill(thread, SIGUSR2) }
      usleep(pause)
    } during: { _ in
      try body(Interruptions())
    }
  }
}
