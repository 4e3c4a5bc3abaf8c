"""Which folders are splits, clients and classes; where that is not clear it is refused."""

import logging
import shutil

import numpy as np
import pytest

from common.config import Config
from common.errors import DataError
from common.experiment import client_shares
from tests.common.folders import CATS_AND_DOGS, fill, load, write


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
