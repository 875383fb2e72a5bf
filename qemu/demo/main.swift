// SPDX-License-Identifier: MIT
//
// The whole path, shown: an XDP program tags packets, a Swift program reads the
// tags from its socket. Everything is checked; the exit status tells.

internal import Glibc
internal import NetworkLab
internal import PacketTraits
internal import SystemPackage
internal import TraitRegistry

let port: UInt16 = 4242
let datagramsPerFamily: UInt32 = 100

struct DemoKeys {
  let mark: TraitKey<UInt32>
  let flow: TraitKey<UInt64>
  let trace: TraitKey<TraitBytes16>
}

/// Prints a line at once, even into a pipe.
func say(_ words: String...) {
  _ = try? FileDescriptor.standardOutput.writeAll((words.joined(separator: " ") + "\n").utf8)
}

func hexadecimal(_ number: some BinaryInteger, digits: Int) -> String {
  let text = String(number, radix: 16)
  return "0x" + String(repeating: "0", count: max(0, digits - text.count)) + text
}

func hexadecimal(_ bytes: [UInt8]) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

func describe(_ statistics: TraitStatistics) -> String {
  "set \(statistics.set), copied \(statistics.copied), discarded \(statistics.discarded), "
    + "scrubbed \(statistics.scrubbed), allocated \(statistics.allocated), "
    + "evicted \(statistics.evicted), lost \(statistics.lost)"
}

/// Sends and receives one datagram, and checks all that arrives.
func passDatagram(
  _ sequence: UInt32, from outbox: borrowing UDPSocket, to inbox: borrowing UDPSocket,
  at destination: InternetAddress, _ keys: DemoKeys, isShown: Bool
) throws {
  let sent = TagProgram.payload(sequence, length: 16 + Int(sequence % 100))
  try outbox.send(sent.span.bytes, to: destination)

  var bytes = [UInt8](repeating: 0, count: 2048)
  let datagram = try inbox.receive(into: &bytes)

  let what = "datagram \(sequence) to \(destination)"
  guard bytes[..<datagram.length].elementsEqual(sent), !datagram.isPayloadTruncated else {
    throw LabError("\(what): the payload differs from what was sent")
  }
  guard !datagram.areTraitsTruncated else { throw LabError("\(what): its traits were cut off") }
  let traits = try datagram.traits

  func check<Value>(_ name: String, _ key: TraitKey<Value>, _ right: [UInt8]) throws {
    guard let got = traits.bytes(of: key.id) else {
      throw LabError("\(what): there is no \(name) (key \(key.id))")
    }
    guard got == right else {
      throw LabError("\(what): \(name) is \(hexadecimal(got)), not \(hexadecimal(right))")
    }
  }
  var mark: [UInt8] = []
  mark.append(native: TagProgram.value4(sequence))
  var flow: [UInt8] = []
  flow.append(native: TagProgram.value8(sequence))
  try check("mark", keys.mark, mark)
  try check("flow", keys.flow, flow)
  try check("trace", keys.trace, TagProgram.value16(sequence))
  guard traits.count == 3 else {
    throw LabError("\(what): there are \(traits.count) traits and not 3: \(traits)")
  }

  if isShown {
    say(
      "  \(sequence)".padding(to: 6),
      datagram.source.map(\.description) ?? "?",
      "\(datagram.length) bytes",
      "mark", hexadecimal(try traits.value(for: keys.mark) ?? 0, digits: 8),
      "flow", hexadecimal(try traits.value(for: keys.flow) ?? 0, digits: 16),
      "trace", hexadecimal(traits.bytes(of: keys.trace.id) ?? []))
  }
}

extension String {
  func padding(to width: Int) -> String {
    self + String(repeating: " ", count: Swift.max(0, width - count))
  }
}

