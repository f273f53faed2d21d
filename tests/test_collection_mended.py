"""Collected rows are those of the tokens they are labelled with, whatever was asked, repeated or interrupted."""

from __future__ import annotations

import copy
import json

import pytest
import tiny
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.collection.chats import render
from workbench.collection.generation import Generation, GenerationEngine
from workbench.collection.live import LiveLoader
from workbench.collection.request import Request
from workbench.collection.selection import Selection
from workbench.collection.sources import open_source
from workbench.collection.to_store import collect_to
from workbench.errors import Cancelled, DataError, PositionError, PromptError, SiteError
from workbench.progress import Silent
from workbench.store.reader import open_store

SITE = "blocks.1.hook_resid_post"
LLAMA = tiny_model("llama")
PROMPT, LONGER = "Mary went to the", "Mary went to the store and gave a drink"
TEXTS = [f"Mary went {word}" for word in ["to", "the", "store", "and", "gave", "a", "drink"]] + [
    "red blue green"
] * 2


def said_by(store) -> list[list[int]]:
    """The generated tokens of each prompt."""
    index = store.index
    return [
        index.token_id[(index.prompt == i) & (index.phase == 1)].tolist()
        for i in range(store.manifest.n_prompts)
    ]


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(st.integers(-4, 3), min_size=1, max_size=6), beside=st.booleans())
def test_any_list_of_positions_picks_rows_from_all(asked, beside):
    prompts = [PROMPT, LONGER] if beside else [PROMPT]
    whole = wb.collect(LLAMA, [PROMPT], SITE, "all").rows(SITE)
    acts = wb.collect(LLAMA, prompts, SITE, asked)
    mine = acts.prompt == 0
    assert acts.position[mine].tolist() == [p % 4 for p in asked]
    torch.testing.assert_close(acts.rows(SITE)[mine], whole[[p % 4 for p in asked]], atol=1e-5, rtol=1e-4)


def test_a_text_also_ends_where_the_generation_config_says(tmp_path):
    model = tiny_model("llama")
    free = said_by(collect_to(tmp_path / "a", model, ["Mary went", "John"], SITE, generate=Generation(6)))
    end_of_turn = free[0][2]
    assert end_of_turn not in free[1]
    model.hf.generation_config.eos_token_id = [2, end_of_turn]
    both = collect_to(tmp_path / "b", model, ["Mary went", "John"], SITE, generate=Generation(6))
    assert said_by(both) == [free[0][:2], free[1]]
    assert said_by(collect_to(tmp_path / "c", model, ["Mary went"], SITE, generate=Generation(6))) == [
        free[0][:2]
    ]


@pytest.mark.parametrize("asked", [
    {"num_beams": 3}, {"repetition_penalty": 5.0}, {"top_k": 1, "do_sample": True}, {"min_new_tokens": 6},
    {"num_return_sequences": 2, "num_beams": 2}, {"suppress_tokens": list(range(3, 110))},
])  # fmt: skip
def test_nothing_else_of_the_generation_config_counts(tmp_path, asked):
    model = tiny_model("llama")
    how = [Generation(6), Generation(6, temperature=2.0)]
    plain = [
        said_by(collect_to(tmp_path / f"a{g.temperature}", model, TEXTS[:3], SITE, generate=g)) for g in how
    ]
    for name, value in asked.items():
        setattr(model.hf.generation_config, name, value)
    again = [
        said_by(collect_to(tmp_path / f"b{g.temperature}", model, TEXTS[:3], SITE, generate=g)) for g in how
    ]
    assert again == plain


