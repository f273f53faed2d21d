"""What each operation does to an activation, against formulas written out in float64 for one vector at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.errors import DataError
from workbench.steering import OPERATIONS, Operation
from workbench.steering import operations as ops

WIDTH = 6
FINITE = st.floats(-20, 20, allow_nan=False, width=32)
ACTIVATIONS = hnp.arrays(np.float32, (2, 3, WIDTH), elements=FINITE)
VECTORS = hnp.arrays(np.float32, (WIDTH,), elements=FINITE).filter(lambda v: np.linalg.norm(v) > 0.1)
STRENGTHS = st.floats(-30, 30, allow_nan=False, width=32)


def unit(v: np.ndarray) -> np.ndarray:
    v = v.astype(np.float64)
    return v / np.linalg.norm(v)


def plain_add(h, v, s):
    return h + s * v


def plain_add_keeping_norm(h, v, s):
    new = h + s * v
    return new / np.linalg.norm(new) * np.linalg.norm(h)


def plain_in_context(h, v, s, similarity=1.0):
    """2311.06668: y = λ (1 + max(0, cos(h, -v))) v on the unit sphere; negative λ is the same along -v."""
    if s < 0:
        return plain_in_context(h, -v, -s, similarity)
    norm = np.linalg.norm(h)
    new = h / norm + s * (1 + similarity * max(0.0, float(-h @ v) / norm)) * v
    return norm * new / np.linalg.norm(new)


def plain_rotate(h, v, degrees):
    """By the rotation matrix of the plane, from an orthonormal basis of it."""
    first = h / np.linalg.norm(h)
    second = v - (v @ first) * first
    second = second / np.linalg.norm(second)
    t = math.radians(degrees)
    plane = np.outer(first, first) + np.outer(second, second)
    turn = np.outer(second, first) - np.outer(first, second)
    return (np.eye(len(h)) + (math.cos(t) - 1) * plane + math.sin(t) * turn) @ h


ORACLES = {
    "add": plain_add,
    "add_keeping_norm": plain_add_keeping_norm,
    "in_context": plain_in_context,
    "ablate": lambda h, v, s: h - s * np.outer(v, v) @ h,
    "clamp": lambda h, v, s, value=3.0: h + s * (value - v @ h) * v,
    "rotate": plain_rotate,
    "affine": lambda h, v, s, a=0.5, b=-2.0: h + s * ((a - 1) * (v @ h) + b) * v,
}
PARAMETERS = {"clamp": {"value": 3.0}, "affine": {"a": 0.5, "b": -2.0}}


def well_defined(name: str, h: np.ndarray, v: np.ndarray, s: float) -> bool:
    """Away from the places where the formula divides by (nearly) nothing."""
    if name in ("add", "ablate", "clamp", "affine"):
        return True
    norm = np.linalg.norm(h)
    if norm < 0.1:
        return False
    if name == "rotate":
        return abs(v @ h) / norm < 0.999
    step = h + s * v if name == "add_keeping_norm" else h / norm + s * v
    return bool(np.linalg.norm(step) > 0.1 * (1 if name == "in_context" else norm))


@pytest.mark.parametrize("name", list(ORACLES))
@given(h=ACTIVATIONS, v=VECTORS, strengths=st.tuples(STRENGTHS, STRENGTHS))
@settings(max_examples=60, deadline=None)
def test_an_operation_is_its_formula_at_every_position(name, h, v, strengths):
    v = unit(v)
    done = getattr(ops, name)(
        torch.from_numpy(h),
        torch.from_numpy(v),
        strength=torch.tensor(strengths),
        **PARAMETERS.get(name, {}),
    )
    assert done.dtype == torch.float32
    for row in range(2):
        for position in range(3):
            before = h[row, position].astype(np.float64)
            if well_defined(name, before, v, strengths[row]):
                expected = ORACLES[name](before, v, strengths[row])
                near = 2e-4 * (1 + np.abs(expected).max())
                assert np.allclose(done[row, position].numpy(), expected, atol=near), (row, position)


@pytest.mark.parametrize("name", list(ORACLES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_strength_zero_changes_not_a_bit_and_the_dtype_stays(name, dtype):
    h = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    h[0, 0] = -0.0  # -0.0 + 0.0 is +0.0: another bit pattern
    h[0, 1, 0] = -0.0
    v = torch.eye(WIDTH)[0]
    done = getattr(ops, name)(h, v, strength=torch.tensor([0.0, 0.0, 1.0]), **PARAMETERS.get(name, {}))
    assert done.dtype == dtype
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(done[:2].view(width), h[:2].view(width))
    assert not torch.equal(done[2], h[2])


def test_identity_parameters_change_nothing():
    h, v = torch.randn(2, 3, WIDTH), torch.eye(WIDTH)[1]
    assert torch.allclose(ops.affine(h, v, a=1.0, b=0.0), h)
    assert torch.allclose(ops.rotate(h, v, 360.0), h, atol=1e-4)
    assert torch.allclose(ops.clamp(h[:1, :1], v, float(h[0, 0, 1])), h[:1, :1])


@given(h=ACTIVATIONS, v=VECTORS, strength=STRENGTHS)
@settings(max_examples=60, deadline=None)
def test_what_each_operation_promises(h, v, strength):
    h, v = torch.from_numpy(h).double(), torch.from_numpy(unit(v))
    norm = h.norm(dim=-1)
    for name in ("add_keeping_norm", "in_context", "rotate"):
        assert torch.allclose(getattr(ops, name)(h, v, strength).norm(dim=-1), norm, atol=1e-6), name
    assert torch.allclose(ops.clamp(h, v, strength) @ v, torch.full((2, 3), strength).double(), atol=1e-5)
    assert torch.allclose(ops.ablate(h, v) @ v, torch.zeros(2, 3).double(), atol=1e-5)
    mean = float((h @ v).mean())
    assert torch.allclose(ops.affine(h, v, 0.0, mean), ops.clamp(h, v, mean))  # mean ablation, both ways
    assert torch.allclose(ops.affine(h, v, 1.0, strength), ops.add(h, v, strength), atol=1e-6)


def test_a_rotation_reaches_the_vector_and_no_further_turn_is_lost():
    h, v = torch.tensor([[[3.0, 0.0, 0.0]]]), torch.tensor([0.0, 1.0, 0.0])
    assert torch.allclose(ops.rotate(h, v, 90.0)[0, 0], torch.tensor([0.0, 3.0, 0.0]), atol=1e-6)
    assert torch.allclose(ops.rotate(h, v, -90.0)[0, 0], torch.tensor([0.0, -3.0, 0.0]), atol=1e-6)
    along = torch.tensor([[[0.0, 2.0, 0.0]]])
    assert torch.equal(ops.rotate(along, v, 50.0), along)  # no plane to turn in


def test_nothing_is_divided_by_zero():
    zero, v = torch.zeros(1, 1, 3), torch.tensor([1.0, 0.0, 0.0])
    for name in ("add_keeping_norm", "in_context", "rotate"):
        assert torch.equal(getattr(ops, name)(zero, v, 2.0), zero), name
    h = torch.tensor([[[2.0, 0.0, 0.0]]])
    assert torch.equal(ops.add_keeping_norm(h, v, -2.0), h)  # h + s v = 0 has no direction to rescale


def test_rows_and_positions_may_carry_their_own_strength_and_rows_their_own_vector():
    h = torch.randn(2, 3, WIDTH)
    v = torch.eye(WIDTH)[:2]
    amounts = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.0]])
    moved = ops.add(h, v, amounts) - h
    assert torch.allclose(moved[0, :, 0], amounts[0], atol=1e-6)
    assert torch.allclose(moved[1, :, 1], amounts[1], atol=1e-6)
    assert torch.count_nonzero(moved[0, :, 1:]) == 0


def test_half_precision_is_rounded_once():
    h = torch.full((1, 1, 1), 256.0, dtype=torch.bfloat16)  # bfloat16 is 2 apart here
    assert ops.add(h, torch.ones(1), 1.5).item() == 258.0
    assert ops.clamp(h, torch.ones(1), 3.0).item() == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Operation("ad"), "'ad' is not known.*Did you mean 'add'"),
        (lambda: Operation("clamp"), r"needs value: Operation\('clamp', value="),
        (lambda: Operation("affine", a=1.0), "needs b"),
        (lambda: Operation("add", value=2.0), r"takes no parameters, not \['value'\]"),
        (lambda: Operation("clamp", value=float("nan")), "value of 'clamp' nan is not finite"),
        (lambda: Operation("clamp", value="much"), "give a number"),
        (lambda: ops.add(torch.zeros(2, 3), torch.zeros(3), 1.0), r"\[batch, position, d\]"),
        (lambda: ops.add(torch.zeros(1, 2, 3), torch.zeros(4), 1.0), r"not \[1, 2, 3\] and \[4\]"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_every_operation_has_an_oracle_here_and_says_what_its_strength_is():
    assert set(ORACLES) == set(OPERATIONS)
    assert Operation("rotate").strength_means == "angle (degrees)"
    assert Operation("clamp", value=[1, 2]).settings() == {"op": "clamp", "value": [1.0, 2.0]}
