// SPDX-License-Identifier: MIT

/// The traits of one packet: for each of up to 64 keys a value of 4, 8 or 16
/// bytes, 192 bytes of values at most.
///
/// A value type without any allocation. Iteration is in the order of the keys.
public struct Traits: Sendable {
  // The layout is the one that serves the kernel well: two bits a key tell the
  // size of its value, values are packed in key order, so that a value's place
  // follows from counting bits. Bytes behind the last value are 0.
  private var sizeLow: UInt64 = 0
  private var sizeHigh: UInt64 = 0
  private var values = InlineArray<24, UInt64>(repeating: 0)

  /// The most bytes that all values together may take.
  public static var maximumValueByteCount: Int { 192 }

  /// No traits.
  public init() {}

  /// The keys that have a value.
  public var keys: TraitMask { TraitMask(rawValue: sizeLow | sizeHigh) }

  /// How many bytes all values together take.
  public var valueByteCount: Int { offset(below: .max) }

  /// The length of the key's value, or nil if it has none.
  public func size(of id: TraitID) -> TraitSize? {
    switch (sizeLow & id.bit != 0, sizeHigh & id.bit != 0) {
    case (false, false): nil
    case (true, false): .bytes4
    case (false, true): .bytes8
    case (true, true): .bytes16
    }
  }

  private func offset(below bits: UInt64) -> Int {
    4 * (sizeLow & bits).nonzeroBitCount + 8 * (sizeHigh & bits).nonzeroBitCount
      + 4 * (sizeLow & sizeHigh & bits).nonzeroBitCount
  }

  private mutating func setSize(_ size: TraitSize?, of id: TraitID) {
    sizeLow &= ~id.bit
    sizeHigh &= ~id.bit
    if size == .bytes4 || size == .bytes16 { sizeLow |= id.bit }
    if size == .bytes8 || size == .bytes16 { sizeHigh |= id.bit }
  }

  /// Gives the key's value `size` bytes, whose content is then to be written,
  /// and returns where. The caller has made sure that there is room.
  private mutating func reserve(_ size: TraitSize?, for id: TraitID) -> Int {
    let start = offset(below: id.bit - 1)
    let former = self.size(of: id)?.rawValue ?? 0
    let new = size?.rawValue ?? 0
    let used = valueByteCount
    var words = values.mutableSpan
    var bytes = words.mutableBytes
    bytes.withUnsafeMutableBytes { bytes in
      let tail = used - start - former
      let from = UnsafeRawBufferPointer(rebasing: bytes[start + former..<start + former + tail])
      UnsafeMutableRawBufferPointer(rebasing: bytes[start + new..<start + new + tail])
        .copyMemory(from: from)
      if new < former {
        for index in used - former + new..<used { bytes[index] = 0 }
      }
    }
    setSize(size, of: id)
    return start
  }

  // MARK: Typed values

  /// The key's value, or nil if it has none.
  ///
  /// - Throws: ``TraitError/Code/sizeMismatch`` if the value has another size
  ///   than `Value`.
  public func value<Value>(for key: TraitKey<Value>) throws(TraitError) -> Value? {
    guard let size = size(of: key.id) else { return nil }
    guard size == Value.traitSize else {
      throw TraitError(key: key.id, has: size, not: Value.self)
    }
    return withBytes(of: key.id) { Value(traitBytes: $0) }
  }

  /// Sets the key's value, whether it had one or not.
  ///
  /// - Throws: ``TraitError/Code/limitExceeded`` if the values would take more
  ///   than 192 bytes together, ``TraitError/Code/sizeMismatch`` if `value`
  ///   gives another number of bytes than its type declares. Then nothing has
  ///   changed.
  public mutating func set<Value>(_ value: Value, for key: TraitKey<Value>) throws(TraitError) {
    try value.withTraitBytes { bytes throws(TraitError) in
      guard bytes.byteCount == Value.traitSize.rawValue else {
        throw TraitError(
          .sizeMismatch,
          "\(Value.self) gave \(bytes.byteCount) bytes, not the \(Value.traitSize) that it declares")
      }
      try setBytes(bytes, for: key.id)
    }
  }

  // MARK: Raw bytes

  /// Calls `body` with the bytes of the key's value, 4, 8 or 16 of them.
  ///
  /// - Returns: What `body` returns, or nil if the key has no value.
  public func withBytes<Result, Failure: Error>(
    of id: TraitID, _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    guard let size = size(of: id) else { return nil }
    let start = offset(below: id.bit - 1)
    return try body(values.span.bytes.extracting(start..<start + size.rawValue))
  }

  /// The bytes of the key's value, 4, 8 or 16 of them, or nil if it has none.
  public func bytes(of id: TraitID) -> [UInt8]? {
    withBytes(of: id) { $0.array }
  }

