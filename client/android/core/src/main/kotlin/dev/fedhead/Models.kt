package dev.fedhead

import dev.fedhead.protocol.Blob
import dev.fedhead.protocol.Model
import dev.fedhead.trainer.Stopped
import java.io.File
import java.io.IOException

/**
 * What came of one [Phone.updateModel].
 *
 * @param model to load now; null if there is none.
 * @param isNew whether this call has put it there.
 * @param problem why the newest version is not there, or why nobody knows that; null if it is there.
 */
class ModelUpdate(val model: FinishedModel?, val isNew: Boolean, val problem: String?)

/** The finished models of a phone, each on its shelf in a folder. */
internal class Models(private val folder: File, private val gateway: Gateway, private val trust: Trust?) {
    /** A model's versions on the disk. */
    fun shelf(name: String): Shelf {
        val problem = Shelf.problem(name)
        require(problem == null) { "\"$name\" cannot name a model: $problem" }
        return Shelf(folder, name)
    }

    /** Fetches the newest version, if it is not there; what was in use stays so until it is whole. */
    @Synchronized
    fun update(name: String, mayGoOn: () -> Boolean): ModelUpdate {
        val shelf = shelf(name)
        var isNew = false
        val problem = try {
            val done = alone(File(folder, ".lock")) { isNew = updated(shelf, mayGoOn) }
            if (done == null) "another process fetches models for this phone" else null
        } catch (problem: IOException) {
            problem.message ?: problem.javaClass.simpleName
        } catch (refusal: Refusal) {
            refusal.message
        } catch (_: Stopped) {
            "it was stopped; the next call goes on"
        }
        return ModelUpdate(shelf.inUse(), isNew, problem)
    }

    private fun updated(shelf: Shelf, mayGoOn: () -> Boolean): Boolean {
        val model = gateway.latest(shelf.name)
        check(model, shelf.name)
        val current = shelf.current
        val inUse = shelf.sums(current)?.let { current to it.substringBefore(" ") }
        val statement = trust?.check(model, inUse)
        if (model.version < current) {
            shelf.inUse() ?: throw IOException("version $current is damaged, and the gateway has only ${model.version}")
            return false
        }
        val sums = "${model.file.sha256} ${model.card.sha256}"
        // The app could be loading it: what is no repair must not change it.
        if (model.version == current && shelf.sums(current).let { it != null && it != sums }) {
            throw IOException("version $current is in use here with other bytes than the gateway has as that version")
        }
        val there = shelf.whole(model.version).takeIf { shelf.sums(model.version) == sums }
        val blobs = Blobs(shelf.fetched, MOST_BYTES, gateway::part)
        blobs.keep(setOf(model.file.sha256, model.card.sha256), others = 0)
        val card = there?.card?.readBytes() ?: twice { blobs.bytes(model.card, mayGoOn) }
        statement?.checkCard(card)
        val file = if (there == null) twice { blobs.file(model.file, mayGoOn) } else null
        // On the disk before anything loads the file.
        statement?.let { trust?.remember(it) }
        if (file != null) shelf.put(model.version, file, card, sums)
        shelf.use(model.version)
        shelf.tidy()
        blobs.keep(emptySet(), others = 0)
        return there == null || model.version != current
    }

    // What a kill or another gateway has left may be wrong, and not what comes now.
    private fun <T> twice(work: () -> T): T = try {
        work()
    } catch (_: WrongBytes) {
        work()
    }

    // Before a byte of it is fetched.
    private fun check(model: Model, name: String) {
        val problem = when {
            model.name != name -> "another name than $name"
            model.version !in 1..MOST_VERSIONS -> "an impossible version"
            !isSha256(model.file.sha256) || !isSha256(model.card.sha256) -> "no SHA-256"
            model.file.size !in 1..MOST_BYTES -> "a file of ${sizes(model.file, MOST_BYTES)} (256 MiB)"
            model.card.size !in 1..MOST_CARD -> "a card of ${sizes(model.card, MOST_CARD)} (8 MiB)"
            else -> return
        }
        throw IOException("the gateway's answer has $problem")
    }

    private fun sizes(blob: Blob, most: Long) = "${blob.size.toULong()} bytes, expected 1 to $most"

    private companion object {
        const val MOST_VERSIONS = 999_999_999L
        const val MOST_BYTES = 256L shl 20
        const val MOST_CARD = 8L shl 20
    }
}
