"""The two tables of a shard as Parquet files: the index (of each row) and the prompts (that begin in the shard)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import DataError
from workbench.store.rows import PromptRecord

INDEX = pa.schema(
    [
        pa.field("prompt", pa.int64()),
        pa.field("position", pa.int32()),
        pa.field("token_id", pa.int32()),
        pa.field("phase", pa.int8()),
        pa.field("spans", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of `index/NUMBER.parquet`, one line per row of the shard."""
PROMPTS = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("n_tokens", pa.int32()),
        pa.field("labels", pa.string()),
    ]
)
"""Columns of `prompts/NUMBER.parquet`; `labels` is a JSON object with sorted keys."""


def index_table(
    prompt: np.ndarray, position: np.ndarray, token_id: np.ndarray, phase: np.ndarray, spans: Sequence[str]
) -> pa.Table:
    """The index of some rows."""
    columns = [pa.array(prompt), pa.array(position), pa.array(token_id), pa.array(phase)]
    return pa.Table.from_arrays(
        [*columns, pa.array(list(spans), pa.string()).dictionary_encode()], schema=INDEX
    )


def prompts_table(prompts: Sequence[PromptRecord]) -> pa.Table:
    """The table of some prompts."""
    return pa.Table.from_arrays(
        [
            pa.array([p.number for p in prompts], pa.int64()),
            pa.array([p.id for p in prompts], pa.string()),
            pa.array([p.n_tokens for p in prompts], pa.int32()),
            pa.array([labels_json(p) for p in prompts], pa.string()),
        ],
        schema=PROMPTS,
    )


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table, flushed to the disk; gives the SHA-256 of the file. The same table gives the same bytes.

    Raises:
        OSError: the system refuses to write.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3, version="2.6")
    data = memoryview(sink.getvalue())
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None, sha256: str | None) -> pa.Table:
    """Some columns (None: all) of a table.

    Args:
        path: the file.
        schema: `INDEX` or `PROMPTS`.
        columns: which columns.
        sha256: checksum the file must have; None: not checked.

    Raises:
        DataError: the file has another checksum or is not such a table (which, the caller adds).
        OSError: the system does not give the file.
    """
    data = path.read_bytes()
    try:
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError("its checksum is not the recorded one")
        table = pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:  # OSError: Arrow's own, for bytes that are no Parquet
        raise DataError(f"it cannot be read ({error})") from error
    wanted = schema if columns is None else pa.schema([schema.field(c) for c in columns])
    if not table.schema.equals(wanted):
        raise DataError(f"its columns are {table.schema.names}, expected {wanted.names}")
    return table


def labels_json(prompt: PromptRecord) -> str:
    """The labels of a prompt as they are stored. Raises `DataError` for what JSON cannot hold."""
    try:
        return json.dumps(dict(prompt.labels), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Labels of prompt {prompt.id!r} cannot be stored ({error}): give numbers, strings, booleans, lists or "
            "mappings of these."
        ) from error
