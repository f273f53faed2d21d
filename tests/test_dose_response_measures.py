"""Dose–response: every variable against a plain hooked run of one prompt, one strength, one direction at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_steering_measure_kl import PROMPTS, a_direction, brute_kl, brute_logits

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError, MetricError, PositionError
from workbench.patching.metrics import LogProbability
from workbench.results import Result
from workbench.steering.measure import Dose, as_scorer, measure_texts
from workbench.steering.rules import From

STRENGTHS = [-30.0, -6.0, 6.0, 30.0]


@pytest.fixture(scope="module")
def setting():
    from conftest import tiny_model

    model = tiny_model("llama")
    direction = a_direction(model)
    letters = as_scorer(lambda texts: [len(t) for t in texts], "letters")
    result = wb.steering.dose_response(
        model, PROMPTS, direction, STRENGTHS, wb.LogitDifference(7, 9),
        n_random=2, show_text=6, scorers=[letters], targets=["Mary went"], seed=3,
    )  # fmt: skip
    everyone = [direction, *(Direction.random(direction, seed=3 + i) for i in range(2))]
    return model, everyone, result


def test_scores_and_kl_are_those_of_hooked_forwards(setting):
    model, everyone, result = setting
    data = result.data
    plain = wb.steering.generate(model, PROMPTS, max_new_tokens=6)
    for s in STRENGTHS:
        score, last, along = [], [], []
        for one in everyone:
            logits = [brute_logits(model, p, Dose(one, s))[-1] for p in PROMPTS]
            score.append([x[7] - x[9] for x in logits])
            each = [brute_kl(model, p, c, Dose(one, s)) for p, c in zip(PROMPTS, plain.tokens, strict=True)]
            last.append([x[0] for x in each])
            along.append([x.mean() for x in each])
        at = data.sel(strength=s)
        for name, values in (("score", score), ("kl", last), ("kl_along", along)):
            values = np.array(values)
            assert np.allclose(at[name].sel(direction="steered"), values[0], atol=1e-3), name
            assert np.allclose(at[name].sel(direction="random"), values[1:].mean(0), atol=1e-3), name
        assert np.allclose(at["random_score"], np.array(score)[1:].mean(1), atol=1e-3)
        assert np.allclose(at["difference"], np.mean(score[0] - np.mean(score[1:], 0)), atol=1e-3)


def test_texts_and_their_measures_are_those_of_generating_alone(setting):
    model, everyone, result = setting
    data = result.data
    for i, prompt in enumerate(PROMPTS):
        for s in (-30.0, 6.0):
            alone = wb.steering.generate(model, prompt, everyone[0], s, max_new_tokens=6)
            cell = data.sel(direction="steered", strength=s, prompt=i)
            assert str(cell["text"].values) == alone.texts[0]
            measures = measure_texts(model, alone.prompts, alone.tokens)
            for name, (value,) in measures.items():
                assert np.isclose(cell["value"].sel(measure=name), value, atol=1e-4, equal_nan=True), name
            assert float(cell["value"].sel(measure="letters")) == len(alone.texts[0])
    at = data["value"].sel(measure="cross_entropy", strength=6.0, direction="random")
    randoms = [wb.steering.generate(model, PROMPTS, d, 6.0, max_new_tokens=6) for d in everyone[1:]]
    expected = [measure_texts(model, r.prompts, r.tokens)["cross_entropy"] for r in randoms]
    assert np.allclose(at, np.mean(expected, 0), atol=1e-4)


def test_strength_zero_is_the_unsteered_model_for_all(setting):
    model, _, result = setting
    zero = result.data.sel(strength=0.0)
    plain = wb.steering.generate(model, PROMPTS, max_new_tokens=6)
    assert zero["text"].values.tolist() == [list(plain.texts)] * 2
    assert (zero["kl"] == 0).all() and (zero["kl_along"] == 0).all() and float(zero["difference"]) == 0


def test_a_planted_null_is_within_its_controls():
    """A random direction taken for the real one: its difference to other random ones has intervals around zero."""
    from conftest import tiny_model

    model = tiny_model("llama")
    prompts = [[i, i + 1, 60 + i] for i in range(5, 45)]
    outside = 0
    for seed in range(8):
        null = Direction.random(a_direction(model), seed=1000 + seed)
        signs = [1 if np.random.default_rng(seed).random() < 0.5 else -1]
        found = wb.steering.dose_response(
            model, prompts, null, [0.02 * signs[0]], wb.LogitDifference(7, 9), n_random=8, seed=seed
        ).data
        at = found.isel(strength=int(np.argmax(np.abs(found["strength"].values))))
        spread = at["random_score"] - float(found["mean_score"].sel(direction="random", strength=0.0))
        moved = abs(
            float(
                at["mean_score"].sel(direction="steered")
                - found["mean_score"].sel(direction="steered", strength=0.0)
            )
        )
        outside += moved > float(np.abs(spread).max())
    assert outside <= 3  # one in nine expected


def test_measures_carry_their_n_and_intervals_and_survive_the_disk(setting, tmp_path):
    data = setting[2].data
    assert (data["value_low"] <= data["mean_value"] + 1e-9).all() and (data["n_value"] <= 3).all()
    assert data["measure"].values.tolist()[:2] == ["cross_entropy", "repetition"]
    assert data["side"].values.tolist() == ["negative", "positive"] and "twice" not in data.attrs["quality"]
    saved = setting[2].save(tmp_path / "dose.zarr")
    assert Result.load(saved).data.identical(data)
    assert any(name.startswith("quality breaks") for name in setting[2].summary)


def test_targets_and_long_answers_are_teacher_forced(setting):
    model, everyone, result = setting
    ids = model.tokenizer("Mary went", add_special_tokens=False)["input_ids"]
    logs = brute_logits(model, [*PROMPTS[0], *ids], Dose(everyone[0], 30.0))
    expected = sum(logs[len(PROMPTS[0]) - 1 + t, x] for t, x in enumerate(ids))
    found = result.data["target_log_probability"].sel(direction="steered", strength=30.0, prompt=0)
    assert np.isclose(found.item(), expected, atol=1e-3)
    answer = wb.steering.dose_response(
        model, PROMPTS, everyone[0], [30.0], LogProbability("Mary went"), n_random=1
    )
    score = answer.data["score"].sel(direction="steered", strength=30.0, prompt=0)
    assert np.isclose(score.item(), expected, atol=1e-3)


def test_a_text_scorer_may_be_the_score(setting):
    model, everyone, result = setting
    letters = as_scorer(lambda texts: [len(t) for t in texts], "letters")
    found = wb.steering.dose_response(
        model, PROMPTS, everyone[0], STRENGTHS, letters, n_random=2, show_text=6, seed=3, tokens_per_batch=12
    )
    assert np.array_equal(found.data["score"], result.data["value"].sel(measure="letters"))
    assert found.data.attrs["metric"] == "letters" and found.data["score"].attrs["units"] == ""


def test_bad_requests_are_one_clear_error(setting):
    model, everyone, _ = setting
    metric = wb.LogitDifference(7, 9)
    with pytest.raises(DataError, match="not all finite"):
        wb.steering.dose_response(model, PROMPTS, everyone[0], [float("nan")], metric)
    with pytest.raises(DataError, match="at least one random direction"):
        wb.steering.dose_response(model, PROMPTS, everyone[0], [1.0], metric, n_random=0)
    with pytest.raises(DataError, match="Text scorers need texts"):
        wb.steering.dose_response(model, PROMPTS, everyone[0], [1.0], metric, scorers={"x": len})
    with pytest.raises(MetricError, match="no scorer"):
        wb.steering.dose_response(model, PROMPTS, everyone[0], [1.0], metric, scorers={"x": 3}, show_text=2)
    with pytest.raises(DataError, match="called the same"):
        wb.steering.dose_response(model, PROMPTS, everyone[0], [1.0], metric, scorers=[len, len], show_text=2)


def test_a_dose_from_a_text_on_is_that_of_a_hook_on_those_positions(setting):
    """Rules that look for something in each prompt: a plain hook adds the direction from that position on."""
    model, everyone, _ = setting
    direction, prompts = everyone[0], ["Mary went to the store", "John and Mary went", "Mary"]
    metric = wb.LogitDifference(7, 9)
    for where, first in ((From(text="Mary"), _first_with(model, prompts, "Mary")), (From(index=-1), None)):
        data = wb.steering.dose_response(
            model, prompts, direction, [8.0], metric, n_random=1, where=where
        ).data.sel(strength=8.0, direction="steered")
        for i, prompt in enumerate(prompts):
            ids = model.encode(prompt)
            start = len(ids) - 1 if first is None else first[i]

            def hook(_m, _a, out, start=start):
                whole = out if isinstance(out, torch.Tensor) else out[0]
                steered = torch.cat(
                    [whole[:, :start], whole[:, start:] + 8.0 * direction.vector.to(whole.dtype)], 1
                )
                return steered if isinstance(out, torch.Tensor) else (steered, *out[1:])

            handle = model.block(1).register_forward_hook(hook)
            with torch.no_grad():
                logits = model.hf(torch.tensor([ids])).logits[0, -1]
            handle.remove()
            assert float(data["score"][i]) == pytest.approx(float(logits[7] - logits[9]), abs=1e-4)
    assert json.loads(data.attrs["where"]) == {"from": -1}


def _first_with(model, prompts, text):
    """Number of tokens before the one in which the text begins, by decoding ever longer beginnings."""
    found = []
    for prompt in prompts:
        ids = model.encode(prompt)
        texts = [model.tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
        found.append(next(n for n, so_far in enumerate(texts) if text in so_far))
    return found


def test_a_rule_that_steers_nothing_is_refused(setting):
    model, everyone, _ = setting
    metric = wb.LogitDifference(7, 9)
    for rule, more, message in (
        ("generated", {}, "steers nothing that is measured here"),
        ("generated", {"show_text": 1}, "steers nothing that is measured here"),
        (From(index=40), {"show_text": 6}, "nothing would be steered"),
    ):
        with pytest.raises(PositionError, match=message):
            wb.steering.dose_response(model, PROMPTS, everyone[0], [4.0], metric, where=rule, **more)
    with pytest.raises(DataError, match="prompt 1.*does not occur|does not occur.*prompt 1|John"):
        wb.steering.dose_response(
            model, ["John went", "Mary went"], everyone[0], [4.0], metric, where=From(text="John")
        )
    with pytest.raises(PositionError, match="the only new one is not read again"):
        wb.steering.generate(model, PROMPTS, everyone[0], 4.0, where="generated", max_new_tokens=1)
    said = wb.steering.dose_response(
        model, PROMPTS, everyone[0], [40.0], metric, where="generated", show_text=4, n_random=1
    ).data.sel(direction="steered", strength=40.0)
    assert (said["kl"] == 0).all() and (said["kl_along"] > 0).all()
