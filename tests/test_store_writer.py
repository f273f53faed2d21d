"""What is appended is what lies in the shards, and a resumed store has the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from store_blocks import SITES, block, blocks, contents, manifest, write

from workbench.errors import DataError
from workbench.store import Cursor, SiteRecord, StoreWriter, open_store
from workbench.store.verify import verify

BATCHES = [[3, 5], [8, 8], [1], [20, 2, 9], [4]]
Batches = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(batches=Batches, rows_per_shard=st.integers(1, 70))
def test_the_shards_hold_what_was_appended_for_every_site_and_dtype(batches, rows_per_shard):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        write(folder, batches, rows_per_shard)
        given_blocks = [one for one, _ in blocks(batches)]
        n = sum(map(len, given_blocks))
        files = sorted((folder / "shards").glob("*.safetensors"))
        assert len(files) == -(-n // rows_per_shard)
        for site in SITES:
            expected = torch.cat([one.values[site.name] for one in given_blocks])
            found = []
            for file in files:
                with safe_open(file, "pt") as shard:  # the library, not our reader
                    found.append(shard.get_tensor(site.name))
            assert {len(part) for part in found[:-1]} <= {rows_per_shard}
            assert torch.equal(torch.cat(found), expected) and found[0].dtype == expected.dtype
        index = pq.read_table(folder / "index")
        for column in ("prompt", "position", "token_id", "phase"):
            expected = np.concatenate([getattr(one, column) for one in given_blocks])
            assert np.array_equal(index[column].to_numpy(), expected)
        assert index["spans"].to_pylist() == [s for one in given_blocks for s in one.spans]
        prompts = pq.read_table(folder / "prompts").to_pylist()
        assert [p["number"] for p in prompts] == [p.number for one in given_blocks for p in one.prompts]
        assert json.loads(prompts[0]["labels"]) == dict(given_blocks[0].prompts[0].labels)


def test_a_prompt_over_two_shards_is_listed_where_its_first_row_is(tmp_path):
    write(tmp_path / "store", [[10], [10]], rows_per_shard=7)
    listed = [pq.read_table(f)["number"].to_pylist() for f in sorted((tmp_path / "store/prompts").iterdir())]
    assert listed == [[0], [1], []]


@settings(max_examples=12, deadline=None)
@given(batches=Batches, rows_per_shard=st.integers(1, 30), data=st.data())
def test_a_resume_after_any_shards_ends_with_the_same_bytes(batches, rows_per_shard, data):
    with tempfile.TemporaryDirectory() as temporary:
        whole, parts = Path(temporary) / "whole", Path(temporary) / "parts"
        write(whole, batches, rows_per_shard)
        for shards in sorted(data.draw(st.lists(st.integers(0, 20), max_size=3))):
            write(parts, batches, rows_per_shard, stop_after_shards=shards)
        write(parts, batches, rows_per_shard, finish=False)
        write(parts, batches, rows_per_shard)
        assert contents(parts) == contents(whole)


def test_every_shard_boundary_can_be_resumed_from(tmp_path):
    write(tmp_path / "whole", BATCHES, 8)
    n_shards = len(list((tmp_path / "whole/shards").glob("*.json")))
    assert n_shards == 8
    for shards in range(1, n_shards + 1):
        folder = tmp_path / str(shards)
        write(folder, BATCHES, 8, stop_after_shards=shards)
        write(folder, BATCHES, 8)
        assert contents(folder) == contents(tmp_path / "whole")


def test_the_cursor_says_which_rows_of_which_batch_are_stored(tmp_path):
    with StoreWriter.open(tmp_path, manifest(10)) as writer:
        assert writer.cursor == Cursor() and writer.n_rows == 0 and not writer.complete
        for one, where in blocks([[3, 5], [8, 8]]):
            writer.append(one, **where)
        assert writer.n_rows == 20
        cursor = writer.cursor
        assert (cursor.batch, cursor.row, cursor.window, cursor.prompts) == (1, 12, 1, 4)
    with StoreWriter.open(tmp_path, manifest(10)) as writer:
        assert writer.cursor == cursor and writer.n_rows == 20


def test_a_complete_store_is_recognised_and_takes_no_more(tmp_path):
    write(tmp_path, BATCHES)
    before = contents(tmp_path)
    with StoreWriter.open(tmp_path, manifest()) as writer:
        assert writer.complete and writer.n_rows == 60
        assert writer.finish(sum(map(len, BATCHES)), "data-0") == writer.manifest
        with pytest.raises(DataError, match="complete"):
            writer.append(blocks(BATCHES)[0][0], batch=9, window=9, digest="")
        with pytest.raises(DataError, match="another data set"):
            writer.finish(9, "data-1")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_fingerprint": "m1"}, "model_fingerprint is 'm0' there and 'm1' here"),
        ({"tokenizer_hash": "t1"}, "tokenizer_hash is 't0' there and 't1' here"),
        ({"rows_per_shard": 17}, "rows_per_shard is 16 there and 17 here"),
        (
            {"settings": {"positions": "all", "contexts": {"length": 9, "overlap": 0}}},
            "settings.contexts.length is 8 there and 9 here",
        ),
        ({"settings": {"positions": "all"}}, "settings.contexts is 'present' there and 'absent' here"),
        (
            {"sites": (replace(SITES[0], dtype="float32"), *SITES[1:])},
            "blocks.0.hook_resid_post.dtype is 'bfloat16' there and 'float32' here",
        ),
        ({"sites": SITES[:2]}, "sites.blocks.3.hook_resid_post is 'present' there and 'absent' here"),
    ],
)
def test_something_else_is_refused_naming_what_differs(tmp_path, changes, named):
    write(tmp_path, BATCHES, stop_after_shards=1)
    before = contents(tmp_path)
    with pytest.raises(DataError) as caught:
        StoreWriter.open(tmp_path, replace(manifest(), **changes))
    assert named in str(caught.value) and str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def test_another_data_set_is_refused_on_resume_as_are_a_shorter_and_a_longer_one(tmp_path):
    write(tmp_path / "a", BATCHES, stop_after_shards=2)
    with pytest.raises(DataError, match="another data set"):
        write(tmp_path / "a", BATCHES, seed=1)
    with pytest.raises(DataError, match="the data or the batching have changed"):
        write(tmp_path / "a", [*BATCHES[:3], [2], BATCHES[4]])
    with pytest.raises(DataError, match="another data set"):
        write(tmp_path / "a", BATCHES[:1])
    write(tmp_path / "b", BATCHES)
    write(tmp_path / "c", BATCHES, stop_after_shards=99, finish=False)
    (tmp_path / "b/manifest.json").write_bytes((tmp_path / "c/manifest.json").read_bytes())
    with pytest.raises(DataError, match="has grown"):
        write(tmp_path / "b", [*BATCHES, [3]])
    write(tmp_path / "b", BATCHES)


def test_without_resume_an_existing_store_and_without_a_store_a_full_folder_are_refused(tmp_path):
    write(tmp_path / "store", BATCHES, stop_after_shards=1)
    with pytest.raises(DataError, match="resume=True"):
        StoreWriter.open(tmp_path / "store", manifest(), resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"not empty \(thesis.tex\)"):
        StoreWriter.open(tmp_path / "mine", manifest())
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_blocks_that_do_not_fit_are_refused_and_the_writer_goes_on(tmp_path):
    good, where = blocks(BATCHES)[0]
    z = SITES[1].name
    bad = {
        r"hook_z.*expected \(8, 2, 3\)": replace(good, values={**good.values, z: good.values[z][:, :1]}),
        r"\['blocks.1.attn.hook_z'\] differ": replace(
            good, values={k: v for k, v in good.values.items() if k != z}
        ),
        "'spans' has 1 entries for 8 rows": replace(good, spans=["x"]),
        "do not lie next to each other": replace(good, prompt=good.prompt[[0, 7, 1, 2, 3, 4, 5, 6]]),
        "rows or records, but not both": replace(good, prompts=good.prompts[:1]),
        "'doc-0' cannot be stored": replace(
            good, prompts=[good.prompts[0], replace(good.prompts[1], labels={"x": {1, 2}})]
        ),
    }
    with StoreWriter.open(tmp_path / "a", manifest()) as writer:
        for message, one in bad.items():
            with pytest.raises(DataError, match=message):
                writer.append(one, **where)
        for one, at in blocks(BATCHES):
            writer.append(one, **at)
        writer.finish(sum(map(len, BATCHES)), "data-0")
        with pytest.raises(DataError, match="complete"):
            writer.append(good, batch=0, window=0, digest="")
    write(tmp_path / "b", BATCHES)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(DataError, match="dtypes that a store does not hold"):
        StoreWriter.open(tmp_path / "c", manifest(sites=(SiteRecord("x", (1,), "float64"),)))


def test_rows_with_nan_or_inf_are_counted_per_site_and_survive_a_resume(tmp_path):
    made = blocks(BATCHES)
    first, _ = made[0]
    last, _ = made[3]
    first.values[SITES[0].name][2, 1] = float("nan")
    first.values[SITES[0].name][3, 0] = float("-inf")
    last.values[SITES[1].name][30] = float("inf")
    last.values[SITES[2].name][0, 0] = 65504.0  # the largest float16 is finite
    expected = {SITES[0].name: 2, SITES[1].name: 1}
    with StoreWriter.open(tmp_path, manifest(16)) as writer:
        for one, where in made:
            writer.append(one, **where)
        assert writer.not_finite == expected
        assert [dict(r.not_finite) for r in writer.records] == [{SITES[0].name: 2}, {}, {}]
    with StoreWriter.open(tmp_path, manifest(16)) as writer:
        assert writer.not_finite == {SITES[0].name: 2}


def test_values_are_cast_to_the_dtype_of_the_store_and_overflow_counts(tmp_path):
    site = SiteRecord("blocks.0.hook_resid_post", (3,), "float16")
    one = block(0, [4], 0, sites=(replace(site, dtype="float32"),))
    one.values[site.name][1, 1] = 1e6
    with StoreWriter.open(tmp_path, manifest(4, (site,))) as writer:
        writer.append(one, batch=0, window=0, digest="")
        assert writer.not_finite == {site.name: 1}
    with safe_open(tmp_path / "shards/00000.safetensors", "pt") as shard:
        assert torch.equal(shard.get_tensor(site.name), one.values[site.name].half())


def test_a_log_line_is_a_time_and_an_event(tmp_path):
    with StoreWriter.open(tmp_path, manifest()) as writer:
        writer.log({"event": "halved", "tokens": 512})
        writer.log({"event": "resumed"})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["halved", "resumed"] and "time" in lines[0]


def test_the_last_record_of_a_complete_store_is_missed(tmp_path):
    store = tmp_path
    write(store, BATCHES)
    last = max((store / "shards").glob("*.json"))
    last.unlink()
    assert verify(store).bad_shards == [int(last.stem)]
    before = contents(store)
    for use in (open_store, lambda folder: StoreWriter.open(folder, manifest())):
        with pytest.raises(DataError, match="is complete with"):
            use(store)
    assert contents(store) == before


def test_what_is_left_of_an_unfinished_shard_is_removed_and_nothing_else(tmp_path):
    write(tmp_path, BATCHES, stop_after_shards=1)
    before = contents(tmp_path)
    for name in ("shards/00001.safetensors", "index/00001.parquet", "prompts/00001.parquet"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("shards/.00001.json.tmp-0a", ".manifest.json.tmp-0b"):
        (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / "shards/notes.txt").write_text("mine")
    StoreWriter.open(tmp_path, manifest()).close()
    assert contents(tmp_path) == {**before, "shards/notes.txt": b"mine"}
    assert not list(tmp_path.rglob("*.tmp-*"))
