// SPDX-License-Identifier: MIT

internal import Glibc

/// An address of IPv4 or IPv6, and a port.
///
/// The corresponding C types are `struct sockaddr_in` and `struct sockaddr_in6`.
public struct InternetAddress: Hashable, Sendable {
  /// The version of IP. There are these two and no others.
  public enum Family: Hashable, Sendable, CaseIterable {
    /// IP version 4.
    ///
    /// The corresponding C constant is `AF_INET`.
    case ipv4

    /// IP version 6.
    ///
    /// The corresponding C constant is `AF_INET6`.
    case ipv6

    /// As C has it.
    var domain: Int32 { self == .ipv4 ? AF_INET : AF_INET6 }
  }

  /// The version of IP.
  public let family: Family

  /// The port, in host byte order.
  public var port: UInt16

  /// The number of the interface that a link-local IPv6 address is meant on, 0
  /// for none, in host byte order.
  ///
  /// The corresponding C field is `sin6_scope_id`.
  public let scope: UInt32

  // The address as it lies in memory, in network byte order: of IPv6 the two
  // halves, of IPv4 `in_addr`'s number in `high`.
  private let high: UInt64
  private let low: UInt64

  /// Reads an address in its usual notation.
  ///
  /// - Parameters:
  ///   - host: As `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0` or `fe80::1%2`
  ///     (RFC 4291, RFC 4007); no host name. Digits alone behind the `%` are
  ///     the interface's number, which is not looked up.
  ///   - port: In host byte order.
  /// - Returns: nil if `host` is no address, or names an interface that there is not.
  public init?(_ host: String, port: UInt16) {
    // C's functions would read no further than to a NUL, and take the rest.
    guard !host.utf8.contains(0) else { return nil }

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
      guard let interface = Self.interface(String(parts[1])) else { return nil }
      scope = interface
    }
    self.init(sockaddr_in6(sin6_addr: v6, port: port, scope: scope))
  }

  /// Makes an address of its bytes.
  ///
  /// - Parameters:
  ///   - bytes: 4 of IPv4, or 16 of IPv6, in network byte order.
  ///   - port: In host byte order.
  ///   - scope: The number of the interface that a link-local IPv6 address is meant on;
  ///     of no meaning for IPv4.
  /// - Returns: nil if there is another number of bytes.
  public init?(bytes: RawSpan, port: UInt16, scope: UInt32 = 0) {
    switch bytes.byteCount {
    case 4:
      let address = in_addr(s_addr: bytes.unsafeLoadUnaligned(as: UInt32.self))
      self.init(sockaddr_in(sin_addr: address, port: port))
    case 16:
      var address = in6_addr()
      withUnsafeMutableBytes(of: &address) { copy in bytes.withUnsafeBytes { copy.copyMemory(from: $0) } }
      self.init(sockaddr_in6(sin6_addr: address, port: port, scope: scope))
    default: return nil
    }
  }

  /// The address without the port: 4 bytes of IPv4, or 16 of IPv6, in network byte order.
  public var bytes: [UInt8] {
    switch family {
    case .ipv4: withUnsafeBytes(of: UInt32(truncatingIfNeeded: high)) { Array($0) }
    case .ipv6: withUnsafeBytes(of: (high, low)) { Array($0) }
    }
  }

  /// The number of an interface, given as that or by name; nil if it is neither.
  private static func interface(_ text: String) -> UInt32? {
    // UInt32's own initializer takes a sign, too.
    let isNumber = !text.isEmpty && text.utf8.allSatisfy { (48...57).contains($0) }
    let number = isNumber ? UInt32(text) : if_nametoindex(text)
    return number == 0 ? nil : number
  }

  /// Every address of this machine, to bind to: `0.0.0.0` or `::`.
  public static func any(_ family: Family, port: UInt16) -> InternetAddress {
    family == .ipv4
      ? InternetAddress(sockaddr_in(sin_addr: in_addr(), port: port))
      : InternetAddress(sockaddr_in6(sin6_addr: in6_addr(), port: port, scope: 0))
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
    let address: InternetAddress? = withUnsafeBytes(of: storage) {
      switch Int32(storage.ss_family) {
      case AF_INET where length >= MemoryLayout<sockaddr_in>.size:
        InternetAddress($0.loadUnaligned(as: sockaddr_in.self))
      case AF_INET6 where length >= MemoryLayout<sockaddr_in6>.size:
        InternetAddress($0.loadUnaligned(as: sockaddr_in6.self))
      default: nil
      }
    }
    guard let address else { return nil }
    self = address
  }

  /// Calls `body` with the address as C has it, and its length in bytes.
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

  /// The address as C has it, with its length in bytes.
  var storage: (sockaddr_storage, socklen_t) {
    var storage = sockaddr_storage()
    let length = withSockaddr { address, length in
      withUnsafeMutableBytes(of: &storage) {
        $0.copyMemory(from: UnsafeRawBufferPointer(start: address, count: Int(length)))
      }
      return length
    }
    return (storage, length)
  }

  /// The address without the port, in its usual notation.
  public var host: String {
    var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
    // Cannot fail: the family is one of the two, and the buffer long enough.
    switch family {
    case .ipv4:
      withUnsafeBytes(of: UInt32(truncatingIfNeeded: high)) {
        _ = inet_ntop(AF_INET, $0.baseAddress, &text, socklen_t(text.count))
      }
    case .ipv6:
      withUnsafeBytes(of: (high, low)) {
        _ = inet_ntop(AF_INET6, $0.baseAddress, &text, socklen_t(text.count))
      }
    }
    let host = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    return scope == 0 ? host : "\(host)%\(scope)"
  }
}

extension InternetAddress: CustomStringConvertible {
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
