package dev.fedhead

import java.io.File
import java.io.IOException

/**
 * A finished model on the phone, whose bytes are those that were published.
 *
 * @param file what the app loads.
 * @param card about it, as JSON: classes, input size, normalization, ...
 */
class FinishedModel(val version: Int, val file: File, val card: File)

/**
 * The versions of a finished model on the phone.
 *
 *     current            the number of the version in use, as text
 *     VERSION/NAME       its file
 *     VERSION/card.json  its card
 *     VERSION/.sums      the SHA-256 of both; without it a version counts as missing
 *     .fetched           what has come of the next one
 */
internal class Shelf(models: File, val name: String) {
    private val folder = File(models, name)

    /** The folder of what has come of the next version. */
    val fetched = File(folder, ".fetched")

    /** The version in use; 0 if there is none. */
    val current: Long get() = numbered(File(folder, "current").takeIf { it.isFile }?.readText()?.trim().orEmpty()) ?: 0

    /** The version in use, if it is undamaged. */
    fun inUse(): FinishedModel? = whole(current)

    /** The version before it, if it is undamaged. */
    fun before(): FinishedModel? = numberBefore()?.let(::whole)

    /** The SHA-256 of a version's file and of its card, with a space between; null if it is not there. */
    fun sums(version: Long): String? = disk(version).read(SUMS)?.let { String(it) }

    /** A version, if it is there and undamaged. */
    fun whole(version: Long): FinishedModel? {
        val (file, card) = sums(version)?.split(" ") ?: return null
        val found = FinishedModel(version.toInt(), File(place(version), name), File(place(version), CARD))
        return try {
            found.takeIf { sha256(found.file) == file && sha256(found.card) == card }
        } catch (_: IOException) {
            null
        }
    }

    /**
     * Puts a version there, or repairs it: after a kill its old files are there or its new ones.
     *
     * @param file is moved.
     */
    fun put(version: Long, file: File, card: ByteArray, sums: String) {
        val place = place(version).apply { mkdirs() }
        if (sums(version) != sums) disk(version).delete(SUMS)
        move(file, File(place, name))
        replace(File(place, CARD), card)
        disk(version).write(SUMS, sums.toByteArray())
        sync(folder)
    }

    /** Makes a version the current one. */
    fun use(version: Long) {
        if (version != current) replace(File(folder, "current"), "$version\n".toByteArray())
    }

    /** Removes all versions but the current one and the one before it. */
    fun tidy() {
        val kept = setOf(current, numberBefore())
        for (version in versions().filter { it !in kept }) {
            // A half-removed folder must not look like a version.
            disk(version).delete(SUMS)
            place(version).deleteRecursively()
        }
    }

    private fun numberBefore(): Long? = versions().filter { it < current && sums(it) != null }.maxOrNull()

    private fun versions(): List<Long> = folder.list().orEmpty().mapNotNull(::numbered)

    private fun place(version: Long) = File(folder, "$version")

    private fun disk(version: Long) = Disk(place(version))

    companion object {
        private const val CARD = "card.json"
        private const val SUMS = ".sums"

        private fun numbered(text: String): Long? = text.takeIf { Regex("[1-9][0-9]{0,8}").matches(it) }?.toLong()

        /** Whether a model's name can be a folder's and a file's beside what is there. */
        fun canName(name: String): Boolean =
            Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}").matches(name) && name !in setOf("current", CARD)
    }
}
