"""The command line as a user meets it: one error line and exit code 2, JSON for machines, the same runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import entry_points

import pytest
import tiny
from typer.testing import CliRunner

PROMPT = "Mary went to the store and John gave a drink to"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model saved as any local checkpoint."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def workbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def in_process(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The command without the seconds a new process needs to import torch: exit code, stdout, stderr."""
    from workbench.cli.main import main

    monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command_quickly():
    started = time.perf_counter()
    shown = workbench("--help")
    assert (
        time.perf_counter() - started < 2
    )  # the exact figure is benchmarks.imports'; this catches a heavy import
    assert shown.returncode == 0
    for entry in entry_points(group="workbench.commands"):
        assert f"  {entry.name} " in shown.stdout
    assert "not available" not in shown.stdout


@pytest.mark.parametrize("command", sorted({e.name for e in entry_points(group="workbench.commands")}))
def test_every_command_has_help_with_an_example(command):
    from typer.main import get_command

    (entry,) = {e.value: e for e in entry_points(group="workbench.commands") if e.name == command}.values()
    app = entry.load()
    shown = CliRunner().invoke(app, ["--help"]).output
    subcommands = getattr(get_command(app), "commands", {})
    texts = [CliRunner().invoke(app, [name, "--help"]).output for name in subcommands] or [shown]
    for text in texts:
        assert "Example: workbench" in text, command


def test_the_command_and_the_spec_file_write_the_same_run(folder, tmp_path, monkeypatch, capsys):
    runs = str(tmp_path)
    run = lambda *arguments: in_process(monkeypatch, capsys, *arguments)  # noqa: E731
    code, out, err = run("lens", PROMPT, "--model", folder, "--runs", runs, "--json")
    assert code == 0, err
    made = json.loads(out)
    code, out, err = run("run", f"{made['path']}/spec.yaml", "--runs", runs, "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["summary"] == made["summary"]
    from workbench.runs import load_run

    assert load_run(made["id"], runs).result.data.identical(load_run(again["id"], runs).result.data)
    listed = json.loads(run("runs", "list", "--runs", runs, "--json")[1])
    assert {r["id"] for r in listed["runs"]} == {again["id"], made["id"]} and listed["n"] == 2
    monkeypatch.setenv("COLUMNS", "160")
    shown = run("runs", "show", made["id"], "--runs", runs)[1]
    assert "entropy (nats)" in shown and "report.html" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lens", ""], "The prompt is empty"),
        (["lens", " ".join(["Mary"] * 70)], "has 70 tokens"),
        (["lens", PROMPT, "--target", "Mary went"], "is 2 tokens"),
        (["patch", "--clean", "Mary went to", "--corrupt", "Mary went", "--answer", "Mary", "--wrong", "John"], "3 tokens"),
        (["patch", "--clean", "Mary went", "--corrupt", "John went", "--answer", "Mary", "--wrong", "the red"], "2 tokens"),
        (["patch", "--clean", "Mary went"], "give clean, corrupt, answer and wrong"),
        (["patch", "--dataset", "indirect-object"], "indirect-objects"),
        (["collect", "sentiment", "--out", "x.safetensors", "--sites", "blocks.0.hook_resid_pots"], "Did you mean"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    code, _, stderr = in_process(monkeypatch, capsys, *arguments, "--model", folder)
    assert code == 2, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0], stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_no_such_run_model_or_spec_is_exit_code_2(tmp_path, monkeypatch, capsys):
    for arguments, message in [
        (["runs", "show", "2020", "--runs", str(tmp_path)], "No run '2020'"),
        (["lens", "hello", "--model", "smollm2-135n"], "Did you mean 'smollm2-135m'"),
        (["run", str(tmp_path / "none.yaml")], "cannot be read"),
        (
            ["lens", "hello", "--model", "nobody/nothing", "--runs", str(tmp_path)],
            "not in the local hub cache",
        ),
    ]:
        code, _, stderr = in_process(monkeypatch, capsys, *arguments)
        assert code == 2 and message in stderr, (arguments, stderr)


def test_an_error_is_one_line_without_a_traceback_for_the_shell_too(tmp_path):
    done = workbench("runs", "show", "2020", "--runs", str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("Error: No run '2020'")
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_collect_writes_one_file_that_loads(folder, tmp_path, monkeypatch, capsys):
    import workbench as wb

    (tmp_path / "prompts.txt").write_text("Mary went to the store\nJohn gave a drink\n")
    out = tmp_path / "acts.safetensors"
    code, stdout, stderr = in_process(
        monkeypatch,
        capsys,
        "collect",
        str(tmp_path / "prompts.txt"),
        "--model",
        folder,
        "--out",
        str(out),
        "--position",
        "0,-1",
        "--json",
    )
    assert code == 0, stderr
    assert json.loads(stdout)["rows"] == 4
    assert len(wb.Activations.load(out)) == 4


def test_doctor_checks_a_model(folder, monkeypatch, capsys):
    facts = json.loads(in_process(monkeypatch, capsys, "doctor", "--model", folder, "--json")[1])
    assert facts["residual_bookkeeping"] == "holds" and facts["sites"] == 42


def test_a_folder_a_hub_cache_entry_and_objects_load_to_the_same_model(folder, tmp_path, monkeypatch):
    import shutil

    import workbench as wb

    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    refs = tmp_path / "hub" / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    from_folder = wb.load_model(folder)
    hf, tokenizer = tiny.hf_model("llama"), tiny.tokenizer()
    assert wb.load_model((hf, tokenizer)).fingerprint == from_folder.fingerprint
    code = "import workbench as wb; print(wb.load_model('someone/tiny').fingerprint)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == from_folder.fingerprint, done.stderr
