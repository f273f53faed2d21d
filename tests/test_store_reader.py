"""A store reads as labelled arrays: the rows that were written, found by prompt, token, position, span and label."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_blocks import SITES, blocks, manifest, write
from typer.testing import CliRunner

from workbench.cli.store import app
from workbench.errors import DataError, WorkbenchError
from workbench.store import RowBlock, Store, concatenate, open_store
from workbench.store.merge import merge
from workbench.store.tables import prompts_table
from workbench.store.verify import verify

BATCHES = [[3, 5], [8, 8], [1], [20, 2, 9], [4]]
SITE = SITES[0].name


def joined(batches: list[list[int]], seed: int = 0) -> RowBlock:
    """All rows of the batches as one block: what a store of them should hold."""
    made = [one for one, _ in blocks(batches, seed=seed)]
    return RowBlock(
        values={s.name: torch.cat([one.values[s.name] for one in made]) for s in SITES},
        **{
            c: np.concatenate([getattr(o, c) for o in made])
            for c in ("prompt", "position", "token_id", "phase")
        },
        spans=[s for one in made for s in one.spans],
        prompts=[p for one in made for p in one.prompts],
    )


@pytest.fixture
def store(tmp_path) -> Store:
    write(tmp_path / "store", BATCHES)
    return open_store(tmp_path / "store")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[int, Store]:
    """Rows per shard -> the same store cut so."""
    folder = tmp_path_factory.mktemp("stores")
    for rows_per_shard in (5, 16, 70):
        write(folder / str(rows_per_shard), BATCHES, rows_per_shard)
    return {n: open_store(folder / str(n)) for n in (5, 16, 70)}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows_per_shard=st.sampled_from([5, 16, 70]))
def test_indexing_is_that_of_the_same_array_in_memory(stores, data, rows_per_shard):
    expected = joined(BATCHES)
    n = len(expected)
    rows = st.integers(-n, n - 1)
    key = data.draw(
        st.one_of(
            rows,
            st.slices(n),
            st.lists(rows, max_size=80),
            st.lists(rows, max_size=9).map(lambda x: np.array(x, np.int32)),
            st.lists(rows, max_size=9).map(lambda x: torch.tensor(x, dtype=torch.int64)),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        )
    )
    rest = data.draw(st.sampled_from([(), (slice(1, 3),), (0,), (..., -1)]))
    plain = key if isinstance(key, (int, slice)) else np.asarray(key)
    if isinstance(plain, np.ndarray) and not plain.size:
        plain = plain.astype(np.int64)
    for site in SITES:
        memory = expected.values[site.name]
        wanted = memory.float().numpy()[plain]
        wanted = wanted[rest if isinstance(key, int) else (slice(None), *rest)]
        found = stores[rows_per_shard][site.name][(key, *rest) if rest else key]
        assert found.dtype == memory.dtype and np.array_equal(found.float().numpy(), wanted)


def test_it_is_array_like(store):
    expected = joined(BATCHES)
    array = store[SITE]
    assert (array.shape, array.ndim, len(array), array.dtype) == ((60, 5), 2, 60, torch.bfloat16)
    assert np.array_equal(np.asarray(array), expected.values[SITE].float().numpy())
    half = store["blocks.3.*"]
    assert np.asarray(half).dtype == np.float16 and np.asarray(half, dtype=np.float64).dtype == np.float64
    assert [len(chunk) for chunk in array.chunks()] == [16, 16, 16, 12]
    assert torch.equal(torch.cat(list(array.chunks())), expected.values[SITE])


def test_a_slice_inside_a_shard_is_a_view_of_the_file_and_writing_to_it_does_not_change_the_file(store):
    array = store[SITE]
    assert array[17:20].data_ptr() == array[16:32].data_ptr() + array.row_bytes
    before = array[18:19].clone()
    array[17:20].add_(1)
    assert not torch.equal(array[18:19], before)
    assert torch.equal(open_store(store.parts[0].folder)[SITE][18:19], before)


def test_rows_are_found_by_everything_the_index_knows(store):
    e = joined(BATCHES)
    lengths = {p.number: p.n_tokens for p in e.prompts}
    ends = np.array([lengths[p] for p in e.prompt])
    label = {p.number: p.labels for p in e.prompts}
    spans = np.array(e.spans)
    cases = {
        "prompt": ({"prompt": [4, 1]}, np.isin(e.prompt, [1, 4])),
        "position": ({"position": 2}, e.position == 2),
        "from the end": ({"position": [-1, -2]}, (e.position == ends - 1) | (e.position == ends - 2)),
        "token": ({"token": 3}, e.token_id == 3),
        "phase": ({"phase": "generated"}, e.phase == 1),
        "span": ({"span": "answer"}, np.isin(spans, ["answer", "subject|answer"])),
        "label": ({"label": {"label": True}}, np.array([label[p]["label"] for p in e.prompt])),
        "labels": (
            {"label": {"label": False, "group": "ä"}},
            np.array([not label[p]["label"] and label[p]["group"] == "ä" for p in e.prompt]),
        ),
        "all of them": ({"span": "subject", "phase": "prompt", "prompt": 3}, (spans == "subject|answer") & (e.prompt == 3)),
        "nothing asked": ({}, np.ones(len(e), bool)),
    }  # fmt: skip
    for name, (asked, wanted) in cases.items():
        found = store.rows(**asked)
        assert found.dtype == np.int64 and np.array_equal(found, np.flatnonzero(wanted)), name
        assert len(found), name
    assert store.index.labels("group").tolist() == [label[p]["group"] for p in e.prompt]
    assert store.prompts["number"].to_pylist() == sorted(lengths)
    assert store.index.table().num_rows == 60
    of = store.of_prompt(4)
    assert torch.equal(of[SITE], e.values[SITE][torch.from_numpy(e.prompt == 4)])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s["blocks.0.hook_resid_pots"], "Did you mean 'blocks.0.hook_resid_post'"),
        (lambda s: s["blocks.*.hook_resid_post"], "stands for 2 sites"),
        (lambda s: s[SITE][60], "Row 60 does not exist"),
        (lambda s: s[SITE][np.ones(59, bool)], r"mask over the rows has 60 entries"),
        (lambda s: s[SITE]["answer"], "chosen by number"),
        (lambda s: s.rows(prompt=99), "Prompt 99 has no rows"),
        (lambda s: s.rows(token=" the"), "tokenizer.encode"),
        (lambda s: s.rows(phase="generation"), "choose 'prompt' or 'generated'"),
        (lambda s: s.rows(span="anser"), "Did you mean 'answer'"),
        (lambda s: s.rows(label={"lable": True}), "Did you mean 'label'"),
        (lambda s: s.rows(label={"label": "True"}), "2 values occur, such as"),
    ],
)
def test_what_does_not_exist_is_an_error_that_says_what_does(store, ask, message):
    with pytest.raises(DataError, match=message):
        ask(store)


def test_an_incomplete_store_opens_up_to_its_last_shard_and_says_so(tmp_path, store):
    write(tmp_path / "part", BATCHES, stop_after_shards=1)
    part = open_store(tmp_path / "part")
    assert not part.complete and len(part) == 16 and "incomplete" in repr(part)
    assert torch.equal(part[SITE][:], store[SITE][:16])
    assert part.info["complete"] is False and part.info["n_prompts"] is None
    assert store.complete and store.info["n_rows"] == 60 and "60 rows of 9 prompts" in repr(store)
    write(tmp_path / "none", BATCHES, stop_after_shards=0)
    empty = open_store(tmp_path / "none")
    assert len(empty) == 0 and empty[SITE][:].shape == (0, 5) and len(empty.rows()) == 0
    assert len(empty.index.prompt) == len(empty.index.spans) == len(empty.prompts) == 0


def test_a_store_travels_to_another_process_without_its_data(store):
    store[SITE][:]
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[SITE][:], store[SITE][:])


def test_several_stores_are_one_with_prompts_numbered_on_in_memory_and_on_disk(tmp_path, store):
    more = [[6], [2, 2]]
    write(tmp_path / "more", more, rows_per_shard=7, seed=5)
    both = concatenate([store, open_store(tmp_path / "more")])
    merged = merge([tmp_path / "store", tmp_path / "more"], tmp_path / "merged", rows_per_shard=11)
    assert verify(tmp_path / "merged").ok and merged.complete
    first, second = joined(BATCHES), joined(more, seed=5)
    for one in (both, merged):
        for site in SITES:
            expected = torch.cat([first.values[site.name], second.values[site.name]])
            assert torch.equal(one[site.name][:], expected)
            assert torch.equal(one[site.name][[69, 3, 60]], expected[[69, 3, 60]])
        assert one.index.prompt.tolist() == [*first.prompt, *(second.prompt + 9)]
        assert one.index.spans.to_pylist() == [*first.spans, *second.spans]
        assert one.prompts["number"].to_pylist() == list(range(12)) and one.manifest.n_prompts == 12
        assert one.rows(prompt=10).tolist() == (60 + np.flatnonzero(second.prompt == 1)).tolist()
    assert both.manifest.dataset_fingerprint == merged.manifest.dataset_fingerprint
    assert [m["n_rows"] for m in merged.manifest.settings["merged"]] == [60, 10]
    assert len(list((tmp_path / "merged/shards").glob("*.json"))) == 7


def test_stores_that_differ_or_are_not_complete_do_not_merge(tmp_path, store):
    write(tmp_path / "model", BATCHES, model_fingerprint="m1")
    write(tmp_path / "sites", BATCHES, sites=SITES[:2])
    write(tmp_path / "part", BATCHES, stop_after_shards=1)
    for other, message in {
        "model": "'m0' in the first",
        "sites": "sites is blocks.0",
        "part": "finish it first",
    }.items():
        with pytest.raises(DataError, match=message):
            merge([tmp_path / "store", tmp_path / other], tmp_path / "target")
        assert not (tmp_path / "target").exists()
    with pytest.raises(WorkbenchError, match="exists already"):
        merge([tmp_path / "store"], tmp_path / "part")
    with pytest.raises(DataError, match="at least one"):
        concatenate([])


def test_no_store_is_said(tmp_path):
    for read in (open_store, verify):
        with pytest.raises(DataError, match="no activation store"):
            read(tmp_path)
    with pytest.raises(DataError, match="choose 'first' or 'never'"):
        open_store(tmp_path, verify="always")  # type: ignore[arg-type]


def test_the_command_line_shows_checks_and_merges(tmp_path, store):
    folder = str(tmp_path / "store")
    run = CliRunner().invoke
    facts = json.loads(run(app, ["info", folder, "--json"]).stdout)
    assert facts["n_rows"] == 60 and facts["sites"][SITE] == {"shape": [5], "dtype": "bfloat16"}
    assert "blocks.1.attn.hook_z" in run(app, ["info", folder]).stdout
    fine = run(app, ["verify", folder])
    assert fine.exit_code == 0 and "nothing wrong" in fine.stdout
    merged = run(app, ["merge", folder, folder, "--into", str(tmp_path / "two"), "--json"])
    assert json.loads(merged.stdout)["n_prompts"] == 18
    file = tmp_path / "two/shards/00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    broken = run(app, ["verify", str(tmp_path / "two"), "--json"])
    assert broken.exit_code == 1 and json.loads(broken.stdout)["bad_shards"] == [2]
    assert "00002.safetensors" in run(app, ["verify", str(tmp_path / "two")]).stdout


def test_the_manifest_of_the_store_is_what_was_asked(store):
    assert store.manifest.sites == SITES and dict(store.manifest.settings) == dict(manifest().settings)


def test_tables_that_contradict_each_other_are_found_though_their_checksums_fit(tmp_path, monkeypatch):
    """As a bug in a writer would make them: the table of prompts leaves out the last one."""
    monkeypatch.setattr("workbench.store.buffer.prompts_table", lambda prompts: prompts_table(prompts[:-1]))
    write(tmp_path, [[5, 5]], 10)
    assert "lists 1" in verify(tmp_path).faults[0].what
