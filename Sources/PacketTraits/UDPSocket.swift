// SPDX-License-Identifier: MIT

internal import Glibc
public import SystemPackage

/// A UDP socket over IPv4 or IPv6, owned: it cannot be copied, and is closed
/// when the variable that holds it goes out of scope, or before by ``close()``.
///
/// ```swift
/// let socket = try UDPSocket(.ipv6)
/// // Before bind(to:), so that no datagram comes without.
/// try socket.setReceivedTraits(TraitMask(flow))
/// try socket.bind(to: .any(.ipv6, port: 4000))
///
/// var bytes = [UInt8](repeating: 0, count: 2048)
/// let datagram = try socket.receive(into: &bytes)
/// let payload = bytes[..<datagram.length]
/// print(try datagram.traits.value(for: flow) ?? 0)
/// ```
///
/// Receiving and sending come in pairs: a blocking method and an `async` one. In an async function the
/// compiler picks the latter, which needs `await`. A task that waits takes up no thread. If the
/// task is cancelled the method throws ``TraitError/Code/cancelled``, and no datagram is lost. A
/// call that can complete at once does not suspend: in a tight loop call `Task.yield()`. Several
/// tasks may use one socket at once; each datagram goes to one of them. For each of both
/// directions in which a task has waited the socket has another descriptor, by dup(2), until it is
/// closed.
///
/// Descriptors that it makes are close-on-exec; one that it takes over stays as it
/// is. For a socket that somebody else owns, the
/// system calls that deal in traits are in an extension of `FileDescriptor`.
///
/// What any UDP socket can do throws `Errno`, what has to do with traits throws
/// ``TraitError``, and so does every `async` method.
public struct UDPSocket: ~Copyable, Sendable {
  private let owner: OwnedDescriptor
  private let receiving = ReadinessSlot(for: .receiving)
  private let sending = ReadinessSlot(for: .sending)
  let sequences = OwnedSequences()

  /// The socket's descriptor, which the `UDPSocket` owns. It must not be closed, and its number
  /// may be another file's as soon as the socket is gone: of a temporary value, as in
  /// `try UDPSocket(.ipv4).unsafeFileDescriptor`, that is at once. Prefer
  /// ``withFileDescriptor(_:)``.
  public var unsafeFileDescriptor: FileDescriptor { owner.borrowed }

  /// Calls `body` with the socket's descriptor. The socket stays open until it returns.
  ///
  /// - Parameter body: Uses the descriptor. It must neither close it nor keep it.
  /// - Returns: What `body` returns.
  /// - Throws: What `body` throws.
  public func withFileDescriptor<Result: ~Copyable, Failure: Error>(
    _ body: (FileDescriptor) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(owner.borrowed)
  }

  /// Opens a socket. One of IPv6 takes IPv4 as well, whatever the parameter
  /// `net.ipv6.bindv6only` of the network namespace says, unless
  /// ``setIPv6Only(_:)`` is called before it is bound.
  ///
  /// The corresponding C function is `socket`; ipv6(7) has `IPV6_V6ONLY`.
  ///
  /// - Throws: `EAFNOSUPPORT` if the kernel lacks this version of IP, `EMFILE`,
  ///   what else socket(2) names.
  public init(_ family: InternetAddress.Family) throws(Errno) {
    self.init(OwnedDescriptor(try Transport.udp.open(family)))
  }

  /// Takes over the descriptor of a UDP socket, whose options stay as they are.
  ///
  /// - Throws: ``TraitError/Code/unsupportedSocket`` if it is not of UDP over
  ///   IPv4 or IPv6, ``TraitError/Code/systemCall`` if it is not open. Then it
  ///   is still the caller's to close.
  public init(owning descriptor: FileDescriptor) throws(TraitError) {
    try Transport.udp.require(descriptor)
    self.init(OwnedDescriptor(descriptor))
  }

  /// Takes over a socket of any kind: tests have those that become full.
  init(_ owner: consuming OwnedDescriptor) { self.owner = owner }

