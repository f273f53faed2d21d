"""Patchscopes: against whole forwards without a cache, against the logit lens, and on invented facts."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.datasets.records import Pair
from workbench.errors import DataError, MetricError, ModelError, PositionError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.patching import patchscopes
from workbench.patching.patchscopes import ENTITY_DESCRIPTION, decodes, patchscope

SOURCE = [50, 51, 52, 53, 54, 55]
TARGET = [60, 61, 62, 63]
ENDS = {2}


def stream(model, prompt, layer, position):
    with model.hooks(read=f"blocks.{layer}.hook_resid_post") as session:
        model.logits(prompt)
    return session[f"blocks.{layer}.hook_resid_post"][0, position]


def by_whole_forwards(model, prompt, position, layer, vector, n):
    """Greedy tokens, each from a whole forward over everything so far, patched at the prompt's position each time."""

    def put(activation):
        activation[0, position] = vector
        return activation

    said, first = [], torch.empty(0)
    for _ in range(n):
        with model.edit({f"blocks.{layer}.hook_resid_post": put}):
            logits = model.logits([*prompt, *said])[0, -1]
        first = first if said else logits
        said.append(int(logits.argmax()))
        if said[-1] in ENDS:
            return said[:-1], first
    return said, first


def tokens(data, **cell):
    return [t for t in data["token_id"].isel(cell).values.tolist() if t >= 0]


@pytest.mark.parametrize("position", [1, -1])
def test_every_cell_says_what_whole_patched_forwards_without_a_cache_say(model, position):
    result = patchscope(
        model, SOURCE, TARGET, source_position=3, target_position=position, max_new_tokens=4, n_tokens_top=3
    )
    data = result.data
    others = data["control_position"].values
    assert (others != 3).all() and data.sizes["source_layer"] == data.sizes["target_layer"] == model.n_layers
    for s in range(model.n_layers):
        for t in range(model.n_layers):
            for prefix, at in (("", 3), ("control_", others[s])):
                vector = stream(model, SOURCE, s, at)
                said, first = by_whole_forwards(model, TARGET, position % len(TARGET), t, vector, 4)
                cell = data[f"{prefix}token_id"][s, t].values
                assert [i for i in cell.tolist() if i >= 0] == said
                assert str(data[f"{prefix}text"][s, t].values) == model.tokenizer.decode(said)
                top = first.softmax(-1).topk(3)
                assert np.allclose(data[f"{prefix}top_probability"][s, t], top.values, atol=1e-4)
                assert data[f"{prefix}top_id"][s, t].values.tolist() == top.indices.tolist()
    assert hooks_left(model) == 0


def test_into_the_last_position_after_the_last_block_it_is_the_logit_lens(model):
    data = patchscope(
        model, SOURCE, TARGET, source_position=2, target_position=-1, target_layers=[-1], max_new_tokens=1
    ).data
    lens = wb.lens.logit_lens(model, SOURCE).data
    assert (data["top_id"][:, 0].values == lens["top_id"].sel(position=2).values).all()
    assert np.allclose(data["top_probability"][:, 0], lens["top_probability"].sel(position=2), atol=1e-5)


def test_a_prompts_own_stream_in_its_own_place_changes_nothing(model):
    data = patchscope(model, TARGET, TARGET, source_position=2, target_position=2, control=False).data
    for layer in range(model.n_layers):
        same = data["token_id"][layer, layer].values.tolist()
        assert same == data["unpatched_token_id"].values.tolist()
    ids = torch.tensor([TARGET])
    spoken = model.hf.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
    )
    spoken = spoken[0, len(TARGET) :].tolist()
    spoken = spoken[: spoken.index(2)] if 2 in spoken else spoken
    assert [t for t in data["unpatched_token_id"].values.tolist() if t >= 0] == spoken
    assert "control_text" not in data and data.attrs["control"] == "not run"


def test_a_text_ends_where_the_model_ends_it_and_other_rows_go_on(llama):
    ordinary = patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1).data
    end = int(ordinary["token_id"][1, 0, 2])
    llama.hf.generation_config.eos_token_id = [2, end]
    data = patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1).data
    for name in ("token_id", "control_token_id"):
        for before, after in zip(ordinary[name].values.reshape(-1, 10), data[name].values.reshape(-1, 10), strict=True):  # fmt: skip
            stop = before.tolist().index(end) if end in before else 10
            assert after[:stop].tolist() == before[:stop].tolist() and (after[stop:] == -1).all()
    assert len(tokens(data, source_layer=1, target_layer=0)) <= 2
    assert (data["token"].values[data["token_id"].values == -1] == "").all()


