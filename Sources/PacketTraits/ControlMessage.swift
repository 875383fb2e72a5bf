// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc

/// One control message in the control data that `recvmsg()` wrote.
///
/// The C macros for this (`CMSG_NXTHDR` and its kin, cmsg(3)) trust the length that a
/// message states; this does not, whatever the bytes are.
public struct ControlMessage: Hashable, Sendable {
  /// The protocol that a message is of.
  public struct Level: RawRepresentable, Hashable, Sendable {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// Messages of sockets of every kind.
    ///
    /// The corresponding C constant is `SOL_SOCKET`.
    public static var socket: Level { Level(rawValue: SOL_SOCKET) }

    /// Messages of IP version 4.
    ///
    /// The corresponding C constant is `IPPROTO_IP`.
    public static var ipv4: Level { Level(rawValue: Int32(IPPROTO_IP)) }

    /// Messages of IP version 6.
    ///
    /// The corresponding C constant is `IPPROTO_IPV6`.
    public static var ipv6: Level { Level(rawValue: Int32(IPPROTO_IPV6)) }

    /// Messages of packet traits.
    ///
    /// The corresponding C constant is `SOL_TRAITS`.
    public static var traits: Level { Level(rawValue: SOL_TRAITS) }
  }

  /// What a message is about, a number of its level's.
  public struct MessageType: RawRepresentable, Hashable, Sendable {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// At level ``Level/traits``: an array of records, as
    /// ``Traits/init(records:)`` reads them.
    ///
    /// The corresponding C constant is `SCM_TRAITS`.
    public static var traits: MessageType { MessageType(rawValue: SCM_TRAITS) }
  }

  /// The protocol that the message is of.
  ///
  /// The corresponding C field is `cmsg_level`.
  public let level: Level

  /// What the message is about.
  ///
  /// The corresponding C field is `cmsg_type`.
  public let type: MessageType

  /// Where the message's data is, in bytes from the start of the control data.
  public let dataRange: Range<Int>

  /// Whether this message holds traits: an array of records for
  /// ``Traits/init(records:)``.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `SCM_TRAITS`.
  public var isTraits: Bool {
    level == .traits && type == .traits
  }

  /// All messages in `control`, in their order.
  ///
  /// - Parameter control: As many bytes as ``ReceivedMessage/controlLength``
  ///   says, at any address.
  /// - Throws: ``TraitError/Code/malformedControlData`` if a message is
  ///   shorter than its header or longer than what is left.
  public static func all(in control: RawSpan) throws(TraitError) -> [ControlMessage] {
    var messages: [ControlMessage] = []
    var position = 0
    while let message = try next(in: control, at: &position) {
      messages.append(message)
    }
    return messages
  }

  /// The message at `position`, which is moved to the one after it; nil at the
  /// end.
  ///
  /// - Throws: As ``all(in:)``.
  static func next(
    in control: RawSpan, at position: inout Int
  ) throws(TraitError) -> ControlMessage? {
    let left = control.byteCount - position
    guard left > 0 else { return nil }

    let header = ctraits_cmsg_len(0)
    let start = position
    guard left >= header else {
      throw TraitError(
        .malformedControlData,
        "\(left) bytes of control data are left at offset \(start), "
          + "less than the \(header) of a header")
    }

    let word = MemoryLayout<Int>.size
    let length = control.unsafeLoadUnaligned(fromByteOffset: start, as: UInt.self)
    let level = control.unsafeLoadUnaligned(fromByteOffset: start + word, as: Int32.self)
    let type = control.unsafeLoadUnaligned(fromByteOffset: start + word + 4, as: Int32.self)
    guard length >= UInt(header), length <= UInt(left) else {
      throw TraitError(
        .malformedControlData,
        "the control message at offset \(start) states a length of \(length) bytes, "
          + "which must be \(header) to \(left)")
    }

    // No overflow: the length is at most what is left.
    position = min(start + ctraits_cmsg_align(Int(length)), control.byteCount)
    return ControlMessage(
      level: Level(rawValue: level), type: MessageType(rawValue: type),
      dataRange: start + header..<start + Int(length))
  }
}

extension Traits {
  /// The traits in control data that `recvmsg()` wrote, among whatever other
  /// messages; none if no message holds traits.
  ///
  /// - Throws: ``TraitError/Code/malformedControlData`` if these are no control
  ///   messages or more than one of them holds traits, or an error of
  ///   ``init(records:)``.
  public init(controlMessages control: RawSpan) throws(TraitError) {
    self = try Traits.find(in: control) ?? Traits()
  }

  /// As ``init(controlMessages:)``, but nil if no message holds traits.
  static func find(in control: RawSpan) throws(TraitError) -> Traits? {
    var found: Traits?
    var position = 0
    while let message = try ControlMessage.next(in: control, at: &position) {
      guard message.isTraits else { continue }
      guard found == nil else {
        throw TraitError(.malformedControlData, "two control messages hold traits")
      }
      found = try Traits(records: control.extracting(message.dataRange))
    }
    return found
  }
}
