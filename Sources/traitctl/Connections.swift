// SPDX-License-Identifier: MIT

internal import Glibc
internal import PacketTraits
internal import Synchronization
internal import SystemPackage

/// Connections that come to a listener: takes them, and tells what each brings.
final class Connections: Sendable {
  /// Why there are no more.
  enum End: Equatable {
    /// As many as were to come have come and ended.
    case complete
    /// Nothing came for the time that was to be waited; so many had ended by then.
    case idle(ended: Int)
  }

  /// What a task comes back with.
  private enum Event: Sendable {
    case accepted(Accepted)
    case ended
    case idle(ended: Int)
  }

  /// What has been reported so far.
  private struct Progress {
    var lastArrival = ContinuousClock.now
    /// The number of connections whose end was reported.
    var ended = 0
    /// Set when the time-out is over. Nothing is reported after that, so that `ended` stays right.
    var isOver = false
  }

  /// A connection on its way from the task that took it to the one that reads it.
  private final class Accepted: Sendable {
    let connection: TCPConnection

    init(_ connection: consuming TCPConnection) { self.connection = connection }
  }

  private let listener: TCPListener
  private let keyNames: [TraitID: String]
  private let savesSYN: Bool
  /// Test hook: makes the next attempt to accept or to receive fail.
  private let shortage: @Sendable () -> TraitError?
  private let report: @Sendable (any ConnectionEvent) throws -> Void
  /// Held by the task that reports, so that lines are whole.
  private let progress = Mutex(Progress())

  /// - Parameters:
  ///   - listener: Listens already.
  ///   - keyNames: Those of the keys that are received.
  ///   - savesSYN: Whether the listener keeps traits of a SYN.
  ///   - report: Is told what happens, by one task at a time.
  init(
    _ listener: consuming TCPListener, keyNames: [TraitID: String], savesSYN: Bool,
    shortage: @escaping @Sendable () -> TraitError? = { nil },
    report: @escaping @Sendable (any ConnectionEvent) throws -> Void
  ) {
    self.shortage = shortage
    self.listener = listener
    self.keyNames = keyNames
    self.savesSYN = savesSYN
    self.report = report
  }

  /// Takes connections until there have been enough.
  ///
  /// - Parameters:
  ///   - count: How many are to come; nil for no end.
  ///   - timeout: How long to wait while nothing comes; nil for as long as it takes.
  /// - Throws: What accepting and the report throw. An error of one connection ends that one.
  func serve(count: Int?, timeout: Duration?) async throws -> End {
    // The first sleep of a process opens descriptors, which Dispatch has for its timers. Without
    // any left it would crash, or never end. More than one, as a sleep whose time is over before
    // Dispatch has it opens none: the first may take long to come there.
    for _ in 0..<5 { try await Task.sleep(for: .milliseconds(10)) }
    progress.withLock { $0 = Progress() }
    return try await withThrowingTaskGroup(of: Event.self) { group in
      defer { group.cancelAll() }
      func acceptNext() { group.addTask { try await self.acceptNext() } }
      acceptNext()
      if let timeout { group.addTask { try await self.waitUntilIdle(timeout) } }
      var accepted = 0
      var ended = 0
      while let event = try await group.next() {
        switch event {
        case .accepted(let next):
          accepted += 1
          group.addTask { try await self.follow(next.connection) }
          if accepted != count { acceptNext() }
        case .ended:
          ended += 1
          if ended == count { return .complete }
        case .idle(let ended):
          return ended == count ? .complete : .idle(ended: ended)
        }
      }
      return .complete
    }
  }

  /// Takes the next connection. When descriptors or memory run out, retries every 100 ms; the
  /// connection stays in the accept queue.
  private func acceptNext() async throws -> Event {
    var hasComplained = false
    while true {
      do throws(TraitError) {
        if let error = shortage() { throw error }
        return .accepted(Accepted(try await listener.accept()))
      } catch {
        if error.underlyingError == .connectionAbort {
          // It is gone already (accept(2)).
          continue
        }
        guard Self.isShortage(error) else { throw error }
        try await pause(after: error, &hasComplained)
      }
    }
  }

  /// Returns whether the error is a lack of descriptors or memory, which ends when other
  /// connections end.
  private static func isShortage(_ error: TraitError) -> Bool {
    switch error.underlyingError {
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem, .noMemory, .noBufferSpace: true
    default: false
    }
  }

  private func pause(after shortage: TraitError, _ hasComplained: inout Bool) async throws {
    if !hasComplained { complain("\(shortage); it waits") }
    hasComplained = true
    try await Task.sleep(for: .milliseconds(100))
  }

  /// Tells what one connection brings, to its end.
  private func follow(_ connection: borrowing TCPConnection) async throws -> Event {
    let peer = connection.peerAddress.description
    let saved: Traits?
    do throws(TraitError) {
      saved = savesSYN ? try connection.synTraits() : nil
    } catch {
      try tell(ConnectionEndReport(peer: peer, error: error.description))
      return .ended
    }
    try tell(ConnectionReport(peer: peer, synTraits: try saved.map(reports)))
    var bytes = [UInt8](repeating: 0, count: 65536)
    var hasComplained = false
    while true {
      let received: ReceivedBytes
      do throws(TraitError) {
        if let error = shortage() { throw error }
        received = try await connection.receive(into: &bytes)
      } catch {
        // To wait takes a second descriptor. The connection may have got the last one.
        if Self.isShortage(error) {
          try await pause(after: error, &hasComplained)
          continue
        }
        // Cancelled is who has nothing to tell any more.
        if error.code != .cancelled {
          try tell(ConnectionEndReport(peer: peer, error: error.description))
        }
        return .ended
      }
      guard !received.isEndOfStream else {
        try tell(ConnectionEndReport(peer: peer, error: nil))
        return .ended
      }
      let traits = readable("\(received.length) bytes from \(peer)") { () throws(TraitError) in
        try received.traits
      }
      try tell(
        ReadReport(
          peer: peer, length: received.length, traits: try reports(of: traits ?? Traits()),
          traitsTruncated: received.areTraitsTruncated || traits == nil))
      // A peer that sends without a pause would keep the others from this thread.
      await Task.yield()
    }
  }

  private func reports(of traits: Traits) throws -> [TraitReport] {
    // A key that was removed and made anew is not delivered any more.
    try traits.map { try TraitReport($0, name: keyNames[$0.id] ?? $0.id.description) }
  }

  private func tell(_ event: some ConnectionEvent) throws {
    try progress.withLock {
      guard !$0.isOver else { return }
      try report(event)
      if event is ConnectionEndReport { $0.ended += 1 }
      // However long that took: meanwhile nobody looked whether something came.
      $0.lastArrival = .now
    }
  }

  private func waitUntilIdle(_ timeout: Duration) async throws -> Event {
    while true {
      let (end, ended) = progress.withLock {
        let end = $0.lastArrival + timeout
        $0.isOver = end <= .now
        return (end, $0.isOver ? $0.ended : nil)
      }
      if let ended { return .idle(ended: ended) }
      try await Task.sleep(until: end, clock: .continuous)
    }
  }
}

/// Lets this process have as many descriptors as it may (getrlimit(2), `RLIMIT_NOFILE`): the usual limit of
/// 1024 is for programs with select(2).
func allowDescriptors() {
  var limit = rlimit()
  guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
  limit.rlim_cur = limit.rlim_max
  _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
}
