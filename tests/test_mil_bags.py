"""Bags of tokens, and the linear machine they are fitted with."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

import workbench as wb
from probes.mil import Bags, make_bags
from probes.mil.svm import Separator, separate
from workbench.activations import Activations
from workbench.errors import DataError, SiteError
from workbench.provenance import Provenance

SITE = "blocks.1.hook_resid_post"


def activations(lengths, d=4, shuffle=False) -> Activations:
    """Rows that say which prompt and position they are: [prompt, position, 0, …]."""
    prompt = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    order = np.random.default_rng(0).permutation(len(prompt)) if shuffle else np.arange(len(prompt))
    rows = np.zeros((len(prompt), d), dtype=np.float32)
    rows[:, 0], rows[:, 1] = prompt, position
    return Activations(
        values={SITE: torch.tensor(rows[order])},
        prompt=prompt[order],
        position=position[order],
        token_id=np.zeros(len(prompt), dtype=np.int64),
        token=tuple(f"{a}:{b}" for a, b in zip(prompt[order], position[order], strict=True)),
        n_prompts=len(lengths),
        provenance=Provenance(),
    )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 15), min_size=1, max_size=8),
    max_tokens=st.integers(2, 9),
    known=st.integers(1, 2),
    others=st.sampled_from(["last", "random"]),
    shuffle=st.booleans(),
)
def test_a_bag_holds_the_last_tokens_of_its_prompt_in_order(lengths, max_tokens, known, others, shuffle):
    acts = activations(lengths, shuffle=shuffle)
    bags = make_bags(acts, SITE, max_tokens=max_tokens, known_positive=known, others=others, seed=1)
    assert len(bags) == len(lengths) and bags.site == SITE
    for i, length in enumerate(lengths):
        rows = slice(bags.offsets[i], bags.offsets[i + 1])
        position = bags.position[rows]
        assert len(position) == min(max_tokens, length - 1)
        assert (np.diff(position) > 0).all() and position[0] >= 1 and position[-1] == length - 1
        if others == "last":
            assert position.tolist() == list(range(length - len(position), length))
        assert (bags.values[rows, 0] == i).all() and (bags.values[rows, 1] == position).all()
        assert bags.token[rows] == tuple(f"{i}:{p}" for p in position)
        tail = min(known, len(position))
        assert position[bags.known[rows]].tolist() == list(range(length - tail, length))


def test_random_others_differ_by_seed_and_not_otherwise():
    acts = activations([40, 40])
    one, same, other = (make_bags(acts, SITE, others="random", seed=s).position for s in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert {38, 39} <= set(one.tolist())


def test_means_maxima_and_selections_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n, 3)) for n in (1, 4, 2, 7)]
    bags = Bags.of(arrays)
    assert np.allclose(bags.means(), [a.mean(0) for a in arrays])
    scores = bags.values[:, 0].round(0)  # with ties
    highest, row = bags.maximum(scores)
    for i in range(4):
        mine = scores[bags.offsets[i] : bags.offsets[i + 1]]
        assert highest[i] == mine.max() and row[i] - bags.offsets[i] == mine.argmax()
    for chosen in ([2, 0], np.array([True, False, True, False])):
        picked = bags.select(chosen)
        assert picked.sizes.tolist() == (
            [2, 1] if chosen is not None and isinstance(chosen, list) else [1, 2]
        )
    assert np.array_equal(bags.select([3]).values, arrays[3]) and bags.select([3, 1]).prompt.tolist() == [
        3,
        1,
    ]


def test_bags_of_a_store_are_those_of_the_activations_in_memory(tmp_path):
    model = tiny_model("llama")
    prompts = ["the Mary is red", "the John went to the store", "Anna is Tom"]
    acts = wb.collect(model, prompts, SITE, positions="all")
    store = wb.collect_to(tmp_path / "acts", model, prompts, sites=[SITE], positions="all")
    store = wb.open_store(tmp_path / "acts")
    one, other = make_bags(acts, SITE, max_tokens=3), make_bags(store, SITE, max_tokens=3)
    assert np.allclose(one.values, other.values, atol=1e-5)
    assert all(
        np.array_equal(getattr(one, n), getattr(other, n)) for n in ("sizes", "known", "prompt", "position")
    )
    heads = wb.collect(model, prompts, "blocks.0.attn.hook_z", positions="all")
    assert make_bags(heads, "blocks.0.attn.hook_z").values.ndim == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_bags(activations([5, 1, 3]), SITE),
            "1 of 3 prompts have no token at position 1 .* prompt 1: its bag",
        ),
        (lambda: make_bags(activations([5]), SITE, max_tokens=1), "max_tokens ≥ known_positive ≥ 1"),
        (lambda: make_bags(activations([5]), SITE, others="first"), "'last' or 'random', not 'first'"),
        (lambda: Bags.of([np.ones((2, 3)), np.ones((0, 3))]), "1 of 2 bags are empty, the first is bag 1"),
        (lambda: Bags.of([np.ones((2, 3)), np.ones((2, 4))]), "one width"),
        (lambda: Bags.of([np.ones((2, 3))], [[True]]), "lengths of the bags"),
        (
            lambda: Bags.of([np.ones((2, 3))], [[False, False]]),
            "no row is assumed positive, the first is bag 0",
        ),
        (lambda: Bags.of([np.ones((1, 3)), np.full((2, 3), np.nan)]), "2 of 3 rows hold NaN .* in bag 1"),
        (lambda: Bags.of([np.ones((2, 3))]).select([]), "no bags at all"),
    ],
)
def test_bad_bags_are_one_clear_error(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_an_unknown_site_is_named():
    with pytest.raises(SiteError, match="Did you mean"):
        make_bags(activations([4]), "blocks.1.hook_resid_pos")


# -- the machine -----------------------------------------------------------------------------------------


def problem(n=80, d=6, seed=0):
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 3 == 0, 1.0, -1.0)
    return rng.normal(size=(n, d)) + 0.7 * y[:, None], y, rng.uniform(0.1, 2, n), rng.uniform(-0.8, 1, n)


def objective(theta, x, y, c, m):
    short = np.maximum(0, m - y * (x @ theta[:-1] + theta[-1]))
    return 0.5 * theta[:-1] @ theta[:-1] + (c * short**2).sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_finds_the_minimum_that_a_general_optimiser_finds_with_margins_and_weights(seed, scale):
    x, y, c, m = problem(seed=seed)
    found = separate(x, y, scale * c, m)
    oracle = scipy.optimize.minimize(
        objective, np.zeros(7), (x, y, scale * c, m), method="BFGS", options={"gtol": 1e-9}
    )
    ours = objective(np.append(found.coef, found.intercept), x, y, scale * c, m)
    assert ours <= oracle.fun * (1 + 1e-9) + 1e-12 and np.allclose(found.coef, oracle.x[:-1], atol=1e-4)
    assert found.converged and found.gradient_norm < 1e-7 and found.n_iter < 40


def test_with_equal_weights_it_is_liblinear():
    x, y, _, _ = problem(200)
    oracle = LinearSVC(C=0.3, intercept_scaling=1e4, tol=1e-10, max_iter=100_000, dual=False).fit(x, y)
    found = separate(
        x, y, np.full(200, 0.3)
    )  # ½‖w‖² + C Σ hinge²; a large scaling hardly penalises the intercept
    assert np.allclose(found.coef, oracle.coef_[0], atol=1e-3) and np.isclose(
        found.intercept, oracle.intercept_[0], atol=1e-3
    )


def test_where_it_starts_does_not_matter():
    x, y, c, m = problem()
    cold = separate(x, y, c, m)
    warm = separate(x, y, c, m, start=separate(x, y, 30 * c, m))
    far = separate(x, y, c, m, start=Separator(np.full(6, 1e3), -50.0, 0.0, True, 0))
    assert np.allclose(cold.coef, warm.coef, atol=1e-8) and np.allclose(cold.coef, far.coef, atol=1e-6)
