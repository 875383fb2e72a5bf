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

  /// Opens a packet socket that sees every packet of one interface. The caller closes it.
  public func openTap(on interface: String) throws -> FileDescriptor {
    try run {
      let tap = lab_open_tap_on(if_nametoindex(interface))
      guard tap >= 0 else {
        throw LabError("no packet socket can be opened on \(interface): \(String(cString: strerror(-tap)))")
      }
      return FileDescriptor(rawValue: tap)
    }
  }

  /// Makes a tap device, which lives until the caller closes the descriptor: each frame that is
  /// written to it comes in at the device.
  public func openTapDevice(_ name: String) throws -> FileDescriptor {
    try run {
      let device = lab_open_tap_device(name)
      guard device >= 0 else {
        throw LabError("\(name): no tap device can be made: \(String(cString: strerror(-device)))")
      }
      return FileDescriptor(rawValue: device)
    }
  }

  /// Opens a packet socket bound to a protocol of an interface, without headers of the link layer.
  public func openPacketSocket(on interface: String, type: UInt16) throws -> FileDescriptor {
    try run {
      let descriptor = lab_open_packet_socket(if_nametoindex(interface), type)
      guard descriptor >= 0 else {
        throw LabError(
          "no packet socket can be opened on \(interface): \(String(cString: strerror(-descriptor)))")
      }
      return FileDescriptor(rawValue: descriptor)
    }
  }

  /// Sends a frame, from its Ethernet header on, out of an interface.
  ///
  /// - Parameter type: What the Ethernet header would say, if the frame has none.
  public func send(frame: [UInt8], outOf interface: String, type: UInt16 = 0) throws {
    try run {
      let error = lab_send_frame(if_nametoindex(interface), type, frame, frame.count)
      guard error == 0 else {
        throw LabError("\(interface) cannot send a frame: \(String(cString: strerror(error)))")
      }
    }
  }
}

/// A frame with a UDP datagram: over IPv4 without UDP checksum, over IPv6 with.
///
/// - Parameters:
///   - source: Ethernet address, 6 bytes.
///   - destination: Ethernet address, 6 bytes.
///   - from: IPv4 or IPv6 address, 4 or 16 bytes.
///   - to: As `from`.
///   - port: Of the destination.
public func udpFrame(
  source: [UInt8], destination: [UInt8], from: [UInt8], to: [UInt8], port: UInt16,
  payload: [UInt8]
) -> [UInt8] {
  func big(_ number: Int) -> [UInt8] { [UInt8(number >> 8 & 0xff), UInt8(number & 0xff)] }
  func checksum(_ bytes: [UInt8]) -> [UInt8] {
    var sum = stride(from: 0, to: bytes.count, by: 2).reduce(0) {
      $0 + Int(bytes[$1]) << 8 + ($1 + 1 < bytes.count ? Int(bytes[$1 + 1]) : 0)
    }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return big(sum == 0xffff ? sum : ~sum)
  }

  let length = big(8 + payload.count)
  var udp = big(9) + big(Int(port)) + length + [0, 0] + payload
  if from.count == 4 {
    var header: [UInt8] = [0x45, 0] + big(28 + payload.count) + [0, 1, 0, 0, 64, 17, 0, 0]
    header += from + to
    header.replaceSubrange(10..<12, with: checksum(header))
    return destination + source + [0x08, 0x00] + header + udp
  }
  udp.replaceSubrange(6..<8, with: checksum(from + to + [0, 0] + length + [0, 0, 0, 17] + udp))
  return destination + source + [0x86, 0xdd, 0x60, 0, 0, 0] + length + [17, 64] + from + to + udp
}
