"""Rows come from the page cache where it has them, from the disk where not, and are the same either way."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_blocks import manifest
from test_store_loader import numbered

from workbench.errors import DataError
from workbench.store import (
    PromptRecord,
    RowBlock,
    ShuffledLoader,
    SiteRecord,
    StoreWriter,
    concatenate,
    open_store,
    prepared,
)
from workbench.store.cached import CachedRows

SITE, OTHER = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"
N = 500
linux = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in the page cache")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two stores as one, each of shards of 110 rows (the last of 60) and of two sites, one of which begins within the file
    at an offset that rows of 256 bytes cannot make up for where shards are of another length."""
    stores = []
    for i in range(2):
        sites = (SiteRecord(OTHER, (3,), "float32"), SiteRecord(SITE, (2, 64), "bfloat16"))
        chance = torch.Generator().manual_seed(i)
        values = {
            s.name: torch.randn((N, *s.shape), generator=chance).to(getattr(torch, s.dtype)) for s in sites
        }
        rows, prompt = np.arange(N, dtype=np.int32), [PromptRecord(0, "", N)]
        block = RowBlock(values, np.zeros(N, np.int64), rows, rows, np.zeros(N, np.int8), [""] * N, prompt)
        folder = tmp_path_factory.mktemp("cached") / str(i)
        with StoreWriter.open(folder, manifest(110, sites)) as writer:
            writer.append(block, batch=0, window=1, digest="")
            writer.finish(1, "")
        stores.append(open_store(folder))
    return concatenate(stores)


@linux
@settings(max_examples=30, deadline=None)
@given(rows=st.sets(st.integers(0, 2 * N - 1)), site=st.sampled_from([SITE, OTHER]))
def test_rows_from_the_cache_are_the_rows_of_the_store(store, rows, site):
    numbers, array = np.array(sorted(rows), np.int64), store[site]
    expected = [
        site == OTHER or row % N < 440 for row in sorted(rows)
    ]  # the short shards begin where none fits
    found = CachedRows(store, site).find(numbers)
    if found is None:
        assert 2 * sum(expected) <= len(rows)
        return
    assert found.there.tolist() == expected
    out = torch.from_numpy(found.values[found.numbers]).view(array.dtype).view(-1, *array.shape[1:])
    assert torch.equal(out[found.there], array[numbers[found.there]])


@linux
def test_rows_that_are_not_in_the_cache_are_not_waited_for(store, monkeypatch):
    """One look that would have to wait is enough."""
    cached = CachedRows(store, SITE)
    rows, looked, real = np.r_[100:120, 600:620], [], os.preadv

    def preadv(descriptor, buffers, offset, flags):
        looked.append(offset)
        if len(looked) == fails:
            raise BlockingIOError
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    fails = 0
    found = cached.find(rows)
    assert found is not None and found.there.all()
    assert len(looked) == 4  # one in each of two shards, of both stores
    for fails in range(1, 5):
        looked.clear()
        found = cached.find(rows)
        assert found is not None and found.there.tolist() == [i // 10 != fails - 1 for i in range(40)]


@pytest.mark.parametrize("why", ["would wait", "cannot tell", "no Linux"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_a_loader_gives_the_same_rows_whatever_the_cache_holds(store, why, seed):
    settings = {"seed": seed, "buffer_bytes": 300 * 256, "chunk_rows": 10, "epochs": 3, "drop_last": False}
    expected = list(ShuffledLoader(store, SITE, 64, **settings))
    calls, real = [], os.preadv

    def preadv(descriptor, buffers, offset, flags=0):
        calls.append(flags)
        if flags and len(calls) % 3 == 0:
            raise BlockingIOError if why == "would wait" else OSError(95, "Operation not supported")
        return real(descriptor, buffers, offset, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        if why == "no Linux":
            patch.delattr(os, "RWF_NOWAIT", raising=False)
        found = list(ShuffledLoader(store, SITE, 64, **settings))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert any(calls) == (why != "no Linux" and hasattr(os, "RWF_NOWAIT"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("cut", "ends before its rows do"),
        ("removed", "cannot be read .No such file"),
        ("unreadable", "cannot be read"),
    ],
)
def test_a_file_that_is_damaged_later_is_named_and_the_loader_goes_on_when_it_is_mended(
    tmp_path, monkeypatch, harm, message
):
    """In the second epoch, when rows come from the map of the file: no signal ends the process."""
    store = numbered(tmp_path / "store", 1003)
    settings = {"buffer_bytes": 200 * 8, "chunk_rows": 10, "epochs": 3, "drop_last": False}
    expected = list(ShuffledLoader(store, SITE, 100, **settings))
    loader = ShuffledLoader(store, SITE, 100, **settings)
    taken = [next(loader) for _ in range(12)]
    file, kept = tmp_path / "store" / "shards" / "00007.safetensors", tmp_path / "kept"
    shutil.copyfile(file, kept)
    real = os.open
    if harm == "cut":
        os.truncate(file, file.stat().st_size - 4)
    elif harm == "removed":
        file.unlink()
    else:
        monkeypatch.setattr(
            os, "open", lambda path, flags: real(file.parent if path == file else path, flags)
        )
    with pytest.raises(DataError, match=f"Shard 7 of .* damaged: .*00007.safetensors: .*{message}"):
        for batch in loader:
            taken.append(batch)
    with pytest.raises(DataError, match=message):
        next(loader)
    monkeypatch.setattr(os, "open", real)
    shutil.copyfile(kept, file)
    taken += list(loader)
    assert len(taken) == len(expected) == 33
    assert all(map(torch.equal, taken, expected))


@linux
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_were_cut_off_after_they_were_found_are_never_zeros(tmp_path, monkeypatch, seed):
    """The file is cut between the look at it and the copy: the map is zero there, and the reader says so."""
    store = numbered(tmp_path / "store", 1003)
    file = tmp_path / "store" / "shards" / "00007.safetensors"
    real, length = prepared.Window.gather, file.stat().st_size

    def late(self, first, out):
        if self.first:  # in the last window: no other one comes upon it
            os.truncate(file, length - 50 * 8)
        real(self, first, out)

    settings = {"buffer_bytes": 600 * 8, "chunk_rows": 10, "epochs": 1, "drop_last": False, "seed": seed}
    expected = list(
        ShuffledLoader(store, SITE, 50, **settings)
    )  # all rows are compared with their checks, once
    monkeypatch.setattr(prepared.Window, "gather", late)
    taken = []
    with pytest.raises(DataError, match="Shard 7 of .* ends before its rows do"):
        for batch in ShuffledLoader(store, SITE, 50, **settings):
            taken.append(batch)
    # A slab is 100 rows; the cut comes with the slab of rows 500 to 600, and only the one before is filled beside it.
    assert 8 <= len(taken) < len(expected) and all(map(torch.equal, taken, expected))
