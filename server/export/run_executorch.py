"""Runs an exported ExecuTorch file in a process of its own; see ``run_exported``."""

import json
import sys
from importlib.metadata import version

import executorch.kernels.quantized  # noqa: F401  # registers what is not in the core runtime
import torch
from executorch.runtime import Runtime


def main() -> None:
    """Write the logits of all images."""
    job = json.load(sys.stdin)
    n, *shape = job["images"]["shape"]
    size = n * torch.Size(shape).numel()
    images = torch.from_file(job["images"]["path"], size=size, dtype=torch.uint8).view(n, *shape)
    program = Runtime.get().load_program(job["model"])
    method = program.load_method("forward")
    logits = torch.cat([method.execute([image])[0].clone() for image in torch.split(images, 1)])
    file = torch.from_file(
        job["out"]["logits"], shared=True, size=logits.numel(), dtype=torch.float32
    )
    file.copy_(logits.reshape(-1))
    print(json.dumps({"runtime": f"executorch {version('executorch')}"}))


if __name__ == "__main__":
    main()
