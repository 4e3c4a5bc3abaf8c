"""All attacks on one client of a run, in one scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.config import Config
from common.experiment import calibration_positions, client_shares, held_out_positions
from common.rates import mean_norm
from common.types import FeatureSet
from simulations.probe.audit.messages import (
    Others,
    Sent,
    added_up,
    first_plan,
    sent_by,
    told_by_heads,
    update_of,
)
from simulations.probe.audit.reading import (
    exact_share,
    label_of_regression,
    likeness,
    lone_classes,
    lone_image,
    row_space,
    told_apart,
    whole_features,
    within,
)
from simulations.probe.audit.scenes import Scene

__all__ = ["LONE", "Attack", "Reading", "takers"]

LONE = 25
"""Images that are tried as a client's only one."""
_OTHERS = 400
"""Images of other people that a client's own are told from."""
_SOLVED = 8
"""Lone images of which a closed form's head is made, which takes a second each."""
_NOISES = 40
"""Draws of the noise on the update of the client with all its images."""

_Update = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What one adversary reads, or what a guess gives; means over all tries.

    Attributes:
        label: share of lone images whose label is right.
        exact: share of a lone image's features that are right to the last bit.
        likeness: cosine of what was read and a lone image's features.
        told_apart: chance that one of the client's images is told from somebody else's; None: not
            tried.
        rank: of what the client with all its images sent; None: likewise.
    """

    label: float
    exact: float
    likeness: float
    told_apart: float | None = None
    rank: int | None = None


def takers(config: Config) -> list[int]:
    """Clients that take part and have training examples."""
    shares = client_shares(config)
    return [i for i in config.train.participants(len(shares)) if len(shares[i].train)]


class Attack:
    """What is tried on one client, and on lone images of several.

    Args:
        scene: the run.
        target: the client's id.
    """

    def __init__(self, scene: Scene, target: int) -> None:
        config = scene.config
        self._scene, self._target, self._plan = scene, target, first_plan(scene)
        self._shares, ids = client_shares(config), takers(config)
        self._rest = [i for i in ids if i != target]
        self._own = scene.features.select(self._shares[target].train)
        self._lone = [
            scene.features.select(self._shares[i].train[[number % len(self._shares[i].train)]])
            for number, i in enumerate((target, *self._rest)[:LONE])
        ]
        self._test = scene.features.select(held_out_positions(config))
        self._usual = mean_norm(scene.features.select(calibration_positions(config)).x)

    def by_server(self) -> Reading:
        """What the server reads, which sees each update before any noise."""
        sents = [self._send(image) for image in self._lone]
        if self._plan.kind == "statistics":
            return _mean([self._of_moments(s, i) for s, i in zip(sents, self._lone, strict=True)])
        changes = [update_of(sent) for sent in (*sents, self._send(self._own))]
        read = [self._of_update(c, i) for c, i in zip(changes[:-1], self._lone, strict=True)]
        return self._with_whole(_mean(read), changes[-1:])

    def by_others(self) -> Reading | None:
        """What whoever knows all other clients' updates reads out of the next head.

        None: its head is no sum that could be taken apart.
        """
        closed = self._plan.kind == "statistics"
        lone = self._lone[:_SOLVED] if closed else self._lone
        whole = [self._own] * (_NOISES if self._plan.private else 1)
        told = [
            told_by_heads(self._scene, self._plan, self._send(features), self._others, seed)
            for seed, features in enumerate((*lone, *whole))
        ]
        known = [one for one in told if one is not None]
        if not known:
            return None
        read = [
            self._of_update(one.update, image, one.head if closed else None)
            for one, image in zip(known, lone, strict=False)
        ]
        return self._with_whole(_mean(read), [one.update for one in known[len(lone) :]])

    def by_guess(self) -> Reading:
        """What another image of the same class gives, one of the server's test images."""
        readings = []
        for image in self._lone:
            same = np.flatnonzero(self._test.labels == image.labels[0])
            if len(same):
                other = self._test.select(same[:1])
                exact = exact_share(other.q[0], image.q[0])
                readings.append(Reading(0, exact, likeness(_x(other)[0], _x(image)[0])))
        labels = np.bincount(self._test.labels)
        commonest = float(np.mean([image.labels[0] == labels.argmax() for image in self._lone]))
        mean = _mean(readings) if readings else Reading(0, 0, 0)
        return Reading(commonest, mean.exact, mean.likeness, 0.5)

    def lone_classes(self) -> int | None:
        """Classes of which the client's statistics hold one image exactly; None: it sends none."""
        if self._plan.kind != "statistics":
            return None
        found = lone_classes(self._send(self._own).fields["moments"])  # type: ignore[arg-type]
        own = self._own
        return sum(bool((own.q[own.labels == c][0] == q).all()) for c, q in found.items())

    @cached_property
    def _others(self) -> Others:
        """What the other clients of a first round have sent."""
        features, like = self._scene.features, self._send(self._own)
        if self._plan.kind == "statistics":  # which are those of all their images together
            images = [self._shares[i].train for i in self._rest]
            groups = [(self._target, np.sort(np.concatenate(images)))] if images else []
        else:
            ids = self._rest[: self._scene.context.clients_per_round - 1]
            groups = [(i, self._shares[i].train) for i in ids]
        sents = (self._send(features.select(positions), i) for i, positions in groups)
        return added_up(self._plan, like, sents)

    def _send(self, features: FeatureSet, client: int | None = None) -> Sent:
        """What a client with these images sends; None: the target."""
        client = self._target if client is None else client
        return sent_by(self._scene, self._plan, client, features)

    def _with_whole(self, reading: Reading, updates: Sequence[_Update]) -> Reading:
        """With what updates of all the client's images tell, or one several times."""
        bases = [row_space(update, 1.0 if self._plan.private else 0.0) for update in updates]
        others = _x(self._test.select(np.arange(min(_OTHERS, len(self._test)))))
        mine = _x(self._own)
        apart = [told_apart(within(mine, basis), within(others, basis)) for basis in bases]
        return dataclasses.replace(reading, told_apart=float(np.mean(apart)), rank=len(bases[0]))

    def _of_update(
        self, update: _Update, image: FeatureSet, head: _Update | None = None
    ) -> Reading:
        """Of an update of a lone image, or with a head of least squares of what changed it."""
        found = lone_image(update)
        label = found.label if head is None else label_of_regression(found, update, head)
        q = whole_features(found, image.affine, self._usual)
        return Reading(
            float(label == image.labels[0]),
            exact_share(q, image.q[0]),
            likeness(found.x, _x(image)[0]),
        )

    def _of_moments(self, sent: Sent, image: FeatureSet) -> Reading:
        found = lone_classes(sent.fields["moments"])  # type: ignore[arg-type]
        label, q = next(iter(found.items()))
        read = FeatureSet(q[None], image.labels, image.affine, image.fingerprint)
        return Reading(
            float(label == image.labels[0]),
            exact_share(q, image.q[0]),
            likeness(_x(read)[0], _x(image)[0]),
        )


def _x(features: FeatureSet) -> npt.NDArray[np.float32]:
    """Features as trainers see them, without the bias's column, float32 (n, d)."""
    return features.x[:, :-1]


def _mean(readings: Sequence[Reading]) -> Reading:
    def of(figure: Callable[[Reading], float]) -> float:
        return float(np.mean([figure(reading) for reading in readings]))

    return Reading(of(lambda r: r.label), of(lambda r: r.exact), of(lambda r: r.likeness))
