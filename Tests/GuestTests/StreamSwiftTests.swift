// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A TCP connection along the suite's cable, by the package's own types.
private struct SwiftStream: ~Copyable {
  let listener: TCPListener
  let client: TCPConnection
  let server: TCPConnection

  /// - Parameters:
  ///   - saving: What the listener keeps of the SYN.
  ///   - receiving: What the server receives, by its listener's asking.
  ///   - listening: What the listener sends.
  ///   - connecting: What the client sends, from the SYN on.
  ///   - back: What the client receives.
  init(
    _ route: Guest.Route, saving: [TraitID] = [], receiving: [TraitID] = [],
    listening: Traits = Traits(), connecting: Traits = Traits(), back: [TraitID] = []
  ) throws {
    let cable = try suiteCable()
    let listener = try cable.receiver.namespace.run {
      try TCPListener(route == .ipv4 ? .ipv4 : .ipv6)
    }
    try Guest.insisting {
      try listener.setSavedSYNTraits(TraitMask(saving))
      try listener.setReceivedTraits(TraitMask(receiving))
      try listener.setSentTraits(listening)
    }
    try listener.listen(at: .any(route == .ipv4 ? .ipv4 : .ipv6, port: Guest.port))
    let client = try Self.connect(cable, route, connecting, back)
    let server = try listener.accept(timeout: .seconds(20))
    try client.setReceiveTimeout(.seconds(20))
    try server.setReceiveTimeout(.seconds(20))
    try client.setNoDelay(true)
    try server.setNoDelay(true)
    self.listener = listener
    self.client = client
    self.server = server
  }

  static func connect(
    _ cable: VethPair, _ route: Guest.Route, _ traits: Traits, _ keys: [TraitID]
  ) throws -> TCPConnection {
    let destination = try cable.destination(route)
    return try cable.sender.namespace.run {
      // With a kernel that is made to fail, as often as it needs.
      for _ in 0..<200 where Guest.storesMayFail {
        do throws(TraitError) {
          return try TCPConnection.connect(
            to: destination, traits: traits, receiving: TraitMask(keys), timeout: .seconds(20))
        } catch {
          guard error.underlyingError == .noMemory || error.underlyingError == .noBufferSpace
          else { throw error }
        }
      }
      return try TCPConnection.connect(
        to: destination, traits: traits, receiving: TraitMask(keys), timeout: .seconds(20))
    }
  }
}

extension TCPConnection {
  /// What one read gave.
  fileprivate func read(
    room: Int = 65536, flags: MessageFlags = []
  ) throws -> (bytes: [UInt8], traits: Traits) {
    var bytes = [UInt8](repeating: 0, count: room)
    let received = try receive(into: &bytes, flags: flags)
    #expect(!received.areTraitsTruncated || Guest.storesMayFail)
    return (Array(bytes[..<received.length]), try received.traits)
  }

  /// Waits until so many bytes are there to be read with one call.
  fileprivate func awaitBytes(_ count: Int) throws {
    for _ in 0..<2000 {
      if try read(room: count, flags: .peek).bytes.count == count { return }
      usleep(10_000)
    }
  }

  /// Sends all, also where the kernel is made to fail.
  fileprivate func write(_ bytes: [UInt8], _ traits: Traits = Traits()) throws {
    var sent = 0
    try Guest.insisting { try sendAll(bytes.span.bytes, traits: traits, sent: &sent) }
  }
}

private func expectSame(
  _ traits: Traits, _ right: Traits, sourceLocation: SourceLocation = #_sourceLocation
) {
  #expect(traits == right || Guest.storesMayFail, sourceLocation: sourceLocation)
}

extension Guest {
  @Suite("Streams in Swift", .cable)
  struct StreamSwiftTests {
    private func withCrossing<Value>(
      _ sizes: [TraitSize], merge: MergePolicy = .exact, _ body: ([TraitID]) throws -> Value
    ) throws -> Value {
      try Guest.withKeys(sizes, merge: merge, flags: .crossesNetworkNamespaces, body)
    }

    private func four(_ id: TraitID, _ value: UInt8) throws -> Traits {
      try Traits([(id, [value, 0, 0, 0])])
    }

