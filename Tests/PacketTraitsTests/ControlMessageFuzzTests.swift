// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import SeededRandom
import Testing

@testable import PacketTraits

/// What control data says, found in another way than the parser's: by taking
/// away from an array what has been understood.
private struct Reference: Equatable {
  struct Message: Equatable {
    var level: Int32
    var type: Int32
    var data: [UInt8]
  }

  /// Those up to the end, or up to what is no message.
  var messages: [Message] = []
  var isWellFormed = true
  var values: [UInt32: [UInt8]] = [:]
  /// Of the first thing that is wrong, if one asks for traits.
  var error: TraitError.Code?

  init(_ control: [UInt8]) {
    var rest = control
    var hasTraits = false
    while !rest.isEmpty {
      guard rest.count >= 16, let length = Int(exactly: Self.number(rest, 0, 8)),
        (16...rest.count).contains(length)
      else {
        isWellFormed = false
        fail(.malformedControlData)
        return
      }
      let message = Message(
        level: Int32(truncatingIfNeeded: Self.number(rest, 8, 4)),
        type: Int32(truncatingIfNeeded: Self.number(rest, 12, 4)), data: Array(rest[16..<length]))
      messages.append(message)
      if message.level == 288 && message.type == 1 {
        if hasTraits { fail(.malformedControlData) } else { read(message.data) }
        hasTraits = true
      }
      rest.removeFirst(min(length + (8 - length % 8) % 8, rest.count))
    }
  }

  private mutating func fail(_ code: TraitError.Code) {
    if error == nil { error = code }
  }

  private mutating func read(_ records: [UInt8]) {
    guard records.count % 24 == 0 else { return fail(.malformedRecords) }
    for start in stride(from: 0, to: records.count, by: 24) {
      let record = Array(records[start..<start + 24])
      let key = UInt32(Self.number(record, 0, 4))
      let length = Int(Self.number(record, 4, 2))
      guard key <= 63, [4, 8, 16].contains(length), Self.number(record, 6, 2) == 0,
        values[key] == nil, record[(8 + length)...].allSatisfy({ $0 == 0 })
      else { return fail(.malformedRecords) }
      guard values.values.map(\.count).reduce(length, +) <= 192 else { return fail(.limitExceeded) }
      values[key] = Array(record[8..<8 + length])
    }
  }

  /// A number in native byte order, as these tests' machines have it.
  private static func number(_ bytes: [UInt8], _ start: Int, _ count: Int) -> UInt64 {
    bytes[start..<start + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }
}

/// What the fuzzer begins with, each with what is right for it.
private let corpus: [(name: String, bytes: [UInt8], error: TraitError.Code?, keys: Int)] = {
  func length(_ length: UInt, _ data: [UInt8]) -> [UInt8] {
    withUnsafeBytes(of: length) { Array($0) } + controlMessage(data).dropFirst(8)
  }
  let one = record(key: 0, length: 4, [1, 2, 3, 4])
  let three = one + record(key: 63, length: 16, Array(1...16)) + record(key: 31, length: 8, Array(1...8))
  let other = controlMessage(level: 0, type: 8, [UInt8](repeating: 7, count: 12))
  let odd = controlMessage(level: 41, type: 67, [9])
  func many(_ count: Int, _ length: UInt16) -> [UInt8] {
    (0..<count).flatMap {
      record(key: UInt32($0), length: length, [UInt8](repeating: 0xff, count: Int(length)))
    }
  }
  return [
    ("nothing", [], nil, 0),
    ("one trait", controlMessage(one), nil, 1),
    ("three", controlMessage(three), nil, 3),
    ("three, without padding behind the last", odd + controlMessage(three, isLast: true), nil, 3),
    ("between others", other + controlMessage(three) + odd + other, nil, 3),
    ("48 of 4 bytes", controlMessage(many(48, 4)), nil, 48),
    ("24 of 8 bytes", odd + controlMessage(many(24, 8)), nil, 24),
    ("12 of 16 bytes", controlMessage(many(12, 16)) + other, nil, 12),
    ("49 of 4 bytes", controlMessage(many(49, 4)), .limitExceeded, 48),
    ("25 of 8 bytes", controlMessage(many(25, 8)), .limitExceeded, 24),
    ("13 of 16 bytes", controlMessage(many(13, 16)), .limitExceeded, 12),
    ("no records", controlMessage([]), nil, 0),
    ("a message of nothing", controlMessage(level: 1, type: 1, []), nil, 0),
    ("of the level, not of the type", controlMessage(type: 2, one), nil, 0),
    ("of the type, not of the level", controlMessage(level: 289, one), nil, 0),
    ("twice", controlMessage(one) + controlMessage(one), .malformedControlData, 1),
    ("twice, once of nothing", controlMessage([]) + other + controlMessage(one), .malformedControlData, 0),
    ("length 0", length(0, one), .malformedControlData, 0),
    ("length 15", length(15, one), .malformedControlData, 0),
    ("length 16", length(16, one), .malformedControlData, 0),
    ("length 39", length(39, one), .malformedRecords, 0),
    ("length 41", length(41, one), .malformedControlData, 0),
    ("length 41 of 48", length(41, one) + [UInt8](repeating: 0, count: 8), .malformedRecords, 0),
    ("half of all lengths", length(1 << 63, one), .malformedControlData, 0),
    ("almost that", length(1 << 63 - 1, one), .malformedControlData, 0),
    ("the largest length", length(.max, one), .malformedControlData, 0),
    ("the largest but for alignment", length(.max - 6, one), .malformedControlData, 0),
    ("a length in the wrong half", length(40 << 32, one), .malformedControlData, 0),
    ("15 bytes", Array(controlMessage([]).dropLast()), .malformedControlData, 0),
    ("cut off behind one", controlMessage(one) + Array(other.prefix(9)), .malformedControlData, 1),
    ("key 64", controlMessage(record(key: 64, length: 4, [1])), .malformedRecords, 0),
    ("key 64 behind others", controlMessage(three + record(key: 64, length: 4, [1])), .malformedRecords, 3),
    ("the largest key", controlMessage(record(key: .max, length: 4, [1])), .malformedRecords, 0),
    ("a key twice", controlMessage(three + one), .malformedRecords, 3),
    ("a value of nothing", controlMessage(record(key: 5, length: 0, [])), .malformedRecords, 0),
    ("a value of 2 bytes", controlMessage(record(key: 5, length: 2, [1, 1])), .malformedRecords, 0),
    ("a value of 17 bytes", controlMessage(record(key: 5, length: 17, [1])), .malformedRecords, 0),
    ("flags", controlMessage(record(key: 5, length: 4, flags: 0x8000, [1])), .malformedRecords, 0),
    (
      "behind a value", controlMessage(record(key: 5, length: 8, [UInt8](repeating: 1, count: 9))),
      .malformedRecords, 0
    ),
    (
      "the last byte of all",
      controlMessage(record(key: 5, length: 4, [UInt8](repeating: 0, count: 15) + [1])), .malformedRecords, 0
    ),
  ]
}()

@Suite("Fuzzing control messages")
struct ControlMessageFuzzTests {
  @Test("the corpus is what it says")
  func known() throws {
    for entry in corpus {
      let reference = Reference(entry.bytes)
      #expect(reference.error == entry.error, "\(entry.name)")
      #expect(reference.values.count == entry.keys, "\(entry.name)")
      for shift in 0..<16 { try expectAsReference(entry.bytes, shift: shift, entry.name) }
    }
  }

