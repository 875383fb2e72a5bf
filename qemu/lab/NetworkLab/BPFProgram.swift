// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import CNetworkLab
internal import Glibc
internal import Synchronization
public import SystemPackage

/// A BPF program, loaded through libbpf, and detached and unloaded when its last
/// use is over. Where it can be attached depends on its type: see
/// ``XDPProgram`` and ``SkbProgram``.
public class BPFProgram {
  private let object: OpaquePointer
  let descriptor: Int32

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

  private static let objects = Mutex<[String: [UInt8]]>([:])

  /// The content of `NAME.bpf.o`.
  ///
  /// It is read once: where a test goes on as a user who cannot read the file,
  /// it asks for the content before.
  @discardableResult
  public static func content(of name: String) throws -> [UInt8] {
    if let known = objects.withLock({ $0[name] }) { return known }
    let path = FilePath(try directory()).appending("\(name).bpf.o")
    let content: [UInt8]
    do {
      let file = try FileDescriptor.open(path, .readOnly)
      content = try file.closeAfter {
        let size = Int(try file.seek(offset: 0, from: .end))
        return try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
          count = try file.read(fromAbsoluteOffset: 0, into: .init(buffer))
        }
      }
    } catch let error as Errno {
      throw LabError("\(path): \(error)")
    }
    objects.withLock { $0[name] = content }
    return content
  }

  /// Loads one program of `NAME.bpf.o`.
  ///
  /// - Parameters:
  ///   - name: The object's, without the suffix.
  ///   - function: Which program; nil if there is one only.
  ///   - constants: What goes into its read-only map before it is loaded; nil
  ///     if that has what it needs.
  ///   - map: The name of that map.
  ///   - flags: `BPF_F_...`, as bpf(2) has them for BPF_PROG_LOAD.
  public init(
    _ name: String, function: String? = nil, constants: [UInt8]? = nil,
    map: String = ".rodata.config", flags: UInt32 = 0
  ) throws {
    Self.log.withLock { $0 = "" }
    _ = libbpf_set_print { level, format, arguments in
      guard level.rawValue <= LIBBPF_WARN.rawValue, let format, let arguments else { return 0 }
      var text = [CChar](repeating: 0, count: 65536)
      vsnprintf(&text, text.count, format, arguments)
      let line = text.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
      BPFProgram.log.withLock { $0 += line }
      return 0
    }

    let path = "\(name).bpf.o"
    let content = try Self.content(of: name)
    guard
      let object = name.withCString({ name in
        var options = bpf_object_open_opts()
        options.sz = MemoryLayout<bpf_object_open_opts>.size
        options.object_name = name
        return bpf_object__open_mem(content, content.count, &options)
      })
    else { throw Self.failure(path) }
    var opened: OpaquePointer? = object
    defer { if let opened { bpf_object__close(opened) } }

    if let constants {
      guard let configuration = bpf_object__find_map_by_name(object, map) else {
        throw LabError("\(path) has no map \(map)")
      }
      guard bpf_map__set_initial_value(configuration, constants, constants.count) == 0 else {
        throw LabError("\(path): map \(map) does not have the size of \(constants.count) bytes")
      }
    }

    var next = bpf_object__next_program(object, nil)
    var found: OpaquePointer?
    while let program = next {
      let isWanted = function == nil || String(cString: bpf_program__name(program)) == function
      if isWanted { found = program }
      bpf_program__set_autoload(program, isWanted)
      next = bpf_object__next_program(object, program)
    }
    guard let program = found else {
      throw LabError("\(path) has no program \(function ?? "at all")")
    }
    bpf_program__set_flags(program, bpf_program__flags(program) | flags)
    if String(cString: bpf_program__section_name(program)) == "netfilter" {
      // BPF_PROG_TYPE_NETFILTER and BPF_NETFILTER, which libbpf 1.1 does not know.
      bpf_program__set_type(program, bpf_prog_type(rawValue: 32))
      bpf_program__set_expected_attach_type(program, bpf_attach_type(rawValue: 45))
    }
    guard bpf_object__load(object) == 0 else { throw Self.failure("\(path) \(function ?? "")") }
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
      // An interface may be gone already, with its namespace.
      _ = try? FileDescriptor.standardError.writeAll("\(error)\n".utf8)
    }
    bpf_object__close(object)
  }

  /// An error of libbpf, with what it said.
  ///
  /// - Parameter status: A negative errno value; nil for `errno`.
  static func failure(_ what: String, _ status: Int32? = nil) -> LabError {
    let error = String(cString: strerror(status.map(-) ?? errno))
    return LabError("\(what): \(error)\n\(log.withLock { $0 })")
  }

  /// Detaches the program wherever it is attached.
  public func detach() throws {
    while let detachment = detachments.popLast() { try detachment() }
  }

  /// Notes what ends an attachment.
  func onDetach(_ detachment: @escaping () throws -> Void) { detachments.append(detachment) }

  /// Attaches the program by a link, for which all that counts is the place.
  func link(to target: Int32, _ type: UInt32, _ what: String) throws {
    let link = bpf_link_create(descriptor, target, bpf_attach_type(rawValue: type), nil)
    guard link >= 0 else {
      throw Self.failure("\(what): the program cannot be attached", link)
    }
    onDetach { close(link) }
  }

  /// Attaches a program for control groups to the topmost one: it runs for all
  /// sockets.
  func linkToAllGroups(_ type: UInt32) throws {
    let path = try Self.groups()
    let group = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard group >= 0 else { throw LabError("\(path): \(String(cString: strerror(errno)))") }
    defer { close(group) }
    try link(to: group, type, path)
  }

  /// Where the unified hierarchy is mounted.
  private static func groups() throws -> String {
    guard let file = fopen("/proc/self/mounts", "re") else {
      throw LabError("/proc/self/mounts: \(String(cString: strerror(errno)))")
    }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 4096)
    while fgets(&line, Int32(line.count), file) != nil {
      let words = line.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
        .split(separator: " ")
      if words.count > 2, words[2] == "cgroup2" { return String(words[1]) }
    }
    throw LabError("no file system of type cgroup2 is mounted")
  }

  /// Gives the program a name in a file system, for as long as `body` runs.
  func withPath<Value>(_ body: (String) throws -> Value) throws -> Value {
    // "ip" with a namespace has a /sys of its own, where nothing is mounted.
    let directory = "/tmp/packet-traits-programs"
    mkdir(directory, 0o700)
    var status = mount("bpf", directory, "bpf", 0, nil)
    guard status == 0 else {
      throw LabError("\(directory): BPF's file system cannot be mounted: \(String(cString: strerror(errno)))")
    }
    defer { umount2(directory, Int32(MNT_DETACH)) }
    let path = "\(directory)/program"
    status = bpf_obj_pin(descriptor, path)
    guard status == 0 else { throw Self.failure("\(path): the program cannot be pinned", status) }
    defer { unlink(path) }
    return try body(path)
  }

  /// Attaches a program for sockets to one of them, by SO_ATTACH_BPF or another option.
  func attach(to socket: FileDescriptor, option: Int32) throws {
    var program = descriptor
    guard setsockopt(socket.rawValue, SOL_SOCKET, option, &program, 4) == 0 else {
      throw LabError("the program cannot be attached to a socket: \(String(cString: strerror(errno)))")
    }
  }

  /// Attaches a netfilter program to the hook for what this machine receives.
  func attachToLocalInput(_ family: Int32, in namespace: NetworkNamespace) throws {
    let descriptor = descriptor
    // NF_INET_LOCAL_IN
    let link = try namespace.run { lab_attach_netfilter(descriptor, UInt32(family), 1, 0) }
    guard link >= 0 else { throw Self.failure("netfilter: the program cannot be attached", link) }
    onDetach { close(link) }
  }

  /// Lets a program decide about what the sockets in one of its maps receive.
  ///
  /// - Parameter parser: What finds the messages in it, if not whatever comes is one; in place as
  ///   long as this program.
  func attachToSockets(of map: String, parser: BPFProgram? = nil) throws {
    let sockets = bpf_object__find_map_fd_by_name(object, map)
    guard sockets >= 0 else { throw LabError("the program has no map \(map)") }
    func attach(_ program: BPFProgram, _ type: bpf_attach_type) throws {
      let descriptor = program.descriptor
      let status = bpf_prog_attach(descriptor, sockets, type, 0)
      guard status == 0 else { throw Self.failure("\(map): the program cannot be attached", status) }
      onDetach { withExtendedLifetime(program) { _ = bpf_prog_detach2(descriptor, sockets, type) } }
    }
    if let parser { try attach(parser, BPF_SK_SKB_STREAM_PARSER) }
    try attach(self, BPF_SK_SKB_STREAM_VERDICT)
  }

  /// Puts an entry into one of the program's maps.
  ///
  /// - Throws: If the map is not there, or the kernel does not take the entry.
  public func update(_ map: String, key: UInt32, value: [UInt8]) throws {
    let descriptor = bpf_object__find_map_fd_by_name(object, map)
    guard descriptor >= 0 else { throw LabError("the program has no map \(map)") }
    let found = bpf_object__find_map_by_name(object, map)
    guard bpf_map__value_size(found) == UInt32(value.count), bpf_map__key_size(found) == 4 else {
      throw LabError("map \(map) has entries of \(bpf_map__value_size(found)) bytes, not \(value.count)")
    }
    var key = key
    guard bpf_map_update_elem(descriptor, &key, value, 0) == 0 else {
      throw LabError("map \(map) does not take entry \(key): \(String(cString: strerror(errno)))")
    }
  }

  /// Puts a socket into one of the program's maps.
  public func update(_ map: String, key: UInt32, socket: FileDescriptor) throws {
    var value: [UInt8] = []
    value.append(native: UInt64(socket.rawValue))
    try update(map, key: key, value: value)
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