    @Test("an accepted connection has the traits of its SYN, and keeps them", arguments: Route.allCases)
    func syn(route: Route) throws {
      try withCrossing([.bytes4, .bytes16, .bytes4]) { ids in
        let values = try Traits([
          (ids[0], [1, 2, 3, 4]), (ids[1], Array(1...16)), (ids[2], [5, 6, 7, 8]),
        ])
        var kept = values
        kept.remove(ids[2])
        let stream = try SwiftStream(route, saving: [ids[0], ids[1]], connecting: values)
        #expect(try stream.listener.savedSYNTraits() == TraitMask([ids[0], ids[1]]))
        for _ in 0..<2 { expectSame(try stream.server.synTraits(), kept) }
        // By a borrowed descriptor as well, and whatever came after it.
        try Guest.insisting { try stream.client.setSentTraits(try four(ids[0], 99)) }
        try stream.client.write([1])
        #expect(try stream.server.read().bytes == [1])
        expectSame(try stream.server.unsafeFileDescriptor.synTraits(), kept)
        // Each connection has its own.
        let other = try SwiftStream.connect(try suiteCable(), route, try four(ids[0], 7), [])
        let second = try stream.listener.accept(timeout: .seconds(20))
        expectSame(try second.synTraits(), try four(ids[0], 7))
        #expect(second.peerAddress.port == (try other.localAddress().port))
        expectSame(try stream.server.synTraits(), kept)
      }
    }

    @Test("a listener that keeps nothing of a SYN gives nothing", arguments: Route.allCases)
    func noSYN(route: Route) throws {
      try withCrossing([.bytes4]) { ids in
        let stream = try SwiftStream(route, connecting: try four(ids[0], 1))
        #expect(try stream.server.synTraits().isEmpty)
      }
    }

    @Test(
      "bytes have the connection's traits, and over them those that they were written with",
      arguments: Route.allCases)
    func bytes(route: Route) throws {
      try withCrossing([.bytes4, .bytes4, .bytes8]) { ids in
        let sticky = try Traits([(ids[0], [1, 0, 0, 0]), (ids[1], [2, 0, 0, 0])])
        let back = try Traits([(ids[2], [8, 7, 6, 5, 4, 3, 2, 1])])
        let stream = try SwiftStream(
          route, receiving: ids, listening: back, connecting: sticky, back: [ids[2]])
        #expect(try stream.server.receivedTraits() == TraitMask(ids))
        #expect(try stream.server.sentTraits() == back)
        #expect(try stream.client.sentTraits() == sticky)

        try stream.client.write([1, 2, 3])
        let plain = try stream.server.read()
        #expect(plain.bytes == [1, 2, 3])
        expectSame(plain.traits, sticky)
        // Over the one, beside the other
        let own = try Traits([(ids[1], [9, 0, 0, 0]), (ids[2], [1, 1, 1, 1, 1, 1, 1, 1])])
        try stream.client.write([4, 5], own)
        let written = try stream.server.read()
        #expect(written.bytes == [4, 5])
        expectSame(
          written.traits,
          try Traits([
            (ids[0], [1, 0, 0, 0]), (ids[1], [9, 0, 0, 0]), (ids[2], [1, 1, 1, 1, 1, 1, 1, 1]),
          ]))
        // For these bytes alone
        try stream.client.write([6])
        let after = try stream.server.read()
        #expect(after.bytes == [6])
        expectSame(after.traits, sticky)

        try stream.server.write([7])
        let answer = try stream.client.read()
        #expect(answer.bytes == [7])
        expectSame(answer.traits, back)
      }
    }

