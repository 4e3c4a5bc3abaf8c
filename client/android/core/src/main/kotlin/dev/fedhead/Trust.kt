package dev.fedhead

import dev.fedhead.protocol.Backbone
import dev.fedhead.trainer.Stopped
import java.io.File
import java.io.IOException
import java.security.AlgorithmParameters
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.PublicKey
import java.security.Signature
import java.security.interfaces.ECPublicKey
import java.security.spec.ECGenParameterSpec
import java.security.spec.ECParameterSpec
import java.security.spec.X509EncodedKeySpec
import java.util.Base64

/** Why a phone does not load a backbone. What it says is sent to the gateway, so it names no path. */
class Refusal(word: String, details: String) : Exception("$word: $details")

/** Makes a refusal of whatever a runtime for models throws; of its words, which may be the owner's, only the kind. */
internal fun <T> refusing(work: () -> T): T = try {
    work()
} catch (problem: Exception) {
    // Of the connection or the disk: it may go well later.
    throw if (problem is Refusal || problem is Stopped || problem is IOException) problem else failed(problem)
} catch (problem: LinkageError) {
    throw failed(problem)
} catch (problem: OutOfMemoryError) {
    throw failed(problem)
}

private fun failed(problem: Throwable) =
    Refusal(if (problem is OutOfMemoryError) "memory" else "error", problem.javaClass.simpleName)

/**
 * One or two public keys, and what was accepted last.
 *
 * A backbone is loaded only if one of them has signed it, and never an older one than before.
 *
 * @param keys the folder of the keys, as they are in PEM.
 * @param accepted the folder that says which versions were accepted last.
 */
internal class Trust(keys: File, accepted: File) {
    private val keys = keys.listFiles().orEmpty().filter { !it.name.startsWith(".") }.map(::read)
    private val accepted = Disk(accepted)

    init {
        // A folder that has lost its keys must not mean that everything is accepted.
        if (this.keys.size !in 1..2) throw unsigned("the app trusts ${this.keys.size} keys, expected one or two")
    }

    /** Checks a statement by the rules of delivery.proto, and remembers its version. */
    fun accept(backbone: Backbone, fingerprint: String) {
        val statement = verified(backbone)
        val values = pattern.matchEntire(String(statement, Charsets.ISO_8859_1))?.groupValues
            ?: throw unsigned("what was signed is not a statement of fedhead artifact v1")
        val (name, version, size, sha256) = values.drop(1)
        val (stated, created, expires) = values.drop(5)
        val now = System.currentTimeMillis() / 1000
        when {
            !name.endsWith(".${backbone.format}") -> throw unsigned("it was signed as $name")
            sha256 != backbone.file.sha256 || size.toLong() != backbone.file.size -> throw unsigned("another file was signed")
            stated != fingerprint -> throw unsigned("another fingerprint was signed")
            now < created.toLong() - SKEW -> throw unsigned("it was signed in the future, by this phone's clock")
            now > expires.toLong() + SKEW -> throw unsigned("its signature has expired, by this phone's clock")
        }
        remember(name, version.toLong(), sha256)
    }

    private fun verified(backbone: Backbone): ByteArray {
        val size = backbone.statement.size + backbone.signature.size
        if (size == 0) throw unsigned("it is not signed")
        val holds = size <= MOST && keys.any { key ->
            try {
                Signature.getInstance("SHA256withECDSA").run {
                    initVerify(key)
                    update(backbone.statement)
                    verify(backbone.signature)
                }
            } catch (_: GeneralSecurityException) {
                false
            }
        }
        return if (holds) backbone.statement else throw unsigned("it is not signed by a key that the app trusts")
    }

    private fun remember(name: String, version: Long, sha256: String) {
        val file = File(accepted.folder, name)
        val last = accepted.read(name)?.let { String(it).split(" ") }
        // A damaged note must not mean that anything goes.
        if (last == null && file.exists()) throw unsigned("the note of the last accepted version is damaged")
        val before = last?.get(0)?.toLong() ?: 0
        if (version < before) throw unsigned("version $version is older than $before, which was accepted before")
        if (version == before && sha256 != last?.get(1)) throw unsigned("another file was accepted as version $version before")
        if (version > before) accepted.write(name, "$version $sha256".toByteArray())
    }

    private companion object {
        const val SKEW = 3600L
        const val MOST = 1024

        val pattern = Regex(
            "fedhead artifact v1\n" +
                "kind backbone\n" +
                "name ([A-Za-z0-9][A-Za-z0-9._-]{0,99})\n" +
                "version ([1-9][0-9]{0,17})\n" +
                "size (0|[1-9][0-9]{0,17})\n" +
                "sha256 ([0-9a-f]{64})\n" +
                "card [0-9a-f]{64}\n" +
                "fingerprint ([0-9a-f]{64})\n" +
                "created ([1-9][0-9]{0,10})\n" +
                "expires ([1-9][0-9]{0,10})\n",
        )

        fun unsigned(why: String) = Refusal("unsigned-backbone", why)

        fun read(file: File): PublicKey {
            val text = file.readText().substringAfter("-----BEGIN PUBLIC KEY-----").substringBefore("-----END PUBLIC KEY-----")
            val key = try {
                KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(Base64.getMimeDecoder().decode(text)))
            } catch (_: GeneralSecurityException) {
                throw unsigned("a trusted key is not a public key on the curve P-256")
            }
            val curve = AlgorithmParameters.getInstance("EC").run {
                init(ECGenParameterSpec("secp256r1"))
                getParameterSpec(ECParameterSpec::class.java).curve
            }
            if ((key as ECPublicKey).params.curve != curve) throw unsigned("a trusted key is not on the curve P-256")
            return key
        }
    }
}
