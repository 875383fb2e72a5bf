// SPDX-License-Identifier: MIT

internal import ArgumentParser
internal import Glibc
internal import PacketTraits
internal import SystemPackage
internal import TraitRegistry

struct Send: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Send UDP datagrams, or bytes over a TCP connection, that have traits.",
    discussion: """
      Prints one line a datagram, or with --tcp one a write, once it is sent: destination, length of the \
      payload in bytes, traits by name. A value is given as it is printed: of 4 \
      and 8 bytes an unsigned number, decimal or hexadecimal after 0x; of 16 bytes \
      32 hexadecimal digits, bytes in the order in memory. Sends on when nobody \
      reads the lines any more.
      """)

  @Flag(
    help: """
      Connect by TCP, write the payload to the connection, and end it. What the peer sends is \
      thrown away, until it ends the connection, too, but for no longer than a second.
      """)
  var tcp = false

  @Option(help: ArgumentHelp("IPv4 or IPv6 address to send to.", valueName: "address"))
  var address: String

  @Option(help: ArgumentHelp("UDP or TCP port to send to.", valueName: "number"))
  var port: UInt16

  @Option(
    name: .customLong("trait"),
    help: ArgumentHelp("Name of a key and its value; may be repeated.", valueName: "name=value"))
  var traits: [TraitArgument] = []

  @Flag(
    help: """
      Give the traits to the socket, once (TRAITS_SEND), and not to each datagram or what is \
      written (SCM_TRAITS). All segments of a connection have them then, from the SYN on.
      """)
  var sticky = false

  @Option(
    help: ArgumentHelp(
      "Send this many datagrams, or write this many times.", valueName: "number"))
  var count = 1

  @Option(help: ArgumentHelp("Wait this many seconds between two of them.", valueName: "seconds"))
  var interval = 0.0

  @Flag(help: "Print a JSON object a line.")
  var json = false

  @Argument(help: "The payload, sent in UTF-8; with --tcp not empty.")
  var text = ""

  func validate() throws {
    if count < 1 {
      throw ValidationError("--count is \(count), but must be 1 or more.")
    }
    if !(interval >= 0 && interval <= 1_000_000) {
      throw ValidationError("--interval is \(interval), but must be 0 to 1000000 seconds.")
    }
    if tcp && text.isEmpty {
      throw ValidationError("<text> is empty, but must have something to write with --tcp.")
    }
    if port == 0 {
      throw ValidationError("--port is 0, but must be 1 to 65535.")
    }
    if InternetAddress(address, port: port) == nil {
      throw ValidationError(
        "--address is \"\(address)\", but must be an IPv4 or IPv6 address, as 192.0.2.1 or 2001:db8::1.")
    }
    for trait in traits { try validateName(trait.name) }
    var names: Set<String> = []
    for trait in traits where !names.insert(trait.name).inserted {
      throw ValidationError("--trait gives \(trait.name) two values.")
    }
  }

  func run() throws {
    try reportingErrors {
      var values = Traits()
      var keyNames: [TraitID: String] = [:]
      if !traits.isEmpty {
        // Without traits there is no need for a kernel that has them.
        var registry = try RegistryConnection()
        for trait in traits {
          let key = try registry.key(named: trait.name)
          let bytes: [UInt8]
          do throws(TraitError) {
            bytes = try trait.bytes(size: key.size)
          } catch {
            // What a value has to look like only the key tells: it is an argument all the same.
            throw ValidationError(error.message)
          }
          try values.setBytes(bytes.span.bytes, for: key.id)
          keyNames[key.id] = key.name
        }
      }

      let destination = try stillAddress(address, port: port)
      let payload = Array(text.utf8)
      let report = SentReport(
        destination: destination.description, length: payload.count,
        traits: try values.map { try TraitReport($0, name: keyNames[$0.id] ?? $0.id.description) })
      let lasting = sticky ? values : Traits()
      let own = sticky ? Traits() : values
      if tcp {
        let connection = try TCPConnection.connect(to: destination, traits: lasting)
        // Each write is a segment, if there is room.
        try connection.setNoDelay(true)
        try sendRepeatedly(report) { try connection.sendAll(payload.span.bytes, traits: own) }
        try finish(connection)
      } else {
        let socket = try UDPSocket(destination.family)
        if sticky { try socket.setSentTraits(lasting) }
        try sendRepeatedly(report) {
          try socket.send(payload.span.bytes, to: destination, traits: own)
        }
      }
    }
  }

  /// Ends the connection so that all that was written arrives: to close a socket whose
  /// bytes nobody has read resets the connection (RFC 2525, section 2.17), and what the peer has not
  /// got yet is lost. So whatever the peer says is read until it ends its direction, too.
  private func finish(_ connection: borrowing TCPConnection) throws {
    do throws(Errno) {
      try connection.shutdown(.sending)
    } catch {
      // Why a connection is gone, receiving tells.
      guard error == .socketNotConnected else { throw error }
    }
    let end = ContinuousClock.now + .seconds(1)
    var bytes = [UInt8](repeating: 0, count: 65536)
    while true {
      let left = end - .now
      // A peer that goes on and on has its end of the connection closed.
      guard left > .zero else { return }
      try connection.setReceiveTimeout(left)
      do throws(TraitError) {
        if try connection.receive(into: &bytes).isEndOfStream { return }
      } catch {
        guard error.code == .wouldBlock else { throw error }
        return
      }
    }
  }

  private func sendRepeatedly(_ report: SentReport, _ send: () throws -> Void) throws {
    var printToReader = ReadersPrinter()
    for number in 0..<count {
      if number > 0 { wait() }
      try send()
      try printToReader {
        if json { try printJSON(report) } else { try printLine(report.text) }
      }
    }
  }

  private func wait() {
    let seconds = interval.rounded(.down)
    var left = timespec(tv_sec: Int(seconds), tv_nsec: Int((interval - seconds) * 1_000_000_000))
    var rest = timespec()
    while nanosleep(&left, &rest) != 0 && errno == EINTR { left = rest }
  }
}

