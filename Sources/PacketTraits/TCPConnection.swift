// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
public import SystemPackage

/// Bytes of a stream that one call received, and their traits.
public struct ReceivedBytes: Sendable {
  /// How many bytes were written to the caller's buffer.
  public let length: Int

  private let foundTraits: Result<Traits, TraitError>

  /// Those of the keys asked for that these bytes have. Of several segments' the kernel makes
  /// one, by each key's merge policy; at a change of a key with the policy `exact` it ends the
  /// read.
  ///
  /// The bytes are there whether the traits can be read or not, so that no part of the stream
  /// is lost.
  ///
  /// - Throws: ``TraitError/Code/malformedControlData`` or
  ///   ``TraitError/Code/malformedRecords`` if this version cannot read what the kernel gave,
  ///   such as a record with a flag of a later kernel.
  public var traits: Traits {
    get throws(TraitError) { try foundTraits.get() }
  }

  /// Whether traits may be lost, as control messages of other options left no room for them.
  /// Then ``traits`` is empty: they come whole or not at all.
  ///
  /// The corresponding C constant is `MSG_CTRUNC`.
  public let areTraitsTruncated: Bool

  /// Whether nothing will come any more: the peer has shut down for sending, or this end for
  /// receiving, and all that came before has been read. Never with an empty buffer, which says
  /// nothing.
  public let isEndOfStream: Bool

  /// - Parameters:
  ///   - room: How many bytes the buffer has.
  ///   - control: The message's control data.
  init(_ message: ReceivedMessage, room: Int, control: RawSpan) {
    length = message.length
    (foundTraits, areTraitsTruncated) = Traits.received(message, control: control)
    isEndOfStream = message.length == 0 && room > 0
  }
}

/// A TCP connection, owned: it cannot be copied, and is closed when the variable that holds it
/// goes out of scope, or before by ``close()``.
///
/// ```swift
/// let connection = try TCPConnection.connect(to: server, traits: traits, receiving: TraitMask(flow))
/// try connection.sendAll(request.span.bytes)
///
/// var bytes = [UInt8](repeating: 0, count: 65536)
/// while true {
///   let received = try connection.receive(into: &bytes)
///   if received.isEndOfStream { break }
///   print(received.length, try received.traits.value(for: flow) ?? 0)
/// }
/// ```
///
/// Where a method is there twice, one waits in its thread, and the other suspends its task;
/// in an async function the second one is meant, with `await`.
/// A task that waits takes up no thread; one that finds what it is for goes on without a pause: who
/// serves fast peers in a loop lets others have the thread now and then (`await Task.yield()`).
/// When it is cancelled the method throws
/// ``TraitError/Code/cancelled``, and the connection stays as it is. Two tasks may use one
/// connection at once, one of which receives while the other sends. For each of both
/// directions in which tasks have waited the connection has another descriptor of the socket, by
/// dup(2), until it is closed.
///
/// Descriptors that it makes are close-on-exec; one that it takes over stays as it is.
///
/// What any TCP socket can do throws `Errno`; to connect, to receive and to send, and what else has to do
/// with traits throws ``TraitError``.
public struct TCPConnection: ~Copyable, Sendable {
  private let owner: OwnedDescriptor
  private let receiving = ReadinessSlot(for: .receiving)
  private let sending = ReadinessSlot(for: .sending)

  /// The socket's descriptor, which the connection owns. It must not be closed, and its number
  /// may be another file's as soon as the connection is gone: of a temporary value, as in
  /// `try TCPConnection.connect(to: server).unsafeFileDescriptor`, that is at once. Prefer
  /// ``withFileDescriptor(_:)``.
  public var unsafeFileDescriptor: FileDescriptor { owner.borrowed }

  /// Calls `body` with the socket's descriptor. The connection stays open until it returns.
  ///
  /// - Parameter body: Uses the descriptor. It must neither close it nor keep it.
  /// - Returns: What `body` returns.
  /// - Throws: What `body` throws.
  public func withFileDescriptor<Result: ~Copyable, Failure: Error>(
    _ body: (FileDescriptor) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(owner.borrowed)
  }

