// SPDX-License-Identifier: MIT

internal import ArgumentParser
internal import PacketTraits
internal import SystemPackage
internal import TraitRegistry

struct Listen: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Receive UDP datagrams, or TCP connections, and print their traits.",
    discussion: """
      One line a datagram: source, length of the payload in bytes, traits by \
      name. Values of 4 and 8 bytes are printed as unsigned numbers, those of 16 \
      as hexadecimal bytes in the order in memory. "receiving at" and the address is \
      written to standard error once datagrams are received.

      With --tcp, any number of connections at once: one line when one is made, \
      "connected", with the traits of its SYN if --save-syn asks for them; one line a \
      read, as of a datagram, whose traits are those of all segments that it took \
      bytes from, by each key's merge policy; one line at its end, "ended", with the \
      error if it was not the peer who ended it. Each line begins with the peer.
      """)

  @Flag(help: "Take TCP connections, not UDP datagrams.")
  var tcp = false

  @Option(
    help: ArgumentHelp(
      "IPv4 or IPv6 address to receive at. (default: all, of both)", valueName: "address"))
  var address: String?

  @Option(
    help: ArgumentHelp(
      "UDP or TCP port to receive at; 0 for any, which \"receiving at\" tells.", valueName: "number"))
  var port: UInt16

  @Option(
    name: .customLong("key"),
    help: ArgumentHelp(
      "Name of a key to receive; may be repeated. (default: all that may be received)",
      valueName: "name"))
  var names: [String] = []

  @Flag(
    name: .customLong("save-syn"),
    help: """
      With --tcp: keep the traits of each connection's SYN, of the same keys (TRAITS_SAVE_SYN).
      """)
  var savesSYN = false

  @Option(
    help: ArgumentHelp(
      """
      End after this many datagrams; with --tcp, take this many connections, and end when they have \
      ended.
      """, valueName: "number"))
  var count: Int?

  @Option(
    help: ArgumentHelp(
      """
      End when none came for this many seconds, with --tcp neither a connection nor bytes nor an \
      end: with exit status 1 if fewer came than --count asks for.
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
    for name in names { try validateName(name) }
    if savesSYN && !tcp {
      throw ValidationError("--save-syn is for connections: it takes --tcp.")
    }
  }

  func run() async throws {
    if tcp {
      try await reportingErrors(awaiting: takeConnections)
    } else {
      try receiveDatagrams()
    }
  }

  private func takeConnections() async throws {
    // Two for each connection.
    allowDescriptors()
    var registry = try RegistryConnection()
    let listener = try open { family throws(Errno) in try TCPListener(family) }
    let keys = try askForKeys(&registry) { mask throws(TraitError) in
      try listener.setReceivedTraits(mask)
      if savesSYN { try listener.setSavedSYNTraits(mask) }
    }
    let local = try localAddress(try listener.localAddress().family)
    do throws(Errno) {
      try listener.listen(at: local)
    } catch {
      throw TraitError(.systemCall, "\(local) cannot be received at", underlyingError: error)
    }
    complain("receiving at \(try listener.localAddress())")
    let isJSON = json
    let connections = Connections(listener, keyNames: names(of: keys), savesSYN: savesSYN) { event in
      if isJSON { try printJSON(event) } else { try printLine(event.text) }
    }
    let end = try await connections.serve(
      count: count, timeout: timeout.map { .microseconds(Int64($0 * 1_000_000)) })
    guard case .idle(let ended) = end, let count else { return }
    complain(
      "\(ended) of \(count) connections came and ended, and then nothing came for \(timeout ?? 0) seconds")
    throw ExitCode.failure
  }

  private func receiveDatagrams() throws {
    try reportingErrors {
      var registry = try RegistryConnection()
      let socket = try open { family throws(Errno) in try UDPSocket(family) }
      let keys = try askForKeys(&registry) { mask throws(TraitError) in
        try socket.setReceivedTraits(mask)
      }
      try socket.setReceiveTimeout(timeout.map { .microseconds(Int64($0 * 1_000_000)) })
      try bind(socket)

      let keyNames = names(of: keys)
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
        let source = datagram.source?.description
        let traits = readable("a datagram from \(source ?? "nowhere")") { () throws(TraitError) in
          try datagram.traits
        }
        let report = DatagramReport(
          source: source,
          length: datagram.datagramLength,
          traits: try (traits ?? Traits()).map {
            // A key that was removed and made anew is not delivered any more.
            try TraitReport($0, name: keyNames[$0.id] ?? $0.id.description)
          },
          traitsTruncated: datagram.areTraitsTruncated || traits == nil)
        if json { try printJSON(report) } else { try printLine(report.text) }
      }
    }
  }

  /// Opens a socket of the address's family, without one of IPv6, which takes both.
  private func open<Socket: ~Copyable>(
    _ make: (InternetAddress.Family) throws(Errno) -> Socket
  ) throws -> Socket {
    if address != nil { return try make(try localAddress(.ipv6).family) }
    do {
      return try make(.ipv6)
    } catch Errno.addressFamilyNotSupported {
      return try make(.ipv4)
    }
  }

  /// - Parameter family: Of the socket, if it is to receive at all addresses.
  private func localAddress(_ family: InternetAddress.Family) throws -> InternetAddress {
    guard let address else { return .any(family, port: port) }
    return try stillAddress(address, port: port)
  }

  private func bind(_ socket: borrowing UDPSocket) throws {
    let local = try localAddress(try socket.localAddress().family)
    do throws(Errno) {
      try socket.bind(to: local)
    } catch {
      throw TraitError(.systemCall, "\(local) cannot be received at", underlyingError: error)
    }
    // From here on nothing is missed: what waits for this may send.
    complain("receiving at \(try socket.localAddress())")
  }

  private func askForKeys(
    _ registry: inout RegistryConnection, _ asking: (TraitMask) throws(TraitError) -> Void
  ) throws -> [RegisteredKey] {
    guard names.isEmpty else {
      var keys: [RegisteredKey] = []
      for name in names { keys.append(try registry.key(named: name)) }
      try asking(TraitMask(keys.map(\.id)))
      return keys
    }
    return try askForAll(
      listing: { () throws(TraitError) in try registry.keys() }, asking: asking)
  }

  private func names(of keys: [RegisteredKey]) -> [TraitID: String] {
    Dictionary(keys.map { ($0.id, $0.name) }) { name, _ in name }
  }
}

/// Returns the traits of something received, or nil after a complaint if they cannot be read: what
/// was received is reported nevertheless.
func readable(_ what: String, _ traits: () throws(TraitError) -> Traits) -> Traits? {
  do throws(TraitError) {
    return try traits()
  } catch {
    complain("the traits of \(what) cannot be read: \(error)")
    return nil
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
