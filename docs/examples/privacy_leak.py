"""What a server can read out of the update of a client with few images.

Run it with ``python docs/examples/privacy_leak.py``. The features are random numbers of the shape
and type of a real backbone's: nothing below depends on what they show.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from client.sgd import train_head
from common.statistics import Statistics, feature_statistics
from common.types import Affine, FeatureSet, FloatArray, LocalTraining

NUM_CLASSES, NUM_FEATURES = 10, 672
LONE_CLASS = 7
"""The class of which the client has one image."""


def client_features(num_others: int) -> FeatureSet:
    """A client with one image of LONE_CLASS, the first, and others of the classes below it."""
    rng = np.random.default_rng(0)
    n = 1 + num_others
    affine = Affine(
        gain=np.full(NUM_FEATURES, 0.02, np.float32), center=np.full(NUM_FEATURES, 40, np.float32)
    )
    return FeatureSet(
        q=rng.integers(0, 256, (n, NUM_FEATURES), np.uint8),
        labels=np.array([LONE_CLASS, *(i % LONE_CLASS for i in range(num_others))], np.int64),
        affine=affine,
        fingerprint="of a backbone",
    )


def lone_images(statistics: Statistics) -> dict[int, npt.NDArray[np.unsignedinteger]]:
    """The features of each image that is the only one of its class, by class.

    The last column of the class sums counts the examples. Where it says 1, the sum of the class
    is the image's own features.
    """
    counts = statistics.moments[:, -1]
    return {int(c): statistics.moments[c, :-1] for c in np.flatnonzero(counts == 1)}


def trained_delta(features: FeatureSet, local_epochs: int = 1) -> FloatArray:
    """The delta (K, d + 1) that the client sends after SGD from a head of zeros."""
    n = len(features)
    training = LocalTraining(lr=0.05, local_epochs=local_epochs, batch_size=n)
    result = train_head(
        torch.from_numpy(features.x),
        torch.from_numpy(features.labels),
        torch.zeros(NUM_CLASSES, NUM_FEATURES + 1),
        training,
        [np.arange(n)] * local_epochs,
    )
    delta: FloatArray = result.delta.numpy()
    return delta


def image_behind(delta: FloatArray, affine: Affine) -> tuple[int, npt.NDArray[np.uint8]]:
    """Label and features (d,) of the only image of a client, from its delta by SGD.

    Each step, without weight decay, adds ``-lr (p - y) [x 1]^T``. All rows are multiples of
    ``[x 1]``, so a row divided by its last entry is ``[x 1]``. The row of the label is the one that
    grows.
    """
    label = int(delta[:, -1].argmax())
    x = delta[label, :-1] / delta[label, -1]
    return label, np.rint(x / affine.gain + affine.center).astype(np.uint8)


def main() -> None:
    """Take the server's place, and print what can be read."""
    client = client_features(num_others=29)
    found = lone_images(feature_statistics(client, NUM_CLASSES))
    same = int((found[LONE_CLASS] == client.q[0]).sum())
    print("fed3r, a client with 30 images, one of them of class 7")
    print(f"  classes with one image: {sorted(found)}")
    print(f"  features read exactly: {same} of {NUM_FEATURES}")

    alone = client_features(num_others=0)
    for epochs in (1, 5):
        label, q = image_behind(trained_delta(alone, epochs), alone.affine)
        same = int((q == alone.q[0]).sum())
        print(f"fedavg, a client with 1 image, local epochs: {epochs}")
        print(f"  label read: {label}, true: {LONE_CLASS}")
        print(f"  features read exactly: {same} of {NUM_FEATURES}")

    for num_images in (1, 3, 30):
        rank = np.linalg.matrix_rank(trained_delta(client_features(num_images - 1)))
        print(f"fedavg, rank of the delta, images: {num_images}, rank: {rank}")


if __name__ == "__main__":
    main()
