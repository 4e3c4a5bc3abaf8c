package dev.fedhead.jvm

import dev.fedhead.Phone
import dev.fedhead.trainer.SoftmaxTrainer
import java.io.File
import java.security.MessageDigest
import kotlin.system.exitProcess

/**
 * A phone on any Java machine, to try a deployment without a phone.
 *
 * It adds the images of a file, takes part until it is ended, and trains in plain Kotlin. Their
 * features come from the same file, because no runtime for backbones is on a plain Java machine:
 *
 *     line 1:  SIZE
 *     then:    CLASS PIXELS FEATURES      the last two as hexadecimal digits, one image a line
 *
 * With --model it fetches a finished model instead, and takes no part.
 */
fun main(arguments: Array<String>) {
    if (arguments.size !in 2..3) {
        System.err.println("usage: FOLDER IMAGES [VISITS], or FOLDER --model NAME")
        exitProcess(2)
    }
    if (arguments[1] == "--model") return fetch(arguments[0], arguments.last())
    val lines = File(arguments[1]).readLines()
    val features = HashMap<String, ByteArray>()
    val trainer = SoftmaxTrainer(lines.first().toInt()) { pixels -> features.getValue(digest(pixels)) }
    val phone = Phone.open(File(arguments[0]), trainer, ::JavaHttp2, "fedhead-jvm")
    for (line in lines.drop(1)) {
        val (name, pixels, row) = line.split(" ")
        features[digest(bytes(pixels))] = bytes(row)
        phone.add(bytes(pixels), name)
    }
    repeat(arguments.getOrNull(2)?.toInt() ?: Int.MAX_VALUE) {
        val visit = phone.takePart(forSeconds = 0)
        println("next in ${visit.pauseSeconds} s: ${visit.words}")
        Thread.sleep((visit.pauseSeconds * 1000).toLong())
    }
}

private fun fetch(folder: String, name: String) {
    val trainer = SoftmaxTrainer(1) { throw UnsupportedOperationException("it takes no part") }
    val update = Phone.open(File(folder), trainer, ::JavaHttp2, "fedhead-jvm").updateModel(name)
    update.model?.let { println("version ${it.version} ${if (update.isNew) "is new" else "is in use"}: ${it.file}") }
    update.problem?.let {
        System.err.println(it)
        exitProcess(1)
    }
}

private fun digest(data: ByteArray) = String(MessageDigest.getInstance("SHA-256").digest(data), Charsets.ISO_8859_1)

private fun bytes(text: String) = ByteArray(text.length / 2) { text.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
