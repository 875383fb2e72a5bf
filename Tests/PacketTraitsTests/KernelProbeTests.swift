// SPDX-License-Identifier: MIT

import Glibc
import SystemPackage
import Testing

@testable import PacketTraits

@Suite("The probe for packet traits")
struct KernelProbeTests {
  /// Asks a kernel of which only the answers are known.
  private func isSupported(
    set: Errno? = nil, get: Errno? = nil, mask: UInt64? = 0, length: socklen_t = 8
  ) throws(TraitError) -> Bool {
    try Traits.isSupported { () throws(Errno) in
      if let set { throw set }
    } reading: { found, foundLength throws(Errno) in
      #expect(foundLength == 8)
      if let get { throw get }
      if let mask { found = mask }
      foundLength = length
    }
  }

  @Test("is true only if the mask is set and read back")
  func answers() throws {
    #expect(try isSupported())
    // A kernel without traits
    #expect(try !isSupported(set: .protocolNotAvailable))
    // A sandbox that accepts every option on set
    for error in [Errno.protocolNotAvailable, .notSupportedOnSocket] {
      #expect(try !isSupported(get: error))
    }
    // One that accepts every option on get, too
    #expect(try !isSupported(mask: nil))
    #expect(try !isSupported(length: 0))
    #expect(try !isSupported(length: 4))
    #expect(try !isSupported(mask: 1))
  }

  @Test("passes on other errors", arguments: [Errno.noMemory, .notPermitted])
  func errors(error: Errno) {
    #expect(#expect(throws: TraitError.self) { try isSupported(set: error) }?.underlyingError == error)
    #expect(#expect(throws: TraitError.self) { try isSupported(get: error) }?.underlyingError == error)
  }
}
