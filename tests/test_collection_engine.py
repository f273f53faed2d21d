from __future__ import annotations

import filecmp
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import tiny_model

import workbench as wb
from workbench.collection import batching
from workbench.collection.generation import Generation
from workbench.collection.live import LiveLoader
from workbench.collection.to_store import collect_to
from workbench.errors import Cancelled, DataError, PromptError, SiteError
from workbench.store.reader import open_store

WORDS = sorted(w for w in tiny.tokenizer().get_vocab() if w.isalpha())[:40]
SITES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 14)))) for _ in range(n)]


def same_bytes(one: Path, other: Path) -> list[str]:
    """Files that differ between two stores, but for the log and the lock."""
    names = {p.relative_to(f).as_posix() for f in (one, other) for p in f.rglob("*") if p.is_file()}
    names = {n for n in names if n not in ("log.jsonl", "lock") and not n.startswith(".")}
    return sorted(n for n in names if not (one / n).is_file() or not (other / n).is_file()
                  or not filecmp.cmp(one / n, other / n, shallow=False))  # fmt: skip


def test_rows_equal_raw_hidden_states_of_every_prompt_run_alone(model, tmp_path):
    prompts = texts(25)
    store = collect_to(
        tmp_path / "s", model, prompts, "blocks.0.hook_resid_post", rows_per_shard=31, tokens_per_batch=40
    )
    assert store.complete and store.manifest.n_prompts == 25
    for i, text in enumerate(prompts):
        with torch.inference_mode():
            ids = torch.tensor([model.encode(text)])
            raw = model.hf(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1][0]
        rows = store.rows(prompt=i)
        assert store.index.position[rows].tolist() == list(range(ids.shape[1]))
        torch.testing.assert_close(store["blocks.0.hook_resid_post"][rows], raw, atol=1e-5, rtol=1e-4)


def test_several_sites_and_rules_at_once(llama, tmp_path):
    prompts = texts(12)
    store = collect_to(tmp_path / "s", llama, prompts, SITES, [0, "last"], tokens_per_batch=64)
    acts = wb.collect(llama, prompts, SITES, [[0, len(llama.encode(p)) - 1] for p in prompts])
    order = np.lexsort((store.index.position, store.index.prompt))
    for site in SITES:
        torch.testing.assert_close(store[site][order], acts.rows(site), atol=1e-5, rtol=1e-4)
    assert store[SITES[1]].shape[1:] == (llama.n_heads, llama.d_head)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_are_cast_to_the_dtype_asked_for(llama, tmp_path, dtype):
    exact = collect_to(tmp_path / "a", llama, texts(5), SITES[0])[SITES[0]][:]
    stored = collect_to(tmp_path / "b", llama, texts(5), SITES[0], dtype=dtype)[SITES[0]][:]
    assert stored.dtype == getattr(torch, dtype)
    assert torch.equal(stored, exact.to(getattr(torch, dtype)))


def test_memory_back_off_halves_the_batch_notes_it_and_loses_nothing(llama, tmp_path, monkeypatch):
    whole = collect_to(tmp_path / "whole", llama, texts(30), SITES[0], tokens_per_batch=60)
    real, failed = batching.read_rows, []

    def tight(model, part, *rest):
        if len(part.lengths) > 2:
            failed.append(len(part.lengths))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, part, *rest)

    monkeypatch.setattr("workbench.collection.engine.read_rows", tight)
    store = collect_to(tmp_path / "tight", llama, texts(30), SITES[0], tokens_per_batch=60)
    assert failed and '"back-off"' in (tmp_path / "tight" / "log.jsonl").read_text()
    columns = ["prompt", "position", "token_id"]
    for name in columns:
        np.testing.assert_array_equal(getattr(store.index, name), getattr(whole.index, name))
    torch.testing.assert_close(store[SITES[0]][:], whole[SITES[0]][:], atol=1e-5, rtol=1e-4)


