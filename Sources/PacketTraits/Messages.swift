// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
public import SystemPackage

/// Flags of `recvmsg()` (recv(2)), those that are asked for and those that come
/// back, and of `sendmsg()` (send(2)).
public struct MessageFlags: OptionSet, Hashable, Sendable {
  public let rawValue: Int32

  public init(rawValue: Int32) { self.rawValue = rawValue }

  /// Leave the datagram, or the bytes of a stream, in the queue, to be received again.
  ///
  /// The corresponding C constant is `MSG_PEEK`.
  public static var peek: MessageFlags { MessageFlags(rawValue: Int32(MSG_PEEK)) }

  /// Fail with `EAGAIN` instead of waiting, when receiving and when sending.
  ///
  /// The corresponding C constant is `MSG_DONTWAIT`.
  public static var doNotWait: MessageFlags { MessageFlags(rawValue: Int32(MSG_DONTWAIT)) }

  /// The message is longer than the room for its payload. When asked for, the
  /// length that is returned is that of the whole message.
  ///
  /// To ask for it is for datagrams: on a TCP socket it throws away the bytes
  /// that it counts (tcp(7)).
  ///
  /// The corresponding C constant is `MSG_TRUNC`.
  public static var truncated: MessageFlags { MessageFlags(rawValue: Int32(MSG_TRUNC)) }

  /// When sending: more is to come. On a TCP socket the kernel waits for it a while, to fill the
  /// segment (tcp(7), `TCP_CORK`).
  ///
  /// A datagram is sent by the first call without this flag (udp(7), `UDP_CORK`). It has the traits
  /// of the call that began it, and what a later call says of them must be the same.
  /// A call that fails discards the pieces before it, also for lack of room or
  /// memory (`ENOBUFS`): the datagram is to be begun anew. Only one that is refused
  /// for its traits (`EINVAL`, `ENOENT`, `EPERM`) leaves them as they are; over IPv4
  /// also one with more than 65,535 bytes (`EMSGSIZE`). The first piece alone waits
  /// for room, or fails for it (`EAGAIN`): `__ip_append_data()`, net/ipv4/ip_output.c.
  ///
  /// The corresponding C constant is `MSG_MORE`.
  public static var more: MessageFlags { MessageFlags(rawValue: Int32(MSG_MORE)) }

  /// When receiving: a message of the queue of errors, which the options
  /// `IP_RECVERR` and `SO_TIMESTAMPING` fill (ip(7)).
  ///
  /// The corresponding C constant is `MSG_ERRQUEUE`.
  public static var errorQueue: MessageFlags { MessageFlags(rawValue: Int32(MSG_ERRQUEUE)) }

  /// Control messages were left out or cut off for lack of room.
  ///
  /// The corresponding C constant is `MSG_CTRUNC`.
  public static var controlTruncated: MessageFlags {
    MessageFlags(rawValue: Int32(MSG_CTRUNC))
  }
}

/// What one `recvmsg()` gave, control data still in raw form.
public struct ReceivedMessage: Sendable {
  /// How many bytes of the buffer for the payload were written, at most as many
  /// as it has.
  public let length: Int

  /// What `recvmsg()` returned: ``length``, or more bytes than that if the
  /// message is longer than the buffer and ``MessageFlags/truncated`` was asked
  /// for, as ``ReceiveBatch`` always does.
  public let messageLength: Int

  /// How many bytes of control data were written.
  public let controlLength: Int

  /// Where the message came from; nil if not from an IPv4 or IPv6 address.
  public let source: InternetAddress?

  /// The flags that came back; none if there is nothing to be told.
  public let flags: MessageFlags
}

/// A datagram and its traits.
public struct ReceivedDatagram: Sendable {
  /// How many bytes of payload were written to the caller's buffer, at most as
  /// many as it has.
  public let length: Int

  /// How many bytes of payload the datagram has: more than ``length`` if the
  /// buffer was too small for it.
  public let datagramLength: Int

  /// Where the datagram came from; nil if not from an IPv4 or IPv6 address.
  public let source: InternetAddress?

  private let foundTraits: Result<Traits, TraitError>

  /// Those of the keys asked for that the datagram has.
  ///
  /// The payload is there whether the traits can be read or not.
  ///
  /// - Throws: ``TraitError/Code/malformedControlData`` or
  ///   ``TraitError/Code/malformedRecords`` if this version cannot read what the kernel gave,
  ///   such as a record with a flag of a later kernel.
  public var traits: Traits {
    get throws(TraitError) { try foundTraits.get() }
  }

  /// Whether the end of the payload is lost, as the buffer was too small.
  ///
  /// The corresponding C constant is `MSG_TRUNC`.
  public let isPayloadTruncated: Bool

  /// Whether traits may be lost, as control messages of other options left no
  /// room for them. Then ``traits`` is empty: they come whole or not at all.
  ///
  /// The corresponding C constant is `MSG_CTRUNC`.
  public let areTraitsTruncated: Bool

