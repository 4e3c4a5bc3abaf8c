package dev.fedhead.sample

import android.content.Context
import android.util.Log
import androidx.work.Constraints
import androidx.work.ExistingPeriodicWorkPolicy
import androidx.work.NetworkType
import androidx.work.PeriodicWorkRequest
import androidx.work.WorkManager
import androidx.work.Worker
import androidx.work.WorkerParameters
import dev.fedhead.Phone
import dev.fedhead.android.ExecutorchTrainer
import dev.fedhead.android.open
import java.io.File
import java.util.concurrent.TimeUnit

/** The background job: while the phone charges on Wi-Fi, it takes part in rounds. */
class TakePart(context: Context, parameters: WorkerParameters) : Worker(context, parameters) {
    override fun doWork(): Result {
        val visit = phone(applicationContext).takePart { !isStopped }
        Log.i("fedhead", visit.words)
        return Result.success()
    }

    companion object {
        private var opened: Phone? = null

        /** The phone of this app. Its folder, as fedhead deploy --phone made it, is in the assets. */
        @Synchronized
        fun phone(context: Context): Phone = opened ?: run {
            val folder = File(context.filesDir, "fedhead").apply { mkdirs() }
            for (name in listOf("phone.toml", "phone.token", "ca.crt")) {
                context.assets.open("fedhead/$name").use { from -> File(folder, name).outputStream().use(from::copyTo) }
            }
            Phone.open(folder, ExecutorchTrainer(), "sample 1.0").also { opened = it }
        }

        /** Runs the job from now on, as often as WorkManager allows: each quarter of an hour. */
        fun schedule(context: Context) {
            val conditions = Constraints.Builder()
                .setRequiresCharging(true)
                .setRequiredNetworkType(NetworkType.UNMETERED)
                .build()
            val request = PeriodicWorkRequest.Builder(TakePart::class.java, 15, TimeUnit.MINUTES).setConstraints(conditions).build()
            WorkManager.getInstance(context).enqueueUniquePeriodicWork("fedhead", ExistingPeriodicWorkPolicy.KEEP, request)
        }
    }
}
