"""Small files in the formats of torchvision's data sets that are arrays or tables.

Each image tells what it is: the grey of its upper half says class and split, the lower half is red
(white in grey formats), so that a wrong label, a wrong split, a transposed or channel-swapped image
shows. Checksums that torchvision compares are replaced by those of the small files; its parsers and
checks run as they are.
"""

import bz2
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import scipy.io
import torchvision.datasets as tv
from PIL import Image

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
