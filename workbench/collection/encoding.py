"""Items -> whole contexts: token ids as `model.encode` gives them, with spans, roles and special tokens.

1. Texts are tokenised many at a time; the result is that of one at a time.
2. A text with an answer is tokenised together with it. Where the tokens of the text alone are the beginning of
   that, the rest is the answer. Where they are not (the last token would reach into the answer), the answer is
   tokenised on its own and put behind the text, so that the text's tokens never depend on it. A token that the
   tokenizer puts behind every text (EOS) is left away before an answer.
3. Spans are brought from characters to tokens through the tokenizer's offsets (`workbench.model.offsets`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from workbench.collection.chats import Part, render
from workbench.collection.items import Context, Item
from workbench.errors import PromptError, did_you_mean
from workbench.model.language_model import LanguageModel
from workbench.model.offsets import covered, spell
from workbench.model.text_side import TextSide
from workbench.model.tokens import unknown_words

__all__ = ["ANSWER", "Encoder"]

ANSWER = "answer"
"""Name of the span that holds an answer's tokens."""

Offsets = list[tuple[int, int]]
_SPACES = ("▁", "Ġ")


class _Tokens(NamedTuple):
    ids: list[int]
    offsets: Offsets | None


class _Draft(NamedTuple):
    """An item as it goes to the tokenizer."""

    text: str | None
    """What is tokenised; None where token ids were given."""
    special: bool = True
    """Whether the tokenizer adds its special tokens. A chat template has written them already."""
    parts: tuple[Part, ...] | None = None
    """What each message of a chat wrote."""


