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
    [UInt8](unsafeUninitializedCapacity: recordByteCount) { buffer, count in
      count = writeRecords(to: UnsafeMutableRawBufferPointer(buffer))
    }
  }

  /// How many bytes ``records`` has.
  var recordByteCount: Int { count * RecordLayout.size }

  /// Writes ``records`` to the start of `buffer`, which has room for them and
  /// need not be initialized.
  ///
  /// - Returns: ``recordByteCount``
  @discardableResult
  func writeRecords(to buffer: UnsafeMutableRawBufferPointer) -> Int {
    UnsafeMutableRawBufferPointer(rebasing: buffer[..<recordByteCount])
      .initializeMemory(as: UInt8.self, repeating: 0)
    var start = 0
    for element in self {
      buffer.storeBytes(
        of: element.id.rawValue, toByteOffset: start + RecordLayout.key, as: UInt32.self)
      buffer.storeBytes(
        of: UInt16(element.size.rawValue), toByteOffset: start + RecordLayout.length, as: UInt16.self)
      let value = start + RecordLayout.value
      element.withBytes {
        $0.withUnsafeBytes {
          UnsafeMutableRawBufferPointer(rebasing: buffer[value..<value + $0.count]).copyMemory(from: $0)
        }
      }
      start += RecordLayout.size
    }
    return start
  }
}
