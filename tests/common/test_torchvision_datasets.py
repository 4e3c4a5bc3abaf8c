"""Every torchvision data set of the table, from small files in its own on-disk format.

The files are made here, and each image tells what it is: the grey of its upper half says
class and split, the lower half is red (white in grey formats), so that a wrong label, a wrong
split, a transposed or channel-swapped image shows. Checksums that torchvision compares are
replaced by those of the small files; its parsers and checks run as they are.
"""

import bz2
import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets as tv
from PIL import Image

from common.datasets import Reading, load_dataset
from common.datasets.vision_table import TABLE
from common.errors import DataError, MissingExtraError

# Not in the order of the classes, and not the same number of each.
TRAIN = (2, 0, 1, 1, 0, 2, 2)
TEST = (1, 0, 2, 0)
VAL = (0, 2)


def grey_level(label, test):
    return label * 60 + 15 + 30 * test


def grey(label, test, side=28):
    pixels = np.full((side, side), 255, np.uint8)
    pixels[: side // 2] = grey_level(label, test)
    return pixels


def colour(label, test, side=32):
    pixels = np.full((side, side, 3), (255, 0, 0), np.uint8)
    pixels[: side // 2] = grey_level(label, test)
    return pixels


def save(path, label, test):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix in (".jpg", ".jpeg") else {}
    Image.fromarray(colour(label, test)).save(path, **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path, array, kind=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    path.write_bytes(head + array.astype({8: "u1", 12: ">i4"}[kind]).tobytes())


def write_mnist(root, patch, name):
    for split, labels in (("train", TRAIN), ("t10k", TEST)):
        raw = root / name / "raw"
        images = np.stack([grey(k, split == "t10k") for k in labels])
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.array(labels))


def write_qmnist(root, patch, name):
    for split, labels in (("train", TRAIN), ("test", TEST)):
        raw = root / "QMNIST" / "raw"
        images = np.stack([grey(k, split == "test") for k in labels])
        write_idx(raw / f"qmnist-{split}-images-idx3-ubyte", images)
        extended = np.array([[k, 1, 2, 3, 4, 5, 6, 7] for k in labels])
        write_idx(raw / f"qmnist-{split}-labels-idx2-int", extended, kind=12)


def write_emnist(root, patch, name):
    kind = name.partition("-")[2] or "balanced"
    for split, labels in (("train", TRAIN), ("test", TEST)):
        stem = root / "EMNIST" / "raw" / f"emnist-{kind}-{split}"
        on_its_side = np.stack([grey(k, split == "test").T for k in labels])
        write_idx(Path(f"{stem}-images-idx3-ubyte"), on_its_side)
        write_idx(Path(f"{stem}-labels-idx1-ubyte"), np.array(labels))


def write_cifar(root, patch, name):
    factory = getattr(tv, name)
    folder = root / factory.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if name == "CIFAR10" else "fine_labels"

    def dump(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5(folder / file)]

    def batch(file, labels, test):
        data = np.stack([colour(k, test).transpose(2, 0, 1).ravel() for k in labels])
        return dump(file, {"data": data, label_key: list(labels)})

    files = [file for file, _ in factory.train_list]
    cuts = np.array_split(np.array(TRAIN), len(files))
    train = [batch(f, part.tolist(), 0) for f, part in zip(files, cuts, strict=True) if len(part)]
    patch.setattr(factory, "train_list", train)
    patch.setattr(factory, "test_list", [batch(factory.test_list[0][0], TEST, 1)])
    meta = dump(factory.meta["filename"], {factory.meta["key"]: ["ant", "bee", "cow"]})
    patch.setattr(factory, "meta", {**factory.meta, "md5": meta[1]})


def write_svhn(root, patch, name):
    lists = {}
    for split, labels in (("train", TRAIN), ("test", TEST)):
        url, file, _ = tv.SVHN.split_list[split]
        images = np.stack([colour(k, split == "test") for k in labels], axis=3)
        digits = np.array([10 if k == 0 else k for k in labels])[:, None]  # SVHN calls zero 10
        scipy.io.savemat(root / file, {"X": images, "y": digits.astype(np.uint8)})
        lists[split] = [url, file, md5(root / file)]
    patch.setattr(tv.SVHN, "split_list", lists)


def write_stl10(root, patch, name):
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("ant\nbee\ncow\n")
    for split, labels in (("train", TRAIN), ("test", TEST)):
        # columns first, channel by channel
        images = [colour(k, split == "test", 96).transpose(2, 1, 0) for k in labels]
        (folder / f"{split}_X.bin").write_bytes(np.stack(images).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(k + 1 for k in labels))
    for attribute in ("train_list", "test_list"):
        files = [file for file, _ in getattr(tv.STL10, attribute)]
        patch.setattr(tv.STL10, attribute, [[file, md5(folder / file)] for file in files])


def write_usps(root, patch, name):
    for split, labels in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        lines = []
        for k in labels:
            values = grey(k, split == "usps.t.bz2", 16).ravel() / 127.5 - 1
            pairs = " ".join(f"{i}:{v:.6f}" for i, v in enumerate(values, 1))
            lines.append(f"{k + 1} {pairs}\n")
        (root / split).write_bytes(bz2.compress("".join(lines).encode()))


def write_fer2013(root, patch, name):
    rows = ["emotion,pixels,Usage"]
    usages = [(k, 0, "Training") for k in TRAIN] + [(k, 1, "PrivateTest") for k in TEST]
    for k, test, usage in usages:
        rows.append(f"{k},{' '.join(map(str, grey(k, test, 48).ravel()))},{usage}")
    path = root / "fer2013" / "fer2013.csv"
    write(path, "\n".join(rows))
    patch.setitem(tv.FER2013._RESOURCES, "fer", ("fer2013.csv", md5(path)))


def write_flowers102(root, patch, name):
    folder = root / "flowers-102"
    labels = (*TRAIN, *VAL, *TEST)
    first_test = len(TRAIN) + len(VAL)
    for i, k in enumerate(labels):
        save(folder / "jpg" / f"image_{i + 1:05d}.jpg", k, i >= first_test)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array(labels) + 1})
    ids = np.arange(1, len(labels) + 1)
    sets = np.split(ids, [len(TRAIN), first_test])
    scipy.io.savemat(
        folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), sets, strict=True))
    )
    for key in ("label", "setid"):
        file = tv.Flowers102._file_dict[key][0]
        patch.setitem(tv.Flowers102._file_dict, key, (file, md5(folder / file)))


