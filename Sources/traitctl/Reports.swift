// SPDX-License-Identifier: MIT

internal import FoundationEssentials
internal import PacketTraits
internal import TraitRegistry

// What --json prints.

struct KeyReport: Encodable {
  var id: UInt32
  var name: String
  var size: Int
  var openRead: Bool
  var openWrite: Bool
  var crossNetns: Bool
  var owned: Bool
  /// Flags of a later kernel; 0 for none.
  var otherFlags: UInt32
  var merge: String

  init(_ key: RegisteredKey) {
    id = key.id.rawValue
    name = key.name
    size = key.size.rawValue
    openRead = key.flags.contains(.openRead)
    openWrite = key.flags.contains(.openWrite)
    crossNetns = key.flags.contains(.crossesNetworkNamespaces)
    owned = key.flags.contains(.owned)
    otherFlags =
      key.flags.subtracting([.openRead, .openWrite, .crossesNetworkNamespaces, .owned]).rawValue
    merge = key.merge.description
  }

  var flagsText: String {
    let names = [
      openRead ? "open-read" : nil, openWrite ? "open-write" : nil, crossNetns ? "cross-netns" : nil,
      owned ? "owned" : nil, otherFlags != 0 ? "0x" + String(otherFlags, radix: 16) : nil,
    ].compactMap(\.self)
    return names.isEmpty ? "-" : names.joined(separator: ",")
  }

  var text: String { "\(id) \(name) \(size) \(merge) \(flagsText)" }

  enum CodingKeys: String, CodingKey {
    case id, name, size, owned, merge
    case openRead = "open_read"
    case openWrite = "open_write"
    case crossNetns = "cross_netns"
    case otherFlags = "other_flags"
  }
}

struct ChangeReport: Encodable {
  /// "all", "add" or "del".
  var change: String
  var keys: [KeyReport]

  init(_ change: RegistryChange) {
    switch change {
    case .keys(let all): (self.change, keys) = ("all", all.map(KeyReport.init))
    case .added(let key): (self.change, keys) = ("add", [KeyReport(key)])
    case .removed(let key): (self.change, keys) = ("del", [KeyReport(key)])
    }
  }

  var lines: [String] {
    change == "all"
      ? ["all \(keys.count)"] + keys.map { "has \($0.text)" } : keys.map { "\(change) \($0.text)" }
  }
}

struct KeyStatisticsReport: Encodable {
  var id: UInt32
  var name: String
  var set: UInt64
  var read: UInt64
  var dropped: UInt64
  var scrubbed: UInt64

  init(_ statistics: KeyStatistics) {
    id = statistics.id.rawValue
    name = statistics.name
    set = statistics.set
    read = statistics.read
    dropped = statistics.dropped
    scrubbed = statistics.scrubbed
  }
}

struct StatisticsReport: Encodable {
  var set: UInt64
  var copied: UInt64
  var discarded: UInt64
  var scrubbed: UInt64
  var allocated: UInt64
  var evicted: UInt64
  var lost: UInt64

  init(_ statistics: TraitStatistics) {
    set = statistics.set
    copied = statistics.copied
    discarded = statistics.discarded
    scrubbed = statistics.scrubbed
    allocated = statistics.allocated
    evicted = statistics.evicted
    lost = statistics.lost
  }
}

struct TraitReport: Encodable {
  var id: UInt32
  var name: String
  var size: Int
  /// The value as an unsigned number, for keys of 4 and 8 bytes.
  var value: UInt64?
  /// The value's bytes in hexadecimal, in the order in memory.
  var bytes: String

  init(_ element: Traits.Element, name: String) throws {
    id = element.id.rawValue
    self.name = name
    size = element.size.rawValue
    value =
      switch element.size {
      case .bytes4: try UInt64(element.value(as: UInt32.self))
      case .bytes8: try element.value(as: UInt64.self)
      default: nil
      }
    bytes = hexadecimal(element.bytes)
  }

  /// As `name=17`, or `name=` and hexadecimal bytes for those of 16.
  var text: String { "\(name)=" + (value.map(String.init) ?? bytes) }
}

struct DatagramReport: Encodable {
  /// nil if the kernel gave none, in JSON null.
  var source: String?
  /// Of the datagram's payload, in bytes.
  var length: Int
  var traits: [TraitReport]
  var traitsTruncated: Bool

  enum CodingKeys: String, CodingKey {
    case source, length, traits
    case traitsTruncated = "traits_truncated"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    // Always there, null or not.
    try container.encode(source, forKey: .source)
    try container.encode(length, forKey: .length)
    try container.encode(traits, forKey: .traits)
    try container.encode(traitsTruncated, forKey: .traitsTruncated)
  }

  var text: String {
    var words = [source ?? "unknown", "length \(length)"]
    words += traits.map(\.text)
    if traitsTruncated { words.append("(traits truncated)") }
    return words.joined(separator: "  ")
  }
}

/// Something that happened to a connection, as listen --tcp prints it.
protocol ConnectionEvent: Encodable {
  /// A line of text.
  var text: String { get }
}

struct ConnectionReport: ConnectionEvent {
  let event = "connection"
  var peer: String
  /// Those of the SYN; nil if they are not kept, in JSON null.
  var synTraits: [TraitReport]?

  enum CodingKeys: String, CodingKey {
    case event, peer
    case synTraits = "syn_traits"
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(event, forKey: .event)
    try container.encode(peer, forKey: .peer)
    // Always there, null or not.
    try container.encode(synTraits, forKey: .synTraits)
  }

  var text: String {
    ([peer, "connected"] + (synTraits ?? []).map(\.text)).joined(separator: "  ")
  }
}

struct ReadReport: ConnectionEvent {
  let event = "read"
  var peer: String
  /// Of what was read, in bytes.
  var length: Int
  var traits: [TraitReport]
  var traitsTruncated: Bool

  enum CodingKeys: String, CodingKey {
    case event, peer, length, traits
    case traitsTruncated = "traits_truncated"
  }

  var text: String {
    var words = [peer, "length \(length)"]
    words += traits.map(\.text)
    if traitsTruncated { words.append("(traits truncated)") }
    return words.joined(separator: "  ")
  }
}

struct ConnectionEndReport: ConnectionEvent {
  let event = "end"
  var peer: String
  /// nil if the peer ended it, in JSON null.
  var error: String?

  enum CodingKeys: String, CodingKey { case event, peer, error }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(event, forKey: .event)
    try container.encode(peer, forKey: .peer)
    // Always there, null or not.
    try container.encode(error, forKey: .error)
  }

  var text: String { "\(peer)  ended" + (error.map { ": \($0)" } ?? "") }
}

struct SentReport: Encodable {
  var destination: String
  /// Of the datagram's payload, or of what was written to a connection, in bytes.
  var length: Int
  var traits: [TraitReport]

  var text: String {
    (["\(destination)", "length \(length)"] + traits.map(\.text)).joined(separator: "  ")
  }
}

func printJSON(_ value: some Encodable) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
  try printLine(String(decoding: try encoder.encode(value), as: UTF8.self))
}
