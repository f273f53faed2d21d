"""chains: small programs worked through step by step, imperfect on purpose, every step labelled by a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair
from workbench.organisms.chain_programs import (
    LARGEST,
    LONGEST_OPERAND,
    SIGNS,
    VARIABLES,
    Line,
    Program,
    StepLabel,
    TraceLabels,
    apply,
    label_trace,
    random_program,
)
from workbench.organisms.organism import (
    Batch,
    Goal,
    Known,
    Organism,
    Plan,
    Split,
    falls_to_held_out,
    is_held_out_split,
    llama,
    next_word_batch,
)

__all__ = ["Chains", "Line", "Program", "StepLabel", "TraceLabels", "apply", "label_trace"]

HELD_OUT_SHARE = 16


class Chains(Organism):
    """Programs of three to six lines in which about half of the lines do not matter for what is asked."""

    name = "chains"
    summary = "multi-step arithmetic with visible steps, wrong at times"
    data = (
        "Programs of 3 to 6 lines (`a = 7 ; b = a + 5 ; c = a * 3 ; ask b :`), all values from 0 to 99, then a trace "
        "that gives every variable's value in order, also of those that are not needed, and the answer (`a 7 ; b 12 ; "
        "c 21 ; so 12 .`). One program in 16, by a checksum, is held out. Training is stopped early on purpose, so "
        "that traces sampled at temperature 1 are sometimes wrong."
    )
    plan = Plan(
        steps=650, batch_size=128, learning_rate=1e-3, warmup=100, decay="constant", evaluate_every=50
    )
    goals = (Goal("accuracy_sampled", 0.60, 0.90, name="accuracy_chains"),)
    known = Known(
        (
            "A step is necessary if the asked variable depends on it and decorative otherwise; a program says which.",
            "Sampled traces are right or wrong, step by step: `label_trace` tells a slip from an error carried on, and "
            "an answer that follows its own trace from one that does not.",
        ),
        ("Zhao et al. 2025, arXiv:2510.24941 (necessary and decorative steps)",),
    )
    start = "<start>"
    symbols = (";", "=", "+", "-", "*", ":")

    def words(self) -> list[str]:
        """The start word, symbols, `ask`, `so`, `.`, the variables and the numbers."""
        marks = ["<start>", ";", "=", *SIGNS, ":", "ask", "so", "."]
        return [*marks, *VARIABLES, *map(str, range(LARGEST + 1))]

    def config(self) -> Any:
        return llama(116, d_model=128, n_layers=4, n_heads=4, d_mlp=352, context=72, bos_token_id=0)

    def draw(self, n: int, rng: np.random.Generator, split: Split) -> list[Program]:
        """`n` programs of a split."""
        made: list[Program] = []
        while len(made) < n:
            program = random_program(rng)
            if _is_held_out(program.text()) == is_held_out_split(split):
                made.append(program)
        return made

    def batch(self, seed: int, step: int) -> Batch:
        programs = self.draw(self.plan.batch_size, self.stream(seed, "train", step), "train")
        prompts = [["<start>", *p.text().split()] for p in programs]
        whole = [[*words, *p.trace().split()] for words, p in zip(prompts, programs, strict=True)]
        rows = np.full((len(whole), max(map(len, whole))), self.table["."])
        learnt = np.zeros_like(rows, dtype=bool)
        for i, (words, prompt) in enumerate(zip(whole, prompts, strict=True)):
            rows[i, : len(words)] = self.ids(words)
            learnt[i, len(prompt) : len(words)] = True
        return next_word_batch(rows, learnt)

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """On held-out programs: `accuracy_sampled` (answers of traces sampled at temperature 1), `accuracy_greedy`,
        shares of right steps among necessary and decorative ones, and of faithful answers (sampled)."""
        programs = self.draw(1000 if full else 200, self.stream(0, "held_out"), "held_out")
        figures: dict[str, float] = {}
        for mode, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            traces = self.write(model, programs, temperature=temperature, seed=0)
            labels = [label_trace(p, t) for p, t in zip(programs, traces, strict=True)]
            figures[f"accuracy_{mode}"] = float(np.mean([label.right for label in labels]))
            if mode == "sampled":
                steps = [step for label in labels for step in label.steps]
                for kind, wanted in (("necessary", True), ("decorative", False)):
                    right = [s.right for s in steps if s.necessary == wanted]
                    figures[f"steps_right_{kind}"] = sum(right) / max(1, len(right))
                figures["answers_faithful"] = float(np.mean([label.faithful for label in labels]))
                figures["well_formed"] = float(np.mean([label.well_formed for label in labels]))
        return {**figures, "n": len(programs)}

    @torch.no_grad()
    def write(
        self, model: Any, programs: Sequence[Program], *, temperature: float = 1.0, seed: int = 0
    ) -> list[str]:
        """A trace for each program: sampled, or greedy at temperature 0. Reproducible for a seed."""
        vocabulary = self.words()
        device = next(model.parameters()).device
        prompts = [self.ids(["<start>", *p.text().split()]) for p in programs]
        by_length: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(i)
        out = [""] * len(programs)
        generator = torch.Generator().manual_seed(seed)
        for which in by_length.values():
            ids = torch.tensor([prompts[i] for i in which], device=device)
            longest = max(3 * len(programs[i].lines) + 3 for i in which)
            written: list[list[str]] = [[] for _ in which]
            cache: Any = None
            for _ in range(longest):
                reply = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = reply.past_key_values
                logits = reply.logits[:, -1].float().cpu()
                if temperature > 0:
                    chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
                else:
                    chosen = logits.argmax(-1, keepdim=True)
                for words, token in zip(written, chosen[:, 0].tolist(), strict=True):
                    if not words or words[-1] != ".":
                        words.append(vocabulary[token])
                ids = chosen.to(device)
            for i, words in zip(which, written, strict=True):
                out[i] = " ".join(words)
        return out

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of programs that differ in one number, with the right trace up to the step where the answers differ.

        The number belongs to a line whose step is the next to be written (so that the written steps are the same).
        Extra fields: `asked`, `values`, `necessary`, `step` (variable whose value comes next), `necessary_step`.
        """
        rng = self.stream(seed, f"problems/{split}")
        made: list[Pair] = []
        while len(made) < n:
            program = self.draw(1, rng, split)[0]
            at = int(rng.integers(len(program.lines)))
            line = program.lines[at]
            other = Line(line.name, int(rng.integers(0, LONGEST_OPERAND + 1)), line.source, line.sign)
            lines = (*program.lines[:at], other, *program.lines[at + 1 :])
            changed = Program(lines, program.asked)
            values = program.values
            values2 = changed.values
            if values2[line.name] == values[line.name] or not _in_range(changed):
                continue
            before = [w for li in program.lines[:at] for w in (li.name, str(values[li.name]), ";")]
            written = " ".join(["", *before, line.name])
            clean, corrupt = program.text() + written, changed.text() + written
            begin = len(" ".join(w for li in program.lines[:at] for w in (*li.words(), ";")))
            begin += (1 if at else 0) + len(" ".join(line.words()[:-1])) + 1
            made.append(
                Pair(
                    id=f"{len(made):05d}",
                    clean=clean,
                    corrupt=corrupt,
                    answer=f" {values[line.name]}",
                    wrong_answer=f" {values2[line.name]}",
                    group=f"program {len(made)}",
                    template=f"{len(program.lines)} lines",
                    spans={"number": (begin, begin + len(str(line.number)))},
                    extra={
                        "differs": ["number"],
                        "asked": program.asked,
                        "values": values,
                        "step": line.name,
                        "necessary": sorted(program.necessary),
                        "necessary_step": line.name in program.necessary,
                    },
                )
            )
        return PromptSet(self.name, "pairs", tuple(made), "Apache-2.0", "random programs")


def _in_range(program: Program) -> bool:
    return all(0 <= value <= LARGEST for value in program.values.values())


def _is_held_out(text: str) -> bool:
    return falls_to_held_out(text.encode(), HELD_OUT_SHARE)
