// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import NetworkLab
import PacketTraits
import SystemPackage
import Testing
import TraitRegistry

extension Guest {
  @Suite("The socket option TRAITS_RECV")
  struct SocketOptionTests {
    static let families = InternetAddress.Family.allCases

    @Test("takes 8 bytes and no other length", arguments: families, 0...16)
    func setLength(family: InternetAddress.Family, length: Int) throws {
      let socket = try UDPSocket(family)
      let bytes = [UInt8](repeating: 0, count: 16)
      let status = setsockopt(
        socket.unsafeFileDescriptor.rawValue, SOL_TRAITS, TRAITS_RECV, bytes, socklen_t(length))
      if length == 8 {
        #expect(status == 0)
      } else {
        #expect(status == -1)
        #expect(errno == EINVAL)
      }
    }

    @Test("is read with 8 bytes or more, and tells the length that is needed", arguments: families)
    func getLength(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let socket = try UDPSocket(family)
        let mask = TraitMask(ids)
        try socket.setReceivedTraits(mask)
        #expect(try socket.receivedTraits() == mask)

        for room in 0...16 {
          var bytes = [UInt8](repeating: 0xee, count: 17)
          var length = socklen_t(room)
          let status = getsockopt(
            socket.unsafeFileDescriptor.rawValue, SOL_TRAITS, TRAITS_RECV, &bytes, &length)
          let error = errno
          #expect(length == 8, "with \(room) bytes of room")
          if room >= 8 {
            #expect(status == 0)
            #expect(bytes.native(0, as: UInt64.self) == mask.rawValue)
            #expect(bytes[8...].allSatisfy { $0 == 0xee })
          } else {
            #expect(bytes.allSatisfy { $0 == 0xee })
            // No room at all is the question for the length.
            if room > 0 {
              #expect(status == -1)
              #expect(error == EINVAL)
            }
          }
        }
      }
    }

    @Test("of another number is refused", arguments: families, [0, 5, 6, 99])
    func unknownOption(family: InternetAddress.Family, name: Int32) throws {
      let socket = try UDPSocket(family)
      var mask: UInt64 = 0
      var length = socklen_t(8)
      #expect(setsockopt(socket.unsafeFileDescriptor.rawValue, SOL_TRAITS, name, &mask, length) == -1)
      #expect(errno == ENOPROTOOPT)
      #expect(getsockopt(socket.unsafeFileDescriptor.rawValue, SOL_TRAITS, name, &mask, &length) == -1)
      #expect(errno == ENOPROTOOPT)
    }

    @Test("refuses keys that are not registered, and then changes nothing", arguments: families)
    func unregistered(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4]) { ids in
        let socket = try UDPSocket(family)
        try socket.setReceivedTraits(TraitMask(ids))
        var registry = try RegistryConnection()
        let taken = Set(try registry.keys().map(\.id))
        let free = try #require(TraitID.allCases.first { !taken.contains($0) })
        for mask in [TraitMask(free), TraitMask([ids[0], free]), .all] {
          expect(.noSuchKey, naming: "is not registered") { try socket.setReceivedTraits(mask) }
          #expect(try socket.receivedTraits() == TraitMask(ids))
        }
        try socket.setReceivedTraits([])
        #expect(try socket.receivedTraits() == [])
      }
    }

    @Test("takes privilege, unless the key is open to be read", arguments: families)
    func privilege(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4], flags: []) { closed in
        try Guest.withKeys([.bytes4], flags: .openRead) { open in
          try Guest.withKeys([.bytes4], flags: .openWrite) { writable in
            let inherited = try UDPSocket(family)
            try inherited.setReceivedTraits(TraitMask(closed))
            try asUser {
              let socket = try UDPSocket(family)
              try socket.setReceivedTraits(TraitMask(open))
              for ids in [closed, writable, closed + open] {
                expect(.notPermitted, naming: "is not open to all") {
                  try socket.setReceivedTraits(TraitMask(ids))
                }
                #expect(try socket.receivedTraits() == TraitMask(open))
              }
              // What was granted stays with the descriptor.
              #expect(try inherited.receivedTraits() == TraitMask(closed))
            }
          }
        }
      }
    }

    @Test("takes privilege over the socket's namespace, over all for keys that cross namespaces")
    func privilegeInNamespace() throws {
      let traitctl = try Command.built("traitctl")
      try Guest.withKeys([.bytes4], flags: []) { local in
        try Guest.withKeys([.bytes4], flags: .crossesNetworkNamespaces) { crossing in
          var registry = try RegistryConnection()
          // Root of its own user and network namespace listens there.
          func listen(_ id: TraitID) throws -> Command.Outcome {
            try Command([
              "unshare", "--user", "--map-root-user", "--net", traitctl, "listen", "--port", "4244",
              "--key", try registry.key(id).name, "--count", "1", "--timeout", "0.05",
            ]).wait()
          }
          let allowed = try listen(local[0])
          #expect(allowed.status == 1)
          #expect(allowed.errors.contains("0 of 1 datagrams came"), "\(allowed.errors)")
          let refused = try listen(crossing[0])
          #expect(refused.status == 1)
          #expect(refused.errors.contains("is not open to all"), "\(refused.errors)")
        }
      }
    }

    @Test("is not for other sockets")
    func otherSockets() throws {
      let sockets: [(Int32, Int32, Int32)] = [
        // IPPROTO_MPTCP
        (AF_INET, Int32(SOCK_STREAM.rawValue), 262),
        (AF_INET6, Int32(SOCK_STREAM.rawValue), 262),
        (AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0),
        (AF_UNIX, Int32(SOCK_STREAM.rawValue), 0),
      ]
      for (family, type, proto) in sockets {
        let descriptor = FileDescriptor(
          rawValue: socket(family, type | Int32(SOCK_CLOEXEC.rawValue), proto))
        try #require(descriptor.rawValue >= 0)
        defer { try? descriptor.close() }
        #expect(throws: Errno.notSupportedOnSocket, "family \(family), type \(type)") {
          try descriptor.setReceivedTraits([])
        }
        #expect(throws: Errno.notSupportedOnSocket, "family \(family), type \(type)") {
          try descriptor.receivedTraits()
        }
      }
    }

    @Test("forgets a key that is removed, also when its number is given out again", arguments: families)
    func removal(family: InternetAddress.Family) throws {
      try Guest.withKeys([.bytes4, .bytes8]) { ids in
        let socket = try UDPSocket(family)
        try socket.setReceivedTraits(TraitMask(ids))
        var registry = try RegistryConnection()
        let removed = try registry.remove(ids[0])
        #expect(try socket.receivedTraits() == TraitMask(ids[1]))
        try registry.add(removed.name, size: removed.size, id: removed.id)
        #expect(try socket.receivedTraits() == TraitMask(ids[1]))
        try socket.setReceivedTraits(TraitMask(ids))
        #expect(try socket.receivedTraits() == TraitMask(ids))
      }
    }
  }
}
