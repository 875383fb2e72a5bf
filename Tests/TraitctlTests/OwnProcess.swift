// SPDX-License-Identifier: MIT

import Foundation
import Glibc
import SystemPackage
import Testing

/// A process of a test's own (`#expect(processExitsWith:)`), and what it says of its failures.
///
/// Swift Testing hands over to the test's process where an expectation failed and its comment. It
/// does not hand over the values, and it loses standard error, and with it why the process crashed.
/// Within the macro's closure it even gives each expectation the macro's line. So the closure only
/// calls a function, through ``reportingIssues(to:_:)``, and the test calls
/// ``recordFailure(_:sourceLocation:)`` when the process has ended:
///
/// ```swift
/// let process = try OwnProcess()
/// let result = await #expect(processExitsWith: .success) { [path = process.path as String] in
///   await OwnProcess.reportingIssues(to: path) { try await SomeTests.body() }
/// }
/// process.recordFailure(result)
/// ```
struct OwnProcess: ~Copyable {
  /// The file that becomes the process's standard error.
  let path: String

  init() throws {
    path = FileManager.default.temporaryDirectory.appending(path: "packet-traits-\(UUID().uuidString)").path
    try Data().write(to: URL(filePath: path))
  }

  deinit { unlink(path) }

  /// Runs `body` in the process, and writes each issue to standard error, which becomes the file.
  static func reportingIssues(to path: String, _ body: () async throws -> Void) async {
    let file = open(path, O_WRONLY | O_APPEND | O_CLOEXEC)
    guard file >= 0, dup2(file, 2) == 2 else {
      Issue.record("\(path) cannot be written: errno \(errno)")
      return
    }
    close(file)
    do {
      try await withKnownIssue(isIntermittent: true) {
        try await body()
      } matching: { issue in
        let place = issue.sourceLocation.map { "\($0.fileID):\($0.line): " } ?? ""
        write(place + "\(issue)")
        // It is not a known one: it fails the test.
        return false
      }
    } catch is ExpectationFailedError {
      // Recorded already.
    } catch {
      write("\(error)")
      Issue.record(error)
    }
  }

  private static let mark = "issue: "

  private static func write(_ text: String) {
    _ = try? FileDescriptor.standardError.writeAll((mark + text + "\n").utf8)
  }

  /// Records what the process wrote to standard error, if it failed.
  ///
  /// - Parameter result: nil if the process did not end as it should.
  func recordFailure(_ result: ExitTest.Result?, sourceLocation: SourceLocation = #_sourceLocation) {
    let bytes = (try? Data(contentsOf: URL(filePath: path))) ?? Data()
    // Swift Testing itself writes bytes that are no text when a process begins and ends.
    let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n").filter {
      !$0.contains("\u{fffd}")
    }
    guard result == nil || lines.contains(where: { $0.hasPrefix(Self.mark) }) else { return }
    Issue.record(
      "its own process said: \(lines.prefix(20).joined(separator: "\n"))", sourceLocation: sourceLocation)
  }
}
