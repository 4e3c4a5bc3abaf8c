package dev.fedhead

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONObject

/** Files of named tensors: eight bytes of header length, a JSON header, the tensors' bytes. */
object Safetensors {
    /** A file with one float32 tensor. */
    fun one(name: String, values: FloatArray, shape: LongArray, metadata: Map<String, String>): ByteArray {
        val bytes = Float.SIZE_BYTES * values.size
        val tensor = JSONObject()
            .put("dtype", "F32")
            .put("shape", JSONArray(shape.toList()))
            .put("data_offsets", JSONArray(listOf(0, bytes)))
        val text = JSONObject().put("__metadata__", JSONObject(metadata)).put(name, tensor).toString()
        // The tensor begins at a multiple of eight.
        val header = text.toByteArray().let { it + ByteArray((8 - it.size % 8) % 8) { ' '.code.toByte() } }
        val file = ByteBuffer.allocate(Long.SIZE_BYTES + header.size + bytes).order(ByteOrder.LITTLE_ENDIAN)
        file.putLong(header.size.toLong()).put(header)
        file.asFloatBuffer().put(values)
        return file.array()
    }
}
