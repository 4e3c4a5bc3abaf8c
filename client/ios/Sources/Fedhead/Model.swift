import ExecuTorch
import Foundation

/// Examples in the order of the round: n rows of d features, and n labels.
struct Examples {
  var features: [UInt8]
  var labels: [Int]

  var count: Int { labels.count }
  var numFeatures: Int { labels.isEmpty ? 0 : features.count / labels.count }

  func at<Places: Sequence>(_ places: Places) -> Examples where Places.Element == Int {
    let d = numFeatures
    return Examples(
      features: places.flatMap { features[$0 * d..<($0 + 1) * d] }, labels: places.map { labels[$0] })
  }
}

/// device.pte, run by ExecuTorch. One thread at a time may use it.
final class Model {
  static let format = "executorch"

  /// What it can do, by the words that the gateway knows.
  static let abilities = [
    "sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "adam", "adamw", "statistics",
    "evaluate", "clip",
  ]

  let fingerprint: String
  let size: Int
  let numFeatures: Int
  private let mostRows: Int
  private let module: Module

  /// Loads the file and checks that it computes on this phone what it must.
  init(_ file: URL) throws {
    module = Module(filePath: file.path)
    fingerprint = try String.from(module.execute("fingerprint", [])[0])
    size = try Int.from(module.execute("input_size", [])[0])
    numFeatures = try Int.from(module.execute("num_features", [])[0])
    mostRows = try Int.from(module.execute("most_rows", [])[0])
    guard (1...4096).contains(size), (1..<1 << 24).contains(numFeatures), mostRows >= 1 else {
      throw Refusal("foreign-fingerprint", "it takes images of \(size) and gives \(numFeatures) features")
    }
    let probe = try module.execute("probe", [])
    let (pixels, expected): ([UInt8], [UInt8]) = (try Self.scalars(probe[0]), try Self.scalars(probe[1]))
    // Heads trained on other features must not be averaged.
    guard try features(pixels) == expected else {
      throw Refusal("foreign-fingerprint", "this phone computes other features than the training side")
    }
  }

  /// Features of one image, RGB in three planes.
  func features(_ pixels: [UInt8]) throws -> [UInt8] {
    try Self.scalars(module.execute("features", [uint8(pixels, 1, 3, size, size)])[0])
  }

  /// Logits of examples, (n, K).
  func logits(_ examples: Examples, _ head: [Float]) throws -> [Float] {
    let width = numFeatures + 1
    let k = head.count / width
    return try parts(examples).flatMap { part -> [Float] in
      let n = part.count
      return try Self.scalars(module.execute("predict", [uint8(part.features, n, numFeatures), float32(head, k, width)])[0])
    }
  }

  /// The gradient of a batch's mean cross-entropy, (K, d + 1), times the preconditioner if there is one.
  func gradient(_ batch: Examples, _ matrix: [Float], preconditioner: [Float]?, unitNorm: Double) throws -> [Float] {
    var sum = [Float](repeating: 0, count: matrix.count)
    for part in parts(batch) {
      let share = Float(part.count) / Float(batch.count)
      let own = try direction(part, matrix, preconditioner, unitNorm)
      for i in sum.indices { sum[i] += share * own[i] }
    }
    return sum
  }

  // The method's step with all terms and the rate 0: its velocity is then the gradient, and batches of
  // more rows than it takes can be put together.
  private func direction(_ part: Examples, _ matrix: [Float], _ square: [Float]?, _ unitNorm: Double) throws -> [Float] {
    let (n, d, width) = (part.count, numFeatures, numFeatures + 1)
    let k = matrix.count / width
    let labels = part.labels.map { Int64($0) }
    let zeros = [Float](repeating: 0, count: matrix.count)
    let settings: [Float] = [0, 0, 0, 0, Float(unitNorm)]
    let results: [Value]
    if let square {
      results = try module.execute("train_step_preconditioned", [uint8(part.features, n, d), int64(labels, n), float32(matrix, k, width), float32(zeros, k, width), float32(matrix, k, width), float32(zeros, k, width), float32(settings, 5), float32(square, width, width)])
    } else {
      results = try module.execute("train_step", [uint8(part.features, n, d), int64(labels, n), float32(matrix, k, width), float32(zeros, k, width), float32(matrix, k, width), float32(zeros, k, width), float32(settings, 5)])
    }
    return try Self.scalars(results[1])
  }

  private func parts(_ examples: Examples) -> [Examples] {
    stride(from: 0, to: examples.count, by: mostRows).map { first in
      examples.at(first..<min(first + mostRows, examples.count))
    }
  }

  private func uint8(_ data: [UInt8], _ shape: Int...) -> ValueConvertible { Tensor<UInt8>(data, shape: shape) }

  private func int64(_ data: [Int64], _ shape: Int...) -> ValueConvertible { Tensor<Int64>(data, shape: shape) }

  private func float32(_ data: [Float], _ shape: Int...) -> ValueConvertible { Tensor<Float>(data, shape: shape) }

  private static func scalars<T: Scalar>(_ value: Value) throws -> [T] {
    guard let tensor: Tensor<T> = value.tensor() else {
      throw Refusal("foreign-fingerprint", "a method gives another type than expected")
    }
    return tensor.scalars()
  }
}
