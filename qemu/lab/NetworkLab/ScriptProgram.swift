// SPDX-License-Identifier: MIT

internal import CLibBPF
public import PacketTraits

/// The packets that a script is for.
public enum ScriptPackets: Sendable {
  /// UDP datagrams for a port; in programs that have an sk_buff also TCP, and for
  /// port 0 fragments.
  case port(UInt16)
  /// Frames of this type.
  case ethertype(UInt16)
  /// IP packets whose header is followed by this protocol.
  case ipProtocol(UInt8)

  var number: UInt32 {
    switch self {
    case .port(let port): UInt32(port)
    case .ethertype(let type): UInt32(type)
    case .ipProtocol(let number): UInt32(number)
    }
  }

  var kind: UInt32 {
    switch self {
    case .port: 0
    case .ethertype: 1
    case .ipProtocol: 2
    }
  }
}

/// One step of a script, and what the kernel's function is called with.
public struct ScriptStep: Sendable {
  /// What is done; the numbers are those of `script.h`.
  public enum Operation: UInt32, Sendable {
    case set = 1
    case get, delete, adjustHead, adjustMeta, writeMeta, readMeta, pushVLAN, popVLAN, clone, need
    case adjustRoom, changeTail, changeHead, changeProtocol, encapsulate, adjustTail
  }

  public let operation: Operation
  public private(set) var key: UInt32 = 0
  /// Bytes of the buffer that the function is called with.
  public private(set) var size: UInt32 = 0
  var delta: Int32 = 0
  var flags: UInt64 = 0
  /// What is in the buffer before.
  public private(set) var value: [UInt8] = []

  /// The most steps of a script.
  public static let maximumCount = 64

  /// Sets a trait; by default with as many bytes as `value` has.
  public static func set(
    _ key: UInt32, _ value: [UInt8], size: UInt32? = nil, flags: UInt64 = 0
  ) -> ScriptStep {
    ScriptStep(operation: .set, key: key, size: size ?? UInt32(value.count), flags: flags, value: value)
  }

  /// Reads a trait into a buffer of `size` bytes.
  public static func get(_ key: UInt32, size: UInt32 = 16, flags: UInt64 = 0) -> ScriptStep {
    ScriptStep(operation: .get, key: key, size: size, flags: flags)
  }

  /// Removes a trait.
  public static func delete(_ key: UInt32, flags: UInt64 = 0) -> ScriptStep {
    ScriptStep(operation: .delete, key: key, flags: flags)
  }

  // MARK: In XDP

  /// Moves where the packet's data begins.
  public static func adjustHead(_ delta: Int32) -> ScriptStep {
    ScriptStep(operation: .adjustHead, delta: delta)
  }

  /// Moves where the packet's data ends.
  public static func adjustTail(_ delta: Int32) -> ScriptStep {
    ScriptStep(operation: .adjustTail, delta: delta)
  }

  /// Moves where the packet's metadata begins.
  public static func adjustMeta(_ delta: Int32) -> ScriptStep {
    ScriptStep(operation: .adjustMeta, delta: delta)
  }

  /// Writes 8 bytes of metadata; in classifiers, too.
  public static func writeMeta(_ value: [UInt8]) -> ScriptStep {
    ScriptStep(operation: .writeMeta, value: value)
  }

  /// Reads 8 bytes of metadata.
  public static var readMeta: ScriptStep { ScriptStep(operation: .readMeta) }

  // MARK: In classifiers

  /// Puts a VLAN tag in front, of this number. The outermost one is kept beside
  /// the packet, so that it takes two to push a header.
  public static func pushVLAN(_ number: UInt32) -> ScriptStep {
    ScriptStep(operation: .pushVLAN, key: number)
  }

  /// Takes the outermost VLAN tag away.
  public static var popVLAN: ScriptStep { ScriptStep(operation: .popVLAN) }

  /// Sends a clone out of an interface, by its number.
  public static func clone(to interface: UInt32) -> ScriptStep {
    ScriptStep(operation: .clone, delta: Int32(interface))
  }

  /// Makes room for headers between that of Ethernet and that of IP, or takes it away.
  public static func adjustRoom(_ delta: Int32) -> ScriptStep {
    ScriptStep(operation: .adjustRoom, delta: delta)
  }

