"""Folders as people bring them: every image is used or accounted for, no class is invented."""

import io
import logging
import os
import re
import shutil
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common import images
from common.config import Config
from common.datasets import Reading, load_dataset, load_folder
from common.errors import DataError
from common.experiment import client_shares
from common.files import shown
from common.images import decode_file

CATS_AND_DOGS = ("cats", "dogs")


def image(colour=(1, 2, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image() if content is None else content)
    return path


def fill(root, classes=CATS_AND_DOGS, each=3):
    for name in classes:
        for i in range(each):
            write(root / name / f"{i}.png")
    return root


def load(path, kind="folder", **options):
    return load_dataset(f"{kind}:{path}", Reading(**{"test_fraction": 0.34, **options}))


def counts(dataset, positions):
    return np.bincount(dataset.labels[positions], minlength=dataset.num_classes).tolist()


# --- splits and levels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"), ("Train", "Test"), ("TRAIN", "VALID"),
        ("training", "testing"), ("trainset", "evalset"), ("train_images", "Test Data"),
        ("train2017", "val2017"), ("Training-Data", "dev"), ("trainval", "holdout"),
    ],
)  # fmt: skip
def test_what_people_call_splits_is_one(tmp_path, train, test):
    fill(tmp_path / train, each=4)
    fill(tmp_path / test, each=2)
    dataset = load(tmp_path)
    assert dataset.classes == CATS_AND_DOGS
    assert (counts(dataset, dataset.train), counts(dataset, dataset.test)) == ([4, 4], [2, 2])


def test_validation_joins_training_where_there_is_a_test_set(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for split, each in {"Train": 4, "val": 2, "test": 1}.items():
        fill(tmp_path / split, each=each)
    dataset = load(tmp_path)
    assert (counts(dataset, dataset.train), counts(dataset, dataset.test)) == ([6, 6], [1, 1])
    assert "trains on Train and val, tests on test" in caplog.text


def test_a_test_set_without_labels_is_not_used_and_counted(tmp_path, caplog):
    fill(tmp_path / "train")
    write(tmp_path / "test1" / "1.png")
    write(tmp_path / "test1" / "2.png")
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    assert "not used: 2 outside class folders (2 in test1)" in caplog.text


def test_an_unpacked_archives_folders_around_are_seen_through(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "__MACOSX" / "pets" / "._1.png", b"\0\5")
    write(tmp_path / "read me.txt", b"hello")
    fill(tmp_path / "pets" / "training_set" / "training_set")
    fill(tmp_path / "pets" / "test_set" / "test_set", each=1)
    dataset = load(tmp_path)
    assert dataset.classes == CATS_AND_DOGS
    assert len(dataset.test) == 2
    assert "pets, its only folder" in caplog.text
    assert "not used: 1 .txt, 1 __MACOSX/" in caplog.text


@pytest.mark.parametrize(
    ("places", "words"),
    {
        "deep": (
            ["animals/cats", "animals/dogs", "plants/rose"],
            r"hold only sub-folders: animals \(cats, dogs\), plants \(rose\); move the images up",
        ),
        "one of them deep": (["cats", "dogs/poodles"], r"only sub-folders: dogs \(poodles\)"),
        "people": (
            ["user0/birds", "user0/cats", "user1/birds", "user1/cats", "user2/cats"],
            r"user0 \(birds, cats\), .*; folder-by-client:PATH if these are clients",
        ),
        "splits below": (
            ["cats/train", "cats/test", "dogs/train", "dogs/test"],
            "put splits above classes, as in train/CLASS and test/CLASS",
        ),
        "two of a kind": (
            ["train/cats", "training/cats", "test/cats"], "several splits to train"
        ),
        "nothing to train on": (["test/cats", "val/cats"], "holds test, val, but nothing to"),
        "no classes": (
            ["train", "test"], r"train: no class folders in it; .* \(images in it: 1\)"
        ),
        "a class that train lacks": (
            ["Train/cats", "Train/dogs", "TEST/cow"], "classes in TEST but not in Train: cow"
        ),
        "train beside a class": (["train/steam", "train/diesel", "bus"], r"train \(diesel, steam"),
    }.values(),
)  # fmt: skip
def test_where_classes_are_not_clear_it_is_refused_with_what_to_do(tmp_path, places, words):
    for place in places:
        write(tmp_path / place / "1.png")
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [("bus", "train"), ("invalid", "valid"), ("test tube", "vial")])
def test_classes_may_have_the_names_of_splits(tmp_path, classes):
    assert load(fill(tmp_path, classes)).classes == classes


