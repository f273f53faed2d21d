"""Faults a review found in the store, each with what it must do instead."""

from __future__ import annotations

import errno
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from store_blocks import DTYPES, SITES, block, contents, manifest, write

from workbench.errors import DataError
from workbench.store import PromptRecord, RowBlock, ShuffledLoader, Store, StoreWriter, open_store
from workbench.store.merge import merge
from workbench.store.verify import verify

SITE = SITES[0].name
BATCHES = [[3, 4], [5, 1, 2], [6]]


@pytest.fixture
def store(tmp_path) -> Store:
    write(tmp_path / "store", BATCHES, rows_per_shard=8)
    return open_store(tmp_path / "store")


def rows_of(prompts: list[int], positions: list[int]) -> RowBlock:
    """A block of ones with these prompts and positions."""
    n = len(prompts)
    return RowBlock(
        {s.name: torch.ones((n, *s.shape)).to(DTYPES[s.dtype]) for s in SITES},
        np.array(prompts, np.int64), np.array(positions, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int8),
        [""] * n, [PromptRecord(p, str(p), 9) for p in dict.fromkeys(prompts)],
    )  # fmt: skip


def test_a_resume_where_the_next_batch_goes_on_with_the_prompt_before_it(tmp_path):
    """The shard ends with batch 0; prompt 1 goes on in batch 1 and begins only once."""
    batches = [rows_of([0, 0, 1, 1], [0, 1, 0, 1]), rows_of([1, 1, 2, 2], [2, 3, 0, 1])]

    def run(folder, last: int) -> None:
        with StoreWriter.open(folder, manifest(4)) as writer:
            at = writer.cursor
            for i, one in enumerate(batches[: last + 1]):
                if i >= at.batch:
                    skip = at.row if i == at.batch else 0
                    writer.append(one, batch=i, window=1, digest="d", skip=skip)
            if last == 1:
                writer.finish(3, "f")

    run(tmp_path / "whole", 1)
    run(tmp_path / "resumed", 0)
    run(tmp_path / "resumed", 1)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert verify(tmp_path / "resumed").ok
    assert open_store(tmp_path / "resumed").prompts["number"].to_pylist() == [0, 1, 2]


def test_a_resumed_loader_keeps_epochs_and_dtype(store, tmp_path):
    loader = ShuffledLoader(store, SITE, 4, epochs=2, dtype=torch.float16, drop_last=False)
    first = [next(loader) for _ in range(3)]
    path = loader.save(tmp_path / "loader.json")
    rest = list(islice(ShuffledLoader.resume(path, store), 20))
    assert [len(b) for b in [*first, *rest]] == [4, 4, 4, 4, 4, 1] * 2
    assert {b.dtype for b in rest} == {torch.float16}
    other = list(ShuffledLoader.resume(path, store, epochs=1, dtype=torch.float64))
    assert len(other) == 3 and other[0].dtype == torch.float64
    stored = ShuffledLoader(store, SITE, 4, dtype=None).save(tmp_path / "stored.json")
    assert next(ShuffledLoader.resume(stored, store)).dtype == torch.bfloat16


def test_a_state_of_an_older_version_loads_and_a_damaged_one_says_so(store, tmp_path):
    loader = ShuffledLoader(store, SITE, 4, epochs=2)
    next(loader)
    state = json.loads(loader.save(tmp_path / "now.json").read_text())
    old = {k: v for k, v in state.items() if k not in ("epochs", "dtype")}
    (tmp_path / "old.json").write_text(json.dumps(old))
    again = ShuffledLoader.resume(tmp_path / "old.json", store)
    assert torch.equal(next(again), next(loader)) and again.state_dict()["epochs"] is None
    for change in (
        {"epoch": None},
        {"epoch": -1},
        {"rows_served": "many"},
        {"rows_served": 3},
        {"rows_served": 99},
    ):
        with pytest.raises(DataError, match="whole"):
            ShuffledLoader(store, SITE, 4, state={**state, **change})
    with pytest.raises(DataError, match="epoch=None"):
        ShuffledLoader(store, SITE, 4, state={k: v for k, v in state.items() if k != "epoch"})
    with pytest.raises(DataError, match="no state of a loader"):
        ShuffledLoader(store, SITE, 4, state=[1])  # type: ignore[arg-type]
    (tmp_path / "odd.json").write_text(json.dumps({**state, "dtype": "float31"}))
    with pytest.raises(DataError, match="no state of a loader"):
        ShuffledLoader.resume(tmp_path / "odd.json", store)


