"""Files and library entries that look unusual: what is refused with one clear error, and what is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from workbench.cli.directions import app
from workbench.directions import Direction, DirectionSet, library, load, read, write, write_gguf
from workbench.directions.library import MOST_BYTES
from workbench.errors import DataError

SITE = "blocks.1.hook_resid_post"


def made(seed: int = 0, width: int = 48, **fields) -> Direction:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    known: dict[str, Any] = {"site": SITE, "name": f"d{seed}", "source": "test"}
    return Direction.from_vector(drawn, **(known | fields))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path / "lib"))
    monkeypatch.setenv("COLUMNS", "300")
    return library()


# --- files -------------------------------------------------------------------------------------------------


def test_name_and_fingerprint_are_given_to_files_of_ours(tmp_path):
    path = made(name="old").save(tmp_path / "d.safetensors")
    found = read(path, name="mood", model_fingerprint="abc")
    assert isinstance(found, Direction) and (found.name, found.model_fingerprint) == ("mood", "abc")
    assert torch.equal(found.vector, made().vector) and read(path).name == "old"
    known = [replace(made(0), model_fingerprint="abc"), made(1)]
    path = DirectionSet(known, name="old", settings={"a": 1}).save(tmp_path / "s.safetensors")
    several = read(path, name="moods", model_fingerprint="abc")
    assert isinstance(several, DirectionSet) and (several.name, several.names) == ("moods", ["d0", "d1"])
    assert several.settings == {"a": 1} and [d.model_fingerprint for d in several] == ["abc", "abc"]
    assert read(path).name == "old"
    with pytest.raises(DataError, match="fingerprint abc, not xyz: leave model_fingerprint out"):
        read(path, model_fingerprint="xyz")


@pytest.mark.parametrize("layers", [{"1": [1, 2], "2": [3, 4]}])
def test_json_may_say_nothing_and_begin_with_a_mark(tmp_path, layers):
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"name": None, "layer_type": None, "layer_activations": layers}), "utf-8-sig")
    found = read(path)
    assert isinstance(found, DirectionSet) and found.name == "v" and found.sites[0] == SITE
    for key, value in (("layer_type", ["x"]), ("name", ["x"]), ("name", 5)):
        path.write_text(json.dumps({key: value, "layer_activations": layers}))
        with pytest.raises(DataError, match=f"'{key}' in .* not text"):
            read(path)


def test_a_file_with_fields_of_other_kinds_is_damaged(tmp_path):
    path = made().save(tmp_path / "d.safetensors")
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["direction"])
    one = {"vector": made().vector}
    for wrong in ({"scale": None}, {"scale": "a"}, {"site": None}, {"name": 5}, {"settings": []}):
        save_file(one, path, {"direction": json.dumps({**header, **wrong})})
        with pytest.raises(DataError, match=f"is damaged: its {next(iter(wrong))} is .*, not"):
            load(path)
        told = {"schema": 1, "name": "", "settings": {}, "directions": [{**header, **wrong}]}
        save_file({"vector.0": made().vector}, path, {"direction_set": json.dumps(told)})
        with pytest.raises(DataError, match="is damaged"):
            load(path)
    save_file(one, path, {"direction": json.dumps({**header, "settings": None})})
    assert Direction.load(path).settings == {}


def test_one_direction_is_written_as_a_set_of_one(tmp_path):
    for path in (write(made(), tmp_path / "x.gguf"), write_gguf(made(), tmp_path / "y.gguf")):
        (back,) = read(path)  # type: ignore[misc]
        torch.testing.assert_close(back.vector, made().vector)
    for ending in ("safetensors", "json"):
        assert len(read(write(made(), tmp_path / f"x.{ending}"))) == 1  # type: ignore[arg-type]


# --- the library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", {"name": "gpt2"}, {"name": None}, None, 5])
def test_a_provenance_of_another_kind_is_no_damage(mine, model):
    mine.save("x", made(provenance={"model": model}))
    entry = mine.entry("x")
    assert entry.problem == "" and entry.width == 48
    assert entry.model == ("gpt2" if "gpt2" in str(model) else str(model or "") if model == 5 else "")


def test_a_foreign_file_is_said_to_be_no_direction(mine):
    mine.save("x", made())
    save_file({"1": torch.ones(3)}, mine.folder / "foreign.safetensors")
    foreign, _ = mine.entries()
    assert "not a direction" in foreign.problem
    assert "not a direction" in CliRunner().invoke(app, ["list"]).output


def test_names_are_as_long_as_the_disk_takes_them(mine):
    long, longest = "字" * 90, "字" * (MOST_BYTES // 3) + "a"
    assert len(longest.encode()) == MOST_BYTES and long not in mine
    for call in (mine.load, mine.entry, mine.delete, mine.tag, lambda n: mine.save(n, made())):
        with pytest.raises(DataError, match=r"cannot be the name of a direction: .* 229 bytes"):
            call(long)
    for name in (longest, "a" * 100):
        mine.save(name, made())
        assert name in mine and torch.equal(mine.direction(name).vector, made().vector)
    mine.save("x", made())
    with pytest.raises(DataError, match="229 bytes"):
        mine.rename("x", long)


def test_tags_leave_everything_else_in_a_file_as_it_was(mine):
    path = mine.save("x", made(), tags=["a"])
    with safe_open(path, framework="pt") as opened:
        before = opened.metadata()
    kept = json.loads(before["library"])
    beside = {**before, "note": "mine", "library": json.dumps({**kept, "colour": "red"})}
    save_file({"vector": made().vector, "more": torch.ones(2)}, path, beside)
    assert mine.tag("x", add=["b"], remove=["a"]) == ("b",)
    with safe_open(path, framework="pt") as opened:
        after = opened.metadata()
    assert after["note"] == "mine" and after["direction"] == before["direction"]
    assert json.loads(after["library"]) == {**kept, "colour": "red", "tags": ["b"]}
    assert torch.equal(load_file(path)["more"], torch.ones(2)) and mine.entry("x").saved == kept["saved"]
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="damaged"):
        mine.tag("x", add=["c"])
    assert path.read_bytes() == b"no"
