package dev.fedhead.jvm

import dev.fedhead.protocol.Answer
import dev.fedhead.protocol.Authority
import dev.fedhead.protocol.Http2
import java.io.IOException
import java.net.URI
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse.BodyHandlers
import java.time.Duration

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
        val response = try {
            client.send(request.build(), BodyHandlers.ofByteArray())
        } catch (interrupted: InterruptedException) {
            throw IOException("the call was interrupted", interrupted)
        }
        return Answer(response.statusCode(), response.headers().map().mapValues { it.value.first() }, response.body())
    }
}
