import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.sgd import Terms, train_head
from common.errors import ConfigError
from common.experiment import forget_data
from common.local_loss import LocalLoss, check_loss, find_loss
from common.seeding import batch_order
from common.types import LocalTraining

K, D, N = 4, 6, 20

LOSSES = """
import numpy as np
import torch
from torch.nn import functional as F

def plain(logits, labels):
    return F.cross_entropy(logits, labels)

def smooth(logits, labels, smoothing=0.1):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)

def near(logits, labels, head, start):
    return F.cross_entropy(logits, labels) + 0.25 * ((head - start) ** 2).sum()

def alone(logits):
    return logits.mean()

def fails(logits, labels):
    raise RuntimeError("no such thing")

def number(logits, labels):
    return 1.0

def each(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")

def double(logits, labels):
    return F.cross_entropy(logits, labels).double()

def detached(logits, labels):
    return F.cross_entropy(logits, labels).detach()

def nan(logits, labels):
    return F.cross_entropy(logits, labels) * float("nan")

def apart(logits, labels):
    return torch.ones((), requires_grad=True) * 2

def ends(logits, labels):
    raise SystemExit(0)

def zeroed(logits, labels):
    return F.cross_entropy(logits, labels.zero_())

def emptied(logits, labels):
    logits.data.zero_()
    return F.cross_entropy(logits, labels)

def drawn(logits, labels):
    return F.cross_entropy(logits, labels) * torch.rand(())
"""


@pytest.fixture
def find(tmp_path: Path) -> Iterator[Callable[[str], LocalLoss]]:
    """Finds one of the functions above."""
    (tmp_path / "losses_of_mine.py").write_text(LOSSES)
    before = [*sys.path]

    def of(name: str) -> LocalLoss:
        loss = find_loss(f"losses_of_mine:{name}", str(tmp_path))
        assert loss is not None
        return loss

    yield of
    sys.path[:] = before
    sys.modules.pop("losses_of_mine", None)
    forget_data()


def problem() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, D + 1, generator=g, dtype=torch.float64)
    labels = torch.randint(0, K, (N,), generator=g)
    return x, labels, torch.randn(K, D + 1, generator=g, dtype=torch.float64)


def trained(terms: Terms, optimizer: str = "sgd") -> Tensor:
    x, labels, start = problem()
    orders = [batch_order(N, seed=0, round_number=1, client=0, epoch=e) for e in range(3)]
    training = LocalTraining(0.1, 3, 6, 0.0 if optimizer == "adam" else 0.5, 0.01, optimizer)  # type: ignore[arg-type]
    return train_head(x, labels, start, training, orders, terms).delta


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_cross_entropy_of_ones_own_trains_as_the_built_in_one(
    find: Callable[[str], LocalLoss], optimizer: str
) -> None:
    own = trained(Terms(gradient=find("plain").gradient), optimizer)
    torch.testing.assert_close(own, trained(Terms(), optimizer), rtol=1e-9, atol=1e-11)


def test_a_regularizer_sees_the_head_and_where_it_started(
    find: Callable[[str], LocalLoss],
) -> None:
    own = trained(Terms(gradient=find("near").gradient))
    torch.testing.assert_close(own, trained(Terms(mu=0.5)), rtol=1e-9, atol=1e-11)


def test_label_smoothing_is_torchs_own(find: Callable[[str], LocalLoss]) -> None:
    x, labels, start = problem()
    w = start.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ w.t(), labels, label_smoothing=0.1)
    (expected,) = torch.autograd.grad(loss, w)
    got = find("smooth").gradient(x, labels, start, start)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "RuntimeError: no such thing"),
        ("number", "returned float, expected a scalar Tensor"),
        ("each", r"returned a Tensor of shape \(8,\), expected a scalar"),
        ("double", r"returned torch.float64, expected torch.float32"),
        ("detached", "has no gradient"),
        ("nan", "the loss is nan"),
        ("apart", "depends neither on the logits nor on the head"),
        ("ends", "SystemExit: 0"),
        ("zeroed", "changes its labels in place"),
        ("emptied", "changes its logits in place"),
        ("drawn", "gives another value for the same batch: is it random"),
    ],
)
def test_what_is_no_loss_is_one_line(
    find: Callable[[str], LocalLoss], name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_loss(find(name), K)
    assert f"losses_of_mine:{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_takes_other_arguments_or_is_not_there_is_one_line(
    find: Callable[[str], LocalLoss],
) -> None:
    with pytest.raises(ConfigError, match=r"takes \(logits\), expected \(logits, labels\) or"):
        find("alone")
    with pytest.raises(ConfigError, match="no function 'absent'"):
        find("absent")
    with pytest.raises(ConfigError, match="no module 'nowhere'; train.loss-root says in which"):
        find_loss("nowhere:loss", "")


def test_a_loss_that_was_written_anew_is_read_by_the_next_run_alone(
    find: Callable[[str], LocalLoss], tmp_path: Path
) -> None:
    x, labels, start = problem()

    def slope() -> Tensor:
        return find("plain").gradient(x, labels, start, start)

    first = slope()
    file = tmp_path / "losses_of_mine.py"
    file.write_text(LOSSES.replace("F.cross_entropy(logits", "3 * F.cross_entropy(logits"))
    torch.testing.assert_close(slope(), first)  # the run is under way
    forget_data()
    torch.testing.assert_close(slope(), 3 * first)