  /// Closes the socket. It is gone even if this throws.
  ///
  /// The sequences of ``datagrams(queueCapacity:payloadCapacity:)`` end, after what is in their
  /// queues, and the port is free when this returns. The same holds for a socket that goes out of
  /// scope.
  ///
  /// The corresponding C function is `close`.
  ///
  /// - Throws: `EBADF` if somebody else has closed it, what else close(2) names.
  public consuming func close() throws(Errno) {
    sequences.end()
    try owner.close()
  }

  /// Gives up the socket without closing it: the caller owns the descriptor.
  ///
  /// Sequences of it go on, as those of a descriptor: see
  /// `FileDescriptor.datagrams(queueCapacity:payloadCapacity:)`.
  ///
  /// - Returns: The descriptor.
  public consuming func release() -> FileDescriptor {
    sequences.forget()
    return owner.release()
  }

  /// Shuts down one direction or both, for all who have a descriptor of the socket. The socket
  /// stays open, and bound to its port.
  ///
  /// Callers that wait for a datagram return at once, and sequences end after what is there.
  ///
  /// The corresponding C function is `shutdown`.
  ///
  /// - Parameter direction: For ``ShutdownDirection/sending``, sending fails with `EPIPE` from
  ///   now on. For ``ShutdownDirection/receiving`` nothing is waited for any more, though Linux
  ///   goes on taking datagrams.
  /// - Throws: What shutdown(2) names, without `ENOTCONN`: the kernel says so of a socket that
  ///   is not connected, and shuts it down nevertheless.
  public func shutdown(_ direction: ShutdownDirection) throws(Errno) {
    do throws(Errno) {
      try unsafeFileDescriptor.shutdownSocket(direction)
    } catch {
      guard error == .socketNotConnected else { throw error }
    }
  }

  // MARK: Addresses

  /// Binds the socket to a local address.
  ///
  /// The corresponding C function is `bind`.
  ///
  /// - Throws: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EINVAL` if the socket is
  ///   bound, what else bind(2) names.
  public func bind(to address: InternetAddress) throws(Errno) {
    try unsafeFileDescriptor.bindSocket(to: address)
  }

  /// The address that the socket is bound to, with the port that the kernel
  /// picked if it was asked for port 0.
  ///
  /// The corresponding C function is `getsockname`.
  ///
  /// - Throws: What getsockname(2) names.
  public func localAddress() throws(Errno) -> InternetAddress {
    try unsafeFileDescriptor.localSocketAddress()
  }

  /// Sets where datagrams go without an address of their own, and that none are
  /// received from elsewhere.
  ///
  /// The corresponding C function is `connect`.
  ///
  /// - Throws: `ENETUNREACH`, `EACCES` for a broadcast address, what else
  ///   connect(2) and udp(7) name.
  public func connect(to address: InternetAddress) throws(Errno) {
    try unsafeFileDescriptor.connectSocket(to: address)
  }

  // MARK: Options

  /// Asks that ``receive(into:flags:)`` hands over these keys' traits, and no
  /// others.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/notPermitted`` if a key is not open to all and the
  ///   thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`;
  ///   ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  ///   Then nothing has changed.
  public func setReceivedTraits(_ mask: TraitMask) throws(TraitError) {
    try TraitOptions(descriptor: unsafeFileDescriptor).setReceived(mask)
  }

  /// The keys that ``setReceivedTraits(_:)`` asked for, less those that have
  /// been removed from the registry.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet
  ///   traits.
  public func receivedTraits() throws(TraitError) -> TraitMask {
    try TraitOptions(descriptor: unsafeFileDescriptor).received()
  }

  /// Gives these traits to every datagram that this socket sends from now on,
  /// instead of those that were set before.
  ///
  /// They belong to the socket: whoever has a descriptor of it sends with them,
  /// whatever rights he has.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Parameter traits: The traits; none turns it off.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/invalidArgument`` if a value has another size than its key;
  ///   ``TraitError/Code/notPermitted`` if a key, of these or of those that they
  ///   would replace, is not open to all to be written and the thread has neither
  ///   `CAP_NET_ADMIN` nor `CAP_NET_RAW`;
  ///   ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  ///   Then nothing has changed.
  public func setSentTraits(_ traits: Traits) throws(TraitError) {
    try TraitOptions(descriptor: unsafeFileDescriptor).setSent(traits)
  }

