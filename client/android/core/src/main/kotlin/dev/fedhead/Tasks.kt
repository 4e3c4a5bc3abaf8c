package dev.fedhead

import dev.fedhead.protocol.Blob
import dev.fedhead.protocol.Description
import dev.fedhead.protocol.GrpcException
import dev.fedhead.protocol.Kind
import dev.fedhead.protocol.Outcome
import dev.fedhead.protocol.Submission
import dev.fedhead.protocol.Task
import dev.fedhead.protocol.Training
import dev.fedhead.protocol.Verdict
import dev.fedhead.protocol.Writer
import dev.fedhead.trainer.Examples
import dev.fedhead.trainer.Model
import dev.fedhead.trainer.Stopped
import dev.fedhead.trainer.Work
import dev.fedhead.trainer.bytesOf
import dev.fedhead.trainer.correct
import dev.fedhead.trainer.encoded
import dev.fedhead.trainer.floatsOf
import dev.fedhead.trainer.gram
import dev.fedhead.trainer.lossesBySharpness
import dev.fedhead.trainer.moments
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer

/**
 * The task that the phone is at. It and its result stay on the disk until the gateway's verdict.
 *
 *     task      when it is late, and the message
 *     begun     how often it was begun
 *     result    the submission; arrays/SHA256 are those too large for it
 */
