"""Contexts: tokens as `model.encode` gives them, spans and roles where the characters are, nothing lost in cutting."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import tiny
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from workbench.collection.contexts import contexts
from workbench.collection.encoding import Encoder
from workbench.collection.items import Item
from workbench.collection.sources import open_source
from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.offsets import spell

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} one {{ m.role }} {{ m.content | trim }} two{% endfor %}"
    "{% if add_generation_prompt %} one{% endif %}"
)
CHAT = (
    {"role": "user", "content": "Mary went to the user store"},
    {"role": "assistant", "content": " Tom "},
    {"role": "user", "content": "user"},
)


def with_bos(*, ending: bool = False, **overrides) -> LanguageModel:
    """A model whose tokenizer puts BOS before a text (and EOS behind it), with a chat template that writes BOS."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if ending else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.chat_template = TEMPLATE
    return LanguageModel(tiny.hf_model("llama", **overrides), tokenizer, name="tiny-bos")


PLAIN, BOS = tiny_model("llama"), with_bos()
words = st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=25).map(" ".join)


def test_tokens_are_those_of_encode_however_many_at_a_time():
    texts = ["Mary went to the store", "<s> <s> Mary", "w1   w2", "Tom"] * 100
    given: list[Item] = list(open_source([*texts, list(CHAT), [1, 1, 5]]))
    for model in (BOS, with_bos(ending=True)):
        made = list(contexts(model, given))
        assert [list(c.ids) for c in made] == [model.encode(i.text or i.messages or i.ids) for i in given]
        assert [c.id for c in made] == [i.id for i in given] and [c.number for c in made] == list(range(402))
        single = [c for item in given[:5] for c in contexts(model, [item], need_texts=True)]
        together = contexts(model, given[:5], need_texts=True)
        assert [replace(c, number=0) for c in together] == single


@given(words, st.integers(0, 30), st.integers(1, 12), st.booleans())
def test_a_span_is_the_tokens_whose_characters_overlap_it(text, start, length, bos):
    start = min(start, len(text) - 1)
    end = min(start + length, len(text))
    model = BOS if bos else PLAIN
    item = Item("1", text=text, spans={"it": (start, end)})
    expected, at = [], 0
    for n, word in enumerate(text.split(" ")):  # by hand: each word is a token
        if at < end and at + len(word) > start:
            expected.append(n + bos)
        at += len(word) + 1
    if not expected:
        with pytest.raises(PromptError, match="for which there is no token"):
            list(contexts(model, [item]))
        return
    assert list(next(contexts(model, [item])).spans["it"]) == expected


@given(words, st.integers(2, 12), st.data())
def test_split_texts_join_to_the_whole_again(text, n, data):
    for model, bos in ((PLAIN, 0), (BOS, 1)):
        overlap = data.draw(st.integers(0, n - bos - 1))
        item = Item("doc", text=text, labels={"page": 3}, spans={"first": (0, 1)})
        whole = next(contexts(model, [item], need_texts=True))
        parts = list(contexts(model, [item], context=n, overlap=overlap, need_texts=True))
        assert all(len(p.ids) == n for p in parts[:-1]) and 0 < len(parts[-1].ids) <= n
        assert all(p.labels == {"page": 3} and p.ids[:bos] == (1,) * bos for p in parts)
        if len(parts) == 1:
            assert parts == [whole]
            continue
        assert [p.id for p in parts] == [f"doc#{k}" for k in range(len(parts))]
        seen: list[int] = []
        for k, part in enumerate(parts):
            body = list(part.ids[bos:])
            assert k == 0 or seen[len(seen) - overlap :] == body[:overlap]
            assert k == 0 or len(body) > overlap
            seen += body[overlap if k else 0 :]
            assert part.texts == tuple(model.tokenizer.decode([i]) for i in part.ids)
            written = [part.text[a:b].strip() for a, b in part.offsets[bos:]]
            assert written == list(part.texts[bos:])
        assert tuple(seen) == whole.ids[bos:]
        assert [p.spans["first"] for p in parts] == [(bos,), *[()] * (len(parts) - 1)]
        assert all(p.special == tuple(range(bos)) for p in parts)


@given(st.lists(words, min_size=1, max_size=6), st.integers(2, 20))
def test_packing_keeps_every_token_once_and_in_order(texts, n):
    for model, bos in ((PLAIN, 0), (BOS, 1)):
        items = [Item(f"t{i}", text=t, spans={"first": (0, 1)}) for i, t in enumerate(texts)]
        packed = list(contexts(model, items, context=n, pack=True, need_texts=True))
        assert all(len(c.ids) == n for c in packed[:-1]) and 0 < len(packed[-1].ids) <= n
        joined = [token for c in packed for token in c.ids[bos:]]
        expected: list[int] = []
        for text in texts:
            expected += ([2] if expected else []) + PLAIN.encode(text)
        assert joined == expected
        begins = [c.ids[c.spans["first"][k]] for c in packed for k in range(len(c.spans.get("first", ())))]
        assert begins == [PLAIN.encode(t)[0] for t in texts]
        for c in packed:
            known = dict(zip(c.labels["sources"], c.labels["starts"], strict=True))
            assert list(known.values()) == sorted(known.values()) and all(
                c.ids[p] != 2 for p in known.values()
            )
            assert list(c.special) == [i for i, token in enumerate(c.ids) if token in (1, 2)]
            assert [c.text[a:b].strip() for a, b in c.offsets[bos:]] == list(c.texts[bos:])
        assert sorted({s for c in packed for s in c.labels["sources"]}) == sorted(i.id for i in items)


