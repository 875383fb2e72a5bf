// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import SystemPackage

/// A system call on a socket that may wait, whether signals come or not.
///
/// To make an interrupted call again is not enough where the socket has a
/// time-out: the kernel begins it anew with each call, so that signals which
/// keep coming would put it off for ever.
struct SocketWait {
  let descriptor: FileDescriptor
  /// The option with the time-out: `SO_RCVTIMEO` or `SO_SNDTIMEO`.
  let option: Int32
  /// What to wait for, as poll(2) has it.
  let events: Int32
  /// Whether the call may wait at all.
  let isAllowed: Bool
  let retryOnInterrupt: Bool
  // As jiffies, by which the kernel measures, stands still in suspend.
  private let start = SuspendingClock.now

  static func toReceive(
    _ descriptor: FileDescriptor, isAllowed: Bool, retryOnInterrupt: Bool
  ) -> SocketWait {
    SocketWait(
      descriptor: descriptor, option: SO_RCVTIMEO, events: POLLIN | CTRAITS_POLLRDHUP,
      isAllowed: isAllowed, retryOnInterrupt: retryOnInterrupt)
  }

  static func toSend(
    _ descriptor: FileDescriptor, isAllowed: Bool, retryOnInterrupt: Bool
  ) -> SocketWait {
    SocketWait(
      descriptor: descriptor, option: SO_SNDTIMEO, events: POLLOUT, isAllowed: isAllowed,
      retryOnInterrupt: retryOnInterrupt)
  }

  private init(
    descriptor: FileDescriptor, option: Int32, events: Int32, isAllowed: Bool,
    retryOnInterrupt: Bool
  ) {
    self.descriptor = descriptor
    self.option = option
    self.events = events
    self.isAllowed = isAllowed
    self.retryOnInterrupt = retryOnInterrupt
  }

  /// Makes the call until it has an outcome, or the time-out is over, counted
  /// from when this value was made.
  ///
  /// poll(2) may say that there is something where the call finds nothing:
  /// another reader was quicker, or an error queue waits for somebody who reads
  /// it. As that may go on, the next look is put off more and more.
  ///
  /// - Parameter body: The call, with flags to add; below 0 means `errno`.
  func call(_ body: (_ flags: Int32) -> Int) -> Result<Int, Errno> {
    var flags: Int32 = 0
    var pause: Int32 = 1
    while true {
      let count = body(flags)
      if count >= 0 { return .success(count) }
      let error = Errno.current
      // After a wait another reader may have been quicker.
      guard error == .interrupted || (error == .wouldBlock && flags != 0) else {
        return .failure(error)
      }
      guard retryOnInterrupt else { return .failure(error) }
      guard isAllowed, let timeout else {
        // The time-out may have been taken off meanwhile.
        flags = 0
        continue
      }
      if error == .wouldBlock {
        // In milliseconds. A signal only makes it shorter.
        Glibc.poll(nil, 0, pause)
        pause = min(pause * 2, 50)
      }
      guard let found = waitUntilReady(start + timeout) else { return .failure(.wouldBlock) }
      // Where nothing can come any more, a call that may wait says so at once.
      flags = found & (POLLHUP | CTRAITS_POLLRDHUP) == 0 ? Int32(MSG_DONTWAIT) : 0
    }
  }

  /// The socket's time-out, nil for none.
  private var timeout: Duration? {
    var value = timeval()
    var length = socklen_t(MemoryLayout<timeval>.size)
    guard getsockopt(descriptor.rawValue, SOL_SOCKET, option, &value, &length) == 0 else {
      return nil
    }
    let timeout = Duration.seconds(value.tv_sec) + .microseconds(value.tv_usec)
    return timeout == .zero ? nil : timeout
  }

  /// - Returns: What there is to be called for, an error included, as poll(2) has
  ///   it; nil if the time is over.
  private func waitUntilReady(_ end: SuspendingClock.Instant) -> Int32? {
    Self.poll(descriptor, for: events, until: end)
  }

  /// Waits until there is something to call for, whether signals come or not.
  ///
  /// - Parameters:
  ///   - events: What to wait for, as poll(2) has it.
  ///   - end: When the time is over; nil for as long as it takes.
  /// - Returns: What there is, an error included, as poll(2) has it; nil if the time is
  ///   over.
  static func poll(
    _ descriptor: FileDescriptor, for events: Int32, until end: SuspendingClock.Instant?
  ) -> Int32? {
    while true {
      var milliseconds: Int32 = -1
      if let end {
        let left = end - SuspendingClock.now
        guard left > .zero else { return nil }
        // Rounded up, so as not to ask many times within the last millisecond.
        let (seconds, attoseconds) = left.components
        milliseconds = Int32(
          min(seconds, 1_000_000) * 1000 + attoseconds / 1_000_000_000_000_000 + 1)
      }
      var waiting = pollfd(fd: descriptor.rawValue, events: Int16(events), revents: 0)
      let count = Glibc.poll(&waiting, 1, milliseconds)
      if count > 0 { return Int32(waiting.revents) }
      // Whatever it is, the call has it too.
      if count < 0 && errno != EINTR { return 0 }
    }
  }

  /// What there is now, as poll(2) has it; 0 if there is nothing.
  static func look(_ descriptor: FileDescriptor, for events: Int32) -> Int32 {
    var looking = pollfd(fd: descriptor.rawValue, events: Int16(events), revents: 0)
    return Glibc.poll(&looking, 1, 0) > 0 ? Int32(looking.revents) : 0
  }
}
