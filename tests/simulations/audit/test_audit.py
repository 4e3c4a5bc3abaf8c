"""Whole audits of small runs: without privacy nothing hides a client, with it noise does."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError, RunError
from common.experiment import client_shares
from common.privacy.gaussian import gaussian_sigma
from common.types import Head
from server.record.runfolder import RunFolder
from server.round.first_head import last_head
from simulations.probe.audit.audit import Audit, audit
from simulations.probe.audit.messages import added_up, first_plan, sent_by, told_by_heads, update_of
from simulations.probe.audit.scenes import Scene, scenes_of
from simulations.probe.audit.tables import as_json, sentences
from simulations.run import open_run, run_in_process

Make = Callable[..., Path]
Fedhead = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.wide

PRIVATE = ("privacy.epsilon=4", "train.rounds=3", "train.clients-per-round=0")
BY_SGD = ("train.rounds=2", "train.clients-per-round=0")


def made(run: Path) -> Path:
    run_in_process(run)
    return run


def scene(run: Path, *, private: bool) -> Scene:
    """The run itself, or the same without or with privacy, in the features of the run."""
    found = [one for one in scenes_of(run) if isinstance(one, Scene) and not one.projected]
    return next(one for one in found if (one.decided is not None) == private)


def texts(found: Audit) -> str:
    return " ".join(sentences(found))


@pytest.mark.parametrize("options", [BY_SGD, (*BY_SGD, "strategy.name=fedadam")], ids=" ".join)
def test_an_update_is_read_by_the_server_and_by_all_unless_there_is_noise(
    quick: Make, options: tuple[str, ...]
) -> None:
    found = audit(made(quick(*options)), draws=200)
    assert [(one.projected, one.private) for one in found.findings] == [
        (False, False), (False, True), (True, False), (True, True),
    ]  # fmt: skip
    assert [one.is_own for one in found.findings] == [True, False, False, False]
    for one in found.findings:
        assert one.server is not None
        assert one.others is not None
        assert one.guess is not None
        assert one.server.label == 1
        assert one.server.exact > 0.95
        if one.private:
            assert abs(one.others.likeness) < 0.3
            assert one.others.exact < one.guess.exact + 0.2
            assert one.membership is not None
            assert one.membership.epsilon < 4
        else:
            assert (one.others.label, one.membership) == (1, None)
            assert one.others.likeness > 0.999
    assert "reads the features of a lone image, exactly" in texts(found)
    assert "With epsilon 4 everybody else gets no more of a lone image" in texts(found)


def test_a_private_run_is_audited_with_its_own_noise(quick: Make) -> None:
    run = made(quick("privacy.epsilon=2", "train.rounds=3", "train.clients-per-round=0"))
    found = audit(run, draws=1000)
    own = next(one for one in found.findings if one.is_own)
    assert (own.private, own.projected, own.epsilon) == (True, True, 2.0)
    kept = json.loads((run / "summary.json").read_text())["privacy"]
    (decided,) = [one.decided for one in scenes_of(run) if isinstance(one, Scene) and one.is_own]
    assert decided is not None
    assert (decided.multiplier, decided.clip) == (kept["multiplier"], kept["clip"])
    assert own.membership is not None
    # Of N(0, 1) and N(mu, 1) the best test is right in Phi(mu / 2) of cases.
    right = NormalDist().cdf(1 / gaussian_sigma(2.0, 1e-5) / 2)
    assert own.membership.right == pytest.approx(right, abs=5 * 0.5 / math.sqrt(2000))
    assert "Privacy is no protection from it" in texts(found)


@pytest.mark.parametrize("strategy", ["fed3r", "afl"])
def test_statistics_give_images_away_to_the_server_and_their_head_to_all(
    quick: Make, strategy: str
) -> None:
    found = audit(made(quick(f"strategy.name={strategy}", "train.rounds=2")), draws=200)
    plain, private, *_ = found.findings
    assert plain.server is not None
    assert (plain.server.label, plain.server.exact, plain.server.likeness) == (1, 1, 1)
    assert plain.others is not None
    assert plain.others.label == 1
    assert plain.others.likeness > 0.999
    labels = np.bincount(_labels(Path(found.run), found.client))
    assert plain.lone_classes == (labels == 1).sum()
    # With privacy it is one release of what training's clients send.
    assert plain.lone_classes is not None
    if strategy == "fed3r":
        assert private.others is not None
        assert abs(private.others.likeness) < 0.3
    else:
        assert private.refused


def _labels(run: Path, client: int) -> np.ndarray:
    config = open_run(run)
    one = scene(run, private=False)
    return one.features.labels[client_shares(config)[client].train]


@pytest.mark.parametrize("strategy", ["median", "krum"])
def test_where_a_head_is_no_sum_only_the_server_is_tried(quick: Make, strategy: str) -> None:
    found = audit(made(quick(*BY_SGD, f"strategy.name={strategy}")), draws=200)
    assert found.findings[0].server is not None
    assert found.findings[0].server.exact > 0.95
    assert found.findings[0].others is None
    assert found.findings[1].refused
    assert f"{strategy}'s head is no sum" in texts(found)


def test_what_is_audited_is_what_a_client_of_the_run_sent(quick: Make) -> None:
    # With one client the head after one round is the head before and the client's own delta.
    alone = ("train.clients=[3]", "train.rounds=1", "train.clients-per-round=0")
    run = made(quick(*alone, "simulation.trainer=reference"))
    shown = scene(run, private=False)
    first = dataclasses.replace(shown, head=Head.zeros(10, shown.features.num_features))
    own = first.features.select(client_shares(first.config)[3].train)
    sent = sent_by(first, first_plan(first), 3, own)
    # The server's mean multiplies it by the number of examples and divides by it again.
    np.testing.assert_allclose(last_head(run).matrix, update_of(sent), rtol=3e-7, atol=1e-9)


def test_without_its_noise_a_private_release_is_the_update_itself(quick: Make) -> None:
    noisy = scene(made(quick(*BY_SGD)), private=True)
    assert noisy.decided is not None
    plan, shares = first_plan(noisy), client_shares(noisy.config)
    sents = [sent_by(noisy, plan, i, noisy.features.select(shares[i].train)) for i in range(8)]
    silent = dataclasses.replace(noisy, decided=dataclasses.replace(noisy.decided, noise=0.0))
    want = update_of(sents[0])
    told = [
        told_by_heads(one, plan, sents[0], added_up(plan, sents[0], sents[1:]))
        for one in (silent, noisy)
    ]
    assert told[0] is not None
    assert told[1] is not None
    # What is left is the rounding of a float32 head.
    assert np.linalg.norm(told[0].update - want) < 0.01 * np.linalg.norm(want)
    off = (told[1].update - want)[:, :-1].std() / 2**18
    assert off == pytest.approx(noisy.decided.noise, rel=0.05)


@pytest.mark.parametrize("strategy", ["fedavg", "fed3r"])
def test_a_client_without_others_is_read_out_of_the_head_itself(quick: Make, strategy: str) -> None:
    alone = ("train.clients=[3]", "train.clients-per-round=0", "train.rounds=1")
    run = made(quick(*alone, f"strategy.name={strategy}"))
    found = audit(run, draws=200)
    assert (found.client, found.clients) == (3, 1)
    plain, private, *_ = found.findings
    assert plain.others is not None
    assert plain.others.likeness > 0.999
    assert private.others is not None
    assert private.others.likeness < 0.5


def test_runs_that_cannot_be_audited_are_one_clear_line(quick: Make) -> None:
    fresh = quick("train.rounds=1", name="fresh")
    with pytest.raises(RunError, match="has no finished round yet"):
        audit(fresh)
    devices = quick("train.rounds=1", name="devices")
    RunFolder(devices, open_run(devices).model_copy(update={"out": ""})).bind_clients(
        simulated=False
    )
    with pytest.raises(RunError, match="needs the clients' images, and this run's clients are dev"):
        audit(devices)
    stock = quick("strategy.name=flwr.serverapp.strategy:FedAvg", "train.rounds=1", name="stock")
    with pytest.raises(RunError, match="is Flower's, whose clients send whole heads"):
        audit(stock)
    run = made(quick("train.rounds=1", name="run"))
    with pytest.raises(ConfigError, match="--client 99: expected the id of a client"):
        audit(run, client=99)


def test_noise_that_is_too_small_is_called_so(quick: Make) -> None:
    found = audit(made(quick(*PRIVATE)), draws=200)
    own = next(one for one in found.findings if one.is_own)
    assert own.membership is not None
    worse = dataclasses.replace(own, membership=dataclasses.replace(own.membership, epsilon=4.5))
    assert "ABOVE the claimed 4" in texts(dataclasses.replace(found, findings=(worse,)))
    assert "ABOVE" not in texts(found)


def test_the_command_prints_a_table_of_80_columns_or_json(quick: Make, fedhead: Fedhead) -> None:
    run = made(quick(*BY_SGD))
    code, out, err = fedhead("audit", run, "--draws", 200)
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    for words in ("THE SERVER", "EVERYBODY ELSE", "A GUESS", "no privacy*", "epsilon 4"):
        assert words in out
    code, out, err = fedhead("audit", run, "--draws", 200, "--client", 5, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert (found["client"], found["clients"], len(found["findings"])) == (5, 8, 4)
    assert found["findings"][0]["server"]["label"] == 1
    assert found["sentences"]
    assert found == json.loads(json.dumps(as_json(audit(run, 5, 200))))
