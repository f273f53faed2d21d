"""The causal check: equal to plain hooked forwards one by one, nothing where nothing is planted, something where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from sklearn.linear_model import LogisticRegression

import workbench as wb
from probes.causal.move import causal_check
from probes.estimators import LogisticProbe
from workbench.directions import Direction
from workbench.errors import DataError, MetricError, PositionError
from workbench.patching.metrics import KLDivergence, LogProbability

SITE = "blocks.1.hook_resid_post"
PROMPTS = [
    "Mary went to the store",
    "John and Anna gave a drink to",
    "the capital of France is",
    "red blue green",
]
METRIC = wb.LogitDifference("w6", "w7")


def a_direction(seed=0, width=48, scale=0.7):
    return Direction.from_vector(
        torch.randn(width, generator=torch.Generator().manual_seed(seed)),
        site=SITE,
        scale=scale,
        name="planted",
    )


def plainly(model, prompt, vector, site=SITE, position=-1, amount=0.0, ablate=False):
    """One prompt, one hook on the block itself, nothing of ours but the tokens."""
    ids = torch.tensor([model.encode(prompt)])

    def hook(_module, _args, output):
        hidden = output if torch.is_tensor(output) else output[0]
        here = hidden[0, position].clone()
        hidden = hidden.clone()
        hidden[0, position] = here + amount * vector - (here @ vector if ablate else 0.0) * vector
        return hidden if torch.is_tensor(output) else (hidden, *output[1:])

    handle = model.block(int(site.split(".")[1])).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.hf(input_ids=ids).logits[0, -1]
    finally:
        handle.remove()


@pytest.mark.parametrize("position", [-1, 1])
def test_the_check_equals_plain_hooked_forwards_one_by_one(model, position):
    direction = a_direction()
    found = causal_check(
        model,
        PROMPTS,
        direction,
        METRIC,
        strengths=[-3, 2],
        position=position,
        n_random=2,
        seed=4,
        tokens_per_batch=23,
    ).data
    metric = METRIC.resolve(model)
    tol = {"rtol": 2e-3, "atol": 2e-3}
    for i, prompt in enumerate(PROMPTS):
        say = lambda vector, prompt=prompt, **more: float(  # noqa: E731
            metric(plainly(model, prompt, vector, position=position, **more)[None])
        )
        base = say(direction.vector)
        assert np.isclose(found["base"][i], base, **tol)
        for s in (-3, 2):
            here = found["change"].sel(strength=s, prompt=i)
            assert np.isclose(
                here.sel(direction="probe"), say(direction.vector, amount=s * 0.7) - base, **tol
            )
            random = [Direction.random(direction, seed=4 + r).vector for r in (0, 1)]
            each = [say(v, amount=s * 0.7) - base for v in random]
            assert np.isclose(here.sel(direction="random"), np.mean(each), **tol)
    gone = [
        float(metric(plainly(model, p, direction.vector, position=position, ablate=True)[None]))
        for p in PROMPTS
    ]
    assert np.isclose(found["ablation"].sel(direction="probe"), np.mean(gone - found["base"].values), **tol)
    assert hooks_left(model) == 0


def test_slope_intervals_and_summary_follow_from_the_changes(llama):
    result = causal_check(llama, PROMPTS, a_direction(), METRIC, n_random=5)
    data, s = result.data, result.data["strength"].values
    slope = (data["change"].values * s[:, None]).sum(1) / (s**2).sum()  # [direction, prompt]
    assert np.allclose(data["slope"], slope.mean(-1)) and (data["change"].sel(strength=0) == 0).all()
    assert np.isclose(result.summary["slope"]["value"], slope[0].mean())
    assert np.allclose(data["random_change"].mean("random"), data["mean_change"].sel(direction="random"))
    assert np.allclose(data["difference"], data["mean_change"][0] - data["mean_change"][1])
    assert (data["difference_low"] <= data["difference"]).all() and (
        data["difference"] <= data["difference_high"]
    ).all()
    as_large = int((np.abs(data["random_slope"]) >= abs(slope[0].mean())).sum())
    assert result.summary["p_value"] == (1 + as_large) / 6
    assert sorted(data.dims) == ["direction", "prompt", "random", "strength"]


def test_a_probe_moves_like_its_direction_and_says_how_the_metric_lies_to_its_classes(llama):
    prompts = [
        f"{a} {b}" for a in ("Mary", "John", "Anna", "Tom") for b in ("went", "gave", "is", "was", "to")
    ]
    rows = wb.collect(llama, prompts, SITE)[SITE][:, 0]
    base = METRIC.resolve(llama)(llama.logits(prompts)[:, -1])
    labels = (base > base.median()).numpy()
    for probe in (LogisticRegression(max_iter=1000), LogisticProbe()):
        probe = probe.fit(rows.double().numpy(), labels)
        found = causal_check(llama, prompts, probe, METRIC, site=SITE, strengths=[1], n_random=2)
        v = torch.from_numpy(probe.coef_[0] / np.linalg.norm(probe.coef_[0]))
        scale = float((rows.double() @ v).std(correction=0))
        assert np.isclose(found.summary["scale"], scale)
        same = Direction.from_vector(v, site=SITE, scale=scale)
        again = causal_check(llama, prompts, same, METRIC, strengths=[1], n_random=2)
        assert np.allclose(found.data["change"], again.data["change"], atol=1e-4)
        classes = found.summary["metric_by_probe_class"]
        called = probe.predict(rows.double().numpy())
        assert classes["True"]["n"] == called.sum()
        assert np.isclose(classes["True"]["mean"], base[called].mean(), atol=1e-4)
        assert found.summary["correlation"] > 0


def test_what_the_metric_reads_moves_it_and_exactly_as_far():
    """At the last norm's output the logits are linear: the slope is known, and the random mean is near zero."""
    model = tiny_model("llama")
    site = "ln_final.hook_out"
    unembed = model.hf.get_output_embeddings().weight.detach().float()
    a, b = model.token_id("w6"), model.token_id("w7")
    difference = unembed[a] - unembed[b]
    direction = Direction.from_vector(difference, site=site, scale=0.5)
    summary = causal_check(model, PROMPTS, direction, METRIC, n_random=40).summary
    assert np.isclose(summary["slope"]["value"], 0.5 * float(difference.norm()), rtol=1e-4)
    assert summary["excludes_zero"] and summary["p_value"] == 1 / 41
    spread = 0.5 * float(difference.norm()) / 48**0.5  # of a random unit vector's product with it
    assert abs(summary["random_slope"]) < 4 * spread / 40**0.5
    assert 0.6 * spread < summary["random_slope_sd"] < 1.5 * spread


