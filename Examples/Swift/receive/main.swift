// SPDX-License-Identifier: MIT
// receive PORT NAME: waits for a datagram, and prints the value it has
// of the key with this name.

import Glibc
import PacketTraits
import TraitRegistry

let arguments = CommandLine.arguments
guard arguments.count == 3, let port = UInt16(arguments[1]) else {
  print("usage: receive PORT NAME")
  exit(EXIT_FAILURE)
}

do {
  var registry = try RegistryConnection()
  let key = try registry.key(named: arguments[2], as: UInt64.self)

  // Before bind(to:), so that no datagram comes without.
  let socket = try UDPSocket(.ipv6)
  try socket.setReceivedTraits(TraitMask(key))
  try socket.bind(to: .any(.ipv6, port: port))

  var bytes = [UInt8](repeating: 0, count: 2048)
  let datagram = try socket.receive(into: &bytes)
  print("\(datagram.length) bytes")
  if let value = try datagram.traits.value(for: key) {
    print("key \(key): \(value)")
  }
} catch {
  print("receive: \(error)")
  exit(EXIT_FAILURE)
}
