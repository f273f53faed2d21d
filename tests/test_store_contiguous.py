"""Rows of several files as one array: each where it is said to be, whatever the offsets and the widths."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.store.contiguous import Stretch, Together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux maps at a given address")


def written(folder: Path, number: int, start: int, size: int) -> tuple[Stretch, np.ndarray]:
    """A file of random bytes, of which those from `start` on are meant, with some behind them."""
    data = np.random.default_rng(number).integers(0, 256, start + size + 17, dtype=np.uint8)
    path = folder / f"{number}.bin"
    path.write_bytes(data.tobytes())
    return Stretch(path, start, size), data[start : start + size]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_row_of_a_file_that_fits_is_where_it_is_said_to_be(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("together")
    row = data.draw(st.sampled_from([2, 6, 12, 64, 250, 256, 2304, 4096, 5000, 8192, 16384, 24576]))
    start = st.integers(0, 200).map(lambda n: 64 * n) | st.integers(0, 8).map(lambda n: mmap.PAGESIZE * n)
    starts = data.draw(st.lists(start, min_size=1, max_size=5))
    rows = [data.draw(st.integers(0, 9)) for _ in starts]
    files = [
        written(folder, i, start, n * row) for i, (start, n) in enumerate(zip(starts, rows, strict=True))
    ]
    found = Together.of([stretch for stretch, _ in files], row)
    if not any(rows):
        assert found is None
        return
    assert found is not None and not found.rows.flags.writeable
    there = [i for i, first in enumerate(found.first) if first >= 0]
    used = set()
    for i in there:
        mine = range(int(found.first[i]), int(found.first[i]) + rows[i])
        assert np.array_equal(found.rows[mine.start : mine.stop].reshape(-1), files[i][1])
        assert not used & set(mine)
        used |= set(mine)
    common = np.gcd(row, mmap.PAGESIZE)
    if len({start % common for start, n in zip(starts, rows, strict=True) if n}) == 1:
        assert len(there) == sum(n > 0 for n in rows), "all of them fit one grid"


@pytest.mark.parametrize("row", [8192, 16384, 24576])
def test_rows_of_several_pages_whose_starts_fit_pages_but_not_2_mib(tmp_path, row):
    """There is no place for the second file that is right modulo 2 MiB and modulo the row: it was sought for ever."""
    code = f"""
from pathlib import Path
from workbench.store.contiguous import Stretch, Together
both = Together.of([Stretch(Path({str(tmp_path / "0.bin")!r}), 64, {3 * row}),
                    Stretch(Path({str(tmp_path / "1.bin")!r}), 64 + 4096, {3 * row})], {row})
for i, first in enumerate(both.first):
    data = Path({str(tmp_path)!r}, f"{{i}}.bin").read_bytes()
    start = 64 + 4096 * i
    assert first >= 0 and both.rows[first : first + 3].tobytes() == data[start : start + {3 * row}]
"""
    for i in range(2):
        written(tmp_path, i, 64 + 4096 * i, 3 * row)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_of_offsets_that_do_not_fit_the_larger_part_is_taken(tmp_path):
    files = [
        written(tmp_path, i, start, 256 * n) for i, (start, n) in enumerate([(64, 3), (256, 2), (512, 2)])
    ]
    found = Together.of([stretch for stretch, _ in files], 256)
    assert found is not None and (found.first >= 0).tolist() == [False, True, True]


def test_what_cannot_be_mapped_is_none(tmp_path):
    stretch, _ = written(tmp_path, 0, 0, 100)
    assert Together.of([stretch, Stretch(tmp_path / "missing", 0, 100)], 10) is None
    assert Together.of([], 10) is None
