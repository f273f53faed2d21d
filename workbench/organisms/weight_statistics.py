"""Figures of a model's weights, for following a training from outside (Hu et al. 2023, arXiv:2308.09543).

Norms and singular values are taken per weight matrix and averaged over the matrices; the fused projection of
GPT-2 counts as its three parts. A trace needs a square matrix, so trace and trace over spectral norm are averaged
over the square ones. Singular values below 1e-5 count as 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-5
COLUMNS = (
    "l1", "l2", "trace", "spectral", "code_sparsity", "computational_sparsity",
    "mean_singular_value", "variance_singular_value",
    "mean_weight", "median_weight", "variance_weight", "mean_bias", "median_bias", "variance_bias",
)  # fmt: skip


@torch.no_grad()
def weight_statistics(model: Any) -> dict[str, float]:
    """The 14 figures of Hu et al., by the names in `COLUMNS`.

    `code_sparsity` is l1 over l2, `computational_sparsity` trace over spectral norm. Biases are all one-dimensional
    parameters that are not norms' gains; a model without biases has 0 there.

    Example:
        >>> weight_statistics(model.hf)["spectral"]
    """
    matrices: list[Tensor] = []
    biases: list[Tensor] = []
    for name, parameter in model.named_parameters():
        value = parameter.detach().double().cpu()
        if value.ndim == 2:
            fused = name.endswith("c_attn.weight")
            matrices += list(value.chunk(3, dim=1)) if fused else [value]
        elif name.endswith("bias"):
            biases.append(value)
    l1 = [m.abs().sum() for m in matrices]
    l2 = [m.norm() for m in matrices]
    singular = [torch.linalg.svdvals(m) for m in matrices]
    singular = [torch.where(s < SMALLEST, 0.0, s) for s in singular]
    square = [(m.trace(), s[0]) for m, s in zip(matrices, singular, strict=True) if m.shape[0] == m.shape[1]]
    weights = torch.cat([m.reshape(-1) for m in matrices])
    bias = torch.cat(biases) if biases else torch.zeros(1, dtype=torch.float64)
    values = (
        _mean(l1), _mean(l2), _mean([t for t, _ in square]), _mean([s[0] for s in singular]),
        _mean([a / b for a, b in zip(l1, l2, strict=True)]),
        _mean([t / s for t, s in square]),
        _mean([s.mean() for s in singular]), _mean([s.var(correction=0) for s in singular]),
        float(weights.mean()), float(weights.median()), float(weights.var(correction=0)),
        float(bias.mean()), float(bias.median()), float(bias.var(correction=0)),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean()) if values else 0.0
