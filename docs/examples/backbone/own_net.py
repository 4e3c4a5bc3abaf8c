"""A backbone of one's own, and a run on it: python docs/examples/backbone/own_net.py [RUN]."""

import sys
from pathlib import Path

from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from common.backbone.architectures import ARCHITECTURES, Architecture

HERE = Path(__file__).parent


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self, channels):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, 32, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.sum = FloatFunctional()  # an addition that can be quantized

    def forward(self, x):
        """float32 (n, C, h, w) to the same shape."""
        return self.sum.add(x, self.branch(x))


def network():
    """Images (n, 3, H, W) to feature maps (n, 48, h, w)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Residual(16), Residual(16),
        nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6(),
    )  # fmt: skip


# In a fork this is one more row of the table in common/backbone/architectures.py.
ARCHITECTURES["own_net"] = Architecture(
    "own_net",
    "OwnNet",
    network=f"{__name__}:network",
    mean=(0.5, 0.5, 0.5),  # as the weights were trained
    std=(0.25, 0.25, 0.25),
)


def main(out):
    """Train on this backbone."""
    import fedhead

    run = fedhead.run(HERE / "experiment.toml", out=out, overwrite=True, progress=False)
    print(f"accuracy {run.summary['accuracy']:.3f}, {run.path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own-net")