def test_batching_of_cells_changes_nothing(llama, monkeypatch):
    whole = patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1).data
    monkeypatch.setattr(patchscopes, "TOKENS_PER_CALL", 30)
    parts = patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1).data
    assert (whole["token_id"] == parts["token_id"]).all()
    assert np.allclose(whole["control_top_probability"], parts["control_top_probability"], atol=1e-5)


def test_layers_may_be_chosen_and_the_mapping_is_applied_to_the_stream(llama):
    mapping = lambda h: 2 * h + 1  # noqa: E731
    data = patchscope(
        llama, SOURCE, TARGET, source_position=0, target_position=1, source_layers=[2], target_layers=[-2, 0],
        mapping=mapping, max_new_tokens=3,
    ).data  # fmt: skip
    assert data["source_layer"].values.tolist() == [2] and data["target_layer"].values.tolist() == [0, 1]
    for i, layer in enumerate([0, 1]):
        said, _ = by_whole_forwards(llama, TARGET, 1, layer, mapping(stream(llama, SOURCE, 2, 0)), 3)
        assert tokens(data, source_layer=0, target_layer=i) == said


def test_another_model_may_continue_if_it_is_of_the_same_width(llama):
    other = tiny_model("gpt2", n_layer=2)
    data = patchscope(
        llama, SOURCE, TARGET, source_position=3, target_position=1, target_model=other, max_new_tokens=3
    ).data
    assert data.sizes["target_layer"] == 2 and data.sizes["source_layer"] == 3
    said, _ = by_whole_forwards(other, TARGET, 1, 1, stream(llama, SOURCE, 2, 3), 3)
    assert tokens(data, source_layer=2, target_layer=1) == said
    wide = tiny_model("llama", hidden_size=64)
    with pytest.raises(
        ModelError, match=r"streams of width 48 and tiny-llama of 64: give models of equal width"
    ):
        patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1, target_model=wide)
    pad = lambda h: torch.nn.functional.pad(h, (0, 16))  # noqa: E731
    mapped = patchscope(
        llama, SOURCE, TARGET, source_position=3, target_position=1, target_model=wide, mapping=pad
    ).data
    said, _ = by_whole_forwards(wide, TARGET, 1, 0, pad(stream(llama, SOURCE, 1, 3)), 10)
    assert tokens(mapped, source_layer=1, target_layer=0) == said


def test_the_control_is_seeded_avoids_the_position_and_a_beginning_token(llama):
    source = [1, *SOURCE]  # 1 begins a sequence
    drawn = [
        patchscope(
            llama, source, TARGET, source_position=-1, target_position=0, max_new_tokens=1, seed=seed
        ).data["control_position"].values.tolist()
        for seed in (0, 0, 1, 2, 3, 4, 5, 6)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] and len({tuple(d) for d in drawn}) > 1
    assert {p for d in drawn for p in d} <= set(range(1, len(SOURCE)))
    with pytest.raises(PromptError, match="has none: give a longer source prompt, or control=False"):
        patchscope(llama, [1, 50], TARGET, source_position=-1, target_position=0)


def test_a_result_is_saved_and_loaded_and_counts_what_changed(llama, tmp_path):
    result = patchscope(llama, "Mary went to the", ENTITY_DESCRIPTION, source_position=0, target_position=-1)
    loaded = wb.Result.load(result.save(tmp_path / "scope.zarr"))
    assert loaded.data.identical(result.data) and loaded.summary == result.summary
    assert result.summary["n_cells"] == 9
    changed = [t != result.summary["unpatched_text"] for t in result.data["text"].values.ravel()]
    assert result.summary["texts_changed"] == sum(changed) > 0
    assert ENTITY_DESCRIPTION.endswith(" x")


def test_decodes_finds_whole_words_in_the_patched_and_in_the_control_texts(llama):
    result = patchscope(llama, SOURCE, TARGET, source_position=3, target_position=1, max_new_tokens=3)
    texts = np.full((3, 3), "about Romeo and Juliet", dtype="<U40")
    texts[0, 1], texts[2, 2] = "it is ROME, of course", "the eternal city"
    controls = np.full((3, 3), "nothing", dtype="<U40")
    controls[1, 1] = "in Rome"
    result.data["text"].values, result.data["control_text"].values = texts, controls
    found = decodes(result, ["Rome", "Eternal City"])
    assert np.argwhere(found["decoded"].values).tolist() == [[0, 1], [2, 2]]
    assert found["resolved"].values.tolist() == [True, False, True]
    assert found["control_resolved"].values.tolist() == [False, True, False]
    assert found.attrs["n_decoded"] == 2 and found.attrs["n_control_decoded"] == 1
    assert found.attrs["n_cells"] == 9 and found.attrs["unpatched"] is False
    assert decodes(result, "Rome", whole_words=False).attrs["n_decoded"] == 8
    with pytest.raises(MetricError, match="at least one, none of them empty"):
        decodes(result, ["Rome", " "])
    with pytest.raises(DataError, match="give a result of `patchscope`"):
        decodes(wb.lens.logit_lens(llama, SOURCE), "Rome")


