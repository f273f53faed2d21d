"""What patching analyses refuse: one clear error in place of a silent answer or a raw one."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import workbench as wb
from workbench.errors import DataError, MetricError, PositionError, PromptError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.patching import (
    ablate,
    ablate_neurons,
    attribution,
    back_patch,
    das,
    edges,
    importance,
    input_attribution,
    knockout,
    mediation,
    patchscope,
    path_patch,
    sweep,
)
from workbench.patching.all_for_one import search
from workbench.patching.metrics import Accuracy, LogProbability, Probability, _plain
from workbench.patching.pairs import Pairs, as_pairs
from workbench.patching.subspace import interchange

A, B, C = [1, 5, 6, 7], [1, 5, 9, 7], [1, 11, 12, 13]
LD = wb.LogitDifference(40, 41)
SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def bare() -> LanguageModel:
    """A model without tokenizer."""
    return LanguageModel(tiny.hf_model("llama"), None, name="bare")


def numbers(n, seed=0, length=4):
    return [np.random.default_rng([seed, i]).integers(3, 100, length).tolist() for i in range(n)]


@pytest.mark.parametrize("positions", [[[1, 3], [2, 3]], [[1], [2, 3]]])
def test_back_patching_takes_one_position_per_prompt(llama, positions):
    with pytest.raises(
        PositionError, match=r"position of prompt \d is \[\d, 3\], which is 2 positions.*exactly one"
    ):
        back_patch(llama, [A, B], [40, 41], positions=positions)
    one = back_patch(llama, [A, B], [40, 41], positions=[[1], [2]])
    assert one.data["position"].values.tolist() == [1, 2]


@pytest.mark.parametrize("positions", [None, 1.0, True, np.float32(1), "first", [1.5, 2]])
def test_positions_are_whole_numbers(llama, positions):
    with pytest.raises((PositionError, PromptError), match=r"not a whole number|not known|give one for each"):
        back_patch(llama, [A, B], [40, 41], positions=positions)


@pytest.mark.parametrize(
    ("receivers", "said"),
    [
        ([], "No receivers were given"),
        ((), "No receivers were given"),
        ([("blocks.2.attn.hook_q", "x")], "no receiver"),
        ([3], "no receiver"),
        (("blocks.2.hook_mlp_out", 0), "no heads"),
        (("blocks.2.attn.hook_q", 4), "heads 0–3, not 4"),
    ],
)
def test_path_patching_needs_receivers(llama, receivers, said):
    with pytest.raises(SiteError, match=said):
        path_patch(llama, A, B, LD, receivers)


@pytest.mark.parametrize(
    ("senders", "said"),
    [([], "No sets of senders"), ([[]], "set of senders is empty"), ([(1, 0)], "no set of senders"),
     ([["ab"]], "does not exist"), ([[(3, 0)]], "does not exist"), ([[(1, 2.0)]], "does not exist")],
)  # fmt: skip
def test_path_patching_needs_senders(llama, senders, said):
    with pytest.raises(PromptError, match=said):
        path_patch(llama, A, B, LD, senders=senders)


def test_path_patching_knows_two_ways_to_freeze(llama):
    with pytest.raises(DataError, match="freeze is 'mlps'; expected 'heads' or 'all'"):
        path_patch(llama, A, B, LD, freeze="mlps")


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_pattern", "unembed.hook_out"])
def test_a_subspace_is_where_each_position_has_a_vector(llama, site):
    base, source = numbers(4), numbers(4, seed=1)
    with pytest.raises(SiteError, match="needs a vector of activations at every position"):
        das(llama, base, source, [40] * 4, site=site, steps=1)
    with pytest.raises(SiteError, match="needs a vector of activations at every position"):
        interchange(llama, base, source, site=site)


@pytest.mark.parametrize(
    "given", [{"n_random": 0}, {"batch_size": 0}, {"steps": -1}, {"steps": 1.5}, {"n_random": True}]
)
def test_das_checks_its_numbers_before_it_runs(llama, given):
    (name,) = given
    with pytest.raises(DataError, match=f"{name} is .*; expected a whole number, 1 or more"):
        das(llama, numbers(4), numbers(4, seed=1), [40] * 4, site=SITE, **{"steps": 1, **given})


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 5), r"shape \(2, 5\).*give \[rank, 48\]"), ((48,), r"\[rank, 48\]"), ((0, 48), "rank")],
)
def test_a_basis_has_rows_of_the_site(llama, shape, said):
    with pytest.raises(DataError, match=said):
        interchange(llama, [A], [B], site=SITE, basis=torch.randn(*shape))


@pytest.mark.parametrize("basis", [torch.ones(2, 48), torch.zeros(1, 48), torch.full((1, 48), torch.nan)])
def test_a_basis_of_dependent_rows_is_refused(llama, basis):
    with pytest.raises(DataError, match="rows of the basis depend on each other"):
        interchange(llama, [A], [B], site=SITE, basis=basis)


@pytest.mark.parametrize("analysis", ["ablate", "knockout"])
@pytest.mark.parametrize("answer", [(40, 41), "Mary John"])
def test_an_answer_of_several_tokens_is_for_other_analyses(llama, analysis, answer):
    metric = LogProbability(answer)
    run = {
        "ablate": lambda m: ablate(llama, [A, B], "blocks.1.hook_mlp_out", m, how="zero"),
        "knockout": lambda m: knockout(llama, [A, B], m, queries="last", keys=[1]),
    }[analysis]
    with pytest.raises(
        MetricError, match="answer of 2 tokens.*reads the one token.*input_attribution take several"
    ):
        run(metric)
    run(LogProbability((40,)))


@pytest.mark.parametrize(
    "metric",
    [wb.LogitDifference("Mary", "John"), LogProbability("Mary"), Probability("Mary"), Accuracy("Mary")],
)
def test_a_text_answer_needs_a_tokenizer(bare, metric):
    with pytest.raises(MetricError, match="'Mary' is text, but bare has no tokenizer: give token ids"):
        sweep(bare, A, B, metric)


@pytest.mark.parametrize("answer", [None, 1.5, {"Mary": 1}])
def test_what_is_no_answer_is_refused(llama, answer):
    with pytest.raises(MetricError, match="is no answer"):  # what every metric of tokens does with its fields
        _plain(answer)
    with pytest.raises(MetricError, match="is no token"):
        llama.token_id(answer)


EMPTY = {
    "path_patch": lambda m: path_patch(m, [], [], LD),
    "sweep": lambda m: sweep(m, [], [], LD),
    "attribution": lambda m: attribution(m, [], [], LD),
    "edges": lambda m: edges(m, [], [], LD),
    "das": lambda m: das(m, [], [], [], site=SITE),
    "interchange": lambda m: interchange(m, [], [], site=SITE),
    "back_patch": lambda m: back_patch(m, [], [], positions="last"),
    "mediation": lambda m: mediation(m, [], [], 40, 41),
    "input_attribution": lambda m: input_attribution(m, [], LD),
    "importance": lambda m: importance(m, [], 40),
    "ablate_neurons": lambda m: ablate_neurons(m, [], 40, [(1, 4)]),
    "ablate": lambda m: ablate(m, [], "blocks.1.hook_mlp_out", LD, how="zero"),
    "knockout": lambda m: knockout(m, [], LD, queries="last", keys=[1]),
    "Pairs.of": lambda m: Pairs.of(m, [], [], LD, "denoising"),
    "as_pairs": lambda m: as_pairs(m, [], []),
}


@pytest.mark.parametrize("analysis", EMPTY)
def test_no_prompts_are_an_error(llama, analysis):
    with pytest.raises(PromptError, match="No prompts were given: give at least one"):
        EMPTY[analysis](llama)


@pytest.mark.parametrize("neurons", [(1, 4), [1, 4], [(1, 4, 2)], [(1, 2.5)], [[(1, 4)], [3]], ["ab"]])
def test_neurons_are_pairs_of_numbers(llama, neurons):
    with pytest.raises(DataError, match=r"is no neuron: give a list of \(block, number\)"):
        ablate_neurons(
            llama, [A, B] if len(neurons) == 2 and isinstance(neurons[0], list) else [A], 40, neurons
        )


def test_a_patchscope_reads_one_position_and_writes_one(llama):
    with pytest.raises(PositionError, match=r"source_position is \[1, 2\], which is 2 positions"):
        patchscope(llama, A, B, source_position=[1, 2], target_position=-1)  # type: ignore[arg-type]
    with pytest.raises(PositionError, match="target_position is 'all', which is 4 positions"):
        patchscope(llama, A, B, source_position=1, target_position="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [[7], [], [0, -4]])
def test_attribution_refuses_layers_as_a_sweep_does(llama, layers):
    said = []
    for run in (sweep, attribution):
        with pytest.raises(DataError, match="does not exist|No layers were asked for") as error:
            run(llama, A, B, LD, layers=layers)
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "grid", [{"peeks": [99]}, {"peeks": [-1]}, {"waits": []}, {"peeks": []}, {"waits": [2], "peeks": [0, 2]}]
)
def test_a_search_needs_cells(llama, grid):
    with pytest.raises(DataError, match=r"have no cell, or a peek that fits none|peeks \[-1, 0\] cannot be"):
        search(llama, [A, C], [40, 41], n_least=1, **grid)
