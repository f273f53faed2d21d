"""Running sums and carries of long multiplication: what is linearly there, at which token, after which block.

With digits a_i, b_j, least significant first,

    ĉ_k = Σ_{i+j=k} a_i b_j + ⌊ĉ_{k−1} / 10⌋        digit c_k = ĉ_k mod 10,  carry r_k = ⌊ĉ_k / 10⌋

The last ĉ is the carry out of the column before it, which has no products of its own.

`running_sum_probe` asks this of the organisms `multiplication-cot` and `multiplication-direct`. The first writes,
column by column, the sum after each of the nine products: `8 9 3 * 1 5 7 = 8 40 49 60 105 108 73 88 29 # 8 9 8 8 9
2`. So each ĉ_k of columns 0 to 4 stands in the text, as the last of its column, and from there on reading it is
reading the text. What is *not* written, and must be worked out between one token and the next:

    product   a_i b_j, which the next written number adds
    next      the next number to be written (all of it is needed at the token before)
    carry_k   ⌊ĉ_k / 10⌋, which begins column k + 1 inside its first written number

and ĉ_k before its column, which nothing in the text asks the model to know.

Source: Bai et al. 2025 (2510.00184) (four digits, no written steps; L2 loss, mean absolute error).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64

from probes.periodic.numbers import site_of
from probes.periodic.regression import regression_probe
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


def running_sums(a: Any, b: Any) -> Int64[np.ndarray, "problem column"]:
    """ĉ_k of every column of a product of digits, least significant first; the last column is the last carry.

    Args:
        a, b: [problem, digit] whole numbers 0 to 9 of either factor, arrays or lists.

    Raises:
        DataError: entries that are not digits, tables that are not [problem, digit], or different numbers of problems.

    Example:
        >>> running_sums(np.array([[8, 9]]), np.array([[1, 5]])).tolist()      # 98 * 51 = 4998
        [[8, 49, 49, 4]]
    """
    a, b = np.asarray(a), np.asarray(b)
    for name, digits in (("a", a), ("b", b)):
        if digits.ndim != 2:
            raise DataError(
                f"{name} has shape {digits.shape}: give [problem, digit], least significant first."
            )
        if digits.size == 0 or digits.dtype.kind not in "iu" or digits.min() < 0 or digits.max() > 9:
            raise DataError(f"{name} has entries that are no digits 0 to 9 (whole numbers).")
    if len(a) != len(b):
        raise DataError(f"{len(a)} first factors and {len(b)} second ones: give as many of each.")
    n_columns = a.shape[1] + b.shape[1]
    found = np.zeros((len(a), n_columns), dtype=np.int64)
    for k in range(n_columns):
        if k:
            found[:, k] = found[:, k - 1] // 10
        for i in range(max(0, k - b.shape[1] + 1), min(k + 1, a.shape[1])):
            found[:, k] += a[:, i] * b[:, k - i]
    return found


def running_sum_probe(
    model: LanguageModel,
    organism: str = "multiplication-cot",
    *,
    n: int = 2000,
    layers: list[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Running sums, carries and the unwritten parts, from the residual stream at every token from `=` on.

    Args:
        model: the organism's model.
        organism: its name: `multiplication-cot` or `multiplication-direct`.
        n: held-out problems (those the model was not trained on) to read; text is teacher-forced and right.
        layers: None: all, 0 (before the first block) to `n_layers` (after the last).
        seed: of the problems and of `regression_probe`.
        options: for `regression_probe`.

    Returns:
        As `regression_probe`. Targets `c_0` … `c_5`, `carry_0` … `carry_3` (carry_4 is c_5), and with written steps
        `product` and `next`. Groups are unordered pairs of factors. `visible` is the text so far: the digits as
        indicators, written numbers by value and by their last digit.

    Raises:
        ModelError: no such organism.
        DataError: an organism that does not multiply.

    Example:
        >>> result = running_sum_probe(wb.load_model("multiplication-cot"))
        >>> result.data["r2"].sel(target="next").max("layer")
    """
    from workbench import organisms
    from workbench.activations import collect
    from workbench.organisms.tasks.multiplication import PRODUCTS, Multiplication

    task = organisms.get(organism)
    if not isinstance(task, Multiplication):
        raise DataError(
            f"{organism!r} does not multiply: give 'multiplication-cot' or 'multiplication-direct'."
        )
    wanted = list(range(model.n_layers + 1)) if layers is None else layers
    a, b = _different(task, n, seed)
    ids, given = task.rows(a, b)
    start, end = given - 1, ids.shape[1] - 1  # from `=` to the token before the last digit
    sites = {layer: site_of(model, layer) for layer in wanted}
    acts = collect(
        model,
        ids[:, :-1].tolist(),
        sites=list(dict.fromkeys(sites.values())),
        positions=list(range(start, end)),
    )
    sums = running_sums(a, b)
    targets: dict[str, Any] = {f"c_{k}": sums[:, k] for k in range(sums.shape[1])}
    targets |= {f"carry_{k}": sums[:, k] // 10 for k in range(sums.shape[1] - 2)}
    names = ["="]
    if task.steps_written:
        written = ids[:, given : given + len(PRODUCTS)] - task.table["0"]
        names += [f"s{k},{i}{j}" for k, i, j in PRODUCTS]
        product = np.full((n, end - start), np.nan)
        product[:, : len(PRODUCTS)] = np.stack([a[:, i] * b[:, j] for _, i, j in PRODUCTS], axis=1)
        following = np.full((n, end - start), np.nan)
        following[:, : len(PRODUCTS)] = written
        targets |= {"product": product, "next": following}
    names += ["#", *(f"d{k}" for k in range(sums.shape[1] - 1))]
    digits = np.concatenate([a, b], axis=1)
    visible = [_visible(digits, ids[:, given : start + p + 1] - task.table["0"]) for p in range(end - start)]
    groups = [f"{min(pair)}*{max(pair)}" for pair in zip(_value(a).tolist(), _value(b).tolist(), strict=True)]
    rows = {layer: acts[site].double().numpy() for layer, site in sites.items()}
    made = regression_probe(
        rows,
        targets,
        groups=groups,
        visible=visible,
        positions=names,
        seed=seed,
        where=acts.provenance,
        **options,
    )
    made.data.attrs["organism"] = organism
    return made


def _different(task: Any, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out problems, each once."""
    a, b = task.draw(2 * n + 100, np.random.default_rng([seed, 6]), "held_out")
    _, first = np.unique(np.concatenate([a, b], axis=1), axis=0, return_index=True)
    kept = np.sort(first)[:n]
    if len(kept) < n:
        raise DataError(f"Only {len(kept)} different held-out problems were found for n={n}: ask for fewer.")
    return a[kept], b[kept]


def _value(digits: Int64[np.ndarray, "problem digit"]) -> Int64[np.ndarray, " problem"]:
    return digits @ 10 ** np.arange(digits.shape[1])


def _visible(
    digits: Int64[np.ndarray, "problem digit"], written: Int64[np.ndarray, "problem token"]
) -> Float64[np.ndarray, "problem feature"]:
    """Digits of the factors as indicators; of each written number its value and its last digit as indicators.

    `#` is among the written tokens and the same in all problems; it says nothing and does no harm.
    """
    eye = np.eye(10)
    parts = [eye[digits].reshape(len(digits), -1)]
    parts += [np.concatenate([column[:, None] / 100, eye[column % 10]], axis=1) for column in written.T]
    return np.concatenate(parts, axis=1)
