// SPDX-License-Identifier: MIT

/// A key whose values have a type, so that their width is known when a program
/// is compiled.
///
/// ```swift
/// let flow = TraitKey<UInt64>(id)
/// if let value = try datagram.traits.value(for: flow) { ... }
/// ```
///
/// A key that is looked up by its name in the registry is checked there: it
/// must have been registered with the size of `Value`.
public struct TraitKey<Value: TraitValue>: Hashable, Sendable {
  /// The key's number.
  public let id: TraitID

  /// Names the key with number `id`, whose values are of type `Value`.
  public init(_ id: TraitID) {
    self.id = id
  }

  /// How many bytes a value has.
  public var size: TraitSize { Value.traitSize }
}

extension TraitKey: CustomStringConvertible {
  public var description: String { id.description }
}
