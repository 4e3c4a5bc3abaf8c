// Finished models, beside the rounds: the newest version of each, and the one before.
import Foundation
import GRPCCore

/// A finished model on the phone.
public struct FinishedModel: Sendable {
  /// From 1 up.
  public let version: UInt64
  /// What the app loads.
  public let file: URL
  /// What the operator says of it, in JSON: classes, input size, normalization.
  public let card: URL
  /// The file of the version before, to go back to; nil if there is none.
  public let before: URL?
  /// Whether the update has brought it.
  public let isNew: Bool
}

extension Phone {
  /// Brings the newest version of a finished model, by the name under which it was published; for
  /// example once a day. It does not wait for a visit that is under way.
  ///
  /// It throws if nothing is published as that, if what is published is refused, and if the gateway
  /// cannot be reached. What was in use then stays in use, and the next call goes on where this one broke off.
  public nonisolated func updateModel(_ name: String) async throws -> FinishedModel {
    try await models.update(name)
  }

  /// The version in use, without a call; nil if there is none yet.
  public nonisolated func modelInUse(_ name: String) -> FinishedModel? {
    models.inUse(name)
  }
}

/// The models in a folder, updated by a gateway.
actor Models {
  private let folder: URL
  private let gateway: Gateway
  private let trust: Trust?
  private var updating: Set<String> = []

  init(folder: URL, gateway: Gateway, trust: Trust?) {
    self.folder = folder
    self.gateway = gateway
    self.trust = trust
  }

  nonisolated func inUse(_ name: String) -> FinishedModel? {
    guard let shelf = try? Shelf(in: folder, of: name) else { return nil }
    return shelf.model(isNew: false)
  }

  func update(_ name: String) async throws -> FinishedModel {
    let shelf = try Shelf(in: folder, of: name)
    guard !updating.contains(name) else { throw Refusal("busy", "an update of \(name) is under way") }
    updating.insert(name)
    defer { updating.remove(name) }
    let answer = try await latest(name)
    try Self.check(answer, name)
    if trust == nil, answer.version < shelf.inUse, let model = shelf.model(isNew: false) { return model }
    let statement = try trust?.check(answer, inUse: shelf.noted)
    let isNew = try await install(answer, statement, shelf)
    guard let model = shelf.model(isNew: isNew) else { throw CocoaError(.fileReadUnknown) }
    return model
  }

  private func latest(_ name: String) async throws -> PublishedModel {
    do {
      return try await gateway.latest(name)
    } catch let problem as RPCError where problem.code == .notFound {
      throw Refusal("no-model", "nothing is published as \(name)")
    }
  }

  // Refuses what no honest gateway answers, before a byte of it is fetched.
  private static func check(_ answer: PublishedModel, _ name: String) throws {
    guard Data(answer.name.utf8) == Data(name.utf8) else {
      throw Refusal("impossible", "the gateway answers with another model than \(name)")
    }
    guard answer.version >= 1, answer.version <= 999_999_999 else {
      throw Refusal("impossible", "\(name) has version \(answer.version), expected 1 to 999,999,999")
    }
    guard isHash(answer.file.sha256), answer.file.size >= 1, answer.file.size <= 256 << 20 else {
      throw Refusal("impossible", "the file of \(name) has no SHA-256, or \(answer.file.size) bytes")
    }
    guard isHash(answer.card.sha256), answer.card.size >= 1, answer.card.size <= 8 << 20 else {
      throw Refusal("impossible", "the card of \(name) has no SHA-256, or \(answer.card.size) bytes")
    }
  }

  // Makes a version the one in use; says whether it was not before.
  private func install(_ answer: PublishedModel, _ statement: Statement?, _ shelf: Shelf) async throws -> Bool {
    let sums = "\(answer.file.sha256) \(answer.card.sha256)"
    if answer.version == shelf.inUse, let known = shelf.sums(answer.version), known != sums {
      // The app may have loaded them: what is no repair must not change them.
      throw Refusal("impossible", "the gateway has other bytes as version \(answer.version) than those in use")
    }
    let (card, file) = (shelf.card(answer.version), shelf.file(answer.version))
    let (newCard, newFile) = (shelf.partial(answer.card), shelf.partial(answer.file))
    shelf.forgetPartials(but: [newCard.lastPathComponent, newFile.lastPathComponent])
    let hasCard = gateway.isWhole(card, answer.card)
    let hasFile = gateway.isWhole(file, answer.file)
    if !hasCard { try await gateway.fetch(answer.card, into: newCard) }
    if let statement {
      let fingerprint = try Self.fingerprint(in: Data(contentsOf: hasCard ? card : newCard))
      guard fingerprint == statement.fingerprint else {
        throw Refusal("unsigned-model", "another fingerprint was signed than its card has")
      }
    }
    if !hasFile { try await gateway.fetch(answer.file, into: newFile) }
    let isNew = !hasFile || shelf.inUse != answer.version
    // Before anything can load it.
    if let statement { try trust?.remember(statement) }
    if !hasCard { try move(newCard, to: card) }
    if !hasFile { try move(newFile, to: file) }
    try shelf.use(answer.version, sums)
    shelf.forgetOthers()
    return isNew
  }

  private struct Card: Decodable {
    let fingerprint: String
  }

  // The backbone's, as a card has it.
  private static func fingerprint(in card: Data) throws -> String {
    do {
      return try JSONDecoder().decode(Card.self, from: card).fingerprint
    } catch {
      throw Refusal("unsigned-model", "its card has no fingerprint")
    }
  }
}

