"""Sources: every way to give prompts gives the same items, files are streamed, and each error says where."""

from __future__ import annotations

import csv
import json
import tracemalloc

import datasets as hugging_face
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from workbench import datasets
from workbench.collection.items import Item
from workbench.collection.sources import open_source
from workbench.errors import DataError

ROWS = [
    {
        "id": "a",
        "text": "Mary went, to the store",
        "answer": " Tom",
        "spans": {"who": [0, 4]},
        "group": "x",
    },
    {"id": "b", "text": 'the "red"\nstore', "spans": {"where": [10, 15]}, "group": "y"},
    {"id": "c", "text": "Paris is in", "answer": " France", "group": "x"},
]
ITEMS = [
    Item("a", text="Mary went, to the store", answer=" Tom", spans={"who": (0, 4)}, labels={"group": "x"}),
    Item("b", text='the "red"\nstore', spans={"where": (10, 15)}, labels={"group": "y"}),
    Item("c", text="Paris is in", answer=" France", labels={"group": "x"}),
]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text", "answer", "spans", "group"])
        writer.writeheader()
        for row in ROWS:
            writer.writerow({**row, "spans": json.dumps(row["spans"]) if "spans" in row else ""})
    return path


def every_kind(folder):
    """The same three rows, in each way they can be given."""
    yield "jsonl", write_jsonl(folder / "a.jsonl")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=2)
    yield "parquet", str(folder / "a.parquet")
    yield "csv", write_csv(folder / "a.csv")
    (folder / "a.json").write_text(json.dumps(ROWS))
    yield "json", folder / "a.json"
    data = hugging_face.Dataset.from_list(ROWS)
    data.save_to_disk(str(folder / "disk"))
    yield "save_to_disk", folder / "disk"
    hugging_face.DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(str(folder / "splits"))
    yield "one split", f"{folder / 'splits'}:test"
    (folder / "files").mkdir()
    write_jsonl(folder / "files" / "part.jsonl")
    yield "folder of files", str(folder / "files")
    yield "in-memory data set", data
    yield "list of rows", ROWS
    yield "data frame", pd.DataFrame(ROWS)
    yield "items", ITEMS
    yield "function", lambda: iter(ROWS)
    yield "generator", (row for row in ROWS)
    records = [datasets.Text(id=r["id"], text=r["text"], group=r["group"], extra={k: r[k] for k in ("answer", "spans") if k in r}) for r in ROWS]  # fmt: skip
    yield "prompt set", datasets.PromptSet("mine", "texts", tuple(records))


def test_every_kind_of_input_gives_the_same_items(tmp_path):
    for kind, given in every_kind(tmp_path):
        assert list(open_source(given)) == ITEMS, kind


def test_every_kind_but_a_generator_can_be_read_again_and_says_its_length(tmp_path):
    for kind, given in every_kind(tmp_path):
        if kind == "generator":
            continue
        source = open_source(given, limit=2)
        assert list(source) == list(source) == ITEMS[:2], kind
        assert source.length in (2, None), kind
    assert open_source(tmp_path / "a.jsonl").length == open_source(tmp_path / "a.parquet").length == 3


def test_texts_ids_and_chats_get_running_numbers_as_ids(tmp_path):
    chat = [{"role": "user", "content": "Hello"}]
    given = [
        "Mary",
        [5, 6],
        chat,
        np.array([7, 8]),
        torch.tensor([9]),
        {"tokens": [1, 2]},
        {"messages": chat},
    ]
    assert list(open_source(given)) == [
        Item("1", text="Mary"),
        Item("2", ids=(5, 6)),
        Item("3", messages=({"role": "user", "content": "Hello"},)),
        Item("4", ids=(7, 8)),
        Item("5", ids=(9,)),
        Item("6", ids=(1, 2)),
        Item("7", messages=({"role": "user", "content": "Hello"},)),
    ]
    lines = tmp_path / "a.txt"
    lines.write_bytes("Mary went\r\n\n  to the\u2028store\n".encode())
    assert [(i.id, i.text) for i in open_source(lines)] == [("1", "Mary went"), ("2", "  to the\u2028store")]
    assert [i.text for i in open_source(lines, txt="file")] == ["Mary went\r\n\n  to the\u2028store\n"]


