package dev.fedhead

import java.io.File
import org.json.JSONObject
import org.pytorch.IValue
import org.pytorch.LiteModuleLoader
import org.pytorch.Module
import org.pytorch.Tensor

/**
 * device.ptl on a phone: computes features once, trains its head on them, returns the change.
 *
 * Every refusal of the model (a label outside its classes, a head of another backbone, an empty
 * batch) is an exception with the model's own text, and the head stays unchanged.
 * It must not be used from several threads at once.
 *
 * @param model the file device.ptl; its card, device.ptl.json, must be beside it.
 */
class Phone(model: File) {
    private val card = JSONObject(File("${model.path}.json").readText())
    private val module: Module = LiteModuleLoader.load(model.path)

    /** Height and width of the images in pixels. */
    val size: Long = card.getLong("input_size")

    /** Bytes of one image's features. */
    val numFeatures: Long = card.getLong("num_features")

    /** Names, in the order of the labels. */
    val classes: List<String> = card.getJSONArray("classes").let { names -> List(names.length(), names::getString) }

    private val numClasses = classes.size.toLong()

    /** Features of n images; pixels are RGB in three planes, image after image. To be cached. */
    fun features(pixels: ByteArray, n: Long): ByteArray =
        module.runMethod("features", uint8(pixels, n, 3, size, size)).toTensor().dataAsUnsignedByteArray

    /** Logits of n images under the present head, numClasses per image. */
    fun logits(pixels: ByteArray, n: Long): FloatArray =
        module.runMethod("forward", uint8(pixels, n, 3, size, size)).toTensor().dataAsFloatArray

    /** Starts a round from the global head; fingerprint is that of the head's backbone. */
    fun setHead(weight: FloatArray, bias: FloatArray, fingerprint: String) {
        module.runMethod("set_head", float32(weight, numClasses, numFeatures), float32(bias, numClasses), IValue.from(fingerprint))
    }

    /** Trains on n examples; returns each epoch's mean loss. */
    fun trainEpochs(q: ByteArray, labels: LongArray, n: Long, lr: Double, epochs: Long, batchSize: Long, seed: Long): FloatArray =
        module.runMethod("train_epochs", uint8(q, n, numFeatures), int64(labels, n), IValue.from(lr), IValue.from(epochs), IValue.from(batchSize), IValue.from(seed)).toTensor().dataAsFloatArray

    /** Mean loss of the present head on n examples. */
    fun loss(q: ByteArray, labels: LongArray, n: Long): Double =
        module.runMethod("loss", uint8(q, n, numFeatures), int64(labels, n)).toDouble()

    /** The head's change since setHead, (numClasses, numFeatures + 1) row by row, bias last. */
    fun headDelta(): FloatArray =
        module.runMethod("head_delta").toTensor().dataAsFloatArray

    /** The backbone's fingerprint, 64 hex digits. */
    fun fingerprint(): String =
        module.runMethod("fingerprint").toStr()

    /** The delta in the form that the server reads; see [Safetensors]. */
    fun update(n: Long, lossBefore: Double, lossAfter: Double): ByteArray =
        Safetensors.one(
            "delta", headDelta(), longArrayOf(numClasses, numFeatures + 1),
            mapOf(
                "fingerprint" to fingerprint(),
                "num-examples" to "$n",
                "loss-before" to "$lossBefore",
                "loss-after" to "$lossAfter",
            ),
        )

    private fun uint8(data: ByteArray, vararg shape: Long) = IValue.from(Tensor.fromBlobUnsigned(data, shape))

    private fun int64(data: LongArray, vararg shape: Long) = IValue.from(Tensor.fromBlob(data, shape))

    private fun float32(data: FloatArray, vararg shape: Long) = IValue.from(Tensor.fromBlob(data, shape))
}