  /// The traits that ``setSentTraits(_:)`` set, less those whose keys have been
  /// removed from the registry or are not for the thread to be read.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet
  ///   traits; ``TraitError/Code/malformedRecords`` if the kernel gave something
  ///   else than records of traits.
  public func sentTraits() throws(TraitError) -> Traits {
    try TraitOptions(descriptor: unsafeFileDescriptor).sent()
  }

  /// Limits how long ``receive(into:flags:)`` waits for a datagram. Signals do
  /// not make it longer.
  ///
  /// The corresponding C constant is `SO_RCVTIMEO`.
  ///
  /// - Parameter timeout: At least a microsecond, which the kernel rounds up to
  ///   a tick of its clock (1 to 10 ms); nil for as long as it takes.
  /// - Throws: `EINVAL` if the time-out is negative.
  public func setReceiveTimeout(_ timeout: Duration?) throws(Errno) {
    try unsafeFileDescriptor.setTimeout(SO_RCVTIMEO, timeout)
  }

  /// Sets the room for datagrams that wait to be received.
  ///
  /// The corresponding C constant is `SO_RCVBUF` (socket(7)). The kernel takes
  /// no more than the parameter `net.core.rmem_max` says, without an error, and
  /// doubles that, since what it keeps beside the payload counts, too.
  ///
  /// - Parameter size: In bytes, before it is doubled.
  /// - Throws: What setsockopt(2) names.
  public func setReceiveBufferSize(_ size: Int32) throws(Errno) {
    try unsafeFileDescriptor.setOption(SOL_SOCKET, SO_RCVBUF, size)
  }

  /// Limits how long sending waits for room. Signals do not make it longer.
  ///
  /// The corresponding C constant is `SO_SNDTIMEO`.
  ///
  /// - Parameter timeout: As of ``setReceiveTimeout(_:)``.
  /// - Throws: `EINVAL` if the time-out is negative.
  public func setSendTimeout(_ timeout: Duration?) throws(Errno) {
    try unsafeFileDescriptor.setTimeout(SO_SNDTIMEO, timeout)
  }

  /// Sets the room for datagrams that wait to be sent.
  ///
  /// The corresponding C constant is `SO_SNDBUF` (socket(7)), of which holds
  /// what ``setReceiveBufferSize(_:)`` says, with the parameter
  /// `net.core.wmem_max`.
  ///
  /// - Parameter size: In bytes, before it is doubled.
  /// - Throws: What setsockopt(2) names.
  public func setSendBufferSize(_ size: Int32) throws(Errno) {
    try unsafeFileDescriptor.setOption(SOL_SOCKET, SO_SNDBUF, size)
  }

  /// Sets whether an IPv6 socket refuses IPv4. To be called before
  /// ``bind(to:)``.
  ///
  /// The corresponding C constant is `IPV6_V6ONLY` (ipv6(7)).
  ///
  /// - Throws: `EINVAL` if the socket is bound, `ENOPROTOOPT` if it is not of
  ///   IPv6.
  public func setIPv6Only(_ only: Bool) throws(Errno) {
    try unsafeFileDescriptor.setOption(Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(only ? 1 : 0))
  }

  // MARK: Datagrams

  /// Sends one datagram, without traits of its own: it has those of
  /// ``setSentTraits(_:)``.
  ///
  /// The corresponding C function is `sendmsg`.
  ///
  /// - Parameters:
  ///   - payload: The whole datagram.
  ///   - destination: Where to; nil for where ``connect(to:)`` said.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  /// - Returns: How many bytes of payload were sent: all.
  /// - Throws: `EMSGSIZE` if the payload is longer than a datagram can be,
  ///   `EDESTADDRREQ` if there is no destination, `EAGAIN`, `ENETUNREACH`,
  ///   `ECONNREFUSED`, what else send(2) and udp(7) name. Then nothing was sent,
  ///   and of a datagram in pieces (``MessageFlags/more``) those before are gone.
  @discardableResult
  public func send(
    _ payload: RawSpan, to destination: InternetAddress? = nil, flags: MessageFlags = []
  ) throws(Errno) -> Int {
    try unsafeFileDescriptor.sendMessage(payload, to: destination, flags: flags)
  }

