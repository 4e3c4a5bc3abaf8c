"""The solar cells of elpv-dataset, from a package as small as it takes."""

from importlib.metadata import PackageNotFoundError, PackagePath
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets import Reading, load_dataset, solar
from common.errors import DataError, MissingExtraError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package with 88 cells, each as bright as its number."""
    data = tmp_path / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    lines = []
    for i in range(88):
        Image.new("L", (4, 4), i).save(data / "images" / f"cell{i}.png")
        chance = (0.0, 0.3333333333333333, 0.6666666666666666, 1.0)[i % 4]
        lines.append(f"images/cell{i}.png  {chance}  {'mono' if i < 40 else 'poly'}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")

    def files(name: str) -> list[PackagePath]:
        found = PackagePath("elpv_dataset/data/labels.csv")
        found.dist = type("Dist", (), {"locate_file": lambda _, path: tmp_path / path})()
        return [found]

    monkeypatch.setattr(solar, "files", files)
    return data


def test_cells_are_labelled_by_their_probability_and_grouped_in_44_modules(package: Path) -> None:
    cells = load_dataset("elpv", Reading(test_fraction=0.25))
    assert cells.classes == ("functional", "defective")
    assert cells.labels[:4].tolist() == [0, 0, 1, 1]
    assert cells.columns["module"].tolist() == [i // 2 for i in range(88)]
    assert cells.columns["type"].tolist() == ["mono"] * 40 + ["poly"] * 48
    assert cells.images(np.array([5]), 2).max() == 5
    assert len(cells.test) == 22


def test_a_broken_cell_is_left_out_of_images_labels_and_columns_alike(package: Path) -> None:
    (package / "images" / "cell2.png").write_bytes(b"broken")
    cells = load_dataset("elpv", Reading())
    assert len(cells) == len(cells.labels) == len(cells.columns["module"]) == 87
    assert cells.labels[:4].tolist() == [0, 0, 1, 0]


def test_without_the_package_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(solar, "files", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedhead\[elpv\]'$"):
        load_dataset("elpv", Reading())


def test_a_table_of_another_form_is_refused(package: Path) -> None:
    (package / "labels.csv").write_text("images/cell0.png 1.0\n")
    with pytest.raises(DataError, match=r"labels\.csv: not the table of elpv-dataset"):
        load_dataset("elpv", Reading())
