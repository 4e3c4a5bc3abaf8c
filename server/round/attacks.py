"""Attacks of malicious simulated clients, computed on the server from all updates.

Like absence, attacks are simulated on the server. There, an attacker knows all honest updates,
which makes it strongest, and the result is the same with any engine and number of nodes. In a round
of statistics before a gradient strategy, attackers are honest; only label-flip and backdoor, which
change a client's data, apply there too. A client's own memory, such as SCAFFOLD's control variate,
is not changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from common.config import AttackConfig
from common.seeding import Purpose, normal
from common.types import ClientPlan, UpdateBatch
from common.updates import client_weights

__all__ = ["corrupt"]

_Rows = npt.NDArray[np.generic]


def corrupt(
    updates: UpdateBatch,
    malicious: Collection[int],
    attack: AttackConfig,
    plan: ClientPlan,
    *,
    seed: int,
    round_number: int,
) -> UpdateBatch:
    """Replace the malicious clients' rows, in every field that has the shape of a head.

    - sign-flip: ``-scale * own`` (Allen-Zhu et al., arXiv 2012.14368, scaled).
    - alie: ``mean + scale * std`` of the honest rows, "a little is enough" (Baruch et al.,
      arXiv 1902.06156); ``std`` is the sample's standard deviation.
    - ipm: ``-scale * mean`` of the honest rows, inner product manipulation (Xie et al.,
      arXiv 1903.03936).
    - gaussian: ``scale * N(0, 1)``, drawn for each round and client (Blanchard et al.,
      arXiv 1703.02757).
    - nan: NaN, which the server's checks must refuse.
    - inflate: the unchanged update, with ``scale`` times its number of examples; statistics are
      multiplied, as if each example occurred that many times.
    - backdoor: ``scale * own``, the model replacement of Bagdasaryan et al., arXiv 1807.00459, of
      an update that was trained on poisoned examples, see common.backdoor.

    In a round without honest clients, all rows are used in place of the honest ones.

    Args:
        updates: single clients' rows.
        malicious: ids of all malicious clients.
        attack: the attack's settings.
        plan: the round's plan.
        seed: the run's seed.
        round_number: from 1.
    """
    bad = np.array([ids[0] in malicious for ids in updates.client_ids], np.bool_)
    if not bad.any():
        return updates
    if attack.kind == "inflate":
        return _inflated(updates, bad, int(attack.strength), plan)
    fields = dict(updates.fields)
    clients = [ids[0] for ids in updates.client_ids]
    for number, name in enumerate(sorted(fields)):
        if fields[name].ndim != 3:  # a number instead of a delta, such as FedNova's steps
            continue
        rows = fields[name].copy()
        if attack.kind == "gaussian":
            for i in np.flatnonzero(bad):
                keys = (round_number, clients[i], number)
                noise = normal(rows[i].size, seed, Purpose.ATTACK_NOISE, *keys)
                rows[i] = attack.strength * noise.reshape(rows[i].shape)
        else:
            rows[bad] = _made(rows[bad], rows[~bad] if not bad.all() else rows, attack)
        fields[name] = rows
    return dataclasses.replace(updates, fields=fields)


def _made(own: _Rows, honest: _Rows, attack: AttackConfig) -> npt.NDArray[np.float32]:
    """Rows of malicious clients, (m, K, d + 1), or one row that all of them send."""
    scale = attack.strength
    mean = honest.mean(axis=0, dtype=np.float64)
    match attack.kind:
        case "sign-flip":
            made = -scale * own.astype(np.float64)
        case "alie":
            deviation = honest.std(axis=0, dtype=np.float64, ddof=min(1, len(honest) - 1))
            made = mean + scale * deviation
        case "ipm":
            made = -scale * mean
        case "backdoor":
            made = scale * own.astype(np.float64)
        case _:
            made = np.full_like(mean, np.nan)
    with np.errstate(over="ignore"):  # a huge scale may give infinity, which is refused
        return made.astype(np.float32)


def _inflated(
    updates: UpdateBatch, bad: npt.NDArray[np.bool_], factor: int, plan: ClientPlan
) -> UpdateBatch:
    factors = np.where(bad, factor, 1)
    counts = updates.num_examples * factors
    fields = updates.fields
    if plan.kind == "statistics":
        fields = {
            name: rows.astype(np.uint64)
            * factors.astype(np.uint64).reshape(-1, *[1] * (rows.ndim - 1))
            for name, rows in fields.items()
        }
    weights = client_weights(plan, counts)
    return dataclasses.replace(updates, num_examples=counts, weights=weights, fields=fields)
