// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
public import SystemPackage

/// A TCP socket that takes connections, owned: it cannot be copied, and is closed when the
/// variable that holds it goes out of scope, or before by ``close()``.
///
/// ```swift
/// let listener = try TCPListener(.ipv6)
/// try listener.setSavedSYNTraits(TraitMask(flow))
/// try listener.setReceivedTraits(TraitMask(flow))
/// try listener.listen(at: .any(.ipv6, port: 4000))
///
/// let connection = try listener.accept()
/// print(connection.peerAddress, try connection.synTraits())
/// ```
///
/// What is to hold for the first connection is set before ``listen(at:backlog:reusingAddress:)``:
/// a SYN that came before is answered as it was then.
///
/// Its open file is nonblocking (`O_NONBLOCK`, fcntl(2)), also for who has another descriptor
/// of it: so a connection that somebody else takes first keeps nobody waiting. The
/// connections are not. Descriptors are close-on-exec.
///
/// What any TCP socket can do throws `Errno`, to accept and what has to do with traits throws
/// ``TraitError``.
public struct TCPListener: ~Copyable, Sendable {
  private let owner: OwnedDescriptor
  private let slot = ReadinessSlot(for: .receiving)

  /// The socket's descriptor, which the listener owns. It must not be closed, and its number
  /// may be another file's as soon as the listener is gone: of a temporary value, as in
  /// `try TCPListener(.ipv6).unsafeFileDescriptor`, that is at once. Prefer
  /// ``withFileDescriptor(_:)``.
  public var unsafeFileDescriptor: FileDescriptor { owner.borrowed }

  /// Calls `body` with the socket's descriptor. The listener stays open until it returns.
  ///
  /// - Parameter body: Uses the descriptor. It must neither close it nor keep it.
  /// - Returns: What `body` returns.
  /// - Throws: What `body` throws.
  public func withFileDescriptor<Result: ~Copyable, Failure: Error>(
    _ body: (FileDescriptor) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(owner.borrowed)
  }

  private var options: TraitOptions { TraitOptions(descriptor: owner.borrowed) }

  /// Opens a socket, which takes connections from ``listen(at:backlog:reusingAddress:)`` on. One of
  /// IPv6 takes those of IPv4 as well, whatever the parameter `net.ipv6.bindv6only` of the
  /// network namespace says, unless ``setIPv6Only(_:)`` is called before.
  ///
  /// The corresponding C function is `socket`; ipv6(7) has `IPV6_V6ONLY`.
  ///
  /// - Throws: `EAFNOSUPPORT` if the kernel lacks this version of IP, `EMFILE`, what else
  ///   socket(2) names.
  public init(_ family: InternetAddress.Family) throws(Errno) {
    owner = OwnedDescriptor(try Transport.tcp.open(family, flags: SOCK_NONBLOCK))
  }

  /// Takes over the descriptor of a TCP socket that listens or is to listen, as one that a
  /// service manager passed on. Its open file becomes nonblocking; options stay as they are.
  ///
  /// - Throws: ``TraitError/Code/unsupportedSocket`` if it is not of TCP over IPv4 or IPv6
  ///   (Multipath TCP is another protocol), ``TraitError/Code/systemCall`` if it is not open.
  ///   Then it is still the caller's to close.
  public init(owning descriptor: FileDescriptor) throws(TraitError) {
    try Transport.tcp.require(descriptor)
    do throws(Errno) {
      try descriptor.setNonblocking(true)
    } catch {
      throw TraitError(
        .systemCall, "descriptor \(descriptor.rawValue) cannot be made nonblocking",
        underlyingError: error)
    }
    owner = OwnedDescriptor(descriptor)
  }

  /// Closes the socket, which is gone also if that fails. Connections that nobody has
  /// accepted are reset.
  ///
  /// The corresponding C function is `close`.
  ///
  /// - Throws: `EBADF` if somebody else has closed it, what else close(2) names.
  public consuming func close() throws(Errno) { try owner.close() }

  /// Gives up the socket without closing it: the caller owns the descriptor.
  public consuming func release() -> FileDescriptor { owner.release() }

  /// Binds the socket to a local address, and takes connections from then on.
  ///
  /// The corresponding C functions are `bind` and `listen`.
  ///
  /// - Parameters:
  ///   - address: Where to; of port 0 the kernel picks one, which ``localAddress()`` tells.
  ///   - backlog: How many connections may wait to be accepted. The kernel takes no more than
  ///     the parameter `net.core.somaxconn` says, without an error.
  ///   - reusingAddress: Whether the address may be taken while connections of a former
  ///     listener are there still, as after a restart (`SO_REUSEADDR`, socket(7)).
  /// - Throws: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EINVAL` if the socket is bound, what
  ///   else bind(2) and listen(2) name.
  public func listen(
    at address: InternetAddress, backlog: Int32 = 4096, reusingAddress: Bool = true
  ) throws(Errno) {
    try unsafeFileDescriptor.setOption(SOL_SOCKET, SO_REUSEADDR, Int32(reusingAddress ? 1 : 0))
    try unsafeFileDescriptor.bindSocket(to: address)
    guard Glibc.listen(unsafeFileDescriptor.rawValue, backlog) == 0 else { throw Errno.current }
  }

