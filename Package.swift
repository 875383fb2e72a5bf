// swift-tools-version: 6.2

import PackageDescription

let strict: [SwiftSetting] = [
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

let system: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")

let package = Package(
  name: "packet-traits",
  products: [
    .library(name: "PacketTraits", targets: ["PacketTraits"]),
    .library(name: "TraitRegistry", targets: ["TraitRegistry"]),
    .executable(name: "traitctl", targets: ["traitctl"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    // For tests: a server that does not know of traits.
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
  ],
  targets: [
    // The kernel's uAPI headers, copied, since no distribution has them, and
    // the macros of <sys/socket.h> that Swift cannot import.
    .target(name: "CTraits"),
    .systemLibrary(name: "CLibMNL", pkgConfig: "libmnl", providers: [.apt(["libmnl-dev"])]),
    .systemLibrary(name: "CLibBPF", pkgConfig: "libbpf", providers: [.apt(["libbpf-dev"])]),

    .target(name: "PacketTraits", dependencies: ["CTraits", system], swiftSettings: strict),
    .target(
      name: "TraitRegistry",
      dependencies: ["CTraits", "CLibMNL", "PacketTraits", system],
      swiftSettings: strict),
    .executableTarget(
      name: "traitctl",
      dependencies: [
        "PacketTraits", "TraitRegistry", system,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),

    // Network namespaces, veth pairs, XDP programs, commands and threads, for
    // the demo and the tests. Not a product: most of it needs root and a
    // machine to spare.
    .target(name: "CNetworkLab", path: "qemu/lab/CNetworkLab"),
    .target(
      name: "NetworkLab",
      dependencies: ["CNetworkLab", "CLibBPF", "PacketTraits", system],
      path: "qemu/lab/NetworkLab",
      swiftSettings: strict),
    .executableTarget(
      name: "traits-demo",
      dependencies: ["NetworkLab", "PacketTraits", "TraitRegistry", system],
      path: "qemu/demo",
      swiftSettings: strict),

    // Calls with traits, right and wrong ones, and a model of what comes of them.
    .executableTarget(name: "traits-fuzz", dependencies: ["CLibMNL", "CTraits"], path: "qemu/fuzz"),
    // Programs that guest tests run, as somebody else or as they are everywhere.
    .executableTarget(
      name: "traits-attempt", dependencies: ["CTraits"], path: "qemu/programs/attempt"),
    .executableTarget(name: "plain-server", path: "qemu/programs/server"),

    // Those of docs/man/traits.7.
    .executableTarget(name: "example-key", dependencies: ["CTraits"], path: "Examples/C/key"),
    .executableTarget(name: "example-receive", dependencies: ["CTraits"], path: "Examples/C/receive"),
    .executableTarget(name: "example-send", dependencies: ["CTraits"], path: "Examples/C/send"),
    .executableTarget(
      name: "example-swift-receive",
      dependencies: ["PacketTraits", "TraitRegistry"],
      path: "Examples/Swift/receive",
      swiftSettings: strict),
    .executableTarget(
      name: "example-swift-send",
      dependencies: ["PacketTraits", "TraitRegistry"],
      path: "Examples/Swift/send",
      swiftSettings: strict),

    // Random numbers for tests, the same for the same seed.
    .target(name: "SeededRandom", path: "Tests/SeededRandom", swiftSettings: strict),

    .testTarget(name: "CTraitsTests", dependencies: ["CTraits"], swiftSettings: strict),
    .testTarget(
      name: "PacketTraitsTests",
      dependencies: ["CTraits", "NetworkLab", "PacketTraits", "SeededRandom", system],
      swiftSettings: strict),
    .testTarget(
      name: "TraitRegistryTests",
      dependencies: [
        "CTraits", "CLibMNL", "PacketTraits", "SeededRandom", "TraitRegistry", system,
      ],
      swiftSettings: strict),
    .testTarget(
      name: "NetworkLabTests", dependencies: ["NetworkLab"], swiftSettings: strict),
    .testTarget(
      name: "TraitctlTests",
      dependencies: [
        "NetworkLab", "PacketTraits", "TraitRegistry", "traitctl", "traits-demo", system,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .testTarget(
      name: "GuestTests",
      dependencies: [
        "CTraits", "CNetworkLab", "NetworkLab", "PacketTraits", "TraitRegistry", "example-key",
        "example-receive", "example-send", "example-swift-receive", "example-swift-send",
        "plain-server", "traitctl", "traits-attempt", "traits-demo", "traits-fuzz", system,
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
      ],
      swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6]
)
