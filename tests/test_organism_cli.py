"""`workbench models train` and `list`: a tiny organism in the registry, trained, interrupted, resumed and listed."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from tiny_organism import Small
from typer.testing import CliRunner

import workbench as wb
from workbench import organisms
from workbench.cli.models import app
from workbench.errors import ModelError
from workbench.organisms import registry, shipped
from workbench.organisms.model_card import table
from workbench.organisms.training import train


class Tiny(Small):
    """Under a name of its own."""

    name = "tiny-addition"


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    """The registry finds the tiny organism; the working folder is an empty one."""
    module = types.ModuleType("workbench.organisms.tasks.tiny_addition")
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._WHERE, "tiny-addition", "tiny_addition:Tiny")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def expected_weights(seed: int = 3) -> dict[str, torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = train(Tiny(), seed=seed).model
    torch.set_num_threads(before)
    return model.state_dict()


def assert_weights(folder: str) -> None:
    loaded = wb.load_model(folder, device="cpu").hf.state_dict()
    for name, value in expected_weights().items():
        assert torch.equal(loaded[name], value), name


def test_train_writes_a_model_that_loads_and_keeps_its_snapshots(tmp_path):
    threads = torch.get_num_threads()
    done = run("train", "tiny-addition", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert "tiny-addition, seed 3: 30 steps" in done.output and "accuracy" in done.output
    folder = tmp_path / "models" / "tiny-addition-seed3"
    assert len(list((folder / "snapshots").iterdir())) == 3
    assert_weights(str(folder))
    assert torch.get_num_threads() == threads


def test_train_stopped_by_ctrl_c_goes_on_with_the_same_command(tmp_path, monkeypatch):
    def interrupted(self, seed, step):
        if step == 14:
            raise KeyboardInterrupt
        return Small.batch(self, seed, step)

    out = str(tmp_path / "mine")
    with monkeypatch.context() as patched:
        patched.setattr(Tiny, "batch", interrupted)
        stopped = run("train", "tiny-addition", "--seed", "3", "--out", out)
    assert stopped.exit_code == 130 and "The same command goes on from" in stopped.output
    assert not (tmp_path / "mine").exists()
    assert json.loads((tmp_path / ".mine.training" / "state.json").read_text())["step"] == 14

    steps = []
    monkeypatch.setattr(
        Tiny, "batch", lambda self, seed, step: steps.append(step) or Small.batch(self, seed, step)
    )
    assert run("train", "tiny-addition", "--seed", "3", "--out", out).exit_code == 0
    assert steps == list(range(14, 30))
    assert_weights(out)


def test_train_in_two_parts_with_json_says_what_the_card_says(tmp_path):
    part = json.loads(run("train", "tiny-addition", "--seed", "3", "--steps", "10", "--json").stdout)
    assert part["steps"] == 10
    told = json.loads(run("train", "tiny-addition", "--seed", "3", "--json").stdout)
    assert (told["name"], told["seed"], told["steps"]) == ("tiny-addition", 3, 30)
    card = json.loads((tmp_path / told["folder"] / "card.json").read_text())
    assert card["figures"] == told["figures"] and set(told) - set(card) == {"folder"}
    assert_weights(told["folder"])


@pytest.mark.parametrize("option", ["--steps", "--threads"])
def test_train_refuses_what_makes_no_sense(option):
    failed = run("train", "tiny-addition", option, "0")
    assert isinstance(failed.exception, ModelError) and "at least 1" in str(failed.exception)


def test_train_refuses_an_unknown_organism_and_names_near_ones():
    failed = run("train", "tiny-adition")
    assert isinstance(failed.exception, ModelError)
    assert "Did you mean 'tiny-addition'" in str(failed.exception)


def test_shipped_models_are_listed_loaded_and_tabled(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.datasets.paths.data_folder", lambda: tmp_path / "data")
    assert organisms.cards() == []
    with pytest.raises(ModelError, match="workbench models train tiny-addition"):
        organisms.card("tiny-addition")
    assert (
        run("train", "tiny-addition", "--out", str(tmp_path / "data" / "models" / "tiny-addition")).exit_code
        == 0
    )

    (card,) = organisms.cards()
    (row,) = [row for row in json.loads(run("list", "--json").stdout) if row["name"] == "tiny-addition"]
    assert row["summary"] == Tiny.summary and row["figures"] == dict(card.figures)
    assert row["goals"][0]["metric"] == "accuracy" and row["cached"] == "shipped"
    assert row["n_parameters"] == card.n_parameters and row["bytes_on_disk"] == card.bytes > 0
    shown = run("list").output
    assert "tiny-addition" in shown and f"{card.figures['accuracy']:.4f}" in shown

    assert wb.load_model("tiny-addition", device="cpu").n_layers == 2
    with pytest.raises(ModelError, match="Did you mean 'tiny-addition'"):
        wb.load_model("tiny-adition")
    text = table([card])
    assert f"| [tiny-addition](tiny-addition/README.md) | {card.summary} | accuracy" in text
    assert f"Weights together: {card.bytes / 1e6:.1f} MB" in text
    assert shipped.training("tiny-addition")["points"][-1]["step"] == 30
