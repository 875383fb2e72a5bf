// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import Glibc
public import PacketTraits
public import SystemPackage

/// `steer.bpf.c`: one program classifies packets in XDP, the others choose a way or a socket
/// by that class.
public enum SteeringProgram {
  /// The classes: a packet's is the number that it is classified by, modulo this.
  public static let classes: UInt32 = 4
  /// The class that is not written down: such packets have no trait.
  public static let noClass: UInt32 = 3

  /// What the programs have in common.
  public struct Configuration: Sendable {
    public var port: UInt16
    /// Of 4 bytes.
    public var key: TraitID
    /// What is taken out by programs that take one class out.
    public var takenOut: UInt32 = 1
    /// The processor that packets are handed over to.
    public var processor: UInt32 = 0

    public init(port: UInt16, key: TraitID) {
      self.port = port
      self.key = key
    }

    fileprivate var constants: [UInt8] {
      var constants: [UInt8] = []
      for number in [UInt32(port), key.rawValue, takenOut, processor] {
        constants.append(native: number)
      }
      return constants
    }
  }

  /// Gives packets their class, and lets them pass.
  public static func classifier(_ configuration: Configuration) throws -> XDPProgram {
    try XDPProgram("steer", function: "classify", constants: configuration.constants)
  }

  /// Gives datagrams their class, and sends them out of those interfaces whose class it is.
  ///
  /// - Parameter exits: By class. The interfaces are of one namespace.
  public static func spread(_ configuration: Configuration, to exits: [UInt32: VethPair.End]) throws -> XDPProgram {
    let spread = try XDPProgram("steer", function: "spread", constants: configuration.constants)
    let leave = try XDPProgram("steer", function: "leave", constants: configuration.constants)
    for (kind, exit) in exits {
      let index = try exit.index()
      try leave.setInterface(of: kind, index)
      var entry = bpf_devmap_val()
      entry.ifindex = index
      entry.bpf_prog.fd = leave.descriptor
      let value = withUnsafeBytes(of: entry) { Array($0) }
      // The number means an interface of the namespace where it is said.
      try exit.namespace.run { try spread.update("ports", key: index, value: value) }
    }
    // The map holds on to the program, but its interfaces are found by its own map.
    spread.onDetach { _ = leave }
    return spread
  }

  /// Gives datagrams their class, and hands them over to another processor, where they go out of
  /// the interface whose class it is, or end if theirs is taken out, or pass.
  public static func handOver(_ configuration: Configuration, to exits: [UInt32: VethPair.End]) throws -> XDPProgram {
    let hand = try XDPProgram("steer", function: "hand", constants: configuration.constants)
    let take = try XDPProgram("steer", function: "take", constants: configuration.constants)
    for (kind, exit) in exits { try take.setInterface(of: kind, try exit.index()) }
    var entry = bpf_cpumap_val()
    entry.qsize = 192
    entry.bpf_prog.fd = take.descriptor
    let value = withUnsafeBytes(of: entry) { Array($0) }
    try hand.update("cpus", key: configuration.processor, value: value)
    hand.onDetach { _ = take }
    return hand
  }

  /// A program that has an skb, or runs on behalf of one.
  public final class Choice: BPFProgram {
    /// What chooses.
    public enum Kind: String, Sendable {
      /// sk_reuseport, among the sockets of the map `group`
      case pick
      /// tc, among those of the map `sockets`, with `bpf_sk_assign()`
      case assign
      /// A socket filter: keeps the class that is taken out
      case filter
      /// cgroup_skb: refuses it
      case admit
      /// sock_ops: the priority of a connection is 1 more than the class of its SYN
      case answer
      /// sock_ops: the same, by what the listener kept of the SYN
      case greet
      /// sk_skb, among the sockets of the map `sockets`
      case verdict
      /// tc, to another interface
      case redirect
      /// tc: the mark becomes the class
      case mark
      /// netfilter: drops the class that is taken out
      case wall
    }

    public init(_ kind: Kind, _ configuration: Configuration) throws {
      try super.init("steer", function: kind.rawValue, constants: configuration.constants)
    }

    /// Says which interface packets of a class go out of.
    public func setExit(of kind: UInt32, _ exit: VethPair.End) throws {
      try setInterface(of: kind, try exit.index())
    }

    /// Attaches a classifier of tc to where packets arrive.
    public func attachToIngress(of end: VethPair.End) throws {
      let index = try end.index()
      // BPF_TCX_INGRESS
      try end.namespace.run { try link(to: Int32(index), 46, end.interface) }
    }

    /// Attaches a program that picks one of the sockets that share this one's address.
    public func attachToGroup(of socket: FileDescriptor) throws {
      // SO_ATTACH_REUSEPORT_EBPF
      try attach(to: socket, option: 52)
    }

    /// Attaches a socket filter, until the socket is closed.
    public func attach(to socket: FileDescriptor) throws {
      // SO_ATTACH_BPF
      try attach(to: socket, option: 50)
    }

    /// Attaches a program to all control groups, for what is received there.
    public func attachToAllGroups() throws {
      try linkToAllGroups(BPF_CGROUP_INET_INGRESS.rawValue)
    }

    /// Attaches a program to all control groups, for what becomes of connections there.
    public func attachToAllConnections() throws {
      try linkToAllGroups(BPF_CGROUP_SOCK_OPS.rawValue)
    }

    /// Lets a program decide about what the sockets in its map receive.
    public func attachToSockets() throws { try attachToSockets(of: "sockets") }

    /// Attaches a netfilter program to the hook for what a namespace receives.
    public func attachToInput(_ family: InternetAddress.Family, in namespace: NetworkNamespace) throws {
      // NFPROTO_IPV4 and NFPROTO_IPV6
      try attachToLocalInput(family == .ipv4 ? 2 : 10, in: namespace)
    }

    /// Drops what a socket filter keeps, by a rule of iptables for what a namespace receives.
    public func addRule(_ family: InternetAddress.Family, in namespace: NetworkNamespace) throws {
      let tool = family == .ipv4 ? "iptables-legacy" : "ip6tables-legacy"
      func rule(_ operation: String, _ path: String) throws {
        try namespace.run {
          _ = try Command.require(
            tool, operation, "INPUT", "-m", "bpf", "--object-pinned", path, "-j", "DROP")
        }
      }
      try withPath { try rule("-A", $0) }
      onDetach { try namespace.run { _ = try Command.require(tool, "-F", "INPUT") } }
    }
  }
}

extension BPFProgram {
  /// Says which interface packets of a class go out of, by its number.
  fileprivate func setInterface(of kind: UInt32, _ index: UInt32) throws {
    var value: [UInt8] = []
    value.append(native: index)
    try update("interfaces", key: kind, value: value)
  }
}
