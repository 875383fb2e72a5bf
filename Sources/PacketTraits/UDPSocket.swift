// SPDX-License-Identifier: MIT

internal import Glibc
public import SystemPackage

/// A UDP socket, owned: it is closed when its last use is over.
///
/// ```swift
/// let socket = try UDPSocket(.ipv6)
/// try socket.bind(to: .any(.ipv6, port: 4000))
/// try socket.setReceivedTraits(TraitMask(flow))
///
/// var bytes = [UInt8](repeating: 0, count: 2048)
/// var elements = bytes.mutableSpan
/// var payload = elements.mutableBytes
/// let datagram = try socket.receive(into: &payload)
/// print(datagram.traits[flow] ?? 0)
/// ```
///
/// Descriptors are close-on-exec. For a socket that somebody else owns, the
/// same operations are in an extension of `FileDescriptor`.
public struct UDPSocket: ~Copyable, Sendable {
  /// The socket's descriptor, borrowed: it must not be closed, and not be used
  /// when the socket is gone.
  public let fileDescriptor: FileDescriptor

  /// Opens a socket. One of IPv6 takes IPv4 as well, unless
  /// ``setIPv6Only(_:)`` says otherwise.
  public init(_ family: SocketAddress.Family) throws(Errno) {
    let descriptor = socket(
      family.rawValue, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_UDP))
    guard descriptor >= 0 else { throw Errno.current }
    fileDescriptor = FileDescriptor(rawValue: descriptor)
  }

  /// Takes over the descriptor of a UDP socket, which is then closed with the
  /// new owner.
  public init(owning descriptor: FileDescriptor) {
    fileDescriptor = descriptor
  }

  deinit {
    // Nobody is there to be told of an error; close() has who wants to know.
    try? fileDescriptor.close()
  }

  /// Closes the socket.
  public consuming func close() throws(Errno) {
    let descriptor = release()
    guard Glibc.close(descriptor.rawValue) == 0 else { throw Errno.current }
  }

  /// Gives up the socket without closing it: the caller owns the descriptor.
  public consuming func release() -> FileDescriptor {
    let descriptor = fileDescriptor
    discard self
    return descriptor
  }

  // MARK: Addresses

  /// Binds the socket to a local address.
  ///
  /// The corresponding C function is `bind`.
  public func bind(to address: SocketAddress) throws(Errno) {
    guard address.withSockaddr({ Glibc.bind(fileDescriptor.rawValue, $0, $1) }) == 0 else {
      throw Errno.current
    }
  }

  /// The address that the socket is bound to, with the port that the kernel
  /// picked if it was asked for port 0.
  ///
  /// The corresponding C function is `getsockname`.
  public func localAddress() throws(Errno) -> SocketAddress {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let status = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        getsockname(fileDescriptor.rawValue, $0, &length)
      }
    }
    guard status == 0 else { throw Errno.current }
    guard let address = SocketAddress(storage, length: length) else {
      throw Errno.addressFamilyNotSupported
    }
    return address
  }

  // MARK: Options

  /// Asks that ``receive(into:flags:)`` hands over these keys' traits, and no
  /// others.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: ``TraitError/Code/noSuchKey`` if a key is not registered;
  ///   ``TraitError/Code/notPermitted`` if a key is not open to all and the
  ///   thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`;
  ///   ``TraitError/Code/unsupportedKernel`` if there are no packet traits.
  public func setReceivedTraits(_ mask: TraitMask) throws(TraitError) {
    do {
      try fileDescriptor.setReceivedTraits(mask)
    } catch {
      throw TraitError(askingFor: mask, error)
    }
  }

  /// The keys that ``setReceivedTraits(_:)`` asked for, less those that have
  /// been removed from the registry.
  public func receivedTraits() throws(Errno) -> TraitMask {
    try fileDescriptor.receivedTraits()
  }

  /// Limits how long ``receive(into:flags:)`` waits for a datagram.
  ///
  /// The corresponding C constant is `SO_RCVTIMEO`.
  ///
  /// - Parameter timeout: In steps of a microsecond, at least one; nil for as
  ///   long as it takes.
  /// - Throws: `EINVAL` if the timeout is negative.
  public func setReceiveTimeout(_ timeout: Duration?) throws(Errno) {
    var value = timeval()
    if let timeout {
      guard timeout >= .zero else { throw Errno.invalidArgument }
      // To the kernel 0 means without limit, and a timeout of 0 does not.
      let (seconds, attoseconds) = max(timeout, .microseconds(1)).components
      value.tv_sec = Int(seconds)
      value.tv_usec = Int(attoseconds / 1_000_000_000_000)
    }
    try setOption(SOL_SOCKET, SO_RCVTIMEO, value)
  }

  /// Sets the room for datagrams that wait to be received, in bytes.
  ///
  /// The corresponding C constant is `SO_RCVBUF`.
  public func setReceiveBufferSize(_ size: Int32) throws(Errno) {
    try setOption(SOL_SOCKET, SO_RCVBUF, size)
  }

  /// Sets whether an IPv6 socket refuses IPv4.
  ///
  /// The corresponding C constant is `IPV6_V6ONLY`.
  public func setIPv6Only(_ only: Bool) throws(Errno) {
    try setOption(Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(only ? 1 : 0))
  }

  private func setOption<Value: BitwiseCopyable>(
    _ level: Int32, _ name: Int32, _ value: Value
  ) throws(Errno) {
    let status = withUnsafeBytes(of: value) {
      setsockopt(fileDescriptor.rawValue, level, name, $0.baseAddress, socklen_t($0.count))
    }
    guard status == 0 else { throw Errno.current }
  }

  // MARK: Datagrams

  /// Sends one datagram, without traits of its own.
  ///
  /// The corresponding C function is `sendto`.
  ///
  /// - Returns: How many bytes of payload were sent: all.
  @discardableResult
  public func send(_ payload: RawSpan, to destination: SocketAddress) throws(Errno) -> Int {
    let result: Result<Int, Errno> = payload.withUnsafeBytes { payload in
      destination.withSockaddr { address, length in
        repeat {
          let sent = sendto(
            fileDescriptor.rawValue, payload.baseAddress, payload.count,
            Int32(MSG_NOSIGNAL), address, length)
          if sent >= 0 { return .success(sent) }
        } while errno == EINTR
        return .failure(Errno.current)
      }
    }
    return try result.get()
  }

  /// Receives one datagram with those traits that ``setReceivedTraits(_:)``
  /// asked for.
  ///
  /// - Parameters:
  ///   - payload: Where the payload goes. What does not fit is lost, which the
  ///     result tells.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``, or none.
  /// - Throws: ``TraitError/Code/wouldBlock`` if nothing came within the
  ///   timeout of ``setReceiveTimeout(_:)``.
  public func receive(
    into payload: inout MutableRawSpan, flags: MessageFlags = []
  ) throws(TraitError) -> ReceivedDatagram {
    try fileDescriptor.receiveDatagram(into: &payload, flags: flags)
  }
}
