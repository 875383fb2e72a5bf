// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
public import SystemPackage

/// Room for several datagrams that one system call receives, to be used again
/// and again.
///
/// ```swift
/// var batch = ReceiveBatch(capacity: 32, payloadCapacity: 2048)
/// while true {
///   for index in 0..<(try socket.receive(into: &batch)) {
///     let datagram = batch.datagram(at: index)
///     batch.withPayload(at: index) { payload in print(payload.byteCount) }
///     print(try datagram.traits)
///   }
/// }
/// ```
public struct ReceiveBatch: ~Copyable, @unchecked Sendable {
  // Unchecked, as these are pointers. The memory has one owner, and is written to
  // in mutating functions only.
  private let headers: UnsafeMutablePointer<ctraits_mmsghdr>
  private let vectors: UnsafeMutablePointer<iovec>
  private let sources: UnsafeMutablePointer<sockaddr_storage>
  // Cleared when they are made: not all that the kernel counts it writes (MSG_TRUNC
  // of a stream), and nobody is to see what was in this memory before.
  private let payloads: UnsafeMutableRawPointer
  private let controls: UnsafeMutableRawPointer

  /// The most datagrams that one call receives.
  public let capacity: Int

  /// How many bytes of a datagram's payload there is room for.
  public let payloadCapacity: Int

  /// How many bytes of a datagram's control data there is room for.
  public let controlCapacity: Int

  /// How many datagrams the last call received: none if it failed.
  public private(set) var count = 0

  /// Makes room. Memory that no datagram ever needed costs addresses only.
  ///
  /// - Parameters:
  ///   - capacity: The most datagrams that one call is to receive, 1 or more.
  ///   - payloadCapacity: In bytes, for each. What does not fit is lost, which
  ///     ``ReceivedDatagram/isPayloadTruncated`` tells. No datagram of UDP has
  ///     more than 65,527 bytes.
  ///   - controlCapacity: In bytes, for each: the traits of a packet take 16
  ///     and 24 for each of them, 1168 at most. Rounded up to a multiple of 8.
  public init(capacity: Int, payloadCapacity: Int, controlCapacity: Int = 2048) {
    precondition(
      capacity >= 1 && payloadCapacity >= 0 && controlCapacity >= 0,
      "a batch is of 1 datagram or more, and no room is of less than 0 bytes")
    self.capacity = capacity
    self.payloadCapacity = payloadCapacity
    // Each begins where a message header may.
    self.controlCapacity = (controlCapacity + 7) & ~7
    headers = .allocate(capacity: capacity)
    vectors = .allocate(capacity: capacity)
    sources = .allocate(capacity: capacity)
    guard let payloads = calloc(capacity, max(payloadCapacity, 1)),
      let controls = calloc(capacity, max(self.controlCapacity, 1))
    else { fatalError("no memory for a batch of \(capacity) datagrams") }
    self.payloads = payloads
    self.controls = controls
    sources.initialize(repeating: sockaddr_storage(), count: capacity)
    headers.initialize(repeating: ctraits_mmsghdr(), count: capacity)
    for index in 0..<capacity {
      (vectors + index).initialize(
        to: iovec(iov_base: payloads + index * payloadCapacity, iov_len: payloadCapacity))
    }
  }

  deinit {
    headers.deallocate()
    vectors.deallocate()
    sources.deallocate()
    free(payloads)
    free(controls)
  }

