// SPDX-License-Identifier: MIT

import PacketTraits
import SeededRandom
import Testing

func id(_ number: UInt32) -> TraitID { TraitID(rawValue: number)! }

@Suite("Traits of one packet")
struct TraitsTests {
  @Test("agree with a dictionary over random operations", arguments: SeededGenerator.seeds)
  func model(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    var traits = Traits()
    var model: [TraitID: [UInt8]] = [:]

    for _ in 0..<5_000 {
      // Few keys at times, so that they are overwritten and removed often.
      let key = id(.random(in: 0..<(Bool.random(using: &generator) ? 64 : 8), using: &generator))
      switch Int.random(in: 0..<10, using: &generator) {
      case 0..<6:
        let value = generator.bytes([4, 8, 16].randomElement(using: &generator)!)
        let used = model.reduce(0) { $0 + ($1.key == key ? 0 : $1.value.count) }
        if used + value.count <= 192 {
          try traits.setBytes(value.span.bytes, for: key)
          model[key] = value
        } else {
          let error = #expect(throws: TraitError.self) {
            try traits.setBytes(value.span.bytes, for: key)
          }
          #expect(error?.code == .limitExceeded)
        }
      case 6..<9:
        try agree(traits.remove(key) == (model.removeValue(forKey: key) != nil))
      default:
        if Int.random(in: 0..<20, using: &generator) == 0 {
          traits = Traits()
          model = [:]
        }
      }

      try agree(traits.bytes(of: key) == model[key])
      try agree(traits.size(of: key)?.rawValue == model[key]?.count)
      try agree(traits.valueByteCount == model.values.reduce(0) { $0 + $1.count })
      try expectEqual(traits, model)
    }
  }

  // Not an #expect, which is slow for what is done ten thousand times.
  private func agree(_ condition: Bool, line: Int = #line) throws {
    guard !condition else { return }
    try #require(Bool(false), "traits and dictionary disagree, see line \(line)")
  }

  private func expectEqual(_ traits: Traits, _ model: [TraitID: [UInt8]]) throws {
    let sorted = model.sorted { $0.key < $1.key }
    try agree(traits.map(\.id) == sorted.map(\.key))
    try agree(traits.map(\.bytes) == sorted.map(\.value))
    try agree(traits.count == model.count)
    try agree(traits.keys == TraitMask(model.keys))

    // Equal to what was built in another order, and so is its hash.
    var other = Traits()
    for (key, value) in model { try other.setBytes(value.span.bytes, for: key) }
    try agree(traits == other)
    try agree(traits.hashValue == other.hashValue)

    let records = traits.records
    try agree(records.count == 24 * model.count)
    try agree(try Traits(records: records.span.bytes) == traits)
  }

  @Test("take 48 values of 4 bytes, 24 of 8, 12 of 16, and no more", arguments: TraitSize.allCases)
  func limit(size: TraitSize) throws {
    var traits = Traits()
    let bytes = [UInt8](repeating: 0xa5, count: size.rawValue)
    let count = 192 / size.rawValue
    for number in 0..<count { try traits.setBytes(bytes.span.bytes, for: id(UInt32(number))) }
    #expect(traits.count == count)
    #expect(traits.valueByteCount == 192)

    let full = traits
    let four: [UInt8] = [1, 2, 3, 4]
    let error = #expect(throws: TraitError.self) {
      try traits.setBytes(four.span.bytes, for: id(63))
    }
    #expect(error?.code == .limitExceeded)
    #expect(error?.message.contains("196 bytes") == true)
    #expect(traits == full)

    // To overwrite needs no room.
    try traits.setBytes([UInt8](repeating: 0x5a, count: size.rawValue).span.bytes, for: id(0))
    #expect(traits.bytes(of: id(0)) == [UInt8](repeating: 0x5a, count: size.rawValue))
  }

  @Test("refuse values of other lengths", arguments: [0, 1, 2, 3, 5, 7, 9, 12, 15, 17, 32])
  func lengths(count: Int) {
    var traits = Traits()
    let bytes = [UInt8](repeating: 1, count: count)
    let error = #expect(throws: TraitError.self) {
      try traits.setBytes(bytes.span.bytes, for: id(3))
    }
    #expect(error?.code == .sizeMismatch)
    #expect(error?.message.contains("\(count) bytes") == true)
    #expect(traits.isEmpty)
  }

  @Test("give back typed values")
  func typedValues() throws {
    var traits = Traits()
    try traits.set(0x1234_5678, for: TraitKey<UInt32>(id(0)))
    try traits.set(-5, for: TraitKey<Int32>(id(1)))
    try traits.set(.max - 1, for: TraitKey<UInt64>(id(2)))
    try traits.set(.min, for: TraitKey<Int64>(id(3)))
    try traits.set(UInt128(1) << 100 | 7, for: TraitKey<UInt128>(id(62)))
    try traits.set(-9, for: TraitKey<Int128>(id(63)))

    #expect(try traits.value(for: TraitKey<UInt32>(id(0))) == 0x1234_5678)
    #expect(try traits.value(for: TraitKey<Int32>(id(1))) == -5)
    #expect(try traits.value(for: TraitKey<UInt64>(id(2))) == UInt64.max - 1)
    #expect(try traits.value(for: TraitKey<Int64>(id(3))) == .min)
    #expect(try traits.value(for: TraitKey<UInt128>(id(62))) == UInt128(1) << 100 | 7)
    #expect(try traits.value(for: TraitKey<Int128>(id(63))) == -9)
    #expect(try traits.value(for: TraitKey<UInt32>(id(10))) == nil)
    #expect(try traits.prefix(2).map { try $0.value() } == [0x1234_5678, UInt32(bitPattern: -5)])
    #expect(try traits.dropFirst(4).map { try $0.value() } == [UInt128(1) << 100 | 7, .max - 8])
  }

  @Test("hold numbers in native byte order, bytes in theirs")
  func byteOrder() throws {
    var traits = Traits()
    try traits.set(0x0102_0304, for: TraitKey<UInt32>(id(0)))
    let native = withUnsafeBytes(of: UInt32(0x0102_0304)) { Array($0) }
    #expect(traits.bytes(of: id(0)) == native)

    let key = TraitKey<TraitBytes16>(id(1))
    let value = TraitBytes16([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    try traits.set(value, for: key)
    #expect(traits.bytes(of: id(1)) == Array(0..<16))
    #expect(try traits.value(for: key) == value)
  }

  @Test("are equal, as 16 bytes, if all bytes are")
  func sixteenBytes() throws {
    let value = TraitBytes16([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff])
    #expect("\(value)" == "000102030405060708090a0b0c0d0eff")
    for index in 0..<16 {
      var other = value
      other.bytes[index] ^= 0x80
      #expect(other != value, "byte \(index)")
      #expect(Set([value, other, value]).count == 2)
    }
  }

  @Test("tell an absent value from one of another size")
  func mismatch() throws {
    var traits = Traits()
    try traits.set(1, for: TraitKey<UInt32>(id(5)))
    #expect(try traits.value(for: TraitKey<UInt64>(id(6))) == nil)
    let error = #expect(throws: TraitError.self) { try traits.value(for: TraitKey<UInt64>(id(5))) }
    #expect(error?.code == .sizeMismatch)
    #expect(error?.message == "key 5 has a value of 4 bytes, not the 8 of UInt64")
    let element = try #require(traits.first)
    #expect(try element.value(as: UInt32.self) == 1)
    let same = #expect(throws: TraitError.self) { try element.value(as: UInt64.self) }
    #expect(same == error)
  }

  @Test("refuse a value whose type does not keep its word")
  func dishonestValue() {
    struct Dishonest: TraitValue {
      static var traitSize: TraitSize { .bytes16 }
      init() {}
      init(traitBytes: RawSpan) {}
      func withTraitBytes<Result, Failure: Error>(
        _ body: (RawSpan) throws(Failure) -> Result
      ) throws(Failure) -> Result {
        try UInt32(1).withTraitBytes(body)
      }
    }
    var traits = Traits()
    let error = #expect(throws: TraitError.self) {
      try traits.set(Dishonest(), for: TraitKey(id(0)))
    }
    #expect(error?.code == .sizeMismatch)
    #expect(traits.isEmpty)
  }

  @Test("are values: a copy does not follow")
  func copies() throws {
    var traits = Traits()
    try traits.set(1, for: TraitKey<UInt32>(id(0)))
    let copy = traits
    try traits.set(2, for: TraitKey<UInt32>(id(0)))
    #expect(try copy.value(for: TraitKey<UInt32>(id(0))) == 1)
    #expect(copy != traits)
  }

  @Test("describe themselves")
  func description() throws {
    var traits = Traits()
    #expect("\(traits)" == "[]")
    try traits.setBytes(([1, 2, 0xab, 0] as [UInt8]).span.bytes, for: id(7))
    #expect("\(traits)" == "[7: 0102ab00]")
  }
}

