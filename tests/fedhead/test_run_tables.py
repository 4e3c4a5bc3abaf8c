"""What the closing table of a run says of its clients."""

from __future__ import annotations

import pytest

from common.noise import margin
from fedhead.cli.run_tables import _bytes, _chosen, _clients, _worst_classes


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((3, 12, 4, 4), "(n = 12; 3 clients, 4 test images each)"),
        ((3, 10, 2, 5), "(n = 10; 3 clients, 2 to 5 test images each)"),
        ((1, 1, 1, 1), "(n = 1; 1 client, 1 test image each)"),
    ],
)
def test_the_clients_mean_stands_with_what_chance_may_do_to_it(
    sizes: tuple[int, int, int, int], said: str
) -> None:
    clients, images, fewest, most = sizes
    summary = {
        "client_accuracy_mean": 1.0,
        "client_accuracy_p10": None,
        "client_accuracy_min": None,
        "personal_accuracy_mean": None,
        "client_tests": {
            "clients": clients, "examples": images, "fewest": fewest, "most": most, "counted": 0,
        },
    }  # fmt: skip
    mean = _clients(summary)["clients' own: mean"]
    assert mean == f"100.00 % ± {100 * margin(1.0, images):.1f} {said}"


def test_each_client_alone_stands_beside_the_heads_of_all() -> None:
    summary = {
        **{f"{whose}_accuracy_{part}": None
           for whose in ("client", "personal", "local") for part in ("mean", "p10", "min")},
        "client_accuracy_mean": 0.5, "local_accuracy_mean": 0.25, "clients_better_alone": 1,
        "client_tests": {"clients": 2, "examples": 8, "fewest": 4, "most": 4, "counted": 0},
    }  # fmt: skip
    rows = _clients(summary)
    assert rows["each alone: mean"].startswith("25.00 %")
    assert rows["better off alone"] == "1 of 2 clients, with a head of their own images only"


def test_a_preconditioners_lambda_is_not_that_of_a_ridge_head() -> None:
    nothing = dict.fromkeys(("ridge_lambda", "ridge_lambda_edge", "ridge_freedom", "lda_shrinkage"))
    assert _chosen({**nothing, "precondition_lambda": 31.62}) == {
        "preconditioner's lambda": "31.6 (GCV)"
    }


def test_the_worst_of_many_classes_are_named() -> None:
    classes = [
        {"name": name, "tests": tests, "accuracy": accuracy}
        for name, tests, accuracy in (
            ("ant", 9, 0.9), ("bee", 0, None), ("cow", 4, 0.25), ("dog", 5, 0.4), ("eel", 8, 0.5),
        )
    ]  # fmt: skip
    assert _worst_classes(classes) == {
        "worst classes": "cow: 25 % of 4, dog: 40 % of 5, eel: 50 % of 8"
    }
    assert _worst_classes(classes[:3]) == {}  # of few classes "the worst" would be all


def test_bytes_are_told_of_one_update_too_and_with_what_made_them_small() -> None:
    summary = {
        "uplink_bytes": 5_060, "downlink_bytes": 11_764_355, "full_model_uplink_bytes": 74_000_000,
        "valid_updates": 10, "codec_up": "drive", "codec_down": "", "projection": 255,
        "pooled_features": 672,
    }  # fmt: skip
    assert _bytes(summary) == {
        "uplink": "5.06 kB, 506 B an update, codec drive (whole model: 74.0 MB, 14,625x)",
        "downlink": "11.8 MB",
        "projection": "255 directions of 672 features",
    }
    older = {key: value for key, value in summary.items() if key.endswith(("bytes", "updates"))}
    assert _bytes(older)["uplink"] == "5.06 kB, 506 B an update (whole model: 74.0 MB, 14,625x)"
