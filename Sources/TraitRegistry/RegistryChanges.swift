// SPDX-License-Identifier: MIT

internal import CLibMNL
internal import CTraits
internal import Glibc
public import PacketTraits
internal import Synchronization
internal import SystemPackage

/// What happened to the registry's keys.
public enum RegistryChange: Hashable, Sendable {
  /// All keys that there are now, in order of their numbers: what comes first, and
  /// again where changes were missed. Whoever keeps a table replaces it.
  case keys([RegisteredKey])

  /// A key was registered.
  case added(RegisteredKey)

  /// A key was removed.
  case removed(RegisteredKey)
}

/// The keys that there are, and then those that come and go, for as long as one
/// asks.
///
/// ```swift
/// for try await change in try RegistryChanges() {
///   switch change {
///   case .keys(let all): table = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0) })
///   case .added(let key): table[key.id] = key
///   case .removed(let key): table[key.id] = nil
///   }
/// }
/// ```
///
/// Open to all, in every network namespace. The changes come in their order. The
/// kernel keeps those that nobody has asked for yet as far as the socket has room; if
/// there were more, all keys are listed anew, and nothing is wrong in the end that
/// was right in the registry.
///
/// Whoever waits for a change is suspended, and takes up no thread. When his task is
/// cancelled the sequence ends for him: `next()` gives nil. Several tasks may
/// iterate at once; each change goes to one of them. An error ends the sequence for
/// who iterates; to iterate anew goes on, with all keys.
///
/// The corresponding multicast group of the netlink family `traits` is `changes`.
public struct RegistryChanges: AsyncSequence, Sendable {
  public typealias Element = RegistryChange
  public typealias Failure = TraitError

  private let listener: ChangeListener

  /// Begins to listen.
  ///
  /// - Parameter receiveBufferSize: Room for changes that nobody has asked for, in
  ///   bytes of the kernel's memory (socket(7), `SO_RCVBUF`); nil for the system's
  ///   default. A change takes less than 1 KiB.
  /// - Throws: ``/PacketTraits/TraitError/Code/unsupportedKernel`` if this kernel has
  ///   no packet traits, or does not tell of changes; ``/PacketTraits/TraitError/Code/systemCall``
  ///   if a socket cannot be had; ``/PacketTraits/TraitError/Code/invalidArgument`` if the size is
  ///   not 1 to 2,147,483,647; ``/PacketTraits/TraitError/Code/malformedReply`` if the kernel's answer is
  ///   no netlink message of this family.
  public init(receiveBufferSize: Int? = nil) throws(TraitError) {
    listener = try ChangeListener(receiveBufferSize: receiveBufferSize)
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(listener: listener) }

  /// Asks for one change after another.
  public struct AsyncIterator: AsyncIteratorProtocol {
    fileprivate let listener: ChangeListener
    private var hasEnded = false

    fileprivate init(listener: ChangeListener) { self.listener = listener }

    /// The next change, or nil if the task has been cancelled, or if there was nil
    /// or an error before.
    ///
    /// - Throws: As the functions of ``RegistryConnection``; `registryChanging` only if
    ///   all keys are to be listed.
    public mutating func next() async throws(TraitError) -> RegistryChange? {
      try await next(isolation: #isolation)
    }

    /// As ``next()``.
    public mutating func next(
      isolation actor: isolated (any Actor)?
    ) async throws(TraitError) -> RegistryChange? {
      guard !hasEnded else { return nil }
      hasEnded = true
      guard let change = try await listener.next(isolation: actor) else { return nil }
      hasEnded = false
      return change
    }
  }
}

/// What is known of the registry, and which changes are of interest.
struct KeyTable {
  private(set) var keys: [TraitID: RegisteredKey] = [:]

  mutating func replace(_ all: [RegisteredKey]) {
    keys = Dictionary(all.map { ($0.id, $0) }) { $1 }
  }

