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
  /// The file of the version that was in use before, to go back to; nil if there was none, or its
  /// bytes have changed.
  public let before: URL?
  /// Whether the update has brought it.
  public let isNew: Bool
}

extension Phone {
  /// Brings the newest version of a finished model, by the name under which it was published; for
  /// example once a day. It does not wait for a visit that is under way.
  ///
  /// It throws if nothing is published as that, if what is published is refused, and if the gateway
  /// cannot be reached. What was in use then stays in use, and the next call goes on where this one
  /// broke off. It also throws if the version in use is damaged and the gateway has only an older one.
  public nonisolated func updateModel(_ name: String) async throws -> FinishedModel {
    try await models.update(name)
  }

  /// The version in use, without a call; nil if there is none yet, or its bytes have changed: the
  /// next update fetches it again. It reads all of the file, to compare it with its SHA-256.
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
    let current = shelf.current
    if answer.version == current, let known = shelf.sums(current), known != Self.sums(answer) {
      // The app may have loaded them: what is no repair must not change them.
      throw Refusal("impossible", "version \(current) of \(name) is in use here with other bytes than the gateway has")
    }
    let statement = try trust?.check(answer, inUse: shelf.noted)
    guard answer.version >= current else {
      if let model = shelf.model(isNew: false) { return model }
      throw Refusal("damaged-model", "version \(current) of \(name) is damaged, the gateway has \(answer.version)")
    }
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
    try checkBlob(answer.file, "the file of \(name)", mostMiB: 256)
    try checkBlob(answer.card, "the card of \(name)", mostMiB: 8)
  }

  private static func checkBlob(_ blob: Blob, _ what: String, mostMiB: UInt64) throws {
    guard isHash(blob.sha256) else { throw Refusal("impossible", "\(what) has no SHA-256") }
    guard blob.size >= 1, blob.size <= mostMiB << 20 else {
      throw Refusal("impossible", "\(what) has \(blob.size) bytes, expected 1 byte to \(mostMiB) MiB")
    }
  }

  private static func sums(_ answer: PublishedModel) -> String { "\(answer.file.sha256) \(answer.card.sha256)" }

  // Makes a version the one in use; says whether it was not before.
  private func install(_ answer: PublishedModel, _ statement: Statement?, _ shelf: Shelf) async throws -> Bool {
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
    let isNew = !hasFile || shelf.current != answer.version
    // Before anything can load it.
    if let statement { try trust?.remember(statement) }
    if !hasCard { try move(newCard, to: card) }
    if !hasFile { try move(newFile, to: file) }
    try shelf.use(answer.version, Self.sums(answer))
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

/// The versions of one model: NAME/VERSION/NAME and NAME/VERSION/card.json, with the SHA-256 of both in .sums,
/// and in .before the number of the version that was in use until then.
/// NAME/current has the number of the one in use. It changes last, so the app finds the old version or the new one.
struct Shelf {
  private let name: String
  private let folder: URL

  init(in models: URL, of name: String) throws {
    let words = "no model can have the name '\(name.prefix(100))'"
    guard Self.isSafe(name) else {
      throw Refusal("name", "\(words): a letter or digit, then at most 99 letters, digits, '.', '_' or '-'")
    }
    // Not every disk tells capital letters from small ones.
    guard !Self.taken.contains(name.lowercased()) else {
      throw Refusal("name", "\(words): each version has such a file of its own")
    }
    self.name = name
    folder = models.appendingPathComponent(name)
  }

  private static func isSafe(_ name: String) -> Bool {
    guard name.utf8.allSatisfy({ $0 < 128 }) else { return false }
    let match = try? pattern.wholeMatch(in: name)
    return match != nil
  }

  private static let pattern: Regex<AnyRegexOutput> = try! Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

  // The first on phones, the others on servers and other devices.
  private static let taken = ["card.json", "artifact.json", "signed"]

  private static let sumsNote = ".sums"
  private static let beforeNote = ".before"

  func file(_ version: UInt64) -> URL { place(version).appendingPathComponent(name) }

  func card(_ version: UInt64) -> URL { place(version).appendingPathComponent("card.json") }

  /// Where a blob is until it is whole.
  func partial(_ blob: Blob) -> URL { folder.appendingPathComponent("\(blob.sha256).part") }

  /// The version in use, which may be damaged; 0 if there is none.
  var current: UInt64 {
    let text = try? String(contentsOf: folder.appendingPathComponent("current"), encoding: .utf8)
    let number = (text ?? "").trimmingCharacters(in: .whitespacesAndNewlines)
    guard let version = UInt64(number), FileManager.default.fileExists(atPath: place(version).path) else { return 0 }
    return version
  }

  /// The SHA-256 of a version's file and of its card when they were put in place; nil if that is not known.
  func sums(_ version: UInt64) -> String? { notes(version).text(Self.sumsNote) }

  /// The version in use and its file's SHA-256; version 0 if there is none.
  var noted: (version: UInt64, sha256: String) {
    let version = current
    guard let found = sums(version) else { return (version: 0, sha256: "") }
    return (version: version, sha256: String(found.prefix(64)))
  }

  /// The version in use; nil if there is none, or its bytes are not those that were put in place.
  func model(isNew: Bool) -> FinishedModel? {
    let version = current
    guard isWhole(version) else { return nil }
    let last = before(version)
    let older: URL? = isWhole(last) ? file(last) : nil
    return FinishedModel(version: version, file: file(version), card: card(version), before: older, isNew: isNew)
  }

  func use(_ version: UInt64, _ sums: String) throws {
    try notes(version).write(Self.sumsNote, Data(sums.utf8))
    let last = current
    guard last != version else { return }
    // Not the newest one that is there: a killed update may have put that in place, and never used it.
    try notes(version).write(Self.beforeNote, Data("\(last)".utf8))
    try replace(folder.appendingPathComponent("current"), Data("\(version)\n".utf8))
  }

  func forgetPartials(but kept: [String]) {
    for name in names(in: folder) where name.hasSuffix(".part") && !kept.contains(name) { forget(name) }
  }

  /// Forgets all but the version in use and the one before it.
  func forgetOthers() {
    let version = current
    guard version > 0 else { return }
    let kept = ["current", "\(version)", "\(before(version))"]
    for name in names(in: folder) where !kept.contains(name) { forget(name) }
  }

  private func forget(_ name: String) {
    try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
  }

  // The version that was in use before another one; 0 if there was none.
  private func before(_ version: UInt64) -> UInt64 { UInt64(notes(version).text(Self.beforeNote) ?? "") ?? 0 }

  // Whether a version's file and its card have the bytes that were put in place.
  private func isWhole(_ version: UInt64) -> Bool {
    guard let known = sums(version), let ofFile = fileHash(file(version)), let ofCard = fileHash(card(version)) else {
      return false
    }
    return known == "\(ofFile) \(ofCard)"
  }

  private func notes(_ version: UInt64) -> Disk { Disk(folder: place(version)) }

  private func place(_ version: UInt64) -> URL { folder.appendingPathComponent("\(version)") }
}
