// SPDX-License-Identifier: MIT

internal import CTraits
internal import Glibc
internal import SystemPackage

/// A socket option of level `SOL_TRAITS`.
struct TraitOption: RawRepresentable {
  let rawValue: Int32

  /// A mask of the keys whose traits are received.
  ///
  /// The corresponding C constant is `TRAITS_RECV`.
  static var received: TraitOption { TraitOption(rawValue: TRAITS_RECV) }

  /// The records of the traits that are sent.
  ///
  /// The corresponding C constant is `TRAITS_SEND`.
  static var sent: TraitOption { TraitOption(rawValue: TRAITS_SEND) }

  /// A mask of the keys whose traits a listener keeps of a SYN.
  ///
  /// The corresponding C constant is `TRAITS_SAVE_SYN`.
  static var savedSYN: TraitOption { TraitOption(rawValue: TRAITS_SAVE_SYN) }

  /// The records of the traits that were kept of the SYN.
  ///
  /// The corresponding C constant is `TRAITS_SYN`.
  static var syn: TraitOption { TraitOption(rawValue: TRAITS_SYN) }
}

extension FileDescriptor {
  func setMask(_ option: TraitOption, _ mask: TraitMask) throws(Errno) {
    try setOption(SOL_TRAITS, option.rawValue, mask.rawValue)
  }

  func mask(_ option: TraitOption) throws(Errno) -> TraitMask {
    var bits: UInt64 = 0
    var length = socklen_t(MemoryLayout.size(ofValue: bits))
    guard getsockopt(rawValue, SOL_TRAITS, option.rawValue, &bits, &length) == 0 else {
      throw optionError(Errno.current)
    }
    return TraitMask(rawValue: bits)
  }

  func setRecords(_ option: TraitOption, _ traits: Traits) throws(Errno) {
    let byteCount = traits.recordByteCount
    // Of 1 byte at least: the kernel is given an address also for no records.
    let status = withUnsafeTemporaryAllocation(byteCount: max(byteCount, 1), alignment: 4) {
      traits.writeRecords(to: $0)
      return setsockopt(
        rawValue, SOL_TRAITS, option.rawValue, $0.baseAddress, socklen_t(byteCount))
    }
    guard status == 0 else { throw Errno.current }
  }

  /// The option's records, as the kernel gave them.
  func records(_ option: TraitOption) throws(Errno) -> [UInt8] {
    // As many as there are keys: no kernel has more records than that.
    var records = [UInt8](repeating: 0, count: Int(TRAITS_KEYS_MAX) * RecordLayout.size)
    var length = socklen_t(records.count)
    guard getsockopt(rawValue, SOL_TRAITS, option.rawValue, &records, &length) == 0 else {
      throw optionError(Errno.current)
    }
    records.removeLast(records.count - min(Int(length), records.count))
    return records
  }

  /// The option's traits.
  ///
  /// - Throws: `EBADMSG` if the kernel gave something else than records of traits.
  func traits(_ option: TraitOption) throws(Errno) -> Traits {
    let records = try records(option)
    do throws(TraitError) {
      return try Traits(records: records.span.bytes)
    } catch {
      throw .badMessage
    }
  }

  /// What an error of getsockopt() means. A kernel without packet traits says `ENOPROTOOPT`, but
  /// of an IPv4 socket `EOPNOTSUPP`, by which one that has them says that the socket is of
  /// another kind.
  func optionError(_ error: Errno) -> Errno {
    guard error == .notSupportedOnSocket else { return error }
    // A mask of no bytes is none, and changes nothing.
    guard setsockopt(rawValue, SOL_TRAITS, TRAITS_RECV, nil, 0) < 0,
      Errno.current == .protocolNotAvailable
    else { return error }
    return .protocolNotAvailable
  }
}

/// The same options, with errors that tell what is wrong.
struct TraitOptions {
  let descriptor: FileDescriptor

  func setReceived(_ mask: TraitMask) throws(TraitError) {
    do throws(Errno) {
      try descriptor.setReceivedTraits(mask)
    } catch {
      throw TraitError(askingFor: mask, error)
    }
  }

