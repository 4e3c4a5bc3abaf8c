import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.sgd import Terms, train_head
from common.seeding import batch_order
from common.types import LocalTraining, Optimizer

N, D, K = 23, 6, 4


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D + 1, generator=g, dtype=torch.float64)
    x[:, -1] = 1
    return (
        x,
        torch.randint(0, K, (N,), generator=g),
        torch.randn(K, D + 1, generator=g, dtype=torch.float64),
    )


def orders(epochs: int) -> list[np.ndarray]:
    return [batch_order(N, seed=0, round_number=1, client=2, epoch=e) for e in range(epochs)]


def torch_optimizer(w: torch.Tensor, training: LocalTraining) -> torch.optim.Optimizer:
    lr, decay = training.lr, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD([w], lr=lr, momentum=training.momentum, weight_decay=decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[training.optimizer]([w], lr=lr, weight_decay=decay)


def autograd(x, labels, start, training, mu=0.0, correction=None):  # type: ignore[no-untyped-def]
    """The same training by torch's own optimizer and automatic differentiation."""
    w = start.clone().requires_grad_()
    optimizer = torch_optimizer(w, training)
    for order in orders(training.local_epochs):
        for batch in torch.split(torch.from_numpy(order), training.batch_size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(x[batch] @ w.t(), labels[batch])
            loss = loss + mu / 2 * ((w - start) ** 2).sum()
            if correction is not None:
                loss = loss + (correction * w).sum()
            loss.backward()
            optimizer.step()
    return (w - start).detach()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("batch_size", [1, 5, N, 100])
def test_matches_autograd(momentum: float, weight_decay: float, mu: float, batch_size: int) -> None:
    x, labels, start = problem()
    training = LocalTraining(0.1, 3, batch_size, momentum, weight_decay)
    correction = torch.full_like(start, 0.03)
    got = train_head(x, labels, start, training, orders(3), Terms(mu, correction))
    expected = autograd(x, labels, start, training, mu, correction)
    torch.testing.assert_close(got.delta, expected, rtol=1e-10, atol=1e-12)
    assert got.steps == 3 * -(-N // batch_size)


@given(
    optimizer=st.sampled_from(["adam", "adamw"]),
    lr=st.floats(1e-4, 0.5),
    epochs=st.integers(1, 4),
    batch_size=st.integers(1, N + 1),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    mu=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_adam_is_torchs_own(
    optimizer: Optimizer,
    lr: float,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    mu: float,
    seed: int,
) -> None:
    x, labels, start = problem(seed)
    training = LocalTraining(lr, epochs, batch_size, 0.0, weight_decay, optimizer)
    correction = torch.full_like(start, 0.03)
    got = train_head(x, labels, start, training, orders(epochs), Terms(mu, correction))
    expected = autograd(x, labels, start, training, mu, correction)
    torch.testing.assert_close(got.delta, expected, rtol=1e-8, atol=1e-10)


def test_the_moments_of_adam_begin_anew_in_each_call() -> None:
    x, labels, start = problem()
    training = LocalTraining(0.1, 2, 5, optimizer="adam")
    first, second = (train_head(x, labels, start, training, orders(2)) for _ in range(2))
    assert torch.equal(first.delta, second.delta)


def test_preconditioner_multiplies_the_data_gradient_alone() -> None:
    x, labels, start = problem()
    p = torch.eye(D + 1, dtype=torch.float64) * 2
    training = LocalTraining(0.1, 1, N)
    plain = train_head(x, labels, start, training, orders(1))
    doubled = train_head(x, labels, start, training, orders(1), Terms(preconditioner=p))
    torch.testing.assert_close(doubled.delta, 2 * plain.delta)
    decay = LocalTraining(0.1, 1, N, weight_decay=0.5)
    with_decay = train_head(x, labels, start, decay, orders(1), Terms(preconditioner=p))
    torch.testing.assert_close(with_decay.delta, 2 * plain.delta - 0.1 * 0.5 * start)


def test_losses_are_those_before_and_after() -> None:
    x, labels, start = problem()
    result = train_head(x, labels, start, LocalTraining(0.5, 3, 5), orders(3))
    loss = torch.nn.functional.cross_entropy
    assert result.loss_before == pytest.approx(float(loss(x @ start.t(), labels)))
    assert result.loss_after == pytest.approx(float(loss(x @ (start + result.delta).t(), labels)))
    assert result.loss_after < result.loss_before


def test_inputs_are_not_changed() -> None:
    x, labels, start = problem()
    before = [t.clone() for t in (x, labels, start)]
    train_head(x, labels, start, LocalTraining(0.5, 2, 5, 0.9, 0.1), orders(2), Terms(0.1))
    for old, new in zip(before, (x, labels, start), strict=True):
        assert torch.equal(old, new)


def test_thread_count_changes_no_bit() -> None:
    x, labels, start = problem()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result = train_head(x, labels, start, LocalTraining(0.5, 2, 5), orders(2))
            results.append(result.delta)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
