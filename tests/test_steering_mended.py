"""What steering got wrong once: layers and their vectors, models and their activations, pairs, maxima, defaults."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from conftest import tiny_model

import workbench as wb
from workbench.directions import Direction, DirectionSet
from workbench.errors import ModelError
from workbench.model.language_model import LanguageModel
from workbench.steering import From, Operation, Ramp, Steering, dose_response, generate, sweep_strengths
from workbench.steering.extract import ablation_direction, in_context_vector, z_result, z_steer
from workbench.steering.extract.mean_difference import difference_of_means
from workbench.steering.extract.quality import held_out
from workbench.steering.measure import compare_methods, methods
from workbench.steering.measure.methods import Examples
from workbench.steering.measure.tasks import SteeringTask
from workbench.steering.rules import as_rule
from workbench.steering.specs.make import MakeSpec
from workbench.steering.texts import steered_texts

LLAMA = tiny_model("llama")
SITE = "blocks.1.hook_resid_post"
PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]
POSITIVE = [[5, 6, i] for i in range(20, 32)]
NEGATIVE = [[9, 10, i] for i in range(20, 32)]
LENIENT = {"kl_at_most": 1e9, "induced_at_least": -1e9, "n_random": 1}
METRIC = wb.LogitDifference(5, 6)


def direction(seed=0, site=SITE, **more) -> Direction:
    drawn = torch.randn(48, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(drawn, site=site, name=f"d{seed}", **more)


def ablation(layers) -> SimpleNamespace:
    found = ablation_direction(LLAMA, POSITIVE, NEGATIVE, METRIC, layers=layers, **LENIENT)
    norms = dict(
        zip(found.result.data["layer"].values.tolist(), found.result.data["norm"].values[:, 0], strict=True)
    )
    return SimpleNamespace(direction=found.direction, norms=norms, layer=found.result.summary["layer"])


def test_every_layer_of_an_ablation_search_has_its_own_vector():
    alone = {layer: ablation([layer]).norms[layer] for layer in (0, 2)}
    for layers in ([-1, 0], [0, 2], np.array([2, 0]), [-1, 2, 0]):
        found = ablation(layers)
        assert found.norms == pytest.approx(alone)
        assert found.direction.site == f"blocks.{found.layer}.hook_resid_post"
        assert found.direction.scale == pytest.approx(alone[found.layer])


def test_layers_of_a_stacked_vector_may_be_negative_or_numpy():
    usual = in_context_vector(LLAMA, POSITIVE, NEGATIVE, layers=[0, 2], shuffles=0)
    for layers in ([-1, 0], np.array([0, 2])):
        found = in_context_vector(LLAMA, POSITIVE, NEGATIVE, layers=layers, shuffles=0)
        assert found.sites == usual.sites
        assert all(torch.equal(a.vector, b.vector) for a, b in zip(found, usual, strict=True))


def test_an_ablation_search_takes_a_function_of_the_logits():
    own = ablation_direction(LLAMA, POSITIVE, NEGATIVE, lambda x: x[:, 5] - x[:, 6], layers=[1], **LENIENT)
    metric = ablation_direction(LLAMA, POSITIVE, NEGATIVE, METRIC, layers=[1], **LENIENT)
    assert np.allclose(own.result.data["ablated"], metric.result.data["ablated"])


def test_examples_are_read_on_each_model():
    other = LanguageModel(tiny.hf_model("llama", seed=7), tiny.tokenizer(), name="other")
    wide = LanguageModel(tiny.hf_model("llama", hidden_size=64), tiny.tokenizer(), name="wide")

    def examples() -> Examples:
        return Examples(tuple(POSITIVE), tuple(NEGATIVE))

    shared = examples()
    methods.mean_difference(LLAMA, shared, SITE)
    for model in (other, wide):
        again, fresh = (methods.mean_difference(model, e, SITE) for e in (shared, examples()))
        assert torch.equal(again.vector, fresh.vector) and again.width == model.d_model


def labelled(path, groups: list[tuple[str, str | None, str | None]]) -> str:
    """A set with (id, group, counterpart) of each: the first half negative."""
    half = len(groups) // 2
    rows = [
        {"id": i, "text": f"text {i}", "label": "negative" if n < half else "positive"}
        | {k: v for k, v in (("group", group), ("counterpart", other)) if v is not None}
        for n, (i, group, other) in enumerate(groups)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_field_that_both_sides_have_is_not_taken_for_ids(tmp_path):
    negatives = [(str(i), str((i + 1) % 4), None) for i in range(4)]
    positives = [(str(4 + i), str((i + 1) % 4), None) for i in range(4)]
    spec = MakeSpec(dataset=labelled(tmp_path / "g.jsonl", [*negatives, *positives]), pair_by="group")
    pairs = set(zip(*spec.sides(), strict=True))
    assert pairs == {(f"text {4 + i}", f"text {i}") for i in range(4)}


@pytest.mark.parametrize("back", [[None] * 4, ["x"] * 4, [str(4 + i) for i in range(4)]])
def test_a_field_of_ids_pairs_whatever_the_other_side_has_in_it(tmp_path, back):
    negatives = [(str(i), None, back[i]) for i in range(4)]
    positives = [(str(4 + i), None, str(i)) for i in range(4)]
    spec = MakeSpec(dataset=labelled(tmp_path / "c.jsonl", [*negatives, *positives]), pair_by="counterpart")
    assert set(zip(*spec.sides(), strict=True)) == {(f"text {4 + i}", f"text {i}") for i in range(4)}


def test_the_best_of_many_sites_of_noise_is_not_significant():
    hits = {"p_value": 0, "p_value_best": 0}
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(12, 12, 16, generator=g, dtype=torch.float64) for _ in range(2))
        found = held_out(difference_of_means, a, b, paired=False, seed=seed, shuffles=40, n_bootstrap=10)
        assert all(q["p_value_best"] >= q["p_value"] and q["n_sites"] == 12 for q in found)
        best = max(found, key=lambda q: q["auc"])
        hits = {key: n + (best[key] <= 0.05) for key, n in hits.items()}
    assert hits["p_value"] >= 6 and hits["p_value_best"] <= 5  # of 40; 2 expected


def test_the_p_value_of_the_best_is_against_the_maximum_over_sites():
    """Sites that hold the same rows are one site: there the two agree."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 8, 6, generator=g, dtype=torch.float64).expand(5, -1, -1) for _ in range(2))
    for q in held_out(difference_of_means, a, b, paired=False, shuffles=30, n_bootstrap=10):
        assert q["p_value_best"] == q["p_value"]


