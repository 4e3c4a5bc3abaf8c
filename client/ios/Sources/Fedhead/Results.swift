// What a phone sends of a task, and what it is told of it; as in common/phones/phones.proto.
import Foundation

enum Outcome: UInt64 {
  case done = 1
  case declined = 2
  case failed = 3
}

struct Submission {
  var task: String
  var fingerprint = ""
  var outcome: Outcome
  var reason = ""
  var numExamples = 0
  var lossBefore = 0.0
  var lossAfter = 0.0
  var correct = 0
  var losses = Data()
  var arrays: [SentArray] = []
  var fetchSeconds = 0.0
  var trainSeconds = 0.0
  var uploadSeconds = 0.0

  func written() -> Data {
    var writer = Writer()
    writer.string(1, task)
    writer.string(2, fingerprint)
    writer.uint(3, outcome.rawValue)
    writer.string(4, reason)
    writer.uint(5, UInt64(numExamples))
    writer.double(6, lossBefore)
    writer.double(7, lossAfter)
    writer.uint(8, UInt64(correct))
    writer.bytes(9, losses)
    for array in arrays { writer.message(10, array.written()) }
    writer.double(11, fetchSeconds)
    writer.double(12, trainSeconds)
    writer.double(13, uploadSeconds)
    return writer.data
  }
}

/// The message Array, whose name Swift has for its own.
struct SentArray {
  var field: String
  var data: Data
  var sha256: String

  func written() -> Data {
    var writer = Writer()
    writer.string(1, field)
    writer.bytes(2, data)
    writer.string(3, sha256)
    return writer.data
  }
}

struct Verdict {
  var what = 0
  var reason = ""
  var later = Later()

  /// What it says, in one word.
  var word: String {
    let words = ["unknown", "accepted", "late", "refused", "noted"]
    return words.indices.contains(what) ? words[what] : "unknown"
  }

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: what = try field.int()
      case 2: reason = try field.string()
      case 3: later = try Later(reading: field.bytes())
      default: break
      }
    }
  }
}
