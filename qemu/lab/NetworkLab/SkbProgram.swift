// SPDX-License-Identifier: MIT

internal import CLibBPF
internal import Glibc
public import PacketTraits
internal import Synchronization
public import SystemPackage

/// `skb.bpf.c`: does to packets what is written down here, step by step,
/// in programs that have an sk_buff.
public final class SkbProgram: BPFProgram {
  /// What type of program, and for the last ones where it runs.
  public enum Kind: String, CaseIterable, Sendable {
    /// At an interface, on the way in or out.
    case classifier
    /// As a classifier, as the action of another one.
    case action
    /// Before a datagram is queued to a socket of a control group.
    case groupIngress = "group_ingress"
    /// When a socket of a control group has sent.
    case groupEgress = "group_egress"
    /// Before a datagram is queued to a socket.
    case socketFilter = "socket_filter"
    /// Before a packet is sent along a route.
    case route
    /// Where netfilter looks at what this machine receives.
    case netfilter
    /// When a socket received something.
    case verdict
    /// Where the stack receives a packet.
    case trace

    /// What the program returns for the packet to go on.
    fileprivate var pass: UInt32 {
      switch self {
      case .classifier, .action, .trace: 0
      // NF_ACCEPT and SK_PASS, too
      case .groupIngress, .groupEgress, .netfilter, .verdict: 1
      case .socketFilter: .max
      // BPF_LWT_REROUTE: by what the packet is now
      case .route: 128
      }
    }
  }

  /// A direction at an interface.
  public enum Direction: Sendable {
    case ingress, egress
  }

  /// How a classifier hangs off an interface.
  public enum Hook: CaseIterable, Sendable {
    /// A link of its own, since Linux 6.6.
    case tcx
    /// A filter of the queueing discipline `clsact`.
    case clsact
  }

  private let count: Int

  public convenience init(_ kind: Kind, port: UInt16, _ steps: [ScriptStep]) throws {
    try self.init(kind, .port(port), steps)
  }

  /// - Parameter cable: One end of a cable, for a classifier on the way in: the packet then
  ///   arrives at the other end, as if it had come along the cable.
  public init(
    _ kind: Kind, _ packets: ScriptPackets, _ steps: [ScriptStep], through cable: VethPair.End? = nil
  ) throws {
    count = steps.count
    try super.init(
      "skb", function: "skb_\(kind.rawValue)",
      constants: ScriptStep.constants(
        packets, action: kind.pass, interface: try cable?.index() ?? 0, steps),
      map: ".rodata.script")
  }

  /// How many datagrams came so far, and what came of each step at the last.
  public func results() throws -> ScriptResults { try ScriptResults(self, count: count) }

  /// Attaches a classifier to an interface.
  public func attach(
    to interface: String, in namespace: NetworkNamespace, _ direction: Direction, by hook: Hook = .tcx
  ) throws {
    let index = try namespace.run {
      let index = if_nametoindex(interface)
      guard index != 0 else { throw LabError("there is no interface \(interface)") }
      switch hook {
      case .tcx:
        // BPF_TCX_INGRESS and BPF_TCX_EGRESS, which libbpf's headers may lack.
        try link(to: Int32(index), direction == .ingress ? 46 : 47, interface)
      case .clsact:
        try addFilter(Int32(index), direction, interface)
      }
      return index
    }
    guard hook == .clsact else { return }
    onDetach {
      try namespace.run {
        // With its filters. Another program's may be among them: tests use one.
        var hook = Self.clsact(Int32(index))
        let status = bpf_tc_hook_destroy(&hook)
        guard status == 0 else {
          throw Self.failure("\(interface): clsact cannot be removed", status)
        }
      }
    }
  }

  /// Attaches a classifier to one end of a cable.
  public func attach(to end: VethPair.End, _ direction: Direction, by hook: Hook = .tcx) throws {
    try attach(to: end.interface, in: end.namespace, direction, by: hook)
  }

  private static func clsact(_ index: Int32) -> bpf_tc_hook {
    var hook = bpf_tc_hook()
    // Without the padding, which Swift does not clear and libbpf looks at.
    hook.sz = MemoryLayout<bpf_tc_hook>.offset(of: \.parent)! + MemoryLayout<UInt32>.size
    hook.ifindex = index
    hook.attach_point = bpf_tc_attach_point(BPF_TC_INGRESS.rawValue | BPF_TC_EGRESS.rawValue)
    return hook
  }

  private func addFilter(_ index: Int32, _ direction: Direction, _ interface: String) throws {
    var hook = Self.clsact(index)
    var status = bpf_tc_hook_create(&hook)
    if status == 0 {
      hook.attach_point = direction == .ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS
      var options = bpf_tc_opts()
      options.sz = MemoryLayout<bpf_tc_opts>.offset(of: \.priority)! + MemoryLayout<UInt32>.size
      options.prog_fd = descriptor
      status = bpf_tc_attach(&hook, &options)
    }
    guard status == 0 else {
      throw Self.failure("\(interface): the program cannot be attached", status)
    }
  }

  /// Attaches a program for control groups to the topmost one: it runs for all
  /// sockets.
  public func attachToAllGroups(_ direction: Direction) throws {
    try linkToAllGroups(
      direction == .ingress ? BPF_CGROUP_INET_INGRESS.rawValue : BPF_CGROUP_INET_EGRESS.rawValue)
  }

  /// Adds a route whose packets the program sees before they are sent.
  ///
  /// - Parameter route: As `ip route add` takes it, without `encap`.
  public func addRoute(_ route: String, in namespace: NetworkNamespace) throws {
    let words = route.split(separator: " ").map(String.init)
    try withPath { path in
      let outcome = try Command(
        ["ip", "-n", namespace.name, "route", "add", words[0], "encap", "bpf", "xmit", "pinned", path]
          + words.dropFirst()
      ).wait()
      guard outcome.status == 0 else { throw LabError("ip route add \(route): \(outcome.errors)") }
    }
    // With its namespace, at the latest
    onDetach { _ = try namespace.ip("route", "del", words[0]) }
  }

  /// Attaches a socket filter, until the socket is closed.
  public func attach(to socket: FileDescriptor) throws {
    // SO_ATTACH_BPF
    try attach(to: socket, option: 50)
  }

  /// Attaches a netfilter program to the hook for what a namespace receives.
  public func attachToInput(_ family: InternetAddress.Family, in namespace: NetworkNamespace) throws {
    // NFPROTO_IPV4 and NFPROTO_IPV6
    try attachToLocalInput(family == .ipv4 ? 2 : 10, in: namespace)
  }

  /// Attaches a program for what sockets receive to one of them, until that is closed.
  ///
  /// - Parameter messageLength: Of a stream, how many bytes the program is to have at once; nil
  ///   for what comes at once.
  public func attachToReceived(by socket: FileDescriptor, messageLength: UInt32? = nil) throws {
    let parser = try messageLength.map { length in
      try BPFProgram(
        "skb", function: "skb_parser",
        constants: ScriptStep.constants(.port(0), action: length, interface: 0, []),
        map: ".rodata.script")
    }
    try attachToSockets(of: "sockets", parser: parser)
    try update("sockets", key: 0, socket: socket)
  }

  /// Attaches a tracing program to the place that it was written for.
  public func attachToTracepoint() throws {
    let link = bpf_raw_tracepoint_open(nil, descriptor)
    guard link >= 0 else {
      throw Self.failure("the program cannot be attached", link)
    }
    onDetach { close(link) }
  }
}
