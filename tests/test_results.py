"""Results and runs: nothing lost on disk, nothing half-written, errors that help."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import Cancelled, DataError, RunError, WorkbenchError
from workbench.lens.spec import LensSpec
from workbench.provenance import Provenance
from workbench.runs import list_runs, load_run, run_spec
from workbench.specs import load_spec, parse_spec

PROMPT = "Mary went to the store and John gave a drink to"


@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=6
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_and_number_comes_back_from_disk(texts, tmp_path):
    data = xr.Dataset(
        {
            "x": ("token", np.arange(len(texts), dtype=np.float32) / 3),
            "t": ("token", np.array(texts, dtype=str)),
        },
        coords={"label": ("token", np.array(texts[::-1], dtype=str))},
        attrs={"nested": {"a": [1, 2.5, "é"]}},
    )
    data["x"].attrs["units"] = "nats"
    result = wb.Result("logit_lens", data, Provenance(seed=3), {"n": 1})
    back = wb.Result.load(result.save(tmp_path / "r.zarr", replace=True))
    assert back.data.identical(result.data)
    assert (
        back.provenance == result.provenance and back.summary == result.summary and back.kind == result.kind
    )


def test_a_result_is_not_written_over_another_unless_asked(llama, tmp_path):
    lens = wb.lens.logit_lens(llama, PROMPT)
    lens.save(tmp_path / "a.zarr")
    with pytest.raises(WorkbenchError, match="exists already"):
        lens.save(tmp_path / "a.zarr")
    lens.save(tmp_path / "a.zarr", replace=True)


def test_a_damaged_result_says_so(llama, tmp_path):
    path = wb.lens.logit_lens(llama, PROMPT).save(tmp_path / "a.zarr")
    chunk = next(p for p in (path / "entropy").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:5])
    with pytest.raises(RunError, match="damaged"):
        wb.Result.load(path)
    with pytest.raises(RunError, match="holds no result"):
        wb.Result.load(tmp_path)


def test_a_run_holds_everything_and_its_spec_gives_the_same_numbers_again(llama, tmp_path):
    spec = LensSpec(prompt=PROMPT, target=None, seed=4)
    run = run_spec(spec, runs=tmp_path, model=llama)
    assert {p.name for p in run.path.iterdir()} == {
        "spec.yaml", "provenance.json", "result.zarr", "figures", "log.jsonl", "report.html",
    }  # fmt: skip
    assert list((run.path / "figures").glob("*.json"))
    assert run.log()[0]["event"] == "start"
    assert run.provenance["provenance"]["seed"] == 4
    assert run.provenance["provenance"]["model"]["fingerprint"] == llama.fingerprint
    again = run_spec(load_spec(run.path / "spec.yaml"), runs=tmp_path, model=llama)
    assert again.result.data.identical(load_run(run.id, tmp_path).result.data)


def test_runs_are_listed_newest_first_and_broken_ones_are_shown(llama, tmp_path):
    first, second = (run_spec(LensSpec(prompt=PROMPT), runs=tmp_path, model=llama) for _ in range(2))
    (second.path / "provenance.json").write_text("{")
    (tmp_path / "something").mkdir()
    infos = {info.id: info for info in list_runs(tmp_path)}
    assert infos[first.id].problem == "" and infos[first.id].title == PROMPT
    assert "damaged" in infos[second.id].problem
    assert "not a finished run" in infos["something"].problem
    with pytest.raises(RunError, match="damaged"):
        load_run(second.id, tmp_path)


def test_a_run_opens_by_the_beginning_of_its_id_and_an_unknown_one_is_an_error(llama, tmp_path):
    run = run_spec(LensSpec(prompt=PROMPT), runs=tmp_path, model=llama)
    assert load_run(run.id[:-2], tmp_path).id == run.id
    with pytest.raises(RunError, match="No run '1999'.*It holds 1 runs"):
        load_run("1999", tmp_path)
    with pytest.raises(RunError, match="It holds no runs"):
        load_run("1999", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "problem", [WorkbenchError("bad"), Cancelled(), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_whatever_goes_wrong_nothing_half_written_is_left(llama, tmp_path, problem):
    class Fail:
        def stage(self, name, total):
            pass

        def advance(self, n=1):
            raise problem

    with pytest.raises(type(problem)):
        run_spec(LensSpec(prompt=PROMPT), runs=tmp_path, model=llama, progress=Fail())
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_run_folder_is_found_before_the_work(llama, tmp_path):
    (tmp_path / "file").write_text("")
    worked = []

    class Watch:
        def stage(self, name, total):
            worked.append(name)

        def advance(self, n=1):
            pass

    with pytest.raises(WorkbenchError, match="is a file, expected a folder"):
        run_spec(LensSpec(prompt=PROMPT), runs=tmp_path / "file", model=llama, progress=Watch())
    assert worked == []


@pytest.mark.parametrize("name", ["capitls", "nowhere.jsonl", ["capitals", "nowhere.csv"]])
def test_a_data_set_that_does_not_exist_is_found_before_the_model_is_loaded(tmp_path, monkeypatch, name):
    monkeypatch.setattr("workbench.specs.ModelSpec.load", lambda _self: pytest.fail("a model was loaded"))
    first, *others = [name] if isinstance(name, str) else name
    fields = {"other_datasets": others} if others else {"by": "negated"}
    spec = parse_spec({"kind": "probe_transfer", "dataset": first, **fields})
    with pytest.raises(DataError, match=f"capitals|{(others or [first])[0]}"):
        run_spec(spec, runs=tmp_path)


def test_a_killed_run_leaves_no_run_behind(tmp_path):
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import tiny_model
from workbench.lens.spec import LensSpec
from workbench.runs import run_spec, execute
plain = execute._write
def slow(folder, *rest):
    plain(folder, *rest)
    print("written", flush=True)
    time.sleep(60)
execute._write = slow
run_spec(LensSpec(prompt={PROMPT!r}), runs={str(tmp_path)!r}, model=tiny_model("llama"))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "written"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kind": "lense", "prompt": "a"}, "Did you mean 'lens'"),
        ({"prompt": "a"}, "must be a mapping with a 'kind'"),
        ({"kind": "lens"}, "prompt: field required"),
        ({"kind": "lens", "prompt": "a", "layers": 3}, "layers: extra inputs are not permitted"),
        ({"kind": "lens", "prompt": "a", "top_k": 0}, "top_k"),
        ({"kind": "patch", "clean": "a"}, "give clean, corrupt, answer and wrong"),
        ({"kind": "patch", "clean": "a", "dataset": "b"}, "not both"),
    ],
)
def test_a_wrong_spec_names_the_field(raw, message):
    with pytest.raises(RunError, match=message):
        parse_spec(raw)


def test_a_spec_file_that_is_not_yaml_or_not_there_is_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("kind: [lens")
    with pytest.raises(RunError, match="is not YAML"):
        load_spec(tmp_path / "bad.yaml")
    (tmp_path / "tag.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(RunError, match="is not YAML"):
        load_spec(tmp_path / "tag.yaml")


def test_provenance_is_json_and_comes_back(llama, tmp_path):
    lens = wb.lens.logit_lens(llama, PROMPT)
    raw = json.loads(json.dumps(lens.provenance.to_dict()))
    assert Provenance.from_dict(raw) == lens.provenance
    assert Provenance.from_dict({**raw, "from_the_future": 1}) == lens.provenance
    shutil.rmtree(tmp_path)


def test_a_changed_weight_changes_the_fingerprint():
    import torch

    one, same, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        other.block(1).mlp.down_proj.weight[0, 0] += 1
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.fingerprint != tiny_model("gpt2").fingerprint


def test_importing_workbench_is_quick():
    started = time.perf_counter()
    code = (
        "import workbench, sys; assert not {'torch', 'transformers', 'xarray', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (
        time.perf_counter() - started < 2
    )  # the exact figure is benchmarks.imports'; this catches a heavy import