def write_food101(root, patch, name):
    for split, labels in (("train", TRAIN), ("test", TEST)):
        listed = {"ant": [], "bee": [], "cow": []}
        for i, k in enumerate(labels):
            kind = list(listed)[k]
            listed[kind].append(f"{kind}/{split}{i}")
            save(root / "food-101" / "images" / kind / f"{split}{i}.jpg", k, split == "test")
        write(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))


def write_dtd(root, patch, name):
    for split, labels in (("train", TRAIN), ("val", (*VAL, 1)), ("test", TEST)):
        files = [f"{'abc'[k]}/{'abc'[k]}_{split}{i}.jpg" for i, k in enumerate(labels)]
        for file, k in zip(files, labels, strict=True):
            save(root / "dtd" / "dtd" / "images" / file, k, split == "test")
        write(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", "\n".join(files))


def write_fgvc(root, patch, name):
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", "707-320\nA 380\nSpitfire\n")
    variants = ["707-320", "A 380", "Spitfire"]
    for split, labels in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for i, k in enumerate(labels):
            number = f"{i + 100 * (split == 'test'):07d}"
            save(data / "images" / f"{number}.jpg", k, split == "test")
            lines.append(f"{number} {variants[k]}")
        write(data / f"images_variant_{split}.txt", "\n".join(lines))


def write_pets(root, patch, name):
    folder = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog", "beagle"]
    for split, labels in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for i, k in enumerate(labels):
            number = i + 100 * (split == "test")
            save(folder / "images" / f"{breeds[k]}_{number}.jpg", k, split == "test")
            lines.append(f"{breeds[k]}_{number} {k + 1} {1 + (k > 0)} 1")
        write(folder / "annotations" / f"{split}.txt", "\n".join(lines))


def write_cars(root, patch, name):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Audi", "BMW", "Fiat"], object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, labels, file in (
        ("train", TRAIN, "devkit/cars_train_annos.mat"),
        ("test", TEST, "cars_test_annos_withlabels.mat"),
    ):
        kind = [("class", "i4"), ("fname", object)]
        rows = [(k + 1, f"{i:05d}.jpg") for i, k in enumerate(labels)]
        for i, k in enumerate(labels):
            save(folder / f"cars_{split}" / f"{i:05d}.jpg", k, split == "test")
        scipy.io.savemat(folder / file, {"annotations": np.array(rows, kind)})


def write_folders(base, labels, test, names=("a", "b", "c"), suffix="jpg"):
    for i, k in enumerate(labels):
        save(base / names[k] / f"{i}.{suffix}", k, test)


def write_eurosat(root, patch, name):
    write_folders(root / "eurosat" / "2750", TRAIN, 0)


def write_country211(root, patch, name):
    for split, labels in (("train", TRAIN), ("valid", (*VAL, 1)), ("test", TEST)):
        write_folders(root / "country211" / split, labels, split == "test")


def write_sst2(root, patch, name):
    names = ("negative", "positive", "positive")
    for split, labels in (("train", TRAIN), ("valid", (0, 1)), ("test", TEST)):
        labels = [min(k, 1) for k in labels]
        write_folders(root / "rendered-sst2" / split, labels, split == "test", names, "png")


def write_imagenette(root, patch, name):
    wnids = list(tv.Imagenette._WNID_TO_CLASS)[:3]
    for split, labels in (("train", TRAIN), ("val", TEST)):
        write_folders(root / "imagenette2" / split, labels, split == "val", wnids, "jpeg")