def test_sampled_text_is_the_same_in_any_batch_and_that_of_generate(tmp_path, monkeypatch):
    how = Generation(6, temperature=2.0, seed=3)
    whole = said_by(collect_to(tmp_path / "a", LLAMA, TEXTS, SITE, generate=how))
    assert whole[-1] != whole[-2], "the same prompt twice draws different noise"
    single = collect_to(tmp_path / "b", LLAMA, TEXTS, SITE, generate=how, tokens_per_batch=1)
    assert said_by(single) == whole
    outer = wb.steering.generate(LLAMA, TEXTS, max_new_tokens=6, temperature=2.0, seed=3)
    assert [list(row) for row in outer.tokens] == whole
    other = collect_to(tmp_path / "c", LLAMA, TEXTS, SITE, generate=Generation(6, temperature=2.0, seed=4))
    assert said_by(other) != whole
    real = GenerationEngine._forward

    def tight(self, task, places):
        if len(places) > 2:
            raise MemoryError("out of memory")
        return real(self, task, places)

    class Stop(Silent):
        def advance(self, n=1):
            if n > 3:
                raise Cancelled

    monkeypatch.setattr(GenerationEngine, "_forward", tight)
    small = {"generate": how, "rows_per_shard": 10, "tokens_per_batch": 60}
    with pytest.raises(Cancelled):
        collect_to(tmp_path / "d", LLAMA, TEXTS, SITE, **small, progress=Stop())
    assert 0 < len(open_store(tmp_path / "d")) < 54
    monkeypatch.setattr(GenerationEngine, "_forward", real)
    resumed = collect_to(tmp_path / "d", LLAMA, TEXTS, SITE, **small)
    assert said_by(resumed) == whole
    for i, labels in enumerate(resumed.prompts["labels"].to_pylist()):
        number = resumed.prompts["number"][i].as_py()
        assert json.loads(labels)["generated"] == LLAMA.tokenizer.decode(whole[number])


def test_sampled_tokens_follow_the_models_probabilities(tmp_path):
    prompts = ["Mary went"] * 600
    store = collect_to(tmp_path / "s", LLAMA, prompts, SITE, generate=Generation(1, temperature=3.0))
    counts = torch.bincount(
        torch.tensor([row[0] for row in said_by(store) if row]), minlength=tiny.VOCABULARY
    )
    expected = (LLAMA.logits("Mary went")[0, -1] / 3.0).softmax(-1) * 600
    likely = (expected > 1) & (torch.arange(len(expected)) != 2)  # a text that ends at once has no row
    statistic = ((counts - expected) ** 2 / expected)[likely].sum()  # chi squared: mean n, variance 2 n
    n = int(likely.sum())
    assert statistic < n + 5 * (2 * n) ** 0.5


def test_the_last_new_token_is_not_read_again(tmp_path):
    longest = " ".join(["Mary"] * 60)
    store = collect_to(tmp_path / "s", LLAMA, [longest], SITE, generate=Generation(4))
    assert len(said_by(store)[0]) == 4 and store.index.position.max() == 63
    with pytest.raises(PromptError, match="at most 3 new tokens"):
        collect_to(tmp_path / "t", LLAMA, [longest + " Mary"], SITE, generate=Generation(4))


def test_logits_and_final_states_of_generated_tokens_are_those_of_a_plain_run(model, tmp_path):
    sites = ["ln_final.hook_out", "unembed.hook_out"]
    how = Generation(4, prompt_rows=True)
    store = collect_to(tmp_path / "s", model, ["Mary went to the store", "John"], sites, generate=how)
    for i in range(2):
        rows = store.rows(prompt=i)
        again = wb.collect(model, [store.index.token_id[rows].tolist()], sites, "all")
        for site in sites:
            torch.testing.assert_close(store[site][rows], again.rows(site), atol=1e-3, rtol=1e-3)


def test_a_complete_store_is_not_taken_for_one_of_other_data(tmp_path):
    first = collect_to(tmp_path / "s", LLAMA, ["Mary went"], SITE)
    assert collect_to(tmp_path / "s", LLAMA, ["Mary went"], SITE).manifest == first.manifest
    for other in (["red blue green"], ["Mary went", "John"], [{"text": "Mary went", "page": 3}]):
        with pytest.raises(DataError, match="another data set"):
            collect_to(tmp_path / "s", LLAMA, other, SITE)


@pytest.mark.parametrize("positions", [["last", "match:ZZZ"], [[0]] * 25, ["all", "role:user"]])
def test_a_call_that_failed_fails_again(tmp_path, positions):
    data = ["Mary went to the store"] * 20
    for _ in range(3):
        with pytest.raises(PositionError):
            collect_to(tmp_path / "s", LLAMA, data, SITE, positions, rows_per_shard=8, tokens_per_batch=16)


