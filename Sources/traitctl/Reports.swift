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

  init(_ key: RegisteredKey) {
    id = key.id.rawValue
    name = key.name
    size = key.size.rawValue
    openRead = key.flags.contains(.openRead)
    openWrite = key.flags.contains(.openWrite)
    crossNetns = key.flags.contains(.crossesNetworkNamespaces)
  }

  enum CodingKeys: String, CodingKey {
    case id, name, size
    case openRead = "open_read"
    case openWrite = "open_write"
    case crossNetns = "cross_netns"
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
  var source: String
  /// Of the datagram's payload, in bytes.
  var length: Int
  var traits: [TraitReport]
  var traitsTruncated: Bool

  enum CodingKeys: String, CodingKey {
    case source, length, traits
    case traitsTruncated = "traits_truncated"
  }

  var text: String {
    var words = ["\(source)", "length \(length)"]
    words += traits.map(\.text)
    if traitsTruncated { words.append("(traits truncated)") }
    return words.joined(separator: "  ")
  }
}

struct SentReport: Encodable {
  var destination: String
  /// Of the datagram's payload, in bytes.
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
