package dev.fedhead.sample

import android.graphics.ImageDecoder
import android.media.ExifInterface
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts.GetMultipleContents
import dev.fedhead.Phone
import dev.fedhead.toPixels
import dev.fedhead.upright
import java.io.File
import kotlin.concurrent.thread

/**
 * Has a button for each class that takes images from the gallery, and one that trains on them.
 *
 * device.ptl and device.ptl.json are in the app's assets. The update is written to the app's files,
 * and your own app sends it from there.
 */
class MainActivity : ComponentActivity() {
    private val phone by lazy { Phone(asset("device.ptl").also { asset("device.ptl.json") }) }
    private val features = mutableListOf<ByteArray>()
    private val labels = mutableListOf<Long>()
    private val status by lazy { TextView(this) }
    private var label = 0L

    private val pick = registerForActivityResult(GetMultipleContents()) { images -> inBackground { add(images) } }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        phone.classes.forEachIndexed { i, name ->
            column.addView(button(name) { label = i.toLong(); pick.launch("image/*") })
        }
        column.addView(button("Train") { inBackground { train() } })
        column.addView(status)
        setContentView(column)
    }

    private fun add(images: List<Uri>) {
        val of = label
        for (image in images) {
            features += phone.features(decoded(image).toPixels(phone.size.toInt()), 1)
            labels += of
        }
        show("${labels.size} images")
    }

    private fun train() {
        val n = labels.size.toLong()
        val q = features.fold(ByteArray(0), ByteArray::plus)
        val y = labels.toLongArray()
        val before = phone.loss(q, y, n)
        // In a federated round the server names lr, epochs, batch size and seed.
        phone.trainEpochs(q, y, n, 0.05, 5, 10, 0)
        val after = phone.loss(q, y, n)
        File(filesDir, "delta.safetensors").writeBytes(phone.update(n, before, after))
        show("$n images, loss $before -> $after")
    }

    // ImageDecoder turns images upright by itself.
    private fun decoded(image: Uri) =
        if (Build.VERSION.SDK_INT >= 28) {
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, image)) { decoder, _, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // getPixels cannot read others
            }
        } else {
            @Suppress("DEPRECATION")
            val stored = MediaStore.Images.Media.getBitmap(contentResolver, image)
            val exif = contentResolver.openInputStream(image)!!.use { ExifInterface(it) }
            stored.upright(exif.getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL))
        }

    // The runtime can read files, but not assets.
    private fun asset(name: String) = File(filesDir, name).also { file ->
        assets.open(name).use { from -> file.outputStream().use { from.copyTo(it) } }
    }

    // One task at a time, because the model must not be used by several threads.
    private fun inBackground(work: () -> Unit) {
        thread {
            synchronized(phone) {
                try {
                    work()
                } catch (refusal: RuntimeException) {
                    show(refusal.message ?: "$refusal")
                }
            }
        }
    }

    private fun show(text: String) = runOnUiThread { status.text = text }

    private fun button(name: String, action: () -> Unit) = Button(this).apply {
        text = name
        setOnClickListener { action() }
    }
}
