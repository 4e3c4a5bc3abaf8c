/** What makes an update smaller, with the bits of common/codecs. */
package dev.fedhead.trainer

import dev.fedhead.Seeding
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max

/**
 * Encodes finite numbers.
 *
 * @param codec "none", "int8" or "drive".
 * @param width numbers in a row.
 */
fun encoded(values: FloatArray, codec: String, width: Int, seed: Long): ByteArray = when (codec) {
    "int8" -> int8(values, width, seed)
    "drive" -> drive(values, width, seed)
    else -> bytesOf(values)
}

private const val MOST = 127f

// Whole multiples of a row's scale; a number goes up with the chance of its fraction.
private fun int8(values: FloatArray, width: Int, seed: Long): ByteArray {
    val rows = values.size / width
    val payload = ByteBuffer.allocate(rows * (4 + width)).order(ByteOrder.LITTLE_ENDIAN)
    for (row in 0 until rows) {
        val scale = largest(values, row * width, width) / MOST
        payload.putFloat(4 * row, scale)
        if (scale == 0f) continue
        for (at in row * width until (row + 1) * width) {
            val draw = (Seeding.word(seed, at.toLong()) ushr 40).toFloat() * HALF_24
            val x = values[at] / scale
            val down = floor(x)
            val code = (down + if (draw < x - down) 1f else 0f).coerceIn(-MOST, MOST)
            payload.put(4 * rows + at, code.toInt().toByte())
        }
    }
    return payload.array()
}

private const val HALF_24 = 1f / (1 shl 24)
private const val WORD = 64 // signs that one random word holds

// The signs of a randomly rotated row, and one number. arXiv 2105.08339.
private fun drive(values: FloatArray, width: Int, seed: Long): ByteArray {
    val rows = values.size / width
    var size = WORD
    while (size < width) size *= 2
    val payload = ByteBuffer.allocate(rows * (4 + size / 8)).order(ByteOrder.LITTLE_ENDIAN)
    for (row in 0 until rows) {
        val most = largest(values, row * width, width)
        if (most == 0f) continue
        // The scale is taken out as a power of two, so that no sum leaves float32.
        val exponent = Math.getExponent(most.toDouble()) + 1
        val y = FloatArray(size) { if (it < width) Math.scalb(values[row * width + it], -exponent) else 0f }
        val squares = DoubleArray(size) { y[it].toDouble() * y[it] }
        rotate(y, Seeding.word(seed, row.toLong()))
        val bits = 4 * rows + row * (size / 8)
        for (i in 0 until size) {
            if (y[i] < 0) payload.put(bits + i / 8, (payload.get(bits + i / 8).toInt() or (1 shl i % 8)).toByte())
        }
        val ratio = (folded(squares) / folded(DoubleArray(size) { abs(y[it]).toDouble() })).toFloat()
        payload.putFloat(4 * row, Math.scalb(ratio, exponent))
    }
    return payload.array()
}

private fun largest(values: FloatArray, first: Int, width: Int): Float {
    var most = 0f
    for (i in first until first + width) most = max(most, abs(values[i]))
    return most
}

// H S ... H S x, with signs S and Sylvester's matrix H.
private fun rotate(row: FloatArray, state: Long) {
    val words = row.size / WORD
    val passes = if (row.size > 256) 3 else if (row.size == 256) 4 else 5
    for (pass in 0 until passes) {
        for (i in 0 until words) {
            val bits = Seeding.word(state, (pass * words + i).toLong())
            for (j in 0 until WORD) if (bits ushr j and 1 == 1L) row[i * WORD + j] = -row[i * WORD + j]
        }
        hadamard(row)
    }
}

// The order of the strides is part of the bits.
private fun hadamard(row: FloatArray) {
    var stride = 1
    while (stride < row.size) {
        for (start in row.indices step 2 * stride) for (i in start until start + stride) {
            val (a, b) = row[i] to row[i + stride]
            row[i] = a + b
            row[i + stride] = a - b
        }
        stride *= 2
    }
}

// A sum by halves, in the order of common/codecs.
private fun folded(terms: DoubleArray): Double {
    var half = terms.size / 2
    while (half > 0) {
        for (i in 0 until half) terms[i] += terms[i + half]
        half /= 2
    }
    return terms[0]
}
