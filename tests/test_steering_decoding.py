"""Decoding and settings are what is asked for, whatever a model's generation config says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

import workbench as wb
from workbench.errors import DataError, PromptError
from workbench.steering import Windows
from workbench.steering.operations import numbers

PROMPT = [5, 6, 7]
ASKS = {
    "suppress_tokens": [27],
    "begin_suppress_tokens": [27],
    "bad_words_ids": [[27], [11]],
    "sequence_bias": [[[27], -100.0]],
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "forced_eos_token_id": 2,
    "forced_bos_token_id": 9,
    "exponential_decay_length_penalty": (1, 50.0),
    "guidance_scale": 3.0,
    "max_time": 1e-4,
    "stop_strings": ["the"],
    "min_length": 30,
    "do_sample": True,
    "top_k": 1,
    "temperature": 9.0,
    "num_beams": 3,
    "return_dict_in_generate": True,
    "token_healing": True,
    "penalty_alpha": 0.5,
    "max_length": 4,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def greedy(model, n):
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(n):
            logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[2] = -torch.inf
            ids.append(int(logits.argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ASKS)
def test_what_a_generation_config_asks_for_besides_is_off(model, name, monkeypatch):
    plain = greedy(model, 6)
    monkeypatch.setattr(model.hf.generation_config, name, ASKS[name], raising=False)
    said = wb.steering.generate(model, [PROMPT], max_new_tokens=6, stop_at_end=False)
    assert list(said.tokens[0]) == plain


def test_a_text_is_one_number_and_so_is_a_tensor_without_dimensions():
    assert numbers("12", "strength") == (12.0,)  # not 1 and 2
    assert numbers(torch.tensor(8.0), "strength") == (8.0,) == numbers(np.float32(8), "strength")
    assert numbers(torch.tensor([8.0, 9.0]), "strength") == (8.0, 9.0)
    with pytest.raises(DataError, match="give a number"):
        numbers("much", "strength")


@pytest.mark.parametrize("windows", [[(1.7, 3.2)], [(True, 3)], [(3, 3)], [(-1, 2)], []])
def test_windows_are_pairs_of_whole_numbers(windows):
    with pytest.raises(DataError, match="whole numbers"):
        Windows(windows)


def test_the_last_new_token_is_not_read_again_so_one_more_fits(model):
    long = [5] * (model.context_length - 4)
    assert len(wb.steering.generate(model, [long], max_new_tokens=5, stop_at_end=False).tokens[0]) == 5
    with pytest.raises(PromptError, match="at most 5 new tokens"):
        wb.steering.generate(model, [long], max_new_tokens=6)
