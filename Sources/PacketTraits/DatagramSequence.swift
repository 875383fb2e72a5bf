// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import Synchronization
public import SystemPackage

/// A datagram with its payload, as ``DatagramSequence`` gives it.
public struct Datagram: Sendable {
  /// The payload, as much as there was room for.
  public let payload: [UInt8]

  /// How many bytes of payload the datagram has: more than ``payload`` if there
  /// was too little room for it.
  public let datagramLength: Int

  /// Where the datagram came from; nil if not from an IPv4 or IPv6 address.
  public let source: InternetAddress?

  private let received: ReceivedDatagram

  /// Those of the keys asked for that the datagram has.
  ///
  /// The payload is there whether the traits can be read or not.
  ///
  /// - Throws: As ``ReceivedDatagram/traits``. ``control`` has the bytes that cannot be read.
  public var traits: Traits {
    get throws(TraitError) { try received.traits }
  }

  /// The control messages that came with it, traits included, for
  /// ``ControlMessage/all(in:)``: as of `UDP_GRO` the length of a segment (udp(7)).
  public let control: [UInt8]

  /// Whether the end of the payload is lost for lack of room.
  ///
  /// The corresponding C constant is `MSG_TRUNC`.
  public let isPayloadTruncated: Bool

  /// Whether traits may be lost, as control messages of other options left no
  /// room for them. Then ``traits`` is empty: they come whole or not at all.
  ///
  /// The corresponding C constant is `MSG_CTRUNC`.
  public let areTraitsTruncated: Bool

  /// Whether control messages are missing in ``control``, or cut off, for lack of room.
  ///
  /// The corresponding C constant is `MSG_CTRUNC`.
  public let isControlTruncated: Bool

  init(_ received: ReceivedDatagram, payload: [UInt8], control: [UInt8], flags: MessageFlags) {
    self.received = received
    self.payload = payload
    self.control = control
    datagramLength = received.datagramLength
    source = received.source
    isPayloadTruncated = received.isPayloadTruncated
    areTraitsTruncated = received.areTraitsTruncated
    isControlTruncated = flags.contains(.controlTruncated)
  }
}

/// The datagrams that come to a socket, for as long as one asks for them.
///
/// ```swift
/// let sequence = try socket.datagrams()
/// for try await datagram in sequence {
///   print(datagram.payload.count, try datagram.traits)
/// }
/// ```
///
/// Whoever waits for a datagram is suspended, and takes up no thread. When his
/// task is cancelled the sequence ends for him: `next()` gives nil.
///
/// Datagrams are taken from the kernel when somebody asks for one, several with
/// one system call, and no more than the queue has room for: so many wait in this
/// program at most. All others wait in the socket's own queue, which
/// ``UDPSocket/setReceiveBufferSize(_:)`` bounds, and past which the kernel drops
/// them. A slow reader costs no memory.
/// When the sequence goes, so do those that wait in its queue; with a queue of
/// one datagram none ever does.
///
/// An error ends the sequence for who iterates, not the socket: ICMP errors of
/// a connected socket (`ECONNREFUSED`) come this way. To iterate anew goes on
/// where it was. Several tasks may iterate at once; each datagram goes to one of
/// them.
///
/// When the socket is shut down for receiving (shutdown(2)), the sequence ends for
/// all, after the datagrams that are there.
///
/// The sequence has a descriptor of its own, by dup(2). That of a ``UDPSocket`` is closed with
/// the socket, which ends the sequence for all, after what is in its queue. If the sequence was
/// made of a `FileDescriptor`, the socket stays open, and its port taken, until both are gone.
public struct DatagramSequence: AsyncSequence, Sendable {
  public typealias Element = Datagram
  public typealias Failure = TraitError

  fileprivate let inbox: DatagramInbox

  fileprivate init(
    _ descriptor: FileDescriptor, queueCapacity: Int, payloadCapacity: Int
  ) throws(Errno) {
    inbox = try DatagramInbox(
      descriptor, queueCapacity: queueCapacity, payloadCapacity: payloadCapacity)
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(inbox: inbox) }

  /// Asks for one datagram after another.
  public struct AsyncIterator: AsyncIteratorProtocol {
    fileprivate let inbox: DatagramInbox
    private var hasEnded = false

    fileprivate init(inbox: DatagramInbox) { self.inbox = inbox }

