"""Runs a TorchScript file in a process of its own, with torch and the standard library alone.

``server/export/fresh_process.py`` starts it as a script. It imports nothing of fedhead, so that the
check is the same as on a user's machine. One JSON object on standard input says what to do, and one
on standard output says the results. Arrays are passed in raw files.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Not the batch size of the training: logits must not depend on it.
_BATCH = 16


def load(kind: str, path: str) -> Callable[..., Any]:
    """A function that calls the file's methods by name; the engine must be set and stay set."""
    if kind == "lite":
        from torch.jit.mobile import _load_for_lite_interpreter

        lite = _load_for_lite_interpreter(path)  # type: ignore[no-untyped-call]
        return lambda name, *args: lite.run_method(name, *args)
    model = torch.jit.load(path)  # type: ignore[no-untyped-call]
    if kind == "model":
        return lambda name, *args: (model.backbone if name == "features" else model)(*args)
    return lambda name, *args: getattr(model, name)(*args)


def read(order: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Read an array that the other process has written."""
    size = 1
    for n in order["shape"]:
        size *= n
    return torch.from_file(order["path"], size=size, dtype=dtype).view(order["shape"])


def write(path: str, result: Tensor) -> None:
    """Write an array for the other process."""
    file = torch.from_file(path, shared=True, size=result.numel(), dtype=result.dtype)
    file.copy_(result.reshape(-1))


def main() -> None:
    """Run the file with its own engine, then with the one that torch picks by default."""
    job = json.load(sys.stdin)
    images = read(job["images"], torch.uint8)
    default = torch.backends.quantized.engine
    torch.backends.quantized.engine = job["engine"]
    call = load(job["kind"], job["model"])
    with torch.no_grad():
        features = call("features", images[:_BATCH])
        write(job["out"]["features"], features)
        batches = torch.split(images, _BATCH)
        logits = torch.cat([call("forward", batch) for batch in batches])
        write(job["out"]["logits"], logits)
        if "training" in job:
            weight, bias = call("get_head")
            zeros = torch.zeros_like(weight), torch.zeros_like(bias)
            call("set_head", *zeros, call("fingerprint"))
            call("train_epochs", features, read(job["labels"], torch.int64), *job["training"])
            write(job["out"]["delta"], call("head_delta"))
        # The promised results are written by now. If another engine cannot run the file, or crashes
        # this process, the file is not at fault.
        write(job["out"]["default_logits"], logits)
        print(json.dumps({"engine": default, "problem": "it ended the process"}), flush=True)
        torch.backends.quantized.engine, problem = default, ""
        try:
            call = load(job["kind"], job["model"])
            write(
                job["out"]["default_logits"],
                torch.cat([call("forward", batch) for batch in batches]),
            )
        except Exception as exc:
            problem = (str(exc).strip() or repr(exc)).splitlines()[-1]
    print(json.dumps({"engine": default, "problem": problem}))


if __name__ == "__main__":
    main()
