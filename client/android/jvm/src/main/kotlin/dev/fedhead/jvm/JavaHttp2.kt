package dev.fedhead.jvm

import dev.fedhead.protocol.Answer
import dev.fedhead.protocol.Authority
import dev.fedhead.protocol.Http2
import dev.fedhead.protocol.bodyOfReply
import java.io.IOException
import java.io.InputStream
import java.net.URI
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse.BodyHandlers
import java.time.Duration
import java.util.concurrent.CompletableFuture
import java.util.concurrent.TimeUnit
import java.util.concurrent.TimeoutException

/** HTTP/2 by the JDK's own client, which shows no trailers and checks the server's name. */
class JavaHttp2(private val gateway: String, trust: Authority) : Http2 {
    private val client = HttpClient.newBuilder()
        .version(HttpClient.Version.HTTP_2)
        .sslContext(trust.context)
        .connectTimeout(Duration.ofSeconds(20))
        .build()

    override fun post(path: String, headers: Map<String, String>, body: ByteArray, seconds: Long): Answer {
        val request = HttpRequest.newBuilder(URI("https://$gateway$path"))
            .timeout(Duration.ofSeconds(seconds))
            .POST(HttpRequest.BodyPublishers.ofByteArray(body))
        headers.forEach { (name, value) -> request.header(name, value) }
        try {
            val response = client.send(request.build(), BodyHandlers.ofInputStream())
            val content = response.body().use { whole(it, seconds) }
            return Answer(response.statusCode(), response.headers().map().mapValues { it.value.first() }, content)
        } catch (interrupted: InterruptedException) {
            throw IOException("the call was interrupted", interrupted)
        }
    }

    // The client's own time is over once the headers have come.
    private fun whole(body: InputStream, seconds: Long): ByteArray = try {
        CompletableFuture.supplyAsync { runCatching { body.bodyOfReply() } }.get(seconds, TimeUnit.SECONDS).getOrThrow()
    } catch (late: TimeoutException) {
        throw IOException("the reply did not end in time", late)
    }
}
