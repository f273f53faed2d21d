"""Small JSON files that carry a checksum of themselves, so that a flipped byte in them is an error too.

    {"sites": [...], "rows_per_shard": 8192, ..., "checksum": "9f2c…"}

`checksum` is the SHA-256 of the other fields as compact JSON with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.files import publish_file

_KEY = "checksum"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` with its checksum to `path`, complete or not at all."""
    text = json.dumps({**content, _KEY: _checksum(content)}, indent=1)
    with publish_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        DataError: the file is not JSON, or its fields are not those its checksum was made of.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claimed = content.pop(_KEY)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): restore it from a copy.") from error
    if _checksum(content) != claimed:
        raise DataError(
            f"{path} is damaged: its checksum does not fit what it says. Restore it from a copy; a store is not "
            "to be edited by hand."
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
