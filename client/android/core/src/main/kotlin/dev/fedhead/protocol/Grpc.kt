package dev.fedhead.protocol

import java.io.File
import java.io.IOException
import java.net.URLDecoder
import java.nio.ByteBuffer
import java.security.KeyStore
import java.security.cert.CertificateFactory
import javax.net.ssl.SSLContext
import javax.net.ssl.TrustManagerFactory
import javax.net.ssl.X509TrustManager

/** A connection to one gateway. It may be used again after an error. */
fun interface Http2 {
    /**
     * One POST over HTTP/2 and TLS.
     *
     * @param seconds after which it fails.
     * @throws IOException no answer came; the gateway is not reached, or not the one expected.
     */
    fun post(path: String, headers: Map<String, String>, body: ByteArray, seconds: Long): Answer
}

/**
 * What came back.
 *
 * @param headers by lower-case names, with the trailers where the client library shows them.
 */
class Answer(val status: Int, val headers: Map<String, String>, val body: ByteArray)

/** Makes a connection; `trust` knows the deployment's authority and no other. */
fun interface Connect {
    fun to(gateway: String, trust: Authority): Http2
}

/** The deployment's own authority; the public ones are not trusted. */
class Authority(certificates: File) {
    val manager: X509TrustManager
    val context: SSLContext

    init {
        val store = KeyStore.getInstance(KeyStore.getDefaultType()).apply { load(null) }
        // There are two while one follows the other.
        val found = certificates.inputStream().use { CertificateFactory.getInstance("X.509").generateCertificates(it) }
        found.forEachIndexed { i, certificate -> store.setCertificateEntry("authority$i", certificate) }
        val factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm()).apply { init(store) }
        manager = factory.trustManagers.filterIsInstance<X509TrustManager>().single()
        context = SSLContext.getInstance("TLS").apply { init(null, arrayOf(manager), null) }
    }
}

/** A call that failed with one of gRPC's codes. */
class GrpcException(val code: Int, message: String) : IOException(message) {
    companion object {
        const val INVALID_ARGUMENT = 3
        const val NOT_FOUND = 5
        const val OUT_OF_RANGE = 11
        const val UNAVAILABLE = 14
        const val DATA_LOSS = 15
    }
}

/**
 * Unary calls of the service Phones.
 *
 * A call's status stands in the trailers, which some client libraries do not show. Without them a
 * call has succeeded if its one message is whole: a gRPC server that fails before it has sent a
 * message sends its status in the headers.
 */
class Grpc(private val http: Http2, private val token: String) {
    /** Calls a method with a message and returns the reply's bytes. */
    fun call(method: String, request: ByteArray, seconds: Long): ByteArray {
        val framed = ByteBuffer.allocate(FRAME + request.size).put(0).putInt(request.size).put(request).array()
        val headers = mapOf(
            "content-type" to "application/grpc",
            "te" to "trailers",
            "grpc-timeout" to "${seconds}S",
            "authorization" to "Bearer $token",
        )
        // A little later than the gateway, which says why it gives up.
        val answer = http.post("/fedhead.phones.v1.Phones/$method", headers, framed, seconds + 2)
        val code = answer.headers["grpc-status"]?.toIntOrNull()
        return when {
            code != null && code != 0 -> throw GrpcException(code, message(method, answer))
            answer.status != 200 -> throw unavailable("$method: HTTP status ${answer.status}")
            else -> unframed(method, answer.body)
        }
    }

    private fun message(method: String, answer: Answer): String {
        val text = answer.headers["grpc-message"].orEmpty()
        // It is percent-encoded, but a plus stands for itself.
        val words = runCatching { URLDecoder.decode(text.replace("+", "%2B"), "UTF-8") }.getOrDefault(text)
        return "$method: $words"
    }

    private fun unframed(method: String, body: ByteArray): ByteArray {
        if (body.size < FRAME) throw unavailable("$method: the reply has ${body.size} bytes")
        val frame = ByteBuffer.wrap(body)
        val compressed = frame.get().toInt()
        val size = frame.getInt()
        if (compressed != 0 || size != body.size - FRAME) {
            throw unavailable("$method: the reply has ${body.size - FRAME} bytes, expected $size")
        }
        return body.copyOfRange(FRAME, body.size)
    }

    private fun unavailable(why: String) = GrpcException(GrpcException.UNAVAILABLE, why)

    private companion object {
        const val FRAME = 5
    }
}
