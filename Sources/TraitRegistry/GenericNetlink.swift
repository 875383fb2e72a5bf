// SPDX-License-Identifier: MIT

internal import CLibMNL
internal import Glibc
internal import PacketTraits
internal import SystemPackage

/// A request to a family of generic netlink.
struct GenericRequest {
  struct Attribute {
    var type: UInt16
    var data: [UInt8]

    init(_ type: Int, _ value: UInt32) {
      self.type = UInt16(type)
      data = withUnsafeBytes(of: value) { Array($0) }
    }

    /// A string, with a NUL at its end.
    init(_ type: Int, _ value: String) {
      self.type = UInt16(type)
      data = Array(value.utf8) + [0]
    }

    init(_ type: Int, bytes: [UInt8]) {
      self.type = UInt16(type)
      data = bytes
    }
  }

  var command: Int
  var version = 1
  var isDump = false
  var attributes: [Attribute] = []

  /// The request as one message.
  func message(family: UInt16, sequence: UInt32) -> [UInt8] {
    let headers = NetlinkMessage.headerSize + MemoryLayout<genlmsghdr>.size
    let room = attributes.reduce(headers) {
      $0 + NetlinkAttribute.headerSize + netlinkAlign($1.data.count)
    }
    return [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
      buffer.initialize(repeating: 0)
      let header = mnl_nlmsg_put_header(buffer.baseAddress)!
      header.pointee.nlmsg_type = family
      header.pointee.nlmsg_flags = UInt16(
        isDump ? NLM_F_REQUEST | NLM_F_DUMP : NLM_F_REQUEST | NLM_F_ACK)
      header.pointee.nlmsg_seq = sequence
      let generic = mnl_nlmsg_put_extra_header(header, MemoryLayout<genlmsghdr>.size)!
        .assumingMemoryBound(to: genlmsghdr.self)
      generic.pointee.cmd = UInt8(command)
      generic.pointee.version = UInt8(version)
      for attribute in attributes {
        mnl_attr_put(header, attribute.type, attribute.data.count, attribute.data)
      }
      count = Int(header.pointee.nlmsg_len)
    }
  }

  /// The type of the attribute which `offset` of the message is in.
  static func attribute(at offset: Int, in message: [UInt8]) -> UInt16? {
    let headers = NetlinkMessage.headerSize + MemoryLayout<genlmsghdr>.size
    guard message.count >= headers else { return nil }
    let attributes = try? NetlinkAttribute.all(
      in: message.span.bytes.extracting(headers..<message.count))
    return attributes?.first { ($0.start..<$0.data.upperBound).contains(offset - headers) }?.type
  }
}

/// A socket of generic netlink, owned.
struct GenericNetlinkSocket: ~Copyable {
  private let socket: OpaquePointer
  /// The socket's address.
  let port: UInt32
  private var sequence: UInt32 = 0

  // The largest piece that the kernel makes of a dump.
  private static let replySize = 32768

  init() throws(TraitError) {
    guard let socket = mnl_socket_open2(NETLINK_GENERIC, Int32(SOCK_CLOEXEC.rawValue)) else {
      throw GenericNetlinkSocket.failure("a netlink socket cannot be opened")
    }
    var on: Int32 = 1
    let length = socklen_t(MemoryLayout.size(ofValue: on))
    // Old kernels lack these: then errors come without text.
    _ = mnl_socket_setsockopt(socket, NETLINK_EXT_ACK, &on, length)
    _ = mnl_socket_setsockopt(socket, NETLINK_CAP_ACK, &on, length)
    guard mnl_socket_bind(socket, 0, pid_t(MNL_SOCKET_AUTOPID)) == 0 else {
      let failure = GenericNetlinkSocket.failure("a netlink socket cannot be bound")
      mnl_socket_close(socket)
      throw failure
    }
    self.socket = socket
    port = mnl_socket_get_portid(socket)
  }

  deinit {
    mnl_socket_close(socket)
  }

  private static func failure(_ message: String) -> TraitError {
    TraitError(.systemCall, message, underlyingError: Errno(rawValue: errno))
  }

