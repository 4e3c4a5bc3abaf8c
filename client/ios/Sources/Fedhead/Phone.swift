import Foundation
import GRPCCore

/// What came of one visit.
public struct Visit: Sendable {
  /// Seconds after which the app is to call again.
  public let pauseSeconds: Double
  /// For the app's log: what was done, or why nothing was. Nothing of the owner's images.
  public let words: String
}

/// A phone that takes part in rounds: three calls for an app. Models.swift has a fourth, for the finished model.
///
///     let phone = try Phone.open(folder)
///     try phone.add(pixels(of: image, size: 96), className: "cat")
///     let visit = try await phone.takePart()
///
/// All that it keeps is on the disk, so a kill at any moment loses no work that was finished.
public actor Phone {
  private let app: String
  private let state: URL
  private let settings: Settings
  private let gateway: Gateway
  private let images: Images
  private let tasks: Tasks
  private let runs: Disk
  let models: Models
  private var pace: Pace
  private var model: Model?
  private var isVisiting = false

  /// Opens a phone's folder, which `fedhead deploy --phone` has made: phone.toml, phone.token, ca.crt.
  public static func open(_ folder: URL, app: String = "fedhead-ios") throws -> Phone {
    try Phone(folder, app)
  }

  private init(_ folder: URL, _ app: String) throws {
    self.app = app
    state = folder.appendingPathComponent("state")
    settings = try Settings(folder)
    let connection = GrpcConnection(
      host: settings.host, port: settings.port, authority: settings.authority, token: settings.token)
    gateway = Gateway(connection: connection, blobs: state.appendingPathComponent("blobs"))
    images = Images(state: state)
    tasks = Tasks(state: state, gateway: gateway)
    runs = Disk(folder: state.appendingPathComponent("runs"))
    models = Models(folder: state.appendingPathComponent("models"), gateway: gateway, trust: settings.trust)
    pace = Pace(Disk(folder: state))
  }

  /// Keeps an image for training, whose owner says that it is of this class. It does not wait for a
  /// visit that is under way.
  public nonisolated func add(_ pixels: [UInt8], className: String) throws {
    try images.add(pixels, className: className)
  }

  /// Does what the gateway has to do, which may take minutes; called from a background task.
  ///
  /// If it is called too early, nothing is sent.
  public func takePart(waitSeconds: Int = 25, mayTrain: @escaping @Sendable () -> Bool = { true }) async throws -> Visit {
    guard !isVisiting else { return Visit(pauseSeconds: 60, words: "a visit is under way") }
    let early = pace.secondsLeft()
    guard early <= 0 else { return Visit(pauseSeconds: early, words: "it is not time yet") }
    isVisiting = true
    defer { isVisiting = false }
    do {
      return try await visit(waitSeconds, mayTrain)
    } catch let problem as RPCError {
      return Visit(pauseSeconds: pace.again(), words: "\(problem.code): \(problem.message)")
    } catch {
      return Visit(pauseSeconds: pace.again(), words: "\(error)")
    }
  }

  private func visit(_ waitSeconds: Int, _ mayTrain: @escaping () -> Bool) async throws -> Visit {
    var (said, troubles, met): ([String], [String], Set<Data>) = ([], [], [])
    if tasks.isUnderWay, let visit = try await finish(&said, mayTrain) { return visit }
    while true {
      let held = try await holdings(mayTrain, &troubles)
      let ready = mayTrain()
      // A run that the phone cannot join must not keep it out of the others.
      let problem = held.isEmpty ? troubles.last ?? "" : ""
      let reply = try await gateway.checkIn(
        CheckInRequest(
          app: app, formats: [Model.format], abilities: Model.abilities, holdings: held, ready: ready,
          waitSeconds: ready ? waitSeconds : 0, problem: String(problem.prefix(200))))
      if let later = reply.later {
        return Visit(pauseSeconds: try pace.later(later), words: (said + troubles).joined(separator: "; "))
      } else if let task = reply.task {
        try tasks.begin(task)
        if let visit = try await finish(&said, mayTrain) { return visit }
      } else if let description = reply.description, ready {
        let isNew = met.insert(description).inserted
        guard isNew || !held.isEmpty else { throw WireError(description: Self.again) }
        let why = try await isNew ? meet(description) : Self.again
        guard let trouble = why else { continue }
        troubles.append(trouble)
        // Tasks of the other runs may come meanwhile.
        if !held.isEmpty { return Visit(pauseSeconds: pace.again(most: 60), words: (said + troubles).joined(separator: "; ")) }
      } else {
        throw WireError(description: "there is nothing that this phone can do")
      }
    }
  }

  // Finishes the task; where it is not yet time to check in again, what came of it.
  private func finish(_ said: inout [String], _ mayTrain: @escaping () -> Bool) async throws -> Visit? {
    let verdict = try await tasks.finish { try await self.done($0, mayTrain) }
    tasks.forget()
    try tidy()
    said.append("\(verdict.word) \(verdict.reason)")
    let pause = try pace.later(verdict.later)
    if pause > 1 { return Visit(pauseSeconds: pause, words: said.joined(separator: "; ")) }
    try await _Concurrency.Task.sleep(for: .seconds(pause))
    return nil
  }

  private static let again = "the gateway describes the same run again"

  // Gets ready for a run: its backbone. Says why that is impossible, if it is.
  private func meet(_ message: Data) async throws -> String? {
    let run = try Description(reading: message)
    guard isHash(run.id), isHash(run.fingerprint) else {
      throw WireError(description: "a description's id or fingerprint is not 64 hexadecimal digits")
    }
    do {
      guard run.client < 1 << 63, (0..<1).contains(run.testFraction), (2...16_384).contains(run.classes.count),
        Set(run.classes).count == run.classes.count
      else { throw Refusal("description", "its description is impossible") }
      _ = try await refusing { try await self.backbone(run) }
    } catch let refusal as Refusal {
      return refusal.message
    }
    try runs.write(run.id, message)
    try tidy()
    return nil
  }

  // Frees the disk of what no run needs that the phone met lately.
  private func tidy() throws {
    let known = newest(in: runs.folder).filter(isHash)
    for id in known.dropFirst(8) { forget(id) }
    let kept = try known.prefix(8).compactMap { try runs.read($0).map(Description.init(reading:)) }
    gateway.keep(Set(kept.flatMap { $0.backbones.map(\.file.sha256) }))
    images.keepFeatures(Set(kept.map(\.fingerprint)))
  }

  private func forget(_ id: String) {
    runs.delete(id)
    runs.delete("\(id).used")
  }

  // The run's backbone, loaded. Its signature is checked each time, for it may have expired.
  private func backbone(_ run: Description) async throws -> Model {
    guard let backbone = run.backbones.first(where: { $0.format == Model.format }) else {
      throw Refusal("description", "there is no backbone in format \(Model.format)")
    }
    do {
      try settings.trust?.accept(backbone, fingerprint: run.fingerprint)
    } catch let refusal as Refusal {
      // It may have been signed again: the gateway describes a run that the phone does not hold.
      forget(run.id)
      throw refusal
    }
    if let model, model.fingerprint == run.fingerprint { return model }
    let loaded = try Model(await gateway.file(backbone.file))
    guard loaded.fingerprint == run.fingerprint else {
      throw Refusal("foreign-fingerprint", "the backbone is \(loaded.fingerprint.prefix(12))")
    }
    model = loaded
    return loaded
  }

  // What the phone holds for each run, as its images are now; where a run is impossible, why.
  private func holdings(_ mayTrain: () -> Bool, _ troubles: inout [String]) async throws -> [Holding] {
    var found: [Holding] = []
    for id in newest(in: runs.folder).filter(isHash).prefix(8) {
      guard let run = try runs.read(id).map(Description.init(reading:)) else { continue }
      do {
        guard let used = try await refusing({ try await self.refreshed(run, mayTrain) }) else { continue }
        let (train, test) = run.isPrivate ? (min(used.numTrain, 1), 0) : (used.numTrain, used.numTest)
        found.append(Holding(description: id, numExamples: train, numTestExamples: test))
      } catch let refusal as Refusal {
        if !troubles.contains(refusal.message) { troubles.append(refusal.message) }
      } catch let problem as RPCError where problem.code == .notFound {
        // A run of the past, whose backbone was lost here: the others go on.
        forget(id)
      }
    }
    return found
  }

  // Images may come between a check-in and its task: the lists before the newest are kept, too.
  private func refreshed(_ run: Description, _ mayTrain: () -> Bool) async throws -> Used? {
    let used = images.used(run, maxExamples: settings.maxExamples)
    let before = lists(run.id)
    if before.first == used { return used }
    guard mayTrain() else { return before.first }
    do {
      let loaded = try await backbone(run)
      for image in used.images { _ = try images.features(image, loaded, mayTrain) }
    } catch is Stopped {
      return before.first
    }
    try runs.write("\(run.id).used", PropertyListEncoder().encode(Array(([used] + before).prefix(4))))
    return used
  }

  private func lists(_ id: String) -> [Used] {
    runs.read("\(id).used").flatMap { try? PropertyListDecoder().decode([Used].self, from: $0) } ?? []
  }

  // Does a task; the submission, and its arrays by field.
  private func done(_ task: Task, _ mayTrain: @escaping () -> Bool) async throws -> (Submission, [String: Data]) {
    guard let run = try runs.read(task.description).map(Description.init(reading:)) else {
      throw Refusal("unknown-run", "the phone has no such description")
    }
    try check(task, run)
    guard mayTrain() else { throw Stopped() }
    let begun = Date()
    let head = try await numbers(task.head)
    let correction = try await task.correction.sha256.isEmpty ? nil : numbers(task.correction)
    let preconditioner = try await task.preconditioner.sha256.isEmpty ? nil : numbers(task.preconditioner)
    let fetched = Date()
    let test = task.kind == Kind.evaluate.rawValue
    guard let used = lists(run.id).first(where: { run.isPrivate || task.numExamples == (test ? $0.numTest : $0.numTrain) })
    else { throw Refusal("other-images", "the phone does not hold \(task.numExamples) examples any more") }
    let model = try await backbone(run)
    guard model.numFeatures == task.numFeatures else { throw Refusal("foreign-fingerprint", "it has \(model.numFeatures) features") }
    let examples = try images.examples(used, test: test, model, mayTrain)
    let work = Work(
      examples: examples, head: head, training: task.training, correction: correction,
      preconditioner: preconditioner, unitNorm: task.unitNorm, mayGoOn: mayTrain)
    var submission = Submission(task: task.id, outcome: .done)
    submission.fingerprint = task.fingerprint
    let arrays = try computed(task, model, work, &submission)
    // How long it took would tell of single examples.
    if !run.isPrivate {
      submission.fetchSeconds = fetched.timeIntervalSince(begun)
      submission.trainSeconds = Date().timeIntervalSince(fetched)
    }
    return (submission, arrays)
  }

  private func computed(_ task: Task, _ model: Model, _ work: Work, _ submission: inout Submission) throws -> [String: Data] {
    let (examples, head) = (work.examples, work.head)
    if task.clip > 0 {
      submission.numExamples = 1
      let (integers, within) = try clippedIntegers(delta(model, work), clip: task.clip)
      let both = ["clipped_delta": bytes(integers), "within_clip": bytes([UInt32(within ? 1 : 0)])]
      return both.filter { task.fields.contains($0.key) }
    }
    let logits = try model.logits(examples, head)
    submission.numExamples = examples.count
    submission.lossBefore = loss(logits, examples.labels)
    submission.lossAfter = submission.lossBefore
    if task.kind == Kind.evaluate.rawValue {
      submission.correct = correct(logits, examples.labels)
      submission.losses = bytes(lossesBySharpness(logits, examples.labels))
      return [:]
    }
    if task.kind == Kind.statistics.rawValue {
      var sums = ["moments": bytes(smallest: moments(examples, task.numClasses))]
      if task.fields.contains("gram") { sums["gram"] = bytes(smallest: gram(examples)) }
      return sums
    }
    let change = try delta(model, work)
    guard change.allSatisfy({ $0.isFinite }) else { throw Refusal("not-finite", "the update has a number that is none") }
    submission.lossAfter = loss(try model.logits(examples, zip(head, change).map { $0 + $1 }), examples.labels)
    return ["delta": bytes(change)]
  }

  private func numbers(_ blob: Blob) async throws -> [Float] {
    let values = floats(try await gateway.bytes(blob))
    guard values.allSatisfy({ $0.isFinite }) else { throw Refusal("impossible", "the task holds a number that is none") }
    return values
  }
}
