package dev.fedhead.protocol

import java.io.ByteArrayOutputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Writes protobuf's wire format. As in proto3, a single value that is zero or empty is left out. */
internal class Writer {
    private val out = ByteArrayOutputStream()

    fun uint(field: Int, value: Long) {
        if (value != 0L) {
            varint(field.toLong() shl 3)
            varint(value)
        }
    }

    fun bool(field: Int, value: Boolean) = uint(field, if (value) 1 else 0)

    fun double(field: Int, value: Double) {
        if (value.toRawBits() != 0L) {
            varint(field.toLong() shl 3 or FIXED64)
            out.write(ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putDouble(value).array())
        }
    }

    fun string(field: Int, value: String) = bytes(field, value.toByteArray())

    fun bytes(field: Int, value: ByteArray) {
        if (value.isNotEmpty()) message(field, value)
    }

    /** One of a repeated field, or a message: written even if it is empty. */
    fun message(field: Int, value: ByteArray) {
        varint(field.toLong() shl 3 or LENGTH)
        varint(value.size.toLong())
        out.write(value)
    }

    fun toByteArray(): ByteArray = out.toByteArray()

    private fun varint(value: Long) {
        var rest = value
        while (rest and 0x7fL.inv() != 0L) {
            out.write((rest and 0x7f or 0x80).toInt())
            rest = rest ushr 7
        }
        out.write(rest.toInt())
    }
}

/** One field of a message, of which only the value of its wire type is set. */
internal class Field(val number: Int, private val type: Long, private val scalar: Long, private val content: ByteArray) {
    val uint: Long get() = expect(VARINT, scalar)
    val int: Int get() = uint.toInt()
    val bool: Boolean get() = uint != 0L
    val double: Double get() = Double.fromBits(expect(FIXED64, scalar))
    val bytes: ByteArray get() = expect(LENGTH, content)
    val string: String get() = String(bytes)

    private fun <T> expect(wanted: Long, value: T): T =
        if (type == wanted) value else throw IOException("field $number has the wire type $type, expected $wanted")
}

/** Reads a message field by field; what the caller does not know, it ignores. */
internal fun fieldsOf(message: ByteArray): Sequence<Field> = sequence {
    val buffer = ByteBuffer.wrap(message).order(ByteOrder.LITTLE_ENDIAN)
    while (buffer.hasRemaining()) {
        val tag = buffer.varint()
        val type = tag and 7
        val scalar = when (type) {
            VARINT -> buffer.varint()
            FIXED64 -> buffer.need(8).long
            FIXED32 -> buffer.need(4).int.toLong()
            LENGTH -> buffer.varint()
            else -> throw IOException("a message has the wire type $type, expected 0, 1, 2 or 5")
        }
        val content = if (type == LENGTH) ByteArray(buffer.need(scalar).let { scalar.toInt() }).also(buffer::get) else EMPTY
        yield(Field((tag ushr 3).toInt(), type, scalar, content))
    }
}

private const val VARINT = 0L
private const val FIXED64 = 1L
private const val LENGTH = 2L
private const val FIXED32 = 5L
private val EMPTY = ByteArray(0)

private fun ByteBuffer.need(size: Long): ByteBuffer =
    if (size in 0..remaining()) this else throw IOException("a message ends in the middle of a field")

private fun ByteBuffer.varint(): Long {
    var value = 0L
    for (shift in 0 until 64 step 7) {
        val next = need(1).get().toLong()
        value = value or (next and 0x7f shl shift)
        if (next >= 0) return value
    }
    throw IOException("a number in a message has more than ten bytes")
}
