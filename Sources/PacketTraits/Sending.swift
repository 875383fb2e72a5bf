// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import Synchronization
public import SystemPackage

/// What is known of this kernel, which stays the same while a program runs.
private enum SendSupport {
  /// Whether it is known that packets are given traits that are sent. That they
  /// are not is asked for again each time.
  static let isKnown = Atomic(false)
}

extension FileDescriptor {
  /// Gives these traits to every packet that this socket sends from now on,
  /// instead of those that were set before.
  ///
  /// They belong to the socket: whoever has a descriptor of it sends with them,
  /// whatever rights he has.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Parameter traits: The traits; none turns it off.
  /// - Throws: `ENOENT` if a key is not registered; `EINVAL` if a value has
  ///   another size than its key; `EPERM` if a key, of these or of those that
  ///   they would replace, is not open to all to be written and the thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW` over
  ///   the socket's network namespace (in the initial user namespace, for a key
  ///   that crosses network namespaces); `EOPNOTSUPP` if the socket is of none
  ///   of UDP, UDP-Lite, raw, ICMP ("ping") and TCP over IPv4 or IPv6; `ENOPROTOOPT`
  ///   if this kernel has no packet traits; `ENOMEM`. Then nothing has changed.
  public func setSentTraits(_ traits: Traits) throws(Errno) {
    try setRecords(.sent, traits)
  }

  /// The traits that every packet of this socket is given, as far as the thread
  /// may read their keys. A key that is removed from the registry is out of them,
  /// too.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_SEND`.
  ///
  /// - Throws: `EOPNOTSUPP` if the socket is of a kind that does not send traits,
  ///   see ``setSentTraits(_:)``; `ENOPROTOOPT` if this kernel has no packet
  ///   traits; `EBADMSG` if the kernel gave something else than records of traits.
  public func sentTraits() throws(Errno) -> Traits {
    try self.traits(.sent)
  }

  /// Sends a message, with control data.
  ///
  /// The corresponding C function is `sendmsg`. No signal comes of it
  /// (`MSG_NOSIGNAL`).
  ///
  /// - Parameters:
  ///   - payload: The message, whole.
  ///   - destination: Where to; nil for where the socket is connected to.
  ///   - control: Control messages of any kind. A kernel without packet traits
  ///     passes over those that hold traits, without a word.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  ///   - retryOnInterrupt: Whether to go on waiting for room if a signal came,
  ///     though no longer than the socket's time-out (`SO_SNDTIMEO`).
  /// - Returns: How many bytes of payload were sent.
  /// - Throws: For the sake of traits what ``setSentTraits(_:)`` names,
  ///   `EOPNOTSUPP` if the socket's packets are not given traits, and besides
  ///   `EINVAL` if control data is malformed, if a second message holds traits,
  ///   or if the datagram was begun with other traits
  ///   (``MessageFlags/more``); `ENOSPC` if the values take more than 192 bytes
  ///   together with those of ``setSentTraits(_:)``; `ENOBUFS` if there is no
  ///   memory for them. `EAGAIN`, `EINTR`, `EDESTADDRREQ`, `EMSGSIZE`, what else
  ///   send(2) names. Then nothing was sent.
  @available(*, noasync, message: "It may wait in its thread: in a task, use UDPSocket or TCPConnection, or call it with .doNotWait in a synchronous function")
  @discardableResult
  public func sendMessage(
    _ payload: RawSpan, to destination: InternetAddress? = nil, control: ControlData,
    flags: MessageFlags = [], retryOnInterrupt: Bool = true
  ) throws(Errno) -> Int {
    try control.bytes.withUnsafeBytes {
      sendMessage(payload, destination, $0, flags, retryOnInterrupt)
    }.get()
  }

