"""What a run and an export look like on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from common.noise import COUNTED_CLIENTS, COUNTED_EXAMPLES, margin
from common.tables import Fitted
from common.words import byte_text
from fedhead.cli.terminal import near

if TYPE_CHECKING:
    from server.export.exporters import ExportReport

__all__ = ["closing_table", "export_table", "rows_table"]


def rows_table(title: str, values: Mapping[str, Any]) -> None:
    """Figures by name, one a line."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in values.items():
        table.add_row(key.replace("_", " "), _text(value))
    Console(markup=False).print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "-" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _measured(accuracy: float | None, n: int | None, of: str = "") -> str:
    """An accuracy with half of its 95 % interval, in points, and the number of examples.

    ``of`` says whose examples these are.
    """
    if accuracy is None or not n:
        return _percent(accuracy)
    whose = f"; {of}" if of else ""
    return f"{_percent(accuracy)} ± {100 * margin(accuracy, n):.1f} (n = {n:,}{whose})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _clients(s: Mapping[str, Any]) -> dict[str, str]:
    """How the clients fare on their own test parts, and what that rests on."""
    tests = s["client_tests"]
    if tests is None:
        return {"clients' own": "- (not asked: the run is private)"}
    fewest, most = tests["fewest"], tests["most"]
    each = _count(most, "test image")
    if fewest < most:
        each = f"{fewest:,} to {each}"
    images = f"{_count(tests['clients'], 'client')}, {each} each"
    enough = f"{tests['counted']:,} of {tests['clients']:,} clients"
    rows = {}
    heads = {
        "client_accuracy": "clients' own",
        "personal_accuracy": "personal heads",
        "local_accuracy": "each alone",
    }
    for name, who in heads.items():
        if s.get(f"{name}_mean") is None:
            continue
        rows[f"{who}: mean"] = _measured(s[f"{name}_mean"], tests["examples"], images)
        row, lowest = f"{who}: worst tenth", _percent(s[f"{name}_min"])
        if s[f"{name}_min"] is None and name != "client_accuracy":
            continue  # for the same reason as the row of the clients' own
        if s[f"{name}_min"] is None:
            # Of a few images a percentile would show who was lucky.
            rows[row] = (
                f"not shown: it takes {COUNTED_CLIENTS} clients with {COUNTED_EXAMPLES} test "
                f"images each, here {tests['counted']:,} have them"
            )
        else:
            rows[row] = (
                f"at most {_percent(s[f'{name}_p10'])}, the worst client {lowest} "
                f"(of {enough}, those with {COUNTED_EXAMPLES} test images)"
            )
    if s.get("clients_better_alone") is not None:
        better = f"{s['clients_better_alone']:,} of {_count(tests['clients'], 'client')}"
        rows["better off alone"] = f"{better}, with a head of their own images only"
    return rows


def _chosen(s: Mapping[str, Any]) -> dict[str, str]:
    """What generalized cross-validation chose from the clients' statistics."""
    rows = {}
    if s["ridge_lambda"] is not None:
        words = f"{s['ridge_lambda']:.3g} (by the noise)"
        if s["ridge_freedom"] is not None:
            words = f"{s['ridge_lambda']:.3g} (GCV), {s['ridge_freedom']:,.0f} effective parameters"
        if s["ridge_lambda_edge"]:
            words += ", at the end of what was searched"
        rows["ridge lambda"] = words
    if s["lda_shrinkage"] is not None:
        rows["shrinkage, of that lambda"] = f"{s['lda_shrinkage']:.3g}"
    if s["precondition_lambda"] is not None:
        rows["preconditioner's lambda"] = f"{s['precondition_lambda']:.3g} (GCV)"
    return rows


def _probabilities(s: Mapping[str, Any]) -> dict[str, str]:
    """How far the exported model's probabilities are from the truth."""
    found = s.get("calibration")
    if found is None:
        return {}
    words = (
        f"{_percent(found['ece'])} off on average (ECE; {_percent(found['ece_before'])} without "
        f"temperature {found['temperature']:.3g}, from "
    )
    if found["fitted_examples"]:
        words += f"{found['fitted_examples']:,} images of "
    return {"probabilities": f"{words}{found['fitted_on']})"}


_SHOWN_CLASSES = 3
_UNTOLD = "- (not told: nobody may know how many clients a round asks)"


