// SPDX-License-Identifier: MIT

import CLibMNL
import CTraits
import Glibc
import PacketTraits
import SeededRandom
import SystemPackage
import Testing

@testable import TraitRegistry

func native<Number: FixedWidthInteger & BitwiseCopyable>(_ number: Number) -> [UInt8] {
  withUnsafeBytes(of: number) { Array($0) }
}

func attribute(_ type: Int, _ data: [UInt8], length: UInt16? = nil) -> [UInt8] {
  let bytes = native(length ?? UInt16(4 + data.count)) + native(UInt16(type)) + data
  return bytes + [UInt8](repeating: 0, count: netlinkAlign(bytes.count) - bytes.count)
}

func keyAttributes(
  id: [UInt8] = native(UInt32(7)), name: [UInt8] = Array("flow\0".utf8),
  size: [UInt8] = native(UInt32(8)), flags: [UInt8] = native(UInt32(5)),
  merge: [UInt8] = native(UInt32(2))
) -> [UInt8] {
  attribute(Int(TRAITS_A_KEY_ID), id) + attribute(Int(TRAITS_A_KEY_NAME), name)
    + attribute(Int(TRAITS_A_KEY_SIZE), size) + attribute(Int(TRAITS_A_KEY_FLAGS), flags)
    + attribute(Int(TRAITS_A_KEY_MERGE), merge)
}

@Suite("Netlink replies")
struct NetlinkReplyTests {
  @Test("about a key are read")
  func key() throws {
    let bytes = keyAttributes() + attribute(99, [1, 2, 3])
    let key = try RegisteredKey(attributes: bytes.span.bytes)
    #expect(key.id.rawValue == 7)
    #expect(key.name == "flow")
    #expect(key.size == .bytes8)
    #expect(key.flags == [.openRead, .crossesNetworkNamespaces])
    #expect(key.merge == .first)
  }

  @Test("about a key with a policy and flags of a later kernel are read")
  func laterKernel() throws {
    let bytes = keyAttributes(flags: native(UInt32(1 << 20)), merge: native(UInt32(99)))
    let key = try RegisteredKey(attributes: bytes.span.bytes)
    #expect(key.merge.rawValue == 99)
    #expect(key.merge.description == "99")
    #expect(key.flags.rawValue == 1 << 20)
  }

