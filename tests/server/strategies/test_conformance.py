"""One battery for every strategy, with real updates of the real client code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.client_round import ClientRound
from client.local import batch_orders, client_update
from client.memory import ClientMemory
from common.errors import ConfigError, ReplyError
from common.fields import field_layouts
from common.messages import TrainRequest
from common.ridge import auto_ridge
from common.statistics import feature_statistics
from common.types import Affine, FeatureSet, Head, LocalTraining, UpdateBatch
from common.updates import added_up, client_weights, joined
from common.validate import check_fields
from server.record.checkpoint import load_latest, restore_state, save_checkpoint
from server.strategies import STRATEGIES, build_strategy
from server.strategy import RoundContext, Strategy, with_metrics

K, D, CLIENTS = 4, 12, 9
AFFINE = Affine(np.full(D, 0.01, np.float32), np.full(D, 128.0, np.float32))
TRAINING = LocalTraining(lr=0.05, local_epochs=2, batch_size=5)
CLOSED_FORM = ("fedncm", "fed3r", "ditto", "afl", "lda", "fedcof")
# Where one client alone does not give that client's head, and why.
NOT_ITS_HEAD = {
    "fedadagrad": "steps by its own rate", "fedadam": "steps by its own rate",
    "fedyogi": "steps by its own rate", "qfedavg": "steps by its own Lipschitz bound",
    "feddyn": "goes beyond it by h / alpha",
    **dict.fromkeys(CLOSED_FORM, "no client has a head"),
}  # fmt: skip
# Where an argument makes a strategy leave a single client's delta as it is.
OPEN = {
    "norm_clipping": {"bound": 1e9}, "centered_clipping": {"radius": 1e9}, "fedprox": {"mu": 0.0},
}  # fmt: skip


def build(name: str, args: dict[str, Any] | None = None) -> Strategy[Any]:
    arguments = OPEN.get(name, {}) if args is None else args
    return build_strategy(name, arguments)


def context(number: int = 1, clients: int = CLIENTS) -> RoundContext:
    return RoundContext(
        number, clients, clients, lr=TRAINING.lr, affine=AFFINE, zero_point=0, seed=0
    )


def features(client: int) -> FeatureSet:
    rng = np.random.default_rng(client)
    n = 8 + 3 * client
    q = rng.integers(0, 256, (n, D), dtype=np.uint8)
    labels = (q[:, :K].argmax(axis=1) + (rng.random(n) < 0.2)) % K  # learnable, and noisy
    return FeatureSet(q, labels, AFFINE, "f")


def updates(
    strategy: Strategy[Any], state: Any, head: Head, number: int, clients: list[int], folder: Path,
    counted: dict[int, int] | None = None,
) -> UpdateBatch:  # fmt: skip
    """What a round would hand to ``aggregate``."""
    plan, counted = strategy.plan(state, context(number)), counted if counted is not None else {}
    ids = tuple(clients)
    request = TrainRequest(
        head, plan, TRAINING, ids, number, "r", 0, "f", strategy.reduce,
        memory_rounds=tuple(counted.get(client, 0) for client in ids),
    )  # fmt: skip
    client_round = ClientRound(request, ClientMemory(folder))
    batches = []
    for client in ids:
        update = client_update(client_round, client, features(client))
        check_fields(update.fields, field_layouts(plan.fields, K, D), 0.0)
        counted[client] = number
        count = np.array([len(features(client))])
        row = {name: array[None] for name, array in update.fields.items()}
        batches.append(UpdateBatch(((client,),), count, client_weights(plan, count), row))
    rows = joined(batches)
    if strategy.each is not None:
        rows = strategy.each(state, head, rows)
    return added_up(rows) if strategy.reduce == "sum" or strategy.each else rows


def aggregate(
    strategy: Strategy[Any], state: Any, head: Head, batch: UpdateBatch,
    told: RoundContext | None = None,
) -> tuple[Any, Head, dict[str, float]]:  # fmt: skip
    return with_metrics(strategy.aggregate(state, head, batch, told or context()), strategy.name)


def start(strategy: Strategy[Any]) -> tuple[Any, Head]:
    head = Head.from_matrix(np.random.default_rng(99).normal(size=(K, D + 1)) * 0.1)
    return strategy.init(head), head


EVERYONE = list(range(CLIENTS))
each_strategy = pytest.mark.parametrize("name", STRATEGIES)


@each_strategy
def test_one_client_alone_gives_its_own_head(name: str, tmp_path: Path) -> None:
    if name in NOT_ITS_HEAD:
        pytest.skip(NOT_ITS_HEAD[name])
    strategy = build(name)
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, [3], tmp_path)
    _, new, _ = aggregate(strategy, state, head, batch, context(clients=1))
    fedavg = build("fedavg")
    delta = updates(fedavg, fedavg.init(head), head, 1, [3], tmp_path / "x").fields["delta"][0]
    local = head.matrix + delta / len(features(3))  # a sum, weighted by examples
    np.testing.assert_allclose(new.matrix, local, rtol=1e-4, atol=1e-6)


@each_strategy
def test_the_order_of_clients_changes_nothing(name: str, tmp_path: Path) -> None:
    heads = []
    for order in (EVERYONE, EVERYONE[::-1]):
        strategy = build(name)
        state, head = start(strategy)
        folder = tmp_path / str(order[0])
        batch = updates(strategy, state, head, 1, order, folder)
        heads.append(aggregate(strategy, state, head, batch)[1].matrix)
    np.testing.assert_allclose(heads[0], heads[1], rtol=1e-5, atol=1e-7)


@each_strategy
def test_nothing_given_is_changed_and_the_form_is_kept(name: str, tmp_path: Path) -> None:
    strategy = build(name)
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    before = {field: array.copy() for field, array in batch.fields.items()}
    matrix, kept = head.matrix.copy(), flat(state)
    new_state, new, _ = aggregate(strategy, state, head, batch)
    assert (head.matrix == matrix).all()
    assert all((batch.fields[field] == before[field]).all() for field in before)
    assert flat(state) == kept
    assert (new.weight.dtype, new.bias.dtype) == (np.float32, np.float32)
    assert new.matrix.shape == matrix.shape
    assert np.isfinite(new.matrix).all()
    assert type(new_state) is type(state)


def flat(state: Any) -> list[Any]:
    values = [getattr(state, field.name) for field in dataclasses.fields(state)]
    return [v.tobytes() if isinstance(v, np.ndarray) else v for v in values]


@each_strategy
def test_a_saved_state_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    strategy = build(name)
    state, head = start(strategy)
    counted: dict[int, int] = {}
    first, second = EVERYONE[:5], EVERYONE[5:]
    batch = updates(strategy, state, head, 1, first, tmp_path / "c", counted)
    state, head, _ = aggregate(strategy, state, head, batch)
    save_checkpoint(tmp_path / "p", round_number=1, head=head, state=state, counters={}, keep=1)
    kept = load_latest(tmp_path / "p")
    assert kept is not None
    restored = restore_state(strategy.init(head), kept)
    batch = updates(strategy, state, head, 2, second, tmp_path / "c", counted)
    whole, resumed = (
        aggregate(strategy, s, h, batch, context(2))
        for s, h in ((state, head), (restored, kept.head))
    )
    assert whole[1].sha256 == resumed[1].sha256
    assert flat(whole[0]) == flat(resumed[0])


@each_strategy
def test_nan_never_passes(name: str, tmp_path: Path) -> None:
    strategy = build(name)
    state, head = start(strategy)
    plan = strategy.plan(state, context())
    layouts = field_layouts(plan.fields, K, D)
    batch = updates(strategy, state, head, 1, [2], tmp_path)
    for field in plan.fields:
        row = {key: array[0] for key, array in batch.fields.items()}
        check_fields(row, layouts, 0.0)
        bad = row[field].astype(np.float32)
        bad.flat[-1] = np.nan
        with pytest.raises(ReplyError, match=f"{field} (is not finite|has dtype)"):
            check_fields({**row, field: bad}, layouts, 0.0)


def accuracy(head: Head) -> float:
    everything = [features(client) for client in EVERYONE]
    x = np.concatenate([f.x for f in everything])
    labels = np.concatenate([f.labels for f in everything])
    return float(((x @ head.matrix.T).argmax(axis=1) == labels).mean())


@each_strategy
def test_it_learns(name: str, tmp_path: Path) -> None:
    strategy = build(name)
    state, head = start(strategy)
    counted: dict[int, int] = {}
    for number in range(1, 2 if name in CLOSED_FORM else 16):
        batch = updates(strategy, state, head, number, EVERYONE, tmp_path, counted)
        state, head, _ = aggregate(strategy, state, head, batch, context(number))
    assert accuracy(head) > 0.55  # chance is 0.25


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_closed_form_is_the_same_in_one_round_or_in_three(name: str, tmp_path: Path) -> None:
    whole, parts = build(name), build(name)
    state, head = start(whole)
    batch = updates(whole, state, head, 1, EVERYONE, tmp_path)
    _, once, _ = aggregate(whole, state, head, batch)
    state, head = start(parts)
    for number, clients in ((1, [0, 1, 2]), (2, [3, 4]), (3, [5, 6, 7, 8])):
        assert not set(clients) & set(parts.plan(state, context(number)).exclude)
        batch = updates(parts, state, head, number, clients, tmp_path)
        state, head, _ = aggregate(parts, state, head, batch, context(number))
    assert set(parts.plan(state, context(4)).exclude) == set(EVERYONE)
    np.testing.assert_allclose(head.matrix, once.matrix, rtol=1e-9, atol=1e-12)


def centralized(clients: Sequence[int] = EVERYONE) -> tuple[np.ndarray, np.ndarray]:
    """All examples in one place, in float64: x (n, D + 1) and one-hot y (n, K)."""
    everything = [features(client) for client in clients]
    q = np.concatenate([f.q for f in everything]).astype(np.float64)
    x = (q - AFFINE.center.astype(np.float64)) * AFFINE.gain.astype(np.float64)
    y = np.eye(K)[np.concatenate([f.labels for f in everything])]
    return np.column_stack([x, np.ones(len(x))]), y


def solved(name: str, args: dict[str, Any], tmp_path: Path) -> np.ndarray:
    strategy = build(name, args)
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    return aggregate(strategy, state, head, batch)[1].matrix


def test_fed3r_is_centralized_ridge(tmp_path: Path) -> None:
    x, y = centralized()
    want = np.linalg.solve(x.T @ x + 3.0 * np.eye(D + 1), x.T @ y).T
    np.testing.assert_allclose(solved("fed3r", {"lam": 3.0}, tmp_path), want, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["fed3r", "ditto", "afl"])
def test_by_default_lambda_is_chosen_from_all_clients_sums_and_told(
    name: str, tmp_path: Path
) -> None:
    x, y = centralized()
    want = auto_ridge(x.T @ x, y.T @ x, len(x))
    strategy = build(name)
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    _, head, metrics = aggregate(strategy, state, head, batch)
    np.testing.assert_allclose(head.matrix, want.matrix, rtol=2e-6, atol=1e-8)
    assert metrics["ridge-lambda"] == want.lam
    assert metrics["ridge-freedom"] == pytest.approx(want.freedom)


@pytest.mark.parametrize("args", [{}, {"lam": 3.0}])
def test_a_ridge_head_tells_the_mean_leverage_of_its_examples(
    args: dict[str, object], tmp_path: Path
) -> None:
    strategy = build("ditto", args)
    state, head = start(strategy)
    clients = EVERYONE[:3]  # those in the sums, not all there are
    batch = updates(strategy, state, head, 1, clients, tmp_path)
    _, _, metrics = aggregate(strategy, state, head, batch)
    x = centralized(clients)[0]
    lam = metrics.get("ridge-lambda", 3.0)
    hat = x @ np.linalg.solve(x.T @ x + lam * np.eye(D + 1), x.T)
    assert metrics["ridge-leverage"] == pytest.approx(np.trace(hat) / len(x), rel=1e-4)


def test_shrinkage_is_the_share_that_lambda_has_of_the_diagonal_within_classes(
    tmp_path: Path,
) -> None:
    x, y = centralized()
    a, b = x.T @ x, y.T @ x
    lam = auto_ridge(a, b, len(x)).lam
    means = (b / b[:, -1:])[:, :-1]
    within = ((x[:, :-1] - y @ means) ** 2).sum() / D
    share = lam / (lam + within)
    assert 0 < share < 1
    want = solved("lda", {"shrinkage": share}, tmp_path)
    np.testing.assert_allclose(solved("lda", {}, tmp_path), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "argument", "wrong"),
    [("fed3r", "lam", "automatic"), ("fed3r", "lam", 0), ("ditto", "personal-lam", -1),
     ("afl", "lam", -1.0), ("lda", "shrinkage", 1.5), ("lda", "shrinkage", True)],
)  # fmt: skip
def test_an_argument_is_auto_or_a_number_in_its_range(
    name: str, argument: str, wrong: object
) -> None:
    assert build_strategy(name, {argument: "auto"}).name == name
    assert build_strategy(name, {argument: 1}).name == name
    with pytest.raises(ConfigError, match=rf'{argument}={wrong!r} must be "auto", or a number '):
        build_strategy(name, {argument: wrong})


def test_a_client_of_ditto_chooses_its_own_lambda_unless_one_is_given() -> None:
    assert build("ditto").personal == -1
    assert build("ditto", {"personal-lam": 3}).personal == 3
    assert build("fed3r").personal == 0


def test_afl_is_centralized_least_squares(tmp_path: Path) -> None:
    x, y = centralized()
    want = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(solved("afl", {"lam": 0}, tmp_path), want, rtol=2e-6, atol=1e-8)


def test_afl_gives_a_dead_feature_no_weight() -> None:
    y = centralized()[1]
    q = np.concatenate([features(client).q for client in EVERYONE])
    q[:, 5] = 0  # x is constant there, as the bias is: left out, instead of sharing with it
    fs = FeatureSet(q, y.argmax(axis=1), AFFINE, "f")
    statistics = feature_statistics(fs, K)
    strategy = build("afl", {"lam": 0})
    state, head = start(strategy)
    fields = {"gram": statistics.gram[None], "moments": statistics.moments[None]}
    batch = UpdateBatch(((0,),), np.array([len(q)]), np.ones(1), fields)
    got = aggregate(strategy, state, head, batch)[1].matrix
    x = fs.x.astype(np.float64)
    x[:, 5] = 0
    want = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_lda_is_that_of_scikit_learn(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.discriminant_analysis")
    x, y = centralized()
    model = sklearn.LinearDiscriminantAnalysis(solver="lsqr").fit(x[:, :-1], y.argmax(axis=1))
    got = solved("lda", {"shrinkage": 1e-9}, tmp_path)
    # scikit-learn divides by n where the paper has n - K: covariances differ by that factor.
    factor = (len(x) - K) / len(x)
    np.testing.assert_allclose(got[:, :-1] / factor, model.coef_, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("zero_point", [0, 100])
def test_fedncm_says_how_far_raw_features_reach_towards_each_class_mean(
    zero_point: int, tmp_path: Path
) -> None:
    x, y = centralized()
    raw = np.concatenate([features(client).q for client in EVERYONE]) - float(zero_point)
    means = (y.T @ raw) / y.sum(axis=0)[:, None]
    want = raw @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    strategy = build("fedncm")
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    told = dataclasses.replace(context(), zero_point=zero_point)
    _, new, _ = aggregate(strategy, state, head, batch, told)
    np.testing.assert_allclose(x @ new.matrix.T, want, rtol=1e-5, atol=1e-4)


def test_fedcof_follows_the_paper(tmp_path: Path) -> None:
    g = np.zeros((D + 1, D + 1))
    x, y = centralized()
    counts, means = y.sum(axis=0), (y.T @ x) / y.sum(axis=0)[:, None]
    for c in range(K):
        own = [f for f in map(features, EVERYONE) if (f.labels == c).any()]
        s = np.zeros_like(g)
        for f in own:
            mine = f.x[f.labels == c].astype(np.float64)
            away = mine.mean(axis=0) - means[c]
            s += len(mine) * np.outer(away, away) / (len(own) - 1)
        g += (counts[c] - 1) * (s + 0.1 * np.eye(D + 1))
    g += len(x) * np.outer(x.mean(axis=0), x.mean(axis=0))
    want = np.linalg.solve(g, x.T @ y).T
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(solved("fedcof", {}, tmp_path), want, rtol=1e-4, atol=1e-6)


ROWS = np.random.default_rng(7).normal(size=(11, 30))
ROWS[[2, 8]] += 20  # two attackers


def combined(name: str, args: dict[str, Any]) -> np.ndarray:
    deltas = ROWS.reshape(11, 3, 10).astype(np.float32)
    ids = tuple((i,) for i in range(11))
    batch = UpdateBatch(ids, np.ones(11, np.int64), np.ones(11), {"delta": deltas})
    strategy = build(name, args)
    head = Head.zeros(3, 9)
    return aggregate(strategy, strategy.init(head), head, batch)[1].matrix.reshape(-1)


@pytest.mark.parametrize(
    ("name", "args", "oracle", "oracle_args"),
    [
        ("median", {}, "Median", {}),
        ("trimmed_mean", {"byzantine": 0.2}, "TrMean", {"f": 2}),
        ("geometric_median", {"iterations": 3, "nu": 0.1}, "GeometricMedian", {"nu": 0.1, "T": 3}),
        ("centered_clipping", {"radius": 2.0, "iterations": 4}, "CenteredClipping",
         {"L": 4, "tau": 2.0}),
        # byzfl counts one neighbour more than the paper's n - f - 2; here both choose alike.
        ("krum", {"byzantine": 0.2}, "Krum", {"f": 2}),
        ("multikrum", {"byzantine": 0.2}, "MultiKrum", {"f": 2}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_robust_ones_agree_with_byzfl(
    name: str, args: dict[str, Any], oracle: str, oracle_args: dict[str, Any]
) -> None:
    byzfl = pytest.importorskip("byzfl")
    want = getattr(byzfl, oracle)(**oracle_args)(ROWS.astype(np.float32))
    np.testing.assert_allclose(combined(name, args), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["median", "trimmed_mean", "krum", "multikrum", "bulyan", "geometric_median"]
)
def test_two_attackers_of_eleven_do_not_move_it_far(name: str) -> None:
    assert np.abs(combined(name, {})).max() < 3
    assert np.abs(combined("fedavg", {})).max() > 3  # a plain mean they do


def test_bulyan_follows_the_paper() -> None:
    # n = 11, f = 2: Krum (sums over the n' - f - 2 nearest) picks 7, then the 3 nearest to the
    # median of each coordinate are averaged.
    left, picked = list(range(11)), []
    while len(picked) < 7:
        sums = []
        for i in left:
            others = sorted(((ROWS[i] - ROWS[j]) ** 2).sum() for j in left if j != i)
            score = round(float(sum(others[: max(1, len(left) - 2 - 2)])), 6)
            sums.append((score, float((ROWS[i] ** 2).sum())))  # of a tie the shorter one
        picked.append(left.pop(sums.index(min(sums))))
    chosen = ROWS[picked]
    away = np.abs(chosen - np.median(chosen, axis=0))
    want = np.array([chosen[np.argsort(away[:, j])[:3], j].mean() for j in range(30)])
    np.testing.assert_allclose(combined("bulyan", {}), want, rtol=1e-5, atol=1e-6)


def gradients(number: int) -> list[np.ndarray]:
    return [np.random.default_rng([number, i]).normal(size=(K, D + 1)) for i in range(3)]


WEIGHTS = np.array([5.0, 3.0, 2.0])


def stepped(name: str, args: dict[str, Any], rounds: int = 4) -> np.ndarray:
    """Heads after rounds of given deltas, through the real aggregate."""
    strategy = build(name, args)
    head = Head.zeros(K, D)
    state = strategy.init(head)
    for number in range(rounds):
        total = np.tensordot(WEIGHTS, gradients(number), 1).astype(np.float32)[None]
        batch = UpdateBatch(((0, 1, 2),), np.array([10]), np.array([10.0]), {"delta": total})
        state, head, _ = aggregate(strategy, state, head, batch)
    return head.matrix


def test_server_optimizers_follow_the_papers() -> None:
    # Algorithm 2 of arXiv 2003.00295, and arXiv 1909.06335 for momentum.
    for name in ("fedadagrad", "fedadam", "fedyogi", "fedavgm"):
        w = m = np.zeros((K, D + 1))
        v = np.full((K, D + 1), 0.1**2)
        for number in range(4):
            d = np.tensordot(WEIGHTS / 10, gradients(number), 1)
            if name == "fedavgm":
                m = 0.5 * m + d
                w = w + 0.3 * m
                continue
            m = 0.6 * m + 0.4 * d
            v = {
                "fedadagrad": v + d**2,
                "fedadam": 0.8 * v + 0.2 * d**2,
                "fedyogi": v - 0.2 * d**2 * np.sign(v - d**2),
            }[name]
            w = w + 0.3 * m / (np.sqrt(v) + 0.1)
        args = {"server-lr": 0.3, "momentum": 0.5}
        if name != "fedavgm":
            args = {"server-lr": 0.3, "beta1": 0.6, "tau": 0.1}
            args |= {} if name == "fedadagrad" else {"beta2": 0.8}
        np.testing.assert_allclose(stepped(name, args), w, rtol=1e-4, atol=1e-6)


def test_fednova_undoes_different_numbers_of_steps(tmp_path: Path) -> None:
    # arXiv 2007.07481: w += (sum p_i a_i) sum p_i delta_i / a_i, with a_i steps of plain SGD.
    strategy, fedavg = build("fednova"), build("fedavg")
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    got = aggregate(strategy, state, head, batch)[1].matrix
    counts = np.array([len(features(client)) for client in EVERYONE])
    steps = 2 * -(-counts // 5)
    p = counts / counts.sum()
    deltas = [
        updates(fedavg, None, head, 1, [client], tmp_path).fields["delta"][0] / counts[client]
        for client in EVERYONE
    ]
    want = head.matrix + (p @ steps) * np.tensordot(p / steps, deltas, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("q", [0.0, 1.0, 2.5])
def test_qfedavg_follows_the_paper(q: float, tmp_path: Path) -> None:
    # arXiv 1905.10497, equation 4 and algorithm 2, with L = 1 / lr.
    strategy, fedavg = build("qfedavg", {"q": q}), build("fedavg")
    state, head = start(strategy)
    batch = updates(strategy, state, head, 1, EVERYONE, tmp_path)
    got = aggregate(strategy, state, head, batch)[1].matrix
    lipschitz, top, bottom = 1 / TRAINING.lr, np.zeros((K, D + 1)), 0.0
    for client in EVERYONE:
        f = features(client)
        one = updates(fedavg, None, head, 1, [client], tmp_path).fields["delta"][0] / len(f)
        z = f.x @ head.matrix.T
        loss = float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(f)), f.labels]))
        g = -lipschitz * one
        top += loss**q * g
        bottom += q * loss ** (q - 1) * (g**2).sum() + lipschitz * loss**q
    np.testing.assert_allclose(got, head.matrix - top / bottom, rtol=1e-4, atol=1e-6)


def test_feddyn_follows_the_paper(tmp_path: Path) -> None:
    # arXiv 2111.04263, algorithm 1, with three rounds of SGD on the regularized risk.
    alpha, w = 0.5, start(build("feddyn"))[1].matrix.astype(np.float64)
    h, g = np.zeros_like(w), {client: np.zeros_like(w) for client in EVERYONE}
    cohorts = [[0, 1, 2, 3], [2, 3, 4, 8], EVERYONE]
    for number, cohort in enumerate(cohorts, 1):
        local = []
        for client in cohort:
            f, th = features(client), w.copy()
            for order in batch_orders(len(f), TRAINING, seed=0, round_number=number, client=client):
                for i in range(0, len(f), TRAINING.batch_size):
                    b = order[i : i + TRAINING.batch_size]
                    z = f.x[b] @ th.T
                    p = np.exp(z - z.max(axis=1, keepdims=True))
                    p /= p.sum(axis=1, keepdims=True)
                    p[np.arange(len(b)), f.labels[b]] -= 1
                    step = p.T @ f.x[b] / len(b) - g[client] + alpha * (th - w)
                    th -= TRAINING.lr * step
            g[client] = g[client] - alpha * (th - w)
            local.append(th)
        h = h - alpha / CLIENTS * sum(th - w for th in local)
        w = np.mean(local, axis=0) - h / alpha
    strategy = build("feddyn", {"alpha": alpha})
    state, head = start(strategy)
    counted: dict[int, int] = {}
    for number, cohort in enumerate(cohorts, 1):
        batch = updates(strategy, state, head, number, cohort, tmp_path, counted)
        state, head, _ = aggregate(strategy, state, head, batch)
    np.testing.assert_allclose(head.matrix, w, rtol=1e-3, atol=1e-5)