  /// Sets the key's value to these bytes, whether it had one or not.
  ///
  /// - Parameter bytes: 4, 8 or 16 bytes.
  /// - Throws: ``TraitError/Code/sizeMismatch`` if it is another number of
  ///   bytes, ``TraitError/Code/limitExceeded`` if the values would take more
  ///   than 192 bytes together. Then nothing has changed.
  public mutating func setBytes(_ bytes: RawSpan, for id: TraitID) throws(TraitError) {
    guard let size = TraitSize(rawValue: bytes.byteCount) else {
      throw TraitError(
        .sizeMismatch, "a value of key \(id) cannot have \(bytes.byteCount) bytes, but 4, 8 or 16")
    }
    let total = valueByteCount - (self.size(of: id)?.rawValue ?? 0) + size.rawValue
    guard total <= Self.maximumValueByteCount else {
      throw TraitError(
        .limitExceeded,
        "with \(size) bytes for key \(id) the values would take \(total) bytes, "
          + "more than the \(Self.maximumValueByteCount) of a packet")
    }

    let start = reserve(size, for: id)
    var words = values.mutableSpan
    var all = words.mutableBytes
    for index in 0..<bytes.byteCount {
      all.storeBytes(
        of: bytes.unsafeLoad(fromByteOffset: index, as: UInt8.self),
        toByteOffset: start + index, as: UInt8.self)
    }
  }

  /// Removes the key's value.
  ///
  /// - Returns: Whether there was one.
  @discardableResult
  public mutating func remove(_ id: TraitID) -> Bool {
    guard keys.contains(id) else { return false }
    _ = reserve(nil, for: id)
    return true
  }

  /// Removes the key's value.
  ///
  /// - Returns: Whether there was one.
  @discardableResult
  public mutating func remove<Value>(_ key: TraitKey<Value>) -> Bool {
    remove(key.id)
  }
}

extension TraitError {
  fileprivate init<Value: TraitValue>(key id: TraitID, has size: TraitSize, not type: Value.Type) {
    self.init(
      .sizeMismatch,
      "key \(id) has a value of \(size) bytes, not the \(Value.traitSize) of \(Value.self)")
  }
}

extension Traits: Hashable {
  public static func == (left: Traits, right: Traits) -> Bool {
    guard left.sizeLow == right.sizeLow, left.sizeHigh == right.sizeHigh else { return false }
    return left.values.indices.allSatisfy { left.values[$0] == right.values[$0] }
  }

  public func hash(into hasher: inout Hasher) {
    hasher.combine(sizeLow)
    hasher.combine(sizeHigh)
    for index in values.indices { hasher.combine(values[index]) }
  }
}

extension Traits: Collection {
  /// A key and its value.
  public struct Element: Hashable, Sendable {
    /// The key's number.
    public let id: TraitID
    /// The length of the value.
    public let size: TraitSize
    private let low: UInt64
    private let high: UInt64

    init(id: TraitID, bytes: RawSpan, size: TraitSize) {
      var padded: InlineArray<2, UInt64> = [0, 0]
      var words = padded.mutableSpan
      var raw = words.mutableBytes
      for index in 0..<size.rawValue {
        raw.storeBytes(
          of: bytes.unsafeLoad(fromByteOffset: index, as: UInt8.self), toByteOffset: index,
          as: UInt8.self)
      }
      self.id = id
      self.size = size
      low = padded[0]
      high = padded[1]
    }

    /// Calls `body` with the bytes of the value, as many as ``size`` says.
    public func withBytes<Result, Failure: Error>(
      _ body: (RawSpan) throws(Failure) -> Result
    ) throws(Failure) -> Result {
      let words: InlineArray<2, UInt64> = [low, high]
      return try body(words.span.bytes.extracting(0..<size.rawValue))
    }

    /// The bytes of the value, as many as ``size`` says.
    public var bytes: [UInt8] { withBytes { $0.array } }

    /// The value.
    ///
    /// - Throws: ``TraitError/Code/sizeMismatch`` if it has another size than
    ///   `Value`.
    public func value<Value: TraitValue>(
      as type: Value.Type = Value.self
    ) throws(TraitError) -> Value {
      guard size == Value.traitSize else {
        throw TraitError(key: id, has: size, not: Value.self)
      }
      return withBytes { Value(traitBytes: $0) }
    }
  }

  /// The place of a key among the traits of one packet.
  public struct Index: Comparable, Hashable, Sendable {
    let key: Int

    public static func < (left: Index, right: Index) -> Bool { left.key < right.key }
  }

  public var startIndex: Index { Index(key: keys.rawValue.trailingZeroBitCount) }
  public var endIndex: Index { Index(key: UInt64.bitWidth) }
  public var count: Int { keys.count }

  public func index(after index: Index) -> Index {
    precondition(index < endIndex, "there is no index after the end")
    // Shifting by 64 gives 0, which has 64 trailing zeros: the end.
    let next = index.key + 1
    return Index(key: next + Swift.min((keys.rawValue >> next).trailingZeroBitCount, 64 - next))
  }

  public subscript(index: Index) -> Element {
    let id = TraitID(unchecked: index.key)
    guard index < endIndex, let size = size(of: id),
      let element = withBytes(of: id, { Element(id: id, bytes: $0, size: size) })
    else { preconditionFailure("the index is of no trait of this packet") }
    return element
  }
}

extension Traits: CustomStringConvertible {
  /// Keys with their values' bytes in hexadecimal, in the order in memory.
  public var description: String {
    "[" + map { "\($0.id): \(hexadecimal($0.bytes))" }.joined(separator: ", ") + "]"
  }
}

extension RawSpan {
  var array: [UInt8] {
    [UInt8](unsafeUninitializedCapacity: byteCount) { buffer, count in
      withUnsafeBytes { UnsafeMutableRawBufferPointer(buffer).copyMemory(from: $0) }
      count = byteCount
    }
  }
}

/// The bytes as hexadecimal digits, two each, in their order.
package func hexadecimal(_ bytes: [UInt8]) -> String {
  let digits = Array("0123456789abcdef".utf8)
  return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}