  /// The address that the socket is bound to, with the port that the kernel picked if it was
  /// asked for port 0.
  ///
  /// The corresponding C function is `getsockname`.
  ///
  /// - Throws: What getsockname(2) names.
  public func localAddress() throws(Errno) -> InternetAddress {
    try unsafeFileDescriptor.localSocketAddress()
  }

  /// Sets whether an IPv6 socket refuses IPv4. To be called before
  /// ``listen(at:backlog:reusingAddress:)``.
  ///
  /// The corresponding C constant is `IPV6_V6ONLY` (ipv6(7)).
  ///
  /// - Throws: `EINVAL` if the socket is bound, `ENOPROTOOPT` if it is not of IPv6.
  public func setIPv6Only(_ only: Bool) throws(Errno) {
    try unsafeFileDescriptor.setOption(Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(only ? 1 : 0))
  }

  // MARK: Traits

  /// Has these keys' traits kept of the SYN of each connection to come, for
  /// ``TCPConnection/synTraits()``, and no others.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SAVE_SYN`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/notPermitted`` if a key is not open to all and the thread has neither
  ///   `CAP_NET_ADMIN` nor `CAP_NET_RAW`; ``TraitError/Code/unsupportedKernel`` if there are no
  ///   packet traits. Then nothing has changed.
  public func setSavedSYNTraits(_ mask: TraitMask) throws(TraitError) {
    try options.setSavedSYN(mask)
  }

  /// The keys that ``setSavedSYNTraits(_:)`` named, less those that have been removed from the
  /// registry.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SAVE_SYN`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  public func savedSYNTraits() throws(TraitError) -> TraitMask { try options.savedSYN() }

  /// Asks that ``TCPConnection/receive(into:flags:)`` of the connections to come hands over
  /// these keys' traits. A connection can ask for others.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: As ``setSavedSYNTraits(_:)``. Then nothing has changed.
  public func setReceivedTraits(_ mask: TraitMask) throws(TraitError) {
    try options.setReceived(mask)
  }

  /// The keys that ``setReceivedTraits(_:)`` asked for, less those that have been removed from
  /// the registry.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  public func receivedTraits() throws(TraitError) -> TraitMask { try options.received() }

  /// Gives these traits to the answer to each SYN (SYN-ACK), and to all segments of the
  /// connections to come, instead of those that were set before. A connection can set others.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Parameter traits: The traits; none turns it off.
  /// - Throws: As ``UDPSocket/setSentTraits(_:)``. Then nothing has changed.
  public func setSentTraits(_ traits: Traits) throws(TraitError) { try options.setSent(traits) }

  /// The traits that ``setSentTraits(_:)`` set, less those whose keys have been removed from
  /// the registry or are not for the thread to be read.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Throws: As ``UDPSocket/sentTraits()``.
  public func sentTraits() throws(TraitError) -> Traits { try options.sent() }

  // MARK: Connections

  /// Takes the next connection, and waits for it in this thread; signals neither end the wait
  /// nor make it longer.
  ///
  /// The corresponding C function is `accept4`.
  ///
  /// - Parameter timeout: How long to wait, zero for not at all; nil for as long as it takes.
  /// - Throws: ``TraitError/Code/wouldBlock`` if there was none in time;
  ///   ``TraitError/Code/systemCall`` with another error of accept(2): `EINVAL` if the socket
  ///   does not listen, or no more (shutdown(2)); `EMFILE`, after which the connection waits
  ///   still: to call at once again fails again.
  @available(*, noasync, message: "It waits in its thread: in a task, await the one without a time-out")
  public func accept(timeout: Duration? = nil) throws(TraitError) -> TCPConnection {
    let end = timeout.map { SuspendingClock.now + $0 }
    while true {
      if let connection = try acceptNow() { return connection }
      guard SocketWait.poll(unsafeFileDescriptor, for: POLLIN, until: end) != nil else {
        throw TraitError(accepting: .wouldBlock)
      }
    }
  }

