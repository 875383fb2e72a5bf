// SPDX-License-Identifier: MIT

internal import ArgumentParser
internal import Glibc
internal import PacketTraits
internal import SystemPackage

@main
struct Traitctl: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "traitctl",
    abstract: "Packet traits: keys, and the values that packets carry.",
    discussion: """
      A trait is one key and its value on one packet. Programs on the packet's \
      path set it, sockets and other programs read it. Keys are registered by \
      name, once for the whole machine.

      Exit status: 0 if all went well or nobody reads the output any more, 1 on \
      failure, 64 on malformed arguments, 69 if this kernel has no packet \
      traits.
      """,
    subcommands: [Keys.self, Listen.self, Send.self])

  /// Malformed arguments get the prefix that all other errors have.
  static var _errorPrefix: String { "traitctl: " }

  static func main() async {
    // A pipe that nobody reads is then an error of writing, which
    // reportingErrors() takes for the end, and not a signal's death.
    signal(SIGPIPE, SIG_IGN)
    await main(nil)
  }
}

extension ExitCode {
  /// EX_UNAVAILABLE of <sysexits.h>: this kernel has no packet traits.
  static var unsupportedKernel: ExitCode { ExitCode(69) }
}

/// Runs a command's work, and turns its error into a message and an exit status.
func reportingErrors(_ body: () throws -> Void) throws {
  do {
    try body()
  } catch {
    throw reported(error)
  }
}

/// As the other one, of work that waits.
func reportingErrors(awaiting body: () async throws -> Void) async throws {
  do {
    try await body()
  } catch {
    throw reported(error)
  }
}

private func reported(_ error: any Error) -> any Error {
  switch error {
  case is ExitCode, is ValidationError:
    return error
  case let error as TraitError:
    complain(error.description)
    return error.code == .unsupportedKernel ? ExitCode.unsupportedKernel : ExitCode.failure
  case Errno.brokenPipe:
    // Whoever read the output has seen enough: no message, no failure.
    return ExitCode.success
  default:
    complain("\(error)")
    return ExitCode.failure
  }
}

/// The address that an argument was when it was looked at.
///
/// - Throws: `invalidArgument` if the interface that it names is gone since.
func stillAddress(_ text: String, port: UInt16) throws(TraitError) -> InternetAddress {
  guard let address = InternetAddress(text, port: port) else {
    throw TraitError(.invalidArgument, "\(text) is no address any more")
  }
  return address
}

func complain(_ message: String) {
  _ = try? FileDescriptor.standardError.writeAll("traitctl: \(message)\n".utf8)
}

/// Prints for as long as somebody reads, and then nothing more: for commands
/// whose output is not what they are run for.
struct ReadersPrinter {
  private var isRead = true

  /// - Parameter print: Prints. A pipe without a reader (`EPIPE`) is no error
  ///   here, and ends it.
  mutating func callAsFunction(_ print: () throws -> Void) throws {
    guard isRead else { return }
    do {
      try print()
    } catch let error as Errno where error == .brokenPipe {
      isRead = false
    }
  }
}

/// Writes a line at once, even into a pipe.
func printLine(_ line: String) throws {
  try FileDescriptor.standardOutput.writeAll((line + "\n").utf8)
}
