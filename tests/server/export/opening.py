"""How tests open an exported file: in this process, and in a new one."""

import os
import subprocess
import sys

import torch

import server.export.exporters
from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from server.export.card import read_card


def run_python(code, *arguments, cwd=None, **environment):
    """Run in a new interpreter that could import this repository."""
    root = server.export.exporters.__file__.rsplit("/", 2)[0]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(path):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = read_card(path).engine
    try:
        with accepted_deprecations():
            return torch.jit.load(str(path))
    finally:
        torch.backends.quantized.engine = before


def run(model, images):
    with quantized_engine("qnnpack"), torch.no_grad(), accepted_deprecations():
        return model(torch.from_numpy(images)).numpy()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())
