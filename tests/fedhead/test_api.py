"""The Python API: a run is a value, and a call leaves nothing behind but its folder."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedhead
import server.app
from common.experiment import experiment_dataset
from fedhead.api.display import block
from fedhead.api.experiments import configuration, plain
from fedhead.api.predicting import _items
from fedhead.api.session import session
from server.export.runtime_cards import ExportReport

EXPERIMENT = {
    "name": "small",
    "data": {"source": "digits", "calibration-examples": 64},
    "partition.num-clients": 4,
    "backbone": {"weights": "random", "input-size": 32, "distill-steps": 0},
    "train": {"rounds": 2, "lr": 0.01},
    "baseline.enabled": False,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and runs without an export, which has tests of its own."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))
    logging.getLogger("fedhead").handlers = []
    return tmp_path


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedhead\n"
        "print({'torch', 'numpy', 'pydantic', 'flwr', 'pandas'} & {*sys.modules})\n"
        "print(all(getattr(fedhead, name) is not None for name in fedhead.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True"]


def test_what_is_offered_says_how_it_is_used() -> None:
    for offered in (fedhead.run, fedhead.resume, fedhead.compare, fedhead.tune):
        words = offered.__doc__ or ""
        assert all(part in words for part in ("Example::", "Args:", "Raises:"))
    assert fedhead.__version__


def test_a_run_gives_metrics_head_and_summary(here: Path) -> None:
    run = fedhead.run(EXPERIMENT, {"train.rounds": 3}, out="mine")
    assert run.path == here / "mine"
    assert run.is_finished
    assert list(run.metrics.index) == [1, 2, 3]
    assert run.metrics["accuracy"].iloc[-1] == run.summary["accuracy"]
    assert run.head.sha256 == run.summary["head_sha256"]
    assert run.classes == tuple("0123456789")
    assert run.config["train"]["rounds"] == 3
    assert repr(run) == (
        f"<fedhead.Run {run.path}: 3 rounds, accuracy {run.summary['accuracy']:.4f}, finished>"
    )
    assert fedhead.load_run("mine") == run


def test_metrics_are_rows_where_pandas_is_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fedhead.run(EXPERIMENT, {"strategy.name": "norm_clipping"})
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = run.metrics
    assert [row["round"] for row in rows] == [1, 2]
    assert not any(isinstance(value, list | dict) for value in rows[0].values())


def test_a_runs_own_configuration_gives_the_same_head_again(here: Path) -> None:
    first = fedhead.run(EXPERIMENT)
    second = fedhead.run(first.config)
    assert second.path != first.path
    assert second.head.sha256 == first.head.sha256


def test_callbacks_are_told_of_each_round_and_may_stop(here: Path) -> None:
    told: list[int] = []

    def stop(metrics: Mapping[str, Any]) -> None:
        if metrics["round"] == 2:
            raise fedhead.StopRun

    run = fedhead.run(
        EXPERIMENT, {"train.rounds": 5}, on_round=[stop, lambda m: told.append(m["round"])]
    )
    assert told == [1, 2]
    assert run.summary["rounds"] == 2
    assert run.resume().summary["rounds"] == 5


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_ends_a_run_passes_through_and_says_how_to_go_on(
    here: Path, error: type[BaseException]
) -> None:
    whole = fedhead.run(EXPERIMENT, out="whole")

    def fail(_: Mapping[str, Any]) -> None:
        raise error

    with pytest.raises(error) as caught:
        fedhead.run(EXPERIMENT, out="cut", on_round=fail)
    path = here / "cut"
    assert caught.value.__notes__ == [
        f"1 round has finished: go on with fedhead.resume({str(path)!r})"
    ]
    cut = fedhead.load_run(path)
    assert not cut.is_finished
    assert "fedhead.resume" in repr(cut)
    assert "fedhead.resume" in cut._repr_html_()
    with pytest.raises(fedhead.RunError, match="has not finished"):
        _ = cut.summary
    assert fedhead.resume(path).head.sha256 == whole.head.sha256


def test_a_run_in_a_thread_leaves_nothing_behind(here: Path) -> None:
    logger, flower = logging.getLogger("fedhead"), logging.getLogger("flwr")
    before = [
        [*sys.path], [*logger.handlers], logger.level, [*flower.filters], dict(os.environ),
        signal.getsignal(signal.SIGTERM), Path.cwd(),
    ]  # fmt: skip
    runs: list[fedhead.Run] = []
    thread = threading.Thread(target=lambda: runs.append(fedhead.run(EXPERIMENT)))
    thread.start()
    thread.join()
    assert runs[0].is_finished
    assert before == [
        [*sys.path], [*logger.handlers], logger.level, [*flower.filters], dict(os.environ),
        signal.getsignal(signal.SIGTERM), Path.cwd(),
    ]  # fmt: skip


def test_a_run_says_nothing_unless_logging_is_set_up(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fedhead.run(EXPERIMENT, {"strategy.name": "flwr.serverapp.strategy:FedAvg"})
    assert capsys.readouterr() == ("", "")


MINE = """
from server.strategies import fedavg
from helper import size
def mine():
    print("made with", size)
    return fedavg()
