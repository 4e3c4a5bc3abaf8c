/** Sums, losses and clipped updates: all that needs no model, with Python's results. */
package dev.fedhead.trainer

import dev.fedhead.Refusal
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.pow
import kotlin.math.sqrt

/** Numbers as phones.proto wants them: in row order, little-endian. */
fun bytesOf(values: FloatArray): ByteArray =
    littleEndian(4 * values.size).apply { values.forEach(::putFloat) }.array()

fun bytesOf(values: DoubleArray): ByteArray =
    littleEndian(8 * values.size).apply { values.forEach(::putDouble) }.array()

/** Whole numbers from 0: as uint32 where they fit, else as uint64. */
fun bytesOf(values: LongArray): ByteArray {
    val fits = values.all { it < 1L shl 32 }
    val bytes = littleEndian((if (fits) 4 else 8) * values.size)
    values.forEach { if (fits) bytes.putInt(it.toInt()) else bytes.putLong(it) }
    return bytes.array()
}

fun floatsOf(data: ByteArray): FloatArray {
    val buffer = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()).also(buffer::get)
}

private fun littleEndian(size: Int) = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)

/** By class, the sums of features and the count: (K, d + 1). */
fun moments(examples: Examples, numClasses: Int): LongArray {
    val d = examples.numFeatures
    val sums = LongArray(numClasses * (d + 1))
    for (i in 0 until examples.size) {
        val row = examples.labels[i] * (d + 1)
        for (j in 0 until d) sums[row + j] += examples.features[i * d + j].toLong() and 255
        sums[row + d] += 1
    }
    return sums
}

/** The upper triangle, row by row, of the sums of products of (features, 1). */
fun gram(examples: Examples): LongArray {
    val d = examples.numFeatures
    val sums = LongArray((d + 1) * (d + 2) / 2)
    val x = IntArray(d + 1)
    for (i in 0 until examples.size) {
        for (j in 0 until d) x[j] = examples.features[i * d + j].toInt() and 255
        x[d] = 1
        var at = 0
        for (a in 0..d) {
            if (x[a] != 0) for (b in a..d) sums[at + b - a] += (x[a] * x[b]).toLong()
            at += d + 1 - a
        }
    }
    return sums
}

/** Mean cross-entropy. */
fun meanLoss(logits: FloatArray, labels: IntArray): Double =
    if (labels.isEmpty()) 0.0 else losses(logits, labels, 1.0) / labels.size

/** How many predictions are right; ties go to the lower class. */
fun correct(logits: FloatArray, labels: IntArray): Int {
    val k = logits.size / labels.size
    return labels.indices.count { i ->
        (0 until k).maxByOrNull { logits[i * k + it] } == labels[i]
    }
}

/** Mean cross-entropy with logits times 2^-12, 2^-11.5, ..., 2^12; as common/temperature.py. */
fun lossesBySharpness(logits: FloatArray, labels: IntArray) =
    DoubleArray(49) { losses(logits, labels, 2.0.pow((it - 24) / 2.0)) / labels.size }

private fun losses(logits: FloatArray, labels: IntArray, sharpness: Double): Double {
    val k = logits.size / labels.size
    var total = 0.0
    for (i in labels.indices) {
        var most = Double.NEGATIVE_INFINITY
        for (c in 0 until k) most = maxOf(most, logits[i * k + c].toDouble())
        var sum = 0.0
        for (c in 0 until k) sum += exp((logits[i * k + c] - most) * sharpness)
        total += ln(sum) + sharpness * (most - logits[i * k + labels[i]])
    }
    return total
}

/**
 * An update of a private round.
 *
 * @param integers from 0 to 2 RESOLUTION.
 * @param within whether the update's norm is at most the clip.
 */
class Clipped(val integers: LongArray, val within: Boolean)

private const val RESOLUTION = 262_144.0
private const val FINE = 1_048_576.0

/** The five lines of common/privacy/integers.py: whole numbers whose exact norm is bounded. */
fun clippedIntegers(delta: FloatArray, clip: Double): Clipped {
    val peak = delta.maxOf { abs(it.toDouble()) }
    if (!peak.isFinite()) throw Refusal("not-finite", "the update has a number that is none")
    if (peak == 0.0) return Clipped(LongArray(delta.size) { RESOLUTION.toLong() }, true)
    var steps = 0L
    for (value in delta) ceil(abs(value / peak) * FINE).toLong().let { steps += it * it }
    val norm = sqrt(steps.toDouble()) / FINE
    val within = peak / clip * norm <= 1
    val factor = if (within) peak / clip * RESOLUTION else RESOLUTION / norm
    // Truncated toward zero: rounded to the nearest, the norm could exceed its bound.
    return Clipped(LongArray(delta.size) { (delta[it] / peak * factor).toLong() + RESOLUTION.toLong() }, within)
}