  /// - Returns: Whether this is news. It is not if it happened before all keys were
  ///   listed, and the list has it.
  mutating func apply(_ change: RegistryChange) -> Bool {
    switch change {
    case .keys(let all):
      replace(all)
      return true
    case .added(let key):
      guard keys[key.id] != key else { return false }
      keys[key.id] = key
      return true
    case .removed(let key):
      guard keys[key.id] == key else { return false }
      keys[key.id] = nil
      return true
    }
  }
}

extension RegistryChange {
  /// What one datagram tells of; messages that are of something else are passed over.
  ///
  /// - Throws: `malformedReply`.
  static func all(in datagram: RawSpan, family: UInt16) throws(TraitError) -> [RegistryChange] {
    var changes: [RegistryChange] = []
    var position = 0
    while let message = try NetlinkMessage.next(in: datagram, at: &position) {
      guard message.type == family else { continue }
      let payload = datagram.extracting(message.payload)
      let header = MemoryLayout<genlmsghdr>.size
      guard payload.byteCount >= header else {
        throw TraitError(
          .malformedReply,
          "the kernel's notice has \(payload.byteCount) bytes, less than the \(header) of a header")
      }
      let command = Int(payload.unsafeLoad(as: UInt8.self))
      guard command == Int(TRAITS_CMD_KEY_NEW_NTF) || command == Int(TRAITS_CMD_KEY_DEL_NTF) else {
        continue
      }
      let key = try RegisteredKey(attributes: payload.extracting(header..<payload.byteCount))
      changes.append(command == Int(TRAITS_CMD_KEY_NEW_NTF) ? .added(key) : .removed(key))
    }
    return changes
  }
}

enum ChangeNotice {
  case nothing
  /// Some are lost, for lack of memory or room.
  case missed
  case changes([RegistryChange])
}

/// Where a ``ChangeFeed`` has keys and notices from.
protocol ChangeSource: ~Copyable {
  /// The next notice that is there, without waiting.
  mutating func notice() throws(TraitError) -> ChangeNotice

  /// All keys that there are now.
  mutating func keys() throws(TraitError) -> [RegisteredKey]
}

/// Makes what is to be told of the list of all keys and of notices. It knows of no
/// socket, and does not wait.
struct ChangeFeed<Source: ChangeSource & ~Copyable>: ~Copyable {
  enum Outcome: Equatable {
    case change(RegistryChange)
    case nothing
    /// There was much to read, and there is more.
    case unfinished
  }

  var source: Source
  private var table = KeyTable()
  private var changes: [RegistryChange] = []
  private var mustList = true

  /// How many notices are read at once: somebody who changes keys all the time is not to
  /// keep a thread busy.
  static var noticesAtOnce: Int { 64 }

  init(_ source: consuming Source) { self.source = source }

  /// - Throws: What the source throws. Then all keys are what comes next: a notice that
  ///   cannot be read is a change that was missed.
  mutating func next() throws(TraitError) -> Outcome {
    var left = Self.noticesAtOnce
    while changes.isEmpty {
      guard left > 0 else { return .unfinished }
      left -= 1
      do throws(TraitError) {
        if try readNotice() { continue }
        guard try listIfNeeded() else { return .nothing }
      } catch {
        mustList = true
        throw error
      }
    }
    return .change(changes.removeFirst())
  }

  /// - Returns: Whether there was one.
  private mutating func readNotice() throws(TraitError) -> Bool {
    switch try source.notice() {
    case .nothing: return false
    case .missed: mustList = true
    case .changes(let new):
      // Those that are older than the list to come do not lead up to it: of what came
      // behind them some is missing.
      guard !mustList else { break }
      for change in new where table.apply(change) { changes.append(change) }
    }
    return true
  }

