// SPDX-License-Identifier: MIT

public import PacketTraits

/// `tag.bpf.c`: gives UDP datagrams traits whose values follow from the
/// sequence number at the start of the payload.
public struct TagProgram {
  /// What the program counted.
  public struct Counts: Hashable, Sendable {
    /// Datagrams for the port.
    public let seen: UInt64
    /// Datagrams that were given all traits.
    public let tagged: UInt64
    /// Datagrams that came with a trait already.
    public let stale: UInt64
    /// Traits that could not be set.
    public let failed: UInt64
    /// The negative errno value of the last one that could not be set.
    public let error: Int64
  }

  public let program: XDPProgram

  /// Loads the program.
  ///
  /// - Parameters:
  ///   - port: Destination of the datagrams.
  ///   - keys: For values of 4, 8 and 16 bytes; nil for none.
  ///   - every: Which datagrams: those whose sequence number is a multiple.
  public init(
    port: UInt16, key4: TraitID? = nil, key8: TraitID? = nil, key16: TraitID? = nil,
    every: UInt32 = 1
  ) throws {
    var constants: [UInt8] = []
    constants.append(native: UInt32(port))
    constants.append(native: every)
    for key in [key4, key8, key16] { constants.append(native: key?.rawValue ?? .max) }
    program = try XDPProgram("tag", constants: constants)
  }

  public func counts() throws -> Counts {
    let bytes = try program.variables(".data.counts", count: 40)
    return Counts(
      seen: bytes.native(0), tagged: bytes.native(8), stale: bytes.native(16),
      failed: bytes.native(24), error: bytes.native(32))
  }

  /// The value of 4 bytes that a datagram is given.
  public static func value4(_ sequence: UInt32) -> UInt32 {
    sequence &* 0x9e37_79b1
  }

  /// The value of 8 bytes that a datagram is given.
  public static func value8(_ sequence: UInt32) -> UInt64 {
    (UInt64(sequence) + 1) &* 0x9e37_79b9_7f4a_7c15
  }

  /// The value of 16 bytes that a datagram is given, in their order.
  public static func value16(_ sequence: UInt32) -> [UInt8] {
    (0..<16).map { UInt8(truncatingIfNeeded: sequence >> (8 * ($0 % 4))) ^ UInt8($0 * 0x11) }
  }

  /// A payload: its sequence number in network byte order, and then bytes
  /// that follow from it.
  public static func payload(_ sequence: UInt32, length: Int = 36) -> [UInt8] {
    var bytes = withUnsafeBytes(of: sequence.bigEndian) { Array($0) }
    var state = UInt64(sequence) ^ 0x5851_f42d_4c95_7f2d
    while bytes.count < length {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      bytes.append(UInt8(truncatingIfNeeded: state >> 56))
    }
    return bytes
  }
}
