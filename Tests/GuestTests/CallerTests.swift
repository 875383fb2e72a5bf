// SPDX-License-Identifier: MIT

import CNetworkLab
import CTraits
import Glibc
import NetworkLab
import Synchronization
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// What came of a call that a program of this package would not make.
private struct Received: Equatable {
  var payload: [UInt8]
  var control: [UInt8]
  var flags: Int32
}

/// Control data as a 32-bit program has it: headers of 12 bytes, all aligned to 4.
private struct Control32 {
  static let headerSize = 12

  var bytes: [UInt8] = []

  mutating func append(_ level: Int32, _ type: Int32, _ data: [UInt8]) {
    bytes.append(native: UInt32(Self.headerSize + data.count))
    bytes.append(native: level)
    bytes.append(native: type)
    bytes += data + [UInt8](repeating: 0, count: -data.count & 3)
  }

  /// The messages that are in it: where each begins, its level and type, and its data.
  static func all(
    in bytes: [UInt8]
  ) throws -> [(offset: Int, level: Int32, type: Int32, data: [UInt8])] {
    var messages: [(offset: Int, level: Int32, type: Int32, data: [UInt8])] = []
    var offset = 0
    while offset + headerSize <= bytes.count {
      let length = Int(bytes.native(offset, as: UInt32.self))
      try #require(length >= headerSize && offset + length <= bytes.count, "\(bytes)")
      messages.append(
        (
          offset, bytes.native(offset + 4), bytes.native(offset + 8),
          Array(bytes[(offset + headerSize)..<(offset + length)])
        ))
      offset += (length + 3) & ~3
    }
    try #require(offset >= bytes.count, "\(bytes)")
    return messages
  }
}

/// Makes a call with a message, and throws the error that it returns.
private func transfer(
  _ payload: [UInt8], _ control: [UInt8], _ flags: Int32,
  _ call: (UnsafeMutablePointer<lab_message>) -> Int
) throws -> Received {
  var payload = payload
  var control = control
  var after = lab_message()
  let result = payload.withUnsafeMutableBytes { payload in
    control.withUnsafeMutableBytes { control in
      after.payload = payload.baseAddress
      after.payload_length = payload.count
      after.control = control.baseAddress
      after.control_length = control.count
      after.flags = flags
      return call(&after)
    }
  }
  guard result >= 0 else { throw Errno(rawValue: Int32(-result)) }
  return Received(
    payload: Array(payload.prefix(after.payload_length)),
    control: Array(control.prefix(after.control_length)), flags: after.flags)
}

/// How a 32-bit program sends or receives a message.
enum Call32: String, CaseIterable, CustomTestStringConvertible {
  case own = "the call itself"
  case socketcall
  case many = "as one of many"

  var testDescription: String { rawValue }

  fileprivate var call: lab_call32 {
    switch self {
    case .own: LAB_CALL32_OWN
    case .socketcall: LAB_CALL32_SOCKETCALL
    case .many: LAB_CALL32_MANY
    }
  }
}

extension Guest {
  /// Whether the kernel takes the calls of 32-bit programs, and those of rings.
  private static let has32 = lab_has_calls32() == 1
  private static let hasRings: Bool = {
    guard let ring = lab_ring_make(0) else { return false }
    lab_ring_free(ring)
    return true
  }()

  private static func condition(_ isThere: Bool) -> Bool { GuestCondition.isAsked || isThere }

  @Suite(
    "Calls of a 32-bit program", .cable,
    .enabled(if: condition(has32), "this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)"))
  struct Caller32Tests {
    private func send(
      _ call: Call32, _ lane: Lane, _ number: UInt32, _ control: Control32, flags: Int32 = 0
    ) throws {
      _ = try Guest.insisting {
        try transfer(lane.message(number), control.bytes, flags) {
          lab_sendmsg32(call.call, lane.outbox.rawValue, $0)
        }
      }
    }

    private func receive(
      _ call: Call32, _ lane: Lane, controlRoom: Int = 2048, flags: Int32 = 0
    ) throws -> Received {
      // Of another program's layout nothing may be left that would be read as this one's.
      try transfer(
        [UInt8](repeating: 0, count: 2048), [UInt8](repeating: 0xee, count: controlRoom),
        flags | Int32(MSG_DONTWAIT)
      ) { lab_recvmsg32(call.call, lane.inbox.rawValue, $0) }
    }

