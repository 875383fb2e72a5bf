// SPDX-License-Identifier: MIT

internal import CTraits

// Traits as the kernel hands them over: an array of `struct trait`, 24 bytes
// each, which need not be aligned.

/// Offsets in `struct trait`, and its length; asserted in C and by a test.
enum RecordLayout {
  static let key = 0
  static let length = 4
  static let flags = 6
  static let value = 8
  static let size = 24
}

extension Traits {
  /// The traits in an array of records, as in a socket option or a control
  /// message of level `SOL_TRAITS`.
  ///
  /// A record is a C `struct trait`: 24 bytes in native byte order, namely a
  /// 4-byte key, a 2-byte length, 2 bytes of flags, and 16 bytes of which
  /// the value is the first 4, 8 or 16. Records may be in any order.
  ///
  /// - Parameter records: Any bytes at any address.
  /// - Throws: ``TraitError/Code/malformedRecords`` if these are no whole
  ///   records, if a key is more than 63 or there twice, a length is not
  ///   4, 8 or 16, or if flags or unused bytes are not 0;
  ///   ``TraitError/Code/limitExceeded`` if the values take more than 192
  ///   bytes together.
  public init(records: RawSpan) throws(TraitError) {
    self.init()
    guard records.byteCount.isMultiple(of: RecordLayout.size) else {
      throw TraitError(
        .malformedRecords,
        "\(records.byteCount) bytes are no whole number of records of \(RecordLayout.size) bytes")
    }
    for start in stride(from: 0, to: records.byteCount, by: RecordLayout.size) {
      try add(record: records.extracting(start..<start + RecordLayout.size))
    }
  }

  private mutating func add(record: RawSpan) throws(TraitError) {
    let key = record.unsafeLoadUnaligned(fromByteOffset: RecordLayout.key, as: UInt32.self)
    let length = record.unsafeLoadUnaligned(fromByteOffset: RecordLayout.length, as: UInt16.self)
    let flags = record.unsafeLoadUnaligned(fromByteOffset: RecordLayout.flags, as: UInt16.self)

    guard let id = TraitID(rawValue: key) else {
      throw TraitError(.malformedRecords, "a record is of key \(key), but keys are 0 to 63")
    }
    guard let size = TraitSize(rawValue: Int(length)) else {
      throw TraitError(
        .malformedRecords, "the record of key \(id) has length \(length), not 4, 8 or 16")
    }
    guard flags == 0 else {
      throw TraitError(.malformedRecords, "the record of key \(id) has flags \(flags), not 0")
    }
    guard !keys.contains(id) else {
      throw TraitError(.malformedRecords, "there are two records of key \(id)")
    }
    for offset in RecordLayout.value + size.rawValue..<RecordLayout.size
    where record.unsafeLoad(fromByteOffset: offset, as: UInt8.self) != 0 {
      throw TraitError(
        .malformedRecords, "the record of key \(id) has bytes behind its value that are not 0")
    }
    try setBytes(
      record.extracting(RecordLayout.value..<RecordLayout.value + size.rawValue), for: id)
  }

  /// These traits as an array of records in key order; see ``init(records:)``.
  public var records: [UInt8] {
    var records = [UInt8](repeating: 0, count: count * RecordLayout.size)
    var elements = records.mutableSpan
    var bytes = elements.mutableBytes
    var start = 0
    for element in self {
      bytes.storeBytes(
        of: element.id.rawValue, toByteOffset: start + RecordLayout.key, as: UInt32.self)
      bytes.storeBytes(
        of: UInt16(element.size.rawValue), toByteOffset: start + RecordLayout.length, as: UInt16.self)
      for (offset, byte) in element.bytes.enumerated() {
        bytes.storeBytes(
          of: byte, toByteOffset: start + RecordLayout.value + offset, as: UInt8.self)
      }
      start += RecordLayout.size
    }
    return records
  }
}