  /// Takes the next connection; a task that waits for it is suspended, and takes up no thread.
  /// Several tasks may wait at once; each connection goes to one of them.
  ///
  /// - Throws: ``TraitError/Code/cancelled`` if the task has been cancelled;
  ///   ``TraitError/Code/systemCall`` with an error of accept(2), as `accept(timeout:)` throws
  ///   it, `EMFILE` also for the listener's second descriptor, `EAGAIN` if the thread that waits for all
  ///   sockets cannot be made, or an error of epoll_ctl(2).
  public func accept(
    isolation actor: isolated (any Actor)? = #isolation
  ) async throws(TraitError) -> TCPConnection {
    var generation: UInt64?
    while !Task.isCancelled {
      if let connection = try acceptNow() { return connection }
      do throws(Errno) {
        try await slot.wait(for: unsafeFileDescriptor, since: &generation, isolation: actor)
      } catch {
        throw TraitError(
          .systemCall, "a connection cannot be waited for", underlyingError: error)
      }
    }
    throw TraitError(cancelled: "a connection was waited for")
  }

  /// nil if there is none now.
  private func acceptNow() throws(TraitError) -> TCPConnection? {
    do throws(Errno) {
      let accepted = try unsafeFileDescriptor.acceptSocket()
      return try TCPConnection(OwnedDescriptor(accepted.descriptor), accepted.peer)
    } catch {
      guard error == .wouldBlock else { throw TraitError(accepting: error) }
      return nil
    }
  }
}

/// What one `accept()` gave.
public struct AcceptedSocket: Sendable {
  /// The new socket, which is the caller's to close.
  public let descriptor: FileDescriptor

  /// Who is at the other end; nil if not of IPv4 or IPv6.
  public let peer: InternetAddress?
}

extension FileDescriptor {
  /// Takes the next connection of a listening socket. The descriptor of it is close-on-exec.
  ///
  /// The corresponding C function is `accept4`.
  ///
  /// - Parameter retryOnInterrupt: Whether to go on waiting if a signal came, though no longer
  ///   than the socket's time-out (`SO_RCVTIMEO`), which counts from the call; anew if after a signal
  ///   somebody else took the connection that there was.
  /// - Throws: `EAGAIN` if there was none within the socket's time-out, or at all if it is
  ///   nonblocking; `EINTR` if a signal came and `retryOnInterrupt` is false; `EINVAL` if it does
  ///   not listen; what else accept(2) names.
  @available(*, noasync, message: "It waits in its thread: in a task, use TCPListener")
  public func acceptSocket(retryOnInterrupt: Bool = true) throws(Errno) -> AcceptedSocket {
    let wait = SocketWait.toReceive(self, isAllowed: true, retryOnInterrupt: retryOnInterrupt)
    var peer: InternetAddress?
    let number = try wait.call { flags in
      // accept4(2) has no flag for that.
      if flags & Int32(MSG_DONTWAIT) != 0, SocketWait.look(self, for: POLLIN) == 0 {
        errno = EAGAIN
        return -1
      }
      let (status, address) = InternetAddress.written {
        ctraits_accept(rawValue, $0, $1)
      }
      peer = address
      return Int(status)
    }.get()
    return AcceptedSocket(descriptor: FileDescriptor(rawValue: CInt(number)), peer: peer)
  }

  /// Has these keys' traits kept of the SYN of each connection to come, for ``synTraits()`` of
  /// the accepted socket.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SAVE_SYN`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: `EOPNOTSUPP` if the socket is not of TCP over IPv4 or IPv6; `ENOPROTOOPT` if
  ///   this kernel has no packet traits, or does not keep those of a SYN; otherwise as
  ///   ``setReceivedTraits(_:)``. Then nothing has changed.
  public func setSavedSYNTraits(_ mask: TraitMask) throws(Errno) { try setMask(.savedSYN, mask) }

  /// The keys whose traits are kept of a SYN. A key that is removed from the registry is out
  /// of this set, too.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SAVE_SYN`.
  ///
  /// - Throws: As ``setSavedSYNTraits(_:)`` for another kind of socket or kernel.
  public func savedSYNTraits() throws(Errno) -> TraitMask { try mask(.savedSYN) }

  /// The traits that were kept of the SYN of this connection. To read them does not remove
  /// them.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SYN`.
  ///
  /// - Throws: As ``setSavedSYNTraits(_:)`` for another kind of socket or kernel; `EBADMSG` if
  ///   the kernel gave something else than records of traits.
  public func synTraits() throws(Errno) -> Traits { try traits(.syn) }
}

extension TraitError {
  init(accepting error: Errno) {
    if error == .wouldBlock {
      self.init(.wouldBlock, "no connection came in time", underlyingError: error)
    } else {
      self.init(.systemCall, "no connection could be accepted", underlyingError: error)
    }
  }

  /// - Parameter what: What was going on.
  init(cancelled what: String) {
    self.init(.cancelled, "the task was cancelled when \(what)", underlyingError: .canceled)
  }
}
