"""Cells side by side: the same as one after the other, in order, and errors come out."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from test_probes import POST, activations, noise

import probes
from probes.parallel import side_by_side
from workbench.errors import Cancelled, DataError
from workbench.progress import Silent


def test_results_come_in_the_order_of_the_items():
    def slow(item, check):
        time.sleep(0.02 * (3 - item % 3))
        check()
        return item * 10

    calls = []
    assert list(side_by_side(slow, range(7), lambda: calls.append(1), 3)) == [i * 10 for i in range(7)]
    assert len(calls) == 7


def test_a_failure_ends_the_others_and_is_the_error_that_comes_out():
    before, turns, started = torch.get_num_threads(), [], []

    def work(item, check):
        started.append(item)
        if item == 1:
            raise DataError("the second")
        for _ in range(2000):
            turns.append(item)
            time.sleep(0.005)
            check()
        return item

    with pytest.raises(DataError, match="the second"):
        list(side_by_side(work, range(5), lambda: None, 2))
    assert len(turns) < 2000 and set(started) <= {
        0,
        1,
        2,
    }  # stopped in the middle; what was left is not begun
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_is_the_same_with_any_number_of_threads(monkeypatch, workers):
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    acts = activations({POST.format(i): noise(80, seed=i) for i in range(4)})
    data = probes.sweep(
        acts, np.arange(80) % 2, kinds=["logistic", "ridge"], n_bootstrap=20, tolerance=1e-7
    ).data
    key = "_kept"
    kept = test_a_sweep_is_the_same_with_any_number_of_threads.__dict__.setdefault(key, data)
    for name in ("auc", "log_loss", "control_auc"):
        assert np.allclose(data[name], kept[name], atol=1e-3)


def test_a_cancel_stops_every_thread(monkeypatch):
    class Stop(Silent):
        def advance(self, n: int = 1, **_):
            raise Cancelled("stopped")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    acts = activations({POST.format(i): noise(60, seed=i) for i in range(6)})
    with pytest.raises(Cancelled):
        probes.sweep(acts, np.arange(60) % 2, n_bootstrap=5, progress=Stop())
