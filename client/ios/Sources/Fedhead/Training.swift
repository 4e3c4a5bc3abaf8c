// Local training, as in client/sgd.py, and all that needs no model: sums, losses, clipped updates.
import Foundation

/// The owner's conditions do not hold any more.
struct Stopped: Error {}

/// How to train; see phones.proto.
struct Work {
  var examples: Examples
  var head: [Float]
  var training: Training
  var correction: [Float]?
  var preconditioner: [Float]?
  var unitNorm = 0.0
  var mayGoOn: () -> Bool
}

/// The head's change by training, (K, d + 1).
func delta(_ model: Model, _ work: Work) throws -> [Float] {
  let (n, training) = (work.examples.count, work.training)
  var optimizer = Optimizer(training, count: work.head.count)
  var matrix = work.head
  for epoch in 0..<training.epochs {
    let order = Seeding.batchOrder(n, training.batchSeed, epoch)
    for first in stride(from: 0, to: n, by: training.batchSize) {
      guard work.mayGoOn() else { throw Stopped() }
      let batch = work.examples.at(order[first..<min(first + training.batchSize, n)])
      var direction = try model.gradient(
        batch, matrix, preconditioner: work.preconditioner, unitNorm: work.unitNorm)
      optimizer.pull(&direction, matrix)
      let mu = Float(training.mu)
      if mu != 0 { for i in matrix.indices { direction[i] += mu * (matrix[i] - work.head[i]) } }
      if let correction = work.correction { for i in matrix.indices { direction[i] += correction[i] } }
      optimizer.step(&matrix, direction)
    }
  }
  return zip(matrix, work.head).map { $0 - $1 }
}

/// SGD with heavy-ball momentum, whose velocity is the direction of the last step; Adam; or AdamW, whose
/// decay goes past the moments.
private struct Optimizer {
  let training: Training
  var velocity: [Float]
  var mean: [Float]
  var square: [Float]
  var steps = 0.0

  init(_ training: Training, count: Int) {
    self.training = training
    velocity = [Float](repeating: 0, count: count)
    (mean, square) = (velocity, velocity)
  }

  func pull(_ direction: inout [Float], _ matrix: [Float]) {
    let isSgd = training.optimizer == "sgd"
    let momentum = isSgd ? Float(training.momentum) : 0
    let decay = training.optimizer == "adamw" ? 0 : Float(training.weightDecay)
    for i in direction.indices { direction[i] += momentum * velocity[i] + decay * matrix[i] }
  }

  mutating func step(_ matrix: inout [Float], _ direction: [Float]) {
    let lr = Float(training.lr)
    if training.optimizer == "sgd" {
      velocity = direction
      for i in matrix.indices { matrix[i] -= lr * direction[i] }
      return
    }
    steps += 1
    let (first, second) = (Float(1 - pow(0.9, steps)), Float(1 - pow(0.999, steps)))
    let shrink = training.optimizer == "adamw" ? Float(1 - training.lr * training.weightDecay) : 1
    for i in matrix.indices {
      mean[i] = 0.9 * mean[i] + Float(1 - 0.9) * direction[i]
      square[i] = 0.999 * square[i] + Float(1 - 0.999) * direction[i] * direction[i]
      matrix[i] = shrink * matrix[i] - lr * (mean[i] / first) / ((square[i] / second).squareRoot() + 1e-8)
    }
  }
}

/// Numbers in row order, little-endian, as all devices of Apple's have them.
func bytes<T>(_ values: [T]) -> Data { values.withUnsafeBytes { Data($0) } }

/// Whole numbers from 0: as uint32 where they fit, else as uint64.
func bytes(smallest values: [UInt64]) -> Data {
  values.allSatisfy { $0 < 1 << 32 } ? bytes(values.map { UInt32($0) }) : bytes(values)
}

func floats(_ data: Data) -> [Float] {
  let raw = [UInt8](data)
  return stride(from: 0, to: raw.count, by: 4).map { at in
    Float(bitPattern: (0..<4).reduce(0) { $0 | UInt32(raw[at + $1]) << UInt32(8 * $1) })
  }
}

/// By class, the sums of features and the count: (K, d + 1).
func moments(_ examples: Examples, _ numClasses: Int) -> [UInt64] {
  let d = examples.numFeatures
  var sums = [UInt64](repeating: 0, count: numClasses * (d + 1))
  for i in 0..<examples.count {
    let row = examples.labels[i] * (d + 1)
    for j in 0..<d { sums[row + j] += UInt64(examples.features[i * d + j]) }
    sums[row + d] += 1
  }
  return sums
}

/// The upper triangle, row by row, of the sums of products of (features, 1).
func gram(_ examples: Examples) -> [UInt64] {
  let d = examples.numFeatures
  var sums = [UInt64](repeating: 0, count: (d + 1) * (d + 2) / 2)
  for i in 0..<examples.count {
    let x = examples.features[i * d..<(i + 1) * d].map { UInt64($0) } + [1]
    var at = 0
    for a in 0...d {
      if x[a] != 0 { for b in a...d { sums[at + b - a] += x[a] * x[b] } }
      at += d + 1 - a
    }
  }
  return sums
}

/// Mean cross-entropy with logits times a sharpness.
func loss(_ logits: [Float], _ labels: [Int], sharpness: Double = 1) -> Double {
  guard !labels.isEmpty else { return 0 }
  let k = logits.count / labels.count
  var total = 0.0
  for (i, label) in labels.enumerated() {
    let row = logits[i * k..<(i + 1) * k].map { Double($0) }
    let most = row.max()!
    total += log(row.reduce(0) { $0 + exp(($1 - most) * sharpness) }) + sharpness * (most - row[label])
  }
  return total / Double(labels.count)
}

/// The same with logits times 2^-12, 2^-11.5, ..., 2^12; as common/temperature.py.
func lossesBySharpness(_ logits: [Float], _ labels: [Int]) -> [Double] {
  (0..<49).map { loss(logits, labels, sharpness: pow(2, Double($0 - 24) / 2)) }
}

/// How many predictions are right; ties go to the lower class.
func correct(_ logits: [Float], _ labels: [Int]) -> Int {
  let k = logits.count / max(labels.count, 1)
  return labels.indices.filter { i in
    let row = Array(logits[i * k..<(i + 1) * k])
    return row.firstIndex(of: row.max()!) == labels[i]
  }.count
}

/// The five lines of common/privacy/integers.py: whole numbers whose exact norm is bounded, with
/// 262,144 added to each; and whether the update's norm is at most the clip.
func clippedIntegers(_ delta: [Float], clip: Double) throws -> (integers: [UInt32], within: Bool) {
  let (resolution, fine) = (262_144.0, 1_048_576.0)
  let peak = delta.reduce(0.0) { max($0, abs(Double($1))) }
  guard delta.allSatisfy({ $0.isFinite }) else { throw Refusal("not-finite", "the update has a number that is none") }
  guard peak > 0 else { return (delta.map { _ in UInt32(resolution) }, true) }
  let steps = delta.reduce(Int64(0)) { sum, value in
    let step = Int64((abs(Double(value) / peak) * fine).rounded(.up))
    return sum + step * step
  }
  let norm = Double(steps).squareRoot() / fine
  let within = peak / clip * norm <= 1
  let factor = within ? peak / clip * resolution : resolution / norm
  // Truncated toward zero: rounded to the nearest, the norm could exceed its bound.
  return (delta.map { UInt32((Double($0) / peak * factor).rounded(.towardZero) + resolution) }, within)
}