/// A key's name and the text of its value, as `name=value`.
struct TraitArgument: ExpressibleByArgument, Equatable {
  var name: String
  var value: String

  init?(argument: String) {
    // Names have no "=" in them.
    let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else { return nil }
    name = String(parts[0])
    value = String(parts[1])
  }

  /// The value's bytes, as they lie in memory.
  ///
  /// - Throws: `invalidArgument` if the text is of no value of this size.
  func bytes(size: TraitSize) throws(TraitError) -> [UInt8] {
    switch size {
    case .bytes4: try number(UInt32.self)
    case .bytes8: try number(UInt64.self)
    default: try hexadecimalBytes(size.rawValue)
    }
  }

  private func number<Number: FixedWidthInteger & UnsignedInteger>(
    _ type: Number.Type
  ) throws(TraitError) -> [UInt8] {
    let isHexadecimal = value.hasPrefix("0x")
    let digits = isHexadecimal ? value.dropFirst(2) : value[...]
    // The initializer would take a sign, too.
    guard let first = digits.first, first.isHexDigit,
      let number = Number(digits, radix: isHexadecimal ? 16 : 10)
    else {
      throw TraitError(
        .invalidArgument, "the value \"\(value)\" of \(name) must be a number from 0 to \(Number.max)")
    }
    return withUnsafeBytes(of: number) { Array($0) }
  }

  private func hexadecimalBytes(_ count: Int) throws(TraitError) -> [UInt8] {
    let digits = value.compactMap(\.hexDigitValue)
    guard digits.count == 2 * count, value.utf8.count == digits.count else {
      throw TraitError(
        .invalidArgument, "the value \"\(value)\" of \(name) must be \(2 * count) hexadecimal digits")
    }
    return (0..<count).map { index in
      UInt8(digits[2 * index] << 4 | digits[2 * index + 1])
    }
  }
}
