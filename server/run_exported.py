"""Runs an exported model in a process of its own, with torch and the standard library alone.

Started as a script by ``server/export``. It imports nothing of fedhead, so that the check sees
what a stranger's machine sees. One JSON object on standard input says what to do; arrays pass
through raw files.
"""

import json
import sys
import zipfile

import torch

# Not the size that the training side uses: logits must not depend on it.
_BATCH = 16


def main() -> None:
    """Write the features (uint8) of the first batch and the logits (float32) of all images."""
    job = json.load(sys.stdin)
    count, _, height, width = job["shape"]
    with zipfile.ZipFile(job["model"]) as archive:
        card = json.loads(archive.read("archive/extra/card.json"))
    torch.backends.quantized.engine = card["engine"]
    model = torch.jit.load(job["model"])  # type: ignore[no-untyped-call]
    pixels = torch.from_file(job["images"], size=count * 3 * height * width, dtype=torch.uint8)
    images = pixels.view(count, 3, height, width)
    with torch.no_grad():
        features = model.backbone(images[:_BATCH])
        logits = torch.cat([model(batch) for batch in torch.split(images, _BATCH)])
    for name, result in (("features", features), ("logits", logits)):
        file = torch.from_file(job[name], shared=True, size=result.numel(), dtype=result.dtype)
        file.copy_(result.view(-1))


if __name__ == "__main__":
    main()
