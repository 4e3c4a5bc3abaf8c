package dev.fedhead

import dev.fedhead.protocol.CheckInRequest
import dev.fedhead.protocol.Connect
import dev.fedhead.protocol.Grpc
import dev.fedhead.protocol.GrpcException
import dev.fedhead.protocol.Later
import dev.fedhead.trainer.Trainer
import java.io.File
import java.io.IOException
import kotlin.random.Random

/**
 * What came of one [Phone.takePart].
 *
 * @param pauseSeconds after which the app is to call again.
 * @param words for the app's log: what was done, or why nothing was. Nothing of the owner's images.
 */
class Visit(val pauseSeconds: Double, val words: String)

/**
 * A phone that takes part in rounds: three calls for an app.
 *
 *     val phone = Phone.open(folder, trainer, connect)
 *     phone.add(pixels, "cat")
 *     phone.takePart()
 *
 * Beside that, [updateModel] brings it a finished model.
 *
 * All that it keeps is on the disk, so a kill at any moment loses no work that was finished.
 */
class Phone private constructor(folder: File, private val trainer: Trainer, connect: Connect, private val app: String) {
    private val state = File(folder, "state").apply { mkdirs() }
    private val images = Images(state)
    private val pace = Pace(Disk(state))
    private val gateway: Gateway
    private val runs: Runs
    private val tasks: Tasks
    private val models: Models

    init {
        val settings = Settings(folder)
        val http = connect.to(settings.gateway, settings.authority())
        gateway = Gateway(Grpc(http, settings.token), File(state, "blobs"))
        runs = Runs(state, settings, trainer, gateway, images)
        tasks = Tasks(state, runs, images, gateway, trainer.abilities)
        models = Models(File(state, "models"), gateway, settings.trust)
    }

    /**
     * Keeps an image for training, whose owner says that it is of this class.
     *
     * @param pixels RGB in three planes, as `Bitmap.toPixels` gives them. Of the size that the backbone
     *   takes, the features are exactly those of the training side; of another, it is scaled.
     * @param className as the run's owner names it; images of other classes are left out.
     */
    fun add(pixels: ByteArray, className: String) = images.add(pixels, className)

    /**
     * Does what the gateway has to do, which may take minutes.
     *
     * It is meant for a background job, as of WorkManager, that the system runs again and again. If the
     * job comes too early, nothing is sent.
     *
     * @param forSeconds for how long new visits begin; WorkManager ends a job after ten minutes.
     * @param waitSeconds how long the gateway may wait for a round to begin; at most 30.
     * @param mayTrain whether the owner's conditions hold; asked again during training.
     */
    @Synchronized
    fun takePart(forSeconds: Long = 480, waitSeconds: Int = 25, mayTrain: () -> Boolean = { true }): Visit {
        val end = System.nanoTime() + forSeconds * 1_000_000_000
        var visit = visitIfTime(waitSeconds, mayTrain)
        while (System.nanoTime() + (visit.pauseSeconds * 1e9).toLong() < end && mayTrain()) {
            Thread.sleep((visit.pauseSeconds * 1000).toLong() + 1)
            visit = visitIfTime(waitSeconds, mayTrain)
        }
        return visit
    }

    /**
     * Fetches a finished model if there is a newer one, which may take minutes; does not throw if that fails.
     *
     * It is meant for a background job, for example once a day. What a kill or a broken connection
     * leaves is not fetched again. Rounds go on meanwhile.
     *
     * @param name as it was published, for example "model.pte".
     * @param mayGoOn asked before each part that is fetched; if it says no, the next call goes on.
     * @throws IllegalArgumentException nothing can be published under that name.
     */
    fun updateModel(name: String, mayGoOn: () -> Boolean = { true }): ModelUpdate = models.update(name, mayGoOn)

    /**
     * The finished model in use, from the disk alone; its bytes are compared with what was published.
     *
     * @return null if there is none, or its bytes have changed: [updateModel] fetches it again.
     */
    fun model(name: String): FinishedModel? = models.shelf(name).inUse()

    /** The version that was in use before it, for an app that goes back; null if there is none. */
    fun modelBefore(name: String): FinishedModel? = models.shelf(name).before()

    private fun visitIfTime(waitSeconds: Int, mayTrain: () -> Boolean): Visit {
        val early = pace.secondsLeft
        if (early > 0) return Visit(early, "it is not time yet")
        // Two processes of one app must not do the same task.
        return alone(File(state, "lock")) { visited(waitSeconds, mayTrain) }
            ?: Visit(BUSY, "another process takes part for this phone")
    }

    private fun visited(waitSeconds: Int, mayTrain: () -> Boolean): Visit = try {
        visit(waitSeconds, mayTrain)
    } catch (problem: GrpcException) {
        Visit(pace.again(), problem.message.orEmpty())
    } catch (problem: IOException) {
        Visit(pace.again(), "cannot go on: ${problem.message ?: problem.javaClass.simpleName}")
    }

