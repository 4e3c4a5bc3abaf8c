package dev.fedhead

import dev.fedhead.protocol.Description
import dev.fedhead.trainer.Examples
import dev.fedhead.trainer.Model
import java.io.File
import java.io.FileOutputStream
import java.net.URLDecoder
import java.net.URLEncoder
import java.text.Normalizer

/** An image of the owner's: the SHA-256 of its pixels, and its class. */
internal class Image(val sha256: String, val className: String)

/** Images that a run uses, in the round's order, and which of them are kept to test with. */
internal class Used(val images: List<String>, val labels: List<Int>, val isTest: BooleanArray) {
    val numTest: Int get() = isTest.count { it }
    val numTrain: Int get() = images.size - numTest

    /** Places of the examples of the train or of the test part. */
    fun places(test: Boolean): List<Int> = images.indices.filter { isTest[it] == test }

    fun write(): ByteArray =
        images.indices.joinToString("\n") { "${images[it]} ${labels[it]} ${if (isTest[it]) 1 else 0}" }.toByteArray()

    companion object {
        fun read(data: ByteArray): Used {
            val rows = String(data).lines().filter { it.isNotEmpty() }.map { it.split(" ") }
            return Used(rows.map { it[0] }, rows.map { it[1].toInt() }, BooleanArray(rows.size) { rows[it][2] == "1" })
        }
    }
}

/**
 * The owner's images, pixels/CLASS/SHA256, and their features, features/FINGERPRINT.
 *
 * Nothing of them ever leaves the phone but what a task asks for.
 */
internal class Images(state: File) {
    private val pixels = File(state, "pixels")
    private val features = File(state, "features")

    /** Keeps an image; the same pixels of the same class are one image. */
    fun add(image: ByteArray, className: String) {
        require(sideOf(image) > 0) { "${image.size} bytes are no square image of three planes" }
        require(className.isNotEmpty()) { "an image needs the name of a class" }
        val file = File(File(pixels, URLEncoder.encode(composed(className), "UTF-8")), hex(sha256(image)))
        if (!file.exists()) replace(file, image)
    }

    /** All images of some classes, by class and then by name, as a device has them. */
    private fun of(classes: List<String>): List<Image> {
        val folders = pixels.listFiles().orEmpty().associateBy { URLDecoder.decode(it.name, "UTF-8") }
        return folders.keys.filter { it in classes }.sortedWith(byCodePoints).flatMap { name ->
            folders.getValue(name).list().orEmpty().filter { !it.startsWith(".") }.sorted().map { Image(it, name) }
        }
    }

    /** Number of images of no class of a run, which it leaves out. */
    fun others(run: Description): Int {
        val classes = run.classes.map(::composed)
        return pixels.listFiles().orEmpty().filter { URLDecoder.decode(it.name, "UTF-8") !in classes }
            .sumOf { folder -> folder.list().orEmpty().count { !it.startsWith(".") } }
    }

    /** What a run uses of them as they are now. */
    fun used(run: Description, maxExamples: Int): Used {
        val classes = run.classes.map(::composed)
        val found = of(classes)
        val limit = listOf(maxExamples, run.maxExamples).filter { it > 0 }.minOrNull() ?: 0
        val images = evenly(found.size, limit).map { found[it] }
        val labels = images.map { classes.indexOf(it.className) }
        return Used(images.map { it.sha256 }, labels, testPart(labels, run.testFraction, run.seed, run.client))
    }

    /** Features of images, computed where they are not kept; those of a part of a run, in its order. */
    fun examples(used: Used, test: Boolean, model: Model): Examples {
        val known = Features(File(features, model.fingerprint), model.numFeatures)
        val places = used.places(test)
        val rows = ByteArray(places.size * model.numFeatures)
        places.forEachIndexed { i, place ->
            known.of(used.images[place]) { compute(it, model) }.copyInto(rows, i * model.numFeatures)
        }
        return Examples(rows, IntArray(places.size) { used.labels[places[it]] })
    }

    /** Computes what is missing. */
    fun prepare(used: Used, model: Model) {
        val known = Features(File(features, model.fingerprint), model.numFeatures)
        used.images.forEach { image -> known.of(image) { compute(it, model) } }
    }

    /** Forgets the features of all backbones but some. */
    fun keepFeatures(fingerprints: Set<String>) =
        features.listFiles().orEmpty().filter { it.name !in fingerprints }.forEach { it.delete() }

    private fun compute(image: String, model: Model): ByteArray {
        val file = pixels.listFiles().orEmpty().map { File(it, image) }.firstOrNull { it.isFile }
            ?: throw Refusal("images", "an image was removed during a round")
        return model.features(scaled(file.readBytes(), model.size)).also {
            if (it.size != model.numFeatures) throw Refusal("foreign-fingerprint", "it gives ${it.size} features")
        }
    }

    private companion object {
        /** As Python has names of classes. */
        fun composed(name: String): String = Normalizer.normalize(name, Normalizer.Form.NFC)

        // Python's order, which differs from Java's beyond the first 65,536 characters.
        val byCodePoints = Comparator<String> { a, b ->
            val (left, right) = a.codePoints().toArray() to b.codePoints().toArray()
            left.indices.firstOrNull { it >= right.size || left[it] != right[it] }
                ?.let { if (it >= right.size) 1 else left[it].compareTo(right[it]) } ?: left.size.compareTo(right.size)
        }
    }
}

/**
 * One backbone's features, appended as they are computed: SHA-256 of the image, features, check.
 *
 * A record that was cut off or changed counts as missing.
 */
private class Features(private val file: File, private val numFeatures: Int) {
    private val rows = HashMap<String, ByteArray>()
    private val record = IMAGE + numFeatures + CHECK

    init {
        if (file.isFile) {
            val data = file.readBytes()
            for (first in 0..data.size - record step record) {
                val content = data.copyOfRange(first, first + record - CHECK)
                val check = data.copyOfRange(first + record - CHECK, first + record)
                if (check(content).contentEquals(check)) {
                    rows[hex(content.copyOf(IMAGE))] = content.copyOfRange(IMAGE, content.size)
                }
            }
            // What a kill has cut off would shift all records after it.
            if (data.size % record != 0) replace(file, data.copyOf(data.size - data.size % record))
        }
    }

    fun of(image: String, compute: (String) -> ByteArray): ByteArray = rows.getOrPut(image) {
        compute(image).also { row ->
            file.parentFile.mkdirs()
            val content = ByteArray(IMAGE) { image.substring(2 * it, 2 * it + 2).toInt(16).toByte() } + row
            FileOutputStream(file, true).use { it.write(content + check(content)) }
        }
    }

    private fun check(content: ByteArray) = sha256(content).copyOf(CHECK)

    private companion object {
        const val IMAGE = 32
        const val CHECK = 8
    }
}
