"""How batches are filled: in the order that is documented, without ever touching one that somebody holds."""

from __future__ import annotations

import gc
import mmap
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_blocks import manifest

from workbench.store import PromptRecord, RowBlock, ShuffledLoader, SiteRecord, StoreWriter, open_store
from workbench.store import batches as batches_module
from workbench.store import order as order_module
from workbench.store import prepared as prepared_module
from workbench.store.cached import CachedRows
from workbench.store.pool import SlabPool
from workbench.store.raw import copy_rows

SITE, N, WIDTH = "blocks.0.hook_resid_post", 1003, 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """dtype -> (store, all its rows). Row i holds i // 4, i % 4 and 7; shards have 100 rows."""
    made = {}
    for dtype in DTYPES:
        i = np.arange(N)
        rows = torch.from_numpy(np.stack([i // 4, i % 4, 0 * i + 7], axis=1)).to(DTYPES[dtype])
        small = i.astype(np.int32)
        prompts = [PromptRecord(p, str(p), 1) for p in range(N)]
        block = RowBlock({SITE: rows}, i, small, small, np.zeros(N, np.int8), [""] * N, prompts)
        folder = tmp_path_factory.mktemp("batches") / dtype
        with StoreWriter.open(folder, manifest(100, (SiteRecord(SITE, (WIDTH,), dtype),))) as writer:
            writer.append(block, batch=0, window=1, digest="")
            writer.finish(N, "")
        made[dtype] = open_store(folder), rows
    return made


@pytest.fixture(scope="module", params=["as it is", "tiny steps and slabs", "tiny, nothing cached"])
def sizes(request):
    """Steps of a few rows and slabs of a few batches, so that small stores go through every branch."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as it is":
            patch.setattr(prepared_module, "STEP_BYTES", 30 * WIDTH * 4)
            patch.setattr(batches_module, "_SLAB_BYTES", 100 * WIDTH * 4)
        if request.param == "tiny, nothing cached":
            patch.setattr(CachedRows, "find", lambda self, rows: None)
        yield


def ranks(seed: tuple[int, ...], n: int) -> list[int]:
    """The permutation that `order.py` promises, the plain way."""
    numbers = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n).tolist()
    return sorted(range(n), key=lambda i: numbers[i])


def expected_order(rows: list[int], chunk: int, window_rows: int, seed: int, epoch: int) -> list[int]:
    """Steps 1 to 3 of `order.py`, with lists."""
    chunks = [rows[i : i + chunk] for i in range(0, len(rows), chunk)]
    n_windows = -(-len(chunks) // max(window_rows // chunk, 1))
    order = ranks((seed, epoch, 0), len(chunks)) if n_windows > 1 else list(range(len(chunks)))
    served = []
    for w, dealt in enumerate(np.array_split(np.array(order), n_windows)):
        window = [row for c in sorted(dealt.tolist()) for row in chunks[c]]
        served += [window[i] for i in ranks((seed, epoch, 1 + w), len(window))]
    return served


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_order_is_the_documented_one_from_any_place_on(stores, sizes, data):
    """Three epochs, then a jump to anywhere."""
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    store, values = stores[dtype]
    batch, chunk = data.draw(st.integers(5, 250)), data.draw(st.integers(1, 80))
    window_rows, seed = data.draw(st.integers(1, 1200)), data.draw(st.integers(0, 9))
    drop = data.draw(st.booleans())
    chosen = data.draw(st.sampled_from([None, np.arange(0, N, 3), np.r_[7:300, 320:900, 1000:1003]]))
    rows = list(range(N)) if chosen is None else chosen.tolist()
    row_bytes = WIDTH * DTYPES[dtype].itemsize
    loader = ShuffledLoader(
        store,
        SITE,
        batch,
        seed=seed,
        buffer_bytes=window_rows * row_bytes,
        chunk_rows=chunk,
        dtype=None,
        epochs=3,
        drop_last=drop,
        rows=chosen,
    )
    n = len(rows) - (len(rows) % batch if drop else 0)
    orders = [expected_order(rows, chunk, window_rows, seed, epoch)[:n] for epoch in range(3)]
    expected = [order[i : i + batch] for order in orders for i in range(0, n, batch)]
    with loader:
        given_batches = list(loader)
        assert len(given_batches) == len(expected) == 3 * loader.batches_per_epoch
        assert all(torch.equal(b, values[rows]) for b, rows in zip(given_batches, expected, strict=True))
        at = data.draw(st.integers(0, len(expected)))
        epoch, batches = divmod(at, loader.batches_per_epoch)
        state = {**loader.state_dict(), "epoch": epoch, "rows_served": min(batches * batch, n)}
        loader.load_state_dict(state)
        rest = list(loader)
        assert len(rest) == len(expected) - at
        assert all(torch.equal(b, values[rows]) for b, rows in zip(rest, expected[at:], strict=True))


def test_the_order_does_not_change_between_versions(stores):
    """States that were saved go on with the rows they would have had."""
    store, values = stores["float32"]
    for buffer_rows, expected in GOLDEN.items():
        loader = ShuffledLoader(store, SITE, 8, seed=1, buffer_bytes=buffer_rows * WIDTH * 4, chunk_rows=16)
        assert torch.equal(next(loader), values[expected])


def test_equal_random_numbers_keep_the_order_of_their_rows(monkeypatch):
    class Few:
        def __init__(self, seed):
            self.chance = np.random.default_rng(seed)

        def random_raw(self, n):
            return self.chance.integers(0, 50, n).astype(np.uint64)

    monkeypatch.setattr(order_module.np.random, "PCG64", Few)
    numbers = Few(np.random.SeedSequence((1, 2))).random_raw(1000).tolist()
    assert order_module._permutation((1, 2), 1000).tolist() == sorted(range(1000), key=lambda i: numbers[i])


class Graph:
    """Holds a batch the way autograd does: it is needed for the gradient."""

    def __init__(self, batch: torch.Tensor) -> None:
        self.weight = torch.ones((), dtype=batch.dtype, requires_grad=True)
        self.total = (self.weight * batch).sum()

    def value(self) -> torch.Tensor:
        return torch.autograd.grad(self.total, self.weight)[0]


def plain(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return x.double().detach().numpy() if isinstance(x, torch.Tensor) else x


HOLD = {
    "the batch": lambda b: b,
    "a view": lambda b: b[len(b) // 2 :, 1:],
    "numpy": lambda b: b.view(torch.int32 if b.dtype == torch.float32 else torch.int16).numpy()[::2],
    "autograd": Graph,
    "not": lambda b: None,
}


@settings(max_examples=25, deadline=None)
@given(
    hold=st.lists(st.sampled_from(list(HOLD)), min_size=8, max_size=40),
    rows=st.integers(20, 1200),
    cast=st.booleans(),
    batch=st.integers(1, 120),
)
def test_a_batch_that_somebody_holds_stays_as_it_was(stores, sizes, hold, rows, cast, batch):
    """In whatever way it is held, while the others are let go and 60 more come."""
    store, _ = stores["bfloat16"]
    loader = ShuffledLoader(
        store, SITE, batch, buffer_bytes=rows * WIDTH * 2, chunk_rows=8, dtype=torch.float32 if cast else None
    )
    held = [(HOLD[how](one), HOLD[how](one.clone())) for how, one in zip(hold, loader, strict=False)]
    for _ in range(60):
        next(loader)
    loader.close()
    del loader
    for found, expected in held:
        if isinstance(found, Graph):
            found, expected = found.value(), expected.value()
        assert found is expected is None or np.array_equal(*map(plain, (found, expected)))


def test_memory_is_used_again_when_batches_are_dropped_and_not_before(stores, sizes, monkeypatch):
    """30 epochs take no more memory than a few slabs; holding everything takes all of it."""
    store, _ = stores["float32"]
    addresses, real = set(), SlabPool.take

    def take(self):
        slab = real(self)
        addresses.add(slab.rows.ctypes.data)
        return slab

    def n_places(epochs: int, *, hold: bool) -> int:
        addresses.clear()
        settings = {"buffer_bytes": 300 * WIDTH * 4, "chunk_rows": 10, "epochs": epochs}
        with ShuffledLoader(store, SITE, 10, **settings) as loader:
            held = [batch if hold else None for batch in loader]
        assert len(held) == 100 * epochs
        return len(addresses)

    monkeypatch.setattr(SlabPool, "take", take)
    slab_rows = 60  # of windows of 250 rows
    assert n_places(30, hold=False) <= batches_module._AHEAD + 4
    assert n_places(6, hold=True) >= 6 * 1000 // slab_rows


def test_a_slab_comes_back_with_its_last_batch():
    pool = SlabPool(4, (2,), torch.bfloat16, n_kept=1)
    slab = pool.take()
    address, batches = slab.rows.ctypes.data, [slab.batch(0, 2), slab.batch(2, 2)]
    assert batches[1].data_ptr() == address + 2 * 2 * 2 and batches[1].dtype == torch.bfloat16
    assert batches[0].untyped_storage().nbytes() == 8  # torch.save writes no more than the batch
    row = batches[1][0]
    del slab, batches[1]
    other = pool.take()
    assert other.rows.ctypes.data != address
    del batches[0], other
    assert pool.take().rows.ctypes.data != address  # `row` is still there
    del row
    assert pool.take().rows.ctypes.data == address


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="Linux only")
def test_what_is_held_after_the_end_keeps_no_other_memory():
    """Pages that were given back to the system read as zeros."""
    rows = 3 * mmap.PAGESIZE // 4
    pool = SlabPool(rows, (1,), torch.float32, n_kept=4)
    slabs = [pool.take() for _ in range(4)]
    for slab in slabs:
        slab.rows[:] = 1
    arena = np.frombuffer(pool._arena.memory, np.int32)
    batch = slabs[2].batch(0, rows)
    at = (slabs[2].rows.ctypes.data - arena.ctypes.data) // arena.itemsize
    del slab, slabs
    pool.close()
    assert (batch.view(torch.int32) == 1).all()
    assert arena.sum() == rows  # the slab of the batch, and nothing else
    del batch
    assert arena[at : at + rows].sum() == 0


def test_batches_outlive_their_loader_and_may_be_dropped_in_any_thread(stores):
    store, values = stores["float32"]
    loader = ShuffledLoader(
        store, SITE, 100, buffer_bytes=300 * WIDTH * 4, chunk_rows=10, drop_last=False, epochs=1
    )
    held = list(loader)
    loader.close()
    del loader
    gc.collect()
    rows = torch.cat(held)
    assert torch.equal(rows[torch.argsort(4 * rows[:, 0] + rows[:, 1])], values)
    threads = [threading.Thread(target=held.pop) for _ in range(len(held))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not held


def test_every_bfloat16_becomes_the_same_float32_as_in_torch():
    """Also the NaNs, bit for bit."""
    source = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    out = torch.empty(source.shape)
    copy_rows(source, out)
    assert torch.equal(out.view(torch.int32), source.float().view(torch.int32))


GOLDEN = {
    300: [625, 635, 869, 888, 885, 307, 782, 503],
    2000: [563, 690, 980, 129, 959, 683, 616, 521],
}
"""Rows in a buffer -> first rows of seed 1, chunks of 16; as written by the version before batches were filled ahead."""
