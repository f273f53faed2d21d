"""Collecting: order, labels, early stop, errors, saving."""

from __future__ import annotations

import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import Cancelled, DataError, PositionError
from workbench.model.tokens import from_ids

ROWS = [[5, 9, 30, 41, 22], [7, 8, 9], [50, 51, 52, 53, 54, 55, 56, 57, 58], [3, 4]]


def test_collected_rows_equal_raw_hidden_states_one_by_one(model):
    acts = wb.collect(model, ROWS, "blocks.*.hook_resid_pre", "all", tokens_per_batch=12)
    for i, ids in enumerate(ROWS):
        with torch.no_grad():
            states = model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(model.n_layers):  # hidden_states[l] is the input of block l
            ours = acts.of_prompt(i)[f"blocks.{layer}.hook_resid_pre"]
            assert torch.allclose(ours, states[layer][0], atol=1e-4)


def test_rows_carry_prompt_position_and_token(llama):
    acts = wb.collect(llama, ROWS, "blocks.0.hook_resid_post", [0, -1])
    assert acts.prompt.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert acts.position.tolist() == [0, 4, 0, 2, 0, 8, 0, 1]
    assert acts.token_id.tolist() == [5, 22, 7, 9, 50, 58, 3, 4]
    assert acts["blocks.0.hook_resid_post"].shape == (4, 2, 48)


def test_batch_size_and_order_change_nothing(llama):
    big = wb.collect(llama, ROWS, "blocks.*.hook_resid_post", "all")
    small = wb.collect(llama, ROWS, "blocks.*.hook_resid_post", "all", tokens_per_batch=1)
    for site in big.sites:
        assert torch.allclose(big.rows(site), small.rows(site), atol=1e-5)


def test_blocks_after_the_last_site_and_the_unembedding_do_not_run(model):
    ran = []
    handles = [
        model.block(i).register_forward_hook(lambda *_, i=i: ran.append(i)) for i in range(model.n_layers)
    ]
    handles.append(
        model.module(model.catalog.map.paths["unembed"]).register_forward_hook(lambda *_: ran.append("u"))
    )
    model.sites()
    ran.clear()
    wb.collect(model, ROWS[:1], ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
    for handle in handles:
        handle.remove()
    assert ran == [0]


def test_different_numbers_of_positions_do_not_pretend_to_be_a_grid(llama):
    acts = wb.collect(llama, ROWS, "blocks.0.hook_resid_post", "all")
    with pytest.raises(PositionError, match="between 2 and 9 positions"):
        acts["blocks.0.hook_resid_post"]
    assert acts.rows("blocks.0.hook_resid_post").shape == (19, 48)


def test_positions_may_be_given_per_prompt(llama):
    acts = wb.collect(llama, ROWS, "blocks.0.hook_resid_post", [[0], [1], [8], [-1]])
    assert acts.position.tolist() == [0, 1, 8, 1]
    with pytest.raises(PositionError, match="2 lists of positions were given for 4 prompts"):
        wb.collect(llama, ROWS, "blocks.0.hook_resid_post", [[0], [1]])


def test_a_position_beyond_a_prompt_is_an_error_that_lists_its_tokens(llama):
    with pytest.raises(PositionError, match=r"Position 3 is outside the prompt of 3 tokens .* 0:'Mary'"):
        wb.collect(llama, ["Mary went to"], "blocks.0.hook_resid_post", 3)


def test_not_a_number_is_an_error_that_names_site_and_prompt():
    model = tiny_model("llama")
    model.sites()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[30] = float("nan")
    with pytest.raises(DataError, match=r"2 of 5 activations at 'blocks.0.hook_resid_post' .* prompt 1"):
        wb.collect(
            model, [[7, 8, 9], [5, 9, 30, 41, 22][:3]], "blocks.0.hook_resid_post", [[0, 1, 2], [1, 2]]
        )
    assert hooks_left(model) == 0


def test_patterns_collect_with_keys_padded_to_the_longest_prompt(llama):
    acts = wb.collect(llama, ROWS, "blocks.0.attn.hook_pattern", -1)
    rows = acts.rows("blocks.0.attn.hook_pattern")
    assert rows.shape == (4, 4, 9)
    assert torch.allclose(rows.sum(-1), torch.ones(4, 4), atol=1e-5)


def test_saved_activations_come_back_whole_and_a_damaged_file_says_so(llama, tmp_path):
    acts = wb.collect(llama, ROWS, "blocks.*.hook_resid_post", "all")
    path = acts.save(tmp_path / "acts.safetensors")
    back = wb.Activations.load(path)
    assert back.sites == acts.sites and back.token == acts.token
    assert back.provenance == acts.provenance
    assert all(torch.equal(back.rows(s), acts.rows(s)) for s in acts.sites)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read|can be read"):
        wb.Activations.load(path)


def test_a_cancel_stops_after_the_batch_and_removes_hooks(llama):
    class Stop:
        def stage(self, name, total):
            pass

        def advance(self, n=1):
            raise Cancelled

    with pytest.raises(Cancelled):
        wb.collect(llama, ROWS, "blocks.0.hook_resid_post", tokens_per_batch=1, progress=Stop())
    assert hooks_left(llama) == 0


def test_a_one_prompt_batch_has_no_mask_so_kernels_stay_fast(llama):
    assert set(from_ids(llama, ROWS[:1]).inputs()) == {"input_ids"}


def test_a_model_without_a_tokenizer_reads_token_ids(llama, tmp_path):
    bare = wb.load_model((llama.hf, None))
    ids = [[3, 5, 7], [2, 9, 4, 6]]
    site = "blocks.1.hook_resid_post"
    acts = wb.collect(bare, ids, site, "all")
    assert acts.token == ("3", "5", "7", "2", "9", "4", "6")
    assert torch.equal(acts.rows(site), wb.collect(llama, ids, site, "all").rows(site))
    store = wb.collect_to(tmp_path / "s", bare, ids, site)
    assert store.index.token_id.tolist() == [3, 5, 7, 2, 9, 4, 6] and store.manifest.tokenizer_hash == "none"
    with pytest.raises(wb.errors.PromptError, match="has no tokenizer"):
        wb.collect(bare, ["some text"], site)
