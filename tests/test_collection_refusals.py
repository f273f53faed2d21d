"""Requests and data that cannot be used: one clear error, before anything is written or before rows are stored."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from conftest import tiny_model
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.main import app
from workbench.collection.contexts import contexts
from workbench.collection.fields import item_of
from workbench.collection.generation import Generation
from workbench.collection.items import Item
from workbench.collection.request import Request
from workbench.collection.sources import open_source
from workbench.collection.to_store import collect_to
from workbench.errors import DataError, PositionError, PromptError, SiteError, WorkbenchError
from workbench.model.language_model import LanguageModel
from workbench.organisms.tokenizer import word_tokenizer

SITE = "blocks.1.hook_resid_post"
LLAMA = tiny_model("llama")


@pytest.mark.parametrize(
    "given", [["last"], "last", [0.5], 0.5, None, True, [True], [[0], 1], [[0.5]], np.array([0.5]), {"a": 1}]
)
def test_positions_that_are_no_indices(given):
    with pytest.raises(PositionError):
        wb.collect(LLAMA, ["Mary went to"], SITE, given)


@pytest.mark.parametrize(
    "given",
    [
        np.array([[0, 2]]),
        [np.array([0, 2])],
        np.array([0, 2]),
        torch.tensor([0, 2]),
        (0, 2),
        [np.int64(0), torch.tensor(2)],
        range(0, 3, 2),
    ],
)
def test_positions_may_be_arrays(given):
    assert wb.collect(LLAMA, ["Mary went to"], SITE, given).position.tolist() == [0, 2]


@pytest.mark.parametrize(
    "asked",
    [
        {"rows_per_shard": 4.0}, {"rows_per_shard": 0}, {"rows_per_shard": 10**12}, {"limit": "3"}, {"limit": 0},
        {"context": "8"}, {"context": 0}, {"overlap": "1"}, {"overlap": -1}, {"special": None}, {"special": "drp"},
        {"tokens_per_batch": True}, {"pack": "yes"}, {"strict": 1}, {"generate": 5}, {"sites": 3}, {"sites": [3]},
        {"dtype": None},
    ],
)  # fmt: skip
def test_settings_of_the_wrong_kind_write_nothing(tmp_path, asked):
    with pytest.raises(WorkbenchError, match="expected|[Gg]ive|cannot be stored"):
        collect_to(tmp_path / "s", LLAMA, ["Mary went"], **{"sites": SITE, **asked})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "asked",
    [
        {"max_new_tokens": "4"},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"temperature": -1},
        {"seed": 1.5},
        {"prompt_rows": "all"},
    ],
)
def test_settings_of_a_generation(asked):
    with pytest.raises(DataError, match="Generation"):
        Generation(**asked)


def test_whole_numbers_of_arrays_are_whole_numbers(tmp_path):
    n = np.int64(2)
    how = Generation(n, temperature=np.float32(0.5), seed=n)
    store = collect_to(tmp_path / "s", LLAMA, ["Mary"] * 3, SITE, limit=n, rows_per_shard=n, generate=how)
    assert store.manifest.n_prompts == 2 and store.manifest.settings["generate"]["seed"] == 2


def test_sites_may_come_from_a_generator(tmp_path):
    names = [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    assert collect_to(tmp_path / "s", LLAMA, ["Mary went"], (name for name in names)).sites == names
    assert Request(sites=iter(names)) == Request(sites=names)
    with pytest.raises(SiteError, match="No sites"):
        collect_to(tmp_path / "t", LLAMA, ["Mary went"], iter(()))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "Mary \ud83d"}, "text"), ({"text": "Mary", "id": "a\ud83d"}, "id"),
        ({"text": "Mary", "answer": "\udc00"}, "answer"), ({"text": "Mary", "note": ["\ud83d"]}, "labels"),
        ({"text": "Mary", "spans": {"\ud83d": [0, 4]}}, "spans"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages"),
    ],
)  # fmt: skip
def test_half_a_character_is_named_with_line_and_field(tmp_path, row, name):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "Mary 😀"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"a.jsonl line 2: '{name}' of prompt .* half of a character"):
        list(open_source(file))


def test_a_text_given_as_data_is_no_file():
    for text in ("Mary went to the store and " * 20, "a\0b", "x" * 5000 + ".txt", "x" * 300 + ":test"):
        with pytest.raises(DataError, match="there is no|There is no"):
            open_source(text)


def test_a_word_that_a_word_level_tokenizer_lacks(tmp_path):
    words = LanguageModel(
        tiny.hf_model("llama"), word_tokenizer(["cat", "sat", *(f"x{i}" for i in range(90))]), name="words"
    )
    with pytest.raises(PromptError, match=r"Prompt '2' has the word 'zebra', which words does not know"):
        collect_to(tmp_path / "s", words, ["cat sat", "cat zebra"], SITE)
    with pytest.raises(PromptError, match=r"Prompt 'q' has the word 'zebra'"):
        collect_to(tmp_path / "t", words, [{"id": "q", "text": "cat", "answer": " zebra"}], SITE)


@pytest.mark.parametrize(
    "asked", [{"generate": Generation(4)}, {"positions": "match:a"}, {"positions": "token:a"}]
)
def test_without_a_tokenizer_texts_are_not_known(tmp_path, asked):
    bare = LanguageModel(tiny.hf_model("llama"), None, name="bare")
    with pytest.raises(PromptError, match="bare has no tokenizer"):
        collect_to(tmp_path / "s", bare, [[5, 6, 7]], SITE, **asked)
    assert not (tmp_path / "s").exists()
    with pytest.raises(PromptError, match="bare has no tokenizer"):
        contexts(bare, [Item("1", ids=(5,))], need_texts=True)


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "[" * 100_000 + "]" * 100_000, '{"text": "a", "deep": ' + "[" * 900 + "]" * 900 + "}"],
)
def test_numbers_too_long_and_lists_too_deep_are_named_by_line(tmp_path, value):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "Mary"}\n' + value + "\n")
    try:
        items = list(open_source(file))
    except DataError as error:
        assert "a.jsonl line 2" in str(error)
    else:
        assert len(items) == 2 and "deep" in items[1].labels
    whole = tmp_path / "a.json"
    whole.write_text('[{"text": "Mary"}, ' + value + "]")
    with suppress(DataError):
        assert len(list(open_source(whole))) == 2


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (Item(5, text="Mary"), "id"), (Item("1", text=5), "text"), (Item("1", text="a", answer=3), "answer"),
        (Item("1", ids=5), "token ids"), (Item("1", ids=("a",)), "token id"), (Item("1", messages=({},)), "message"),
        (Item("1", text="Mary", spans={"a": 3}), "span"), (Item("1", text="Mary", labels=[3]), "labels"),
        (Item("1", text="Mary", labels={"a": object()}), "label"),
    ],
)  # fmt: skip
def test_items_with_fields_of_the_wrong_kind(item, what):
    with pytest.raises(DataError, match=f"Prompt 1 of the list: .*{what}.*"):
        list(open_source([item]))


def test_numbers_of_arrays_and_tables_are_numbers():
    def read(value):
        return item_of(value, number=1, where="row 1")

    assert read({"text": "a", "id": np.int64(7)}).id == read({"text": "a", "id": 7.0}).id == "7"
    assert read({"text": "a", "answer": np.int64(3)}).answer == "3"
    assert read({"text": "a", "answer": np.float32(0.5)}).answer == "0.5"
    for ids in ([np.int64(3), np.int32(4)], [3.0, 4.0], np.array([3.0, 4.0]), torch.tensor([3, 4])):
        assert read(ids).ids == read({"ids": ids}).ids == (3, 4)
    table = pd.DataFrame({"ids": [[3, 4]], "id": [float("nan")]})
    assert next(iter(open_source(table))).ids == (3, 4)
    for wrong in ([3.5], [True], [np.float64(3.5)], ["3"]):
        with pytest.raises(DataError, match="is no token id") as raised:
            read({"ids": wrong})
        assert "np." not in str(raised.value)
    with pytest.raises(DataError, match="'id' is a bool"):
        read({"text": "a", "id": np.bool_(True)})


def test_a_label_called_generated_is_not_overwritten(tmp_path):
    data = [{"text": "John"}, {"id": "q", "text": "Mary went", "generated": "by hand"}]
    assert len(collect_to(tmp_path / "s", LLAMA, data, SITE)) == 3
    with pytest.raises(DataError, match=r"Prompt 'q' has a label 'generated'"):
        collect_to(tmp_path / "t", LLAMA, data, SITE, generate=Generation(2))


def run(*options: str):
    return CliRunner().invoke(app, ["collect", *options])


@pytest.mark.parametrize("option", [
    ["--special", "drop"], ["--context", "2"], ["--rows-dtype", "bfloat16"], ["--generate", "4"], ["--strict"], ["--fresh"],
    ["--overlap", "1"], ["--pack"], ["--text-column", "body"], ["--engine", "ray"], ["--seed", "3"], ["--workers", "2"],
    ["--rows-per-shard", "5"], ["--tokens-per-batch", "9"], ["--temperature", "1"], ["--device-map", "auto"],
])  # fmt: skip
def test_one_file_refuses_the_options_of_a_store(tmp_path, option):
    done = run("capitals", "--out", str(tmp_path / "a.safetensors"), "--model", "no-such-model", *option)
    assert isinstance(done.exception, DataError) and option[0] in str(done.exception)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--seed", "3"],
        ["--temperature", "1"],
        ["--workers", "2"],
        ["--address", "auto"],
        ["--gpus-per-worker", "1"],
    ],
)
def test_a_store_refuses_options_without_effect(tmp_path, option):
    done = run("capitals", "--out", str(tmp_path / "s"), "--model", "no-such-model", *option)
    assert isinstance(done.exception, DataError) and option[0] in str(done.exception)
