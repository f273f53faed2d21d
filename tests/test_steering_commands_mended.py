"""`workbench steer` where it went wrong once: names, sets of one, default strengths, positions and texts."""

from __future__ import annotations

import json

import pytest
import torch

import workbench as wb
from workbench.cli.steer_options import doses, rule
from workbench.directions import Direction, DirectionSet, library

SITE = "blocks.1.hook_resid_post"


def direction(**more) -> Direction:
    drawn = torch.randn(48, generator=torch.Generator().manual_seed(0))
    return Direction.from_vector(drawn, site=SITE, name="d0", **more)


def test_commands_take_a_set_of_one_and_ablate_the_whole_way(workbench):
    library().save("lone", DirectionSet([direction(scale=3.0)]))
    model = ["--model", str(workbench.here / "tiny-llama"), "--prompt", "the store", "--json"]
    for arguments, strengths in (
        (["--natural", "--strength", "1", "--answer", "red", "--wrong", "blue"], [0.0, 3.0]),
        (["texts", "--natural", "--strength", "1", "--tokens", "3"], [0.0, 3.0]),
        (["texts", "--op", "ablate", "--tokens", "3"], [0.0, 1.0]),
    ):
        command = (
            [arguments[0], "--direction", "lone", *arguments[1:]]
            if arguments[0] == "texts"
            else ["--direction", "lone", *arguments]
        )
        code, out, err = workbench("steer", *command, *model)
        assert code == 0, err
        assert wb.load_run(json.loads(out)["path"]).result.data["strength"].values.tolist() == strengths


def test_a_name_that_is_taken_is_replaced_where_asked(workbench):
    make = [
        "steer",
        "make",
        "colours.jsonl",
        "--positive",
        "true",
        "--negative",
        "false",
        "--model",
        str(workbench.here / "tiny-llama"),
    ]
    library().save("mood", direction())
    code, out, err = workbench(*make, "--save", "mood", "--replace", "--json")
    assert code == 0, err
    best = json.loads(out)["summary"]["best"]
    assert library().direction("mood").source == "mean_difference" and "p_value" not in best
    data = wb.load_run(json.loads(out)["path"]).result.data.sel(site=best["site"])
    assert best["p_value_best"] == pytest.approx(float(data["p_value_best"]), abs=1e-4)
    assert float(data["p_value_best"]) >= float(data["p_value"])
    code, out, err = workbench(*make)
    assert code == 0 and "p (this site)" in out and "p (max over sites)" in out, err


def test_default_strengths_of_the_command_suit_the_operation():
    assert [doses(None, False, op) for op in ("ablate", "clamp", "affine")] == [[1.0]] * 3
    assert max(doses(None, False, "in_context")) < 1 < max(doses(None, False, "rotate"))
    assert doses(None, False) == doses(None, False, "add") == [-20.0, -10.0, 10.0, 20.0]
    assert doses([3.0], False, "ablate") == [3.0] and doses(None, True) == [-1.0, -0.5, 0.5, 1.0]


def test_a_number_with_a_space_is_a_text():
    assert rule("from=3") == {"from": 3} and rule("from=-2") == {"from": -2}
    assert rule("from= 3") == {"from_text": " 3"} == rule("from=' 3'")
    assert rule("from='3'") == {"from_text": "3"} and rule("from=1_0") == {"from_text": "1_0"}
    assert rule("from='tis") == {"from_text": "'tis"}


def test_names_are_looked_at_before_any_work(workbench, here, monkeypatch):
    library().save("mood", direction())
    monkeypatch.setattr("workbench.runs.run_spec", lambda *_a, **_k: pytest.fail("the work was begun"))
    make, write_ = ["make", "colours.jsonl"], ["write", "red", "--layer", "1"]
    for arguments, says in (
        ([*make, "--save", "mood"], "--replace"),
        ([*write_, "--save", "mood"], "--replace"),
        ([*make, "--save", "Mood", "--replace"], "differs from 'Mood' in case only"),
        ([*make, "--save", "../x"], "cannot be the name"),
        ([*write_, "--save", ""], "cannot be the name"),
        ([*make, "--replace"], "--save NAME"),
        ([*make, "--all-sites"], "--save"),
    ):
        code, _, err = workbench("steer", *arguments, "--model", str(here / "tiny-llama"))
        assert code == 2 and says in err and "Traceback" not in err, err