"""


def test_a_strategy_of_ones_own_is_read_anew_where_it_or_a_file_beside_it_has_changed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, size in (("a", 1), ("a", 2), ("b", 3)):
        (here / folder).mkdir(exist_ok=True)
        (here / folder / "own_one.py").write_text(MINE.replace("helper", "own_helper"))
        (here / folder / "own_helper.py").write_text(f"size = {size}\n")
        name = {"strategy.name": "own_one:mine", "strategy.root": str(here / folder)}
        fedhead.run(EXPERIMENT, name)
        out = capsys.readouterr().out
        assert f"made with {size}\n" in out, (folder, size)
        assert out.count("made with") == out.count(f"made with {size}\n")


def test_data_that_have_changed_on_the_disk_are_read_anew(here: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        path = here / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(path)
    config = configuration(EXPERIMENT, {"data.source": "folder:photos"})
    with session():
        assert experiment_dataset(config).classes == ("a", "b")
    (here / "photos" / "c").mkdir()
    for number in range(20):
        Image.new("L", (32, 32), 12 * number).save(here / "photos" / "c" / f"{number}.png")
    with session():
        assert experiment_dataset(config).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"experiment": "nothing"},
            r"nothing: .*no such file.*known: attack, .*, mnist5k, private\)",
        ),
        ({"experiment": "no/thing.toml"}, "no such file"),
        ({"overrides": {"train.rouds": 1}}, "rounds"),
        ({"overrides": {"train": {"rounds": 1}, "train.rounds.x": 1}}, "'train.rounds' has both"),
        ({"overrides": {1: 1}}, "expected text"),
        ({"engine": "ray"}, "engine='ray' is unknown"),
        ({"engine": "flower", "on_round": print}, "on_round is for the engine in-process"),
        ({"on_round": "print"}, "expected a function"),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(
    here: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(fedhead.ConfigError, match=words):
        fedhead.run(**{"experiment": "mnist5k", **arguments})
    assert not (here / "runs").exists()


def test_an_experiment_is_a_file_here_or_a_shipped_one(here: Path) -> None:
    assert configuration("mnist5k", {}).train.rounds == 120
    assert configuration("mnist5k.toml", {"train.rounds": np.int64(3)}).train.rounds == 3
    (here / "mnist5k.toml").write_text("[train]\nrounds = 7\n")
    assert configuration("mnist5k.toml", {}).train.rounds == 7


def test_dotted_and_nested_keys_stand_side_by_side() -> None:
    given = {"train.lr": 1, "train": {"rounds": 2}, "data.root": Path("x")}
    assert plain(given) == {"train": {"lr": 1, "rounds": 2}, "data": {"root": "x"}}


def test_what_a_notebook_shows_is_escaped() -> None:
    html = block("<b>", "<i>", {"<u>": "<script>"})
    assert not any(tag in html for tag in ("<b>", "<i>", "<u>", "<script>"))


def test_a_run_is_shown_with_figures_and_a_curve(here: Path) -> None:
    html = fedhead.run(EXPERIMENT)._repr_html_()
    for part in ("accuracy", "ridge", "rounds", "clients", "<svg", "currentColor"):
        assert part in html


def test_images_may_be_whatever_gives_them_one_by_one(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.touch()
    words, pixels = [str(path) for path in paths], np.zeros((9, 9, 3), np.uint8)
    opened = Image.fromarray(pixels)
    for images, expected in (
        (str(tmp_path), [str(tmp_path)]),
        (tmp_path, [tmp_path]),
        ((path for path in paths), paths),
        (np.array(words), words),
        (np.array(paths), paths),
        (opened, [opened]),
    ):
        assert _items(images) == expected  # type: ignore[arg-type]
    assert sorted(_items(tmp_path.glob("*.jpg"))) == paths  # type: ignore[type-var]
    for images, count in ((pixels, 1), (np.stack([pixels, pixels]), 2), (pixels[..., 0], 1)):
        assert [getattr(item, "ndim", 0) for item in _items(images)] == [
            min(images.ndim, 3)
        ] * count
    for wrong in ({"a": words[0]}, b"a.jpg", 3, None):
        with pytest.raises(fedhead.DataError, match="expected paths, images of PIL's or arrays"):
            _items(wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_predicts_plots_reports_and_exports(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    run = fedhead.run(EXPERIMENT, out=tmp_path / "run")
    file = tmp_path / "one.png"
    Image.new("L", (9, 9), 200).save(file)
    (tmp_path / "no.png").write_text("text")
    grey = np.full((9, 9), 200, np.uint8)
    told = run.predict([file, grey, Image.open(file), tmp_path / "no.png", 3])
    assert list(told["image"]) == [str(file), 1, 2, str(tmp_path / "no.png"), 4]
    assert told["class"][0] == told["class"][1] == told["class"][2]
    assert told["class"].isna().tolist() == [False, False, False, True, True]
    assert len(run.predict(np.zeros((3, 9, 9, 3), np.uint8))) == 3
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert run.report() == run.path / "report.html"
    assert run.export("head", tmp_path).parent == tmp_path
    with pytest.raises(fedhead.ConfigError, match="target='modle' is unknown"):
        run.export("modle")


SCRIPT = """
import sys
import fedhead
from common.files import sha256_file
experiment = {experiment!r}
for size in sys.argv[2:]:
    run = fedhead.run(experiment, {{"backbone.input-size": int(size)}}, out=sys.argv[1] + size)
