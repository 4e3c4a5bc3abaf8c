package dev.fedhead

import dev.fedhead.protocol.Description
import dev.fedhead.protocol.Holding
import dev.fedhead.trainer.Model
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
        val known = descriptions()
        known.drop(MOST).forEach { old -> disk.names().filter { it.startsWith(old.id) }.forEach(disk::delete) }
        val kept = known.take(MOST)
        gateway.keep(kept.flatMap { run -> run.backbones.map { it.file.sha256 } }.toSet())
        images.keepFeatures(kept.map { it.fingerprint }.toSet())
        val others = images.others(description)
        return "met a run" + if (others > 0) ", of whose classes $others images are not" else ""
    }

    /**
     * What the phone holds for each run, as its images are now: it computes the features of new ones.
     *
     * @param onRefusal is told why the phone cannot take part in a run; it may in others.
     */
    fun holdings(onRefusal: (Refusal) -> Unit): List<Holding> = descriptions().take(MOST).mapNotNull { run ->
        try {
            val used = refusing { refreshed(run) }
            if (run.isPrivate) Holding(run.id, minOf(used.numTrain, 1), 0) else Holding(run.id, used.numTrain, used.numTest)
        } catch (refusal: Refusal) {
            onRefusal(refusal)
            null
        }
    }

    /** What a task of a run uses: images of the time when that number of examples was told. */
    fun used(run: Description, numExamples: Int, test: Boolean): Used? = lists(run).firstOrNull {
        run.isPrivate || numExamples == if (test) it.numTest else it.numTrain
    }

    /** The run's backbone, loaded. */
    fun backbone(run: Description): Model {
        model?.let { if (it.fingerprint == run.fingerprint) return it else it.close() }
        model = null
        val backbone = trainer.formats.firstNotNullOfOrNull { format -> run.backbones.find { it.format == format } }
            ?: throw Refusal("description", "there is no backbone in format ${trainer.formats.joinToString(" or ")}")
        settings.trust?.accept(backbone, run.fingerprint)
        val loaded = trainer.load(gateway.file(backbone.file), backbone.format)
        if (loaded.fingerprint != run.fingerprint) {
            loaded.close()
            throw Refusal("foreign-fingerprint", "the backbone is ${loaded.fingerprint.take(12)}")
        }
        model = loaded
        return loaded
    }

    private fun descriptions(): List<Description> =
        disk.names().filter { '.' !in it }.mapNotNull { name -> disk.read(name)?.let(Description::read) }

    // Images may come between a check-in and its task: the lists before the newest are kept, too.
    private fun refreshed(run: Description): Used {
        val now = images.used(run, settings.maxExamples)
        val before = lists(run)
        if (before.firstOrNull()?.write()?.contentEquals(now.write()) != true) {
            images.prepare(now, backbone(run))
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
