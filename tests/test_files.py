"""What is written is complete or absent: after exceptions, kills, full disks and rivals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench import files
from workbench.errors import Cancelled, WorkbenchError
from workbench.files import locked, publish_file, publish_folder, scratch_folder
from workbench.progress import Silent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_until_ready(script: str, *arguments: Path) -> subprocess.Popen[str]:
    """Start a Python that prints a line when it is where the test wants it."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_folder_appears_only_when_its_block_is_done(tmp_path):
    target = tmp_path / "deep" / "run"
    with publish_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert names(target.parent) == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled, ValueError, SystemExit])
def test_nothing_is_left_of_a_folder_or_file_whose_block_failed(tmp_path, error):
    for publish in (publish_folder, publish_file, scratch_folder):
        with pytest.raises(error), publish(tmp_path / "out") as temporary:
            path = temporary / "half" if temporary.is_dir() else temporary
            path.write_text("half")
            raise error
        assert names(tmp_path) == []


def test_an_existing_folder_is_refused_unless_it_is_to_be_replaced(tmp_path):
    target = tmp_path / "run"
    for text in ("old", "new"):
        with publish_folder(target, replace=text == "new") as folder:
            (folder / text).write_text(text)
    assert names(target) == ["new"] and names(tmp_path) == ["run"]
    with pytest.raises(WorkbenchError, match="exists already"), publish_folder(target):
        raise AssertionError("the work must not begin")
    assert names(target) == ["new"]


def test_a_failed_replacement_keeps_the_old_folder(tmp_path):
    target = tmp_path / "run"
    with publish_folder(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), publish_folder(target, replace=True) as folder:
        raise KeyboardInterrupt
    assert names(target) == ["old"] and names(tmp_path) == ["run"]


@pytest.mark.parametrize("killed_at", ["in the block", "between the two renames"])
def test_a_process_killed_by_the_system_leaves_no_half_folder_and_the_next_one_tidies_up(tmp_path, killed_at):
    target = tmp_path / "run"
    with publish_folder(target) as folder:
        (folder / "old").write_text("old")
    script = """
import sys, time
from pathlib import Path
from workbench.files import publish_folder
target = Path(sys.argv[1])
with publish_folder(target, replace=True) as folder:
    (folder / "half").write_text("half")
    if sys.argv[2] == "between the two renames":
        target.rename(folder.parent.parent / "replaced")
    print("ready", flush=True)
    time.sleep(60)
"""
    process = run_until_ready(script, target, Path(killed_at))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.exists() == (killed_at == "in the block")
    assert len(names(tmp_path)) == 1 + target.exists()
    with pytest.raises(WorkbenchError, match="exists already"), publish_folder(target):
        pass
    assert names(tmp_path) == ["run"] and names(target) == ["old"]


def test_an_old_folder_that_was_replaced_before_the_kill_does_not_come_back(tmp_path):
    (tmp_path / ".run.tmp-0" / "replaced").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    with scratch_folder(tmp_path / "run"):
        pass
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == []


def test_a_living_process_keeps_its_scratch_folder_and_the_first_to_finish_wins(tmp_path):
    target = tmp_path / "run"
    script = """
import sys
from workbench.errors import WorkbenchError
from workbench.files import publish_folder
try:
    with publish_folder(sys.argv[1]) as folder:
        print("ready", flush=True)
        sys.stdin.readline()
        (folder / "slow").write_text("slow")
except WorkbenchError as error:
    print(error)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with publish_folder(target) as folder:
        (folder / "quick").write_text("quick")
    said, _ = process.communicate("\n", timeout=30)
    assert "exists already" in said
    assert names(tmp_path) == ["run"] and names(target) == ["quick"]


def test_a_file_is_replaced_in_one_step_and_an_unwritten_one_is_an_error(tmp_path):
    target = tmp_path / "lock"  # a name the scratch folder uses itself
    for text in ("old", "new"):
        with publish_file(target) as temporary:
            temporary.write_text(text)
    with pytest.raises(WorkbenchError, match="nothing was written"), publish_file(target):
        pass
    assert target.read_text() == "new" and names(tmp_path) == ["lock"]


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    seen: list[tuple[str, bool]] = []
    target = tmp_path / "run"
    fsync = os.fsync

    def record(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, target.exists()))
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file is flushed")
    monkeypatch.setattr(files.os, "fsync", record)
    with publish_folder(target) as folder:
        (folder / "a.txt").write_text("a")
    assert seen == [("a.txt", False), ("run", False), (tmp_path.name, True)]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.ENOLCK, "locks"),
    ],
)
def test_a_disk_that_refuses_is_one_clear_error_and_leaves_nothing(tmp_path, number, advice):
    with pytest.raises(WorkbenchError, match=advice) as caught, publish_folder(tmp_path / "run"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "run") in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_expected_is_named(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    for publish in (publish_folder, publish_file, scratch_folder, locked):
        refused = pytest.raises(WorkbenchError, match=r"cache.*(file stands where|is there already)")
        with refused, publish(tmp_path / "cache" / "models" / "x"):
            pass


def test_errors_of_the_caller_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), publish_folder(tmp_path / "run") as folder:
        (folder / "forgotten").read_text()
    with pytest.raises(NotADirectoryError), publish_folder(tmp_path / "run"):
        (Path(__file__) / "x").read_text()


def test_one_thread_at_a_time_holds_a_lock_and_nothing_of_it_is_left(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locked(tmp_path / "x.lock"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                threading.Event().wait(0.005)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1 and names(tmp_path) == []


def test_waiting_for_a_lock_can_be_cancelled_and_a_killed_holder_frees_it(tmp_path):
    class Impatient(Silent):
        def advance(self, n: int = 1) -> None:
            raise Cancelled(n)

    path = tmp_path / "x.lock"
    script = """
import sys, time
from workbench.files import locked
with locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""
    process = run_until_ready(script, path)
    with pytest.raises(Cancelled), locked(path, progress=Impatient()):
        pass
    process.kill()
    process.wait()
    with locked(path, progress=Impatient()):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_on_a_file_that_was_removed_meanwhile_guards_nothing_and_is_not_taken(
    tmp_path, monkeypatch, made_anew
):
    path = tmp_path / "x.lock"
    flock, calls = files.fcntl.flock, 0

    def the_holder_before_leaves(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
            if made_anew:
                path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", the_holder_before_leaves)
    with locked(path):
        assert calls == 2 and path.exists()
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, f"no locks for {descriptor}, {operation}")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    for block in (publish_folder, locked):
        with pytest.raises(WorkbenchError, match="has no file locks: choose a folder on a local disk"):
            block(tmp_path / "x").__enter__()
    assert names(tmp_path) == []