  /// Sends one datagram with these traits, over those of ``setSentTraits(_:)``:
  /// of a key that is in both it has this value.
  ///
  /// The corresponding C function is `sendmsg`, with the constants `SOL_TRAITS`
  /// and `SCM_TRAITS`.
  ///
  /// - Parameters:
  ///   - payload: The whole datagram.
  ///   - destination: Where to; nil for where ``connect(to:)`` said.
  ///   - traits: Of this datagram alone.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  /// - Returns: How many bytes of payload were sent: all.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/notPermitted`` if a key is not open to all to be written
  ///   and the thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`, or if a
  ///   packet filter refuses the datagram; ``TraitError/Code/invalidArgument`` if
  ///   a value has another size than its key, or the datagram was begun with
  ///   other traits (``MessageFlags/more``);
  ///   ``TraitError/Code/limitExceeded`` if the values take more than 192 bytes
  ///   together with the socket's; ``TraitError/Code/unsupportedKernel`` if there
  ///   are no packet traits; ``TraitError/Code/wouldBlock``;
  ///   ``TraitError/Code/systemCall`` with an error as `send(_:to:flags:)` throws
  ///   it. Then nothing was sent, and of a datagram in pieces those before are
  ///   gone, unless it was refused for its traits.
  @discardableResult
  public func send(
    _ payload: RawSpan, to destination: InternetAddress? = nil, traits: Traits,
    flags: MessageFlags = []
  ) throws(TraitError) -> Int {
    if !traits.isEmpty { try unsafeFileDescriptor.requireSentTraits() }
    do throws(Errno) {
      return try unsafeFileDescriptor.sendMessage(payload, to: destination, traits: traits, flags: flags)
    } catch {
      throw TraitError(sending: traits, error)
    }
  }

  /// Sends one datagram with control data: beside traits what ip(7), ipv6(7) and udp(7) know
  /// of, as the type of service, the source address, the length of segments.
  ///
  /// The corresponding C function is `sendmsg`.
  ///
  /// - Parameters:
  ///   - payload: The whole datagram.
  ///   - destination: Where to; nil for where ``connect(to:)`` said.
  ///   - control: Control messages of any kind. Traits among them are as those of
  ///     ``send(_:to:traits:flags:)``.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  /// - Returns: How many bytes of payload were sent: all.
  /// - Throws: As ``send(_:to:traits:flags:)``; ``TraitError/Code/systemCall`` with `EINVAL`
  ///   for a message that the kernel does not take, if there are no traits among them.
  @discardableResult
  public func send(
    _ payload: RawSpan, to destination: InternetAddress? = nil, control: ControlData,
    flags: MessageFlags = []
  ) throws(TraitError) -> Int {
    if control.hasTraits { try unsafeFileDescriptor.requireSentTraits() }
    do throws(Errno) {
      return try unsafeFileDescriptor.sendMessage(payload, to: destination, control: control, flags: flags)
    } catch {
      throw TraitError(sending: control.traits, error)
    }
  }

  /// Receives one datagram with those traits that ``setReceivedTraits(_:)``
  /// asked for.
  ///
  /// The corresponding C function is `recvmsg`.
  ///
  /// - Parameters:
  ///   - payload: Where the payload goes. What does not fit is lost, which the
  ///     result tells.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Returns: What came. When the socket is shut down for receiving
  ///   (shutdown(2)) and nothing is there, at once a datagram of length 0 whose
  ///   source is nil; with ``MessageFlags/doNotWait`` that is
  ///   ``TraitError/Code/wouldBlock``.
  /// - Throws: ``TraitError/Code/wouldBlock`` if nothing came within the
  ///   time-out of ``setReceiveTimeout(_:)``, or at all without waiting;
  ///   ``TraitError/Code/systemCall`` with another error of recv(2). Then no datagram was taken
  ///   from the queue. Traits that cannot be read are an error of ``ReceivedDatagram/traits``.
  public func receive(
    into payload: inout MutableRawSpan, flags: MessageFlags = []
  ) throws(TraitError) -> ReceivedDatagram {
    try receiveNow(&payload, flags)
  }

