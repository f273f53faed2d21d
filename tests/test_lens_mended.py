"""Faults of the lens and of the catalog of sites that were found and mended, each with the claim that failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import tiny
import torch
from conftest import tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3Config,
    GPTBigCodeConfig,
    GPTJConfig,
    PreTrainedTokenizerFast,
)

import workbench as wb
from workbench.errors import MetricError, ModelError, PromptError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.sites import check

IDS = [50, 51, 52, 53, 54, 55]
COMMON: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def made_of(config, name: str) -> LanguageModel:
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return LanguageModel(hf, tiny.tokenizer(), name=name)


def _half_as_much_again(_module: Any, _args: Any, out: Any) -> Any:
    return out * 1.5


def _keep_in(kept: list[torch.Tensor]) -> Any:
    return lambda _module, _args, out: kept.append(out)


# -- logit lens ----------------------------------------------------------------------------------------------


def test_several_prompts_are_refused_instead_of_all_but_the_first_left_out(llama):
    with pytest.raises(PromptError, match="one prompt, but 2"):
        wb.lens.logit_lens(llama, torch.tensor([IDS, IDS[::-1]]))


@pytest.mark.parametrize("options", [{"top_k": 121}, {"top_k": 0}, {"n_control": 0}, {"n_control": -1}])
def test_numbers_of_tokens_that_make_no_sense_are_errors(llama, options):
    with pytest.raises(MetricError, match=f"{next(iter(options))} is"):
        wb.lens.logit_lens(llama, IDS, **options)


def test_the_lens_says_how_many_control_tokens_there_were(llama):
    data = wb.lens.logit_lens(llama, IDS, n_control=500).data
    assert data.attrs["n_control"] == 120
    assert data["control_rank"].attrs["long_name"] == "median rank of 120 random tokens"


def test_the_median_of_an_even_number_of_controls_is_the_middle_of_both(llama):
    with llama.hooks(read="blocks.1.hook_resid_post") as seen:
        llama.logits(IDS)
    ranks = scipy.stats.rankdata(-llama.readout(seen["blocks.1.hook_resid_post"])[0], axis=-1, method="min")
    two = torch.randperm(llama.vocab_size, generator=torch.Generator().manual_seed(5))[:2]
    lens = wb.lens.logit_lens(llama, IDS, n_control=2, seed=5).data["control_rank"].sel(layer=1)
    np.testing.assert_array_equal(lens, np.median(ranks[:, two], axis=-1))


def test_a_model_without_a_tokenizer_is_decoded_to_ids():
    lens = wb.lens.logit_lens(LanguageModel(tiny.hf_model("llama"), None), IDS).data
    assert np.array_equal(lens["top_token"], lens["top_id"].astype(str))


def test_logits_that_are_not_numbers_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        wb.lens.logit_lens(model, IDS)


def test_words_and_pieces_of_words_are_told_apart_where_the_decoder_drops_a_leading_space():
    words = ["<unk>", "▁Paris", "Paris", "▁▁"] + [f"w{i}" for i in range(116)]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = LanguageModel(tiny.hf_model("llama"), PreTrainedTokenizerFast(tokenizer_object=inner))
    assert model.batch([1, 2, 3, 5]).tokens == ((" Paris", "Paris", "  ", "w1"),)
    lens = wb.lens.logit_lens(model, IDS, target=1, top_k=120).data
    assert lens.attrs["target"] == " Paris"
    assert set(lens["top_token"].values[lens["top_id"].values == 1]) == {" Paris"}


# -- sites ---------------------------------------------------------------------------------------------------


def test_sites_first_asked_for_inside_an_edit_are_not_lost():
    model = tiny_model("llama")
    with (
        model.edit({"blocks.1.hook_resid_post": lambda x: x * 2}),
        model.hooks(read="*.hook_mlp_out") as seen,
    ):
        model.logits(IDS)
    assert seen["blocks.2.hook_mlp_out"].shape == (1, 6, 48)
    assert model.sites() == tiny_model("llama").sites()


def test_a_check_that_was_interrupted_is_made_again(monkeypatch):
    model = made_of(tiny.config("gpt2"), "scaled")
    block = model.block(1)
    block.register_forward_hook(_half_as_much_again)  # so the sums do not hold
    whole, tries = check.check_bookkeeping, []

    def interrupted(model):
        tries.append(model)
        if len(tries) == 1:
            raise KeyboardInterrupt
        whole(model)

    monkeypatch.setattr(check, "check_bookkeeping", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.sites()
    assert not [name for name in model.sites() if name.endswith("hook_mlp_out")]


def test_a_pattern_that_cannot_be_read_is_no_site_and_says_why():
    model = made_of(
        GPTJConfig(**COMMON, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=4), "gptj"
    )
    with model.hooks(read="blocks.*") as seen:  # was: 2 hooks did not fire
        model.logits(IDS)
    with pytest.raises(SiteError, match="does not go through transformers' attention interface"):
        model.hooks(read="blocks.0.attn.hook_pattern")
    assert seen["blocks.1.attn.hook_z"].shape == (1, 6, 4, 12)


def test_keys_of_a_multi_query_falcon_are_one_head():
    config = FalconConfig(
        **COMMON, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, multi_query=True,
        new_decoder_architecture=False,
    )  # fmt: skip
    model = made_of(config, "falcon")
    fused: list[torch.Tensor] = []
    inside = model.block(1).get_submodule("self_attention.query_key_value")
    handle = inside.register_forward_hook(_keep_in(fused))
    with model.hooks(read=["blocks.1.attn.hook_k", "blocks.1.attn.hook_v"]) as seen:
        model.logits(IDS)
    handle.remove()
    # transformers: [batch, position, heads + 2, d_head], the last two are key and value
    theirs = fused[-1].view(1, len(IDS), 6, 12)
    assert model.n_kv_heads == 1
    assert torch.equal(seen["blocks.1.attn.hook_k"], theirs[:, :, [-2]])
    assert torch.equal(seen["blocks.1.attn.hook_v"], theirs[:, :, [-1]])


def test_an_adapter_that_cannot_split_a_fused_projection_costs_only_these_sites():
    config = GPTBigCodeConfig(**COMMON, n_embd=48, n_layer=2, n_head=4, n_positions=64, multi_query=False)
    model = made_of(config, "bigcode")  # was: AssertionError
    with pytest.raises(SiteError, match="cannot split its fused projection"):
        model.resolve("blocks.0.attn.hook_q")
    assert "blocks.1.attn.hook_z" in model.sites()


def test_the_text_side_of_gemma_3_is_known_by_its_own_class():
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    text = COMMON | small | {"intermediate_size": 80, "head_dim": 16, "max_position_embeddings": 64}
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    model = made_of(Gemma3Config(text_config=text, vision_config=vision), "gemma3")
    plain = model.logits(IDS)
    with model.hooks(read=model.sites()) as seen:
        assert torch.equal(model.logits(IDS), plain)
    total = seen["blocks.1.hook_resid_pre"] + seen["blocks.1.hook_attn_out"] + seen["blocks.1.hook_mlp_out"]
    assert torch.allclose(total, seen["blocks.1.hook_resid_post"], rtol=1e-4, atol=1e-4)


def test_sites_that_are_no_names_are_errors_that_say_what_to_give(llama):
    (site,) = llama.resolve("blocks.1.hook_resid_post")
    with pytest.raises(SiteError, match=r"give its name 'blocks\.1\.hook_resid_post'"):
        llama.resolve([site])
    with pytest.raises(SiteError, match="not by 3"):
        llama.resolve(3)
