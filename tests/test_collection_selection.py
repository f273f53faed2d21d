"""Selections: each rule against positions counted by hand, canonical descriptions, errors that name the prompt."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tiny
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from test_collection_contexts import BOS, CHAT, words

from workbench.collection.contexts import contexts
from workbench.collection.items import Item
from workbench.collection.selection import Selection
from workbench.errors import PositionError

PLAIN = tiny_model("llama")
ITEM = Item(
    "p1",
    text="When Mary went to the store Tom gave Mary a drink to",
    answer=" Tom",
    spans={"io": (5, 9), "place": (18, 27), "near": (22, 31)},
)
#         0    1    2    3  4   5     6   7    8    9 10    11  12


def made(item=ITEM, model=PLAIN, **options):
    return next(contexts(model, [item], need_texts=True, **options))


RULES = [
    ("all", list(range(13))),
    ("last", [12]),
    (-2, [11]),
    (np.int64(3), [3]),
    ([3, -1, 3, -10], [3, 12]),
    ("0, -1,2", [0, 2, 12]),
    (np.array([4, 1]), [1, 4]),
    ("span:io", [1]),
    ("span:place", [4, 5]),
    ("answer", [12]),
    ("span:answer", [12]),
    ("match:Mary", [1, 8]),
    ("match:(?i)T[oO]", [3, 5, 6, 11, 12]),  # to, s-to-re, Tom, to, and Tom, the answer
    ("match:Mary (a|went)", [1, 2, 8, 9]),
    ("match:^When ", [0]),
    ("match:x*", []),
    ("token:Tom", [6, 12]),
    ("token:To", []),
    (["span:io", "last", "token:Tom", 0], [0, 1, 6, 12]),
    ([[2, -1, 2]], [2, 12]),
    ([np.array([0, 5])], [0, 5]),
]


@pytest.mark.parametrize(("positions", "expected"), RULES)
def test_each_rule_finds_the_tokens_counted_by_hand(positions, expected):
    found, names = Selection.parse(positions).select(made())
    assert found.dtype == np.int32 and found.tolist() == expected
    spans = {1: "io", 4: "place", 5: "place|near", 6: "near", 12: "answer"}
    assert names == [spans.get(p, "") for p in expected]


def test_special_tokens_are_dropped_by_name_whatever_rule_gave_them():
    context = made(Item("1", text="Mary went </s> to"), BOS)
    assert Selection.parse("all").select(context)[0].tolist() == [0, 1, 2, 3, 4]
    for positions, kept in (("all", [1, 2, 4]), ([0, 1], [1]), ([[0, 3, 4]], [4]), ("token:</s>", [])):
        assert Selection.parse(positions, special="drop").select(context)[0].tolist() == kept


def test_a_role_is_the_tokens_its_messages_said():
    context = made(Item("1", messages=CHAT), BOS)
    for role in ("user", "assistant"):
        expected = [i for i, r in enumerate(context.roles) if r == role]
        assert Selection.parse(f"role:{role}").select(context)[0].tolist() == expected != []


def test_places_count_in_the_prompt_and_rules_reach_into_what_was_written():
    context = made(Item("1", text="Tom gave Mary a drink"))
    for positions, expected in (("last", [2]), (-3, [0]), ("all", [0, 1, 2, 3, 4]), ("token:drink", [4])):
        assert Selection.parse(positions).select(context, n_prompt_tokens=3)[0].tolist() == expected
    with pytest.raises(PositionError, match="outside prompt '1' of 3 tokens"):
        Selection.parse(3).select(context, n_prompt_tokens=3)


@given(words, st.sampled_from(tiny.WORDS[:-4]))
def test_matching_words_is_counting_words(text, word):
    context = made(Item("1", text=text))
    expected = [i for i, w in enumerate(text.split(" ")) if re.search(word, w)]
    assert Selection.parse(f"match:{word}").select(context)[0].tolist() == expected
    exactly = [i for i, w in enumerate(text.split(" ")) if w == word]
    assert Selection.parse(f"token:{word}").select(context)[0].tolist() == exactly


@given(
    st.lists(
        st.sampled_from(["all", "last", -1, 0, 3, "0", "answer", "span:answer", "span:io", "0,3"]), min_size=1
    )
)
def test_equal_selections_describe_themselves_equally(rules):
    here = Selection.parse(rules)
    again = Selection.parse([*reversed(rules), *rules])
    assert here == again and here.describe() == again.describe() == json.loads(json.dumps(here.describe()))
    assert Selection.parse(here.describe()["rules"]) == here
    same = [{"last": -1, "span:answer": "answer", "0,3": 3}.get(r, r) for r in rules]
    assert Selection.parse([*same, 0]).describe() == Selection.parse([*rules, 0]).describe()
    assert Selection.parse(rules, special="drop").describe() != here.describe()
    assert Selection.parse([*rules, 7]).describe() != here.describe()


def test_lists_for_each_prompt_go_by_the_number_of_the_context():
    stream = list(contexts(PLAIN, [Item("a", text="one two three"), Item("b", text="four five")]))
    selection = Selection.parse([[0, 2], (-1,)])
    assert [selection.select(c)[0].tolist() for c in reversed(stream)] == [[1], [0, 2]]
    selection.check_used()
    assert selection.describe() == Selection.parse([[2, 0, 0], [-1]]).describe()
    assert selection.describe() != Selection.parse([[0, 2], [1]]).describe()
    with pytest.raises(PositionError, match=r"1 lists of positions were given, but .* 'b' is number 1"):
        Selection.parse([[0]]).select(stream[1])
    with pytest.raises(PositionError, match="3 lists of positions were given for 2 prompts"):
        many = Selection.parse([[0], [0], [0]])
        _ = [many.select(c) for c in stream]
        many.check_used()


def test_spans_of_split_texts_are_found_where_they_are_and_missing_ones_are_named():
    parts = list(contexts(PLAIN, [ITEM], context=5))
    assert [Selection.parse("span:place").select(c)[0].tolist() for c in parts] == [[4], [0], []]
    with pytest.raises(
        PositionError, match=r"Prompt 'p1#0' has no span 'plce'\. Did you mean 'place'\? Its spans: 'io'"
    ):
        Selection.parse("span:plce").select(parts[0])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("al", r"Positions 'al' are not known\. Did you mean 'all'"),
        ("spam:io", r"'spam:io' are not known\. Did you mean 'span:'"),
        ("span:", r"'span:' are not known"),
        ("match:(", r"'match:\(': not a regular expression: .*position 0"),
        (1.5, r"Position 1\.5 is not a whole number"),
        (True, r"Position True is not a whole number"),
        ([None], r"Position None is not a whole number\. Expected 'all', 'last'"),
        ([], "No positions were asked for"),
        ([[0], []], "Prompt 1: its list of positions is empty"),
        ([[0], "last"], "mix lists with single rules"),
    ],
)
def test_a_rule_that_is_not_known_says_which_are(positions, message):
    with pytest.raises(PositionError, match=message):
        Selection.parse(positions)
    with pytest.raises(
        PositionError, match=r"special is 'dropp'; expected 'keep' or 'drop'\. Did you mean 'drop'"
    ):
        Selection.parse("all", special="dropp")


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (13, r"Position 13 is outside prompt 'p1' of 13 tokens \(0 to 12, or -1 to -13 from its end\)"),
        ([[-14]], r"Position -14 is outside prompt 'p1'"),
        ("role:user", r"Prompt 'p1' has no roles.*not a chat"),
    ],
)
def test_what_a_prompt_lacks_is_said_with_its_name(positions, message):
    with pytest.raises(PositionError, match=message):
        Selection.parse(positions).select(made())


def test_a_prompt_without_answer_or_texts_is_named():
    with pytest.raises(PositionError, match="Prompt 'x' has no answer to read"):
        Selection.parse("answer").select(made(Item("x", text="one")))
    bare = next(contexts(PLAIN, [ITEM]))
    for rule in ("match:Mary", "token:Mary"):
        assert Selection.parse(rule).needs_texts and not Selection.parse("all").needs_texts
        with pytest.raises(PositionError, match=r"Prompt 'p1' was made without the texts.*need_texts=True"):
            Selection.parse(rule).select(bare)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("match:Anna", r"'match:Anna' found no token in any prompt.*\(\?i\)"),
        ("token: Mary", r"'token: Mary' found no token in any prompt.*begin with a space"),
        (
            "role:asistant",
            r"'role:asistant' found no token.*Did you mean 'assistant'\? The roles are assistant, user",
        ),
    ],
)
def test_a_rule_that_matches_nothing_anywhere_is_an_error_at_the_end(rule, message):
    context = made(Item("1", messages=CHAT), BOS) if rule.startswith("role") else made()
    selection = Selection.parse(["all", rule])
    assert len(selection.select(context)[0]) == len(context.ids)  # for one prompt that is no error
    selection.check_used(resumed=True)
    with pytest.raises(PositionError, match=message):
        selection.check_used()


def test_a_rule_that_matches_once_is_no_error_and_nothing_but_special_tokens_is():
    selection = Selection.parse("token:Mary")
    for text in ("one two", "Mary", "three"):
        selection.select(made(Item("1", text=text)))
    selection.check_used()
    nothing = Selection.parse("0", special="drop")
    nothing.select(made(Item("1", text="one"), BOS))
    with pytest.raises(PositionError, match="Not one token was selected"):
        nothing.check_used()
