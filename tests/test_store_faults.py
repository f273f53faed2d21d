"""A store loses nothing: kills, full disks, rivals and damaged files."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from store_blocks import SITES, blocks, contents, manifest, write

from workbench.errors import DataError, WorkbenchError
from workbench.store import ShuffledLoader, StoreWriter, open_store
from workbench.store import values as values_module
from workbench.store.verify import verify

BATCHES = [[(i * j) % 7 + 1 for j in range(1, 4 + i % 3)] for i in range(1, 9)]
ROWS_PER_SHARD = 20
SITE = SITES[0].name

# Forks a process per line of its input ("FOLDER TIME CALL"); it writes the store there and kills itself after TIME
# seconds or just before its CALLth change of the file system. Prints the signal that ended it, and how long it took.
FORKS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import pandas, pyarrow.parquet
from store_blocks import write
from test_store_faults import BATCHES, ROWS_PER_SHARD
CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")
print("ready", flush=True)
for line in sys.stdin:
    folder, delay, at_call = line.split()
    started, child = time.perf_counter(), os.fork()
    if not child:
        calls = 0
        def hook(event, arguments):
            global calls
            if event not in CHANGES:
                return
            calls += 1
            if calls == int(at_call):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        if float(delay):
            signal.setitimer(signal.ITIMER_REAL, float(delay))  # its default action ends the process at once
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        write(folder, BATCHES, ROWS_PER_SHARD)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), time.perf_counter() - started,
          flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python that got past its imports."""
    command = [sys.executable, "-c", script, str(Path(__file__).parent), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    write(folder, BATCHES, ROWS_PER_SHARD)
    return folder


@pytest.fixture
def store(whole, tmp_path) -> Path:
    write(tmp_path / "store", BATCHES, ROWS_PER_SHARD)
    return tmp_path / "store"


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path, whole):
    """32 kills: before random changes of the file system, and at random times; some folders are killed repeatedly."""
    process, chance = start(FORKS), random.Random(0)

    def run(folder: Path, delay: float, at_call: int) -> tuple[int, float]:
        assert process.stdin is not None and process.stdout is not None
        print(folder, delay, at_call, file=process.stdin, flush=True)
        ended, seconds = process.stdout.readline().split()
        return int(ended), float(seconds)

    ended, seconds = run(tmp_path / "timed", 0, 0)
    assert ended == 0 and contents(tmp_path / "timed") == contents(whole)
    killed, states = 0, set()
    for i in range(32):
        folder = tmp_path / str(i)
        for _ in range(1 + i % 3):
            by_time = i % 4 == 3
            delay = chance.uniform(0.001, seconds) if by_time else 0
            ended, _ = run(folder, delay, 0 if by_time else chance.randrange(1, 168))
            assert ended >= 0
            killed += ended > 0
            if (folder / "manifest.json").exists():  # what is there can be read and is right
                part = open_store(folder)
                states.add((part.complete, len(part)))
                assert verify(folder).ok and torch.isfinite(part[SITE][:]).all()
        assert run(folder, 0, 0)[0] == 0
        assert contents(folder) == contents(whole), i
    process.communicate()
    assert killed >= 20 and len(states) > 4