internal class Tasks(
    state: File,
    private val runs: Runs,
    private val images: Images,
    private val gateway: Gateway,
    private val abilities: List<String>,
) {
    private val disk = Disk(File(state, "task"))
    private val arrays = Disk(File(state, "task/arrays"))

    val isUnderWay: Boolean get() = disk.read("task") != null

    fun begin(message: ByteArray) {
        forget()
        val late = System.currentTimeMillis() + (Task.read(message).secondsLeft * 1000).toLong()
        disk.write("task", ByteBuffer.allocate(8).putLong(late).array() + message)
    }

    fun forget() {
        // The task first: a kill must leave no task whose result is gone.
        listOf("task", "result", "begun").forEach(disk::delete)
        arrays.names().forEach(arrays::delete)
    }

    /**
     * Does the task as far as that was not done before a kill, and sends its result.
     *
     * A task that the gateway does not know any more is forgotten.
     */
    fun finish(mayTrain: () -> Boolean): Verdict {
        val content = disk.read("task") ?: throw IOException("the task was damaged on the disk")
        val late = ByteBuffer.wrap(content).long
        val task = Task.read(content.copyOfRange(8, content.size))
        val (message, large) = kept(task.id) ?: forgetting { result(task, late, mayTrain) }.also { (message, large) ->
            large.forEach { arrays.write(hex(sha256(it)), it) }
            val names = large.joinToString("\n") { hex(sha256(it)) }.toByteArray()
            disk.write("result", ByteBuffer.allocate(4).putInt(names.size).array() + names + message)
        }
        return forgetting { sent(task, message, large) }
    }

    private fun <T> forgetting(work: () -> T): T = try {
        work()
    } catch (problem: GrpcException) {
        if (problem.code in unknown) forget()
        throw problem
    }

    private fun sent(task: Task, message: ByteArray, large: List<ByteArray>): Verdict {
        var failures = 0
        while (true) {
            val begun = System.nanoTime()
            try {
                large.forEach { gateway.upload(task.id, hex(sha256(it)), it) }
            } catch (problem: GrpcException) {
                // The result may have arrived before, and only the verdict was lost: ask for that.
                if (problem.code !in unknown) throw problem
            }
            // How long it took would tell of single examples. Protobuf's messages are joined by appending.
            val tells = large.isNotEmpty() && task.clip == 0.0
            val uploaded = Writer().apply { if (tells) double(13, secondsSince(begun)) }.toByteArray()
            try {
                return gateway.submit(message + uploaded)
            } catch (problem: GrpcException) {
                // The gateway has lost what had arrived of an upload.
                failures += 1
                if (problem.code !in lost || failures == TRIES) throw problem
            }
        }
    }

    private fun kept(task: String): Pair<ByteArray, List<ByteArray>>? {
        val content = disk.read("result") ?: return null
        val size = ByteBuffer.wrap(content).int
        val names = String(content.copyOfRange(4, 4 + size)).lines().filter { it.isNotEmpty() }
        val large = names.map { arrays.read(it) ?: return null }
        val message = content.copyOfRange(4 + size, content.size)
        return if (Submission.task(message) == task) message to large else null
    }

    // The submission, and the arrays that are too large for it.
    private fun result(task: Task, late: Long, mayTrain: () -> Boolean): Pair<ByteArray, List<ByteArray>> {
        val large = mutableListOf<ByteArray>()
        val submission = try {
            if (System.currentTimeMillis() > late) throw Refusal("late", "the time of the task was over")
            countBegun()
            refusing { done(task, mayTrain, large) }
        } catch (_: Stopped) {
            failed(task, Outcome.DECLINED, "the owner's conditions do not hold any more")
        } catch (problem: Refusal) {
            failed(task, Outcome.FAILED, problem.message.orEmpty())
        }
        return submission.write() to large
    }

    private fun failed(task: Task, outcome: Int, why: String) = Submission(task.id, outcome).apply {
        fingerprint = task.fingerprint
        reason = why.take(200)
    }

    // A runtime that brings the app down must not do so for ever.
    private fun countBegun() {
        val times = (disk.read("begun")?.let { String(it).toInt() } ?: 0) + 1
        if (times > MOST_TIMES) throw Refusal("killed", "the app was ended $MOST_TIMES times while it trained")
        disk.write("begun", "$times".toByteArray())
    }

    private fun done(task: Task, mayTrain: () -> Boolean, large: MutableList<ByteArray>): Submission {
        val run = runs.description(task.description) ?: throw Refusal("unknown-run", "the phone has no such description")
        check(task, run, abilities)
        if (!mayTrain()) throw Stopped()
        val begun = System.nanoTime()
        val head = floats(task.head)
        val correction = task.correction.takeIf { it.sha256.isNotEmpty() }?.let(::floats)
        val preconditioner = task.preconditioner.takeIf { it.sha256.isNotEmpty() }?.let(::floats)
        val fetchSeconds = secondsSince(begun)
        val test = task.kind == Kind.EVALUATE
        val used = runs.used(run, task.numExamples, test)
            ?: throw Refusal("other-images", "the phone does not hold ${task.numExamples} examples any more")
        val model = runs.backbone(run)
        if (model.numFeatures != task.numFeatures) throw Refusal("foreign-fingerprint", "it has ${model.numFeatures} features")
        val examples = images.examples(used, test, model, mayTrain)
        val work = Work(examples, head, task.training, correction, preconditioner, task.unitNorm, mayTrain)
        val submission = Submission(task.id, Outcome.DONE).apply { fingerprint = task.fingerprint }
        val arrays = computed(task, model, work, submission)
        submission.arrays = arrays.map { (field, data) -> array(field, data, large) }
        if (!run.isPrivate) {
            submission.fetchSeconds = fetchSeconds
            submission.trainSeconds = secondsSince(begun) - fetchSeconds
        }
        return submission
    }

    // The arrays to send, by field; notes the figures in the submission.
    private fun computed(task: Task, model: Model, work: Work, submission: Submission): Map<String, ByteArray> {
        val examples = work.examples
        if (task.clip > 0) {
            submission.numExamples = 1
            val clipped = model.clipped(work, task.clip)
            val within = longArrayOf(if (clipped.within) 1 else 0)
            return task.fields.associateWith { bytesOf(if (it == "within_clip") within else clipped.integers) }
        }
        if (task.kind == Kind.EVALUATE) return evaluated(submission, model.logits(examples, work.head), examples)
        submission.described(examples, model.loss(examples, work.head))
        if (task.kind == Kind.STATISTICS) {
            return task.fields.associateWith { bytesOf(if (it == "gram") gram(examples) else moments(examples, task.numClasses)) }
        }
        val delta = model.delta(work)
        if (!delta.all(Float::isFinite)) throw Refusal("not-finite", "the update has a number that is none")
        submission.lossAfter = model.loss(examples, FloatArray(delta.size) { work.head[it] + delta[it] })
        return mapOf("delta" to encoded(delta, task.codec, task.numFeatures + 1, task.codecSeed))
    }

    private fun Submission.described(examples: Examples, loss: Double) {
        numExamples = examples.size
        lossBefore = loss
        lossAfter = loss
    }

    private fun evaluated(submission: Submission, logits: FloatArray, examples: Examples): Map<String, ByteArray> {
        if (examples.size == 0) return emptyMap()
        val curve = lossesBySharpness(logits, examples.labels)
        submission.described(examples, curve[curve.size / 2])
        submission.correct = correct(logits, examples.labels)
        submission.losses = bytesOf(curve)
        return emptyMap()
    }

    private fun array(field: String, data: ByteArray, large: MutableList<ByteArray>): Submission.Array {
        if (data.size <= INLINE) return Submission.Array(field, data, "")
        large += data
        return Submission.Array(field, ByteArray(0), hex(sha256(data)))
    }

    private fun floats(blob: Blob): FloatArray = floatsOf(gateway.blobs.bytes(blob)).also { values ->
        if (!values.all(Float::isFinite)) throw Refusal("impossible", "the task holds a number that is none")
    }

    private fun secondsSince(nanoseconds: Long) = (System.nanoTime() - nanoseconds) / 1e9

    private companion object {
        const val INLINE = 256 shl 10
        const val MOST_TIMES = 8
        const val TRIES = 5
        val unknown = setOf(GrpcException.NOT_FOUND, GrpcException.INVALID_ARGUMENT)
        val lost = setOf(GrpcException.OUT_OF_RANGE, GrpcException.DATA_LOSS)
    }
}

