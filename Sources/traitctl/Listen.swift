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
      as hexadecimal bytes in the order in memory. "receiving at" and the address is \
      written to standard error once datagrams are received.
      """)

  @Option(
    help: ArgumentHelp(
      "IPv4 or IPv6 address to receive at. (default: all, of both)", valueName: "address"))
  var address: String?

  @Option(help: ArgumentHelp("UDP port to receive at; 0 for any, which \"receiving at\" tells.", valueName: "number"))
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
    if let address, InternetAddress(address, port: port) == nil {
      throw ValidationError(
        "--address is \"\(address)\", but must be an IPv4 or IPv6 address, as 192.0.2.1 or 2001:db8::1.")
    }
  }

  func run() throws {
    try reportingErrors {
      var registry = try RegistryConnection()
      let socket = try openSocket()
      let keys = try askForKeys(&registry, socket)
      try socket.setReceiveTimeout(timeout.map { .microseconds(Int64($0 * 1_000_000)) })
      try bind(socket)

      let keyNames = Dictionary(keys.map { ($0.id, $0.name) }) { name, _ in name }
      // As long as a datagram can be, so that its end is never cut off.
      var bytes = [UInt8](repeating: 0, count: 65536)
      var received = 0
      while count.map({ received < $0 }) ?? true {
        let datagram: ReceivedDatagram
        do throws(TraitError) {
          datagram = try socket.receive(into: &bytes)
        } catch {
          guard error.code == .wouldBlock else { throw error }
          guard let count else { return }
          complain("\(received) of \(count) datagrams came, and then none for \(timeout ?? 0) seconds")
          throw ExitCode.failure
        }
        received += 1
        let report = DatagramReport(
          source: datagram.source?.description,
          length: datagram.datagramLength,
          traits: try datagram.traits.map {
            // A key that was removed and made anew is not delivered any more.
            try TraitReport($0, name: keyNames[$0.id] ?? $0.id.description)
          },
          traitsTruncated: datagram.areTraitsTruncated)
        if json { try printJSON(report) } else { try printLine(report.text) }
      }
    }
  }

  private func openSocket() throws -> UDPSocket {
    if let address, let local = InternetAddress(address, port: port) {
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
    let local = address.flatMap { InternetAddress($0, port: port) } ?? .any(family, port: port)
    do {
      try socket.bind(to: local)
    } catch {
      throw TraitError(.systemCall, "\(local) cannot be received at", underlyingError: error)
    }
    // From here on nothing is missed: what waits for this may send.
    complain("receiving at \(try socket.localAddress())")
  }

  private func askForKeys(
    _ registry: inout RegistryConnection, _ socket: borrowing UDPSocket
  ) throws -> [RegisteredKey] {
    guard names.isEmpty else {
      var keys: [RegisteredKey] = []
      for name in names { keys.append(try registry.key(named: name)) }
      try socket.setReceivedTraits(TraitMask(keys.map(\.id)))
      return keys
    }
    return try askForAll(
      listing: { () throws(TraitError) in try registry.keys() },
      asking: { mask throws(TraitError) in try socket.setReceivedTraits(mask) })
  }
}

/// Asks for every key that may be received, and tells which these are.
///
/// What may be received is known best by who decides it: the keys are asked for
/// one by one, and then all at once. One that is removed in between makes that
/// fail, and then everything is done anew.
///
/// - Parameters:
///   - attempts: How often at most.
///   - listing: Gives all keys.
///   - asking: Asks for these keys and no others.
/// - Throws: `registryChanging` if a key went each time, what the two throw.
func askForAll(
  attempts: Int = 100,
  listing: () throws(TraitError) -> [RegisteredKey],
  asking: (TraitMask) throws(TraitError) -> Void
) throws(TraitError) -> [RegisteredKey] {
  func isGranted(_ mask: TraitMask) throws(TraitError) -> Bool {
    do throws(TraitError) {
      try asking(mask)
      return true
    } catch {
      // Not open to all, or removed just now.
      guard error.code == .notPermitted || error.code == .noSuchKey else { throw error }
      return false
    }
  }
  for _ in 0..<attempts {
    var keys: [RegisteredKey] = []
    for key in try listing() where try isGranted(TraitMask(key.id)) { keys.append(key) }
    if try isGranted(TraitMask(keys.map(\.id))) { return keys }
  }
  throw TraitError(
    .registryChanging,
    "keys were removed each of the \(attempts) times that they were asked for")
}
