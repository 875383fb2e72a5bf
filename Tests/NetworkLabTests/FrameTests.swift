// SPDX-License-Identifier: MIT

import NetworkLab
import Testing

@Suite("Frames with a datagram")
struct FrameTests {
  /// The sum that makes a checksum right, of big-endian words.
  private func sum(_ bytes: some Collection<UInt8>) -> Int {
    var total = 0
    for (position, byte) in bytes.enumerated() {
      total += Int(byte) << (position.isMultiple(of: 2) ? 8 : 0)
    }
    while total > 0xffff { total = total & 0xffff + total >> 16 }
    return total
  }

  private let source: [UInt8] = [2, 0, 0, 0, 0, 1]
  private let destination: [UInt8] = [2, 0, 0, 0, 0, 2]

  @Test("have a right header of IPv4", arguments: [0, 1, 7, 36, 300])
  func ipv4(length: Int) {
    let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 * 7) }
    let frame = udpFrame(
      source: source, destination: destination, from: [10, 0, 0, 1], to: [10, 0, 0, 2], port: 4243,
      payload: payload)
    #expect(Array(frame[..<14]) == destination + source + [0x08, 0x00])
    #expect(sum(frame[14..<34]) == 0xffff)
    #expect(Array(frame[16..<18]) == [UInt8((28 + length) >> 8), UInt8((28 + length) & 0xff)])
    #expect(Array(frame[36..<38]) == [0x10, 0x93])
    #expect(Array(frame[38..<40]) == [UInt8((8 + length) >> 8), UInt8((8 + length) & 0xff)])
    #expect(Array(frame[42...]) == payload)
  }

  @Test("have a right checksum over IPv6", arguments: [0, 1, 7, 36, 300])
  func ipv6(length: Int) {
    let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 * 7) }
    let from = (0..<16).map { UInt8($0 * 3) }
    let to = (0..<16).map { UInt8($0 * 5) }
    let frame = udpFrame(
      source: source, destination: destination, from: from, to: to, port: 4243, payload: payload)
    #expect(Array(frame[..<14]) == destination + source + [0x86, 0xdd])
    #expect(Array(frame[18..<22]) == [UInt8((8 + length) >> 8), UInt8((8 + length) & 0xff), 17, 64])
    #expect(Array(frame[22..<54]) == from + to)
    #expect(Array(frame[62...]) == payload)
    #expect(Array(frame[60..<62]) != [0, 0])
    // With what RFC 8200 puts before the datagram: addresses, length, protocol.
    #expect((sum(frame[22...]) + 8 + length + 17) % 0xffff == 0)
  }
}
