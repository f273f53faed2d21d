"""Where fetched models are kept, and whether what is there is whole.

    CACHE/models/NAME-FIRST_12_OF_WHEEL_HASH/
        config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json, …
        manifest.json      size and SHA-256 of each file, source, versions

CACHE is `$WORKBENCH_CACHE`, or the user's cache folder of the system. The hash in the folder's name keeps
a new release of a wheel apart from the old one. The manifest is written last, before the folder gets its
name, so a folder without one is damaged rather than unfinished.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.files import sha256_of
from workbench.model.aliases import Alias

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when the folder was published."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a published model folder holds and where it came from."""

    name: str
    source: dict[str, str]
    """Wheel requirement, hashes of the wheel and of the GGUF file in it."""
    versions: dict[str, str]
    """Packages that made the folder."""
    files: dict[str, FileRecord]
    """By path relative to the folder, with `/`."""
    schema: int = SCHEMA

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())


def cache_folder() -> Path:
    """The folder everything fetched is kept in: `$WORKBENCH_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("WORKBENCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("latent-workbench")


def model_folder(alias: Alias) -> Path:
    """Where `alias` is once fetched, whether or not it is there.

    >>> from workbench.model.aliases import SMOLLM2_135M
    >>> model_folder(SMOLLM2_135M).name
    'smollm2-135m-bcc81830d10c'
    """
    return cache_folder() / "models" / f"{alias.name}-{alias.wheel_sha256[:12]}"


def write_manifest(folder: Path, alias: Alias, versions: dict[str, str]) -> Manifest:
    """Record every file of `folder` in its `manifest.json`."""
    files = {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    source = {
        "requirement": alias.requirement,
        "wheel_sha256": alias.wheel_sha256,
        "gguf_member": alias.gguf_member,
        "gguf_sha256": alias.gguf_sha256,
        "quantisation": alias.quantisation,
        "licence": alias.licence,
    }
    manifest = Manifest(alias.name, source, versions, files)
    text = json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def verify(folder: Path, *, name: str | None = None, deep: bool = False) -> Manifest:
    """Check that a published folder is whole.

    Args:
        folder: a folder `model_folder` gave.
        name: the alias to name in the error; default: the folder's name without its hash.
        deep: read every byte and compare hashes. Otherwise only names and sizes: under a millisecond.

    Raises:
        ModelError: the manifest cannot be read, or a file is missing, has another size or another content.

    Example:
        >>> verify(model_folder(find("smollm2-135m"))).files["config.json"].size  # doctest: +SKIP
        878
    """
    name = name or folder.name.rpartition("-")[0] or folder.name
    manifest = _read_manifest(folder, name)
    for relative, record in manifest.files.items():
        path = folder / relative
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise _damaged(name, path, "is missing") from None
        except OSError as error:
            raise _damaged(name, path, f"cannot be read ({error.strerror})") from error
        if size != record.size:
            raise _damaged(name, path, f"has {size:,} bytes instead of {record.size:,}")
        if deep and (found := sha256_of(path)) != record.sha256:
            raise _damaged(name, path, f"has SHA-256 {found} instead of {record.sha256}")
    return manifest


def _read_manifest(folder: Path, name: str) -> Manifest:
    path = folder / MANIFEST
    try:
        loaded: Any = json.loads(path.read_text(encoding="utf-8"))
        if loaded["schema"] != SCHEMA:
            raise _damaged(name, path, f"has schema {loaded['schema']}, this version reads {SCHEMA}")
        files = {key: FileRecord(int(it["size"]), str(it["sha256"])) for key, it in loaded["files"].items()}
        return Manifest(str(loaded["name"]), dict(loaded["source"]), dict(loaded["versions"]), files)
    except FileNotFoundError:
        raise _damaged(name, path, "is missing") from None
    except OSError as error:
        raise _damaged(name, path, f"cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, path, "cannot be read as a manifest") from error


def _damaged(name: str, path: Path, what: str) -> ModelError:
    return ModelError(
        f"The cached model {name!r} is damaged: {path} {what}. "
        f"Fetch it again with `workbench models pull {name} --force`."
    )
