package dev.fedhead

import dev.fedhead.protocol.Blob
import dev.fedhead.protocol.FetchRequest
import dev.fedhead.protocol.Part
import dev.fedhead.trainer.Stopped
import java.io.File
import java.io.FileOutputStream
import java.io.IOException

/** What came is not what was promised, and was removed: another try begins at the first byte. */
internal class WrongBytes(what: String) : IOException(what)

/**
 * Blobs in a folder, by their SHA-256. What is not there is fetched in parts.
 *
 * @param most size of the largest blob in bytes.
 * @param part a part of a blob, from the gateway.
 */
internal class Blobs(private val folder: File, private val most: Long, private val part: (FetchRequest) -> Part) {
    /** A blob's bytes; those that came with its name need no file. */
    fun bytes(blob: Blob, mayGoOn: () -> Boolean = { true }): ByteArray {
        name(blob)
        return if (isHere(blob)) checked(blob) else file(blob, mayGoOn).readBytes()
    }

    /**
     * A blob's file. What was fetched before a kill is not fetched again.
     *
     * @param mayGoOn asked before each part; if it says no, [Stopped] is thrown.
     */
    fun file(blob: Blob, mayGoOn: () -> Boolean = { true }): File {
        val file = File(folder, name(blob))
        if (file.isFile) {
            if (file.length() == blob.size && sha256(file) == blob.sha256) {
                return file.apply { setLastModified(System.currentTimeMillis()) }
            }
            file.delete()
        }
        if (isHere(blob)) replace(file, checked(blob)) else fetch(blob, file, mayGoOn)
        return file
    }

    /** Forgets blobs, but those with some names and those used last. */
    fun keep(names: Set<String>, others: Int = OTHERS) {
        val found = folder.listFiles().orEmpty().filter { it.name.removeSuffix(".part") !in names }
        found.sortedByDescending { it.lastModified() }.drop(others).forEach { it.delete() }
    }

    private fun isHere(blob: Blob) = blob.data.isNotEmpty() || blob.size == 0L

    private fun checked(blob: Blob): ByteArray {
        val isRight = blob.data.size.toLong() == blob.size && hex(sha256(blob.data)) == blob.sha256
        return if (isRight) blob.data else throw IOException("a blob's bytes do not have its size or its SHA-256")
    }

    private fun fetch(blob: Blob, file: File, mayGoOn: () -> Boolean) {
        val partial = File(folder, "${file.name}.part")
        folder.mkdirs()
        if (partial.length() > blob.size) partial.delete()
        val (needed, free) = blob.size - partial.length() to folder.usableSpace
        if (free < needed) throw IOException("a blob needs $needed bytes on the disk, $free are free")
        try {
            complete(partial, blob, mayGoOn)
        } finally {
            if (partial.length() == 0L) partial.delete()
        }
        if (sha256(partial) != blob.sha256) {
            partial.delete()
            throw WrongBytes("a fetched blob does not have its SHA-256")
        }
        move(partial, file)
    }

    private fun complete(partial: File, blob: Blob, mayGoOn: () -> Boolean) = FileOutputStream(partial, true).use { to ->
        var size = partial.length()
        while (size < blob.size) {
            if (!mayGoOn()) throw Stopped()
            val data = checked(part(FetchRequest(blob.sha256, size)), blob, size)
            to.write(data)
            size += data.size
        }
        to.fd.sync()
    }

    // What came before a wrong part was right: the next try goes on from there.
    private fun checked(part: Part, blob: Blob, offset: Long): ByteArray {
        val expected = minOf(PART, blob.size - offset)
        if (part.sha256 != blob.sha256 || part.size != blob.size || part.offset != offset) {
            throw IOException("a blob was asked for at byte $offset, but the answer is another part")
        }
        if (part.data.size.toLong() != expected) {
            throw IOException("a part of a blob has ${part.data.size} bytes, expected $expected")
        }
        return part.data
    }

    private fun name(blob: Blob): String {
        if (!isSha256(blob.sha256)) throw IOException("a blob has no SHA-256")
        if (blob.size !in 0..most) throw IOException("a blob of ${blob.size} bytes is too large")
        return blob.sha256
    }

    companion object {
        /** Bytes of a part; the last one has fewer. */
        const val PART = 256L shl 10
        private const val OTHERS = 4
    }
}