def test_a_direction_the_metric_cannot_see_is_not_called_causal():
    """Planted null: orthogonal to what the logits read, at a site after which all is linear."""
    model = tiny_model("llama")
    unembed = model.hf.get_output_embeddings().weight.detach().float()
    seen = unembed[model.token_id("w6")] - unembed[model.token_id("w7")]
    drawn = torch.randn(48, generator=torch.Generator().manual_seed(0))
    blind = drawn - (drawn @ seen) / (seen @ seen) * seen
    direction = Direction.from_vector(blind, site="ln_final.hook_out", scale=0.5)
    summary = causal_check(model, PROMPTS, direction, METRIC, n_random=30).summary
    assert (
        abs(summary["slope"]["value"]) < 1e-4 and not summary["excludes_zero"] and summary["p_value"] == 1.0
    )


def test_a_metric_for_each_prompt_positions_for_each_and_a_comparison_with_the_unedited_run(llama):
    metrics = [METRIC, wb.LogitDifference("w8", "w9"), METRIC, KLDivergence()]
    where = [[0], [1, 2], [-1], [0, 2]]
    whole = causal_check(
        llama, PROMPTS, a_direction(), metrics, position=where, strengths=[2], n_random=2
    ).data
    for i, prompt in enumerate(PROMPTS):
        alone = causal_check(
            llama, [prompt], a_direction(), metrics[i], position=[where[i]], strengths=[2], n_random=2
        )
        assert np.allclose(alone.data["change"][..., 0], whole["change"][..., i], atol=1e-4)
        assert alone.summary["slope"]["low"] is None and not alone.summary["excludes_zero"]
    assert whole["base"][3] == pytest.approx(0, abs=1e-6) and (whole["change"][:, :, 3] >= -1e-6).all()