    /// The next datagram, or nil if the task has been cancelled, if the socket is
    /// shut down for receiving and has none, if its owner has closed it, or if there was nil or
    /// an error before.
    ///
    /// - Throws: ``TraitError/Code/systemCall`` with an error of recvmmsg(2) or
    ///   epoll_ctl(2). Then no datagram was taken from the queue.
    public mutating func next() async throws(TraitError) -> Datagram? {
      try await next(isolation: #isolation)
    }

    /// As ``next()``.
    public mutating func next(
      isolation actor: isolated (any Actor)?
    ) async throws(TraitError) -> Datagram? {
      try await next(isolation: actor) {}
    }

    /// As ``next()``.
    ///
    /// - Parameter beforeWait: What is to happen between that nothing is found
    ///   and that it is waited for, where others may come first.
    mutating func next(
      isolation actor: isolated (any Actor)?, beforeWait: @Sendable () async -> Void
    ) async throws(TraitError) -> Datagram? {
      guard !hasEnded else { return nil }
      // Unless there is a datagram to be returned.
      hasEnded = true
      guard let datagram = try await inbox.next(isolation: actor, beforeWait) else { return nil }
      hasEnded = false
      return datagram
    }
  }
}

/// A socket and the datagrams that were received from it, but not asked for yet.
final class DatagramInbox: Sendable {
  private struct Queue: ~Copyable {
    var batch: ReceiveBatch
    /// How many of the batch are taken.
    var taken = 0
    /// Whether the socket is closed.
    var hasEnded = false
  }

  private let readiness: SocketReadiness
  private let queue: Mutex<Queue>

  fileprivate init(
    _ descriptor: FileDescriptor, queueCapacity: Int, payloadCapacity: Int
  ) throws(Errno) {
    readiness = try SocketReadiness(duplicating: descriptor)
    queue = Mutex(
      Queue(batch: ReceiveBatch(capacity: queueCapacity, payloadCapacity: payloadCapacity)))
  }

  /// Closes the descriptor and resumes all waiters. What is in the queue can be taken still.
  fileprivate func end() {
    // From here on nobody uses the descriptor, and nobody is using it now.
    queue.withLock { $0.hasEnded = true }
    readiness.close()
  }

  /// nil if the task has been cancelled, or if nothing can come any more.
  fileprivate func next(
    isolation actor: isolated (any Actor)?, _ beforeWait: @Sendable () async -> Void
  ) async throws(TraitError) -> Datagram? {
    var isShutDown = false
    while !Task.isCancelled {
      let generation = readiness.generation
      if let datagram = try take() { return datagram }
      guard !isShutDown else { return nil }
      await beforeWait()
      do throws(Errno) {
        guard try readiness.foundNothing() else {
          // But one may have come since the look.
          isShutDown = true
          continue
        }
        try await readiness.wait(since: generation)
      } catch {
        throw TraitError(
          .systemCall, "a datagram cannot be waited for", underlyingError: error)
      }
    }
    return nil
  }

  /// nil if there is none now.
  private func take() throws(TraitError) -> Datagram? {
    var areMoreLeft = false
    defer { if areMoreLeft { readiness.resumeAll() } }
    return try queue.withLock { queue throws(TraitError) in
      if queue.taken == queue.batch.count {
        guard !queue.hasEnded else { return nil }
        queue.taken = 0
        do throws(Errno) {
          let count = try readiness.descriptor.receiveMessages(into: &queue.batch, flags: .doNotWait)
          // Others may wait for what is in the queue now, and no more in the
          // socket, or for what is left there.
          areMoreLeft = count > 1 || count == queue.batch.capacity
        } catch {
          guard error == .wouldBlock else { throw TraitError(receiving: error) }
          return nil
        }
      }
      let index = queue.taken
      queue.taken += 1
      return Datagram(
        queue.batch.datagram(at: index), payload: queue.batch.payload(at: index),
        control: queue.batch.withControl(at: index) { $0.array },
        flags: queue.batch.message(at: index).flags)
    }
  }
}

/// The sequences of a socket, which end with it.
struct OwnedSequences: ~Copyable, Sendable {
  /// Weak, as a sequence that nobody has any more is to go.
  // Not private, or the compiler (6.3) fails over the mutex in another file's structure.
  struct Entry {
    weak var inbox: DatagramInbox?
  }

