from __future__ import annotations

import errno
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common import features as features_module
from common.errors import BackboneError, DataError
from common.features import extract
from common.files import write_folder


@pytest.fixture
def entry(backbone, images, tmp_path) -> Path:
    """The folder of one finished cache entry."""
    extract(backbone, images.__getitem__, len(images), content_key="blobs", cache=tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    return folder


def unwanted(_: np.ndarray) -> np.ndarray:
    raise AssertionError("images were asked for, although features are cached")


def test_equal_to_computing_all_at_once(backbone, images, tmp_path):
    want = backbone.features(images)
    for batch_size in (1, 7, 24, 100):
        got = extract(
            backbone,
            images.__getitem__,
            len(images),
            content_key="blobs",
            cache=tmp_path / str(batch_size),
            batch_size=batch_size,
        )
        assert np.array_equal(got, want)


def test_mapped_read_only_and_kept(backbone, images, tmp_path, caplog):
    n = len(images)
    first = extract(backbone, images.__getitem__, n, content_key="blobs", cache=tmp_path)
    again = extract(backbone, unwanted, n, content_key="blobs", cache=tmp_path)
    assert np.array_equal(first, again)
    for mapped in (first, again):
        assert isinstance(mapped, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            mapped[0, 0] = 1
    assert not caplog.records


def test_another_process_may_put_the_same_in_place_meanwhile(
    backbone, images, tmp_path, monkeypatch
):
    @contextmanager
    def taken_away(folder):
        with write_folder(folder) as temporary:
            yield temporary
        folder.rename(tmp_path / "between two renames of the other")

    monkeypatch.setattr(features_module, "write_folder", taken_away)
    got = extract(backbone, images.__getitem__, len(images), content_key="blobs", cache=tmp_path)
    assert np.array_equal(got, backbone.features(images))


@pytest.mark.slow
def test_other_data_or_backbone_is_other_work(backbone, images, prepare, tmp_path):
    n = len(images)
    extract(backbone, images.__getitem__, n, content_key="blobs", cache=tmp_path)
    flipped = 255 - images
    other = extract(backbone, flipped.__getitem__, n, content_key="flipped", cache=tmp_path)
    assert np.array_equal(other, backbone.features(flipped))
    another = prepare(images, seed=8)
    got = extract(another, images.__getitem__, n, content_key="blobs", cache=tmp_path)
    assert np.array_equal(got, another.features(images))


def test_no_image_gives_no_row(backbone, tmp_path):
    got = extract(backbone, unwanted, 0, content_key="empty", cache=tmp_path)
    assert got.shape == (0, 672)
    assert got.dtype == np.uint8


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def foreign_card(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "fingerprint": "0" * 64}))


DAMAGE = {
    "flipped byte": lambda folder: flip(folder / "features.npy", -1),
    "flipped header": lambda folder: flip(folder / "features.npy", 20),
    "truncated": lambda folder: (folder / "features.npy").write_bytes(
        (folder / "features.npy").read_bytes()[:-100]
    ),
    "no array": lambda folder: (folder / "features.npy").unlink(),
    "no card": lambda folder: (folder / "card.json").unlink(),
    "broken card": lambda folder: (folder / "card.json").write_text("{"),
    "card of another kind": lambda folder: (folder / "card.json").write_text("[]"),
    "foreign card": foreign_card,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_entry_is_made_again_with_one_warning(backbone, images, entry, caplog, damage):
    damage(entry)
    cache = entry.parents[1]
    n = len(images)
    got = extract(backbone, images.__getitem__, n, content_key="blobs", cache=cache)
    assert np.array_equal(got, backbone.features(images))
    assert [record.name for record in caplog.records] == ["fedhead"]
    assert "\n" not in caplog.records[0].getMessage()
    extract(backbone, unwanted, n, content_key="blobs", cache=cache)
    assert len(caplog.records) == 1


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class _FullDisk:
    """A file that takes its header and one batch, then says the disk is full."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: PTH123, SIM115 (Path.open is what is replaced)
        self.writes = 0

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.writes += 1
        if self.writes > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


def test_full_disk_is_one_clear_line_and_leaves_nothing(backbone, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: _FullDisk(path))
    with pytest.raises(BackboneError, match="No space left on device"):
        extract(
            backbone,
            images.__getitem__,
            len(images),
            content_key="blobs",
            cache=tmp_path,
            batch_size=4,
        )
    monkeypatch.undo()
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_nothing_and_the_next_call_succeeds(backbone, images, tmp_path, error):
    def broken(index: np.ndarray) -> np.ndarray:
        if index[0] >= 8:
            raise error
        return images[index]

    with pytest.raises(error):
        extract(backbone, broken, len(images), content_key="blobs", cache=tmp_path, batch_size=4)
    assert files_below(tmp_path) == []
    assert not [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]
    got = extract(backbone, images.__getitem__, len(images), content_key="blobs", cache=tmp_path)
    assert np.array_equal(got, backbone.features(images))


def test_interrupted_repair_keeps_the_old_entry_out_of_use(backbone, images, entry):
    """A damaged entry is replaced only by a whole one."""
    flip(entry / "features.npy", -1)
    damaged = (entry / "features.npy").read_bytes()

    def broken(index: np.ndarray) -> np.ndarray:
        raise RuntimeError("power cut")

    cache = entry.parents[1]
    with pytest.raises(RuntimeError, match="power cut"):
        extract(backbone, broken, len(images), content_key="blobs", cache=cache)
    assert (entry / "features.npy").read_bytes() == damaged
    assert sorted(p.name for p in entry.parent.iterdir()) == [entry.name]


def test_too_few_images_are_an_error(backbone, images, tmp_path):
    with pytest.raises(DataError, match="asked for 24 images, but got 23"):
        extract(backbone, lambda i: images[i][:-1], 24, content_key="blobs", cache=tmp_path)


def test_images_of_the_wrong_size_are_an_error(backbone, tmp_path):
    wrong = np.zeros((4, 3, 16, 16), np.uint8)
    with pytest.raises(BackboneError, match=r"\(4, 3, 16, 16\), expected"):
        extract(backbone, wrong.__getitem__, 4, content_key="w", cache=tmp_path)
    assert files_below(tmp_path) == []


def test_device_path_imports_no_torchvision():
    import subprocess
    import sys

    code = "import sys, common.features; print('torchvision' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(features_module.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