def test_mean_ablation_keeps_the_mean_and_natural_directions_lie_where_activations_vary(llama):
    rows = wb.collect(llama, PROMPTS, SITE)[SITE][:, 0]
    centred = rows - rows.mean(0)
    seen = centred @ a_direction().vector
    found = causal_check(llama, PROMPTS, a_direction(), METRIC, ablate="mean", control="natural", n_random=3)
    metric = METRIC.resolve(llama)
    moved = [
        float(metric(plainly(llama, prompt, a_direction().vector, amount=-float(along))[None]))
        for prompt, along in zip(PROMPTS, seen, strict=True)
    ]
    expected = np.mean(moved - found.data["base"].values)
    assert np.isclose(found.data["ablation"].sel(direction="probe"), expected, atol=1e-3)
    from probes.causal.direction import controls

    drawn = controls(a_direction(), rows, control="natural", n=3, seed=0)
    inside = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    assert all(float((inside @ d.vector).norm()) == pytest.approx(1, abs=1e-4) for d in drawn)


def check(llama, probe=None, metric=METRIC, prompts=None, **more):
    return causal_check(llama, prompts or PROMPTS, a_direction() if probe is None else probe, metric, **more)


def multi(width=48):
    rng = np.random.default_rng(0)
    return LogisticRegression().fit(rng.normal(size=(30, width)), np.arange(30) % 3)


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda m: check(m, strengths=[0]), DataError, "No strength other than 0"),
        (lambda m: check(m, strengths=[np.inf]), DataError, "not all finite"),
        (lambda m: check(m, n_random=1), DataError, "At least 2 random"),
        (lambda m: check(m, control="null"), DataError, "no control 'null'"),
        (lambda m: check(m, ablate="noise"), DataError, "'zero' or 'mean'"),
        (lambda m: check(m, a_direction(width=32)), DataError, "width 32"),
        (lambda m: check(m, LogisticRegression(), site=SITE), DataError, "not been fitted"),
        (lambda m: check(m, "a probe", site=SITE), DataError, "str is no linear probe"),
        (lambda m: check(m, multi()), DataError, "does not know its site"),
        (lambda m: check(m, multi(), site=SITE), DataError, "classes=.from, to."),
        (lambda m: check(m, multi(), site=SITE, classes=(0, 7)), DataError, "not two of"),
        (lambda m: check(m, multi(20), site=SITE, classes=(0, 1)), DataError, "20 weights"),
        (lambda m: check(m, site="blocks.0.hook_resid_post"), DataError, "leave `site` out"),
        (lambda m: check(m, multi(), site="blocks.*.hook_resid_post"), DataError, "means 3 sites"),
        (
            lambda m: check(m, multi(), site="blocks.0.attn.hook_pattern"),
            DataError,
            "attention over positions",
        ),
        (lambda m: check(m, position=9), PositionError, "outside the prompt"),
        (lambda m: check(m, position=[[0]]), PositionError, "1 lists of positions"),
        (lambda m: causal_check(m, [], a_direction(), METRIC), DataError, "No prompts"),
        (lambda m: check(m, metric=[METRIC]), MetricError, "1 metrics"),
        (lambda m: check(m, metric=LogProbability("w6 w7")), MetricError, "several tokens"),
        (
            lambda m: check(m, Direction.from_vector(torch.ones(48), site=SITE, model_fingerprint="0")),
            DataError,
            "fingerprint",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(llama, ask, kind, message):
    with pytest.raises(kind, match=message):
        ask(llama)