  /// Moves where the packet ends.
  public static func changeTail(_ delta: Int32) -> ScriptStep {
    ScriptStep(operation: .changeTail, delta: delta)
  }

  /// Puts bytes in front, that of a header of the link layer among them.
  public static func changeHead(_ length: Int32) -> ScriptStep {
    ScriptStep(operation: .changeHead, delta: length)
  }

  /// Makes room for the IP header of the other version, by the type that Ethernet would say.
  public static func changeProtocol(_ type: UInt16) -> ScriptStep {
    ScriptStep(operation: .changeProtocol, key: UInt32(type))
  }

  // MARK: In routes

  /// Puts an IPv4 header in front of an IPv4 packet, with these addresses of 4 bytes.
  public static func encapsulate(from: [UInt8], to: [UInt8]) -> ScriptStep {
    ScriptStep(operation: .encapsulate, value: from + to)
  }

  /// Reads a trait of 16 bytes at most. A packet that does not have it is none of those that
  /// the script is for: the results do not tell of it.
  public static func need(_ key: UInt32) -> ScriptStep {
    ScriptStep(operation: .need, key: key, size: 16)
  }

  /// The content of the read-only map.
  static func constants(
    _ packets: ScriptPackets, action: UInt32, interface: UInt32, _ steps: [ScriptStep]
  ) -> [UInt8] {
    precondition(steps.count <= maximumCount, "a script has at most \(maximumCount) steps")
    var constants: [UInt8] = []
    for number in [packets.number, action, interface, packets.kind] { constants.append(native: number) }
    for step in steps {
      constants.append(native: step.operation.rawValue)
      constants.append(native: step.key)
      constants.append(native: step.size)
      constants.append(native: step.delta)
      constants.append(native: step.flags)
      constants += step.value + [UInt8](repeating: 0, count: 16 - step.value.count)
    }
    return constants + [UInt8](repeating: 0, count: (maximumCount - steps.count) * 40)
  }
}

/// What came of a script.
public struct ScriptResults: Hashable, Sendable {
  /// What came of a step.
  public struct Step: Hashable, Sendable {
    /// What the kernel's function returned.
    public let status: Int32
    /// The 16 bytes at the step's value, after the step.
    public let value: [UInt8]
  }

  /// How many datagrams came so far.
  public let runs: UInt64
  /// Of the last datagram.
  public let steps: [Step]

  init(_ program: BPFProgram, count: Int) throws {
    let bytes = try program.variables(".data.results", count: 8 + ScriptStep.maximumCount * 24)
    runs = bytes.native(0)
    steps = (0..<count).map { number in
      let start = 8 + number * 24
      return Step(status: bytes.native(start), value: Array(bytes[start + 8..<start + 24]))
    }
  }
}

/// `script.bpf.c`: does to packets what is written down here, step by step, in XDP.
public struct ScriptProgram {
  public typealias Step = ScriptStep
  public typealias Result = ScriptResults.Step

  /// What becomes of the packet after the last step.
  public enum Action: Sendable {
    /// It goes up the stack.
    case pass
    /// It goes nowhere.
    case drop
    /// It goes out of the interface where it came in.
    case transmit
    /// It goes out of another interface, by its number.
    case redirect(UInt32)
    /// It goes out of another interface, which may be of another namespace.
    case redirectByMap(VethPair.End)
  }

  public let program: XDPProgram
  private let count: Int

  public init(port: UInt16, _ steps: [Step], then action: Action = .pass) throws {
    try self.init(.port(port), steps, then: action)
  }

  /// - Parameter takesFragments: Whether the program is one for packets of several buffers, too.
  public init(
    _ packets: ScriptPackets, _ steps: [Step], then action: Action = .pass, takesFragments: Bool = false
  ) throws {
    let (code, interface) =
      switch action {
      case .pass: (XDP_PASS.rawValue, UInt32(0))
      case .drop: (XDP_DROP.rawValue, UInt32(0))
      case .transmit: (XDP_TX.rawValue, UInt32(0))
      case .redirect(let interface): (XDP_REDIRECT.rawValue, interface)
      case .redirectByMap: (XDP_REDIRECT.rawValue, .max)
      }
    program = try XDPProgram(
      "script",
      constants: ScriptStep.constants(packets, action: code, interface: interface, steps),
      map: ".rodata.script", flags: takesFragments ? UInt32(BPF_F_XDP_HAS_FRAGS) : 0)
    count = steps.count
    if case .redirectByMap(let end) = action {
      var entry = bpf_devmap_val()
      entry.ifindex = try end.index()
      entry.bpf_prog.fd = -1
      let value = withUnsafeBytes(of: entry) { Array($0) }
      // The number means an interface of the namespace where it is said.
      try end.namespace.run { try program.update("ports", key: 0, value: value) }
    }
  }

