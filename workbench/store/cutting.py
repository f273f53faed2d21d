"""`ShardCutter`: rows of one batch after another, cut into shards of a fixed number of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.errors import DataError
from workbench.store.buffer import ShardBuffer
from workbench.store.manifest import Cursor, Manifest
from workbench.store.rows import PromptRecord, RowBlock

Publish = Callable[[ShardBuffer, Cursor], None]
"""Makes a shard of what is in the buffer, which ends at the cursor, and empties it."""


class ShardCutter:
    """Fills a buffer and hands it on whenever it holds a shard.

    Attributes:
        at: the last batch taken, and how far.
        prompts: prompts of which at least one row was taken, those before this cutter included.
        last_prompt: number of the prompt the last batch with rows ended with; None where there was none yet.
    """

    def __init__(self, manifest: Manifest, start: Cursor, publish: Publish) -> None:
        self._buffer = ShardBuffer(manifest)
        self._publish = publish
        self.at, self.prompts = start, start.prompts
        self.last_prompt: int | None = None

    @property
    def not_finite(self) -> dict[str, int]:
        """Site -> rows with NaN or infinite values among those not yet in a shard."""
        return self._buffer.not_finite

    def add(
        self,
        block: RowBlock,
        begins: tuple[np.ndarray, list[PromptRecord]],
        cursor: Cursor,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the rows of a batch.

        Args:
            block: all rows of the batch.
            begins: where prompts begin in it (`beginnings`).
            cursor: the batch, and in `row` how many rows at its front are left away.
            until: asked after each shard; rows that are left when it says so are dropped.
        """
        starts, records = begins
        done = cursor.row
        if len(block):
            self.last_prompt = int(block.prompt[-1])
        self.at = Cursor(cursor.batch, done, cursor.window, cursor.digest, self.prompts)
        while done < len(block):
            end = done + min(self._buffer.room, len(block) - done)
            here = slice(*np.searchsorted(starts, [done, end]))
            self._buffer.add(block, done, end, records[here])
            done, self.prompts = end, self.prompts + len(records[here])
            self.at = Cursor(cursor.batch, done, cursor.window, cursor.digest, self.prompts)
            if not self._buffer.room:
                self._publish(self._buffer, self.at)
                if until():
                    return

    def rest(self) -> None:
        """Make a short shard of the rows that are left, if any."""
        if self._buffer.rows:
            self._publish(self._buffer, self.at)


def beginnings(block: RowBlock, skip: int, last: int | None) -> tuple[np.ndarray, list[PromptRecord]]:
    """Rows from `skip` on at which a prompt begins, and their records; `last` is the prompt before the block.

    Raises:
        DataError: rows and records do not fit each other.
    """
    if not len(block):
        return np.empty(0, np.int64), []
    all_starts = np.flatnonzero(np.diff(block.prompt, prepend=block.prompt[0] - 1))
    numbers = block.prompt[all_starts].tolist()
    by_number = {record.number: record for record in block.prompts}
    if len(set(numbers)) != len(numbers) or len(by_number) != len(block.prompts):
        raise DataError("The rows of a prompt do not lie next to each other, or a prompt is given twice.")
    if set(numbers) != set(by_number):
        odd = sorted(set(numbers) ^ set(by_number))
        raise DataError(f"The block has rows or records, but not both, of prompts {odd[:10]}.")
    starts = all_starts[all_starts >= skip]
    if last is not None and len(starts) and starts[0] == 0 and numbers[0] == last:
        starts = starts[1:]
    return starts, [by_number[int(n)] for n in block.prompt[starts]]
