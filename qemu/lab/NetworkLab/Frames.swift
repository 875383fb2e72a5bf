// SPDX-License-Identifier: MIT

internal import CNetworkLab
internal import Glibc
public import SystemPackage

extension NetworkNamespace {
  /// Opens a packet socket that sees every packet of the namespace, as tcpdump
  /// does. The caller closes it.
  public func openTap() throws -> FileDescriptor {
    try run {
      let tap = lab_open_tap()
      guard tap >= 0 else {
        throw LabError("a packet socket cannot be opened: \(String(cString: strerror(-tap)))")
      }
      return FileDescriptor(rawValue: tap)
    }
  }

  /// Sends a frame, from its Ethernet header on, out of an interface.
  public func send(frame: [UInt8], outOf interface: String) throws {
    try run {
      let error = lab_send_frame(if_nametoindex(interface), frame, frame.count)
      guard error == 0 else {
        throw LabError("\(interface) cannot send a frame: \(String(cString: strerror(error)))")
      }
    }
  }
}

/// A frame with a UDP datagram over IPv4, without UDP checksum.
///
/// - Parameters:
///   - source: Ethernet address, 6 bytes.
///   - destination: Ethernet address, 6 bytes.
///   - from: IPv4 address, 4 bytes.
///   - to: IPv4 address, 4 bytes.
///   - port: Of the destination.
public func udpFrame(
  source: [UInt8], destination: [UInt8], from: [UInt8], to: [UInt8], port: UInt16,
  payload: [UInt8]
) -> [UInt8] {
  func big(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 0xff)] }

  var header: [UInt8] = [0x45, 0] + big(UInt16(28 + payload.count)) + [0, 1, 0, 0, 64, 17, 0, 0]
  header += from + to
  var sum = stride(from: 0, to: 20, by: 2).reduce(UInt32(0)) {
    $0 + UInt32(header[$1]) << 8 + UInt32(header[$1 + 1])
  }
  while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
  header.replaceSubrange(10..<12, with: big(~UInt16(sum)))

  let udp = big(9) + big(port) + big(UInt16(8 + payload.count)) + [0, 0]
  return destination + source + [0x08, 0x00] + header + udp + payload
}
