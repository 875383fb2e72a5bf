// SPDX-License-Identifier: MIT

internal import Glibc
internal import SystemPackage

// What sockets of UDP and of TCP have in common.

/// A protocol over IP of which there are owned sockets.
struct Transport {
  let name: String
  let type: Int32
  let number: Int32

  static let udp = Transport(
    name: "UDP", type: Int32(SOCK_DGRAM.rawValue), number: Int32(IPPROTO_UDP))
  static let tcp = Transport(
    name: "TCP", type: Int32(SOCK_STREAM.rawValue), number: Int32(IPPROTO_TCP))

  /// Opens a socket that is close-on-exec. One of IPv6 takes IPv4 as well, whatever
  /// `net.ipv6.bindv6only` says.
  ///
  /// - Parameter flags: `SOCK_NONBLOCK`, or none.
  /// - Throws: What socket(2) names.
  func open(
    _ family: InternetAddress.Family, flags: __socket_type = __socket_type(rawValue: 0)
  ) throws(Errno) -> FileDescriptor {
    let number = socket(
      family.domain, type | Int32(SOCK_CLOEXEC.rawValue | flags.rawValue), number)
    guard number >= 0 else { throw Errno.current }
    let descriptor = FileDescriptor(rawValue: number)
    if family == .ipv6 {
      do throws(Errno) {
        try descriptor.setOption(Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(0))
      } catch {
        try? descriptor.close()
        throw error
      }
    }
    return descriptor
  }

  /// - Throws: ``TraitError/Code/unsupportedSocket`` if the descriptor is of no such
  ///   socket, ``TraitError/Code/systemCall`` if it is not open.
  func require(_ descriptor: FileDescriptor) throws(TraitError) {
    let kind: (domain: Int32, type: Int32, protocol: Int32)
    do throws(Errno) {
      kind = (
        try descriptor.option(SOL_SOCKET, SO_DOMAIN), try descriptor.option(SOL_SOCKET, SO_TYPE),
        try descriptor.option(SOL_SOCKET, SO_PROTOCOL)
      )
    } catch {
      throw TraitError(
        error == .notSocket ? .unsupportedSocket : .systemCall,
        "descriptor \(descriptor.rawValue) is no \(name) socket", underlyingError: error)
    }
    guard kind.domain == AF_INET || kind.domain == AF_INET6, kind.type == type,
      kind.protocol == number
    else {
      throw TraitError(
        .unsupportedSocket,
        "descriptor \(descriptor.rawValue) is a socket of domain \(kind.domain), type \(kind.type) "
          + "and protocol \(kind.protocol), not one of \(name) over IPv4 or IPv6")
    }
  }
}

/// What of a socket is shut down.
public struct ShutdownDirection: RawRepresentable, Hashable, Sendable {
  public let rawValue: Int32

  public init(rawValue: Int32) { self.rawValue = rawValue }

  /// Nothing is received any more, but what is there.
  ///
  /// The corresponding C constant is `SHUT_RD`.
  public static var receiving: ShutdownDirection { ShutdownDirection(rawValue: Int32(SHUT_RD)) }

  /// Nothing is sent any more. A TCP peer reads to the end of the stream (FIN).
  ///
  /// The corresponding C constant is `SHUT_WR`.
  public static var sending: ShutdownDirection { ShutdownDirection(rawValue: Int32(SHUT_WR)) }

  /// Both.
  ///
  /// The corresponding C constant is `SHUT_RDWR`.
  public static var both: ShutdownDirection { ShutdownDirection(rawValue: Int32(SHUT_RDWR)) }
}

extension FileDescriptor {
  func bindSocket(to address: InternetAddress) throws(Errno) {
    guard address.withSockaddr({ bind(rawValue, $0, $1) }) == 0 else { throw Errno.current }
  }

  func connectSocket(to address: InternetAddress) throws(Errno) {
    guard address.withSockaddr({ connect(rawValue, $0, $1) }) == 0 else { throw Errno.current }
  }

  func localSocketAddress() throws(Errno) -> InternetAddress { try socketAddress(getsockname) }

  func peerSocketAddress() throws(Errno) -> InternetAddress { try socketAddress(getpeername) }

