"""A strategy of a user's own, with state, noise, metrics and arguments: one file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import server.round.loop
from common.errors import ConfigError, RunError
from common.types import Affine, ClientPlan, Head, UpdateBatch
from server.round.build import check_strategy
from server.strategies import STRATEGIES, arguments, build_strategy
from server.strategies.averaging import Stateless, fedavg
from server.strategies.statistics_first import with_statistics
from server.strategy import (
    Count,
    NonNegative,
    RoundContext,
    Share,
    Strategy,
    check_head,
    mean,
    with_metrics,
)
from simulations.report import load_runs, terminal_table, write_report
from simulations.run import run_in_process

Make = Callable[..., Path]

# What its author writes, and nothing else.
NOISY = '''
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.types import ClientPlan, Head
from server.strategy import NonNegative, Strategy, mean


@dataclass(frozen=True, eq=False)
class Drift:
    """How far the head has been going, float64 (K, d + 1)."""

    velocity: np.ndarray


def noisy(
    *,
    sigma: NonNegative = 0.001,
    kind: Literal["normal", "laplace"] = "normal",
    pull: Annotated[float, Field(ge=-1, le=0)] = -0.1,
    note: str = "",
):
    """The mean delta with momentum and noise."""

    def aggregate(state, head, updates, context):
        draw = context.rng.normal if kind == "normal" else context.rng.laplace
        noise = draw(0, sigma / context.clients_per_round, head.matrix.shape)
        velocity = (1 + pull) * state.velocity + mean(updates, "delta") + noise
        metrics = {"noise-norm": np.linalg.norm(noise), "share": 4 / context.num_clients}
        return Drift(velocity), Head.from_matrix(head.matrix + velocity), metrics

    return Strategy(
        "noisy",
        init=lambda head: Drift(np.zeros(head.matrix.shape)),
        plan=lambda state, context: ClientPlan(),
        aggregate=aggregate,
    )
'''


class _Stop(BaseException):
    """Ends a run where no handler may catch it."""


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, by its import path."""
    name = f"noisy_{tmp_path.name.replace('-', '_')}"  # Python keeps modules by name
    (tmp_path / f"{name}.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:noisy"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path, tag: str) -> dict[int, float]:
    """What TensorBoard would show of a tag, by round."""
    found: dict[int, float] = {}
    for file in sorted((run / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            assert masked_crc32c(data[:8]) == int.from_bytes(data[8:12], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = value.simple_value
    return found


def test_it_draws_reports_and_goes_on_after_a_cut_to_the_same_bytes(
    quick: Make, noisy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"strategy.name={noisy}", "train.rounds=4", "strategy.args.kind=laplace")
    whole, cut = quick(*settings, name="whole"), quick(*settings, name="cut")
    other = quick(*settings, "seed=1", name="other")
    head = run_in_process(whole)["head_sha256"]
    save = server.round.loop.save_checkpoint

    def stop(*args: object, round_number: int, **kwargs: object) -> None:
        save(*args, round_number=round_number, **kwargs)  # type: ignore[arg-type]
        if round_number == 2:
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", stop)
        with pytest.raises(_Stop):
            run_in_process(cut)
    assert run_in_process(cut)["head_sha256"] == head
    assert run_in_process(other)["head_sha256"] != head
    said = [line["strategy"] for line in lines(whole)]
    assert [line["strategy"] for line in lines(cut)] == said
    assert [one["share"] for one in said] == [0.5] * 4  # of eight clients
    norms = [one["noise-norm"] for one in said]
    assert len(set(norms)) == 4  # each round has noise of its own
    assert scalars(cut, "strategy/noise-norm") == pytest.approx(dict(enumerate(norms, 1)))

    comparison = load_runs([whole, other])
    files = write_report(comparison, tmp_path / "report")
    (header, row), last = files.csv.read_text().splitlines(), lines(other)[-1]["strategy"]
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    mean = np.mean([norms[-1], last["noise-norm"]])
    assert float(cells["strategy/noise-norm"]) == pytest.approx(mean, rel=1e-5)
    assert cells["strategy/share-sd"] == "0"
    page = files.page.read_text()
    assert 'id="plot-metric-noise-norm"' in page
    assert '"noise-norm":{"rounds":[1,2,3,4],"values":[' in page
    console = Console(width=120)
    with console.capture() as shown:
        console.print(terminal_table(comparison))
    assert "noise-norm" in shown.get()
    assert "noise-norm" in files.markdown.read_text()


def test_arguments_are_checked_all_at_once_as_they_are_annotated(noisy: str) -> None:
    args = {"sigma": -1, "kind": "uniform", "pull": 0.5, "note": 3, "kinds": "normal"}
    with pytest.raises(ConfigError) as caught:
        build_strategy(noisy, args)
    assert set(caught.value.problems) == {
        "strategy.args.sigma=-1 must be greater than or equal to 0",
        "strategy.args.kind='uniform' must be 'normal' or 'laplace'",
        "strategy.args.pull=0.5 must be less than or equal to 0",
        "strategy.args.note=3 must be a valid string; put it in quotes",
        "unknown key strategy.args.kinds, did you mean strategy.args.kind? "
        f"({noisy} knows: sigma, kind, pull, note)",
    }
    build_strategy(noisy, {"pull": -0.5, "note": "12", "sigma": 0})


def test_what_arguments_may_be_is_said_in_words() -> None:
    def every(
        *, a: NonNegative = 1.0, b: Annotated[int, Field(ge=2, lt=9)] = 3, c: bool = False,
        d: Literal["x", "y"] = "x", e: str = "", f: Share = 0.5, g: Count, h=1,  # type: ignore[no-untyped-def]
        i: list[float] = [],  # noqa: B006
    ):  # fmt: skip
        pass

    said = {one.name: (one.default, one.allowed) for one in arguments("every", every)}
    assert said == {
        "a": ("1.0", "at least 0"),
        "b": ("3", "a whole number, at least 2, below 9"),
        "c": ("false", "true or false"),
        "d": ("x", "x or y"),
        "e": ("", "text"),
        "f": ("0.5", "at least 0 and below 1"),
        "g": ("", "a whole number, at least 1"),
        "h": ("1", "a number, a text, true or false"),
        "i": ("[]", "list[float]"),
    }


STATELESS = Strategy(
    "plain", lambda _head: Stateless(), lambda _state, _context: ClientPlan(), fedavg().aggregate
)


@pytest.mark.parametrize("value", [1, -2.5, True, "text"])
def test_an_argument_without_annotation_takes_what_toml_has(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def own(thing=None):  # type: ignore[no-untyped-def]
        given.append(thing)
        return STATELESS

    monkeypatch.setitem(STRATEGIES, "own", own)
    build_strategy("own", {"thing": value})
    assert given == [value]
    assert type(given[0]) is type(value)
    with pytest.raises(ConfigError, match="must be a number, a text, true or false"):
        build_strategy("own", {"thing": {"a": 1}})


def test_what_no_toml_can_meet_and_what_does_not_go_together_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def strange(*, how: np.random.Generator | None = None) -> Strategy[Any]:
        return STATELESS

    def picky(*, low: float = 0.0, high: float = 1.0) -> Strategy[Any]:
        if low > high:
            raise ValueError(f"low={low} is above high={high}")
        return STATELESS

    monkeypatch.setitem(STRATEGIES, "strange", strange)
    monkeypatch.setitem(STRATEGIES, "picky", picky)
    with pytest.raises(ConfigError, match="strange: its arguments cannot be read"):
        build_strategy("strange", {})
    with pytest.raises(ConfigError, match=r"picky: low=2.0 is above high=1.0"):
        build_strategy("picky", {"low": 2})


def test_a_strategy_says_itself_that_it_needs_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.config import load_config, parse_overrides

    strategy = dataclasses.replace(STATELESS, plain_sgd=True)
    monkeypatch.setitem(STRATEGIES, "own", lambda: strategy)
    config = load_config(None, parse_overrides(["strategy.name=own", "train.momentum=0.5"]))
    with pytest.raises(ConfigError, match="momentum must be 0 with plain"):
        check_strategy(config)


HEAD = Head.zeros(2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "aggregate must return"),
        ((Stateless(),), "aggregate must return"),
        ((HEAD, Stateless()), "aggregate must return"),
        ((Stateless(), HEAD, {"a": float("nan")}), "metric a=nan must be a finite number"),
        ((Stateless(), HEAD, {"a": True}), "metric a=True must be a finite number"),
        ((Stateless(), HEAD, {"a": "1"}), "metric a='1' must be a finite number"),
        ((Stateless(), HEAD, {"A b": 1}), "a metric is called 'A b'"),
        ((Stateless(), HEAD, {3: 1}), "a metric is called 3"),
        ((Stateless(), HEAD, {"a": 10**400}), "metric a=1000"),
        ((Stateless(), HEAD, None), "metrics are NoneType"),
    ],
)
def test_what_aggregate_may_not_give_is_said_with_the_strategys_name(
    given: Any, message: str
) -> None:
    with pytest.raises(RunError, match=f"strategy own: {message}"):
        with_metrics(given, "own")


def test_metrics_may_be_any_real_numbers_or_missing() -> None:
    numbers = {"a": np.float32(0.5), "b-2": np.int64(3), "c": 1}
    assert with_metrics((Stateless(), HEAD, numbers), "own")[2] == {"a": 0.5, "b-2": 3.0, "c": 1.0}
    assert with_metrics((Stateless(), HEAD), "own")[2] == {}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (Head.zeros(3, 3), r"weight is float32 \(3, 3\), expected float32 \(2, 3\)"),
        (Head(HEAD.weight, HEAD.bias.astype(np.float64)), "bias is float64"),
        (Head([[0.0]], HEAD.bias), "weight is list"),  # type: ignore[arg-type]
    ],
)
def test_a_head_that_no_client_could_train_on_is_refused(new: Head, message: str) -> None:
    check_head(HEAD, Head.zeros(2, 3), "own")
    with pytest.raises(RunError, match=f"strategy own: the new head's {message}"):
        check_head(new, HEAD, "own")


