"""Files and folders that are complete or absent, whatever happens while they are written.

1. Next to the target a hidden *scratch folder* `.NAME.tmp-RANDOM/` is made. Its owner holds a lock on a
   file in it for as long as it lives; the system drops that lock when the owner dies, however it dies.
2. The caller writes there. On any exception (also `KeyboardInterrupt`) the scratch folder is removed.
3. At the end every file and folder is flushed to the disk (fsync) and renamed to the target in one step.
4. Whoever writes the same target next removes scratch folders whose lock is free: their owner is dead.
   If the owner died in the middle of replacing an existing folder, the old one is put back first.

A lock rather than a process id says who is alive: ids repeat after a restart and differ between containers
that share a folder. Locks are `flock`: Linux and macOS.

    with publish_file(Path("report.json")) as temporary:
        temporary.write_text("{}")
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.progress import Progress, Silent

_LOCK = "lock"
_NEW = "new"
_REPLACED = "replaced"

_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full: free some space or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another folder",
    errno.EROFS: "the file system is read-only: choose a folder you can write to",
    errno.EACCES: "permission denied: choose a folder you can write to, or change its permissions",
    errno.EPERM: "the system does not permit it: choose a folder you can write to",
    errno.ENOTDIR: "a file stands where a folder is expected: move it away or choose another folder",
    errno.EEXIST: "something of that name is there already: move it away or choose another name",
    errno.ENOTEMPTY: "something of that name is there already: move it away or choose another name",
    errno.EISDIR: "a folder stands where a file is expected: move it away or choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reports an error: choose a folder on another disk",
    errno.ENOLCK: "this file system has no file locks: choose a folder on a local disk",
    errno.ENOSYS: "this file system has no file locks: choose a folder on a local disk",
    errno.EOPNOTSUPP: "this file system has no file locks: choose a folder on a local disk",
}
# These are about the place written to, whichever call reports them.
_ABOUT_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOLCK}


def cannot_write(target: Path, error: OSError) -> WorkbenchError:
    """The error for a user when the system refuses to write `target`: which path, why, what to do.

    >>> str(cannot_write(Path("a"), OSError(errno.ENOSPC, "No space left on device")))
    'Cannot write a: the disk is full: free some space or choose a folder on another disk.'
    """
    reason = _WHAT_TO_DO.get(error.errno or 0) or f"{error.strerror or error}: choose another folder"
    # The path the system names is often a parent or a temporary one: say it where it adds something.
    named = str(error.filename) if isinstance(error.filename, str) else ""
    about = f" (at {named})" if named and ".tmp-" not in named and named != str(target) else ""
    return WorkbenchError(f"Cannot write {target}{about}: {reason}.")


@contextmanager
def publish_folder(target: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an exception.

    Args:
        target: the folder to make; parents are made as needed.
        replace: swap an existing folder for the new one. Without it an existing target is an error.

    Raises:
        WorkbenchError: `target` exists and `replace` is false, or the system refuses to write there.

    Example:
        >>> with publish_folder("runs/lens-1") as folder:  # doctest: +SKIP
        ...     (folder / "spec.yaml").write_text("kind: lens")
    """
    target = Path(target)
    with _scratch(target) as scratch:
        if not replace:
            _refuse_existing(target)
        folder = scratch / _NEW / target.name
        folder.mkdir()
        yield folder
        for path in [*folder.rglob("*"), folder]:
            if not path.is_symlink():
                _fsync(path)
        if not replace:
            _refuse_existing(target)
        elif target.exists():
            target.rename(scratch / _REPLACED)
        folder.rename(target)
        if (scratch / _REPLACED).exists():
            (scratch / _REPLACED).rename(scratch / "discarded")
        _fsync(target.parent)


