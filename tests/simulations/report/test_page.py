"""The page as a file: what is in it, what is not, and that names stay names."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.errors import MissingExtraError
from simulations.report import load_runs, write_report
from simulations.report.confusion import class_lines, confusions
from simulations.report.figures import figure_data, line_styles

MakeRun = Callable[..., Path]

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    '{{ 7 * 7 }} \u2028 "quoted" & <!-- <b>bold',
)


class Page(HTMLParser):
    """Tags, text and scripts, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.ids |= {values["id"]} if "id" in values else set()
        self.links += [values[key] for key in ("src", "href", "data", "action") if key in values]
        self._script = values.get("id", "main") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def data(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts["data"])
        return found


def page(cells: Path, target: float | None = None) -> Page:
    return Page(write_report(load_runs([cells]), cells, target=target).page.read_text("utf-8"))


def test_the_page_needs_nothing_from_elsewhere(make_run: MakeRun, cells: Path) -> None:
    make_run("a", clients=[5, 6])
    found = page(cells)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert not {"link", "iframe", "img", "object", "base"} & set(found.tags)
    assert set(found.scripts) == {"data", "plotly", "main"}
    # Smaller than plotly.js alone, which is packed.
    assert (cells / "report.html").stat().st_size < 2_200_000


def test_the_same_runs_give_the_same_page(make_run: MakeRun, cells: Path, tmp_path: Path) -> None:
    make_run("a", clients=[5, 6])
    make_run("b", "seed=1", clients=[5, 7])
    once = write_report(load_runs([cells]), tmp_path / "x")
    again = write_report(load_runs([cells / "b", cells / "a"]), tmp_path / "y")
    assert once.page.read_bytes() == again.page.read_bytes()


def test_names_of_users_stay_text(make_run: MakeRun, cells: Path) -> None:
    # What a class, a data folder and an argument may be called.
    folder, word = f"folder:/x/{HOSTILE[1]}", HOSTILE[0].replace("=", ":")
    make_run("a", f"data.source={folder}", f"strategy.args.word={word}", classes=HOSTILE,
             versions={"torch": HOSTILE[0]})  # fmt: skip
    make_run("b", f"data.source={folder}", "strategy.name=krum", classes=HOSTILE)
    found = page(cells)
    assert found.data[0]["classes"] == list(HOSTILE)
    assert found.tags.count("script") == 3
    for name in (*HOSTILE[:2], word):
        assert name in found.text
    assert "49" not in found.text


def test_a_clients_round_names_optimizer_and_loss(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "train.optimizer=adam", "train.loss=mine:smooth", "train.local-epochs=2")
    assert "2 epochs, batches of 10, Adam, mine:smooth" in page(cells).text
    make_run("b")
    assert "varying epochs, batches of 10, varying optimizers, varying losses" in page(cells).text


def test_sections_without_data_are_left_out(make_run: MakeRun, cells: Path) -> None:
    make_run("a", client_accuracy_p10=None, client_accuracy_min=None, versions={})
    found = page(cells)
    assert not {"clients", "partition", "overview", "setting", "metrics"} & found.ids
    assert {"result", "curves", "mistakes", "reproduce"} <= found.ids
    assert "not recorded" in found.text
    make_run("b", "partition.num-clients=9", clients=[5], client_accuracy_p10=None)
    found = page(cells)
    assert "The weakest clients" not in found.text
    assert {"clients", "partition", "overview", "setting"} <= found.ids
    assert [bool(setting["partition"]) for setting in found.data] == [False, True]


def test_notes_and_noise_are_on_the_page(make_run: MakeRun, cells: Path) -> None:
    make_run("a", correct=[900])
    make_run("c", "strategy.name=krum", correct=[800])
    (make_run("b", "seed=1") / "summary.json").unlink()
    found = page(cells)
    assert f"{cells / 'b'} has not finished and is left out." in found.text
    assert "tests on 1,000 images" in found.text
    assert "±2.6 points" in found.text  # sqrt(2) times half of Wilson's interval


