"""Prints a Markdown table of what each extra of fedhead costs on disk, over an install without.

    python docs/install_sizes.py

It counts the files that pip has recorded for the packages that the extra needs on this machine.
Extras of which a package is not installed are left out, so run it where all are: make test.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
_CUDA = ("nvidia-", "cuda-", "triton")  # what PyTorch's build for GPUs brings along


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The packages that these need, by name; PackageNotFoundError: one is not installed."""
    found: dict[tuple[str, str], Distribution] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, parent_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": parent_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            if name == "fedhead":  # as pyproject.toml has it, not as it was when it was installed
                waiting += [(Requirement(text), "") for text in _texts(extra)]
                continue
            found[name, extra], requirements_of_it = _package(name)
            waiting += [(requirement, extra) for requirement in requirements_of_it]
    return {name: package for (name, _), package in found.items()}


@cache
def _package(name: str) -> tuple[Distribution, list[Requirement]]:
    package = distribution(name)
    return package, [Requirement(text) for text in package.requires or []]


def _texts(extra: str) -> list[str]:
    return list(_PROJECT["optional-dependencies"][extra] if extra else _PROJECT["dependencies"])


@cache
def _size(name: str) -> int:
    """Bytes that the package's files take."""
    files = [Path(str(file.locate())) for file in distribution(name).files or []]
    return sum(file.stat().st_size for file in files if file.is_file())


def _row(extra: str) -> str:
    core = needed(_texts(""))
    packages = needed(_texts(extra)).keys() - (core.keys() if extra else set())
    size = sum(map(_size, packages))
    return f"| `{extra or 'fedhead'}` | {len(packages)} | {size / 1e6:,.0f} MB |"


def main() -> None:
    """Print the table."""
    print("| extra | further packages | on disk |\n| --- | ---: | ---: |")
    for extra in ("", *_PROJECT["optional-dependencies"]):
        try:
            print(_row(extra))
        except PackageNotFoundError as exc:
            print(f"| `{extra}` | not measured: {exc.name} is not installed | |")
    cuda = sum(_size(name) for name in needed(_texts("")) if name.startswith(_CUDA))
    print(f"\nOf the first line are CUDA's libraries: {cuda / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