  @Test("about what happened to a key's values are read")
  func keyStatistics() throws {
    let bytes =
      attribute(Int(TRAITS_A_KEY_STATS_ID), native(UInt32(63)))
      + attribute(Int(TRAITS_A_KEY_STATS_NAME), Array("flow\0".utf8))
      + attribute(Int(TRAITS_A_KEY_STATS_SET), native(UInt64.max))
      + attribute(Int(TRAITS_A_KEY_STATS_READ), native(UInt32(2)))
      + attribute(Int(TRAITS_A_KEY_STATS_DROPPED), native(UInt32(3)))
      + attribute(Int(TRAITS_A_KEY_STATS_SCRUBBED), native(UInt64(4)))
    let statistics = try KeyStatistics(attributes: bytes.span.bytes)
    #expect(
      statistics
        == KeyStatistics(
          id: try #require(TraitID(rawValue: 63)), name: "flow", set: .max, read: 2, dropped: 3,
          scrubbed: 4))
    let wrong = attribute(Int(TRAITS_A_KEY_STATS_ID), native(UInt32(64))) + bytes.dropFirst(8)
    let error = #expect(throws: TraitError.self) { try KeyStatistics(attributes: wrong.span.bytes) }
    #expect(error?.message.contains("key 64") == true, "\(String(describing: error))")
  }

  static let wrongKeys: [(String, [UInt8])] = [
    ("\"id\" of the kernel's reply has 8 bytes, not 4", keyAttributes(id: native(UInt64(7)))),
    ("\"id\" of the kernel's reply has 0 bytes, not 4", keyAttributes(id: [])),
    ("key 64", keyAttributes(id: native(UInt32(64)))),
    ("\"name\" of the kernel's reply has 0 bytes", keyAttributes(name: [])),
    ("\"name\" of the kernel's reply has 1 bytes", keyAttributes(name: [0])),
    (
      "\"name\" of the kernel's reply has 33 bytes",
      keyAttributes(name: Array(repeating: 97, count: 32) + [0])
    ),
    ("\"name\" of the kernel's reply is no string", keyAttributes(name: Array("flow".utf8))),
    ("\"name\" of the kernel's reply is no string", keyAttributes(name: [97, 0, 97, 0])),
    ("\"name\" of the kernel's reply is no string", keyAttributes(name: [0xff, 0xfe, 0])),
    ("\"size\" of the kernel's reply has 2 bytes, not 4", keyAttributes(size: [8, 0])),
    ("size of 5, not 4, 8 or 16", keyAttributes(size: native(UInt32(5)))),
    ("\"flags\" of the kernel's reply has 1 bytes, not 4", keyAttributes(flags: [5])),
    ("\"merge\" of the kernel's reply has 8 bytes, not 4", keyAttributes(merge: native(UInt64(1)))),
    ("no attribute \"merge\"", Array(keyAttributes().dropLast(8))),
    ("no attribute \"id\"", attribute(Int(TRAITS_A_KEY_NAME), Array("flow\0".utf8))),
    ("no attribute \"id\"", []),
    ("3 bytes are left", keyAttributes() + [1, 2, 3]),
    ("states a length of 3 bytes", keyAttributes() + attribute(9, [], length: 3)),
    ("states a length of 9 bytes", keyAttributes() + attribute(9, [0, 0, 0, 0], length: 9)),
  ]

  @Test("about a key with a wrong attribute are refused, and it is named", arguments: wrongKeys)
  func wrongKey(message: String, bytes: [UInt8]) {
    let error = #expect(throws: TraitError.self) { try RegisteredKey(attributes: bytes.span.bytes) }
    #expect(error?.code == .malformedReply)
    #expect(error?.message.contains(message) == true, "\(String(describing: error))")
  }

  @Test("about statistics have numbers of 4 or 8 bytes")
  func statistics() throws {
    let bytes =
      attribute(Int(TRAITS_A_STATS_SET), native(UInt64.max))
      + attribute(Int(TRAITS_A_STATS_COPIED), native(UInt32(2)))
      + attribute(Int(TRAITS_A_STATS_DISCARDED), native(UInt32.max))
      + attribute(Int(TRAITS_A_STATS_SCRUBBED), native(UInt64(4)))
      + attribute(Int(TRAITS_A_STATS_ALLOCATED), native(UInt32(5)))
      + attribute(Int(TRAITS_A_STATS_EVICTED), native(UInt32(6)))
      + attribute(Int(TRAITS_A_STATS_LOST), native(UInt32(7)))
    let statistics = try TraitStatistics(attributes: bytes.span.bytes)
    #expect(
      statistics
        == TraitStatistics(
          set: .max, copied: 2, discarded: UInt64(UInt32.max), scrubbed: 4, allocated: 5,
          evicted: 6, lost: 7))

    let wrong = attribute(Int(TRAITS_A_STATS_SET), [1, 2]) + bytes.dropFirst(12)
    let error = #expect(throws: TraitError.self) {
      try TraitStatistics(attributes: wrong.span.bytes)
    }
    #expect(error?.message == "the attribute \"set\" of the kernel's reply has 2 bytes, not 4 or 8")

    // A kernel that counts less is older than this.
    let short = bytes.dropLast(8)
    let missing = #expect(throws: TraitError.self) {
      try TraitStatistics(attributes: Array(short).span.bytes)
    }
    #expect(missing?.message.contains("\"lost\"") == true, "\(String(describing: missing))")
  }

  @Test("are walked message by message")
  func messages() throws {
    let header =
      native(UInt32(17)) + native(UInt16(3)) + native(UInt16(5)) + native(UInt32(9)) + native(UInt32(11))
    let bytes = header + [0xaa, 0, 0, 0] + header + [0xbb]
    var position = 0
    let first = try #require(try NetlinkMessage.next(in: bytes.span.bytes, at: &position))
    #expect(first == NetlinkMessage(type: 3, flags: 5, sequence: 9, port: 11, payload: 16..<17))
    let second = try #require(try NetlinkMessage.next(in: bytes.span.bytes, at: &position))
    #expect(second.payload == 36..<37)
    #expect(try NetlinkMessage.next(in: bytes.span.bytes, at: &position) == nil)
  }

  @Test("of random and damaged bytes never trap", arguments: SeededGenerator.seeds)
  func hostile(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    let valid =
      native(UInt32(16 + 4 + keyAttributes().count)) + native(UInt16(30)) + native(UInt16(0))
      + native(UInt32(1)) + native(UInt32(1)) + [3, 1, 0, 0] + keyAttributes()
    // With arrays of nested attributes, as that of a family's groups.
    let group =
      attribute(Int(CTRL_ATTR_MCAST_GRP_NAME), Array("changes\0".utf8))
      + attribute(Int(CTRL_ATTR_MCAST_GRP_ID), native(UInt32(9)))
    let familyAttributes =
      attribute(Int(CTRL_ATTR_FAMILY_ID), native(UInt16(30)))
      + attribute(Int(CTRL_ATTR_MCAST_GROUPS), attribute(1, group) + attribute(2, group))
    let nested =
      native(UInt32(16 + 4 + familyAttributes.count)) + valid[4..<16] + [1, 2, 0, 0] + familyAttributes
    let family = try GenericFamily(attributes: familyAttributes.span.bytes)
    #expect(family.id == 30)
    #expect(family.groups == ["changes": 9])
    var refusals = 0
    for round in 0..<6_000 {
      var bytes = round % 3 == 1 ? nested : valid
      if round.isMultiple(of: 3) {
        bytes = (0..<Int.random(in: 0..<100, using: &generator)).map { _ in
          UInt8.random(in: 0...(Bool.random(using: &generator) ? 255 : 20), using: &generator)
        }
      } else {
        for _ in 0..<Int.random(in: 1..<4, using: &generator) {
          bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(
            in: .min ... .max, using: &generator)
        }
        bytes.removeLast(Int.random(in: 0..<8, using: &generator))
      }
      do {
        try readAll(bytes.span.bytes)
      } catch {
        refusals += 1
      }
    }
    #expect(refusals > 250, "seed \(seed)")
  }

  private func readAll(_ datagram: RawSpan) throws {
    var position = 0
    while let message = try NetlinkMessage.next(in: datagram, at: &position) {
      let payload = datagram.extracting(message.payload)
      var reader = ReplyReader<RegisteredKey>(
        request: [], family: 30, sequence: message.sequence, port: message.port)
      _ = try? reader.read(datagram) { bytes throws(TraitError) in
        try RegisteredKey(attributes: bytes)
      }
      _ = try? NetlinkAcknowledgement(payload, of: message)
      var withText = message
      withText.type = UInt16(NLMSG_ERROR)
      withText.flags |= UInt16(NLM_F_ACK_TLVS)
      _ = try? NetlinkAcknowledgement(payload, of: withText)
      guard payload.byteCount >= 4 else { continue }
      let attributes = payload.extracting(4..<payload.byteCount)
      _ = try? RegistryChange.all(in: datagram, family: message.type)
      _ = try? GenericFamily(attributes: attributes)
      _ = try? KeyStatistics(attributes: attributes)
      _ = try? TraitStatistics(attributes: attributes)
      _ = try RegisteredKey(attributes: attributes)
    }
  }
}

