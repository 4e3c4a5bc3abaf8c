"""A field of one's own: each client also sends the norm of its update."""

import dataclasses

import numpy as np

from common.fields import FIELDS, Field
from server.strategies.averaging import fedavg
from server.strategy import mean


def norm_of_delta(trained):
    """float32 (1,): computed on the client, after its training."""
    return np.array([np.linalg.norm(trained.delta)], np.float32)


# In a fork this is one more row of the table in common/fields.py.
FIELDS["delta_norm"] = Field(
    lambda num_classes, num_features: (1,),
    norm_of_delta,
    is_bounded=False,
    exact=True,  # no codec rounds it
)


def fedavg_with_norms():
    """FedAvg that reports the clients' mean norm in each round."""
    plain = fedavg()

    def plan(state, context):
        return dataclasses.replace(plain.plan(state, context), fields=("delta", "delta_norm"))

    def aggregate(state, head, updates, context):
        norm = float(mean(updates, "delta_norm")[0])
        return *plain.aggregate(state, head, updates, context), {"delta-norm": norm}

    return dataclasses.replace(plain, name="fedavg_with_norms", plan=plan, aggregate=aggregate)
