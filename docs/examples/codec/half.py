"""A codec of one's own: clients send their numbers in half precision."""

import dataclasses

import numpy as np

from common.codecs import CODECS, Codec
from server.strategies.averaging import fedavg


def encode(array, seed):
    """float32 numbers as 2 bytes each."""
    return array.astype("<f2").tobytes()


def decode(payload, layout, seed):
    """The bytes back into an array of the shape that the server expects."""
    return np.frombuffer(payload, "<f2").reshape(layout.shape).astype(np.float32)


# In a fork this is a file in common/codecs/ and one more row of the table in its __init__.py.
CODECS["half"] = Codec("half", encode, decode, carries="f")


def fedavg_in_halves():
    """FedAvg over this codec: half the bytes up."""
    plain = fedavg()

    def plan(state, context):
        return dataclasses.replace(plain.plan(state, context), uplink="half")

    return dataclasses.replace(plain, name="fedavg_in_halves", plan=plan)
