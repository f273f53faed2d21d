"""A wheel with a tiny random Llama in a GGUF file, made as llama.cpp's converter would make it.

The weights that come out are known beforehand (`expected`), so a conversion has an independent oracle.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers.convert_slow_tokenizer import bytes_to_unicode

from workbench.model.aliases import Alias

N_LAYERS, D_MODEL, D_MLP, N_HEADS, N_KV_HEADS = 2, 64, 96, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ċ Ċ", "Ġ Ġ"]
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
MEMBER = "tiny_llm/tiny.gguf"
DIST_INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


@dataclass(frozen=True)
class TinyWheel:
    """The wheel, its alias, and the weights by Hugging Face name."""

    path: Path
    alias: Alias
    expected: dict[str, np.ndarray]


def make_tiny_wheel(folder: Path, name: str = "tiny") -> TinyWheel:
    """Write the wheel to `folder`."""
    gguf = folder / "tiny.gguf"
    expected, vocabulary = _write_gguf(gguf)
    path = folder / "tiny_llm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, MEMBER)
        for part, text in DIST_INFO.items():  # what pip wants to see before it accepts a wheel
            archive.writestr(f"tiny_llm-1.0.dist-info/{part}", text)
    alias = Alias(
        name=name,
        summary="random weights",
        licence="CC0-1.0",
        requirement="tiny-llm==1.0",
        wheel_filename=path.name,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_size=path.stat().st_size,
        gguf_member=MEMBER,
        gguf_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        quantisation="Q4_1",
        n_parameters=sum(weight.size for weight in expected.values()),
        model_type="llama",
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        n_kv_heads=N_KV_HEADS,
        d_vocab=len(vocabulary),
        special_tokens={"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]},
        splits_digits=True,
        disk_space=10_000_000,
    )
    gguf.unlink()
    return TinyWheel(path, alias, expected)


def _write_gguf(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    vocabulary = [*SPECIAL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    expected = _add_weights(writer, len(vocabulary))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected, vocabulary


def _add_weights(writer: GGUFWriter, d_vocab: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    d_kv = D_MODEL // N_HEADS * N_KV_HEADS
    shapes = {
        "attn_q": ("self_attn.q_proj", (D_MODEL, D_MODEL), N_HEADS),
        "attn_k": ("self_attn.k_proj", (d_kv, D_MODEL), N_KV_HEADS),
        "attn_v": ("self_attn.v_proj", (d_kv, D_MODEL), None),
        "attn_output": ("self_attn.o_proj", (D_MODEL, D_MODEL), None),
        "ffn_gate": ("mlp.gate_proj", (D_MLP, D_MODEL), None),
        "ffn_up": ("mlp.up_proj", (D_MLP, D_MODEL), None),
        "ffn_down": ("mlp.down_proj", (D_MODEL, D_MLP), None),
    }
    expected = {}

    def add(
        name: str, target: str, shape: tuple[int, ...], kind: str, rotary_heads: int | None = None
    ) -> None:
        quantisation = GGMLQuantizationType[kind]
        packed = quantize(random.normal(size=shape).astype(np.float32) / 8, quantisation)
        writer.add_tensor(name, packed, raw_dtype=quantisation)
        weight = dequantize(packed, quantisation).reshape(shape)
        if rotary_heads:  # GGUF interleaves the two halves of each rotary head
            weight = weight.reshape(rotary_heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        expected[target] = weight

    add("token_embd.weight", "model.embed_tokens.weight", (d_vocab, D_MODEL), "Q8_0")
    for layer in range(N_LAYERS):
        for name, (target, shape, heads) in shapes.items():
            add(f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{target}.weight", shape, "Q4_1", heads)
        for name, target in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            add(f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{target}.weight", (D_MODEL,), "F32")
    add("output_norm.weight", "model.norm.weight", (D_MODEL,), "F32")
    return expected