  /// Receives as many as there are and there is room for.
  fileprivate mutating func receive(
    from descriptor: FileDescriptor, flags: MessageFlags, retryOnInterrupt: Bool
  ) -> Result<Int, Errno> {
    count = 0
    let wait = SocketWait.toReceive(
      descriptor, isAllowed: !flags.contains(.doNotWait), retryOnInterrupt: retryOnInterrupt)
    let result = wait.call { more in
      for index in 0..<capacity {
        headers[index] = ctraits_mmsghdr(
          header: ctraits_msghdr(
            name: sources + index, name_length: UInt32(MemoryLayout<sockaddr_storage>.size),
            vector: vectors + index, vector_length: 1,
            control: controls + index * controlCapacity, control_length: controlCapacity, flags: 0),
          length: 0)
      }
      // Without MSG_TRUNC a message's length would be what there was room for.
      let flags = flags.rawValue | more | Int32(MSG_TRUNC)
      return closingOnExec {
        Int(ctraits_recvmmsg(descriptor.rawValue, headers, UInt32(clamping: capacity), flags | $0))
      }
    }
    if case .success(let received) = result { count = received }
    return result
  }

  /// Holds what the kernel gives of a socket that is shut down and has no datagram: one
  /// without bytes and source.
  fileprivate mutating func receiveNothing() {
    headers[0] = ctraits_mmsghdr()
    count = 1
  }

  fileprivate mutating func clear() { count = 0 }

  private func check(_ index: Int) {
    precondition(index >= 0 && index < count, "the batch has no datagram of this index")
  }

  /// What `recvmsg()` would have told of one message.
  ///
  /// - Parameter index: 0 to ``count`` - 1.
  public func message(at index: Int) -> ReceivedMessage {
    check(index)
    let header = headers[index].header
    let length = Int(headers[index].length)
    return ReceivedMessage(
      length: min(length, payloadCapacity), messageLength: length,
      controlLength: min(Int(header.control_length), controlCapacity),
      source: InternetAddress(sources[index], length: header.name_length),
      flags: MessageFlags(rawValue: header.flags & ~Int32(MSG_CMSG_CLOEXEC)))
  }

  /// Returns one datagram and its traits. Traits that cannot be read are an error of
  /// ``ReceivedDatagram/traits``, and say nothing of the other datagrams.
  ///
  /// - Parameter index: 0 to ``count`` - 1.
  public func datagram(at index: Int) -> ReceivedDatagram {
    let message = message(at: index)
    return withControl(at: index) { ReceivedDatagram(message, control: $0) }
  }

  /// Calls `body` with the payload of one datagram, as much as there was room
  /// for.
  ///
  /// - Parameter index: 0 to ``count`` - 1.
  public func withPayload<Result, Failure: Error>(
    at index: Int, _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    check(index)
    let bytes = UnsafeRawBufferPointer(
      start: payloads + index * payloadCapacity,
      count: min(Int(headers[index].length), payloadCapacity))
    return try body(bytes.bytes)
  }

  /// The payload of one datagram, as much as there was room for.
  ///
  /// - Parameter index: 0 to ``count`` - 1.
  public func payload(at index: Int) -> [UInt8] {
    withPayload(at: index) { $0.array }
  }

  /// Calls `body` with the control data of one datagram, for
  /// ``ControlMessage/all(in:)``.
  ///
  /// - Parameter index: 0 to ``count`` - 1.
  public func withControl<Result, Failure: Error>(
    at index: Int, _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    check(index)
    let bytes = UnsafeRawBufferPointer(
      start: controls + index * controlCapacity,
      count: min(Int(headers[index].header.control_length), controlCapacity))
    return try body(bytes.bytes)
  }
}