@Suite("Netlink acknowledgements")
struct NetlinkAcknowledgementTests {
  private func message(_ flags: Int32, type: Int32 = NLMSG_ERROR) -> NetlinkMessage {
    NetlinkMessage(type: UInt16(type), flags: UInt16(flags), sequence: 1, port: 1, payload: 16..<16)
  }

  private let request: [UInt8] = {
    let request = GenericRequest(
      command: Int(TRAITS_CMD_KEY_NEW),
      attributes: [
        .init(Int(TRAITS_A_KEY_NAME), "abc"), .init(Int(TRAITS_A_KEY_SIZE), 5),
      ])
    return request.message(family: 30, sequence: 1)
  }()

  private let extended =
    attribute(Int(NLMSGERR_ATTR_MSG.rawValue), Array("a size is 4, 8 or 16\0".utf8))
    + attribute(Int(NLMSGERR_ATTR_OFFS.rawValue), native(UInt32(28)))

  @Test("say that all is well")
  func success() throws {
    let bytes = native(Int32(0)) + request.prefix(16)
    let acknowledgement = try NetlinkAcknowledgement(bytes.span.bytes, of: message(0))
    #expect(acknowledgement.error == nil)
    #expect(acknowledgement.text == nil)
  }

  @Test("say what was wrong, whether they repeat the request or not", arguments: [true, false])
  func text(isCapped: Bool) throws {
    let bytes = native(Int32(-22)) + (isCapped ? request.prefix(16) : request[...]) + extended
    let flags = NLM_F_ACK_TLVS | (isCapped ? NLM_F_CAPPED : 0)
    let acknowledgement = try NetlinkAcknowledgement(bytes.span.bytes, of: message(flags))
    #expect(acknowledgement.error == .invalidArgument)
    #expect(acknowledgement.text == "a size is 4, 8 or 16")
    let offset = try #require(acknowledgement.offset)
    #expect(GenericRequest.attribute(at: offset, in: request) == UInt16(TRAITS_A_KEY_SIZE))
  }

