// SPDX-License-Identifier: MIT

internal import Glibc

/// A generator whose numbers follow from its seed (SplitMix64).
public struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  public init(seed: UInt64) { state = seed }

  /// Arguments for a test: seeds that are the same in every run, and one that
  /// is new. The runner prints a test's argument before it begins with it, so
  /// that a crash can be repeated, too: `PACKET_TRAITS_SEED` names the one seed
  /// to be used.
  public static let seeds: [UInt64] = {
    if let text = getenv("PACKET_TRAITS_SEED") {
      guard let seed = UInt64(String(cString: text)) else {
        fatalError("PACKET_TRAITS_SEED must be a number from 0 to \(UInt64.max)")
      }
      return [seed]
    }
    // Of 18 digits at most, as `qemu/vm` takes them.
    return [1, 2, 3, .random(in: 4..<1_000_000_000_000_000_000)]
  }()

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }

  public mutating func bytes(_ count: Int) -> [UInt8] {
    (0..<count).map { _ in UInt8.random(in: .min ... .max, using: &self) }
  }
}
