"""Prompts to tokens: BOS never doubled, padding never matters, positions absolute, errors that help."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

import workbench as wb
from workbench.errors import MetricError, PositionError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import as_list, from_ids, resolve_positions


def with_bos(family: str = "llama") -> LanguageModel:
    """A model whose tokenizer adds BOS by itself and has a chat template that writes BOS as well."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.chat_template = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}the{% endif %}"
    return LanguageModel(tiny.hf_model(family), tokenizer, name="tiny-bos")


def test_a_text_that_carries_bos_does_not_get_a_second_one():
    model = with_bos()
    plain = model.encode("Mary went to the store")
    assert plain[0] == 1 and plain.count(1) == 1
    assert model.encode("<s> Mary went to the store") == plain


def test_a_chat_has_one_bos_and_ends_where_the_answer_begins():
    model = with_bos()
    ids = model.encode([{"role": "user", "content": "Mary went"}])
    assert ids.count(1) == 1
    assert model.tokenizer.decode(ids).endswith("the")


def test_token_ids_are_taken_as_they_are_even_with_two_bos():
    assert with_bos().encode([1, 1, 5]) == [1, 1, 5]


def test_a_chat_without_a_template_is_an_error():
    with pytest.raises(PromptError, match="no chat template"):
        tiny_model("llama").encode([{"role": "user", "content": "Mary"}])


@pytest.mark.parametrize("prompt", ["", [], [[]]])
def test_an_empty_prompt_is_an_error(prompt):
    with pytest.raises(PromptError, match=r"empty|No prompts"):
        tiny_model("llama").batch(prompt)


def test_a_prompt_longer_than_the_context_is_an_error_that_says_both_lengths():
    with pytest.raises(PromptError, match=r"has 65 tokens, but tiny-gpt2 reads at most 64"):
        tiny_model("gpt2").batch([[5] * 65])


def test_a_token_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(PromptError, match="token id 5000"):
        tiny_model("llama").encode([5, 5000])


def test_the_prompt_that_is_wrong_is_named():
    with pytest.raises(PromptError, match="Prompt 1 is empty"):
        tiny_model("llama").batch(["Mary", ""])


def test_a_metric_token_must_be_one_token():
    model = tiny_model("llama")
    with pytest.raises(MetricError, match=r"is 2 tokens .*\['Mary', 'went'\]"):
        model.token_id("Mary went")
    assert model.token_id("Mary") == model.encode("Mary")[0]


@given(length=st.integers(1, 50), position=st.integers(-80, 80))
def test_positions_count_from_either_end_and_nothing_else(length, position):
    if -length <= position < length:
        assert resolve_positions(position, length) == [list(range(length))[position]]
    else:
        with pytest.raises(PositionError, match=f"outside the prompt of {length} tokens"):
            resolve_positions(position, length)


@pytest.mark.parametrize(
    ("positions", "message"), [("last", "not known"), (1.5, "whole number"), ([], "No positions")]
)
def test_positions_of_another_kind_are_errors(positions, message):
    with pytest.raises(PositionError, match=message):
        resolve_positions(positions, 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_point_at_the_unpadded_tokens(side):
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    batch = from_ids(tiny_model("llama"), rows, side=side)
    for i, row in enumerate(rows):
        assert batch.ids[i, batch.columns(i, range(len(row)))].tolist() == row
    assert batch.mask.sum(1).tolist() == [3, 5]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_logits(model, side):
    rows = [[5, 9, 30], [7, 8, 9, 10, 11, 12]]
    batch = from_ids(model, rows, side=side)
    together = model.forward(batch).logits
    for i, row in enumerate(rows):
        alone = model.forward(from_ids(model, [row])).logits[0]
        assert torch.allclose(together[i, batch.columns(i, range(len(row)))], alone, atol=1e-4)


def test_a_tensor_of_two_axes_is_one_prompt_a_row(llama):
    rows = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert llama.batch(as_list(rows)).ids.tolist() == rows.tolist()
    assert [p.tolist() for p in as_list(torch.tensor([5, 6]))] == [[5, 6]]
    assert wb.steering.generate(llama, rows, max_new_tokens=1).prompts == ((5, 6, 7), (8, 9, 10))