    @Test("setsockopt() and getsockopt() of TRAITS_RECV take the same 8 bytes", arguments: Kind.receivers)
    func receiveOption(kind: Kind) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let lane = try Lane(kind)
        let socket = lane.inbox.rawValue
        let mask = TraitMask(ids)
        var bits = mask.rawValue
        for length in 0...16 as ClosedRange<UInt32> {
          let bytes = withUnsafeBytes(of: bits) { Array($0) } + [UInt8](repeating: 0, count: 8)
          let status = lab_setsockopt32(socket, SOL_TRAITS, TRAITS_RECV, bytes, length)
          #expect(status == (length == 8 ? 0 : Int(-EINVAL)), "\(length) bytes")
        }
        #expect(try lane.inbox.receivedTraits() == mask)
        for room in 0...16 as ClosedRange<UInt32> {
          var bytes = [UInt8](repeating: 0xee, count: 16)
          var length = room
          let status = lab_getsockopt32(socket, SOL_TRAITS, TRAITS_RECV, &bytes, &length)
          #expect(length == 8, "\(room) bytes of room")
          #expect(status == (room == 0 || room >= 8 ? 0 : Int(-EINVAL)), "\(room) bytes of room")
          if room >= 8 {
            #expect(bytes.native(0, as: UInt64.self) == mask.rawValue)
            #expect(bytes[8...].allSatisfy { $0 == 0xee })
          } else {
            #expect(bytes.allSatisfy { $0 == 0xee })
          }
        }
        bits = 0
        #expect(lab_setsockopt32(socket, SOL_TRAITS, TRAITS_RECV, &bits, 8) == 0)
        #expect(try lane.inbox.receivedTraits().isEmpty)
      }
    }

    @Test("setsockopt() and getsockopt() of TRAITS_SEND take the same records", arguments: Kind.senders)
    func sendOption(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let socket = lane.outbox.rawValue
        let records = sample.traits.records
        for length in [1, 4, 12, 23, 25, 36, 71] as [UInt32] {
          #expect(lab_setsockopt32(socket, SOL_TRAITS, TRAITS_SEND, records + [0], length) == -Int(EINVAL))
        }
        #expect(
          Guest.insistingStatus { lab_setsockopt32(socket, SOL_TRAITS, TRAITS_SEND, records, 72) } == 0)
        #expect(try lane.outbox.sentTraits() == sample.traits)
        for room in [0, 24, 71, 72, 80] as [UInt32] {
          var bytes = [UInt8](repeating: 0xee, count: 80)
          var length = room
          let status = lab_getsockopt32(socket, SOL_TRAITS, TRAITS_SEND, &bytes, &length)
          #expect(length == 72)
          #expect(status == (room == 0 || room >= 72 ? 0 : Int(-EINVAL)), "\(room) bytes of room")
          #expect(Array(bytes[..<72]) == (room >= 72 ? records : [UInt8](repeating: 0xee, count: 72)))
        }
        try lane.send(1)
        try lane.expect(1, sample.traits)
      }
    }

    @Test("sendmsg() takes records behind headers of 12 bytes", arguments: Kind.senders, Call32.allCases)
    func sending(kind: Kind, call: Call32) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let sticky = try Traits([(sample.ids[0], try #require(sample.others.bytes(of: sample.ids[0])))])
        try lane.setSentTraits(sticky)
        // Alone, and behind a message: aligned to 4, and not to 8.
        for isAlone in [true, false] {
          var control = Control32()
          if !isAlone { control.append(SOL_SOCKET, SO_MARK, [5, 0, 0, 0]) }
          control.append(SOL_TRAITS, SCM_TRAITS, sample.traits.records)
          try send(call, lane, 1, control)
          try lane.expect(1, sample.traits)
        }
        // Aligned to 8 as well, behind a message of a level that is nobody's.
        var control = Control32()
        control.append(9999, 1, [UInt8](repeating: 0, count: 8))
        control.append(SOL_TRAITS, SCM_TRAITS, sample.others.records)
        control.append(SOL_SOCKET, SO_MARK, [6, 0, 0, 0])
        try send(call, lane, 2, control)
        try lane.expect(2, sample.others)
        try send(call, lane, 3, Control32())
        try lane.expect(3, sticky)
      }
    }

    @Test("sendmsg() refuses what is malformed, and sends nothing", arguments: Kind.senders, Call32.allCases)
    func malformed(kind: Kind, call: Call32) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let records = sample.traits.records
        let free = try Guest.freeKey()
        var wrong: [(String, Errno, [UInt8])] = [
          ("71 bytes", .invalidArgument, Array(records.dropLast())),
          // What is left of a record that was taken to be aligned to 8
          ("76 bytes", .invalidArgument, [0, 0, 0, 0] + records), ("4 bytes", .invalidArgument, [0, 0, 0, 0]),
          ("a key twice", .invalidArgument, records + records[..<24]),
          ("65 records", .invalidArgument, (0..<65).flatMap { _ in records[..<24] }),
        ]
        wrong.append(
          ("no such key", .noSuchFileOrDirectory, try Traits([(free, [1, 2, 3, 4])]).records + records))
        for (what, error, bytes) in wrong {
          var control = Control32()
          control.append(SOL_TRAITS, SCM_TRAITS, bytes)
          #expect(throws: error, "\(what)") { try send(call, lane, 9, control) }
        }
        var twice = Control32()
        for _ in 0..<2 { twice.append(SOL_TRAITS, SCM_TRAITS, Array(records[..<24])) }
        #expect(throws: Errno.invalidArgument) { try send(call, lane, 9, twice) }
        // Longer than the control data is.
        var short = Control32()
        short.append(SOL_TRAITS, SCM_TRAITS, records)
        short.bytes.removeLast(4)
        #expect(throws: Errno.invalidArgument) { try send(call, lane, 9, short) }
        lane.expectNothing()
      }
    }

    @Test("sendmsg() asks for privilege as ever", arguments: Call32.allCases)
    func privilege(call: Call32) throws {
      try Sample.with { sample in
        let lane = try Lane(.udp4, keys: sample.ids)
        var control = Control32()
        control.append(SOL_TRAITS, SCM_TRAITS, sample.traits.records)
        var mask = TraitMask(sample.ids).rawValue
        try asUser {
          #expect(throws: Errno.notPermitted) { try send(call, lane, 1, control) }
          #expect(lab_setsockopt32(lane.inbox.rawValue, SOL_TRAITS, TRAITS_RECV, &mask, 8) == -Int(EPERM))
          let status = Guest.insistingStatus {
            lab_setsockopt32(lane.outbox.rawValue, SOL_TRAITS, TRAITS_SEND, sample.traits.records, 72)
          }
          #expect(status == -Int(EPERM))
        }
        lane.expectNothing()
      }
    }

    @Test("as many as fit go both ways", arguments: Call32.allCases, TraitSize.allCases)
    func full(call: Call32, size: TraitSize) throws {
      let count = 192 / size.rawValue
      try Guest.withKeys([TraitSize](repeating: size, count: count)) { ids in
        let lane = try Lane(.udp4, keys: ids)
        let all = try Traits(ids.enumerated().map { ($1, Guest.value(size, $0)) })
        var control = Control32()
        control.append(SOL_TRAITS, SCM_TRAITS, all.records)
        try send(call, lane, 1, control)
        let needed = 12 + 24 * count
        let whole = try receive(call, lane, controlRoom: needed)
        #expect(lane.isMessage(whole.payload, 1))
        #expect(whole.control == control.bytes)
        #expect(whole.flags & Int32(MSG_CTRUNC) == 0)
      }
    }

    @Test(
      "recvmsg() gives records behind a header of 12 bytes, whole or not at all", arguments: Kind.receivers,
      Call32.allCases)
    func receiving(kind: Kind, call: Call32) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        var expected = Control32()
        expected.append(SOL_TRAITS, SCM_TRAITS, sample.traits.records)
        #expect(expected.bytes.count == 12 + 72)
        for room in [2048, 84, 88, 83, 80, 12 + 24, 12, 11, 0] {
          try lane.send(1, sample.traits)
          let received = try receive(call, lane, controlRoom: room)
          #expect(lane.isMessage(received.payload, 1))
          #expect(received.control == (room < 84 ? [] : expected.bytes), "\(room) bytes of room")
          #expect((received.flags & Int32(MSG_CTRUNC) != 0) == (room < 84), "\(room) bytes of room")
        }
        try lane.send(2)
        #expect(try receive(call, lane).control.isEmpty)
        // Once more after a look at it.
        try lane.send(3, sample.traits)
        for flags in [Int32(MSG_PEEK), 0] {
          let received = try receive(call, lane, flags: flags)
          #expect(lane.isMessage(received.payload, 3))
          #expect(received.control == expected.bytes)
        }
      }
    }

    @Test("other control messages come before, and leave them aligned to 4", arguments: Call32.allCases)
    func beside(call: Call32) throws {
      try Sample.with { sample in
        let lane = try Lane(.udp4, keys: sample.ids)
        var on: Int32 = 1
        // The time to live is 4 bytes, the type of service 1: what follows both is at 32.
        for (name, position) in [(IP_RECVTTL, 16), (IP_RECVTOS, 32)] {
          try #require(setsockopt(lane.inbox.rawValue, Int32(IPPROTO_IP), name, &on, 4) == 0)
          try lane.send(1, sample.traits)
          let received = try receive(call, lane)
          let messages = try Control32.all(in: received.control)
          let traits = try #require(messages.last)
          #expect(traits.level == SOL_TRAITS)
          #expect(traits.type == SCM_TRAITS)
          #expect(traits.offset == position)
          #expect(traits.data == sample.traits.records)
          #expect(received.control.count == position + 84)
        }
        // The records themselves are then at a multiple of 4 that is none of 8.
        try lane.send(1, sample.traits)
        let short = try receive(call, lane, controlRoom: 32 + 83)
        #expect(try Control32.all(in: short.control).map(\.offset) == [0, 16])
        #expect(short.flags & Int32(MSG_CTRUNC) != 0)
      }
    }

    @Test("the error queue gives them, too", arguments: Kind.senders)
    func errors(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        try lane.stampSent(.software)
        try lane.outbox.setReceivedTraits(TraitMask(sample.ids))
        try lane.send(1, sample.traits)
        let received = try transfer(
          [UInt8](repeating: 0, count: 2048), [UInt8](repeating: 0xee, count: 2048),
          Int32(MSG_ERRQUEUE)
        ) { lab_recvmsg32(LAB_CALL32_OWN, lane.outbox.rawValue, $0) }
        let last = try #require(try Control32.all(in: received.control).last)
        #expect(last.level == SOL_TRAITS)
        #expect(last.data == sample.traits.records)
      }
    }
  }

  @Suite(
    "Requests of io_uring", .cable,
    .enabled(if: condition(hasRings), "this kernel has no io_uring (CONFIG_IO_URING)"))
  struct RingTests {
    /// Who a ring is of.
    enum Owner: String, CaseIterable, CustomTestStringConvertible {
      case program64 = "a 64-bit program"
      case program32 = "a 32-bit program"

      var testDescription: String { rawValue }
    }

    /// How a request is done.
    enum Request: String, CaseIterable, CustomTestStringConvertible {
      case plain
      case byWorker = "by a worker"
      case withoutCopy = "without a copy"

      var testDescription: String { rawValue }

      var request: lab_request {
        switch self {
        case .plain: LAB_REQUEST_PLAIN
        case .byWorker: LAB_REQUEST_BY_WORKER
        case .withoutCopy: LAB_REQUEST_WITHOUT_COPY
        }
      }
    }

    /// A ring, and control data as its owner has it.
    private final class Ring {
      let owner: Owner
      let pointer: OpaquePointer

      init(_ owner: Owner) throws {
        self.owner = owner
        pointer = try #require(lab_ring_make(owner == .program32 ? 1 : 0), "errno \(errno)")
      }

      deinit { lab_ring_free(pointer) }

      func control(_ traits: Traits) -> [UInt8] {
        guard !traits.isEmpty else { return [] }
        if owner == .program64 {
          var control = ControlData()
          control.append(traits)
          return control.bytes
        }
        var control = Control32()
        control.append(SOL_TRAITS, SCM_TRAITS, traits.records)
        return control.bytes
      }

      func send(_ lane: Lane, _ number: UInt32, _ traits: Traits, _ request: Request = .plain, flags: Int32 = 0) throws {
        _ = try Guest.insisting {
          try transfer(lane.message(number), control(traits), flags) {
            lab_ring_sendmsg(pointer, lane.outbox.rawValue, request.request, $0)
          }
        }
      }

      /// - Parameter between: What happens while it waits.
      func receive(
        _ lane: Lane, _ request: Request = .plain, controlRoom: Int = 2048, flags: Int32 = 0,
        _ between: () throws -> Void = {}
      ) throws -> Received {
        var thrown: (any Error)?
        let received = try transfer(
          [UInt8](repeating: 0, count: 2048), [UInt8](repeating: 0xee, count: controlRoom), flags
        ) {
          let status = lab_ring_begin_recvmsg(pointer, lane.inbox.rawValue, request.request, $0)
          guard status == 0 else { return status }
          do { try between() } catch { thrown = error }
          return lab_ring_end_recvmsg(pointer)
        }
        if let thrown { throw thrown }
        return received
      }
    }

    @Test("sendmsg gives a message its traits", arguments: Kind.senders, Owner.allCases)
    func sending(kind: Kind, owner: Owner) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let ring = try Ring(owner)
        let sticky = try Traits([(sample.ids[0], try #require(sample.others.bytes(of: sample.ids[0])))])
        try lane.setSentTraits(sticky)
        for request in [Request.plain, .byWorker] {
          try ring.send(lane, 1, sample.traits, request)
          try lane.expect(1, sample.traits)
          try ring.send(lane, 2, Traits(), request)
          try lane.expect(2, sticky)
        }
        lane.expectNothing()
      }
    }

    @Test("sendmsg without a copy does so as well", arguments: [Kind.udp4, .udp6, .fromIPv6], Owner.allCases)
    func withoutCopy(kind: Kind, owner: Owner) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let ring = try Ring(owner)
        for number in 0..<3 as Range<UInt32> {
          try ring.send(lane, number, sample.traits, .withoutCopy)
          try lane.expect(number, sample.traits)
        }
      }
    }

    @Test(
      "sendmsg gives the rest of what a stream did not take at once the same traits", arguments: Owner.allCases,
      Request.allCases)
    func rest(owner: Owner, request: Request) throws {
      // Bytes with no value would take it from those before them.
      try Guest.withKeys([.bytes4], merge: .drop) { ids in
        let listener = try TCPListener(.ipv4)
        // Less than is sent has room at both ends; a 32-bit program has 80 KiB at once.
        var room: Int32 = 5_000
        setsockopt(listener.unsafeFileDescriptor.rawValue, SOL_SOCKET, SO_RCVBUF, &room, 4)
        try listener.listen(at: try #require(InternetAddress("127.0.0.1", port: 0)))
        try listener.setReceivedTraits(TraitMask(ids))
        let client = try TCPConnection.connect(to: try listener.localAddress())
        let server = try listener.accept(timeout: .seconds(10))
        try client.setSendBufferSize(room)
        try server.setReceiveTimeout(.milliseconds(100))
        let payload = (0..<70_000).map { UInt8(truncatingIfNeeded: $0 >> 8) }
        let traits = try Traits([(ids[0], [1, 2, 3, 4])])
        let ring = try Ring(owner)

        let reading = Mutex((received: [UInt8](), without: 0))
        let socket = server.unsafeFileDescriptor
        @Sendable func read() throws {
          guard let arrival = try? Guest.arrival(socket, payloadRoom: 65536) else { return }
          let found = try arrival.traits
          reading.withLock {
            $0.received += arrival.payload
            if found != traits { $0.without += arrival.payload.count }
          }
        }
        _ = try repeating(read) { _ in
          try transfer(payload, ring.control(traits), Int32(MSG_WAITALL)) {
            lab_ring_sendmsg(ring.pointer, client.unsafeFileDescriptor.rawValue, request.request, $0)
          }
        }
        let end = ContinuousClock.now + .seconds(30)
        while reading.withLock({ $0.received.count }) < payload.count, ContinuousClock.now < end { try read() }
        reading.withLock {
          #expect($0.received == payload)
          #expect($0.without == 0 || Guest.storesMayFail)
        }
      }
    }

    @Test(
      "sendmsg that is refused sends nothing", arguments: [Kind.udp4, .udp6, .raw4, .raw6, .ping4, .ping6],
      Request.allCases)
    func refused(kind: Kind, request: Request) throws {
      // Only UDP sends without a copy.
      guard request != .withoutCopy || kind.isUDP else { return }
      try Sample.with { sample in
        let free = try Guest.freeKey()
        let lane = try Lane(kind, keys: sample.ids)
        let ring = try Ring(.program64)
        #expect(throws: Errno.noSuchFileOrDirectory) {
          try ring.send(lane, 1, try Traits([(free, [1, 2, 3, 4])]), request)
        }
        lane.expectNothing()
        // Whoever hands the request over is asked for privilege, also if a worker does it.
        try sendAsUser(lane, sample.traits, request)
        lane.expectNothing()
      }
    }

    private func sendAsUser(_ lane: Lane, _ traits: Traits, _ request: Request) throws {
      let error = try asUser {
        let own = try Ring(.program64)
        do {
          try own.send(lane, 1, traits, request)
          return Errno(rawValue: 0)
        } catch let error as Errno {
          return error
        }
      }
      #expect(error == .notPermitted)
    }

    @Test("recvmsg gives the traits, whole or not at all", arguments: Kind.receivers, Owner.allCases)
    func receiving(kind: Kind, owner: Owner) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let ring = try Ring(owner)
        let expected = ring.control(sample.traits)
        let needed = (owner == .program64 ? 16 : 12) + 72
        // That it has waited for, and one that was there.
        for request in [Request.plain, .byWorker] {
          for isThere in [true, false] {
            for room in [2048, needed, needed - 1] {
              if isThere { try lane.send(1, sample.traits) }
              let received = try ring.receive(lane, request, controlRoom: room) {
                if !isThere { try lane.send(1, sample.traits) }
              }
              #expect(lane.isMessage(received.payload, 1))
              #expect(received.control == (room < needed ? [] : expected), "\(room) bytes of room")
              #expect((received.flags & Int32(MSG_CTRUNC) != 0) == (room < needed), "\(room) bytes of room")
            }
          }
        }
        try lane.send(2, sample.others)
        let peeked = try ring.receive(lane, flags: Int32(MSG_PEEK))
        #expect(peeked.control == ring.control(sample.others))
        #expect(try ring.receive(lane).control == ring.control(sample.others))
        try lane.send(3)
        #expect(try ring.receive(lane).control.isEmpty)
      }
    }

    @Test("one request receives many messages, each with its traits", arguments: Kind.receivers)
    func many(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind, keys: sample.ids)
        let ring = try Ring(.program64)
        let sent = [sample.traits, Traits(), sample.others, sample.traits]
        for (number, traits) in sent.enumerated() { try lane.send(UInt32(number), traits) }
        let room = (payload: 512, control: 256)
        let payloads = UnsafeMutableRawBufferPointer.allocate(byteCount: 8 * room.payload, alignment: 8)
        let controls = UnsafeMutableRawBufferPointer.allocate(byteCount: 8 * room.control, alignment: 8)
        defer {
          payloads.deallocate()
          controls.deallocate()
        }
        var messages = (0..<8).map {
          lab_message(
            payload: payloads.baseAddress! + $0 * room.payload, payload_length: room.payload,
            control: controls.baseAddress! + $0 * room.control, control_length: room.control, flags: 0)
        }
        #expect(lab_ring_recvmsg_many(ring.pointer, lane.inbox.rawValue, &messages, 8) == 4)
        for (number, traits) in sent.enumerated() {
          let message = messages[number]
          let payload = UnsafeRawBufferPointer(start: message.payload, count: message.payload_length)
          let control = UnsafeRawBufferPointer(start: message.control, count: message.control_length)
          #expect(lane.isMessage(Array(payload), UInt32(number)))
          #expect(Array(control) == ring.control(traits), "message \(number)")
          #expect(message.flags & Int32(MSG_CTRUNC) == 0)
        }
      }
    }

    @Test("setsockopt sets both options, and refuses what a call refuses", arguments: Kind.receivers)
    func options(kind: Kind) throws {
      try Sample.with { sample in
        let lane = try Lane(kind)
        let ring = try Ring(.program64)
        var mask = TraitMask(sample.ids).rawValue
        func set(_ ring: Ring, _ socket: FileDescriptor, _ name: Int32, _ value: UnsafeRawPointer, _ length: UInt32) -> Int {
          Guest.insistingStatus {
            lab_ring_setsockopt(ring.pointer, socket.rawValue, SOL_TRAITS, name, value, length)
          }
        }
        #expect(set(ring, lane.inbox, TRAITS_RECV, &mask, 4) == -Int(EINVAL))
        #expect(set(ring, lane.inbox, TRAITS_RECV, &mask, 8) == 0)
        #expect(try lane.inbox.receivedTraits() == TraitMask(sample.ids))
        let records = sample.traits.records
        #expect(set(ring, lane.outbox, TRAITS_SEND, records, 71) == -Int(EINVAL))
        #expect(set(ring, lane.outbox, TRAITS_SEND, records, 72) == 0)
        try lane.send(1)
        try lane.expect(1, sample.traits)
        try asUser {
          let own = try Ring(.program64)
          #expect(set(own, lane.inbox, TRAITS_RECV, &mask, 8) == -Int(EPERM))
          #expect(set(own, lane.outbox, TRAITS_SEND, records, 72) == -Int(EPERM))
        }
      }
    }
  }
}