def test_a_shipped_pair_gives_its_clean_prompt_with_answer_spans_and_the_rest_as_labels():
    pairs = datasets.load("indirect-objects")
    for source in (open_source("indirect-objects"), open_source(pairs)):
        items = list(source)
        assert [i.text for i in items] == pairs.clean and [i.answer for i in items] == pairs.answers
        assert items[0].spans == pairs[0].spans and source.length == len(pairs)
        assert items[0].labels["corrupt"] == pairs.corrupt[0] and "clean" not in items[0].labels
    half = open_source("capitals:test")
    assert 0 < half.length < open_source("capitals").length
    assert next(iter(half)).labels["label"] in ("true", "false")


def test_another_column_can_hold_the_text_and_labels_can_be_chosen():
    rows = [
        {"text": "short", "body": "the long one", "page": 3, "url": "x", "when": pd.Timestamp(2020, 1, 2)}
    ]
    assert next(iter(open_source(rows, text_column="body", labels=["page"]))) == Item(
        "1", text="the long one", labels={"page": 3}
    )
    labels = next(iter(open_source(rows, text_column="body"))).labels
    assert labels == {"text": "short", "page": 3, "url": "x", "when": "2020-01-02T00:00:00"}


def test_rows_with_empty_texts_are_left_out_only_on_request():
    rows = ["one", " \n", {"text": None}, "two"]
    with pytest.raises(DataError, match=r"Prompt 2 of the list: the text is empty.*skip_empty"):
        list(open_source(rows))
    source = open_source(rows, skip_empty=True)
    assert [(i.id, i.text) for i in source] == [("1", "one"), ("4", "two")] and source.skipped == 2
    with pytest.raises(DataError, match="all of its 2 rows are empty"):
        list(open_source(["", " "], skip_empty=True))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "parquet"])
