"""`workbench probe DATASET`: the sweep from the command line, what is saved of it, and saved probes on new texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from probe_sets import DECIDED, QUICK, RECORDS

import probes
import workbench as wb
from probes.fitted import FittedProbe
from workbench.directions import Direction
from workbench.runs import load_run
from workbench.specs import load_spec, parse_spec

COLOURS = ["probe", "colours.jsonl", *QUICK]


@pytest.fixture(scope="module")
def model(here):
    return wb.load_model(str(here / "tiny-llama"))


def column(name: str, records=RECORDS) -> list:
    return [r[name] for r in records]


def test_the_command_gives_the_numbers_of_the_python_call_and_its_spec_the_same_again(workbench, model):
    made = workbench.json(
        *COLOURS, "--penalty", "0.01,1", "--kinds", "logistic,ridge,mass_mean", "--seed", "3"
    )
    run = load_run(made["path"])
    acts = wb.collect(model, column("text", DECIDED))
    expected = probes.sweep(
        acts, column("label", DECIDED), groups=column("group", DECIDED), kinds=["logistic", "ridge", "mass_mean"],
        penalty=[0.01, 1.0], folds=3, seed=3,
    )  # fmt: skip
    assert run.result.data.equals(expected.data) and made["kind"] == "probe"
    assert made["summary"]["best"] == json.loads(json.dumps(expected.summary["best"]))
    assert made["summary"]["prompts"].startswith("48 of 72 in colours.jsonl (label=['false', 'true']")
    assert {"best", "n", "control", "majority_accuracy", "prompts"} <= set(made["summary"])
    again = workbench.json("run", str(run.path / "spec.yaml"))
    assert load_run(again["path"]).result.data.identical(run.result.data)
    assert parse_spec(yaml.safe_load((run.path / "spec.yaml").read_text())) == run.spec


def test_several_labels_share_one_sweep_and_each_is_what_it_is_alone(workbench):
    labels = ["--label", "red=colour=red", "--label", "place", "--label", "verb=verb=was"]
    made = workbench.json(*COLOURS, *labels, "--kinds", "logistic")
    data = load_run(made["path"]).result.data
    assert data["label"].values.tolist() == ["red", "place", "verb"] and data.attrs["n"] == 72
    assert data.attrs["reads"] == {"red": "colour=red", "place": "place", "verb": "verb=was"}
    assert data["positive"].values.tolist() == ["True", "True", "True"]
    share = [np.mean([r["colour"] == "red" for r in RECORDS]), np.mean(column("place")), 0.5]
    assert data["majority_accuracy"].values == pytest.approx(np.maximum(share, 1 - np.array(share)))
    assert float(data["auc"].sel(label="red").min()) > 0.95  # the colour is the last token
    assert made["summary"]["best_by_label"].keys() == {"red", "place", "verb"}
    one = workbench.json(*COLOURS, "--label", "red=colour=red", "--kinds", "logistic", "--no-controls")
    alone = load_run(one["path"]).result.data
    assert (
        "label" not in alone.dims
        and alone.attrs["reads"] == {"red": "colour=red"}
        and "control_auc" not in alone
    )


def test_more_than_two_classes_of_the_label_or_of_a_field(workbench):
    three = workbench.json(*COLOURS, "--labels", "true,false,neither", "--kinds", "logistic,lda")
    field = workbench.json(*COLOURS, "--label", "colour", "--kinds", "logistic,lda")
    one, other = (load_run(m["path"]).result.data for m in (three, field))
    assert one["class"].values.tolist() == ["false", "neither", "true"]
    assert other["class"].values.tolist() == [
        "blue",
        "green",
        "red",
    ]  # the same three sets of rows, in that order
    assert np.allclose(one["auc"], other["auc"]) and one["weight"].dims == (
        "layer",
        "probe",
        "class",
        "d_model",
    )
    said = workbench.fails(*COLOURS, "--labels", "true,false,neither", "--kinds", "mass_mean")
    assert (
        "'mass_mean' tells two classes apart, but the labels have 3" in said and "logistic, lda, mlp" in said
    )


def test_where_twice_on_one_field_keeps_either_value_and_groups_may_be_chosen(workbench):
    made = workbench.json(*COLOURS, "--where", "colour=red", "--where", "colour=blue", "--where", "place=false",
                          "--group-by", "verb", "--folds", "2", "--kinds", "mass_mean")  # fmt: skip
    data = load_run(made["path"]).result.data
    assert data.attrs["n"] == 32 and data.attrs["n_groups"] == 2 and data.attrs["group_by"] == "verb"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["colours.jsonl", "--kinds", "logistc"], "kinds"),
        (["colours.jsonl", "--penalty", "much"], "--penalty 'much' cannot be read"),
        (["colours.jsonl", "--penalty", "-1"], "C is a number above 0"),
        (["colours.jsonl", "--where", "place"], "--where 'place' cannot be read"),
        (["colours.jsonl", "--where", "place=maybe"], "No record of"),
        (["colours.jsonl", "--label", "x=plac"], "Did you mean 'place'"),
        (["colours.jsonl", "--label", "x=colour=gren"], "Did you mean 'green'"),
        (["colours.jsonl", "--label", "x=colour", "--label", "y=place"], "labels have 3"),
        (["colours.jsonl", "--label", "x=place", "--label", "x=verb"], "--label 'x' is given twice"),
        (["colours.jsonl", "--labels", "true,false,maybe"], "No record of"),
        (["colours.jsonl", "--where", "colour=red", "--labels", "true,false"], "Two classes expected, found 1"),
        (["colours.jsonl", "--folds", "30"], "fewer than the 30 folds"),
        (["colours.jsonl", "--sites", "blocks.0.hook_resid_pots"], "Did you mean 'blocks.0.hook_resid_post'"),
        (["colours.jsonl", "--keep-layer", "1"], "give --save-probe or --save-direction, too"),
        (["colours.jsonl", "--store", "acts"], "give a data set or a store (not both)"),
        (["--store", "acts"], "name the labels of the store's prompts"),
        (["--json"], "give a data set or a store"),
        (["transfr"], "transfr"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do_and_writes_nothing(workbench, arguments, says, tmp_path):
    assert says in workbench.fails("probe", *arguments)
    assert not list((tmp_path / "runs").glob("*-probe-*"))


def test_what_is_saved_is_the_probe_of_the_cell_and_reads_new_texts_as_the_sweep_would(
    workbench, model, tmp_path
):
    files = [tmp_path / "red.safetensors", tmp_path / "red-direction.safetensors"]
    save = [
        "--save-probe",
        files[0],
        "--save-direction",
        files[1],
        "--keep-layer",
        "1",
        "--keep-label",
        "red",
    ]
    labels = ["--label", "red=colour=red", "--label", "place"]
    made = workbench.json(*COLOURS, *labels, *save, "--keep-kind", "ridge", "--kinds", "logistic,ridge")
    assert made["saved_probe"] == str(files[0]) and made["saved_direction"] == str(files[1])
    site = "blocks.1.hook_resid_post"
    assert made["saved_cell"] == {"layer": 1, "label": "red", "probe": "ridge", "site": site}
    at = load_run(made["path"]).result.data.sel(layer=1, label="red", probe="ridge")
    fitted, direction = FittedProbe.load(files[0]), Direction.load(files[1])
    assert (fitted.site, fitted.model_fingerprint, fitted.name) == (site, model.fingerprint, "red: ridge")
    assert fitted.classes == ("False", "True") and fitted.scores["auc"] == pytest.approx(float(at["auc"]))
    weight = at["weight"].values.astype(np.float64)
    assert np.allclose(direction.vector.numpy(), weight / np.linalg.norm(weight), atol=1e-6)
    assert direction.scale == pytest.approx(float(at["scale"])) and direction.name.startswith("red: True")
    assert (
        np.allclose(fitted.direction().vector, direction.vector)
        and fitted.direction().scale == direction.scale
    )
    texts = column("text")[:6]
    rows = wb.collect(model, texts, site).rows(site).double().numpy()
    given = [word for text in texts for word in ("--text", text)]
    read = workbench.json("probe", "apply", str(files[0]), *given)
    result = load_run(read["path"]).result
    assert np.allclose(result.data["score"], rows @ weight + float(at["bias"]), atol=1e-5)
    assert result.data["answer"].values.tolist() == [str(r["colour"] == "red") for r in RECORDS[:6]]
    assert read["summary"]["answers"] == {"False": 4, "True": 2} and list(result.figures()) == ["answers"]
    assert result.data["token"].values.tolist() == column("colour")[:6]


def test_a_saved_probe_refuses_another_site_or_model_and_says_how_often_it_is_right(
    workbench, here, tmp_path
):
    import tiny

    file = tmp_path / "truth.safetensors"
    workbench.json(*COLOURS, "--save-probe", file, "--kinds", "logistic")
    read = workbench.json(
        "probe", "apply", str(file), "--dataset", "colours.jsonl", "--labels", "true,false", model=False
    )
    summary = read["summary"]
    assert summary["n_prompts"] == 48 and summary["accuracy"] == 1.0 and summary["majority_accuracy"] == 0.5
    n = len({r["group"] for r in RECORDS})  # all right: as many independent answers as groups
    assert summary["accuracy_low"] == pytest.approx(n / (n + 1.959964**2), abs=1e-4)  # Wilson: n / (n + z²)
    assert "colours" in summary["training_rows"]  # these are the rows it was fitted to, and the run says so
    every = ("--dataset", "colours.jsonl", "--labels", "true,false,neither")
    said = workbench.fails("probe", "apply", str(file), *every, model=False)
    assert "Label 'neither' is none of the probe's classes (false, true)" in said
    text = ["--text", "the Mary is red"]
    said = workbench.fails("probe", "apply", str(file), *text, "--site", "blocks.9.hook_resid_post")
    assert "belongs to 'blocks." in said and "not to 'blocks.9.hook_resid_post'" in said
    other = tmp_path / "other"
    tiny.hf_model("llama", seed=7).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    said = workbench.fails("probe", "apply", str(file), *text, "--model", str(other))
    assert "fingerprint" in said and not said.startswith("Error: Direction")
    assert workbench("probe", "apply", str(file), *text, "--model", str(other), "--force")[0] == 0
    assert "is there already" in workbench.fails(*COLOURS, "--save-probe", str(file))
    assert "give texts, or a data set" in workbench.fails("probe", "apply", str(file))
    missing = workbench.fails("probe", "apply", str(tmp_path / "none.safetensors"), *text, model=False)
    assert "none.safetensors" in missing


@pytest.mark.parametrize("kind", ["logistic", "mass_mean", "mass_mean_whitened", "lda", "pca", "kmeans"])
def test_every_linear_kind_is_saved_with_the_scores_of_its_weights(workbench, model, kind, tmp_path):
    file = tmp_path / "probe.safetensors"
    made = workbench.json(
        *COLOURS, "--kinds", kind, "--save-probe", file, "--sites", "blocks.2.hook_resid_post"
    )
    at = load_run(made["path"]).result.data.isel(layer=0, probe=0)
    x = np.random.default_rng(0).normal(size=(5, 48))
    expected = x @ at["weight"].values.astype(np.float64) + float(at["bias"])
    assert np.allclose(FittedProbe.load(file).decision_function(x), expected)


def test_a_probe_of_three_classes_is_saved_and_an_mlp_is_refused(workbench, tmp_path):
    file, line = tmp_path / "colour.safetensors", tmp_path / "direction.safetensors"
    three = [*COLOURS, "--label", "colour", "--kinds", "logistic"]
    made = workbench.json(*three, "--save-probe", file, "--save-direction", line, "--of", "green")
    at = load_run(made["path"]).result.data.sel(layer=made["saved_cell"]["layer"], probe="logistic")
    fitted = FittedProbe.load(file)
    assert fitted.classes == ("blue", "green", "red")
    x = np.random.default_rng(0).normal(size=(5, 48))
    assert np.allclose(
        fitted.decision_function(x), x @ at["weight"].values.astype(float).T + at["bias"].values
    )
    assert np.allclose(fitted.direction("green").vector, Direction.load(line).vector, atol=1e-5)
    assert "say which (--of), of blue, green, red" in workbench.fails(
        *three, "--save-direction", str(tmp_path / "n")
    )
    mlp = workbench.fails(
        *COLOURS, "--kinds", "mlp", "--sites", "blocks.0.hook_resid_post", "--save-probe", str(line) + "2"
    )
    assert "'mlp' is more than a weight" in mlp and "--keep-kind logistic" in mlp


def test_a_store_is_probed_without_its_model(workbench, model, here, tmp_path):
    from workbench.datasets import load

    data = load(str(here / "colours.jsonl"))
    wb.collect_to(tmp_path / "acts", model, data, sites=["blocks.*.hook_resid_post"], positions=-1)
    store = wb.open_store(tmp_path / "acts")
    known = sorted({key for text in store.prompts["labels"].to_pylist() for key in json.loads(text)})
    assert "label" in known, known
    labels = (
        ["--label", "truth=label=true", "--group-by", "group"]
        if "group" in known
        else ["--label", "truth=label=true"]
    )
    made = workbench.json(
        "probe", "--store", str(tmp_path / "acts"), *labels, *QUICK, "--model", "no-such-model"
    )
    run = load_run(made["path"])
    y = np.array(column("label")) == "true"
    groups = column("group") if "group" in known else None
    expected = probes.sweep(store, y, groups=groups, kinds=["logistic", "mass_mean"], penalty=1.0, folds=3)
    assert np.allclose(run.result.data["auc"], expected.data["auc"]) and run.result.data.attrs["n"] == 72
    assert made["provenance"]["model"]["fingerprint"] == model.fingerprint
    assert load_spec(run.path / "spec.yaml") == run.spec
    said = workbench.fails("probe", "--store", str(tmp_path / "acts"), "--label", "x=lable", model=False)
    assert "Did you mean" in said or "lable" in said


def test_the_table_has_score_interval_control_and_majority(workbench):
    code, out, err = workbench(
        *COLOURS, "--label", "red=colour=red", "--label", "place", "--kinds", "logistic"
    )
    assert code == 0, err
    lines = out.splitlines()
    last = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    head = " ".join(lines[: last + 1])
    for name in ("label", "probe", "AUC", "95 % interval", "shuffled", "accuracy", "majority"):
        assert name in head
    assert "0      red    logistic" in out and "best by label: place" in out
