// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import SystemPackage
import Testing
import TraitRegistry

@testable import PacketTraits

/// A socket that is closed in the end, and what a line of output calls it.
private final class Sink {
  let name: String
  let descriptor: FileDescriptor
  /// How many bytes a datagram may have. A socket in a sockmap gives what waits as if it were a
  /// stream, as much as is asked for.
  var room = 2048

  init(_ name: String, _ descriptor: FileDescriptor) throws {
    (self.name, self.descriptor) = (name, descriptor)
    var limit = timeval(tv_sec: 10, tv_usec: 0)
    setsockopt(descriptor.rawValue, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { try? descriptor.close() }

  /// A socket for datagrams that is bound.
  convenience init(
    _ name: String, _ namespace: NetworkNamespace, _ route: Guest.Route, port: UInt16 = Guest.port,
    isInGroup: Bool = false
  ) throws {
    let family: InternetAddress.Family = route == .ipv4 ? .ipv4 : .ipv6
    let descriptor = try Guest.Lane.open(namespace, family.domain, SOCK_DGRAM.rawValue, 0)
    try self.init(name, descriptor)
    if isInGroup { try joinGroup() }
    try Guest.Lane.bind(descriptor, .any(family, port: port))
  }

  /// A listener for connections.
  static func listener(
    _ name: String, _ namespace: NetworkNamespace, _ route: Guest.Route, port: UInt16 = Guest.port,
    isInGroup: Bool = false
  ) throws -> Sink {
    let family: InternetAddress.Family = route == .ipv4 ? .ipv4 : .ipv6
    let listener = try Sink(name, try Guest.Lane.open(namespace, family.domain, SOCK_STREAM.rawValue, 0))
    if isInGroup { try listener.joinGroup() }
    var on: Int32 = 1
    try #require(setsockopt(listener.descriptor.rawValue, SOL_SOCKET, SO_REUSEADDR, &on, 4) == 0)
    try Guest.Lane.bind(listener.descriptor, .any(family, port: port))
    try #require(listen(listener.descriptor.rawValue, 16) == 0, "listen: errno \(errno)")
    return listener
  }

  private func joinGroup() throws {
    var on: Int32 = 1
    try #require(setsockopt(descriptor.rawValue, SOL_SOCKET, SO_REUSEPORT, &on, 4) == 0)
  }

  /// Connects a socket for datagrams, to where nobody need be.
  func connect(to address: InternetAddress) throws {
    let status = address.withSockaddr { Glibc.connect(descriptor.rawValue, $0, $1) }
    try #require(status == 0, "connect: errno \(errno)")
  }

  func accept() throws -> Sink {
    let accepted = Glibc.accept(descriptor.rawValue, nil, nil)
    try #require(accepted >= 0, "\(name): accept: errno \(errno)")
    return try Sink(name, FileDescriptor(rawValue: accepted))
  }

  /// The number of the next datagram; nil if there is none.
  func number(waiting: Bool) throws -> UInt32? {
    var bytes = [UInt8](repeating: 0, count: room)
    let count = recv(descriptor.rawValue, &bytes, bytes.count, waiting ? 0 : Int32(MSG_DONTWAIT))
    if count < 0, !waiting, errno == EAGAIN { return nil }
    try #require(count >= 4, "\(name): recv: \(count), errno \(errno)")
    let number: UInt32 = UInt32(bigEndian: bytes.native(0))
    #expect(Array(bytes[..<count]) == TagProgram.payload(number))
    return number
  }
}

/// Packets of all classes, several of each.
private let numbers = 0..<12 as Range<UInt32>

private func kind(_ number: UInt32) -> UInt32 { number % SteeringProgram.classes }

private func text(_ kind: UInt32) -> String {
  kind == SteeringProgram.noClass ? "without a class" : "class \(kind)"
}

/// Expects each sink to have those datagrams that are its own, in order, and no others; says what
/// came.
private func expect(
  _ place: String, _ route: Guest.Route, _ sinks: [(Sink, isIts: (UInt32) -> Bool)],
  sourceLocation: SourceLocation = #_sourceLocation
) throws {
  for (sink, isIts) in sinks {
    var came: [UInt32] = []
    let right = numbers.filter { isIts(kind($0)) }
    for _ in right {
      came.append(try #require(try sink.number(waiting: true), sourceLocation: sourceLocation))
    }
    while let more = try sink.number(waiting: false) { came.append(more) }
    #expect(came == right, "\(sink.name)", sourceLocation: sourceLocation)
    let kinds = Set(came.map(kind)).sorted().map(text).joined(separator: ", ")
    let list = came.map(String.init).joined(separator: " ")
    print(
      "steering: \(place), UDP, \(route.rawValue): \(sink.name) got \(list.isEmpty ? "nothing" : "\(list) (\(kinds))")"
    )
  }
}

/// Two more namespaces behind the receiver's, each at the end of a cable, which receive what is
/// meant for the receiver as if they were it.
private struct Fork {
  let left: VethPair
  let right: VethPair

  /// An address behind both of them.
  static func behind(_ route: Guest.Route) -> String { route == .ipv4 ? "10.88.0.1" : "fd88::1" }

  static func with(_ cable: VethPair, _ body: (Fork) throws -> Void) throws {
    let left = try NetworkNamespace("left")
    defer { left.remove() }
    let right = try NetworkNamespace("right")
    defer { right.remove() }
    let fork = try Fork(
      left: VethPair(from: cable.receiver.namespace, to: left, network: 5),
      right: VethPair(from: cable.receiver.namespace, to: right, network: 6))
    let address = try cable.receiver.ethernetAddress().map { String($0, radix: 16) }.joined(separator: ":")
    for end in [fork.left.receiver, fork.right.receiver] {
      try end.namespace.ip(lines: [
        "link set \(end.interface) address \(address)",
        "address add \(cable.receiver.ipv4)/32 dev lo", "address add \(cable.receiver.ipv6)/128 dev lo nodad",
        "address add \(behind(.ipv4))/32 dev lo", "address add \(behind(.ipv6))/128 dev lo nodad",
      ])
    }
    try cable.receiver.namespace.ip(lines: [
      "neigh flush dev \(fork.left.sender.interface)", "neigh flush dev \(fork.right.sender.interface)",
    ])
    try body(fork)
  }

  /// Frames that a program redirects to a cable are received where there is a program, too.
  func receivingFrames(_ body: () throws -> Void) throws {
    let programs = try [left, right].map { cable in
      let program = try ScriptProgram(port: Guest.port, [])
      try program.program.attach(to: cable.receiver)
      return program
    }
    try body()
    for program in programs { try program.program.detach() }
  }

  func sinks(_ route: Guest.Route) throws -> (Sink, Sink) {
    (try Sink("left", left.receiver.namespace, route), try Sink("right", right.receiver.namespace, route))
  }
}

/// Ports that no connection before came from, the next one of a class.
private nonisolated(unsafe) var lastPort: UInt16 = 6000

private func clientPort(_ wanted: UInt32) -> UInt16 {
  repeat { lastPort += 1 } while kind(UInt32(lastPort)) != wanted
  return lastPort
}

extension Guest {
  /// Each program decides by a trait that an XDP program has set, and by nothing else.
  @Suite("Steering", .cable)
  struct SteeringTests {
    private static let allClasses = 0..<SteeringProgram.classes

    /// Has the sender write checksums, which a cable spares itself: a frame that XDP sends on says
    /// nothing of that any more.
    private func withChecksums(_ cable: VethPair, _ body: () throws -> Void) throws {
      try cable.sender.withOffload("tx", false, body)
    }

    /// Registers the key and classifies what arrives along the suite's cable.
    private func classifying(
      _ body: (VethPair, SteeringProgram.Configuration) throws -> Void
    ) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { ids in
        let configuration = SteeringProgram.Configuration(port: Guest.port, key: ids[0])
        let classifier = try SteeringProgram.classifier(configuration)
        try classifier.attach(to: cable.receiver)
        try body(cable, configuration)
        try classifier.detach()
      }
    }

    private func send(_ cable: VethPair, _ route: Route, to host: String? = nil) throws {
      let outbox = try cable.outbox(route)
      let destination =
        try host.map { try #require(InternetAddress($0, port: Guest.port)) } ?? cable.destination(route)
      for number in numbers { try outbox.send(TagProgram.payload(number), to: destination) }
    }

    /// A connection whose SYN has a class, by the port that it comes from.
    private func connect(_ cable: VethPair, _ route: Route, _ wanted: UInt32) throws -> Sink {
      let client = try Sink(
        "client", try Guest.Lane.open(cable.sender.namespace, route.family.domain, SOCK_STREAM.rawValue, 0))
      try Guest.Lane.bind(client.descriptor, .any(route.family, port: clientPort(wanted)))
      try client.connect(to: try cable.destination(route))
      return client
    }

    /// Whether a connection waits to be accepted.
    private func isAsked(_ listener: Sink) -> Bool {
      var waiting = pollfd(fd: listener.descriptor.rawValue, events: Int16(POLLIN), revents: 0)
      return poll(&waiting, 1, 0) > 0
    }

    // MARK: Sockets

    @Test("sk_reuseport picks the socket of a datagram", arguments: Route.allCases)
    func reuseport(route: Route) throws {
      try classifying { cable, configuration in
        let group = try Self.allClasses.map {
          try Sink("socket \($0)", cable.receiver.namespace, route, isInGroup: true)
        }
        let pick = try SteeringProgram.Choice(.pick, configuration)
        // The last one gets what nobody picks a socket for, as it is the only one in the end.
        for (number, sink) in group.dropLast().enumerated() {
          try pick.update("group", key: UInt32(number), socket: sink.descriptor)
        }
        try pick.attachToGroup(of: group[0].descriptor)
        try send(cable, route)
        // By its hash: all of them go to one socket.
        var others: [UInt32] = []
        for (number, sink) in group.enumerated() {
          var came: [UInt32] = []
          for _ in 0..<(number < 3 ? 3 : 0) { came.append(try #require(try sink.number(waiting: true))) }
          while let more = try sink.number(waiting: false) { came.append(more) }
          others += came.filter { kind($0) == SteeringProgram.noClass }
          let own = came.filter { kind($0) != SteeringProgram.noClass }
          #expect(own == numbers.filter { kind($0) == number && number != SteeringProgram.noClass })
          print(
            "steering: sk_reuseport, UDP, \(route.rawValue): \(sink.name) got \(came.map(String.init).joined(separator: " "))"
          )
        }
        #expect(others == numbers.filter { kind($0) == SteeringProgram.noClass })
      }
    }

    @Test("sk_reuseport picks the listener of a connection", arguments: Route.allCases)
    func reuseportStream(route: Route) throws {
      try classifying { cable, configuration in
        let group = try Self.allClasses.map {
          try Sink.listener("listener \($0)", cable.receiver.namespace, route, isInGroup: true)
        }
        let pick = try SteeringProgram.Choice(.pick, configuration)
        for (number, sink) in group.enumerated() {
          try pick.update("group", key: UInt32(number), socket: sink.descriptor)
        }
        try pick.attachToGroup(of: group[0].descriptor)
        for wanted in [0, 1, 2, 1, 0, 2] as [UInt32] {
          let client = try connect(cable, route, wanted)
          let asked = group.filter(isAsked).map(\.name)
          #expect(asked == ["listener \(wanted)"])
          let accepted = try group[Int(wanted)].accept()
          print(
            "steering: sk_reuseport, TCP, \(route.rawValue): SYN of class \(wanted): \(asked.joined(separator: ", "))"
          )
          try expectPassage(client, accepted)
        }
        // Without a class there is a listener, too.
        let client = try connect(cable, route, SteeringProgram.noClass)
        let asked = try #require(group.first(where: isAsked))
        try expectPassage(client, try asked.accept())
      }
    }

    @Test("tc assigns a socket with bpf_sk_assign()", arguments: Route.allCases)
    func assign(route: Route) throws {
      try classifying { cable, configuration in
        let namespace = cable.receiver.namespace
        // Bound to other ports than the datagrams are sent to
        let chosen = try (0..<3 as Range<UInt16>).map {
          try Sink("socket of port \(5100 + $0)", namespace, route, port: 5100 + $0)
        }
        let addressed = try Sink("socket of port \(Guest.port)", namespace, route)
        let assign = try SteeringProgram.Choice(.assign, configuration)
        for (number, sink) in chosen.enumerated() {
          try assign.update("sockets", key: UInt32(number), socket: sink.descriptor)
        }
        try assign.attachToIngress(of: cable.receiver)
        try send(cable, route)
        var sinks: [(Sink, isIts: (UInt32) -> Bool)] = []
        for (number, sink) in chosen.enumerated() { sinks.append((sink, { $0 == number })) }
        sinks.append((addressed, { $0 == SteeringProgram.noClass }))
        try expect("tc, bpf_sk_assign()", route, sinks)
        try assign.detach()
      }
    }

    @Test("tc assigns a listener with bpf_sk_assign()", arguments: Route.allCases)
    func assignStream(route: Route) throws {
      try classifying { cable, configuration in
        let namespace = cable.receiver.namespace
        let chosen = try (0..<3 as Range<UInt16>).map {
          try Sink.listener("listener of port \(5100 + $0)", namespace, route, port: 5100 + $0)
        }
        let addressed = try Sink.listener("listener of port \(Guest.port)", namespace, route)
        let all = chosen + [addressed]
        let assign = try SteeringProgram.Choice(.assign, configuration)
        for (number, sink) in chosen.enumerated() {
          try assign.update("sockets", key: UInt32(number), socket: sink.descriptor)
        }
        try assign.attachToIngress(of: cable.receiver)
        for wanted in Self.allClasses {
          let client = try connect(cable, route, wanted)
          let asked = all.filter(isAsked).map(\.name)
          #expect(asked == [all[Int(wanted)].name])
          print(
            "steering: tc, bpf_sk_assign(), TCP, \(route.rawValue): SYN \(text(wanted)): \(asked.joined(separator: ", "))"
          )
          try expectPassage(client, try all[Int(wanted)].accept())
        }
        try assign.detach()
      }
    }

    @Test("a socket filter keeps or drops a datagram", arguments: Route.allCases)
    func filter(route: Route) throws {
      try classifying { cable, configuration in
        let filter = try SteeringProgram.Choice(.filter, configuration)
        let inbox = try Sink("socket with the filter", cable.receiver.namespace, route)
        try filter.attach(to: inbox.descriptor)
        try send(cable, route)
        try expect("socket filter", route, [(inbox, { $0 == configuration.takenOut })])
      }
    }

    @Test("a control group's program refuses a datagram", arguments: Route.allCases)
    func group(route: Route) throws {
      try classifying { cable, configuration in
        let admit = try SteeringProgram.Choice(.admit, configuration)
        try admit.attachToAllGroups()
        let inbox = try Sink("socket in the group", cable.receiver.namespace, route)
        try send(cable, route)
        try expect("cgroup_skb", route, [(inbox, { $0 != configuration.takenOut })])
        try admit.detach()
      }
    }

    /// - Parameters:
    ///   - cookies: Of what a request is made: 1 in need, 2 always.
    ///   - isKept: Whether the program reads what the listener kept, or the SYN itself.
    @Test(
      "sock_ops gives a connection the priority of its SYN's class", arguments: Route.allCases,
      [(1, false), (2, false), (1, true)])
    func answer(route: Route, request: (cookies: Int, isKept: Bool)) throws {
      try classifying { cable, configuration in
        try cable.receiver.namespace.setParameter("net/ipv4/tcp_syncookies", "\(request.cookies)")
        defer { try? cable.receiver.namespace.setParameter("net/ipv4/tcp_syncookies", "1") }
        let answer = try SteeringProgram.Choice(request.isKept ? .greet : .answer, configuration)
        try answer.attachToAllConnections()
        let listener = try Sink.listener("listener", cable.receiver.namespace, route)
        if request.isKept {
          try listener.descriptor.setSavedSYNTraits(TraitMask([configuration.key]))
        }
        for wanted in [0, 1, 2, 3, 1, 0] as [UInt32] {
          let client = try connect(cable, route, wanted)
          let accepted = try listener.accept()
          var priority: Int32 = -1
          var length: socklen_t = 4
          try #require(
            getsockopt(accepted.descriptor.rawValue, SOL_SOCKET, SO_PRIORITY, &priority, &length) == 0)
          #expect(priority == (wanted == SteeringProgram.noClass ? 0 : 1 + Int32(wanted)))
          let with = request.isKept ? ", what was kept" : request.cookies == 2 ? " with a cookie" : ""
          print("steering: sock_ops\(with), \(route.rawValue): SYN \(text(wanted)): priority \(priority)")
          try expectPassage(client, accepted)
        }
        try answer.detach()
      }
    }

    @Test("a sockmap's program gives a datagram to another socket", arguments: Route.allCases)
    func verdict(route: Route) throws {
      try classifying { cable, configuration in
        let namespace = cable.receiver.namespace
        let entry = try Sink("socket that is addressed", namespace, route)
        let others = try (0..<3 as Range<UInt16>).map { number in
          let other = try Sink("socket \(number)", namespace, route, port: 5100 + number)
          // One that is connected can be given something.
          let host =
            route == .mapped
            ? "::ffff:\(cable.sender.ipv4)" : route == .ipv6 ? cable.sender.ipv6 : cable.sender.ipv4
          try other.connect(to: try #require(InternetAddress(host, port: 9)))
          return other
        }
        for sink in [entry] + others { sink.room = TagProgram.payload(0).count }
        let verdict = try SteeringProgram.Choice(.verdict, configuration)
        try verdict.attachToSockets()
        for (number, sink) in (others + [entry]).enumerated() {
          try verdict.update("sockets", key: UInt32(number), socket: sink.descriptor)
        }
        try send(cable, route)
        var sinks: [(Sink, isIts: (UInt32) -> Bool)] = [(entry, { $0 == SteeringProgram.noClass })]
        for (number, sink) in others.enumerated() { sinks.append((sink, { $0 == number })) }
        try expect("sk_skb", route, sinks)
        try verdict.detach()
      }
    }

    // MARK: Interfaces and processors

    @Test("tc redirects to another interface", arguments: [Route.ipv4, .ipv6])
    func redirect(route: Route) throws {
      try classifying { cable, configuration in
        try Fork.with(cable) { fork in
          let redirect = try SteeringProgram.Choice(.redirect, configuration)
          try redirect.setExit(of: 1, fork.left.sender)
          try redirect.setExit(of: 2, fork.right.sender)
          try redirect.attachToIngress(of: cable.receiver)
          let own = try Sink("receiver", cable.receiver.namespace, route)
          let (left, right) = try fork.sinks(route)
          try send(cable, route)
          try expect(
            "tc, bpf_redirect()", route,
            [(left, { $0 == 1 }), (right, { $0 == 2 }), (own, { $0 == 0 || $0 == SteeringProgram.noClass })])
          try redirect.detach()
        }
      }
    }

    @Test(
      "an interface's own program takes a frame from a devmap or drops it", arguments: [Route.ipv4, .ipv6])
    func devmap(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { ids in
        let configuration = SteeringProgram.Configuration(port: Guest.port, key: ids[0])
        try Fork.with(cable) { fork in
          try fork.receivingFrames {
            let spread = try SteeringProgram.spread(
              configuration, to: [0: fork.left.sender, 2: fork.right.sender])
            try spread.attach(to: cable.receiver)
            let (left, right) = try fork.sinks(route)
            let own = try Sink("receiver", cable.receiver.namespace, route)
            try withChecksums(cable) { try send(cable, route) }
            try expect("devmap", route, [(left, { $0 == 0 }), (right, { $0 == 2 }), (own, { _ in false })])
            try spread.detach()
          }
        }
      }
    }

    @Test("another processor's program redirects, drops or passes a frame", arguments: [Route.ipv4, .ipv6])
    func cpumap(route: Route) throws {
      let cable = try suiteCable()
      try Guest.withKeys([.bytes4]) { ids in
        var configuration = SteeringProgram.Configuration(port: Guest.port, key: ids[0])
        configuration.processor = sysconf(Int32(_SC_NPROCESSORS_ONLN)) > 1 ? 1 : 0
        try Fork.with(cable) { fork in
          try fork.receivingFrames {
            let hand = try SteeringProgram.handOver(configuration, to: [2: fork.right.sender])
            try hand.attach(to: cable.receiver)
            let (left, right) = try fork.sinks(route)
            let own = try Sink("receiver", cable.receiver.namespace, route)
            try withChecksums(cable) { try send(cable, route) }
            // Class 1 is nobody's.
            try expect(
              "cpumap", route,
              [
                (own, { $0 == 0 || $0 == SteeringProgram.noClass }), (right, { $0 == 2 }),
                (left, { _ in false }),
              ])
            try hand.detach()
          }
        }
      }
    }

    // MARK: Routes and firewalls

    @Test(
      "a rule chooses the routing table, by the mark that tc makes of the class",
      arguments: [Route.ipv4, .ipv6])
    func rule(route: Route) throws {
      try classifying { cable, configuration in
        try Fork.with(cable) { fork in
          let router = cable.receiver.namespace
          try router.setParameter("net/ipv4/ip_forward", "1")
          try router.setParameter("net/ipv6/conf/all/forwarding", "1")
          defer {
            try? router.setParameter("net/ipv4/ip_forward", "0")
            try? router.setParameter("net/ipv6/conf/all/forwarding", "0")
          }
          let (ip, host) = (route == .ipv4 ? "-4" : "-6", Fork.behind(route))
          func address(_ end: VethPair.End) -> String { route == .ipv4 ? end.ipv4 : end.ipv6 }
          try cable.sender.namespace.ip(ip, "route", "replace", host, "via", address(cable.receiver))
          try router.ip(ip, "route", "replace", host, "via", address(fork.left.receiver))
          try router.ip(ip, "route", "replace", host, "via", address(fork.right.receiver), "table", "101")
          try router.ip(ip, "rule", "add", "fwmark", "\(configuration.takenOut)", "lookup", "101")
          defer { _ = try? router.ip(ip, "rule", "del", "fwmark", "\(configuration.takenOut)") }
          let mark = try SteeringProgram.Choice(.mark, configuration)
          try mark.attachToIngress(of: cable.receiver)
          let (left, right) = try fork.sinks(route)
          try send(cable, route, to: host)
          try expect(
            "ip rule, by the mark", route,
            [(right, { $0 == configuration.takenOut }), (left, { $0 != configuration.takenOut })])
          try mark.detach()
        }
      }
    }

    @Test("a netfilter program drops a datagram", arguments: [Route.ipv4, .ipv6])
    func wall(route: Route) throws {
      try classifying { cable, configuration in
        let wall = try SteeringProgram.Choice(.wall, configuration)
        try wall.attachToInput(route.family, in: cable.receiver.namespace)
        let inbox = try Sink("socket behind the hook", cable.receiver.namespace, route)
        try send(cable, route)
        try expect("netfilter program", route, [(inbox, { $0 != configuration.takenOut })])
        try wall.detach()
      }
    }

    @Test("a rule of iptables drops a datagram, by a socket filter", arguments: [Route.ipv4, .ipv6])
    func match(route: Route) throws {
      try classifying { cable, configuration in
        let filter = try SteeringProgram.Choice(.filter, configuration)
        try filter.addRule(route.family, in: cable.receiver.namespace)
        let inbox = try Sink("socket behind the rule", cable.receiver.namespace, route)
        try send(cable, route)
        try expect("xt_bpf", route, [(inbox, { $0 != configuration.takenOut })])
        try filter.detach()
      }
    }

    /// Bytes go both ways.
    private func expectPassage(_ client: Sink, _ server: Sink) throws {
      for (from, to) in [(client, server), (server, client)] {
        let payload = TagProgram.payload(7)
        #expect(Glibc.send(from.descriptor.rawValue, payload, payload.count, 0) == payload.count)
        var room = [UInt8](repeating: 0, count: 100)
        let count = recv(to.descriptor.rawValue, &room, room.count, 0)
        #expect(Array(room.prefix(max(count, 0))) == payload)
      }
    }
  }
}
