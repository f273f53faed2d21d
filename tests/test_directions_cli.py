"""`workbench directions`: tables for people, JSON for machines, one line for errors."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.directions import app
from workbench.directions import Direction, DirectionSet, library
from workbench.errors import DataError

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path / "lib"))
    monkeypatch.setenv("COLUMNS", "200")
    return library()


def direction(seed: int = 0, **fields) -> Direction:
    drawn = torch.randn(48, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(drawn, **({"site": SITE, "name": f"d{seed}", "source": "test"} | fields))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def as_json(*arguments: str):
    return json.loads(run(*arguments, "--json"))


def test_help_of_every_command_has_an_example_and_needs_nothing_heavy():
    shown = CliRunner().invoke(app, ["--help"]).output
    for name in ("list", "show", "tokens", "compare", "import", "export", "rename", "tag", "delete"):
        assert f"  {name} " in shown
        assert f"Example: workbench directions {name}" in CliRunner().invoke(app, [name, "--help"]).output
    import subprocess

    code = "import sys, workbench.cli.directions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_list_show_rename_tag_and_delete(mine):
    assert as_json("list") == [] and "0 of 0 in" in run("list")
    mine.save("truth", direction(scale=2.5, settings={"layer": 1}), tags=["probe"])
    mine.save("other", direction(1, site="blocks.2.hook_resid_post"))
    table = run("list")
    assert "truth" in table and SITE in table and "probe" in table and "2.5" in table and "2 of 2" in table
    (only,) = as_json("list", "PROBE")
    assert only["name"] == "truth" and only["sites"] == [SITE] and only["scale"] == 2.5
    assert [e["name"] for e in as_json("list", "--site", "blocks.2.hook_resid_post")] == ["other"]
    shown = as_json("show", "truth")
    assert shown["directions"][0]["settings"] == {"layer": 1} and shown["width"] == 48
    assert "layer" in run("show", "truth")
    assert as_json("tag", "truth", "--add", "x", "--remove", "probe")["tags"] == ["x"]
    run("rename", "truth", "fact")
    assert as_json("delete", "fact") == {"deleted": "fact"} and list(mine) == ["other"]
    with pytest.raises(DataError, match="no direction 'fact'"):
        run("show", "fact")


def test_compare_prints_the_cosines(mine):
    a, b = direction(0), direction(1)
    mine.save("a", a)
    mine.save("b", b)
    mine.save("both", DirectionSet([a, b]))
    found = as_json("compare", "a", "b")
    np.testing.assert_allclose(found["cosine"], [[1, a.cosine(b)], [a.cosine(b), 1]], atol=1e-6)
    assert found["labels"] == ["a", "b"] and found["summary"]["n_pairs"] == 1
    assert as_json("compare", "a", "both")["labels"] == ["a", "both: d0", "both: d1"]
    assert f"{a.cosine(b):+.3f}" in run("compare", "a", "b")


def test_import_and_export(mine, tmp_path):
    source = tmp_path / "happy.json"
    source.write_text(json.dumps({"1": [3.0, 4.0], "2": [0.0, 0.0]}))
    entry = as_json("import", source, "--tag", "mood")
    assert (entry["name"], entry["n"], entry["width"], entry["tags"], entry["zero_layers"]) == (
        "happy",
        1,
        2,
        ["mood"],
        [2],
    )
    assert "Left out, because nothing is added there: layers 2" in run("import", source, "--name", "again")
    with pytest.raises(DataError, match="already"):
        run("import", source)
    run("import", source, "--replace")
    run("export", "happy", tmp_path / "h.gguf", "--hint", "llama")
    assert as_json("import", tmp_path / "h.gguf", "--name", "third")["sites"] == [SITE]
    assert as_json("export", "happy", tmp_path / "h.safetensors", "--native")["bytes"] > 100
    assert DirectionSet.load(tmp_path / "h.safetensors")[0].scale == 5.0
    torch.save({1: torch.ones(3)}, tmp_path / "v.pt")
    with pytest.raises(DataError, match="pickle"):
        run("import", tmp_path / "v.pt")


def test_tokens_are_those_of_the_function(mine, folder, tmp_path):
    model = wb.load_model(folder)
    d = direction(model_fingerprint=model.fingerprint, scale=3.0)
    mine.save("d", d)
    options = ("-k", "3", "--n-random", "2", "--model", folder)
    found = as_json("tokens", "d", *options, "--save", str(tmp_path / "r"))
    data = wb.directions.top_tokens(model, d, 3, n_random=2).data
    assert found["effects"]["network"]["promoted"]["token"] == data["token"].values[2, 0].tolist()
    assert wb.Result.load(tmp_path / "r").kind == "direction_tokens"
    table = run("tokens", "d", *options)
    assert repr(str(data["token"].values[0, 0, 0])) in table and "last stream (nats)" in table
    mine.save("s", DirectionSet([d, d.at("blocks.2.hook_resid_post")]))
    assert as_json("tokens", "s", *options, "--at", SITE)["summary"]["direction"] == "d0"
    with pytest.raises(DataError, match="set of 2 directions"):
        run("tokens", "s", *options)
    mine.save("foreign", direction(model_fingerprint="other"))
    with pytest.raises(DataError, match="fingerprint other"):
        run("tokens", "foreign", *options)
    run("tokens", "foreign", *options, "--force")