  private func socketAddress(
    _ call: (Int32, UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32
  ) throws(Errno) -> InternetAddress {
    let (status, address) = InternetAddress.written { call(rawValue, $0, $1) }
    guard status == 0 else { throw Errno.current }
    guard let address else { throw Errno.addressFamilyNotSupported }
    return address
  }

  // One method for each type that a socket option has: a generic one would take a literal as
  // `Int`, of which the kernel reads the first four bytes.

  /// Sets an option that is an `int` in C.
  func setOption(_ level: Int32, _ name: Int32, _ value: Int32) throws(Errno) {
    try setOption(level, name, bytesOf: value)
  }

  /// Sets an option that is an `unsigned int` in C.
  func setOption(_ level: Int32, _ name: Int32, _ value: UInt32) throws(Errno) {
    try setOption(level, name, bytesOf: value)
  }

  /// Sets an option that is a `__u64` in C.
  func setOption(_ level: Int32, _ name: Int32, _ value: UInt64) throws(Errno) {
    try setOption(level, name, bytesOf: value)
  }

  /// Sets an option that is a `struct timeval` in C.
  func setOption(_ level: Int32, _ name: Int32, _ value: timeval) throws(Errno) {
    try setOption(level, name, bytesOf: value)
  }

  /// Sets an option that is a structure in C.
  func setOption<Value: BitwiseCopyable>(
    _ level: Int32, _ name: Int32, bytesOf value: Value
  ) throws(Errno) {
    let status = withUnsafeBytes(of: value) {
      setsockopt(rawValue, level, name, $0.baseAddress, socklen_t($0.count))
    }
    guard status == 0 else { throw Errno.current }
  }

  /// - Parameter name: `SO_RCVTIMEO` or `SO_SNDTIMEO`.
  func setTimeout(_ name: Int32, _ timeout: Duration?) throws(Errno) {
    var value = timeval()
    if let timeout {
      guard timeout >= .zero else { throw Errno.invalidArgument }
      // To the kernel 0 means without limit, and a timeout of 0 does not.
      let (seconds, attoseconds) = max(timeout, .microseconds(1)).components
      value.tv_sec = time_t(clamping: seconds)
      value.tv_usec = suseconds_t(attoseconds / 1_000_000_000_000)
    }
    try setOption(SOL_SOCKET, name, value)
  }

  func option(_ level: Int32, _ name: Int32) throws(Errno) -> Int32 {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    guard getsockopt(rawValue, level, name, &value, &length) == 0 else { throw Errno.current }
    return value
  }

  /// Sets whether calls on the open file, through whatever descriptor, fail instead of
  /// waiting.
  ///
  /// The corresponding C constant is `O_NONBLOCK` (fcntl(2)).
  func setNonblocking(_ isNonblocking: Bool) throws(Errno) {
    let flags = fcntl(rawValue, F_GETFL)
    guard flags >= 0 else { throw Errno.current }
    let wanted = isNonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK
    guard wanted == flags || fcntl(rawValue, F_SETFL, wanted) == 0 else { throw Errno.current }
  }

  /// - Throws: What shutdown(2) names.
  func shutdownSocket(_ direction: ShutdownDirection) throws(Errno) {
    guard shutdown(rawValue, direction.rawValue) == 0 else { throw Errno.current }
  }

  /// Closes the descriptor, which is gone also if that fails.
  ///
  /// - Throws: What close(2) names.
  func closeOnce() throws(Errno) {
    guard Glibc.close(rawValue) == 0 else { throw Errno.current }
  }
}

extension InternetAddress {
  /// Calls `body` with room for an address, and reads what it wrote there.
  ///
  /// - Returns: What `body` returned, and the address; nil if it is neither of IPv4 nor of
  ///   IPv6.
  static func written(
    by body: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32
  ) -> (Int32, InternetAddress?) {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let status = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, &length) }
    }
    return (status, status < 0 ? nil : InternetAddress(storage, length: length))
  }
}

/// A socket's descriptor that is closed once: by ``close()``, or when its owner goes.
struct OwnedDescriptor: ~Copyable, Sendable {
  let borrowed: FileDescriptor

  init(_ descriptor: FileDescriptor) { borrowed = descriptor }

  deinit {
    // Nobody is there to be told of an error; close() has who wants to know.
    try? borrowed.close()
  }

  consuming func close() throws(Errno) { try release().closeOnce() }

  consuming func release() -> FileDescriptor {
    let descriptor = borrowed
    discard self
    return descriptor
  }
}

extension Errno {
  static var current: Errno { Errno(rawValue: errno) }
}
