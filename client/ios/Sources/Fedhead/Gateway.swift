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

  /// A blob's file. What was fetched before a kill is not fetched again.
  func file(_ blob: Blob) async throws -> URL {
    guard isHash(blob.sha256), blob.size <= 128 << 20 else {
      throw WireError(description: "a blob of \(blob.size) bytes has no SHA-256 or is too large")
    }
    let file = blobs.appendingPathComponent(blob.sha256)
    if let data = try? Data(contentsOf: file), hex(sha256(data)) == blob.sha256 { return file }
    let data = blob.data.isEmpty ? try await fetched(blob) : blob.data
    guard hex(sha256(data)) == blob.sha256 else {
      throw WireError(description: "a blob's bytes do not have its SHA-256")
    }
    try replace(file, data)
    return file
  }

  private func fetched(_ blob: Blob) async throws -> Data {
    let partial = blobs.appendingPathComponent("\(blob.sha256).part")
    var data = (try? Data(contentsOf: partial)) ?? Data()
    // Before the last part, so that a damaged file is fetched from its beginning.
    try? FileManager.default.removeItem(at: partial)
    do {
      while data.count < blob.size {
        let request = FetchRequest(sha256: blob.sha256, offset: UInt64(data.count))
        let part = try Part(reading: await connection.call("Fetch", request.written(), seconds: Self.callSeconds))
        guard !part.data.isEmpty, data.count + part.data.count <= blob.size else {
          throw WireError(description: "a blob has another size than the gateway said")
        }
        data.append(part.data)
      }
    } catch {
      try replace(partial, data)
      throw error
    }
    return data
  }

  /// Brings an array to the gateway; goes on where it broke off.
  func upload(task: String, _ data: Data) async throws {
    let digest = hex(sha256(data))

    func call(_ offset: Int, _ part: Data) async throws -> Int {
      let request = Part(task: task, sha256: digest, size: UInt64(data.count), offset: UInt64(offset), data: part)
      return Int(try UploadReply(reading: await connection.call("Upload", request.written(), seconds: Self.callSeconds)).size)
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
      guard there > before, there <= data.count else {
        throw WireError(description: "the gateway keeps nothing of an upload")
      }
    }
  }
}