def test_images_beside_and_below_class_folders_are_said(tmp_path, caplog):
    fill(tmp_path)
    write(tmp_path / "cats" / "kittens" / "1.png")
    write(tmp_path / "loose.png")
    dataset = load(tmp_path)
    assert np.bincount(dataset.labels).tolist() == [4, 3]
    assert "images in sub-folders count for their class: 1 (cats/kittens)" in caplog.text
    assert "not used: 1 outside class folders (1 in it)" in caplog.text


# --- a folder a client -----------------------------------------------------------------------


def test_a_folder_a_client_is_a_natural_partition(tmp_path):
    for user, classes in {"ann": ("cats", "dogs"), "bob": ("cats",), "eve": ("dogs",)}.items():
        fill(tmp_path / user, classes, each=8)
    (tmp_path / "eve" / "cats").mkdir()
    dataset = load(tmp_path, "folder-by-client")
    assert dataset.classes == CATS_AND_DOGS
    users = dataset.columns["client"].tolist()
    assert users == ["ann"] * 16 + ["bob"] * 8 + ["eve"] * 8
    config = Config.model_validate(
        {
            "data": {"source": f"folder-by-client:{tmp_path}", "calibration-examples": 8},
            "partition": {"scheme": "natural", "num-clients": 3},
            "train": {"clients-per-round": 3},
        }
    )
    shares = client_shares(config)
    owners = [{users[i] for i in [*share.train, *share.test]} for share in shares]
    assert owners == [{"ann"}, {"bob"}, {"eve"}]


def test_a_natural_partition_without_a_column_of_clients_is_refused():
    config = Config.model_validate(
        {"data": {"source": "digits"}, "partition": {"scheme": "natural"}}
    )
    with pytest.raises(DataError, match="digits has no column 'client', the partition.column"):
        client_shares(config)


def test_folders_without_classes_or_images_are_no_clients(tmp_path, caplog):
    fill(tmp_path)
    with pytest.raises(DataError, match=r"found no sub-folders in cats, dogs; folder:PATH reads"):
        load(tmp_path, "folder-by-client")
    fill(tmp_path / "ann")
    fill(tmp_path / "bob", ["cats"])
    (tmp_path / "eve").mkdir()
    load(tmp_path, "folder-by-client")
    assert "clients without images in class folders: cats, dogs, eve" in caplog.text
    assert "6 outside class folders (3 in cats, 3 in dogs)" in caplog.text
    write(tmp_path / "bob" / "fish" / "1.txt", b"no image")
    with pytest.raises(DataError, match="classes of which no client has an image: fish"):
        load(tmp_path, "folder-by-client")
    write(tmp_path / "bob" / "fish" / "2024" / "1.png")
    with pytest.raises(DataError, match=r"only sub-folders: fish \(2024\); move the images up"):
        load(tmp_path, "folder-by-client")


# --- what is left out ------------------------------------------------------------------------


