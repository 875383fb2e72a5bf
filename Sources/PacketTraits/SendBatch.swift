// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
public import SystemPackage

/// Several datagrams, to be sent with as few system calls as there can be.
///
/// ```swift
/// var batch = SendBatch()
/// batch.append(first.span.bytes, to: destination, traits: traits)
/// batch.append(second.span.bytes, to: destination)
/// for result in try socket.send(batch) { print(try result.get()) }
/// ```
public struct SendBatch: Sendable {
  private struct Entry {
    /// Where its bytes are among all that were ever appended, removed ones included.
    let payload: Range<Int>
    let control: Range<Int>
    let destination: InternetAddress?
    /// Whether there is a message of traits in its control data, well formed or not.
    let hasTraits: Bool
    /// Those in its control data.
    let traits: Traits
  }

  private var entries = Compacted<Entry>()
  private var payloads = Compacted<UInt8>()
  private var controls = Compacted<UInt8>()

  /// No datagrams.
  public init() {}

  /// How many datagrams there are.
  public var count: Int { entries.live.count }

  /// Appends a datagram with traits of its own; see
  /// ``UDPSocket/send(_:to:traits:flags:)``.
  ///
  /// - Parameters:
  ///   - payload: Is copied.
  ///   - destination: Where to; nil for where the socket is connected to.
  ///   - traits: Of this datagram alone, over the socket's own.
  public mutating func append(
    _ payload: RawSpan, to destination: InternetAddress? = nil, traits: Traits = Traits()
  ) {
    let start = controls.end
    ControlData.withMessage(of: traits) { controls.elements.append(contentsOf: $0) }
    append(payload, destination, control: start..<controls.end, hasTraits: !traits.isEmpty, traits)
  }

  /// Appends a datagram with control data.
  ///
  /// - Parameters:
  ///   - payload: Is copied.
  ///   - destination: Where to; nil for where the socket is connected to.
  ///   - control: Control messages of any kind. Traits among them are as those of
  ///     ``append(_:to:traits:)``.
  public mutating func append(
    _ payload: RawSpan, to destination: InternetAddress? = nil, control: ControlData
  ) {
    let start = controls.end
    controls.elements.append(contentsOf: control.bytes)
    append(
      payload, destination, control: start..<controls.end, hasTraits: control.hasTraits,
      control.traits)
  }

  private mutating func append(
    _ payload: RawSpan, _ destination: InternetAddress?, control: Range<Int>, hasTraits: Bool,
    _ traits: Traits
  ) {
    let start = payloads.end
    payload.withUnsafeBytes { payloads.elements.append(contentsOf: $0) }
    entries.elements.append(
      Entry(
        payload: start..<payloads.end, control: control, destination: destination,
        hasTraits: hasTraits, traits: traits))
  }

  /// Removes all datagrams.
  ///
  /// - Parameter keepingCapacity: Whether to keep the memory for the next ones.
  public mutating func removeAll(keepingCapacity: Bool = false) {
    entries.removeAll(keepingCapacity: keepingCapacity)
    payloads.removeAll(keepingCapacity: keepingCapacity)
    controls.removeAll(keepingCapacity: keepingCapacity)
  }

  /// Removes the first datagrams, which have been sent: what is left is sent by the next
  /// call.
  ///
  /// ```swift
  /// let results = try socket.send(batch, flags: .doNotWait)
  /// let sent = results.prefix { (try? $0.get()) != nil }.count
  /// batch.removeFirst(sent)
  /// ```
  ///
  /// - Parameter number: 0 to ``count``.
  public mutating func removeFirst(_ number: Int = 1) {
    precondition(number >= 0 && number <= count, "the batch has fewer datagrams")
    entries.removeFirst(number)
    guard let first = entries.live.first else { return removeAll(keepingCapacity: true) }
    payloads.removeFirst(first.payload.lowerBound - payloads.start)
    controls.removeFirst(first.control.lowerBound - controls.start)
  }

  /// How many bytes the batch holds, those of removed datagrams included.
  var byteCount: Int { payloads.elements.count + controls.elements.count }

  /// How many entries and bytes ``removeFirst(_:)`` has moved so far, for tests.
  var movedCount: Int { entries.moved + payloads.moved + controls.moved }

  /// The traits of one datagram, without those of the socket.
  func traits(at index: Int) -> Traits { entries.live[entries.live.startIndex + index].traits }

