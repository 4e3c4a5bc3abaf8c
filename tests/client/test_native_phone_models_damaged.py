"""The C++ phone says that a model is up to date of whole files alone, and mends the others."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from tests.client.native_models import (
    NAME,
    PART,
    by,
    current,
    kept,
    killed_at,
    kills,
    trust,
    updated,
)
from tests.client.native_phones import NativePhone

# A build takes minutes on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DAMAGES = ("flip", "cut", "remove")


@pytest.fixture
def phone(shop, phone_program) -> NativePhone:
    return shop.phone(phone_program("executorch"))


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content if how == "flip" else content[:-1])


def folder_of(phone: NativePhone, version: int) -> Path:
    return phone.state / "models" / NAME / str(version)


def agrees(folder: Path) -> bool:
    """Whether a version's sums, if they are there, are those of its files."""
    if not (folder / ".sums").exists():
        return True
    kept = (folder / ".sums").read_text()[64:]
    files = [(folder / name).read_bytes() for name in (NAME, "card.json")]
    return kept == " ".join(hashlib.sha256(content).hexdigest() for content in files)


def test_damaged_files_are_fetched_again(shop, phone, monkeypatch):
    shop.publish(1, card_bytes=2 * PART)
    assert updated(phone).status == 0
    fetched = shop.heard(phone, monkeypatch, "fetch")
    folder = folder_of(phone, 1)
    sums = (folder / ".sums").read_bytes()
    for name, count, news in ((NAME, 3, "new"), ("card.json", 3, "unchanged")):
        for how in DAMAGES:
            damage(folder / name, how)
            said = updated(phone)
            assert (said.status, said.news) == (0, news), how
            assert current(phone) == shop.whole(1)
            assert len(fetched) == count
            assert len({request.sha256 for request in fetched}) == 1
            fetched.clear()
    for name in (NAME, "card.json"):
        damage(folder / name, "flip")
    assert updated(phone).news == "new"
    assert (current(phone), len(fetched)) == (shop.whole(1), 6)
    fetched.clear()
    (folder.parent / "current").write_text("damaged")
    assert updated(phone).news == "new"
    assert (current(phone), fetched) == (shop.whole(1), [])
    assert (folder / ".sums").read_bytes() == sums


@pytest.mark.parametrize("how", DAMAGES)
def test_where_the_sums_are_lost_one_whole_file_tells_the_version(how, shop, phone):
    """The files are compared with what is offered; both must not be replaced in turn."""
    shop.publish(1)
    assert updated(phone).status == 0
    folder = folder_of(phone, 1)
    sums = (folder / ".sums").read_bytes()
    for damaged in ([], [NAME], ["card.json"]):
        for name in (".sums", *damaged):
            damage(folder / name, how)
        assert updated(phone).status == 0
        assert current(phone) == shop.whole(1)
        assert (folder / ".sums").read_bytes() == sums
    for name in (".sums", NAME, "card.json"):
        damage(folder / name, "flip")
    before = current(phone)
    said = updated(phone)
    assert (said.status, "version 1 is in use here with other bytes" in said.error) == (1, True)
    assert current(phone) == before
    shop.publish(2)
    assert updated(phone).version == 2


@pytest.mark.parametrize("signed", [False, True])
def test_an_older_version_than_the_one_in_use_is_not_taken(signed, shop, phone):
    """A whole one is in use still, without keys; a damaged one is said to be damaged."""
    key = generate_private_key(SECP256R1())
    if signed:
        trust(phone, key)
    for seed in (1, 2):
        shop.publish(seed, by(key))
        assert updated(phone).version == seed
    shutil.rmtree(shop.file(2).parent)
    said = updated(phone)
    if signed:
        assert (said.status, "version 1 is older than version 2" in said.error) == (1, True)
    else:
        assert (said.status, said.version, said.news) == (0, 2, "unchanged")
    assert current(phone) == shop.whole(2)
    whole, folder = phone.path / "whole", folder_of(phone, 2)
    shutil.copytree(folder, whole)
    for name in (NAME, "card.json", ".sums"):
        for how in DAMAGES:
            damage(folder / name, how)
            said = updated(phone)
            assert said.status == 1
            assert (
                "damaged-model: version 2, which is in use, is damaged here, and the gateway "
                "offers only version 1, which is older" in said.error
            )
            assert kept(phone) == ["1", "2"]
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
    assert updated(phone).status == int(signed)


def test_the_version_before_is_the_one_that_was_in_use(shop, phone, tmp_path):
    """An update to a third one was killed before it was in use; the next, at any moment."""
    for seed in (1, 2, 3):
        shop.publish(seed)
        assert updated(phone).version == seed
    (phone.state / "models" / NAME / "current").write_text("2\n")
    shop.publish(4)
    for _ in kills(phone, killed_at(tmp_path)):
        assert current(phone) in (shop.whole(2), shop.whole(4))
        assert updated(phone).version == 4
        assert (current(phone), kept(phone)) == (shop.whole(4), ["2", "4"])


def test_another_model_under_a_number_that_was_not_in_use_never_mixes(shop, phone, tmp_path):
    """An update was killed before the version was in use; it is published anew."""
    for seed in (1, 2):
        shop.publish(seed)
        assert updated(phone).version == seed
    (phone.state / "models" / NAME / "current").write_text("1\n")
    shutil.rmtree(shop.file(2).parent)
    shop.publish(3)
    for _ in kills(phone, killed_at(tmp_path)):
        assert current(phone) in (shop.whole(1), shop.whole(2))
        assert agrees(folder_of(phone, 2))
        assert updated(phone).version == 2
        assert (current(phone), kept(phone)) == (shop.whole(2), ["1", "2"])
