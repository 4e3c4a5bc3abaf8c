package dev.fedhead.android

import dev.fedhead.Phone
import dev.fedhead.protocol.Answer
import dev.fedhead.protocol.Authority
import dev.fedhead.protocol.Http2
import dev.fedhead.trainer.Trainer
import java.io.File
import java.util.concurrent.TimeUnit
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody.Companion.toRequestBody

/** Opens a phone's folder, with OkHttp as its HTTP client; see [Phone.open]. */
fun Phone.Companion.open(folder: File, trainer: Trainer, app: String = "fedhead-android"): Phone =
    open(folder, trainer, ::OkHttp2, app)

/** HTTP/2 by OkHttp, which checks the server's name. */
class OkHttp2(private val gateway: String, trust: Authority) : Http2 {
    private val client = OkHttpClient.Builder()
        .sslSocketFactory(trust.context.socketFactory, trust.manager)
        .connectTimeout(20, TimeUnit.SECONDS)
        // A call ends by its own time; a gateway may be silent while it waits for a round.
        .readTimeout(0, TimeUnit.SECONDS)
        .build()

    override fun post(path: String, headers: Map<String, String>, body: ByteArray, seconds: Long): Answer {
        val request = Request.Builder().url("https://$gateway$path").post(body.toRequestBody())
        headers.forEach { (name, value) -> request.header(name, value) }
        val call = client.newCall(request.build())
        call.timeout().timeout(seconds, TimeUnit.SECONDS)
        call.execute().use { response ->
            val content = response.body!!.bytes()
            // The trailers are there once the body has been read.
            val found = (response.headers + response.trailers()).associate { (name, value) -> name.lowercase() to value }
            return Answer(response.code, found, content)
        }
    }
}
