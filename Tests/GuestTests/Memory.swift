// SPDX-License-Identifier: MIT

import Glibc
import NetworkLab
import PacketTraits
import Testing
import TraitRegistry

// What a test may expect where memory is lacking. A store in the headroom needs
// none. One outside of it does, and under the profile `faults` half of these
// allocations fail: then a packet goes on without any of its traits, which is
// counted, or a program is told `ENOMEM`, and nothing changes.
//
// Each expectation takes what is right when no allocation fails. Without that
// profile nothing else will do. With it the same rules say what must have come of
// the allocations that did fail.

extension Guest {
  /// Whether allocations for stores outside of the headroom fail, half of them.
  static let storesMayFail =
    getenv("PACKET_TRAITS_PROFILE").map { String(cString: $0) } == "faults"
}

extension Guest {
  /// Sends a datagram and receives it. IPsec needs memory of the same kind for its own purposes:
  /// where that is made to be short it may drop a packet, and the datagram is sent once more.
  ///
  /// - Returns: What arrived, and how often it was sent: once if no allocation fails.
  static func passage(
    of payload: [UInt8], from outbox: borrowing UDPSocket, to destination: InternetAddress,
    into inbox: borrowing UDPSocket
  ) throws -> (arrival: Arrival, count: UInt64) {
    guard storesMayFail else {
      try outbox.send(payload, to: destination)
      return (try inbox.arrival(), 1)
    }
    try inbox.setReceiveTimeout(.milliseconds(500))
    defer { try? inbox.setReceiveTimeout(.seconds(10)) }
    for count in 1...100 as ClosedRange<UInt64> {
      try outbox.send(payload, to: destination)
      // What came late of one before is passed over.
      while let arrival = try? inbox.arrival() {
        if arrival.payload == payload { return (arrival, count) }
      }
    }
    throw LabError("a datagram to \(destination) was lost 100 times")
  }

  /// Sends five packets, and where stores are lost so many more that a program, which counts
  /// those that still have theirs, has seen five of them.
  static func send(until seen: SkbProgram, _ send: (UInt32) throws -> Void) throws {
    for sequence in 0..<5 as Range<UInt32> { try send(sequence) }
    for sequence in 5..<200 as Range<UInt32> where storesMayFail {
      usleep(20_000)
      guard try seen.results().runs < 5 else { break }
      try send(sequence)
    }
    try awaitRuns(seen, 5, orMore: storesMayFail)
  }

  /// Expects what was counted. Where stores may fail no more than that, and `lost` at most as
  /// often as memory was needed.
  static func expectChanges(
    _ changes: TraitStatistics, _ right: TraitStatistics, _ comment: @autoclosure () -> Comment? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    guard storesMayFail else {
      #expect(changes == right, comment(), sourceLocation: sourceLocation)
      return
    }
    let counters: [KeyPath<TraitStatistics, UInt64>] = [
      \.set, \.copied, \.discarded, \.scrubbed, \.allocated, \.evicted,
    ]
    #expect(
      counters.allSatisfy { changes[keyPath: $0] <= right[keyPath: $0] },
      "\(changes), more than \(right)", sourceLocation: sourceLocation)
    #expect(changes.lost <= right.allocated, comment(), sourceLocation: sourceLocation)
  }
}

extension Command {
  /// Runs a program, and again as long as it ends because memory is short, where it is made so.
  static func insisting(_ arguments: [String]) throws -> Outcome {
    var outcome = try Command(arguments).wait()
    for _ in 0..<200 where Guest.storesMayFail && outcome.status != 0 {
      let reasons = [ENOMEM, ENOBUFS].map { String(cString: strerror($0)) }
      guard reasons.contains(where: outcome.errors.contains) else { break }
      outcome = try Command(arguments).wait()
    }
    return outcome
  }
}

/// Counts packets whose traits had to leave the headroom, by whether they did.
struct Passages {
  private(set) var complete: UInt64 = 0
  /// Always 0 if no allocation fails.
  private(set) var lost: UInt64 = 0

