package dev.fedhead.android

import dev.fedhead.Refusal
import dev.fedhead.trainer.Clipped
import dev.fedhead.trainer.Examples
import dev.fedhead.trainer.Model
import dev.fedhead.trainer.Trainer
import dev.fedhead.trainer.Work
import java.io.File
import org.pytorch.IValue
import org.pytorch.LiteModuleLoader
import org.pytorch.Module
import org.pytorch.Tensor

/**
 * Runs device.ptl with PyTorch's lite interpreter. The app depends on
 * org.pytorch:pytorch_android_lite, whose last release is 2.1.0.
 *
 * Its training is plain SGD: `abilities` says so, and the gateway asks for no more.
 *
 * @param size height and width of the images that the backbone takes, which the file does not say.
 */
class LiteTrainer(private val size: Int = 96) : Trainer {
    override val formats = listOf("lite")

    override val abilities = listOf("sgd", "statistics", "clip", "codec:int8", "codec:drive")

    override fun load(file: File, format: String): Model = LiteModel(LiteModuleLoader.load(file.path), size)
}

/** Every refusal of the file is an exception with the file's own text, and its head stays unchanged. */
private class LiteModel(private val module: Module, override val size: Int) : Model {
    override val fingerprint: String = fingerprintOfFile()

    private val shape = getHead()[0].toTensor().shape()

    private val numClasses: Long = shape[0]

    private val d: Long = shape[1]

    override val numFeatures = d.toInt()

    private val sizeOfImages = size.toLong()

    override fun features(pixels: ByteArray): ByteArray =
        module.runMethod("features", uint8(pixels, 1, 3, sizeOfImages, sizeOfImages)).toTensor().dataAsUnsignedByteArray

    override fun delta(work: Work): FloatArray {
        setHead(work.head)
        val examples = work.examples
        val training = work.training
        trainEpochs(examples.features, labels(examples), examples.size.toLong(), training.lr, training.epochs.toLong(), training.batchSize.toLong(), training.batchSeed)
        return headDelta()
    }

    override fun clipped(work: Work, clip: Double): Clipped {
        setHead(work.head)
        val examples = work.examples
        val training = work.training
        val (integers, within) = privateUpdate(examples.features, labels(examples), examples.size.toLong(), training.lr, training.epochs.toLong(), training.batchSize.toLong(), training.batchSeed, work.unitNorm, clip)
        return Clipped(integers.toTensor().dataAsLongArray, within.toTensor().dataAsLongArray[0] == 1L)
    }

    override fun loss(examples: Examples, head: FloatArray): Double {
        setHead(head)
        return loss(examples.features, labels(examples), examples.size.toLong())
    }

    override fun logits(examples: Examples, head: FloatArray): FloatArray =
        throw Refusal("unable", "device.ptl has no logits of features")

    override fun close() = module.destroy()

    private fun setHead(matrix: FloatArray) {
        val width = numFeatures + 1
        if (matrix.size.toLong() != numClasses * width) throw Refusal("foreign-fingerprint", "it is for $numClasses classes")
        val weight = FloatArray(matrix.size - numClasses.toInt()) { matrix[it / numFeatures * width + it % numFeatures] }
        val bias = FloatArray(numClasses.toInt()) { matrix[it * width + numFeatures] }
        setHead(weight, bias, fingerprint)
    }

    private fun labels(examples: Examples) = LongArray(examples.size) { examples.labels[it].toLong() }

    private fun setHead(weight: FloatArray, bias: FloatArray, fingerprint: String) {
        module.runMethod("set_head", float32(weight, numClasses, d), float32(bias, numClasses), IValue.from(fingerprint))
    }

    private fun trainEpochs(q: ByteArray, labels: LongArray, n: Long, lr: Double, epochs: Long, batchSize: Long, seed: Long): FloatArray =
        module.runMethod("train_epochs", uint8(q, n, d), int64(labels, n), IValue.from(lr), IValue.from(epochs), IValue.from(batchSize), IValue.from(seed)).toTensor().dataAsFloatArray

    private fun privateUpdate(q: ByteArray, labels: LongArray, n: Long, lr: Double, epochs: Long, batchSize: Long, seed: Long, unitNorm: Double, clip: Double): Array<IValue> =
        module.runMethod("private_update", uint8(q, n, d), int64(labels, n), IValue.from(lr), IValue.from(epochs), IValue.from(batchSize), IValue.from(seed), IValue.from(unitNorm), IValue.from(clip)).toTuple()

    private fun loss(q: ByteArray, labels: LongArray, n: Long): Double =
        module.runMethod("loss", uint8(q, n, d), int64(labels, n)).toDouble()

    private fun headDelta(): FloatArray =
        module.runMethod("head_delta").toTensor().dataAsFloatArray

    private fun getHead(): Array<IValue> =
        module.runMethod("get_head").toTuple()

    private fun fingerprintOfFile(): String =
        module.runMethod("fingerprint").toStr()

    private fun uint8(data: ByteArray, vararg shape: Long) = IValue.from(Tensor.fromBlobUnsigned(data, shape))

    private fun int64(data: LongArray, vararg shape: Long) = IValue.from(Tensor.fromBlob(data, shape))

    private fun float32(data: FloatArray, vararg shape: Long) = IValue.from(Tensor.fromBlob(data, shape))
}