  @Test("that end a dump have their text at once")
  func done() throws {
    let bytes = native(Int32(-1)) + extended
    let acknowledgement = try NetlinkAcknowledgement(
      bytes.span.bytes, of: message(NLM_F_ACK_TLVS | NLM_F_MULTI, type: NLMSG_DONE))
    #expect(acknowledgement.error == .notPermitted)
    #expect(acknowledgement.text == "a size is 4, 8 or 16")
  }

  @Test(
    "that are malformed are refused",
    arguments: [
      [], [1, 2, 3], native(Int32(5)), native(Int32.min), native(Int32(-1)),
      native(Int32(-1)) + native(UInt32.max) + [UInt8](repeating: 0, count: 12),
      native(Int32(-1)) + native(UInt32(17)) + [UInt8](repeating: 0, count: 12),
      native(Int32(-1)) + native(UInt32(16)) + [UInt8](repeating: 0, count: 12) + [1],
    ])
  func malformed(bytes: [UInt8]) {
    let error = #expect(throws: TraitError.self) {
      try NetlinkAcknowledgement(bytes.span.bytes, of: message(NLM_F_ACK_TLVS))
    }
    #expect(error?.code == .malformedReply)
  }

  @Test(
    "become errors with a code of their own",
    arguments: [
      (Errno.notPermitted, TraitError.Code.notPermitted), (.fileExists, .keyExists),
      (.noSpace, .registryFull), (.invalidArgument, .invalidArgument),
      (.outOfRange, .invalidArgument), (.noSuchFileOrDirectory, .noSuchKey),
      (.noMemory, .systemCall),
    ])
  func codes(errno: Errno, code: TraitError.Code) {
    let refusal = NetlinkRefusal(
      error: errno, text: "as the kernel says", attribute: UInt16(TRAITS_A_KEY_NAME))
    let error = TraitError(refusal, "key \"a\" cannot be registered")
    #expect(error.code == code)
    #expect(error.underlyingError == errno)
    #expect(
      error.message.hasPrefix("key \"a\" cannot be registered, because of its name: as the kernel says"))
  }
}

@Suite("Netlink requests")
struct NetlinkRequestTests {
  @Test("are what they should be, attribute by attribute")
  func layout() throws {
    let request = GenericRequest(
      command: Int(TRAITS_CMD_KEY_NEW), version: 1,
      attributes: [.init(Int(TRAITS_A_KEY_NAME), "ab"), .init(Int(TRAITS_A_KEY_SIZE), 16)])
    let bytes = request.message(family: 0x1e, sequence: 0x0102_0304)
    var position = 0
    let message = try #require(try NetlinkMessage.next(in: bytes.span.bytes, at: &position))
    #expect(message.type == 0x1e)
    #expect(message.flags == UInt16(NLM_F_REQUEST | NLM_F_ACK))
    #expect(message.sequence == 0x0102_0304)
    #expect(position == bytes.count)
    #expect(Array(bytes[16..<20]) == [UInt8(TRAITS_CMD_KEY_NEW), 1, 0, 0])
    #expect(Array(bytes[20...]) == attribute(2, [97, 98, 0]) + attribute(3, native(UInt32(16))))
    #expect(GenericRequest.attribute(at: 20, in: bytes) == 2)
    #expect(GenericRequest.attribute(at: 26, in: bytes) == 2)
    #expect(GenericRequest.attribute(at: 28, in: bytes) == 3)
    #expect(GenericRequest.attribute(at: 0, in: bytes) == nil)
    #expect(GenericRequest.attribute(at: 99, in: bytes) == nil)
  }

