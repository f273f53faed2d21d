"""`LanguageModel`: an untouched Hugging Face causal language model with the names of its sites.

Nothing is wrapped, folded or replaced: `model.hf` is the model as transformers made it and its logits are
the model's logits. What is added stands beside it: tokenisation with absolute positions, the catalog of
sites, hooks, and the way from a residual stream to logits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from workbench.errors import MetricError, ModelError, did_you_mean
from workbench.hooks.session import EditFunction, HookSession
from workbench.model import tokens
from workbench.model.fingerprint import fingerprint, tokenizer_hash
from workbench.model.tokens import Prompt, TokenBatch
from workbench.sites.catalog import Catalog, Site
from workbench.sites.namemap import name_map


class LanguageModel:
    """A causal language model, its tokenizer, and the map from site names to its submodules.

    Usually made by `workbench.load_model`. Attributes:

        hf: the transformers model, untouched, in eval mode.
        tokenizer: its tokenizer.
        name: how it was asked for.
        n_layers, d_model, n_heads, n_kv_heads, d_head, vocab_size, context_length: sizes.

    Example:
        >>> model = wb.load_model("smollm2-135m")
        >>> with model.edit({"blocks.7.hook_resid_post": lambda x: x * 1.1}):
        ...     logits = model.logits("The capital of France is")
    """

    def __init__(
        self, hf: Any, tokenizer: Any, *, name: str = "custom model", revision: str | None = None
    ) -> None:
        if not isinstance(hf, nn.Module) or not hasattr(hf, "config"):
            raise ModelError(
                f"A {type(hf).__name__} is not a transformers model: give (hf_model, tokenizer), with a model "
                "from AutoModelForCausalLM."
            )
        hf.eval()
        self.hf: Any = hf
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        config: Any = hf.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.config = text
        self.d_model: int = _size(text, "hidden_size", "n_embd", "d_model")
        self.n_heads: int = _size(text, "num_attention_heads", "n_head")
        self.n_kv_heads: int = _n_kv_heads(text) or self.n_heads
        self.d_head: int = getattr(text, "head_dim", None) or self.d_model // self.n_heads
        self.vocab_size: int = self.hf.get_input_embeddings().weight.shape[0]
        self.context_length: int | None = getattr(text, "max_position_embeddings", None)
        self.catalog = Catalog(hf, name_map(hf), name, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads)
        self.n_layers: int = self.catalog.n_layers
        self._bookkeeping_checked = False
        self._offloaded_fingerprint: str | None = None

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}: {self.catalog.map.architecture}, {self.n_layers} layers, d_model "
            f"{self.d_model}, {self.n_heads} heads, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Device of the input embedding: where token ids go (other blocks may be elsewhere)."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, hence of the activations."""
        return self.hf.dtype

    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify architecture and weights as they are now (see `workbench.model.fingerprint`)."""
        if not any(parameter.is_meta for parameter in self.hf.parameters()):
            return fingerprint(self.hf)
        if self._offloaded_fingerprint is None:  # read from the disk, perhaps: once
            self._offloaded_fingerprint = fingerprint(self.hf)
        return self._offloaded_fingerprint

    @cached_property
    def tokenizer_hash(self) -> str:
        """32 hex digits over everything that decides how text becomes token ids; `"none"` without a tokenizer."""
        return tokenizer_hash(self.tokenizer)

    # -- sites -----------------------------------------------------------------------------------------

    def sites(self) -> list[str]:
        """Every site of this model, in the order of its forward pass."""
        self._check_bookkeeping()
        return self.catalog.names

    def resolve(self, patterns: str | Iterable[str]) -> list[Site]:
        """Sites for names, globs or lists; an unknown one is a `SiteError` that names the nearest."""
        found = self.catalog.resolve(patterns)
        if not self._bookkeeping_checked and any(s.part in _ADDED or s.layer is None for s in found):
            self._check_bookkeeping()
            found = self.catalog.resolve(patterns)
        return found

    def module(self, path: str) -> nn.Module:
        """The Hugging Face submodule at `path`."""
        return self.hf.get_submodule(path)

    def block(self, layer: int) -> nn.Module:
        """The Hugging Face module of one transformer block."""
        return self.module(f"{self.catalog.blocks_path}.{layer}")

    def _check_bookkeeping(self) -> None:
        """Once per model: do the additive sites mean here what their names say? Drop them if not."""
        if not self._bookkeeping_checked:
            from workbench.sites.check import check_bookkeeping

            self._bookkeeping_checked = True  # before: the check itself asks for these sites
            try:
                check_bookkeeping(self)
            except BaseException:  # out of memory, a cancel: nothing is known yet
                self._bookkeeping_checked = False
                raise

    # -- tokens ----------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt (text, chat messages or ids); BOS is never doubled."""
        return tokens.encode(self, prompt)

    def batch(
        self, prompts: Prompt | Sequence[Prompt], *, side: Literal["left", "right"] = "right"
    ) -> TokenBatch:
        """Prompts as one padded batch with absolute positions."""
        return tokens.batch(self, prompts, side=side)

    def token_id(self, text: str | SupportsIndex) -> int:
        """The id of a text that is exactly one token (mind the leading space).

        Raises:
            MetricError: the text is several tokens (the message lists them) or a word the tokenizer does not know, the
                id is none of the model's, or there is no tokenizer for a text.
        """
        if not isinstance(text, str):
            try:
                number = operator.index(text)
            except TypeError as error:
                raise MetricError(
                    f"{text!r} is no token: give a text of one token, or a token id."
                ) from error
            if not 0 <= number < self.vocab_size:
                raise MetricError(f"Token id {number} is outside 0–{self.vocab_size - 1} of {self.name}.")
            return number
        if self.tokenizer is None:
            raise MetricError(f"{text!r} is text, but {self.name} has no tokenizer: give token ids.")
        if unknown := tokens.unknown_words(self.tokenizer, text):
            near = did_you_mean(unknown[0], self.tokenizer.get_vocab())
            raise MetricError(f"{text!r} has the word {unknown[0]!r}, which {self.name} does not know.{near}")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = [self.tokenizer.decode([i]) for i in ids]
            raise MetricError(
                f"{text!r} is {len(ids)} tokens for {self.name} ({pieces}), expected exactly one. Give a text "
                "that is one token (words inside a sentence begin with a space), or a token id."
            )
        return ids[0]

    # -- running ---------------------------------------------------------------------------------------

    def hooks(
        self,
        read: str | Iterable[str] = (),
        edit: Mapping[str, EditFunction] | None = None,
        *,
        stop: bool = False,
        select: Callable[[Tensor, Site], Tensor] | None = None,
    ) -> HookSession:
        """Read and edit activations inside a `with` block; see `workbench.hooks.session`."""
        if edit:
            self._check_bookkeeping()  # now: where an edit is at work the sums do not hold
        return HookSession(self, read, edit, stop=stop, select=select)

    def edit(self, edits: Mapping[str, EditFunction]) -> HookSession:
        """Edit activations inside a `with` block: `{"blocks.7.hook_resid_post": fn}`, fn(activation) -> new.

        The function gets a copy and returns a tensor of the same shape; with two parameters it also gets a
        `HookContext` (absolute positions, padding). Every edit must fire, else the block raises `HookError`.
        """
        return self.hooks(edit=edits)

    @torch.inference_mode()
    def forward(self, batch: TokenBatch, **kwargs: Any) -> Any:
        """One forward pass without a KV cache. Extra arguments go to the transformers model."""
        return self.hf(**batch.inputs(), use_cache=False, **kwargs)

    def logits(self, prompts: Prompt | Sequence[Prompt]) -> Tensor:
        """[batch, position, d_vocab] logits of the model itself (padded on the right)."""
        return self.forward(self.batch(prompts)).logits

    @torch.inference_mode()
    def readout(self, resid: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits of a residual stream: final norm, unembedding, and what the model does after it.

        Args:
            resid: [..., d_model] as `hook_resid_post` has it.
            tokens: ids of the tokens whose logits are wanted; None: all. In float32 the others are not computed.

        Returns:
            [..., d_vocab] logits (or [..., token]); for the last block's output, the model's own logits.
        """
        paths = self.catalog.map.paths
        hidden = resid.to(self.device)
        if "ln_final" in paths:
            hidden = self.module(paths["ln_final"])(hidden)
        if "project_out" in paths and self.catalog.has_module(paths["project_out"]):
            hidden = self.module(paths["project_out"])(hidden)
        unembed = self.module(paths["unembed"])
        if tokens is None:
            logits = unembed(hidden)
        elif type(unembed) is torch.nn.Linear and hidden.dtype == unembed.weight.dtype == torch.float32:
            rows = list(tokens)
            bias = None if unembed.bias is None else unembed.bias[rows]
            logits = torch.nn.functional.linear(hidden, unembed.weight[rows], bias)
        else:  # in lower precision one token's product may be rounded otherwise than among all
            logits = unembed(hidden)[..., list(tokens)]
        scale = getattr(self.config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        scaling = getattr(self.config, "logits_scaling", None)
        if scaling is not None:
            logits = logits / scaling
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


_ADDED = {"hook_attn_out", "hook_mlp_out", "hook_resid_mid"}


def _n_kv_heads(config: Any) -> int | None:
    """Heads of keys and values as the config says it; None where it says nothing, so as many as queries."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon and GPT-BigCode: one for all queries, whatever else the config says
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)


def _size(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ModelError(f"The model's config has none of {', '.join(names)}; is it a causal language model?")