    @Test("a read ends where an exact value changes, if it was asked for", arguments: Route.allCases)
    func exact(route: Route) throws {
      try withCrossing([.bytes4]) { ids in
        let parts =
          [([UInt8](repeating: 1, count: 100), 1), ([UInt8](repeating: 2, count: 50), 2)]
          as [([UInt8], UInt8)]
        do {
          let stream = try SwiftStream(route, receiving: ids)
          for (bytes, value) in parts { try stream.client.write(bytes, try four(ids[0], value)) }
          // Both are there before one is read.
          usleep(200_000)
          for flags in [.peek, []] as [MessageFlags] {
            let first = try stream.server.read(flags: flags)
            expectSame(first.traits, try four(ids[0], 1))
            #expect(first.bytes == parts[0].0 || Guest.storesMayFail)
          }
          let second = try stream.server.read()
          expectSame(second.traits, try four(ids[0], 2))
          #expect(second.bytes == parts[1].0 || Guest.storesMayFail)
        }

        // Who did not ask reads on.
        let unaware = try SwiftStream(.ipv4)
        for (bytes, value) in parts { try unaware.client.write(bytes, try four(ids[0], value)) }
        try unaware.server.awaitBytes(150)
        let all = try unaware.server.read()
        #expect(all.bytes == parts[0].0 + parts[1].0)
        #expect(all.traits.isEmpty)
      }
    }

    @Test(
      "a read over several values gives one, by the key's policy", arguments: Route.allCases,
      [(MergePolicy.first, 3), (.last, 1), (.minimum, 1), (.maximum, 3)] as [(MergePolicy, UInt8)])
    func merged(route: Route, merge: (policy: MergePolicy, value: UInt8)) throws {
      try withCrossing([.bytes4], merge: merge.policy) { ids in
        let stream = try SwiftStream(route, receiving: ids)
        for value in [3, 2, 1] as [UInt8] {
          try stream.client.write([value, value], try four(ids[0], value))
        }
        try stream.server.awaitBytes(6)
        let peeked = try stream.server.read(flags: .peek)
        let read = try stream.server.read()
        #expect(read.bytes == [3, 3, 2, 2, 1, 1])
        expectSame(read.traits, try four(ids[0], merge.value))
        expectSame(peeked.traits, read.traits)
      }
    }

    @Test("a write that the kernel takes in parts has its traits to the end", arguments: Route.allCases)
    func partial(route: Route) throws {
      try withCrossing([.bytes16]) { ids in
        let traits = try Traits(distinct(ids))
        let stream = try SwiftStream(route, receiving: ids)
        try stream.client.setSendBufferSize(20_000)
        let payload = TagProgram.payload(1, length: 400_000)
        var sent = 0
        do throws(TraitError) {
          // No room for all of it at once.
          try stream.client.sendAll(payload.span.bytes, traits: traits, flags: .doNotWait, sent: &sent)
        } catch {
          #expect(error.code == .wouldBlock || Guest.storesMayFail)
        }
        #expect(sent < payload.count)
        var received: [UInt8] = []
        while received.count < payload.count {
          do throws(TraitError) {
            try stream.client.sendAll(payload.span.bytes, traits: traits, flags: .doNotWait, sent: &sent)
          } catch {
            try #require(error.code == .wouldBlock || Guest.storesMayFail, "\(error)")
          }
          let read = try stream.server.read()
          try #require(!read.bytes.isEmpty, "the stream ended")
          expectSame(read.traits, traits)
          received += read.bytes
        }
        #expect(received == payload)
      }
    }

    @Test(
      "what is wrong with traits is said, and then nothing has been sent", arguments: [Route.ipv4, .ipv6])
    func errors(route: Route) throws {
      try withCrossing([.bytes4] + [TraitSize](repeating: .bytes16, count: 12)) { ids in
        let stream = try SwiftStream(route, receiving: ids)
        func expect(
          _ code: TraitError.Code, sourceLocation: SourceLocation = #_sourceLocation,
          _ body: () throws -> Void
        ) {
          let error = #expect(throws: TraitError.self, sourceLocation: sourceLocation) { try body() }
          #expect(error?.code == code, sourceLocation: sourceLocation)
        }
        let byte: [UInt8] = [1]
        let free = try Guest.freeKey()
        let unknown = try four(free, 1)
        expect(.noSuchKey) { _ = try stream.client.send(byte.span.bytes, traits: unknown) }
        expect(.noSuchKey) { try stream.client.setSentTraits(unknown) }
        expect(.noSuchKey) { try stream.listener.setSavedSYNTraits(TraitMask(free)) }
        expect(.noSuchKey) { try stream.server.setReceivedTraits(TraitMask(free)) }
        let wide = try Traits([(ids[0], [UInt8](repeating: 1, count: 8))])
        expect(.invalidArgument) { _ = try stream.client.send(byte.span.bytes, traits: wide) }
        try asUser(65534) {
          expect(.notPermitted) { _ = try stream.client.send(byte.span.bytes, traits: try four(ids[0], 1)) }
          expect(.notPermitted) { try stream.listener.setSavedSYNTraits(TraitMask(ids[0])) }
        }
        try Guest.insisting { try stream.client.setSentTraits(try Traits(distinct(ids[1...]))) }
        expect(.limitExceeded) { _ = try stream.client.send(byte.span.bytes, traits: try four(ids[0], 1)) }
        #expect(try stream.listener.savedSYNTraits().isEmpty)

        // The first byte that comes is the one of now.
        try stream.client.write([2])
        #expect(try stream.server.read().bytes == [2])
        let datagrams = try UDPSocket(.ipv4)
        #expect(throws: Errno.self) { try datagrams.unsafeFileDescriptor.setSavedSYNTraits(TraitMask(ids[0])) }
        #expect(throws: Errno.self) { try datagrams.unsafeFileDescriptor.synTraits() }
      }
    }

