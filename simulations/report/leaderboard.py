"""The leaderboard: what each strategy reached in each setting, at which price."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.noise import margin
from simulations.report.comparison import Comparison, Entry, Setting
from simulations.report.packing import PackingLabels
from simulations.report.pareto import on_front
from simulations.report.runs import Run, Summary

__all__ = ["Row", "Standard", "best_row", "leaderboard", "sampling_margin", "standard"]

# Where there is no target: this much less than the centralized head, or this share of the best.
_POINTS_BELOW = 0.02
_SHARE_OF_BEST = 0.98


@dataclass(frozen=True)
class Standard:
    """What the entries of a setting are measured against; accuracies in [0, 1].

    Attributes:
        target: the accuracy to reach; counted is the first round that does.
        reason: where the target comes from.
        centralized: the centralized head's, mean over seeds; None if nobody computed it.
        ridge: the same of the ridge head.
        logistic: the same of the logistic head.
    """

    target: float
    reason: str
    centralized: float | None
    ridge: float | None
    logistic: float | None


@dataclass(frozen=True)
class Row:
    """One strategy in one setting; means over its seeds, accuracies in [0, 1].

    Attributes:
        label: unique in its setting: the strategy, and what of its packing is compared.
        strategy: the same without that.
        codec: of what clients send.
        projection: of the features.
        epsilon: budget of differential privacy, "inf" without it.
        accuracy_sd: sample standard deviation over seeds; None for one seed.
        balanced: mean of the classes' accuracies, each class alike.
        test_examples: that the server measured it on, in each run.
        mean_client: of the clients' accuracies on their own test parts; None if unknown.
        worst_client: the lowest of these; None, too, if too few clients have enough examples.
        p10_client: the 10th percentile of these; likewise.
        personal: whether these three are of personal heads.
        target: the accuracy that ``rounds_to_target`` is about.
        rounds_to_target: None if a seed has not reached it.
        uplink_to_target: bytes up to and including that round.
        not_reached: number of seeds that have not.
        uplink_bytes: of the whole run; None if a run does not tell, like what follows from it.
        update_bytes: what one client sends in one round; None if nobody counted updates.
        on_front: whether no other row of the setting has more accuracy for fewer bytes of the
            whole run.
        gap_centralized: accuracy minus the centralized head's, over the same seeds.
        gap_ridge: the same with the ridge head.
        rejected: updates, summed over seeds; None if a run does not tell.
        backdoor: share of the test images of other classes that a trigger turns into the target;
            None without a backdoor.
        seconds: of training, on the machine that ran it.
        near_best: within the sampling margin of the setting's best.
        metrics: of the strategy's own metrics that every seed has, the last value's mean and
            sample standard deviation (None for one seed).
    """

    setting: str
    label: str
    strategy: str
    codec: str
    projection: str
    epsilon: str
    hyperparameters: str
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_sd: float | None
    balanced: float
    test_examples: int
    mean_client: float | None
    worst_client: float | None
    p10_client: float | None
    personal: bool
    target: float
    rounds_to_target: float | None
    uplink_to_target: float | None
    not_reached: int
    uplink_bytes: float | None
    update_bytes: float | None
    on_front: bool
    gap_centralized: float | None
    gap_ridge: float | None
    rejected: int | None
    backdoor: float | None
    seconds: float | None
    near_best: bool
    metrics: Mapping[str, tuple[float, float | None]]

    @property
    def packing(self) -> PackingLabels:
        return PackingLabels(self.codec, self.projection, self.epsilon)


def leaderboard(comparison: Comparison, target: float | None = None) -> list[Row]:
    """A row for each strategy in each setting: as asked, or the best accuracy first.

    Args:
        comparison: from :func:`load_runs`.
        target: accuracy in (0, 1] for all settings; None: each setting's own, see
            :func:`standard`.
    """
    rows = []
    for setting in comparison.settings:
        against, front = standard(setting, target), _front(setting)
        rows += [
            _row(setting, entry, against, on_front=entry.label in front)
            for entry in comparison.in_order(setting)
        ]
    return rows


def best_row(rows: Sequence[Row]) -> Row:
    """The row of a setting's best entry, in whatever order they were asked for."""
    return min(rows, key=lambda row: (-row.accuracy, row.label))


def standard(setting: Setting, target: float | None = None) -> Standard:
    """What a setting's entries are measured against.

    Without a target it is two points below the centralized head, or 98 % of the best strategy's
    accuracy where there is no such head.
    """
    centralized = _by_seed(setting.runs, lambda summary: summary.centralized_accuracy)
    ridge = _by_seed(setting.runs, lambda summary: summary.ridge_accuracy)
    logistic = _by_seed(setting.runs, lambda summary: summary.logistic_accuracy)
    central = _mean(list(centralized.values()))
    if target is not None:
        reason = "as asked for"
    elif central is not None:
        target, reason = central - _POINTS_BELOW, "2 points below centralized"
    else:
        best = float(np.mean(setting.entries[0].accuracies))
        target, reason = _SHARE_OF_BEST * best, "98 % of the best strategy's"
    # Four digits: the target that is shown is the one that counts.
    others = (_mean(list(rates.values())) for rates in (ridge, logistic))
    return Standard(round(target, 4), reason, central, *others)