  /// Lists all keys once, when no notice is left. What happens from then on is told by
  /// notices, which stay where they are until the list has been taken.
  ///
  /// - Returns: Whether that was needed.
  private mutating func listIfNeeded() throws(TraitError) -> Bool {
    guard mustList else { return false }
    let keys = try source.keys()
    table.replace(keys)
    changes = [.keys(keys)]
    mustList = false
    return true
  }
}

private final class ChangeListener: Sendable {
  private let readiness: SocketReadiness
  private let feed: Mutex<ChangeFeed<RegistrySource>>

  init(receiveBufferSize: Int?) throws(TraitError) {
    let source = try RegistrySource(receiveBufferSize: receiveBufferSize)
    do throws(Errno) {
      readiness = try SocketReadiness(duplicating: source.descriptor)
    } catch {
      throw TraitError(
        .systemCall, "changes of the registry cannot be waited for", underlyingError: error)
    }
    feed = Mutex(ChangeFeed(source))
  }

  /// nil if the task has been cancelled.
  func next(isolation actor: isolated (any Actor)?) async throws(TraitError) -> RegistryChange? {
    while !Task.isCancelled {
      let generation = readiness.generation
      switch try take() {
      case .change(let change): return change
      case .unfinished:
        await Task.yield()
        continue
      case .nothing: break
      }
      do throws(Errno) {
        _ = try readiness.foundNothing()
        try await readiness.wait(since: generation)
      } catch {
        throw TraitError(
          .systemCall, "changes of the registry cannot be waited for", underlyingError: error)
      }
    }
    return nil
  }

  private func take() throws(TraitError) -> ChangeFeed<RegistrySource>.Outcome {
    var isNothingLeft = false
    // Others may wait for what is not in the socket any more.
    defer { if !isNothingLeft { readiness.resumeAll() } }
    let outcome = try feed.withLock { feed throws(TraitError) in try feed.next() }
    isNothingLeft = outcome == .nothing
    return outcome
  }
}

/// The registry, and a socket of the group `changes`.
private struct RegistrySource: ChangeSource, ~Copyable {
  private let socket: GenericNetlinkSocket
  private let family: UInt16
  private var registry: RegistryConnection

  init(receiveBufferSize: Int?) throws(TraitError) {
    // First, so that it is the same on a kernel without packet traits.
    if let receiveBufferSize, !(1...Int(Int32.max)).contains(receiveBufferSize) {
      throw TraitError(
        .invalidArgument,
        "a receive buffer of \(receiveBufferSize) bytes: it is to be 1 to \(Int32.max)")
    }
    let registry = try RegistryConnection()
    var socket = try GenericNetlinkSocket()
    guard let family = try socket.family(named: TRAITS_FAMILY_NAME) else {
      throw TraitError(.unsupportedKernel, "this kernel has no packet traits")
    }
    guard let group = family.groups[TRAITS_MCGRP_CHANGES] else {
      throw TraitError(.unsupportedKernel, "this kernel does not tell of changes of the registry")
    }
    if let receiveBufferSize {
      try socket.setOption(SOL_SOCKET, SO_RCVBUF, UInt32(receiveBufferSize))
    }
    try socket.setOption(SOL_NETLINK, Int32(NETLINK_ADD_MEMBERSHIP), group)
    self.socket = socket
    self.family = family.id
    self.registry = registry
  }

  var descriptor: FileDescriptor { socket.descriptor }

  mutating func keys() throws(TraitError) -> [RegisteredKey] { try registry.keys() }

  /// - Throws: `systemCall`, `malformedReply`.
  mutating func notice() throws(TraitError) -> ChangeNotice {
    var bytes = [UInt8](repeating: 0, count: 8192)
    let length: Int
    do throws(Errno) {
      length = try socket.receive(into: &bytes, flags: MSG_DONTWAIT)
    } catch .wouldBlock {
      return .nothing
    } catch .noBufferSpace {
      return .missed
    } catch {
      throw TraitError(
        .systemCall, "changes of the registry cannot be received", underlyingError: error)
    }
    return .changes(
      try RegistryChange.all(in: bytes.span.bytes.extracting(0..<length), family: family))
  }
}
