// SPDX-License-Identifier: MIT

internal import Glibc

/// An IPv4 or IPv6 address and a port.
public struct SocketAddress: Hashable, Sendable {
  /// The version of IP.
  public struct Family: RawRepresentable, Hashable, Sendable {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// IP version 4.
    ///
    /// The corresponding C constant is `AF_INET`.
    public static var ipv4: Family { Family(rawValue: AF_INET) }

    /// IP version 6.
    ///
    /// The corresponding C constant is `AF_INET6`.
    public static var ipv6: Family { Family(rawValue: AF_INET6) }
  }

  public let family: Family

  /// The port, in host byte order.
  public var port: UInt16

  /// The interface that a link-local IPv6 address is meant on, 0 for none.
  public let scope: UInt32

  /// The address in network byte order; of IPv4 the first 4 bytes, the rest 0.
  private let high: UInt64
  private let low: UInt64

  /// Reads an address in its usual notation.
  ///
  /// - Parameters:
  ///   - host: As `192.0.2.1`, `2001:db8::1` or `fe80::1%eth0`; no host name.
  ///   - port: In host byte order.
  /// - Returns: nil if `host` is no address, or names no interface there is.
  public init?(_ host: String, port: UInt16) {
    var v4 = in_addr()
    if inet_pton(AF_INET, host, &v4) == 1 {
      self.init(sockaddr_in(sin_addr: v4, port: port))
      return
    }

    let parts = host.split(separator: "%", maxSplits: 1, omittingEmptySubsequences: false)
    var v6 = in6_addr()
    guard let address = parts.first, inet_pton(AF_INET6, String(address), &v6) == 1 else { return nil }
    var scope: UInt32 = 0
    if parts.count == 2 {
      scope = UInt32(parts[1]) ?? if_nametoindex(String(parts[1]))
      guard scope != 0 else { return nil }
    }
    self.init(sockaddr_in6(sin6_addr: v6, port: port, scope: scope))
  }

  /// Every address of this machine, to bind to.
  public static func any(_ family: Family, port: UInt16) -> SocketAddress {
    family == .ipv4
      ? SocketAddress(sockaddr_in(sin_addr: in_addr(), port: port))
      : SocketAddress(sockaddr_in6(sin6_addr: in6_addr(), port: port, scope: 0))
  }

  init(_ address: sockaddr_in) {
    family = .ipv4
    port = UInt16(bigEndian: address.sin_port)
    scope = 0
    (high, low) = withUnsafeBytes(of: address.sin_addr) {
      (UInt64($0.loadUnaligned(as: UInt32.self)), 0)
    }
  }

  init(_ address: sockaddr_in6) {
    family = .ipv6
    port = UInt16(bigEndian: address.sin6_port)
    scope = address.sin6_scope_id
    (high, low) = withUnsafeBytes(of: address.sin6_addr) {
      ($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    }
  }

  /// nil if it is neither IPv4 nor IPv6, or too short.
  init?(_ storage: sockaddr_storage, length: socklen_t) {
    let address: SocketAddress? = withUnsafeBytes(of: storage) {
      switch Int32(storage.ss_family) {
      case AF_INET where length >= MemoryLayout<sockaddr_in>.size:
        SocketAddress($0.loadUnaligned(as: sockaddr_in.self))
      case AF_INET6 where length >= MemoryLayout<sockaddr_in6>.size:
        SocketAddress($0.loadUnaligned(as: sockaddr_in6.self))
      default: nil
      }
    }
    guard let address else { return nil }
    self = address
  }

  func withSockaddr<Result>(
    _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result {
    func call<Address>(_ address: Address) -> Result {
      withUnsafePointer(to: address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          body($0, socklen_t(MemoryLayout<Address>.size))
        }
      }
    }
    if family == .ipv4 {
      let number = UInt32(truncatingIfNeeded: high)
      return call(sockaddr_in(sin_addr: in_addr(s_addr: number), port: port))
    }
    var address = in6_addr()
    withUnsafeMutableBytes(of: &address) {
      $0.storeBytes(of: high, as: UInt64.self)
      $0.storeBytes(of: low, toByteOffset: 8, as: UInt64.self)
    }
    return call(sockaddr_in6(sin6_addr: address, port: port, scope: scope))
  }

  /// The address without the port, in its usual notation.
  public var host: String {
    var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
    let words: InlineArray<2, UInt64> = [high, low]
    words.span.bytes.withUnsafeBytes { bytes in
      // Cannot fail: the family is one of the two, and the buffer long enough.
      _ = inet_ntop(family.rawValue, bytes.baseAddress, &text, socklen_t(text.count))
    }
    let host = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    return scope == 0 ? host : "\(host)%\(scope)"
  }
}

extension SocketAddress: CustomStringConvertible {
  /// As `192.0.2.1:53` or `[2001:db8::1]:53`.
  public var description: String {
    family == .ipv4 ? "\(host):\(port)" : "[\(host)]:\(port)"
  }
}

extension sockaddr_in {
  init(sin_addr address: in_addr, port: UInt16) {
    self.init()
    sin_family = sa_family_t(AF_INET)
    sin_port = port.bigEndian
    sin_addr = address
  }
}

extension sockaddr_in6 {
  init(sin6_addr address: in6_addr, port: UInt16, scope: UInt32) {
    self.init()
    sin6_family = sa_family_t(AF_INET6)
    sin6_port = port.bigEndian
    sin6_addr = address
    sin6_scope_id = scope
  }
}
