package dev.fedhead.trainer

import dev.fedhead.Seeding
import dev.fedhead.protocol.Training
import kotlin.math.pow
import kotlin.math.sqrt

/** A model that gives a batch's gradient; the steps are here, as in client/sgd.py. */
abstract class StepModel : Model {
    /**
     * The gradient of a batch's mean cross-entropy, (K, d + 1), times the preconditioner if there is
     * one.
     */
    protected abstract fun gradient(batch: Examples, matrix: FloatArray, work: Work): FloatArray

    override fun delta(work: Work): FloatArray {
        val n = work.examples.size
        val training = work.training
        val batchSize = if (training.batchSize > 0) training.batchSize else n
        val optimizer = if (training.optimizer == "sgd") Sgd(training, work.head.size) else Adam(training, work.head.size)
        val matrix = work.head.copyOf()
        for (epoch in 0 until training.epochs) {
            val order = batchOrder(n, training.batchSeed, epoch)
            for (first in 0 until n step batchSize) {
                if (!work.mayGoOn()) throw Stopped()
                val batch = work.examples.at(order.copyOfRange(first, minOf(first + batchSize, n)))
                val direction = gradient(batch, matrix, work)
                optimizer.pull(direction, matrix)
                pull(direction, matrix, work)
                optimizer.step(matrix, direction)
            }
        }
        return FloatArray(matrix.size) { matrix[it] - work.head[it] }
    }

    // What the plan adds to each gradient.
    private fun pull(direction: FloatArray, matrix: FloatArray, work: Work) {
        val mu = work.training.mu.toFloat()
        if (mu != 0f) for (i in matrix.indices) direction[i] += mu * (matrix[i] - work.head[i])
        work.correction?.let { for (i in it.indices) direction[i] += it[i] }
    }
}

/** The order in which a client visits its n examples in one local epoch. */
fun batchOrder(n: Int, batchSeed: Long, epoch: Int): IntArray =
    Seeding.permutation(n, Seeding.next(batchSeed, epoch.toLong()))

private interface Optimizer {
    /** Adds to a gradient. */
    fun pull(direction: FloatArray, matrix: FloatArray)

    /** Changes the head. */
    fun step(matrix: FloatArray, direction: FloatArray)
}

/** Heavy-ball momentum, whose velocity is the direction of the last step. */
private class Sgd(private val training: Training, size: Int) : Optimizer {
    private var velocity = FloatArray(size)

    override fun pull(direction: FloatArray, matrix: FloatArray) {
        val momentum = training.momentum.toFloat()
        val decay = training.weightDecay.toFloat()
        for (i in direction.indices) direction[i] += momentum * velocity[i] + decay * matrix[i]
    }

    override fun step(matrix: FloatArray, direction: FloatArray) {
        val lr = training.lr.toFloat()
        velocity = direction
        for (i in matrix.indices) matrix[i] -= lr * direction[i]
    }
}

/** Adam, or AdamW, whose decay goes past the moments; with the defaults of torch.optim. */
private class Adam(private val training: Training, size: Int) : Optimizer {
    private val mean = FloatArray(size)
    private val square = FloatArray(size)
    private var steps = 0

    override fun pull(direction: FloatArray, matrix: FloatArray) {
        val decay = if (training.optimizer == "adam") training.weightDecay.toFloat() else 0f
        if (decay != 0f) for (i in direction.indices) direction[i] += decay * matrix[i]
    }

    override fun step(matrix: FloatArray, direction: FloatArray) {
        steps += 1
        val lr = training.lr.toFloat()
        val first = (1 - FIRST.pow(steps)).toFloat()
        val second = (1 - SECOND.pow(steps)).toFloat()
        val shrink = if (training.optimizer == "adamw") (1 - training.lr * training.weightDecay).toFloat() else 1f
        for (i in matrix.indices) {
            mean[i] = FIRST.toFloat() * mean[i] + (1 - FIRST).toFloat() * direction[i]
            square[i] = SECOND.toFloat() * square[i] + (1 - SECOND).toFloat() * direction[i] * direction[i]
            matrix[i] = shrink * matrix[i] - lr * (mean[i] / first) / (sqrt(square[i] / second) + EPSILON)
        }
    }

    private companion object {
        const val FIRST = 0.9
        const val SECOND = 0.999
        const val EPSILON = 1e-8f
    }
}
