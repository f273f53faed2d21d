"""Methods against closed forms, and a comparison with an effect that was planted and one that was not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from sklearn.linear_model import LogisticRegression

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.results import Result
from workbench.steering.measure import Dose, SteeringTask, compare_methods, kl_of_doses
from workbench.steering.measure.methods import (
    METHODS,
    Examples,
    mean_difference,
    pca_of_differences,
    probe_weight,
)
from workbench.steering.measure.shipped_tasks import SHIPPED, shipped_task

SITES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def a_task(name: str = "planted", scorer=None, **more) -> SteeringTask:
    return SteeringTask(
        name,
        positive=[[5, 6], [7, 8, 9], [10, 11], [12, 40]],
        negative=[[13, 14], [15, 16], [17, 18], [19, 41]],
        selection=[[20 + i, 21 + i, 60] for i in range(4)],
        test=[[70 + i, 71 + i, 61] for i in range(12)],
        scorer=scorer or (lambda texts: [text.split().count("John") for text in texts]),
        max_new_tokens=6,
        **more,
    )


def towards_one_token(model, examples, site) -> Direction:
    """The unembedding row of `John`: what must make the model say it."""
    row = model.hf.get_output_embeddings().weight[model.token_id("John")].detach()
    return Direction.from_vector(row, site=site, name="John", source="test")


@pytest.fixture(scope="module")
def compared() -> tuple:
    model = tiny_model("llama")
    with torch.no_grad():  # a model that can be sure of something
        model.hf.get_output_embeddings().weight.mul_(6.0)
    methods = {"planted": towards_one_token, "mean difference": mean_difference}
    task = a_task(in_context=lambda p: [50, *p])
    sites = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    return model, task, compare_methods(model, [task], methods, sites=sites, target_kl=1.5, n_random=2)


def test_methods_are_their_formulas(llama):
    examples = Examples(tuple(a_task().positive), tuple(a_task().negative))
    site = SITES[1]
    positive, negative = (
        torch.stack([wb.collect(llama, p, site).rows(site)[0] for p in prompts]).double().numpy()
        for prompts in (examples.positive, examples.negative)
    )
    d = positive - negative
    found = mean_difference(llama, examples, site)
    assert np.allclose(found.vector * found.scale, d.mean(0), atol=1e-4)
    _, vectors = np.linalg.eigh(d.T @ d)
    first = vectors[:, -1] * np.sign(vectors[:, -1] @ d.mean(0))
    assert np.allclose(pca_of_differences(llama, examples, site).vector, first, atol=1e-4)
    x = np.concatenate([positive, negative])
    z = (x - x.mean(0)) / x.std(0)
    weight = LogisticRegression(C=0.01, max_iter=5000).fit(z, [1] * 4 + [0] * 4).coef_[0] / x.std(0)
    probe = probe_weight(llama, examples, site)
    assert np.allclose(probe.vector, weight / np.linalg.norm(weight), atol=1e-3)
    assert all((d.mean(0) @ METHODS[name](llama, examples, site).vector.numpy()) > 0 for name in METHODS)


def test_a_planted_effect_beats_random_at_equal_kl(compared):
    model, task, result = compared
    at = result.data.sel({"task": "planted", "method": "planted"})
    assert bool(at["beats_random"]) and float(at["mean_change"]) > 1 and int(at["n"]) == 12
    assert float(at["change_low"]) <= float(at["mean_change"]) <= float(at["change_high"])
    score = at["score"].values
    site, strength = str(at["site"].values), float(at["strength"])
    direction = towards_one_token(model, None, site)
    said = wb.steering.generate(model, list(task.test), direction, strength, max_new_tokens=6)
    assert score.tolist() == [t.split().count("John") for t in said.texts]
    assert at["text"].values.tolist() == list(said.texts)


def test_strengths_are_chosen_on_other_prompts_at_the_target(compared):
    model, task, result = compared
    data = result.data
    said = wb.steering.generate(model, list(task.selection), max_new_tokens=6)
    for name, method in (("planted", towards_one_token), ("mean difference", mean_difference)):
        at = data.sel({"task": "planted", "method": name})
        site = str(at["site"].values)
        direction = method(model, task.examples, site)
        kl = kl_of_doses(model, said.prompts, said.tokens, [Dose(direction, float(at["strength"]))])
        assert np.isclose(kl.along.mean(), 1.5, rtol=0.051)
        chosen = data["selection_score"].sel(chosen_method=name)
        assert site == str(data["candidate"].values[int(np.nanargmax(chosen.isel(task=0).values))])
        plain = wb.steering.generate(model, list(task.test), max_new_tokens=6)
        there = kl_of_doses(model, plain.prompts, plain.tokens, [Dose(direction, float(at["strength"]))])
        assert np.isclose(float(at["kl_along"]), there.along.mean(), atol=1e-3)


def test_a_method_that_is_random_is_not_above_random():
    """The planted null: its interval against other random directions reaches 0."""
    model = tiny_model("llama")

    def null(model, examples, site):
        return Direction.random(mean_difference(model, examples, site), seed=77)

    task = a_task(scorer=lambda texts: [text.count("e") for text in texts])
    found = compare_methods(model, [task], {"null": null}, sites=SITES[1:], target_kl=0.1, n_random=4)
    at = found.data.sel({"task": "planted", "method": "null"})
    assert float(at["against_random_low"]) <= 0 <= float(at["against_random_high"])
    assert not bool(at["beats_random"])


def test_the_result_has_baselines_and_comes_back_from_disk(compared, tmp_path):
    data = compared[2].data
    assert data["method"].values.tolist() == [
        "planted",
        "mean difference",
        "random direction",
        "in-context prompt",
    ]
    random = data.sel({"method": "random direction"})
    assert np.isfinite(float(random["mean_change"].item())) and np.isnan(random["mean_against_random"].item())
    assert float(data.sel({"method": "in-context prompt"})["kl_along"].item()) > 0
    loaded = Result.load(compared[2].save(tmp_path / "methods.zarr"))
    assert loaded.data.identical(data) and loaded.summary == compared[2].summary


def test_a_target_out_of_reach_leaves_an_empty_row_with_its_reason(llama):
    found = compare_methods(
        llama, [a_task()], {"m": mean_difference}, sites=SITES[:1], target_kl=1e4, n_random=1
    )
    row = found.data.isel(task=0).sel({"method": "m"})
    assert np.isnan(float(row["mean_change"])) and int(row["n"]) == 0
    assert "target not reached" in str(row["note"].values) and "no method reached" in found.summary["planted"]


def test_bad_tasks_and_methods_are_errors(llama):
    with pytest.raises(DataError, match="must not be what was chosen on"):
        SteeringTask("t", [[5, 6]], [[7]], [[8], [9]], [[8], [10]], len)
    with pytest.raises(DataError, match="pairs need as many"):
        SteeringTask("t", [[5, 6]], [], [[8], [9]], [[11], [10]], len)
    with pytest.raises(DataError, match="at least two test"):
        SteeringTask("t", [[5, 6]], [[7]], [[8], [9]], [[11]], len)
    with pytest.raises(DataError, match="must give a Direction"):
        compare_methods(llama, [a_task()], {"m": lambda *a: 3}, sites=SITES)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="baseline"):
        compare_methods(llama, [a_task()], {"random direction": mean_difference}, sites=SITES)
    with pytest.raises(DataError, match="called the same"):
        compare_methods(llama, [a_task(), a_task()], sites=SITES)
    with pytest.raises(DataError, match="Did you mean"):
        shipped_task(llama, "sentimnt")


@pytest.mark.real_model
def test_shipped_tasks_share_no_prompt_and_their_scorers_work(smollm2):
    for name in SHIPPED:
        task = shipped_task(smollm2, name, n_train=8, n_selection=2, n_test=3)
        assert len(task.test) == 3 and task.scorer_note
    sentiment = shipped_task(smollm2, "sentiment").scorer
    assert sentiment.auc_low > 0.75 and abs(sentiment.shuffled_auc - 0.5) < 0.2
    scores = sentiment(["I loved every minute of it.", "It was a complete waste of money."])
    assert scores[0] > scores[1]


def test_against_random_is_the_score_less_that_of_the_random_directions(compared):
    model = compared[0]
    task = a_task(scorer=lambda texts: [len(text) for text in texts])
    one = {"planted": towards_one_token}
    data = compare_methods(model, [task], one, sites=SITES[1:], target_kl=1.5, n_random=2).data.isel(task=0)
    score = {name: data["score"].sel({"method": name}).values for name in ("planted", "random direction")}
    against = data["against_random"].sel({"method": "planted"}).values
    assert np.allclose(against, score["planted"] - score["random direction"])
    assert not np.allclose(against, data["change"].sel({"method": "planted"}).values)