def test_packed_texts_are_separated_by_bos_where_there_is_no_eos():
    model = with_bos()
    model.tokenizer.eos_token = None
    made = contexts(model, list(open_source(["one two", "three", "four five"])), context=4, pack=True)
    one, two, three, four, five = (model.encode(w)[1] for w in ("one", "two", "three", "four", "five"))
    assert [c.ids for c in made] == [(1, one, two, 1), (1, three, 1, four), (1, five)]
    assert next(contexts(model, list(open_source(["one"])), pack=True)).ids == (1, one)


def test_an_answer_is_tokenised_with_its_text_where_the_text_keeps_its_tokens():
    for model in (PLAIN, BOS, with_bos(ending=True)):
        made = next(contexts(model, [Item("1", text="Paris is in", answer=" France")]))
        assert list(made.ids) == [i for i in model.encode("Paris is in France") if i != 2]
        assert made.spans == {"answer": (len(made.ids) - 1,)} and made.labels == {"answer": " France"}
        apart = next(contexts(model, [Item("1", text="Paris is in", answer="France Rome")], need_texts=True))
        begin = [i for i in model.encode("Paris is in") if i != 2]  # "inFrance" is another word
        assert list(apart.ids) == begin + PLAIN.encode("France Rome")
        assert apart.spans["answer"] == (len(begin), len(begin) + 1)
        assert apart.text[slice(*apart.offsets[-1])] == "Rome"
        only = next(contexts(model, [Item("1", text="Paris is in", answer=" France")], answers=False))
        assert list(only.ids) == model.encode("Paris is in")
        assert only.spans == {} and only.labels == {"answer": " France"}
    ids = next(contexts(PLAIN, [Item("1", ids=(5, 6), answer="France")]))
    assert ids.ids == (5, 6, *PLAIN.encode("France")) and ids.spans == {"answer": (2,)}


def test_each_token_of_a_chat_has_the_role_of_the_message_it_was_said_in():
    made = next(contexts(BOS, [Item("1", messages=CHAT, answer=" the red")]))
    spelled = (
        "<s> one user Mary went to the user store two one assistant Tom two one user user two one the red"
    )
    assert list(made.ids) == BOS.tokenizer(spelled, add_special_tokens=False)["input_ids"]
    u, a, t = "user", "assistant", ""
    assert list(made.roles) == [t, t, t, u, u, u, u, u, u, t, t, t, a, t, t, t, u, t, t, a, a]
    prefilled = next(contexts(BOS, [Item("1", messages=CHAT[:2])]))
    assert list(prefilled.ids) == BOS.encode(list(CHAT[:2])) and prefilled.roles[-1] == "assistant"
    cut = list(contexts(BOS, [Item("1", messages=CHAT)], context=5))
    assert [r for c in cut for r in c.roles[1:]] == list(made.roles[1:-2])
    mixed = next(contexts(BOS, [Item("1", text="red"), Item("2", messages=CHAT)], pack=True))
    assert list(mixed.roles[3:]) == list(made.roles[1:-2])


def test_a_template_that_changes_what_is_said_gives_no_roles_rather_than_wrong_ones():
    model = with_bos()
    model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content | replace('red', 'blue') }} {% endfor %}"
    )
    assert next(contexts(model, [Item("1", messages=({"role": "user", "content": "red"},))])).roles is None
    assert next(contexts(model, [Item("1", messages=({"role": "user", "content": "one"},))])).roles == (
        "user",
    )
    model.tokenizer.chat_template = "{{ messages[0].content | length }} {{ messages[0].content }}"
    assert next(contexts(model, [Item("1", messages=({"role": "user", "content": "seven"},))])).roles is None


def test_token_ids_are_spelled_as_their_text_would_be():
    text = "Mary  went to the store ."
    ids = BOS.encode(text)
    spelled = next(contexts(BOS, [Item("1", ids=tuple(ids))], need_texts=True))
    assert spelled.text == "Mary went to the store ." and spelled.offsets[0] == (0, 0)
    assert [spelled.text[a:b].strip() for a, b in spelled.offsets] == ["", *spelled.texts[1:]]