  /// Sends a message, with traits of its own.
  ///
  /// These are over those of ``setSentTraits(_:)``: of a key that is in both the
  /// message has this value.
  ///
  /// The corresponding C function is `sendmsg`, with the constants `SOL_TRAITS`
  /// and `SCM_TRAITS`.
  ///
  /// - Parameters:
  ///   - payload: The message, whole.
  ///   - destination: Where to; nil for where the socket is connected to.
  ///   - traits: The traits. A kernel without packet traits passes over them,
  ///     without a word.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  ///   - retryOnInterrupt: As with control data.
  /// - Returns: How many bytes of payload were sent.
  /// - Throws: As with control data.
  @available(*, noasync, message: "It may wait in its thread: in a task, use UDPSocket or TCPConnection, or call it with .doNotWait in a synchronous function")
  @discardableResult
  public func sendMessage(
    _ payload: RawSpan, to destination: InternetAddress? = nil, traits: Traits = Traits(),
    flags: MessageFlags = [], retryOnInterrupt: Bool = true
  ) throws(Errno) -> Int {
    try ControlData.withMessage(of: traits) {
      sendMessage(payload, destination, $0, flags, retryOnInterrupt)
    }.get()
  }

  /// Sends these bytes on a stream, all of them: calls
  /// ``sendMessage(_:to:traits:flags:retryOnInterrupt:)`` with the rest, and with the same
  /// traits, for as long as the kernel takes a part. The socket's time-out (`SO_SNDTIMEO`) counts
  /// anew for each.
  ///
  /// - Parameters:
  ///   - bytes: What is to be sent.
  ///   - traits: Of these bytes. A kernel without packet traits passes over them, without a
  ///     word.
  ///   - flags: ``MessageFlags/doNotWait``, ``MessageFlags/more``, or none.
  ///   - sent: How many of the bytes have been sent already; counted up, also if an error is
  ///     thrown. What is behind them has not been sent then.
  /// - Throws: As ``sendMessage(_:to:traits:flags:retryOnInterrupt:)``, `EPIPE` if the connection is shut
  ///   down for sending, `ECONNRESET`, what else tcp(7) names.
  @available(*, noasync, message: "It may wait in its thread: in a task, use TCPConnection, or call it with .doNotWait in a synchronous function")
  public func sendAll(
    _ bytes: RawSpan, traits: Traits = Traits(), flags: MessageFlags = [], sent: inout Int
  ) throws(Errno) {
    precondition(sent >= 0 && sent <= bytes.byteCount, "there are fewer bytes than were sent")
    while sent < bytes.byteCount {
      sent += try sendMessage(
        bytes.extracting(sent..<bytes.byteCount), traits: traits, flags: flags)
    }
  }

  private func sendMessage(
    _ payload: RawSpan, _ destination: InternetAddress?, _ control: UnsafeRawBufferPointer,
    _ flags: MessageFlags, _ retryOnInterrupt: Bool
  ) -> Result<Int, Errno> {
    let wait = SocketWait.toSend(
      self, isAllowed: !flags.contains(.doNotWait), retryOnInterrupt: retryOnInterrupt)

    // The kernel does not write to what it is given: C has no type for that.
    func send(_ address: UnsafePointer<sockaddr>?, _ length: socklen_t) -> Result<Int, Errno> {
      payload.withUnsafeBytes { payload in
        var vector = iovec(
          iov_base: UnsafeMutableRawPointer(mutating: payload.baseAddress), iov_len: payload.count)
        return withUnsafeMutablePointer(to: &vector) { vector in
          var header = msghdr()
          header.msg_name = UnsafeMutableRawPointer(mutating: address)
          header.msg_namelen = length
          header.msg_iov = vector
          header.msg_iovlen = 1
          header.msg_control = UnsafeMutableRawPointer(mutating: control.baseAddress)
          header.msg_controllen = control.count
          return wait.call { more in
            sendmsg(rawValue, &header, flags.rawValue | more | Int32(MSG_NOSIGNAL))
          }
        }
      }
    }
    guard let destination else { return send(nil, 0) }
    return destination.withSockaddr { send($0, $1) }
  }