def test_a_yardstick_reads_the_same_in_the_table_and_above_the_curves(
    make_run: MakeRun, cells: Path
) -> None:
    # Their mean is 0.94649999999: rounded to four digits first it would read 94.7.
    for seed, ridge in enumerate((0.949, 0.944)):
        make_run(f"a{seed}", f"seed={seed}", ridge_accuracy=ridge)
        make_run(f"b{seed}", f"seed={seed}", "strategy.name=krum", ridge_accuracy=ridge)
    assert page(cells).text.count("ridge 94.6 %") == 2


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_a_missing_package_is_named_before_anything_is_written(
    make_run: MakeRun, cells: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*fedhead\[report\]"):
        write_report(load_runs([cells]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_curves_are_means_with_a_band_of_seeds_and_of_chance(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "seed=0", correct=[500, 600, 700], uplink=10)
    make_run("b", "seed=1", correct=[700, 650], uplink=30)
    (entry,) = figure_data(load_runs([cells]), None)[0]["entries"]
    # As far as all seeds go.
    assert entry["accuracy"] == [0.6, 0.625]
    # Wilson's interval for 625 of 1,000 is 0.5946 to 0.6545, more than the seeds' 0.6 to 0.65.
    assert (entry["low"], entry["high"]) == ([0.5, 0.5946], [0.7, 0.6545])
    assert entry["uplink"] == [20, 40]


def test_boxes_hold_the_clients_of_all_seeds(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "seed=0", clients=[0, 1, 2, 3, 4], personal=[10] * 5)
    make_run("b", "seed=1", clients=[5, 6, 7, 8, 9, 10], personal=[10] * 6)
    (entry,) = figure_data(load_runs([cells]), None)[0]["entries"]
    # 0, 0.1, ..., 1: lowest, p10, quartiles, highest, mean.
    assert entry["clients"] == [0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 0.5]
    assert entry["personal"] == [1.0] * 7
    assert "11 of 11 clients have 20 or more test images of their own" in page(cells).text


@pytest.mark.parametrize(("count", "tests"), [(50, 19), (9, 20)])
def test_clients_with_a_few_tests_or_a_few_clients_are_not_drawn(
    make_run: MakeRun, cells: Path, count: int, tests: int
) -> None:
    make_run("a", clients=[9] * count, personal=[9] * count, tests=tests)
    (entry,) = figure_data(load_runs([cells]), None)[0]["entries"]
    assert (entry["clients"], entry["personal"]) == (None, None)
    counted = 0 if tests < 20 else count
    text = " ".join(page(cells).text.split())
    assert f"{counted} of {count} clients have 20 or more test images of their own" in text
    assert f"(all have {tests} to {tests}). Of fewer an accuracy shows who was lucky" in text


def test_mistakes_are_the_winners_over_all_seeds(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "seed=0", correct=[990])
    make_run("b", "seed=1", correct=[980])
    make_run("c", "strategy.name=krum", correct=[500])
    comparison = load_runs([cells])
    assert confusions(comparison.settings[0]) == [("ant", "bee", 30)]
    # 990 and 980 by hand: 330 and 328 (with the rest) of class ant are right.
    assert figure_data(comparison, None)[0]["confusion"]["counts"] == [
        [658, 30, 0],
        [0, 656, 0],
        [0, 0, 656],
    ]


def test_the_winner_is_the_best_and_not_the_first_that_was_asked_for(
    make_run: MakeRun, cells: Path
) -> None:
    runs = [
        make_run(name, f"strategy.name={name}", correct=[right])
        for name, right in (("krum", 905), ("median", 990))
    ]
    shown = Page(write_report(load_runs(runs, as_asked=True), cells).page.read_text("utf-8"))
    text = " ".join(shown.text.split())
    assert "Accuracy median 99.0" in text
    assert "The last head of median" in text
    assert 'aria-sort="descending"><button' not in shown.raw  # the rows are not sorted by anything


def test_of_many_classes_those_with_the_most_mistakes_have_rows_of_their_own(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", classes=[f"class {i}" for i in range(200)], correct=[990])
    comparison = load_runs([cells])
    drawn = figure_data(comparison, None)[0]["confusion"]
    assert (len(drawn["names"]), drawn["others"], drawn["names"][-1]) == (41, 160, "160 others")
    assert drawn["counts"][0][:3] == [194, 10, 0]  # 4 of 200 right, and what the division leaves
    assert sum(map(sum, drawn["counts"])) == 1000
    assert confusions(comparison.settings[0]) == [("class 0", "class 1", 10)]
    assert len(class_lines(comparison.settings[0])) == 200


def test_one_mistake_on_two_images_is_paler_than_five_on_a_hundred(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", classes=("rare", "common", "none"), confusion=[[1, 1, 0], [5, 95, 0], [0, 0, 0]])
    drawn = figure_data(load_runs([cells]), None)[0]["confusion"]
    # Wilson's lower ends by hand: 1 of 2 at 0.0945, 5 of 100 at 0.0215, 13 of 100 at 0.0776.
    full = math.sqrt(13 * 0.0776)
    assert drawn["shades"][0][1] == pytest.approx(math.sqrt(0.0945) / full, abs=0.002)
    assert drawn["shades"][1][0] == pytest.approx(math.sqrt(5 * 0.0215) / full, abs=0.002)
    assert drawn["shades"][0][1] < drawn["shades"][1][0] < 0.4
    assert drawn["fullest"] == (13, 100)  # no cell is as bad


def test_the_worst_cell_has_the_fullest_colour_and_the_legend_names_it(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", classes=("x", "y"), confusion=[[60, 40], [0, 50]])
    found = page(cells)
    assert found.data[0]["confusion"]["shades"] == [[None, 1.0], [0.0, None]]
    assert "many mistakes, as 40 of 100 images" in found.text


def test_each_class_has_a_line_the_lowest_accuracy_first(make_run: MakeRun, cells: Path) -> None:
    rows = [[90, 0, 10, 0], [3, 5, 2, 0], [0, 0, 20, 0], [0, 0, 0, 0]]
    for seed in (0, 1):
        make_run(f"a{seed}", f"seed={seed}", classes=("p", "q", "r", "s"), confusion=rows)
    lines = class_lines(load_runs([cells]).settings[0])
    assert [(one.name, one.tests, one.right, one.taken_for) for one in lines] == [
        ("q", 20, 10, ("p", 6)),
        ("p", 200, 180, ("r", 20)),
        ("r", 40, 40, None),
        ("s", 0, 0, None),
    ]
    assert lines[-1].accuracy is None
    # Wilson's interval for 5 of 10: two seeds may have tested on the same ten images.
    assert (lines[0].low, lines[0].high) == (
        pytest.approx(0.2366, abs=1e-4),
        pytest.approx(0.7634, abs=1e-4),
    )


def test_one_run_shows_its_figures_and_no_comparison_with_itself(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", correct=[500, 900], uplink=1000, clients=[5] * 12, model_bytes=2_260_000,
             downlink_bytes=3000, full_model_uplink_bytes=2_000_000)  # fmt: skip
    found = page(cells)
    order = [link[1:] for link in found.links]
    assert order[1:] == ["result", "curves", "mistakes", "clients", "partition", "reproduce"]
    assert order[0] == "result"  # for who skips to it
    text = " ".join(found.text.split())
    for figure in (
        "90.0 ± 1.9 % of 1,000 test images",
        "92.0 % the best linear head of all data in one place; this run is 2.0 points below it",
        "2.00 kB sent by all clients in 2 rounds; they received 3.00 kB. "
        "Whole models would be 2.00 MB, 1,000 times as much",
        "2.26 MB model.pt",
    ):
        assert figure in text
    for comparing in ("Leaderboard", "to target", "nobody else", "target 90.0"):
        assert comparing not in text
    assert found.data[0]["entries"][0]["spread"] == [0] * 10 + [12] + [0] * 9  # 10 of 20 each
    assert [rule["name"] for rule in found.data[0]["yardsticks"]] == ["centralized", "ridge"]
    assert [rule["name"] for rule in page(cells, target=0.8).data[0]["yardsticks"]][2] == "target"


def test_clients_of_one_main_class_stand_together_and_thousands_are_sampled(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", clients=[5] * 5)
    held = figure_data(load_runs([cells]), None)[0]["partition"]
    assert held["ids"] == [0, 3, 1, 4, 2]
    assert held["counts"] == [[6, 6, 1, 1, 1], [1, 1, 6, 6, 1], [1, 1, 1, 1, 6]]
    assert (held["most"], held["all"], held["seed"]) == (6, 5, 0)
    make_run("b", "partition.num-clients=2000", clients=[5] * 2000)
    held = figure_data(load_runs([cells / "b"]), None)[0]["partition"]
    assert (held["all"], len(held["ids"]), len(held["counts"][0])) == (2000, 400, 400)


def test_no_two_of_24_strategies_look_alike_and_each_looks_the_same_everywhere(
    make_run: MakeRun, cells: Path
) -> None:
    for i in range(24):
        for clients in (8, 9):
            make_run(f"{i}-{clients}", f"strategy.name=m:s{i}", f"partition.num-clients={clients}",
                     correct=[900 - i * (1 if clients == 8 else -1)])  # fmt: skip
    comparison = load_runs([cells])
    assert len(set(line_styles(comparison).values())) == 24
    looks = [
        {e["label"]: (e["colour"], e["dash"]) for e in setting["entries"]}
        for setting in figure_data(comparison, None)
    ]
    assert looks[0] == looks[1]
