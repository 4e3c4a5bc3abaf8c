package dev.fedhead.android

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.media.ExifInterface
import dev.fedhead.windows

/**
 * An upright image in the form that the model needs: alpha laid on white, the shorter side scaled
 * to size (bilinear, antialiased), the middle of the longer side kept, RGB in three planes.
 */
fun Bitmap.toPixels(size: Int): ByteArray {
    val opaque = onWhite()
    val side = minOf(width, height)
    val columns = windows(width, (width - side) / 2.0, side, size)
    val rows = windows(height, (height - side) / 2.0, side, size)
    // Row by row, because all pixels of a camera's image as integers are some fifty megabytes.
    val narrow = ByteArray(3 * size * height)
    val row = IntArray(width)
    for (y in 0 until height) {
        opaque.getPixels(row, 0, width, 0, y, width, 1)
        for (x in 0 until size) for (c in 0..2) {
            narrow[(y * size + x) * 3 + c] = columns[x].mix { (row[it] shr (16 - 8 * c)) and 255 }
        }
    }
    val pixels = ByteArray(3 * size * size)
    for (c in 0..2) for (y in 0 until size) for (x in 0 until size) {
        pixels[(c * size + y) * size + x] = rows[y].mix { narrow[(it * size + x) * 3 + c].toInt() and 255 }
    }
    return pixels
}

/** Turned by its EXIF orientation. For BitmapFactory, which ignores it, unlike ImageDecoder. */
fun Bitmap.upright(orientation: Int): Bitmap {
    val matrix = Matrix()
    when (orientation) {
        ExifInterface.ORIENTATION_FLIP_HORIZONTAL -> matrix.setScale(-1f, 1f)
        ExifInterface.ORIENTATION_ROTATE_180 -> matrix.setRotate(180f)
        ExifInterface.ORIENTATION_FLIP_VERTICAL -> matrix.setScale(1f, -1f)
        ExifInterface.ORIENTATION_TRANSPOSE -> matrix.apply { setRotate(90f); postScale(-1f, 1f) }
        ExifInterface.ORIENTATION_ROTATE_90 -> matrix.setRotate(90f)
        ExifInterface.ORIENTATION_TRANSVERSE -> matrix.apply { setRotate(-90f); postScale(-1f, 1f) }
        ExifInterface.ORIENTATION_ROTATE_270 -> matrix.setRotate(-90f)
        else -> return this
    }
    return Bitmap.createBitmap(this, 0, 0, width, height, matrix, false)
}

private fun Bitmap.onWhite(): Bitmap {
    // Drawing also reduces 16 bits per colour to eight.
    val opaque = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
    Canvas(opaque).run {
        drawColor(Color.WHITE)
        drawBitmap(this@onWhite, 0f, 0f, null)
    }
    return opaque
}
