// SPDX-License-Identifier: MIT

internal import CLibBPF
public import PacketTraits

/// `syn.bpf.c`: gives TCP segments traits that tell whose they are, and whether they are the SYN.
public struct SynProgram {
  /// What a segment is.
  public enum Segment: UInt32, Sendable {
    case syn = 1
    case other = 2
  }

  /// What the program counted.
  public struct Counts: Hashable, Sendable {
    public let syns: UInt64
    public let others: UInt64
    /// Traits that could not be set.
    public let failed: UInt64
  }

  public let program: XDPProgram

  /// Loads the program.
  ///
  /// - Parameters:
  ///   - port: Destination of the segments.
  ///   - keys: For values of 4, 8 and 16 bytes; nil for none.
  ///   - dropsOthers: Whether segments that are no SYN go no further.
  public init(port: UInt16, _ keys: [TraitID?], dropsOthers: Bool = false) throws {
    precondition(keys.count == 3)
    var constants: [UInt8] = []
    constants.append(native: UInt32(port))
    for key in keys { constants.append(native: key?.rawValue ?? .max) }
    constants.append(native: dropsOthers ? XDP_DROP.rawValue : XDP_PASS.rawValue)
    program = try XDPProgram("syn", constants: constants)
  }

  public func counts() throws -> Counts {
    let bytes = try program.variables(".data.counts", count: 24)
    return Counts(syns: bytes.native(0), others: bytes.native(8), failed: bytes.native(16))
  }

  /// The values of 4, 8 and 16 bytes of a segment.
  ///
  /// - Parameters:
  ///   - address: Where it comes from: 16 bytes, mapped if it is of IPv4.
  ///   - port: In host byte order.
  public static func values(_ segment: Segment, from address: [UInt8], port: UInt16) -> [[UInt8]] {
    precondition(address.count == 16)
    let value4 = UInt32(port) << 16 | segment.rawValue
    var value8 = UInt64(value4)
    for word in 1..<4 {
      value8 = (value8 ^ UInt64(address.native(4 * word, as: UInt32.self))) &* 0x9e37_79b9_7f4a_7c15
    }
    return [
      withUnsafeBytes(of: value4) { Array($0) }, withUnsafeBytes(of: value8) { Array($0) }, address,
    ]
  }
}