  @Test("reach this kernel, one by one and as a dump")
  func kernel() throws {
    var socket = try GenericNetlinkSocket()
    let controller = try #require(try socket.family(named: "nlctrl"))
    #expect(controller.id == UInt16(GENL_ID_CTRL))
    #expect(controller.groups["notify"] != nil)
    #expect(try socket.family(named: "no-such-family") == nil)
    let families = try socket.exchange(
      GenericRequest(command: Int(CTRL_CMD_GETFAMILY), isDump: true), family: UInt16(GENL_ID_CTRL)
    ) { bytes throws(TraitError) in
      try NetlinkAttributes(bytes).string(Int(CTRL_ATTR_FAMILY_NAME), "family-name", maximumLength: 15)
    }
    #expect(try families.get().contains("nlctrl"))

    let refused = try socket.exchange(
      GenericRequest(command: 200), family: UInt16(GENL_ID_CTRL)
    ) { _ in }
    let refusal = #expect(throws: NetlinkRefusal.self) { try refused.get() }
    #expect(refusal?.error == .notSupported)
  }

  @Test(
    "are answered by the kernel alone, whoever else sends to the socket",
    .enabled(if: geteuid() == 0, "to send to another's netlink socket takes CAP_NET_ADMIN"))
  func forged() throws {
    var socket = try GenericNetlinkSocket()
    let forger = try GenericNetlinkSocket()
    // What would end the first request if the kernel had sent it.
    let refusal = native(Int32(-1)) + [UInt8](repeating: 0, count: 16)
    let message =
      native(UInt32(16 + refusal.count)) + native(UInt16(NLMSG_ERROR)) + native(UInt16(0))
      + native(UInt32(1)) + native(socket.port) + refusal
    var address = sockaddr_nl()
    address.nl_family = UInt16(AF_NETLINK)
    address.nl_pid = socket.port
    func forge() throws {
      let sent = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          sendto(
            forger.descriptor.rawValue, message, message.count, 0, $0,
            socklen_t(MemoryLayout<sockaddr_nl>.size))
        }
      }
      try #require(sent == message.count, "\(Errno(rawValue: errno))")
    }
    try forge()
    #expect(try socket.family(named: "nlctrl")?.id == UInt16(GENL_ID_CTRL))

    try forge()
    // It is there, and more than there is room for.
    var bytes: [UInt8] = [0]
    #expect(recv(socket.descriptor.rawValue, &bytes, 1, Int32(MSG_PEEK)) == 1)
    #expect(throws: Errno.wouldBlock) { try socket.receive(into: &bytes, flags: MSG_DONTWAIT) }
  }

  @Test("tell a kernel without packet traits")
  func support() throws {
    if try Traits.isSupportedByKernel() {
      var registry = try RegistryConnection()
      _ = try registry.keys()
    } else {
      do {
        var registry = try RegistryConnection()
        _ = try registry.keys()
        Issue.record("there is a registry, but sockets know nothing of traits")
      } catch {
        #expect(error.code == .unsupportedKernel)
        #expect(error.description == "this kernel has no packet traits")
      }
    }
  }
}

@Suite("Names of keys")
struct KeyNameTests {
  @Test(
    "may be 1 to 31 of a-z 0-9 . _ -",
    arguments: ["a", "0", "-", ".", "_", "flow-id.v2_x", "abcdefghijklmnopqrstuvwxyz01234"])
  func allowed(name: String) throws {
    try KeyName.check(name)
  }

  @Test(
    "are refused otherwise, with what is wrong",
    arguments: [
      ("", "the name is empty"), ("Flow", "F in it"), ("a b", "  in it"), ("a/b", "/ in it"),
      ("\u{e9}", "\\u{00E9} in it"), ("a\n", "\\n in it"), ("a\0b", "\\0 in it"),
      ("abcdefghijklmnopqrstuvwxyz012345", "32 characters"),
    ])
  func refused(name: String, message: String) {
    let error = #expect(throws: TraitError.self) { try KeyName.check(name) }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains(message) == true, "\(String(describing: error))")
    #expect(error?.message.hasSuffix("a name is 1 to 31 of a-z, 0-9, '.', '_' and '-'") == true)
  }

