// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// An XDP program, loaded through libbpf, and detached and unloaded when its
/// last use is over.
public final class XDPProgram {
  /// Where an interface runs a program.
  public enum Mode: Sendable {
    /// In its driver, before there is an sk_buff.
    case driver
    /// In the stack, on an sk_buff, with any driver.
    case generic

    var flags: UInt32 { self == .driver ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE }
  }

  private let object: OpaquePointer
  private let descriptor: Int32

  /// The program's number, as `bpftool prog` shows it.
  public let id: UInt32

  private var detachments: [() throws -> Void] = []

  /// What libbpf and the verifier said since a program was last loaded.
  private static let log = Mutex<String>("")

  /// The directory that the compiled programs are in.
  public static func directory() throws -> String {
    guard let directory = getenv("PACKET_TRAITS_BPF") else {
      throw LabError(
        "PACKET_TRAITS_BPF is not set: it must be the directory with the compiled BPF programs")
    }
    return String(cString: directory)
  }

  /// Loads `NAME.bpf.o`.
  ///
  /// - Parameters:
  ///   - name: The object's, without the suffix.
  ///   - constants: What goes into its read-only map before it is loaded.
  ///   - map: The name of that map.
  public init(_ name: String, constants: [UInt8], map: String = ".rodata.config") throws {
    Self.log.withLock { $0 = "" }
    _ = libbpf_set_print { level, format, arguments in
      guard level.rawValue <= LIBBPF_WARN.rawValue, let format, let arguments else { return 0 }
      var text = [CChar](repeating: 0, count: 65536)
      vsnprintf(&text, text.count, format, arguments)
      let line = text.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
      XDPProgram.log.withLock { $0 += line }
      return 0
    }

    let path = "\(try Self.directory())/\(name).bpf.o"
    guard let object = bpf_object__open_file(path, nil) else { throw Self.failure(path) }
    var opened: OpaquePointer? = object
    defer { if let opened { bpf_object__close(opened) } }

    guard let configuration = bpf_object__find_map_by_name(object, map) else {
      throw LabError("\(path) has no map \(map)")
    }
    guard bpf_map__set_initial_value(configuration, constants, constants.count) == 0 else {
      throw LabError("\(path): map \(map) does not have the size of \(constants.count) bytes")
    }
    guard bpf_object__load(object) == 0 else { throw Self.failure(path) }
    guard let program = bpf_object__next_program(object, nil) else {
      throw LabError("\(path) has no program")
    }
    descriptor = bpf_program__fd(program)

    var info = bpf_prog_info()
    var length = UInt32(MemoryLayout<bpf_prog_info>.size)
    guard bpf_obj_get_info_by_fd(descriptor, &info, &length) == 0 else { throw Self.failure(path) }
    id = info.id
    self.object = object
    opened = nil
  }

  deinit {
    do {
      try detach()
    } catch {
      // The interface may be gone already, with its namespace.
      _ = try? FileDescriptor.standardError.writeAll("\(error)\n".utf8)
    }
    bpf_object__close(object)
  }

  private static func failure(_ what: String) -> LabError {
    let error = String(cString: strerror(errno))
    return LabError("\(what): \(error)\n\(log.withLock { $0 })")
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
    detachments.append {
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

  /// Detaches the program wherever it is attached.
  public func detach() throws {
    while let detachment = detachments.popLast() { try detachment() }
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

  /// The content of one of the program's maps of variables.
  public func variables(_ map: String, count: Int) throws -> [UInt8] {
    let descriptor = bpf_object__find_map_fd_by_name(object, map)
    guard descriptor >= 0 else { throw LabError("the program has no map \(map)") }
    let found = bpf_object__find_map_by_name(object, map)
    guard bpf_map__value_size(found) == UInt32(count) else {
      throw LabError("map \(map) has \(bpf_map__value_size(found)) bytes, not \(count)")
    }
    var key: UInt32 = 0
    var value = [UInt8](repeating: 0, count: count)
    guard bpf_map_lookup_elem(descriptor, &key, &value) == 0 else {
      throw LabError("map \(map) cannot be read: \(String(cString: strerror(errno)))")
    }
    return value
  }
}

extension Array where Element == UInt8 {
  /// Appends a number in native byte order.
  public mutating func append<Number: FixedWidthInteger & BitwiseCopyable>(native number: Number) {
    Swift.withUnsafeBytes(of: number) { append(contentsOf: $0) }
  }

  /// The number at an offset, in native byte order.
  public func native<Number: FixedWidthInteger & BitwiseCopyable>(
    _ offset: Int, as type: Number.Type = Number.self
  ) -> Number {
    span.bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: type)
  }
}
