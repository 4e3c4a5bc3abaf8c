/** A phone whose owner says "yes" only so many times; it tells how many images it computed. */
package dev.fedhead

import dev.fedhead.jvm.JavaHttp2
import dev.fedhead.trainer.SoftmaxTrainer
import java.io.File

object Owner {
    @JvmStatic
    fun main(arguments: Array<String>) {
        val lines = File(arguments[1]).readLines()
        val features = HashMap<String, ByteArray>()
        var computed = 0
        val trainer = SoftmaxTrainer(lines.first().toInt()) { pixels ->
            computed += 1
            features.getValue(hex(sha256(pixels)))
        }
        val phone = Phone.open(File(arguments[0]), trainer, ::JavaHttp2)
        for (line in lines.drop(1)) {
            val (name, pixels, row) = line.split(" ")
            features[hex(sha256(bytes(pixels)))] = bytes(row)
            phone.add(bytes(pixels), name)
        }
        var left = arguments[2].toInt()
        phone.takePart(forSeconds = 0) { left-- > 0 }
        println(computed)
    }

    private fun bytes(text: String) = ByteArray(text.length / 2) { text.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
