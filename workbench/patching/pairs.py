"""Pairs of prompts whose positions correspond, and what is to be measured on each.

In every pair one run is the base, which is patched, and the other the source: denoising takes from the clean prompt and
puts into the corrupt one, noising the other way round. Positions are counted in the base run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, as_list, at_least_one
from workbench.patching.alignment import Alignment, Group, as_alignments
from workbench.patching.metrics import Metric, MetricFunction, continuation, function_of, one_each

Pair = tuple[TokenBatch, TokenBatch]
Direction = Literal["denoising", "noising"]
Activations = dict[str, Tensor]


@dataclass(frozen=True)
class Pairs:
    """Pairs of runs, which of them is the base, and their metrics.

    Attributes:
        pairs: clean and corrupt prompt of each.
        metrics: one for each.
        keep: positions at the end whose logits the metrics take (more than one for answers of several tokens).
        alignments: which positions correspond; None where all prompts have one length.
    """

    model: LanguageModel
    pairs: list[Pair]
    metrics: list[Metric]
    direction: Direction
    keep: int
    alignments: list[Alignment] | None = None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        clean: Prompt | Sequence[Prompt],
        corrupt: Prompt | Sequence[Prompt],
        metric: Any,
        direction: Direction,
        *,
        alignment: Any = None,
        one_grid: bool = True,
    ) -> Self:
        """Look everything up before anything runs.

        Args:
            model: the language model.
            clean, corrupt: one prompt each, or as many as there are pairs.
            metric: one for all, or one per pair.
            direction: which of the two is the base.
            alignment: see `alignment.as_alignments`; None: positions correspond to themselves.
            one_grid: base runs of all pairs must have one length (else their positions share no axis).

        Raises:
            PromptError: no prompts, other numbers of them, or lengths that do not go together.
            MetricError: metrics that do not suit the model, or answers of different lengths.
        """
        if direction not in ("denoising", "noising"):
            raise MetricError(f"direction is {direction!r}; expected 'denoising' or 'noising'.")
        n = len(at_least_one(clean))
        metrics = one_each(metric, model, n)
        tails = [continuation(m, model) for m in metrics]
        if len({len(tail) for tail in tails}) > 1:
            raise MetricError(
                f"The answers have {sorted({len(tail) + 1 for tail in tails})} tokens: one grid needs answers of one "
                "length. Run them in groups."
            )
        alignments = as_alignments(alignment, n)
        pairs = as_pairs(model, clean, corrupt, tails, aligned=alignments is not None)
        if alignments is not None:
            alignments = [
                _with_tail(a, pair, len(tails[0])) for a, pair in zip(alignments, pairs, strict=True)
            ]
        made = cls(model, pairs, metrics, direction, len(tails[0]) + 1, alignments)
        lengths = {base.lengths[0] for base in made.bases}
        if one_grid and len(lengths) > 1:
            raise PromptError(
                f"The runs that are patched have {sorted(lengths)} tokens: one grid of positions needs one length. "
                "Patch spans (by='span'), or run them in groups of equal length."
            )
        return made

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def length(self) -> int:
        """Tokens of the first base run."""
        return self.bases[0].lengths[0]

    @property
    def sources(self) -> list[TokenBatch]:
        """Runs that activations are taken from."""
        return [pair[self.direction == "noising"] for pair in self.pairs]

    @property
    def bases(self) -> list[TokenBatch]:
        """Runs that they are put into."""
        return [pair[self.direction == "denoising"] for pair in self.pairs]

    def function(self, i: int, source: Tensor, base: Tensor) -> MetricFunction:
        """The metric of pair i, given the logits [d_vocab] at the end of both runs."""
        return function_of(self.metrics[i], self.model, source if self.direction == "denoising" else base)

    def groups(self, i: int) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Name, positions in the base run and in the source run of what corresponds in pair i."""
        if self.alignments is None:
            return [(str(p), (p,), (p,)) for p in range(self.bases[i].lengths[0])]
        return self.alignments[i].sides(denoising=self.direction == "denoising")

    def aligned(self, i: int) -> list[int]:
        """Positions of base run i that correspond to one of its source run."""
        return sorted(p for _, base, _ in self.groups(i) for p in base)

    def moved(self, i: int, taken: Activations, own: Activations, of: int | None = None) -> Activations:
        """Activations of a source run at the positions of base run i; where nothing corresponds, its `own`.

        `of` is another pair whose source run `taken` is, whose groups of the same names are put there (the last tokens
        where their numbers differ), for controls.
        """
        if self.alignments is None:
            return taken
        theirs = {name: source for name, _, source in self.groups(i if of is None else of)}
        to, come = [], []
        for name, base, _ in self.groups(i):
            n = min(len(base), len(theirs.get(name, ())))
            to += base[len(base) - n :]
            come += theirs.get(name, ())[len(theirs.get(name, ())) - n :]
        moved = {}
        for site, values in own.items():
            if "logits" in site or taken[site] is values:
                moved[site] = taken[site]
                continue
            if site.endswith("attn.hook_pattern") and values.shape != taken[site].shape:
                raise PromptError(
                    f"{site} has {tuple(taken[site].shape[1:])} edges in one run and {tuple(values.shape[1:])} in the "
                    "other: patterns of runs of different lengths do not correspond. Patch z, q, k or v instead."
                )
            moved[site] = values.clone()
            moved[site][to] = taken[site][come].to(values)
        return moved


