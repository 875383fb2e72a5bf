// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import SeededRandom
import Testing

@testable import PacketTraits

/// A control message as the kernel lays it out.
func controlMessage(
  level: Int32 = SOL_TRAITS, type: Int32 = SCM_TRAITS, _ data: [UInt8], isLast: Bool = false
) -> [UInt8] {
  var bytes = withUnsafeBytes(of: ctraits_cmsg_len(data.count)) { Array($0) }
  withUnsafeBytes(of: level) { bytes += $0 }
  withUnsafeBytes(of: type) { bytes += $0 }
  bytes += data
  // The last message of a buffer may lack its padding.
  if !isLast { bytes += [UInt8](repeating: 0xee, count: ctraits_cmsg_space(data.count) - bytes.count) }
  return bytes
}

func record(key: UInt32, length: UInt16, flags: UInt16 = 0, _ value: [UInt8]) -> [UInt8] {
  var bytes = withUnsafeBytes(of: key) { Array($0) }
  withUnsafeBytes(of: length) { bytes += $0 }
  withUnsafeBytes(of: flags) { bytes += $0 }
  return bytes + value + [UInt8](repeating: 0, count: 16 - value.count)
}

@Suite("Control messages")
struct ControlMessageTests {
  @Test("are found among others, at any address")
  func roundTrip() throws {
    var traits = Traits()
    try traits.set(0xdead_beef, for: TraitKey<UInt32>(id(3)))
    try traits.set(42, for: TraitKey<UInt64>(id(9)))
    try traits.set(1 << 127, for: TraitKey<UInt128>(id(63)))

    for shift in 0..<17 {
      for isLast in [false, true] {
        let bytes =
          [UInt8](repeating: 0, count: shift)
          + controlMessage(level: 0, type: 8, [UInt8](repeating: 1, count: 12))
          + controlMessage(level: 0, type: 1, [7])
          + controlMessage(traits.records, isLast: isLast)
        let control = bytes.span.bytes.extracting(shift..<bytes.count)
        let messages = try ControlMessage.all(in: control)
        #expect(messages.map(\.level) == [.ipv4, .ipv4, .traits])
        #expect(messages.map(\.type.rawValue) == [8, 1, SCM_TRAITS])
        #expect(messages.map(\.dataRange) == [16..<28, 48..<49, 72..<144])
        #expect(messages.map(\.isTraits) == [false, false, true])
        #expect(try Traits(controlMessages: control) == traits)
      }
    }
  }

  @Test("without traits give none")
  func absent() throws {
    let other = controlMessage(level: 0, type: 8, [1, 2, 3])
    #expect(try Traits(controlMessages: other.span.bytes).isEmpty)
    #expect(try Traits.find(in: other.span.bytes) == nil)
    let none: [UInt8] = []
    #expect(try Traits.find(in: none.span.bytes) == nil)
    // Of the same level, but of another type; and the other way round.
    for wrong in [
      controlMessage(type: 2, record(key: 0, length: 4, [1, 2, 3, 4])),
      controlMessage(level: 1, record(key: 0, length: 4, [1, 2, 3, 4])),
    ] {
      #expect(try Traits.find(in: wrong.span.bytes) == nil)
    }
  }

  @Test("that state a wrong length are refused", arguments: [0, 1, 15, 65, 1000, .max] as [UInt])
  func wrongLength(length: UInt) {
    var bytes = controlMessage(record(key: 0, length: 4, [1, 2, 3, 4]))
    bytes.replaceSubrange(0..<8, with: withUnsafeBytes(of: length) { Array($0) })
    let error = #expect(throws: TraitError.self) { try Traits(controlMessages: bytes.span.bytes) }
    #expect(error?.code == .malformedControlData)
    #expect(error?.message.contains("\(length) bytes") == true)
  }

  @Test("that are cut off are refused", arguments: 1..<40)
  func cutOff(count: Int) {
    let bytes = Array(controlMessage(record(key: 0, length: 4, [1, 2, 3, 4])).prefix(count))
    let error = #expect(throws: TraitError.self) { try Traits(controlMessages: bytes.span.bytes) }
    #expect(error?.code == .malformedControlData)
  }

  @Test("with traits may be there once only")
  func twice() {
    let one = controlMessage(record(key: 0, length: 4, [1, 2, 3, 4]))
    let bytes = one + one
    let error = #expect(throws: TraitError.self) { try Traits(controlMessages: bytes.span.bytes) }
    #expect(error?.code == .malformedControlData)
  }

  @Test("of random bytes never trap", arguments: SeededGenerator.seeds)
  func random(seed: UInt64) {
    var generator = SeededGenerator(seed: seed)
    var outcomes: [TraitError.Code?: Int] = [:]
    for _ in 0..<5_000 {
      let shift = Int.random(in: 0..<8, using: &generator)
      var bytes = generator.bytes(shift + Int.random(in: 0..<120, using: &generator))
      // Random lengths are nearly always absurd: make some of them plausible.
      if bytes.count >= shift + 8, Int.random(in: 0..<4, using: &generator) != 0 {
        let length = UInt.random(in: 0..<140, using: &generator)
        bytes.replaceSubrange(shift..<shift + 8, with: withUnsafeBytes(of: length) { Array($0) })
      }
      outcomes[parse(bytes, from: shift), default: 0] += 1
    }
    #expect(outcomes[nil, default: 0] > 25, "\(outcomes), seed \(seed)")
    #expect(outcomes[.malformedControlData, default: 0] > 25, "\(outcomes), seed \(seed)")
  }