  private func receiveNow(
    _ payload: inout MutableRawSpan, _ flags: MessageFlags
  ) throws(TraitError) -> ReceivedDatagram {
    let message: ReceivedMessage
    var control = ReceivedControl()
    do throws(Errno) {
      message = try control.receive(
        from: unsafeFileDescriptor, into: &payload, flags: flags.union(.truncated))
    } catch {
      throw TraitError(receiving: error)
    }
    return control.with(message) { ReceivedDatagram(message, control: $0) }
  }

  /// Receives one datagram into an array, whose length stays as it is: the
  /// payload is the first ``ReceivedDatagram/length`` elements.
  ///
  /// Otherwise as with a span: see the other `receive(into:flags:)`.
  ///
  /// - Parameters:
  ///   - payload: As many elements as there is to be room for.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Throws: As with a span.
  public func receive(
    into payload: inout [UInt8], flags: MessageFlags = []
  ) throws(TraitError) -> ReceivedDatagram {
    var elements = payload.mutableSpan
    var bytes = elements.mutableBytes
    return try receiveNow(&bytes, flags)
  }

  // MARK: Datagrams, in tasks

  /// Receives one datagram; the task is suspended until there is one.
  ///
  /// The time-out of ``setReceiveTimeout(_:)`` does not hold here: a task waits until it is
  /// cancelled.
  ///
  /// - Parameters:
  ///   - payload: Where the payload goes. What does not fit is lost, which the result tells.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Returns: What came; as the blocking method if the socket is shut down for receiving.
  /// - Throws: ``TraitError/Code/cancelled`` if the task is cancelled;
  ///   ``TraitError/Code/wouldBlock`` only with ``MessageFlags/doNotWait``;
  ///   ``TraitError/Code/systemCall`` with an error of recv(2) or epoll_ctl(2), `EMFILE` for
  ///   the second descriptor, or `EAGAIN` if the thread that waits for all sockets cannot be
  ///   made. Then no datagram was taken from the queue.
  public func receive(
    into payload: inout MutableRawSpan, flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> ReceivedDatagram {
    var generation: UInt64?
    var canCome = true
    while true {
      if let datagram = try receiveIfThere(&payload, flags) { return datagram }
      guard canCome else { return .none }
      canCome = try await waitToReceive(&generation, actor)
    }
  }

  /// Receives one datagram into an array, whose length stays as it is; the task is suspended
  /// until there is one. The payload is the first ``ReceivedDatagram/length`` elements.
  ///
  /// - Parameters:
  ///   - payload: As many elements as there is to be room for.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Returns: What came, as with a span.
  /// - Throws: As with a span.
  public func receive(
    into payload: inout [UInt8], flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> ReceivedDatagram {
    var generation: UInt64?
    var canCome = true
    while true {
      do {
        var elements = payload.mutableSpan
        var bytes = elements.mutableBytes
        if let datagram = try receiveIfThere(&bytes, flags) { return datagram }
      }
      guard canCome else { return .none }
      canCome = try await waitToReceive(&generation, actor)
    }
  }

  /// Sends one datagram; the task is suspended until there is room for it.
  ///
  /// The time-out of ``setSendTimeout(_:)`` does not hold here: a task waits until it is
  /// cancelled.
  ///
  /// - Parameters:
  ///   - payload: The whole datagram.
  ///   - destination: Where to; nil for where ``connect(to:)`` said.
  ///   - traits: Of this datagram alone, over those of ``setSentTraits(_:)``.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  /// - Returns: How many bytes of payload were sent: all.
  /// - Throws: ``TraitError/Code/cancelled`` if the task is cancelled;
  ///   ``TraitError/Code/wouldBlock`` only with ``MessageFlags/doNotWait``;
  ///   ``TraitError/Code/systemCall`` also with an error of epoll_ctl(2), `EMFILE` for the
  ///   second descriptor, or `EAGAIN` if the thread that waits for all sockets cannot be made;
  ///   otherwise as the blocking method with traits. Then nothing was sent.
  @discardableResult
  public func send(
    _ payload: RawSpan, to destination: InternetAddress? = nil, traits: Traits = Traits(),
    flags: MessageFlags = [], isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> Int {
    if !traits.isEmpty { try unsafeFileDescriptor.requireSentTraits() }
    var generation: UInt64?
    while true {
      let sent = try ifRoom(flags, traits) { flags throws(Errno) in
        try unsafeFileDescriptor.sendMessage(payload, to: destination, traits: traits, flags: flags)
      }
      if let sent { return sent }
      try await waitToSend(&generation, actor)
    }
  }

  /// Sends one datagram with control data; the task is suspended until there is room for it.
  ///
  /// - Parameters:
  ///   - payload: The whole datagram.
  ///   - destination: Where to; nil for where ``connect(to:)`` said.
  ///   - control: Control messages of any kind.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  /// - Returns: How many bytes of payload were sent: all.
  /// - Throws: As the `async` method with traits; ``TraitError/Code/systemCall`` with `EINVAL`
  ///   for a message that the kernel does not take, if there are no traits among them.
  @discardableResult
  public func send(
    _ payload: RawSpan, to destination: InternetAddress? = nil, control: ControlData,
    flags: MessageFlags = [], isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> Int {
    if control.hasTraits { try unsafeFileDescriptor.requireSentTraits() }
    var generation: UInt64?
    while true {
      let sent = try ifRoom(flags, control.traits) { flags throws(Errno) in
        try unsafeFileDescriptor.sendMessage(
          payload, to: destination, control: control, flags: flags)
      }
      if let sent { return sent }
      try await waitToSend(&generation, actor)
    }
  }

  /// nil if there is nothing now.
  private func receiveIfThere(
    _ payload: inout MutableRawSpan, _ flags: MessageFlags
  ) throws(TraitError) -> ReceivedDatagram? {
    guard !Task.isCancelled else { throw TraitError(cancelled: "a datagram was waited for") }
    do throws(TraitError) {
      return try receiveNow(&payload, flags.union(.doNotWait))
    } catch {
      guard error.code == .wouldBlock, !flags.contains(.doNotWait) else { throw error }
      return nil
    }
  }

  /// Calls `send` with flags so that it does not wait.
  ///
  /// - Returns: What it returns; nil if there is no room now.
  private func ifRoom(
    _ flags: MessageFlags, _ traits: @autoclosure () -> Traits,
    _ send: (MessageFlags) throws(Errno) -> Int
  ) throws(TraitError) -> Int? {
    guard !Task.isCancelled else { throw TraitError(cancelled: "a datagram was to be sent") }
    do throws(Errno) {
      return try send(flags.union(.doNotWait))
    } catch {
      guard error == .wouldBlock, !flags.contains(.doNotWait) else {
        throw TraitError(sending: traits(), error)
      }
      return nil
    }
  }

  /// Waits for a datagram, after a look in vain.
  ///
  /// - Returns: Whether one can come: false if the socket is shut down for receiving.
  func waitToReceive(
    _ generation: inout UInt64?, _ actor: isolated (any Actor)?
  ) async throws(TraitError) -> Bool {
    do throws(Errno) {
      return try await receiving.wait(for: owner.borrowed, since: &generation, isolation: actor)
    } catch {
      throw TraitError(.systemCall, "a datagram cannot be waited for", underlyingError: error)
    }
  }

  /// Waits for room for a datagram, after an attempt in vain.
  func waitToSend(
    _ generation: inout UInt64?, _ actor: isolated (any Actor)?
  ) async throws(TraitError) {
    do throws(Errno) {
      try await sending.wait(for: owner.borrowed, since: &generation, isolation: actor)
    } catch {
      throw TraitError(
        .systemCall, "room for a datagram cannot be waited for", underlyingError: error)
    }
  }
}
