import Foundation
import GRPCCore

/// The gateway's calls; blobs that were fetched are kept in a folder, by their SHA-256.
struct Gateway {
  let connection: any Connection
  let blobs: URL
  private static let part = 256 << 10
  private static let callSeconds = 60

  func checkIn(_ request: CheckInRequest) async throws -> CheckInReply {
    try CheckInReply(
      reading: await connection.call("CheckIn", request.written(), seconds: Self.callSeconds + request.waitSeconds))
  }

  func submit(_ submission: Data) async throws -> Verdict {
    try Verdict(reading: await connection.call("Submit", submission, seconds: Self.callSeconds))
  }

  /// The newest version of a finished model.
  func latest(_ name: String) async throws -> PublishedModel {
    let request = LatestRequest(name: name)
    return try PublishedModel(
      reading: await connection.call("Latest", request.written(), seconds: Self.callSeconds))
  }

  /// A blob's bytes; those that came with its name need no file.
  func bytes(_ blob: Blob) async throws -> Data {
    try checkName(blob)
    return try await isHere(blob) ? checked(blob) : Data(contentsOf: file(blob))
  }

  /// A blob's file. What was fetched before a kill is not fetched again.
  func file(_ blob: Blob) async throws -> URL {
    try checkName(blob)
    let file = blobs.appendingPathComponent(blob.sha256)
    if isWhole(file, blob) {
      try? FileManager.default.setAttributes([.modificationDate: Date()], ofItemAtPath: file.path)
      return file
    }
    let partial = blobs.appendingPathComponent("\(blob.sha256).part")
    try await fetch(blob, into: partial)
    try move(partial, to: file)
    return file
  }

  /// Whether a file has a blob's bytes.
  func isWhole(_ file: URL, _ blob: Blob) -> Bool {
    // Mapped, for it may be larger than what an app may have in memory.
    guard let data = try? Data(contentsOf: file, options: .mappedIfSafe) else { return false }
    return UInt64(data.count) == blob.size && hex(sha256(data)) == blob.sha256
  }

  /// Brings a blob into a file. It goes on with what a kill or a broken connection has left there.
  /// Wrong bytes are removed, and fetched once more.
  func fetch(_ blob: Blob, into file: URL) async throws {
    if isHere(blob) {
      try replace(file, checked(blob))
      return
    }
    for _ in 1...2 {
      try await append(blob, to: file)
      if isWhole(file, blob) { return }
      try FileManager.default.removeItem(at: file)
    }
    throw WireError(description: "the gateway sends other bytes than a blob's SHA-256 promises")
  }

  /// Forgets blobs, but those with some names and the four used last.
  func keep(_ wanted: Set<String>) {
    let others = newest(in: blobs).filter { name in
      !wanted.contains(name.hasSuffix(".part") ? String(name.dropLast(5)) : name)
    }
    for name in others.dropFirst(4) { try? FileManager.default.removeItem(at: blobs.appendingPathComponent(name)) }
  }

  private func checkName(_ blob: Blob) throws {
    guard isHash(blob.sha256), blob.size <= 128 << 20 else {
      throw WireError(description: "a blob of \(blob.size) bytes has no SHA-256 or is too large")
    }
  }

  private func isHere(_ blob: Blob) -> Bool { !blob.data.isEmpty || blob.size == 0 }

  private func checked(_ blob: Blob) throws -> Data {
    guard UInt64(blob.data.count) == blob.size, hex(sha256(blob.data)) == blob.sha256 else {
      throw WireError(description: "a blob's bytes do not have its size or its SHA-256")
    }
    return blob.data
  }

  // Fetches what a file has not got yet of a blob.
  private func append(_ blob: Blob, to file: URL) async throws {
    let files = FileManager.default
    try files.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
    if !files.fileExists(atPath: file.path) { try Data().write(to: file) }
    let handle = try FileHandle(forWritingTo: file)
    defer { try? handle.close() }
    var size: UInt64 = try handle.seekToEnd()
    if size > blob.size {
      // It is longer than the blob, so it cannot be its beginning.
      try handle.truncate(atOffset: 0)
      size = 0
    }
    while size < blob.size {
      let request = FetchRequest(sha256: blob.sha256, offset: size)
      let part = try Part(reading: await connection.call("Fetch", request.written(), seconds: Self.callSeconds))
      guard part.sha256 == blob.sha256, part.size == blob.size, part.offset == size else {
        throw WireError(description: "byte \(size) of a blob was asked for, but the answer is another part")
      }
      // Parts that are too small would let a gateway hold the phone for ever.
      let expected = min(Self.part, Int(blob.size - size))
      guard part.data.count == expected else {
        throw WireError(description: "a part of a blob has \(part.data.count) bytes, expected \(expected)")
      }
      try handle.write(contentsOf: part.data)
      size += UInt64(expected)
    }
    try handle.synchronize()
  }

  /// Brings an array to the gateway; goes on where it broke off.
  func upload(task: String, _ data: Data) async throws {
    let digest = hex(sha256(data))

    func call(_ offset: Int, _ part: Data) async throws -> Int {
      let request = Part(task: task, sha256: digest, size: UInt64(data.count), offset: UInt64(offset), data: part)
      let reply = try UploadReply(reading: await connection.call("Upload", request.written(), seconds: Self.callSeconds))
      guard reply.size <= UInt64(data.count) else {
        throw WireError(description: "the gateway has \(reply.size) bytes of \(data.count)")
      }
      return Int(reply.size)
    }

    var there = try await call(0, Data())
    var failures = 0
    while there < data.count {
      let before = there
      do {
        there = try await call(there, data.subdata(in: there..<min(there + Self.part, data.count)))
      } catch let problem as RPCError where problem.code == .outOfRange || problem.code == .dataLoss {
        // Another call came in between, or the bytes were damaged and removed there.
        failures += 1
        guard failures < 3 else { throw problem }
        there = try await call(0, Data())
        continue
      }
      guard there > before else {
        throw WireError(description: "the gateway keeps nothing of an upload")
      }
    }
  }
}
