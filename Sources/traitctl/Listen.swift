// SPDX-License-Identifier: MIT

internal import ArgumentParser
internal import PacketTraits
internal import SystemPackage
internal import TraitRegistry

struct Listen: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Receive UDP datagrams, and print the traits of each.",
    discussion: """
      One line a datagram: source, length of the payload in bytes, traits by \
      name. Values of 4 and 8 bytes are printed as unsigned numbers, those of 16 \
      as hexadecimal bytes in the order in memory.
      """)

  @Option(
    help: ArgumentHelp(
      "IPv4 or IPv6 address to receive at. (default: all, of both)", valueName: "address"))
  var address: String?

  @Option(help: ArgumentHelp("UDP port to receive at; 0 for any, which is printed.", valueName: "number"))
  var port: UInt16

  @Option(
    name: .customLong("key"),
    help: ArgumentHelp(
      "Name of a key to receive; may be repeated. (default: all that may be received)",
      valueName: "name"))
  var names: [String] = []

  @Option(help: ArgumentHelp("End after this many datagrams.", valueName: "number"))
  var count: Int?

  @Option(
    help: ArgumentHelp(
      """
      End when none came for this many seconds: with exit status 1 if fewer came than --count \
      asks for.
      """, valueName: "seconds"))
  var timeout: Double?

  @Flag(help: "Print a JSON object a line.")
  var json = false

  func validate() throws {
    if let count, count < 1 {
      throw ValidationError("--count is \(count), but must be 1 or more.")
    }
    if let timeout, !(timeout >= 0.000_001 && timeout <= 1_000_000) {
      throw ValidationError("--timeout is \(timeout), but must be 0.000001 to 1000000 seconds.")
    }
    if let address, SocketAddress(address, port: port) == nil {
      throw ValidationError(
        "--address is \"\(address)\", but must be an IPv4 or IPv6 address, as 192.0.2.1 or 2001:db8::1.")
    }
  }

  func run() throws {
    try reportingErrors {
      var registry = try RegistryConnection()
      let socket = try openSocket()
      let keys = try chooseKeys(&registry, socket)
      try socket.setReceivedTraits(TraitMask(keys.map(\.id)))
      try socket.setReceiveTimeout(timeout.map { .microseconds(Int64($0 * 1_000_000)) })
      try bind(socket)

      let keyNames = Dictionary(keys.map { ($0.id, $0.name) }) { name, _ in name }
      // As long as a datagram can be, so that its end is never cut off.
      var bytes = [UInt8](repeating: 0, count: 65536)
      var received = 0
      while count.map({ received < $0 }) ?? true {
        let datagram: ReceivedDatagram
        do throws(TraitError) {
          var elements = bytes.mutableSpan
          var payload = elements.mutableBytes
          datagram = try socket.receive(into: &payload)
        } catch {
          guard error.code == .wouldBlock else { throw error }
          guard let count else { return }
          complain("\(received) of \(count) datagrams came, and then none for \(timeout ?? 0) seconds")
          throw ExitCode.failure
        }
        received += 1
        let report = DatagramReport(
          source: datagram.source?.description ?? "unknown",
          length: datagram.datagramLength,
          traits: datagram.traits.map {
            // A key that was removed and made anew is not delivered any more.
            TraitReport($0, name: keyNames[$0.id] ?? $0.id.description)
          },
          traitsTruncated: datagram.areTraitsTruncated)
        if json { try printJSON(report) } else { try printLine(report.text) }
      }
    }
  }

  private func openSocket() throws -> UDPSocket {
    if let address, let local = SocketAddress(address, port: port) {
      return try UDPSocket(local.family)
    }
    do {
      return try UDPSocket(.ipv6)
    } catch Errno.addressFamilyNotSupported {
      return try UDPSocket(.ipv4)
    }
  }

  private func bind(_ socket: borrowing UDPSocket) throws {
    let family = try socket.localAddress().family
    let local = address.flatMap { SocketAddress($0, port: port) } ?? .any(family, port: port)
    do {
      try socket.bind(to: local)
    } catch {
      throw TraitError(.systemCall, "\(local) cannot be received at", underlyingError: error)
    }
    if port == 0 {
      complain("receiving at \(try socket.localAddress())")
    }
  }

  private func chooseKeys(
    _ registry: inout RegistryConnection, _ socket: borrowing UDPSocket
  ) throws -> [RegisteredKey] {
    guard names.isEmpty else {
      var keys: [RegisteredKey] = []
      for name in names { keys.append(try registry.key(named: name)) }
      return keys
    }
    // What may be received is known best by who decides it. A key may also be
    // removed while we look.
    var keys: [RegisteredKey] = []
    for key in try registry.keys() {
      do throws(TraitError) {
        try socket.setReceivedTraits(TraitMask(key.id))
        keys.append(key)
      } catch {
        guard error.code == .notPermitted || error.code == .noSuchKey else { throw error }
      }
    }
    return keys
  }
}
