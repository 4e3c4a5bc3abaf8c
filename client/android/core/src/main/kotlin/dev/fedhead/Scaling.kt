package dev.fedhead

import kotlin.math.abs
import kotlin.math.roundToInt
import kotlin.math.sqrt

/** The old pixels that make one new pixel: the first of them, and the weight of each. */
class Window(val first: Int, val weights: DoubleArray) {
    inline fun mix(value: (Int) -> Int): Byte {
        var sum = 0.0
        for (k in weights.indices) sum += weights[k] * value(first + k)
        return sum.roundToInt().toByte()
    }
}

/** Triangles two new pixels wide, or two old pixels wide if the image is enlarged. */
fun windows(length: Int, start: Double, side: Int, size: Int) = List(size) { i ->
    val step = side.toDouble() / size
    val reach = maxOf(step, 1.0)
    val center = start + (i + 0.5) * step
    val first = maxOf((center - reach + 0.5).toInt(), 0)
    val end = minOf((center + reach + 0.5).toInt(), length)
    val raw = DoubleArray(end - first) { k -> maxOf(0.0, 1 - abs(first + k + 0.5 - center) / reach) }
    Window(first, DoubleArray(raw.size) { raw[it] / raw.sum() })
}

/** Height and width of a square image in three planes; 0 if the bytes are none. */
internal fun sideOf(pixels: ByteArray): Int {
    val side = sqrt(pixels.size / 3.0).roundToInt()
    return if (3 * side * side == pixels.size) side else 0
}

/** A square image in three planes, scaled to another size (bilinear, antialiased). */
internal fun scaled(pixels: ByteArray, size: Int): ByteArray {
    val side = sideOf(pixels)
    if (side == size) return pixels
    val windows = windows(side, 0.0, side, size)
    val narrow = ByteArray(3 * side * size)
    for (row in 0 until 3 * side) for (x in 0 until size) {
        narrow[row * size + x] = windows[x].mix { pixels[row * side + it].toInt() and 255 }
    }
    val scaled = ByteArray(3 * size * size)
    for (plane in 0 until 3) for (y in 0 until size) for (x in 0 until size) {
        scaled[(plane * size + y) * size + x] =
            windows[y].mix { narrow[(plane * side + it) * size + x].toInt() and 255 }
    }
    return scaled
}
