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
    fun sums(version: Long): String? = disk(version).read(SUMS)?.let { String(it) }?.takeIf(SUMS_FORM::matches)

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

    /** Makes a version the current one; the one before it is the one that was current until now. */
    fun use(version: Long) {
        val before = current
        if (version == before) return
        // A killed update had put these there, and nobody has used them.
        versions().filter { it > before && it != version }.forEach(::remove)
        replace(File(folder, "current"), "$version\n".toByteArray())
    }

    /** Removes all versions but the current one and the one before it. */
    fun tidy() {
        val kept = setOf(current, numberBefore())
        versions().filter { it !in kept }.forEach(::remove)
    }

    private fun remove(version: Long) {
        // A half-removed folder must not look like a version.
        disk(version).delete(SUMS)
        place(version).deleteRecursively()
    }

    private fun numberBefore(): Long? = versions().filter { it < current && sums(it) != null }.maxOrNull()

    private fun versions(): List<Long> = folder.list().orEmpty().mapNotNull(::numbered)

    private fun place(version: Long) = File(folder, "$version")

    private fun disk(version: Long) = Disk(place(version))

    companion object {
        private const val CARD = "card.json"
        private const val SUMS = ".sums"
        private val NAME = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
        private val TAKEN = setOf(CARD, "artifact.json", "signed")
        private val SUMS_FORM = Regex("[0-9a-f]{64} [0-9a-f]{64}")

        private fun numbered(text: String): Long? = text.takeIf { Regex("[1-9][0-9]{0,8}").matches(it) }?.toLong()

        /** Why a name can be no model's; null if it can. */
        fun problem(name: String): String? = when {
            name in TAKEN -> "each version has such a file of its own"
            !NAME.matches(name) -> "a letter or digit, then at most 99 letters, digits, '.', '_' or '-'"
            else -> null
        }
    }
}
