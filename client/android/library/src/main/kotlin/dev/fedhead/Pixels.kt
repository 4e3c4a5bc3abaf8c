package dev.fedhead

import android.graphics.Bitmap

/** A picture as the model takes it: its middle square at size x size, RGB in three planes. */
fun Bitmap.toPixels(size: Int): ByteArray {
    val side = minOf(width, height)
    val square = Bitmap.createBitmap(this, (width - side) / 2, (height - side) / 2, side, side)
    val scaled = Bitmap.createScaledBitmap(square, size, size, true)
    val colors = IntArray(size * size)
    scaled.getPixels(colors, 0, size, 0, 0, size, size)
    val pixels = ByteArray(3 * colors.size)
    for ((i, color) in colors.withIndex()) {
        pixels[i] = (color shr 16).toByte()
        pixels[i + colors.size] = (color shr 8).toByte()
        pixels[i + 2 * colors.size] = color.toByte()
    }
    return pixels
}
