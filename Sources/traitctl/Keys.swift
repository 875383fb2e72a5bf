// SPDX-License-Identifier: MIT

public import ArgumentParser
public import PacketTraits
public import TraitRegistry

struct Keys: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Register, remove and list the keys of this machine.",
    subcommands: [Add.self, Delete.self, List.self, Watch.self, Statistics.self])
}

/// - Throws: What is wrong with a name that no key can have.
func validateName(_ name: String) throws {
  do throws(TraitError) {
    try KeyName.check(name)
  } catch {
    throw ValidationError(error.message)
  }
}

extension Keys {
  struct Add: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Register a key.",
      discussion: """
        Prints the key's number. Needs CAP_NET_ADMIN in the initial user \
        namespace.
        """)

    @Argument(help: "The key's name: 1 to 31 of a-z, 0-9, '.', '_' and '-'.")
    var name: String

    @Option(help: ArgumentHelp("Length of its values in bytes: 4, 8 or 16.", valueName: "bytes"))
    var size: TraitSize

    @Option(
      help: ArgumentHelp(
        "What becomes of its values when packets become one: 'exact' keeps those that differ apart, "
          + "'drop' keeps a value only if all of them have it, with equal values.", valueName: "policy"))
    var merge: MergePolicy

    @Option(
      help: ArgumentHelp(
        "Its number, 0 to 63: never used, or last under this name. (default: the one free for longest)",
        valueName: "number"))
    var id: TraitID?

    @Flag(help: "Let sockets receive it without privilege.")
    var openRead = false

    @Flag(help: "Let sockets send it without privilege.")
    var openWrite = false

    @Flag(help: "Keep its value on packets that enter another network namespace.")
    var crossNetns = false

    func validate() throws { try validateName(name) }

    func run() throws {
      try reportingErrors {
        var flags: KeyFlags = []
        if openRead { flags.insert(.openRead) }
        if openWrite { flags.insert(.openWrite) }
        if crossNetns { flags.insert(.crossesNetworkNamespaces) }
        var registry = try RegistryConnection()
        let key = try registry.add(name, size: size, merge: merge, id: id, flags: flags)
        try printLine("\(key.id)")
      }
    }
  }

  struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "del",
      abstract: "Remove a key.",
      discussion: """
        Its values end with it, on packets in flight too. Needs CAP_NET_ADMIN in \
        the initial user namespace. Digits alone mean a number; a key whose name \
        is of digits alone is removed with --name.
        """)

    @Argument(help: "The key's name or number.")
    var key: String

    @Flag(help: "Take digits, too, as a name.")
    var name = false

    private var isNumber: Bool {
      !name && !key.isEmpty && key.utf8.allSatisfy { (48...57).contains($0) }
    }

    func validate() throws { if !isNumber { try validateName(key) } }

    func run() throws {
      try reportingErrors {
        var registry = try RegistryConnection()
        if isNumber {
          guard let id = TraitID(argument: key) else {
            throw TraitError(.noSuchKey, "there is no key \(key): numbers are 0 to 63")
          }
          try registry.remove(id)
        } else {
          try registry.remove(named: key)
        }
      }
    }
  }

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "List all keys, in order of their numbers.",
      discussion: "Open to all.")

    @Flag(help: "Print a JSON object a line.")
    var json = false

    func run() throws {
      try reportingErrors {
        var registry = try RegistryConnection()
        let keys = try registry.keys()
        guard !json else {
          for key in keys { try printJSON(KeyReport(key)) }
          return
        }
        guard !keys.isEmpty else { return }
        let width = keys.map(\.name.count).reduce(4, max)
        try printLine("ID  \(padded("NAME", width))  SIZE  MERGE  FLAGS")
        for key in keys {
          try printLine(
            "\(padded(key.id.description, 2))  \(padded(key.name, width))  "
              + "\(padded(key.size.description, 4))  \(padded(key.merge.description, 5))  "
              + KeyReport(key).flagsText)
        }
      }
    }
  }

  struct Watch: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "List all keys, and then those that come and go.",
      discussion: """
        Each line begins with what happened: "all" and the number of keys, then \
        "has" for each of them; "add"; "del". Where changes were missed, as too \
        many came at once, all keys are listed anew. Ends when nobody reads its \
        output any more. Open to all.
        """)

    @Flag(help: "Print a JSON object a line.")
    var json = false

    func run() async throws {
      try await reportingErrors(awaiting: {
        for try await change in try RegistryChanges() {
          if json {
            try printJSON(ChangeReport(change))
          } else {
            for line in ChangeReport(change).lines { try printLine(line) }
          }
        }
      })
    }
  }

  struct Statistics: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "stats",
      abstract: "Show what happened to packets' traits since the machine was started.",
      discussion: """
        set: packets that were given traits. copied: traits copied to another \
        place in memory, those evicted apart. discarded: given up, because an \
        XDP program or a driver took their room. scrubbed: lost at \
        least one value on entry to another network namespace. allocated: pieces \
        of memory for traits outside of a packet's headroom. evicted: moved from \
        the headroom to such memory. lost: for lack of memory, or in part for lack \
        of room.
        With --keys, what happened to the values of each key since it was \
        registered. set: by programs and sockets. read: by programs and sockets. \
        dropped: packets became one that has no value, though one of them had \
        one. scrubbed: on entry to another network namespace. Open to all.
        """)

    @Flag(help: "Show what happened to the values of each key.")
    var keys = false

    @Flag(help: "Print a JSON object; with --keys one a line.")
    var json = false

    func run() throws {
      try reportingErrors {
        var registry = try RegistryConnection()
        guard !keys else { return try printKeys(&registry) }
        let statistics = try registry.statistics()
        guard !json else { return try printJSON(StatisticsReport(statistics)) }
        try printLine("set        \(statistics.set)")
        try printLine("copied     \(statistics.copied)")
        try printLine("discarded  \(statistics.discarded)")
        try printLine("scrubbed   \(statistics.scrubbed)")
        try printLine("allocated  \(statistics.allocated)")
        try printLine("evicted    \(statistics.evicted)")
        try printLine("lost       \(statistics.lost)")
      }
    }

    private func printKeys(_ registry: inout RegistryConnection) throws {
      let all = try registry.keyStatistics()
      guard !json else {
        for key in all { try printJSON(KeyStatisticsReport(key)) }
        return
      }
      guard !all.isEmpty else { return }
      let rows =
        [["ID", "NAME", "SET", "READ", "DROPPED", "SCRUBBED"]]
        + all.map {
          ["\($0.id)", $0.name, "\($0.set)", "\($0.read)", "\($0.dropped)", "\($0.scrubbed)"]
        }
      let widths = rows[0].indices.map { column in rows.map(\.[column].count).reduce(0, max) }
      for row in rows {
        let cells = zip(row, widths).map { padded($0, $1) }.joined(separator: "  ")
        try printLine(String(cells.reversed().drop { $0 == " " }.reversed()))
      }
    }
  }
}

private func padded(_ text: String, _ width: Int) -> String {
  text + String(repeating: " ", count: max(0, width - text.count))
}

extension TraitSize: ExpressibleByArgument {
  public init?(argument: String) {
    // The initializer would take a sign, too.
    guard argument.utf8.allSatisfy({ (48...57).contains($0) }), let bytes = Int(argument) else { return nil }
    self.init(rawValue: bytes)
  }

  public static var allValueStrings: [String] { allCases.map(\.description) }
}

extension MergePolicy: ExpressibleByArgument {
  public init?(argument: String) { self.init(name: argument) }

  public static var allValueStrings: [String] { allCases.map(\.description) }
}

extension TraitID: ExpressibleByArgument {
  public init?(argument: String) {
    guard argument.utf8.allSatisfy({ (48...57).contains($0) }), let number = UInt32(argument) else {
      return nil
    }
    self.init(rawValue: number)
  }

  /// None: the help would print all 64 numbers.
  public static var allValueStrings: [String] { [] }
}
