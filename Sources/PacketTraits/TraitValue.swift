// SPDX-License-Identifier: MIT

/// A type whose values are a trait's 4, 8 or 16 bytes.
///
/// Integers of 32, 64 and 128 bits conform; a trait holds them in the
/// machine's native byte order, as a BPF program writes them. So does
/// ``TraitBytes16``, for what is a string of bytes and not a number: a trace
/// id, a UUID, an IPv6 address.
///
/// A type of your own forwards to one of these:
///
/// ```swift
/// struct TraceID: TraitValue {
///   var bytes: TraitBytes16
///
///   static var traitSize: TraitSize { .bytes16 }
///
///   init(traitBytes: RawSpan) {
///     bytes = TraitBytes16(traitBytes: traitBytes)
///   }
///
///   func withTraitBytes<Result, Failure: Error>(
///     _ body: (RawSpan) throws(Failure) -> Result
///   ) throws(Failure) -> Result {
///     try bytes.withTraitBytes(body)
///   }
/// }
/// ```
public protocol TraitValue: Sendable {
  /// How many bytes a value has.
  static var traitSize: TraitSize { get }

  /// Makes a value of a trait's bytes.
  ///
  /// - Parameter traitBytes: Exactly ``traitSize`` bytes, which may be at any
  ///   address, aligned or not.
  init(traitBytes: RawSpan)

  /// Calls `body` with the ``traitSize`` bytes of this value.
  func withTraitBytes<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result
}

extension TraitValue where Self: FixedWidthInteger & BitwiseCopyable {
  public init(traitBytes: RawSpan) {
    self = traitBytes.unsafeLoadUnaligned(as: Self.self)
  }

  public func withTraitBytes<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let single: InlineArray<1, Self> = [self]
    return try body(single.span.bytes)
  }
}

extension UInt32: TraitValue {
  /// 4 bytes.
  public static var traitSize: TraitSize { .bytes4 }
}

extension Int32: TraitValue {
  /// 4 bytes.
  public static var traitSize: TraitSize { .bytes4 }
}

extension UInt64: TraitValue {
  /// 8 bytes.
  public static var traitSize: TraitSize { .bytes8 }
}

extension Int64: TraitValue {
  /// 8 bytes.
  public static var traitSize: TraitSize { .bytes8 }
}

extension UInt128: TraitValue {
  /// 16 bytes.
  public static var traitSize: TraitSize { .bytes16 }
}

extension Int128: TraitValue {
  /// 16 bytes.
  public static var traitSize: TraitSize { .bytes16 }
}

/// 16 bytes that are no number: they keep their order on every machine.
public struct TraitBytes16: Sendable {
  /// The bytes, in their order in memory.
  public var bytes: InlineArray<16, UInt8>

  /// Makes a value of these bytes.
  public init(_ bytes: InlineArray<16, UInt8>) {
    self.bytes = bytes
  }
}

extension TraitBytes16: TraitValue {
  /// 16 bytes.
  public static var traitSize: TraitSize { .bytes16 }

  public init(traitBytes: RawSpan) {
    bytes = traitBytes.unsafeLoadUnaligned(as: InlineArray<16, UInt8>.self)
  }

  public func withTraitBytes<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(bytes.span.bytes)
  }
}

extension TraitBytes16: Hashable {
  public static func == (left: TraitBytes16, right: TraitBytes16) -> Bool {
    left.bytes.indices.allSatisfy { left.bytes[$0] == right.bytes[$0] }
  }

  public func hash(into hasher: inout Hasher) {
    for index in bytes.indices { hasher.combine(bytes[index]) }
  }
}

extension TraitBytes16: CustomStringConvertible {
  /// 32 hexadecimal digits, in the order of the bytes.
  public var description: String { hexadecimal(bytes.span.bytes.array) }
}
