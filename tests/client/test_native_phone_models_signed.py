"""The C++ phone with keys to trust takes signed models alone, and never an older one."""

from __future__ import annotations

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from tests.client.native_models import (
    FINGERPRINT,
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

KEY, NEXT, FOREIGN = (generate_private_key(SECP256R1()) for _ in range(3))


@pytest.fixture
def phone(shop, phone_program) -> NativePhone:
    """It trusts two keys."""
    made = shop.phone(phone_program("executorch"))
    trust(made, KEY, NEXT)
    return made


def accepted(phone: NativePhone) -> str:
    """What the phone has noted of the version that it accepted last."""
    path = phone.state / "accepted" / "model" / NAME
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (None, "it is not signed"),
        (by(FOREIGN), "no trusted key has signed it"),
        (by(KEY, kind="backbone"), "signed as a backbone"),
        (by(KEY, name="other.pte"), f"signed as other.pte, expected {NAME}"),
        (by(KEY, name=f"my.{NAME}"), f"signed as my.{NAME}, expected {NAME}"),
        (by(KEY, version=1), "signed as version 1, expected 2"),
        (by(KEY, version=3), "signed as version 3, expected 2"),
        (by(KEY, size=7), "another file was signed"),
        (by(KEY, sha256="0" * 64), "another file was signed"),
        (by(KEY, card="0" * 64), "another card was signed"),
        (by(KEY, fingerprint="0" * 64), "another fingerprint was signed"),
        (by(KEY, created=3700), "in the future"),
        (by(KEY, created=-9999, expires=-3700), "expired"),
    ],
)
def test_what_is_not_signed_as_it_must_be_is_not_even_fetched(
    sign, words, shop, phone, monkeypatch
):
    shop.publish(1, by(KEY))
    assert updated(phone).status == 0
    before = accepted(phone)
    fetched = shop.heard(phone, monkeypatch, "fetch")
    shop.publish(2, sign)
    said = updated(phone)
    assert said.status == 1
    assert "unsigned-model: " in said.error
    assert words in said.error
    assert not fetched
    assert current(phone) == shop.whole(1)
    assert (kept(phone), accepted(phone)) == (["1"], before)


def test_clocks_may_be_an_hour_apart(shop, phone):
    for seed, sign in enumerate(
        (by(KEY, created=3500), by(NEXT, created=-9999, expires=-3500), by(NEXT)), 1
    ):
        shop.publish(seed, sign)
        assert updated(phone).version == seed
        assert current(phone) == shop.whole(seed)
        assert accepted(phone).startswith(f"version {seed}\nsha256 ")


def test_a_signed_fingerprint_must_be_a_large_cards(shop, phone, monkeypatch):
    """The card is fetched to be compared, and the file is not."""
    fetched = shop.heard(phone, monkeypatch, "fetch")
    shop.publish(1, by(KEY, fingerprint="1" * 64), card_bytes=2 * PART)
    said = updated(phone)
    assert (said.status, "another fingerprint" in said.error) == (1, True)
    assert len({request.sha256 for request in fetched}) == 1
    assert (current(phone), accepted(phone)) == (None, "")
    shop.publish(2, by(KEY, fingerprint=FINGERPRINT), card_bytes=2 * PART)
    assert updated(phone).version == 2


def test_an_older_version_is_refused_whatever_is_in_use(shop, phone):
    for seed in (1, 2):
        shop.publish(seed, by(KEY))
    assert updated(phone).version == 2
    shutil.rmtree(shop.file(2).parent)
    said = updated(phone)
    assert (said.status, "older than version 2, which was accepted" in said.error) == (1, True)
    shutil.rmtree(phone.state / "models")
    assert updated(phone).status == 1
    assert current(phone) is None
    # Another file under the number that was accepted.
    shop.publish(3, by(KEY))
    said = updated(phone)
    assert (said.status, "another file was accepted" in said.error) == (1, True)
    assert current(phone) is None
    shop.publish(4, by(KEY))
    assert updated(phone).version == 3
    (phone.state / "accepted" / "model" / NAME).write_text("damaged")
    said = updated(phone)
    assert (said.status, "cannot be known which version" in said.error) == (1, True)


def test_what_was_in_use_before_there_were_keys_is_not_followed_by_an_older_one(
    shop, phone_program
):
    phone = shop.phone(phone_program("executorch"))
    for seed in (1, 2):
        shop.publish(seed, by(KEY))
    assert updated(phone).version == 2
    assert accepted(phone) == ""
    trust(phone, KEY)
    shutil.rmtree(shop.file(2).parent)
    said = updated(phone)
    assert (said.status, "older than version 2, which is in use" in said.error) == (1, True)
    shop.publish(2, by(KEY))
    assert updated(phone).news == "unchanged"
    assert accepted(phone).startswith("version 2\n")


def test_a_folder_without_keys_means_that_nothing_is_accepted(shop, phone_program):
    phone = shop.phone(phone_program("executorch"))
    (phone.path / "trusted").mkdir()
    shop.publish(1, by(KEY))
    said = updated(phone)
    assert (said.status, "expected one public key or two" in said.error) == (1, True)
    assert current(phone) is None


def test_a_kill_before_each_change_of_the_disk_leaves_a_whole_model(shop, phone, tmp_path):
    """What is in use is whole and was accepted; the next call brings the new one."""
    for seed in (1, 2):
        shop.publish(seed, by(KEY))
        assert updated(phone).version == seed
    shop.publish(3, by(KEY), card_bytes=PART)
    folder = phone.state / "models" / NAME
    left: set[tuple[str, ...]] = set()  # of the folder by kills
    for _ in kills(phone, killed_at(tmp_path)):
        found = current(phone)
        assert found in (shop.whole(2), shop.whole(3))
        if (folder / "3").exists():
            assert accepted(phone).startswith("version 3\n")
        left.add(tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))))
        assert updated(phone).version == 3
        assert (current(phone), kept(phone)) == (shop.whole(3), ["2", "3"])
    assert found == shop.whole(3)
    assert len(left) > 8


def test_a_card_under_a_number_in_use_stays(shop, phone):
    """The file is the accepted one, and the other card is signed."""
    shop.publish(1, by(KEY))
    assert updated(phone).status == 0
    before = shop.whole(1), accepted(phone)
    shutil.rmtree(shop.file(1).parent)
    shop.publish(1, by(KEY), card_bytes=9)
    said = updated(phone)
    assert (said.status, "version 1 is in use here with other bytes" in said.error) == (1, True)
    assert (current(phone), accepted(phone)) == before