def test_a_head_that_is_changed_in_place_is_refused(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aggregate(state: Any, head: Head, *_: Any) -> Any:
        head.weight[:] += 1
        return state, head

    strategy = dataclasses.replace(STATELESS, aggregate=aggregate)
    monkeypatch.setitem(STRATEGIES, "own", lambda: strategy)
    with pytest.raises(RunError, match="changes its input head"):
        run_in_process(quick("strategy.name=own"))


def test_a_field_that_nobody_sends_is_named() -> None:
    rows = UpdateBatch(((0,),), np.array([1]), np.array([1.0]), {"delta": np.zeros((1, 2, 4))})
    with pytest.raises(RunError, match=r"no field 'dleta' \(the plan asked for: delta\)"):
        mean(rows, "dleta")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x: float = Field(3.0, gt=0)", "a Field belongs in the annotation"),
        ("x: np.flot = 1.0", "AttributeError"),
        ("x: 'a number' = 1.0", "SyntaxError"),
        ("x: Annotated[float, Field(gt='a')] = 1.0", "its arguments cannot be read"),
    ],
)
def test_an_argument_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_{abs(hash(argument))}"
    (tmp_path / f"{name}.py").write_text(
        "from __future__ import annotations\nfrom typing import Annotated\nimport numpy as np\n"
        f"from pydantic import Field\ndef odd({argument}): ...\n"
    )
    with pytest.raises(ConfigError, match=message):
        build_strategy(f"{name}:odd", {"x": 2.0})


