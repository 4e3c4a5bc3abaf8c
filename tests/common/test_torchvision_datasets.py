"""Every torchvision data set of the table, from small files in its own on-disk format."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv

from common.datasets import Reading, load_dataset
from common.datasets.vision_table import TABLE
from common.errors import DataError, MissingExtraError
from tests.common.vision_files import (
    TEST,
    TRAIN,
    VAL,
    md5,
    save,
    write,
    write_cifar,
    write_emnist,
    write_fer2013,
    write_mnist,
    write_qmnist,
    write_stl10,
    write_svhn,
    write_usps,
)
from tests.common.vision_folders import (
    write_caltech101,
    write_caltech256,
    write_cars,
    write_country211,
    write_dtd,
    write_eurosat,
    write_fgvc,
    write_flowers102,
    write_food101,
    write_gtsrb,
    write_imagenet,
    write_imagenette,
    write_inaturalist,
    write_lfw,
    write_omniglot,
    write_pets,
    write_places365,
    write_sst2,
    write_sun397,
)

WRITERS = {
    "INaturalist": write_inaturalist,
    "CIFAR10": write_cifar,
    "CIFAR100": write_cifar,
    "Caltech101": write_caltech101,
    "Caltech256": write_caltech256,
    "Country211": write_country211,
    "DTD": write_dtd,
    **{name: write_emnist for name in TABLE if name.startswith("EMNIST")},
    "EuroSAT": write_eurosat,
    "FER2013": write_fer2013,
    "FGVCAircraft": write_fgvc,
    "FashionMNIST": write_mnist,
    "Flowers102": write_flowers102,
    "Food101": write_food101,
    "GTSRB": write_gtsrb,
    "ImageNet": write_imagenet,
    "Imagenette": write_imagenette,
    "KMNIST": write_mnist,
    "LFWPeople": write_lfw,
    "MNIST": write_mnist,
    "Omniglot": write_omniglot,
    "OxfordIIITPet": write_pets,
    "Places365": write_places365,
    "QMNIST": write_qmnist,
    "RenderedSST2": write_sst2,
    "STL10": write_stl10,
    "SUN397": write_sun397,
    "SVHN": write_svhn,
    "StanfordCars": write_cars,
    "USPS": write_usps,
}
CLASSES = {
    "CIFAR10": ("ant", "bee", "cow"),
    "EMNIST-letters": ("N/A", "a", "b"),
    "FER2013": ("angry", "disgust", "fear"),
    "FGVCAircraft": ("707-320", "A 380", "Spitfire"),
    "FashionMNIST": ("T-shirt/top", "Trouser", "Pullover"),
    "Flowers102": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    "GTSRB": ("0", "1", "2"),
    "INaturalist": ("Genus alba (0)", "Genus nigra", "Genus alba (2)"),
    "ImageNet": ("crane (0)", "tench", "crane (2)"),
    "Imagenette": ("tench", "English springer", "cassette player"),
    "LFWPeople": ("Ada_L", "Bo_D", "Cy_T"),
    "OxfordIIITPet": ("Abyssinian", "American Bulldog", "Beagle"),
    "SUN397": ("abbey", "access/indoor", "barn"),
    "SVHN": ("0", "1", "2"),
    "StanfordCars": ("Audi", "BMW", "Fiat"),
}


def load(name, root, **options):
    defaults = {"strict": True, "test_fraction": 0.3}
    return load_dataset(name, Reading(root=root, **{**defaults, **options}))


def what_images_say(dataset):
    """Class and split as the images tell them; checks orientation and colour on the way."""
    pixels = dataset.images(np.arange(len(dataset)), 32).astype(int)
    upper, lower = pixels[:, :, 4:12, 4:28], pixels[:, :, 20:28, 4:28]
    assert upper.std(axis=(1, 2, 3)).max() < 5
    assert lower[:, 0].min() > 245
    blue_is_red = np.abs(lower[:, 2] - lower[:, 0]).max() < 3
    assert blue_is_red or lower[:, 2].max() < 10
    level = upper.mean(axis=(1, 2, 3)).round()
    return (level // 60).astype(int), level % 60 > 30


def test_every_row_of_the_table_is_tested():
    assert set(WRITERS) | {"SEMEION"} == set(TABLE)


@pytest.mark.parametrize("name", WRITERS)
def test_labels_and_splits_belong_to_their_images(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch, name)
    dataset = load(name, tmp_path)
    labels, is_test = what_images_say(dataset)
    assert labels.tolist() == dataset.labels.tolist()
    assert len(dataset) >= len(TRAIN)
    if TABLE[name].test is None:
        assert not is_test.any()
        assert len(dataset.test) == 2
    else:
        assert np.flatnonzero(is_test).tolist() == dataset.test.tolist()
        assert len(dataset.test) == len(TEST)
    both = np.sort(np.concatenate([dataset.train, dataset.test]))
    assert both.tolist() == list(range(len(dataset)))
    assert dataset.classes[:3] == CLASSES.get(name, dataset.classes[:3])


def test_semeion(tmp_path, monkeypatch):
    """Its pixels are 0 or 1: here row k of class k is lit."""
    rows = []
    for k in TRAIN:
        pixels, one_hot = np.zeros((16, 16), int), np.zeros(10, int)
        pixels[k], one_hot[k] = 1, 1
        rows.append(
            " ".join(f"{v:.4f}" for v in pixels.ravel()) + " " + " ".join(map(str, one_hot))
        )
    write(tmp_path / "semeion.data", "\n".join(rows))
    monkeypatch.setattr(tv.SEMEION, "md5_checksum", md5(tmp_path / "semeion.data"))
    dataset = load("SEMEION", tmp_path)
    assert dataset.labels.tolist() == list(TRAIN)
    pixels = dataset.images(np.arange(len(TRAIN)), 16)[:, 0]
    assert pixels.mean(axis=2).argmax(axis=1).tolist() == list(TRAIN)
    assert pixels.max() == 255


def test_validation_images_go_to_the_clients(tmp_path, monkeypatch):
    write_flowers102(tmp_path, monkeypatch, "Flowers102")
    dataset = load("Flowers102", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (len(TRAIN) + len(VAL), len(TEST))


@pytest.mark.parametrize("name", WRITERS)
def test_the_order_of_the_disk_does_not_matter(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch, name)
    listdir, rglob = os.listdir, Path.rglob

    def key(*, backwards):
        def listed(path="."):
            return sorted(listdir(path), reverse=backwards)

        def globbed(self, pattern):
            return sorted(rglob(self, pattern), reverse=backwards)

        monkeypatch.setattr(os, "listdir", listed)
        monkeypatch.setattr(Path, "rglob", globbed)
        return load(name, tmp_path).content_key

    assert key(backwards=False) == key(backwards=True)


@pytest.mark.parametrize("name", ["EuroSAT", "OxfordIIITPet"])
def test_broken_images_are_skipped_with_their_labels(name, tmp_path, monkeypatch, caplog):
    WRITERS[name](tmp_path, monkeypatch, name)
    whole = load(name, tmp_path)
    broken = sorted(tmp_path.rglob("*.jpg"))[0]
    broken.write_text("not an image")
    dataset = load(name, tmp_path, strict=False)
    assert len(dataset) == len(whole) - 1
    assert what_images_say(dataset)[0].tolist() == dataset.labels.tolist()
    assert str(broken) in dataset.skipped[0]
    assert "skipped 1 of" in caplog.text
    with pytest.raises(DataError, match="not an image"):
        load(name, tmp_path)


def test_a_class_of_broken_images_is_refused(tmp_path, monkeypatch):
    WRITERS["EuroSAT"](tmp_path, monkeypatch, "EuroSAT")
    whole = load("EuroSAT", tmp_path)
    for name in whole.source.names:
        if Path(name).parent.name == whole.classes[1]:
            Path(name).write_text("not an image")
    with pytest.raises(DataError, match=f"class {whole.classes[1]}: none of its"):
        load("EuroSAT", tmp_path, strict=False)


@pytest.mark.parametrize("name", [*WRITERS, "SEMEION"])
def test_data_that_are_not_there_are_one_line_that_says_what_to_do(name, tmp_path):
    with pytest.raises(DataError, match=f"^{name}: not found in .*put it there$") as caught:
        load(name, tmp_path)
    assert ("set download = true" in str(caught.value)) == TABLE[name].downloads


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(DataError, match=r"CIFAR10: could not be downloaded .*no route to host"):
        load("CIFAR10", tmp_path, download=True)


def test_nothing_is_fetched_when_the_data_are_there(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", None)
    assert len(load("CIFAR10", tmp_path, download=True)) == len(TRAIN) + len(TEST)


def test_damaged_data_are_one_line(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch, "MNIST")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03")
    with pytest.raises(DataError, match=r"MNIST: not found in .*, or damaged"):
        load("MNIST", tmp_path)


def test_a_checksum_that_differs_is_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="corrupted"):
        load("CIFAR10", tmp_path)


def test_a_test_class_that_train_lacks_is_refused(tmp_path, monkeypatch):
    write_country211(tmp_path, monkeypatch, "Country211")
    save(tmp_path / "country211" / "test" / "d" / "x.jpg", 0, 1)
    with pytest.raises(DataError, match=r"Country211: its split .* does not have: d \(.* has a, b"):
        load("Country211", tmp_path)


def test_a_split_without_some_class_is_read_by_name(tmp_path, monkeypatch):
    write_country211(tmp_path, monkeypatch, "Country211")
    whole = load("Country211", tmp_path)
    shutil.rmtree(tmp_path / "country211" / "test" / "a")  # its loader now counts b as the first
    dataset = load("Country211", tmp_path)
    labels, is_test = what_images_say(dataset)
    assert dataset.classes == whole.classes
    assert dataset.labels.tolist() == labels.tolist()
    assert 0 < is_test.sum() < len(TEST)


def test_fer2013_without_test_labels_says_which_file_to_use(tmp_path, monkeypatch):
    pixels = " ".join(["0"] * 48 * 48)
    for split, text in (("train", f"emotion,pixels\n0,{pixels}"), ("test", f"pixels\n{pixels}")):
        path = tmp_path / "fer2013" / f"{split}.csv"
        write(path, text)
        monkeypatch.setitem(tv.FER2013._RESOURCES, split, (path.name, md5(path)))
    with pytest.raises(DataError, match=r"use fer2013\.csv"):
        load("FER2013", tmp_path)


def test_scipy_is_named_when_a_format_needs_it(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch, "SVHN")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match="scipy"):
        load("SVHN", tmp_path)