  fileprivate var hasTraits: Bool { entries.live.contains(where: \.hasTraits) }

  /// Sends all, and tells of each what came of it.
  fileprivate func send(
    to descriptor: FileDescriptor, flags: MessageFlags, retryOnInterrupt: Bool
  ) -> [Result<Int, Errno>] {
    // The kernel does not write to what it is given: C has no type for that.
    payloads.elements.withUnsafeBytes { payloads in
      controls.elements.withUnsafeBytes { controls in
        let payloadStart = UnsafeMutableRawPointer(mutating: payloads.baseAddress)
        let controlStart = UnsafeMutableRawPointer(mutating: controls.baseAddress)
        let entries = self.entries.live
        let payloadOffset = self.payloads.offset
        let controlOffset = self.controls.offset
        var vectors = entries.map { entry in
          iovec(
            iov_base: payloadStart.map { $0 + (entry.payload.lowerBound - payloadOffset) },
            iov_len: entry.payload.count)
        }
        var destinations = entries.map { $0.destination?.storage ?? (sockaddr_storage(), 0) }
        return vectors.withUnsafeMutableBufferPointer { vectors in
          destinations.withUnsafeMutableBufferPointer { destinations in
            var headers = entries.enumerated().map { index, entry in
              let control = entry.control
              return ctraits_mmsghdr(
                header: ctraits_msghdr(
                  name: destinations[index].1 == 0 ? nil : destinations.baseAddress! + index,
                  name_length: destinations[index].1,
                  vector: vectors.baseAddress! + index, vector_length: 1,
                  control: control.isEmpty ? nil : controlStart! + (control.lowerBound - controlOffset),
                  control_length: control.count, flags: 0),
                length: 0)
            }
            return headers.withUnsafeMutableBufferPointer {
              Self.send($0, to: descriptor, flags: flags, retryOnInterrupt: retryOnInterrupt)
            }
          }
        }
      }
    }
  }

  /// As the kernel stops at the first one that fails, and tells why only when
  /// that is the first of a call, it is called again from there on.
  private static func send(
    _ messages: UnsafeMutableBufferPointer<ctraits_mmsghdr>, to descriptor: FileDescriptor,
    flags: MessageFlags, retryOnInterrupt: Bool
  ) -> [Result<Int, Errno>] {
    var results: [Result<Int, Errno>] = []
    results.reserveCapacity(messages.count)
    while results.count < messages.count {
      let rest = messages[results.count...]
      let wait = SocketWait.toSend(
        descriptor, isAllowed: !flags.contains(.doNotWait), retryOnInterrupt: retryOnInterrupt)
      let outcome = wait.call { more in
        Int(
          ctraits_sendmmsg(
            descriptor.rawValue, UnsafeMutableBufferPointer(rebasing: rest).baseAddress,
            UInt32(clamping: rest.count), flags.rawValue | more | Int32(MSG_NOSIGNAL)))
      }
      switch outcome {
      case .success(let count):
        results += rest.prefix(count).map { .success(Int($0.length)) }
      case .failure(let error) where error == .wouldBlock || error == .interrupted:
        // The others are not to overtake it.
        results += repeatElement(.failure(error), count: rest.count)
      case .failure(let error):
        results.append(.failure(error))
      }
    }
    return results
  }
}

/// An array that is removed from at its front. Removed elements stay until they are at least
/// half of the array, so removing all elements moves fewer than there were.
private struct Compacted<Element: Sendable>: Sendable {
  /// Those that are removed and still here, and the live ones.
  var elements: [Element] = []
  /// How many elements were before `elements`.
  private(set) var offset = 0
  /// How many elements of `elements` are removed.
  private var removed = 0
  /// How many elements compacting has moved.
  private(set) var moved = 0

  var live: ArraySlice<Element> { elements[removed...] }

  /// The number of the first live element, counted from the first one ever appended.
  var start: Int { offset + removed }

  /// The number of the next element to be appended.
  var end: Int { offset + elements.count }

  mutating func removeFirst(_ count: Int) {
    removed += count
    guard removed >= elements.count - removed else { return }
    moved += elements.count - removed
    elements.removeSubrange(..<removed)
    offset += removed
    removed = 0
  }

  mutating func removeAll(keepingCapacity: Bool) {
    elements.removeAll(keepingCapacity: keepingCapacity)
    offset = 0
    removed = 0
  }
}

