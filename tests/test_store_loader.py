"""Shuffled batches: every row once an epoch, mixed as said, and exactly the same after a resume."""

from __future__ import annotations

import gc
import json
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from store_blocks import manifest, write

from workbench.errors import DataError
from workbench.store import (
    PromptRecord,
    RowBlock,
    ShuffledLoader,
    SiteRecord,
    Store,
    StoreWriter,
    concatenate,
    open_store,
)
from workbench.store.order import ShuffleOrder

SITE = "blocks.0.hook_resid_post"
ROW = 8  # bytes: two float32, the row's number and its double


def numbered(folder, n: int, rows_per_shard: int = 100) -> Store:
    """A store whose row i holds i and 2i."""
    sites = (SiteRecord(SITE, (2,), "float32"),)
    rows = np.arange(n)
    values = torch.from_numpy(np.stack([rows, 2 * rows], axis=1).astype(np.float32))
    small = rows.astype(np.int32)
    prompts = [PromptRecord(i, str(i), 1) for i in range(n)]
    block = RowBlock({SITE: values}, rows, small, small, np.zeros(n, np.int8), [""] * n, prompts)
    with StoreWriter.open(folder, manifest(rows_per_shard, sites)) as writer:
        writer.append(block, batch=0, window=1, digest="")
        writer.finish(n, "")
    return open_store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return numbered(tmp_path_factory.mktemp("loader") / "store", 1003)


