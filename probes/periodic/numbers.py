"""Prompts about numbers: a template with two numbers in it, and the token at which one of them stands.

A helix can only be fitted where a number is one token. `number_position` finds that token: it is the one position at
which the prompts of all numbers differ. Where they differ in length or at several positions a number is written
in several tokens, and the error says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from probes.periodic.basis import whole_numbers
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.provenance import Provenance


@dataclass(frozen=True)
class NumberTask:
    """Arithmetic prompts.

    Attributes:
        template: text with `{a}` and `{b}`.
        numbers: values of the number that is probed and replaced; a range stays one, all else becomes a tuple.
        others: values of the other number.
        operand: which of the two stands at the token that is probed.
        operation: what the answer is, of a and b.
        answer: text with `{c}` for the result; one token.
        modulus: the answer is taken modulo this, where given.

    Raises:
        DataError: a template or answer without its marks or with others, numbers that are not whole, fewer than two
            different ones, no others, an operand or operation that is none of those, or a modulus below 1.

    Example:
        >>> task = NumberTask("{a} + {b} =", range(100), range(100))
        >>> task.prompt(3, 4), task.answer_text(3, 4)
        ('3 + 4 =', ' 7')
    """

    template: str
    numbers: Sequence[int] | np.ndarray
    others: Sequence[int] | np.ndarray
    operand: Literal["a", "b"] = "a"
    operation: Literal["+", "-", "*"] = "+"
    answer: str = " {c}"
    modulus: int | None = None

    def __post_init__(self) -> None:
        for mark in ("{a}", "{b}"):
            if mark not in self.template:
                raise DataError(
                    f"The template {self.template!r} has no {mark}: give a text with {{a}} and {{b}}."
                )
        if "{c}" not in self.answer:
            raise DataError(f"The answer {self.answer!r} has no {{c}}, where the result goes.")
        for name, text, marks in (("template", self.template, "ab"), ("answer", self.answer, "c")):
            try:
                text.format(**dict.fromkeys(marks, 0))
            except (LookupError, ValueError) as error:
                said = " and ".join(f"{{{mark}}}" for mark in marks)
                raise DataError(
                    f"The {name} {text!r} has other braces than {said} ({error!r}): write {{{{ and }}}} for braces "
                    "that belong to the text."
                ) from error
        if self.operand not in ("a", "b") or self.operation not in ("+", "-", "*"):
            raise DataError(
                f"The operand is 'a' or 'b' and the operation '+', '-' or '*', not {self.operand!r} and "
                f"{self.operation!r}."
            )
        if self.modulus is not None and self.modulus < 1:
            raise DataError(f"The modulus is 1 or more, or None for none, not {self.modulus}.")
        for name in ("numbers", "others"):
            given = getattr(self, name)
            if not isinstance(given, range) and len(
                given
            ):  # those of numpy as Python's: JSON knows no others
                object.__setattr__(self, name, tuple(whole_numbers(given).tolist()))
        if len(set(self.numbers)) < 2 or not len(self.others):
            raise DataError("A task needs two or more different numbers, and at least one other number.")

    def prompt(self, number: int, other: int) -> str:
        """The prompt with the probed number and the other one."""
        a, b = (number, other) if self.operand == "a" else (other, number)
        return self.template.format(a=a, b=b)

    def result(self, number: int, other: int) -> int:
        """The right result."""
        a, b = (number, other) if self.operand == "a" else (other, number)
        found = {"+": a + b, "-": a - b, "*": a * b}[self.operation]
        return found % self.modulus if self.modulus else found

    def answer_text(self, number: int, other: int) -> str:
        """The right answer as the model would write it."""
        return self.answer.format(c=self.result(number, other))

    def to_dict(self) -> dict[str, Any]:
        """For a provenance."""
        return asdict(self) | {"numbers": list(self.numbers), "others": list(self.others)}


def ids_of(
    model: LanguageModel, task: NumberTask, numbers: Sequence[int], others: Sequence[int]
) -> Int64[np.ndarray, "prompt position"]:
    """Token ids of some prompts.

    Raises:
        DataError: prompts of different lengths, so that no position is that of the number.
        PromptError: a word that the model does not know.
    """
    rows = [model.batch(task.prompt(n, o)).ids[0].tolist() for n, o in zip(numbers, others, strict=True)]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        short, long = (next(r for r in rows if len(r) == length) for length in (min(lengths), max(lengths)))
        spelt = [model.tokenizer.decode(r) for r in (short, long)]
        raise DataError(
            f"{spelt[0]!r} has {len(short)} tokens and {spelt[1]!r} has {len(long)} for {model.name}: numbers "
            "must be one token each. Take a range in which they are."
        )
    return np.array(rows)


def number_position(model: LanguageModel, task: NumberTask) -> int:
    """The position of the probed number's token.

    Raises:
        DataError: it is written in more than one token, or two numbers in the same one.
    """
    numbers, other = sorted(set(task.numbers)), task.others[0]
    ids = ids_of(model, task, numbers, [other] * len(numbers))
    # Those of all numbers: 10 and 20 differ at one token where digits are tokens, and 10, 15 and 20 do not.
    differs = np.flatnonzero((ids != ids[0]).any(0))
    if len(differs) != 1:
        raise DataError(
            f"{task.prompt(numbers[0], other)!r} and those of the other numbers up to {numbers[-1]} differ at "
            f"{len(differs)} tokens for {model.name}, expected one: the number must be one token, and stand once "
            "in the template."
        )
    position = int(differs[0])
    _, first = np.unique(ids[:, position], return_index=True)
    if len(first) < len(numbers):
        same = next(i for i in range(len(numbers)) if i not in first)
        raise DataError(
            f"{model.name} writes {numbers[same]} with the token of another of the numbers: leave one of them out."
        )
    return position


@dataclass(frozen=True, eq=False)
class NumberActivations:
    """Activations at a number's token.

    Attributes:
        rows: layer -> [row, d] residual stream before that block; the last layer is the output of the last block.
        numbers: [row] the number there.
        others: [row] the other number of the prompt.
        position: of the token.
        provenance: model and prompts.
    """

    rows: dict[int, Float32[np.ndarray, "row d"]]
    numbers: Int64[np.ndarray, " row"]
    others: Int64[np.ndarray, " row"]
    position: int
    provenance: Provenance


def site_of(model: LanguageModel, layer: int) -> str:
    """The residual stream before block `layer`; of `n_layers`, after the last block.

    Raises:
        DataError: no such layer.
    """
    if not 0 <= layer <= model.n_layers:
        raise DataError(
            f"There is no layer {layer}: {model.name} has 0 to {model.n_layers} (after the last block)."
        )
    if layer == model.n_layers:
        return f"blocks.{layer - 1}.hook_resid_post"
    return f"blocks.{layer}.hook_resid_pre"


def read_numbers(
    model: LanguageModel,
    task: NumberTask,
    *,
    layers: Sequence[int] | None = None,
    n_contexts: int = 1,
    seed: int = 0,
) -> NumberActivations:
    """The residual stream at the number's token, for every number of the task.

    Args:
        model: the language model.
        task: prompts.
        layers: None: all, from 0 (before the first block) to `n_layers` (after the last).
        n_contexts: prompts for each number, with other numbers drawn at random. Where the number stands before the
            other one, causal attention makes them all the same, and one is enough.
        seed: of the other numbers.

    Raises:
        DataError: numbers of several tokens, or no such layer.
    """
    from workbench.activations import collect

    if n_contexts < 1:
        raise DataError(f"n_contexts is {n_contexts}: give 1 or more.")
    wanted = list(range(model.n_layers + 1)) if layers is None else list(layers)
    sites = {layer: site_of(model, layer) for layer in wanted}
    position = number_position(model, task)
    numbers = np.repeat(np.array(sorted(set(task.numbers)), dtype=np.int64), n_contexts)
    others = np.random.default_rng([seed, 3]).choice(np.array(task.others, dtype=np.int64), len(numbers))
    ids = ids_of(model, task, numbers.tolist(), others.tolist())
    acts = collect(model, ids.tolist(), sites=list(dict.fromkeys(sites.values())), positions=position)
    rows = {layer: acts[site][:, 0].flatten(1).float().numpy() for layer, site in sites.items()}
    return NumberActivations(rows, numbers, others, position, acts.provenance)
