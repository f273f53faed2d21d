"""The library on disk: names, tags, damage, and several processes at once."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.directions import Direction, DirectionSet, library
from workbench.directions.library import default_folder
from workbench.errors import DataError, WorkbenchError

SITE = "blocks.1.hook_resid_post"
PATIENCE = 250
"""Seconds for two processes, on a machine that may be paused for minutes; less than pytest's own limit."""


def direction(seed: int = 0, **fields) -> Direction:
    drawn = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    known: dict[str, Any] = {"site": SITE, "name": f"d{seed}", "source": "test"}
    return Direction.from_vector(drawn, **(known | fields))


@pytest.fixture
def mine(tmp_path):
    return library(tmp_path / "lib")


def test_what_was_saved_comes_back_bit_for_bit_as_direction_or_set(mine):
    d = direction(settings={"a": 1}, provenance={"model": {"name": "tiny"}})
    group = DirectionSet([d, direction(1, site="blocks.2.hook_resid_post")], name="both", settings={"b": 2})
    mine.save("one", d)
    mine.save("several", group)
    back = mine.load("one")
    assert isinstance(back, Direction) and torch.equal(back.vector, d.vector) and back.settings == {"a": 1}
    again = mine.load("several")
    assert isinstance(again, DirectionSet) and again.settings == {"b": 2}
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(group, again, strict=True))
    assert torch.equal(mine.direction("one").vector, d.vector)
    with pytest.raises(DataError, match="set of 2 directions"):
        mine.direction("several")
    assert torch.equal(
        Direction.load(mine.folder / "one.safetensors").vector, d.vector
    )  # a plain direction file


def test_the_list_says_what_each_is(mine):
    assert mine.entries() == [] and len(mine) == 0 and "x" not in mine
    mine.save(
        "truth",
        direction(scale=2.5, provenance={"model": {"name": "tiny"}}, model_fingerprint="f"),
        tags=["probe", "good one"],
    )
    mine.save("both", DirectionSet([direction(1), direction(2, site="blocks.2.hook_resid_post")]))
    both, truth = mine.entries()
    assert (truth.name, truth.title, truth.site, truth.width) == ("truth", "d0", SITE, 16)
    assert (truth.source, truth.model, truth.fingerprint, truth.scale) == ("test", "tiny", "f", 2.5)
    assert truth.tags == ("probe", "good one") and truth.saved.startswith("20") and truth.problem == ""
    assert (both.kind, both.n, both.scale) == ("set", 2, None) and both.site.startswith("2 sites")
    assert [e.name for e in mine.entries(site="blocks.2.hook_resid_post")] == ["both"]
    assert [e.name for e in mine.entries(tag="probe")] == ["truth"]
    assert [e.name for e in mine.entries(fingerprint="f")] == ["truth"]
    assert [e.name for e in mine.search("TINY good")] == ["truth"] and mine.search("nothing") == []
    assert list(mine) == ["both", "truth"] and "truth" in mine and len(mine) == 2


def test_tags_are_added_and_removed_and_leave_the_vector_alone(mine):
    d = direction()
    mine.save("x", d, tags=["a"])
    saved = mine.entry("x").saved
    assert mine.tag("x", add=["b", "c"], remove=["a"]) == ("b", "c")
    assert mine.entry("x").tags == ("b", "c") and mine.entry("x").saved == saved
    assert torch.equal(mine.direction("x").vector, d.vector)
    for bad in ("", "a,b", "a\nb"):
        with pytest.raises(DataError, match="cannot be a tag"):
            mine.tag("x", add=[bad])


def test_a_taken_name_is_refused_unless_replaced(mine):
    mine.save("x", direction(0))
    with pytest.raises(DataError, match="'x' already.*replace"):
        mine.save("x", direction(1))
    with pytest.raises(DataError, match="in case only"):
        mine.save("X", direction(1), replace=True)
    mine.save("x", direction(1), replace=True)
    assert torch.equal(mine.direction("x").vector, direction(1).vector)