def test_cosines_of_restarts_are_compared_like_with_like():
    options = {"prefix": [1, 4], "steps": 2, "restarts": 4, "learning_rate": 1e-6, "init": 1.0}
    found = z_steer(LLAMA, [[5, 6], [8, 9], [10, 11], [12, 13]], 1, **options).result
    size = np.abs(found.data["restart_cosine"].values)
    assert found.summary["restart_cosine"] == pytest.approx(size.mean(), abs=1e-4)
    assert found.summary["restart_cosine"] == pytest.approx(found.summary["random_cosine"], rel=0.5)
    assert z_result.of_sentence(found, 1)["restart_cosine"] == pytest.approx(size[1].mean())


@pytest.mark.parametrize(
    "op",
    ["ablate", Operation("clamp", value=50.0), Operation("affine", a=-3.0, b=20.0)],
    ids=["ablate", "clamp", "affine"],
)
def test_an_operation_that_takes_a_share_goes_the_whole_way(op):
    options = {"max_new_tokens": 8, "stop_at_end": False}
    found = generate(LLAMA, PROMPTS, direction(), op=op, **options)
    assert found.tokens == generate(LLAMA, PROMPTS, Steering(direction(), 1.0, op), **options).tokens
    assert found.settings["steering"][0]["strength"] == 1.0
    assert found.tokens == generate(LLAMA, PROMPTS, direction(), 1.0, op=op, **options).tokens


