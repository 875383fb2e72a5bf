// SPDX-License-Identifier: MIT

import Foundation
import NetworkLab
import Testing

/// The Swift code in documents, against the modules that were built with these tests.
@Suite("Documentation")
struct DocumentationTests {
  private static let root = URL(filePath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

  private static let compiler = ProcessInfo.processInfo.environment["PATH"]?
    .split(separator: ":").map { "\($0)/swiftc" }
    .first { FileManager.default.isExecutableFile(atPath: $0) }

  /// What examples take for granted.
  private static let given = """
    func given<Value: ~Copyable>() -> Value { fatalError() }
    let flow: TraitKey<UInt64> = given()
    let traits = Traits()
    let socket: UDPSocket = given()
    let destination: InternetAddress = given()
    let server: InternetAddress = given()
    let payload: [UInt8] = []
    let request: [UInt8] = []
    let own = Traits()
    let first: [UInt8] = []
    let second: [UInt8] = []

    """

  /// One program of all examples, each a function; an error names the document's line.
  private func program(of document: String) throws -> (text: String, count: Int) {
    let lines = try String(contentsOf: Self.root.appending(path: document), encoding: .utf8)
      .split(separator: "\n", omittingEmptySubsequences: false)
    var imports: Set = ["import PacketTraits", "import TraitRegistry"]
    var body = ""
    var count = 0
    var example: [Substring]?
    for (index, line) in lines.enumerated() {
      if line.hasPrefix("```"), let code = example {
        example = nil
        // The manifest of a package is of another kind.
        if code.contains("import PackageDescription") { continue }
        count += 1
        imports.formUnion(code.filter { $0.hasPrefix("import ") }.map(String.init))
        // In a task the calls that wait are others.
        let isAsync = code.contains { $0.contains("await ") }
        body += "func example\(count)() \(isAsync ? "async " : "")throws {\n"
        body += "#sourceLocation(file: \"\(document)\", line: \(index - code.count + 1))\n"
        body += code.map { $0.hasPrefix("import ") ? "" : $0 }.joined(separator: "\n")
        body += "\n#sourceLocation()\n}\n"
      } else if example != nil {
        example?.append(line)
      } else if line == "```swift" {
        example = []
      }
    }
    return (imports.sorted().joined(separator: "\n") + "\n" + Self.given + body, count)
  }

  @Test(
    "has examples that compile", .enabled(if: compiler != nil, "there is no swiftc on PATH"),
    arguments: [("README.md", 2), ("docs/swift.md", 5)])
  func examples(document: String, atLeast least: Int) throws {
    let (text, count) = try program(of: document)
    #expect(count >= least)
    let file = FileManager.default.temporaryDirectory.appending(
      path: "packet-traits-\(UUID().uuidString).swift")
    defer { try? FileManager.default.removeItem(at: file) }
    try text.write(to: file, atomically: true, encoding: .utf8)

    let modules = URL(filePath: try Command.built("Modules"))
    let checkouts = modules.deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appending(path: "checkouts")
    let outcome = try Command([
      try #require(Self.compiler), "-typecheck", "-parse-as-library", "-swift-version", "6",
      "-suppress-warnings", "-I", modules.path, "-I", Self.root.path + "/Sources/CTraits/include",
      "-I", Self.root.path + "/Sources/CLibMNL",
      "-I", checkouts.path + "/swift-system/Sources/CSystem/include", file.path,
    ]).wait(limit: .seconds(120))
    #expect(outcome.status == 0, "\(outcome.errors)")
  }
}