def test_rename_and_delete(mine):
    mine.save("x", direction(0))
    mine.save("y", direction(1))
    with pytest.raises(DataError, match="'y' already"):
        mine.rename("x", "y")
    mine.rename("x", "z")
    mine.rename("z", "Z")
    assert list(mine) == ["y", "Z"]
    mine.delete("y")
    assert list(mine) == ["Z"]
    for act in (
        mine.load,
        mine.delete,
        mine.entry,
        lambda name: mine.rename(name, "n"),
        lambda name: mine.tag(name, add=["t"]),
    ):
        with pytest.raises(DataError, match=r"no direction 'y' \(it has 1\)"):
            act("y")
    mine.save("truth", direction(2))
    with pytest.raises(DataError, match="Did you mean 'truth'"):
        mine.load("trut")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/x",
        "a\\b",
        ".hidden",
        "x\n",
        "a..b",
        "x.",
        " x",
        "n" * 101,
        "a\0b",
        "x ",
        7,
    ],
)
def test_names_that_lead_elsewhere_are_refused(mine, name):
    for act in (lambda: mine.save(name, direction()), lambda: mine.load(name), lambda: mine.delete(name)):
        with pytest.raises(DataError, match="cannot be the name"):
            act()
    assert not mine.folder.exists()


def test_ordinary_names_are_taken(mine):
    names = ["truth", "layer 14 (v2)", "a-b_c.d", "Größe", "3"]
    for i, name in enumerate(names):
        mine.save(name, direction(i))
    assert sorted(mine) == sorted(names)


def test_a_damaged_file_is_listed_with_its_problem_and_hides_no_other(mine):
    mine.save("good", direction())
    (mine.folder / "bad.safetensors").write_bytes(b"no")
    (mine.folder / "note.txt").write_text("mine")
    bad, good = mine.entries()
    assert "damaged" in bad.problem and good.problem == ""
    with pytest.raises(DataError, match="damaged"):
        mine.load("bad")
    mine.delete("bad")
    assert list(mine) == ["good"]


def test_nothing_but_directions_is_saved(mine):
    with pytest.raises(DataError, match="not Tensor"):
        mine.save("x", torch.ones(3))  # type: ignore[arg-type]
    assert list(mine) == []


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path / "here"))
    assert library().folder == tmp_path / "here"
    monkeypatch.delenv("WORKBENCH_DIRECTIONS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "latent-workbench" / "directions"


def test_a_failed_save_leaves_nothing(mine, monkeypatch):
    def interrupted(_tensors, file, **_metadata):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.directions.storage.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine.save("x", direction())
    assert list(mine) == [] and list(mine.folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkbenchError, match="permission"):
        library(tmp_path / "lib").save("x", direction())


def _busy(folder: str, which: int, begin, told: Path) -> None:
    """Save the same names as the other process, and names of its own; rename, tag and list in between."""
    torch.set_num_threads(1)
    mine, won = library(folder), 0
    begin.wait(PATIENCE)
    for i in range(12):
        try:
            mine.save(f"shared {i}", direction(which))
            won += 1
        except DataError as error:
            assert "already" in str(error)
        mine.save(f"own {which} {i}", direction(i))
        mine.rename(f"own {which} {i}", f"kept {which} {i}")
        mine.tag(f"shared {i}", add=[f"by {which}"])
        assert not any(e.problem for e in mine.entries() if "kept" in e.name or "shared" in e.name)
    told.write_text(str(won))


def test_two_processes_may_save_rename_tag_and_list_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork after torch has made threads may hang
    begin, folder = context.Barrier(2), str(tmp_path / "lib")
    told = {which: tmp_path / f"won {which}" for which in (1, 2)}
    workers = [
        context.Process(target=_busy, args=(folder, which, begin, told[which]), daemon=True) for which in told
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0, 0]
    won = {which: int(file.read_text()) for which, file in told.items()}
    mine = library(folder)
    assert won[1] + won[2] == 12  # each shared name was saved by exactly one
    assert len(mine) == 12 + 24
    for i in range(12):
        assert mine.entry(f"shared {i}").tags in (("by 1", "by 2"), ("by 2", "by 1"))  # no tag was lost
        assert any(torch.equal(mine.direction(f"shared {i}").vector, direction(w).vector) for w in (1, 2))
        for which in (1, 2):
            assert torch.equal(mine.direction(f"kept {which} {i}").vector, direction(i).vector)
    assert not [p for p in mine.folder.iterdir() if p.name.startswith(".")]