def write_imagenet(root, patch, name):
    wnids = ["n01", "n02", "n03"]
    synonyms = {"n01": ("crane", "heron"), "n02": ("tench",), "n03": ("crane",)}
    torch.save((synonyms, []), root / "meta.bin")
    for split, labels in (("train", TRAIN), ("val", TEST)):
        write_folders(root / split, labels, split == "val", wnids, "JPEG")


def write_sun397(root, patch, name):
    write(root / "SUN397" / "ClassName.txt", "/a/abbey\n/a/access/indoor\n/b/barn\n")
    for i, k in enumerate(TRAIN):
        kind = ("a/abbey", "a/access/indoor", "b/barn")[k]
        save(root / "SUN397" / kind / f"sun_{i}.jpg", k, 0)


def count_up(labels):
    """The number of each image within its class, from 1."""
    return [labels[: i + 1].count(k) for i, k in enumerate(labels)]


def write_caltech101(root, patch, name):
    folder = root / "caltech101" / "101_ObjectCategories"
    (folder / "BACKGROUND_Google").mkdir(parents=True)
    for k, number in zip(TRAIN, count_up(TRAIN), strict=True):
        save(folder / ("ant", "bass", "chair")[k] / f"image_{number:04d}.jpg", k, 0)


def write_caltech256(root, patch, name):
    folder = root / "caltech256" / "256_ObjectCategories"
    for k, number in zip(TRAIN, count_up(TRAIN), strict=True):
        kind = ("001.ak47", "002.flag", "003.bag")[k]
        save(folder / kind / f"{k + 1:03d}_{number:04d}.jpg", k, 0)


def write_omniglot(root, patch, name):
    folder = root / "omniglot-py"
    for i, k in enumerate(TRAIN):
        character = ("Greek/character01", "Greek/character02", "Latin/character01")[k]
        save(folder / "images_background" / character / f"{i}.png", k, 0)
    with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
        archive.writestr("stays zipped", "")
    known = {"images_background": md5(folder / "images_background.zip")}
    patch.setattr(tv.Omniglot, "zips_md5", known)


def write_places365(root, patch, name):
    write(root / "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n/c/cave 2\n")
    patch.setattr(
        tv.Places365, "_CATEGORIES_META",
        ("categories_places365.txt", md5(root / "categories_places365.txt")),
    )  # fmt: skip
    lists = {}
    for split, labels, folder in (
        ("train-standard", TRAIN, "data_256_standard"),
        ("val", TEST, "val_256"),
    ):
        lines = [f"/{'abc'[k]}/{i:08d}.jpg {k}" for i, k in enumerate(labels)]
        for line, k in zip(lines, labels, strict=True):
            save(root / folder / line.split()[0].lstrip("/"), k, split == "val")
        file = tv.Places365._FILE_LIST_META[split][0]
        write(root / file, "\n".join(lines))
        lists[split] = (file, md5(root / file))
    patch.setattr(tv.Places365, "_FILE_LIST_META", lists)


def write_gtsrb(root, patch, name):
    folder = root / "gtsrb" / "GTSRB"
    write_folders(folder / "Training", TRAIN, 0, ("00000", "00001", "00002"), "ppm")
    rows = ["Filename;Width;Height;ClassId"]
    for i, k in enumerate(TEST):
        save(folder / "Final_Test" / "Images" / f"{i:05d}.ppm", k, 1)
        rows.append(f"{i:05d}.ppm;32;32;{k}")
    write(root / "gtsrb" / "GT-final_test.csv", "\n".join(rows))


def write_lfw(root, patch, name):
    folder = root / "lfw-py"
    people = ("Ada_L", "Bo_D", "Cy_T")
    for k, number in zip(TRAIN, count_up(TRAIN), strict=True):
        save(folder / "lfw_funneled" / people[k] / f"{people[k]}_{number:04d}.jpg", k, 0)
    write(
        folder / "lfw-names.txt", "\n".join(f"{p}\t{TRAIN.count(k)}" for k, p in enumerate(people))
    )
    write(
        folder / "people.txt",
        f"2\n1\nBo_D\t{TRAIN.count(1)}\n2\nAda_L\t{TRAIN.count(0)}\nCy_T\t{TRAIN.count(2)}\n",
    )
    (folder / "lfw-funneled.tgz").write_bytes(b"unpacked already")
    files = dict(tv.LFWPeople.file_dict)
    files["funneled"] = (files["funneled"][0], "lfw-funneled.tgz", md5(folder / "lfw-funneled.tgz"))
    patch.setattr(tv.LFWPeople, "file_dict", files)
    sums = {file: md5(folder / file) for file in ("lfw-names.txt", "people.txt")}
    patch.setattr(tv.LFWPeople, "checksums", {**tv.LFWPeople.checksums, **sums})


def write_inaturalist(root, patch, name):
    kinds = [
        f"0000{k}_Animalia_P_C_O_F_Genus_{end}" for k, end in enumerate(("alba", "nigra", "alba"))
    ]
    for version, labels in (("2021_train_mini", TRAIN), ("2021_valid", TEST)):
        write_folders(root / version, labels, version == "2021_valid", kinds)


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
