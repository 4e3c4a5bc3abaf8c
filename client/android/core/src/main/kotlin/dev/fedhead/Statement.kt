package dev.fedhead

/** What an operator has signed about one file: the ten lines of delivery.proto. */
internal class Statement private constructor(values: List<String>) {
    val kind = values[1]
    val name = values[2]
    val version = values[3].toLong()
    val size = values[4].toLong()
    val sha256 = values[5]
    val card = values[6]
    val fingerprint = values[7]
    val created = values[8].toLong()
    val expires = values[9].toLong()

    /** Whether a card's bytes, whose SHA-256 is right, are of the backbone that was signed. */
    fun checkCard(content: ByteArray) {
        if (textIn(String(content), "fingerprint") != fingerprint) {
            throw Refusal("unsigned-$kind", "another fingerprint was signed than its card has")
        }
    }

    companion object {
        private val pattern = Regex(
            "fedhead artifact v1\n" +
                "kind (model|backbone)\n" +
                "name ([A-Za-z0-9][A-Za-z0-9._-]{0,99})\n" +
                "version ([1-9][0-9]{0,17})\n" +
                "size (0|[1-9][0-9]{0,17})\n" +
                "sha256 ([0-9a-f]{64})\n" +
                "card ([0-9a-f]{64})\n" +
                "fingerprint ([0-9a-f]{64})\n" +
                "created ([1-9][0-9]{0,10})\n" +
                "expires ([1-9][0-9]{0,10})\n",
        )

        /** Null if the text is no statement. */
        fun read(text: String): Statement? = pattern.matchEntire(text)?.let { Statement(it.groupValues) }
    }
}
