// swift-tools-version: 6.1
// Never compiled; see README.md.
import PackageDescription

let package = Package(
  name: "Fedhead",
  platforms: [.iOS(.v18), .macOS(.v15)],
  products: [.library(name: "Fedhead", targets: ["Fedhead"])],
  dependencies: [
    .package(url: "https://github.com/grpc/grpc-swift-2.git", from: "2.3.0"),
    .package(url: "https://github.com/grpc/grpc-swift-nio-transport.git", from: "2.3.0"),
    .package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.5.1"),
  ],
  targets: [
    .target(
      name: "Fedhead",
      dependencies: [
        .product(name: "GRPCCore", package: "grpc-swift-2"),
        .product(name: "GRPCNIOTransportHTTP2Posix", package: "grpc-swift-nio-transport"),
        .product(name: "executorch", package: "executorch"),
        .product(name: "backend_xnnpack", package: "executorch"),
        .product(name: "kernels_optimized", package: "executorch"),
        .product(name: "kernels_quantized", package: "executorch"),
      ],
      swiftSettings: [.swiftLanguageMode(.v5)]
    )
  ]
)