    @Test(
      "a key that is removed is in no mask, and in what was kept of no SYN", arguments: [Route.ipv4, .ipv6])
    func removal(route: Route) throws {
      try withCrossing([.bytes4, .bytes4]) { ids in
        let values = try Traits([(ids[0], [1, 0, 0, 0]), (ids[1], [2, 0, 0, 0])])
        let stream = try SwiftStream(route, saving: ids, receiving: ids, connecting: values)
        expectSame(try stream.server.synTraits(), values)
        var registry = try RegistryConnection()
        try registry.remove(ids[0])
        #expect(try stream.listener.savedSYNTraits() == TraitMask(ids[1]))
        #expect(try stream.server.receivedTraits() == TraitMask(ids[1]))
        expectSame(try stream.server.synTraits(), try four(ids[1], 2))
        try stream.client.write([1])
        let read = try stream.server.read()
        #expect(read.bytes == [1])
        expectSame(read.traits, try four(ids[1], 2))
      }
    }

    @Test("tasks have the same without a thread", arguments: Route.allCases)
    func tasks(route: Route) async throws {
      let cable = try suiteCable()
      var registry = try RegistryConnection()
      let id = try registry.add(Guest.uniqueName(), size: .bytes4, flags: .crossesNetworkNamespaces).id
      defer { _ = try? registry.remove(id) }
      final class Shared: Sendable {
        let listener: TCPListener

        init(_ listener: consuming TCPListener) { self.listener = listener }
      }
      let family: InternetAddress.Family = route == .ipv4 ? .ipv4 : .ipv6
      let shared = Shared(try cable.receiver.namespace.run { try TCPListener(family) })
      try Guest.insisting {
        try shared.listener.setSavedSYNTraits(TraitMask(id))
        try shared.listener.setReceivedTraits(TraitMask(id))
      }
      try shared.listener.listen(at: .any(family, port: Guest.port))
      let serving = Task {
        let connection = try await shared.listener.accept()
        var reads: [([UInt8], Traits)] = []
        var bytes = [UInt8](repeating: 0, count: 100)
        while true {
          let received = try await connection.receive(into: &bytes)
          if received.isEndOfStream { break }
          reads.append((Array(bytes[..<received.length]), try received.traits))
        }
        return (syn: try connection.synTraits(), reads: reads)
      }
      let client = try SwiftStream.connect(cable, route, try four(id, 1), [])
      try client.setNoDelay(true)
      let written = try four(id, 2)
      try client.write([1, 2], written)
      try client.write([3])
      try client.shutdown(.sending)
      let limit = Task {
        try await Task.sleep(for: .seconds(30))
        serving.cancel()
      }
      defer { limit.cancel() }
      let result = try await serving.value
      expectSame(result.syn, try four(id, 1))
      #expect(result.reads.flatMap(\.0) == [1, 2, 3])
      if !Guest.storesMayFail {
        #expect(result.reads.map(\.0) == [[1, 2], [3]])
        #expect(result.reads.map(\.1) == [written, try four(id, 1)])
      }
    }
  }
}
