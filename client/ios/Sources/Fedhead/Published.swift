// What a phone asks about finished models, and what it is told; as in common/phones/phones.proto.
import Foundation

struct LatestRequest {
  var name: String

  func written() -> Data {
    var writer = Writer()
    writer.string(1, name)
    return writer.data
  }
}

/// The message Model, whose name has the class that runs device.pte.
struct PublishedModel {
  var name = ""
  var version: UInt64 = 0
  var file = Blob()
  var card = Blob()
  var statement = Data()
  var signature = Data()

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: name = try field.string()
      case 2: version = try field.uint()
      case 3: file = try Blob(reading: field.bytes())
      case 4: card = try Blob(reading: field.bytes())
      case 5: statement = try field.bytes()
      case 6: signature = try field.bytes()
      default: break
      }
    }
  }
}
