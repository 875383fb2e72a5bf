// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import Glibc
public import PacketTraits

/// `broadcast.bpf.c`: sends a datagram out of several interfaces, where a program
/// of an interface's own may mark it on its way.
public struct BroadcastProgram {
  /// What went wrong, by the programs' own count.
  public struct Counts: Hashable, Sendable {
    /// Traits that could not be set or were not what they should be.
    public let failed: UInt64
    /// Packets that were marked for another interface.
    public let foreign: UInt64
  }

  /// Sends a datagram for the port to all interfaces, with the trait `common`.
  public let spread: XDPProgram
  private let mark: XDPProgram

  /// Loads both programs.
  ///
  /// - Parameters:
  ///   - port: Destination of the datagrams.
  ///   - common: 4 bytes, set to all ones for every interface.
  ///   - own: 4 bytes, set to the interface's number where it is marked.
  public init(port: UInt16, common: TraitID, own: TraitID) throws {
    var constants: [UInt8] = []
    for number in [UInt32(port), common.rawValue, own.rawValue] { constants.append(native: number) }
    spread = try XDPProgram("broadcast", function: "spread", constants: constants)
    mark = try XDPProgram("broadcast", function: "mark", constants: constants)
  }

  /// Lets datagrams go out of an interface as well.
  ///
  /// - Parameters:
  ///   - end: The interface.
  ///   - isMarked: Whether they are marked there: bytes 4 to 7 of the payload
  ///     become the interface's number, in network byte order.
  public func add(_ end: VethPair.End, isMarked: Bool) throws {
    let index = try end.index()
    var entry = bpf_devmap_val()
    entry.ifindex = index
    entry.bpf_prog.fd = isMarked ? mark.descriptor : -1
    let value = withUnsafeBytes(of: entry) { Array($0) }
    // The number means an interface of the namespace where it is said.
    try end.namespace.run { try spread.update("ports", key: index, value: value) }
  }

  public func counts() throws -> Counts {
    let programs = try [spread, mark].map { try $0.variables(".data.counts", count: 16) }
    return Counts(
      failed: programs.reduce(0) { $0 + $1.native(0) },
      foreign: programs.reduce(0) { $0 + $1.native(8) })
  }
}
