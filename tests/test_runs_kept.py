"""What was computed is kept: a figure or a report that fails takes nothing with it."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.lens.spec import LensSpec
from workbench.runs import execute, list_runs, run_spec

SPEC = LensSpec(prompt="the man and the")


class Entry:
    """An entry point of another package, by hand."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def load(self):
        return self.function


def test_a_figure_that_fails_is_a_warning_and_the_result_and_the_reports_are_there(
    llama, tmp_path, monkeypatch
):
    def broken(self):
        raise KeyError("colour")

    monkeypatch.setattr(wb.Result, "figures", broken)
    with pytest.warns(RuntimeWarning, match=r"its figures could not be made \(KeyError\('colour'\)\)"):
        run = run_spec(SPEC, runs=tmp_path, model=llama)
    assert [info.problem for info in list_runs(tmp_path)] == [""]
    assert run.result.data["entropy"].size and not list((run.path / "figures").iterdir())
    failed = [event for event in run.log() if event["event"] == "failed"]
    assert failed[0]["what"] == "its figures" and "KeyError" in failed[0]["traceback"]
    monkeypatch.undo()
    assert run.result.figures(), "they can be drawn later"


def test_a_report_of_another_package_that_fails_is_named_and_the_others_are_written(
    llama, tmp_path, monkeypatch
):
    def broken(*_):
        raise ValueError("no template")

    def whole(folder, *_):
        (folder / "mine.txt").write_text("here")

    entries = [Entry("theirs", broken), Entry("mine", whole)]
    monkeypatch.setattr(execute, "entry_points", lambda group: entries)
    with pytest.warns(RuntimeWarning, match="the report 'theirs' could not be made"):
        run = run_spec(SPEC, runs=tmp_path, model=llama)
    assert (run.path / "mine.txt").read_text() == "here" and run.spec == SPEC


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(llama, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(execute, "entry_points", lambda group: [Entry("report", full)])
    with pytest.raises(WorkbenchError, match="disk is full"):
        run_spec(SPEC, runs=tmp_path, model=llama)
    assert list_runs(tmp_path) == [] and not list(tmp_path.glob("*lens*"))
