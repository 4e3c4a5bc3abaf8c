// The messages of common/phones/phones.proto, whose comments say what they mean. Fields that only a
// gateway sends are only read, and those that only a phone sends are only written.
import Foundation

struct Blob {
  var sha256 = ""
  var size: UInt64 = 0
  var data = Data()

  init() {}

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: sha256 = try field.string()
      case 2: size = try field.uint()
      case 3: data = try field.bytes()
      default: break
      }
    }
  }
}

struct Holding {
  var description: String
  var numExamples: Int
  var numTestExamples: Int

  func written() -> Data {
    var writer = Writer()
    writer.string(1, description)
    writer.uint(2, UInt64(numExamples))
    writer.uint(3, UInt64(numTestExamples))
    return writer.data
  }
}

struct CheckInRequest {
  var app: String
  var formats: [String]
  var abilities: [String]
  var holdings: [Holding]
  var ready: Bool
  var waitSeconds: Int
  var problem: String

  func written() -> Data {
    var writer = Writer()
    writer.string(1, app)
    for format in formats { writer.message(2, Data(format.utf8)) }
    for ability in abilities { writer.message(3, Data(ability.utf8)) }
    for holding in holdings { writer.message(4, holding.written()) }
    writer.uint(5, ready ? 1 : 0)
    writer.uint(6, UInt64(waitSeconds))
    writer.string(7, problem)
    return writer.data
  }
}

/// One of the three; all are nil if the gateway says something that this version does not know.
struct CheckInReply {
  var later: Later?
  var description: Data?
  var task: Data?

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: later = try Later(reading: field.bytes())
      case 2: description = try field.bytes()
      case 3: task = try field.bytes()
      default: break
      }
    }
  }
}

struct Later {
  var minSeconds = 0.0
  var maxSeconds = 0.0

  init() {}

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: minSeconds = try field.double()
      case 2: maxSeconds = try field.double()
      default: break
      }
    }
  }
}

struct Description {
  var id = ""
  var run = ""
  var name = ""
  var classes: [String] = []
  var testFraction = 0.0
  var seed: UInt64 = 0
  var maxExamples = 0
  var isPrivate = false
  var fingerprint = ""
  var client: UInt64 = 0
  var backbones: [Backbone] = []

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: id = try field.string()
      case 2: run = try field.string()
      case 3: name = try field.string()
      case 4: classes.append(try field.string())
      case 5: testFraction = try field.double()
      case 6: seed = try field.uint()
      case 7: maxExamples = try field.int()
      case 8: isPrivate = try field.bool()
      case 9: fingerprint = try field.string()
      case 10: client = try field.uint()
      case 11: backbones.append(try Backbone(reading: field.bytes()))
      default: break
      }
    }
  }
}

struct Backbone {
  var format = ""
  var file = Blob()
  var statement = Data()
  var signature = Data()

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: format = try field.string()
      case 2: file = try Blob(reading: field.bytes())
      case 3: statement = try field.bytes()
      case 4: signature = try field.bytes()
      default: break
      }
    }
  }
}

enum Kind: Int {
  case sgd = 1
  case statistics = 2
  case evaluate = 3
}

struct Task {
  var id = ""
  var run = ""
  var round = 0
  var description = ""
  var fingerprint = ""
  var secondsLeft = 0.0
  var kind = 0
  var numExamples = 0
  var numClasses = 0
  var numFeatures = 0
  var fields: [String] = []
  var head = Blob()
  var correction = Blob()
  var preconditioner = Blob()
  var training = Training()
  var codec = ""
  var codecSeed: UInt64 = 0
  var clip = 0.0
  var unitNorm = 0.0
  var maxNorm = 0.0

  init(reading message: Data) throws {
    for field in try Fedhead.fields(message) {
      switch field.number {
      case 1: id = try field.string()
      case 2: run = try field.string()
      case 3: round = try field.int()
      case 4: description = try field.string()
      case 5: fingerprint = try field.string()
      case 6: secondsLeft = try field.double()
      case 7: kind = try field.int()
      case 8: numExamples = try field.int()
      case 9: numClasses = try field.int()
      case 10: numFeatures = try field.int()
      case 11: fields.append(try field.string())
      case 12: head = try Blob(reading: field.bytes())
      case 13: correction = try Blob(reading: field.bytes())
      case 14: preconditioner = try Blob(reading: field.bytes())
      case 15: training = try Training(reading: field.bytes())
      case 16: codec = try field.string()
      case 17: codecSeed = try field.uint()
      case 18: clip = try field.double()
      case 19: unitNorm = try field.double()
      case 20: maxNorm = try field.double()
      default: break
      }
    }
  }
}

struct Training {
  var optimizer = ""
  var lr = 0.0
  var epochs = 0
  var batchSize = 0
  var batchSeed: UInt64 = 0
  var momentum = 0.0
  var weightDecay = 0.0
  var mu = 0.0

  init() {}

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: optimizer = try field.string()
      case 2: lr = try field.double()
      case 3: epochs = try field.int()
      case 4: batchSize = try field.int()
      case 5: batchSeed = try field.uint()
      case 6: momentum = try field.double()
      case 7: weightDecay = try field.double()
      case 8: mu = try field.double()
      default: break
      }
    }
  }
}

struct FetchRequest {
  var sha256: String
  var offset: UInt64

  func written() -> Data {
    var writer = Writer()
    writer.string(1, sha256)
    writer.uint(2, offset)
    return writer.data
  }
}

struct Part {
  var task = ""
  var sha256 = ""
  var size: UInt64 = 0
  var offset: UInt64 = 0
  var data = Data()

  init(task: String, sha256: String, size: UInt64, offset: UInt64, data: Data) {
    (self.task, self.sha256, self.size, self.offset, self.data) = (task, sha256, size, offset, data)
  }

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 2: sha256 = try field.string()
      case 3: size = try field.uint()
      case 4: offset = try field.uint()
      case 5: data = try field.bytes()
      default: break
      }
    }
  }

  func written() -> Data {
    var writer = Writer()
    writer.string(1, task)
    writer.string(2, sha256)
    writer.uint(3, size)
    writer.uint(4, offset)
    writer.bytes(5, data)
    return writer.data
  }
}

struct UploadReply {
  var size: UInt64 = 0

  init(reading message: Data) throws {
    for field in try fields(message) {
      switch field.number {
      case 1: size = try field.uint()
      default: break
      }
    }
  }
}
