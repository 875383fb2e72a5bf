// SPDX-License-Identifier: MIT

internal import CLibMNL
internal import CTraits
internal import PacketTraits
internal import SystemPackage

// What netlink replies are made of. Every length is checked against what is
// there: a wrong one is an error that says where, never a value left out.

/// Lengths in netlink are padded to 4 bytes.
func netlinkAlign(_ length: Int) -> Int { (length + 3) & ~3 }

struct NetlinkMessage: Equatable {
  static let headerSize = 16

  var type: UInt16
  var flags: UInt16
  var sequence: UInt32
  var port: UInt32
  /// What follows the header, in bytes from the start of the datagram.
  var payload: Range<Int>

  /// The message at `position`, which is moved to the one after it; nil at the
  /// end.
  static func next(in datagram: RawSpan, at position: inout Int) throws(TraitError) -> NetlinkMessage? {
    let left = datagram.byteCount - position
    guard left > 0 else { return nil }
    guard left >= headerSize else {
      throw TraitError(
        .malformedReply,
        "\(left) bytes are left of the netlink reply, less than the \(headerSize) of a header")
    }
    let start = position
    let length = datagram.unsafeLoadUnaligned(fromByteOffset: start, as: UInt32.self)
    // Compared as UInt64: a stated length may be more than an Int of 32 bits.
    guard length >= UInt32(headerSize), UInt64(length) <= UInt64(left) else {
      throw TraitError(
        .malformedReply,
        "the netlink message at offset \(start) states a length of \(length) bytes, "
          + "which must be \(headerSize) to \(left)")
    }
    position = min(start + netlinkAlign(Int(length)), datagram.byteCount)
    return NetlinkMessage(
      type: datagram.unsafeLoadUnaligned(fromByteOffset: start + 4, as: UInt16.self),
      flags: datagram.unsafeLoadUnaligned(fromByteOffset: start + 6, as: UInt16.self),
      sequence: datagram.unsafeLoadUnaligned(fromByteOffset: start + 8, as: UInt32.self),
      port: datagram.unsafeLoadUnaligned(fromByteOffset: start + 12, as: UInt32.self),
      payload: start + headerSize..<start + Int(length))
  }
}

struct NetlinkAttribute: Equatable {
  static let headerSize = 4

  var type: UInt16
  /// Where the attribute starts, in bytes from the start of what was searched.
  var start: Int
  /// Its data, in bytes from the start of what was searched.
  var data: Range<Int>

  static func all(in bytes: RawSpan) throws(TraitError) -> [NetlinkAttribute] {
    var attributes: [NetlinkAttribute] = []
    var position = 0
    while position < bytes.byteCount {
      let left = bytes.byteCount - position
      guard left >= headerSize else {
        throw TraitError(
          .malformedReply,
          "\(left) bytes are left of a netlink message, less than the \(headerSize) of an attribute")
      }
      let length = bytes.unsafeLoadUnaligned(fromByteOffset: position, as: UInt16.self)
      let type = bytes.unsafeLoadUnaligned(fromByteOffset: position + 2, as: UInt16.self)
      guard length >= UInt16(headerSize), Int(length) <= left else {
        throw TraitError(
          .malformedReply,
          "the netlink attribute at offset \(position) states a length of \(length) bytes, "
            + "which must be \(headerSize) to \(left)")
      }
      attributes.append(
        NetlinkAttribute(
          // The upper two bits say that it is nested or in network byte order.
          type: type & 0x3fff,
          start: position,
          data: position + headerSize..<position + Int(length)))
      position += netlinkAlign(Int(length))
    }
    return attributes
  }
}

/// The attributes of one message, to be read by number, with the names that
/// the protocol's specification gives them.
struct NetlinkAttributes {
  let bytes: [UInt8]
  let attributes: [NetlinkAttribute]

  init(_ bytes: RawSpan) throws(TraitError) {
    self.attributes = try NetlinkAttribute.all(in: bytes)
    self.bytes = bytes.withUnsafeBytes { Array($0) }
  }

  private func load<Number: FixedWidthInteger & BitwiseCopyable>(
    _ data: Range<Int>, as type: Number.Type
  ) -> Number {
    bytes.span.bytes.unsafeLoadUnaligned(fromByteOffset: data.lowerBound, as: type)
  }

  private func data(_ type: Int, _ name: String) throws(TraitError) -> Range<Int> {
    // Where there are two, the later one counts, as in the kernel.
    guard let attribute = attributes.last(where: { $0.type == type }) else {
      throw TraitError(.malformedReply, "the kernel's reply has no attribute \"\(name)\"")
    }
    return attribute.data
  }

