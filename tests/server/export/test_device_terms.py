"""What a round's plan adds to a phone's steps: as the reference adds it, in every interpreter."""

from __future__ import annotations

import pytest
import torch

from client.local import batch_orders
from client.sgd import Terms, train_head
from common.seeding import batch_seed
from common.types import LocalTraining
from tests.server.export.test_device_model import as_features, examples, phone, zero_head

__all__ = ["phone"]  # a fixture

TERMS = {
    "momentum": {"momentum": 0.9},
    "weight_decay": {"weight_decay": 0.01},
    "mu": {"mu": 0.3},
    "correction": {"correction": True},
    "preconditioner": {"preconditioner": True},
    "all": {
        "momentum": 0.5, "weight_decay": 0.01, "mu": 0.3, "correction": True,
        "preconditioner": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_rounds_terms_change_the_steps_as_those_of_the_reference(trained, phone, terms):
    rates = [float(terms.get(name, 0.0)) for name in ("momentum", "weight_decay", "mu")]
    shape = (trained.head.num_classes, trained.head.num_features + 1)
    torch.manual_seed(0)
    none = torch.zeros(0, 0)
    correction = 0.01 * torch.randn(shape) if "correction" in terms else none
    mixing = torch.eye(shape[1]) + 0.01 * torch.randn(shape[1], shape[1])
    preconditioner = mixing if "preconditioner" in terms else none
    training = LocalTraining(0.05, 5, 6, momentum=rates[0], weight_decay=rates[1])
    features, names = as_features(trained), {"seed": 3, "round_number": 7, "client": 11}
    arguments = (
        torch.from_numpy(features.x), torch.from_numpy(features.labels),
        torch.zeros(shape), training, batch_orders(len(features), training, **names),
    )  # fmt: skip
    wanted = train_head(
        *arguments,
        Terms(
            rates[2],
            correction if len(correction) else None,
            preconditioner if len(preconditioner) else None,
        ),
    ).delta
    plain = train_head(*arguments[:3], LocalTraining(0.05, 5, 6), arguments[4]).delta
    q, labels = examples(trained)
    steps = (q, labels, 0.05, 5, 6, batch_seed(**names))
    phone("set_head", *zero_head(trained))
    phone("set_terms", *rates, correction, preconditioner)
    phone("train_epochs", *steps)
    torch.testing.assert_close(phone("head_delta"), wanted, rtol=0, atol=1e-6)
    assert (wanted - plain).abs().max() > 1e-4
    phone("set_head", *zero_head(trained))  # the next round, which has none
    phone("train_epochs", *steps)
    torch.testing.assert_close(phone("head_delta"), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ((1.0, 0.0, 0.0, 0, 0), "momentum is 1"),
        ((0.0, -1.0, 0.0, 0, 0), "weight decay or mu is -1"),
        ((0.0, 0.0, float("nan"), 0, 0), "weight decay or mu is nan"),
        ((0.0, 0.0, 0.0, 3, 0), "the correction has shape"),
        ((0.0, 0.0, 0.0, 0, 3), "the preconditioner has shape"),
    ],
)
def test_terms_that_no_round_has_are_refused(phone, terms, reason):
    *rates, rows, side = terms
    with pytest.raises(Exception, match=reason):
        phone("set_terms", *rates, torch.zeros(rows, 2 * bool(rows)), torch.zeros(side, side))
