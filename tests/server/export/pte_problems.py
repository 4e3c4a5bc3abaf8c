"""What device.pte must compute: the client's steps, exact sums, clipped updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.sgd import Terms, train_head
from common.privacy.integers import clipped, is_within
from common.seeding import batch_order
from common.softmax import rows_of_norm, softmax_loss
from common.statistics import feature_statistics
from common.types import FeatureSet, LocalTraining

# name: learning rate, momentum, weight decay, mu, unit norm, correction, preconditioner
CASES = {
    "plain": (0.01, 0.0, 0.0, 0.0, 0.0, False, False),
    "momentum": (0.01, 0.9, 0.0, 0.0, 0.0, False, False),
    "decay": (0.01, 0.0, 0.1, 0.0, 0.0, False, False),
    "mu": (0.01, 0.0, 0.0, 0.5, 0.0, False, False),
    "correction": (0.01, 0.0, 0.0, 0.0, 0.0, True, False),
    "preconditioner": (0.001, 0.9, 1e-3, 0.1, 0.0, True, True),
    "unit norm": (0.5, 0.0, 0.0, 0.0, 2.0, False, False),
    "all": (0.01, 0.9, 1e-3, 0.1, 0.0, True, False),
}


class Problem:
    """Fifty steps on 50 examples, and what client/sgd makes of them."""

    def __init__(self, trained, case):
        self.trained = trained
        self.lr, self.momentum, self.decay, self.mu, self.unit, corrects, conditions = case
        g = torch.Generator().manual_seed(0)
        affine, n = trained.backbone.affine, 50
        self.q, self.labels = trained.features[:n], trained.labels[:n]
        k, width = trained.head.num_classes, self.q.shape[1] + 1
        self.start = 0.01 * torch.randn(k, width, generator=g)
        self.correction = 0.01 * torch.randn(k, width, generator=g) * corrects
        noise = 0.01 * torch.randn(width, width, generator=g)
        self.conditioner = torch.eye(width) + noise @ noise.t() if conditions else None
        self.orders = [batch_order(n, seed=0, round_number=1, client=2, epoch=e) for e in range(10)]
        x = torch.cat([torch.from_numpy(affine(self.q)), torch.ones(n, 1)], dim=1)
        self.x = rows_of_norm(x, self.unit) if self.unit else x
        training = LocalTraining(self.lr, 10, 10, self.momentum, self.decay)
        terms = Terms(self.mu, self.correction if corrects else None, self.conditioner)
        labels = torch.from_numpy(self.labels)
        self.want = train_head(self.x, labels, self.start, training, self.orders, terms)

    def check(self, step):
        """Fifty calls of a step give the same change of the head, and each the batch's loss."""
        q, labels = torch.from_numpy(self.q.copy()), torch.from_numpy(self.labels)
        settings = torch.tensor([self.lr, self.momentum, self.decay, self.mu, self.unit])
        matrix, velocity = self.start.clone(), torch.zeros_like(self.start)
        end = [] if self.conditioner is None else [self.conditioner]
        steps = 0
        for order in self.orders:
            for batch in torch.split(torch.from_numpy(order), 10):
                loss = softmax_loss(self.x[batch], labels[batch], matrix)
                rows = (q[batch], labels[batch])
                heads = (matrix, velocity, self.start.clone(), self.correction.clone())
                matrix, velocity, told = step(*rows, *heads, settings, *end)
                assert float(told) == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
                steps += 1
        assert steps == self.want.steps == 50
        moved = float(self.want.delta.abs().max())
        assert moved > 1e-2
        assert float((matrix - self.start - self.want.delta).abs().max()) <= 1e-6


def check_sums(gram_of, q, labels, affine):
    """The Gram and the moments of a batch, to the bit."""
    gram, moments = gram_of(torch.from_numpy(q), torch.from_numpy(labels))
    want = feature_statistics(FeatureSet(q, labels, affine, ""), 10)
    upper = np.triu_indices(q.shape[1] + 1)
    assert np.array_equal(gram.numpy()[upper].astype(np.uint64), want.gram)
    assert np.array_equal(moments.numpy().astype(np.uint64), want.moments)


def check_clipped(clip_of, shape):
    """A clipped update, to the bit: the integers, and whether it was within the clip."""
    rng, within = np.random.default_rng(0), set()
    for size in (0.0, 1e-30, 1e-8, 1e-3, 1.0, 1e6):
        for clip in (0.1, 1.0, 3.7):
            delta = (size * rng.normal(size=shape)).astype(np.float32)
            bound = torch.tensor([clip], dtype=torch.float64)
            integers, told = clip_of(torch.from_numpy(delta), bound)
            assert np.array_equal(integers.numpy(), clipped(delta, clip))
            assert bool(told) == is_within(delta, clip)
            within.add(bool(told))
    assert within == {True, False}