  private func wrongLength(_ name: String, _ length: Int, _ right: String) -> TraitError {
    TraitError(
      .malformedReply, "the attribute \"\(name)\" of the kernel's reply has \(length) bytes, not \(right)")
  }

  func uint16(_ type: Int, _ name: String) throws(TraitError) -> UInt16 {
    let data = try data(type, name)
    guard data.count == 2 else { throw wrongLength(name, data.count, "2") }
    return load(data, as: UInt16.self)
  }

  func uint32(_ type: Int, _ name: String) throws(TraitError) -> UInt32 {
    let data = try data(type, name)
    guard data.count == 4 else { throw wrongLength(name, data.count, "4") }
    return load(data, as: UInt32.self)
  }

  /// The elements of an attribute that is an array of nested ones; none if it is not
  /// there.
  func nested(_ type: Int) throws(TraitError) -> [NetlinkAttributes] {
    guard let attribute = attributes.last(where: { $0.type == type }) else { return [] }
    var elements: [NetlinkAttributes] = []
    let array = Array(bytes[attribute.data])
    for element in try NetlinkAttribute.all(in: array.span.bytes) {
      elements.append(try NetlinkAttributes(array.span.bytes.extracting(element.data)))
    }
    return elements
  }

  /// A number of 4 or 8 bytes, as the kernel sees fit.
  func uint(_ type: Int, _ name: String) throws(TraitError) -> UInt64 {
    let data = try data(type, name)
    switch data.count {
    case 4:
      return UInt64(load(data, as: UInt32.self))
    case 8:
      return load(data, as: UInt64.self)
    default:
      throw wrongLength(name, data.count, "4 or 8")
    }
  }

  /// A string with the NUL that ends it, and no other.
  func string(_ type: Int, _ name: String, maximumLength: Int) throws(TraitError) -> String {
    let data = try data(type, name)
    guard (2...maximumLength + 1).contains(data.count) else {
      throw wrongLength(name, data.count, "2 to \(maximumLength + 1)")
    }
    let text = Array(bytes[data.dropLast()])
    guard bytes[data.upperBound - 1] == 0,
      !text.contains(0), let string = String(validating: text, as: UTF8.self)
    else {
      throw TraitError(
        .malformedReply,
        "the attribute \"\(name)\" of the kernel's reply is no string that ends with its only NUL")
    }
    return string
  }
}

/// The kernel's answer to a request: an acknowledgement or an error.
struct NetlinkAcknowledgement: Equatable {
  /// nil if all is well.
  var error: Errno?
  /// The kernel's own words on what was wrong.
  var text: String?
  /// Which byte of the request was wrong.
  var offset: Int?

  /// - Parameter payload: What follows the header of a message of type
  ///   `NLMSG_ERROR` or `NLMSG_DONE`.
  init(_ payload: RawSpan, of message: NetlinkMessage) throws(TraitError) {
    guard payload.byteCount >= 4 else {
      throw TraitError(
        .malformedReply, "the kernel's acknowledgement has \(payload.byteCount) bytes, less than 4")
    }
    let status = payload.unsafeLoadUnaligned(as: Int32.self)
    guard status <= 0, status > -4096 else {
      throw TraitError(
        .malformedReply, "the kernel's acknowledgement has status \(status), which must be -4095 to 0")
    }
    error = status == 0 ? nil : Errno(rawValue: -status)

    guard message.flags & UInt16(NLM_F_ACK_TLVS) != 0 else { return }
    var start = 4
    if message.type == UInt16(NLMSG_ERROR) {
      // The request's header comes first, and all of the request unless capped.
      guard payload.byteCount >= 4 + NetlinkMessage.headerSize else {
        throw TraitError(
          .malformedReply,
          "the kernel's acknowledgement has \(payload.byteCount) bytes, too few for the request's header")
      }
      start += NetlinkMessage.headerSize
      if message.flags & UInt16(NLM_F_CAPPED) == 0 {
        let length = payload.unsafeLoadUnaligned(fromByteOffset: 4, as: UInt32.self)
        guard UInt64(length) <= UInt64(payload.byteCount - 4) else {
          throw TraitError(
            .malformedReply,
            "the kernel's acknowledgement has \(payload.byteCount) bytes, "
              + "too few for the \(length) of the request that it repeats")
        }
        // The last message of a datagram may lack its padding.
        start = min(
          4 + netlinkAlign(max(Int(length), NetlinkMessage.headerSize)), payload.byteCount)
      }
    }

    let extended = payload.extracting(start..<payload.byteCount)
    for attribute in try NetlinkAttribute.all(in: extended) {
      switch UInt32(attribute.type) {
      case NLMSGERR_ATTR_MSG.rawValue:
        let text = attribute.data.map { extended.unsafeLoad(fromByteOffset: $0, as: UInt8.self) }
        self.text = String(decoding: text.prefix { $0 != 0 }, as: UTF8.self)
      case NLMSGERR_ATTR_OFFS.rawValue:
        guard attribute.data.count == 4 else {
          throw TraitError(
            .malformedReply,
            "the offset in the kernel's acknowledgement has \(attribute.data.count) bytes, not 4")
        }
        // One beyond all requests is of no attribute.
        offset = Int(
          clamping: extended.unsafeLoadUnaligned(
            fromByteOffset: attribute.data.lowerBound, as: UInt32.self))
      default: break
      }
    }
  }
}

