"""A quantised GGUF file becomes a folder of plain float32 Hugging Face files.

1. transformers dequantises the weights; what is saved are those values, bit for bit.
2. The tokenizer gets back the rule of splitting digits that transformers leaves out (see `_mend_digits`).
3. Model and tokenizer are saved, read back, and compared with what the `Alias` says.

Everything is read from local files; no hub is contacted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors
import torch
import transformers
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import modeling_gguf_pytorch_utils as gguf_utils

from workbench.errors import ModelError
from workbench.model.aliases import Alias
from workbench.model.quiet import quiet_transformers
from workbench.progress import Progress

_SENTENCE = "Mary and John , isn't it?\n\n1. naïve — 12:45\n\tx = y[0]  # 日本\n    3"


def convert_gguf(gguf: Path, folder: Path, alias: Alias, progress: Progress) -> dict[str, str]:
    """Save the model and the tokenizer of a GGUF file in an existing folder.

    Returns:
        The versions of the packages that took part.

    Raises:
        ModelError: transformers cannot read the file, the model is not what `alias` says, or what was
            saved does not read back the same.

    Example:
        >>> convert_gguf(Path("model.gguf"), Path("out"), alias, Silent())  # doctest: +SKIP
    """
    progress.stage("convert", 4)
    # The bar over the GGUF tensors heeds no setting of transformers.
    with quiet_transformers(), mock.patch.object(gguf_utils, "tqdm", _no_bar, create=True):
        model, tokenizer = _load(gguf, alias, progress)
        _check_shape(model, alias)
        _forget_quantisation(model)
        if alias.splits_digits:
            _mend_digits(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.init_kwargs.pop("local_files_only", None)  # how it was read is no part of what it is
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except safetensors.SafetensorError as error:  # how a full disk shows in the weights file
            raise ModelError(
                f"The weights of {alias.name!r} cannot be written to {folder}: {error}"
            ) from error
        progress.advance()
        _share_as_the_folder(folder)
        _check_saved(folder, tokenizer, alias)
        progress.advance()
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "gguf")}
    return {"python": sys.version.split()[0], **versions}


def _load(gguf: Path, alias: Alias, progress: Progress) -> tuple[Any, Any]:
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        progress.advance()
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
        progress.advance()
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"transformers {transformers.__version__} cannot read the GGUF file of {alias.name!r}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model, tokenizer


def _forget_quantisation(model: Any) -> None:
    """Make it the plain float32 model it now is; with the note on its past it would refuse to be saved."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _mend_digits(tokenizer: Any) -> None:
    """Set digits apart before the byte-level split, as the tokenizer the model was trained with does.

    Without this the blank line before "1." in a list is two tokens the model never saw there.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
    )


def _check_shape(model: Any, alias: Alias) -> None:
    found = {key: getattr(model.config, key, None) for key in alias.expected_config()}
    found["n_parameters"] = model.num_parameters()
    for key, expected in {**alias.expected_config(), "n_parameters": alias.n_parameters}.items():
        if found[key] != expected:
            raise ModelError(
                f"Model {alias.name!r} is not what its alias says: {key} is {found[key]!r}, "
                f"expected {expected!r}. Report this to whoever offers the alias."
            )


def _check_saved(folder: Path, tokenizer: Any, alias: Alias) -> None:
    """Read config and tokenizer back: same shape, special tokens, chat template and ids of a sentence."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    again = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    shape, special = alias.expected_config(), dict(alias.special_tokens)
    ids = tokenizer(_SENTENCE)["input_ids"]
    for what, found, expected in (
        ("config", {key: getattr(config, key, None) for key in shape}, shape),
        ("special tokens", {key: getattr(again, key, None) for key in special}, special),
        ("chat template", again.chat_template, tokenizer.chat_template),
        ("token ids", again(_SENTENCE)["input_ids"], ids),
        ("text decoded from its own tokens", again.decode(ids, skip_special_tokens=True), _SENTENCE),
    ):
        if found != expected:
            raise ModelError(
                f"Model {alias.name!r} did not survive its conversion with transformers "
                f"{transformers.__version__}: {what} {found!r}, expected {expected!r}."
            )


def _share_as_the_folder(folder: Path) -> None:
    """safetensors makes files only their owner can read; a cache may be shared by a group."""
    readable = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        path.chmod(readable)


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return tqdm(items, disable=True)
