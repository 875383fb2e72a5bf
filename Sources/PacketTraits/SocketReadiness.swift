// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import Synchronization
package import SystemPackage

// How tasks wait for sockets: one thread of the process sits in epoll_wait(2),
// and resumes the tasks whose sockets have something. No other thread waits for
// a socket, least of all one of the cooperative pool, of which there are no more
// than processors.
//
// Not a DispatchSource, for three reasons. A source is of one descriptor and one
// queue, which runs its handlers on threads that are made when the others are
// busy. It must be resumed as often as it was suspended before it may go. And it
// tells at once, again and again, of a socket whose queue of errors nobody
// reads. Here each wait is one poll(2) and one epoll_ctl(2), and there is libc alone
// beneath.

/// A socket that tasks wait for.
package final class SocketReadiness: Sendable {
  /// What is waited for.
  package enum Direction: Sendable {
    /// Something to receive, and that nothing will come any more.
    case receiving
    /// Room for what is to be sent, and that a connection is there.
    case sending

    /// As poll(2) has it.
    var events: Int32 {
      switch self {
      case .receiving: POLLIN | CTRAITS_POLLRDHUP
      case .sending: POLLOUT
      }
    }
  }

  private struct State {
    var waiting: [UInt64: CheckedContinuation<Result<Void, Errno>, Never>] = [:]
    var lastTicket: UInt64 = 0
    /// How often waits were ended, whether there were any or not.
    var generation: UInt64 = 0
    /// Whether epoll(7) tells of changes, all the time, and not once a wait.
    var tellsChanges = false
    /// How often in a row the poller told of a change that nobody waited for.
    var idleWakes = 0
    /// Why nobody tells of this socket any more.
    var failure: Errno?
    /// Whether ``close()`` has closed the descriptor.
    var isClosed = false
  }

  /// A duplicate of the caller's, so that the number stays this socket's when
  /// the caller closes his. Not to be used after ``close()``.
  package let descriptor: FileDescriptor
  private let direction: Direction
  private let poller: SocketPoller
  private let token: UInt64
  private let state = Mutex(State())

  /// - Throws: `EBADF`, `EMFILE`, `EAGAIN` if the poller's thread cannot be made,
  ///   what else epoll_create(2) names.
  package convenience init(
    duplicating descriptor: FileDescriptor, for direction: Direction = .receiving
  ) throws(Errno) {
    try self.init(duplicating: descriptor, for: direction, poller: try SocketPoller.shared())
  }

  /// - Throws: `EBADF`, `EMFILE`, or why this poller has ended.
  init(
    duplicating descriptor: FileDescriptor, for direction: Direction = .receiving,
    poller: SocketPoller
  ) throws(Errno) {
    self.direction = direction
    self.poller = poller
    let number = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
    guard number >= 0 else { throw Errno.current }
    self.descriptor = FileDescriptor(rawValue: number)
    token = poller.newToken()
    try poller.add(self, token)
  }

  deinit { close() }

  /// Closes the descriptor and resumes all waiters. Later waits return at once, and
  /// ``foundNothing()`` says that the socket is shut down.
  ///
  /// The poller's thread may hold this object for a moment longer than its owner does. So an
  /// owner whose socket has to be closed when it says so calls this function, and does not
  /// rely on `deinit`.
  package func close() {
    poller.remove(token)
    state.withLock { state in
      guard !state.isClosed else { return }
      state.isClosed = true
      // epoll(7) forgets a file when its last descriptor is closed, and the caller's may stay
      // open.
      _ = ctraits_epoll_forget(poller.epoll, descriptor.rawValue)
      try? descriptor.close()
    }
    endWaits(.success(()))
  }

  /// Changes with each end of waits. To be read before one looks whether there
  /// is something to receive, and handed to ``wait(since:)``.
  package var generation: UInt64 { state.withLock { $0.generation } }

  /// Waits until there may be something to receive, or room to send, or an error, or
  /// the socket is shut down; or until the task is cancelled, which is no error here.
  ///
  /// - Parameter generation: As it was before the caller looked and found
  ///   nothing. If it is another one now there is no wait: who ended the waits in
  ///   between could not end this one.
  /// - Throws: What epoll_ctl(2) names, or why the poller has ended.
  package func wait(since generation: UInt64) async throws(Errno) {
    let ticket = state.withLock {
      $0.lastTicket += 1
      return $0.lastTicket
    }
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        // Who cancels marks the task first and then takes the lock: either the
        // mark is seen here, or the continuation is found there.
        let outcome = state.withLock { state -> Result<Void, Errno>? in
          if Task.isCancelled || state.isClosed { return .success(()) }
          if let failure = state.failure { return .failure(failure) }
          if state.generation != generation { return .success(()) }
          if !state.tellsChanges, !watch(CTRAITS_READINESS_ONCE) { return .failure(.current) }
          state.waiting[ticket] = continuation
          return nil
        }
        if let outcome { continuation.resume(returning: outcome) }
      }
    } onCancel: {
      state.withLock { $0.waiting.removeValue(forKey: ticket) }?.resume(returning: .success(()))
    }
    try result.get()
  }

  /// Ends every wait, and those to come of who has looked before.
  package func resumeAll() { endWaits(.success(())) }

  /// Ends every wait: the poller has something to tell.
  ///
  /// Once the poller tells of changes it does so for each datagram, also when no task waits. After
  /// two such wake-ups in a row it goes back to telling once a wait. Not after the first one,
  /// which may be of what was there when ``tellChanges()`` was called: a socket that is always
  /// ready would go back and forth.
  fileprivate func wake() {
    state.withLock { state in
      state.idleWakes = state.waiting.isEmpty && state.tellsChanges ? state.idleWakes + 1 : 0
      // This tells once more, of what is there by now, and then nothing until the next wait.
      guard state.idleWakes == 2, !state.isClosed, watch(CTRAITS_READINESS_ONCE) else { return }
      state.tellsChanges = false
      state.idleWakes = 0
    }
    endWaits(.success(()))
  }

  /// Ends every wait, now and later, with this error.
  fileprivate func fail(_ error: Errno) {
    state.withLock { $0.failure = error }
    endWaits(.failure(error))
  }

  private func endWaits(_ result: Result<Void, Errno>) {
    let waiting = state.withLock { state in
      state.generation &+= 1
      let waiting = state.waiting
      state.waiting = [:]
      return waiting
    }
    for continuation in waiting.values { continuation.resume(returning: result) }
  }

  /// To be called when there is nothing to receive, or no room to send, before
  /// ``wait(since:)``.
  ///
  /// As long as there is something in a socket's queue of errors, or in the ring of a
  /// packet socket (packet(7), `PACKET_RX_RING`), which are not for us to read, epoll(7)
  /// says that the socket is ready. Then only what changes is waited for. This also happens
  /// when something arrives between the caller's look and the poll here.
  ///
  /// - Returns: Whether something can come: false if the socket is shut down for
  ///   receiving (shutdown(2)), and no wait would ever end with something. What
  ///   came before that may be there.
  /// - Throws: What epoll_ctl(2) names.
  package func foundNothing() throws(Errno) -> Bool {
    let found = state.withLock {
      $0.isClosed ? POLLHUP : SocketWait.look(descriptor, for: direction.events)
    }
    guard found & (POLLHUP | CTRAITS_POLLRDHUP) == 0 else { return false }
    if found & (POLLIN | POLLOUT | POLLERR) != 0 { try tellChanges() }
    return true
  }

  /// From now on has waits ended by what changes, and not by what is.
  ///
  /// - Throws: What epoll_ctl(2) names.
  func tellChanges() throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard !state.tellsChanges, !state.isClosed else { return }
      // This tells at once, too, of what is there already.
      guard watch(CTRAITS_READINESS_CHANGES) else { throw Errno.current }
      state.tellsChanges = true
    }
  }

  /// - Returns: Whether that went well; otherwise there is `errno`.
  private func watch(_ readiness: ctraits_readiness) -> Bool {
    ctraits_epoll_watch(poller.epoll, descriptor.rawValue, token, UInt32(direction.events), readiness) == 0
  }
}

