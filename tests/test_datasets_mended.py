"""Prompt files with odd contents, options that are checked, organisms whose splits and folders are what they say."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_organism import Small

from workbench import organisms
from workbench.datasets import PromptSet, Text, load
from workbench.errors import DataError, ModelError
from workbench.organisms import shipped
from workbench.organisms.chain_programs import Line, Program
from workbench.organisms.training import snapshots_of, train


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "cut \\ud83d"}\n', "line 2"),
        ("a.json", '["a", "cut \\uD83D"]', "record 2"),
        ("a.jsonl", '{"text": "a", "tags": ["\\ude00"]}\n', "line 1"),
    ],
)
def test_a_text_that_was_cut_inside_an_emoji_is_refused_where_it_stands(name, text, place, tmp_path):
    with pytest.raises(DataError, match=rf"{place}: holds half a character, '\\ud"):
        load(written(tmp_path, name, text))


def test_a_whole_emoji_written_as_two_escapes_is_read(tmp_path):
    prompts = load(written(tmp_path, "a.jsonl", '{"text": "\\ud83d\\ude00"}\n'))
    assert prompts.texts == ["😀"] and len(prompts.fingerprint) == 64


def test_nan_in_json_is_a_field_that_is_not_there(tmp_path):
    rows = '{"text": "a", "label": "x", "group": "g", "negated": NaN}\n{"text": "b", "label": "x", "group": NaN}\n'
    prompts = load(written(tmp_path, "a.jsonl", rows))
    assert prompts.column("group") == ["g", None] and "negated" not in prompts.field_names
    with pytest.raises(DataError, match="1 of the 2 records of 'a.jsonl' have no 'group'"):
        _ = prompts.groups
    for field, record in (("label", '{"text": "a", "label": NaN}'), ("text", '{"text": NaN}')):
        with pytest.raises(DataError, match=f"line 1: '{field}' is empty"):
            load(written(tmp_path, "b.jsonl", record))


def test_an_answer_may_be_a_line_break_or_a_space(tmp_path):
    record = {"clean": "a", "corrupt": "b", "answer": "\n", "wrong_answer": " "}
    prompts = load(written(tmp_path, "a.jsonl", json.dumps(record)))
    assert (prompts.answers, prompts.wrong_answers) == (["\n"], [" "])
    record["answer"] = ""
    with pytest.raises(DataError, match="have no 'answer'"):
        _ = load(written(tmp_path, "a.jsonl", json.dumps(record))).answers


def test_the_line_is_said_also_where_a_folder_is_called_line(tmp_path):
    with pytest.raises(DataError, match=r"x\.json line 3, column 1: not valid JSON"):
        load(written(tmp_path, "my line up/x.json", '[\n"a",\n]'))


def test_a_number_too_long_to_read_is_said_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl line 1: cannot be read as JSON: Exceeds the limit"):
        load(written(tmp_path, "a.jsonl", '{"text": "a", "n": ' + "1" * 5000 + "}"))


def test_a_long_document_in_a_csv_cell_is_read(tmp_path):
    text = ("word " * 40_000).strip()
    assert load(written(tmp_path, "a.csv", f'text\n"{text}"\n')).texts == [text]


def test_a_file_that_may_not_be_read_is_a_data_error(tmp_path, monkeypatch):
    path = written(tmp_path, "a.txt", "a\n")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        load(path)


# -- selecting -----------------------------------------------------------------------------------------------


def test_a_field_of_lists_is_filtered_or_says_how(tmp_path):
    pairs = load("two-hop", limit=12)
    with pytest.raises(DataError, match=r"differs='first'.*inside a list: differs=\[\['"):
        pairs.filter(differs="first")
    kept = pairs.filter(differs=[["first"]])
    assert 0 < len(kept) < 12 and all(differs == ["first"] for differs in kept.column("differs"))


def test_records_are_found_by_id_without_going_through_all_of_them():
    class Counted(Text):
        reads = 0

        def __getattribute__(self, name):
            Counted.reads += name == "id"
            return super().__getattribute__(name)

    prompts = PromptSet("many", "texts", tuple(Counted(id=str(i), text=f"t{i}") for i in range(200)))
    Counted.reads = 0
    assert [prompts[str(i)].id for i in range(200)] == prompts.column("id")
    assert Counted.reads <= 1000  # 40,000 where every look-up makes the table anew


@pytest.mark.parametrize("name", ["capitals", "two-hop"])
def test_limit_and_seed_are_whole_numbers(name):
    for options, said in (({"limit": 2.5}, "limit is 2.5"), ({"limit": 2, "seed": 1.5}, "seed is 1.5")):
        with pytest.raises(DataError, match=f"{said}; expected a whole number"):
            load(name, **options)  # type: ignore[arg-type]


# -- organisms -----------------------------------------------------------------------------------------------


def test_an_organism_refuses_a_negative_seed():
    with pytest.raises(DataError, match="seed is -1; a model organism takes whole numbers from 0"):
        load("two-hop", limit=4, seed=-1)


@pytest.mark.parametrize("name", organisms.names())
def test_the_split_called_test_is_not_taken_for_the_training_part(name):
    with pytest.raises(
        DataError, match="no split 'test' of a model organism; expected 'train' or 'held_out'"
    ):
        organisms.get(name).problems(4, split="test")  # type: ignore[arg-type]


def test_a_word_that_is_not_in_the_vocabulary_is_named():
    with pytest.raises(DataError, match="'400' is no word of addition.*'<start>' to '198'"):
        organisms.get("addition").ids(["1", "400"])


@pytest.mark.parametrize("n", [4, 9, 30])
def test_half_of_the_mazes_are_spanning_trees_also_among_the_first(n):
    kinds = organisms.get("mazes-5x5").problems(n, split="train").column("maze_kind")
    assert Counter(kinds) == {"spanning-tree": (n + 1) // 2, "percolation": n // 2}
    changes = sum(a != b for a, b in pairwise(kinds))
    assert n < 30 or changes > 5  # mixed, not one kind after the other


@pytest.mark.parametrize(
    ("lines", "asked", "said"),
    [
        ((Line("a", 1), Line("a", 2, "a", "+")), "a", "'a' is set twice"),
        ((Line("a", 1), Line("b", 2, "c", "+")), "b", "'b' is worked out from 'c', which is not set before"),
        ((Line("a", 1), Line("b", 2, "a", "/")), "b", "sign '/' is not known"),
        ((Line("a", 1),), "b", "'b' is asked for, but the program sets a only"),
    ],
)
def test_a_program_that_cannot_be_worked_out_is_refused(lines, asked, said):
    with pytest.raises(DataError, match=said):
        Program(lines, asked)  # of the first, `necessary` never ended


def test_training_and_writing_do_not_replace_a_folder_of_other_things(tmp_path):
    trained = train(Small(), steps=1)
    for write in (
        lambda folder: train(Small(), folder=folder, steps=1),
        lambda folder: shipped.write(Small(), trained, seed=0, target=folder),
    ):
        mine = written(tmp_path, "mine/thesis.txt", "years")
        with pytest.raises(ModelError, match="mine holds other things and would be replaced"):
            write(mine.parent)
        with pytest.raises(ModelError, match=r"thesis\.txt is a file"):
            write(mine)
        assert mine.read_text() == "years"
        empty = tmp_path / f"empty-{id(write)}"
        empty.mkdir()
        for _ in range(2):  # an empty folder, and one's own, may be replaced
            write(empty)


def test_snapshots_of_an_earlier_training_do_not_go_along(tmp_path):
    left = snapshots_of(tmp_path / "work")
    train(Small(), seed=1, folder=tmp_path / "other")
    snapshots_of(tmp_path / "other").rename(left)
    trained = train(Small(), seed=2, folder=tmp_path / "work", steps=15)
    assert len(list(left.iterdir())) == 3
    shipped.write(Small(), trained, seed=2, target=tmp_path / "model", snapshots=left)
    kept = sorted(path.name for path in (tmp_path / "model" / "snapshots").iterdir())
    assert kept == ["step-00000.safetensors", "step-00010.safetensors"]
