// SPDX-License-Identifier: MIT

/// The length of a key's values: 4, 8 or 16 bytes.
public struct TraitSize: RawRepresentable, Hashable, Sendable {
  /// In bytes.
  public let rawValue: Int

  /// Makes a size, or nil if `rawValue` is not 4, 8 or 16.
  public init?(rawValue: Int) {
    guard rawValue == 4 || rawValue == 8 || rawValue == 16 else { return nil }
    self.rawValue = rawValue
  }

  private init(bytes: Int) { rawValue = bytes }

  /// 4 bytes.
  public static var bytes4: TraitSize { TraitSize(bytes: 4) }
  /// 8 bytes.
  public static var bytes8: TraitSize { TraitSize(bytes: 8) }
  /// 16 bytes.
  public static var bytes16: TraitSize { TraitSize(bytes: 16) }
}

extension TraitSize: CaseIterable {
  public static var allCases: [TraitSize] { [.bytes4, .bytes8, .bytes16] }
}

extension TraitSize: Comparable {
  public static func < (left: TraitSize, right: TraitSize) -> Bool { left.rawValue < right.rawValue }
}

extension TraitSize: CustomStringConvertible {
  public var description: String { String(rawValue) }
}
