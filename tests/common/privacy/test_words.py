import math

import pytest

from common.privacy.words import figure, sentence


@pytest.mark.parametrize("exponent", range(-3, 5))
def test_a_figure_is_never_below_the_loss_but_for_the_last_bits(exponent: int) -> None:
    for mantissa in (1.0, 1.0049, 2.3349999, 9.991, 9.999):
        loss = mantissa * 10.0**exponent
        assert loss * (1 - 1e-6) <= float(figure(loss)) <= 1.01 * loss


def test_a_budget_that_is_spent_to_the_last_bit_reads_as_spent() -> None:
    assert figure(math.nextafter(4.0, 5.0)) == figure(4.0) == "4"


def test_the_sentence_names_budget_spent_delta_unit_and_neighbours() -> None:
    said = sentence(epsilon=8, delta=1e-6, spent=2.5, simulated=False)
    wanted = ("each client", "epsilon 2.5 spent of 8", "delta 1e-06", "one client added or removed")
    assert [words for words in wanted if words not in said] == []
    assert "not private" not in said


def test_noise_of_the_seed_is_told_to_protect_nobody() -> None:
    said = sentence(epsilon=4, delta=1e-5, spent=4, simulated=True)
    assert "not private: the noise comes from the run's seed" in said


def test_a_run_that_goes_on_from_another_ones_head_says_that_its_cost_is_not_counted() -> None:
    terms = {"epsilon": 4, "delta": 1e-5, "spent": 4, "simulated": False}
    assert "first head, another run's, had cost is not counted" in sentence(**terms, goes_on=True)
    assert "not counted" not in sentence(**terms)