class Encoder:
    """Tokenises items for one model.

    Args:
        model: the language model.
        need_texts: give each context its tokens' texts, its text and offsets.
        answers: read an item's answer along with its text. Otherwise it is only a label.

    Example:
        >>> Encoder(model).encode([Item("1", text="Rome is in", answer=" Italy")])[0].spans      # doctest: +SKIP
        {'answer': (3,)}
    """

    def __init__(
        self, model: LanguageModel | TextSide, *, need_texts: bool = False, answers: bool = True
    ) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.need_texts = need_texts
        self.answers = answers
        self.fast = bool(getattr(self.tokenizer, "is_fast", False))
        self.bos: int | None = None
        self.eos: int | None = None
        self.adds_bos = False
        """Whether the tokenizer puts BOS before every text."""
        self._ending: list[int] = []
        self._special: frozenset[int] = frozenset()
        self._texts: dict[int, str] = {}
        if need_texts and self.tokenizer is None:
            raise PromptError(
                f"{model.name} has no tokenizer, so the texts of its tokens are not known: give positions by number."
            )
        if self.tokenizer is not None:
            self.bos, self.eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            self._special = frozenset(self.tokenizer.all_special_ids)
            added = list(self.tokenizer("")["input_ids"])
            self.adds_bos = self.bos is not None and added[:1] == [self.bos]
            self._ending = added[1:] if self.adds_bos else added

    def encode(self, items: Sequence[Item]) -> list[Context]:
        """The whole context of each item, however long.

        Raises:
            PromptError: an item without tokens, with a word or token id the model does not have, or with spans that
                the tokenizer cannot place; it names the prompt.
        """
        drafts = [self._draft(item) for item in items]
        wanted: dict[tuple[str, bool], None] = {}
        offsets = self.need_texts
        for item, draft in zip(items, drafts, strict=True):
            offsets = offsets or bool(item.spans) or draft.parts is not None
            if draft.text is not None:
                wanted[draft.text, draft.special] = None
                if self._answer(item):
                    wanted[draft.text + (item.answer or ""), draft.special] = None
        try:
            known = self._tokenise(wanted, offsets and self.fast)
        except Exception:  # what the tokenizers library raises for an unknown word has no class of its own
            self._refuse_unknown_words(items, drafts)
            raise
        return [self._context(item, draft, known) for item, draft in zip(items, drafts, strict=True)]

    def one_token(self, token: int, *, written: bool) -> Context:
        """A context of one token: a separator, which is `written` in the text, or a BOS, which is not."""
        texts = self._texts_of([token])
        text = None if texts is None else texts[0] if written else ""
        offsets = None if text is None else [(0, len(text))]
        return Context("", (token,), texts=texts, special=self._specials([token]), text=text, offsets=offsets)

    def _answer(self, item: Item) -> bool:
        return self.answers and item.answer is not None

    def _draft(self, item: Item) -> _Draft:
        name = f"Prompt {item.id!r}"
        if self._answer(item) and (not item.answer or ANSWER in item.spans):
            what = "has a span of that name as well" if item.answer else "is empty"
            raise PromptError(f"{name} has an answer, which {what}: leave one out.")
        if item.ids is not None:
            n = self.model.vocab_size
            outside = next((i for i in item.ids if not 0 <= i < n), None)
            if outside is not None:
                raise PromptError(f"{name} has token id {outside}, but {self.model.name} has ids 0–{n - 1}.")
            return _Draft(None)
        if self.tokenizer is None:
            raise PromptError(f"{name} is text, but {self.model.name} has no tokenizer: give token ids.")
        if item.messages is not None:
            chat = render(self.tokenizer, item.messages, name)
            return _Draft(chat.text, special=False, parts=chat.parts if self.fast else None)
        return _Draft(item.text or "")

    def _tokenise(self, wanted: Iterable[tuple[str, bool]], offsets: bool) -> dict[tuple[str, bool], _Tokens]:
        known: dict[tuple[str, bool], _Tokens] = {}
        for special in (True, False):
            texts = [text for text, s in wanted if s is special]
            if not texts:
                continue
            out = self.tokenizer(
                texts,
                add_special_tokens=special,
                return_offsets_mapping=offsets,
                return_attention_mask=False,
                verbose=False,
            )
            places: list[Any] = out["offset_mapping"] if offsets else [None] * len(texts)
            for text, ids, at in zip(texts, out["input_ids"], places, strict=True):
                twice = 0  # BOS that the text carries as well
                while self.bos is not None and list(ids[twice : twice + 2]) == [self.bos, self.bos]:
                    twice += 1
                kept = None if at is None else self._without_dummies(ids[twice:], at[twice:])
                known[text, special] = _Tokens(list(ids[twice:]), kept)
        return known

    def _refuse_unknown_words(self, items: Sequence[Item], drafts: Sequence[_Draft]) -> None:
        for item, draft in zip(items, drafts, strict=True):
            text = (draft.text or "") + ((item.answer or "") if self._answer(item) else "")
            if unknown := unknown_words(self.tokenizer, text):
                raise PromptError(
                    f"Prompt {item.id!r} has the word {unknown[0]!r}, which {self.model.name} does not know."
                    f"{did_you_mean(unknown[0], self.tokenizer.get_vocab())}"
                )

    def _without_dummies(self, ids: Sequence[int], offsets: Offsets) -> Offsets:
        """Offsets in which a space that the tokenizer itself put before the text has no characters."""
        kept = [(start, end) for start, end in offsets]
        for i in range(len(kept) - 1):
            if kept[i][0] == kept[i + 1][0] and self.tokenizer.convert_ids_to_tokens(ids[i]) in _SPACES:
                kept[i] = (kept[i][0], kept[i][0])
        return kept

    def _context(self, item: Item, draft: _Draft, known: dict[tuple[str, bool], _Tokens]) -> Context:
        if draft.text is None:
            tokens = _Tokens(list(item.ids or ()), None)
        else:
            tokens = known[draft.text, draft.special]
        if not tokens.ids:
            raise PromptError(f"Prompt {item.id!r} is empty: {draft.text!r} has no tokens.")
        spans = self._spans(item, draft, tokens)
        text = draft.text
        labels = dict(item.labels)
        if item.answer is not None:
            labels.setdefault(ANSWER, item.answer)
        n_before = None
        if self._answer(item):
            tokens, n_before = self._with_answer(item, draft, tokens, known)
            spans[ANSWER] = tuple(range(n_before, len(tokens.ids)))
            text = None if text is None else text + (item.answer or "")
        offsets = tokens.offsets
        if not self.need_texts:
            text = offsets = None
        elif text is None or offsets is None:
            text, offsets = spell(self.tokenizer, tokens.ids)
        return Context(
            id=item.id,
            ids=tuple(tokens.ids),
            spans=spans,
            roles=self._roles(draft, tokens, n_before),
            texts=self._texts_of(tokens.ids),
            labels=labels,
            special=self._specials(tokens.ids),
            text=text,
            offsets=offsets,
        )

    def _with_answer(
        self, item: Item, draft: _Draft, tokens: _Tokens, known: dict[tuple[str, bool], _Tokens]
    ) -> tuple[_Tokens, int]:
        """Text and answer, and how many tokens are the text's."""
        answer = item.answer or ""
        before = tokens
        if draft.text is not None:
            both = known[draft.text + answer, draft.special]
            if draft.special:
                before, both = self._without_ending(before), self._without_ending(both)
            n = len(before.ids)
            if len(both.ids) > n and both.ids[:n] == before.ids:
                return both, n
        elif self.tokenizer is None:
            raise PromptError(f"Prompt {item.id!r} has an answer, but {self.model.name} has no tokenizer.")
        alone = self._tokenise([(answer, False)], before.offsets is not None)[answer, False]
        if not alone.ids:
            raise PromptError(f"Prompt {item.id!r}: its answer {answer!r} has no tokens.")
        offsets = None
        if before.offsets is not None and alone.offsets is not None:
            shift = len(draft.text or "")
            offsets = before.offsets + [(start + shift, end + shift) for start, end in alone.offsets]
        return _Tokens(before.ids + alone.ids, offsets), len(before.ids)

    def _without_ending(self, tokens: _Tokens) -> _Tokens:
        n = len(self._ending)
        if not n or tokens.ids[-n:] != self._ending:
            return tokens
        return _Tokens(tokens.ids[:-n], None if tokens.offsets is None else tokens.offsets[:-n])

    def _spans(self, item: Item, draft: _Draft, tokens: _Tokens) -> dict[str, tuple[int, ...]]:
        if not item.spans:
            return {}
        name = f"Prompt {item.id!r}"
        if item.text is None:
            raise PromptError(
                f"{name} has spans, which count characters of a text; it is a chat or token ids."
            )
        if tokens.offsets is None:
            raise PromptError(
                f"{name} has spans, but the tokenizer of {self.model.name} does not tell which characters a token "
                "stands for. Use its fast tokenizer (`use_fast=True`), or give positions."
            )
        spans = {}
        found = covered(draft.text or "", tokens.offsets, list(item.spans.values()))
        for (span, (start, end)), positions in zip(item.spans.items(), found, strict=True):
            if not positions:
                raise PromptError(
                    f"{name}: span {span!r} [{start}, {end}] is {item.text[start:end]!r}, for which there is no token."
                )
            spans[span] = tuple(positions)
        return spans

    def _roles(self, draft: _Draft, tokens: _Tokens, n_before: int | None) -> tuple[str, ...] | None:
        if draft.parts is None or tokens.offsets is None:
            return None
        roles = [""] * len(tokens.ids)
        said = [part for part in draft.parts if part.end > part.start]
        found = covered(draft.text or "", tokens.offsets[:n_before], [(p.start, p.end) for p in said])
        for part, positions in zip(said, found, strict=True):
            for position in positions:
                roles[position] = part.role
        if n_before is not None:
            roles[n_before:] = ["assistant"] * (len(roles) - n_before)
        return tuple(roles)

    def _specials(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i, token in enumerate(ids) if token in self._special)

    def _texts_of(self, ids: Sequence[int]) -> tuple[str, ...] | None:
        if not self.need_texts:
            return None
        for token in ids:
            if token not in self._texts:
                self._texts[token] = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return tuple(self._texts[token] for token in ids)
