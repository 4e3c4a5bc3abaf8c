package dev.fedhead.trainer

import dev.fedhead.protocol.Training
import java.io.Closeable
import java.io.File

/** What can run backbones on this phone. */
interface Trainer {
    /** Formats of backbones, the preferred one first: "executorch", "lite", "torch". */
    val formats: List<String>

    /** What its models can do, by the words that the gateway knows. */
    val abilities: List<String>

    /**
     * Loads a backbone and checks that it computes on this phone what it must.
     *
     * @param file the bytes that the gateway named by their SHA-256.
     * @throws dev.fedhead.Refusal it does not.
     */
    fun load(file: File, format: String): Model
}

/** Examples in the order of the round: n rows of d features, and n labels. */
class Examples(val features: ByteArray, val labels: IntArray) {
    val size: Int get() = labels.size
    val numFeatures: Int get() = if (size == 0) 0 else features.size / size

    /** Those at some places, in the places' order. */
    fun at(places: IntArray): Examples {
        val d = numFeatures
        val rows = ByteArray(places.size * d)
        places.forEachIndexed { i, place -> features.copyInto(rows, i * d, place * d, (place + 1) * d) }
        return Examples(rows, IntArray(places.size) { labels[places[it]] })
    }
}

/**
 * How to train on examples; see phones.proto.
 *
 * @param head (K, d + 1) row by row, bias last: where training starts. Never changed.
 * @param correction the same shape.
 * @param preconditioner (d + 1, d + 1).
 * @param unitNorm norm that each example's features are given; 0: as they are.
 * @param mayGoOn asked between steps; if it says no, [Stopped] is thrown.
 */
class Work(
    val examples: Examples,
    val head: FloatArray,
    val training: Training,
    val correction: FloatArray? = null,
    val preconditioner: FloatArray? = null,
    val unitNorm: Double = 0.0,
    val mayGoOn: () -> Boolean = { true },
)

/** The owner's conditions do not hold any more. */
class Stopped : Exception("stopped")

/** A loaded backbone, and what trains a head on its features. One thread at a time may use it. */
interface Model : Closeable {
    /** 64 hexadecimal digits. */
    val fingerprint: String

    /** Height and width of images in pixels. */
    val size: Int

    /** Bytes of one image's features. */
    val numFeatures: Int

    /** Features of one image, RGB in three planes. */
    fun features(pixels: ByteArray): ByteArray

    /** The head's change by training, (K, d + 1). */
    fun delta(work: Work): FloatArray

    /** What a private round sends of an update. */
    fun clipped(work: Work, clip: Double): Clipped = clippedIntegers(delta(work), clip)

    /** Mean cross-entropy of a head on examples. */
    fun loss(examples: Examples, head: FloatArray): Double =
        meanLoss(logits(examples, head), examples.labels)

    /** Logits of examples, (n, K). */
    fun logits(examples: Examples, head: FloatArray): FloatArray
}
