// SPDX-License-Identifier: MIT

internal import CTraits

/// What becomes of a key's values when packets become one: a policy that each
/// key is registered with.
///
/// Packets are merged when they are received (GRO), and fragments when they are
/// put together again. The kernel then applies the policy of each key, in order
/// of the data and not of arrival. However packets were batched, split and merged
/// again, the outcome is the same.
///
/// There may be more policies in later kernels: one that this package does not know
/// has a number for a name.
///
/// The corresponding C type is `enum traits_merge`.
public struct MergePolicy: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Packets whose values differ, or of which one has none, are not merged.
  /// Fragments cannot stay apart: a value is kept only if all of them have it, with
  /// equal values.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_EXACT`.
  public static var exact: MergePolicy { MergePolicy(TRAITS_MERGE_EXACT) }

  /// A value is kept only if all packets have it, with equal values. Datagrams that
  /// would lose it by that are not merged, as they will be taken apart again.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_DROP`.
  public static var drop: MergePolicy { MergePolicy(TRAITS_MERGE_DROP) }

  /// The value of the first packet that has one.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_FIRST`.
  public static var first: MergePolicy { MergePolicy(TRAITS_MERGE_FIRST) }

  /// The value of the last packet that has one.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_LAST`.
  public static var last: MergePolicy { MergePolicy(TRAITS_MERGE_LAST) }

  /// The smallest value, as unsigned integers in native byte order. For keys of 4
  /// and 8 bytes, as the policies that follow.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_MIN`.
  public static var minimum: MergePolicy { MergePolicy(TRAITS_MERGE_MIN) }

  /// The largest value.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_MAX`.
  public static var maximum: MergePolicy { MergePolicy(TRAITS_MERGE_MAX) }

  /// All bits that are set in one of the values.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_OR`.
  public static var bitwiseOr: MergePolicy { MergePolicy(TRAITS_MERGE_OR) }

  /// All bits that are set in all of the values.
  ///
  /// The corresponding C constant is `TRAITS_MERGE_AND`.
  public static var bitwiseAnd: MergePolicy { MergePolicy(TRAITS_MERGE_AND) }

  private init(_ merge: traits_merge) { rawValue = UInt32(merge.rawValue) }
}

extension MergePolicy: CaseIterable {
  /// Those that this package knows.
  public static var allCases: [MergePolicy] {
    [.exact, .drop, .first, .last, .minimum, .maximum, .bitwiseOr, .bitwiseAnd]
  }
}

extension MergePolicy: CustomStringConvertible {
  private static let names = ["exact", "drop", "first", "last", "min", "max", "or", "and"]

  /// As the registry's specification names it (`Documentation/netlink/specs/traits.yaml`),
  /// or its number if this package does not know it.
  public var description: String {
    rawValue < UInt32(Self.names.count) ? Self.names[Int(rawValue)] : "\(rawValue)"
  }

  /// The policy with this name, or nil if this package knows none.
  ///
  /// - Parameter name: One of the names in the registry's specification.
  public init?(name: String) {
    guard let index = Self.names.firstIndex(of: name) else { return nil }
    self.init(rawValue: UInt32(index))
  }
}
