"""Edits by probes: projections are exact, optimisation approaches them, rows do not depend on each other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.causal.closed_form import least_move, least_squares_move, turn
from probes.causal.optimise import optimise
from probes.causal.squares import LinearSquares, MLPSquares
from workbench.errors import DataError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n_squares=3, n_classes=3, d=12, seed=0):
    return LinearSquares(
        drawn(n_squares, n_classes, d, seed=seed), drawn(n_squares, n_classes, seed=seed + 1)
    )


def mlp(n_squares=3, n_classes=3, d=12, hidden=20):
    return MLPSquares(
        drawn(hidden, d, seed=1),
        drawn(hidden, seed=2),
        drawn(n_squares, n_classes, hidden, seed=3),
        drawn(n_squares, n_classes),
    )


def a_flip(probe, h, seed=0):
    """What the probe sees, with one square of each row put to its second choice."""
    ranked = probe(h).argsort(-1, descending=True)
    square = torch.randint(ranked.shape[1], (len(h),), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(len(h))
    labels = ranked[..., 0].clone()
    labels[rows, square] = ranked[rows, square, 1]
    flipped = torch.zeros_like(labels, dtype=torch.bool)
    flipped[rows, square] = True
    return labels, flipped


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), target=st.floats(-5, 5), d=st.integers(2, 20))
def test_the_least_move_is_the_projection_on_the_hyperplane(seed, target, d):
    h, w = drawn(4, d, seed=seed), drawn(d, seed=seed + 1)
    x = least_move(h, w, 0.3, target)
    assert torch.allclose(x @ w + 0.3, torch.full((4,), target), atol=1e-4)
    move = x - h  # along the normal, so no other point of the plane is nearer
    along = (move @ w)[:, None] * w / (w @ w)
    assert torch.allclose(move, along, atol=1e-4)


@pytest.mark.parametrize("k", [1, 4, 12, 20])
def test_the_move_for_many_probes_is_that_of_a_general_solver(k):
    h, weight, bias = drawn(5, 12), drawn(k, 12, seed=3), drawn(k, seed=4)
    target = h @ weight.T + bias
    target[:, 0] += 2
    x = least_squares_move(h, weight, bias, target)
    for i in range(5):
        solved = np.linalg.lstsq(
            weight.double().numpy(), (target - h @ weight.T - bias)[i].double().numpy(), rcond=None
        )[0]
        assert np.allclose((x - h)[i], solved, atol=1e-4)
    if k <= 12:
        assert torch.allclose(x @ weight.T + bias, target, atol=1e-3)


def test_turning_a_square_swaps_its_two_logits_and_keeps_the_others():
    probe, h = linear(), drawn(40, 12, seed=7)
    labels, flipped = a_flip(probe, h)
    edited = turn(probe, h, labels, flipped)
    before, after = (logits - logits.mean(-1, keepdim=True) for logits in (probe(h), probe(edited.x)))
    assert torch.allclose(before[~flipped], after[~flipped], atol=1e-3)
    ranked = before.argsort(-1, descending=True)[flipped]
    swapped = before[flipped].gather(-1, ranked)[:, [1, 0, 2]]
    assert torch.allclose(after[flipped].gather(-1, ranked), swapped, atol=1e-3)
    assert edited.done.all() and (edited.kept == 1).all()
    assert torch.allclose(edited.norm, (edited.x - h).norm(dim=1))


def test_turning_without_keeping_is_the_least_move_of_the_difference():
    probe, h = linear(1, 2), drawn(20, 12, seed=8)
    labels, flipped = a_flip(probe, h)
    edited = turn(probe, h, labels, flipped, keep=False, strength=0.5)
    w, b = probe.weight[0, 1] - probe.weight[0, 0], float(probe.bias[0, 1] - probe.bias[0, 0])
    expected = least_move(h, w, b, -0.5 * (h @ w + b))
    assert torch.allclose(edited.x, expected, atol=1e-4)
    assert (turn(probe, h, labels, flipped).norm >= edited.norm).all()


def test_optimising_a_linear_probe_ends_at_the_least_move():
    probe, h = linear(1, 2), drawn(20, 12, seed=9)
    labels, flipped = a_flip(probe, h)
    w, b = probe.weight[0, 1] - probe.weight[0, 0], float(probe.bias[0, 1] - probe.bias[0, 0])
    sign = 2.0 * labels[:, 0] - 1
    nearest = least_move(h, w, b, sign * float(np.log(0.9 / 0.1)))
    least = (nearest - h).norm(dim=1)
    found = optimise(probe, h, labels, flipped, method="lbfgs")
    assert found.done.all() and torch.allclose(found.x, nearest, atol=1e-3)
    by_adam = optimise(probe, h, labels, flipped, steps=2000)
    # Adam steps by the sign of each coordinate, so it goes √d ‖w‖ / ‖w‖₁ times as far.
    further = 12**0.5 * w.norm() / w.abs().sum()
    assert by_adam.done.all() and torch.allclose(by_adam.norm, least * further, rtol=1e-3) and further > 1.2
    loose = optimise(probe, h, labels, flipped, steps=2000, learning_rate=0.3, shorten=False)
    assert (loose.norm >= by_adam.norm - 1e-4).float().mean() > 0.9


def test_lbfgs_finds_the_minimum_that_scipy_finds():
    """With a weight on the distance the loss of a linear probe is strictly convex: one minimum."""
    probe, h = linear(), drawn(6, 12, seed=11)
    labels, flipped = a_flip(probe, h)
    found = optimise(
        probe,
        h,
        labels,
        flipped,
        method="lbfgs",
        distance=2,
        keep=1,
        confidence=1 - 1e-9,
        steps=200,
        shorten=False,
    )
    for i in range(6):

        def loss(x, i=i):
            leaf = torch.tensor(x, requires_grad=True)
            log_p = (
                torch.einsum("scd,d->sc", probe.weight.double(), leaf) + probe.bias.double()
            ).log_softmax(-1)
            value = -log_p.gather(-1, labels[i, :, None]).sum()
            value = value + 2 * (leaf - h[i].double()).square().sum() / h[i].double().square().sum()
            value.backward()
            return float(value), leaf.grad.numpy()

        best = scipy.optimize.minimize(loss, h[i].double().numpy(), jac=True, options={"gtol": 1e-8})
        assert float(found.loss[i]) == pytest.approx(best.fun, abs=1e-4)
        assert np.allclose(found.x[i], best.x, atol=0.05)


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
@pytest.mark.parametrize("make", [linear, mlp])
def test_many_rows_together_end_where_each_ends_alone(method, make):
    probe, h = make(), drawn(9, 12, seed=5)
    labels, flipped = a_flip(probe, h)
    run = partial(optimise, probe, method=method, steps=300)
    together = run(h, labels, flipped)
    for i in (0, 4, 8):
        alone = run(h[i : i + 1], labels[i : i + 1], flipped[i : i + 1])
        assert torch.allclose(alone.x[0], together.x[i], atol=1e-3) and alone.steps[0] == together.steps[i]
    assert together.done.float().mean() > 0.8 and together.steps.unique().numel() > 1


def test_what_is_kept_costs_less_damage_and_a_limit_is_reported():
    probe, h = mlp(12), drawn(60, 12, seed=6)
    labels, flipped = a_flip(probe, h)
    careless, careful = (optimise(probe, h, labels, flipped, keep=k) for k in (0, 1))
    assert careful.kept.mean() > careless.kept.mean()
    short = optimise(probe, h, labels, flipped, steps=1, learning_rate=1e-6)
    assert not short.done.any() and (short.steps == 1).all() and (short.norm > 0).all()


def test_a_probe_of_one_thing_and_inference_mode_are_fine():
    w = drawn(12, 2)
    h = drawn(5, 12, seed=1)
    labels = (h @ w).argmin(-1)[:, None]
    with torch.inference_mode():
        edited = optimise(lambda x: x @ w, h * 1.0, labels, torch.ones_like(labels, dtype=torch.bool))
    assert edited.done.all() and torch.equal((edited.x @ w).argmax(-1), labels[:, 0])


H, PROBE = drawn(4, 12), linear()
LABELS, FLIPPED = a_flip(PROBE, H)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: optimise(PROBE, H, LABELS, FLIPPED, method="sgd"), "no method 'sgd'"),
        (lambda: optimise(PROBE, H, LABELS, FLIPPED, confidence=1.0), "between 0 and 1"),
        (lambda: optimise(PROBE, H, LABELS, FLIPPED, steps=0), "steps at least 1"),
        (lambda: optimise(PROBE, H, LABELS[:, :2], FLIPPED[:, :2]), "must be .row, square."),
        (lambda: optimise(PROBE, H, LABELS, FLIPPED & False), "Row 0 has no flipped"),
        (lambda: optimise(PROBE, H, LABELS + 5, FLIPPED), "has 3 classes"),
        (lambda: optimise(PROBE, H * torch.nan, LABELS, FLIPPED), "finite activations"),
        (lambda: optimise(lambda x: PROBE(x).detach(), H, LABELS, FLIPPED), "no gradient"),
        (lambda: optimise(lambda x: PROBE(x)[0, 0], H, LABELS, FLIPPED), "expected logits"),
        (lambda: turn(mlp(), H, LABELS, FLIPPED), "MLPSquares"),
        (lambda: least_move(H, torch.zeros(12), 0.0, 1.0), "weight of the probe is zero"),
        (lambda: least_move(H, torch.ones(3), 0.0, 1.0), "do not fit"),
        (
            lambda: least_squares_move(H, torch.ones(2, 12), torch.zeros(2), torch.zeros(4, 3)),
            "Shapes do not match",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(ask, message):
    with pytest.raises(DataError, match=message):
        ask()
