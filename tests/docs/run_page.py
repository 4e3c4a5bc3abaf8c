"""Run a page's blocks in their order, as a reader would: python run_page.py PAGE.

Shell blocks share the working folder, Python blocks one namespace. A block that shows a file
writes it where it is not there. The first block that fails ends it.
"""

from __future__ import annotations

import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from fenced import Block, blocks


def main(page: Path) -> int:
    """The exit code: 0 where every block that is run succeeded."""
    sys.path[0] = ""  # as in a notebook or `python -c`: modules in the working folder are found
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page.read_text()):
        if "file" in block.notes and not (shown := Path(block.notes["file"])).exists():
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.write_text(block.text)
        if block.is_run:
            print(f"--- {page}:{block.line}\n{block.text}", flush=True)
            run_python(block, page, names) if block.language == "python" else run_shell(block)
    return 0


def run_shell(block: Block) -> None:
    """With bash, which ends at the first command that fails."""
    code = subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=False).returncode
    if code:
        sys.exit(f"exit code {code}")


def run_python(block: Block, page: Path, names: dict[str, Any]) -> None:
    """In the page's namespace."""
    where = f"{page}:{block.line}"
    linecache.cache[where] = (len(block.text), None, block.text.splitlines(keepends=True), where)
    exec(compile(block.text, where, "exec"), names)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
