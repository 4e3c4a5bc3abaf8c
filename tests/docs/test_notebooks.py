"""The notebooks run from the top to the end, and are kept without what they gave."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    pytest.importorskip("mlxtend", reason="pip install 'fedhead[demo]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'fedhead[dev]'")
    (tmp_path / path.name).write_bytes(path.read_bytes())
    # In a process of its own: a kernel's client leaves sockets to the garbage collector.
    code = (
        f"import nbformat, {nbclient.__name__} as client, sys\n"
        "book = nbformat.read(sys.argv[1], 4)\n"
        "client.NotebookClient(book, timeout=280, kernel_name='python3').execute()\n"
        "outputs = [o for c in book.cells if c.cell_type == 'code' for o in c.outputs]\n"
        "print(sum('text/html' in o.get('data', {}) for o in outputs))\n"
        "print([o.text for o in outputs if o.get('name') == 'stderr'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path.name],
        cwd=tmp_path, env={**environment, "JUPYTER_PLATFORM_DIRS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown, errors = done.stdout.splitlines()[-2:]
    assert int(shown) >= 2
    # Torch's default engine gives other classes on some processors, and a run warns of it.
    warned = "model.pt is right on qnnpack; torch's "
    assert all(line.startswith(warned) for line in ast.literal_eval(errors)), errors
