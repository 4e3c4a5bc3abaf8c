"""The figures that a page about one strategy begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simulations.report import leaderboard, load_runs
from simulations.report.headline import Card, figures_of_run
from simulations.report.leaderboard import standard

MakeRun = Callable[..., Path]


def cards_of(cells: Path) -> dict[str, Card]:
    """Each card by its question."""
    comparison = load_runs([cells])
    (setting,) = comparison.settings
    (row,) = leaderboard(comparison)
    cards = figures_of_run(setting.entries[0], row, standard(setting))
    return {card.question: card for card in cards}


def remarks(cells: Path) -> dict[str, str]:
    return {question: card.remark for question, card in cards_of(cells).items()}


def test_which_head_counts_as_centralized_was_chosen_on_other_images_than_the_test_set(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", ridge_accuracy=0.94, logistic_accuracy=0.92, centralized_accuracy=0.92)
    remark = remarks(cells)["Centralized head"]
    assert remark.endswith(
        "Of ridge regression (94.0 %) and logistic regression (92.0 %) it is the one that did "
        "better on held-out training images"
    )


def test_clients_that_are_better_off_alone_are_a_mean_over_seeds(
    make_run: MakeRun, cells: Path
) -> None:
    tests = {"clients": 50, "examples": 500, "fewest": 10, "most": 10, "counted": 50}
    for seed, better in enumerate((3, 4)):
        make_run(
            f"s{seed}", f"seed={seed}",
            local_accuracy_mean=0.5, clients_better_alone=better, client_tests=tests,
        )  # fmt: skip
    remark = remarks(cells)["Each client alone"]
    assert remark.endswith("3.5 of 50 clients better off alone, mean of 2 seeds")


def test_of_one_run_they_are_a_count(make_run: MakeRun, cells: Path) -> None:
    make_run("a", local_accuracy_mean=0.5, clients_better_alone=1, client_tests={"clients": 8})
    assert remarks(cells)["Each client alone"].endswith("1 of 8 clients better off alone")


def test_a_rate_that_the_program_chose_is_shown_with_where_it_comes_from(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "train.lr=auto", lr=0.0312)
    card = cards_of(cells)["Learning rate"]
    assert card.figure == "0.0312"
    assert card.remark.endswith("chosen from the server's calibration images (auto)")


def test_seeds_that_chose_different_rates_show_the_lowest_and_the_highest(
    make_run: MakeRun, cells: Path
) -> None:
    for seed, lr in enumerate((0.03, 0.02, 0.025)):
        make_run(f"s{seed}", "train.lr=auto", f"seed={seed}", lr=lr)
    assert cards_of(cells)["Learning rate"].figure == "0.02 to 0.03"


def test_a_rate_that_was_set_is_shown_as_such(make_run: MakeRun, cells: Path) -> None:
    make_run("a", "train.lr=0.1", lr=0.1)
    card = cards_of(cells)["Learning rate"]
    assert card.figure == "0.1"
    assert card.remark == "of the clients' steps, as the experiment says"


def test_clients_that_take_no_steps_have_no_rate(make_run: MakeRun, cells: Path) -> None:
    make_run("a", lr=None)
    assert "Learning rate" not in cards_of(cells)


def test_what_made_the_messages_smaller_stands_with_the_bytes(
    make_run: MakeRun, cells: Path
) -> None:
    make_run("a", "codec.up=drive", "codec.down=none", "backbone.projection=255")
    remark = remarks(cells)["Uplink"]
    assert remark.endswith("Made smaller by codec.up: drive, backbone.projection: 255")


def test_messages_that_are_as_they_are_say_nothing_of_it(make_run: MakeRun, cells: Path) -> None:
    make_run("a")
    assert "smaller" not in remarks(cells)["Uplink"]