def as_pairs(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    continuations: Sequence[Sequence[int]] = (),
    *,
    aligned: bool = False,
) -> list[Pair]:
    """Clean and corrupt prompts as token batches, all of one length unless they are `aligned`.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs.
        continuations: token ids to append to both prompts of each pair (a longer answer's first tokens).
        aligned: somebody says which positions correspond.

    Raises:
        PromptError: no prompts, other numbers of them, or lengths that differ; the message shows both prompts' tokens.
    """
    left, right = at_least_one(clean), as_list(corrupt)
    if len(left) != len(right):
        raise PromptError(
            f"{len(left)} clean and {len(right)} corrupt prompts were given: they come in pairs."
        )
    more = list(continuations) or [[]] * len(left)
    pairs = [
        (_batch(model, a, tail), _batch(model, b, tail)) for a, b, tail in zip(left, right, more, strict=True)
    ]
    for i, (a, b) in enumerate(pairs if not aligned else []):
        if a.lengths != b.lengths:
            raise PromptError(
                f"Pair {i}: the clean prompt has {a.lengths[0]} tokens and the corrupt one {b.lengths[0]}, so "
                f"positions do not correspond. Clean: {list(a.tokens[0])}. Corrupt: {list(b.tokens[0])}. Reword one "
                "of them (names of one token each, for instance), or tell `sweep`, `attribution` or `path_patch` what "
                "corresponds (alignment=, see workbench.patching.Alignment)."
            )
        if a.lengths != pairs[0][0].lengths:
            raise PromptError(
                f"Pair {i} has {a.lengths[0]} tokens and pair 0 has {pairs[0][0].lengths[0]}: one grid needs pairs of "
                "one length. Sweep them in groups of equal length, or by spans (by='span')."
            )
    return pairs


def _batch(model: LanguageModel, prompt: Prompt, tail: Sequence[int]) -> TokenBatch:
    return model.batch(prompt) if not tail else model.batch([[*model.encode(prompt), *tail]])


def _with_tail(alignment: Alignment, pair: Pair, n: int) -> Alignment:
    """The alignment, whose last n tokens (of the answer, which both prompts have) correspond as well."""
    a, b = (batch.lengths[0] for batch in pair)
    alignment.check(a - n, b - n)
    if n == 0:
        return alignment
    answer = Group("answer", tuple(range(a - n, a)), tuple(range(b - n, b)))
    return Alignment((*alignment.groups, answer), alignment.left_out)