  /// Counts what came out, and expects no more than that it is right: a wrong
  /// length may trap, which ends the process, with the seed as the last thing
  /// that the runner printed.
  @Test("what is made of the corpus is read as the reference reads it", arguments: SeededGenerator.seeds)
  func mutated(seed: UInt64) throws {
    let iterations = try Self.iterations()
    var generator = SeededGenerator(seed: seed)
    var inputs = corpus.map(\.bytes)
    var seen: Set<[Int]> = []
    var outcomes: [TraitError.Code?: Int] = [:]
    var traitsFound = 0
    for _ in 0..<iterations {
      // Half of them from what was there at first: much of what came later is
      // wrong at its beginning.
      var bytes =
        (Bool.random(using: &generator) ? corpus.randomElement(using: &generator)?.bytes : nil)
        ?? inputs.randomElement(using: &generator) ?? []
      repeat {
        mutate(&bytes, inputs, &generator)
      } while Bool.random(using: &generator)
      if bytes.count > 2048 { bytes.removeLast(bytes.count - 2048) }
      let reference = try expectAsReference(
        bytes, shift: Int.random(in: 0..<16, using: &generator), "seed \(seed)")
      outcomes[reference.error, default: 0] += 1
      if reference.error == nil && !reference.values.isEmpty { traitsFound += 1 }
      // What leads somewhere new is kept, and made more of.
      let place = [
        reference.error.map { ["malformedControlData", "malformedRecords"].firstIndex(of: "\($0)") ?? 2 }
          ?? 3,
        min(reference.messages.count, 6), min(reference.values.count, 50),
        (reference.messages.last?.data.count ?? 0) % 8, reference.isWellFormed ? 1 : 0,
      ]
      if seen.insert(place).inserted && inputs.count < 2000 { inputs.append(bytes) }
    }
    // A fuzzer that ends at the first check finds nothing.
    for code in [nil, .malformedControlData, .malformedRecords, .limitExceeded] as [TraitError.Code?] {
      #expect(outcomes[code, default: 0] > iterations / 200, "\(outcomes), seed \(seed)")
    }
    #expect(traitsFound > iterations / 200, "\(outcomes), seed \(seed)")
  }

  private static func iterations() throws -> Int {
    guard let text = getenv("PACKET_TRAITS_FUZZ").map({ String(cString: $0) }) else { return 5_000 }
    return try #require(
      Int(text).flatMap { $0 >= 1000 ? $0 : nil },
      "PACKET_TRAITS_FUZZ is \"\(text)\", but must be a number of inputs for each seed, 1000 or more")
  }