extension RegisteredKey {
  /// - Parameter bytes: The attributes of a message about a key.
  init(attributes bytes: RawSpan) throws(TraitError) {
    let attributes = try NetlinkAttributes(bytes)
    let number = try attributes.uint32(Int(TRAITS_A_KEY_ID), "id")
    guard let id = TraitID(rawValue: number) else {
      throw TraitError(.malformedReply, "the kernel's reply has a key \(number), but keys are 0 to 63")
    }
    let bytes = try attributes.uint32(Int(TRAITS_A_KEY_SIZE), "size")
    guard let size = TraitSize(rawValue: Int(clamping: bytes)) else {
      throw TraitError(
        .malformedReply, "the kernel's reply has key \(id) with a size of \(bytes), not 4, 8 or 16")
    }
    self.init(
      id: id,
      name: try attributes.string(
        Int(TRAITS_A_KEY_NAME), "name", maximumLength: Int(TRAITS_NAME_MAX)),
      size: size,
      flags: KeyFlags(rawValue: try attributes.uint32(Int(TRAITS_A_KEY_FLAGS), "flags")),
      merge: MergePolicy(rawValue: try attributes.uint32(Int(TRAITS_A_KEY_MERGE), "merge")))
  }
}

extension KeyStatistics {
  /// - Parameter bytes: The attributes of a message about a key's statistics.
  init(attributes bytes: RawSpan) throws(TraitError) {
    let attributes = try NetlinkAttributes(bytes)
    let number = try attributes.uint32(Int(TRAITS_A_KEY_STATS_ID), "id")
    guard let id = TraitID(rawValue: number) else {
      throw TraitError(.malformedReply, "the kernel's reply has a key \(number), but keys are 0 to 63")
    }
    self.init(
      id: id,
      name: try attributes.string(
        Int(TRAITS_A_KEY_STATS_NAME), "name", maximumLength: Int(TRAITS_NAME_MAX)),
      set: try attributes.uint(Int(TRAITS_A_KEY_STATS_SET), "set"),
      read: try attributes.uint(Int(TRAITS_A_KEY_STATS_READ), "read"),
      dropped: try attributes.uint(Int(TRAITS_A_KEY_STATS_DROPPED), "dropped"),
      scrubbed: try attributes.uint(Int(TRAITS_A_KEY_STATS_SCRUBBED), "scrubbed"))
  }
}

/// A family of generic netlink, as the kernel tells of it.
struct GenericFamily: Equatable {
  /// The type of its messages.
  var id: UInt16
  /// The numbers of its multicast groups, by name.
  var groups: [String: UInt32] = [:]

  /// - Parameter bytes: The attributes of a message about a family.
  init(attributes bytes: RawSpan) throws(TraitError) {
    let attributes = try NetlinkAttributes(bytes)
    id = try attributes.uint16(Int(CTRL_ATTR_FAMILY_ID), "family-id")
    for group in try attributes.nested(Int(CTRL_ATTR_MCAST_GROUPS)) {
      let name = try group.string(Int(CTRL_ATTR_MCAST_GRP_NAME), "name", maximumLength: 15)
      groups[name] = try group.uint32(Int(CTRL_ATTR_MCAST_GRP_ID), "id")
    }
  }
}

extension TraitStatistics {
  /// - Parameter bytes: The attributes of a message about statistics.
  init(attributes bytes: RawSpan) throws(TraitError) {
    let attributes = try NetlinkAttributes(bytes)
    self.init(
      set: try attributes.uint(Int(TRAITS_A_STATS_SET), "set"),
      copied: try attributes.uint(Int(TRAITS_A_STATS_COPIED), "copied"),
      discarded: try attributes.uint(Int(TRAITS_A_STATS_DISCARDED), "discarded"),
      scrubbed: try attributes.uint(Int(TRAITS_A_STATS_SCRUBBED), "scrubbed"),
      allocated: try attributes.uint(Int(TRAITS_A_STATS_ALLOCATED), "allocated"),
      evicted: try attributes.uint(Int(TRAITS_A_STATS_EVICTED), "evicted"),
      lost: try attributes.uint(Int(TRAITS_A_STATS_LOST), "lost"))
  }
}
