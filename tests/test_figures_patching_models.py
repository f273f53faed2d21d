"""Figures of what the patching methods return on tiny models."""

from __future__ import annotations

import re
from html import escape

import pytest
from conftest import tiny_model
from patching_results import (
    VARIANTS,
    drawn_of,
    made,
    under,
)

import workbench as wb
from dashboards.figures import control_statement, describe, figure, figures
from dashboards.figures.tables import tables
from dashboards.report import write_report
from workbench.results import Result

# --- results of realistic size --------------------------------------------------------------------------


@pytest.fixture(params=VARIANTS, ids=str)
def name(request) -> str:
    return request.param


@pytest.fixture
def result(name) -> Result:
    return made(name)


# --- results of the methods themselves ------------------------------------------------------------------


CLEAN = [[50, 51, 52, 53, 54, 55], [50, 61, 62, 63, 64, 65]]
CORRUPT = [[50, 51, 72, 53, 54, 75], [50, 61, 82, 63, 84, 65]]
OTHERS = [[50, 40, 52, 53, 41, 55], [50, 61, 42, 63, 43, 65]]
LOGITS = wb.LogitDifference(7, 9)
SUMS = [[1, a, o, b, 12] for a in range(20, 23) for o in (10, 11) for b in range(20, 23)]


def run(name: str) -> Result:
    """A method on a tiny model."""
    from workbench import patching
    from workbench.patching.all_for_one import all_for_one, search
    from workbench.patching.circuit_run import circuit_curves
    from workbench.patching.mediation import mediation
    from workbench.patching.neurons import ablate_neurons, comparative, importance

    model = tiny_model("llama")
    pair = (model, CLEAN, CORRUPT)
    said = model.logits(SUMS)[:, -1].argmax(-1).tolist()
    match name:
        case "sweep":
            return patching.sweep(*pair, LOGITS)
        case "heads at positions":
            return patching.sweep(*pair, LOGITS, kind="z", by="head_position")
        case "attribution":
            return patching.attribution(*pair, LOGITS, kind=["z", "k", "mlp_out"], recheck=5)
        case "attribution, one kind":
            return patching.attribution(
                *pair, LOGITS, kind="z", by="head_position", recheck="all", integrate=2
            )
        case "edges":
            return patching.edges(*pair, LOGITS)
        case "paths":
            return patching.path_patch(*pair, LOGITS, [("blocks.2.attn.hook_q", 1)])
        case "sets":
            return patching.path_patch(*pair, LOGITS, senders=[[(0, 1), (1, "mlp")], [(1, 0)]])
        case "ablation":
            return patching.ablate(model, CLEAN, "blocks.*.attn.hook_z", LOGITS, heads="each", how="zero")
        case "sites":
            return patching.ablate(model, CLEAN, "blocks.*.hook_mlp_out", LOGITS, how="mean")
        case "knockout":
            return patching.knockout(model, CLEAN, LOGITS, queries="last", keys=[1, 2], window=2)
        case "back-patching":
            return patching.back_patch(model, CLEAN, [7, 9], positions=2)
        case "patchscope":
            return patching.patchscope(
                model, CLEAN[0], CORRUPT[0], source_position=3, target_position=-1, max_new_tokens=3
            )
        case "all for one":
            return all_for_one(model, SUMS, said, wait=1, peek=1, n_least=2)
        case "search":
            return search(model, SUMS, said, keep=0.2, n_least=2)
        case "das":
            words = ([*CLEAN, *OTHERS], [*CORRUPT, *CORRUPT], [7, 9, 7, 9])
            return patching.das(model, *words, site="blocks.1.hook_resid_post", steps=3, rank=2)
        case "mediation":
            return mediation(model, CLEAN, CORRUPT, [7, 8], [9, 11], same_result=OTHERS)
        case "circuit":
            return circuit_curves(*pair, LOGITS, patching.edges(*pair, LOGITS), n_random=3)
        case "neurons":
            return importance(model, CLEAN, [7, 8])
        case "comparative":
            return comparative(model, CLEAN, [7, 8])
        case "neuron ablation":
            return ablate_neurons(model, CLEAN, [7, 8], [(1, 3), (2, 5)], n_control=4)
    raise AssertionError(name)


RUNS = [
    "sweep", "heads at positions", "attribution", "attribution, one kind", "edges", "paths", "sets", "ablation", "sites",
    "knockout", "back-patching", "patchscope", "all for one", "search", "das", "mediation", "circuit", "neurons",
    "comparative", "neuron ablation",
]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_the_methods_return_can_be_drawn_and_said(name):
    result = run(name)
    drawn, words = figures(result), describe(result)
    assert list(drawn) == list(words) and control_statement(result)
    for which, one in drawn.items():
        assert "tiny-llama · n = " in under(one), which
        assert all(table.rows for table in tables(one)), which
        assert "nan" not in (under(one) + words[which] + control_statement(result)).lower(), which


@pytest.mark.parametrize("name", ["attribution", "back-patching", "circuits", "neurons", "patchscope"])
def test_a_report_has_every_figure(name, tmp_path):
    report = write_report(tmp_path, made(name), {}, drawn_of(name)).read_text()
    assert report.count('data-figure="figure-') == len(drawn_of(name))
    for text in describe(made(name)).values():
        assert escape(text, quote=False) in report.replace("&#x27;", "'")


@pytest.mark.parametrize("name", ["sweep", "edges", "paths", "ablation", "sites", "knockout", "mediation"])
def test_the_cell_that_a_figure_names_is_the_summarys_strongest(name):
    result = run(name)
    strongest = result.summary["strongest"]
    words = " ".join((under(figure(result)), *describe(result).values()))
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-\d+)?", words.replace("−", "-"))]
    assert min(abs(n - strongest["effect"]) for n in numbers) < 1e-3
    for key in ("layer", "head", "position", "sender", "receiver", "first_layer"):
        if key in strongest:
            assert re.search(rf"(?<!\d){strongest[key]}(?!\d)", words), key