  func received() throws(TraitError) -> TraitMask {
    do throws(Errno) {
      return try descriptor.receivedTraits()
    } catch {
      throw TraitError(askedFor: error)
    }
  }

  func setSent(_ traits: Traits) throws(TraitError) {
    do throws(Errno) {
      try descriptor.setSentTraits(traits)
    } catch {
      throw TraitError(settingSent: traits, error)
    }
  }

  func sent() throws(TraitError) -> Traits {
    let records: [UInt8]
    do throws(Errno) {
      records = try descriptor.records(.sent)
    } catch {
      throw TraitError(askedForSent: error)
    }
    return try Traits(records: records.span.bytes)
  }

  func setSavedSYN(_ mask: TraitMask) throws(TraitError) {
    do throws(Errno) {
      try descriptor.setSavedSYNTraits(mask)
    } catch {
      throw TraitError(saving: mask, error)
    }
  }

  func savedSYN() throws(TraitError) -> TraitMask {
    do throws(Errno) {
      return try descriptor.savedSYNTraits()
    } catch {
      throw TraitError(askedForSYN: error)
    }
  }

  func syn() throws(TraitError) -> Traits {
    let records: [UInt8]
    do throws(Errno) {
      records = try descriptor.records(.syn)
    } catch {
      throw TraitError(askedForSYN: error)
    }
    return try Traits(records: records.span.bytes)
  }
}

extension TraitError {
  /// What stands for a socket of a kind, or a kernel, that has no such option.
  private init?(option error: Errno, unsupportedSocket: String) {
    switch error {
    case .protocolNotAvailable:
      self.init(.unsupportedKernel, "this kernel has no packet traits", underlyingError: error)
    case .notSupportedOnSocket:
      self.init(.unsupportedSocket, unsupportedSocket, underlyingError: error)
    default: return nil
    }
  }

  /// What a socket answers to the question for the keys asked for.
  init(askedFor error: Errno) {
    self =
      TraitError(option: error, unsupportedSocket: "this kind of socket does not receive traits")
      ?? TraitError(
        .systemCall, "the keys that were asked for cannot be read", underlyingError: error)
  }

  init(askingFor mask: TraitMask, _ error: Errno) {
    self.init(
      naming: mask, "that were asked for", error,
      unsupportedSocket: "this kind of socket does not receive traits",
      otherwise: "the keys \(mask) cannot be asked for")
  }

  init(saving mask: TraitMask, _ error: Errno) {
    self.init(
      naming: mask, "that were to be kept of a SYN", error,
      unsupportedSocket: "this kind of socket keeps no traits of a SYN",
      otherwise: "the keys \(mask) cannot be kept of a SYN")
  }

  private init(
    naming mask: TraitMask, _ which: String, _ error: Errno, unsupportedSocket: String,
    otherwise: String
  ) {
    if let known = TraitError(option: error, unsupportedSocket: unsupportedSocket) {
      self = known
      return
    }
    let (code, message): (Code, String) =
      switch error {
      case .noSuchFileOrDirectory:
        (.noSuchKey, "one of the keys \(mask) \(which) is not registered")
      case .notPermitted:
        (
          .notPermitted,
          "one of the keys \(mask) \(which) is not open to all: "
            + "CAP_NET_ADMIN or CAP_NET_RAW is needed"
        )
      default: (.systemCall, otherwise)
      }
    self.init(code, message, underlyingError: error)
  }

  /// What a socket answers to the question for what was kept of a SYN.
  init(askedForSYN error: Errno) {
    self =
      TraitError(option: error, unsupportedSocket: "this kind of socket keeps no traits of a SYN")
      ?? TraitError(
        .systemCall, "what was kept of the SYN cannot be read", underlyingError: error)
  }

  /// What a socket answers to the question for the traits that it sends.
  init(askedForSent error: Errno) {
    self =
      TraitError(option: error, unsupportedSocket: "this kind of socket does not send traits")
      ?? TraitError(.systemCall, "the traits that are sent cannot be read", underlyingError: error)
  }
}
