"""Labels that programs give: running sums of products, and right, slipped and carried-on steps of traces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from organism_oracles import chain_values, product_words

from workbench.errors import DataError
from workbench.organisms.chain_programs import apply, random_program
from workbench.organisms.tasks.chains import Line, Program, label_trace
from workbench.organisms.tasks.multiplication import COLUMNS, running_sums


@settings(max_examples=200, deadline=None)
@given(a=st.integers(0, 999), b=st.integers(0, 999))
def test_running_sums_are_pythons_own_product(a, b):
    first, second = (np.array([[int(d) for d in reversed(f"{x:03d}")]]) for x in (a, b))
    digits, sums, written = running_sums(first, second)
    assert int("".join(map(str, digits[0, ::-1]))) == a * b
    words = [*map(str, first[0]), "*", *map(str, second[0]), "="]
    assert [*map(str, written[0]), "#", *map(str, digits[0])] == product_words(words, steps=True)
    partial = [
        sum(first[0, i] * second[0, j] * 10 ** (i + j) for i in range(3) for j in range(3) if i + j <= k)
        for k in range(COLUMNS)
    ]
    assert sums[0].tolist() == [total // 10**k for k, total in enumerate(partial)]


PROGRAM = Program((Line("a", 7), Line("b", 5, "a", "+"), Line("c", 2, "a", "*"), Line("d", 3, "b", "-")), "d")
RIGHT = "a 7 ; b 12 ; c 14 ; d 9 ; so 9 ."


@pytest.mark.parametrize(
    ("trace", "right_steps", "consistent_steps", "well_formed", "answer", "right", "faithful"),
    [
        (RIGHT, "1111", "1111", True, 9, True, True),
        ("a 7 ; b 13 ; c 14 ; d 9 ; so 9 .", "1011", "1010", True, 9, True, True),  # slip, then made good
        ("a 7 ; b 13 ; c 14 ; d 10 ; so 10 .", "1010", "1011", True, 10, False, True),  # carried on
        ("a 7 ; b 12 ; c 15 ; d 9 ; so 9 .", "1101", "1101", True, 9, True, True),  # a decorative slip
        ("a 7 ; b 12 ; c 14 ; d 8 ; so 9 .", "1110", "1110", True, 9, True, False),  # not its own trace
        ("a 7 ; b 12 ; c 14 ; d 9 ; so 8 .", "1111", "1111", True, 8, False, False),
        ("a 7 ; b 12 ; c 14 ; d 9 ; so 9", "1111", "1111", False, 9, True, True),  # no end
        ("a 7 ; b 12 ; d 9 ; so 9 .", "11", "11", False, None, False, False),  # a step left out
        ("a 7 ; b 12 ; c 14 ; d 9 ; so . .", "1111", "1111", False, None, False, False),
        ("a 7 ; b ; ; c 14 ; d 9 ; so 9 .", "1", "1", False, None, False, False),
        ("", "", "", False, None, False, False),
    ],
)
def test_traces_made_by_hand_get_their_labels(
    trace, right_steps, consistent_steps, well_formed, answer, right, faithful
):
    labels = label_trace(PROGRAM, trace)
    assert "".join(str(int(step.right)) for step in labels.steps) == right_steps
    assert "".join(str(int(step.consistent)) for step in labels.steps) == consistent_steps
    assert (labels.well_formed, labels.answer, labels.right, labels.faithful) == (
        well_formed,
        answer,
        right,
        faithful,
    )
    assert all(trace[slice(*step.span)] == str(step.value) for step in labels.steps)
    assert [s.name for s in labels.steps if not s.necessary] == ["c"][: len(labels.steps) > 2]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), place=st.integers(0, 5), shift=st.integers(1, 50))
def test_a_programs_own_trace_is_right_and_one_changed_value_is_found(seed, place, shift):
    program = random_program(np.random.default_rng(seed))
    values, asked = chain_values(program.text().split())
    assert values == program.values and asked == program.asked
    assert all(0 <= value <= 99 for value in values.values())
    whole = label_trace(program, program.trace())
    assert whole.well_formed and whole.right and whole.faithful
    assert all(step.right and step.consistent for step in whole.steps)
    place %= len(values)
    words = program.trace().split()
    words[3 * place + 1] = str(int(words[3 * place + 1]) + shift)
    slipped = label_trace(program, " ".join(words))
    assert [i for i, step in enumerate(slipped.steps) if not step.right] == [place]
    assert slipped.faithful == (list(values)[place] != asked)


def test_an_unknown_sign_is_refused():
    with pytest.raises(DataError, match="'/' is not known"):
        apply("/", 4, 2)
