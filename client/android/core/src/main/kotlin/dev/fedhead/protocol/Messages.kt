/**
 * The messages of common/phones/phones.proto, whose comments say what they mean.
 *
 * By hand, so that a phone needs no protobuf library. Fields that only a gateway sends are only
 * read, and those that only a phone sends are only written.
 */
package dev.fedhead.protocol

import java.io.IOException

class Blob(val sha256: String = "", val size: Long = 0, val data: ByteArray = ByteArray(0)) {
    companion object {
        fun read(message: ByteArray): Blob {
            var blob = Blob()
            for (field in fieldsOf(message)) when (field.number) {
                1 -> blob = Blob(field.string, blob.size, blob.data)
                2 -> blob = Blob(blob.sha256, field.uint, blob.data)
                3 -> blob = Blob(blob.sha256, blob.size, field.bytes)
            }
            return blob
        }
    }
}

class Holding(val description: String, val numExamples: Int, val numTestExamples: Int) {
    fun write(): ByteArray = Writer().run {
        string(1, description)
        uint(2, numExamples.toLong())
        uint(3, numTestExamples.toLong())
        toByteArray()
    }
}

class CheckInRequest(
    val app: String,
    val formats: List<String>,
    val abilities: List<String>,
    val holdings: List<Holding>,
    val ready: Boolean,
    val waitSeconds: Int,
    val problem: String,
) {
    fun write(): ByteArray = Writer().run {
        string(1, app)
        formats.forEach { message(2, it.toByteArray()) }
        abilities.forEach { message(3, it.toByteArray()) }
        holdings.forEach { message(4, it.write()) }
        bool(5, ready)
        uint(6, waitSeconds.toLong())
        string(7, problem)
        toByteArray()
    }
}

/** One of the three; all are null if the gateway says something that this version does not know. */
class CheckInReply(var later: Later? = null, var description: ByteArray? = null, var task: ByteArray? = null) {
    companion object {
        fun read(message: ByteArray) = CheckInReply().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> later = Later.read(field.bytes)
                2 -> description = field.bytes
                3 -> task = field.bytes
            }
        }
    }
}

class Later(var minSeconds: Double = 0.0, var maxSeconds: Double = 0.0) {
    companion object {
        fun read(message: ByteArray) = Later().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> minSeconds = field.double
                2 -> maxSeconds = field.double
            }
        }
    }
}

class Description {
    var id = ""
    var run = ""
    var name = ""
    val classes = mutableListOf<String>()
    var testFraction = 0.0
    var seed = 0L
    var maxExamples = 0
    var isPrivate = false
    var fingerprint = ""
    var client = 0L
    val backbones = mutableListOf<Backbone>()

    companion object {
        fun read(message: ByteArray) = Description().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> id = field.string
                2 -> run = field.string
                3 -> name = field.string
                4 -> classes += field.string
                5 -> testFraction = field.double
                6 -> seed = field.uint
                7 -> maxExamples = field.int
                8 -> isPrivate = field.bool
                9 -> fingerprint = field.string
                10 -> client = field.uint
                11 -> backbones += Backbone.read(field.bytes)
            }
            hexadecimal(id, "a description's id")
            hexadecimal(fingerprint, "a backbone's fingerprint")
        }
    }
}

class Backbone {
    var format = ""
    var file = Blob()
    var statement = ByteArray(0)
    var signature = ByteArray(0)

    companion object {
        fun read(message: ByteArray) = Backbone().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> format = field.string
                2 -> file = Blob.read(field.bytes)
                3 -> statement = field.bytes
                4 -> signature = field.bytes
            }
        }
    }
}

object Kind {
    const val SGD = 1
    const val STATISTICS = 2
    const val EVALUATE = 3
}

class Task {
    var id = ""
    var run = ""
    var round = 0
    var description = ""
    var fingerprint = ""
    var secondsLeft = 0.0
    var kind = 0
    var numExamples = 0
    var numClasses = 0
    var numFeatures = 0
    val fields = mutableListOf<String>()
    var head = Blob()
    var correction = Blob()
    var preconditioner = Blob()
    var training = Training()
    var codec = ""
    var codecSeed = 0L
    var clip = 0.0
    var unitNorm = 0.0
    var maxNorm = 0.0

    companion object {
        fun read(message: ByteArray) = Task().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> id = field.string
                2 -> run = field.string
                3 -> round = field.int
                4 -> description = field.string
                5 -> fingerprint = field.string
                6 -> secondsLeft = field.double
                7 -> kind = field.int
                8 -> numExamples = field.int
                9 -> numClasses = field.int
                10 -> numFeatures = field.int
                11 -> fields += field.string
                12 -> head = Blob.read(field.bytes)
                13 -> correction = Blob.read(field.bytes)
                14 -> preconditioner = Blob.read(field.bytes)
                15 -> training = Training.read(field.bytes)
                16 -> codec = field.string
                17 -> codecSeed = field.uint
                18 -> clip = field.double
                19 -> unitNorm = field.double
                20 -> maxNorm = field.double
            }
        }
    }
}

class Training {
    var optimizer = ""
    var lr = 0.0
    var epochs = 0
    var batchSize = 0
    var batchSeed = 0L
    var momentum = 0.0
    var weightDecay = 0.0
    var mu = 0.0

    companion object {
        fun read(message: ByteArray) = Training().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> optimizer = field.string
                2 -> lr = field.double
                3 -> epochs = field.int
                4 -> batchSize = field.int
                5 -> batchSeed = field.uint
                6 -> momentum = field.double
                7 -> weightDecay = field.double
                8 -> mu = field.double
            }
        }
    }
}

class FetchRequest(val sha256: String, val offset: Long) {
    fun write(): ByteArray = Writer().run {
        string(1, sha256)
        uint(2, offset)
        toByteArray()
    }
}

class Part(
    val task: String = "",
    val sha256: String = "",
    val size: Long = 0,
    val offset: Long = 0,
    val data: ByteArray = ByteArray(0),
) {
    fun write(): ByteArray = Writer().run {
        string(1, task)
        string(2, sha256)
        uint(3, size)
        uint(4, offset)
        bytes(5, data)
        toByteArray()
    }

    companion object {
        /** A part that was fetched, which is of no task. */
        fun read(message: ByteArray): Part {
            val fields = fieldsOf(message).associateBy { it.number }
            return Part(
                sha256 = fields[2]?.string.orEmpty(),
                size = fields[3]?.uint ?: 0,
                offset = fields[4]?.uint ?: 0,
                data = fields[5]?.bytes ?: ByteArray(0),
            )
        }
    }
}

class LatestRequest(val name: String) {
    fun write(): ByteArray = Writer().run {
        string(1, name)
        toByteArray()
    }
}

class Model {
    var name = ""
    var version = 0L
    var file = Blob()
    var card = Blob()
    var statement = ByteArray(0)
    var signature = ByteArray(0)

    companion object {
        fun read(message: ByteArray) = Model().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> name = field.string
                2 -> version = field.uint
                3 -> file = Blob.read(field.bytes)
                4 -> card = Blob.read(field.bytes)
                5 -> statement = field.bytes
                6 -> signature = field.bytes
            }
        }
    }
}

object UploadReply {
    /** How many bytes have arrived and are kept. */
    fun size(message: ByteArray): Long = fieldsOf(message).lastOrNull { it.number == 1 }?.uint ?: 0
}

// These become names of files.
private fun hexadecimal(text: String, what: String) {
    if (!Regex("[0-9a-f]{64}").matches(text)) throw IOException("$what is not 64 hexadecimal digits")
}
