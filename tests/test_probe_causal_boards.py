"""Probes of whole boards, states written into a model, and saliency maps: against one fit, one hook, one square at a time."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_probe_causal_edits import drawn

from probes.causal.closed_form import turn
from probes.causal.optimise import optimise
from probes.causal.rewrite import push, rewrite
from probes.causal.saliency import saliency_map
from probes.causal.squares import LinearSquares, fit_linear, fit_mlp, wrong_squares
from workbench.errors import DataError, PositionError, SiteError

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
PROMPTS = ["Mary went to the store", "John gave Anna a red drink", "the capital of France is"]


def planted(n=240, d=8, n_squares=5, n_classes=3, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.1, 10, d) + 3  # badly scaled, off centre
    scores = x @ rng.normal(size=(d, n_squares * n_classes)) / np.geomspace(0.1, 10, d).max() * 2
    y = (scores + noise * rng.normal(size=scores.shape)).reshape(n, n_squares, n_classes).argmax(-1)
    return torch.from_numpy(x).float(), y


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.1, 1e-3])
def test_one_solve_for_all_squares_gives_what_sklearn_gives_for_each(n_classes, penalty):
    x, y = planted(n_classes=n_classes)
    validation = np.arange(len(x)) % 4 == 0
    probe = fit_linear(x, y, validation, n_classes=n_classes, penalties=[penalty], tolerance=1e-6)
    train = x[~validation].double().numpy()
    mean, std = train.mean(0), train.std(0)
    for square in range(y.shape[1]):
        # One logit per class with a penalty on each is what sklearn solves for three classes; for two it has one logit w,
        # which is split in halves here: ‖w/2‖² + ‖w/2‖² = ‖w‖²/2.
        c = 1 / (penalty * len(train)) * (2 if n_classes == 2 else 1)
        other = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(
            (train - mean) / std, y[~validation, square]
        )
        p = torch.softmax(probe(x), -1)[:, square].numpy()
        assert np.allclose(p, other.predict_proba((x.double().numpy() - mean) / std), atol=2e-3)
    assert probe.gradient < 1e-5 and probe.penalty == penalty


def test_the_penalty_is_chosen_on_validation_rows_and_unseen_classes_get_no_probability():
    x, y = planted(noise=8)
    y[:, 0] = 1
    validation = np.arange(len(x)) % 3 == 0
    chosen = fit_linear(x, y, validation, n_classes=3, penalties=[10, 0.1, 1e-5])

    def held(probe):
        log_p = probe(x[torch.from_numpy(validation)]).log_softmax(-1)
        return float(-log_p.gather(-1, torch.from_numpy(y[validation])[..., None]).mean())

    each = {p: held(fit_linear(x, y, validation, n_classes=3, penalties=[p])) for p in (10, 0.1, 1e-5)}
    assert chosen.penalty == min(each, key=each.get) != 1e-5
    assert float(chosen(x).softmax(-1)[:, 0, 1].min()) > 0.95


def test_a_hidden_layer_reads_what_a_linear_probe_cannot():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(1500, 4)) + 2).float()
    y = np.stack([(x[:, 0] > 2) ^ (x[:, 1] > 2), x[:, 2] > 2], 1).astype(
        int
    )  # exclusive or, and one that is linear
    validation = np.arange(1500) % 5 == 0
    line = wrong_squares(fit_linear(x, y, validation, n_classes=2), x, y)[validation].mean(0)
    bent = fit_mlp(x, y, validation, n_classes=2, hidden=32, epochs=60, learning_rate=1e-2)
    curve = wrong_squares(bent, x, y)[validation].mean(0)
    assert line[0] > 0.35 and line[1] < 0.05 and curve.max() < 0.1
    again = fit_mlp(x, y, validation, n_classes=2, hidden=32, epochs=60, learning_rate=1e-2)
    assert torch.equal(bent.weight, again.weight)


def probes_of(model, kind=LinearSquares, n_squares=4):
    return {
        s: LinearSquares(drawn(n_squares, 3, model.d_model, seed=i), drawn(n_squares, 3))
        for i, s in enumerate(SITES)
    }


def plainly(model, prompt, probes, labels, flipped, edit):
    """One prompt at a time with hooks on the blocks themselves."""
    handles = []
    for site, probe in probes.items():

        def hook(_m, _a, output, probe=probe):
            hidden = output if torch.is_tensor(output) else output[0]
            new = hidden.clone()
            new[:, -1] = edit(
                probe, hidden[:, -1], torch.from_numpy(labels)[None], torch.from_numpy(flipped)[None]
            ).x
            return new if torch.is_tensor(output) else (new, *output[1:])

        handles.append(model.block(int(site.split(".")[1])).register_forward_hook(hook))
    try:
        with torch.no_grad():
            return model.hf(input_ids=torch.tensor([model.encode(prompt)])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def states(n=3, n_squares=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (n, n_squares))
    flipped = np.zeros((n, n_squares), dtype=bool)
    flipped[np.arange(n), rng.integers(0, n_squares, n)] = True
    return labels, flipped


@pytest.mark.parametrize("edit", [turn, partial(optimise, steps=30)])
def test_a_state_is_written_as_hooks_on_the_blocks_would_one_prompt_at_a_time(model, edit):
    labels, flipped = states()
    probes = probes_of(model)
    out = rewrite(model, PROMPTS, probes, labels, flipped, edit=edit, tokens_per_batch=11)
    for i, prompt in enumerate(PROMPTS):
        expected = plainly(model, prompt, probes, labels[i], flipped[i], edit)
        assert torch.allclose(out.logits[i], expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    assert set(out.norm) == set(SITES) and all((n >= 0).all() for n in out.norm.values())


def test_several_states_of_one_prompt_are_rows_and_the_control_has_their_norms(llama):
    labels, flipped = states(5)
    of_row = np.array([0, 2, 1, 1, 0])
    out = rewrite(llama, PROMPTS, probes_of(llama), labels, flipped, edit=turn, of_row=of_row)
    for row, prompt in enumerate(of_row):
        alone = rewrite(llama, [PROMPTS[prompt]], probes_of(llama), labels[[row]], flipped[[row]], edit=turn)
        assert torch.allclose(alone.logits[0], out.logits[row], atol=1e-3)
        assert float(alone.norm[SITES[1]][0]) == pytest.approx(float(out.norm[SITES[1]][row]), rel=1e-3)
    one = {SITES[1]: out.norm[SITES[1]]}
    seen = []
    with llama.hooks(read=SITES[1]) as session:
        llama.logits(PROMPTS[1])
    before = session[SITES[1]][0, -1]
    hook = llama.block(2).register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    logits = push(llama, PROMPTS, one, seed=3, of_row=of_row)
    hook.remove()
    assert torch.equal(logits, push(llama, PROMPTS, one, seed=3, of_row=of_row))
    assert not torch.equal(logits, push(llama, PROMPTS, one, seed=4, of_row=of_row))
    moved = torch.cat([x[:, -1] for x in seen if x.shape[1] == len(llama.encode(PROMPTS[1]))])
    lengths = (moved - before).norm(dim=1)
    for row in (2, 3):
        assert (lengths - one[SITES[1]][row]).abs().min() < 1e-3


def test_saliency_is_the_fall_of_the_probability_square_by_square(llama):
    boards = np.random.default_rng(0).integers(0, 3, (2, 4))
    boards[0] = [0, 1, 2, 1]
    found = saliency_map(llama, PROMPTS[:2], probes_of(llama), boards, edit=turn, n_random=2)
    data = found.data
    assert data["saliency"].dims == ("prompt", "row", "col") and data["saliency"].shape == (2, 2, 2)
    for i, prompt in enumerate(PROMPTS[:2]):
        p = llama.logits(prompt)[0, -1].softmax(-1)
        move = int(p.argmax())
        assert data["probability"][i] == pytest.approx(float(p[move]), abs=1e-4)
        for square in range(4):
            value = float(data["saliency"][i, square // 2, square % 2])
            if boards[i, square] == 0:
                assert np.isnan(value)
                continue
            wanted, flipped = boards[i].copy(), np.arange(4) == square
            wanted[square] = 3 - wanted[square]
            after = plainly(llama, prompt, probes_of(llama), wanted, flipped, turn).softmax(-1)[move]
            assert value == pytest.approx(float(p[move] - after), abs=1e-3)
    everything = saliency_map(
        llama, PROMPTS[:1], probes_of(llama), boards[:1], edit=turn, empty=1, moves=["w5"], n_random=1
    )
    assert (
        np.isfinite(everything.data["saliency"]).all()
        and str(everything.data["move"].values[0]).strip() == "w5"
    )


X, Y = planted(60)
HALF = np.arange(60) < 30


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda m: fit_linear(X, Y, HALF, n_classes=2), DataError, "Labels go from 0 to 2"),
        (lambda m: fit_linear(X, Y[:9], HALF, n_classes=3), DataError, "Expected .row, d."),
        (lambda m: fit_linear(X, Y, HALF | True, n_classes=3), DataError, "boolean mask"),
        (lambda m: fit_linear(X, Y, HALF, n_classes=3, penalties=[0.0]), DataError, "above 0"),
        (lambda m: fit_linear(X * torch.nan, Y, HALF, n_classes=3), DataError, "NaN"),
        (lambda m: fit_mlp(X, Y * 0.5, HALF, n_classes=3), DataError, "class numbers"),
        (lambda m: rewrite(m, PROMPTS, {}, *states()), DataError, "No probes"),
        (lambda m: rewrite(m, PROMPTS, probes_of(m), *states(2)), DataError, "2 states for 3 rows"),
        (
            lambda m: rewrite(m, PROMPTS, probes_of(m), *states(), of_row=np.array([0, 1, 7])),
            DataError,
            "prompts 0 to 7",
        ),
        (lambda m: rewrite(m, PROMPTS, {"blocks.9.hook_resid_post": turn}, *states()), SiteError, "blocks.9"),
        (lambda m: rewrite(m, PROMPTS, probes_of(m), *states(), position=99), PositionError, "outside"),
        (
            lambda m: rewrite(m, PROMPTS, probes_of(m), *states(3, 7), edit=turn),
            DataError,
            "must be .row, square.",
        ),
        (
            lambda m: saliency_map(m, PROMPTS, probes_of(m), np.zeros((2, 4), int)),
            DataError,
            "one square board",
        ),
        (lambda m: saliency_map(m, PROMPTS, probes_of(m), np.zeros((3, 4), int)), DataError, "No square can"),
        (
            lambda m: saliency_map(m, PROMPTS, probes_of(m), np.ones((3, 4), int), moves=["w5"]),
            DataError,
            "1 moves",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(llama, ask, kind, message):
    with pytest.raises(kind, match=message):
        ask(llama)


def sweep_of(x, y, groups, **more):
    from probes.causal.board_sweep import board_sweep

    position = np.arange(len(x)) % 4
    return board_sweep(
        {"a": x},
        {"state": y},
        groups,
        position,
        n_classes=3,
        settings={"linear": {"penalties": (1e-2,)}},
        **more,
    )


def test_groups_never_straddle_the_split_and_shuffled_boards_stay_in_their_part():
    from probes.causal.board_sweep import shuffle_boards, split_groups

    rng = np.random.default_rng(0)
    groups, position = rng.integers(0, 30, 400), rng.integers(0, 6, 400)
    test, validation = split_groups(groups, seed=3)
    parts = [set(groups[test]), set(groups[validation]), set(groups[~test & ~validation])]
    assert all(parts) and sum(map(len, parts)) == len(set(groups)) == len(set.union(*parts))
    partner = shuffle_boards(groups, position, test, seed=3)
    assert np.array_equal(np.sort(partner), np.arange(400))  # every board is used once
    assert np.array_equal(position[partner], position) and np.array_equal(test[partner], test)
    assert (groups[partner] != groups).mean() > 0.9


def test_a_board_that_is_there_is_read_and_noise_is_not():
    x, y = planted(800, n_squares=4)
    groups = np.arange(800) // 4
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=tuple(x.shape))).float()
    result, probes = sweep_of(x, y, groups, untrained={"a": noise}, kinds=("linear", "mlp"))
    data = result.data.sel(site="a", labels="state")
    floor = float(data["position_error"].mean())
    error = {str(k): float(data["mean_error"].sel(kind=k)) for k in data["kind"].values}
    low = {str(k): float(data["mean_error_low"].sel(kind=k)) for k in data["kind"].values}
    assert error["linear"] < floor / 2 and error["mlp"] < floor
    for control in ("shuffled", "untrained"):
        assert abs(error[control] - floor) < 0.1 and low[control] > error["linear"]
    assert np.allclose(data["mean_error"], data["error"].mean("square"))
    again = sweep_of(x, y, groups, untrained={"a": noise}, kinds=("linear", "mlp"))[0]
    assert again.data.identical(result.data) and ("a", "state", "linear") in probes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kinds": ("tree",)}, "linear, mlp"),
        ({"untrained": None, "groups": np.zeros(60, int)}, "1 groups are too few"),
    ],
)
def test_a_sweep_that_cannot_be_gets_one_clear_error(more, message):
    groups = more.pop("groups", np.arange(60) // 2)
    with pytest.raises(DataError, match=message):
        sweep_of(X, Y, groups, **more)
    with pytest.raises(DataError, match="one entry per row"):
        sweep_of(X, Y, np.arange(59))