  /// Sends a request, and hands the attributes of each message of the reply to
  /// `read`.
  ///
  /// - Returns: What `read` returned, in order.
  mutating func exchange<Item>(
    _ request: GenericRequest, family: UInt16,
    read: (RawSpan) throws(TraitError) -> Item
  ) throws(TraitError) -> Result<[Item], NetlinkRefusal> {
    try ReplyReader.untilConsistent { () throws(TraitError) in
      sequence &+= 1
      let message = request.message(family: family, sequence: sequence)
      guard mnl_socket_sendto(socket, message, message.count) >= 0 else {
        throw Self.failure("a netlink request cannot be sent")
      }
      var reader = ReplyReader<Item>(
        request: message, family: family, sequence: sequence, port: port)
      return try receive(&reader, read: read)
    }
  }

  private func receive<Item>(
    _ reader: inout ReplyReader<Item>, read: (RawSpan) throws(TraitError) -> Item
  ) throws(TraitError) -> ReplyReader<Item>.Reply {
    var reply = [UInt8](repeating: 0, count: Self.replySize)
    while true {
      let length: Int
      do throws(Errno) {
        length = try receive(into: &reply)
      } catch {
        throw TraitError(
          .systemCall, "a netlink reply cannot be received", underlyingError: error)
      }
      let datagram = reply.span.bytes.extracting(0..<length)
      if let reply = try reader.read(datagram, item: read) { return reply }
    }
  }

  var descriptor: FileDescriptor { FileDescriptor(rawValue: mnl_socket_get_fd(socket)) }

  /// - Throws: `systemCall`.
  func setOption(_ level: Int32, _ name: Int32, _ value: UInt32) throws(TraitError) {
    var value = value
    guard
      setsockopt(
        descriptor.rawValue, level, name, &value, socklen_t(MemoryLayout.size(ofValue: value))) == 0
    else { throw Self.failure("option \(name) of a netlink socket cannot be set") }
  }

  /// Receives one datagram of the kernel's. Privileged programs can send to this socket
  /// as well, which is not what was asked for: theirs are passed over.
  ///
  /// - Parameter flags: `MSG_DONTWAIT` or none.
  /// - Returns: How many bytes there are, none of which is lost.
  /// - Throws: What recv(2) and netlink(7) name: `EAGAIN` if nothing is there, `ENOBUFS`
  ///   if something was lost.
  func receive(into bytes: inout [UInt8], flags: Int = 0) throws(Errno) -> Int {
    while true {
      var sender = sockaddr_nl()
      var senderLength = socklen_t(MemoryLayout.size(ofValue: sender))
      // The length of all there was, though more than there is room for.
      let length = withUnsafeMutablePointer(to: &sender) { sender in
        sender.withMemoryRebound(to: sockaddr.self, capacity: 1) { sender in
          recvfrom(
            descriptor.rawValue, &bytes, bytes.count, Int32(flags) | Int32(MSG_TRUNC),
            sender, &senderLength)
        }
      }
      guard length >= 0 else {
        let error = Errno(rawValue: errno)
        if error == .interrupted { continue }
        throw error
      }
      // The kernel's address is 0.
      guard sender.nl_pid == 0 else { continue }
      guard length <= bytes.count else { throw .noBufferSpace }
      return length
    }
  }

  /// The family with this name, or nil if there is none.
  mutating func family(named name: String) throws(TraitError) -> GenericFamily? {
    let request = GenericRequest(
      command: Int(CTRL_CMD_GETFAMILY),
      attributes: [GenericRequest.Attribute(Int(CTRL_ATTR_FAMILY_NAME), name)])
    let result = try exchange(request, family: UInt16(GENL_ID_CTRL)) {
      bytes throws(TraitError) in
      try GenericFamily(attributes: bytes)
    }
    switch result {
    case .success(let families):
      guard let family = families.first else {
        throw TraitError(.malformedReply, "the kernel's reply about family \"\(name)\" is empty")
      }
      return family
    case .failure(let refusal) where refusal.error == .noSuchFileOrDirectory:
      return nil
    case .failure(let refusal):
      throw TraitError(
        .systemCall, refusal.text ?? "the netlink family \"\(name)\" cannot be looked up",
        underlyingError: refusal.error)
    }
  }
}
