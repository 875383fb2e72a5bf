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
  ],
  swiftLanguageModes: [.v6]
)
