"""Faults that a review found in the causal checks: rows that lean on others, sites out of order, what was never read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_probe_causal import METRIC, SITE, a_direction
from test_probe_causal import PROMPTS as TEXTS
from test_probe_causal_boards import PROMPTS, SITES, probes_of, states

from probes.boards import othello_boards
from probes.causal.board_sweep import board_sweep, split_groups
from probes.causal.closed_form import turn
from probes.causal.minimise import lbfgs
from probes.causal.move import causal_check
from probes.causal.rewrite import _one_position, push, rewrite
from probes.causal.saliency import saliency_map
from probes.causal.squares import LinearSquares, fit_linear, fit_mlp
from workbench.errors import DataError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- minimisers ----------------------------------------------------------------------------------------


def test_lbfgs_ends_each_row_where_it_ends_alone_also_where_curvature_is_not_kept():
    """Another row's last step must not decide by which of its own steps a row is scaled."""
    h, wanted = drawn(30, 12, seed=3), torch.arange(30) % 3
    hidden, out = drawn(20, 12, seed=1) * 2, drawn(3, 20, seed=2) * 2

    def ends(rows):
        def evaluate(x, row):
            log_p = (torch.tanh(x @ hidden.T) @ out.T).log_softmax(-1)
            loss = -log_p.gather(-1, wanted[rows][row][:, None])[:, 0]
            return loss + 0.05 * (x - h[rows][row]).square().sum(1), torch.zeros(len(x), dtype=torch.bool)

        first = torch.full((len(rows), 1), 0.3, dtype=torch.float64)
        return lbfgs(evaluate, h[rows], learning_rate=first, steps=20).x

    together, alone = ends(list(range(30))), torch.cat([ends([i]) for i in range(30)])
    assert torch.allclose(together, alone, atol=1e-6)


# -- states that are written ---------------------------------------------------------------------------


def test_the_last_probe_is_that_of_the_last_site_whatever_order_they_are_given_in(llama):
    """The first site's probe cannot see what is written: `written` is about the last site."""
    blind = LinearSquares(torch.zeros(4, 3, 48), torch.tensor([[9.0, 0.0, 0.0]]).repeat(4, 1))
    probes = {**probes_of(llama), SITES[0]: blind}
    boards = np.array([[0, 1, 2, 1], [1, 1, 2, 2]])
    given = [
        saliency_map(llama, PROMPTS[:2], order, boards, edit=turn, n_random=1)
        for order in (probes, dict(reversed(list(probes.items()))))
    ]
    assert [found.data.attrs["sites"] for found in given] == [list(SITES[:2])] * 2
    assert [found.summary["written"] for found in given] == [1.0, 1.0]
    assert given[0].data.identical(given[1].data.assign_attrs(given[0].data.attrs))


def one_site_twice(model):
    probe = probes_of(model)[SITES[0]]
    return {SITES[0]: probe, f"blocks.{-model.n_layers}.hook_resid_post": probe}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: write(m, flipped=states()[1][:1]), r"both must be \[row, square\]"),
        (lambda m: write(m, labels=states()[0] + 0.5), "Expected class numbers"),
        (lambda m: _one_position([[5, 6]], [0, 1]), "one token of each prompt"),
        (lambda m: _one_position([[5], [5, 6]], "all"), "one token of each prompt"),
        (lambda m: write(m, probes=one_site_twice(m)), "are one site"),
        (lambda m: write(m, *(x[:0] for x in states()), of_row=np.arange(0)), "No states"),
        (lambda m: push(m, PROMPTS, {SITES[0]: torch.ones(3), SITES[1]: torch.ones(2)}, seed=0), "one norm"),
        (
            lambda m: saliency_map(m, PROMPTS, probes_of(m), np.full((3, 4), 1.0), edit=turn),
            "classes 0, 1, 2 .* float64",
        ),
        (lambda m: causal_check(m, TEXTS, a_direction(), METRIC, classes=("no", "yes")), "goes one way"),
        (lambda m: causal_check(m, TEXTS, a_direction(), METRIC, seed=-1, control="natural"), "A seed is"),
    ],
)
def test_what_cannot_be_written_gets_one_clear_error(llama, ask, message):
    with pytest.raises(DataError, match=message):
        ask(llama)


def write(model, labels=None, flipped=None, *, probes=None, **more):
    state = states()
    labels, flipped = state[0] if labels is None else labels, state[1] if flipped is None else flipped
    return rewrite(model, PROMPTS, probes or probes_of(model), labels, flipped, edit=turn, **more)


# -- probes of boards ----------------------------------------------------------------------------------

GROUPS, POSITION = np.arange(160) // 8, np.arange(160) % 8
ROWS = torch.randn(160, 6, generator=torch.Generator().manual_seed(0))
LABELS = np.random.default_rng(0).integers(0, 3, (160, 4))
TEST = np.flatnonzero(split_groups(GROUPS, seed=0)[0])
FIRST = np.arange(160) < 80


def swept(rows=ROWS, labels: Any = LABELS, position: Any = POSITION, **more):
    return board_sweep({SITE: rows}, {"l": labels}, GROUPS, position, n_classes=3, **more)[0]


def spoilt(values, with_what):
    out = values.clone() if isinstance(values, torch.Tensor) else values.copy()
    out[TEST[0]] = with_what
    return out


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: swept(spoilt(ROWS, torch.nan)), "1 of 160 rows at .* NaN"),  # a test row, which no fit sees
        (lambda: swept(untrained={SITE: spoilt(ROWS, torch.inf)}), "1 of 160 rows at .* NaN"),
        (lambda: swept(labels=spoilt(LABELS, 3)), "go from 0 to 3; with 3 classes"),
        (lambda: swept(labels=LABELS[:, 0]), r"class numbers \[row, square\]"),
        (
            lambda: swept(settings={"lineer": {"max_steps": 1}}),
            "settings for 'lineer', but fitted are linear",
        ),
        (lambda: swept(kinds=("linear", "linear")), "each once"),
        (lambda: fit_linear(ROWS, LABELS, FIRST, n_classes=3, penalties=[float("nan")]), "numbers above 0"),
        (lambda: fit_mlp(ROWS, LABELS, FIRST, n_classes=3, learning_rate=1e20, epochs=3), "diverges"),
        (lambda: fit_mlp(ROWS, LABELS, FIRST, n_classes=3, epochs=0), "epochs"),
        (
            lambda: LinearSquares(torch.ones(4, 3, 6), torch.ones(4, 3)).direction(4, 1, 0, site=SITE),
            "0 to 3",
        ),
        (
            lambda: LinearSquares(torch.ones(4, 3, 6), torch.ones(4, 3)).direction(0, -1, 0, site=SITE),
            "0 to 2",
        ),
        (lambda: othello_boards(np.array([[99, -1]])), "Square 99 is not on a 6×6 board"),
    ],
)
def test_what_no_board_can_be_read_from_gets_one_clear_error(ask, message):
    with pytest.raises(DataError, match=message):
        ask()


def test_positions_of_a_board_are_anything_that_is_the_same_in_comparable_rows():
    numbers = swept(controls=False)
    for position in (np.array([f"move {p}" for p in POSITION]), POSITION / 10):
        found = swept(position=position, controls=False)
        assert found.data["position_error"].equals(numbers.data["position_error"])
