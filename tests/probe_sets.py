"""A data set of statements for a tiny model, with fields to probe, and the command called in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

PEOPLE = [
    "Mary",
    "John",
    "Anna",
    "Tom",
    "Paris",
    "Rome",
    "France",
    "Italy",
    "store",
    "drink",
    "capital",
    "was",
]
COLOURS = {"red": "true", "blue": "false", "green": "neither"}
RECORDS: list[dict[str, Any]] = [
    {
        "text": f"the {who} {verb} {colour}",
        "label": label,
        "group": who,
        "colour": colour,
        "place": who in ("Paris", "Rome", "France", "Italy"),
        "verb": verb,
        "count": float(3 * i + j),
    }
    for i, who in enumerate(PEOPLE)
    for j, verb in enumerate(("is", "was"))
    for colour, label in COLOURS.items()
]
"""72 statements of 12 groups; the colour, which is the label, is the last token."""
DECIDED = [r for r in RECORDS if r["label"] != "neither"]
QUICK = ["--folds", "3"]


def write(folder: Path) -> Path:
    """A tiny model and the data set in a folder."""
    tiny.hf_model("llama").save_pretrained(folder / "tiny-llama")
    tiny.tokenizer().save_pretrained(folder / "tiny-llama")
    (folder / "colours.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return folder


class Command:
    """`workbench` in this process: exit code, stdout, stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any, here: Path, runs: Path) -> None:
        self.monkeypatch, self.capsys, self.here = monkeypatch, capsys, here
        monkeypatch.setenv("COLUMNS", "400")
        monkeypatch.setenv("WORKBENCH_RUNS", str(runs))
        monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(runs / "directions"))
        monkeypatch.chdir(here)

    def __call__(self, *arguments: str, model: bool = True) -> tuple[int, str, str]:
        from workbench.cli.main import main

        given = [str(a) for a in arguments]
        if given[0] == "probe" and model and "--model" not in given and "--help" not in given:
            given += ["--model", str(self.here / "tiny-llama")]
        self.monkeypatch.setattr(sys, "argv", ["workbench", *given])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err

    def json(self, *arguments: str, **more: bool) -> dict[str, Any]:
        """The JSON of a command that must succeed."""
        code, out, err = self(*arguments, "--json", **more)
        assert code == 0, err
        return json.loads(out)

    def fails(self, *arguments: str, **more: bool) -> str:
        """The one line of a command that must be refused (after progress bars, if it got so far)."""
        code, _, err = self(*arguments, **more)
        said = err.splitlines()[-1] if err else ""
        assert code == 2 and said.startswith("Error: ") and "Traceback" not in err, err
        return said


def make(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a module's tests."""
    return write(tmp_path_factory.mktemp("probe"))
