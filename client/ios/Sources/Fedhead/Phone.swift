import Foundation
import GRPCCore

/// What came of one visit.
public struct Visit: Sendable {
  /// Seconds after which the app is to call again.
  public let pauseSeconds: Double
  /// For the app's log: what was done, or why nothing was. Nothing of the owner's images.
  public let words: String
}

/// A phone that takes part in rounds: three calls for an app.
///
///     let phone = try Phone.open(folder)
///     try await phone.add(pixels(of: image, size: 96), className: "cat")
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
    pace = Pace(Disk(folder: state))
  }

  /// Keeps an image for training, whose owner says that it is of this class.
  public func add(_ pixels: [UInt8], className: String) throws {
    try images.add(pixels, className: className)
  }

  /// Does what the gateway has to do, which may take minutes; called from a background task.
  ///
  /// If it is called too early, nothing is sent.
  public func takePart(waitSeconds: Int = 25, mayTrain: @escaping @Sendable () -> Bool = { true }) async throws -> Visit {
    guard !isVisiting else { return Visit(pauseSeconds: 60, words: "a visit is under way") }
    guard pace.secondsLeft <= 0 else { return Visit(pauseSeconds: pace.secondsLeft, words: "it is not time yet") }
    isVisiting = true
    defer { isVisiting = false }
    do {
      return try await visit(waitSeconds, mayTrain)
    } catch let problem as RPCError {
      if problem.code == .notFound || problem.code == .invalidArgument { tasks.forget() }
      return Visit(pauseSeconds: pace.again(), words: "\(problem.code): \(problem.message)")
    } catch {
      return Visit(pauseSeconds: pace.again(), words: "\(error)")
    }
  }

  private func visit(_ waitSeconds: Int, _ mayTrain: @escaping () -> Bool) async throws -> Visit {
    var (said, problem, met): ([String], String, Set<Data>) = ([], "", [])
    if tasks.isUnderWay, let visit = try await finish(&said, mayTrain) { return visit }
    while true {
      var held: [Holding] = []
      do { held = try await holdings() } catch let refusal as Refusal { problem = refusal.message }
      let ready = problem.isEmpty && mayTrain()
      let reply = try await gateway.checkIn(
        CheckInRequest(
          app: app, formats: [Model.format], abilities: Model.abilities, holdings: held, ready: ready,
          waitSeconds: ready ? waitSeconds : 0, problem: String(problem.prefix(200))))
      if let later = reply.later {
        return Visit(pauseSeconds: try pace.later(later), words: (said + [problem]).filter { !$0.isEmpty }.joined(separator: "; "))
      } else if let task = reply.task {
        try tasks.begin(task)
        if let visit = try await finish(&said, mayTrain) { return visit }
      } else if let description = reply.description, problem.isEmpty, met.insert(description).inserted {
        do { try await meet(description) } catch let refusal as Refusal { problem = refusal.message }
      } else {
        throw WireError(description: "there is nothing that this phone can do")
      }
    }
  }

  // Finishes the task; where it is not yet time to check in again, what came of it.
  private func finish(_ said: inout [String], _ mayTrain: @escaping () -> Bool) async throws -> Visit? {
    let verdict = try await tasks.finish { try await self.done($0, mayTrain) }
    tasks.forget()
    said.append("\(verdict.word) \(verdict.reason)")
    let pause = try pace.later(verdict.later)
    if pause > 1 { return Visit(pauseSeconds: pause, words: said.joined(separator: "; ")) }
    try await _Concurrency.Task.sleep(for: .seconds(pause))
    return nil
  }

  // Gets ready for a run: its backbone, and the features of all images.
  private func meet(_ message: Data) async throws {
    let run = try Description(reading: message)
    guard isHash(run.id), isHash(run.fingerprint), run.client < 1 << 63, (0..<1).contains(run.testFraction),
      run.classes.count >= 2, Set(run.classes).count == run.classes.count
    else { throw Refusal("description", "its description is impossible") }
    _ = try await backbone(run)
    try runs.write(run.id, message)
  }

  private func backbone(_ run: Description) async throws -> Model {
    if let model, model.fingerprint == run.fingerprint { return model }
    guard let backbone = run.backbones.first(where: { $0.format == Model.format }) else {
      throw Refusal("description", "there is no backbone in format \(Model.format)")
    }
    try settings.trust?.accept(backbone, fingerprint: run.fingerprint)
    let loaded = try Model(await gateway.file(backbone.file))
    guard loaded.fingerprint == run.fingerprint else {
      throw Refusal("foreign-fingerprint", "the backbone is \(loaded.fingerprint.prefix(12))")
    }
    model = loaded
    return loaded
  }

  private func holdings() async throws -> [Holding] {
    var found: [Holding] = []
    for id in names(in: runs.folder).filter(isHash).prefix(8) {
      guard let run = try runs.read(id).map(Description.init(reading:)) else { continue }
      let used = images.used(run, maxExamples: settings.maxExamples)
      // Images may come between a check-in and its task: the lists before the newest are kept, too.
      let before = lists(id)
      if before.first != used {
        let loaded = try await backbone(run)
        for image in used.images { _ = try images.features(image, loaded) }
        try runs.write("\(id).used", PropertyListEncoder().encode(Array(([used] + before).prefix(4))))
      }
      let (train, test) = run.isPrivate ? (min(used.numTrain, 1), 0) : (used.numTrain, used.numTest)
      found.append(Holding(description: id, numExamples: train, numTestExamples: test))
    }
    return found
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
    let correction = task.correction.sha256.isEmpty ? nil : try await numbers(task.correction)
    let preconditioner = task.preconditioner.sha256.isEmpty ? nil : try await numbers(task.preconditioner)
    let fetched = Date()
    let test = task.kind == Kind.evaluate.rawValue
    guard let used = lists(run.id).first(where: { run.isPrivate || task.numExamples == (test ? $0.numTest : $0.numTrain) })
    else { throw Refusal("other-images", "the phone does not hold \(task.numExamples) examples any more") }
    let model = try await backbone(run)
    guard model.numFeatures == task.numFeatures else { throw Refusal("foreign-fingerprint", "it has \(model.numFeatures) features") }
    let examples = try images.examples(used, test: test, model)
    let work = Work(
      examples: examples, head: head, training: task.training, correction: correction,
      preconditioner: preconditioner, unitNorm: task.unitNorm, mayGoOn: mayTrain)
    var submission = Submission(task: task.id, outcome: .done)
    submission.fingerprint = task.fingerprint
    let arrays = try computed(task, model, work, &submission)
    submission.fetchSeconds = fetched.timeIntervalSince(begun)
    submission.trainSeconds = Date().timeIntervalSince(fetched)
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
      let sums = Dictionary(uniqueKeysWithValues: task.fields.map { field in
        (field, bytes(smallest: field == "gram" ? gram(examples) : moments(examples, task.numClasses)))
      })
      return sums
    }
    let change = try delta(model, work)
    guard change.allSatisfy({ $0.isFinite }) else { throw Refusal("not-finite", "the update has a number that is none") }
    submission.lossAfter = loss(try model.logits(examples, zip(head, change).map { $0 + $1 }), examples.labels)
    return ["delta": bytes(change)]
  }

  private func numbers(_ blob: Blob) async throws -> [Float] {
    let values = floats(try Data(contentsOf: await gateway.file(blob)))
    guard values.allSatisfy({ $0.isFinite }) else { throw Refusal("impossible", "the task holds a number that is none") }
    return values
  }
}
