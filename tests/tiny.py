"""Tiny random-weight models of every supported family, and a word-level tokenizer, all made in memory."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

FAMILIES = ["llama", "gpt2", "neox", "gemma2", "qwen3", "mixtral", "opt"]
VOCABULARY = 120
WORDS = [
    "the",
    "a",
    "Mary",
    "John",
    "Anna",
    "Tom",
    "went",
    "to",
    "store",
    "and",
    "gave",
    "drink",
    "of",
    "is",
    "was",
    "in",
    "on",
    "capital",
    "France",
    "Paris",
    "Rome",
    "Italy",
    "not",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "zero",
    "plus",
    "equals",
    ",",
    ".",
    "?",
    "!",
]


def config(family: str, **overrides):
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    small = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    match family:
        case "llama":
            return LlamaConfig(**common | small | {"num_key_value_heads": 2} | overrides)
        case "gpt2":
            return GPT2Config(
                **common | {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64} | overrides
            )
        case "neox":
            return GPTNeoXConfig(**common | small | overrides)
        case "gemma2":
            return Gemma2Config(
                **common
                | small
                | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
                | overrides
            )
        case "qwen3":
            return Qwen3Config(**common | small | {"num_key_value_heads": 2, "head_dim": 16} | overrides)
        case "mixtral":
            return MixtralConfig(
                **common
                | small
                | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
                | overrides
            )
        case "opt":
            return OPTConfig(
                **common
                | {
                    "hidden_size": 48,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "ffn_dim": 80,
                    "max_position_embeddings": 64,
                    "word_embed_proj_dim": 48,
                }
                | overrides
            )
    raise ValueError(family)


def hf_model(family: str, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(family, **overrides))
    with torch.no_grad():  # norms and biases start at 0 or 1, which would hide mistakes in reading them
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(4.0)
    return model.eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"Ġ{w}" for w in WORDS] + WORDS
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
