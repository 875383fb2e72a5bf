// SPDX-License-Identifier: MIT

internal import CTraits

/// The number of a key: 0 to 63.
///
/// Programs on a packet's path name a key by its number, people by its name;
/// the machine's registry knows both (see the `TraitRegistry` module).
public struct TraitID: RawRepresentable, Hashable, Sendable {
  /// 0 to 63.
  public let rawValue: UInt32

  /// Makes a key number, or nil if `rawValue` is more than 63.
  public init?(rawValue: UInt32) {
    guard rawValue < UInt32(TRAITS_KEYS_MAX) else { return nil }
    self.rawValue = rawValue
  }

  /// For numbers that are known to be below 64.
  init(unchecked rawValue: Int) {
    self.rawValue = UInt32(truncatingIfNeeded: rawValue)
  }

  var bit: UInt64 { 1 << UInt64(rawValue) }
}

extension TraitID: CaseIterable {
  /// Every key number there is, 0 to 63 in order.
  public static var allCases: [TraitID] {
    (0..<Int(TRAITS_KEYS_MAX)).map(TraitID.init(unchecked:))
  }
}

extension TraitID: Comparable {
  public static func < (left: TraitID, right: TraitID) -> Bool { left.rawValue < right.rawValue }
}

extension TraitID: CustomStringConvertible {
  public var description: String { String(rawValue) }
}