/// Registers the demo's keys for as long as `body` runs.
func withKeys(_ registry: inout RegistryConnection, _ body: (DemoKeys) throws -> Void) throws {
  let names = ["demo.mark", "demo.flow", "demo.trace"]
  var added: [TraitID] = []
  func removeKeys(_ registry: inout RegistryConnection) throws {
    while let id = added.popLast() { try registry.remove(id) }
  }
  do {
    let mark = try registry.add(names[0], as: UInt32.self, merge: .exact)
    added.append(mark.id)
    let flow = try registry.add(names[1], as: UInt64.self, merge: .exact)
    added.append(flow.id)
    let trace = try registry.add(names[2], as: TraitBytes16.self, merge: .first)
    added.append(trace.id)
    say("keys registered:")
    for (name, id) in zip(names, added) {
      say("  \(name.padding(to: 11)) number \(id), \(try registry.key(id).size) bytes")
    }
    try body(DemoKeys(mark: mark, flow: flow, trace: trace))
  } catch {
    try? removeKeys(&registry)
    throw error
  }
  try removeKeys(&registry)
}

func demonstrate() throws {
  var registry = try RegistryConnection()
  var counters = try RegistryConnection()
  try withKeys(&registry) { keys in
    try VethPair.with { cable in
      say(
        "cable: \(cable.sender.interface) in \(cable.sender.namespace.name) to "
          + "\(cable.receiver.interface) in \(cable.receiver.namespace.name)")

      let tag = try TagProgram(
        port: port, key4: keys.mark.id, key8: keys.flow.id, key16: keys.trace.id)
      try tag.program.attach(to: cable.receiver, mode: .driver)
      guard let attached = try XDPProgram.attached(to: cable.receiver),
        attached == (tag.program.id, .driver)
      else {
        throw LabError("\(cable.receiver.interface) does not run the program in driver mode")
      }
      say(
        "XDP program attached: id \(attached.id), interface \(cable.receiver.interface), driver mode")

      let before = try counters.statistics()
      var sequence: UInt32 = 0
      for family in InternetAddress.Family.allCases {
        let destination = try cable.receiver.address(family, port: port)
        let inbox = try cable.receiver.namespace.run {
          let socket = try UDPSocket(family)
          try socket.bind(to: destination)
          try socket.setReceiveTimeout(.seconds(5))
          try socket.setReceivedTraits([
            TraitMask(keys.mark), TraitMask(keys.flow), TraitMask(keys.trace),
          ])
          return socket
        }
        let outbox = try cable.sender.namespace.run { try UDPSocket(family) }
        say("\(datagramsPerFamily) datagrams to \(destination), some of which are:")
        for number in 0..<datagramsPerFamily {
          try passDatagram(
            sequence, from: outbox, to: inbox, at: destination, keys,
            isShown: number % (datagramsPerFamily / 4) == 0)
          sequence += 1
        }
      }
      let after = try counters.statistics()
      let counts = try tag.counts()

      say("tagged by the program: \(counts.tagged) of \(counts.seen) datagrams")
      say("received with right values and intact payload: \(sequence) of \(sequence)")
      say("kernel counters before: \(describe(before))")
      say("kernel counters after:  \(describe(after))")
      guard counts.seen == sequence, counts.tagged == sequence, counts.failed == 0,
        counts.stale == 0
      else { throw LabError("the program counted otherwise: \(counts)") }
      guard after.set - before.set == UInt64(sequence) else {
        throw LabError("the kernel counted \(after.set - before.set) new stores, not \(sequence)")
      }
      guard
        after
          == TraitStatistics(
            set: after.set, copied: before.copied, discarded: before.discarded,
            scrubbed: before.scrubbed, allocated: before.allocated, evicted: before.evicted,
            lost: before.lost)
      else {
        throw LabError("something became of stores, but nothing should have")
      }
      say("no store was copied, moved or discarded, and no memory allocated for one")
    }
  }
}

func fail(_ error: any Error, status: Int32) -> Never {
  _ = try? FileDescriptor.standardError.writeAll("demo: \(error)\n".utf8)
  exit(status)
}

// Without a reader of the output it goes on, to leave no keys or namespaces.
signal(SIGPIPE, SIG_IGN)

do {
  try demonstrate()
  say("demo: all is right")
} catch let error as TraitError {
  // EX_UNAVAILABLE, as traitctl has it.
  fail(error, status: error.code == .unsupportedKernel ? 69 : 1)
} catch {
  fail(error, status: 1)
}
