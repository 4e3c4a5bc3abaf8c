package dev.fedhead

import java.math.BigInteger
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** Positions of at most `most` (0: all) of `total` examples, evenly spread; as common.partition.evenly. */
internal fun evenly(total: Int, most: Int): IntArray {
    val count = min(if (most > 0) most else total, total)
    return IntArray(count) { (it.toLong() * total / count).toInt() }
}

/**
 * Which of a client's examples it keeps to test with, as common.partition.local_split.
 *
 * Each class gives its share, rounded down; the classes with the largest remainders give one more.
 * A class gives its last example only if no other class can, and one example always stays.
 *
 * @param labels of the examples that are used, in their order.
 * @param fraction share of the examples that go to test, in [0, 1).
 */
internal fun testPart(labels: List<Int>, fraction: Double, seed: Long, client: Long): BooleanArray {
    val classes = labels.distinct().sorted()
    val counts = classes.map { label -> labels.count { it == label } }
    val quota = counts.map { it * fraction }
    val take = quota.map { floor(it).toInt() }.toIntArray()
    val missing = min(floor(labels.size * fraction + 0.5).toInt(), labels.size - 1) - take.sum()
    val givesLast = classes.indices.map { take[it] >= counts[it] - 1 }
    // Rounded, so that equal remainders are equal.
    val remainder = classes.indices.map { Math.rint((quota[it] - take[it]) * 1e9) / 1e9 }
    val turn = turns(classes, seed, client)
    val first = classes.indices.sortedWith(compareBy({ givesLast[it] }, { -remainder[it] }, { turn[it] }))
    first.take(max(missing, 0)).forEach { take[it] += 1 }

    val isTest = BooleanArray(labels.size)
    val left = classes.zip(take.asIterable()).toMap().toMutableMap()
    for (i in Seeding.permutation(labels.size, Seeding.state(seed, Seeding.LOCAL_SPLIT, client))) {
        val rest = left.getValue(labels[i])
        if (rest > 0) {
            isTest[i] = true
            left[labels[i]] = rest - 1
        }
    }
    return isTest
}

// Each class's place in this client's order, which is the same for all but for where it begins.
private fun turns(classes: List<Int>, seed: Long, client: Long): IntArray {
    val state = Seeding.state(seed, Seeding.LOCAL_SPLIT, -1)
    val place = IntArray(classes.size)
    classes.indices.sortedBy { Seeding.draw(state, classes[it].toLong()) }.forEachIndexed { i, of -> place[of] = i }
    // The upper 64 bits of a product of unsigned numbers.
    val step = BigInteger(java.lang.Long.toUnsignedString(client * Seeding.GOLDEN))
    val begin = step.multiply(BigInteger.valueOf(classes.size.toLong())).shiftRight(64).toInt()
    return IntArray(classes.size) { Math.floorMod(place[it] - begin, classes.size) }
}
