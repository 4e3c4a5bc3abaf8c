package dev.fedhead.trainer

import dev.fedhead.Refusal
import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import kotlin.math.sqrt

/**
 * Trains in plain Kotlin; what computes the features is the app's.
 *
 * Of a backbone for torch, which no Java runtime loads, it reads how trainers see the features.
 *
 * @param size height and width of the images that `compute` takes.
 * @param compute one image's features, from its RGB in three planes.
 */
class SoftmaxTrainer(private val size: Int, private val compute: (ByteArray) -> ByteArray) : Trainer {
    override val formats = listOf("torch")

    override val abilities = ALL_ABILITIES

    override fun load(file: File, format: String): Model = SoftmaxModel(TorchBackbone(file), size, compute)
}

/** What a gateway may ask of a [StepModel]. */
val ALL_ABILITIES = listOf(
    "sgd", "momentum", "weight-decay", "mu", "correction", "preconditioner", "adam", "adamw", "statistics",
    "evaluate", "clip", "codec:int8", "codec:drive",
)

private class SoftmaxModel(
    private val backbone: TorchBackbone,
    override val size: Int,
    private val compute: (ByteArray) -> ByteArray,
) : StepModel() {
    override val fingerprint = backbone.fingerprint

    override val numFeatures = backbone.gain.size

    override fun features(pixels: ByteArray): ByteArray = compute(pixels)

    override fun logits(examples: Examples, head: FloatArray) = logits(seen(examples, 0.0), examples.size, head)

    override fun gradient(batch: Examples, matrix: FloatArray, work: Work): FloatArray {
        val width = numFeatures + 1
        val x = seen(batch, work.unitNorm)
        val residual = logits(x, batch.size, matrix)
        val k = matrix.size / width
        for (i in 0 until batch.size) {
            var most = Float.NEGATIVE_INFINITY
            for (c in 0 until k) most = maxOf(most, residual[i * k + c])
            val terms = DoubleArray(k) { exp((residual[i * k + it] - most).toDouble()) }
            val sum = terms.sum()
            for (c in 0 until k) residual[i * k + c] = (terms[c] / sum - if (c == batch.labels[i]) 1 else 0).toFloat()
        }
        val sums = DoubleArray(matrix.size)
        for (i in 0 until batch.size) for (c in 0 until k) {
            val r = residual[i * k + c].toDouble()
            for (j in 0 until width) sums[c * width + j] += r * x[i * width + j]
        }
        val gradient = FloatArray(matrix.size) { (sums[it] / batch.size).toFloat() }
        return work.preconditioner?.let { product(gradient, it, width) } ?: gradient
    }

    override fun close() = Unit

    // (n, d + 1), features as trainers see them and a 1; or scaled to a norm, and a 0.
    private fun seen(examples: Examples, unitNorm: Double): FloatArray {
        val d = numFeatures
        val x = FloatArray(examples.size * (d + 1))
        for (i in 0 until examples.size) {
            val row = i * (d + 1)
            var squares = 0.0
            for (j in 0 until d) {
                val q = examples.features[i * d + j].toInt() and 255
                x[row + j] = (q - backbone.center[j]) * backbone.gain[j]
                squares += x[row + j].toDouble() * x[row + j]
            }
            x[row + d] = if (unitNorm > 0) 0f else 1f
            val factor = if (squares > 0) (unitNorm / sqrt(squares)).toFloat() else 0f
            if (unitNorm > 0) for (j in 0 until d) x[row + j] *= factor
        }
        return x
    }

    private fun logits(x: FloatArray, n: Int, matrix: FloatArray): FloatArray {
        val width = numFeatures + 1
        val k = matrix.size / width
        return FloatArray(n * k) { at ->
            var sum = 0.0
            for (j in 0 until width) sum += x[at / k * width + j].toDouble() * matrix[at % k * width + j]
            sum.toFloat()
        }
    }
}

private fun product(rows: FloatArray, square: FloatArray, width: Int): FloatArray {
    val sums = DoubleArray(rows.size)
    for (row in 0 until rows.size / width) for (i in 0 until width) {
        val value = rows[row * width + i].toDouble()
        for (j in 0 until width) sums[row * width + j] += value * square[i * width + j]
    }
    return FloatArray(rows.size) { sums[it].toFloat() }
}

/** Of a backbone's safetensors file: the fingerprint, and x = gain (q - center). */
private class TorchBackbone(file: File) {
    val fingerprint: String
    val gain: FloatArray
    val center: FloatArray

    init {
        RandomAccessFile(file, "r").use { from ->
            val length = ByteArray(8).also(from::readFully).let { ByteBuffer.wrap(it).order(ByteOrder.LITTLE_ENDIAN).long }
            if (length !in 1..MOST) throw Refusal("foreign-fingerprint", "not a backbone for torch")
            val header = String(ByteArray(length.toInt()).also(from::readFully))
            fingerprint = Regex("\"fingerprint\":\"([0-9a-f]{64})\"").find(header)?.groupValues?.get(1)
                ?: throw Refusal("foreign-fingerprint", "it has no fingerprint")
            val of = if ("\"basis\":" in header) "basis.affine." else ""
            gain = from.tensor("${of}gain", header, length)
            center = from.tensor("${of}center", header, length)
        }
    }

    private fun RandomAccessFile.tensor(name: String, header: String, length: Long): FloatArray {
        val found = Regex("\"${Regex.escape(name)}\":\\{[^}]*\"data_offsets\":\\[(\\d+),(\\d+)]").find(header)
            ?: throw Refusal("foreign-fingerprint", "it has no $name")
        val (first, end) = found.destructured
        seek(8 + length + first.toLong())
        return floatsOf(ByteArray((end.toLong() - first.toLong()).toInt()).also(::readFully))
    }

    private companion object {
        const val MOST = 1L shl 20
    }
}