def sampling_margin(setting: Setting) -> float:
    """95 % half width of the difference of two accuracies, each on its own test examples.

    sqrt(2) times the half width of the interval of the setting's best accuracy, on the test
    examples of one run. It is on the safe side: strategies are compared on the same examples, and
    averaged over seeds.
    """
    p = float(np.mean(setting.entries[0].accuracies))
    return math.sqrt(2) * margin(p, min(run.test_examples for run in setting.runs))


def _by_seed(runs: Sequence[Run], accuracy: Callable[[Summary], float | None]) -> dict[int, float]:
    best: dict[int, float] = {}
    for run in runs:
        value = accuracy(run.summary)
        if value is not None:
            best[run.seed] = max(value, best.get(run.seed, value))
    return best


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one is missing: a mean over other seeds cannot be compared."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _front(setting: Setting) -> set[str]:
    costs = [_uplink(entry) for entry in setting.entries]
    values = [float(np.mean(entry.accuracies)) for entry in setting.entries]
    kept = on_front(costs, values)
    return {entry.label for entry, is_kept in zip(setting.entries, kept, strict=True) if is_kept}


def _uplink(entry: Entry) -> float | None:
    return _mean([None if run.uplink is None else float(run.uplink[-1]) for run in entry.runs])


def _row(setting: Setting, entry: Entry, standard: Standard, *, on_front: bool) -> Row:
    runs, accuracy = entry.runs, float(np.mean(entry.accuracies))
    mean_client, p10_client, worst_client = _of_clients(runs)
    first = [_first_round(run, standard.target) for run in runs]
    best = float(np.mean(setting.entries[0].accuracies))

    return Row(
        setting=setting.label,
        label=entry.label,
        strategy=entry.strategy,
        **entry.packing._asdict(),
        hyperparameters=entry.hyperparameters,
        seeds=entry.seeds,
        accuracy=accuracy,
        accuracy_sd=_deviation(entry.accuracies),
        balanced=float(np.mean([_balanced(run) for run in runs])),
        test_examples=min(run.test_examples for run in runs),
        mean_client=mean_client,
        worst_client=worst_client,
        p10_client=p10_client,
        personal=_is_personal(runs),
        target=standard.target,
        rounds_to_target=_mean([None if i is None else i + 1 for i in first]),
        uplink_to_target=_mean(
            [
                None if i is None or run.uplink is None else float(run.uplink[i])
                for i, run in zip(first, runs, strict=True)
            ]
        ),
        not_reached=first.count(None),
        uplink_bytes=_uplink(entry),
        update_bytes=_mean([_update_bytes(run) for run in runs]),
        on_front=on_front,
        gap_centralized=_gap(setting, entry, lambda summary: summary.centralized_accuracy),
        gap_ridge=_gap(setting, entry, lambda summary: summary.ridge_accuracy),
        rejected=_sum([run.summary.rejected_updates for run in runs]),
        backdoor=_mean([run.summary.backdoor_success for run in runs]),
        seconds=_mean([run.summary.seconds.get("training") for run in runs]),
        near_best=best - accuracy <= sampling_margin(setting),
        metrics=_last_metrics(runs),
    )


def _update_bytes(run: Run) -> float | None:
    """Of what clients sent what was checked, whether or not it was fit to count."""
    if run.uplink is None:
        return None
    counts = [(figures.get("valid"), figures.get("rejected")) for figures in run.rounds]
    sent = sum(count for pair in counts for count in pair if isinstance(count, int))
    return float(run.uplink[-1]) / sent if sent else None


def _balanced(run: Run) -> float:
    counts = run.confusion.sum(axis=1)
    known = counts > 0
    return float(np.mean(np.diagonal(run.confusion)[known] / counts[known]))


def _gap(setting: Setting, entry: Entry, of: Callable[[Summary], float | None]) -> float | None:
    """An entry's accuracy minus another of the same runs, mean over the same seeds."""
    yardstick = _by_seed(setting.runs, of)
    return _mean(
        [
            None if seed not in yardstick else value - yardstick[seed]
            for seed, value in zip(entry.seeds, entry.accuracies, strict=True)
        ]
    )


def _is_personal(runs: Sequence[Run]) -> bool:
    return all(run.summary.personal_accuracy_mean is not None for run in runs)


def _of_clients(runs: Sequence[Run]) -> Iterator[float | None]:
    """Mean, 10th percentile and lowest of the clients' accuracies, means over seeds."""
    whose = "personal" if _is_personal(runs) else "client"
    for figure in ("mean", "p10", "min"):
        yield _mean([getattr(run.summary, f"{whose}_accuracy_{figure}") for run in runs])


def _deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _last_metrics(runs: Sequence[Run]) -> dict[str, tuple[float, float | None]]:
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        if all(name in run.metrics for run in runs):
            last = [float(run.metrics[name][~np.isnan(run.metrics[name])][-1]) for run in runs]
            found[name] = float(np.mean(last)), _deviation(last)
    return found


def _first_round(run: Run, target: float) -> int | None:
    """Index of the first round that reaches the target."""
    reached = np.flatnonzero(run.accuracy >= target)
    return int(reached[0]) if reached.size else None
