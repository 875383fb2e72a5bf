// SPDX-License-Identifier: MIT

import CLibMNL
import CTraits
import PacketTraits
import SystemPackage
import Testing

@testable import TraitRegistry

@Suite("Replies to a netlink request")
struct ReplyReaderTests {
  private static let family: UInt16 = 30
  private static let sequence: UInt32 = 7
  private static let port: UInt32 = 4711

  private let request = GenericRequest(
    command: Int(TRAITS_CMD_KEY_NEW),
    attributes: [.init(Int(TRAITS_A_KEY_NAME), "abc"), .init(Int(TRAITS_A_KEY_SIZE), 5)]
  ).message(family: family, sequence: sequence)

  /// A message as the kernel sends it, its end padded.
  private func message(
    type: UInt16 = family, flags: Int32 = NLM_F_MULTI, sequence: UInt32 = sequence,
    port: UInt32 = port, _ payload: [UInt8]
  ) -> [UInt8] {
    let bytes =
      native(UInt32(16 + payload.count)) + native(type) + native(UInt16(flags)) + native(sequence)
      + native(port) + payload
    return bytes + [UInt8](repeating: 0, count: netlinkAlign(bytes.count) - bytes.count)
  }

  private func key(
    _ number: UInt32, flags: Int32 = NLM_F_MULTI, sequence: UInt32 = sequence, port: UInt32 = port
  ) -> [UInt8] {
    message(
      flags: flags, sequence: sequence, port: port,
      [UInt8(TRAITS_CMD_KEY_NEW), 1, 0, 0] + keyAttributes(id: native(number)))
  }

  private func done(
    _ status: Int32 = 0, flags: Int32 = NLM_F_MULTI, sequence: UInt32 = sequence,
    port: UInt32 = port, _ extended: [UInt8] = []
  ) -> [UInt8] {
    message(
      type: UInt16(NLMSG_DONE), flags: flags, sequence: sequence, port: port,
      native(status) + extended)
  }

  private typealias Reader = ReplyReader<UInt32>

  /// What a reader makes of these datagrams, and how many of them it took.
  private func read(_ datagrams: [[UInt8]]) throws -> (reply: Reader.Reply?, count: Int) {
    var reader = Reader(
      request: request, family: Self.family, sequence: Self.sequence, port: Self.port)
    for (number, datagram) in datagrams.enumerated() {
      let reply = try reader.read(datagram.span.bytes) { bytes throws(TraitError) in
        try RegisteredKey(attributes: bytes).id.rawValue
      }
      if let reply { return (reply, number + 1) }
    }
    return (nil, datagrams.count)
  }

  private func expectItems(
    _ right: [UInt32], _ datagrams: [[UInt8]], sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let (reply, count) = try read(datagrams)
    guard case .items(let items) = reply else {
      Issue.record("\(String(describing: reply))", sourceLocation: sourceLocation)
      return
    }
    #expect(items == right, sourceLocation: sourceLocation)
    #expect(count == datagrams.count, sourceLocation: sourceLocation)
  }

  private func refusal(_ datagrams: [[UInt8]]) throws -> NetlinkRefusal? {
    guard case .refusal(let refusal) = try read(datagrams).reply else { return nil }
    return refusal
  }

  private func isInconsistent(_ datagrams: [[UInt8]]) throws -> Bool {
    if case .inconsistent = try read(datagrams).reply { true } else { false }
  }

  @Test("are one message and an acknowledgement, together or apart")
  func single() throws {
    let acknowledgement = message(
      type: UInt16(NLMSG_ERROR), flags: 0, native(Int32(0)) + request.prefix(16))
    try expectItems([5], [key(5, flags: 0) + acknowledgement])
    try expectItems([5], [key(5, flags: 0), acknowledgement])
    try expectItems([], [acknowledgement])
    // Nothing is over without it.
    #expect(try read([key(5, flags: 0)]).reply == nil)
    #expect(try read([]).reply == nil)
  }

  @Test("are the messages of a dump, in as many datagrams as it takes")
  func dump() throws {
    try expectItems([0, 1, 2, 3], [key(0) + key(1), key(2), key(3) + done()])
    try expectItems([0, 1], [key(0), key(1), done()])
    try expectItems([], [done()])
    // The end is the last: what follows in another datagram is not asked for.
    #expect(try read([key(0) + done(), key(1)]).count == 1)
    #expect(try read([key(0), key(1)]).reply == nil)
  }