@contextmanager
def publish_file(target: Path | str) -> Iterator[Path]:
    """A temporary path whose file becomes `target`, replacing what is there, when the block ends well.

    Raises:
        WorkbenchError: nothing was written, or the system refuses to write there.

    Example:
        >>> with publish_file("result.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    target = Path(target)
    with _scratch(target) as scratch:
        temporary = scratch / _NEW / target.name
        yield temporary
        if not temporary.is_file():
            raise WorkbenchError(f"Cannot write {target}: nothing was written to its temporary file.")
        _fsync(temporary)
        temporary.replace(target)
        _fsync(target.parent)


@contextmanager
def scratch_folder(beside: Path | str) -> Iterator[Path]:
    """A private folder next to `beside`, on the same disk, removed on any exit.

    If the process is killed, the next `scratch_folder`, `publish_file` or `publish_folder` for the same
    path removes it.

    Raises:
        WorkbenchError: the system refuses to make it.
    """
    with _scratch(Path(beside)) as scratch:
        yield scratch / _NEW


@contextmanager
def locked(path: Path | str, *, progress: Progress = Silent()) -> Iterator[None]:
    """Hold the lock file `path` for the block; wait while another process or thread holds it.

    The file is removed afterwards, and the system frees the lock of a process that dies.

    Args:
        path: the lock file.
        progress: told the stage "wait for another process" if there is a wait; a cancel ends it.

    Raises:
        WorkbenchError: the lock file cannot be made.

    Example:
        >>> with locked("cache/.model.lock"):  # doctest: +SKIP
        ...     fetch()
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _try_lock(path)
        if lock is None:
            progress.stage("wait for another process", 1)
        while lock is None:
            progress.advance(0)
            time.sleep(0.2)
            lock = _try_lock(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """The scratch folder itself: the lock, `new/` for what is written, and a target being replaced."""
    with _told_as_ours(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(beside)
        folder, lock = _new_scratch(beside)
        try:
            (folder / _NEW).mkdir()
            yield folder
        finally:
            _dispose(folder, beside)
            os.close(lock)


def _new_scratch(beside: Path) -> tuple[Path, int]:
    while True:
        folder = beside.with_name(f"{_prefix(beside)}{secrets.token_hex(4)}")
        folder.mkdir()
        # Between the two calls someone tidying up may take the folder for an abandoned one: then again.
        try:
            lock = _try_lock(folder / _LOCK)
        except FileNotFoundError:
            continue
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None:
            return folder, lock


def _remove_abandoned(beside: Path) -> None:
    for folder in list(beside.parent.iterdir()):
        if not folder.name.startswith(_prefix(beside)):
            continue
        try:
            lock = _try_lock(folder / _LOCK)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # gone meanwhile, not one of ours, or another user's to remove
        if lock is not None:
            _dispose(folder, beside)
            os.close(lock)


def _dispose(scratch: Path, beside: Path) -> None:
    """Remove a scratch folder; a replacement that stopped half-way gives the old target back."""
    replaced = scratch / _REPLACED
    if replaced.exists() and not beside.exists():
        with suppress(OSError):  # otherwise it stays where it is, for the next one to put back
            replaced.rename(beside)
    if beside.exists() or not replaced.exists():
        shutil.rmtree(scratch, ignore_errors=True)


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock on a file, made if need be; None where someone else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    ours = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have removed the file after we opened it: then this lock guards nothing.
        ours = os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:  # flock does not say which file; whoever reads the error wants to know
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if not ours:
            os.close(descriptor)
    return descriptor if ours else None


def _prefix(target: Path) -> str:
    return f".{target.name}.tmp-"


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise WorkbenchError(f"Cannot write {target}: it exists already. Choose another name or remove it.")


@contextmanager
def _told_as_ours(target: Path) -> Iterator[None]:
    """Turn the system's refusals to write here into `WorkbenchError`; leave the caller's own errors alone."""
    try:
        yield
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
        ours = any(target.is_relative_to(name) or _prefix(target) in name for name in names)
        if error.errno in _ABOUT_THE_DISK or (ours and error.errno in _WHAT_TO_DO):
            raise cannot_write(target, error) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
