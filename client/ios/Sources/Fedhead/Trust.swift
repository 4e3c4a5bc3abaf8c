import CryptoKit
import Foundation
import GRPCCore

/// Why a phone does not load a backbone or a model, or do a task. What it says is sent to the gateway.
struct Refusal: Error, CustomStringConvertible {
  let message: String
  var description: String { message }

  init(_ word: String, _ details: String) { message = "\(word): \(details)" }
}

/// Makes a refusal of whatever a runtime for models throws; of its words, which may be the owner's,
/// only the kind.
func refusing<T>(_ work: () async throws -> T) async throws -> T {
  do {
    return try await work()
  } catch let problem where !isTemporary(problem) {
    if problem is Refusal || problem is Stopped { throw problem }
    throw Refusal("error", "\(type(of: problem))")
  }
}

/// Whether something was of the connection or the disk: it may go well later.
func isTemporary(_ problem: any Error) -> Bool { problem is RPCError || problem is WireError || problem is CocoaError }

/// The ten lines of delivery.proto that an operator has signed.
struct Statement {
  let kind: String
  let name: String
  let version: UInt64
  let size: UInt64
  let sha256: String
  let card: String
  let fingerprint: String
  let created: Int
  let expires: Int

  /// Nil unless the bytes are exactly these lines.
  init?(_ bytes: Data) {
    // Swift compares characters: others than those of ASCII can be equal to them.
    guard bytes.allSatisfy({ $0 < 128 }) else { return nil }
    let text = String(decoding: bytes, as: UTF8.self)
    guard let match = try? Self.lines.wholeMatch(in: text) else { return nil }
    let values: [String] = match.output.map { String($0.substring ?? "") }
    guard values.count == 10, let version = UInt64(values[3]), let size = UInt64(values[4]),
      let created = Int(values[8]), let expires = Int(values[9])
    else { return nil }
    kind = values[1]
    name = values[2]
    self.version = version
    self.size = size
    sha256 = values[5]
    card = values[6]
    fingerprint = values[7]
    self.created = created
    self.expires = expires
  }

  private static let lines: Regex<AnyRegexOutput> = try! Regex(
    [
      "fedhead artifact v1\n",
      "kind (model|backbone)\n",
      "name ([A-Za-z0-9][A-Za-z0-9._-]{0,99})\n",
      "version ([1-9][0-9]{0,17})\n",
      "size (0|[1-9][0-9]{0,17})\n",
      "sha256 ([0-9a-f]{64})\n",
      "card ([0-9a-f]{64})\n",
      "fingerprint ([0-9a-f]{64})\n",
      "created ([1-9][0-9]{0,10})\n",
      "expires ([1-9][0-9]{0,10})\n",
    ].joined(separator: ""))
}

/// One or two public keys, and what was accepted last.
///
/// A backbone or a model is loaded only if one of them has signed it, and never an older one than before.
struct Trust {
  private static let mostBytes = 1024
  private static let skew = 3600
  private let keys: [P256.Signing.PublicKey]
  private let accepted: URL