    private fun visit(waitSeconds: Int, mayTrain: () -> Boolean): Visit {
        val said = mutableListOf<String>()
        if (tasks.isUnderWay) finish(said, mayTrain)?.let { return it }
        val troubles = linkedSetOf<String>()
        val met = mutableSetOf<String>()
        while (true) {
            val holdings = runs.holdings(mayTrain) { troubles += it.message.orEmpty() }
            val ready = mayTrain()
            // A run that the phone cannot join must not keep it out of the others.
            val problem = if (holdings.isEmpty()) troubles.lastOrNull().orEmpty() else ""
            val request = CheckInRequest(
                app, trainer.formats, trainer.abilities, holdings, ready, if (ready) waitSeconds else 0, problem.take(200),
            )
            val reply = gateway.checkIn(request)
            val (later, description, task) = Triple(reply.later, reply.description, reply.task)
            when {
                later != null -> return Visit(pace.later(later), words(said + troubles))
                task != null -> {
                    tasks.begin(task)
                    finish(said, mayTrain)?.let { return it }
                }
                description == null || !ready -> throw IOException("there is nothing that this phone can do")
                else -> {
                    val isNew = met.add(hex(sha256(description)))
                    if (!isNew && holdings.isEmpty()) throw IOException(AGAIN)
                    val why = if (isNew) meet(description, said) else AGAIN
                    // Tasks of other runs may come meanwhile.
                    if (why != null && holdings.isNotEmpty()) return Visit(pace.again(MEANWHILE), words(said + troubles + why))
                    why?.let { troubles += it }
                }
            }
        }
    }

    private fun words(said: List<String>) = said.joinToString("; ")

    // Gets ready for a run; why that is impossible, if it is.
    private fun meet(description: ByteArray, said: MutableList<String>): String? = try {
        said += refusing { runs.meet(description) }
        null
    } catch (refusal: Refusal) {
        refusal.message.orEmpty()
    }

    // Finishes the task; where it is not yet time to check in again, what came of it.
    private fun finish(said: MutableList<String>, mayTrain: () -> Boolean): Visit? {
        val verdict = tasks.finish(mayTrain)
        tasks.forget()
        runs.tidy()
        said += "${verdict.word} ${verdict.reason}".trim()
        val pause = pace.later(verdict.later)
        if (pause > AT_ONCE) return Visit(pause, words(said))
        Thread.sleep((pause * 1000).toLong())
        return null
    }

    companion object {
        private const val BUSY = 60.0
        private const val AT_ONCE = 1.0
        private const val MEANWHILE = 60.0
        private const val AGAIN = "the gateway describes the same run again"

        /**
         * Opens a phone's folder, which `fedhead deploy --phone` has made: phone.toml, phone.token, ca.crt.
         *
         * @param connect the HTTP client.
         * @param app program and version, for the gateway's operator.
         * @throws IOException the folder cannot be used.
         */
        fun open(folder: File, trainer: Trainer, connect: Connect, app: String = "fedhead-kotlin"): Phone =
            Phone(folder, trainer, connect, app)
    }
}

/** When the phone may call again. It is on the disk, for jobs come back in new processes. */
private class Pace(private val disk: Disk) {
    private var drawn: Double
    private var next: Long

    init {
        val kept = disk.read("pace")?.let { String(it).split(" ") }
        drawn = kept?.get(0)?.toDouble() ?: Random.nextDouble(FIRST / 2, FIRST)
        next = kept?.get(1)?.toLong() ?: 0
    }

    /** No more than was drawn: a clock that was set back must not stop the phone for years. */
    val secondsLeft: Double get() {
        val left = (next - System.currentTimeMillis()) / 1000.0
        return if (left > drawn) keep(drawn) else maxOf(left, 0.0)
    }

    /** Seconds until the next call, drawn uniformly from a window. */
    fun later(window: Later): Double {
        val (first, last) = window.minSeconds to window.maxSeconds
        if (!(first >= 0 && last >= first && last.isFinite())) {
            throw IOException("the window is $first to $last s, expected two times")
        }
        return keep((first + Random.nextDouble() * (last - first)).coerceAtMost(LONGEST_WINDOW))
    }

    /** Seconds until the next try after a failure: twice the last time, at most an hour, or less. */
    fun again(most: Double = Double.MAX_VALUE): Double {
        drawn = maxOf(drawn, minOf(2 * maxOf(drawn, SHORTEST), LONGEST))
        return wait(minOf(drawn, most))
    }

    private fun keep(seconds: Double): Double {
        drawn = seconds
        return wait(seconds)
    }

    private fun wait(seconds: Double): Double {
        next = System.currentTimeMillis() + (seconds * 1000).toLong()
        disk.write("pace", "$drawn $next".toByteArray())
        return seconds
    }

    private companion object {
        const val FIRST = 1.0
        const val SHORTEST = 0.05
        const val LONGEST = 3600.0
        const val LONGEST_WINDOW = 7 * 24 * 3600.0
    }
}
