import Foundation

/// Images that a run uses, in the round's order, and which of them are kept to test with.
struct Used: Codable, Equatable {
  var images: [String]
  var labels: [Int]
  var isTest: [Bool]

  var numTest: Int { isTest.filter { $0 }.count }
  var numTrain: Int { images.count - numTest }
}

/// The owner's images, pixels/CLASS/SHA256, and their features, features/FINGERPRINT/SHA256.
///
/// Nothing of them ever leaves the phone but what a task asks for.
struct Images: Sendable {
  let state: URL

  private var pixels: URL { state.appendingPathComponent("pixels") }

  /// Keeps an image; the same pixels of the same class are one image.
  func add(_ image: [UInt8], className: String) throws {
    guard side(of: image) > 0, !className.isEmpty else {
      throw WireError(description: "\(image.count) bytes of class '\(className)' are no square image of three planes")
    }
    guard folder(className).lastPathComponent.utf8.count <= 255 else {
      throw WireError(description: "the name of a class has \(className.utf8.count) bytes, expected at most 127")
    }
    let data = Data(image)
    try replace(folder(className).appendingPathComponent(hex(sha256(data))), data)
  }

  /// What a run uses of them as they are now: by class and then by name, as a device has them.
  func used(_ run: Description, maxExamples: Int) -> Used {
    // By code points of the composed names, which is Python's order.
    let labels = run.classes.map(composed)
    let classes = labels.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
    let found = classes.flatMap { name in names(in: folder(name)).map { (name, $0) } }
    let limit = [maxExamples, run.maxExamples].filter { $0 > 0 }.min() ?? 0
    let chosen = evenly(found.count, limit).map { found[$0] }
    let numbers = chosen.map { labels.firstIndex(of: $0.0)! }
    let isTest = testPart(numbers, fraction: run.testFraction, seed: run.seed, client: run.client)
    return Used(images: chosen.map { $0.1 }, labels: numbers, isTest: isTest)
  }

  /// Features and labels of the train or of the test part; computed where they are not kept.
  func examples(_ used: Used, test: Bool, _ model: Model, _ mayGoOn: () -> Bool) throws -> Examples {
    let places = used.images.indices.filter { used.isTest[$0] == test }
    let rows = try places.flatMap { try features(used.images[$0], model, mayGoOn) }
    return Examples(features: rows, labels: places.map { used.labels[$0] })
  }

  /// One image's features. It asks before it computes; if the answer is no, it throws Stopped.
  func features(_ image: String, _ model: Model, _ mayGoOn: () -> Bool) throws -> [UInt8] {
    let kept = Disk(folder: state.appendingPathComponent("features/\(model.fingerprint)"))
    if let row = kept.read(image), row.count == model.numFeatures { return [UInt8](row) }
    guard mayGoOn() else { throw Stopped() }
    let files = names(in: pixels).map { pixels.appendingPathComponent($0).appendingPathComponent(image) }
    guard let data = files.lazy.compactMap({ try? Data(contentsOf: $0) }).first else {
      throw Refusal("images", "an image was removed during a round")
    }
    let row = try model.features(scaled([UInt8](data), to: model.size))
    try kept.write(image, Data(row))
    return row
  }

  /// Forgets the features of all backbones but some.
  func keepFeatures(_ fingerprints: Set<String>) {
    let folder = state.appendingPathComponent("features")
    for name in names(in: folder) where !fingerprints.contains(name) {
      try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
    }
  }

  // As Python has names of classes.
  private func composed(_ className: String) -> String { className.precomposedStringWithCanonicalMapping }

  // A class's name may hold what a file's name must not.
  private func folder(_ className: String) -> URL {
    pixels.appendingPathComponent(hex(Data(composed(className).utf8)))
  }
}