  @Test("of which a message tells a change, wherever it stands, are inconsistent")
  func changed() throws {
    let changed = NLM_F_MULTI | NLM_F_DUMP_INTR
    #expect(try isInconsistent([key(0, flags: changed) + key(1) + done()]))
    #expect(try isInconsistent([key(0), key(1, flags: changed), key(2), done()]))
    #expect(try isInconsistent([key(0), done(flags: changed)]))
    // Only when it is complete, or the rest would be taken for the next reply.
    #expect(try read([key(0, flags: changed), key(1)]).reply == nil)
    // Of somebody else's request it says nothing.
    try expectItems([1], [key(0, flags: changed, sequence: 6), key(1), done()])
    // A refusal is one all the same.
    #expect(try refusal([key(0, flags: changed), done(-1)])?.error == .notPermitted)
  }

  @Test("of another request or for another socket are passed over")
  func foreign() throws {
    try expectItems(
      [1, 2],
      [
        key(60, sequence: 6) + done(sequence: 6),
        key(61, port: 4712) + done(port: 4712),
        key(62, sequence: 8) + key(1) + done(-1, sequence: 8),
        key(2) + done(),
      ])
    // Even if it is not what its type says.
    try expectItems([1], [message(sequence: 6, [1]), key(1), done()])
    #expect(try read([done(sequence: 0), done(port: 0)]).reply == nil)
  }

  @Test("with messages of other types are read without these")
  func otherTypes() throws {
    try expectItems(
      [1], [message(type: UInt16(NLMSG_NOOP), []) + message(type: 31, [1, 2, 3, 4]) + key(1), done()])
  }

  @Test("that end in an error are refusals, with the kernel's words")
  func failed() throws {
    let text = attribute(Int(NLMSGERR_ATTR_MSG.rawValue), Array("no list today\0".utf8))
    let flags = NLM_F_MULTI | NLM_F_ACK_TLVS
    #expect(
      try refusal([key(0), done(-105, flags: flags, text)])
        == NetlinkRefusal(error: .noBufferSpace, text: "no list today", attribute: nil))
    // Without the flag there is no text to be read.
    #expect(
      try refusal([key(0), done(-105, text)])
        == NetlinkRefusal(error: .noBufferSpace, text: nil, attribute: nil))

    let offset = attribute(Int(NLMSGERR_ATTR_OFFS.rawValue), native(UInt32(28)))
    let error = message(
      type: UInt16(NLMSG_ERROR), flags: NLM_F_ACK_TLVS | NLM_F_CAPPED,
      native(Int32(-22)) + request.prefix(16) + text + offset)
    #expect(
      try refusal([error])
        == NetlinkRefusal(
          error: .invalidArgument, text: "no list today", attribute: UInt16(TRAITS_A_KEY_SIZE)))

    let far = attribute(Int(NLMSGERR_ATTR_OFFS.rawValue), native(UInt32.max))
    let nowhere = message(
      type: UInt16(NLMSG_ERROR), flags: NLM_F_ACK_TLVS | NLM_F_CAPPED,
      native(Int32(-22)) + request.prefix(16) + far)
    #expect(
      try refusal([nowhere])
        == NetlinkRefusal(error: .invalidArgument, text: nil, attribute: nil))
  }

  @Test("that are cut off are refused, wherever", arguments: 0..<3)
  func truncated(part: Int) throws {
    let whole = [key(0), key(1) + key(2), done()]
    // Every length but those at which a message ends.
    for length in 1..<whole[part].count where length != key(1).count {
      var cut = whole
      cut[part] = Array(cut[part].prefix(length))
      let error = #expect(throws: TraitError.self, "\(length) bytes") { try read(cut) }
      #expect(error?.code == .malformedReply, "\(length) bytes")
    }
  }

  @Test("without what belongs into them are refused")
  func malformed() throws {
    for wrong in [
      message([1, 2, 3]), message([1, 1, 0, 0]), message(type: UInt16(NLMSG_DONE), []),
      done(1), key(64),
    ] {
      let error = #expect(throws: TraitError.self) { try read([wrong]) }
      #expect(error?.code == .malformedReply)
    }
  }

  @Test("are asked for again as long as they are inconsistent, but not for ever")
  func again() throws {
    var attempts = 0
    let items = try Reader.untilConsistent { () throws(TraitError) in
      attempts += 1
      return attempts < 5 ? .inconsistent : .items([UInt32(attempts)])
    }
    #expect(try items.get() == [5])
    #expect(attempts == 5)

    attempts = 0
    let error = #expect(throws: TraitError.self) {
      try Reader.untilConsistent(attempts: 9) { () throws(TraitError) in
        attempts += 1
        return .inconsistent
      }
    }
    #expect(error?.code == .registryChanging)
    #expect(error?.message == "the registry changed each of the 9 times that it was listed")
    #expect(attempts == 9)

    attempts = 0
    let refused = try Reader.untilConsistent { () throws(TraitError) in
      attempts += 1
      return .refusal(NetlinkRefusal(error: .notPermitted, text: nil, attribute: nil))
    }
    #expect(throws: NetlinkRefusal.self) { try refused.get() }
    #expect(attempts == 1)
  }
}
