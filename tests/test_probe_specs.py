"""What specs of probes ask for: rules for labels, the prompts that are chosen, and what is refused before a model runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_sets import RECORDS, write

import workbench as wb
from probes.picked import best_cell, picked_direction, picked_probe
from probes.spec import Kind, ProbeSpec
from probes.specs.prompts import MANY_CLASSES, Rule, same
from probes.specs.stored import StoredModel
from workbench.errors import DataError, RunError
from workbench.progress import Silent
from workbench.specs import ModelSpec, parse_spec

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write(tmp_path_factory.mktemp("specs")) / "colours.jsonl")


@given(field=NAMES, value=st.none() | st.text(min_size=1))
def test_a_rule_is_read_from_its_own_text(field, value):
    rule = Rule(field=field, value=value)
    assert Rule.model_validate(str(rule)) == rule


@given(st.lists(st.sampled_from(["Africa", "Asia", "Europe"]), min_size=1))
def test_a_rule_with_a_value_says_of_each_row_whether_it_has_it(values):
    if "Asia" in values:
        assert Rule.model_validate("x=Asia").of(values, "rows") == [v == "Asia" for v in values]
    else:
        with pytest.raises(DataError, match=r"No row of rows has x=Asia; there are"):
            Rule.model_validate("x=Asia").of(values, "rows")
    assert Rule.model_validate("x").of(values, "rows") == values


def test_values_are_found_however_they_are_written():
    assert same(True, "true") and same("true", True) and same(7, "7") and same(False, "False")
    assert same(7.0, "7") and same(7, "7.0") and not same(7.5, "7") and not same(7, "seven")
    assert not same(True, 1) and not same("7.0", 7) and not same("True story", True)


def test_a_row_without_the_field_is_an_error_and_not_a_class():
    with pytest.raises(DataError, match=r"1 of 3 rows of 'x' have no 'continent', the first is row 1"):
        Rule.model_validate("continent=Asia").of(["Asia", None, "Africa"], "'x'")


def test_filters_written_as_text_find_the_records_own_values(data):
    for wanted in ("true", True, ["true"]):
        used, note = ProbeSpec(dataset=data, filter={"place": wanted}).chosen()
        assert len(used) == 16 and note["prompts"].startswith("16 of 72")
    used, _ = ProbeSpec(
        dataset=data, filter={"count": "3", "colour": ["red", "green"]}, labels=["true", "neither"]
    ).chosen()
    assert [r.extra["count"] for r in used] == [3.0, 3.0]


def test_without_labels_true_and_false_are_taken_and_other_sets_must_name_theirs(tmp_path):
    file = tmp_path / "three.csv"
    file.write_text("text,label\nthe red,a\nthe blue,b\nthe green,c\n")
    with pytest.raises(DataError, match=r"has 3 labels \(a, b, c\): say which to tell apart"):
        ProbeSpec(dataset=str(file)).chosen()
    used, _ = ProbeSpec(dataset=str(file), labels=["a", "b", "c"]).chosen()
    assert len(used) == 3
    texts = tmp_path / "texts.txt"
    texts.write_text("the red\n\nthe blue\n")
    with pytest.raises(DataError, match="--label NAME=FIELD"):
        ProbeSpec(dataset=str(texts)).chosen()


def test_a_limit_draws_with_the_seed_and_generated_sets_give_as_many_as_one_wants(data):
    some = [ProbeSpec(dataset=data, limit=10, seed=s).chosen()[0].texts for s in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and len(some[0]) == 10
    spec = parse_spec(
        {"kind": "probe_numbers", "dataset": "modular-addition", "targets": ["a"], "limit": 700}
    )
    assert len(spec.chosen(labelled=False)[0]) == 700  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "data set or a store"),
        ({"dataset": "a", "store": "b"}, "not both"),
        ({"store": "b"}, "name the labels"),
        ({"store": "b", "label_sets": {"x": "x"}, "limit": 4}, "leave limit out"),
        ({"store": "b", "label_sets": {"x": "x"}, "position": 0}, "leave position out"),
        ({"dataset": "a", "penalty": []}, "C is a number above 0"),
        ({"dataset": "a", "penalty": [1, 0]}, "C is a number above 0"),
        ({"dataset": "a", "labels": ["one"]}, "labels"),
        ({"dataset": "a", "label_sets": {"x": {"field": "y", "values": 3}}}, "values"),
        ({"dataset": "a", "kinds": []}, "kinds"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_by_the_spec(fields, says):
    with pytest.raises(RunError, match=says):
        parse_spec({"kind": "probe", **fields})


def test_too_many_classes_for_a_kind_are_found_before_the_model_is_asked(data):
    spec = ProbeSpec(dataset=data, label_sets={"colour": Rule(field="colour")}, kinds=["logistic", "pca"])
    with pytest.raises(DataError, match="'pca' tells two classes apart, but the labels have 3"):
        spec.run(None, Silent())  # type: ignore[arg-type]


def test_the_kinds_for_many_classes_are_those_that_fit_them():
    from typing import get_args

    import numpy as np
    from test_probes import POST, activations, noise

    import probes

    acts, y = activations({POST.format(0): noise(60)}), np.arange(60) % 3
    for kind in get_args(Kind):
        run = lambda kind=kind: probes.sweep(acts, y, kinds=kind, controls=False, n_bootstrap=5)  # noqa: E731
        if kind in MANY_CLASSES:
            assert run().data.sizes["class"] == 3
        else:
            with pytest.raises((DataError, ValueError), match=r"[Tt]wo classes|binary"):
                run()


def test_a_store_has_a_model_that_is_named_and_not_loaded(tmp_path):
    fields = {"store": "acts", "label_sets": {"x": "x"}, "model": {"name": "no-such-model"}}
    spec = parse_spec({"kind": "probe", **fields})
    assert isinstance(spec.model, StoredModel) and spec == parse_spec(spec.to_dict())
    assert spec.to_dict()["model"] == ModelSpec(name="no-such-model").model_dump()
    with pytest.raises(DataError, match="acts"):
        spec.model.load()


def test_the_best_cell_is_the_highest_of_those_that_are_wanted():
    import numpy as np
    from test_probes import POST, activations, noise

    import probes

    rows = noise(80)
    y = np.arange(80) % 2
    rows[:, 3] += 3 * rows[:, 3].std() * y
    sweep = probes.sweep(
        activations({POST.format(0): noise(80, seed=1), POST.format(1): rows}), y, n_bootstrap=5
    )
    top = best_cell(sweep)
    assert top["layer"] == 1 and top["site"] == POST.format(1)
    assert best_cell(sweep, layer="0", probe="mass_mean") == {
        "layer": 0,
        "probe": "mass_mean",
        "site": POST.format(0),
    }
    with pytest.raises(DataError, match=r"no layer 7\. It has 0, 1"):
        best_cell(sweep, layer=7)
    with pytest.raises(DataError, match="no label to choose; it runs over layer, probe"):
        best_cell(sweep, label="truth")
    direction, probe = picked_direction(sweep, top), picked_probe(sweep, top)
    assert int(direction.vector.abs().argmax()) == 3 and probe.direction().vector == pytest.approx(
        direction.vector, abs=1e-6
    )


def test_the_room_is_there_by_name():
    assert wb.directions.library.__module__ == "workbench.directions.library" and "directions" in dir(wb)
    assert len(RECORDS) == 72