@pytest.mark.real_model
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("aé 🎉\n漢the.,'ñ"), min_size=1, max_size=30), data=st.data())
def test_spans_and_spelling_on_a_byte_level_tokenizer(smollm2, text, data):
    tokenizer = smollm2.tokenizer
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    item = Item("1", text=text, spans={"it": (start, end)})
    made = next(contexts(smollm2, [item], need_texts=True))
    assert list(made.ids) == smollm2.encode(text) and spell(tokenizer, made.ids)[0] == text == made.text
    assert spell(tokenizer, made.ids)[1][-1][1] == len(text)
    # By hand: the characters of each token are counted in the bytes its pieces stand for.
    alphabet = byte_alphabet()
    expected, loose, at = [], [], 0
    for position, piece in enumerate(tokenizer.convert_ids_to_tokens(list(made.ids))):
        raw = bytes(alphabet[c] for c in piece)
        space = len(raw) - len(raw.lstrip(b" \n"))
        visible = at + (space if space < len(raw) else 0)
        first, last = len(text[:start].encode()), len(text[:end].encode())
        loose += [position] if at < last and at + len(raw) > first else []
        expected += [position] if visible < last and at + len(raw) > first else []
        at += len(raw)
    assert list(made.spans["it"]) == (expected or loose)


def byte_alphabet() -> dict[str, int]:
    """The characters byte-level BPE writes the 256 bytes as (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(others)}


@pytest.mark.real_model
def test_roles_of_a_real_chat_template(smollm2):
    chat = ({"role": "user", "content": "Is user a role?"}, {"role": "assistant", "content": "Yes."})
    made = next(contexts(smollm2, [Item("1", messages=(*chat, {"role": "user", "content": "Ok"}))]))
    assert list(made.ids) == smollm2.encode([*chat, {"role": "user", "content": "Ok"}])
    said: dict[str, str] = {}
    for token, role in zip(made.ids, made.roles, strict=True):
        said[role] = said.get(role, "") + smollm2.tokenizer.decode([token])
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    wrap = [f"<|im_start|>{role}\n<|im_end|>\n" for role in ("user", "assistant", "user")]
    assert said["user"] == "Is user a role?Ok" and said["assistant"] == "Yes."
    assert said[""] == system + "".join(wrap) + "<|im_start|>assistant\n"
    assert [made.ids[i] for i in made.special] == [i for i in made.ids if i in (0, 1, 2)]


ERRORS = [
    ([Item("a", text="one " * 65)], {}, r"Prompt 'a' has 65 tokens, but tiny-llama reads at most 64\. Give context=64"),
    ([Item("a", ids=(5, 500))], {}, r"Prompt 'a' has token id 500, but tiny-llama has ids 0–119"),
    ([Item("a", text="\u00a0")], {}, r"Prompt 'a' is empty: .* has no tokens"),
    ([Item("a", messages=CHAT)], {}, r"Prompt 'a' is a chat, but its model has no chat template"),
    ([Item("a", text="one", answer="")], {}, r"Prompt 'a' has an answer, which is empty"),
    ([Item("a", text="one", answer=" ")], {}, r"Prompt 'a': its answer ' ' has no tokens"),
    ([Item("a", text="one", answer=" x", spans={"answer": (0, 1)})], {}, r"has a span of that name as well"),
    ([Item("a", ids=(5,), spans={"x": (0, 1)})], {}, r"Prompt 'a' has spans, which count characters of a text"),
    ([], {"context": 65}, r"context=65: expected 1 to 64, which tiny-llama reads at most"),
    ([], {"context": 0}, r"context=0: expected 1 to 64"),
    ([], {"context": 4, "overlap": 4}, r"overlap=4: expected 0 to 3 with contexts of 4 tokens"),
    ([], {"overlap": 2}, r"overlap=2 is for texts that are split: give context="),
    ([], {"context": 4, "overlap": 2, "pack": True}, r"overlap=2 is for texts that are split, not packed"),
]  # fmt: skip


@pytest.mark.parametrize(("items", "options", "message"), ERRORS)
def test_what_cannot_be_read_says_which_prompt_and_why(items, options, message):
    with pytest.raises(PromptError, match=message):
        list(contexts(PLAIN, items, **options))


def test_what_a_model_lacks_is_said():
    refuses = with_bos()
    refuses.tokenizer.chat_template = "{{ raise_exception('only two roles') }}"
    with pytest.raises(
        PromptError, match="Prompt 'a': the chat template refuses these messages: only two roles"
    ):
        list(contexts(refuses, [Item("a", messages=CHAT)]))
    neither = tiny_model("llama")
    neither.tokenizer = copy.deepcopy(neither.tokenizer)
    neither.tokenizer.bos_token = neither.tokenizer.eos_token = None
    with pytest.raises(PromptError, match="neither EOS nor BOS"):
        contexts(neither, [], pack=True)
    slow = Encoder(PLAIN)
    slow.fast = False
    with pytest.raises(
        PromptError, match=r"Prompt 'a' has spans, but the tokenizer of tiny-llama does not tell"
    ):
        slow.encode([Item("a", text="one", spans={"x": (0, 1)})])
    slow.need_texts = True  # spelled by decoding instead
    assert slow.encode([Item("a", text="one two")])[0].text == "one two"
    no_tokenizer = LanguageModel(PLAIN.hf, None, name="bare")
    assert next(contexts(no_tokenizer, [Item("1", ids=(5, 6))])).ids == (5, 6)
    with pytest.raises(PromptError, match="Prompt 'a' is text, but bare has no tokenizer"):
        list(contexts(no_tokenizer, [Item("a", text="one")]))