  /// Who is at the other end, as it was when the connection was made.
  public let peerAddress: InternetAddress

  private var options: TraitOptions { TraitOptions(descriptor: owner.borrowed) }

  /// - Parameter peer: nil if it is not known.
  /// - Throws: `EAFNOSUPPORT`. Then the descriptor is closed.
  init(_ owner: consuming OwnedDescriptor, _ peer: InternetAddress?) throws(Errno) {
    guard let peer else { throw .addressFamilyNotSupported }
    self.owner = owner
    peerAddress = peer
  }

  /// Takes over the descriptor of a TCP connection, whose options stay as they are.
  ///
  /// - Throws: ``TraitError/Code/unsupportedSocket`` if it is not of TCP over IPv4 or IPv6
  ///   (Multipath TCP is another protocol), ``TraitError/Code/systemCall`` if it is not open,
  ///   or not connected. Then it is still the caller's to close.
  public init(owning descriptor: FileDescriptor) throws(TraitError) {
    try Transport.tcp.require(descriptor)
    do throws(Errno) {
      peerAddress = try descriptor.peerSocketAddress()
    } catch {
      throw TraitError(
        .systemCall, "descriptor \(descriptor.rawValue) is no connection", underlyingError: error)
    }
    owner = OwnedDescriptor(descriptor)
  }

