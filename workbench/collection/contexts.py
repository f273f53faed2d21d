"""`contexts`: items become the token sequences that go through the model, whole, split or packed.

- Whole: each item is one context; one that is longer than the model reads is an error.
- Split (`context=N`): a longer text becomes contexts of N tokens, the last one perhaps shorter, called `doc#0`,
  `doc#1`, …; `overlap` tokens are in two neighbours. Where the tokenizer puts BOS before a text, every context
  begins with it, counted in N.
- Packed: texts are joined, EOS between them (BOS where there is none), and cut every N tokens; only the last context
  may be shorter. Where the tokenizer puts BOS before a text, it stands at the beginning of each context instead.
  Labels of a packed context are `sources`, the ids of the texts in it, and `starts`, where each begins.

No token is dropped. A text's span names are in all of its contexts, with no positions where it has none there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace

from workbench.collection.encoding import Encoder
from workbench.collection.items import Context, Item
from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.text_side import TextSide

__all__ = ["contexts"]

_ITEMS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 2**20


def contexts(
    model: LanguageModel | TextSide,
    items: Iterable[Item],
    *,
    context: int | None = None,
    overlap: int = 0,
    pack: bool = False,
    need_texts: bool = False,
    answers: bool = True,
) -> Iterator[Context]:
    """Tokenise items and make contexts of them, as they are asked for.

    Args:
        model: the language model.
        items: what a source gives.
        context: tokens in one context; None leaves texts whole (with `pack`: what the model reads at most).
        overlap: tokens that neighbouring contexts of a split text share, BOS not counted.
        pack: join texts, so that every context but the last has exactly `context` tokens.
        need_texts: give each context the text of its tokens (`Selection.needs_texts`).
        answers: read answers along with their texts, as the span `answer`. Otherwise they are only labels.

    Raises:
        PromptError: a text without tokens or too long, a chat the template refuses, spans that cannot be placed;
            it names the prompt. Sizes that do not go together.

    Example:
        >>> [c.id for c in contexts(model, open_source(["one two three four five"]), context=3)]     # doctest: +SKIP
        ['1#0', '1#1']
    """
    encoder = Encoder(model, need_texts=need_texts, answers=answers)
    n = _checked_size(encoder, context, overlap, pack)
    whole = (c for chunk in _chunks(items) for c in encoder.encode(chunk))
    if pack:
        made = _packed(encoder, whole, n or 0)
    elif n is not None:
        made = (part for c in whole for part in _split(c, n, overlap, _leading(encoder, c)))
    else:
        made = (_not_too_long(model, c) for c in whole)
    return (replace(c, number=number) for number, c in enumerate(made))


def _checked_size(encoder: Encoder, context: int | None, overlap: int, pack: bool) -> int | None:
    limit = encoder.model.context_length
    n = limit if pack and context is None else context
    least = 2 if encoder.adds_bos else 1
    if n is None:
        if pack:
            raise PromptError(
                f"{encoder.model.name} does not say how much it reads: give context= to pack texts."
            )
        if overlap:
            raise PromptError(f"overlap={overlap} is for texts that are split: give context= as well.")
        return None
    if n < least or (limit and n > limit):
        most = f" to {limit}, which {encoder.model.name} reads at most" if limit else " or more"
        raise PromptError(f"context={n}: expected {least}{most}.")
    room = n - least + 1
    if not 0 <= overlap < room:
        raise PromptError(f"overlap={overlap}: expected 0 to {room - 1} with contexts of {n} tokens.")
    if pack and overlap:
        raise PromptError(f"overlap={overlap} is for texts that are split, not packed: leave one out.")
    if pack and encoder.eos is None and encoder.bos is None:
        raise PromptError(
            f"The tokenizer of {encoder.model.name} has neither EOS nor BOS to put between texts."
        )
    return n


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items to be tokenised at once, few enough to hold."""
    chunk: list[Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += len(item.text or "")
        if len(chunk) == _ITEMS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _not_too_long(model: LanguageModel | TextSide, whole: Context) -> Context:
    if model.context_length and len(whole.ids) > model.context_length:
        raise PromptError(
            f"Prompt {whole.id!r} has {len(whole.ids)} tokens, but {model.name} reads at most {model.context_length}. "
            f"Give context={model.context_length} (or less) to split longer texts; nothing is cut off silently."
        )
    return whole


def _leading(encoder: Encoder, whole: Context) -> int:
    """1 where the text begins with a BOS that the tokenizer puts there, else 0."""
    return int(encoder.adds_bos and whole.ids[0] == encoder.bos)


def _split(whole: Context, n: int, overlap: int, leading: int) -> Iterator[Context]:
    if len(whole.ids) <= n:
        yield whole
        return
    bos = _cut(whole, 0, leading)
    room = n - leading
    for k, start in enumerate(range(leading, len(whole.ids) - overlap, room - overlap)):
        part = _cut(whole, start, min(start + room, len(whole.ids)))
        yield replace(_joined([bos, part] if leading else [part]), id=f"{whole.id}#{k}", labels=whole.labels)


def _packed(encoder: Encoder, texts: Iterator[Context], n: int) -> Iterator[Context]:
    separator = encoder.eos if encoder.eos is not None else encoder.bos
    between = encoder.one_token(separator, written=True) if separator is not None else None
    head = (
        [encoder.one_token(encoder.bos, written=False)]
        if encoder.adds_bos and encoder.bos is not None
        else []
    )
    parts, held = list(head), len(head)
    sources: list[str] = []
    starts: list[int] = []
    last: int | None = None
    number = 0

    def packed() -> Context:
        return replace(_joined(parts), id=f"pack#{number}", labels={"sources": sources, "starts": starts})

    for text in texts:
        pieces = [(text, _leading(encoder, text))]
        begins_with_it = bool(head) and held == len(head) and separator == encoder.bos
        if between is not None and last is not None and last != separator and not begins_with_it:
            pieces.insert(0, (between, 0))
        for piece, at in pieces:
            while at < len(piece.ids):
                if held == n:
                    yield packed()
                    number += 1
                    parts, held, sources, starts = list(head), len(head), [], []
                take = min(n - held, len(piece.ids) - at)
                if piece is text:
                    sources.append(text.id)
                    starts.append(held)
                parts.append(_cut(piece, at, at + take))
                held += take
                at += take
        last = text.ids[-1]
    if sources:
        yield packed()


def _cut(whole: Context, start: int, stop: int) -> Context:
    """The tokens `[start, stop)` of a context, with all that belongs to them."""
    if start == 0 and stop == len(whole.ids):
        return whole
    spans = {
        name: tuple(
            p - start for p in positions[bisect_left(positions, start) : bisect_left(positions, stop)]
        )
        for name, positions in whole.spans.items()
    }
    special = whole.special[bisect_left(whole.special, start) : bisect_left(whole.special, stop)]
    text = offsets = None
    if whole.text is not None and whole.offsets is not None:
        here = whole.offsets[start:stop]
        first = min((a for a, b in here if b > a), default=0)
        last = max((b for a, b in here if b > a), default=0)
        text = whole.text[first:last]
        offsets = [(a - first, b - first) if b > a else (0, 0) for a, b in here]
    return Context(
        id=whole.id,
        ids=whole.ids[start:stop],
        spans=spans,
        roles=None if whole.roles is None else tuple(whole.roles[start:stop]),
        texts=None if whole.texts is None else tuple(whole.texts[start:stop]),
        special=tuple(p - start for p in special),
        text=text,
        offsets=offsets,
    )


def _joined(parts: list[Context]) -> Context:
    """Parts one behind the other. Where one has roles, the others' tokens have none (`""`)."""
    ids: list[int] = []
    spans: dict[str, list[int]] = {}
    special: list[int] = []
    roles: list[str] = []
    texts: list[str] = []
    text = ""
    offsets: list[tuple[int, int]] = []
    for part in parts:
        at = len(ids)
        for name, positions in part.spans.items():
            spans.setdefault(name, []).extend(p + at for p in positions)
        special += [p + at for p in part.special]
        roles += part.roles if part.roles is not None else [""] * len(part.ids)
        texts += part.texts or ()
        shift = len(text)
        offsets += [(a + shift, b + shift) if b > a else (0, 0) for a, b in part.offsets or ()]
        text += part.text or ""
        ids += part.ids
    spelled = parts[0].text is not None
    return Context(
        id="",
        ids=tuple(ids),
        spans={name: tuple(positions) for name, positions in spans.items()},
        roles=tuple(roles) if any(p.roles is not None for p in parts) else None,
        texts=tuple(texts) if parts[0].texts is not None else None,
        special=tuple(special),
        text=text if spelled else None,
        offsets=offsets if spelled else None,
    )
