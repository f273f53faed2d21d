"""`workbench demo`: the whole thread on the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real_model


def test_the_demo_runs_the_whole_thread_and_says_what_it_found(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli.main", "demo", "--json", "--runs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["lens"]["target"] == " Mary" and 20 <= facts["lens"]["depth"] <= 29
    layers = facts["probe"]["auc_per_layer"]
    best = max(layers, key=lambda row: row["auc"])
    assert len(layers) == 30 and best["auc"] > best["control"] + 0.1 and best["interval"][0] > 0.5
    assert abs(facts["patch"]["strongest"]["effect"]) > 0.8
    assert abs(facts["patch"]["strongest"]["control_effect"]) < abs(facts["patch"]["strongest"]["effect"])
    moved = facts["steer"]["strength +40"]
    assert moved["steered"] > 1 and abs(moved["random"]) < moved["steered"] / 2
    assert set(facts["seconds"]) == {"model", "lens", "probe", "patch", "steer", "report"}
    assert Path(facts["report"]).stat().st_size > 1_000_000  # plotly.js is in it
    assert len(list(tmp_path.glob("*/provenance.json"))) == 4