  /// Expects all traits that a packet was given, and no others; or none, if
  /// there may have been no memory for them.
  ///
  /// - Returns: Whether they are there.
  @discardableResult
  mutating func expect(
    _ arrival: Arrival, _ right: Traits, _ comment: @autoclosure () -> Comment? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws -> Bool {
    let traits = try arrival.traits
    guard traits != right, traits.isEmpty, Guest.storesMayFail else {
      #expect(traits == right, comment(), sourceLocation: sourceLocation)
      complete += 1
      return true
    }
    lost += 1
    return false
  }
}

/// One packet's traits, as its programs and its receiver must see them.
///
/// The model is told what programs were told, and works out what follows: which
/// traits there are, what the next steps return, what is counted.
struct PacketModel {
  private enum Place: Equatable {
    case nowhere
    /// It can take this number of bytes there.
    case headroom(limit: Int)
    /// A clone may use the same: who writes then needs memory for a copy.
    case outside(isShared: Bool)
  }

  private(set) var values: [UInt32: [UInt8]] = [:]

  /// What was counted for this packet.
  private(set) var changes = TraitStatistics.only()

  private var place = Place.nowhere

  /// A packet without traits, or with those that an XDP program gave it.
  init(inHeadroom values: [(TraitID, [UInt8])] = []) {
    guard !values.isEmpty else { return }
    for (id, value) in values { self.values[id.rawValue] = value }
    place = .headroom(limit: (used + 7) / 8 * 8)
    changes += .only(set: 1)
  }

  /// With the header, of 24 bytes.
  private var used: Int { 24 + values.values.reduce(0) { $0 + $1.count } }

  // MARK: What becomes of it

  /// Its traits had to leave the headroom, and were lost or not.
  mutating func leaveHeadroom(isLost: Bool) {
    guard case .headroom = place else { return }
    if isLost {
      drop()
      changes += .only(lost: 1)
    } else {
      place = .outside(isShared: false)
      changes += .only(allocated: 1, evicted: 1)
    }
  }

  /// A clone of it, after its traits have left the headroom. What is counted
  /// for the clone begins at nothing.
  mutating func clone() -> PacketModel {
    if place == .outside(isShared: false) { place = .outside(isShared: true) }
    var clone = self
    clone.changes = .only()
    return clone
  }

  /// Its clone has a store of its own now, or is gone.
  mutating func becomeAlone() {
    if place == .outside(isShared: true) { place = .outside(isShared: false) }
  }

  /// Whether a clone uses the same store.
  var isShared: Bool { place == .outside(isShared: true) }

  /// It entered another network namespace.
  mutating func enterNamespace(keeping crossing: [TraitID]) {
    let kept = values.filter { value in crossing.contains { $0.rawValue == value.key } }
    guard kept.count < values.count else { return }
    values = kept
    changes += .only(scrubbed: 1)
    if values.isEmpty { drop() }
  }

  /// The key was removed.
  mutating func lose(_ id: TraitID) { values[id.rawValue] = nil }

  private mutating func drop() {
    values = [:]
    place = .nowhere
  }

  // MARK: What programs do to it

  /// Expects what came of the steps of a program.
  ///
  /// - Parameters:
  ///   - right: What each step returns if no allocation fails.
  mutating func expect(
    _ results: some Collection<ScriptResults.Step>, of steps: [ScriptStep], _ right: [Int32],
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    if !Guest.storesMayFail {
      #expect(results.map(\.status) == right, sourceLocation: sourceLocation)
    }
    guard results.count == steps.count, right.count == steps.count else {
      Issue.record(
        "\(steps.count) steps, \(results.count) results, \(right.count) statuses",
        sourceLocation: sourceLocation)
      return
    }
    for (number, (step, result)) in zip(steps, results).enumerated() {
      let status = take(step, right[number], isRefused: result.status == -ENOMEM)
      #expect(result.status == status, "step \(number)", sourceLocation: sourceLocation)
      if step.operation == .get || step.operation == .need, status > 0 {
        #expect(
          Array(result.value.prefix(Int(status))) == values[step.key], "step \(number)",
          sourceLocation: sourceLocation)
      }
    }
  }

