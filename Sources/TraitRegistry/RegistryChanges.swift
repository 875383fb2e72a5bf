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
/// who iterates; to iterate anew goes on where it was.
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
  ///   if a socket cannot be had.
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

private final class ChangeListener: Sendable {
  private struct State: ~Copyable {
    var notices: NoticeSocket
    var registry: RegistryConnection
    var table = KeyTable()
    var changes: [RegistryChange] = []
    var mustList = true
  }

  private let readiness: SocketReadiness
  private let state: Mutex<State>

  // With changes coming in all the time the list is never the latest: that is
  // mended by the notices that are there.
  private static let attemptsToBeLatest = 16

  init(receiveBufferSize: Int?) throws(TraitError) {
    let registry = try RegistryConnection()
    let notices = try NoticeSocket(receiveBufferSize: receiveBufferSize)
    do throws(Errno) {
      readiness = try SocketReadiness(duplicating: notices.descriptor)
    } catch {
      throw TraitError(
        .systemCall, "changes of the registry cannot be waited for", underlyingError: error)
    }
    state = Mutex(State(notices: notices, registry: registry))
  }

  /// nil if the task has been cancelled.
  func next(isolation actor: isolated (any Actor)?) async throws(TraitError) -> RegistryChange? {
    while !Task.isCancelled {
      let generation = readiness.generation
      if let change = try take() { return change }
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

  /// nil if there is none now.
  private func take() throws(TraitError) -> RegistryChange? {
    var areMoreLeft = false
    // Others may wait for what is in the queue now, and no more in the socket.
    defer { if areMoreLeft { readiness.resumeAll() } }
    return try state.withLock { state throws(TraitError) in
      while state.changes.isEmpty {
        if state.mustList {
          try Self.list(&state)
          break
        }
        switch try state.notices.receive() {
        case .nothing: return nil
        case .missed: state.mustList = true
        case .changes(let changes):
          for change in changes where state.table.apply(change) { state.changes.append(change) }
        }
      }
      areMoreLeft = true
      return state.changes.removeFirst()
    }
  }

  /// Lists all keys, and passes over the notices of what the list has already.
  private static func list(_ state: inout State) throws(TraitError) {
    var keys: [RegisteredKey] = []
    for _ in 0..<attemptsToBeLatest {
      keys = try state.registry.keys()
      var isLatest = true
      notices: while true {
        switch try state.notices.receive() {
        case .nothing: break notices
        case .missed, .changes: isLatest = false
        }
      }
      if isLatest { break }
    }
    state.table.replace(keys)
    state.changes = [.keys(keys)]
    state.mustList = false
  }
}

/// A socket of the group `changes`.
private struct NoticeSocket: ~Copyable {
  enum Notice {
    case nothing
    /// Some are lost, for lack of memory or room.
    case missed
    case changes([RegistryChange])
  }

  private let socket: GenericNetlinkSocket
  private let family: UInt16

  init(receiveBufferSize: Int?) throws(TraitError) {
    var socket = try GenericNetlinkSocket()
    guard let family = try socket.family(named: TRAITS_FAMILY_NAME) else {
      throw TraitError(.unsupportedKernel, "this kernel has no packet traits")
    }
    guard let group = family.groups[TRAITS_MCGRP_CHANGES] else {
      throw TraitError(.unsupportedKernel, "this kernel does not tell of changes of the registry")
    }
    if let receiveBufferSize {
      guard let size = Int32(exactly: receiveBufferSize), size > 0 else {
        throw TraitError(
          .invalidArgument,
          "a receive buffer of \(receiveBufferSize) bytes: it is to be 1 to \(Int32.max)")
      }
      try socket.setOption(SOL_SOCKET, SO_RCVBUF, UInt32(size))
    }
    try socket.setOption(SOL_NETLINK, Int32(NETLINK_ADD_MEMBERSHIP), group)
    self.socket = socket
    self.family = family.id
  }

  var descriptor: FileDescriptor { socket.descriptor }

  /// - Throws: `systemCall`, `malformedReply`.
  mutating func receive() throws(TraitError) -> Notice {
    var bytes = [UInt8](repeating: 0, count: 8192)
    let length: Int
    do throws(Errno) {
      length = try socket.receiveNow(into: &bytes)
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
