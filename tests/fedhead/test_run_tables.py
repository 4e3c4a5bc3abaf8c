"""What the closing table of a run says of its clients."""

from __future__ import annotations

import pytest

from common.noise import margin
from fedhead.cli.run_tables import _clients


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
