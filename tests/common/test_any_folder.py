"""Any folder at all: each image is used or accounted for, no class is invented or emptied."""

import os
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.files import shown
from tests.common.folders import image, load

CLASSES = [os.fsdecode(name) for name in (
    b"cats", b"dogs", b"Cats", b"caf\xc3\xa9", b"cafe\xcc\x81", b"caf\xe9", b"a\nb"
)]  # fmt: skip
JUNK = ("@eaDir", ".hidden", "__MACOSX")
FOLDERS = [*CLASSES, "train", "Training_Set", "test", "val", "user 1", *JUNK]
KINDS = ("good", "good", "good", "broken", "empty", ".txt", ".heic", "bare", "hidden", "gone",
         "file link", "folder link", "pipe")  # fmt: skip


def build(root, entries):
    """The folder that the entries describe; gives the good images by their colours."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    good = {}
    for i, (place, kind) in enumerate(entries):
        folder = root.joinpath(*place)
        folder.mkdir(parents=True, exist_ok=True)
        endings = {".txt": ".txt", ".heic": ".heic", "bare": "", "folder link": ""}
        path = folder / f"{'.' * (kind == 'hidden')}{i}{endings.get(kind, '.png')}"
        colour = (i % 16 * 16, i // 16 * 16, 99)
        match kind:
            case "good" | "hidden":
                path.write_bytes(image(colour))
            case "gone" | "file link" | "folder link":
                path.symlink_to({"gone": "gone", "file link": "/etc/passwd"}.get(kind, "/"))
            case "pipe":
                os.mkfifo(path)
            case _:
                path.write_bytes(b"" if kind == "empty" else b"no image")
        if kind == "good":
            good[colour] = path
    return good


def look(root):
    """With other means: what stands in an image's place, and how many of what else there is."""
    images, others = [], Counter()
    for parent, folders, names in os.walk(root):
        for name in folders + names:
            path = Path(parent, name)
            if name in JUNK:
                others[f"{name}/"] += 1
            elif name.startswith("."):
                others["hidden"] += 1
            elif name.endswith(".png") or (path.is_symlink() and path.is_dir()):
                images.append(path)
            elif not path.is_dir():
                others[path.suffix or "other files"] += 1
        folders[:] = [name for name in folders if name not in JUNK]
    return images, others


def called(folder):
    return unicodedata.normalize("NFC", shown(folder.name))


def said(words, log):
    return sum(int(number) for number in re.findall(rf"(\d+) {words}", log))


def is_class(folder, images, classes):
    """It has an image of its own, and each folder beside it is a class if there is any in it."""
    own = any(path.parent == folder for path in images)
    within = (path.relative_to(folder.parent) for path in images if folder.parent in path.parents)
    return (
        own and {called(Path(path.parts[0])) for path in within if len(path.parts) > 1} <= classes
    )


def check(root, good, dataset, log):
    """The rule: each image is used or accounted for in words, no class invented or emptied."""
    images, others = look(root)
    colours = dataset.images(np.arange(len(dataset)), 1).reshape(-1, 3).tolist()
    used = [good[tuple(colour)] for colour in colours]
    assert len({*used}) == len(used)
    outside = said("outside class folders", log)
    assert len(images) == len(used) + len(dataset.skipped) + outside
    for what, count in others.items():
        assert said(rf"{re.escape(what)}(?!\w)", log) == count, what

    for path, label in zip(used, dataset.labels.tolist(), strict=True):
        above = [folder for folder in path.parents if folder.is_relative_to(root)][-2::-1]
        assert not {folder.name for folder in above} & set(JUNK)
        named = [folder for folder in above if called(folder) == dataset.classes[label]]
        assert any(is_class(folder, images, {*dataset.classes}) for folder in named)
    assert {*dataset.labels[dataset.train].tolist()} == {*range(dataset.num_classes)}
    for words in (*dataset.classes, *dataset.skipped):
        assert words.isprintable(), words


def attempt(root, caplog):
    """The data set and what was said, or the words of its refusal; all one printable line each."""
    caplog.clear()
    dataset = refusal = None
    try:
        dataset = load(root, test_fraction=0.1)
    except DataError as exc:
        refusal = str(exc)
    assert all(words.isprintable() for words in (refusal or "", *caplog.messages))
    return dataset, caplog.text, refusal


bounded = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# Where images lie before anything strange is added; most of it is accepted with one or two.
SKELETONS = [
    ["cats", "dogs"], ["Cats", "cats", "train"], ["archive/cats", "archive/dogs"],
    ["train/cats", "train/dogs", "test/cats"], ["train/cats", "train/dogs", "val/cats", "test"],
    ["Training_Set/cats", "Training_Set/dogs/deep", "test/dogs"], ["user 1/cats", "user 2/dogs"],
]  # fmt: skip


@pytest.mark.usefixtures("no_heic")
@bounded
@given(
    skeleton=st.sampled_from(SKELETONS),
    strange=st.lists(
        st.tuples(
            st.sampled_from(["", "cats", "train", "train/cats", "test", "archive"]),
            st.lists(st.sampled_from(FOLDERS), max_size=2),
            st.sampled_from(KINDS),
        ),
        max_size=4,
    ),
)
def test_any_folder_is_accounted_for_or_refused(tmp_path, caplog, skeleton, strange):
    entries = [(place.split("/"), "good") for place in skeleton for _ in range(2)]
    entries += [((*place.split("/"), *deeper), kind) for place, deeper, kind in strange]
    good = build(tmp_path / "any", entries)
    dataset, log, refusal = attempt(tmp_path / "any", caplog)
    if refusal is None:
        check(tmp_path / "any", good, dataset, log)


@pytest.mark.usefixtures("no_heic")
@bounded
@given(
    above=st.sampled_from([(), ("pets",), ("train",), ("archive", "Training_Set")]),
    # Composed and decomposed they are one name: never both.
    classes=st.lists(
        st.sampled_from([*CLASSES[:3], *CLASSES[4:]]), min_size=2, max_size=3, unique=True
    ),
    inside=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([(), ("deep",), ("@eaDir",)]),
                  st.sampled_from(KINDS)),
        max_size=10,
    ),
    beside=st.lists(st.sampled_from([".txt", ".heic"]), max_size=2),
)  # fmt: skip
def test_a_folder_of_classes_is_read_whatever_else_lies_in_it(
    tmp_path, caplog, above, classes, inside, beside
):
    entries = [((*above, name), "good") for name in classes for _ in range(3)]
    entries += [((*above, classes[k % len(classes)], *deep), kind) for k, deep, kind in inside]
    entries += [(above, kind) for kind in beside]
    good = build(tmp_path / "any", entries)
    dataset, log, refusal = attempt(tmp_path / "any", caplog)
    assert refusal is None
    check(tmp_path / "any", good, dataset, log)
    assert {*dataset.classes} == {called(Path(name)) for name in classes}
    assert len(dataset) == sum("@eaDir" not in path.parts for path in good.values())
