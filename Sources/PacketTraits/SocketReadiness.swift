// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import Synchronization
internal import SystemPackage

// How tasks wait for sockets: one thread of the process sits in epoll_wait(2),
// and resumes the tasks whose sockets have something. No other thread waits for
// a socket, least of all one of the cooperative pool, of which there are no more
// than processors.
//
// Not a DispatchSource, for three reasons. A source is of one descriptor and one
// queue, which runs its handlers on threads that are made when the others are
// busy. It must be resumed as often as it was suspended before it may go. And it
// tells at once, again and again, of a socket whose queue of errors nobody
// reads. Here each wait is one epoll_ctl(2), and there is libc alone beneath.

/// A socket that tasks wait for.
final class SocketReadiness: Sendable {
  private struct State {
    var waiting: [UInt64: CheckedContinuation<Result<Void, Errno>, Never>] = [:]
    var lastTicket: UInt64 = 0
    /// Whether epoll(7) tells of changes, all the time, and not once a wait.
    var tellsChanges = false
    /// Then: whether there was one since the last wait.
    var hasChanged = false
  }

  /// A duplicate of the caller's, so that the number stays this socket's when
  /// the caller closes his.
  let descriptor: FileDescriptor
  private let poller: SocketPoller
  private let token: UInt64
  private let state = Mutex(State())

  /// - Throws: `EBADF`, `EMFILE`, `EAGAIN` if the poller's thread cannot be made,
  ///   what else epoll_create(2) names.
  init(duplicating descriptor: FileDescriptor) throws(Errno) {
    poller = try SocketPoller.shared()
    let number = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
    guard number >= 0 else { throw Errno.current }
    self.descriptor = FileDescriptor(rawValue: number)
    token = poller.newToken()
    poller.add(self, token)
  }

  deinit {
    poller.remove(token)
    // By hand: to close it is not enough where the caller's is still open.
    _ = ctraits_epoll_forget(poller.epoll, descriptor.rawValue)
    try? descriptor.close()
  }

  /// Waits until there may be something to receive, or an error; or until the
  /// task is cancelled, which is no error here.
  ///
  /// - Throws: What epoll_ctl(2) names.
  func wait() async throws(Errno) {
    let ticket = state.withLock {
      $0.lastTicket += 1
      return $0.lastTicket
    }
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        // Who cancels marks the task first and then takes the lock: either the
        // mark is seen here, or the continuation is found there.
        let outcome = state.withLock { state -> Result<Void, Errno>? in
          if Task.isCancelled { return .success(()) }
          if state.tellsChanges {
            if state.hasChanged {
              state.hasChanged = false
              return .success(())
            }
          } else if ctraits_epoll_watch(
            poller.epoll, descriptor.rawValue, token, CTRAITS_READINESS_ONCE) != 0
          {
            return .failure(.current)
          }
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

  /// Ends every wait.
  func resumeAll(_ result: Result<Void, Errno> = .success(())) {
    let waiting = state.withLock { state in
      let waiting = state.waiting
      state.waiting = [:]
      // Whoever is about to wait has not looked since.
      if state.tellsChanges && waiting.isEmpty { state.hasChanged = true }
      return waiting
    }
    for continuation in waiting.values { continuation.resume(returning: result) }
  }

  /// To be called when a wait has ended and there is nothing to receive after
  /// all.
  ///
  /// As long as there is something in a socket's queue of errors, which is not
  /// for us to read, epoll(7) says that the socket is ready. Then only what
  /// changes is waited for.
  func foundNothing() throws(Errno) {
    var socket = pollfd(fd: descriptor.rawValue, events: Int16(POLLIN), revents: 0)
    guard poll(&socket, 1, 0) > 0, Int32(socket.revents) & (POLLIN | POLLERR) == POLLERR else { return }
    try state.withLock { state throws(Errno) in
      guard !state.tellsChanges else { return }
      guard
        ctraits_epoll_watch(poller.epoll, descriptor.rawValue, token, CTRAITS_READINESS_CHANGES) == 0
      else { throw Errno.current }
      state.tellsChanges = true
    }
  }
}

/// The thread that waits for all sockets. It is made for the first one, and
/// stays.
private final class SocketPoller: Sendable {
  /// Weak, as whoever holds a socket is to let it go by letting go of it.
  private struct Entry {
    weak var readiness: SocketReadiness?
  }

  private struct State {
    var entries: [UInt64: Entry] = [:]
    var lastToken: UInt64 = 0
  }

  let epoll: Int32
  private let state = Mutex(State())

  private static let only = Mutex<SocketPoller?>(nil)

  static func shared() throws(Errno) -> SocketPoller {
    try only.withLock { only throws(Errno) in
      if let only { return only }
      let poller = try SocketPoller()
      only = poller
      return poller
    }
  }

  private init() throws(Errno) {
    epoll = ctraits_epoll_create()
    guard epoll >= 0 else { throw Errno.current }
    try start()
  }

  deinit { close(epoll) }

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
        // Somebody closed what is not his. Later waits fail of themselves.
        let all = state.withLock { $0.entries.values.compactMap(\.readiness) }
        for readiness in all { readiness.resumeAll(.failure(error)) }
        return
      }
      for token in tokens[..<Int(count)] {
        let readiness = state.withLock { $0.entries[token]?.readiness }
        // Outside of the lock: it may be the last who held it.
        readiness?.resumeAll()
      }
    }
  }

  func newToken() -> UInt64 {
    state.withLock {
      $0.lastToken += 1
      return $0.lastToken
    }
  }

  func add(_ readiness: SocketReadiness, _ token: UInt64) {
    state.withLock { $0.entries[token] = Entry(readiness: readiness) }
  }

  func remove(_ token: UInt64) {
    state.withLock { $0.entries[token] = nil }
  }
}
