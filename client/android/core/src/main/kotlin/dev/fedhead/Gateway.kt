package dev.fedhead

import dev.fedhead.protocol.CheckInReply
import dev.fedhead.protocol.CheckInRequest
import dev.fedhead.protocol.FetchRequest
import dev.fedhead.protocol.Grpc
import dev.fedhead.protocol.GrpcException
import dev.fedhead.protocol.LatestRequest
import dev.fedhead.protocol.Model
import dev.fedhead.protocol.Part
import dev.fedhead.protocol.UploadReply
import dev.fedhead.protocol.Verdict
import java.io.File
import java.io.IOException

/**
 * The gateway's calls.
 *
 * @param folder of the blobs that runs and tasks need.
 */
internal class Gateway(private val grpc: Grpc, folder: File) {
    /** Blobs of runs and tasks. */
    val blobs = Blobs(folder, MOST, ::part)

    fun checkIn(request: CheckInRequest): CheckInReply =
        CheckInReply.read(grpc.call("CheckIn", request.write(), CALL + request.waitSeconds))

    fun submit(submission: ByteArray): Verdict = Verdict.read(grpc.call("Submit", submission, CALL))

    /** The newest version of a finished model; nothing of it is checked yet. */
    fun latest(name: String): Model = Model.read(grpc.call("Latest", LatestRequest(name).write(), CALL))

    /** A part of a blob; nothing of it is checked yet. */
    fun part(request: FetchRequest): Part = Part.read(grpc.call("Fetch", request.write(), CALL))

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
            val end = minOf(there + Blobs.PART, data.size.toLong())
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

    private companion object {
        const val CALL = 60L
        const val MOST = 128L shl 20
    }
}
