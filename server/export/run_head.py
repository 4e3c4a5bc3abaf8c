"""Reads an exported head in a process of its own; see ``run_exported``."""

import json
import sys

import numpy as np
import safetensors


def main() -> None:
    """Write both arrays as they are in the file, and print its metadata."""
    job = json.load(sys.stdin)
    with safetensors.safe_open(job["model"], framework="numpy") as file:
        metadata = file.metadata()
        for name in ("weight", "bias"):
            np.ascontiguousarray(file.get_tensor(name)).tofile(job["out"][name])
    runtime = f"safetensors {safetensors.__version__}"
    print(json.dumps({"metadata": metadata, "runtime": runtime}))


if __name__ == "__main__":
    main()
