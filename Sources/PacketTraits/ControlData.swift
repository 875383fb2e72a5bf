// SPDX-License-Identifier: MIT

internal import CTraits

/// Control data for `sendmsg()`: control messages one after the other, as the C
/// macros of cmsg(3) lay them out.
///
/// ```swift
/// import Glibc  // IP_TOS
///
/// var control = ControlData()
/// control.append(level: .ipv4, type: .init(rawValue: IP_TOS), Int32(0x10))
/// control.append(traits)
/// try descriptor.sendMessage(payload, to: destination, control: control)
/// ```
public struct ControlData: Hashable, Sendable {
  /// The messages, each padded to a multiple of the size of a word (8 bytes, 4
  /// on 32 bits); lengths, levels and types in native byte order.
  public private(set) var bytes: [UInt8] = []

  /// No messages.
  public init() {}

  /// Whether there is no message.
  public var isEmpty: Bool { bytes.isEmpty }

  /// Appends a message.
  ///
  /// - Parameters:
  ///   - level: The protocol that the message is of.
  ///   - type: What it is about.
  ///   - data: What it says, at any address.
  public mutating func append(
    level: ControlMessage.Level, type: ControlMessage.MessageType, data: RawSpan
  ) {
    append(level, type, byteCount: data.byteCount) { buffer in
      data.withUnsafeBytes { buffer.copyMemory(from: $0) }
    }
  }

  /// Appends a message that says one number of 4 bytes, in native byte order.
  ///
  /// The kernel refuses a message of another size than it expects (`EINVAL`).
  /// Therefore the number's type has to be written: a literal alone does not tell
  /// which of these functions is meant.
  ///
  /// - Parameters:
  ///   - level: The protocol that the message is of.
  ///   - type: What it is about. Most options' messages are of this size: see
  ///     ip(7), ipv6(7), socket(7).
  ///   - value: What it says.
  public mutating func append(
    level: ControlMessage.Level, type: ControlMessage.MessageType, _ value: Int32
  ) {
    append(level, type, number: value)
  }

  /// Appends a message that says one number of 4 bytes, as `SO_MARK`
  /// (socket(7)); otherwise as with `Int32`.
  public mutating func append(
    level: ControlMessage.Level, type: ControlMessage.MessageType, _ value: UInt32
  ) {
    append(level, type, number: value)
  }

  /// Appends a message that says one number of 2 bytes, as `UDP_SEGMENT` (udp(7));
  /// otherwise as with `Int32`.
  public mutating func append(
    level: ControlMessage.Level, type: ControlMessage.MessageType, _ value: UInt16
  ) {
    append(level, type, number: value)
  }

  /// Appends a message that says one number of 1 byte, as `IP_TOS` (ip(7)) may;
  /// otherwise as with `Int32`.
  public mutating func append(
    level: ControlMessage.Level, type: ControlMessage.MessageType, _ value: UInt8
  ) {
    append(level, type, number: value)
  }

  private mutating func append(
    _ level: ControlMessage.Level, _ type: ControlMessage.MessageType, number: some BitwiseCopyable
  ) {
    withUnsafeBytes(of: number) { bytes in
      append(level, type, byteCount: bytes.count) { $0.copyMemory(from: bytes) }
    }
  }

  /// Appends a message with these traits, for the datagram that is sent with
  /// it; no message if there are none. The kernel refuses a second one.
  ///
  /// The corresponding C constants are `SOL_TRAITS` and `SCM_TRAITS`.
  public mutating func append(_ traits: Traits) {
    guard !traits.isEmpty else { return }
    append(.traits, .traits, byteCount: traits.recordByteCount) { traits.writeRecords(to: $0) }
  }

  /// Whether a message is to be of traits, though its records may be malformed.
  var hasTraits: Bool {
    ((try? ControlMessage.all(in: bytes.span.bytes)) ?? []).contains(where: \.isTraits)
  }

  /// The traits that are in it, those that a later message holds over those of an
  /// earlier one; none of a message whose records are malformed.
  var traits: Traits {
    var traits = Traits()
    let bytes = bytes.span.bytes
    for message in (try? ControlMessage.all(in: bytes)) ?? [] where message.isTraits {
      guard let own = try? Traits(records: bytes.extracting(message.dataRange)) else { continue }
      // What no packet has room for the kernel refuses.
      for element in own { try? traits.setBytes(element.bytes.span.bytes, for: element.id) }
    }
    return traits
  }

  private mutating func append(
    _ level: ControlMessage.Level, _ type: ControlMessage.MessageType, byteCount: Int,
    writing body: (UnsafeMutableRawBufferPointer) -> Void
  ) {
    let start = bytes.count
    bytes.append(contentsOf: repeatElement(0, count: ctraits_cmsg_space(byteCount)))
    bytes.withUnsafeMutableBytes {
      Self.write(
        level, type, byteCount: byteCount, to: UnsafeMutableRawBufferPointer(rebasing: $0[start...]),
        writing: body)
    }
  }

  /// Writes one message to the start of `buffer`, which has room for it.
  private static func write(
    _ level: ControlMessage.Level, _ type: ControlMessage.MessageType, byteCount: Int,
    to buffer: UnsafeMutableRawBufferPointer, writing body: (UnsafeMutableRawBufferPointer) -> Void
  ) {
    let word = MemoryLayout<Int>.size
    let header = ctraits_cmsg_len(0)
    buffer.storeBytes(of: UInt(ctraits_cmsg_len(byteCount)), as: UInt.self)
    buffer.storeBytes(of: level.rawValue, toByteOffset: word, as: Int32.self)
    buffer.storeBytes(of: type.rawValue, toByteOffset: word + 4, as: Int32.self)
    body(UnsafeMutableRawBufferPointer(rebasing: buffer[header..<header + byteCount]))
  }

  /// Calls `body` with a message that holds these traits, or with no bytes if
  /// there are none. Without any allocation for up to 42 traits.
  static func withMessage<Result>(
    of traits: Traits, _ body: (UnsafeRawBufferPointer) -> Result
  ) -> Result {
    guard !traits.isEmpty else { return body(UnsafeRawBufferPointer(start: nil, count: 0)) }
    let byteCount = traits.recordByteCount
    return withUnsafeTemporaryAllocation(
      byteCount: ctraits_cmsg_space(byteCount), alignment: MemoryLayout<Int>.alignment
    ) {
      // Records are a multiple of 8 bytes, so that there is no padding.
      write(.traits, .traits, byteCount: byteCount, to: $0) { traits.writeRecords(to: $0) }
      return body(UnsafeRawBufferPointer($0))
    }
  }
}
