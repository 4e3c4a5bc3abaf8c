import CryptoKit
import Foundation
import GRPCCore

/// Why a phone does not load a backbone or do a task. What it says is sent to the gateway.
struct Refusal: Error {
  let message: String

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

/// One or two public keys, and what was accepted last.
///
/// A backbone is loaded only if one of them has signed it, and never an older one than before.
struct Trust {
  private let keys: [P256.Signing.PublicKey]
  private let accepted: Disk

  init(keys folder: URL, accepted: URL) throws {
    keys = try names(in: folder).map { name in
      try P256.Signing.PublicKey(
        pemRepresentation: String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8))
    }
    self.accepted = Disk(folder: accepted)
    // A folder that has lost its keys must not mean that everything is accepted.
    guard (1...2).contains(keys.count) else { throw Self.unsigned("the app trusts \(keys.count) keys") }
  }

  /// Checks a statement by the rules of delivery.proto, and remembers its version.
  func accept(_ backbone: Backbone, fingerprint: String) throws {
    guard !backbone.statement.isEmpty else { throw Self.unsigned("it is not signed") }
    let signature = try? P256.Signing.ECDSASignature(derRepresentation: backbone.signature)
    guard backbone.statement.count + backbone.signature.count <= 1024, let signature,
      keys.contains(where: { $0.isValidSignature(signature, for: backbone.statement) })
    else { throw Self.unsigned("it is not signed by a key that the app trusts") }
    let text = String(decoding: backbone.statement, as: UTF8.self)
    guard let values = try Self.pattern.wholeMatch(in: text)?.output else {
      throw Self.unsigned("what was signed is not a statement of fedhead artifact v1")
    }
    let (name, sha256, stated) = (String(values[1].substring!), String(values[4].substring!), String(values[5].substring!))
    let numbers = [2, 3, 6, 7].map { Int(values[$0].substring!)! }
    let (version, size, created, expires) = (numbers[0], numbers[1], numbers[2], numbers[3])
    let (now, skew) = (Int(Date().timeIntervalSince1970), 3600)
    guard name.hasSuffix(".\(backbone.format)") else { throw Self.unsigned("it was signed as \(name)") }
    guard sha256 == backbone.file.sha256, UInt64(size) == backbone.file.size else {
      throw Self.unsigned("another file was signed")
    }
    guard stated == fingerprint else { throw Self.unsigned("another fingerprint was signed") }
    guard now >= created - skew else { throw Self.unsigned("it was signed in the future, by this phone's clock") }
    guard now <= expires + skew else { throw Self.unsigned("its signature has expired, by this phone's clock") }
    try remember(name, version, sha256)
  }

  private func remember(_ name: String, _ version: Int, _ sha256: String) throws {
    let last = accepted.text(name)?.split(separator: " ").map(String.init)
    // A damaged note must not mean that anything goes.
    if last == nil, names(in: accepted.folder).contains(name) {
      throw Self.unsigned("the note of the last accepted version is damaged")
    }
    let before = last.flatMap { Int($0[0]) } ?? 0
    guard version >= before else { throw Self.unsigned("version \(version) is older than \(before)") }
    guard version > before || sha256 == last?[1] else {
      throw Self.unsigned("another file was accepted as version \(version) before")
    }
    if version > before { try accepted.write(name, Data("\(version) \(sha256)".utf8)) }
  }

  private static let pattern = try! Regex(
    "fedhead artifact v1\n"
      + "kind backbone\n"
      + "name ([A-Za-z0-9][A-Za-z0-9._-]{0,99})\n"
      + "version ([1-9][0-9]{0,17})\n"
      + "size (0|[1-9][0-9]{0,17})\n"
      + "sha256 ([0-9a-f]{64})\n"
      + "card [0-9a-f]{64}\n"
      + "fingerprint ([0-9a-f]{64})\n"
      + "created ([1-9][0-9]{0,10})\n"
      + "expires ([1-9][0-9]{0,10})\n")

  private static func unsigned(_ why: String) -> Refusal { Refusal("unsigned-backbone", why) }
}