  @Test("with a size other than the type's are refused")
  func typed() throws {
    let key = RegisteredKey(
      id: try #require(TraitID(rawValue: 3)), name: "flow", size: .bytes8, flags: [], merge: .exact)
    #expect(try key.typed(as: UInt64.self).id == key.id)
    let error = #expect(throws: TraitError.self) { try key.typed(as: UInt32.self) }
    #expect(error?.code == .sizeMismatch)
    #expect(error?.message == "key \"flow\" is registered with a size of 8 bytes, not the 4 of UInt32")
  }
}

@Suite("Changes of the registry")
struct RegistryChangeTests {
  private static let family: UInt16 = 30

  private func notice(_ command: Int, type: UInt16 = family, _ attributes: [UInt8] = keyAttributes())
    -> [UInt8]
  {
    let header = native(UInt32(20 + attributes.count)) + native(type) + native(UInt16(0))
    return header + native(UInt32(0)) + native(UInt32(0)) + [UInt8(command), 1, 0, 0] + attributes
  }

  private func key(_ number: UInt32, _ name: String = "flow") throws -> RegisteredKey {
    let bytes = keyAttributes(id: native(number), name: Array(name.utf8) + [0])
    return try RegisteredKey(attributes: bytes.span.bytes)
  }

  @Test("are read one after another, and what is of something else is passed over")
  func read() throws {
    let bytes =
      notice(Int(TRAITS_CMD_KEY_NEW_NTF)) + notice(Int(TRAITS_CMD_KEY_DEL_NTF))
      + notice(Int(TRAITS_CMD_KEY_NEW_NTF), type: 31) + notice(200, [])
      + notice(Int(TRAITS_CMD_KEY_NEW_NTF), keyAttributes(id: native(UInt32(9))))
    #expect(
      try RegistryChange.all(in: bytes.span.bytes, family: Self.family)
        == [.added(key(7)), .removed(key(7)), .added(key(9))])
  }

