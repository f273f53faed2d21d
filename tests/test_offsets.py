"""Characters and tokens on tokenizers of every kind, trained in memory."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from workbench.collection.contexts import contexts
from workbench.collection.items import Item
from workbench.model.language_model import LanguageModel
from workbench.model.offsets import covered, spell

CORPUS = [
    "Mary and Tom went to the store, and Tom gave Mary a drink.",
    "The capital of France is Paris; the naïve café there.",
]
KINDS = ["byte-level", "metaspace", "byte-fallback", "wordpiece"]
texts = st.text(st.sampled_from("Maryndo tsé.,🎉T"), min_size=1, max_size=25).filter(str.strip)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<unk>"]
    if kind == "byte-level":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    elif kind == "wordpiece":
        raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=True)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    else:
        fallback = kind == "byte-fallback"
        raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback))
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Metaspace()
        if fallback:
            special += [f"<0x{b:02X}>" for b in range(256)]
            steps = [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
            raw.decoder = decoders.Sequence(steps)
        trainer = trainers.BpeTrainer(vocab_size=380 if fallback else 90, special_tokens=special)
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def model(kind: str) -> LanguageModel:
    return LanguageModel(tiny_model("llama", vocab_size=400).hf, tokenizer(kind), name=f"tiny-{kind}")


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=texts)
def test_spelling_joins_to_what_the_tokenizer_decodes(kind, text):
    made = tokenizer(kind)
    ids = made(text)["input_ids"]
    spelled, offsets = spell(made, ids)
    assert spelled == made.decode(ids[1:], clean_up_tokenization_spaces=False)
    assert offsets[0] == (0, 0) and len(offsets) == len(ids)
    written = {i for start, end in offsets for i in range(start, end)}
    assert written == set(range(len(spelled)))  # every character is some token's
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(offsets))


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@given(text=texts)
@settings(deadline=None)
def test_spelled_characters_are_those_the_tokenizer_read(kind, text):
    text = " ".join(text.split())  # one space between words is what these keep
    read = model(kind)
    from_text = next(contexts(read, [Item("1", text=text)], need_texts=True))
    from_ids = next(contexts(read, [Item("1", ids=from_text.ids)], need_texts=True))
    assert from_ids.text == from_text.text
    for i in range(len(text)):
        found = [covered(text, c.offsets, [(i, i + 1)])[0] for c in (from_text, from_ids)]
        assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_span_is_its_words_tokens_and_no_more(kind):
    read = model(kind)
    text = "Tom gave Mary a drink."
    where = text.index("Mary")
    spans = {"tight": (where, where + 4), "loose": (where - 1, where + 5), "first": (0, 3)}
    made = next(contexts(read, [Item("1", text=text, spans=spans)]))
    alone = read.tokenizer(" Mary" if kind == "byte-level" else "Mary", add_special_tokens=False)["input_ids"]
    assert [made.ids[p] for p in made.spans["tight"]] == alone
    assert made.spans["tight"] == made.spans["loose"]  # neither space reaches into the words beside it
    assert made.spans["first"][0] == 1  # after BOS


def test_white_space_alone_is_the_token_that_holds_it():
    assert covered("a b", [(0, 1), (1, 3)], [(1, 2), (1, 3), (0, 2)]) == [[1], [1], [0]]
    assert covered("a\n b", [(0, 0), (0, 1), (1, 2), (2, 4)], [(0, 2), (1, 3)]) == [[1, 2], [2]]


def test_bytes_that_are_no_character_end_somewhere():
    made = tokenizer("byte-level")
    broken = made.convert_tokens_to_ids(["ð"] * 30)
    spelled, offsets = spell(made, [*broken, *made("Tom", add_special_tokens=False)["input_ids"]])
    assert len(offsets) > 30 and spelled.endswith("Tom") and spelled.count("\ufffd") == 30
