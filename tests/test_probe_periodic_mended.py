"""Faults that a review found in probes of numbers: each test fails without one mend."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from probes.periodic import (
    HelixProbe,
    NumberTask,
    choose_periods,
    digit_fit,
    helix_patch,
    helix_sweep,
    read_numbers,
    regression_probe,
    running_sums,
)
from probes.periodic.numbers import number_position
from workbench.errors import DataError

A = np.arange(60)
ROWS = np.random.default_rng(0).normal(size=(60, 5))
TEMPLATE = "{a} + {b} ="


@cache
def addition():
    import workbench as wb

    return wb.load_model("addition", device="cpu", dtype="float32")


# -- where the number stands ---------------------------------------------------------------------------


class Digits:
    """A model that writes every character as one token."""

    name = "digits"

    class tokenizer:
        @staticmethod
        def decode(ids):
            return "".join(chr(i) for i in ids)

    @staticmethod
    def batch(text):
        from types import SimpleNamespace

        return SimpleNamespace(ids=torch.tensor([[ord(c) for c in text]]))


@pytest.mark.parametrize("numbers", [range(10, 21), [10, 15, 20], range(110, 211, 10)])
def test_numbers_of_several_tokens_are_refused_also_where_the_first_and_last_differ_in_one(numbers):
    with pytest.raises(DataError, match="differ at 2 tokens for digits, expected one"):
        number_position(Digits(), NumberTask(TEMPLATE, numbers, [7]))  # pyright: ignore[reportArgumentType]


def test_numbers_that_differ_in_one_token_have_its_position():
    digits = Digits()
    assert number_position(digits, NumberTask(TEMPLATE, range(10), [7])) == 0  # pyright: ignore[reportArgumentType]
    assert number_position(digits, NumberTask("{b} + {a} =", range(10), [7])) == 4  # pyright: ignore[reportArgumentType]


# -- tasks ---------------------------------------------------------------------------------------------


def test_a_task_of_numpy_numbers_is_that_of_pythons_and_its_result_is_saved(tmp_path):
    of_numpy = NumberTask(TEMPLATE, np.arange(100), np.arange(100))
    plain = NumberTask(TEMPLATE, range(100), range(100))
    assert json.dumps(of_numpy.to_dict()) == json.dumps(plain.to_dict())
    quick = {"layers": [0], "n_pairs": 20, "n_bootstrap": 5, "n_permutations": 1, "candidates": (10, 25, 50)}
    one = helix_patch(addition(), of_numpy, periods=np.int64(2), **quick)
    one.save(tmp_path / "result")
    assert one.data.equals(helix_patch(addition(), plain, periods=2, **quick).data)
    floats = NumberTask(TEMPLATE, np.linspace(0, 9, 10), np.ones(1))
    assert floats.prompt(floats.numbers[3], floats.others[0]) == "3 + 1 ="
    assert read_numbers(addition(), floats, layers=[0]).numbers.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"operand": "A"}, "operand is 'a' or 'b' and the operation .* not 'A'"),
        ({"operation": "/"}, "not 'a' and '/'"),
        ({"modulus": 0}, "modulus is 1 or more, or None"),
        ({"template": "{a} + {b} = {x}"}, r"template .* has other braces than \{a\} and \{b\}"),
        ({"template": "{{a} {b}"}, "has no {a}|other braces"),
        ({"answer": " {c} {d}"}, r"answer .* has other braces than \{c\}"),
        ({"numbers": [0.5, 1.5]}, "0.5 at row 0 is not whole"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_when_it_is_made(more, message):
    task = object.__new__(NumberTask)  # the types, which the tests check before, are no check elsewhere
    for name, value in (vars(NumberTask(TEMPLATE, range(9), range(9))) | more).items():
        object.__setattr__(task, name, value)
    with pytest.raises(DataError, match=message):
        task.__post_init__()
    assert NumberTask("{{{a}}} + {b} =", [1, 2], [1]).prompt(1, 2) == "{1} + 2 ="


# -- reading -------------------------------------------------------------------------------------------


def test_rows_of_nan_are_not_decoded_as_the_first_candidate():
    probe = HelixProbe((10,)).fit(A, ROWS)
    bad = ROWS.copy()
    bad[4, 0] = np.nan
    for read in (probe.read, lambda rows: probe.decode(rows, A)):
        with pytest.raises(DataError, match="1 of 60 rows of activations hold NaN.*row 4"):
            read(bad)


def test_tensors_of_any_precision_are_read_and_decoded():
    probe = HelixProbe((10,)).fit(A, ROWS)
    half = torch.tensor(ROWS, dtype=torch.bfloat16)
    same = half.double().numpy()
    assert np.array_equal(probe.decode(half, A), probe.decode(same, A))
    assert np.array_equal(probe.read(half.requires_grad_()), probe.read(same))


def test_scores_are_of_rows_of_the_probes_width():
    probe = HelixProbe((10,)).fit(A, ROWS)
    with pytest.raises(DataError, match=r"shape \(60, 1\) do not fit: this probe reads \[row, 5\]"):
        probe.score(A, ROWS[:, :1])
    with pytest.raises(NotFittedError):
        copy.copy(HelixProbe()).score(A, ROWS)


def test_dimensions_that_are_the_same_for_all_digits_do_not_count_in_the_median():
    table = np.random.default_rng(1).normal(size=(10, 3))
    constant = np.concatenate([table, np.full((10, 4), 0.1)], axis=1)  # 0.1 is not the mean of ten of them
    found, plain = (digit_fit(t, n_permutations=5) for t in (constant, table))
    assert found["r2_median"] == pytest.approx(plain["r2_median"])
    assert found["r2"] == pytest.approx(plain["r2"])


# -- choosing ------------------------------------------------------------------------------------------


def test_few_candidates_make_small_chosen_helices():
    found = helix_sweep({0: ROWS}, A, candidates=(5, 10), n_splits=2).data
    assert found["chosen_period"].shape == (1, 2, 2)
    assert set(found["chosen_period"].values.ravel()) == {5.0, 10.0}
    assert found["n_columns"].sel(basis="chosen").values.tolist() == [3, 5, 5, 5]
    assert np.isfinite(found["r2"].values).all()
    with pytest.raises(DataError, match="no candidates"):
        helix_sweep({0: ROWS}, A, candidates=())
    with pytest.raises(DataError, match="3 periods cannot be chosen from 2 candidates"):
        helix_patch(
            addition(),
            NumberTask(TEMPLATE, range(100), range(100)),
            periods=3,
            candidates=(10, 50),
            layers=[0],
        )


@pytest.mark.parametrize("n", [0, -1])
def test_a_choice_without_a_null_is_refused(n):
    with pytest.raises(DataError, match=f"n_null is {n}"):
        choose_periods(ROWS, A, n_null=n)


# -- sums ----------------------------------------------------------------------------------------------


def test_running_sums_of_lists_and_of_what_is_no_table_of_digits():
    assert running_sums([[8, 9]], [[1, 5]]).tolist() == [[8, 49, 49, 4]]
    for a, message in (
        (np.array([8, 9]), r"a has shape \(2,\): give \[problem, digit\]"),
        (np.array([[8.5, 9.0]]), "no digits 0 to 9"),
        (np.zeros((0, 2), dtype=int), "no digits 0 to 9"),
    ):
        with pytest.raises(DataError, match=message):
            running_sums(a, np.array([[1, 5]]))


def test_resamples_of_a_rare_target_in_which_nothing_varies_are_left_out_of_its_interval():
    rare = np.zeros(40)
    rare[3] = 1.0
    held = False
    for seed in range(8):
        found = regression_probe({0: ROWS[:40, None]}, {"a": rare}, n_bootstrap=50, seed=seed).data
        held |= float(found["mae"].squeeze()) == pytest.approx(
            1 / 12
        )  # the one is held out: all others are alike
        low, high = (float(found[name].squeeze()) for name in ("r2_low", "r2_high"))
        assert np.isfinite([low, high]).all() and low <= float(found["r2"].squeeze()) <= high
    assert held


@pytest.mark.parametrize("penalties", [[], [-1.0], [0.0, 1.0], [float("nan")]])
def test_penalties_are_numbers_above_zero(penalties):
    with pytest.raises(DataError, match="penalties to choose from are one or more numbers above 0"):
        regression_probe({0: ROWS[:, None]}, {"a": ROWS[:, 0]}, penalties=penalties)
