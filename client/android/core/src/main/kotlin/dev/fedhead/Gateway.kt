package dev.fedhead

import dev.fedhead.protocol.Blob
import dev.fedhead.protocol.CheckInReply
import dev.fedhead.protocol.CheckInRequest
import dev.fedhead.protocol.FetchRequest
import dev.fedhead.protocol.Grpc
import dev.fedhead.protocol.GrpcException
import dev.fedhead.protocol.Part
import dev.fedhead.protocol.UploadReply
import dev.fedhead.protocol.Verdict
import java.io.File
import java.io.FileOutputStream
import java.io.IOException

/** The gateway's calls; blobs that were fetched are kept in a folder, by their SHA-256. */
internal class Gateway(private val grpc: Grpc, private val blobs: File) {
    fun checkIn(request: CheckInRequest): CheckInReply =
        CheckInReply.read(grpc.call("CheckIn", request.write(), CALL + request.waitSeconds))

    fun submit(submission: ByteArray): Verdict = Verdict.read(grpc.call("Submit", submission, CALL))

    /** A blob's file. What was fetched before a kill is not fetched again. */
    fun file(blob: Blob): File {
        val file = File(blobs, name(blob))
        if (file.isFile) {
            if (file.length() == blob.size && sha256(file) == blob.sha256) {
                return file.apply { setLastModified(System.currentTimeMillis()) }
            }
            file.delete()
        }
        if (blob.data.isNotEmpty() || blob.size == 0L) {
            if (hex(sha256(blob.data)) != blob.sha256) throw IOException("a blob's bytes do not have its SHA-256")
            replace(file, blob.data)
        } else {
            fetch(blob, file)
        }
        return file
    }

    private fun fetch(blob: Blob, file: File) {
        val part = File(blobs, "${file.name}.part")
        blobs.mkdirs()
        if (part.length() > blob.size) part.delete()
        FileOutputStream(part, true).use { to ->
            var size = part.length()
            while (size < blob.size) {
                val data = Part.data(grpc.call("Fetch", FetchRequest(blob.sha256, size).write(), CALL))
                size += data.size
                if (data.isEmpty() || size > blob.size) {
                    part.delete()
                    throw IOException("a blob has another size than the gateway said")
                }
                to.write(data)
            }
            to.fd.sync()
        }
        if (sha256(part) != blob.sha256) {
            part.delete()
            throw IOException("a fetched blob does not have its SHA-256")
        }
        if (!part.renameTo(file)) throw IOException("a blob cannot be kept")
    }

    /** Brings an array to the gateway; goes on where it broke off. */
    fun upload(task: String, sha256: String, data: ByteArray) {
        var damaged = false
        while (true) {
            try {
                send(task, sha256, data)
                return
            } catch (problem: GrpcException) {
                // It was removed there, and is sent once more from its beginning.
                if (problem.code != GrpcException.DATA_LOSS || damaged) throw problem
                damaged = true
            }
        }
    }

    private fun send(task: String, sha256: String, data: ByteArray) {
        fun call(offset: Long, part: ByteArray) =
            UploadReply.size(grpc.call("Upload", Part(task, sha256, data.size.toLong(), offset, part).write(), CALL))

        var there = call(0, ByteArray(0))
        while (there < data.size) {
            val end = minOf(there + PART, data.size.toLong())
            val before = there
            there = try {
                call(there, data.copyOfRange(there.toInt(), end.toInt()))
            } catch (problem: GrpcException) {
                // Another call of this phone came in between.
                if (problem.code != GrpcException.OUT_OF_RANGE) throw problem
                call(0, ByteArray(0))
            }
            if (there !in 0..data.size || there == before) throw IOException("the gateway keeps nothing of an upload")
        }
    }

    /** Forgets blobs, but those with some names and those used last. */
    fun keep(names: Set<String>) {
        val others = blobs.listFiles().orEmpty().filter { it.name.removeSuffix(".part") !in names }
        others.sortedByDescending { it.lastModified() }.drop(OTHERS).forEach { it.delete() }
    }

    private fun name(blob: Blob): String {
        if (!Regex("[0-9a-f]{64}").matches(blob.sha256)) throw IOException("a blob has no SHA-256")
        if (blob.size !in 0..MOST) throw IOException("a blob of ${blob.size} bytes is too large")
        return blob.sha256
    }

    private companion object {
        const val CALL = 60L
        const val PART = 256L shl 10
        const val MOST = 128L shl 20
        const val OTHERS = 4
    }
}
