// SPDX-License-Identifier: MIT

internal import CLibMNL
internal import PacketTraits
internal import SystemPackage

/// A refusal by the kernel, in its own words.
struct NetlinkRefusal: Error, Equatable {
  var error: Errno
  var text: String?
  /// The type of the attribute that was wrong, if the kernel said so.
  var attribute: UInt16?
}

/// Puts together the kernel's reply to one request, from the datagrams that a
/// netlink socket receives: a message and an acknowledgement, or the messages
/// of a dump, in as many datagrams as the kernel likes, up to `NLMSG_DONE`.
///
/// It is given bytes and knows of no socket.
struct ReplyReader<Item> {
  /// A reply that is complete.
  enum Reply {
    /// The items, in order.
    case items([Item])
    /// The kernel refused.
    case refusal(NetlinkRefusal)
    /// What was listed changed meanwhile: there may be items twice, or missing.
    /// The corresponding C constant is `NLM_F_DUMP_INTR`.
    case inconsistent
  }

  private let request: [UInt8]
  private let family: UInt16
  private let sequence: UInt32
  private let port: UInt32
  private var items: [Item] = []
  private var isInconsistent = false

  /// - Parameters:
  ///   - request: The whole message, to tell which attribute the kernel means.
  ///   - family: The type that the messages of the reply have.
  ///   - sequence: The request's number. Messages with another one are passed
  ///     over: they are what is left of a request that failed half-way.
  ///   - port: The socket's. Messages to another one are passed over.
  init(request: [UInt8], family: UInt16, sequence: UInt32, port: UInt32) {
    self.request = request
    self.family = family
    self.sequence = sequence
    self.port = port
  }

  /// Reads one datagram.
  ///
  /// - Parameter item: Makes an item of the attributes of a message.
  /// - Returns: The reply if it is complete, or nil if there is more to come.
  /// - Throws: `malformedReply` if these are no whole messages, what `item`
  ///   throws.
  mutating func read(
    _ datagram: RawSpan, item: (RawSpan) throws(TraitError) -> Item
  ) throws(TraitError) -> Reply? {
    var position = 0
    while let message = try NetlinkMessage.next(in: datagram, at: &position) {
      guard message.sequence == sequence, message.port == port else { continue }
      if message.flags & UInt16(NLM_F_DUMP_INTR) != 0 { isInconsistent = true }
      let payload = datagram.extracting(message.payload)
      switch Int32(message.type) {
      case NLMSG_ERROR, NLMSG_DONE:
        return outcome(try NetlinkAcknowledgement(payload, of: message))
      case Int32(family):
        let header = MemoryLayout<genlmsghdr>.size
        guard payload.byteCount >= header else {
          throw TraitError(
            .malformedReply,
            "the kernel's reply has \(payload.byteCount) bytes, less than the \(header) of a header")
        }
        items.append(try item(payload.extracting(header..<payload.byteCount)))
      default: break
      }
    }
    return nil
  }

  private func outcome(_ acknowledgement: NetlinkAcknowledgement) -> Reply {
    guard let error = acknowledgement.error else {
      return isInconsistent ? .inconsistent : .items(items)
    }
    return .refusal(
      NetlinkRefusal(
        error: error, text: acknowledgement.text,
        attribute: acknowledgement.offset.flatMap { GenericRequest.attribute(at: $0, in: request) }))
  }

  /// Makes a request, and again as long as the reply is inconsistent.
  ///
  /// - Parameter attempts: How often at most. Only a registry that changes all
  ///   the time overtakes a dump a hundred times.
  /// - Throws: `registryChanging` if no reply was consistent, what `attempt`
  ///   throws.
  static func untilConsistent(
    attempts: Int = 100, _ attempt: () throws(TraitError) -> Reply
  ) throws(TraitError) -> Result<[Item], NetlinkRefusal> {
    for _ in 0..<attempts {
      switch try attempt() {
      case .items(let items): return .success(items)
      case .refusal(let refusal): return .failure(refusal)
      case .inconsistent: continue
      }
    }
    throw TraitError(
      .registryChanging, "the registry changed each of the \(attempts) times that it was listed")
  }
}