def test_a_rule_that_was_found_before_the_interruption_is_not_called_unused(tmp_path):
    class Stop(Silent):
        seen = 0

        def advance(self, n=1):
            self.seen += n
            if self.seen > 14:
                raise Cancelled

    data = ["red blue"] + ["Mary went to the"] * 20
    small = {"positions": ["match:red", "last"], "rows_per_shard": 4, "tokens_per_batch": 8}
    with pytest.raises(Cancelled):
        collect_to(tmp_path / "s", LLAMA, data, SITE, **small, progress=Stop())
    assert len(open_store(tmp_path / "s")) >= 4
    assert len(collect_to(tmp_path / "s", LLAMA, data, SITE, **small)) == 22


def test_one_name_stands_for_one_site_of_activations():
    acts = wb.collect(LLAMA, [PROMPT], ["blocks.0.hook_resid_post", SITE])
    for pattern in ("blocks.*.hook_resid_post", "blocks.{0,1}.hook_resid_post"):
        with pytest.raises(SiteError, match=r"2 sites .*blocks.0.hook_resid_post, blocks.1"):
            acts[pattern]
    assert torch.equal(wb.collect(LLAMA, [PROMPT], SITE)["blocks.*.hook_resid_post"], acts[SITE])
    with pytest.raises(SiteError, match="does not exist"):  # the last of the model's three is not among them
        acts["blocks.-1.hook_resid_post"]
    assert torch.equal(acts["blocks.-2.hook_resid_post"], acts[SITE])
    bare = wb.Activations(
        acts.values, acts.prompt, acts.position, acts.token_id, acts.token, 1, wb.provenance.Provenance()
    )
    for pattern in ("blocks.-1.hook_resid_post", "blocks.{0,-1}.hook_resid_post"):
        with pytest.raises(SiteError, match="counts blocks from the last"):
            bare.rows(pattern)
    assert acts.take([])[SITE].shape == (0, 0, 48)


def test_what_a_selection_or_a_source_says_is_kept(tmp_path):
    dropping = Request(positions=Selection.parse("all", special="drop"))
    assert dropping.selection.special == "drop" and dropping.selection.describe()["special"] == "drop"
    assert Request(positions=Selection.parse("all"), special="drop").selection.special == "drop"
    source = open_source(TEXTS)
    store = collect_to(tmp_path / "s", LLAMA, source, SITE, limit=3)
    assert (store.manifest.n_prompts, store.manifest.settings["limit"]) == (3, 3)
    assert source.limit is None and len(list(open_source(open_source(TEXTS, limit=2), limit=5))) == 2
    with pytest.raises(DataError, match="settings of its own"):
        collect_to(tmp_path / "t", LLAMA, source, SITE, text_column="body")
    once = open_source(text for text in TEXTS)
    assert len(list(open_source(once, limit=3))) == 3
    for limit in (None, 3):
        with pytest.raises(DataError, match="read already"):
            list(open_source(once, limit=limit))


@pytest.mark.parametrize("ending", ["\n", "\n\n", "|"])
def test_roles_are_known_where_a_message_ends_with_one_character(ending):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    end = ending.replace("\n", "\\n")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '" + end + "' }}{% endfor %}"
    said = [("user", "Mary went"), ("assistant", "to the store"), ("user", "red")]
    chat = render(tokenizer, [{"role": role, "content": text} for role, text in said], "The prompt")
    assert chat.parts is not None
    assert [(p.role, chat.text[p.start : p.end]) for p in chat.parts] == said


def test_a_live_loader_reads_a_generator_once_and_whole():
    how = {"batch_size": 1, "buffer_rows": 4, "tokens_per_batch": 8}
    for epochs in (None, 2):
        with pytest.raises(DataError, match="only once"):
            LiveLoader(LLAMA, (text for text in TEXTS), SITE, epochs=epochs, **how)
    served = torch.cat(list(LiveLoader(LLAMA, (text for text in TEXTS), SITE, epochs=1, **how)))
    rows = wb.collect(LLAMA, TEXTS, SITE, "all").rows(SITE)
    torch.testing.assert_close(served.sum(1).sort().values, rows.sum(1).sort().values, atol=1e-4, rtol=1e-4)
    again = LiveLoader(LLAMA, lambda: (text for text in TEXTS), SITE, epochs=2, **how)
    assert sum(map(len, again)) == 2 * len(rows)