def test_rules_and_schedules_of_numpy_numbers_are_json():
    where = From(index=np.int64(1))
    said = generate(
        LLAMA, PROMPTS, direction(), 2.0, where=where, schedule=Ramp(3, np.float32(1)), max_new_tokens=2
    )
    assert json.loads(json.dumps(said.settings))["steering"][0]["where"] == {"from": 1}
    assert as_rule({"from_token": np.int32(6)}) == From(token=6)
    assert (
        dose_response(LLAMA, PROMPTS, direction(), [2.0], METRIC, where=where, n_random=1).data.sizes[
            "strength"
        ]
        == 2
    )


def test_one_of_a_kind_is_a_list_of_one():
    one = dose_response(
        LLAMA, PROMPTS, DirectionSet([direction()]), 8.0, METRIC, n_random=1, show_text=3, scorers=count_letters,
        targets="red blue",
    )  # fmt: skip
    several = dose_response(
        LLAMA,
        PROMPTS,
        direction(),
        [8.0],
        METRIC,
        n_random=1,
        show_text=3,
        scorers=[count_letters],
        targets=["red blue"],
    )
    assert one.data.drop_attrs().identical(several.data.drop_attrs())
    assert "count_letters" in one.data["measure"].values and one.data["target"].values.tolist() == [
        "red blue"
    ]


def count_letters(texts):
    return [len(text) for text in texts]


def test_one_text_is_one_prompt_to_continue():
    data = steered_texts(LLAMA, "a the", direction(), 5.0, max_new_tokens=3).data
    assert data["prompt_text"].values.tolist() == ["a the"] and data["strength"].values.tolist() == [0.0, 5.0]


def test_random_directions_can_be_steered_along_as_a_set():
    several = DirectionSet([Direction.random(direction(), 0), direction(5), direction(6)])
    data = steered_texts(LLAMA, ["the store"], several, [50.0], max_new_tokens=6).data
    assert data.sizes["direction"] == 2
    from workbench.steering.texts import _random_like

    drawn = torch.stack([d.vector for d in _random_like(several, 0)])
    assert float((drawn @ drawn.T).triu(1).abs().max()) < 0.9, "each control is its own"


def test_one_site_of_a_comparison_may_be_a_text():
    def score(texts):
        return [float(len(text)) for text in texts]

    task = SteeringTask(
        "t", POSITIVE[:3], NEGATIVE[:3], [[13, 14], [15, 16]], [[17, 18], [19, 20]], score, max_new_tokens=3
    )
    found = compare_methods(LLAMA, [task], sites=SITE, n_random=1, target_kl=0.2)
    assert found.data.attrs["sites"] == SITE


def test_a_model_without_tokenizer_is_steered_in_token_ids():
    bare = LanguageModel(tiny.hf_model("llama"), None, name="bare")
    options = {"max_new_tokens": 4, "stop_at_end": False}
    ours = generate(bare, PROMPTS, direction(), 9.0, where=From(index=1), **options)
    same = generate(LLAMA, PROMPTS, direction(), 9.0, where=From(index=1), **options)
    assert ours.tokens == same.tokens and ours.texts[0] == " ".join(map(str, ours.tokens[0]))
    assert sweep_strengths(bare, PROMPTS, direction(), 9.0, **options).strengths == (9.0,)
    told = dose_response(bare, PROMPTS, direction(), 2.0, METRIC, n_random=1).data
    assert [str(p) for p in told["prompt_text"].values] == ["5 6 7", "8 9 10 11"]
    assert z_steer(bare, [[5, 6, 7]], 1, prefix=[1, 4], steps=3).result.summary["n"] == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"num_return_sequences": 2, "do_sample": True},
        {"num_return_sequences": 2, "num_beams": 3},
        {"assistant_early_exit": 1},
    ],
)
def test_what_a_generation_config_asks_for_besides_is_off(monkeypatch, asked):
    plain = generate(LLAMA, PROMPTS, max_new_tokens=5).tokens
    for name, value in asked.items():
        monkeypatch.setattr(LLAMA.hf.generation_config, name, value)
    assert generate(LLAMA, PROMPTS, max_new_tokens=5).tokens == plain


def test_a_generation_config_that_transformers_refuses(monkeypatch):
    monkeypatch.setattr(LLAMA.hf.generation_config, "num_return_sequences", 2)
    with pytest.raises(ModelError, match="num_return_sequences = None"):
        generate(LLAMA, PROMPTS, max_new_tokens=5)
