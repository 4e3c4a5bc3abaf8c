package dev.fedhead

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileChannel
import java.nio.channels.OverlappingFileLockException
import java.nio.file.StandardOpenOption
import java.security.MessageDigest

internal fun sha256(data: ByteArray): ByteArray = MessageDigest.getInstance("SHA-256").digest(data)

internal fun hex(data: ByteArray): String = data.joinToString("") { "%02x".format(it) }

internal fun isSha256(text: String): Boolean = Regex("[0-9a-f]{64}").matches(text)

internal fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(1 shl 16)
    file.inputStream().use { from ->
        while (true) {
            val count = from.read(buffer)
            if (count < 0) return hex(digest.digest())
            digest.update(buffer, 0, count)
        }
    }
}

/** Replaces a file, completely or not at all, and durably. */
internal fun replace(file: File, data: ByteArray) {
    file.parentFile.mkdirs()
    val new = File(file.parentFile, ".${file.name}.new")
    FileOutputStream(new).use {
        it.write(data)
        it.fd.sync()
    }
    move(new, file)
}

/** Gives a file whose bytes are on the disk another name, in the place of what was there, durably. */
internal fun move(from: File, to: File) {
    if (!from.renameTo(to)) throw IOException("${to.name} cannot be put into its place")
    sync(to.parentFile)
}

/** Brings a folder's names to the disk. Not every system can; there, it orders renames as it likes. */
internal fun sync(folder: File) {
    try {
        FileChannel.open(folder.toPath(), StandardOpenOption.READ).use { it.force(true) }
    } catch (_: IOException) {
        return
    }
}

/** Does work that no other process or phone object does at the same time; null if another is at it. */
internal fun <T : Any> alone(lock: File, work: () -> T): T? {
    lock.parentFile.mkdirs()
    RandomAccessFile(lock, "rw").channel.use { channel ->
        val held = try {
            channel.tryLock()
        } catch (_: OverlappingFileLockException) {
            null
        } ?: return null
        return held.use { work() }
    }
}

/** A folder of small files with a checksum each. A file that has changed counts as missing. */
internal class Disk(val folder: File) {
    fun read(name: String): ByteArray? {
        val file = File(folder, name)
        if (!file.isFile) return null
        val data = file.readBytes()
        val size = data.size - SUM
        if (size < 0) return null
        val content = data.copyOf(size)
        return if (sha256(content).contentEquals(data.copyOfRange(size, data.size))) content else null
    }

    fun write(name: String, content: ByteArray) = replace(File(folder, name), content + sha256(content))

    fun delete(name: String) {
        File(folder, name).delete()
    }

    /** Names, those that were written last first. */
    fun names(): List<String> =
        folder.listFiles().orEmpty().filter { it.isFile && !it.name.startsWith(".") }
            .sortedWith(compareBy({ -it.lastModified() }, { it.name })).map { it.name }

    private companion object {
        const val SUM = 32
    }
}
