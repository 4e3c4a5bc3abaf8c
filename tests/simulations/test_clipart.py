"""The script that makes clipart, on a Debian package of a few drawings."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.datasets import Reading, load_dataset
from common.errors import DataError
from simulations.bench.datasets.clipart import author_of, build
from simulations.bench.datasets.debian import download, package_files
from simulations.bench.datasets.near import near_groups, split_groups

ROOT = "./usr/share/openclipart/png"


def drawing(seed: int, author: str, size: tuple[int, int] = (36, 36)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9), np.uint8)
    info, out = PngInfo(), io.BytesIO()
    info.add_text("Author", author)
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def deb(path: Path, files: dict[str, bytes]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{ROOT}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo(f"{ROOT}/animals/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "cat_01.png"
        archive.addfile(link)
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in (("debian-binary", b"2.0"), ("data.tar.xz", plain.getvalue())):
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
            file.write(data + b"\n" * (len(data) % 2))
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {f"animals/cat{i}x.png": drawing(i, "Ada") for i in range(20)}
    files |= {f"food/cake{i}x.png": drawing(50 + i, "Ben") for i in range(20)}
    files |= {f"tools/saw_0{i}.png": drawing(90 + i, "Cy") for i in range(5)}
    files |= {
        "animals/big/horse.png": drawing(7, "Dan"),  # as cat7x.png, but of another author
        "animals/copy.png": drawing(3, "Ada", (72, 72)),  # cat3x.png, larger
        "signs_and_symbols/flags/isle.png": drawing(99, "Eve"),
        "signs_and_symbols/clock.png": drawing(98, "Eve"),
        "computer/icons/theme.png": drawing(200, "Ada"),
        "unsorted/other.png": drawing(201, "Ada"),
        "animals/readme.txt": b"text",
    }
    return deb(tmp_path / "some.deb", files)


def test_drawings_become_a_table_whose_near_duplicates_are_on_one_side(
    package: Path, tmp_path: Path
) -> None:
    counts = build(package, tmp_path / "clipart")
    assert counts["images"] == 48
    assert counts["authors"] == 5
    assert counts["near-duplicates"] == 5  # four saws and a copied cat
    made = load_dataset("clipart", Reading(root=tmp_path))
    assert made.name == "clipart"
    assert made.classes == ("animals", "flags", "food", "tools")
    assert len(made.train) + len(made.test) == 48
    assert len(made.test) == counts["for the test"] > 0
    authors = made.columns["author"]
    assert sorted(set(authors.tolist())) == ["Ada", "Ben", "Cy", "Dan", "Eve"]
    names = [Path(name).name for name in made.source.names]
    for near in (["copy.png", "cat3x.png"], [f"saw_0{i}.png" for i in range(5)]):
        places = [names.index(name) for name in near]
        assert np.isin(places, made.test).all() or np.isin(places, made.train).all()


def test_the_same_package_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(package, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 49
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_before_it_is_made_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clipart: no .*labels\.csv; 'make clipart' makes it"):
        load_dataset("clipart", Reading(root=tmp_path))


def test_authors_have_one_spelling() -> None:
    spelled = {
        "Mois\u00c3\u00a9s Maza": "Mois\u00e9s Maza",
        "Jean-Victor Balin (a@b.c)": "Jean-Victor Balin",
        "Jakob [a@b.c]": "Jakob",
        "Rollandin Francesco": "Architetto Francesco Rollandin",
        "": "",
    }
    for written, want in spelled.items():
        assert author_of(drawing(0, written)) == want


def test_what_is_no_debian_package_is_refused(tmp_path: Path, package: Path) -> None:
    other = tmp_path / "other.deb"
    other.write_bytes(b"PK")
    with pytest.raises(DataError, match="not a Debian package"):
        list(package_files(other))
    other.write_bytes(package.read_bytes()[:140])
    with pytest.raises(DataError, match="damaged Debian package"):
        list(package_files(other))


def test_a_download_with_another_hash_is_removed_and_told(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.write_bytes(b"other")
    with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, expected 00"):
        download([source.as_uri()], "00", place)
    assert not place.exists()


def test_groups_chain_and_authors_keep_them_apart() -> None:
    prints = np.zeros((4, 8), bool)
    prints[1, :2] = prints[2, :4] = True  # two bits from one to the next
    stems = ["a", "b", "c", "a"]
    assert near_groups(prints, ["x"] * 4, stems, most=2).tolist() == [0, 0, 0, 0]
    assert near_groups(prints, ["x", "y", "x", "x"], stems, most=2).tolist() == [0, 1, 2, 0]


def test_a_test_part_of_groups_has_no_more_than_its_share_of_a_class() -> None:
    labels = np.repeat([0, 1], [100, 40])
    groups = np.arange(140) // 3
    test = split_groups(labels, groups, 0.2, seed=0)
    counts = np.bincount(labels[test])
    assert (counts <= [20, 8]).all()
    assert (counts > [17, 5]).all()  # the next group of three would not fit
    for group in np.unique(groups[test]):
        assert np.isin(np.flatnonzero(groups == group), test).all()