extension FileDescriptor {
  /// Receives several messages with one system call, their control data in raw
  /// form: waits for the first, and takes with it those that are there.
  ///
  /// For datagram sockets: a TCP socket throws the bytes away (tcp(7),
  /// `MSG_TRUNC`), and the batch does not have them.
  ///
  /// The corresponding C function is `recvmmsg`, with `MSG_WAITFORONE` and
  /// `MSG_TRUNC`, so that ``ReceivedMessage/messageLength`` is that of the whole
  /// message. Descriptors that come along (`SCM_RIGHTS`) are close-on-exec.
  ///
  /// - Parameters:
  ///   - batch: Where the messages go, in place of what is there.
  ///   - flags: As of ``receiveMessage(into:control:flags:retryOnInterrupt:)``.
  ///     With ``MessageFlags/peek`` all would be the same message.
  ///   - retryOnInterrupt: Whether to go on waiting for the first if a signal
  ///     came, though no longer than the socket's time-out (`SO_RCVTIMEO`).
  /// - Returns: How many messages came: 1 or more.
  /// - Throws: As ``receiveMessage(into:control:flags:retryOnInterrupt:)``. An
  ///   error behind the first message is thrown by the next call.
  @available(*, noasync, message: "It may wait in its thread: in a task, use UDPSocket, or call it with .doNotWait in a synchronous function")
  @discardableResult
  public func receiveMessages(
    into batch: inout ReceiveBatch, flags: MessageFlags = [], retryOnInterrupt: Bool = true
  ) throws(Errno) -> Int {
    try batch.receive(from: self, flags: flags, retryOnInterrupt: retryOnInterrupt).get()
  }
}

extension UDPSocket {
  /// Receives several datagrams with one system call, with those traits that
  /// ``setReceivedTraits(_:)`` asked for: waits for the first, and takes with it
  /// those that are there.
  ///
  /// The corresponding C function is `recvmmsg`, with `MSG_WAITFORONE`.
  ///
  /// - Parameters:
  ///   - batch: Where the datagrams go, in place of what is there.
  ///   - flags: ``MessageFlags/doNotWait`` or none.
  /// - Returns: How many datagrams came: 1 or more. When the socket is shut down
  ///   for receiving (shutdown(2)) and nothing is there, 1 of length 0 whose
  ///   source is nil, as of `receive(into:flags:)` for one.
  /// - Throws: ``TraitError/Code/wouldBlock`` if nothing came within the
  ///   time-out of ``setReceiveTimeout(_:)``, or at all without waiting;
  ///   ``TraitError/Code/systemCall`` with another error of recvmmsg(2).
  @discardableResult
  public func receive(
    into batch: inout ReceiveBatch, flags: MessageFlags = []
  ) throws(TraitError) -> Int {
    try receiveNow(&batch, flags)
  }

  /// Receives several datagrams with one system call; the task is suspended until there is
  /// one.
  ///
  /// The time-out of ``setReceiveTimeout(_:)`` does not hold here: a task waits until it is
  /// cancelled.
  ///
  /// - Parameters:
  ///   - batch: Where the datagrams go, in place of what is there.
  ///   - flags: ``MessageFlags/doNotWait`` or none.
  /// - Returns: How many datagrams came, as the blocking method.
  /// - Throws: As the `async` `receive(into:flags:isolation:)` for one datagram. Then the batch
  ///   is empty.
  @discardableResult
  public func receive(
    into batch: inout ReceiveBatch, flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> Int {
    var generation: UInt64?
    var canCome = true
    while true {
      if let count = try receiveIfThere(&batch, flags) { return count }
      guard canCome else {
        batch.receiveNothing()
        return 1
      }
      canCome = try await waitToReceive(&generation, actor)
    }
  }

  private func receiveNow(
    _ batch: inout ReceiveBatch, _ flags: MessageFlags
  ) throws(TraitError) -> Int {
    do throws(Errno) {
      return try unsafeFileDescriptor.receiveMessages(into: &batch, flags: flags)
    } catch {
      throw TraitError(receiving: error)
    }
  }

  /// nil if there is nothing now.
  private func receiveIfThere(
    _ batch: inout ReceiveBatch, _ flags: MessageFlags
  ) throws(TraitError) -> Int? {
    batch.clear()
    guard !Task.isCancelled else { throw TraitError(cancelled: "datagrams were waited for") }
    do throws(TraitError) {
      return try receiveNow(&batch, flags.union(.doNotWait))
    } catch {
      guard error.code == .wouldBlock, !flags.contains(.doNotWait) else { throw error }
      return nil
    }
  }
}
