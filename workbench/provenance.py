"""Where a result comes from: enough to know what was run and to run it again."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

PACKAGES = ("latent-workbench", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Provenance:
    """What made a result.

    Attributes:
        model: name, revision, architecture, fingerprint, dtype, device and attention implementation.
        inputs: SHA-256 of the token ids that went in, and how many prompts and tokens.
        seed: seed of everything random, or None where nothing was.
        versions: of the packages that matter.
        created: UTC time, ISO 8601.
        seconds: wall time of the analysis, per part.
        python, processor: the interpreter and the kind of machine.
        settings: arguments of the analysis that are not in the result's own attributes.
    """

    model: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    python: str = ""
    processor: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Provenance:
        """The inverse of `to_dict`; fields that a newer version added are kept out."""
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        return cls(**known)


def provenance(
    model: LanguageModel | None,
    *,
    tokens: list[list[int]] | None = None,
    seed: int | None = None,
    seconds: dict[str, float] | None = None,
    settings: dict[str, Any] | None = None,
) -> Provenance:
    """Provenance of something just computed with `model` on the given token ids."""
    return Provenance(
        model=describe_model(model) if model is not None else {},
        inputs=describe_tokens(tokens) if tokens is not None else {},
        seed=seed,
        versions=dict(_versions()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds={k: round(v, 4) for k, v in (seconds or {}).items()},
        python=platform.python_version(),
        processor=f"{platform.system()} {platform.machine()}",
        settings=settings or {},
    )


def describe_model(model: LanguageModel) -> dict[str, Any]:
    """The facts about a model that decide what numbers come out."""
    return {
        "name": model.name,
        "revision": model.revision,
        "architecture": model.catalog.map.architecture,
        "fingerprint": model.fingerprint,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": getattr(model.config, "_attn_implementation", None),
    }


def describe_tokens(rows: list[list[int]]) -> dict[str, Any]:
    """A hash of token ids, and their number."""
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    return {"sha256": digest, "n_prompts": len(rows), "n_tokens": sum(len(r) for r in rows)}


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
