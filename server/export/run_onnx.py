"""Runs an exported ONNX file in a process of its own; see ``run_exported``."""

import json
import sys

import numpy as np
import onnxruntime


def main() -> None:
    """Write the logits of all images."""
    job = json.load(sys.stdin)
    images = np.fromfile(job["images"]["path"], np.uint8).reshape(job["images"]["shape"])
    session = onnxruntime.InferenceSession(job["model"], providers=["CPUExecutionProvider"])
    # The batch size is neither 1 nor all, because the file must take any number of images.
    logits = [session.run(None, {"images": images[i : i + 7]})[0] for i in range(0, len(images), 7)]
    np.concatenate(logits).tofile(job["out"]["logits"])
    print(json.dumps({"runtime": f"onnxruntime {onnxruntime.__version__}"}))


if __name__ == "__main__":
    main()
