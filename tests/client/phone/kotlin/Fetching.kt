/** A phone that fetches a model and is ended: by its owner, or before a change of a file. It tells what it has. */
@file:Suppress("DEPRECATION")

package dev.fedhead

import dev.fedhead.jvm.JavaHttp2
import dev.fedhead.trainer.SoftmaxTrainer
import java.io.File
import java.security.Permission

object Fetching {
    @JvmStatic
    fun main(arguments: Array<String>) {
        val (folder, name, how, number) = arguments
        var left = number.toInt()
        val phone = Phone.open(File(folder), SoftmaxTrainer(1) { ByteArray(0) }, ::JavaHttp2)
        if (how == "kill") System.setSecurityManager(Deadly(File(folder, "state").path, left))
        val update = phone.updateModel(name) { how != "allow" || left-- > 0 }
        val (model, before) = update.model to phone.modelBefore(name)
        println("${model?.version} ${before?.version} ${update.isNew} ${update.problem}")
    }

    // It is asked before a file is opened to write, moved or removed.
    private class Deadly(private val folder: String, private var left: Int) : SecurityManager() {
        override fun checkPermission(permission: Permission) = Unit

        override fun checkPermission(permission: Permission, context: Any) = Unit

        override fun checkWrite(file: String) = step(file)

        override fun checkDelete(file: String) = step(file)

        @Synchronized
        private fun step(file: String) {
            if (file.startsWith(folder) && left-- == 0) Runtime.getRuntime().halt(KILLED)
        }
    }

    private const val KILLED = 137
}
