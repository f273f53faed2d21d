"""Specs: what was asked, as checked data that fits in a YAML file.

A spec is a pydantic model with a `kind`. It knows how to run itself: `run(model, progress) -> Result`. The
command line, `workbench run spec.yaml` and the dashboard all build the same spec and hand it to
`workbench.runs.run_spec`, so the same question gives the same run whichever way it was asked.

Kinds are found by entry point (group `workbench.specs`), so other packages add theirs without being imported
here.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.errors import RunError, did_you_mean
from workbench.files import publish_file
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class ModelSpec(BaseModel):
    """Which model, and how it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "smollm2-135m"
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None

    def load(self) -> LanguageModel:
        """Load it; see `workbench.load_model`."""
        from workbench.model.loading import load_model

        return load_model(self.name, device=self.device, dtype=self.dtype, revision=self.revision)


class Spec(BaseModel):
    """Base of every runnable spec. Subclasses set `kind` and implement `run`."""

    model_config = ConfigDict(extra="forbid")
    kind: ClassVar[str]

    model: ModelSpec = Field(default_factory=ModelSpec)
    seed: int = Field(default=0, ge=0)

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        """Do what was asked and return the result."""
        raise NotImplementedError

    def title(self) -> str:
        """One line that tells this run from others in a list."""
        return self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the kind first."""
        return {"kind": self.kind, **self.model_dump(mode="json")}

    def to_yaml(self) -> str:
        """The spec as it stands in `spec.yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def save(self, path: str | Path) -> Path:
        """Write `to_yaml()` to a file, atomically."""
        with publish_file(Path(path)) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")
        return Path(path)


def spec_kinds() -> dict[str, type[Spec]]:
    """Every installed kind of spec, by name."""
    return {entry.name: entry.load() for entry in entry_points(group="workbench.specs")}


def parse_spec(raw: Any, *, source: str = "The spec") -> Spec:
    """Plain data -> a checked spec.

    Raises:
        RunError: not a mapping, unknown kind, or a field that is missing, unknown or of the wrong type; every
            offending field is named.
    """
    if not isinstance(raw, dict) or "kind" not in raw:
        raise RunError(f"{source} must be a mapping with a 'kind': one of {', '.join(_kind_names())}.")
    fields = dict(raw)
    kind = str(fields.pop("kind"))
    names = _kind_names()
    if kind not in names:
        raise RunError(
            f"{source} has kind {kind!r}, known are {', '.join(names)}.{did_you_mean(kind, names)}"
        )
    (entry,) = [e for e in entry_points(group="workbench.specs") if e.name == kind]
    if isinstance(fields.get("model"), str):
        fields["model"] = {"name": fields["model"]}
    try:
        return entry.load()(**fields)
    except ValidationError as error:
        raise RunError(f"{source} ({kind}) is not valid: {describe(error)}") from error


def load_spec(path: str | Path) -> Spec:
    """Read a spec from a YAML file (safe loader). Raises `RunError` for a missing or invalid file."""
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"Spec file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"Spec file {str(path)!r} is not YAML: {first}.") from error
    return parse_spec(raw, source=f"Spec file {str(path)!r}")


def describe(error: ValidationError) -> str:
    """Each offending field and what is wrong with it, on one line."""
    parts = []
    for item in error.errors():
        where = "".join(f"{p}." for p in item["loc"])[:-1]
        said = item["msg"].removeprefix("Value error, ")  # then they are words of our own
        said = said if said != item["msg"] else said[0].lower() + said[1:]
        parts.append(f"{where}: {said}" if where else said)
    return "; ".join(parts)


def _kind_names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group="workbench.specs")})
