import Foundation
import GRPCCore

/// The task that the phone is at. It and its result stay on the disk until the gateway's verdict.
struct Tasks {
  let state: URL
  let gateway: Gateway
  private var disk: Disk { Disk(folder: state.appendingPathComponent("task")) }

  private struct Kept: Codable {
    var task: String
    var message: Data
    var large: [Data]
  }

  var isUnderWay: Bool { disk.read("task") != nil }

  func begin(_ message: Data) throws {
    forget()
    let late = Date().timeIntervalSince1970 + (try Task(reading: message)).secondsLeft
    try disk.write("late", Data("\(late)".utf8))
    try disk.write("task", message)
  }

  func forget() {
    // The task first: a kill must leave no task whose result is gone.
    for name in ["task", "late", "result", "begun"] { disk.delete(name) }
  }

  /// Does the task as far as that was not done before a kill, and sends its result. A task that the
  /// gateway does not know any more is forgotten.
  func finish(_ done: (Task) async throws -> (Submission, [String: Data])) async throws -> Verdict {
    guard let message = disk.read("task") else { throw WireError(description: "the task was damaged on the disk") }
    let task = try Task(reading: message)
    do {
      return try await sent(task, try await kept(task, done))
    } catch let problem as RPCError where Self.isUnknown(problem) {
      forget()
      throw problem
    }
  }

  // The result that is on the disk; else it is computed.
  private func kept(_ task: Task, _ done: (Task) async throws -> (Submission, [String: Data])) async throws -> Kept {
    if let result = disk.read("result"), let found = try? PropertyListDecoder().decode(Kept.self, from: result),
      found.task == task.id {
      return found
    }
    let computed = try await result(task, done)
    try disk.write("result", PropertyListEncoder().encode(computed))
    return computed
  }

  private func sent(_ task: Task, _ kept: Kept) async throws -> Verdict {
    var failures = 0
    while true {
      let begun = Date()
      do {
        for data in kept.large { try await gateway.upload(task: task.id, data) }
      } catch let problem as RPCError where Self.isUnknown(problem) {
        // The result may have arrived before, and only the verdict was lost: ask for that.
      }
      // How long it took would tell of single examples. Protobuf's messages are joined by appending.
      var uploaded = Writer()
      if !kept.large.isEmpty && task.clip == 0 { uploaded.double(13, Date().timeIntervalSince(begun)) }
      do {
        return try await gateway.submit(kept.message + uploaded.data)
      } catch let problem as RPCError where problem.code == .outOfRange || problem.code == .dataLoss {
        // The gateway has lost what had arrived of an upload.
        failures += 1
        guard failures < 5 else { throw problem }
      }
    }
  }

  private static func isUnknown(_ problem: RPCError) -> Bool {
    problem.code == .notFound || problem.code == .invalidArgument
  }

  private func result(_ task: Task, _ done: (Task) async throws -> (Submission, [String: Data])) async throws -> Kept {
    func failed(_ outcome: Outcome, _ why: String) -> Kept {
      var submission = Submission(task: task.id, outcome: outcome)
      submission.fingerprint = task.fingerprint
      submission.reason = String(why.prefix(200))
      return Kept(task: task.id, message: submission.written(), large: [])
    }
    do {
      if let late = disk.text("late").flatMap(Double.init), Date().timeIntervalSince1970 > late {
        throw Refusal("late", "the time of the task was over")
      }
      try countBegun()
      var (submission, arrays) = try await done(task)
      var large: [Data] = []
      for (field, data) in arrays {
        let fits = data.count <= 256 << 10
        submission.arrays.append(
          SentArray(field: field, data: fits ? data : Data(), sha256: fits ? "" : hex(sha256(data))))
        if !fits { large.append(data) }
      }
      return Kept(task: task.id, message: submission.written(), large: large)
    } catch is Stopped {
      return failed(.declined, "the owner's conditions do not hold any more")
    } catch let refusal as Refusal {
      return failed(.failed, refusal.message)
    } catch let problem where !isTemporary(problem) {
      // It would be the same later. Its words may be the owner's.
      return failed(.failed, "error: \(type(of: problem))")
    }
  }

  // A runtime that brings the app down must not do so for ever.
  private func countBegun() throws {
    let times = (disk.text("begun").flatMap { Int($0) } ?? 0) + 1
    guard times <= 8 else { throw Refusal("killed", "the app was ended 8 times while it trained") }
    try disk.write("begun", Data("\(times)".utf8))
  }
}

/// Refuses a task that no honest gateway gives, before any of its blobs is fetched.
func check(_ task: Task, _ run: Description) throws {
  // Numbers below 2^32, of which the large ones are impossible anyway: a product of them would trap.
  let most = 1 << 25
  let (rows, columns, training) = (min(task.numClasses, most), min(task.numFeatures, most) + 1, task.training)
  let steps = min(training.epochs, most) * (task.numExamples / max(training.batchSize, 1) + 1)
  let fields: [Int: [Set<String>]] = [
    Kind.sgd.rawValue: task.clip > 0 ? [["clipped_delta"], ["clipped_delta", "within_clip"]] : [["delta"]],
    Kind.statistics.rawValue: [["moments"], ["moments", "gram"]],
    Kind.evaluate.rawValue: [[]],
  ]
  let rules: [(String, Bool)] = [
    ("fingerprint", task.fingerprint == run.fingerprint),
    ("kind", Kind(rawValue: task.kind) != nil),
    ("number of classes", rows == run.classes.count),
    ("number of features", task.numFeatures >= 1 && rows * columns <= 1 << 24 && columns <= 1 << 12),
    ("clip", task.clip >= 0 && task.clip.isFinite && (task.clip > 0) == run.isPrivate),
    ("unit norm", task.unitNorm >= 0 && task.unitNorm.isFinite),
    ("kind in a private run", !run.isPrivate || (task.kind == Kind.sgd.rawValue && task.correction.sha256.isEmpty)),
    ("head", task.head.size == UInt64(4 * rows * columns)),
    ("correction", task.correction.sha256.isEmpty || task.correction.size == UInt64(4 * rows * columns)),
    ("preconditioner", task.preconditioner.sha256.isEmpty || task.preconditioner.size == UInt64(4 * columns * columns)),
    ("field", Set(task.fields).count == task.fields.count && fields[task.kind]?.contains(Set(task.fields)) ?? false),
    ("codec", ["", "none"].contains(task.codec)),
    ("training", task.kind != Kind.sgd.rawValue
      || (["sgd", "adam", "adamw"].contains(training.optimizer) && training.lr > 0 && training.lr.isFinite
        && training.epochs >= 1 && training.batchSize >= 1 && steps <= 1 << 20
        && (0..<1).contains(training.momentum) && training.weightDecay >= 0 && training.weightDecay.isFinite
        && training.mu >= 0 && training.mu.isFinite)),
  ]
  if let (what, _) = rules.first(where: { !$0.1 }) { throw Refusal("impossible", "the task has an impossible \(what)") }
}
