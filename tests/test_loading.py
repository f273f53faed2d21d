"""Loading: from a folder with every option, from objects, and what cannot be loaded."""

from __future__ import annotations

import pytest
import tiny
import torch
from conftest import hooks_left
from torch import nn
from transformers import LlamaForCausalLM

import workbench as wb
from workbench.errors import ModelError
from workbench.model.tokens import from_ids

ROWS = [[5, 9, 30, 41, 22], [7, 8, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_the_loaded_model_is_the_one_transformers_loads(folder):
    model = wb.load_model(folder)
    assert type(model.hf) is LlamaForCausalLM and not model.hf.training
    with torch.no_grad():
        theirs = LlamaForCausalLM.from_pretrained(folder)(torch.tensor(ROWS[:1])).logits
    assert torch.equal(model.logits(ROWS[0]), theirs)
    assert (model.n_layers, model.d_model, model.n_heads, model.n_kv_heads, model.d_head) == (3, 48, 4, 2, 12)
    assert model.config._attn_implementation == "sdpa"
    assert model.name == "tiny-llama"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_is_kept_and_reads_stay_bit_equal_in_it(folder, dtype):
    model = wb.load_model(folder, dtype=dtype)
    assert model.dtype is getattr(torch, dtype)
    batch = from_ids(model, ROWS)
    plain = model.forward(batch).logits
    with model.hooks(read=model.sites()) as seen:
        assert torch.equal(model.forward(batch).logits, plain)
    assert seen["blocks.1.hook_resid_mid"].dtype is getattr(torch, dtype)
    assert wb.collect(model, ROWS)["blocks.1.hook_resid_post"].dtype is getattr(torch, dtype)


def test_a_model_placed_by_device_map_is_read_and_edited_like_any_other(folder):
    placed, plain = wb.load_model(folder, device_map={"": "cpu"}), wb.load_model(folder)
    batch = from_ids(plain, ROWS)
    for model in (placed, plain):
        with model.hooks(read=model.sites(), edit={"blocks.1.hook_resid_mid": lambda x: x * 0.5}) as seen:
            model.forward(batch)
        model.seen = seen
    for site in plain.sites():
        assert torch.equal(placed.seen[site], plain.seen[site]), site
    assert hooks_left(placed) == hooks_left(plain)


def test_a_subclass_of_a_known_architecture_keeps_its_sites():
    class MyLlama(LlamaForCausalLM):
        pass

    torch.manual_seed(0)
    model = wb.load_model((MyLlama(tiny.config("llama")), tiny.tokenizer()))
    assert "blocks.1.attn.hook_z" in model.sites()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "no-such-model"}, "No model is called 'no-such-model'"),
        ({"source": "smollm2-136m"}, "Did you mean 'smollm2-135m'"),
        ({"source": "./nowhere"}, "does not exist"),
        ({"source": (1, 2, 3)}, "not 3 items"),
        ({"source": ("text", None)}, "is not a transformers model"),
        ({"source": "smollm2-135m", "dtype": "float12"}, "dtype 'float12' is not known"),
        ({"source": "smollm2-135m", "device": "gpu"}, "Device 'gpu' is not known"),
    ],
)
def test_what_cannot_be_loaded_says_why(arguments, message):
    with pytest.raises(ModelError, match=message):
        wb.load_model(arguments.pop("source"), **arguments)


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match="holds no config.json"):
        wb.load_model(tmp_path)


def test_a_damaged_checkpoint_is_one_line(folder, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        wb.load_model(broken)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_an_adapter_says_so():
    class Unheard(nn.Module):
        pass

    model = Unheard()
    model.config = tiny.config("llama")
    model.get_input_embeddings = lambda: nn.Embedding(4, 4)
    with pytest.raises(ModelError, match="'Unheard' is not known to TransformerLens"):
        wb.load_model((model, tiny.tokenizer()))
