package dev.fedhead

/** The random streams of common/seeding.py: splitmix64, the same integers in every language. */
internal object Seeding {
    // What a stream is for; the number is that of common.seeding.Purpose.
    const val LOCAL_SPLIT = 5L

    const val GOLDEN = -0x61c8864680b583ebL // 0x9E3779B97F4A7C15

    fun state(vararg keys: Long): Long = keys.fold(0L, ::next)

    /** The state of a stream whose name goes on with a key. */
    fun next(state: Long, key: Long): Long = mix((state xor key) + GOLDEN)

    /** 64 random bits: the stream's word number i. */
    fun word(state: Long, i: Long): Long = mix(state + (i + 1) * GOLDEN)

    /** 63 of them. */
    fun draw(state: Long, i: Long): Long = word(state, i) ushr 1

    /** The stable argsort of the stream's first n draws. */
    fun permutation(n: Int, state: Long): IntArray {
        val draws = LongArray(n) { draw(state, it.toLong()) }
        return (0 until n).sortedBy { draws[it] }.toIntArray()
    }

    private fun mix(value: Long): Long {
        var z = value
        z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L // 0xBF58476D1CE4E5B9
        z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L // 0x94D049BB133111EB
        return z xor (z ushr 31)
    }
}