print(sha256_file(run.model), run.summary["head_sha256"])
"""


@pytest.mark.slow
def test_a_run_after_others_writes_the_bytes_of_one_in_a_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "runs.py"
    script.write_text(SCRIPT.format(experiment=EXPERIMENT))
    results = []
    for name, sizes in (("alone", ["32"]), ("after", ["40", "32"])):
        # Each with a cache of its own, so that each makes the backbone itself.
        environment = {**os.environ, "FEDHEAD_CACHE": str(tmp_path / f"cache-{name}")}
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / name), *sizes],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        results.append(done.stdout)
    assert results[0] == results[1]


COMPARE = """
import sys
import fedhead
compared = fedhead.compare(
    {experiment!r}, {{"train.rounds": 1}}, strategies=["fedavg", "fedprox"], seeds=[0],
    sweep={{"lr": [0.01, 0.02]}}, codecs=["none", "gram-int8"], out=sys.argv[1],
)
print(*(line.partition(":")[2] for line in compared.left_out), sep=";")
print(len(compared.runs), sorted(compared.table["strategy"]), len(compared.curves))
print(compared.report.exists(), "<table" in compared._repr_html_())
compared.plot()
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_compares(tmp_path: Path) -> None:
    script = tmp_path / "comparison.py"
    script.write_text(COMPARE.format(experiment=EXPERIMENT))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    left_out, *lines = done.stdout.splitlines() or [""]
    assert "fedavg" in left_out, done.stderr
    assert "gram-int8" in left_out
    assert lines == ["2 ['fedavg', 'fedprox'] 2", "True True"]


def test_arguments_of_a_comparison_are_named_as_they_are_called(here: Path) -> None:
    with pytest.raises(fedhead.ConfigError) as caught:
        fedhead.compare(EXPERIMENT, strategies=["fedavg"], sweep={"mu": [1]}, seeds=["x"])
    problems = caught.value.problems
    assert problems[0].startswith("seeds 'x'")
    assert problems[1] == "sweep mu: no strategy here has it"
