"""`Index`: which prompt, position and token each row of a store is, and the search for rows by them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from workbench.errors import DataError, did_you_mean
from workbench.store.rows import PHASES
from workbench.store.shard import Shard
from workbench.store.tables import INDEX, PROMPTS


class Index:
    """Columns over all rows, as numpy arrays; each is read when first asked for.

    Attributes:
        prompts: table of the prompts with rows here, ordered by `number`: number, id, n_tokens, labels (JSON).

    Example:
        >>> store.index.position[store.index.prompt == 3]
        array([0, 1, 2], dtype=int32)
    """

    def __init__(self, shards: Sequence[Shard], offsets: Sequence[int]) -> None:
        """Made by `Store`; `offsets` are added to the prompt numbers of each shard."""
        self._shards, self._offsets = tuple(shards), tuple(offsets)

    @cached_property
    def prompt(self) -> np.ndarray:
        """[row] int64: number of the prompt."""
        parts = [s.table("index", ["prompt"])["prompt"].to_numpy() for s in self._shards]
        shifted = [part + offset for part, offset in zip(parts, self._offsets, strict=True)]
        return np.concatenate(shifted) if shifted else np.empty(0, np.int64)

    @cached_property
    def position(self) -> np.ndarray:
        """[row] int32: absolute position in the unpadded prompt."""
        return self._column("position", np.int32)

    @cached_property
    def token_id(self) -> np.ndarray:
        """[row] int32."""
        return self._column("token_id", np.int32)

    @cached_property
    def phase(self) -> np.ndarray:
        """[row] int8: 0 is a token of the prompt, 1 a generated one (`PHASES`)."""
        return self._column("phase", np.int8)

    @cached_property
    def spans(self) -> pa.DictionaryArray:
        """[row] names of the spans the token lies in, joined with `|`, as a dictionary-encoded Arrow array."""
        tables = [s.table("index", ["spans"]) for s in self._shards]
        joined = pa.concat_tables(tables) if tables else INDEX.empty_table().select(["spans"])
        return joined["spans"].unify_dictionaries().combine_chunks()

    @cached_property
    def prompts(self) -> pa.Table:
        """The prompts: number, id, n_tokens, labels (a JSON object)."""
        tables = [PROMPTS.empty_table()]
        for shard, offset in zip(self._shards, self._offsets, strict=True):
            table = shard.table("prompts")
            shifted = pa.array(table["number"].to_numpy() + offset)
            tables.append(table.set_column(0, "number", shifted))
        return pa.concat_tables(tables).sort_by("number").combine_chunks()

    def table(self) -> pa.Table:
        """All columns as one Arrow table."""
        columns = [pa.array(getattr(self, name)) for name in INDEX.names[:-1]]
        return pa.Table.from_arrays([*columns, self.spans], schema=INDEX)

    def rows(
        self,
        *,
        prompt: int | Iterable[int] | None = None,
        position: int | Iterable[int] | None = None,
        token: int | Iterable[int] | None = None,
        phase: str | None = None,
        span: str | None = None,
        label: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Numbers of the rows for which all that is given holds; see `Store.rows`."""
        chosen: np.ndarray | None = None
        tests = (
            (prompt, lambda: np.isin(self.prompt, self._existing(prompt))),
            (token, lambda: np.isin(self.token_id, _numbers(token, "token"))),
            (position, lambda: self._at_positions(_numbers(position, "position"))),
            (phase, lambda: self.phase == _phase(phase)),
            (span, lambda: self._in_span(str(span))),
            (label, lambda: np.isin(self.prompt, self._labelled(label or {}))),
        )
        for given, test in tests:
            if given is not None:
                found = test()
                chosen = found if chosen is None else chosen & found
        if chosen is None:
            return np.arange(sum(shard.rows for shard in self._shards), dtype=np.int64)
        return np.flatnonzero(chosen)

    def labels(self, name: str) -> np.ndarray:
        """[row] objects: the label `name` of each row's prompt, None where the prompt has no such label."""
        numbers = self.prompts["number"].to_numpy()
        values = np.empty(len(numbers), object)
        values[:] = [labels.get(name) for labels in self._parsed]
        self._known_label(name)
        return values[np.searchsorted(numbers, self.prompt)]

    @cached_property
    def _parsed(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.prompts["labels"].to_pylist()]

    def _column(self, name: str, dtype: type) -> np.ndarray:
        parts = [s.table("index", [name])[name].to_numpy() for s in self._shards]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    def _existing(self, prompt: Any) -> np.ndarray:
        wanted, known = _numbers(prompt, "prompt"), self.prompts["number"].to_numpy()
        if len(missing := np.setdiff1d(wanted, known)):
            last = f", the last is {known[-1]}" if len(known) else ""
            raise DataError(f"Prompt {missing[0]} has no rows here: {len(known)} prompts have some{last}.")
        return wanted

    def _at_positions(self, wanted: np.ndarray) -> np.ndarray:
        """Negative positions count from the end of each prompt."""
        found = np.isin(self.position, wanted[wanted >= 0])
        if (negative := wanted[wanted < 0]).size:
            numbers, lengths = (self.prompts[c].to_numpy() for c in ("number", "n_tokens"))
            length = lengths[np.searchsorted(numbers, self.prompt)]
            found |= np.isin(self.position - length, negative)
        return found

    def _in_span(self, span: str) -> np.ndarray:
        texts = [set(text.split("|")) - {""} for text in self.spans.dictionary.to_pylist()]
        if not any(span in names for names in texts):
            known = sorted(set().union(*texts)) if texts else []
            held = f"there are {', '.join(map(repr, known))}" if known else "no token lies in a span"
            raise DataError(f"Span {span!r} is not in this store: {held}.{did_you_mean(span, known)}")
        codes = self.spans.indices.to_numpy(zero_copy_only=False)
        return np.isin(codes, [i for i, names in enumerate(texts) if span in names])

    def _labelled(self, label: Mapping[str, Any]) -> np.ndarray:
        """Numbers of the prompts that have all these labels."""
        for name, value in label.items():
            self._known_label(name)
            known = {_json(labels[name]): labels[name] for labels in self._parsed if name in labels}
            if _json(value) not in known:
                shown = ", ".join(repr(v) for v in list(known.values())[:8])
                raise DataError(
                    f"No prompt has {name!r} = {json.loads(_json(value))!r}: {len(known)} values occur, such as "
                    f"{shown}."
                )
        wanted = {name: _json(value) for name, value in label.items()}
        holds = [
            all(n in labels and _json(labels[n]) == text for n, text in wanted.items())
            for labels in self._parsed
        ]
        return self.prompts["number"].to_numpy()[np.array(holds, bool)]

    def _known_label(self, name: str) -> None:
        known = sorted(set().union(*self._parsed)) if self._parsed else []
        if name not in known:
            held = f"they have {', '.join(map(repr, known))}" if known else "they have none"
            raise DataError(f"The prompts have no label {name!r}: {held}.{did_you_mean(name, known)}")


def _numbers(given: Any, what: str) -> np.ndarray:
    try:
        listed = given if isinstance(given, int) or hasattr(given, "__array__") else list(given)
        array = np.atleast_1d(np.asarray(listed))
    except (TypeError, ValueError):  # neither a number nor a list of them
        array = np.array([[]])
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        hint = " A token's id comes from the tokenizer: `tokenizer.encode(text)`." if what == "token" else ""
        raise DataError(f"{what}={given!r} is no whole number or list of them.{hint}")
    return array.astype(np.int64)


def _json(label: Any) -> str:
    """A label as it is compared: keys in order, arrays and their numbers as plain ones."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is no JSON value")

    try:
        return json.dumps(label, sort_keys=True, default=plain)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{label!r} is no label ({error}): give a number, string, boolean, or a list or mapping of these."
        ) from error


def _phase(phase: Any) -> int:
    if phase not in PHASES:
        raise DataError(f"Phase {phase!r} does not exist: choose {' or '.join(map(repr, PHASES))}.")
    return PHASES.index(phase)