def _worst_classes(classes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The few classes with the lowest accuracy; of two classes both are in the page."""
    known = sorted(
        (one for one in classes if one["accuracy"] is not None), key=lambda one: one["accuracy"]
    )
    if len(known) <= _SHOWN_CLASSES:
        return {}
    worst = known[:_SHOWN_CLASSES]
    words = [f"{one['name']}: {100 * one['accuracy']:.0f} % of {one['tests']:,}" for one in worst]
    return {"worst classes": ", ".join(words)}


def export_table(reports: Sequence[ExportReport]) -> None:
    """Sizes and parity of exported files, on real test images."""
    table = Table(title=near(str(reports[0].path.parent)), title_justify="left")
    for name in ("file", "MB", "accuracy", "same\nclass", "logits\noff", "features"):
        table.add_column(name, justify="left" if name in ("file", "features") else "right")
    # Of random weights an accuracy says nothing; how far files differ does.
    is_random = reports[0].weights == "random"
    for r in reports:
        off = r.max_logit_difference
        table.add_row(
            r.path.name,
            f"{r.model_bytes / 1e6:.2f}",
            "-" if is_random else _percent(r.accuracy),
            _percent(r.argmax_agreement),
            "-" if off is None else f"{off:.2g}",
            "bit-equal" if r.features_equal else "-",
        )
    Console(markup=False).print(Fitted(table, ("logits\noff", "features")))
    for count in dict.fromkeys(r.images for r in reports if r.images is not None):
        names = ", ".join(r.path.name for r in reports if r.images == count)
        print(f"on {count:,} test images: {names}")
    if is_random:
        print("accuracy: not measured, the backbone's weights are random")
        return
    for r in reports:
        if (default := r.default_engine) and default.check:
            accuracy, engine = _percent(default.check.accuracy), default.engine
            print(f"{r.path.name}: {accuracy} with torch's default quantized engine here, {engine}")


def closing_table(s: Mapping[str, Any]) -> None:
    """What a finished run's summary.json says."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _closing_rows(s).items():
        table.add_row(key, value)
    Console(markup=False).print(table)
    print("±: points by which n test images may mislead, in 95 of 100 cases")


def _bytes(s: Mapping[str, Any]) -> dict[str, str]:
    """What was sent, and how it was made small."""
    if s["uplink_bytes"] is None:
        return {"uplink, downlink": _UNTOLD} | _projection(s)
    each = s["uplink_bytes"] / max(1, s["valid_updates"])
    saved = s["full_model_uplink_bytes"] / max(1, s["uplink_bytes"])
    codecs = {way: s.get(f"codec_{way}", "") for way in ("up", "down")}
    told = {w: f", codec {name}" if name not in ("", "none") else "" for w, name in codecs.items()}
    return {
        "uplink": f"{byte_text(s['uplink_bytes'])}, {byte_text(each)} an update{told['up']} "
        f"(whole model: {byte_text(s['full_model_uplink_bytes'])}, {saved:,.0f}x)",
        "downlink": byte_text(s["downlink_bytes"]) + told["down"],
        **_projection(s),
    }


def _projection(s: Mapping[str, Any]) -> dict[str, str]:
    if not (directions := s.get("projection")):
        return {}
    return {"projection": f"{directions:,} directions of {s['pooled_features']:,} features"}


def _updates(s: Mapping[str, Any]) -> str:
    """How many updates were valid, rejected and missing."""
    counts = [s[f"{fate}_updates"] for fate in ("valid", "rejected", "failed")]
    return _UNTOLD if None in counts else " / ".join(map(str, counts))


def _closing_rows(s: Mapping[str, Any]) -> dict[str, str]:
    n = s["test_examples"]
    hidden = ("rounds_total", "training")
    rounds = f"{s['rounds']}"
    if lost := s["rounds"] - s["accepted_rounds"]:
        rounds += f" ({lost} lost: too few valid updates)"
    seconds = {key: f"{value:.1f}" for key, value in s["seconds"].items() if key not in hidden}
    seconds["rounds"] += f" (training {s['seconds']['training']:.1f})"
    rows = {
        f"accuracy, {s['strategy'].rpartition(':')[2]}": _measured(s["accuracy"], n),
        **({"privacy": s["privacy"]["sentence"]} if s.get("privacy") else {}),
        "accuracy, balanced": _percent(s["balanced_accuracy"]),
        **_worst_classes(s["classes"]),
        "accuracy, centralized": _measured(s["centralized_accuracy"], n),
        "accuracy, ridge": _measured(s["ridge_accuracy"], n),
        "accuracy, logistic": _measured(s["logistic_accuracy"], n),
        "accuracy of model.pt": _measured(s["model_accuracy"], s["model_test_examples"]),
        **_chosen(s),
        **_probabilities(s),
        **_clients(s),
        "rounds": rounds,
        "learning rate": f"{s['lr']:g}" if s["lr"] else "none: clients take no steps",
        "clients": str(s["clients"]),
        "updates valid / rejected / failed": _updates(s),
        **_bytes(s),
        "seconds": ", ".join(f"{key} {value}" for key, value in seconds.items()),
        "model.pt": byte_text(s["model_bytes"]),
        "run folder": near(s["run"]),
    }
    if s["malicious_clients"]:
        rows["malicious clients"] = f"{s['malicious_clients']} ({s['attack']})"
        if s.get("backdoor_success") is not None:
            rows["malicious clients"] += f", the trigger works on {_percent(s['backdoor_success'])}"
    if s["simulated_seconds"]:
        rows["on phones (simulated)"] = (
            f"{s['simulated_seconds']:,.1f} s, {s['dropped_updates']} never answered, "
            f"{s['late_updates']} too late"
        )
    return rows
