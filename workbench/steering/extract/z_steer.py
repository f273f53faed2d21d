"""Latent steering vectors: one vector that makes a frozen model write a given sentence.

    z* = argmax_z  Σ_t log p(x_t | prefix, x_<t, z)          h_l[t] += z at one layer l, at chosen positions

    where="all"    z is added at every token: prefix and sentence
    where="last"   at the last token of the prefix alone, the one that predicts x_1 (with a prefix of one token, the
                   paper's "first timestep")

Greedy decoding from the prefix with z added then writes the sentence. Subramani et al. 2022, 2205.05124, found BLEU
above 99 on GPT-2 with z of the hidden size (their W is the identity then), which is what is built here. Adam, many
sentences at once, only the blocks above l computed (`above`), each row stopping when it is solved (`z_optimise`).

The prefix matters. Models park an attention sink at position 0: SmolLM2's stream there has norm 25,000 from block 12
on, so a z of ordinary size changes nothing about what position 0 predicts, and with a prefix of one token x_1 stays
wrong. With a few tokens before the sentence ("<|im_start|>assistant\\n") all of it comes back within ten steps.

Lengths are relative: `learning_rate` and `init` are in units of the stream's root-mean-square component at that layer.

z is not identified: many vectors write the same sentence. The cosine between restarts says how far, and stands beside
its null, the cosine of two random vectors. Controls: no z, a random z of the same norm, the z of another sentence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError, PromptError
from workbench.model.tokens import Prompt, as_list
from workbench.progress import Silent
from workbench.provenance import provenance
from workbench.steering.extract import z_result
from workbench.steering.extract.above import Above
from workbench.steering.extract.z_optimise import Schedule, Settings, search

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress
    from workbench.results import Result

Where = Literal["all", "last"]
TOKENS_PER_CALL = 640
"""Tokens differentiated at once: about 3 MB each in SmolLM2, most of it logits."""


@dataclass(frozen=True, eq=False)
class ZSteer:
    """Vectors that write sentences.

    Attributes:
        directions: one for each sentence, of its best restart; `scale` is ‖z‖, so `strength=d.scale` writes it.
        result: `Result` of kind `z_steer`; see `z_steer`.
        prefix: token ids to begin with.
        where: position rule to apply them with.
    """

    directions: DirectionSet
    result: Result
    prefix: tuple[int, ...]
    where: Where


def z_steer(
    model: LanguageModel,
    sentences: Prompt | Sequence[Prompt],
    layer: int,
    *,
    prefix: Prompt | None = None,
    where: Where = "all",
    restarts: int = 1,
    steps: int = 300,
    learning_rate: float = 0.5,
    init: float = 0.1,
    warmup: int = 10,
    schedule: Schedule = "cosine",
    margin: float = 0.05,
    end: bool = False,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> ZSteer:
    """Search for the vector that makes the model write each sentence, and check by generating.

    Args:
        model: the language model, in float32 for exactness; it is not changed.
        sentences: texts or token ids, no two the same.
        layer: z is added to the stream after this block.
        prefix: what stands before the sentence: text, chat or ids. Default: the beginning-of-sequence token (see the
            module on sinks).
        where: `all` (default) or `last`.
        restarts: searches a sentence, from different random vectors; the one whose z has the highest log-likelihood
            among the solved (else of all) is its z.
        steps: forward passes at most.
        learning_rate: of Adam, per component, in units of the stream's root-mean-square component.
        init: standard deviation of the first z, in the same units.
        warmup, schedule: the learning rate rises over so many steps, then stays (`constant`) or falls along a `cosine`.
        margin: logits by which each token must lead before a row stops, so that other kernels agree on it.
        end: the end-of-sequence token belongs to the sentence.
        seed: of first vectors and random controls.
        tokens_per_call: bound on memory; results depend on it in the last digits only.
        progress: stage "z_steer", one item a step; then "generate".

    Returns:
        `ZSteer`. Its result has dims `sentence`, `restart`, `step`: `log_likelihood` [sentence, restart, step] (nats,
        NaN after the stop), `steps`, `solved` (teacher-forced argmax), `exact` (generated), `bleu` (sentence BLEU-4 on
        token ids), `norm` [sentence, restart]; `best`, `written`, `bleu_no_z`, `bleu_random_z`, `bleu_other_z`
        [sentence] (NaN for one sentence); `restart_cosine` [sentence, pair] (signed; the summary's
        is the mean of |cos|, beside that of random vectors). `summary`: shares with Wilson intervals, BLEU and
        that of each control (of the corpus, and the mean over sentences, which is smoothed).

    Raises:
        DataError: no sentences, the same twice, settings that make no sense.
        PromptError: an empty sentence, or no beginning-of-sequence token where no prefix is given.
        ModelError: no such layer.

    Example:
        >>> found = z_steer(model, ["The film was good."], layer=8, prefix="<|im_start|>assistant\\n")
        >>> d = found.directions[0]
        >>> wb.steering.generate(model, [list(found.prefix)], d, d.scale, where=found.where).texts
    """
    started, progress = time.perf_counter(), progress or Silent()
    listed = as_list(sentences)
    if not listed:
        raise DataError("No sentences were given: z_steer needs at least one to reconstruct.")
    if where not in ("all", "last") or schedule not in ("constant", "cosine"):
        raise DataError(
            f"where={where!r}, schedule={schedule!r}: give 'all' or 'last', 'constant' or 'cosine'."
        )
    if min(restarts, steps) < 1 or not (learning_rate > 0 and init >= 0):
        raise DataError(
            f"restarts={restarts}, steps={steps}, learning_rate={learning_rate}, init={init}: at least one restart and "
            "step, a learning rate above 0 and an init of 0 or more."
        )
    before, targets = _tokens(model, listed, prefix, end)
    above = Above(model, [[*before, *target] for target in targets], len(before), layer)
    unit = _component(above)
    rows = [i for i in range(len(targets)) for _ in range(restarts)]
    mask = torch.zeros(max(above.lengths), dtype=torch.bool)
    mask[slice(None) if where == "all" else len(before) - 1] = True
    settings = Settings(
        steps=steps, learning_rate=learning_rate * unit, init=init * unit, warmup=warmup, schedule=schedule,
        margin=margin, seed=seed, tokens_per_call=tokens_per_call,
    )  # fmt: skip
    progress.stage("z_steer", steps)
    found = search(above, rows, mask, settings, progress)
    searched = time.perf_counter()
    used: dict[str, Any] = {
        "layer": layer, "where": where, "prefix": before, "restarts": restarts, "steps": steps,
        "learning_rate": learning_rate, "init": init, "stream_component": unit, "warmup": warmup, "schedule": schedule,
        "margin": margin, "end": end,
    }  # fmt: skip
    measured = z_result.measure(model, found, targets, before, where, layer, seed, progress)
    made = provenance(
        model,
        tokens=[[*before, *t] for t in targets],
        seed=seed,
        seconds={"search": searched - started, "generate": time.perf_counter() - searched},
        settings=used,
    )
    spell = model.tokenizer.decode if model.tokenizer is not None else lambda ids: " ".join(map(str, ids))
    names = [p if isinstance(p, str) else spell(t) for p, t in zip(listed, targets, strict=True)]
    result = z_result.build(found, measured, targets, names, made, used, spell)
    directions = [
        Direction.from_vector(
            found.z[i * restarts + int(measured.best[i])],
            site=f"blocks.{layer}.hook_resid_post",
            name=name,
            source="z_steer",
            model_fingerprint=model.fingerprint,
            settings={**used, **z_result.of_sentence(result, i)},
            provenance=made.to_dict(),
        )
        for i, name in enumerate(names)
    ]
    return ZSteer(DirectionSet(directions, name="z_steer", settings=used), result, tuple(before), where)


def _tokens(
    model: LanguageModel, sentences: Sequence[Prompt], prefix: Prompt | None, end: bool
) -> tuple[list[int], list[list[int]]]:
    """Ids of the prefix and of each sentence."""
    tokenizer = model.tokenizer
    begin = getattr(tokenizer, "bos_token_id", None)
    if prefix is None:
        if begin is None:
            raise PromptError(
                f"{model.name} has no beginning-of-sequence token: give a prefix, such as a newline."
            )
        before = [int(begin)]
    else:
        before = model.encode(prefix)
    targets = []
    for i, sentence in enumerate(sentences):
        ids = model.encode(sentence)
        if isinstance(sentence, str) and begin is not None and ids[0] == begin:
            ids = ids[1:]  # the tokenizer put it there
        if end:
            if tokenizer is None or tokenizer.eos_token_id is None:
                raise PromptError(f"{model.name} has no end-of-sequence token: use end=False.")
            ids = [*ids, tokenizer.eos_token_id]
        if not ids:
            raise PromptError(f"Sentence {i} has no tokens.")
        if tuple(ids) in map(tuple, targets):
            raise DataError(f"Sentence {i} ({sentence!r}) is there twice: give each once, and use restarts.")
        if not end and tokenizer is not None and tokenizer.eos_token_id in ids:
            raise PromptError(f"Sentence {i} has the end-of-sequence token in it, where generation stops.")
        targets.append(ids)
    longest = len(before) + max(map(len, targets))
    if model.context_length and longest > model.context_length:
        raise PromptError(
            f"Prefix and sentence have {longest} tokens, but {model.name} reads {model.context_length}."
        )
    return before, targets


def _component(above: Above) -> float:
    """Root-mean-square component of the stream: the median over tokens but position 0, which may be a sink."""
    tokens = torch.cat([above.stream[i, 1:n] for i, n in enumerate(above.lengths)])
    return float(tokens.float().square().mean(-1).sqrt().median())