def test_numbers_of_numpy_do_and_fractions_do_not(store, tmp_path):
    sizes = {"seed": np.int64(3), "buffer_bytes": np.int64(4096), "chunk_rows": np.int32(2)}
    loader = ShuffledLoader(store, SITE, np.int64(4), epochs=np.int64(1), **sizes)
    plain = ShuffledLoader(store, SITE, 4, epochs=1, seed=3, buffer_bytes=4096, chunk_rows=2)
    assert json.loads(loader.save(tmp_path / "l.json").read_text()) == plain.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(loader, plain, strict=True))
    for wrong in (
        {"batch_size": 2.0},
        {"seed": 1.5},
        {"chunk_rows": "3"},
        {"buffer_bytes": None},
        {"epochs": 1.0},
    ):
        with pytest.raises(DataError, match="whole number"):
            ShuffledLoader(store, SITE, **{"batch_size": 2, **wrong})


def test_a_device_that_is_not_there_is_named(store):
    for device in ("cuda:99", "cudda", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(DataError, match=f"device='{device}' cannot be used here"):
            ShuffledLoader(store, SITE, 4, device=device)


def test_rows_are_found_by_numbers_of_any_kind(store):
    index = store.index
    for one in (np.int64(1), np.int32(1), np.array(1), torch.tensor(1), [np.int64(1)], {1}, np.array([1])):
        assert np.array_equal(store.rows(prompt=one), store.rows(prompt=1))
        assert np.array_equal(store.rows(position=one), store.rows(position=1))
    assert np.array_equal(
        store.rows(position=index.position[0], token=index.token_id[0]), store.rows(position=0, token=0)
    )
    assert torch.equal(store.of_prompt(np.int64(1))[SITE], store.of_prompt(1)[SITE])
    for wrong in (1.5, np.float64(1), True, "1", [[1], [1, 2]], object()):
        with pytest.raises(DataError, match="whole number"):
            store.rows(prompt=wrong)  # type: ignore[arg-type]


def test_labels_are_compared_by_value_whatever_the_order_of_their_keys(tmp_path):
    one = block(0, [2, 2], 0)
    labels = [{"k": 3, "pair": {"b": 1, "a": [1, 2]}}, {"k": 4, "pair": {"a": [], "b": {"d": 0, "c": True}}}]
    records = [PromptRecord(p.number, p.id, p.n_tokens, v) for p, v in zip(one.prompts, labels, strict=True)]
    with StoreWriter.open(tmp_path, manifest()) as writer:
        writer.append(RowBlock(**{**vars(one), "prompts": records}), batch=0, window=1, digest="")
        writer.finish(2, "")
    store = open_store(tmp_path)
    for label in (
        {"k": np.int64(3)},
        {"pair": {"a": [1, 2], "b": 1}},
        {"pair": {"b": np.int32(1), "a": np.array([1, 2])}},
    ):
        assert store.rows(label=label).tolist() == [0, 1]
    assert store.rows(label={"pair": {"b": {"c": np.bool_(True), "d": 0}, "a": ()}}).tolist() == [2, 3]
    with pytest.raises(DataError, match="No prompt has 'k' = 5"):
        store.rows(label={"k": np.int64(5)})
    with pytest.raises(DataError, match="is no label"):
        store.rows(label={"k": object()})


@pytest.mark.parametrize("verify_how", ["first", "never"])
def test_take_counts_from_the_end_and_refuses_what_is_not_there(store, verify_how):
    array = open_store(store.parts[0].folder, verify=verify_how)[SITE]
    n = len(array)
    assert torch.equal(array.take(np.array([-1, 0, -n])), array[:][[n - 1, 0, 0]])
    assert torch.equal(array.take([3]), array[3:4]) and torch.equal(array.take(np.arange(n) == 3), array[3:4])
    for wrong in (99, -n - 1):
        with pytest.raises(DataError, match=f"Row {wrong} does not exist"):
            array.take(np.array([wrong]))


def test_a_store_with_nothing_in_it_takes_other_settings(tmp_path):
    with StoreWriter.open(tmp_path / "s", manifest(4)):
        pass
    write(tmp_path / "s", BATCHES, rows_per_shard=8)
    write(tmp_path / "whole", BATCHES, rows_per_shard=8)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("what", ["shard", "part", "complete"])
def test_a_store_with_something_in_it_does_not(tmp_path, what):
    folder = tmp_path / "s"
    if what == "shard":
        write(folder, BATCHES, rows_per_shard=8, stop_after_shards=1)
    else:
        with StoreWriter.open(folder, manifest(8)) as writer:
            if what == "complete":
                writer.finish(0, "")
        if what == "part":
            (folder / "parts" / "00000002-a").mkdir(parents=True)
            (folder / "parts" / "00000002-a" / "part.json").write_text("{}")
    before = contents(folder)
    with pytest.raises(DataError, match="rows_per_shard is 8 there and 4 here"):
        StoreWriter.open(folder, manifest(4))
    assert contents(folder) == before


READS = {
    "map": lambda s: s[SITE][3],
    "checks": lambda s: next(ShuffledLoader(s, SITE, 4)),
    "index": lambda s: s.index.prompt,
    "prompts": lambda s: s.prompts,
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_what_the_system_refuses_is_not_called_damage(store, monkeypatch, name, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    kept = open_store(store.parts[0].folder)
    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", refuse)
        patch.setattr(os, "open", refuse)
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(
            DataError, match=f"Shard 0 of .* cannot be read: .*{os.strerror(number)}"
        ) as caught:
            READS[name](kept)
    assert "copy" not in str(caught.value)
    READS[name](kept)  # mended: it goes on


def test_a_store_that_may_not_be_looked_at_is_not_called_damaged(store, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder = store.parts[0].folder
    real = Path.stat
    for ending in (".safetensors", ".parquet"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", lambda p, e=ending, **k: (refuse if p.suffix == e else real)(p, **k))
            with pytest.raises(
                DataError, match=f"Shard 0 of .* cannot be read: .*{ending}: Permission denied"
            ):
                open_store(folder)
    read = Path.read_text
    for name in ("manifest.json", "00001.json"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda p, n=name, **k: (refuse if p.name == n else read)(p, **k))
            with pytest.raises(DataError, match=f"{name}.*: Permission denied"):
                open_store(folder)
    with monkeypatch.context() as patch:
        patch.setattr("workbench.store.verify.check_values", refuse)
        assert all("need not be damage" in fault.what for fault in verify(folder).faults)
    assert verify(folder).ok


@pytest.mark.parametrize("wrong", [0, -3, 2.5])
def test_merge_refuses_shards_of_no_rows(store, tmp_path, wrong):
    with pytest.raises(DataError, match=f"rows_per_shard={wrong}"):
        merge([store.parts[0].folder], tmp_path / "merged", rows_per_shard=wrong)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("site", ["blocks.-1.hook_resid_post", "blocks.{0,-1}.hook_resid_post"])
def test_a_store_does_not_count_blocks_from_the_end(store, site):
    """Its last block is block 3, which need not be the model's."""
    with pytest.raises(DataError, match="does not know how many"):
        store[site]
    assert store["blocks.3.*"].name == SITES[2].name
