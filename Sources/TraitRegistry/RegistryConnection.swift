// SPDX-License-Identifier: MIT

internal import CTraits
public import PacketTraits
internal import SystemPackage

/// A connection to the machine's registry of keys, owned: it cannot be copied,
/// and is closed when the variable that holds it goes out of scope.
///
/// ```swift
/// var registry = try RegistryConnection()
/// let flow = try registry.key(named: "flow", as: UInt64.self)
/// ```
///
/// There is one registry per machine, seen alike from every network namespace.
/// Anybody may look at it; to change it takes `CAP_NET_ADMIN` in the initial
/// user namespace.
///
/// Beside what they name, all functions throw `systemCall` if the socket fails,
/// and `malformedReply` if the kernel's answer is not what the protocol says.
public struct RegistryConnection: ~Copyable, @unchecked Sendable {
  // Unchecked, as the socket is a C pointer. It has one owner, who alone can
  // call the functions, all of which are mutating.
  private var socket: GenericNetlinkSocket
  private let family: UInt16

  /// Connects to the registry.
  ///
  /// The corresponding netlink family is `traits`.
  ///
  /// - Throws: ``/PacketTraits/TraitError/Code/unsupportedKernel`` if this
  ///   kernel has no packet traits.
  public init() throws(TraitError) {
    var socket = try GenericNetlinkSocket()
    guard let family = try socket.family(named: TRAITS_FAMILY_NAME) else {
      throw TraitError(.unsupportedKernel, "this kernel has no packet traits")
    }
    self.socket = socket
    self.family = family.id
  }

  // MARK: Changing

  /// Registers a key.
  ///
  /// The corresponding netlink operation is `key-new`.
  ///
  /// - Parameters:
  ///   - name: 1 to 31 of `a-z 0-9 . _ -`, not in use.
  ///   - size: The length of the key's values.
  ///   - merge: What becomes of the values when packets become one.
  ///   - id: The number to be had; one that was never used, or last under the
  ///     same name. nil for the one that has been free for longest.
  ///   - flags: Who may use the key, and where it goes.
  /// - Throws: `keyExists` if the name or number is taken, `registryFull` if
  ///   all 64 keys are in use, `invalidArgument` if the name is none or the
  ///   number was another key's, or the merge policy is not one for values of this
  ///   size, `notPermitted`.
  @discardableResult
  public mutating func add(
    _ name: String, size: TraitSize, merge: MergePolicy, id: TraitID? = nil, flags: KeyFlags = []
  ) throws(TraitError) -> RegisteredKey {
    try KeyName.check(name)
    var attributes: [GenericRequest.Attribute] = [
      .init(Int(TRAITS_A_KEY_NAME), name),
      .init(Int(TRAITS_A_KEY_SIZE), UInt32(size.rawValue)),
      .init(Int(TRAITS_A_KEY_FLAGS), flags.rawValue),
      .init(Int(TRAITS_A_KEY_MERGE), merge.rawValue),
    ]
    if let id { attributes.append(.init(Int(TRAITS_A_KEY_ID), id.rawValue)) }
    return try key(
      TRAITS_CMD_KEY_NEW, attributes, "key \"\(name)\" cannot be registered")
  }

  /// Registers a key whose values are of type `Value`.
  ///
  /// - Throws: As ``add(_:size:merge:id:flags:)``, which see.
  public mutating func add<Value: TraitValue>(
    _ name: String, as type: Value.Type, merge: MergePolicy, id: TraitID? = nil,
    flags: KeyFlags = []
  ) throws(TraitError) -> TraitKey<Value> {
    TraitKey(try add(name, size: Value.traitSize, merge: merge, id: id, flags: flags).id)
  }

  /// Removes a key. With it end its values on packets in flight, and its place
  /// in every socket's set of keys.
  ///
  /// The corresponding netlink operation is `key-del`.
  ///
  /// - Returns: The key that was removed.
  /// - Throws: `noSuchKey`, `notPermitted`.
  @discardableResult
  public mutating func remove(_ id: TraitID) throws(TraitError) -> RegisteredKey {
    try key(
      TRAITS_CMD_KEY_DEL, [.init(Int(TRAITS_A_KEY_ID), id.rawValue)],
      "key \(id) cannot be removed")
  }

  /// Removes a key; see ``remove(_:)``.
  ///
  /// - Throws: `noSuchKey`, `notPermitted`, `invalidArgument` if no key can have
  ///   this name.
  @discardableResult
  public mutating func remove(named name: String) throws(TraitError) -> RegisteredKey {
    try KeyName.check(name)
    return try key(
      TRAITS_CMD_KEY_DEL, [.init(Int(TRAITS_A_KEY_NAME), name)],
      "key \"\(name)\" cannot be removed")
  }

  // MARK: Looking up

  /// All keys, in order of their numbers.
  ///
  /// The corresponding netlink operation is a dump by `key-get`.
  ///
  /// - Throws: `registryChanging` if keys came or went each of 100 times that
  ///   they were listed.
  public mutating func keys() throws(TraitError) -> [RegisteredKey] {
    let request = GenericRequest(
      command: Int(TRAITS_CMD_KEY_GET), version: Int(TRAITS_FAMILY_VERSION), isDump: true)
    let result = try socket.exchange(request, family: family) { bytes throws(TraitError) in
      try RegisteredKey(attributes: bytes)
    }
    return try Self.unwrap(result, "the keys cannot be listed")
  }

