"""What came out of a z_steer search: generated text, controls, and the labelled result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from workbench.directions import Direction
from workbench.results import Result, array
from workbench.steering.extract.bleu import corpus_bleu, sentence_bleu
from workbench.steering.extract.z_optimise import Search

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress
    from workbench.provenance import Provenance

ROWS_PER_CALL = 64
CONTROLS = ("no_z", "random_z", "other_z")


@dataclass(frozen=True, eq=False)
class Measured:
    """Generated tokens, and what they say.

    Attributes:
        written: [sentence][restart] tokens.
        controls: name -> [sentence] tokens; `other_z` is missing where there is one sentence.
        best: [sentence] number of the restart that is kept.
    """

    written: list[list[list[int]]]
    controls: dict[str, list[list[int]]]
    best: np.ndarray


def measure(
    model: LanguageModel,
    found: Search,
    targets: Sequence[Sequence[int]],
    prefix: Sequence[int],
    where: Any,
    layer: int,
    seed: int,
    progress: Progress,
) -> Measured:
    """Greedy generation with every z, and with the controls of the best."""
    n = len(targets)
    restarts = len(found.z) // n
    ranked = (kept_log_likelihood(found).nan_to_num(nan=-1e30) + found.solved * 1e12).view(n, restarts)
    best = ranked.argmax(1).numpy()
    kept = found.z.view(n, restarts, -1)[torch.arange(n), torch.from_numpy(best)]
    drawn = torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed + 1))
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * kept.norm(dim=1, keepdim=True)
    sides = {"found": found.z, "no_z": None, "random_z": drawn}
    if n > 1:
        sides["other_z"] = kept.roll(1, 0)
    progress.stage("generate", len(sides))
    tokens: dict[str, list[list[int]]] = {}
    for side, vectors in sides.items():
        wanted = [len(t) for t in targets for _ in range(restarts if side == "found" else 1)]
        tokens[side] = _written(model, vectors, wanted, prefix, where, layer)
        progress.advance()
    written = [tokens["found"][i * restarts : (i + 1) * restarts] for i in range(n)]
    return Measured(written, {name: tokens[name] for name in CONTROLS if name in tokens}, best)


def kept_log_likelihood(found: Search) -> torch.Tensor:
    """[row] float64 log-likelihood of the z that is kept: of a solved row the last, of another the highest."""
    curve = found.log_likelihood.double()
    last = curve.gather(1, (found.steps - 1)[:, None])[:, 0]
    return torch.where(found.solved, last, curve.nan_to_num(nan=-torch.inf).amax(1))


def _written(
    model: LanguageModel,
    vectors: torch.Tensor | None,
    wanted: Sequence[int],
    prefix: Sequence[int],
    where: Any,
    layer: int,
) -> list[list[int]]:
    """Greedy continuations of the prefix, each as long as its sentence."""
    from workbench.steering.generate import generate

    site = f"blocks.{layer}.hook_resid_post"
    if vectors is None:
        (plain,) = generate(model, [list(prefix)], max_new_tokens=max(wanted)).tokens
        return [_closed(model, plain, n) for n in wanted]
    out: list[list[int]] = [[] for _ in wanted]
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])  # those of like length together
    for start in range(0, len(wanted), ROWS_PER_CALL):
        rows = order[start : start + ROWS_PER_CALL]
        directions = [Direction.from_vector(vectors[i], site=site) for i in rows]
        made = generate(
            model,
            [list(prefix)] * len(directions),
            directions,
            [d.scale for d in directions],
            max_new_tokens=max(wanted[i] for i in rows),
            where=where,
        )
        for i, tokens in zip(rows, made.tokens, strict=True):
            out[i] = _closed(model, tokens, wanted[i])
    return out


def _closed(model: LanguageModel, tokens: Sequence[int], n: int) -> list[int]:
    """The first n tokens; the end-of-sequence token, where generation stopped at it, is put back."""
    end = model.tokenizer.eos_token_id if model.tokenizer is not None else None
    return [*tokens, *([end] if end is not None else [])][:n]


def build(
    found: Search,
    measured: Measured,
    targets: Sequence[Sequence[int]],
    names: Sequence[str],
    made: Provenance,
    settings: dict[str, Any],
    decode: Callable[[list[int]], str],
) -> Result:
    """The labelled result; see `z_steer.z_steer` for its variables."""
    n, restarts = len(targets), settings["restarts"]
    shape = (n, restarts)
    each = ("sentence", "restart")
    bleu = np.array(
        [[sentence_bleu(w, t) for w in ws] for ws, t in zip(measured.written, targets, strict=True)]
    )
    exact = np.array(
        [[list(w) == list(t) for w in ws] for ws, t in zip(measured.written, targets, strict=True)]
    )
    pairs = list(itertools.combinations(range(restarts), 2))
    unit = torch.nn.functional.normalize(found.z.double(), dim=1).view(*shape, -1)
    cosines = np.array([[float(unit[i, a] @ unit[i, b]) for a, b in pairs] for i in range(n)]).reshape(n, -1)
    controls = {
        name: np.array([sentence_bleu(w, t) for w, t in zip(tokens, targets, strict=True)])
        for name, tokens in measured.controls.items()
    }
    best = (np.arange(n), measured.best)
    kept_bleu, kept_exact = bleu[best], exact[best]
    written = [ws[b] for ws, b in zip(measured.written, measured.best, strict=True)]
    curve = found.log_likelihood.view(*shape, -1)
    variables = {
        "log_likelihood": array((*each, "step"), curve, units="nats", long_name="log p of the sentence"),
        "steps": array(each, found.steps.view(shape), long_name="forward passes"),
        "solved": array(each, found.solved.view(shape), long_name="every token is the argmax, by the margin"),
        "exact": array(each, exact, long_name="greedy generation writes the sentence"),
        "bleu": array(each, bleu, long_name="sentence BLEU-4 on token ids, of generation"),
        "norm": array(each, found.z.norm(dim=1).view(shape), units="activation", long_name="norm of z"),
        "best": array(("sentence",), measured.best, long_name="restart that is kept"),
        "written": array(("sentence",), [decode(w) for w in written], long_name="what generation wrote"),
    }
    for name in CONTROLS:
        values = controls.get(name, np.full(n, np.nan))
        text = f"sentence BLEU-4 on token ids, {name.replace('_', ' ')}"
        variables[f"bleu_{name}"] = array(("sentence",), values, long_name=text)
    if pairs:
        variables["restart_cosine"] = array(
            ("sentence", "pair"), cosines, long_name="cosine between restarts"
        )
    data = xr.Dataset(
        variables,
        coords={
            "sentence": np.arange(n),
            "text": ("sentence", np.array(names, dtype=str)),
            "n_tokens": ("sentence", np.array([len(t) for t in targets])),
            **({"pair": [f"{a}–{b}" for a, b in pairs]} if pairs else {}),
        },
        attrs={**settings, "n": n, "control": "no z; a random z of the same norm; the z of another sentence"},
    )
    summary: dict[str, Any] = {
        "n": n,
        "exact": _share(kept_exact),
        "bleu_at_least_95": _share(kept_bleu >= 95),
        "corpus_bleu": round(corpus_bleu(written, targets), 2),
        **{
            f"corpus_bleu_{name}": round(corpus_bleu(tokens, targets), 2)
            for name, tokens in measured.controls.items()
        },
        "bleu": round(float(kept_bleu.mean()), 2),
        **{f"bleu_{name}": round(float(values.mean()), 2) for name, values in controls.items()},
        "median_steps": float(np.median(found.steps.view(shape).numpy()[best])),
        "solved_but_not_written": int((found.solved.view(shape).numpy()[best] & ~kept_exact).sum()),
    }
    if pairs:
        summary["restart_cosine"] = round(float(np.abs(cosines).mean()), 4)  # mean |cos|, as the line below
        summary["random_cosine"] = round(float(np.sqrt(2 / np.pi / found.z.shape[1])), 4)
    return Result("z_steer", data, made, summary)


def of_sentence(result: Result, i: int) -> dict[str, Any]:
    """What a sentence's direction keeps of the result, JSON-ready."""
    one = result.data.isel(sentence=i)
    one = one.isel(restart=int(one["best"]))
    found = {
        "exact": bool(one["exact"]),
        "bleu": round(float(one["bleu"]), 3),
        "steps_taken": int(one["steps"]),
    }
    curve = one["log_likelihood"].values
    last = float(
        curve[int(one["steps"]) - 1]
    )  # of a row that was not solved the best z is kept, not the last
    found["log_likelihood"] = (
        last if bool(one["solved"]) or np.isnan(curve).all() else float(np.nanmax(curve))
    )
    for name in CONTROLS:
        value = float(one[f"bleu_{name}"])
        found[f"bleu_{name}"] = None if np.isnan(value) else round(value, 3)
    if "restart_cosine" in one:
        found["restart_cosine"] = float(np.abs(result.data["restart_cosine"].isel(sentence=i)).mean())
    return found


def _share(hits: np.ndarray) -> dict[str, Any]:
    """Share with its 95 % Wilson interval."""
    from scipy.stats import binomtest

    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {
        "share": float(hits.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "n": len(hits),
    }
