package dev.fedhead.android

import dev.fedhead.Refusal
import dev.fedhead.trainer.ALL_ABILITIES
import dev.fedhead.trainer.Examples
import dev.fedhead.trainer.Model
import dev.fedhead.trainer.StepModel
import dev.fedhead.trainer.Trainer
import dev.fedhead.trainer.Work
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** Runs device.pte with ExecuTorch. The app depends on org.pytorch:executorch-android. */
class ExecutorchTrainer : Trainer {
    override val formats = listOf("executorch")

    override val abilities = ALL_ABILITIES

    override fun load(file: File, format: String): Model = ExecutorchModel(Module.load(file.path))
}

private class ExecutorchModel(private val module: Module) : StepModel() {
    override val fingerprint: String = module.execute("fingerprint")[0].toStr()

    private val sizeOfImages: Long = module.execute("input_size")[0].toInt()

    private val d: Long = module.execute("num_features")[0].toInt()

    private val mostRows: Long = module.execute("most_rows")[0].toInt()

    override val size = sizeOfImages.toInt()

    override val numFeatures = d.toInt()

    init {
        // Heads trained on other features must not be averaged.
        val (pixels, expected) = module.execute("probe").map { it.toTensor().dataAsUnsignedByteArray }
        if (!features(pixels).contentEquals(expected)) {
            module.destroy()
            throw Refusal("foreign-fingerprint", "this phone computes other features than the training side")
        }
    }

    override fun features(pixels: ByteArray): ByteArray =
        module.execute("features", uint8(pixels, 1, 3, sizeOfImages, sizeOfImages))[0].toTensor().dataAsUnsignedByteArray

    override fun logits(examples: Examples, head: FloatArray): FloatArray {
        val width = d + 1
        val k = head.size / width
        val parts = parts(examples).map { part ->
            val n = part.size.toLong()
            module.execute("predict", uint8(part.features, n, d), float32(head, k, width))[0].toTensor().dataAsFloatArray
        }
        return parts.fold(FloatArray(0), FloatArray::plus)
    }

    override fun gradient(batch: Examples, matrix: FloatArray, work: Work): FloatArray {
        val sum = FloatArray(matrix.size)
        for (part in parts(batch)) {
            val share = part.size.toFloat() / batch.size
            direction(part, matrix, work).forEachIndexed { i, value -> sum[i] += share * value }
        }
        return sum
    }

    override fun close() = module.destroy()

    // The method's step with all terms and the rate 0: its velocity is then the gradient, and batches
    // of more rows than it takes can be put together.
    private fun direction(part: Examples, matrix: FloatArray, work: Work): FloatArray {
        val n = part.size.toLong()
        val width = d + 1
        val k = matrix.size / width
        val labels = LongArray(part.size) { part.labels[it].toLong() }
        val zeros = FloatArray(matrix.size)
        val settings = floatArrayOf(0f, 0f, 0f, 0f, work.unitNorm.toFloat())
        val square = work.preconditioner
        val results = if (square == null) {
            module.execute("train_step", uint8(part.features, n, d), int64(labels, n), float32(matrix, k, width), float32(zeros, k, width), float32(matrix, k, width), float32(zeros, k, width), float32(settings, 5))
        } else {
            module.execute("train_step_preconditioned", uint8(part.features, n, d), int64(labels, n), float32(matrix, k, width), float32(zeros, k, width), float32(matrix, k, width), float32(zeros, k, width), float32(settings, 5), float32(square, width, width))
        }
        return results[1].toTensor().dataAsFloatArray
    }

    private fun parts(examples: Examples): List<Examples> {
        val most = mostRows.toInt()
        return (0 until examples.size step most).map { first ->
            examples.at(IntArray(minOf(most, examples.size - first)) { first + it })
        }
    }

    private fun uint8(data: ByteArray, vararg shape: Long) = EValue.from(Tensor.fromBlobUnsigned(data, shape))

    private fun int64(data: LongArray, vararg shape: Long) = EValue.from(Tensor.fromBlob(data, shape))

    private fun float32(data: FloatArray, vararg shape: Long) = EValue.from(Tensor.fromBlob(data, shape))
}
