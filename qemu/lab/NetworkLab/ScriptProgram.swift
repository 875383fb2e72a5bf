// SPDX-License-Identifier: MIT

internal import CLibBPF
public import PacketTraits

/// `script.bpf.c`: does to UDP datagrams what is written down here, step by
/// step.
public struct ScriptProgram {
  /// One step, and what the kernel's function is called with.
  public struct Step: Sendable {
    let operation: UInt32
    var key: UInt32 = 0
    var size: UInt32 = 0
    var delta: Int32 = 0
    var flags: UInt64 = 0
    var value: [UInt8] = []

    /// Sets a trait; by default with as many bytes as `value` has.
    public static func set(
      _ key: UInt32, _ value: [UInt8], size: UInt32? = nil, flags: UInt64 = 0
    ) -> Step {
      Step(operation: 1, key: key, size: size ?? UInt32(value.count), flags: flags, value: value)
    }

    /// Reads a trait into a buffer of `size` bytes.
    public static func get(_ key: UInt32, size: UInt32 = 16, flags: UInt64 = 0) -> Step {
      Step(operation: 2, key: key, size: size, flags: flags)
    }

    /// Removes a trait.
    public static func delete(_ key: UInt32, flags: UInt64 = 0) -> Step {
      Step(operation: 3, key: key, flags: flags)
    }

    /// Moves where the packet's data begins.
    public static func adjustHead(_ delta: Int32) -> Step { Step(operation: 4, delta: delta) }

    /// Moves where the packet's metadata begins.
    public static func adjustMeta(_ delta: Int32) -> Step { Step(operation: 5, delta: delta) }

    /// Writes 8 bytes of metadata.
    public static func writeMeta(_ value: [UInt8]) -> Step { Step(operation: 6, value: value) }

    /// Reads 8 bytes of metadata.
    public static var readMeta: Step { Step(operation: 7) }
  }

  /// What came of a step.
  public struct Result: Hashable, Sendable {
    /// What the kernel's function returned.
    public let status: Int32
    /// The 16 bytes at the step's value, after the step.
    public let value: [UInt8]
  }

  /// What becomes of the packet after the last step.
  public enum Action: Sendable {
    /// It goes up the stack.
    case pass
    /// It goes out of the interface where it came in.
    case transmit
    /// It goes out of another interface, by its number.
    case redirect(UInt32)
  }

  /// The most steps of a script.
  public static let maximumStepCount = 64

  public let program: XDPProgram
  private let count: Int

  public init(port: UInt16, _ steps: [Step], then action: Action = .pass) throws {
    precondition(steps.count <= Self.maximumStepCount, "a script has at most 64 steps")
    var constants: [UInt8] = []
    constants.append(native: UInt32(port))
    switch action {
    case .pass:
      constants.append(native: XDP_PASS.rawValue)
      constants.append(native: UInt32(0))
    case .transmit:
      constants.append(native: XDP_TX.rawValue)
      constants.append(native: UInt32(0))
    case .redirect(let interface):
      constants.append(native: XDP_REDIRECT.rawValue)
      constants.append(native: interface)
    }
    constants.append(native: UInt32(0))
    for step in steps {
      constants.append(native: step.operation)
      constants.append(native: step.key)
      constants.append(native: step.size)
      constants.append(native: step.delta)
      constants.append(native: step.flags)
      constants += step.value + [UInt8](repeating: 0, count: 16 - step.value.count)
    }
    constants += [UInt8](repeating: 0, count: (Self.maximumStepCount - steps.count) * 40)
    program = try XDPProgram("script", constants: constants, map: ".rodata.script")
    count = steps.count
  }

  /// How many datagrams came so far, and what came of each step at the last.
  public func results() throws -> (runs: UInt64, steps: [Result]) {
    let bytes = try program.variables(".data.results", count: 8 + Self.maximumStepCount * 24)
    let steps = (0..<count).map { number in
      let start = 8 + number * 24
      return Result(status: bytes.native(start), value: Array(bytes[start + 8..<start + 24]))
    }
    return (bytes.native(0), steps)
  }
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
