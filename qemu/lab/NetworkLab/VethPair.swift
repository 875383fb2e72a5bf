// SPDX-License-Identifier: MIT

internal import Glibc
public import PacketTraits
internal import SystemPackage

/// Two interfaces joined by a cable, each in its namespace, with an address of
/// IPv4 and one of IPv6.
public struct VethPair: Sendable {
  /// One end of the cable.
  public struct End: Sendable {
    public let namespace: NetworkNamespace
    public let interface: String
    public let ipv4: String
    public let ipv6: String

    public func address(_ family: InternetAddress.Family, port: UInt16) throws -> InternetAddress {
      let host = family == .ipv4 ? ipv4 : ipv6
      guard let address = InternetAddress(host, port: port) else {
        throw LabError("\(host) is no address")
      }
      return address
    }

    /// The interface's number in its namespace.
    public func index() throws -> UInt32 {
      try namespace.run {
        let index = if_nametoindex(interface)
        guard index != 0 else {
          throw LabError("there is no interface \(interface) in \(namespace.name)")
        }
        return index
      }
    }

    /// The interface's Ethernet address, 6 bytes.
    public func ethernetAddress() throws -> [UInt8] {
      try namespace.run {
        // Of the caller's namespace is only a /sys that was mounted there.
        let text = try Command.require(
          "ip", "-n", namespace.name, "-brief", "link", "show", "dev", interface)
        let words = text.split(whereSeparator: { $0 == " " || $0 == "\n" })
        let bytes = words.dropFirst(2).first?.split(separator: ":").compactMap { UInt8($0, radix: 16) }
        guard let bytes, bytes.count == 6 else {
          throw LabError("interface \(interface) has no Ethernet address: \(text)")
        }
        return bytes
      }
    }

    private func configure() throws {
      try namespace.ip(lines: [
        "address add \(ipv4)/24 dev \(interface)",
        // Without duplicate address detection, which takes a second.
        "address add \(ipv6)/64 dev \(interface) nodad",
        "link set \(interface) up",
      ])
    }

    fileprivate static func configure(_ ends: [End]) throws {
      for end in ends { try end.configure() }
    }
  }

  public let sender: End
  public let receiver: End

  /// Makes a cable from one namespace to another one.
  ///
  /// - Parameter network: Number of its network: 10.77.`network`.0/24 and
  ///   fd77:`network`::/64. The sender is 1 in it, the receiver 2.
  public init(
    from sending: NetworkNamespace, to receiving: NetworkNamespace, network: Int = 1
  ) throws {
    sender = End(
      namespace: sending, interface: "tx\(network)", ipv4: "10.77.\(network).1",
      ipv6: "fd77:\(network)::1")
    receiver = End(
      namespace: receiving, interface: "rx\(network)", ipv4: "10.77.\(network).2",
      ipv6: "fd77:\(network)::2")
    try sending.ip(
      "link", "add", sender.interface, "type", "veth", "peer", "name", receiver.interface, "netns",
      receiving.name)
    try End.configure([sender, receiver])
    try awaitPassage(.ipv4)
    try awaitPassage(.ipv6)
  }

  /// Takes two interfaces that are joined already, wherever a cable of another kind leads.
  ///
  /// - Parameters:
  ///   - sender: An interface of this program's own namespace, and where to move it.
  ///   - receiver: As `sender`.
  ///   - network: As of ``init(from:to:network:)``.
  public init(
    joined sender: (interface: String, namespace: NetworkNamespace),
    _ receiver: (interface: String, namespace: NetworkNamespace), network: Int
  ) throws {
    func end(_ end: (interface: String, namespace: NetworkNamespace), _ number: Int) throws -> End {
      try Command.require("ip", "link", "set", end.interface, "netns", end.namespace.name)
      return End(
        namespace: end.namespace, interface: end.interface, ipv4: "10.77.\(network).\(number)",
        ipv6: "fd77:\(network)::\(number)")
    }
    self.sender = try end(sender, 1)
    self.receiver = try end(receiver, 2)
    try End.configure([self.sender, self.receiver])
    try awaitPassage(.ipv4)
    try awaitPassage(.ipv6)
  }

  /// Makes two namespaces with a cable between them for as long as `body` runs.
  public static func with<Value>(_ body: (VethPair) throws -> Value) throws -> Value {
    let sending = try NetworkNamespace("sender")
    defer { sending.remove() }
    let receiving = try NetworkNamespace("receiver")
    defer { receiving.remove() }
    return try body(try VethPair(from: sending, to: receiving))
  }

  /// Sends datagrams until one arrives, so that afterwards none waits for
  /// the link, an address or a neighbour.
  private func awaitPassage(_ family: InternetAddress.Family) throws {
    let destination = try receiver.address(family, port: 7)
    let inbox = try receiver.namespace.run {
      let socket = try UDPSocket(family)
      try socket.bind(to: destination)
      try socket.setReceiveTimeout(.milliseconds(50))
      return socket
    }
    let outbox = try sender.namespace.run { try UDPSocket(family) }
    var bytes: [UInt8] = [0]
    var last = "it did not arrive"
    for _ in 0..<200 {
      do {
        try outbox.send(bytes.span.bytes, to: destination)
        _ = try inbox.receive(into: &bytes)
        return
      } catch let error as Errno {
        last = "\(error)"
        usleep(50_000)
      } catch let error as TraitError {
        guard error.code == .wouldBlock else { throw error }
      }
    }
    throw LabError(
      "no datagram came from \(sender.interface) to \(destination) within 10 seconds: \(last)")
  }
}
