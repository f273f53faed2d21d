"""Faults of loading, tokens and fingerprints that were found and mended, each with the claim that failed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.errors import MetricError, ModelError, PromptError
from workbench.model import aliases, loading
from workbench.model.language_model import LanguageModel
from workbench.model.looped import fold, unroll
from workbench.model.tokens import from_ids

IDS = [50, 51, 52, 53, 54, 55]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


# -- loading -------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 of the model's weights \(model\.layers\.1\.mlp\.down_proj"
    ):
        wb.load_model(folder)


def test_tied_weights_are_not_taken_for_missing(tmp_path):
    tiny.hf_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert wb.load_model(tmp_path).n_layers == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype: without effect"),
        ({"revision": "v2", "attn_implementation": "eager"}, "revision, attn_implementation: without effect"),
    ],
)
def test_options_without_effect_on_objects_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        wb.load_model((tiny.hf_model("llama"), tiny.tokenizer()), **options)


def test_options_without_effect_on_a_folder_are_errors(whole):
    with pytest.raises(ModelError, match="revision='v9' names a branch"):
        wb.load_model(whole, revision="v9")
    with pytest.raises(ModelError, match="give one of them"):
        wb.load_model(whole, device="cpu", device_map={"": "cpu"})


def test_a_path_is_the_folder_it_names_also_where_a_shipped_model_has_the_name(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "addition")
    monkeypatch.chdir(tmp_path)
    assert wb.load_model(Path("addition")).d_model == 48


def test_a_broken_package_with_models_does_not_stop_those_of_ours_and_of_folders(whole, monkeypatch):
    def broken() -> dict:
        raise ModelError("Model 'x' of a-package cannot be loaded")

    monkeypatch.setattr(aliases, "known", broken)
    assert loading._locate(whole)[1] == "tiny-llama"
    assert loading._locate("addition")[1] == "addition"
    with pytest.raises(ModelError, match="a-package"):
        loading._locate("x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": "three"}, "expected int, got str"),
        ({"hidden_size": 50}, r"hidden size \(50\) is not a multiple"),
    ],
)
def test_a_config_with_wrong_values_is_an_error_of_one_line(folder, changed, message):
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message) as caught:
        wb.load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_done_with_a_folder_says_so(whole):
    with pytest.raises(ModelError, match="unexpected keyword argument 'atn_implementation'"):
        wb.load_model(whole, atn_implementation="eager")
    with pytest.raises(ModelError, match="is a file: give the folder"):
        wb.load_model(whole / "config.json")
    with pytest.raises(ModelError, match="Device None is not known"):
        wb.load_model(whole, device=None)  # type: ignore[arg-type]
    if not torch.backends.mps.is_available():
        with pytest.raises(ModelError, match="torch has no MPS here"):
            wb.load_model(whole, device="mps")


def test_a_gated_repository_is_not_reported_as_a_missing_network(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    gated = OSError(
        "You are trying to access a gated repo.\n403 Client Error. Cannot access gated repo for url "
        "https://huggingface.co/meta-llama/Llama-3-8B/resolve/main/config.json."
    )
    assert "gated repo" in loading._why("meta-llama/Llama-3-8B", "meta-llama/Llama-3-8B", gated)
    away = OSError("[Errno -3] Temporary failure in name resolution")
    assert "cannot be reached" in loading._why("a/b", "a/b", away)


# -- fingerprints and looped models --------------------------------------------------------------------------


def test_the_fingerprint_follows_an_edit_of_the_weights():
    model = tiny_model("llama")
    before = model.fingerprint
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.zero_()
    assert model.fingerprint != before


def test_weights_on_the_disk_count_for_the_fingerprint(whole, tmp_path):
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"]
    places = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk", "model.layers.2": "disk"}
    model = wb.load_model(whole, device_map=places, offload_folder=str(tmp_path))
    assert model.hf.model.layers[1].mlp.down_proj.weight.is_meta
    assert model.fingerprint == wb.load_model(whole).fingerprint


def test_each_block_of_an_unrolled_model_keeps_the_mask_of_the_block_it_repeats():
    config = tiny.config("gemma2", sliding_window=4)
    config.looped = {"prelude": 1, "core": 1, "coda": 1, "loops": 1}
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    stored = list(config.layer_types or [])
    assert stored == ["sliding_attention", "full_attention", "sliding_attention"]
    unroll(hf, 2)
    assert config.layer_types == ["sliding_attention", *["full_attention"] * 2, "sliding_attention"]
    fold(hf)
    assert config.layer_types == stored  # was: all sliding, so that the checkpoint computed something else


# -- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"role": "user", "content": "Mary"}, "a single message"),
        ({"input_ids": [5, 6], "attention_mask": [1, 1]}, "what a tokenizer returns"),
        (b"a(", "bytes"),
        (None, "NoneType"),
        (5, "given as int"),
        (["Mary", float("nan")], "Prompt 1 was given as float"),
        (["Mary", {"role": "user", "content": "Mary"}], "Prompt 1 was given as a single message"),
        ([torch.tensor([[5, 6], [7, 8]]), [5]], r"Prompt 0 is an array of shape \(2, 2\)"),
    ],
)
def test_what_is_no_prompt_is_an_error_instead_of_another_prompt(llama, given, message):
    with pytest.raises(PromptError, match=message):
        llama.batch(given)


def test_a_list_of_the_ids_of_a_tensor_is_one_prompt(llama):
    assert llama.batch(list(torch.tensor([5, 6, 7]))).ids.tolist() == [[5, 6, 7]]
    assert llama.encode(torch.tensor([[5, 6, 7]])) == [5, 6, 7]


def test_a_padding_token_that_the_model_has_no_embedding_for_does_not_reach_it():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = LanguageModel(tiny.hf_model("llama"), tokenizer)
    assert tokenizer.pad_token_id == model.vocab_size
    batch = from_ids(model, [[5, 6], [7, 8, 9]])
    assert torch.allclose(model.forward(batch).logits[0, :2], model.logits([5, 6])[0], atol=1e-5)


def test_messages_that_the_chat_template_refuses_are_an_error_of_ours():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m.content }} {% endfor %}"
    )
    model = LanguageModel(tiny.hf_model("llama"), tokenizer)
    with pytest.raises(PromptError, match="refuses these messages: System role not supported"):
        model.encode([{"role": "system", "content": "Mary"}])


def test_a_metric_token_that_a_word_level_tokenizer_does_not_know_is_an_error_of_ours():
    model = wb.load_model("addition", device="cpu")
    with pytest.raises(MetricError, match="'foo', which addition does not know"):
        model.token_id("foo")


def test_a_text_of_one_token_is_still_one_token(llama):
    assert llama.token_id("Mary") == llama.encode("Mary")[0]
    assert llama.batch(IDS).tokens == (tuple(llama.tokenizer.decode([i]) for i in IDS),)
