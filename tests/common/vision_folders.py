"""Small files in the formats of torchvision's data sets that are folders of images."""

import json
import zipfile

import numpy as np
import scipy.io
import torch
import torchvision.datasets as tv

from tests.common.vision_files import TEST, TRAIN, VAL, md5, save, write


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