/// What waits for one socket in one direction, made when something is waited for.
struct ReadinessSlot: ~Copyable, Sendable {
  private let direction: SocketReadiness.Direction
  private let made = Mutex<SocketReadiness?>(nil)

  init(for direction: SocketReadiness.Direction) { self.direction = direction }

  // So that the socket is closed when its owner has been, and not when the poller's thread has
  // let go of it.
  deinit { made.withLock { $0 }?.close() }

  /// - Parameter descriptor: The socket, the same each time.
  /// - Throws: As ``SocketReadiness/init(duplicating:for:)``.
  func readiness(of descriptor: FileDescriptor) throws(Errno) -> SocketReadiness {
    try made.withLock { made throws(Errno) in
      if let made { return made }
      let new = try SocketReadiness(duplicating: descriptor, for: direction)
      made = new
      return new
    }
  }

  /// To be called after a look in vain, and then again after the next one: waits until
  /// there may be what is waited for, or until the task is cancelled. The first call comes back
  /// at once.
  ///
  /// - Parameter generation: nil at first; set to that of the next look.
  /// - Returns: Whether something can come. If not, there was no wait, as it would never end:
  ///   the next look finds what was there before the socket was shut down.
  @discardableResult
  func wait(
    for descriptor: FileDescriptor, since generation: inout UInt64?,
    isolation actor: isolated (any Actor)?
  ) async throws(Errno) -> Bool {
    let readiness = try readiness(of: descriptor)
    var canCome = true
    if let since = generation {
      canCome = try readiness.foundNothing()
      if canCome { try await readiness.wait(since: since) }
    }
    generation = readiness.generation
    return canCome
  }
}