  private func mutate(
    _ bytes: inout [UInt8], _ inputs: [[UInt8]], _ generator: inout SeededGenerator
  ) {
    func place(_ limit: Int) -> Int { limit == 0 ? 0 : Int.random(in: 0..<limit, using: &generator) }
    func piece() -> Range<Int> {
      let start = place(bytes.count)
      return start..<start + place(min(bytes.count - start, 64) + 1)
    }
    switch Int.random(in: 0..<13, using: &generator) {
    case 0 where !bytes.isEmpty:
      bytes[place(bytes.count)] = UInt8.random(in: .min ... .max, using: &generator)
    case 1 where !bytes.isEmpty: bytes[place(bytes.count)] ^= 1 << UInt8(place(8))
    case 2, 3:
      // A number that somebody may have counted on, where one may be.
      let start = place(bytes.count / 4) * 4
      let left = UInt64(max(bytes.count - start, 0))
      let numbers: [UInt64] = [
        0, 1, 4, 7, 8, 15, 16, 17, 23, 24, 39, 40, 41, 63, 64, 88, 288, left, left &- 1, left + 1, left + 7,
        left &- 7, .max, .max - 7, .max - 15, 1 << 63, 1 << 63 - 1, 1 << 32, 1 << 32 + 16, 1 << 31,
      ]
      let number = numbers.randomElement(using: &generator) ?? 0
      let size = [2, 4, 8].randomElement(using: &generator) ?? 8
      guard start + size <= bytes.count else { return }
      withUnsafeBytes(of: number) { bytes.replaceSubrange(start..<start + size, with: $0.prefix(size)) }
    case 4: bytes.removeSubrange(piece())
    case 5: bytes.insert(contentsOf: bytes[piece()], at: place(bytes.count + 1))
    case 6: bytes.insert(contentsOf: generator.bytes(place(40)), at: place(bytes.count + 1))
    case 7: bytes.removeLast(place(bytes.count))
    case 8, 9:
      // Whole messages behind or before whole messages.
      let other = inputs.randomElement(using: &generator) ?? []
      bytes = Bool.random(using: &generator) ? bytes + other : other + bytes
    case 10, 11:
      // Records that may be right, in a message of their own.
      let records = (0...place(4)).flatMap { _ in
        let length = [4, 8, 16].randomElement(using: &generator) ?? 4
        return record(key: UInt32(place(66)), length: UInt16(length), generator.bytes(length))
      }
      bytes.insert(contentsOf: controlMessage(records), at: place(bytes.count / 8 + 1) * 8)
    default:
      let other = inputs.randomElement(using: &generator) ?? []
      bytes =
        Array(bytes.prefix(place(bytes.count + 1) / 8 * 8)) + other.dropFirst(place(other.count + 1) / 8 * 8)
    }
  }

  @discardableResult
  private func expectAsReference(
    _ bytes: [UInt8], shift: Int, _ comment: String
  ) throws -> Reference {
    // Around it bytes that would make another outcome, if they were read.
    let padded = [UInt8](repeating: 0xa5, count: shift) + bytes + [0xa5, 0xa5]
    let control = padded.span.bytes.extracting(shift..<shift + bytes.count)
    let reference = Reference(bytes)
    // Not an #expect, which is slow for what is done ten thousand times.
    func agree(_ condition: Bool, _ what: String) throws {
      guard !condition else { return }
      try #require(Bool(false), "\(comment): \(what) of [\(hexadecimal(bytes))], \(reference)")
    }

    let messages: [ControlMessage]?
    do { messages = try ControlMessage.all(in: control) } catch {
      try agree(error.code == .malformedControlData, "the error \(error)")
      messages = nil
    }
    try agree((messages != nil) == reference.isWellFormed, "that there are messages")
    if let messages {
      try agree(messages.count == reference.messages.count, "the number \(messages.count)")
      var again = ControlData()
      for (message, right) in zip(messages, reference.messages) {
        try agree(message.level.rawValue == right.level, "a level")
        try agree(message.type.rawValue == right.type, "a type")
        let data = control.extracting(message.dataRange)
        try agree(data.array == right.data, "the data at \(message.dataRange)")
        again.append(level: message.level, type: message.type, data: data)
      }
      // Written anew they are the same; and the same bytes, but for padding.
      try agree(Reference(again.bytes) == reference, "what is written anew")
    }

    do {
      let traits = try Traits(controlMessages: control)
      try agree(reference.error == nil, "that there are traits")
      try agree(
        Dictionary(uniqueKeysWithValues: traits.map { ($0.id.rawValue, $0.bytes) }) == reference.values,
        "the traits \(traits)")
      try agree(try Traits(records: traits.records.span.bytes) == traits, "the records")
    } catch let error as TraitError {
      try agree(error.code == reference.error, "the error \(error)")
    }
    return reference
  }
}