def numbers(batches) -> list[int]:
    taken = list(batches)
    assert all(torch.equal(batch[:, 1], 2 * batch[:, 0]) for batch in taken)
    return [int(x) for batch in taken for x in batch[:, 0]]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 300), rows=st.integers(1, 1200), chunk=st.integers(1, 90), seed=st.integers(0, 2**40)
)
def test_every_row_comes_exactly_once_per_epoch(store, batch, rows, chunk, seed):
    settings = {"seed": seed, "buffer_bytes": rows * ROW, "chunk_rows": chunk, "drop_last": False}
    with ShuffledLoader(store, SITE, batch, epochs=2, **settings) as loader:
        taken = list(loader)
    assert [len(b) for b in taken[: loader.batches_per_epoch - 1]] == [batch] * (loader.batches_per_epoch - 1)
    first, second = (numbers(half) for half in (taken[: len(taken) // 2], taken[len(taken) // 2 :]))
    assert sorted(first) == sorted(second) == list(range(1003))
    assert first != second and first != sorted(first)


def test_rows_that_do_not_fill_a_batch_are_left_out_or_a_short_batch(store):
    assert [len(b) for b in ShuffledLoader(store, SITE, 500, epochs=2)] == [500] * 4
    short = ShuffledLoader(store, SITE, 500, epochs=2, drop_last=False, buffer_bytes=300 * ROW)
    assert [len(b) for b in short] == [500, 500, 3, 500, 500, 3]


def test_where_everything_fits_every_permutation_is_as_likely(tmp_path):
    """Chi-square: where row i lands, and which of the 24 orders of four rows comes."""
    small = numbered(tmp_path / "small", 24, rows_per_shard=7)
    loader = ShuffledLoader(small, SITE, 24, chunk_rows=4)
    orders = np.array([next(loader)[:, 0].numpy() for _ in range(4000)]).astype(int)
    landed = np.array([np.bincount(orders[:, i], minlength=24) for i in range(24)])
    assert stats.chisquare(landed, axis=1).pvalue.min() > 1e-4
    ranks = np.argsort(np.argsort(orders[:, :4], axis=1), axis=1) @ [64, 16, 4, 1]
    counts = np.unique(ranks, return_counts=True)[1]
    assert len(counts) == 24 and stats.chisquare(counts).pvalue > 1e-3


def test_where_it_does_not_fit_neighbours_in_a_batch_come_from_all_over_the_store(tmp_path):
    """Of a batch's rows, the share from the same chunk is chunk_rows / window_rows, and distances are those of chance."""
    big = numbered(tmp_path / "big", 40_000, rows_per_shard=1000)
    with ShuffledLoader(big, SITE, 500, chunk_rows=16, buffer_bytes=8000 * ROW, epochs=1) as loader:
        given_rows = np.array(numbers(loader))
    assert sorted(given_rows.tolist()) == list(range(40_000))
    distance = np.abs(np.diff(given_rows))
    assert (
        abs(np.median(distance) / (40_000 * (1 - np.sqrt(0.5))) - 1) < 0.03
    )  # |x - y| of two uniform numbers
    same_chunk = np.mean(given_rows[1:] // 16 == given_rows[:-1] // 16)
    assert same_chunk < 2 * 16 / 8000
    windows = given_rows.reshape(5, 8000)
    spread = np.array([np.histogram(w, bins=10, range=(0, 40_000))[0] for w in windows])
    assert spread.min() > 500  # each window has rows of each tenth of the store (800 expected)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 200), rows=st.integers(1, 1200), drop=st.booleans(), data=st.data())
def test_a_resumed_loader_gives_exactly_what_the_first_would_have(store, batch, rows, drop, data):
    settings = {"seed": 3, "buffer_bytes": rows * ROW, "chunk_rows": 16, "drop_last": drop}
    whole = list(ShuffledLoader(store, SITE, batch, epochs=3, **settings))
    at = data.draw(st.integers(0, len(whole)))
    first = ShuffledLoader(store, SITE, batch, epochs=3, **settings)
    taken = [next(first) for _ in range(at)]
    state = json.loads(json.dumps(first.state_dict()))
    rest = list(ShuffledLoader(store, SITE, batch, epochs=3, **settings, state=state))
    assert len(taken) + len(rest) == len(whole)
    assert all(torch.equal(a, b) for a, b in zip([*taken, *rest], whole, strict=True))
    if at:
        first.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(first, whole[at:], strict=True))


def test_a_state_file_is_small_and_goes_on_only_with_what_it_was_taken_of(store, tmp_path):
    chosen = np.arange(0, 1003, 3)
    loader = ShuffledLoader(store, SITE, 32, rows=chosen, buffer_bytes=64 * ROW)
    for _ in range(25):
        next(loader)
    path = loader.save(tmp_path / "loader.json")
    assert path.stat().st_size < 1000
    expected = [next(loader) for _ in range(25)]
    again = ShuffledLoader.resume(path, store, rows=chosen)
    assert all(torch.equal(next(again), batch) for batch in expected)
    with pytest.raises(DataError, match="rows was .* and is 'all'"):
        ShuffledLoader.resume(path, store)
    with pytest.raises(DataError, match="store was"):
        ShuffledLoader.resume(path, numbered(tmp_path / "other", 1003, 50), rows=chosen)
    with pytest.raises(DataError, match="batch_size was 32 and is 33"):
        ShuffledLoader(store, SITE, 33, rows=chosen, state=loader.state_dict())
    with pytest.raises(DataError, match="no state of a loader"):
        ShuffledLoader.resume(tmp_path / "none.json", store)


@pytest.mark.parametrize("chosen", ["every third", "few", "two stretches", "mask"])
def test_a_subset_gives_its_rows_and_no_others(store, chosen):
    rows = {
        "every third": np.arange(0, 1003, 3)[::-1],
        "few": np.array([999, 5, 500]),
        "two stretches": np.r_[90:310, 700:1003],
        "mask": np.arange(1003) % 7 == 2,
    }[chosen]
    expected = np.flatnonzero(rows) if rows.dtype == bool else np.sort(rows)
    for buffer_rows in (40, 2000):
        loader = ShuffledLoader(
            store, SITE, 10, rows=rows, epochs=1, drop_last=False, buffer_bytes=buffer_rows * ROW
        )
        assert sorted(numbers(loader)) == expected.tolist()


def test_several_stores_and_dtypes_load_as_one(tmp_path):
    for i in range(2):
        write(tmp_path / str(i), [[30], [20]], seed=i)
    both = concatenate([open_store(tmp_path / str(i)) for i in range(2)])
    array = both[SITE]  # bfloat16
    for dtype in (torch.float32, torch.bfloat16, torch.float64, None):
        batch = next(ShuffledLoader(both, SITE, 100, dtype=dtype))
        expected = array[:].to(dtype or torch.bfloat16)
        assert batch.dtype == expected.dtype
        assert sorted(batch.tolist()) == sorted(expected.tolist())


def test_the_first_batch_does_not_wait_for_the_next_window(store, monkeypatch):
    """The second window is read in the background: while it is, batches of the first are served."""
    gate, read = threading.Event(), ShuffleOrder.rows

    def slow(self, epoch, window):
        assert window == 0 or gate.wait(30)
        return read(self, epoch, window)

    monkeypatch.setattr(ShuffleOrder, "rows", slow)
    with ShuffledLoader(store, SITE, 50, buffer_bytes=512 * ROW) as loader:
        for _ in range(8):
            next(loader)
        gate.set()
        next(loader), next(loader), next(loader)


def background() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("shuffled-loader")]


@pytest.mark.parametrize("how", ["close", "forgotten", "exception"])
def test_the_background_thread_ends_with_the_loader(store, how):
    before = len(background())
    loader = ShuffledLoader(store, SITE, 50, buffer_bytes=128 * ROW)
    next(loader)
    assert len(background()) > before
    if how == "close":
        loader.close()
        with pytest.raises(DataError, match="closed"):
            next(loader)
    elif how == "exception":
        with pytest.raises(KeyError), loader:
            raise KeyError
    del loader
    gc.collect()
    deadline = time.monotonic() + 20
    while len(background()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(background()) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2000}, "fewer than a batch"),
        ({"seed": -1}, "at least 0"),
        ({"rows": [1, 1]}, "twice"),
        ({"rows": [5000]}, "rows 0 to 1002"),
        ({"rows": [0.5]}, "row numbers or a mask"),
        ({"site": "blocks.1.hook_resid_post"}, "Did you mean 'blocks.0.hook_resid_post'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(store, wrong, message):
    with pytest.raises(DataError, match=message):
        ShuffledLoader(**{"store": store, "site": SITE, "batch_size": 1, **wrong})


def test_sae_lens_trains_from_it(tmp_path):
    from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    write(tmp_path / "store", [[40] * 5] * 4, rows_per_shard=128)
    opened = open_store(tmp_path / "store")
    loader = ShuffledLoader(opened, "blocks.3.hook_resid_post", 64, buffer_bytes=200 * 14, chunk_rows=16)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=7, d_sae=32, k=4, dtype="float32", device="cpu"))
    before = sae.W_enc.detach().clone()
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=64 * 20,
        device="cpu",
        autocast=False,
        lr=3e-3,
        lr_end=3e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        train_batch_size_samples=64,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=loader)
    trainer.fit()
    assert trainer.n_training_samples == 64 * 20
    assert loader.state_dict()["epoch"] == 1 and not torch.equal(sae.W_enc, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_cuda_are_those_of_the_cpu(store):
    settings = {"buffer_bytes": 300 * ROW, "epochs": 2, "dtype": torch.float16}
    there = ShuffledLoader(store, SITE, 64, device="cuda", **settings)
    states = []
    for batch, expected in zip(there, ShuffledLoader(store, SITE, 64, **settings), strict=True):
        assert batch.is_cuda and torch.equal(batch.cpu(), expected)
        states.append(there.state_dict()["rows_served"])
    assert states[:2] == [64, 128]
