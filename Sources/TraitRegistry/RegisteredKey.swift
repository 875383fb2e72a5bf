// SPDX-License-Identifier: MIT

internal import CTraits
public import PacketTraits

/// Who may use a key, and where it goes: flags that it is registered with.
///
/// The corresponding C type is `enum traits_key_flags`.
public struct KeyFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// Sockets may receive the key without privilege.
  ///
  /// The corresponding C constant is `TRAITS_KEY_FLAGS_OPEN_READ`.
  public static var openRead: KeyFlags { KeyFlags(TRAITS_KEY_FLAGS_OPEN_READ) }

  /// Sockets may send the key without privilege.
  ///
  /// The corresponding C constant is `TRAITS_KEY_FLAGS_OPEN_WRITE`.
  public static var openWrite: KeyFlags { KeyFlags(TRAITS_KEY_FLAGS_OPEN_WRITE) }

  /// The value stays on a packet that enters another network namespace.
  ///
  /// The corresponding C constant is `TRAITS_KEY_FLAGS_CROSS_NETNS`.
  public static var crossesNetworkNamespaces: KeyFlags { KeyFlags(TRAITS_KEY_FLAGS_CROSS_NETNS) }

  /// The key is removed when the ``RegistryConnection`` that registered it is
  /// closed, in whatever way the program ends.
  ///
  /// The corresponding C constant is `TRAITS_KEY_FLAGS_OWNED`.
  public static var owned: KeyFlags { KeyFlags(TRAITS_KEY_FLAGS_OWNED) }

  private init(_ flag: traits_key_flags) { rawValue = UInt32(flag.rawValue) }
}

/// A key as the registry has it.
public struct RegisteredKey: Hashable, Sendable {
  /// The key's number, the same in every network namespace.
  public let id: TraitID
  /// The key's name, unique on this machine.
  public let name: String
  /// The length of the key's values.
  public let size: TraitSize
  /// Who may use the key, and where it goes.
  public let flags: KeyFlags
  /// What becomes of the values when packets become one.
  public let merge: MergePolicy

  /// This key, with values of type `Value`.
  ///
  /// - Throws: `TraitError.Code.sizeMismatch` if the key was registered with
  ///   another size.
  public func typed<Value: TraitValue>(
    as type: Value.Type = Value.self
  ) throws(TraitError) -> TraitKey<Value> {
    guard size == Value.traitSize else {
      throw TraitError(
        .sizeMismatch,
        "key \"\(name)\" is registered with a size of \(size) bytes, "
          + "not the \(Value.traitSize) of \(Value.self)")
    }
    return TraitKey(id)
  }
}

/// What happened to stores since the machine was started. A store is all
/// traits of one packet.
public struct TraitStatistics: Hashable, Sendable {
  /// Stores begun, by the first set on a packet.
  public let set: UInt64
  /// Stores copied to another place in memory, those that are ``evicted`` apart.
  public let copied: UInt64
  /// Stores given up, as an XDP program or a driver took their room.
  public let discarded: UInt64
  /// Stores that lost at least one value on entry to another network namespace.
  public let scrubbed: UInt64
  /// Pieces of memory allocated for stores that are not in a packet's headroom.
  public let allocated: UInt64
  /// Stores moved from a packet's headroom to memory of their own.
  public let evicted: UInt64
  /// Stores lost for lack of memory, or in part for lack of room beside another one.
  public let lost: UInt64

  // Not public, as there will be more counters. One that is added must be optional: the
  // kernels before do not give it, and none is not 0.
  package init(
    set: UInt64, copied: UInt64, discarded: UInt64, scrubbed: UInt64, allocated: UInt64,
    evicted: UInt64, lost: UInt64
  ) {
    self.set = set
    self.copied = copied
    self.discarded = discarded
    self.scrubbed = scrubbed
    self.allocated = allocated
    self.evicted = evicted
    self.lost = lost
  }
}

/// What happened to the values of one key since it was registered.
public struct KeyStatistics: Hashable, Sendable {
  /// The key's number.
  public let id: TraitID
  /// The key's name.
  public let name: String
  /// Values set, by programs and by sockets. What a socket gives to all its packets
  /// counts once for each of them.
  public let set: UInt64
  /// Values read by programs and received by sockets.
  public let read: UInt64
  /// How often packets became one that has no value, though one of them had one.
  public let dropped: UInt64
  /// Values removed on entry to another network namespace.
  public let scrubbed: UInt64

  // Not public, as that of TraitStatistics is not.
  package init(
    id: TraitID, name: String, set: UInt64, read: UInt64, dropped: UInt64, scrubbed: UInt64
  ) {
    self.id = id
    self.name = name
    self.set = set
    self.read = read
    self.dropped = dropped
    self.scrubbed = scrubbed
  }
}

/// What a name of a key may be. The kernel enforces the same; to check it first
/// gives a message that says which character is wrong.
package enum KeyName {
  package static func check(_ name: String) throws(TraitError) {
    let rule = "a name is 1 to \(TRAITS_NAME_MAX) of a-z, 0-9, '.', '_' and '-'"
    guard !name.isEmpty else {
      throw TraitError(.invalidArgument, "the name is empty: \(rule)")
    }
    let wrong = name.unicodeScalars.first {
      switch $0 {
      case "a"..."z", "0"..."9", ".", "_", "-": false
      default: true
      }
    }
    if let wrong {
      throw TraitError(
        .invalidArgument,
        "the name \(quoted(name)) has \(wrong.escaped(asASCII: true)) in it: \(rule)")
    }
    guard name.utf8.count <= Int(TRAITS_NAME_MAX) else {
      throw TraitError(
        .invalidArgument, "the name \(quoted(name)) has \(name.utf8.count) characters: \(rule)")
    }
  }

  /// Fit for a terminal, whatever is in it.
  static func quoted(_ name: String) -> String {
    "\"" + name.unicodeScalars.map { $0.escaped(asASCII: true) }.joined() + "\""
  }
}