def test_a_module_that_fails_or_ends_the_program_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ender.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match="'ender:any' cannot be imported: SystemExit: 0$"):
        build_strategy("ender:any", {})
    (tmp_path / "breaker.py").write_text("print('hello')\n1 / 0\n")
    with pytest.raises(ConfigError, match="imported: ZeroDivisionError: division by zero"):
        build_strategy("breaker:any", {})
    assert capsys.readouterr().out == ""


def test_a_module_beside_the_experiment_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.config import load_config

    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("from server.strategies.averaging import fedavg\n")
    (tmp_path / "one.toml").write_text('[strategy]\nname = "beside_it:fedavg"\n')
    config = load_config(tmp_path / "one.toml")
    assert config.strategy.root == str(tmp_path.resolve())
    assert build_strategy(config.strategy.name).name == "fedavg"
    with pytest.raises(ConfigError, match=r"strategy\.root says in which folder"):
        build_strategy("nowhere_at_all:fedavg")


def context(**changes: Any) -> RoundContext:
    affine = Affine(np.ones(3, np.float32), np.zeros(3, np.float32))
    first = RoundContext(1, 8, 4, lr=0.1, affine=affine, zero_point=0, seed=0)
    return dataclasses.replace(first, **changes)


def test_random_numbers_are_the_rounds_own() -> None:
    first = context().rng.integers(2**60, size=4).tolist()
    assert context(num_clients=3).rng.integers(2**60, size=4).tolist() == first
    for other in (context(round_number=2), context(seed=1)):
        assert not set(other.rng.integers(2**60, size=4).tolist()) & set(first)
    shared = context()
    assert shared.rng.integers(2**60) != shared.rng.integers(2**60)


def test_metrics_of_a_strategy_pass_through_a_round_of_statistics_first() -> None:
    def aggregate(state: Any, head: Head, *_: Any) -> Any:
        return state, head, {"seen": 1.0}

    strategy = with_statistics(dataclasses.replace(STATELESS, aggregate=aggregate))
    state = dataclasses.replace(strategy.init(HEAD), prepared=1)
    given = strategy.aggregate(state, HEAD, None, context())  # type: ignore[arg-type]
    assert with_metrics(given, "plain")[2] == {"seen": 1.0}