  /// Finds out whether a socket that can send traits does: a kernel that has
  /// none passes over their control messages.
  ///
  /// - Throws: ``TraitError/Code/unsupportedKernel`` if not.
  func requireSentTraits() throws(TraitError) {
    guard !SendSupport.isKnown.load(ordering: .relaxed) else { return }
    // Asks for the length alone; with an address a BPF program for getsockopt()
    // would refuse that there is more than length 0 (kernel/bpf/cgroup.c).
    var length: socklen_t = 0
    guard getsockopt(rawValue, SOL_TRAITS, TRAITS_SEND, nil, &length) == 0 else {
      throw TraitError(askedForSent: optionError(Errno.current))
    }
    SendSupport.isKnown.store(true, ordering: .relaxed)
  }
}

extension TraitError {
  init(settingSent traits: Traits, _ error: Errno) {
    let (code, message): (Code, String) =
      switch error {
      case .protocolNotAvailable: (.unsupportedKernel, "this kernel has no packet traits")
      case .notSupportedOnSocket:
        (.unsupportedSocket, "this kind of socket does not send traits")
      case .noSuchFileOrDirectory: (.noSuchKey, Self.noSuchKey(traits))
      case .notPermitted:
        (
          .notPermitted,
          Self.notPermitted(
            traits.isEmpty
              ? "that the socket sends now"
              : "\(traits.keys) that were to be sent, or of those that the socket sends now,")
        )
      case .invalidArgument: (.invalidArgument, Self.sizeMismatch(traits))
      default: (.systemCall, "the traits \(traits) cannot be set")
      }
    self.init(code, message, underlyingError: error)
  }

  /// - Parameter traits: Those of the datagram.
  init(sending traits: Traits, _ error: Errno) {
    let (code, message): (Code, String) =
      switch error {
      case .wouldBlock: (.wouldBlock, "no datagram could be sent in time")
      case .noSuchFileOrDirectory where !traits.isEmpty: (.noSuchKey, Self.noSuchKey(traits))
      case .notPermitted where !traits.isEmpty:
        (
          .notPermitted,
          Self.notPermitted("\(traits.keys) that were to be sent")
            + ", or a packet filter refuses the datagram"
        )
      case .invalidArgument where !traits.isEmpty:
        (
          .invalidArgument,
          Self.sizeMismatch(traits) + ", or the datagram was begun with other traits, or it "
            + "cannot be sent to such an address or with such control data"
        )
      case .noSpace where !traits.isEmpty:
        (
          .limitExceeded,
          "the traits \(traits) of the datagram and those of the socket take more than the "
            + "\(Traits.maximumValueByteCount) bytes of a packet together"
        )
      default: (.systemCall, "the datagram could not be sent")
      }
    self.init(code, message, underlyingError: error)
  }

  /// - Parameter traits: Those of the bytes.
  init(writing traits: Traits, _ error: Errno) {
    let (code, message): (Code, String) =
      switch error {
      case .wouldBlock: (.wouldBlock, "no bytes could be sent in time")
      case .noSuchFileOrDirectory where !traits.isEmpty: (.noSuchKey, Self.noSuchKey(traits))
      case .notPermitted where !traits.isEmpty:
        (.notPermitted, Self.notPermitted("\(traits.keys) that were to be sent"))
      case .invalidArgument where !traits.isEmpty:
        (
          .invalidArgument,
          Self.sizeMismatch(traits) + ", or the kernel encrypts the connection (TLS)"
        )
      case .notSupportedOnSocket where !traits.isEmpty:
        (.unsupportedSocket, "the bytes of this connection are not given traits")
      case .noSpace where !traits.isEmpty:
        (
          .limitExceeded,
          "the traits \(traits) of the bytes and those of the connection take more than the "
            + "\(Traits.maximumValueByteCount) bytes of a packet together"
        )
      default: (.systemCall, "the bytes could not be sent")
      }
    self.init(code, message, underlyingError: error)
  }

  private static func noSuchKey(_ traits: Traits) -> String {
    "one of the keys \(traits.keys) that were to be sent is not registered"
  }

  private static func notPermitted(_ which: String) -> String {
    "one of the keys \(which) is not open to all: CAP_NET_ADMIN or CAP_NET_RAW is needed"
  }

  private static func sizeMismatch(_ traits: Traits) -> String {
    "one of the traits \(traits) that were to be sent has another size than its key"
  }
}