  /// How many datagrams came so far, and what came of each step at the last.
  public func results() throws -> ScriptResults { try ScriptResults(program, count: count) }
}

/// `headroom.bpf.c`: sets a trait, takes all headroom, and gives it back.
public struct HeadroomProgram {
  /// What came of it at the last datagram.
  public struct Results: Hashable, Sendable {
    /// Datagrams so far.
    public let runs: UInt64
    /// What setting the trait returned.
    public let set: Int32
    /// What getting the trait returned before the room was taken, and after.
    public let before: Int32
    public let after: Int32
    /// What giving the room back returned.
    public let restored: Int32
    /// Bytes of room that were taken.
    public let taken: UInt32
  }

  public let program: XDPProgram

  /// - Parameters:
  ///   - key: Of 8 bytes.
  ///   - forMetadata: Whether to take the room for metadata, or for data.
  public init(port: UInt16, key: TraitID, forMetadata: Bool) throws {
    var constants: [UInt8] = []
    constants.append(native: UInt32(port))
    constants.append(native: key.rawValue)
    constants.append(native: UInt32(forMetadata ? 1 : 0))
    program = try XDPProgram("headroom", constants: constants)
  }

  public func results() throws -> Results {
    let bytes = try program.variables(".data.results", count: 32)
    return Results(
      runs: bytes.native(0), set: bytes.native(8), before: bytes.native(12),
      after: bytes.native(16), restored: bytes.native(20), taken: bytes.native(24))
  }
}

/// `table.bpf.c`: gives one packet after another traits of its own, row by row, and begins
/// again after the last row.
public struct TableProgram {
  /// The most keys and rows.
  public static let maximumKeys = 16
  public static let maximumRows = 32

  public let program: XDPProgram

  /// - Parameters:
  ///   - keys: And how long their values are.
  ///   - rows: A value for each key, or nil where a packet has none.
  ///   - position: Of the byte in a frame that says which row it is for; a packet that is shorter, or
  ///     for which there is no row, is given nothing and not counted. If nil, row follows row.
  public init(
    _ packets: ScriptPackets, _ keys: [(TraitID, TraitSize)], _ rows: [[[UInt8]?]],
    rowAt position: UInt8? = nil
  ) throws {
    precondition(keys.count <= Self.maximumKeys && rows.count <= Self.maximumRows)
    var constants: [UInt8] = []
    for number in [packets.number, packets.kind, UInt32(rows.count), 0] { constants.append(native: number) }
    for index in 0..<Self.maximumKeys {
      constants.append(native: index < keys.count ? keys[index].0.rawValue : 0)
      constants.append(native: index < keys.count ? UInt32(keys[index].1.rawValue) : 0)
    }
    for number in 0..<Self.maximumRows {
      let row = number < rows.count ? rows[number] : []
      precondition(row.count == keys.count || number >= rows.count)
      let cells = row + [[UInt8]?](repeating: nil, count: Self.maximumKeys - row.count)
      constants += cells.map { $0 == nil ? 0 : 1 }
      for cell in cells { constants += (cell ?? []) + [UInt8](repeating: 0, count: 16 - (cell?.count ?? 0)) }
    }
    constants.append(native: UInt32(position ?? 0))
    program = try XDPProgram("table", constants: constants, map: ".rodata.table")
  }

  /// How many packets came so far.
  ///
  /// - Throws: `LabError` if a value could not be set.
  public func runs() throws -> UInt64 {
    let bytes = try program.variables(".data.results", count: 16)
    let failures: UInt64 = bytes.native(8)
    guard failures == 0 else { throw LabError("\(failures) values could not be set") }
    return bytes.native(0)
  }
}
