package dev.fedhead

import dev.fedhead.protocol.Authority
import java.io.File
import java.io.IOException

/** What `fedhead deploy --phone NAME` has put into a phone's folder: phone.toml, its token, ca.crt. */
internal class Settings(private val folder: File) {
    private val values = File(folder, "phone.toml").readLines()
        .filter { it.isNotBlank() && !it.trimStart().startsWith("#") }
        .associate { line -> line.substringBefore("=").trim() to line.substringAfter("=", "").trim().trim('"') }

    /** HOST:PORT. */
    val gateway: String = value("gateway")

    /** Largest number of images to use; 0: all. */
    val maxExamples: Int = values["max-examples"]?.let { it.toIntOrNull() ?: throw wrong("max-examples", "a number") } ?: 0

    val token: String = File(folder, "phone.token").readText().trim()

    val trust: Trust? = File(folder, "trusted").takeIf { it.exists() }?.let { Trust(it, File(folder, "state/accepted")) }

    fun authority() = Authority(File(folder, "ca.crt"))

    private fun value(key: String) = values[key]?.takeIf { it.isNotEmpty() } ?: throw wrong(key, "HOST:PORT")

    private fun wrong(key: String, expected: String) = IOException("phone.toml: $key is ${values[key]}, expected $expected")
}
