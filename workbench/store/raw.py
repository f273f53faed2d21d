"""Copying, gathering and looking through rows in one thread, whatever their dtype.

Writer and loader work beside a model that uses all cores. torch's own operations would start a second team of threads
here, and two teams on the same cores wait for each other; numpy's use the one thread that calls them, at the speed of
the memory, and let go of the interpreter lock meanwhile. numpy knows no bfloat16, so rows go by as integers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MAGNITUDE = {2: np.int16(0x7FFF), 4: np.int32(0x7FFFFFFF)}
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}
_PIECE = 1 << 17
"""Elements that stay in the processor's cache."""
_SERIAL = (1 << 15) - 64
"""Elements that torch copies without starting threads (it does from 32,768 on)."""


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def integer_type(dtype: torch.dtype) -> np.dtype:
    """numpy's integers of the same width."""
    return np.dtype(f"i{dtype.itemsize}")


def as_integers(tensor: Tensor) -> np.ndarray:
    """The same memory as an array of integers of the same width."""
    return tensor.detach().view(_INTEGER[tensor.element_size()]).numpy()


def copy_rows(source: Tensor, out: Tensor) -> None:
    """`out[:] = source` for contiguous CPU tensors of one shape; the dtypes may differ."""
    if source.dtype == out.dtype:
        np.copyto(as_integers(out), as_integers(source))
    elif (source.dtype, out.dtype) == (torch.bfloat16, torch.float32):
        _widen(as_integers(source).reshape(-1), as_integers(out).reshape(-1))
    else:
        pieces = (tensor.reshape(-1).split(_SERIAL) for tensor in (source, out))
        for part, target in zip(*pieces, strict=True):
            target.copy_(part)


def _widen(source: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 is the upper half of float32. In long calls, as other threads want the lock of the interpreter too."""
    bits, wide = source.view(np.uint16), out.view(np.uint32)
    for start in range(0, len(bits), _PIECE):
        here = wide[start : start + _PIECE]
        np.copyto(here, bits[start : start + _PIECE])
        np.left_shift(here, 16, out=here)


def take_rows(source: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """`out[:] = source[rows]` for rows that exist; `out` is contiguous and of the same dtype."""
    # "clip" because "raise" would go through a copy of `out`; nothing is clipped.
    np.take(source, rows, axis=0, out=out, mode="clip")


def gather_rows(source: Tensor, rows: np.ndarray, out: Tensor) -> None:
    """The same for tensors."""
    take_rows(as_integers(source), rows, as_integers(out))


def not_finite_rows(rows: Tensor) -> int:
    """How many rows hold a NaN or an infinite value.

    Without its sign, the bits of a float order like integers, and everything from infinity on is not finite.
    """
    bits = as_integers(rows).reshape(-1)
    magnitude, infinity = _MAGNITUDE[rows.element_size()], _INFINITY[rows.dtype]
    for start in range(0, len(bits), _PIECE):
        if (bits[start : start + _PIECE] & magnitude).max() >= infinity:
            return int(((as_integers(rows).reshape(len(rows), -1) & magnitude) >= infinity).any(axis=1).sum())
    return 0
