/** Answers questions about seeds, splits, codecs, scaling and cards, for a test to compare with Python's answers. */
package dev.fedhead

import dev.fedhead.trainer.batchOrder
import dev.fedhead.trainer.encoded
import java.io.File

fun main(arguments: Array<String>) {
    for (line in File(arguments[0]).readLines()) {
        val words = line.split(" ")
        val numbers = words.last().split(",").filter { it.isNotEmpty() }
        val answer = when (words[0]) {
            "split" -> {
                val client = words[3].toLong()
                val isTest = testPart(numbers.map(String::toInt), words[1].toDouble(), words[2].toULong().toLong(), client)
                isTest.map { if (it) 1 else 0 }
            }
            "order" -> batchOrder(words[1].toInt(), words[2].toULong().toLong(), words[3].toInt()).toList()
            "evenly" -> evenly(words[1].toInt(), words[2].toInt()).toList()
            "codec" -> {
                val values = FloatArray(numbers.size) { Float.fromBits(numbers[it].toLong().toInt()) }
                encoded(values, words[1], words[2].toInt(), words[3].toULong().toLong()).map { it.toInt() and 255 }
            }
            "fingerprint" -> textIn(String(ByteArray(numbers.size) { numbers[it].toInt().toByte() }), "fingerprint")
                ?.map { it.code } ?: listOf(-1)
            else -> scaled(ByteArray(numbers.size) { numbers[it].toInt().toByte() }, words[1].toInt()).map { it.toInt() and 255 }
        }
        println(answer.joinToString(","))
    }
}
