// SPDX-License-Identifier: MIT

/// A set of keys: bit k stands for key k.
public struct TraitMask: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64

  public init(rawValue: UInt64) {
    self.rawValue = rawValue
  }

  /// The set of one key.
  public init(_ id: TraitID) {
    rawValue = id.bit
  }

  /// The set of one key.
  public init<Value>(_ key: TraitKey<Value>) {
    self.init(key.id)
  }

  /// The set of these keys.
  public init(_ ids: some Sequence<TraitID>) {
    rawValue = ids.reduce(0) { $0 | $1.bit }
  }

  /// All 64 keys.
  public static var all: TraitMask { TraitMask(rawValue: .max) }

  /// How many keys are in the set.
  public var count: Int { rawValue.nonzeroBitCount }

  /// The keys in the set, in order.
  public var ids: [TraitID] { TraitID.allCases.filter(contains) }

  /// Whether the key is in the set.
  public func contains(_ id: TraitID) -> Bool {
    rawValue & id.bit != 0
  }

  /// Whether the key is in the set.
  public func contains<Value>(_ key: TraitKey<Value>) -> Bool {
    contains(key.id)
  }
}

extension TraitMask: CustomStringConvertible {
  public var description: String {
    "[" + ids.map(\.description).joined(separator: ", ") + "]"
  }
}