  /// The key with this number.
  ///
  /// The corresponding netlink operation is `key-get`.
  ///
  /// - Throws: `noSuchKey`.
  public mutating func key(_ id: TraitID) throws(TraitError) -> RegisteredKey {
    try key(
      TRAITS_CMD_KEY_GET, [.init(Int(TRAITS_A_KEY_ID), id.rawValue)],
      "key \(id) cannot be looked up")
  }

  /// The key with this name.
  ///
  /// The corresponding netlink operation is `key-get`.
  ///
  /// - Throws: `noSuchKey`, `invalidArgument` if no key can have this name.
  public mutating func key(named name: String) throws(TraitError) -> RegisteredKey {
    try KeyName.check(name)
    return try key(
      TRAITS_CMD_KEY_GET, [.init(Int(TRAITS_A_KEY_NAME), name)],
      "key \"\(name)\" cannot be looked up")
  }

  /// The key with this name, whose values are of type `Value`.
  ///
  /// - Throws: `noSuchKey`, `sizeMismatch` if the key was registered with
  ///   another size, `invalidArgument` if no key can have this name.
  public mutating func key<Value: TraitValue>(
    named name: String, as type: Value.Type
  ) throws(TraitError) -> TraitKey<Value> {
    try key(named: name).typed()
  }

  /// What happened to stores since the machine was started.
  ///
  /// The corresponding netlink operation is `stats-get`.
  ///
  /// - Throws: As all functions do.
  public mutating func statistics() throws(TraitError) -> TraitStatistics {
    let request = GenericRequest(
      command: Int(TRAITS_CMD_STATS_GET), version: Int(TRAITS_FAMILY_VERSION))
    let result = try socket.exchange(request, family: family) { bytes throws(TraitError) in
      try TraitStatistics(attributes: bytes)
    }
    let what = "the statistics cannot be read"
    guard let statistics = try Self.unwrap(result, what).first else {
      throw TraitError(.malformedReply, "\(what): the kernel's reply is empty")
    }
    return statistics
  }

  /// What happened to the values of each key since it was registered, in order of
  /// the keys' numbers.
  ///
  /// The corresponding netlink operation is a dump by `key-stats-get`.
  ///
  /// - Throws: As ``keys()``.
  public mutating func keyStatistics() throws(TraitError) -> [KeyStatistics] {
    let request = GenericRequest(
      command: Int(TRAITS_CMD_KEY_STATS_GET), version: Int(TRAITS_FAMILY_VERSION), isDump: true)
    let result = try socket.exchange(request, family: family) { bytes throws(TraitError) in
      try KeyStatistics(attributes: bytes)
    }
    return try Self.unwrap(result, "the statistics of the keys cannot be read")
  }

  /// What happened to the values of a key since it was registered.
  ///
  /// The corresponding netlink operation is `key-stats-get`.
  ///
  /// - Throws: `noSuchKey`.
  public mutating func statistics(of id: TraitID) throws(TraitError) -> KeyStatistics {
    let what = "the statistics of key \(id) cannot be read"
    let request = GenericRequest(
      command: Int(TRAITS_CMD_KEY_STATS_GET), version: Int(TRAITS_FAMILY_VERSION),
      attributes: [.init(Int(TRAITS_A_KEY_STATS_ID), id.rawValue)])
    let result = try socket.exchange(request, family: family) { bytes throws(TraitError) in
      try KeyStatistics(attributes: bytes)
    }
    guard let statistics = try Self.unwrap(result, what).first else {
      throw TraitError(.malformedReply, "\(what): the kernel's reply is empty")
    }
    return statistics
  }

  // MARK: -

  /// A request whose reply is one key. Attributes are not checked here.
  mutating func key(
    _ command: Int, _ attributes: [GenericRequest.Attribute], _ what: String
  ) throws(TraitError) -> RegisteredKey {
    let request = GenericRequest(
      command: command, version: Int(TRAITS_FAMILY_VERSION), attributes: attributes)
    let result = try socket.exchange(request, family: family) { bytes throws(TraitError) in
      try RegisteredKey(attributes: bytes)
    }
    guard let key = try Self.unwrap(result, what).first else {
      throw TraitError(.malformedReply, "\(what): the kernel's reply is empty")
    }
    return key
  }

  private static func unwrap<Item>(
    _ result: Result<[Item], NetlinkRefusal>, _ what: String
  ) throws(TraitError) -> [Item] {
    switch result {
    case .success(let items): return items
    case .failure(let refusal): throw TraitError(refusal, what)
    }
  }
}

extension TraitError {
  init(_ refusal: NetlinkRefusal, _ what: String) {
    var message = what
    let names = [
      Int(TRAITS_A_KEY_ID): "id", Int(TRAITS_A_KEY_NAME): "name",
      Int(TRAITS_A_KEY_SIZE): "size", Int(TRAITS_A_KEY_FLAGS): "flags",
      Int(TRAITS_A_KEY_MERGE): "merge",
    ]
    if let attribute = refusal.attribute {
      message += ", because of its " + (names[Int(attribute)] ?? "attribute \(attribute)")
    }
    if let text = refusal.text { message += ": \(text)" }

    let code: Code
    switch refusal.error {
    case .notPermitted:
      code = .notPermitted
      message += ": CAP_NET_ADMIN in the initial user namespace is needed"
    case .fileExists: code = .keyExists
    case .noSpace: code = .registryFull
    case .invalidArgument, .outOfRange: code = .invalidArgument
    case .noSuchFileOrDirectory: code = .noSuchKey
    default: code = .systemCall
    }
    self.init(code, message, underlyingError: refusal.error)
  }
}
