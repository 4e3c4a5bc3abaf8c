"""Runs a device.pte in a process of its own, all that a round asks of it; see ``run_exported``."""

import json
import sys
from importlib.metadata import version
from typing import Any

import executorch.kernels.quantized  # noqa: F401  # registers what is not in the core runtime
import torch
from executorch.runtime import Runtime
from torch import Tensor


def read(order: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Read an array that the other process has written."""
    shape = torch.Size(order["shape"])
    return torch.from_file(order["path"], size=shape.numel(), dtype=dtype).view(shape)


def main() -> None:
    """Write features, logits, the change of a head, and sums of features."""
    job = json.load(sys.stdin)
    program = Runtime.get().load_program(job["model"])
    methods: dict[str, Any] = {}

    def call(name: str, *inputs: Tensor) -> list[Tensor]:
        method = methods.setdefault(name, None) or program.load_method(name)
        methods[name] = method
        return [output.clone() for output in method.execute(inputs)]

    def write(name: str, result: Tensor, dtype: torch.dtype) -> None:
        file = torch.from_file(job["out"][name], shared=True, size=result.numel(), dtype=dtype)
        file.copy_(result.reshape(-1).to(dtype))

    noise, expected = call("probe")
    probe = torch.equal(call("features", noise)[0], expected)
    images, labels = read(job["images"], torch.uint8), read(job["labels"], torch.int64)
    q = torch.cat([call("features", image)[0] for image in torch.split(images, 1)])
    write("features", q, torch.uint8)
    (head,) = call("head")
    # The batch size is none that the file was made with.
    logits = torch.cat([call("predict", part, head)[0] for part in torch.split(q, 37)])
    write("logits", logits, torch.float32)
    gram, moments = call("gram", q[: len(labels)], labels)
    upper = torch.triu_indices(*gram.shape)
    write("gram", gram[upper[0], upper[1]], torch.int64)
    write("moments", moments, torch.int64)
    matrix, velocity, zeros, none = (torch.zeros_like(head) for _ in range(4))
    settings = torch.tensor([job["lr"], 0.0, 0.0, 0.0, 0.0])
    for order in read(job["order"], torch.int64):
        for batch in torch.split(order, job["batch"]):
            inputs = (q[batch], labels[batch], matrix, velocity, zeros, none, settings)
            matrix, velocity, _ = call("train_step", *inputs)
    write("delta", matrix, torch.float32)
    print(json.dumps({"runtime": f"executorch {version('executorch')}", "probe": probe}))


if __name__ == "__main__":
    main()
