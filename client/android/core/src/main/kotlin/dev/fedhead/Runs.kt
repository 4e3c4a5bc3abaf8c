package dev.fedhead

import dev.fedhead.protocol.Description
import dev.fedhead.protocol.GrpcException
import dev.fedhead.protocol.Holding
import dev.fedhead.trainer.Model
import dev.fedhead.trainer.Stopped
import dev.fedhead.trainer.Trainer
import java.io.File

/** The runs that the phone has met: runs/ID and runs/ID.used, and their loaded backbone. */
internal class Runs(
    state: File,
    private val settings: Settings,
    private val trainer: Trainer,
    private val gateway: Gateway,
    private val images: Images,
) {
    private val disk = Disk(File(state, "runs"))
    private var model: Model? = null

    /** A run's description, if the phone has met it. */
    fun description(id: String): Description? = disk.read(id)?.let(Description::read)

    /** Gets ready for a run: its backbone. Gives words for the app's log. */
    fun meet(message: ByteArray): String {
        val description = Description.read(message)
        check(description)
        backbone(description)
        disk.write(description.id, message)
        disk.delete("${description.id}.0")
        tidy()
        val others = images.others(description)
        return "met a run" + if (others > 0) ", of whose classes $others images are not" else ""
    }

    /** Frees the disk of what no run needs that the phone met lately. */
    fun tidy() {
        val known = descriptions()
        known.drop(MOST).forEach { forget(it.id) }
        val kept = known.take(MOST)
        gateway.blobs.keep(kept.flatMap { run -> run.backbones.map { it.file.sha256 } }.toSet())
        images.keepFeatures(kept.map { it.fingerprint }.toSet())
    }

    /**
     * What the phone holds for each run, as its images are now: it computes the features of new ones.
     *
     * @param mayTrain asked before each image; if it says no, the phone holds what it held before.
     * @param onRefusal is told why the phone cannot take part in a run; it may in others.
     */
    fun holdings(mayTrain: () -> Boolean, onRefusal: (Refusal) -> Unit): List<Holding> =
        descriptions().take(MOST).mapNotNull { run ->
            try {
                refusing { refreshed(run, mayTrain) }?.let { holding(run, it) }
            } catch (refusal: Refusal) {
                onRefusal(refusal)
                null
            } catch (problem: GrpcException) {
                // A run of the past, whose backbone was lost here: the others go on.
                if (problem.code != GrpcException.NOT_FOUND) throw problem
                forget(run.id)
                null
            }
        }

    private fun holding(run: Description, used: Used) =
        if (run.isPrivate) Holding(run.id, minOf(used.numTrain, 1), 0) else Holding(run.id, used.numTrain, used.numTest)

    /** What a task of a run uses: images of the time when that number of examples was told. */
    fun used(run: Description, numExamples: Int, test: Boolean): Used? = lists(run).firstOrNull {
        run.isPrivate || numExamples == if (test) it.numTest else it.numTrain
    }

    /** The run's backbone, loaded. Its signature is checked each time, for it may have expired. */
    fun backbone(run: Description): Model {
        val backbone = trainer.formats.firstNotNullOfOrNull { format -> run.backbones.find { it.format == format } }
            ?: throw Refusal("description", "there is no backbone in format ${trainer.formats.joinToString(" or ")}")
        try {
            settings.trust?.accept(backbone, run.fingerprint)
        } catch (refusal: Refusal) {
            // It may have been signed again: the gateway describes a run that the phone does not hold.
            forget(run.id)
            throw refusal
        }
        model?.let { if (it.fingerprint == run.fingerprint) return it else it.close() }
        model = null
        val loaded = trainer.load(gateway.blobs.file(backbone.file), backbone.format)
        if (loaded.fingerprint != run.fingerprint) {
            loaded.close()
            throw Refusal("foreign-fingerprint", "the backbone is ${loaded.fingerprint.take(12)}")
        }
        model = loaded
        return loaded
    }

    private fun descriptions(): List<Description> =
        disk.names().filter { '.' !in it }.mapNotNull { name -> disk.read(name)?.let(Description::read) }

    private fun forget(id: String) = disk.names().filter { it.startsWith(id) }.forEach(disk::delete)

    // Images may come between a check-in and its task: the lists before the newest are kept, too.
    private fun refreshed(run: Description, mayTrain: () -> Boolean): Used? {
        val now = images.used(run, settings.maxExamples)
        val before = lists(run)
        if (before.firstOrNull()?.write()?.contentEquals(now.write()) != true) {
            if (!mayTrain()) return before.firstOrNull()
            try {
                images.prepare(now, backbone(run), mayTrain)
            } catch (_: Stopped) {
                return before.firstOrNull()
            }
            before.take(LISTS - 1).forEachIndexed { i, list -> disk.write("${run.id}.${i + 1}", list.write()) }
            disk.write("${run.id}.0", now.write())
        }
        return now
    }

    private fun lists(run: Description) = (0 until LISTS).mapNotNull { i -> disk.read("${run.id}.$i")?.let(Used::read) }

    private fun check(run: Description) {
        val problem = when {
            run.classes.size !in 2..16_384 || run.classes.distinct().size != run.classes.size -> "classes"
            run.testFraction.isNaN() || run.testFraction < 0 || run.testFraction >= 1 -> "test fraction"
            run.client < 0 -> "client"
            run.maxExamples < 0 -> "max examples"
            else -> return
        }
        throw Refusal("description", "its description has impossible $problem")
    }

    private companion object {
        const val MOST = 8
        const val LISTS = 4
    }
}