  @Test("of damaged bytes never trap", arguments: SeededGenerator.seeds)
  func damaged(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    var traits = Traits()
    for number in [1, 2, 30, 31, 63] as [UInt32] {
      try traits.setBytes(
        generator.bytes([4, 8, 16].randomElement(using: &generator)!).span.bytes, for: id(number))
    }
    let valid =
      controlMessage(level: 0, type: 8, [UInt8](repeating: 1, count: 12))
      + controlMessage(traits.records)
    var outcomes: [TraitError.Code?: Int] = [:]
    for _ in 0..<5_000 {
      var bytes = valid
      for _ in 0...Int.random(in: 0..<3, using: &generator) {
        bytes[Int.random(in: 0..<bytes.count, using: &generator)] =
          UInt8.random(in: .min ... .max, using: &generator)
      }
      if Int.random(in: 0..<4, using: &generator) == 0 {
        bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator))
      }
      outcomes[parse(bytes, from: 0), default: 0] += 1
    }
    for code in [nil, .malformedControlData, .malformedRecords] as [TraitError.Code?] {
      #expect(outcomes[code, default: 0] > 25, "\(outcomes), seed \(seed)")
    }
  }

  private func parse(_ bytes: [UInt8], from start: Int) -> TraitError.Code? {
    let control = bytes.span.bytes.extracting(start..<bytes.count)
    do {
      for message in try ControlMessage.all(in: control) {
        if message.dataRange.lowerBound < 16 || message.dataRange.upperBound > control.byteCount {
          Issue.record("\(message) is outside of \(control.byteCount) bytes")
        }
      }
      _ = try Traits(controlMessages: control)
      return nil
    } catch {
      return error.code
    }
  }
}

@Suite("Records")
struct RecordTests {
  @Test("are laid out as C has them")
  func layout() throws {
    var traits = Traits()
    try traits.setBytes(([9, 8, 7, 6, 5, 4, 3, 2] as [UInt8]).span.bytes, for: id(12))
    var inC = trait()
    inC.key = 12
    inC.len = 8
    withUnsafeMutableBytes(of: &inC.value) { $0.copyBytes(from: [9, 8, 7, 6, 5, 4, 3, 2]) }
    #expect(traits.records == withUnsafeBytes(of: inC) { Array($0) })
    #expect(RecordLayout.size == MemoryLayout<trait>.size)
    #expect(RecordLayout.key == MemoryLayout<trait>.offset(of: \.key))
    #expect(RecordLayout.length == MemoryLayout<trait>.offset(of: \.len))
    #expect(RecordLayout.flags == MemoryLayout<trait>.offset(of: \.flags))
    #expect(RecordLayout.value == MemoryLayout<trait>.offset(of: \.value))
  }

  @Test("may come in any order")
  func order() throws {
    let bytes = record(key: 9, length: 4, [9, 9, 9, 9]) + record(key: 1, length: 4, [1, 1, 1, 1])
    let traits = try Traits(records: bytes.span.bytes)
    #expect(traits.map(\.id) == [id(1), id(9)])
  }

  static let wrong: [(String, [UInt8])] = [
    ("23 bytes", Array(record(key: 0, length: 4, [1]).dropLast())),
    ("25 bytes", record(key: 0, length: 4, [1]) + [0]),
    ("key 64", record(key: 64, length: 4, [1])),
    ("key 4294967295", record(key: .max, length: 4, [1])),
    ("length 0", record(key: 0, length: 0, [])),
    ("length 5", record(key: 0, length: 5, [1])),
    ("length 17", record(key: 0, length: 17, [1])),
    ("length 65535", record(key: 0, length: .max, [1])),
    ("flags 1", record(key: 0, length: 4, flags: 1, [1])),
    ("two records of key 3", record(key: 3, length: 4, [1]) + record(key: 3, length: 8, [1])),
    ("behind its value", record(key: 0, length: 4, [1, 2, 3, 4, 5])),
    ("behind its value", record(key: 0, length: 8, [UInt8](repeating: 1, count: 16))),
  ]

  @Test("that are wrong are refused, with what is wrong", arguments: wrong)
  func refused(message: String, bytes: [UInt8]) {
    let error = #expect(throws: TraitError.self) { try Traits(records: bytes.span.bytes) }
    #expect(error?.code == .malformedRecords)
    #expect(error?.message.contains(message) == true, "\(String(describing: error))")
  }

  @Test("past 192 bytes of values are refused")
  func tooMany() {
    let bytes = (0..<13).flatMap { record(key: UInt32($0), length: 16, [1]) }
    let error = #expect(throws: TraitError.self) { try Traits(records: bytes.span.bytes) }
    #expect(error?.code == .limitExceeded)
  }
}