/// The versions of one model: NAME/VERSION/NAME and NAME/VERSION/card.json, with the SHA-256 of both in .sums.
/// NAME/current has the number of the one in use. It changes last, so the app finds the old version or the new one.
struct Shelf {
  private let name: String
  private let folder: URL

  init(in models: URL, of name: String) throws {
    guard Self.isSafe(name) else {
      throw Refusal("name", "no model can have the name '\(name.prefix(100))'")
    }
    self.name = name
    folder = models.appendingPathComponent(name)
  }

  // Files of a shelf's own have two of the names.
  private static func isSafe(_ name: String) -> Bool {
    guard name.utf8.allSatisfy({ $0 < 128 }), !["current", "card.json"].contains(name.lowercased()) else {
      return false
    }
    let match = try? pattern.wholeMatch(in: name)
    return match != nil
  }

  private static let note = ".sums"

  private static let pattern: Regex<AnyRegexOutput> = try! Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

  func file(_ version: UInt64) -> URL { place(version).appendingPathComponent(name) }

  func card(_ version: UInt64) -> URL { place(version).appendingPathComponent("card.json") }

  /// Where a blob is until it is whole.
  func partial(_ blob: Blob) -> URL { folder.appendingPathComponent("\(blob.sha256).part") }

  /// The version in use; 0 if there is none.
  var inUse: UInt64 {
    let text = try? String(contentsOf: folder.appendingPathComponent("current"), encoding: .utf8)
    let number = (text ?? "").trimmingCharacters(in: .whitespacesAndNewlines)
    guard let version = UInt64(number), isHere(version) else { return 0 }
    return version
  }

  /// The SHA-256 of a version's file and of its card when they were put in place; nil if that is not known.
  func sums(_ version: UInt64) -> String? { Disk(folder: place(version)).text(Self.note) }

  /// The version in use and its file's SHA-256; version 0 if there is none.
  var noted: (version: UInt64, sha256: String) {
    let version = inUse
    guard let found = sums(version) else { return (version: 0, sha256: "") }
    return (version: version, sha256: String(found.prefix(64)))
  }

  func model(isNew: Bool) -> FinishedModel? {
    let version = inUse
    guard version > 0 else { return nil }
    var older: URL?
    if let last = before(version) { older = file(last) }
    return FinishedModel(version: version, file: file(version), card: card(version), before: older, isNew: isNew)
  }

  func use(_ version: UInt64, _ sums: String) throws {
    try Disk(folder: place(version)).write(Self.note, Data(sums.utf8))
    try replace(folder.appendingPathComponent("current"), Data("\(version)\n".utf8))
  }

  func forgetPartials(but kept: [String]) {
    for name in names(in: folder) where name.hasSuffix(".part") && !kept.contains(name) { forget(name) }
  }

  /// Forgets all but the version in use and the one before it.
  func forgetOthers() {
    var kept = ["current", "\(inUse)"]
    if let last = before(inUse) { kept.append("\(last)") }
    for name in names(in: folder) where !kept.contains(name) { forget(name) }
  }

  private func forget(_ name: String) {
    try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
  }

  private func before(_ version: UInt64) -> UInt64? {
    names(in: folder).compactMap { UInt64($0) }.filter { $0 < version && isHere($0) }.max()
  }

  private func isHere(_ version: UInt64) -> Bool {
    version > 0 && FileManager.default.fileExists(atPath: file(version).path)
  }

  private func place(_ version: UInt64) -> URL { folder.appendingPathComponent("\(version)") }
}