@Suite("Numbers, sizes and sets of keys")
struct KeyTests {
  @Test("a number is 0 to 63")
  func numbers() {
    #expect(TraitID(rawValue: 0)?.rawValue == 0)
    #expect(TraitID(rawValue: 63)?.rawValue == 63)
    #expect(TraitID(rawValue: 64) == nil)
    #expect(TraitID(rawValue: .max) == nil)
    #expect(TraitID.allCases.map(\.rawValue) == Array(0..<64))
  }

  @Test("a size is 4, 8 or 16")
  func sizes() {
    #expect((-1...70).filter { TraitSize(rawValue: $0) != nil } == [4, 8, 16])
  }

  @Test("a mask has a bit for each key")
  func masks() {
    let mask = TraitMask([id(0), id(5), id(63)])
    #expect(mask.rawValue == UInt64(0x8000_0000_0000_0021))
    #expect(mask.ids == [id(0), id(5), id(63)])
    #expect(mask.count == 3)
    #expect(mask.contains(id(5)) && !mask.contains(id(6)))
    #expect(mask.contains(TraitKey<UInt32>(id(63))))
    #expect(mask.union(TraitMask(id(6))).count == 4)
    #expect(mask.subtracting(TraitMask(TraitKey<UInt64>(id(5)))).ids == [id(0), id(63)])
    #expect(TraitMask.all.count == 64)
    #expect("\(mask)" == "[0, 5, 63]")
  }
}
