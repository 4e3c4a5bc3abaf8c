"""Privacy as a person meets it: ``fedhead privacy``, a run's tables, its card, Python."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import fedhead as package
from common.privacy.ledger import Entry
from common.privacy.words import NOT_PRIVATE
from fedhead.cli.privacy_tables import ledger_json, ledger_tables
from server.record.privacy import Privacy, Release

pytestmark = pytest.mark.wide

Fedhead = Callable[..., tuple[int, str, str]]

_LEDGER = "privacy-ledger.jsonl"


@pytest.fixture(scope="module")
def run(tiny_toml: str, tmp_path_factory: pytest.TempPathFactory) -> package.Run:
    """A finished private run of three rounds."""
    folder = tmp_path_factory.mktemp("private")
    file = folder / "tiny.toml"
    file.write_text(tiny_toml.replace("clients-per-round = 4\n", "").replace("lr = 0.01\n", ""))
    overrides = {"privacy.epsilon": 8.0, "train.rounds": 3}
    return package.run(file, overrides, out=folder / "run", progress=False)


def words(out: str) -> str:
    return " ".join(out.replace("│", " ").split())


def test_a_ledger_is_explained_on_80_columns(run: package.Run, fedhead: Fedhead) -> None:
    code, out, _ = fedhead("privacy", run.path)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for part in (
        "epsilon 8, delta 1e-05", "epsilon 8, by 3 releases", "one client added or removed",
        "each round asks every client", "8; their number is public", "anyone can take it off",
        "Differentially private for each client", "Simulated, not private",
    ):  # fmt: skip
        assert part in words(out)
    assert fedhead("privacy", "show", run.path)[1] == out


def test_for_programs_it_is_one_object(run: package.Run, fedhead: Fedhead) -> None:
    code, out, _ = fedhead("privacy", "--json", run.path)
    assert code == 0
    found = json.loads(out)
    assert found["run"] == str(run.path)
    privacy = found["privacy"]
    assert privacy["spent"] == pytest.approx(8.0, rel=1e-6)
    assert [one["round"] for one in privacy["releases"]] == [1, 2, 3]
    # sigma(8, 1e-5) by the root of the rounds.
    noises = [one["multiplier"] for one in privacy["releases"]]
    assert noises == pytest.approx([0.60023 * 3**0.5] * 3, rel=2e-5)


def test_help_shows_runs_and_plans(fedhead: Fedhead) -> None:
    code, out, _ = fedhead("privacy", "--help")
    assert code == 0
    assert "RUN | COMMAND" in out
    assert {"show", "plan"} <= {line.strip("│ ").split(" ")[0] for line in out.splitlines() if line}


def test_a_damaged_ledger_and_one_that_is_gone_are_told(
    run: package.Run, fedhead: Fedhead, tmp_path: Path
) -> None:
    ledger = run.path / _LEDGER
    content = ledger.read_text()
    try:
        ledger.write_text(content.replace('"clients": 8', '"clients": 9', 1))
        code, out, err = fedhead("privacy", run.path)
        assert (code, out) == (1, "")
        assert f"{ledger}, line 1 is damaged" in err
        ledger.unlink()
        code, out, err = fedhead("privacy", run.path)
        assert (code, out) == (1, "")
        assert "round 1 has made a head, but" in err
        assert fedhead("export", run.path, "--target", "head", "--out", tmp_path)[0] == 1
    finally:
        ledger.write_text(content)
    code, _, err = fedhead("privacy", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere" in err


def test_python_has_the_same(run: package.Run) -> None:
    privacy = package.load_run(run.path).privacy
    assert privacy is not None
    assert (privacy.epsilon, privacy.delta, privacy.clients) == (8.0, 1e-5, 8)
    assert privacy.spent == pytest.approx(8.0, rel=1e-6)
    assert privacy.sentence == run.summary["privacy"]["sentence"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        privacy.spent = 0.0  # type: ignore[misc]


def test_the_sentence_stands_wherever_a_run_is_shown(run: package.Run, fedhead: Fedhead) -> None:
    sentence = run.summary["privacy"]["sentence"]
    _, out, _ = fedhead("resume", run.path)
    assert sentence in words(out)  # the closing table
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads((run.path / "model.json").read_text())["privacy"] == sentence
    assert package.Run(run.path)._repr_html_().count(sentence.replace("'", "&#x27;")) == 1
    page = run.report().read_text()
    assert sentence.replace("'", "&#39;") in page
    assert "epsilon 8 of 8" in page


def test_a_run_without_a_budget_shows_nothing_but_on_its_card(
    tiny_toml: str, fedhead: Fedhead, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    code, out, _ = fedhead("run", tmp_path / "tiny.toml", "--set", "train.rounds=1")
    assert code == 0
    assert "privacy" not in out
    run = package.load_run(tmp_path / "runs" / "tiny")
    assert run.privacy is None
    assert "rivacy" not in run._repr_html_()
    assert json.loads((run.path / "model.json").read_text())["privacy"] == NOT_PRIVATE
    assert "epsilon" not in run.report().read_text().partition('id="reproduce"')[0]
    code, out, _ = fedhead("privacy", run.path)
    assert (code, out) == (0, f"runs/tiny: {NOT_PRIVATE}, privacy.epsilon is inf\n")
    assert json.loads(fedhead("privacy", run.path, "--json")[1])["privacy"] is None


def ledger(rounds: list[int]) -> tuple[Privacy, tuple[Entry, ...]]:
    entries = tuple(
        Entry(number, f"{i:064x}", "ab", "everyone", 20.0, 100, 0.1, 1e-5)
        for i, number in enumerate(rounds)
    )
    releases = tuple(
        Release(e.round, e.multiplier, e.clip, again=e.round in rounds[:i])
        for i, e in enumerate(entries)
    )
    return (
        Privacy(8.0, 1e-5, 2.5, "client", "one", "everyone", False, False, 100, releases),
        entries,
    )


def shown(rounds: list[int]) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    for item in ledger_tables("run", *ledger(rounds)):
        console.print(item)
    return console.export_text()


def test_rounds_that_were_done_again_are_named() -> None:
    text = shown([1, 2, 2, 3])
    assert text.count("done again") == 1
    assert "round 2 had other sums than before" in words(text)
    assert "done again" not in shown([1, 2, 3])


def test_of_many_releases_a_sample_is_listed_with_the_first_and_the_last() -> None:
    text = shown(list(range(1, 1001)))
    assert "20 of 1,000 releases; --json has them all" in words(text)
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.count("│") == 5]
    assert (len(rows), rows[0], rows[-1]) == (20, "1", "1,000")
    assert len(ledger_json(*ledger(list(range(1, 1001))))["releases"]) == 1000