def test_another_error_than_memory_is_not_swallowed(llama, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("workbench.collection.engine.read_rows", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        collect_to(tmp_path / "s", llama, texts(3), SITES[0])


def test_cancelled_and_resumed_ends_with_the_same_bytes(llama, tmp_path):
    options = {"rows_per_shard": 17, "tokens_per_batch": 24}
    collect_to(tmp_path / "whole", llama, texts(60), SITES, **options)

    class Stop:
        seen = 0

        def stage(self, name, total):
            pass

        def advance(self, n=1):
            Stop.seen += n
            if Stop.seen > 20:
                raise Cancelled

    with pytest.raises(Cancelled):
        collect_to(tmp_path / "part", llama, texts(60), SITES, progress=Stop(), **options)
    begun = open_store(tmp_path / "part")
    assert not begun.complete and 0 < len(begun) < 400
    collect_to(tmp_path / "part", llama, texts(60), SITES, **options)
    assert same_bytes(tmp_path / "whole", tmp_path / "part") == []


def test_resume_with_other_data_model_or_dtype_is_refused_by_name(llama, tmp_path):
    class Stop:
        n = 0

        def stage(self, name, total):
            pass

        def advance(self, n=1):
            Stop.n += 1
            if Stop.n > 4:
                raise Cancelled

    options = {"rows_per_shard": 5, "tokens_per_batch": 16}
    with pytest.raises(Cancelled):
        collect_to(tmp_path / "s", llama, texts(40), SITES[0], progress=Stop(), **options)
    with pytest.raises(DataError, match="data is not what the store was begun with"):
        collect_to(tmp_path / "s", llama, texts(40, seed=1), SITES[0], **options)
    with pytest.raises(DataError, match="dtype"):
        collect_to(tmp_path / "s", llama, texts(40), SITES[0], dtype="bfloat16", **options)
    with pytest.raises(DataError, match="model"):
        other = tiny_model("llama")
        with torch.no_grad():
            other.hf.get_input_embeddings().weight[0, 0] += 1
        collect_to(tmp_path / "s", other, texts(40), SITES[0], **options)
    with pytest.raises(DataError, match="positions"):
        collect_to(tmp_path / "s", llama, texts(40), SITES[0], "last", **options)
    assert collect_to(tmp_path / "s", llama, texts(40), SITES[0], **options).complete


def test_not_finite_values_are_counted_and_with_strict_an_error(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    store = collect_to(tmp_path / "s", model, texts(4), SITES[0])
    assert sum(store.not_finite.values()) == len(store)
    with pytest.raises(DataError, match=r"NaN or infinite.*strict"):
        collect_to(tmp_path / "t", model, texts(4), SITES[0], strict=True)


def test_generated_rows_come_from_the_run_that_generated_them(llama, tmp_path):
    prompts = texts(9, seed=3)
    how = Generation(max_new_tokens=5, prompt_rows=True)
    store = collect_to(tmp_path / "s", llama, prompts, SITES[0], generate=how, tokens_per_batch=30)
    for i, text in enumerate(prompts):
        rows = store.rows(prompt=i)
        ids = llama.encode(text)
        all_ids = store.index.token_id[rows].tolist()
        assert all_ids[: len(ids)] == ids
        generated = store.index.phase[rows] == 1
        assert generated.tolist() == [False] * len(ids) + [True] * (len(all_ids) - len(ids))
        said = wb.steering.generate(llama, text, max_new_tokens=5).tokens[0]
        assert all_ids[len(ids) :] == list(said)
        with llama.hooks(read=SITES[0]) as session:
            llama.forward(llama.batch([all_ids]))
        torch.testing.assert_close(store[SITES[0]][rows], session[SITES[0]][0], atol=1e-4, rtol=1e-3)
    only = collect_to(tmp_path / "t", llama, prompts, SITES[0], generate=Generation(max_new_tokens=5))
    assert (only.index.phase == 1).all()


def test_generation_longer_than_the_context_is_an_error(llama, tmp_path):
    with pytest.raises(PromptError, match="new ones"):
        collect_to(tmp_path / "s", llama, texts(1), SITES[0], generate=Generation(max_new_tokens=10_000))


def test_unknown_site_writes_nothing(llama, tmp_path):
    with pytest.raises(SiteError, match="Did you mean"):
        collect_to(tmp_path / "s", llama, texts(2), "blocks.0.hook_resid_pots")
    assert not (tmp_path / "s").exists()


def test_live_loader_serves_every_row_once_per_epoch_and_mixes(llama):
    prompts = texts(60)
    acts = wb.collect(llama, prompts, SITES[0], "all")
    loader = LiveLoader(llama, prompts, SITES[0], batch_size=8, buffer_rows=64, epochs=1, seed=1)
    served = torch.cat(list(loader))
    assert len(served) >= len(acts) - 7  # less than a batch may be left over
    expected = acts.rows(SITES[0]).double().sum(1)
    found = served.double().sum(1)
    nearest = (found[:, None] - expected[None]).abs().min(1)
    assert nearest.values.max() < 1e-3
    in_order = torch.cat(
        list(LiveLoader(llama, prompts, SITES[0], batch_size=8, buffer_rows=64, epochs=1, seed=2))
    )
    assert not torch.equal(in_order, served)


KILLS = """
    import os, random, signal, sys, time, traceback
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from conftest import tiny_model
    from test_collection_engine import SITES, same_bytes, texts
    from workbench.collection.to_store import collect_to
    from workbench.store.reader import open_store

    def collecting(folder):
        if pid := os.fork():
            return pid
        try:
            collect_to(folder, tiny_model("llama"), texts(400), SITES, rows_per_shard=23, tokens_per_batch=48)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def ended_well(pid):
        global seconds
        _, status, used = os.wait4(pid, 0)
        seconds = used.ru_utime + used.ru_stime  # not of the clock: the machine may pause it
        return not os.WIFSIGNALED(status) and (os.waitstatus_to_exitcode(status) == 0 or sys.exit("child failed"))

    folder, rng, rows = Path({folder!r}), random.Random(0), []
    assert ended_well(collecting(folder / "whole"))
    took = min(seconds, 10)
    for number in range(60):
        killed = folder / f"killed{{number}}"
        for _ in range(5):
            pid = collecting(killed)
            time.sleep(rng.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
            if ended_well(pid):
                break
            rows.append(len(open_store(killed)) if (killed / "manifest.json").is_file() else 0)
        else:
            assert ended_well(collecting(killed))
        if differ := same_bytes(folder / "whole", killed):
            sys.exit(f"{{killed}} differs: {{differ}}")
        if len(rows) >= 20:
            break
    print(len(rows), len(set(rows)))
"""


def test_killed_at_twenty_random_moments_the_store_ends_byte_identical(tmp_path):
    """Children of one process are killed with SIGKILL, reopened, resumed, and compared file by file."""
    code = textwrap.dedent(KILLS).format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills, places = map(int, done.stdout.split())
    assert kills >= 20 and places >= 5, "the kills hit too few different places"


def test_a_batch_without_a_single_row_is_no_error(llama, tmp_path):
    prompts = [f"{WORDS[0]} {WORDS[1]}"] * 9 + [f"{WORDS[0]} {WORDS[2]}"] + [f"{WORDS[0]} {WORDS[1]}"] * 9
    store = collect_to(tmp_path / "s", llama, prompts, SITES, f"match:{WORDS[2]}", tokens_per_batch=6)
    assert store.index.prompt.tolist() == [9]
