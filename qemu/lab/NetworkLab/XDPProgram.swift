// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import Glibc

/// An XDP program.
public final class XDPProgram: BPFProgram {
  /// Where an interface runs a program.
  public enum Mode: Sendable {
    /// In its driver, before there is an sk_buff.
    case driver
    /// In the stack, on an sk_buff, with any driver.
    case generic

    var flags: UInt32 { self == .driver ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE }
  }

  /// Attaches the program to an interface.
  ///
  /// - Throws: If there is one attached, or the interface cannot do `mode`.
  public func attach(to interface: String, in namespace: NetworkNamespace, mode: Mode) throws {
    let descriptor = descriptor
    let index = try namespace.run {
      let index = if_nametoindex(interface)
      guard index != 0 else { throw LabError("there is no interface \(interface)") }
      let flags = mode.flags | XDP_FLAGS_UPDATE_IF_NOEXIST
      let status = bpf_xdp_attach(Int32(index), descriptor, flags, nil)
      guard status == 0 else {
        throw LabError(
          "\(interface): the program cannot be attached: \(String(cString: strerror(-status)))")
      }
      return index
    }
    onDetach {
      try namespace.run {
        let status = bpf_xdp_detach(Int32(index), mode.flags, nil)
        guard status == 0 else {
          throw LabError(
            "\(interface): the program cannot be detached: \(String(cString: strerror(-status)))")
        }
      }
    }
  }

  /// Attaches the program to one end of a cable.
  public func attach(to end: VethPair.End, mode: Mode = .driver) throws {
    try attach(to: end.interface, in: end.namespace, mode: mode)
  }

  /// The program that an interface runs, and where, as the kernel tells.
  public static func attached(
    to end: VethPair.End
  ) throws -> (id: UInt32, mode: Mode)? {
    try end.namespace.run {
      var options = bpf_xdp_query_opts()
      options.sz = MemoryLayout<bpf_xdp_query_opts>.size
      let status = bpf_xdp_query(Int32(if_nametoindex(end.interface)), 0, &options)
      guard status == 0 else {
        throw LabError("\(end.interface): \(String(cString: strerror(-status)))")
      }
      if options.drv_prog_id != 0 { return (options.drv_prog_id, .driver) }
      if options.skb_prog_id != 0 { return (options.skb_prog_id, .generic) }
      return nil
    }
  }
}
