// SPDX-License-Identifier: MIT

import Testing

@testable import PacketTraits

@Suite("What a later kernel gives")
struct LaterKernelTests {
  /// A message with one record that has a flag of a later kernel, and what is wrong with others.
  static let samples: [(what: String, control: [UInt8], code: TraitError.Code)] = {
    var traits = Traits()
    try? traits.set(42, for: TraitKey<UInt64>(id(9)))
    var data = ControlData()
    data.append(traits)
    var flagged = data.bytes
    flagged[16 + 6] = 1
    var sized = data.bytes
    sized[16 + 4] = 12
    var keyed = data.bytes
    keyed[16] = 64
    var twice = data
    twice.append(traits)
    return [
      ("a flag", flagged, .malformedRecords), ("a size", sized, .malformedRecords),
      ("a key", keyed, .malformedRecords), ("two messages", twice.bytes, .malformedControlData),
      ("half a message", Array(data.bytes.prefix(20)), .malformedControlData),
      ("half a header", Array(data.bytes.prefix(9)), .malformedControlData),
    ]
  }()

  @Test("does not cost the bytes that it comes with", arguments: samples)
  func unreadable(what: String, control: [UInt8], code: TraitError.Code) throws {
    let source = InternetAddress("192.0.2.1", port: 7)
    for flags in [[], .controlTruncated, .truncated] as [MessageFlags] {
      let message = ReceivedMessage(
        length: 5, messageLength: 7, controlLength: control.count, source: source, flags: flags)

      let datagram = ReceivedDatagram(message, control: control.span.bytes)
      #expect(datagram.length == 5)
      #expect(datagram.datagramLength == 7)
      #expect(datagram.source == source)
      #expect(datagram.isPayloadTruncated == (flags == .truncated))
      #expect(!datagram.areTraitsTruncated)

      let whole = Datagram(datagram, payload: [1, 2, 3, 4, 5], control: control, flags: flags)
      #expect(whole.payload == [1, 2, 3, 4, 5])
      #expect(whole.control == control)
      #expect(whole.isControlTruncated == (flags == .controlTruncated))

      let bytes = ReceivedBytes(message, room: 10, control: control.span.bytes)
      #expect(bytes.length == 5)
      #expect(!bytes.isEndOfStream)

      func expectUnreadable(_ traits: () throws(TraitError) -> Traits) {
        do throws(TraitError) {
          Issue.record("\(what) was read as \(try traits())")
        } catch {
          #expect(error.code == code)
        }
      }
      expectUnreadable { () throws(TraitError) in try datagram.traits }
      expectUnreadable { () throws(TraitError) in try whole.traits }
      expectUnreadable { () throws(TraitError) in try bytes.traits }
    }
  }
}