  /// Makes a connection of another descriptor (dup(2)) of a socket that somebody else owns. The
  /// socket is closed when both are.
  ///
  /// - Throws: As ``init(owning:)``; ``TraitError/Code/systemCall`` with `EMFILE`.
  public init(duplicating descriptor: FileDescriptor) throws(TraitError) {
    try Transport.tcp.require(descriptor)
    let number = fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0)
    guard number >= 0 else {
      throw TraitError(
        .systemCall, "descriptor \(descriptor.rawValue) cannot be duplicated",
        underlyingError: Errno.current)
    }
    let duplicate = FileDescriptor(rawValue: number)
    do throws(TraitError) {
      try self.init(owning: duplicate)
    } catch {
      try? duplicate.close()
      throw error
    }
  }

  /// Closes the connection, which is gone also if that fails. What has been sent is delivered
  /// if it can be; bytes that nobody has received make it a reset.
  ///
  /// The corresponding C function is `close`.
  ///
  /// - Throws: `EBADF` if somebody else has closed it, what else close(2) names.
  public consuming func close() throws(Errno) { try owner.close() }

  /// Gives up the connection without closing it: the caller owns the descriptor.
  public consuming func release() -> FileDescriptor { owner.release() }

  // MARK: Connecting

  /// Connects, and waits for that in this thread; signals neither end the wait nor make it
  /// longer.
  ///
  /// The corresponding C functions are `socket`, `bind` and `connect`.
  ///
  /// - Parameters:
  ///   - destination: Where to.
  ///   - source: What address to connect from; nil for what the kernel picks.
  ///   - traits: Of all segments from the SYN on, as of ``setSentTraits(_:)``.
  ///   - mask: The keys whose traits are received from the first byte on, as of
  ///     ``setReceivedTraits(_:)``.
  ///   - timeout: How long to wait; nil for as long as the kernel tries (tcp(7),
  ///     `tcp_syn_retries`).
  /// - Throws: As ``setSentTraits(_:)`` and ``setReceivedTraits(_:)``, if there are traits and
  ///   keys; ``TraitError/Code/wouldBlock`` if there was no connection in time;
  ///   ``TraitError/Code/systemCall`` with `ECONNREFUSED`, `ETIMEDOUT`, `ENETUNREACH`,
  ///   `EADDRINUSE`, what else socket(2), bind(2) and connect(2) name. Then there is no connection.
  @available(*, noasync, message: "It waits in its thread: in a task, await the one without a time-out")
  public static func connect(
    to destination: InternetAddress, from source: InternetAddress? = nil,
    traits: Traits = Traits(), receiving mask: TraitMask = [], timeout: Duration? = nil
  ) throws(TraitError) -> TCPConnection {
    let end = timeout.map { SuspendingClock.now + $0 }
    let socket = try begin(destination, source, traits, mask)
    guard SocketWait.poll(socket.borrowed, for: POLLOUT, until: end) != nil else {
      throw TraitError(
        .wouldBlock, "there was no connection to \(destination) in time",
        underlyingError: .wouldBlock)
    }
    return try finish(socket, destination)
  }

  /// Connects; the task is suspended meanwhile, and takes up no thread.
  ///
  /// - Parameters:
  ///   - destination: Where to.
  ///   - source: What address to connect from; nil for what the kernel picks.
  ///   - traits: Of all segments from the SYN on.
  ///   - mask: The keys whose traits are received from the first byte on.
  /// - Throws: As the other `connect`, and ``TraitError/Code/cancelled`` if the task has been
  ///   cancelled: before, nothing was sent. ``TraitError/Code/systemCall`` also with `EMFILE` for the
  ///   second descriptor, or an error of epoll_ctl(2). Then there is no connection.
  public static func connect(
    to destination: InternetAddress, from source: InternetAddress? = nil,
    traits: Traits = Traits(), receiving mask: TraitMask = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> TCPConnection {
    let cancelled = "a connection to \(destination) was waited for"
    guard !Task.isCancelled else { throw TraitError(cancelled: cancelled) }
    let socket = try begin(destination, source, traits, mask)
    let slot = ReadinessSlot(for: .sending)
    var generation: UInt64?
    while SocketWait.look(socket.borrowed, for: POLLOUT) == 0 {
      guard !Task.isCancelled else { throw TraitError(cancelled: cancelled) }
      do throws(Errno) {
        try await slot.wait(for: socket.borrowed, since: &generation, isolation: actor)
      } catch {
        throw TraitError(connecting: destination, error)
      }
    }
    return try finish(socket, destination)
  }

  /// Sends the SYN.
  private static func begin(
    _ destination: InternetAddress, _ source: InternetAddress?, _ traits: Traits,
    _ mask: TraitMask
  ) throws(TraitError) -> OwnedDescriptor {
    let socket: OwnedDescriptor
    do throws(Errno) {
      socket = OwnedDescriptor(
        try Transport.tcp.open(destination.family, flags: SOCK_NONBLOCK))
    } catch {
      throw TraitError(connecting: destination, error)
    }
    let options = TraitOptions(descriptor: socket.borrowed)
    if !traits.isEmpty { try options.setSent(traits) }
    if !mask.isEmpty { try options.setReceived(mask) }
    do throws(Errno) {
      if let source {
        // The same port may then go with other destinations (ip(7)).
        if source.port == 0 { try socket.borrowed.setOption(Int32(IPPROTO_IP), IP_BIND_ADDRESS_NO_PORT, Int32(1)) }
        try socket.borrowed.bindSocket(to: source)
      }
      try socket.borrowed.connectSocket(to: destination)
    } catch {
      guard error == .nowInProgress else { throw TraitError(connecting: destination, error) }
    }
    return socket
  }

  /// Tells what came of it.
  private static func finish(
    _ socket: consuming OwnedDescriptor, _ destination: InternetAddress
  ) throws(TraitError) -> TCPConnection {
    do throws(Errno) {
      let error = try socket.borrowed.option(SOL_SOCKET, SO_ERROR)
      guard error == 0 else { throw Errno(rawValue: error) }
      try socket.borrowed.setNonblocking(false)
      // It may have been reset by now, which is for who receives.
      let peer = (try? socket.borrowed.peerSocketAddress()) ?? destination
      return try TCPConnection(socket, peer)
    } catch {
      throw TraitError(connecting: destination, error)
    }
  }

  // MARK: Addresses and options

  /// The address of this end.
  ///
  /// The corresponding C function is `getsockname`.
  ///
  /// - Throws: What getsockname(2) names.
  public func localAddress() throws(Errno) -> InternetAddress {
    try unsafeFileDescriptor.localSocketAddress()
  }

  /// The traits that were kept of the SYN of an accepted connection, by
  /// ``TCPListener/setSavedSYNTraits(_:)`` of its listener; with SYN cookies those of the
  /// acknowledgment that completed the handshake. To read them does not remove them.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SYN`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet traits;
  ///   ``TraitError/Code/malformedRecords`` if the kernel gave something else than records of
  ///   traits.
  public func synTraits() throws(TraitError) -> Traits { try options.syn() }

  /// Asks that ``receive(into:flags:)`` hands over these keys' traits, and no others. If none
  /// were asked for until now, bytes that came before have none; otherwise this holds for them
  /// as well, but for what segments that the kernel has joined lost by that.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: As ``UDPSocket/setReceivedTraits(_:)``. Then nothing has changed.
  public func setReceivedTraits(_ mask: TraitMask) throws(TraitError) {
    try options.setReceived(mask)
  }

  /// The keys that ``setReceivedTraits(_:)`` asked for, or the listener did, less those that
  /// have been removed from the registry.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  public func receivedTraits() throws(TraitError) -> TraitMask { try options.received() }

  /// Gives these traits to every segment that is transmitted from now on, for the first time
  /// or again, instead of those that were set before.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Parameter traits: The traits; none turns it off.
  /// - Throws: As ``UDPSocket/setSentTraits(_:)``. Then nothing has changed.
  public func setSentTraits(_ traits: Traits) throws(TraitError) { try options.setSent(traits) }

  /// The traits that ``setSentTraits(_:)`` set, or the listener did, less those whose keys
  /// have been removed from the registry or are not for the thread to be read.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Throws: As ``UDPSocket/sentTraits()``.
  public func sentTraits() throws(TraitError) -> Traits { try options.sent() }

  /// Limits how long the thread waits for bytes. Signals do not make it longer, and tasks
  /// that are suspended it does not concern.
  ///
  /// The corresponding C constant is `SO_RCVTIMEO`.
  ///
  /// - Parameter timeout: As of ``UDPSocket/setReceiveTimeout(_:)``.
  /// - Throws: `EINVAL` if the time-out is negative.
  public func setReceiveTimeout(_ timeout: Duration?) throws(Errno) {
    try unsafeFileDescriptor.setTimeout(SO_RCVTIMEO, timeout)
  }

  /// Limits how long the thread waits for room, as ``setReceiveTimeout(_:)`` does for bytes.
  ///
  /// The corresponding C constant is `SO_SNDTIMEO`.
  ///
  /// - Parameter timeout: As of ``UDPSocket/setReceiveTimeout(_:)``.
  /// - Throws: `EINVAL` if the time-out is negative.
  public func setSendTimeout(_ timeout: Duration?) throws(Errno) {
    try unsafeFileDescriptor.setTimeout(SO_SNDTIMEO, timeout)
  }

  /// Sets the room for bytes that wait to be received, and ends that the kernel finds the
  /// right size by itself.
  ///
  /// The corresponding C constant is `SO_RCVBUF` (socket(7), tcp(7)); see
  /// ``UDPSocket/setReceiveBufferSize(_:)``.
  ///
  /// - Parameter size: In bytes, before the kernel doubles it.
  /// - Throws: What setsockopt(2) names.
  public func setReceiveBufferSize(_ size: Int32) throws(Errno) {
    try unsafeFileDescriptor.setOption(SOL_SOCKET, SO_RCVBUF, size)
  }

  /// Sets the room for bytes that wait to be sent, or to be acknowledged, and ends that the
  /// kernel finds the right size by itself.
  ///
  /// The corresponding C constant is `SO_SNDBUF` (socket(7), tcp(7)); see
  /// ``UDPSocket/setSendBufferSize(_:)``.
  ///
  /// - Parameter size: In bytes, before the kernel doubles it.
  /// - Throws: What setsockopt(2) names.
  public func setSendBufferSize(_ size: Int32) throws(Errno) {
    try unsafeFileDescriptor.setOption(SOL_SOCKET, SO_SNDBUF, size)
  }

  /// Sets whether what is sent goes at once, and does not wait for more to fill a segment.
  ///
  /// The corresponding C constant is `TCP_NODELAY` (tcp(7)).
  ///
  /// - Throws: What setsockopt(2) names.
  public func setNoDelay(_ isOn: Bool) throws(Errno) {
    try unsafeFileDescriptor.setOption(Int32(IPPROTO_TCP), TCP_NODELAY, Int32(isOn ? 1 : 0))
  }

  /// Shuts down one direction or both, for all who have a descriptor of the socket. Whoever
  /// waits is told.
  ///
  /// The corresponding C function is `shutdown`.
  ///
  /// - Throws: `ENOTCONN` if the connection is gone, what else shutdown(2) names.
  public func shutdown(_ direction: ShutdownDirection) throws(Errno) {
    try unsafeFileDescriptor.shutdownSocket(direction)
  }

  // MARK: Receiving

  /// Receives bytes with those traits that ``setReceivedTraits(_:)`` asked for: as many as are
  /// there and there is room for, 1 at least. Waits for them in this thread.
  ///
  /// The corresponding C function is `recvmsg`.
  ///
  /// - Parameters:
  ///   - bytes: Where they go.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  ///     ``MessageFlags/truncated`` is taken out, as it would throw bytes away, and
  ///     ``MessageFlags/errorQueue``, as its messages are no part of the stream.
  /// - Returns: What came, or that the stream is at its end.
  /// - Throws: ``TraitError/Code/wouldBlock`` if nothing came within the time-out of
  ///   ``setReceiveTimeout(_:)``, or at all without waiting; ``TraitError/Code/systemCall``
  ///   with `ECONNRESET`, or another error of recv(2) or tcp(7). Then no byte was taken from
  ///   the stream.
  public func receive(
    into bytes: inout MutableRawSpan, flags: MessageFlags = []
  ) throws(TraitError) -> ReceivedBytes {
    try receiveNow(&bytes, flags)
  }

  /// Receives bytes into an array, whose length stays as it is: they are the first
  /// ``ReceivedBytes/length`` elements.
  ///
  /// Otherwise as with a span: see the other `receive(into:flags:)`.
  public func receive(
    into bytes: inout [UInt8], flags: MessageFlags = []
  ) throws(TraitError) -> ReceivedBytes {
    var elements = bytes.mutableSpan
    var room = elements.mutableBytes
    return try receiveNow(&room, flags)
  }

  /// Receives bytes into a span; the task is suspended until there are some.
  ///
  /// - Parameters:
  ///   - bytes: Where they go.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Throws: ``TraitError/Code/cancelled`` if the task has been cancelled, and no byte is
  ///   lost; ``TraitError/Code/wouldBlock`` only if it is not to wait; ``TraitError/Code/systemCall``
  ///   also with `EMFILE` for the second descriptor, `EAGAIN` if the thread that waits for all
  ///   sockets cannot be made, or an error of epoll_ctl(2); otherwise as the one that waits in its
  ///   thread.
  public func receive(
    into bytes: inout MutableRawSpan, flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> ReceivedBytes {
    var generation: UInt64?
    while true {
      if let received = try receiveIfThere(&bytes, flags) { return received }
      try await waitToReceive(&generation, actor)
    }
  }

  /// Receives bytes into an array, whose length stays as it is; the task is suspended until
  /// there are some. Otherwise as with a span.
  public func receive(
    into bytes: inout [UInt8], flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> ReceivedBytes {
    var generation: UInt64?
    while true {
      do {
        var elements = bytes.mutableSpan
        var room = elements.mutableBytes
        if let received = try receiveIfThere(&room, flags) { return received }
      }
      try await waitToReceive(&generation, actor)
    }
  }

  private func receiveNow(
    _ bytes: inout MutableRawSpan, _ flags: MessageFlags
  ) throws(TraitError) -> ReceivedBytes {
    let room = bytes.byteCount
    let message: ReceivedMessage
    var control = ReceivedControl()
    do throws(Errno) {
      message = try control.receive(
        from: unsafeFileDescriptor, into: &bytes, flags: flags.subtracting([.truncated, .errorQueue]))
    } catch {
      throw TraitError(reading: error)
    }
    return control.with(message) { ReceivedBytes(message, room: room, control: $0) }
  }

  /// nil if there is nothing now.
  private func receiveIfThere(
    _ bytes: inout MutableRawSpan, _ flags: MessageFlags
  ) throws(TraitError) -> ReceivedBytes? {
    guard !Task.isCancelled else { throw TraitError(cancelled: "bytes were waited for") }
    do throws(TraitError) {
      return try receiveNow(&bytes, flags.union(.doNotWait))
    } catch {
      guard error.code == .wouldBlock, !flags.contains(.doNotWait) else { throw error }
      return nil
    }
  }

  private func waitToReceive(
    _ generation: inout UInt64?, _ actor: isolated (any Actor)?
  ) async throws(TraitError) {
    do throws(Errno) {
      try await receiving.wait(for: unsafeFileDescriptor, since: &generation, isolation: actor)
    } catch {
      throw TraitError(.systemCall, "bytes cannot be waited for", underlyingError: error)
    }
  }

  // MARK: Sending

  /// Sends bytes with these traits, over those of ``setSentTraits(_:)``: of a key that is in
  /// both they have this value. The kernel may take only a part of them, if a signal comes or
  /// the time is over, or without waiting: ``sendAll(_:traits:flags:)`` sends the rest.
  ///
  /// The corresponding C function is `sendmsg`, with the constants `SOL_TRAITS` and
  /// `SCM_TRAITS` if there are traits. No signal comes of it (`MSG_NOSIGNAL`).
  ///
  /// - Parameters:
  ///   - bytes: What is to be sent.
  ///   - traits: Of these bytes alone.
  ///   - flags: ``MessageFlags/doNotWait``; ``MessageFlags/more`` if more is to come, which
  ///     the kernel waits for a while to fill the segment; or none.
  /// - Returns: How many bytes the kernel took: 1 at least, if there are any.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/notPermitted`` if a key is not open to all to be written and the
  ///   thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`;
  ///   ``TraitError/Code/invalidArgument`` if a value has another size than its key, or the
  ///   kernel encrypts the connection (TLS); ``TraitError/Code/unsupportedSocket`` if its bytes
  ///   are not given traits (a sockmap's); ``TraitError/Code/limitExceeded`` if the values take
  ///   more than 192 bytes together with the connection's; ``TraitError/Code/unsupportedKernel`` if there are traits, and no
  ///   packet traits; ``TraitError/Code/wouldBlock``; ``TraitError/Code/systemCall`` with
  ///   `EPIPE`, `ECONNRESET`, or another error of send(2) or tcp(7). Then nothing was sent.
  public func send(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = []
  ) throws(TraitError) -> Int {
    if !traits.isEmpty { try unsafeFileDescriptor.requireSentTraits() }
    do throws(Errno) {
      return try unsafeFileDescriptor.sendMessage(bytes, traits: traits, flags: flags)
    } catch {
      throw TraitError(writing: traits, error)
    }
  }

  /// Sends all of these bytes, with these traits: whatever part the kernel takes, the rest is
  /// sent after it with the same traits. The time-out of ``setSendTimeout(_:)`` counts anew for each part.
  ///
  /// - Parameters:
  ///   - bytes: What is to be sent.
  ///   - traits: Of these bytes alone.
  ///   - flags: As of ``send(_:traits:flags:)``.
  /// - Throws: As ``send(_:traits:flags:)``. Then a part may have been sent: who is to go on
  ///   calls ``sendAll(_:traits:flags:sent:)``.
  public func sendAll(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = []
  ) throws(TraitError) {
    var sent = 0
    try sendAll(bytes, traits: traits, flags: flags, sent: &sent)
  }

  /// Sends all of these bytes that have not been sent, with these traits.
  ///
  /// - Parameters:
  ///   - bytes: What is to be sent.
  ///   - traits: Of these bytes alone.
  ///   - flags: As of ``send(_:traits:flags:)``.
  ///   - sent: How many of the bytes have been sent already; counted up, also if an error is
  ///     thrown.
  /// - Throws: As ``send(_:traits:flags:)``. Then what is behind `sent` was not sent.
  public func sendAll(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = [], sent: inout Int
  ) throws(TraitError) {
    if !traits.isEmpty { try unsafeFileDescriptor.requireSentTraits() }
    do throws(Errno) {
      try unsafeFileDescriptor.sendAll(bytes, traits: traits, flags: flags, sent: &sent)
    } catch {
      throw TraitError(writing: traits, error)
    }
  }

  /// Sends bytes with these traits; the task is suspended until the kernel takes some.
  ///
  /// - Parameters:
  ///   - bytes: What is to be sent.
  ///   - traits: Of these bytes alone.
  ///   - flags: As of the one that waits in its thread.
  /// - Returns: How many bytes the kernel took: 1 at least, if there are any.
  /// - Throws: ``TraitError/Code/cancelled`` if the task has been cancelled;
  ///   ``TraitError/Code/wouldBlock`` only if it is not to wait; ``TraitError/Code/systemCall`` also
  ///   with `EMFILE` for the second descriptor, `EAGAIN` if the thread that waits for all sockets cannot
  ///   be made, or an error of epoll_ctl(2); otherwise as the one that waits in its thread. Then nothing
  ///   was sent.
  public func send(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> Int {
    if !traits.isEmpty { try unsafeFileDescriptor.requireSentTraits() }
    var generation: UInt64?
    while true {
      guard !Task.isCancelled else { throw TraitError(cancelled: "bytes were to be sent") }
      if let sent = try sendIfRoom(bytes, traits, flags) { return sent }
      do throws(Errno) {
        try await sending.wait(for: unsafeFileDescriptor, since: &generation, isolation: actor)
      } catch {
        throw TraitError(
          .systemCall, "room for bytes cannot be waited for", underlyingError: error)
      }
    }
  }

  /// nil if there is no room now.
  private func sendIfRoom(
    _ bytes: RawSpan, _ traits: Traits, _ flags: MessageFlags
  ) throws(TraitError) -> Int? {
    do throws(Errno) {
      return try unsafeFileDescriptor.sendMessage(
        bytes, traits: traits, flags: flags.union(.doNotWait))
    } catch {
      guard error == .wouldBlock, !flags.contains(.doNotWait) else {
        throw TraitError(writing: traits, error)
      }
      return nil
    }
  }

  /// Sends all of these bytes, with these traits; the task is suspended whenever there is no
  /// room. Otherwise as the one that waits in its thread.
  public func sendAll(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = [],
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) {
    var sent = 0
    try await sendAll(bytes, traits: traits, flags: flags, sent: &sent, isolation: actor)
  }

  /// Sends all of these bytes that have not been sent, with these traits; the task is
  /// suspended whenever there is no room. Otherwise as the one that waits in its thread.
  ///
  /// - Throws: ``TraitError/Code/cancelled``, too, after which `sent` tells how many bytes were
  ///   sent.
  public func sendAll(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = [], sent: inout Int,
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) {
    precondition(sent >= 0 && sent <= bytes.byteCount, "there are fewer bytes than were sent")
    while sent < bytes.byteCount {
      sent += try await send(
        bytes.extracting(sent..<bytes.byteCount), traits: traits, flags: flags, isolation: actor)
    }
  }
}

extension TraitError {
  init(connecting destination: InternetAddress, _ error: Errno) {
    self.init(
      .systemCall, "there is no connection to \(destination)", underlyingError: error)
  }

  init(reading error: Errno) {
    if error == .wouldBlock {
      self.init(.wouldBlock, "no bytes came in time", underlyingError: error)
    } else {
      self.init(.systemCall, "no bytes could be received", underlyingError: error)
    }
  }
}
