// The random streams of common/seeding.py, and what is drawn from them: the same in every language.
import Foundation

enum Seeding {
  // What a stream is for; the number is that of common.seeding.Purpose.
  static let localSplit: UInt64 = 5
  static let golden: UInt64 = 0x9E37_79B9_7F4A_7C15

  static func state(_ keys: UInt64...) -> UInt64 {
    keys.reduce(0, next)
  }

  /// The state of a stream whose name goes on with a key.
  static func next(_ state: UInt64, _ key: UInt64) -> UInt64 {
    mix((state ^ key) &+ golden)
  }

  /// 63 random bits: the stream's draw number i.
  static func draw(_ state: UInt64, _ i: UInt64) -> UInt64 {
    mix(state &+ (i &+ 1) &* golden) >> 1
  }

  /// The stable argsort of the stream's first n draws.
  static func permutation(_ n: Int, _ state: UInt64) -> [Int] {
    let draws = (0..<n).map { draw(state, UInt64($0)) }
    return (0..<n).sorted { (draws[$0], $0) < (draws[$1], $1) }
  }

  /// The order in which a client visits its n examples in one local epoch.
  static func batchOrder(_ n: Int, _ batchSeed: UInt64, _ epoch: Int) -> [Int] {
    permutation(n, next(batchSeed, UInt64(epoch)))
  }

  private static func mix(_ value: UInt64) -> UInt64 {
    var z = value
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}

/// Positions of at most `most` (0: all) of `total` examples, evenly spread.
func evenly(_ total: Int, _ most: Int) -> [Int] {
  let count = min(most > 0 ? most : total, total)
  return (0..<count).map { $0 * total / count }
}

/// Which of a client's examples it keeps to test with, as common.partition.local_split.
///
/// Each class gives its share, rounded down; the classes with the largest remainders give one more.
/// A class gives its last example only if no other class can, and one example always stays.
func testPart(_ labels: [Int], fraction: Double, seed: UInt64, client: UInt64) -> [Bool] {
  let classes = Set(labels).sorted()
  let counts = classes.map { label in labels.filter { $0 == label }.count }
  let quota = counts.map { Double($0) * fraction }
  var take = quota.map { Int($0.rounded(.down)) }
  let wanted = Int((Double(labels.count) * fraction + 0.5).rounded(.down))
  let missing = min(wanted, labels.count - 1) - take.reduce(0, +)
  let givesLast = classes.indices.map { take[$0] >= counts[$0] - 1 ? 1 : 0 }
  // Rounded, so that equal remainders are equal.
  let remainder = classes.indices.map { ((quota[$0] - Double(take[$0])) * 1e9).rounded(.toNearestOrEven) / 1e9 }
  let turn = turns(classes, seed: seed, client: client)
  let first = classes.indices.sorted {
    (givesLast[$0], -remainder[$0], turn[$0]) < (givesLast[$1], -remainder[$1], turn[$1])
  }
  for place in first.prefix(max(missing, 0)) { take[place] += 1 }

  var isTest = [Bool](repeating: false, count: labels.count)
  var left = Dictionary(uniqueKeysWithValues: zip(classes, take))
  for i in Seeding.permutation(labels.count, Seeding.state(seed, Seeding.localSplit, client)) {
    if let rest = left[labels[i]], rest > 0 {
      isTest[i] = true
      left[labels[i]] = rest - 1
    }
  }
  return isTest
}

// Each class's place in this client's order, which is the same for all but for where it begins.
private func turns(_ classes: [Int], seed: UInt64, client: UInt64) -> [Int] {
  let state = Seeding.state(seed, Seeding.localSplit, UInt64.max)
  var place = [Int](repeating: 0, count: classes.count)
  let order = classes.indices.sorted {
    (Seeding.draw(state, UInt64(classes[$0])), $0) < (Seeding.draw(state, UInt64(classes[$1])), $1)
  }
  for (i, of) in order.enumerated() { place[of] = i }
  let begin = Int((client &* Seeding.golden).multipliedFullWidth(by: UInt64(classes.count)).high)
  return classes.indices.map { (place[$0] - begin + classes.count) % classes.count }
}