  /// - Parameters:
  ///   - message: What was received with ``MessageFlags/truncated`` asked for.
  ///   - control: Its control data.
  init(_ message: ReceivedMessage, control: RawSpan) {
    length = message.length
    datagramLength = message.messageLength
    source = message.source
    isPayloadTruncated = message.flags.contains(.truncated)
    (foundTraits, areTraitsTruncated) = Traits.received(message, control: control)
  }

  /// What a socket gives that is shut down for receiving and has no datagram.
  static var none: ReceivedDatagram {
    ReceivedDatagram(
      ReceivedMessage(length: 0, messageLength: 0, controlLength: 0, source: nil, flags: []),
      control: RawSpan())
  }
}

extension Traits {
  /// Reads the traits of a message. As the message is taken from the kernel by now, its bytes
  /// go to the caller whatever the control data is, and an error goes along with them.
  ///
  /// - Returns: The traits or why they cannot be read, and whether they may be lost for lack
  ///   of room.
  static func received(
    _ message: ReceivedMessage, control: RawSpan
  ) -> (traits: Result<Traits, TraitError>, areTruncated: Bool) {
    do throws(TraitError) {
      guard let found = try find(in: control) else {
        return (.success(Traits()), message.flags.contains(.controlTruncated))
      }
      return (.success(found), false)
    } catch {
      return (.failure(error), false)
    }
  }
}

extension FileDescriptor {
  /// Asks that `recvmsg()` on this socket hands over these keys' traits.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Parameter mask: The keys; none turns it off.
  /// - Throws: `ENOENT` if a key is not registered; `EPERM` if a key is not
  ///   open to all and the thread has neither `CAP_NET_ADMIN` nor `CAP_NET_RAW`
  ///   over the socket's network namespace (in the initial user namespace, for
  ///   a key that crosses network namespaces); `EOPNOTSUPP` if the socket is
  ///   of none of UDP, UDP-Lite, raw, ICMP ("ping") and TCP over IPv4 or IPv6, and no
  ///   packet socket; `ENOPROTOOPT` if this kernel has no packet traits.
  public func setReceivedTraits(_ mask: TraitMask) throws(Errno) {
    try setMask(.received, mask)
  }

  /// The keys whose traits `recvmsg()` on this socket hands over. A key that is
  /// removed from the registry is out of this set, too.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `TRAITS_RECV`.
  ///
  /// - Throws: `EOPNOTSUPP` if the socket is of another kind, see
  ///   ``setReceivedTraits(_:)``; `ENOPROTOOPT` if this kernel has no packet traits.
  public func receivedTraits() throws(Errno) -> TraitMask {
    try mask(.received)
  }

  /// Receives a message, its control data in raw form.
  ///
  /// This is the layer beneath ``UDPSocket/receive(into:flags:)``, for programs
  /// that want control messages of other kinds, too, or do not own the socket:
  /// see ``ControlMessage/all(in:)`` and ``Traits/init(controlMessages:)``.
  ///
  /// The corresponding C function is `recvmsg`. Descriptors that come along
  /// (`SCM_RIGHTS`) are close-on-exec.
  ///
  /// - Parameters:
  ///   - payload: Where the message goes.
  ///   - control: Where control data goes, at any address. The traits of a
  ///     packet take 16 bytes and 24 for each of them, 1168 bytes at most.
  ///   - flags: ``MessageFlags/peek``, ``MessageFlags/doNotWait``,
  ///     ``MessageFlags/truncated``, or none.
  ///   - retryOnInterrupt: Whether to go on waiting if a signal came, though
  ///     no longer than the socket's time-out (`SO_RCVTIMEO`), which counts
  ///     from the call.
  /// - Returns: What came. When the socket is shut down for receiving
  ///   (shutdown(2)) and nothing is there, at once a message of length 0 whose
  ///   source is nil; a datagram socket that does not wait says `EAGAIN`.
  /// - Throws: `EAGAIN` if nothing came within the socket's time-out, or at all
  ///   without waiting; `EINTR` if a signal came and `retryOnInterrupt` is
  ///   false; `ENOTSOCK`; what else recv(2) names.
  @available(*, noasync, message: "It may wait in its thread: in a task, use UDPSocket or TCPConnection, or call it with .doNotWait in a synchronous function")
  public func receiveMessage(
    into payload: inout MutableRawSpan,
    control: inout MutableRawSpan,
    flags: MessageFlags = [],
    retryOnInterrupt: Bool = true
  ) throws(Errno) -> ReceivedMessage {
    let result: Result<ReceivedMessage, Errno> = payload.withUnsafeMutableBytes { payload in
      control.withUnsafeMutableBytes { control in
        var source = sockaddr_storage()
        var header = msghdr()
        let wait = SocketWait.toReceive(
          self, isAllowed: !flags.contains(.doNotWait), retryOnInterrupt: retryOnInterrupt)
        return withUnsafeMutablePointer(to: &source) { source in
          var vector = iovec(iov_base: payload.baseAddress, iov_len: payload.count)
          return withUnsafeMutablePointer(to: &vector) { vector in
            wait.call { more in
              header = msghdr()
              header.msg_name = UnsafeMutableRawPointer(source)
              header.msg_namelen = socklen_t(MemoryLayout<sockaddr_storage>.size)
              header.msg_iov = vector
              header.msg_iovlen = 1
              header.msg_control = control.baseAddress
              header.msg_controllen = control.count
              return closingOnExec { recvmsg(rawValue, &header, flags.rawValue | more | $0) }
            }.map { length in
              ReceivedMessage(
                length: Swift.min(length, payload.count),
                messageLength: length,
                controlLength: Swift.min(Int(header.msg_controllen), control.count),
                source: InternetAddress(source.pointee, length: header.msg_namelen),
                // The kernel gives back this one, which was no question.
                flags: MessageFlags(rawValue: header.msg_flags & ~Int32(MSG_CMSG_CLOEXEC)))
            }
          }
        }
      }
    }
    return try result.get()
  }
}

