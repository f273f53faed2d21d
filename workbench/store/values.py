"""The values of a shard: one safetensors file that can be checked piece by piece.

    8 bytes    length of the header (little endian)
    header     JSON, padded with spaces so that the data begin at a multiple of 64
    data       site by site, each [row, ...] in row-major order, wide dtypes first so that all stay aligned

The header's `__metadata__` holds, per site, the xxh3-64 of every `BLOCK_ROWS` rows (16 hexadecimal digits each,
one after the other). So a reader checks exactly the rows it touches, at memory speed. The shard's record has the
SHA-256 of the header, and with it of all these checks; `verify` goes through both. (The SHA-256 of all bytes would cost
the writer more than everything else it does together.) Given sites and rows, length and layout are known beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from workbench.errors import DataError
from workbench.store.manifest import SiteRecord
from workbench.store.raw import as_bytes

BLOCK_ROWS = 64
"""Rows under one check. Fixed by the format (schema 1)."""
DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of dtypes as in the manifest -> torch's."""
_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_DIGITS = 16
_ALIGNED = 64


@dataclass(frozen=True)
class Place:
    """Where a site lies in the file, in bytes from its beginning."""

    start: int
    row_bytes: int


def check_of(data: memoryview) -> str:
    """The check of a block of rows.

    >>> check_of(memoryview(b"latent"))
    '54b7225c99d79957'
    """
    return xxhash.xxh3_64_hexdigest(data)


def row_bytes(site: SiteRecord) -> int:
    """Bytes of one row of a site."""
    return prod(site.shape) * DTYPE[site.dtype].itemsize


def n_blocks(rows: int) -> int:
    """Blocks that `rows` rows of a site have; the last may be short."""
    return -(-rows // BLOCK_ROWS)


def places(sites: Sequence[SiteRecord], rows: int) -> dict[str, Place]:
    """Site -> where its rows lie in a file of `rows` rows."""
    start = len(_header(sites, rows, {}))
    found = {}
    for site in _in_file_order(sites):
        found[site.name] = Place(start, row_bytes(site))
        start += rows * row_bytes(site)
    return found


def values_size(sites: Sequence[SiteRecord], rows: int) -> int:
    """Bytes of a values file."""
    return len(_header(sites, rows, {})) + rows * sum(row_bytes(site) for site in sites)


def write_values(path: Path, sites: Sequence[SiteRecord], rows: int, values: Mapping[str, Tensor]) -> str:
    """Write the first `rows` rows of every site, flushed to the disk; gives the SHA-256 of the file's header.

    Args:
        path: the file; whatever it held is replaced.
        sites: of the manifest.
        rows: how many rows.
        values: site -> contiguous tensor [>= rows, ...] on the CPU, in the site's dtype.

    Raises:
        OSError: the system refuses to write.
    """
    raw = {site.name: as_bytes(values[site.name][:rows]) for site in sites}
    checks = {site.name: _checks(raw[site.name], row_bytes(site)) for site in sites}
    header = _header(sites, rows, checks)
    with path.open("wb") as file:
        for part in (header, *(raw[site.name] for site in _in_file_order(sites))):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(header).hexdigest()


def check_values(path: Path, sites: Sequence[SiteRecord], rows: int, sha256: str) -> None:
    """Read a whole file and compare it with its checks, and those with the record's SHA-256.

    Raises:
        DataError: something is not what was written.
        OSError: the file cannot be read.
    """
    checks = read_checks(path, sites, rows)
    if hashlib.sha256(_header(sites, rows, checks)).hexdigest() != sha256:
        raise DataError("its header has another checksum than when it was written")
    with path.open("rb") as file:
        for site in _in_file_order(sites):
            file.seek(places(sites, rows)[site.name].start)
            block = BLOCK_ROWS * row_bytes(site)
            left = rows * row_bytes(site)
            for number, expected in enumerate(checks[site.name]):
                if check_of(memoryview(file.read(min(block, left)))) != expected:
                    first = number * BLOCK_ROWS
                    last = min(first + BLOCK_ROWS, rows) - 1
                    raise DataError(
                        f"its rows {first}–{last} at {site.name!r} have another checksum than when they were written"
                    )
                left -= block


def read_checks(path: Path, sites: Sequence[SiteRecord], rows: int) -> dict[str, list[str]]:
    """Site -> check of every block, from the header of a file.

    Raises:
        DataError: the header is not the one such a file has.
        OSError: the file cannot be read.
    """
    expected = _header(sites, rows, {})
    with path.open("rb") as file:
        found = file.read(len(expected))
    try:
        given = json.loads(found[8:])["__metadata__"]
        checks = {
            site.name: [
                given[site.name][i : i + _DIGITS] for i in range(0, n_blocks(rows) * _DIGITS, _DIGITS)
            ]
            for site in sites
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"its header cannot be read ({error!r})") from error
    if _header(sites, rows, checks) != found:
        raise DataError("its header does not fit the manifest")
    return checks


def map_values(path: Path, site: SiteRecord, place: Place, rows: int) -> Tensor:
    """[row, ...] the rows of a site, memory-mapped. Changes to the tensor stay in this process."""
    raw = np.memmap(path, dtype=np.uint8, mode="c", offset=place.start, shape=(rows * place.row_bytes,))
    return torch.from_numpy(raw).view(DTYPE[site.dtype]).reshape(rows, *site.shape)


def _checks(raw: memoryview, row: int) -> list[str]:
    return [check_of(raw[i : i + BLOCK_ROWS * row]) for i in range(0, len(raw), BLOCK_ROWS * row)]


def _in_file_order(sites: Sequence[SiteRecord]) -> list[SiteRecord]:
    return sorted(sites, key=lambda site: -DTYPE[site.dtype].itemsize)


def _header(sites: Sequence[SiteRecord], rows: int, checks: Mapping[str, Sequence[str]]) -> bytes:
    """Length and header of a file; without checks, zeros of the same length stand for them."""
    blank = ["0" * _DIGITS] * n_blocks(rows)
    content: dict[str, object] = {
        "__metadata__": {site.name: "".join(checks.get(site.name, blank)) for site in sites}
    }
    start = 0
    for site in _in_file_order(sites):
        end = start + rows * row_bytes(site)
        content[site.name] = {
            "dtype": _SAFETENSORS[site.dtype],
            "shape": [rows, *site.shape],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
