"""What directions refuse, with one clear error, and what they take that looks unusual but is sound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import tiny_model
from typer.testing import CliRunner

from workbench.cli.directions import app
from workbench.directions import (
    Direction,
    DirectionSet,
    cosines,
    direction_cosines,
    library,
    principal_angles,
    top_tokens,
)
from workbench.directions.controls import random_controls
from workbench.errors import DataError, ModelError, RunError
from workbench.model.language_model import LanguageModel
from workbench.specs import parse_spec

SITE = "blocks.1.hook_resid_post"


def made(seed: int = 0, width: int = 48, **fields) -> Direction:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    known: dict[str, Any] = {"site": SITE, "name": f"d{seed}", "source": "test"}
    return Direction.from_vector(drawn, **(known | fields))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DIRECTIONS", str(tmp_path / "lib"))
    monkeypatch.setenv("COLUMNS", "300")
    return library()


# --- scales ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 48, 576])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_rounding_of_a_projection_is_no_scale(width, offset):
    rows = normal(200, width)
    rows[:, 3] += offset  # a dimension of large constant size, as streams have
    d = made(width=width)
    with pytest.raises(DataError, match="do not vary .* but for rounding"):
        d.with_scale_from(d.project_out(rows))
    assert math.isclose(d.with_scale_from(rows).scale, float(d.project(rows.double()).std()), rel_tol=1e-4)
    small = d.project_out(rows) + 0.01 * normal(200, 1) * d.vector  # little, but more than rounding
    assert math.isclose(d.with_scale_from(small).scale, 0.01 * float(normal(200, 1).std()), rel_tol=0.05)


def test_activations_that_ask_for_gradients_are_read():
    rows = torch.nn.Parameter(normal(50, 48))
    d = made()
    assert d.with_scale_from(rows).scale == d.with_scale_from(rows.detach()).scale
    a, b = (direction_cosines([d, made(1)], reference=r).data for r in (rows, rows.detach()))
    assert a.equals(b)


# --- cosines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_reference_activations_that_are_not_finite_are_refused(bad):
    rows = normal(50, 48)
    rows[3, 4] = bad
    with pytest.raises(DataError, match="reference activations are NaN or infinite"):
        direction_cosines([made(), made(1)], reference=rows)


def test_the_reference_null_is_that_of_one_draw_at_once():
    rows, n = normal(50, 48), 40
    centred, generator = rows.double() - rows.double().mean(0), torch.Generator().manual_seed(5)
    a, b = (torch.randn(n, 50, generator=generator, dtype=torch.float64) @ centred for _ in "ab")
    sizes = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).abs().numpy()
    null = direction_cosines([made(), made(1)], reference=rows, n_null=n, seed=5).data.sel(null="reference")
    assert math.isclose(float(null["null_mean"]), sizes.mean(), rel_tol=1e-12)
    assert math.isclose(float(null["null_band"]), np.quantile(sizes, 0.95), rel_tol=1e-12)


def test_the_reference_null_of_many_rows_is_drawn_in_pieces(monkeypatch):
    rows = normal(2000, 48) * torch.linspace(0.1, 3, 48)
    whole = direction_cosines([made(), made(1)], reference=rows, n_null=500).data.sel(null="reference")
    drawn, plain = [], torch.randn
    monkeypatch.setattr(cosines, "ROWS_AT_ONCE", 64)
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(math.prod(a)) or plain(*a, **k))
    pieces = direction_cosines([made(), made(1)], reference=rows, n_null=500).data.sel(null="reference")
    assert max(drawn) == 500 * 64 and sum(drawn) == 2 * 500 * 2000 + 2 * 48  # and the two directions
    for name in ("null_rms", "null_mean", "null_band"):
        assert math.isclose(float(pieces[name]), float(whole[name]), rel_tol=0.03)


@pytest.mark.parametrize(
    "names", [("a", "a", "a (2)"), ("a (2)", "a", "a"), ("a", "a", "a"), ("a", "a (2)", "a")]
)
def test_no_two_directions_have_one_label(names):
    labels = cosines.labels_of([made(i, name=name) for i, name in enumerate(names)])
    assert len(set(labels)) == 3 and all(label in labels for label in names)


# --- arguments ---------------------------------------------------------------------------------------------


def test_one_direction_where_several_are_needed():
    with pytest.raises(DataError, match="at least two directions; 1 was given"):
        direction_cosines(made())
    angle = principal_angles(made(), made(1), n_null=20).data["degrees"].values
    expected = math.degrees(math.acos(abs(made().cosine(made(1)))))
    np.testing.assert_allclose(angle, [expected], rtol=1e-6)


@pytest.mark.parametrize("vector", [np.array([3.0, 4.0]), [3, 4], (3.0, 4.0), np.array([3, 4], np.int16)])
def test_a_vector_may_be_an_array_or_a_list(vector):
    found = Direction.from_vector(vector, site=SITE)
    assert found.scale == 5.0
    torch.testing.assert_close(found.vector, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("vector", ["ab", ["a", "b"], None, [[1, 2], [3]], {"a": 1}])
def test_what_is_no_vector_of_numbers_is_refused(vector):
    with pytest.raises(DataError, match="A direction is a vector of numbers .* came a"):
        Direction.from_vector(vector, site=SITE)
    with pytest.raises(DataError, match="real numbers"):
        Direction.from_vector(torch.ones(2, dtype=torch.complex64), site=SITE)


@pytest.mark.parametrize("scale", ["a", None, 0, math.inf, [1, 2]])
def test_a_scale_is_a_positive_number(scale):
    with pytest.raises(DataError, match="scale of a direction is a positive number"):
        Direction(made().vector, scale, SITE)


def test_members_are_asked_for_by_any_whole_number():
    several = DirectionSet([made(0), made(1)])
    assert several[np.int64(1)] is several[1] and several[np.argmin([2, 1])].name == "d1"
    for key in (slice(0, 1), 1.0, None, [0]):
        with pytest.raises(DataError, match="by number, name or site, not by"):
            several[key]  # type: ignore[index]
    with pytest.raises(DataError, match="Direction 2 does not exist"):
        several[np.int64(2)]


def test_seeds_are_whole_numbers_from_0_on():
    plain, numpy = random_controls(made(), 2, 3), random_controls(made(), 2, np.int64(3))  # type: ignore[arg-type]
    for a, b in zip(plain, numpy, strict=True):
        assert torch.equal(a.vector, b.vector) and a.settings == b.settings
    assert Direction.random(made(), np.int64(3)).settings["seed"] == 3  # type: ignore[arg-type]
    rows, pair = normal(20, 48), [made(), made(1)]
    for seed in (-1, 0.5, "a"):
        for call in (
            lambda s: Direction.random(made(), s),
            lambda s: random_controls(made(), 1, s),
            lambda s: made().with_scale_from(rows, seed=s),
            lambda s: direction_cosines(pair, reference=rows, seed=s),
            lambda s: principal_angles(made(), made(1), seed=s),
        ):
            with pytest.raises(DataError, match="A seed is a whole number from 0 on"):
                call(seed)


def test_a_negative_seed_is_refused_by_specs_and_commands(mine):
    with pytest.raises(RunError, match="seed: input should be greater than or equal to 0"):
        parse_spec({"kind": "direction_tokens", "direction": "x", "seed": -1})
    done = CliRunner().invoke(app, ["tokens", "x", "--seed", "-1"])
    assert done.exit_code == 2 and "Invalid value for '--seed'" in done.output


# --- tokens ------------------------------------------------------------------------------------------------


def test_a_table_of_tokens_needs_a_tokenizer_and_a_seed():
    silent = LanguageModel(tiny.hf_model("llama"), None, name="silent")
    with pytest.raises(ModelError, match="silent has no tokenizer"):
        top_tokens(silent, made(), 3, prompts=[[5, 6, 7]], n_random=2)
    with pytest.raises(DataError, match="A seed is a whole number"):
        top_tokens(tiny_model("llama"), made(), 3, prompts=[[5, 6, 7]], n_random=2, seed=-1)


@pytest.mark.parametrize("other", ["blocks.-1.hook_resid_post", "blocks.{}.hook_out"])
def test_tokens_are_read_at_a_site_by_any_of_its_names(other):
    model = tiny_model("llama")
    last = model.n_layers - 1
    plain = made(site=f"blocks.{last}.hook_resid_post", scale=8.0)
    a, b = (
        top_tokens(model, d, 3, prompts=[[5, 6, 7], [8, 9]], n_random=2).data
        for d in (plain, plain.at(other.format(last)))
    )
    assert a.equals(b) and b.attrs["site"] == plain.site


def test_the_site_of_one_direction_is_not_chosen(mine):
    mine.save("d", made())
    command = ["tokens", "d", "--at", "blocks.0.hook_resid_post", "--model", "no-such-model"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, DataError) and f"is one direction, at {SITE!r} and not at" in str(error)
    error = CliRunner().invoke(app, [*command[:3], SITE, *command[4:]]).exception
    assert isinstance(error, ModelError)  # --at was right, so the model is what is missing