/// Room for the control data of one message, without any allocation.
struct ReceivedControl: ~Copyable {
  // 2048 bytes: those of a packet's 48 traits take up to 1168, which leaves
  // 880 for the messages of other options.
  private var words = InlineArray<256, UInt64>(repeating: 0)

  mutating func receive(
    from descriptor: FileDescriptor, into payload: inout MutableRawSpan, flags: MessageFlags
  ) throws(Errno) -> ReceivedMessage {
    var elements = words.mutableSpan
    var control = elements.mutableBytes
    return try descriptor.receiveMessage(into: &payload, control: &control, flags: flags)
  }

  /// Calls `body` with what was written.
  func with<Result>(_ message: ReceivedMessage, _ body: (RawSpan) -> Result) -> Result {
    body(words.span.bytes.extracting(0..<message.controlLength))
  }
}

/// Receives with a flag to add: `MSG_CMSG_CLOEXEC`, or none where that is
/// refused. Packet sockets do so, before anything else, and hand over no
/// descriptors (`packet_recvmsg()`, net/packet/af_packet.c).
func closingOnExec(_ receive: (Int32) -> Int) -> Int {
  let length = receive(Int32(MSG_CMSG_CLOEXEC))
  return length < 0 && errno == EINVAL ? receive(0) : length
}

extension Traits {
  /// Returns whether this kernel has packet traits.
  ///
  /// Sets an empty mask of keys and reads it back: some sandboxes accept every socket option and
  /// ignore those that they do not know.
  ///
  /// - Throws: ``TraitError/Code/systemCall`` if neither a UDP socket of IPv4 nor, where the
  ///   kernel lacks IPv4, one of IPv6 can be opened and asked.
  public static func isSupportedByKernel() throws(TraitError) -> Bool {
    let socket: UDPSocket
    do throws(Errno) {
      socket = try Self.probe()
    } catch {
      throw TraitError(
        .systemCall, "there is no socket to ask for packet traits", underlyingError: error)
    }
    let descriptor = socket.unsafeFileDescriptor
    return try isSupported { () throws(Errno) in
      // Everybody may ask for no keys.
      try descriptor.setMask(.received, [])
    } reading: { mask, length throws(Errno) in
      guard getsockopt(descriptor.rawValue, SOL_TRAITS, TRAITS_RECV, &mask, &length) == 0 else {
        throw Errno.current
      }
    }
  }

  /// Returns whether a socket's options are those of a kernel with packet traits.
  ///
  /// - Parameters:
  ///   - set: Sets `TRAITS_RECV` to a mask of 0.
  ///   - read: Reads the option into the mask and its length, in bytes.
  static func isSupported(
    setting set: () throws(Errno) -> Void,
    reading read: (inout UInt64, inout socklen_t) throws(Errno) -> Void
  ) throws(TraitError) -> Bool {
    var mask = UInt64.max
    var length = socklen_t(MemoryLayout<UInt64>.size)
    do throws(Errno) {
      try set()
      try read(&mask, &length)
    } catch {
      switch error {
      case .protocolNotAvailable, .notSupportedOnSocket: return false
      default: throw TraitError(askingFor: [], error)
      }
    }
    return length == socklen_t(MemoryLayout<UInt64>.size) && mask == 0
  }

  private static func probe() throws(Errno) -> UDPSocket {
    do throws(Errno) {
      return try UDPSocket(.ipv4)
    } catch {
      guard error == .addressFamilyNotSupported else { throw error }
      return try UDPSocket(.ipv6)
    }
  }
}

extension TraitError {
  init(receiving error: Errno) {
    if error == .wouldBlock {
      self.init(.wouldBlock, "no datagram came in time", underlyingError: error)
    } else {
      self.init(.systemCall, "no datagram could be received", underlyingError: error)
    }
  }
}
