"""Which runs belong together, and what they are called."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import FedheadError, RunError
from common.readback import seal
from server.record.runfolder import RunFolder, read_config
from simulations.report import curve_rows, load_runs
from simulations.report.page import page_html

MakeRun = Callable[..., Path]


def labels(*paths: Path) -> dict[str, list[str]]:
    return {s.label: [e.label for e in s.entries] for s in load_runs(paths).settings}


def test_runs_that_differ_in_seed_name_and_folder_are_one_entry(
    make_run: MakeRun, cells: Path
) -> None:
    for seed in (2, 0, 1):
        make_run(f"a{seed}", f"seed={seed}", f"name=x{seed}", correct=[100 * seed + 1])
    (setting,) = load_runs([cells]).settings
    (entry,) = setting.entries
    assert (setting.label, entry.label, entry.hyperparameters) == ("iid", "fedavg", "lr=auto")
    assert entry.seeds == (0, 1, 2)
    assert entry.accuracies == (0.001, 0.101, 0.201)


def test_a_setting_is_named_by_what_differs_only(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "partition.scheme=dirichlet", "partition.alpha=0.1")
    make_run("b", "partition.scheme=dirichlet", "partition.alpha=0.3")
    make_run("c", "partition.scheme=pathological", "train.lr=0.5")
    assert set(labels(cells)) == {
        "dirichlet:0.1",
        "dirichlet:0.3",
        "pathological:2",
    }
    # Nothing differs: the partition.
    assert set(labels(cells / "a")) == {"dirichlet:0.1"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.source=digits", {"mnist5k", "digits"}),
        ("data.source=folder:/home/me/birds", {"mnist5k", "folder:birds"}),
        ("train.clients-per-round=5", {"all every round", "5 a round"}),
        ("train.clients-per-round=0.1", {"all every round", "10 % a round"}),
        ("partition.num-clients=20", {"50 clients", "20 clients"}),
        ("availability.dropout-rate=0.2", {"full availability", "dropout-rate=0.2"}),
        ("backbone.input-size=64", {"input-size=96", "input-size=64"}),
    ],
)
def test_each_kind_of_difference_has_its_words(
    make_run: MakeRun, cells: Path, override: str, expected: set[str]
) -> None:
    make_run("a")
    make_run("b", override)
    assert set(labels(cells)) == expected


def test_settings_that_look_alike_get_the_key_that_differs(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "partition.alpha=0.1")
    make_run("b", "partition.alpha=0.3")  # both iid, which has no alpha
    assert set(labels(cells)) == {"iid alpha=0.1", "iid alpha=0.3"}


def test_folders_of_one_name_stay_two_settings(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "data.source=folder:/a/birds")
    make_run("b", "data.source=folder:/b/birds")
    assert len(labels(cells)) == 2


def test_strategies_are_named_by_what_they_are(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "strategy.init=fed3r", correct=[990])
    make_run("b", "strategy.precondition=gram", correct=[980])
    make_run("c", "strategy.name=flwr.serverapp.strategy:FedAdam", correct=[970])
    make_run("d", "strategy.name=fedprox", "strategy.args.mu=0.1", correct=[960])
    make_run("e", "strategy.name=fed3r", "strategy.args.lam=3.0", correct=[950])
    (setting,) = load_runs([cells]).settings
    assert [(e.label, e.hyperparameters) for e in setting.entries] == [
        ("fedavg+fed3r", "lr=auto"),
        ("fedavg+gram", "lr=auto"),
        ("FedAdam", "lr=auto"),
        ("fedprox", "lr=auto mu=0.1"),
        ("fed3r", "lam=3"),  # has no learning rate
    ]


def test_what_was_set_for_training_is_among_the_hyperparameters(
    make_run: MakeRun, cells: Path
) -> None:
    own = ("train.optimizer=adam", "train.schedule=cosine", "train.warmup-rounds=1")
    make_run("a", *own, "train.loss=mine:smooth", "train.loss-root=/somewhere", "train.rounds=3")
    assert load_runs([cells]).settings[0].entries[0].hyperparameters == (
        "lr=auto optimizer=adam schedule=cosine warmup-rounds=1 loss=mine:smooth"
    )


def test_what_was_swept_is_among_the_hyperparameters_at_its_default_too(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a")
    make_run("b", "strategy.name=fed3r")
    keys = ("train.local-epochs", "strategy.args.mu")
    told = load_runs([cells], swept=keys)
    for epochs in (1, 5):  # a sweep that lies beside them tells the same
        make_run(f"tried-{epochs}", f"train.local-epochs={epochs}", "data.validation-fraction=0.2")
    for comparison in (told, load_runs([cells])):
        (setting,) = comparison.settings
        found = {entry.label: entry.hyperparameters for entry in setting.entries}
        assert found == {"fedavg": "lr=auto local-epochs=1", "fed3r": ""}  # which has no epochs


def test_equal_strategies_get_the_keys_that_differ(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "train.lr=0.1", correct=[900])
    make_run("b", "train.lr=0.1", "train.local-epochs=5", correct=[800])
    make_run("c", "strategy.name=fedprox", "train.lr=1.0", correct=[700])
    (setting,) = load_runs([cells]).settings
    assert [(e.label, e.hyperparameters) for e in setting.entries] == [
        ("fedavg local-epochs=1", "lr=0.1 local-epochs=1"),
        ("fedavg local-epochs=5", "lr=0.1 local-epochs=5"),
        ("fedprox", "lr=1 local-epochs=1"),
    ]


def test_where_a_loss_lies_names_no_strategy(make_run: MakeRun, cells: Path) -> None:
    make_run("a")
    make_run("b", "train.loss=mine:smooth", "train.loss-root=/somewhere")
    (found,) = labels(cells).values()
    assert set(found) == {"fedavg loss=cross-entropy", "fedavg loss=mine:smooth"}


def test_the_same_momentum_of_client_and_server_stays_apart(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "strategy.name=fedavgm", "strategy.args.momentum=0.5")
    make_run("b", "strategy.name=fedavgm", "strategy.args.momentum=0.9", "train.momentum=0.1")
    (found,) = labels(cells).values()
    assert set(found) == {
        "fedavgm strategy.args.momentum=0.5 train.momentum=0",
        "fedavgm strategy.args.momentum=0.9 train.momentum=0.1",
    }


def test_unfinished_runs_are_left_out_and_named(
    make_run: MakeRun, cells: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run("done")
    (make_run("going", "seed=1") / "summary.json").unlink()
    with caplog.at_level(logging.WARNING, "fedhead"):
        comparison = load_runs([cells])
    assert len(comparison.runs) == 1
    assert str(cells / "going") in caplog.text
    assert any(str(cells / "going") in note for note in comparison.notes)


def test_the_runs_of_a_sweep_are_left_out_and_counted(make_run: MakeRun, cells: Path) -> None:
    make_run("cells/a")
    sweep = make_run("sweep/a", "data.validation-fraction=0.2").parent
    make_run("sweep/b", "data.validation-fraction=0.2", "train.lr=0.5")
    comparison = load_runs([cells])
    assert [run.path.parent.name for run in comparison.runs] == ["cells"]
    assert any(note.startswith("2 runs of a sweep") for note in comparison.notes)
    assert len(load_runs([sweep]).runs) == 2  # of what there is nothing else


def test_nothing_finished_is_an_error(make_run: MakeRun, cells: Path, tmp_path: Path) -> None:
    (make_run("going") / "summary.json").unlink()
    with pytest.raises(RunError, match=r"no finished run in .*cells \(1 unfinished\)"):
        load_runs([cells])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no finished run in .*empty"):
        load_runs([tmp_path / "empty"])
    with pytest.raises(RunError, match=r"nowhere is no folder"):
        load_runs([tmp_path / "nowhere"])


def test_a_run_counts_once_however_it_is_named(make_run: MakeRun, cells: Path) -> None:
    path = make_run("a")
    assert len(load_runs([cells, path, cells.parent]).runs) == 1


def test_a_repeated_run_is_left_out_and_named(make_run: MakeRun, cells: Path) -> None:
    make_run("a")
    make_run("b")
    comparison = load_runs([cells])
    assert [run.path.name for run in comparison.runs] == ["a"]
    assert any("b repeats" in note for note in comparison.notes)


def test_what_is_unequal_is_said(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "seed=0")
    make_run("b", "seed=1")
    make_run("c", "strategy.name=krum", fingerprint="e" * 64, versions={"torch": "2.9"})
    notes = " ".join(load_runs([cells]).notes)
    assert "seed 1 is missing for krum" in notes
    assert "seed 0: the runs have different backbones" in notes
    assert "different versions" in notes


def test_other_classes_in_one_setting_are_refused(make_run: MakeRun, cells: Path) -> None:
    make_run("a")
    make_run("b", "seed=1", classes=["ant", "bee"])
    with pytest.raises(RunError, match="other classes"):
        load_runs([cells])


def _spoil(path: Path, what: str) -> str:
    """Damage one file of a run; its name."""
    name, how = what.split(": ")
    file = path / name
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "a line too few":
        file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    elif how == "missing":
        file.unlink()
    else:
        key, value = how.split(" = ")
        before, last = b"", file.read_bytes()
        if name == "metrics.jsonl":
            *others, last = last.splitlines(keepends=True)
            before = b"".join(others)
        changed = json.loads(last) | {key: json.loads(value)}
        del changed["checksum"]
        file.write_bytes(before + seal(json.dumps(changed)))
    return name


@pytest.mark.parametrize(
    "what",
    [
        "summary.json: cut off",
        "summary.json: seconds = 3",
        'summary.json: rounds = "many"',
        "run.json: cut off",
        "run.json: classes = []",
        "metrics.jsonl: cut off",
        "metrics.jsonl: missing",
        "metrics.jsonl: a line too few",
        "metrics.jsonl: accuracy = 1.5",
        "confusion.json: cut off",
        "confusion.json: missing",
        "confusion.json: true = [0, 1, 2, 7]",
        "confusion.json: true = []",
        "confusion.json: predicted = [0]",
        "confusion.json: count = [0, 0, 0, 0]",
        "metrics.jsonl: round = 7",
        "config.toml: cut off",
        "config.toml: missing",
        "clients.json: cut off",
        "clients.json: client = []",
        "clients.json: test_correct = [21, 1]",
        "clients.json: test_examples = [10]",
        "clients.json: personal_correct = [1]",
        "clients.json: train_label_counts = [[1, 2], [1, 2]]",
    ],
)
def test_a_damaged_file_is_named(make_run: MakeRun, what: str) -> None:
    path = make_run("a", clients=[5, 6])
    name = _spoil(path, what)
    with pytest.raises(FedheadError) as caught:
        load_runs([path])
    assert str(path / name) in str(caught.value)


def bind(run: Path, *, simulated: bool) -> None:
    RunFolder(run, read_config(run)).bind_clients(simulated=simulated)


def test_runs_of_devices_have_no_partition(make_run: MakeRun, cells: Path) -> None:
    for name, *values in (("a",), ("b", "partition.num-clients=7", "train.lr=0.5")):
        bind(make_run(name, *values), simulated=False)
    assert set(labels(cells)) == {"devices"}
    comparison = load_runs([cells])
    assert {row["partition"] for row in curve_rows(comparison)} == {"devices"}
    assert "real devices, all a round" in page_html(comparison, None)
    # The same configuration with simulated clients is another setting, not a repetition.
    bind(make_run("c"), simulated=True)
    assert set(labels(cells)) == {"devices", "iid"}