  /// What a step must return.
  ///
  /// - Parameters:
  ///   - right: If no allocation fails. A step that is wrong is told so before
  ///     anything else, whatever became of those before it.
  ///   - isRefused: Whether it said that memory is lacking.
  private mutating func take(_ step: ScriptStep, _ right: Int32, isRefused: Bool) -> Int32 {
    switch step.operation {
    case .get where right != -EINVAL, .need where right != -EINVAL:
      guard let value = values[step.key] else { return -ENOENT }
      return value.count <= Int(step.size) ? Int32(value.count) : -ENOSPC

    case .set where right == 0 || right == -ENOSPC:
      let former = values[step.key]?.count ?? 0
      let growth = former == step.value.count ? 0 : step.value.count
      guard makeWritable(growth, isRefused: isRefused) else { return -ENOMEM }
      guard used - former + step.value.count <= 216 else {
        if values.isEmpty { drop() }
        return -ENOSPC
      }
      if values.isEmpty { changes += .only(set: 1) }
      values[step.key] = step.value
      return 0

    case .delete where right != -EINVAL:
      guard values[step.key] != nil else { return -ENOENT }
      guard makeWritable(0, isRefused: isRefused) else { return -ENOMEM }
      values[step.key] = nil
      if values.isEmpty { drop() }
      return 0

    default:
      return right
    }
  }

  /// Whether the store can be written to, with so many bytes more: only one that
  /// needs memory for it can be refused.
  private mutating func makeWritable(_ growth: Int, isRefused: Bool) -> Bool {
    var eviction: UInt64 = 0
    switch place {
    case .headroom(let limit):
      if used + growth <= limit { return true }
      eviction = 1
    case .outside(isShared: false):
      return true
    case .outside(isShared: true), .nowhere:
      break
    }
    if isRefused, Guest.storesMayFail { return false }
    changes += .only(allocated: 1, evicted: eviction)
    place = .outside(isShared: false)
    return true
  }

  // MARK: What is seen of it

  func traits() throws -> Traits {
    try Traits(
      values.map { (try #require(TraitID(rawValue: $0.key)), $0.value) })
  }

  /// Expects its traits on arrival at a socket that asked for all of them.
  func expect(
    _ arrival: Arrival, _ right: Traits, _ comment: @autoclosure () -> Comment? = nil,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let traits = try arrival.traits
    if !Guest.storesMayFail {
      #expect(traits == right, comment(), sourceLocation: sourceLocation)
    }
    #expect(try traits == self.traits(), comment(), sourceLocation: sourceLocation)
    if values.isEmpty {
      let hasMessage = try arrival.controlMessages.contains(where: \.isTraits)
      #expect(!hasMessage, comment(), sourceLocation: sourceLocation)
    }
  }

  /// Expects what was counted, if this packet was the only one.
  func expect(
    _ changes: TraitStatistics, _ right: TraitStatistics,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    if !Guest.storesMayFail { #expect(changes == right, sourceLocation: sourceLocation) }
    #expect(changes == self.changes, sourceLocation: sourceLocation)
  }
}

extension TraitStatistics {
  /// With `count` of these stores lost on their way out of the headroom.
  func losing(_ count: UInt64) -> TraitStatistics {
    TraitStatistics(
      set: set, copied: copied, discarded: discarded, scrubbed: scrubbed,
      allocated: allocated - count, evicted: evicted - count, lost: lost + count)
  }

  static func += (sum: inout TraitStatistics, other: TraitStatistics) {
    sum = TraitStatistics(
      set: sum.set + other.set, copied: sum.copied + other.copied,
      discarded: sum.discarded + other.discarded, scrubbed: sum.scrubbed + other.scrubbed,
      allocated: sum.allocated + other.allocated, evicted: sum.evicted + other.evicted,
      lost: sum.lost + other.lost)
  }
}

extension [Int] {
  /// Whether no count is larger. What an earlier test used may be given back meanwhile.
  func isAtMost(_ before: [Int]) -> Bool { zip(self, before).allSatisfy { $0 <= $1 } }
}
