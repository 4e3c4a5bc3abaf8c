"""Records one model file with torch's profiler, in a process of its own; see ``run_file``."""

import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile, schedule


def main() -> None:
    """Write a trace of some calls, each between two marks of the profiler."""
    job = json.load(sys.stdin)
    torch.backends.quantized.engine = job["engine"]
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    model = torch.jit.load(job["file"])  # type: ignore[no-untyped-call]
    n, *shape = job["images"]["shape"]
    count = n * torch.Size(shape).numel()
    images = torch.from_file(job["images"]["path"], size=count, dtype=torch.uint8).view(n, *shape)
    image = images[:1].clone()
    steps = schedule(wait=0, warmup=job["warm_up"], active=job["calls"], repeat=1)
    with profile(
        activities=[ProfilerActivity.CPU], schedule=steps, record_shapes=True, with_modules=True
    ) as profiler:
        for _ in range(job["warm_up"] + job["calls"]):
            model(image)
            profiler.step()
    profiler.export_chrome_trace(job["trace"])
    print(json.dumps({"torch": torch.__version__, "kernels": _kernels(model)}))


def _kernels(model: torch.jit.ScriptModule) -> dict[str, list[int]]:
    """Shape of each convolution's weight: outputs, inputs per group, height, width."""
    shapes = {}
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            weight, _ = torch.ops.quantized.conv2d_unpack(module._packed_params)
            shapes[name] = list(weight.shape)
    return shapes


if __name__ == "__main__":
    main()