  private let entries = Mutex<[Entry]>([])

  deinit { end() }

  func add(_ sequence: DatagramSequence) {
    entries.withLock {
      $0.removeAll { $0.inbox == nil }
      $0.append(Entry(inbox: sequence.inbox))
    }
  }

  func end() {
    for inbox in entries.withLock({ $0.compactMap(\.inbox) }) { inbox.end() }
  }

  /// Lets the sequences go on without the socket.
  func forget() { entries.withLock { $0 = [] } }
}

extension FileDescriptor {
  /// The datagrams that come to this socket, with those traits that
  /// ``setReceivedTraits(_:)`` asked for.
  ///
  /// For datagram and raw sockets over IPv4 and IPv6, and packet sockets. Whether
  /// the socket is nonblocking does not matter, and is not changed.
  ///
  /// What the queue holds is the sequence's and goes with it: who breaks out of a
  /// loop and wants the rest keeps the sequence and iterates over it anew,
  ///
  /// ```swift
  /// let sequence = try socket.datagrams()
  /// for try await datagram in sequence { ... }
  /// ```
  ///
  /// or asks for `queueCapacity: 1`: then a datagram is taken from the kernel
  /// only to be handed over, and none waits in this program.
  ///
  /// The socket's time-out (`SO_RCVTIMEO`) does not hold here: a task waits until
  /// it is cancelled.
  ///
  /// - Parameters:
  ///   - queueCapacity: The most datagrams that wait in this program, 1 or more.
  ///   - payloadCapacity: How many bytes of a datagram's payload there is room
  ///     for: by default those of any UDP datagram. Memory is used for what
  ///     arrives, at most the product of both numbers.
  /// - Throws: `EBADF`; `ENOTSOCK`; `EOPNOTSUPP` if the socket is of another kind: a
  ///   stream has no datagrams, and with those of a Unix socket can come descriptors
  ///   (unix(7), `SCM_RIGHTS`) that nobody would close; `EMFILE`, `EAGAIN` if the
  ///   thread that waits for all sockets cannot be made.
  public func datagrams(
    queueCapacity: Int = 16, payloadCapacity: Int = 65_535
  ) throws(Errno) -> DatagramSequence {
    let (domain, type) = (try option(SOL_SOCKET, SO_DOMAIN), try option(SOL_SOCKET, SO_TYPE))
    guard
      [AF_INET, AF_INET6, AF_PACKET].contains(domain),
      [Int32(SOCK_DGRAM.rawValue), Int32(SOCK_RAW.rawValue)].contains(type)
    else { throw .notSupportedOnSocket }
    return try DatagramSequence(self, queueCapacity: queueCapacity, payloadCapacity: payloadCapacity)
  }
}

extension UDPSocket {
  /// The datagrams that come to this socket, with those traits that
  /// ``setReceivedTraits(_:)`` asked for.
  ///
  /// What the queue holds is the sequence's and goes with it: who breaks out of a
  /// loop and wants the rest keeps the sequence and iterates over it anew,
  ///
  /// ```swift
  /// let sequence = try socket.datagrams()
  /// for try await datagram in sequence { ... }
  /// ```
  ///
  /// or asks for `queueCapacity: 1`: then a datagram is taken from the kernel
  /// only to be handed over, and none waits in this program.
  ///
  /// The time-out of ``setReceiveTimeout(_:)`` does not hold here: a
  /// task waits until it is cancelled.
  ///
  /// - Parameters:
  ///   - queueCapacity: The most datagrams that wait in this program, 1 or more.
  ///   - payloadCapacity: How many bytes of a datagram's payload there is room
  ///     for: by default those of any UDP datagram. Memory is used for what
  ///     arrives, at most the product of both numbers.
  /// - Returns: A sequence that ends when the socket is closed.
  /// - Throws: `EMFILE`, `EAGAIN` if the thread that waits for all sockets cannot
  ///   be made.
  public func datagrams(
    queueCapacity: Int = 16, payloadCapacity: Int = 65_535
  ) throws(Errno) -> DatagramSequence {
    let sequence = try unsafeFileDescriptor.datagrams(
      queueCapacity: queueCapacity, payloadCapacity: payloadCapacity)
    sequences.add(sequence)
    return sequence
  }
}