def heic(colour=(200, 100, 50), **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), colour)).save(buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def no_heic(monkeypatch):
    """As if the extra were not installed."""
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    images.heic_is_read.cache_clear()
    yield
    images.heic_is_read.cache_clear()


@pytest.mark.usefixtures("no_heic")
def test_heic_without_the_extra_is_counted_with_its_remedy(tmp_path, caplog):
    fill(tmp_path)
    for i in range(40):
        write(tmp_path / "cats" / f"IMG_{i}.HEIC", b"heic")
    write(tmp_path / "dogs" / "notes.txt", b"")
    assert len(load(tmp_path)) == 6
    assert "not used: 40 .heic (pip install 'fedhead[heic]'), 1 .txt" in caplog.text
    assert len(caplog.records) == 1
    shutil.rmtree(tmp_path / "dogs")
    write(tmp_path / "dogs" / "IMG_1.heif", b"heic")
    with pytest.raises(DataError, match=r"without images \(it holds 1 \.heif \(pip install"):
        load(tmp_path)


@pytest.mark.usefixtures("no_heic")
def test_an_heic_image_says_what_it_is_whatever_it_is_called(tmp_path):
    path = write(tmp_path / "IMG_1.jpg", heic())
    with pytest.raises(DataError, match=r"IMG_1\.jpg: an HEIC image.*pip install 'fedhead\[heic"):
        decode_file(path, 8)


def test_heic_is_read_with_the_extra(tmp_path, caplog):
    for name in CATS_AND_DOGS:
        for i in range(3):
            write(tmp_path / name / f"{i}.heic", heic())
    dataset = load(tmp_path)
    want = np.broadcast_to(np.array([200, 100, 50])[:, None, None], (6, 3, 8, 8))
    np.testing.assert_allclose(dataset.images(np.arange(6), 8), want, atol=6)
    assert caplog.text == ""


def test_thumbnails_of_other_programs_are_skipped(tmp_path, caplog):
    fill(tmp_path)
    junk = ("@eaDir", ".thumbnails", ".picasaoriginals", "pets Previews.lrdata", "#recycle")
    for folder in junk:
        write(tmp_path / "cats" / folder / "0.png" / "SYNOPHOTO_THUMB_M.jpg")
    write(tmp_path / "@eaDir" / "x.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png"):
        write(tmp_path / "dogs" / name, b"junk")
    write(tmp_path / "dogs" / ".hidden.png")
    dataset = load(tmp_path)
    assert len(dataset) == 6
    assert "not used: 2 @eaDir/, 1 #recycle/" in caplog.text
    assert "1 hidden" in caplog.text


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    fill(tmp_path)
    for i in range(4):
        write(tmp_path / "owls" / f"{i}.jpg", b"\n<!DOCTYPE html>\n<title>404</title>")
    words = r"owls: none of its 4 images can be read \(.*0\.jpg: a web page instead of an image"
    with pytest.raises(DataError, match=words):
        load(tmp_path)
    shutil.rmtree(tmp_path / "owls")
    write(tmp_path / "cats" / "stub.png", b"version https://git-lfs.github.com/spec/v1\noid 1")
    assert len(load(tmp_path).skipped) == 1
    assert "git lfs pull" in load(tmp_path).skipped[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_neither_split_loses_a_class(tmp_path, split):
    fill(tmp_path / "train")
    fill(tmp_path / "test", each=1)
    for path in (tmp_path / split / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{split}/dogs: none of its . images .*an empty file"):
        load(tmp_path)


def test_a_class_is_lost_at_no_client_or_at_all(tmp_path):
    fill(tmp_path / "ann")
    fill(tmp_path / "bob")
    for path in (tmp_path / "bob" / "dogs").iterdir():
        path.write_bytes(b"")
    assert len(load(tmp_path, "folder-by-client")) == 9
    for path in (tmp_path / "ann" / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class dogs of .*: none of its 6 images can be read"):
        load(tmp_path, "folder-by-client")


def test_a_device_may_lose_a_class(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "dogs").iterdir():
        path.write_bytes(b"")
    assert load_folder(tmp_path, classes=CATS_AND_DOGS).labels.tolist() == [0, 0, 0]


# --- names -----------------------------------------------------------------------------------

LATIN = os.fsdecode(b"caf\xe9")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_a_name_that_is_not_utf8_is_a_name(tmp_path, caplog):
    fill(tmp_path)
    write(tmp_path / "cats" / f"{LATIN}.png")
    write(tmp_path / "cats" / f"{LATIN}\n.png", b"broken")
    for memory in (None, tmp_path / ".memory"):
        for _ in range(2):
            dataset = load_folder(tmp_path, classes=CATS_AND_DOGS, memory=memory)
            assert len(dataset) == 7
            assert dataset.skipped == (f"{tmp_path}/cats/caf\\xe9\\n.png: not an image",)
    caplog.text.encode()
    assert load(tmp_path).skipped == dataset.skipped


def test_a_class_that_is_not_utf8_is_written_with_escapes(tmp_path, caplog):
    dataset = load(fill(tmp_path, [LATIN, "a\x1b[2Jb", "plain"]))
    assert dataset.classes == ("a\\x1b[2Jb", "caf\\xe9", "plain")
    assert "caf\\xe9: the name is not plain text; it is shown with escapes" in caplog.text
    assert (
        load_folder(tmp_path, classes=dataset.classes).labels.tolist()
        == [0] * 3 + [1] * 3 + [2] * 3
    )


def test_a_decomposed_name_is_the_same_class(tmp_path):
    fill(tmp_path / "train", ["bar", DECOMPOSED])
    fill(tmp_path / "test", ["bar", COMPOSED])
    assert load(tmp_path).classes == ("bar", COMPOSED)
    for classes in (["x", COMPOSED, "bar"], ["x", DECOMPOSED, "bar"]):
        device = load_folder(tmp_path / "train", classes=classes)
        assert device.labels.tolist() == [2] * 3 + [1] * 3
        assert device.classes == tuple(classes)


def test_two_folders_of_one_name_in_unicode_are_refused(tmp_path):
    fill(tmp_path, [COMPOSED, DECOMPOSED])
    with pytest.raises(
        DataError, match=r"'cafe\\u0301' and 'caf\\xe9' are the same name in Unicode"
    ):
        load(tmp_path)
    assert len(load_folder(tmp_path, classes=[COMPOSED, "bar"])) == 6


def test_names_that_differ_in_case_are_two_and_said(tmp_path, caplog):
    assert load(fill(tmp_path, ["Cats", "cats"])).classes == ("Cats", "cats")
    assert "differ in case only: Cats, cats" in caplog.text
    with pytest.raises(DataError, match=r"not classes of the server: Cats \(there is cats\)"):
        load_folder(tmp_path, classes=CATS_AND_DOGS)


# --- links, pipes, bounds --------------------------------------------------------------------


def strange(folder, outside):
    """What stands in an image's place and is none; gives how many."""
    write(outside / "x.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "twin.png").symlink_to("0.png")
    (folder / "outside.png").symlink_to(outside / "x.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "around").symlink_to(folder.parent, target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate(400_000_000)
    with socket.socket(socket.AF_UNIX) as door:
        here = Path.cwd()
        os.chdir(folder)  # a socket's address is short
        door.bind("door.png")
        os.chdir(here)
    return 10


@pytest.mark.timeout(60)
def test_only_regular_files_are_read_and_all_else_is_named(tmp_path, caplog):
    data = fill(tmp_path / "data")
    count = strange(data / "cats", tmp_path / "outside")
    server, device = load(data), load_folder(data, classes=CATS_AND_DOGS)
    for dataset in (server, device):
        assert np.bincount(dataset.labels).tolist() == [3, 3]
        assert len(dataset.skipped) == count
    words = "\n".join(server.skipped)
    assert words.count("a link, and links are not followed") == 7
    assert "pipe.png: not a regular file" in words
    assert "large.png: 400,000,000 bytes, more than 300,000,000 allowed" in words
    assert caplog.text.count("skipped 10 of 16 images") == 2
    with pytest.raises(DataError, match=r"door\.png: cannot be read \(No such device"):
        load(data, strict=True)
    for name in ("pipe.png", "door.png", "zero.png", "large.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            decode_file(data / "cats" / name, 8)


def test_a_linked_class_folder_is_no_class_less(tmp_path):
    fill(tmp_path / "data")
    (tmp_path / "data" / "owls").symlink_to(tmp_path / "data" / "cats", target_is_directory=True)
    with pytest.raises(DataError, match="owls: a link, and links are not followed; put the folder"):
        load(tmp_path / "data")
    device = load_folder(tmp_path / "data", classes=("cats", "dogs", "owls"))
    assert device.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(device.skipped) == 1
    fill(tmp_path / "splits" / "train")
    (tmp_path / "splits" / "test").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(DataError, match="splits/test: a link"):
        load(tmp_path / "splits")
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    shutil.rmtree(tmp_path / "data" / "dogs")
    (tmp_path / "data" / "owls").unlink()
    fill(tmp_path / "data")
    assert len(load(tmp_path / "link")) == 6  # the data folder itself may be one


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    fill(tmp_path)
    level = os.open(tmp_path / "cats", os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long
        os.mkdir("x" * 250, dir_fd=level)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=level)
        os.close(level)
        level = inner
    os.close(level)
    dataset = load(tmp_path)
    assert len(dataset) == 6
    assert len(dataset.skipped) == 1
    assert "cannot be read (File name too long)" in dataset.skipped[0]


def test_what_is_no_folder_is_said(tmp_path):
    with pytest.raises(DataError, match=r"x\.png: a file, expected a folder"):
        load(write(tmp_path / "x.png"))


# --- any folder at all -----------------------------------------------------------------------

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


def test_a_test_split_without_labels_gets_advice_that_helps(tmp_path):
    fill(tmp_path / "train", each=4)
    write(tmp_path / "test" / "images" / "1.png")
    with pytest.raises(DataError, match="in test but not in train: images; .* move test elsewhere"):
        load(tmp_path)
    shutil.move(tmp_path / "test", tmp_path.parent / "elsewhere")
    assert len(load(tmp_path).test) == 3


def test_a_test_class_in_another_case_names_both(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", ["Cats", "dogs"])
    with pytest.raises(DataError, match=r"in test but not in train: Cats \(there is cats\)$"):
        load(tmp_path)
