"""The grammar of site names.

A *pattern* is a TransformerLens hook name, optionally with

- `*` and `?` as in a shell (`*` does not stop at dots): `blocks.*.hook_resid_post`
- a list or a range in braces, as in a shell: `blocks.{3,7}.attn.hook_z`, `blocks.{0..5}.hook_mlp_out`, and every
  second one: `blocks.{0..28..2}.hook_resid_post`
- a negative block number, counted from the last block: `blocks.-1.hook_resid_post`

Other spellings that TransformerLens gives to the same tensor are understood (`blocks.3.hook_out` is
`blocks.3.hook_resid_post`). A pattern that matches nothing is an error that names the nearest sites.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from workbench.errors import SiteError, nearest

# TransformerLens' bridge names that are the very same tensor as the classic name on every architecture.
ALIASES = {
    "embed.hook_out": "hook_embed",
    "pos_embed.hook_out": "hook_pos_embed",
    "blocks.{}.hook_in": "blocks.{}.hook_resid_pre",
    "blocks.{}.hook_out": "blocks.{}.hook_resid_post",
    "blocks.{}.attn.q.hook_out": "blocks.{}.attn.hook_q",
    "blocks.{}.attn.k.hook_out": "blocks.{}.attn.hook_k",
    "blocks.{}.attn.v.hook_out": "blocks.{}.attn.hook_v",
    "blocks.{}.attn.o.hook_in": "blocks.{}.attn.hook_z",
    "blocks.{}.mlp.out.hook_in": "blocks.{}.mlp.hook_post",
    "unembed.hook_in": "ln_final.hook_out",
}
_BLOCK = re.compile(r"^blocks\.(-?\d+|\*)\.(.+)$")


def expand(
    patterns: str | Iterable[str],
    known: Sequence[str],
    *,
    n_layers: int,
    model_name: str,
    why_missing: Callable[[str], str | None] = lambda _name: None,
) -> list[str]:
    """Site names that `patterns` stand for, in the order of `known`, each once.

    Args:
        patterns: one pattern or several.
        known: every site the model has, in the order of the forward pass.
        n_layers: number of blocks, for negative block numbers and messages.
        model_name: for messages.
        why_missing: reason why the architecture lacks a well-formed name, or None.

    Raises:
        SiteError: a pattern matches no site (the message names the nearest), or is no text.

    Example:
        >>> expand("blocks.{0,-1}.hook_resid_post", model.sites(), n_layers=30, model_name="smollm2-135m")
        ['blocks.0.hook_resid_post', 'blocks.29.hook_resid_post']
    """
    wanted: set[str] = set()
    order = {name: i for i, name in enumerate(known)}
    listed = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    if not listed:
        raise SiteError("No sites were asked for: give a name such as 'blocks.*.hook_resid_post'.")
    if wrong := [pattern for pattern in listed if not isinstance(pattern, str)]:
        raise SiteError(
            f"A site is asked for by its name, such as 'blocks.3.hook_resid_post', not by {_shown(wrong[0])}."
        )
    for pattern in listed:
        for literal in _braces(pattern):
            name = _canonical(literal, n_layers)
            if name in order:
                wanted.add(name)
                continue
            matched = fnmatch.filter(known, name) if any(c in name for c in "*?[") else []
            if not matched:
                raise SiteError(_nothing_matched(literal, name, known, n_layers, model_name, why_missing))
            wanted.update(matched)
    return sorted(wanted, key=order.__getitem__)


def _shown(thing: object) -> str:
    """What stands in place of a name; a `Site` says how it is called."""
    name = getattr(thing, "name", None)
    return f"a {type(thing).__name__}: give its name {name!r}" if isinstance(name, str) else repr(thing)


def _braces(pattern: str) -> list[str]:
    """`a{1,2}b` -> `a1b`, `a2b`; `a{1..3}b` -> three names, `a{1..5..2}b` too; nested from left to right."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    choices: list[str] = []
    for part in found.group(1).split(","):
        span = re.fullmatch(r"\s*(\d+)\.\.(\d+)(?:\.\.(\d+))?\s*", part)
        if span:
            first, last, step = int(span.group(1)), int(span.group(2)), max(int(span.group(3) or 1), 1)
            numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
            choices += [str(i) for i in numbers]
        else:
            choices.append(part.strip())
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in choices for name in _braces(head + choice + tail)]


def _canonical(name: str, n_layers: int) -> str:
    block = _BLOCK.match(name)
    if block is None:
        return ALIASES.get(name, name)
    index, rest = block.groups()
    if index.startswith("-") and int(index) + n_layers >= 0:
        index = str(int(index) + n_layers)
    alias = ALIASES.get(f"blocks.{{}}.{rest}", f"blocks.{{}}.{rest}")
    return alias.replace("{}", index, 1)


def _nothing_matched(
    literal: str,
    name: str,
    known: Sequence[str],
    n_layers: int,
    model_name: str,
    why_missing: Callable[[str], str | None],
) -> str:
    reason = why_missing(name)
    if reason:
        return f"Site {literal!r} does not exist: {reason}"
    block = _BLOCK.match(name)
    detail = f"{model_name} has no such site"
    if block and block.group(1) != "*" and not 0 <= int(block.group(1)) < n_layers:
        detail = f"{model_name} has blocks 0–{n_layers - 1}"
        clamped = name.replace(f"blocks.{block.group(1)}.", f"blocks.{n_layers - 1}.", 1)
        if clamped in known:
            return f"Site {literal!r} does not exist: {detail}. Did you mean {clamped!r}?"
    near = nearest(name.replace("*", "0"), known)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Site {literal!r} does not exist: {detail}.{hint} `model.sites()` lists all {len(known)}."
