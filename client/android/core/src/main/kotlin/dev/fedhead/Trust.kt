package dev.fedhead

import dev.fedhead.protocol.Backbone
import dev.fedhead.protocol.Blob
import dev.fedhead.protocol.Model
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

/** Why a phone does not load a file. What it says is sent to the gateway, so it names no path. */
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
 * A backbone or a model is loaded only if one of them has signed it, and never an older one than before.
 *
 * @param keys the folder of the keys, as they are in PEM.
 * @param accepted the folder that says which versions were accepted last; those of models are in model/.
 */
internal class Trust(keys: File, accepted: File) {
    private val keys = keys.listFiles().orEmpty().filter { !it.name.startsWith(".") }.map(::read)
    private val accepted = mapOf(BACKBONE to Disk(accepted), MODEL to Disk(File(accepted, MODEL)))

    init {
        // A folder that has lost its keys must not mean that everything is accepted.
        if (this.keys.size !in 1..2) throw unsigned(BACKBONE, "the app trusts ${this.keys.size} keys, expected one or two")
    }

    /** Checks a statement by the rules of delivery.proto, and remembers its version. */
    fun accept(backbone: Backbone, fingerprint: String) {
        val stated = valid(BACKBONE, backbone.statement, backbone.signature, backbone.file)
        when {
            !stated.name.endsWith(".${backbone.format}") -> throw unsigned(BACKBONE, "it was signed as ${stated.name}")
            stated.fingerprint != fingerprint -> throw unsigned(BACKBONE, "another fingerprint was signed")
        }
        checkOrder(stated, last(stated))
        remember(stated)
    }

    /**
     * Checks a model in all but its card's fingerprint; what [Statement.checkCard] and [remember] are for.
     *
     * @param inUse version and SHA-256 of the file in use, which may be of a time without keys.
     */
    fun check(model: Model, inUse: Pair<Long, String>?): Statement {
        val stated = valid(MODEL, model.statement, model.signature, model.file)
        when {
            stated.name != model.name -> throw unsigned(MODEL, "it was signed as ${stated.name}")
            stated.version != model.version -> throw unsigned(MODEL, "version ${stated.version} was signed")
            stated.card != model.card.sha256 -> throw unsigned(MODEL, "another card was signed")
        }
        checkOrder(stated, listOfNotNull(last(stated), inUse).maxByOrNull { it.first })
        return stated
    }

    /** From now on nothing older is accepted. */
    fun remember(stated: Statement) {
        if (stated.version > (last(stated)?.first ?: 0)) {
            accepted.getValue(stated.kind).write(stated.name, "${stated.version} ${stated.sha256}".toByteArray())
        }
    }

    private fun valid(kind: String, statement: ByteArray, signature: ByteArray, file: Blob): Statement {
        checkSigned(kind, statement, signature)
        val stated = Statement.read(String(statement, Charsets.ISO_8859_1))
        if (stated?.kind != kind) throw unsigned(kind, "what was signed is not a statement of fedhead artifact v1 about a $kind")
        val now = System.currentTimeMillis() / 1000
        when {
            stated.sha256 != file.sha256 || stated.size != file.size -> throw unsigned(kind, "another file was signed")
            now < stated.created - SKEW -> throw unsigned(kind, "it was signed in the future, by this phone's clock")
            now > stated.expires + SKEW -> throw unsigned(kind, "its signature has expired, by this phone's clock")
        }
        return stated
    }

    private fun checkSigned(kind: String, statement: ByteArray, signature: ByteArray) {
        val size = statement.size + signature.size
        if (size == 0) throw unsigned(kind, "it is not signed")
        val holds = size <= MOST && keys.any { key ->
            try {
                Signature.getInstance("SHA256withECDSA").run {
                    initVerify(key)
                    update(statement)
                    verify(signature)
                }
            } catch (_: GeneralSecurityException) {
                false
            }
        }
        if (!holds) throw unsigned(kind, "it is not signed by a key that the app trusts")
    }

    private fun checkOrder(stated: Statement, last: Pair<Long, String>?) {
        val (before, sha256) = last ?: return
        val version = stated.version
        if (version < before) throw unsigned(stated.kind, "version $version is older than $before, which was accepted before")
        if (version == before && stated.sha256 != sha256) {
            throw unsigned(stated.kind, "another file was accepted as version $version before")
        }
    }

    private fun last(stated: Statement): Pair<Long, String>? {
        val disk = accepted.getValue(stated.kind)
        val note = disk.read(stated.name)?.let { NOTE.matchEntire(String(it)) }
        // A damaged note must not mean that anything goes.
        if (note == null && File(disk.folder, stated.name).exists()) {
            throw unsigned(stated.kind, "the note of the last accepted version is damaged")
        }
        return note?.destructured?.let { (version, sha256) -> version.toLong() to sha256 }
    }

    private companion object {
        const val SKEW = 3600L
        const val MOST = 1024
        val NOTE = Regex("([1-9][0-9]{0,17}) ([0-9a-f]{64})")

        const val BACKBONE = "backbone"
        const val MODEL = "model"

        fun unsigned(kind: String, why: String) = Refusal("unsigned-$kind", why)

        fun read(file: File): PublicKey {
            val text = file.readText().substringAfter("-----BEGIN PUBLIC KEY-----").substringBefore("-----END PUBLIC KEY-----")
            val key = try {
                KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(Base64.getMimeDecoder().decode(text)))
            } catch (_: GeneralSecurityException) {
                throw unsigned(BACKBONE, "a trusted key is not a public key on the curve P-256")
            }
            val curve = AlgorithmParameters.getInstance("EC").run {
                init(ECGenParameterSpec("secp256r1"))
                getParameterSpec(ECParameterSpec::class.java).curve
            }
            if ((key as ECPublicKey).params.curve != curve) throw unsigned(BACKBONE, "a trusted key is not on the curve P-256")
            return key
        }
    }
}
