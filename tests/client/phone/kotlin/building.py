"""Kotlin's compiler, and stand-ins for the Android libraries to compile against."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

ANDROID = Path(__file__).parents[4] / "client/android"
COMPILER = Path(sys.prefix) / "kotlin/node_modules/kotlin-compiler/lib"
STUBS = Path(__file__).with_name("stubs.txt")
SOURCES = "src/main/kotlin"
LANGUAGE = "2.2"
"""The version of Kotlin that Gradle is told to use; the compiler here is newer."""


def need_compiler() -> None:
    """Skip the test where there is no compiler, and say how to get one."""
    if shutil.which("java") is None:
        pytest.skip("there is no Java: make kotlin installs it with apt-get, where it may")
    if not COMPILER.is_dir():
        pytest.skip("there is no Kotlin compiler: make kotlin gets it with npm, where it may")


def kotlin(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Compile; warnings are errors."""
    java = ["java", "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{COMPILER}/*"]
    main = ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror", "-no-reflect"]
    version = ["-language-version", LANGUAGE, "-api-version", LANGUAGE, "-jvm-target", "17"]
    command = [*java, *main, *version, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def write_stubs(folder: Path, *, without: Collection[str] = ()) -> Path:
    """Write the stand-ins, one file a class.

    Args:
        folder: where.
        without: lines to leave out.
    """
    text = STUBS.read_text()
    for name, content in re.findall(r"^FILE (\S+)\n(.*?)(?=^FILE |\Z)", text, re.M | re.S):
        lines = [line for line in content.splitlines() if line not in without]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder
