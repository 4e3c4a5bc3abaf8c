"""Data that a function of a user's own returns: taken as they are, or refused in one line."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data_sources import KINDS, NAMED
from common.datasets import Dataset, Reading, load_dataset, loader_of
from common.errors import DataError

Write = Callable[[str], str]
_NUMBER = itertools.count()


@pytest.fixture
def own(tmp_path: Path) -> Write:
    """Writes a module with a function ``data``; Python imports a name only once."""

    def write(body: str) -> str:
        name = f"own_data_{next(_NUMBER)}"
        head = "import numpy as np\nfrom common.datasets import Examples\n\ndef data():\n"
        text = head + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:data"

    return write


def load(source: str, root: Path, **options: object) -> Dataset:
    return load_dataset(source, Reading(root=root, **options))  # type: ignore[arg-type]


GREYS = "images = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)\n"


def test_arrays_with_names_of_classes_are_a_data_set(own: Write, tmp_path: Path) -> None:
    dataset = load(own(GREYS + "return Examples(images, ['cat', 'dog', 'owl'] * 4)"), tmp_path)
    assert dataset.classes == ("cat", "dog", "owl")
    assert dataset.labels.tolist() == [0, 1, 2] * 4
    assert dataset.images(np.array([5]), 2).tolist() == np.full((1, 3, 2, 2), 5).tolist()
    assert len(dataset.test) == 2


def test_numbers_count_in_the_classes_and_a_test_part_is_kept(own: Write, tmp_path: Path) -> None:
    columns = 'columns={"who": ["ann", None] * 6}, test=Examples(images[:2], [1, 0])'
    body = f"return Examples(images, [1, 1, 0] * 4, classes=['no', 'yes'], {columns})"
    dataset = load(own(GREYS + body), tmp_path)
    assert dataset.classes == ("no", "yes")
    assert dataset.labels.tolist() == [1, 1, 0] * 4 + [1, 0]
    assert (dataset.train.tolist(), dataset.test.tolist()) == ([*range(12)], [12, 13])
    assert dataset.columns["who"].tolist() == ["ann", None] * 6 + [None, None]


def test_numbers_alone_are_classes_in_their_order(own: Write, tmp_path: Path) -> None:
    dataset = load(own(GREYS + "return Examples(images, np.arange(12) % 3 + 9)"), tmp_path)
    assert dataset.classes == ("9", "10", "11")
    assert dataset.labels.tolist() == [0, 1, 2] * 4


def test_paths_start_from_the_modules_folder_and_broken_images_are_left_out(
    own: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        Image.new("RGB", (3, 3), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"nothing")
    body = (
        "return Examples([f'{i}.png' for i in range(6)], ['a', 'b'] * 3, columns={'n': range(6)})"
    )
    dataset = load(own(body), tmp_path)
    assert dataset.columns["n"].tolist() == [0, 1, 3, 4, 5]
    assert dataset.images(np.array([2]), 1)[0, :, 0, 0].tolist() == [3, 0, 0]
    assert "2.png" in dataset.skipped[0]
    with pytest.raises(DataError, match=r"2\.png"):
        load(own(body), tmp_path, strict=True)


def test_keys_follow_pixels_and_labels(own: Write, tmp_path: Path) -> None:
    first, again, other_pixel, other_label = (
        load(own(f"{GREYS}{change}\nreturn Examples(images, labels)"), tmp_path)
        for change in (
            "labels = [0, 1] * 6",
            "labels = [0, 1] * 6",
            "labels = [0, 1] * 6; images[3, 1, 1] = 200",
            "labels = [0, 1] * 5 + [1, 0]",
        )
    )
    assert (first.images_key, first.content_key) == (again.images_key, again.content_key)
    assert first.images_key != other_pixel.images_key
    assert first.images_key == other_label.images_key
    assert first.content_key != other_label.content_key


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return 3", "returned int, expected common.datasets.Examples"),
        ("x = 1\nreturn {}['gone']", r"KeyError: 'gone' \(own_data_\d+.py, line 6\)"),
        ("raise SystemExit('no disk')", "SystemExit: no disk"),
        (GREYS + "return Examples(images / 255, [0, 1] * 6)", "pixels are float64, expected uint8"),
        (GREYS + "return Examples(images, [0, 1])", "12 images, but 2 entries in labels"),
        (GREYS + "return Examples(images, [[0, 1]] * 12)", r"labels have shape \(12, 2\)"),
        (
            GREYS + "return Examples(images, [0, 1, 7] * 4, classes=['a', 'b'])",
            "labels 7, expected 0 to 1: there are 2 classes",
        ),
        (
            GREYS + "return Examples(images, ['a', 'B'] * 6, classes=['a', 'b'])",
            r"classes does not have: B \(there is b\)",
        ),
        (GREYS + "return Examples(images, ['a', 'NaN'] * 6)", "an image has no label"),
        (GREYS + "return Examples(images, ['a', 'b'] * 6, ['a', 'a'])", "are called 'a'"),
        (
            GREYS + "return Examples(images, [0, 1] * 6, columns={'who': [1]})",
            "12 images, but 1 entries in column 'who'",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, columns={'who': images[:, 0, 0] / 7})",
            "column 'who' holds fractions",
        ),
        (
            "return Examples(np.zeros((4, 3, 8, 8), np.uint8), [0, 1] * 2)",
            r"transpose\(0, 2, 3, 1\) puts the colours last",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, test=Examples(images[:, :2], [0, 1] * 6))",
            "expected one size",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, test=Examples(images, [2, 1] * 6))",
            "its test part has classes that the training part does not have: 2",
        ),
        (GREYS + "return Examples(list(images), [0, 1] * 6)", "images are of type ndarray"),
        (GREYS + "return Examples(iter(images), [0, 1] * 6)", "are not lists of equal entries"),
        (GREYS + "return Examples(images, [[0], [1, 2]])", "are not lists of equal entries"),
        (GREYS + "return Examples(images, [0, 1] * 6, test=Examples([], []))", "no images"),
        ("return Examples(['gone.png', 'no.png'], ['a', 'b'])", "none of 2 images can be read"),
        ("return Examples(['a\\0.png', 'b.png'], ['a', 'b'])", "has a NUL character in it"),
        (
            GREYS + "return Examples(images, [0, 1] * 6, columns=['who'])",
            "columns is list, expected a mapping",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, classes=None)",
            "classes is NoneType, expected a list of names",
        ),
        (GREYS + "return Examples(images, [0, 1] * 6, classes='ab')", "classes is str, expected"),
        (
            GREYS + "return Examples(images, [0, 1] * 6, test=(images, [0, 1] * 6))",
            "test is tuple, expected Examples",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, columns={'who': [10**30] * 12})",
            "column 'who' has a number beyond 64 bits",
        ),
        (
            GREYS + "return Examples(images, [0, 1] * 6, columns={'who': [b'x'] * 12})",
            "column 'who' has an entry of bytes",
        ),
        (GREYS + "return Examples(images, [1j, 2j] * 6)", "a label is of type complex"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_function(
    own: Write, tmp_path: Path, body: str, line: str
) -> None:
    source = own(body)
    with pytest.raises(DataError, match=line) as caught:
        load(source, tmp_path)
    assert str(caught.value).startswith(source)
    assert "\n" not in str(caught.value)


def test_what_a_function_prints_is_no_output_of_ours(
    own: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(own(GREYS + "print('reading')\nreturn Examples(images, [0, 1] * 6)"), tmp_path)
    assert capsys.readouterr() == ("", "reading\n")


def test_other_owners_are_other_data(own: Write, tmp_path: Path) -> None:
    def key(owners: str) -> str:
        body = f"return Examples(images, ['cat', 'dog'] * 6, columns={{'who': {owners}}})"
        return load(own(GREYS + body), tmp_path).content_key

    assert key("['ann', 'bob'] * 6") == key("['ann', 'bob'] * 6")
    assert key("['ann', 'bob'] * 6") != key("['bob', 'ann'] * 6")


def test_a_module_that_ends_the_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own_data_ender.py").write_text("print('hello')\nimport sys\nsys.exit(0)\n")
    with pytest.raises(DataError, match="own_data_ender:data: cannot be imported: SystemExit"):
        load("own_data_ender:data", tmp_path)


def test_a_function_that_is_not_there_is_one_line(own: Write, tmp_path: Path) -> None:
    module = own("return 1").partition(":")[0]
    (tmp_path / "own_broken.py").write_text("def data(:\n")
    (tmp_path / "own_needy.py").write_text("import no_such_package\n")
    (tmp_path / "json.py").write_text("def data(): return 1\n")
    for source, line in (
        (f"{module}:other", "no function 'other' in "),
        ("own_absent:data", f"there is no module 'own_absent' in {tmp_path}"),
        ("own_broken:data", "cannot be imported: SyntaxError"),
        ("own_needy:data", "own_needy needs the package 'no_such_package'"),
        ("json:data", "'json' is also "),
    ):
        with pytest.raises(DataError, match=line) as caught:
            load(source, tmp_path)
        assert str(caught.value).startswith(source)


def test_every_row_of_the_table_leads_to_what_reads_it() -> None:
    for row in (*NAMED.values(), *(kind.loader for kind in KINDS.values())):
        assert callable(loader_of(row))