def test_a_second_writer_is_refused_at_once_and_a_killed_one_frees_the_folder(tmp_path):
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from store_blocks import manifest
from workbench.store import StoreWriter
writer = StoreWriter.open(sys.argv[2], manifest())
print("ready", flush=True)
sys.stdin.read()  # for ever
"""
    process = start(script, tmp_path / "store")
    end = threading.Timer(300, process.kill)  # a writer that waits for the lock would get it then
    end.start()
    with pytest.raises(DataError, match="Another process is writing"):
        StoreWriter.open(tmp_path / "store", manifest())
    assert process.poll() is None
    end.cancel()
    process.kill()
    process.wait()
    rival = pytest.raises(DataError, match="Another process is writing")
    with StoreWriter.open(tmp_path / "store", manifest()), rival:
        StoreWriter.open(tmp_path / "store", manifest())
    with StoreWriter.open(tmp_path / "store", manifest()):
        pass


@pytest.mark.parametrize("kind", ["shards", "index", "prompts", "record"])
def test_a_full_disk_is_one_clear_error_and_the_store_is_valid_up_to_its_last_shard(
    tmp_path, whole, monkeypatch, kind
):
    """The third file of one kind does not fit (the system refuses to flush it)."""
    fsync, seen = os.fsync, []

    def full(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        suffix, parent = {"shards": (".safetensors", "shards"), "record": (".json", "new")}.get(
            kind, (".parquet", kind)
        )
        if path.suffix == suffix and path.parent.name == parent and path.stem.isdigit():
            seen.append(path)
            if len(seen) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkbenchError, match="disk is full") as caught:
        write(tmp_path / "store", BATCHES, ROWS_PER_SHARD)
    assert "\n" not in str(caught.value)
    part = open_store(tmp_path / "store")
    assert len(part) == 2 * ROWS_PER_SHARD and verify(tmp_path / "store").ok and not part.complete
    assert not list((tmp_path / "store").rglob("00002*"))  # nothing of the third shard takes up room
    write(tmp_path / "store", BATCHES, ROWS_PER_SHARD)
    assert contents(tmp_path / "store") == contents(whole)


def test_a_real_full_disk_and_more_room_later(tmp_path, whole):
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], check=True, capture_output=True
        )

    try:
        mount("-o", "size=80k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small disk here")
    try:
        with pytest.raises(WorkbenchError, match="disk is full"):
            write(disk / "store", BATCHES, ROWS_PER_SHARD)
        assert verify(disk / "store").ok and 0 < len(open_store(disk / "store")) < len(open_store(whole))
        with pytest.raises(WorkbenchError, match="disk is full"):
            write(disk / "store", BATCHES, ROWS_PER_SHARD)
        mount("-o", "remount,size=8m")
        write(disk / "store", BATCHES, ROWS_PER_SHARD)
        assert contents(disk / "store") == contents(whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_interrupted_writer_must_be_opened_again(tmp_path, whole, monkeypatch):
    """Ctrl-C in the middle of a shard: what the writer holds may be half, so it takes no more."""

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    made = blocks(BATCHES)
    with StoreWriter.open(tmp_path / "store", manifest(ROWS_PER_SHARD)) as writer:
        writer.append(made[0][0], **made[0][1])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("workbench.store.buffer.write_table", interrupt)
            for one, where in made[1:]:
                writer.append(one, **where)
        with pytest.raises(WorkbenchError, match="open the store again"):
            writer.append(made[1][0], **made[1][1])
    with pytest.raises(WorkbenchError, match="open the store again"):
        writer.finish(0, "")
    write(tmp_path / "store", BATCHES, ROWS_PER_SHARD)
    assert contents(tmp_path / "store") == contents(whole)


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def read_everything(folder: Path, **how) -> None:
    store = open_store(folder, **how)
    assert store.index.table().num_rows == len(store) and store.prompts.num_rows
    for site in store.sites:
        store[site][:]


@pytest.mark.parametrize("name", ["shards/00002.safetensors", "index/00002.parquet", "prompts/00002.parquet", "shards/00002.json"])  # fmt: skip
def test_a_flipped_bit_anywhere_is_found_by_verify_which_names_the_shard_and_reading_raises(store, name):
    path, chance = store / name, random.Random(name)
    good = path.read_bytes()
    places = [0, 9, len(good) - 1, *(chance.randrange(len(good)) for _ in range(25))]
    for at in places:
        flip(path, at, chance.randrange(8))
        assert verify(store).bad_shards == [2], at
        with pytest.raises(DataError, match=r"Shard 2 of .* is damaged"):
            read_everything(store)
        path.write_bytes(good)
    assert verify(store).ok
    read_everything(store)


def test_a_flipped_bit_in_the_manifest_is_found(store):
    path, chance = store / "manifest.json", random.Random(1)
    good = path.read_bytes()
    for at in (chance.randrange(len(good)) for _ in range(25)):
        flip(path, at, chance.randrange(8))
        assert not verify(store).ok
        with pytest.raises(DataError, match=r"manifest.json is damaged"):
            open_store(store)
        path.write_bytes(good)


def test_damage_is_found_by_every_way_of_reading_but_only_where_it_lies(tmp_path):
    write(tmp_path, [[200]], rows_per_shard=200)
    array = open_store(tmp_path)[SITE]
    start = values_module.places(SITES, 200)[SITE].start
    flip(
        tmp_path / "shards/00000.safetensors", start + 70 * array.row_bytes + 3
    )  # row 70: the second of four blocks
    for read in (
        lambda s: s[SITE][70],
        lambda s: s[SITE][100:101],
        lambda s: s[SITE][[5, 65]],
        lambda s: list(s[SITE].chunks()),
        lambda s: s.of_prompt(0),
        lambda s: next(ShuffledLoader(s, SITE, 10)),
        lambda s: next(ShuffledLoader(s, SITE, 10, rows=range(0, 200, 5))),
        lambda s: list(ShuffledLoader(s, SITE, 10, chunk_rows=8, buffer_bytes=320, epochs=1)),
    ):
        with pytest.raises(
            DataError, match="rows 64–127 at 'blocks.0.hook_resid_post' are not what was written"
        ):
            read(open_store(tmp_path))
    store = open_store(tmp_path)
    assert len(store[SITE][:64]) == 64 and len(store[SITE][[0, 128, 199]]) == 3
    assert len(store[SITES[1].name][:]) == 200
    read_everything(tmp_path, verify="never")


@pytest.mark.parametrize("how", ["missing", "truncated", "longer", "empty"])
@pytest.mark.parametrize("kind", ["shards/00001.safetensors", "index/00001.parquet", "prompts/00001.parquet", "shards/00001.json"])  # fmt: skip
def test_a_missing_or_cut_file_is_named(store, kind, how):
    path = store / kind
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"truncated": data[:-7], "longer": data + b"}", "empty": b""}[how])
    report = verify(store)
    assert report.bad_shards == [1] and len(report.faults) == 1
    with pytest.raises(DataError, match=r"Shard 1 of .* is damaged"):
        read_everything(store)
    if how == "missing" or kind.startswith(
        "shards"
    ):  # cheap to see: nothing may be written after a damaged shard
        before = contents(store)
        with pytest.raises(DataError, match=r"Shard 1 of .* is damaged"):
            StoreWriter.open(store, manifest(ROWS_PER_SHARD))
        assert contents(store) == before
