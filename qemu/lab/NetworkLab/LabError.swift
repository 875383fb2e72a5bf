// SPDX-License-Identifier: MIT

/// What went wrong with a namespace, an interface, a program or a command.
public struct LabError: Error, CustomStringConvertible, Sendable {
  public let description: String

  public init(_ description: String) { self.description = description }
}