private const val MOST_NUMBERS = 1L shl 24
private const val MOST_STEPS = 1L shl 20

/** Refuses a task that no honest gateway gives, before any of its blobs is fetched. */
private fun check(task: Task, run: Description, abilities: List<String>) {
    val (rows, columns) = task.numClasses.toLong() to task.numFeatures + 1L
    val problem = when {
        task.fingerprint != run.fingerprint -> "fingerprint"
        task.kind !in Kind.SGD..Kind.EVALUATE -> "kind"
        task.numClasses != run.classes.size -> "number of classes"
        task.numFeatures < 1 || rows * columns > MOST_NUMBERS || columns * columns > MOST_NUMBERS -> "number of features"
        !(task.clip >= 0 && task.clip.isFinite() && (task.clip > 0) == run.isPrivate) -> "clip"
        !(task.unitNorm >= 0 && task.unitNorm.isFinite()) -> "unit norm"
        run.isPrivate && (task.kind != Kind.SGD || task.correction.sha256.isNotEmpty()) -> "request in a private run"
        task.head.size != 4 * rows * columns -> "head"
        task.correction.sha256.isNotEmpty() && task.correction.size != 4 * rows * columns -> "correction"
        task.preconditioner.sha256.isNotEmpty() && task.preconditioner.size != 4 * columns * columns -> "preconditioner"
        task.fields.toSet() !in fieldsOf(task) -> "field"
        task.kind == Kind.SGD && !isPossible(task.training, task.numExamples) -> "training"
        else -> null
    }
    if (problem != null) throw Refusal("impossible", "the task has an impossible $problem")
    needs(task).firstOrNull { it !in abilities }?.let { throw Refusal("unable", it) }
}

private fun fieldsOf(task: Task): List<Set<String>> = when {
    task.kind == Kind.EVALUATE -> listOf(emptySet())
    task.kind == Kind.STATISTICS -> listOf(setOf("moments"), setOf("moments", "gram"))
    task.clip > 0 -> listOf(setOf("clipped_delta"), setOf("clipped_delta", "within_clip"))
    else -> listOf(setOf("delta"))
}

private fun isPossible(training: Training, numExamples: Int): Boolean {
    val batches = (numExamples + maxOf(training.batchSize, 1) - 1L) / maxOf(training.batchSize, 1)
    return training.optimizer in setOf("sgd", "adam", "adamw") && training.lr > 0 && training.lr.isFinite() &&
        training.epochs >= 1 && training.batchSize >= 1 && training.epochs * batches <= MOST_STEPS &&
        training.momentum >= 0 && training.momentum < 1 && training.weightDecay >= 0 &&
        training.weightDecay.isFinite() && training.mu >= 0 && training.mu.isFinite()
}

private fun needs(task: Task): List<String> {
    val training = task.training
    return when (task.kind) {
        Kind.STATISTICS -> listOf("statistics")
        Kind.EVALUATE -> listOf("evaluate")
        else -> listOf(
            "sgd" to true,
            training.optimizer to true,
            "momentum" to (training.momentum > 0 && training.optimizer == "sgd"),
            "weight-decay" to (training.weightDecay > 0),
            "mu" to (training.mu > 0),
            "correction" to task.correction.sha256.isNotEmpty(),
            "preconditioner" to task.preconditioner.sha256.isNotEmpty(),
            "clip" to (task.clip > 0),
            "codec:${task.codec}" to (task.codec !in setOf("", "none")),
        ).filter { it.second }.map { it.first }
    }
}