def test_what_cannot_be_asked_is_an_error(llama):
    def ask(source=SOURCE, target=TARGET, at=1, **other):
        return patchscope(llama, source, target, source_position=3, target_position=at, **other)

    with pytest.raises(PositionError, match="outside the prompt of 4 tokens"):
        ask(at=4)
    with pytest.raises(DataError, match="Layer 3 does not exist: tiny-llama has blocks 0–2"):
        ask(source_layers=[0, 3])
    with pytest.raises(DataError, match="No layers were asked for"):
        ask(target_layers=[])
    with pytest.raises(DataError, match=r"mapping gave \(5,\).* shape \(48,\)"):
        ask(mapping=lambda h: h[:5])
    with pytest.raises(PromptError, match="4 tokens and 61 are to follow, but tiny-llama reads at most 64"):
        ask(max_new_tokens=61)
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        ask(max_new_tokens=0)
    with pytest.raises(DataError, match="n_tokens_top is 500: give 1 to 120"):
        ask(n_tokens_top=500)
    with pytest.raises(PromptError):
        ask(source=["Mary went", "John went"])
    assert hooks_left(llama) == 0


def test_a_model_without_a_tokenizer_spells_ids():
    model = LanguageModel(tiny.hf_model("llama"), None, name="no words")
    data = patchscope(model, SOURCE, TARGET, source_position=3, target_position=1, max_new_tokens=2).data
    assert str(data["text"][0, 0].values) == str(data["token_id"][0, 0].values.tolist())


# -- known answer: the bridge of invented two-hop questions ------------------------------------------------


@pytest.fixture(scope="module")
def two_hop():
    model, pairs = (
        wb.load_model("two-hop"),
        [p for p in wb.datasets.load("two-hop", limit=24) if isinstance(p, Pair)],
    )
    facts = {}
    for pair in pairs:  # single facts from the trained model, which knows them all
        b = pair.extra["bridge"]
        facts[b] = model.tokenizer.decode([int(model.logits(f"{b} r3 :")[0, -1].argmax())])
    ends = [len(model.encode(pair.clean[: pair.spans["first"][1]])) - 1 for pair in pairs]
    return model, pairs, ends, facts


def shares(model, pairs, positions, target, at, wanted):
    """[patched or control, source_layer, target_layer]: share of prompts whose cell says what is wanted."""
    found = []
    for pair, p in zip(pairs, positions, strict=True):
        result = patchscope(
            model, pair.clean, target, source_position=p, target_position=at, max_new_tokens=1
        )
        named = decodes(result, wanted(pair))
        assert not named.attrs["unpatched"] or target != ":"
        found.append(np.stack([named["decoded"], named["control_decoded"]]))
    return np.mean(found, axis=0)


def test_the_bridge_is_decoded_at_its_position_before_the_answer_is_at_the_last(two_hop):
    model, pairs, ends, _ = two_hop
    lens = []
    for pair, p in zip(pairs, ends, strict=True):
        ranks = [
            wb.lens.logit_lens(model, pair.clean, target=word, positions=at).data["target_rank"].values[:, 0]
            for word, at in ((pair.extra["bridge"], p), (str(pair.answer).strip(), -1))
        ]
        lens.append(np.array(ranks) == 1)
    bridge, answer = np.mean(lens, axis=0)
    assert bridge[1] > 0.9 and answer[1] < 0.3  # 0.99 and 0.09 over all held-out questions
    assert answer[-1] == 1.0
    at_bridge, control = shares(model, pairs, ends, ":", -1, lambda pair: pair.extra["bridge"])
    at_last, _ = shares(model, pairs, [-1] * len(pairs), ":", -1, lambda pair: str(pair.answer))
    assert at_bridge[0, 0] > 0.9 and control[0, 0] < 0.1  # after the first block, given to it once more
    assert at_last[0, 0] < 0.1 and at_last[-1, -1] == 1.0


def test_a_bridge_put_into_another_question_is_what_its_second_hop_is_taken_of(two_hop):
    model, pairs, ends, facts = two_hop
    second = "e0 r0 r3 :"  # asks r3 of what r0 gives of e0; patched at r0 it must be r3 of the bridge
    patched, control = shares(model, pairs, ends, second, 2, lambda pair: facts[pair.extra["bridge"]])
    assert patched[0, 0] > 0.9 and patched[3, 0] > 0.8
    assert control[:, 0].max() < 0.2
    assert patched[:, -1].max() < 0.1  # nothing is above the last block to read it
