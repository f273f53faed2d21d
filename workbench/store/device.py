"""`DeviceFeed`: batches on their way to the device and dtype they are wanted in.

On CUDA a batch goes through pinned memory and is copied on a stream of its own, in the stored dtype (half the bytes
of bfloat16 rows), and cast there; the caller's stream waits for it when the batch is received. On the CPU a batch of
the stored dtype is passed on as it is; others are cast into memory that is used again when nobody holds the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.errors import DataError
from workbench.store.pool import SlabPool
from workbench.store.raw import copy_rows

_N_PINNED = 3
_N_CAST = 4


@dataclass(frozen=True)
class Sent:
    """A batch on its way."""

    batch: Tensor
    done: Any = None
    """CUDA event after its copy, or None where there is nothing to wait for."""


class DeviceFeed:
    """Takes batches from the host to `device`.

    Attributes:
        ahead: whether the next batch is to be sent before the current one is used.
    """

    def __init__(
        self, device: torch.device | str, dtype: torch.dtype, stored: torch.dtype, shape: Sequence[int]
    ) -> None:
        """
        Args:
            device, dtype: of the batches.
            stored: dtype of the rows that come in.
            shape: of a whole batch.

        Raises:
            DataError: there is no such device here.
        """
        _refuse_missing(device)
        self._device, self._dtype, self._stored, self._shape = (
            torch.device(device),
            dtype,
            stored,
            tuple(shape),
        )
        self.ahead = self._device.type == "cuda"
        self._pinned: list[Tensor] = []
        self._copied: list[Any] = []
        self._next = 0
        self._stream: Any = None
        self._cast = SlabPool(self._shape[0], self._shape[1:], dtype, n_kept=_N_CAST)
        if self.ahead:
            self._pinned = [torch.empty(self._shape, dtype=stored, pin_memory=True) for _ in range(_N_PINNED)]
            self._copied = [None] * _N_PINNED
            self._stream = torch.cuda.Stream(self._device)

    def send(self, batch: Tensor) -> Sent:
        """Begin to copy a batch of the stored dtype."""
        if self.ahead:
            return self._send_to_cuda(batch)
        if self._device.type != "cpu":
            return Sent(batch.to(self._device, self._dtype))
        if batch.dtype == self._dtype:
            return Sent(batch)
        cast = self._cast.take().batch(0, len(batch))
        copy_rows(batch, cast)
        return Sent(cast)

    def receive(self, sent: Sent) -> Tensor:
        """The batch, on the device; the current stream waits until it is there."""
        if sent.done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.done)
            sent.batch.record_stream(stream)
        return sent.batch

    def close(self) -> None:
        """Free what is not in use."""
        self._cast.close()

    def _send_to_cuda(self, batch: Tensor) -> Sent:
        if self._copied[self._next] is not None:
            self._copied[self._next].synchronize()
        pinned = self._pinned[self._next][: len(batch)]
        copy_rows(batch, pinned)
        with torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
            there = there.to(self._dtype)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._copied[self._next] = copied
        self._next = (self._next + 1) % _N_PINNED
        return Sent(there, done)


def _refuse_missing(device: torch.device | str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch raises all three
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"device={str(device)!r} cannot be used here ({reason}): choose 'cpu', or a device that "
            "this machine and this PyTorch have."
        ) from error
