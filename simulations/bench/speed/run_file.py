"""Runs a model file in a process of its own, with only its runtime and the standard library.

``measure`` starts it as a script. It imports nothing of fedhead, so that memory and speed are those
of a user's process. One JSON object on standard input says what to do, and one on standard output
says the results. Arrays are passed in raw files.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Call = Callable[[], Any]
Runner = tuple[Callable[[Array], Call], Callable[[Any], Array]]
"""Makes a repeatable call for a batch, and reads a call's result."""

_WARM_UP = 3
_MOST_RUNS = 50
_FEWEST_RUNS = 7


def main() -> None:
    """Load the file, measure time and memory, and then compute features if asked."""
    job = json.load(sys.stdin)
    images = np.fromfile(job["images"]["path"], np.uint8).reshape(job["images"]["shape"])
    open_file = _RUNTIMES[job["runtime"]](job)
    before = _peak_bytes()
    start = time.perf_counter()
    bind, read = open_file(1)
    load_seconds = time.perf_counter() - start
    bind(images[:1])()
    at_one = _peak_bytes() - before
    timings = []
    for threads in job["threads"]:
        bind, read = open_file(threads)
        for batch in job["batches"]:
            seconds = _median_seconds(bind(_cycled(images, batch)), job["seconds"])
            timings.append({"threads": threads, "batch": batch, "seconds": seconds})
    found = {
        "load_seconds": load_seconds,
        "timings": timings,
        "memory_bytes": at_one,
        "peak_memory_bytes": _peak_bytes() - before,
    }
    if job["features"]:
        step = job["features"]["batch"]
        batches = [read(bind(images[i : i + step])()) for i in range(0, len(images), step)]
        np.concatenate(batches).astype(np.float32).tofile(job["features"]["path"])
    print(json.dumps(found))


def _cycled(images: Array, batch: int) -> Array:
    """A batch of any size, made by repeating the given images."""
    return np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))


def _peak_bytes() -> int:
    """Largest resident memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage's peak includes the parent process's
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(peak.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _median_seconds(call: Call, budget: float) -> float:
    """Median of repeated calls after a warm-up; as many as the budget allows."""
    for _ in range(_WARM_UP):
        call()
    seconds: list[float] = []
    while len(seconds) < _FEWEST_RUNS or (len(seconds) < _MOST_RUNS and sum(seconds) < budget):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _torch(job: dict[str, Any]) -> Callable[[int], Runner]:
    import torch

    if job["engine"]:
        torch.backends.quantized.engine = job["engine"]
    torch.set_grad_enabled(False)
    models: list[torch.nn.Module] = []

    def bind(batch: Array) -> Call:
        tensor = torch.from_numpy(np.array(batch))
        return lambda: models[0](tensor)

    def open_file(threads: int) -> Runner:
        torch.set_num_threads(threads)
        if not models:
            if job["runtime"] == "lite":
                from torch.jit.mobile import _load_for_lite_interpreter

                models.append(_load_for_lite_interpreter(job["file"]))  # type: ignore[no-untyped-call]
            else:
                models.append(torch.jit.load(job["file"]))  # type: ignore[no-untyped-call]
        return bind, lambda result: result.float().numpy()

    return open_file


def _onnx(job: dict[str, Any]) -> Callable[[int], Runner]:
    import onnxruntime

    def open_file(threads: int) -> Runner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            job["file"], options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name

        def bind(batch: Array) -> Call:
            feed = {name: np.array(batch)}
            return lambda: session.run(None, feed)

        return bind, lambda result: result[0]

    return open_file


def _executorch(job: dict[str, Any]) -> Callable[[int], Runner]:
    import executorch.kernels.quantized  # noqa: F401  # registers what is not in the core runtime
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    def open_file(threads: int) -> Runner:
        portable_lib._unsafe_reset_threadpool(threads)
        method = Runtime.get().load_program(job["file"]).load_method("forward")

        def bind(batch: Array) -> Call:
            # The program takes one image per call.
            tensors = [torch.from_numpy(np.array(image[None])) for image in batch]
            return lambda: [method.execute([tensor])[0].clone() for tensor in tensors]

        return bind, lambda result: torch.cat(result).numpy()

    return open_file


_RUNTIMES = {
    "torchscript": _torch,
    "lite": _torch,
    "onnx": _onnx,
    "executorch": _executorch,
}

if __name__ == "__main__":
    main()