  init(keys folder: URL, accepted: URL) throws {
    keys = try names(in: folder).map { name in
      try P256.Signing.PublicKey(
        pemRepresentation: String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8))
    }
    self.accepted = accepted
    // A folder that has lost its keys must not mean that everything is accepted.
    guard (1...2).contains(keys.count) else { throw Self.unsigned("backbone", "the app trusts \(keys.count) keys") }
  }

  /// Checks a backbone's statement by the rules of delivery.proto, and remembers its version.
  func accept(_ backbone: Backbone, fingerprint: String) throws {
    let kind = "backbone"
    // It has no card, so that of no bytes was signed.
    let statement = try signed(
      kind, backbone.statement, backbone.signature, backbone.file, card: hex(sha256(Data())))
    guard statement.name.hasSuffix(".\(backbone.format)") else {
      throw Self.unsigned(kind, "it was signed as \(statement.name)")
    }
    guard statement.fingerprint == fingerprint else { throw Self.unsigned(kind, "another fingerprint was signed") }
    try checkOrder(statement, (version: 0, sha256: ""))
    try remember(statement)
  }

  /// Checks a model's statement by these rules; the fingerprint, which its card has, is left to the
  /// caller. The version in use counts as accepted, too: it may have come before there were keys.
  func check(_ model: PublishedModel, inUse: (version: UInt64, sha256: String)) throws -> Statement {
    let statement = try signed("model", model.statement, model.signature, model.file, card: model.card.sha256)
    guard statement.name == model.name else {
      throw Self.unsigned("model", "it was signed as \(statement.name)")
    }
    guard statement.version == model.version else {
      throw Self.unsigned("model", "it was signed as version \(statement.version)")
    }
    try checkOrder(statement, inUse)
    return statement
  }

  /// Writes to the disk that nothing older is accepted any more: before anything is loaded.
  func remember(_ statement: Statement) throws {
    let last = try lastAccepted(statement)
    guard statement.version > last.version else { return }
    try notes(statement.kind).write(statement.name, Data("\(statement.version) \(statement.sha256)".utf8))
  }

  // The statement, if a trusted key has signed it, it is valid now and about this file and card.
  private func signed(
    _ kind: String, _ bytes: Data, _ signature: Data, _ file: Blob, card: String
  ) throws -> Statement {
    guard !bytes.isEmpty else { throw Self.unsigned(kind, "it is not signed") }
    guard bytes.count + signature.count <= Self.mostBytes,
      let parsed = try? P256.Signing.ECDSASignature(derRepresentation: signature),
      keys.contains(where: { $0.isValidSignature(parsed, for: bytes) })
    else { throw Self.unsigned(kind, "it is not signed by a key that the app trusts") }
    guard let statement = Statement(bytes) else {
      throw Self.unsigned(kind, "what was signed is not a statement of fedhead artifact v1")
    }
    guard statement.kind == kind else { throw Self.unsigned(kind, "it was signed as a \(statement.kind)") }
    let now = Int(Date().timeIntervalSince1970)
    guard now >= statement.created - Self.skew else {
      throw Self.unsigned(kind, "it was signed in the future, by this phone's clock")
    }
    guard now <= statement.expires + Self.skew else {
      throw Self.unsigned(kind, "its signature has expired, by this phone's clock")
    }
    guard statement.sha256 == file.sha256, statement.size == file.size else {
      throw Self.unsigned(kind, "another file was signed")
    }
    guard statement.card == card else { throw Self.unsigned(kind, "another card was signed") }
    return statement
  }

  private func checkOrder(_ statement: Statement, _ inUse: (version: UInt64, sha256: String)) throws {
    let accepted = try lastAccepted(statement)
    let last = accepted.version >= inUse.version ? accepted : inUse
    guard statement.version >= last.version else {
      throw Self.unsigned(statement.kind, "version \(statement.version) is older than \(last.version)")
    }
    guard statement.version > last.version || statement.sha256 == last.sha256 else {
      throw Self.unsigned(statement.kind, "another file was accepted as version \(statement.version) before")
    }
  }

  // What was accepted last under a statement's kind and name; version 0 if nothing was.
  private func lastAccepted(_ statement: Statement) throws -> (version: UInt64, sha256: String) {
    let disk = notes(statement.kind)
    guard let note = disk.text(statement.name) else {
      // A damaged note must not mean that anything goes.
      guard !names(in: disk.folder).contains(statement.name) else {
        throw Self.unsigned(statement.kind, "the note of the last accepted version is damaged")
      }
      return (version: 0, sha256: "")
    }
    let words = note.split(separator: " ").map { String($0) }
    guard words.count == 2, let version = UInt64(words[0]) else {
      throw Self.unsigned(statement.kind, "the note of the last accepted version is damaged")
    }
    return (version: version, sha256: words[1])
  }

  // Names of backbones end with a dot and the format, so none of them is the folder of models.
  private func notes(_ kind: String) -> Disk {
    Disk(folder: kind == "model" ? accepted.appendingPathComponent("model") : accepted)
  }

  private static func unsigned(_ kind: String, _ why: String) -> Refusal { Refusal("unsigned-\(kind)", why) }
}
