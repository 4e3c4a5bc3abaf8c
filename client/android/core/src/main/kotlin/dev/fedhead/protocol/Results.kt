/** What a phone sends of a task, and what it is told of it; as in common/phones/phones.proto. */
package dev.fedhead.protocol

object Outcome {
    const val DONE = 1
    const val DECLINED = 2
    const val FAILED = 3
}

class Submission(val task: String, val outcome: Int) {
    var fingerprint = ""
    var reason = ""
    var numExamples = 0
    var lossBefore = 0.0
    var lossAfter = 0.0
    var correct = 0
    var losses = ByteArray(0)
    var arrays = listOf<Array>()
    var fetchSeconds = 0.0
    var trainSeconds = 0.0
    var uploadSeconds = 0.0

    class Array(val field: String, val data: ByteArray, val sha256: String) {
        fun write(): ByteArray = Writer().run {
            string(1, field)
            bytes(2, data)
            string(3, sha256)
            toByteArray()
        }
    }

    fun write(): ByteArray = Writer().run {
        string(1, task)
        string(2, fingerprint)
        uint(3, outcome.toLong())
        string(4, reason)
        uint(5, numExamples.toLong())
        double(6, lossBefore)
        double(7, lossAfter)
        uint(8, correct.toLong())
        bytes(9, losses)
        arrays.forEach { message(10, it.write()) }
        double(11, fetchSeconds)
        double(12, trainSeconds)
        double(13, uploadSeconds)
        toByteArray()
    }
}

class Verdict {
    var what = 0
    var reason = ""
    var later = Later()

    /** What it says, in one word. */
    val word: String get() = listOf("unknown", "accepted", "late", "refused", "noted").getOrElse(what) { "unknown" }

    companion object {
        fun read(message: ByteArray) = Verdict().apply {
            for (field in fieldsOf(message)) when (field.number) {
                1 -> what = field.int
                2 -> reason = field.string
                3 -> later = Later.read(field.bytes)
            }
        }
    }
}
