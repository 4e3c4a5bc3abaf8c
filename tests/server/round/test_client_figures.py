"""What a run says of its clients: nothing that a few test images cannot bear out."""

import numpy as np
import pytest

from server.round.client_figures import ClientFigures


def figures(sizes, correct, personal=None, alone=None):
    return ClientFigures(
        dict(enumerate(sizes)),
        dict(enumerate(correct)),
        None if personal is None else dict(enumerate(personal)),
        None if alone is None else dict(enumerate(alone)),
    ).summary()


def test_percentile_and_worst_are_of_clients_with_enough_test_images():
    # Ten clients of 20 to 29 images, all but i right; and five of one image, all wrong.
    sizes = [*range(20, 30), *[1] * 5]
    correct = [*(n - i for i, n in enumerate(range(20, 30))), *[0] * 5]
    found = figures(sizes, correct)
    rates = np.array(correct) / np.array(sizes)
    assert found["client_accuracy_mean"] == pytest.approx(rates.mean())  # of all
    assert found["client_accuracy_p10"] == pytest.approx(np.percentile(rates[:10], 10))
    assert found["client_accuracy_min"] == pytest.approx(20 / 29)
    assert found["client_tests"] == {
        "clients": 15, "examples": 250, "fewest": 1, "most": 29, "counted": 10,
    }  # fmt: skip


@pytest.mark.parametrize(("clients", "tests"), [(50, 19), (9, 1000)])
def test_of_few_images_or_few_clients_there_is_no_percentile_and_no_worst(clients, tests):
    found = figures([tests] * clients, [tests - 1] * clients, personal=[tests] * clients)
    assert found["client_accuracy_mean"] == pytest.approx(1 - 1 / tests)
    assert found["personal_accuracy_mean"] == 1.0
    for name in ("client", "personal"):
        assert found[f"{name}_accuracy_p10"] is None
        assert found[f"{name}_accuracy_min"] is None


def test_clients_without_test_images_have_no_figures():
    found = figures([], [])
    assert found["client_accuracy_mean"] is None
    assert found["client_tests"] == {
        "clients": 0, "examples": 0, "fewest": 0, "most": 0, "counted": 0,
    }  # fmt: skip


def test_clients_better_off_alone_are_counted_against_the_head_they_would_use():
    found = figures([10, 10, 10], [5, 5, 5], alone=[6, 5, 4])
    assert (found["clients_better_alone"], found["local_accuracy_mean"]) == (1, 0.5)
    found = figures([10, 10, 10], [5, 5, 5], personal=[7, 4, 3], alone=[6, 5, 4])
    assert found["clients_better_alone"] == 2
    found = figures([10], [5])
    assert found["clients_better_alone"] is None
    assert found["local_accuracy_mean"] is None
