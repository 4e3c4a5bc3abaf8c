"""What Kotlin and Swift ask of device.pte, read from their sources."""

from __future__ import annotations

import re

__all__ = ["calls"]

# Names of sizes in the sources, as the file's table has them.
_SIZES = {
    "n": "n", "d": "d", "numFeatures": "d", "k": "K", "width": "D", "sizeOfImages": "S",
    "size": "S",
}  # fmt: skip
_TYPES = {"uint8": "uint8", "int64": "int64", "float32": "float"}


def calls(source: str) -> dict[str, str]:
    """Each method that is called, with its arguments' types and shapes as in ``METHODS``.

    Args:
        source: with calls such as ``module.execute("name", uint8(x, n, d))[0]``.
    """
    found: dict[str, str] = {}
    for name, rest in re.findall(r'module\.execute\("(\w+)"([^\n]*)', source):
        arguments = []
        for kind, sizes in re.findall(r"\b(uint8|int64|float32)\([\w.]+, ([^()]*)\)", rest):
            shape = [_SIZES.get(size, size) for size in re.split(r",\s*", sizes)]
            arguments.append(f"{_TYPES[kind]}[{','.join(shape)}]")
        found[name] = ", ".join(arguments)
    return found
