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
import java.util.concurrent.TimeUnit

/** The background job: once a day, while nobody uses the phone, it fetches the finished model. */
class FetchModel(context: Context, parameters: WorkerParameters) : Worker(context, parameters) {
    override fun doWork(): Result {
        val update = TakePart.phone(applicationContext).updateModel(NAME) { !isStopped }
        Log.i("fedhead", update.problem ?: whereItIs(applicationContext))
        return Result.success()
    }

    companion object {
        /** As fedhead publish --name has it. */
        private const val NAME = "model.pte"

        /** Where the model is that an app would load, in words. */
        fun whereItIs(context: Context): String =
            TakePart.phone(context).model(NAME)?.let { "$NAME version ${it.version} is at ${it.file}" } ?: "$NAME is not here yet"

        fun schedule(context: Context) {
            val conditions = Constraints.Builder()
                .setRequiresDeviceIdle(true)
                .setRequiredNetworkType(NetworkType.UNMETERED)
                .build()
            val request = PeriodicWorkRequest.Builder(FetchModel::class.java, 24, TimeUnit.HOURS).setConstraints(conditions).build()
            WorkManager.getInstance(context).enqueueUniquePeriodicWork("fedhead-model", ExistingPeriodicWorkPolicy.KEEP, request)
        }
    }
}