/// The thread that waits for all sockets. It is made for the first one, and
/// stays, unless somebody closes its descriptor.
final class SocketPoller: Sendable {
  /// Weak, as whoever holds a socket is to let it go by letting go of it.
  private struct Entry {
    weak var readiness: SocketReadiness?
  }

  private struct State {
    var entries: [UInt64: Entry] = [:]
    var lastToken: UInt64 = 0
    /// Why the thread has ended.
    var failure: Errno?
  }

  let epoll: Int32
  /// How often the thread told a socket, for tests.
  let wakes = Atomic<Int>(0)
  private let state = Mutex(State())

  private static let only = Mutex<SocketPoller?>(nil)

  static func shared() throws(Errno) -> SocketPoller {
    try only.withLock { only throws(Errno) in
      if let only, only.state.withLock({ $0.failure == nil }) { return only }
      let poller = try SocketPoller()
      only = poller
      return poller
    }
  }

  /// - Throws: What epoll_create(2) and pthread_create(3) name.
  init() throws(Errno) {
    epoll = ctraits_epoll_create()
    guard epoll >= 0 else { throw Errno.current }
    try start()
  }

  deinit {
    // The number may be somebody else's by now if the thread had to end.
    if state.withLock({ $0.failure == nil }) { close(epoll) }
  }

  private func start() throws(Errno) {
    // The program's handlers of signals are to run in its own threads.
    var all = sigset_t()
    sigfillset(&all)
    var former = sigset_t()
    pthread_sigmask(SIG_SETMASK, &all, &former)
    defer { pthread_sigmask(SIG_SETMASK, &former, nil) }

    var thread = pthread_t()
    let this = Unmanaged.passRetained(self)
    let error = pthread_create(
      &thread, nil,
      { argument in
        ctraits_name_thread("packet-traits")
        Unmanaged<SocketPoller>.fromOpaque(argument!).takeRetainedValue().run()
        return nil
      }, this.toOpaque())
    guard error == 0 else {
      this.release()
      throw Errno(rawValue: error)
    }
    pthread_detach(thread)
  }

  private func run() {
    var tokens = [UInt64](repeating: 0, count: 64)
    while true {
      let count = ctraits_epoll_wait(epoll, &tokens, Int32(tokens.count))
      guard count >= 0 else {
        // SIGSTOP and SIGCONT cannot be blocked (signal(7)).
        let error = Errno.current
        guard error != .interrupted else { continue }
        // Somebody closed what is not his.
        let all = state.withLock { state in
          state.failure = error
          return state.entries.values.compactMap(\.readiness)
        }
        for readiness in all { readiness.fail(error) }
        return
      }
      for token in tokens[..<Int(count)] {
        let readiness = state.withLock { $0.entries[token]?.readiness }
        wakes.add(1, ordering: .relaxed)
        // Outside of the lock: this may be the last reference.
        readiness?.wake()
      }
    }
  }

  func newToken() -> UInt64 {
    state.withLock {
      $0.lastToken += 1
      return $0.lastToken
    }
  }

  /// - Throws: Why the thread has ended, which would never tell of this one.
  func add(_ readiness: SocketReadiness, _ token: UInt64) throws(Errno) {
    try state.withLock { state throws(Errno) in
      if let failure = state.failure { throw failure }
      state.entries[token] = Entry(readiness: readiness)
    }
  }

  func remove(_ token: UInt64) {
    state.withLock { $0.entries[token] = nil }
  }
}
