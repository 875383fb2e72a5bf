// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import Synchronization
import SystemPackage
import Testing

@testable import PacketTraits

// What keeps chance out of these tests: other tests run beside them, in this process and in
// others, and the machine may be busy.

/// How long something may take that otherwise never comes. It only ends a hang.
let hangLimit = Duration.seconds(100)

/// Addresses that refuse what is sent to them, for as long as this process runs. A socket that was
/// closed would not do: another test may get its port, and a program that is being started has a
/// copy of its descriptor until it runs.
enum Refusing {
  /// A socket that is bound and does not listen.
  static func tcp(_ family: InternetAddress.Family = .ipv4) throws -> InternetAddress {
    let socket = try TCPListener(family)
    try socket.unsafeFileDescriptor.bindSocket(to: try loopback(family))
    let address = try socket.localAddress()
    _ = socket.release()
    return address
  }

  /// A socket that is connected to itself, so that it takes nothing from others.
  static func udp(_ family: InternetAddress.Family = .ipv4) throws -> InternetAddress {
    let socket = try refusingSocket(family)
    let address = try socket.localAddress()
    _ = socket.release()
    return address
  }

  /// A socket as that of ``udp(_:)``, which can send to others.
  static func refusingSocket(_ family: InternetAddress.Family) throws -> UDPSocket {
    let socket = try UDPSocket(family)
    try socket.bind(to: try loopback(family))
    try socket.connect(to: try socket.localAddress())
    return socket
  }

  private static func loopback(_ family: InternetAddress.Family) throws -> InternetAddress {
    try #require(InternetAddress(family == .ipv4 ? "127.0.0.1" : "::1", port: 0))
  }
}

/// Lets this process have as many descriptors as it may: the usual limit of 1024 is too low for
/// several tests at once that open hundreds.
func allowDescriptors() {
  var limit = rlimit()
  guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
  limit.rlim_cur = limit.rlim_max
  setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
}

/// Expects that a call ends when its time is over, though signals come all the while. Where there
/// were too few of them to prove anything, as on a busy machine, it is given more time.
///
/// - Parameter body: The call, which must wait as long as it is told.
func expectTimeout(
  sourceLocation: SourceLocation = #_sourceLocation, _ body: (Duration) throws -> Void
) throws {
  for time in [.milliseconds(200), .seconds(1), .seconds(4)] as [Duration] {
    let signals = try whileInterrupted { signals in
      let before = signals.count
      let start = ContinuousClock.now
      try body(time)
      let duration = ContinuousClock.now - start
      #expect(duration >= time - .milliseconds(10), sourceLocation: sourceLocation)
      // Signals come for 10 seconds. A wait that restarts at each signal would take longer.
      #expect(duration < time + .seconds(5), sourceLocation: sourceLocation)
      return signals.count - before
    }
    if signals > 3 { return }
  }
  Issue.record("there were too few signals to prove anything", sourceLocation: sourceLocation)
}

/// Whether there is no room for a single byte to be sent.
func isFull(_ descriptor: FileDescriptor) -> Bool {
  SocketWait.look(descriptor, for: POLLOUT) == 0
}

/// What a task gives that is not to wait for ever: it is cancelled after ``hangLimit``.
func outcome<Value: Sendable>(_ task: Task<Value, any Error>) async throws -> Value {
  let limit = Task {
    try await Task.sleep(for: hangLimit)
    task.cancel()
  }
  defer { limit.cancel() }
  return try await task.value
}

/// Waits until `condition` holds: nothing that is waited for here takes that long, unless it never
/// comes.
func until(
  sourceLocation: SourceLocation = #_sourceLocation, _ condition: () throws -> Bool
) async throws {
  let end = ContinuousClock.now + hangLimit
  while try !condition(), ContinuousClock.now < end { try await Task.sleep(for: .milliseconds(1)) }
  try #require(try condition(), "it has not come within \(hangLimit)", sourceLocation: sourceLocation)
}

/// How often something happened in several tasks.
final class Counter: Sendable {
  private let number = Atomic(0)

  func count() { number.add(1, ordering: .relaxed) }

  var value: Int { number.load(ordering: .relaxed) }
}
