// SPDX-License-Identifier: MIT

import Glibc
import SystemPackage
import Testing

@testable import PacketTraits

@Suite("Calls that wait")
struct SocketWaitTests {
  /// A socket connected to a port where nobody is.
  ///
  /// - Parameter timeout: How long it waits. Where nothing is to be waited for, longer than a busy
  ///   machine keeps a test from running.
  private func connected(timeout: Duration = hangLimit) throws -> UDPSocket {
    let destination = try Refusing.udp()
    let socket = try UDPSocket(.ipv4)
    let status = destination.withSockaddr { connect(socket.unsafeFileDescriptor.rawValue, $0, $1) }
    try #require(status == 0)
    try socket.setReceiveTimeout(timeout)
    return socket
  }

  /// Leaves an error in the socket's error queue, which nobody reads.
  private func leaveError(_ socket: borrowing UDPSocket) throws {
    let descriptor = socket.unsafeFileDescriptor.rawValue
    var on: Int32 = 1
    try #require(setsockopt(descriptor, Int32(IPPROTO_IP), Int32(IP_RECVERR), &on, 4) == 0)
    var byte: UInt8 = 1
    try #require(send(descriptor, &byte, 1, 0) == 1)
    var waiting = pollfd(fd: descriptor, events: 0, revents: 0)
    try #require(poll(&waiting, 1, 100_000) == 1)
    // Taken, and poll still says so.
    var error: Int32 = 0
    var length = socklen_t(4)
    try #require(getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0)
    try #require(error == ECONNREFUSED)
    try #require(poll(&waiting, 1, 0) == 1 && Int32(waiting.revents) == POLLERR)
  }

  private func waiting(on socket: borrowing UDPSocket) -> SocketWait {
    .toReceive(socket.unsafeFileDescriptor, isAllowed: true, retryOnInterrupt: true)
  }

  @Test("do not spin where an error queue is not read")
  func errorQueue() throws {
    let socket = try connected(timeout: .milliseconds(300))
    try leaveError(socket)
    var calls = 0
    let start = ContinuousClock.now
    let result = waiting(on: socket).call { flags in
      calls += 1
      guard calls > 1 else {
        errno = EINTR
        return -1
      }
      var byte: UInt8 = 0
      return recv(socket.unsafeFileDescriptor.rawValue, &byte, 1, flags)
    }
    #expect(result == .failure(.wouldBlock))
    #expect(ContinuousClock.now - start >= .milliseconds(290))
    // Only one on a busy machine.
    #expect((1...20).contains(calls))
  }

  @Test("end where nothing can come any more")
  func shutDown() throws {
    let socket = try connected()
    try #require(shutdown(socket.unsafeFileDescriptor.rawValue, Int32(SHUT_RD)) == 0)
    var calls = 0
    let result = waiting(on: socket).call { flags in
      calls += 1
      guard calls > 1 else {
        errno = EINTR
        return -1
      }
      var byte: UInt8 = 0
      return recv(socket.unsafeFileDescriptor.rawValue, &byte, 1, flags)
    }
    #expect(result == .success(0))
    #expect(calls == 2)
  }

  @Test("wait again when the time-out is taken off")
  func timeoutTakenOff() throws {
    let socket = try connected()
    try leaveError(socket)
    var seen: [Int32] = []
    let result = waiting(on: socket).call { flags in
      seen.append(flags)
      switch seen.count {
      case 1:
        errno = EINTR
        return -1
      case 2:
        let done: Void? = try? socket.setReceiveTimeout(nil)
        #expect(done != nil)
        errno = EAGAIN
        return -1
      default:
        return 5
      }
    }
    #expect(result == .success(5))
    #expect(seen == [0, Int32(MSG_DONTWAIT), 0])
  }
}
