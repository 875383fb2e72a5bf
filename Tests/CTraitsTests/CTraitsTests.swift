// SPDX-License-Identifier: MIT

import CTraits
import Glibc
import Testing

@Suite("Layout of the kernel's interface")
struct LayoutTests {
  @Test("struct trait is 24 bytes, its fields where the kernel has them")
  func record() {
    #expect(MemoryLayout<trait>.size == 24)
    #expect(MemoryLayout<trait>.stride == 24)
    #expect(MemoryLayout<trait>.alignment == 4)
    #expect(MemoryLayout<trait>.offset(of: \.key) == 0)
    #expect(MemoryLayout<trait>.offset(of: \.len) == 4)
    #expect(MemoryLayout<trait>.offset(of: \.flags) == 6)
    #expect(MemoryLayout<trait>.offset(of: \.value) == 8)
    #expect(MemoryLayout.size(ofValue: trait().value) == 16)
  }

  @Test("numbers are those of the kernel's ABI")
  func constants() {
    #expect(SOL_TRAITS == 288)
    #expect(TRAITS_RECV == 1)
    #expect(TRAITS_SEND == 2)
    #expect(TRAITS_SAVE_SYN == 3)
    #expect(TRAITS_SYN == 4)
    #expect(SCM_TRAITS == 1)
    #expect(TRAITS_KEYS_MAX == 64)
    #expect(TRAITS_VALUE_MAX == 16)
    #expect(TRAITS_FAMILY_NAME == "traits")
    #expect(TRAITS_FAMILY_VERSION == 1)
    #expect(TRAITS_NAME_MAX == 31)
    #expect(TRAITS_KEY_FLAGS_OPEN_READ.rawValue == 1)
    #expect(TRAITS_KEY_FLAGS_OPEN_WRITE.rawValue == 2)
    #expect(TRAITS_KEY_FLAGS_CROSS_NETNS.rawValue == 4)
    #expect(TRAITS_KEY_FLAGS_OWNED.rawValue == 8)
    #expect(
      [
        TRAITS_MERGE_EXACT, TRAITS_MERGE_DROP, TRAITS_MERGE_FIRST, TRAITS_MERGE_LAST, TRAITS_MERGE_MIN,
        TRAITS_MERGE_MAX, TRAITS_MERGE_OR, TRAITS_MERGE_AND,
      ].map(\.rawValue) == Array(0..<8))
    #expect(
      [
        TRAITS_CMD_KEY_NEW, TRAITS_CMD_KEY_DEL, TRAITS_CMD_KEY_GET, TRAITS_CMD_STATS_GET,
        TRAITS_CMD_KEY_STATS_GET, TRAITS_CMD_KEY_NEW_NTF, TRAITS_CMD_KEY_DEL_NTF,
      ].map { Int($0) } == Array(1...7))
    #expect(TRAITS_MCGRP_CHANGES == "changes")
    #expect(
      [
        TRAITS_A_KEY_ID, TRAITS_A_KEY_NAME, TRAITS_A_KEY_SIZE, TRAITS_A_KEY_FLAGS, TRAITS_A_KEY_MERGE,
      ].map { Int($0) } == Array(1...5))
    #expect(
      [
        TRAITS_A_KEY_STATS_ID, TRAITS_A_KEY_STATS_NAME, TRAITS_A_KEY_STATS_SET, TRAITS_A_KEY_STATS_READ,
        TRAITS_A_KEY_STATS_DROPPED, TRAITS_A_KEY_STATS_SCRUBBED,
      ].map { Int($0) } == Array(1...6))
    #expect(
      [
        TRAITS_A_STATS_SET, TRAITS_A_STATS_COPIED, TRAITS_A_STATS_DISCARDED,
        TRAITS_A_STATS_SCRUBBED, TRAITS_A_STATS_ALLOCATED, TRAITS_A_STATS_EVICTED,
        TRAITS_A_STATS_LOST,
      ].map { Int($0) } == [1, 2, 3, 4, 5, 6, 7])
  }

  @Test("control messages are padded to the size of a word")
  func controlMessages() {
    let word = MemoryLayout<Int>.size
    for length in 0..<100 {
      let padded = (length + word - 1) / word * word
      #expect(ctraits_cmsg_align(length) == padded)
      #expect(ctraits_cmsg_len(length) == word + 8 + length)
      #expect(ctraits_cmsg_space(length) == word + 8 + padded)
    }
  }

  private static let installedHeaders = getenv("PACKET_TRAITS_HEADERS").map { String(cString: $0) }

  @Test(
    "headers equal those of the patched kernel, byte for byte",
    .enabled(
      if: installedHeaders != nil,
      "PACKET_TRAITS_HEADERS is not set: there are no headers of a patched kernel to compare with"),
    arguments: ["traits.h", "traits_netlink.h"])
  func headers(name: String) throws {
    let root = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(3)
    let installed = try #require(Self.installedHeaders)
    let copy = try content("\(root.joined(separator: "/"))/Sources/CTraits/include/linux/\(name)")
    #expect(!copy.isEmpty)
    #expect(copy == (try content("\(installed)/linux/\(name)")))
  }

  private func content(_ path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "r"), "\(path) cannot be opened")
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = fread(&bytes, 1, bytes.count, file)
    try #require(count < bytes.count, "\(path) is too long to be a header")
    return Array(bytes[..<count])
  }
}
