"""All Kotlin files compile: the protocol without Android, the library against stand-ins."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from tests.client.phone.kotlin.building import ANDROID, LANGUAGE, SOURCES, STUBS, kotlin

pytestmark = pytest.mark.slow

Compile = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def compile_app(core: Path, stubs: Callable[[Collection[str]], Path], tmp_path: Path) -> Compile:
    """Compiles the library and the sample app, all but some lines of the stand-ins."""

    def call(*more: Path, without: Collection[str] = ()) -> subprocess.CompletedProcess[str]:
        folders = (ANDROID / "library" / SOURCES, ANDROID / "sample" / SOURCES, stubs(without))
        return kotlin("-cp", core, "-d", tmp_path / "app.jar", *folders, *more)

    return call


def test_the_library_and_the_sample_app_compile(compile_app: Compile) -> None:
    done = compile_app()
    assert done.returncode == 0, done.stderr


def test_the_readmes_app_compiles(compile_app: Compile, tmp_path: Path) -> None:
    readme = (ANDROID / "README.md").read_text()
    blocks = re.findall(r"```kotlin\n(.*?)```", readme, re.S)
    assert len(blocks) == 1
    file = tmp_path / "Readme.kt"
    file.write_text(blocks[0])
    done = compile_app(file)
    assert done.returncode == 0, done.stderr


# One declaration of each library that the phone depends on.
LINES = {
    "toStr": "    public String toStr() { return null; }",
    "execute": "    public EValue[] execute(String methodName, EValue... inputs) { return null; }",
    "runMethod": "    public IValue runMethod(String methodName, IValue... inputs) { return "
    "null; }",
    "followRedirects": "        fun followRedirects(followRedirects: Boolean): Builder = TODO()",
    "trailers": "    abstract fun trailers(): Headers",
    "getPixels": "    public void getPixels(int[] pixels, int offset, int stride, int x, int y, "
    "int width, int height) {}",
    "isStopped": "    public final boolean isStopped() { return false; }",
}


@pytest.mark.parametrize("name", LINES)
def test_it_does_not_compile_without_a_method_that_it_calls(
    name: str, compile_app: Compile
) -> None:
    assert LINES[name] in STUBS.read_text().splitlines()
    done = compile_app(without=[LINES[name]])
    assert done.returncode != 0
    assert re.search(rf"unresolved reference '{name}'", done.stderr), done.stderr


def called_names() -> dict[str, str]:
    """Methods of the stand-ins that have no namesake: their lines, and how Kotlin calls them.

    The compiler does not say that a namesake, a constructor or what the app overrides is missing.
    """
    found = []
    for line in STUBS.read_text().splitlines():
        method = re.match(r" {4,}.*?(?:fun (?:ByteArray\.)?|\S )([a-z]\w*)\(", line)
        if method and not re.match(r"on[A-Z]", method[1]):
            name = re.sub(r"^[gs]et([A-Z])", lambda match: match[1].lower(), method[1])
            found.append((line, name))
    count = Counter(name for _, name in found)
    return {line: name for line, name in found if count[name] == 1}


CALLED = called_names()


@pytest.mark.parametrize("line", [*CALLED][::6], ids=CALLED.__getitem__)
def test_what_the_stand_ins_declare_is_what_the_app_calls(line: str, compile_app: Compile) -> None:
    """Each sixth, taken over all libraries; without it the compiler stops where it is called."""
    assert len(CALLED) > 40
    done = compile_app(without=[line])
    assert done.returncode != 0
    # As a method, as a property, or by a name that Kotlin has for other types as well.
    name = CALLED[line]
    method = rf"{name}|[gs]et{name[0].upper()}{name[1:]}"
    assert re.search(
        rf"unresolved reference '({method})'|error: none of [^$]*\b{name}\(", done.stderr
    ), done.stderr


def test_the_protocol_imports_nothing_of_android() -> None:
    """It is compiled without stand-ins, so this could only be an import by reflection."""
    for path in [*(ANDROID / "core").rglob("*.kt"), *(ANDROID / "jvm").rglob("*.kt")]:
        assert not re.search(r"\b(android|androidx|org\.json|okhttp3)\.", path.read_text()), path


def test_a_redirected_call_does_not_take_the_token_elsewhere() -> None:
    text = (ANDROID / "library" / SOURCES / "dev/fedhead/android/OkHttp.kt").read_text()
    assert ".followRedirects(false)" in text
    assert ".followSslRedirects(false)" in text
    assert ".body!!.byteStream().bodyOfReply()" in text


def test_gradle_is_told_the_version_of_kotlin_that_is_tested() -> None:
    gradle = (ANDROID / "build.gradle.kts").read_text()
    versions = re.findall(r'"org\.jetbrains\.kotlin\.\w+"\) version "(\d+\.\d+)\.\d+"', gradle)
    assert versions == [LANGUAGE, LANGUAGE]


def test_the_stand_ins_are_of_the_versions_that_gradle_names() -> None:
    named = "".join(
        (ANDROID / folder / "build.gradle.kts").read_text() for folder in ("library", "sample")
    )
    stubs, readme = STUBS.read_text(), (ANDROID / "README.md").read_text()
    for group, version in re.findall(
        r'"(?:org\.pytorch|com\.squareup\.okhttp3):([\w-]+):([\d.]+)"', named
    ):
        assert f":{group} {version}" in stubs
        assert f":{group} | {version}" in readme
