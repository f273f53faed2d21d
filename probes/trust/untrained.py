"""The untrained-model control: the same architecture with weights as they are before training.

    probe on the model − probe on its untrained twin

is what training put there. Much can be read off a random network, since it is a random map of its input: tokens, their
positions and neighbours stay linearly readable (Zhang and Bowman 2018, arXiv:1809.10040; Hewitt and Liang 2019,
arXiv:1909.03368). The twin is made by the model's own class and config, so it is initialised as its authors train it
from; two variants:

    keep_embedding=False  everything is drawn anew, the embeddings included
    keep_embedding=True   token (and learned position) embeddings stay the trained ones, all blocks are random:
                          what the words' own vectors bring, without anything computed from them

The given model is not touched, and torch's random state is left as it was, on every device: weights are drawn on the
CPU and then moved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import ModelError

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.model.tokens import Positions, Prompt
    from workbench.progress import Progress


def untrained_model(model: LanguageModel, *, seed: int = 0, keep_embedding: bool = False) -> LanguageModel:
    """A model of the same architecture, tokenizer, dtype and device with freshly initialised weights.

    Args:
        model: any language model; it is not changed.
        seed: of the initialisation.
        keep_embedding: copy the trained token embedding, and the position embedding where one is learned. (Where
            the unembedding is tied to the embedding it is then the trained one, too.)

    Returns:
        Another `LanguageModel`, with its own fingerprint; its name says that it is untrained, and with which seed.

    Raises:
        ModelError: the model's class cannot be made from a config (it is not a transformers model), or it is
            quantised, which has no meaning for weights that are drawn.

    Example:
        >>> twin = untrained_model(model, seed=1)
        >>> twin.fingerprint != model.fingerprint, twin.n_layers == model.n_layers
        (True, True)
    """
    from workbench.model.language_model import LanguageModel
    from workbench.model.looped import loop_of, unroll

    hf = model.hf
    if getattr(hf, "is_quantized", False) or getattr(hf.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{model.name} is quantised: load it without quantisation to make its untrained twin."
        )
    make: Any = getattr(type(hf), "_from_config", None)
    if make is None:
        raise ModelError(
            f"A {type(hf).__name__} cannot be made from its config: the untrained control needs a transformers model."
        )
    config = copy.deepcopy(hf.config)
    loop = loop_of(config)
    if loop is not None:  # stored with each block once, so that repetitions share their weights here, too
        config.num_hidden_layers = loop.prelude + loop.core + loop.coda
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[: config.num_hidden_layers]
    # The CPU's own generator: torch.manual_seed would seed those of the accelerators, too, and leave them so.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        fresh = make(
            config, dtype=hf.dtype, attn_implementation=getattr(config, "_attn_implementation", None)
        )
    if loop is not None:
        unroll(fresh, loop.loops)
    fresh = fresh.to(model.device)
    fresh.requires_grad_(False)
    if keep_embedding:
        _copy_embeddings(model, fresh)
    kept = ", trained embedding" if keep_embedding else ""
    return LanguageModel(fresh, model.tokenizer, name=f"{model.name}, untrained (seed {seed}{kept})")


def _copy_embeddings(model: LanguageModel, fresh: Any) -> None:
    paths = [model.catalog.map.paths.get(name) for name in ("embed", "pos_embed")]
    with torch.no_grad():
        for path in paths:
            if path is None or not model.catalog.has_module(path):
                continue
            source, target = model.module(path), fresh.get_submodule(path)
            for name, parameter in target.named_parameters():
                parameter.copy_(source.get_parameter(name))


def collect_untrained(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    positions: Positions | Sequence[Sequence[int]] = -1,
    *,
    seed: int = 0,
    keep_embedding: bool = False,
    progress: Progress | None = None,
) -> Activations:
    """Activations of the untrained twin at the same sites and positions; arguments as `workbench.collect`.

    The twin is dropped afterwards; the provenance names it, with its seed and the model it is the twin of.

    Example:
        >>> control = collect_untrained(model, statements.texts, seed=0)
        >>> probes.sweep(control, statements.labels, groups=statements.groups)
    """
    from workbench.activations import collect

    twin = untrained_model(model, seed=seed, keep_embedding=keep_embedding)
    acts = collect(twin, prompts, sites, positions, progress=progress)
    about = {"twin_of": model.fingerprint, "seed": seed, "keep_embedding": keep_embedding}
    made = replace(acts.provenance, seed=seed, settings={**acts.provenance.settings, "untrained": about})
    return replace(acts, provenance=made)