  @Test("that are malformed are refused")
  func malformed() throws {
    for bytes in [
      notice(Int(TRAITS_CMD_KEY_NEW_NTF), []), Array(notice(Int(TRAITS_CMD_KEY_NEW_NTF)).dropLast()),
      notice(Int(TRAITS_CMD_KEY_DEL_NTF), keyAttributes(size: [])),
      native(UInt32(18)) + native(Self.family) + [UInt8](repeating: 0, count: 12),
    ] {
      let error = #expect(throws: TraitError.self) {
        try RegistryChange.all(in: bytes.span.bytes, family: Self.family)
      }
      #expect(error?.code == .malformedReply)
    }
  }

  @Test("are news unless the list of all keys has them already")
  func table() throws {
    var table = KeyTable()
    try table.replace([key(1), key(2)])
    // Before the list was made: key 1 was added, and another key 2 came and went.
    #expect(try !table.apply(.added(key(1))))
    #expect(try !table.apply(.removed(key(2, "former"))))
    #expect(try !table.apply(.removed(key(3))))
    #expect(try table.keys == [key(1).id: key(1), key(2).id: key(2)])

    #expect(try table.apply(.removed(key(1))))
    #expect(try !table.apply(.removed(key(1))))
    #expect(try table.apply(.added(key(1, "other"))))
    #expect(try table.apply(.keys([key(5)])))
    #expect(try table.keys == [key(5).id: key(5)])
  }

  @Test(
    "cannot be had with a receive buffer of no size",
    arguments: [0, -1, Int(Int32.max) + 1, Int.max, Int.min])
  func receiveBuffer(size: Int) {
    let error = #expect(throws: TraitError.self) { try RegistryChanges(receiveBufferSize: size) }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains("\(size) bytes") == true)
  }

  /// A registry that changes when it is asked, as this says.
  private struct Registry: ChangeSource {
    var all: [RegisteredKey] = []
    var notices: [Result<ChangeNotice, TraitError>] = []
    /// What happens right after a list of all keys was made.
    var afterList: [RegistryChange] = []
    /// A notice is added whenever one is taken.
    var isBusy = false
    var failure: TraitError?

    mutating func change(_ change: RegistryChange) {
      switch change {
      case .keys: break
      case .added(let key): all.append(key)
      case .removed(let key): all.removeAll { $0 == key }
      }
      notices.append(.success(.changes([change])))
    }

    mutating func notice() throws(TraitError) -> ChangeNotice {
      guard !notices.isEmpty else { return .nothing }
      if isBusy { notices.append(notices[0]) }
      return try notices.removeFirst().get()
    }

    mutating func keys() throws(TraitError) -> [RegisteredKey] {
      if let failure {
        self.failure = nil
        throw failure
      }
      let keys = all
      if !afterList.isEmpty { change(afterList.removeFirst()) }
      return keys
    }
  }

  @Test("begin with all keys, and with none that was before")
  func feed() throws {
    var feed = ChangeFeed(Registry())
    try feed.source.change(.added(key(1)))
    try feed.source.change(.added(key(2)))
    try feed.source.change(.removed(key(1)))
    #expect(try feed.next() == .change(.keys([key(2)])))
    #expect(try feed.next() == .nothing)
    try feed.source.change(.added(key(1)))
    try feed.source.change(.removed(key(2)))
    #expect(try feed.next() == .change(.added(key(1))))
    #expect(try feed.next() == .change(.removed(key(2))))
    #expect(try feed.next() == .nothing)
  }

  @Test("a change after the last list is told")
  func afterList() throws {
    var feed = ChangeFeed(Registry())
    // As many as would come if it were listed again and again.
    let changes = try (1..<50).map { RegistryChange.added(try key($0)) }
    feed.source.afterList = changes
    #expect(try feed.next() == .change(.keys([])))
    #expect(try feed.next() == .change(changes[0]))
    #expect(try feed.next() == .nothing)
    // Nor is anything told twice that the list has.
    feed.source.notices = [.success(.missed)]
    #expect(try feed.next() == .change(.keys([key(1)])))
    #expect(try feed.next() == .change(changes[1]))
    #expect(try feed.next() == .nothing)
  }

  @Test("that were missed are in a list, and what is older is not told any more")
  func missed() throws {
    var feed = ChangeFeed(Registry())
    #expect(try feed.next() == .change(.keys([])))
    // Key 1 came, and there is still a notice of it; that it went, and that another took
    // its number, was lost.
    feed.source.notices = try [.success(.missed), .success(.changes([.added(key(1))]))]
    feed.source.all = try [key(1, "other")]
    #expect(try feed.next() == .change(.keys([key(1, "other")])))
    #expect(try feed.next() == .nothing)
  }

  @Test("that cannot be read are missed")
  func unreadable() throws {
    var feed = ChangeFeed(Registry())
    #expect(try feed.next() == .change(.keys([])))
    let malformed = TraitError(.malformedReply, "not what it should be")
    feed.source.all = try [key(1), key(2)]
    feed.source.notices = try [.failure(malformed), .success(.changes([.added(key(2))]))]
    #expect(throws: malformed) { try feed.next() }
    #expect(try feed.next() == .change(.keys([key(1), key(2)])))
    #expect(try feed.next() == .nothing)
    // A list that failed is still to be made.
    feed.source.notices = [.success(.missed)]
    feed.source.failure = TraitError(.registryChanging, "for now")
    #expect(throws: TraitError.self) { try feed.next() }
    #expect(try feed.next() == .change(.keys([key(1), key(2)])))
  }

  @Test("that come without an end keep nobody busy")
  func busy() throws {
    var feed = ChangeFeed(Registry())
    feed.source.isBusy = true
    feed.source.notices = try [.success(.changes([.added(key(1))]))]
    // Neither before the list, nor when nothing of it is news.
    #expect(try feed.next() == .unfinished)
    #expect(try feed.next() == .unfinished)
    feed.source.isBusy = false
    feed.source.all = try [key(1)]
    #expect(try feed.next() == .change(.keys([key(1)])))
    feed.source.isBusy = true
    feed.source.notices = try [.success(.changes([.added(key(1))]))]
    #expect(try feed.next() == .unfinished)
  }
}

@Suite("Merge policies")
struct MergePolicyTests {
  @Test("have the names of the registry's specification, and no others")
  func names() {
    #expect(
      MergePolicy.allCases.map(\.description)
        == ["exact", "drop", "first", "last", "min", "max", "or", "and"])
    #expect(MergePolicy.allCases.map(\.rawValue) == Array(0..<8))
    for policy in MergePolicy.allCases { #expect(MergePolicy(name: policy.description) == policy) }
    // Nor is a number a name, though it is what an unknown policy is called.
    for name in ["", "sum", "Exact", "minimum", "8", "0"] { #expect(MergePolicy(name: name) == nil) }
    #expect(MergePolicy(rawValue: 8).description == "8")
  }
}
