"""What several stores say of themselves as one: for `concatenate` and `merge`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from workbench.errors import DataError
from workbench.store.manifest import Manifest, SiteRecord


def joined_manifest(manifests: Sequence[Manifest]) -> Manifest:
    """What one store with the rows of all these would say of itself.

    Its `dataset_fingerprint` is the SHA-256 of theirs, and `settings["merged"]` lists what they were.

    Raises:
        DataError: none are given, or they cannot be one store.
    """
    if not manifests:
        raise DataError("No stores were given: give at least one.")
    first = manifests[0]
    for i, other in enumerate(manifests[1:], start=1):
        for what in ("sites", "model_fingerprint", "tokenizer_hash"):
            there, here = _described(getattr(first, what)), _described(getattr(other, what))
            if there != here:
                raise DataError(
                    f"Stores 0 and {i} cannot be one: {what} is {there} in the first ({first.model}) and {here} in "
                    f"the other ({other.model})."
                )
    complete = all(m.complete for m in manifests)
    fingerprints = "".join(str(m.dataset_fingerprint) for m in manifests)
    merged = [
        {
            "n_rows": m.n_rows,
            "n_prompts": m.n_prompts,
            "dataset_fingerprint": m.dataset_fingerprint,
            "settings": dict(m.settings),
        }
        for m in manifests
    ]
    return replace(
        first,
        settings={"merged": merged},
        n_rows=sum(m.n_rows or 0 for m in manifests) if complete else None,
        n_prompts=sum(m.n_prompts or 0 for m in manifests) if complete else None,
        dataset_fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest() if complete else None,
    )


def _described(value: str | tuple[SiteRecord, ...]) -> str:
    if isinstance(value, str):
        return repr(value)
    return ", ".join(f"{s.name} {list(s.shape)} {s.dtype}" for s in value)
