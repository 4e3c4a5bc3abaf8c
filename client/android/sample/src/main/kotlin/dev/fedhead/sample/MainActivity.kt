package dev.fedhead.sample

import android.graphics.ImageDecoder
import android.media.ExifInterface
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.provider.MediaStore
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts.GetMultipleContents
import dev.fedhead.android.toPixels
import dev.fedhead.android.upright
import java.io.IOException
import kotlin.concurrent.thread

/** Has a field for the name of a class, and a button that takes its images from the gallery. */
class MainActivity : ComponentActivity() {
    private val name by lazy { EditText(this).apply { hint = "class" } }
    private val status by lazy { TextView(this) }

    private val pick = registerForActivityResult(GetMultipleContents()) { images ->
        val className = name.text.toString()
        inBackground { add(images, className) }
    }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        TakePart.schedule(this)
        FetchModel.schedule(this)
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        column.addView(name)
        column.addView(button("Add images") { pick.launch("image/*") })
        column.addView(button("Take part now") { inBackground { show(TakePart.phone(this).takePart().words) } })
        column.addView(status)
        setContentView(column)
        inBackground { show(FetchModel.whereItIs(this)) }
    }

    private fun add(images: List<Uri>, className: String) {
        val phone = TakePart.phone(this)
        // 96 pixels are what fedhead's own backbones take.
        images.forEach { phone.add(decoded(it).toPixels(96), className) }
        show("${images.size} images of $className")
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

    private fun inBackground(work: () -> Unit) {
        thread {
            try {
                work()
            } catch (refusal: RuntimeException) {
                show(refusal.message ?: "$refusal")
            } catch (problem: IOException) {
                show(problem.message ?: "$problem")
            }
        }
    }

    private fun show(text: String) = runOnUiThread { status.text = text }

    private fun button(text: String, action: () -> Unit) = Button(this).apply {
        this.text = text
        setOnClickListener { action() }
    }
}
