// SPDX-License-Identifier: MIT

public import SystemPackage

/// What went wrong with traits, above the layer of system calls.
public struct TraitError: Error, Hashable, Sendable {
  /// The kind of failure, for programs to decide by.
  public let code: Code

  /// What was wrong, with which value, and what would be right, for people.
  public let message: String

  /// The error of the system call or of the kernel's reply, if there was one.
  public let underlyingError: Errno?

  /// Makes an error, as the packages above this one do.
  public init(_ code: Code, _ message: String, underlyingError: Errno? = nil) {
    self.code = code
    self.message = message
    self.underlyingError = underlyingError
  }
}

extension TraitError {
  /// The kind of failure. There may be more kinds in later versions.
  public struct Code: Hashable, Sendable {
    enum Storage: Hashable, Sendable {
      case unsupportedKernel, unsupportedSocket, notPermitted, noSuchKey, keyExists, registryFull
      case invalidArgument, sizeMismatch, limitExceeded, malformedRecords, malformedControlData
      case malformedReply, wouldBlock, cancelled, registryChanging, systemCall
    }

    let storage: Storage

    /// This kernel has no packet traits.
    ///
    /// The corresponding error is `ENOPROTOOPT` at a socket, or that there is no generic netlink family of the
    /// name `traits`.
    public static var unsupportedKernel: Code { Code(storage: .unsupportedKernel) }

    /// A socket whose packets are not given traits, or one that is not of UDP, or not
    /// of TCP, over IPv4 or IPv6 where one of these is needed.
    ///
    /// The corresponding error is `EOPNOTSUPP`.
    public static var unsupportedSocket: Code { Code(storage: .unsupportedSocket) }

    /// A capability is missing.
    ///
    /// The corresponding error is `EPERM`.
    public static var notPermitted: Code { Code(storage: .notPermitted) }

    /// No key is registered under this number or name.
    ///
    /// The corresponding error is `ENOENT`.
    public static var noSuchKey: Code { Code(storage: .noSuchKey) }

    /// The key's name or number is taken.
    ///
    /// The corresponding error is `EEXIST`.
    public static var keyExists: Code { Code(storage: .keyExists) }

    /// All 64 keys are in use.
    ///
    /// The corresponding error is `ENOSPC`.
    public static var registryFull: Code { Code(storage: .registryFull) }

    /// A value that is not allowed, as one that was to be sent and has another
    /// size than its key.
    ///
    /// The corresponding errors are `EINVAL` and `ERANGE`.
    public static var invalidArgument: Code { Code(storage: .invalidArgument) }

    /// The key's values have another length than was asked for.
    public static var sizeMismatch: Code { Code(storage: .sizeMismatch) }

    /// The values would take more than 192 bytes together.
    ///
    /// The corresponding error is `ENOSPC` of `sendmsg()`.
    public static var limitExceeded: Code { Code(storage: .limitExceeded) }

    /// Bytes that are no array of trait records.
    public static var malformedRecords: Code { Code(storage: .malformedRecords) }

    /// Bytes that are no sequence of control messages.
    public static var malformedControlData: Code { Code(storage: .malformedControlData) }

    /// The kernel's reply is not what the protocol says.
    public static var malformedReply: Code { Code(storage: .malformedReply) }

    /// Nothing arrived in time, or at all on a nonblocking socket; or nothing
    /// could be sent in time, as the socket's room for that is taken; or there was no
    /// connection in time.
    ///
    /// The corresponding error is `EAGAIN`.
    public static var wouldBlock: Code { Code(storage: .wouldBlock) }

    /// The task was cancelled before an async method of a socket had an outcome.
    ///
    /// The corresponding error is `ECANCELED`.
    public static var cancelled: Code { Code(storage: .cancelled) }

    /// The registry changed each of the many times that it was being listed,
    /// so that no list of it is consistent.
    ///
    /// The corresponding flag of netlink is `NLM_F_DUMP_INTR`.
    public static var registryChanging: Code { Code(storage: .registryChanging) }

    /// A system call failed for a reason that has nothing to do with traits;
    /// ``TraitError/underlyingError`` tells.
    public static var systemCall: Code { Code(storage: .systemCall) }
  }
}

extension TraitError.Code: CustomStringConvertible {
  public var description: String { String(describing: storage) }
}

extension TraitError: CustomStringConvertible {
  public var description: String {
    guard let underlyingError else { return message }
    return "\(message): \(underlyingError)"
  }
}