def test_a_long_file_is_never_held_whole(tmp_path, ending):
    path = tmp_path / f"long.{ending}"
    rows = 100_000 if ending == "jsonl" else 25_000
    line = "Mary went to the store and gave Tom a drink of the red blue green one " * 4
    if ending == "parquet":
        with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="none") as file:
            for _ in range(rows // 1000):
                file.write_table(pa.table({"text": [line] * 1000}))
    else:
        row = json.dumps({"text": line}) if ending == "jsonl" else line
        head = "text\n" if ending == "csv" else ""
        path.write_text(head + (row + "\n") * rows)
    tracemalloc.start()
    before, arrow = pa.total_allocated_bytes(), 0  # arrow's memory is not Python's
    n = 0
    for n, _ in enumerate(open_source(path), start=1):
        arrow = max(arrow, pa.total_allocated_bytes() - before) if n % 1000 == 0 else arrow
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == rows
    assert peak + arrow < 2 * 2**20  # the texts are 28 MB, or 7 MB


def test_a_generator_is_read_no_further_than_asked_and_not_twice():
    taken = []
    source = open_source((taken.append(i) or f"w{i}" for i in range(1000)), limit=5)
    iterator = iter(source)
    next(iterator)
    assert taken == [0]
    assert len(list(iterator)) == 4 and len(taken) == 5
    with pytest.raises(DataError, match=r"a generator has been read already.*a list, or a function"):
        list(source)


def test_a_description_tells_contents_apart(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl")
    before = open_source(path).describe()
    assert json.loads(json.dumps(before)) == before == open_source(path).describe()
    path.write_text(path.read_text().replace("Mary", "Anna"))
    assert open_source(path).describe() != before
    assert open_source(["a"]).describe() != open_source(["b"]).describe()
    assert open_source("capitals").describe() != open_source("capitals:test").describe()


ERRORS = [
    ("bad.jsonl", '{"text": "one"}\n{"text": \n', r"bad\.jsonl line 2, column \d+: not valid JSON"),
    ("type.jsonl", '{"text": "one"}\n\n{"text": 3}\n', r"type\.jsonl line 3: 'text' is a int; expected text"),
    ("number.jsonl", "7\n", r"number\.jsonl line 1: a int; expected a text, a row"),
    ("name.jsonl", '{"txet": "one"}\n', r"line 1: 'text' is missing; .*'txet'.*Did you mean 'txet'.*text_column"),
    ("empty.jsonl", "\n\n", r"empty\.jsonl has no prompt in it"),
    ("none.csv", "", r"none\.csv has no prompt"),
    ("cells.csv", "text,id\none,1\ntwo\n", r"cells\.csv line 3: 1 cells, but the first row names 2 columns"),
    ("tall.csv", 'text,id\n"one\ntwo",1\nthree\n', r"tall\.csv line 4: 1 cells"),
    ("spans.csv", 'text,spans\none,"{"\n', r"spans\.csv line 2, column 'spans', column 2: not valid JSON"),
    ("head.csv", "text,text\n", r"head\.csv line 1: the first row must name every column"),
    ("quote.csv", 'text\n"one', r"quote\.csv line 2: not valid CSV"),
    ("big.csv", "text\n" + "x" * 140_000, r"big\.csv line 2: .*field limit.*\.jsonl file takes texts of any length"),
    ("bytes.txt", b"one\n\xff\n", r"bytes\.txt line 2: not UTF-8"),
    ("no.parquet", "PAR0", r"no\.parquet: not a Parquet file"),
    ("a.docx", "one", r"cannot read \.docx; the endings read are \.jsonl, \.parquet"),
    ("span.jsonl", '{"text": "one", "spans": {"a": [2, 9]}}', r"line 1: span 'a' is \[2, 9\], but the text has 3"),
    ("span.jsonl", '{"text": "one", "spans": {"a": [2]}}', r"span 'a' is \[2\]; expected \{\"name\": \[start, end\]"),
    ("span.jsonl", '{"text": "one", "spans": {"a|b": [0, 1]}}', r"cannot be called 'a\|b'"),
    ("ids.jsonl", '{"ids": [1, "x"]}', r"line 1: 'x' is no token id"),
    ("chat.jsonl", '{"messages": [{"role": "user"}]}', r"message \{'role': 'user'\} cannot be read"),
    ("answer.jsonl", '{"text": "one", "answer": ["x"]}', r"'answer' is a list; expected text"),
    ("id.jsonl", '{"text": "one", "id": [1]}', r"'id' is a list"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), ERRORS)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        list(open_source(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl: there is no such file"),
        ("capitols", r"no file, folder or prompt set 'capitols'\. Did you mean 'capitals'"),
        ("capitals:tset", "no split 'tset'"),
        (
            "org/name:train",
            r"'org/name:train' is no file, folder or prompt set here.*connection \(HF_HUB_OFFLINE\)",
        ),
        ({"text": "one"}, "A dict is no source of prompts"),
        (7, "A int is no source"),
        ([5, 6, 7], r"Prompt 1 of the list: a int; .*\[\[5, 6, 7\]\]"),
        ([{"role": "user", "content": "x"}], r"a single message; .*\[\[message"),
        ([[]], "an empty list"),
        ([], "a list has no prompt in it"),
        ([Item("1")], "exactly one of text, messages and ids; 0 are given"),
        ([Item("1", ids=(1,), spans={"a": (0, 1)})], "'spans' count characters of a text"),
        ([{"text": "one", "image": b"x"}], r"'image' is a bytes, .*labels=\[\.\.\.\]"),
        (lambda: 3, "a function gave a int"),
    ],
)
def test_what_cannot_be_a_source_says_what_can(given, message):
    with pytest.raises(DataError, match=message):
        list(open_source(given))


def test_options_and_splits_are_checked(tmp_path):
    for options, message in (({"limit": 0}, "limit is 0"), ({"txt": "words"}, "txt is 'words'")):
        with pytest.raises(DataError, match=message):
            open_source(["one"], **options)
    data = hugging_face.Dataset.from_list(ROWS)
    hugging_face.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "d"))
    data.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "nothing").mkdir()
    for name, message in (
        ("d", r"has the splits train, test: choose one, for instance '.*d:train'"),
        ("d:tset", r"no split 'tset'\. Did you mean 'test'"),
        ("one:train", "has no splits"),
        ("nothing", "not a folder of data"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / name))
