// SPDX-License-Identifier: MIT
// send ADDRESS PORT NAME VALUE: sends a datagram that has this value of
// the key with this name.

import Glibc
import PacketTraits
import TraitRegistry

let arguments = CommandLine.arguments
guard arguments.count == 5, let port = UInt16(arguments[2]),
  let destination = InternetAddress(arguments[1], port: port),
  let value = UInt64(arguments[4])
else {
  print("usage: send ADDRESS PORT NAME VALUE")
  exit(EXIT_FAILURE)
}

do {
  var registry = try RegistryConnection()
  let key = try registry.key(named: arguments[3], as: UInt64.self)
  var traits = Traits()
  try traits.set(value, for: key)

  let socket = try UDPSocket(destination.family)
  let payload = [UInt8]("hello".utf8)
  try socket.send(payload.span.bytes, to: destination, traits: traits)
} catch {
  print("send: \(error)")
  exit(EXIT_FAILURE)
}