extension FileDescriptor {
  /// Sends several messages, in their order. One that fails does not keep back
  /// those behind it, unless it failed for lack of room (`EAGAIN`) or by a
  /// signal (`EINTR`): then these fail, too.
  ///
  /// The corresponding C function is `sendmmsg`. No signal comes of it
  /// (`MSG_NOSIGNAL`).
  ///
  /// - Parameters:
  ///   - batch: The messages.
  ///   - flags: ``MessageFlags/doNotWait`` or none.
  ///   - retryOnInterrupt: Whether to go on waiting for room if a signal came,
  ///     though no longer than the socket's time-out (`SO_SNDTIMEO`), which
  ///     counts anew for each system call.
  /// - Returns: Of each message how many bytes of payload were sent, or the
  ///   error, as ``sendMessage(_:to:control:flags:retryOnInterrupt:)`` throws it.
  @available(*, noasync, message: "It may wait in its thread: in a task, use UDPSocket, or call it with .doNotWait in a synchronous function")
  public func sendMessages(
    _ batch: SendBatch, flags: MessageFlags = [], retryOnInterrupt: Bool = true
  ) -> [Result<Int, Errno>] {
    batch.send(to: self, flags: flags, retryOnInterrupt: retryOnInterrupt)
  }
}

extension UDPSocket {
  /// Sends several datagrams, in their order. One that fails does not keep back
  /// those behind it, unless it failed for lack of room: then these fail, too.
  ///
  /// The corresponding C function is `sendmmsg`.
  ///
  /// - Parameters:
  ///   - batch: The datagrams.
  ///   - flags: ``MessageFlags/doNotWait`` or none.
  /// - Returns: Of each datagram how many bytes of payload were sent, or the
  ///   error, as ``send(_:to:traits:flags:)`` throws it.
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are datagrams with
  ///   traits, and there are no packet traits; ``TraitError/Code/systemCall`` if
  ///   that cannot be found out (getsockopt(2)). Then nothing was sent.
  public func send(
    _ batch: SendBatch, flags: MessageFlags = []
  ) throws(TraitError) -> [Result<Int, TraitError>] {
    if batch.hasTraits { try unsafeFileDescriptor.requireSentTraits() }
    return results(of: batch, sendNow(batch, flags))
  }

  /// Sends several datagrams, in their order; the task is suspended until there is room for
  /// them. One that fails does not keep back those behind it.
  ///
  /// The time-out of ``setSendTimeout(_:)`` does not hold here: a task waits until it is
  /// cancelled.
  ///
  /// - Parameters:
  ///   - batch: The datagrams.
  ///   - flags: ``MessageFlags/doNotWait`` or none.
  /// - Returns: Of each datagram how many bytes of payload were sent, or the error. If the task
  ///   is cancelled, the datagrams that were not sent fail with ``TraitError/Code/cancelled``;
  ///   if the socket cannot be waited for, with ``TraitError/Code/systemCall``.
  /// - Throws: As the blocking method. Then nothing was sent.
  public func send(
    _ batch: SendBatch, flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> [Result<Int, TraitError>] {
    if batch.hasTraits { try unsafeFileDescriptor.requireSentTraits() }
    var results: [Result<Int, TraitError>] = []
    var rest = batch
    var generation: UInt64?
    do throws(TraitError) {
      while true {
        guard !Task.isCancelled else { throw TraitError(cancelled: "datagrams were to be sent") }
        let outcomes = sendNow(rest, flags.union(.doNotWait))
        let done =
          flags.contains(.doNotWait)
          ? outcomes.count
          : outcomes.firstIndex { $0 == .failure(.wouldBlock) } ?? outcomes.count
        results += self.results(of: rest, outcomes[..<done])
        guard done < outcomes.count else { return results }
        rest.removeFirst(done)
        try await waitToSend(&generation, actor)
      }
    } catch {
      return results + repeatElement(.failure(error), count: batch.count - results.count)
    }
  }

  private func sendNow(_ batch: SendBatch, _ flags: MessageFlags) -> [Result<Int, Errno>] {
    unsafeFileDescriptor.sendMessages(batch, flags: flags)
  }

  private func results(
    of batch: SendBatch, _ outcomes: some Sequence<Result<Int, Errno>>
  ) -> [Result<Int, TraitError>] {
    outcomes.enumerated().map { index, outcome in
      outcome.mapError { TraitError(sending: batch.traits(at: index), $0) }
    }
  }
}
