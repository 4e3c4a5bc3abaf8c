import CryptoKit
import Foundation

func sha256(_ data: Data) -> Data { Data(SHA256.hash(data: data)) }

func hex(_ data: Data) -> String { data.map { String(format: "%02x", $0) }.joined() }

func isHash(_ text: String) -> Bool {
  text.utf8.count == 64 && text.utf8.allSatisfy { (48...57).contains($0) || (97...102).contains($0) }
}

/// The SHA-256 of a file, in hexadecimal; nil if it cannot be read.
func fileHash(_ file: URL) -> String? {
  // Mapped, for it may be larger than what an app may have in memory.
  guard let data = try? Data(contentsOf: file, options: .mappedIfSafe) else { return nil }
  return hex(sha256(data))
}

/// Replaces a file, completely or not at all.
func replace(_ file: URL, _ data: Data) throws {
  try FileManager.default.createDirectory(
    at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
  try data.write(to: file, options: .atomic)
}

/// Puts a file into another one's place by a rename: there is the old one or the new one, whole.
func move(_ file: URL, to place: URL) throws {
  try FileManager.default.createDirectory(
    at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
  guard rename(file.path, place.path) == 0 else { throw CocoaError(.fileWriteUnknown) }
}

/// Names in a folder, without hidden files.
func names(in folder: URL) -> [String] {
  let found = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
  return found.filter { !$0.hasPrefix(".") }.sorted()
}

/// Names in a folder, those that were written last first.
func newest(in folder: URL) -> [String] {
  func written(_ name: String) -> Date {
    let values = try? folder.appendingPathComponent(name).resourceValues(forKeys: [.contentModificationDateKey])
    return values?.contentModificationDate ?? .distantPast
  }
  return names(in: folder).map { ($0, written($0)) }.sorted { $0.1 > $1.1 }.map { $0.0 }
}

/// A folder of small files with a checksum each. A file that has changed counts as missing.
struct Disk {
  let folder: URL

  func read(_ name: String) -> Data? {
    guard let data = try? Data(contentsOf: folder.appendingPathComponent(name)), data.count >= 32 else {
      return nil
    }
    let content = Data(data.prefix(data.count - 32))
    return sha256(content) == Data(data.suffix(32)) ? content : nil
  }

  func text(_ name: String) -> String? { read(name).map { String(decoding: $0, as: UTF8.self) } }

  func write(_ name: String, _ content: Data) throws {
    try replace(folder.appendingPathComponent(name), content + sha256(content))
  }

  func delete(_ name: String) {
    try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
  }
}

/// What `fedhead deploy --phone NAME` has put into a phone's folder.
struct Settings {
  let host: String
  let port: Int
  let maxExamples: Int
  let token: String
  let authority: URL
  let trust: Trust?

  init(_ folder: URL) throws {
    let lines = try String(contentsOf: folder.appendingPathComponent("phone.toml"), encoding: .utf8)
      .split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }
    var values: [String: String] = [:]
    for line in lines where !line.hasPrefix("#") {
      let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        .map { $0.trimmingCharacters(in: .whitespaces) }
      if parts.count == 2 { values[parts[0]] = Self.plain(parts[1]) }
    }
    let address = (values["gateway"] ?? "").split(separator: ":")
    guard address.count == 2, let port = Int(address[1]) else {
      throw WireError(description: "phone.toml: gateway is \(values["gateway"] ?? "missing"), expected HOST:PORT")
    }
    (self.host, self.port) = (String(address[0]), port)
    maxExamples = Int(values["max-examples"] ?? "0") ?? 0
    token = try String(contentsOf: folder.appendingPathComponent("phone.token"), encoding: .utf8)
      .trimmingCharacters(in: .whitespacesAndNewlines)
    authority = folder.appendingPathComponent("ca.crt")
    let keys = folder.appendingPathComponent("trusted")
    trust = FileManager.default.fileExists(atPath: keys.path)
      ? try Trust(keys: keys, accepted: folder.appendingPathComponent("state/accepted")) : nil
  }

  // What stands in quotes, or before a comment.
  private static func plain(_ value: String) -> String {
    if let quote = value.first, quote == "\"" || quote == "'" {
      return String(value.dropFirst().prefix { $0 != quote })
    }
    return value.prefix { $0 != "#" }.trimmingCharacters(in: .whitespaces)
  }
}

/// When the phone may call again. It is on the disk, for jobs come back in new processes.
struct Pace {
  private let disk: Disk
  private var drawn: Double
  private var next: Date

  init(_ disk: Disk) {
    self.disk = disk
    let kept = (disk.text("pace") ?? "").split(separator: " ").compactMap { Double($0) }
      .filter { $0.isFinite && $0 >= 0 }
    drawn = kept.count == 2 ? kept[0] : Double.random(in: 0.5...1)
    next = Date(timeIntervalSince1970: kept.count == 2 ? kept[1] : 0)
  }

  /// No more than was drawn: a clock that was set back must not stop the phone for years.
  mutating func secondsLeft() -> Double {
    let left = next.timeIntervalSinceNow
    guard left > drawn else { return max(left, 0) }
    return (try? keep(drawn)) ?? drawn
  }

  /// Seconds until the next call, drawn uniformly from a window.
  mutating func later(_ window: Later) throws -> Double {
    guard window.minSeconds >= 0, window.maxSeconds >= window.minSeconds, window.maxSeconds.isFinite else {
      throw WireError(description: "the window is \(window.minSeconds) to \(window.maxSeconds) s")
    }
    return try keep(min(Double.random(in: window.minSeconds...window.maxSeconds), 7 * 24 * 3600))
  }

  /// Seconds until the next try after a failure: twice the last time, at most an hour, or less.
  mutating func again(most: Double = .infinity) -> Double {
    drawn = max(drawn, min(2 * max(drawn, 0.05), 3600))
    let seconds = min(drawn, most)
    return (try? wait(seconds)) ?? seconds
  }

  private mutating func keep(_ seconds: Double) throws -> Double {
    drawn = seconds
    return try wait(seconds)
  }

  private mutating func wait(_ seconds: Double) throws -> Double {
    next = Date(timeIntervalSinceNow: seconds)
    try disk.write("pace", Data("\(drawn) \(next.timeIntervalSince1970)".utf8))
    return seconds
  }
}
