"""Collecting activations in memory: prompts in, labelled activations out.

1. Prompts are tokenised and grouped by length, so that little padding is computed.
2. Each batch runs until the last site asked for has been read; later blocks and the unembedding are skipped.
3. Only the wanted positions are gathered, on the device, before they are copied to the host.
4. Rows come back in the order of the prompts, each with its prompt, position and token.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.collection.batching import TOKENS_PER_BATCH, batches, positions_per_prompt, read_rows
from workbench.errors import DataError, PositionError, SiteError
from workbench.files import publish_file
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, as_list, batch, from_ids
from workbench.progress import Progress, Silent
from workbench.provenance import Provenance, provenance
from workbench.sites.names import expand

_FROM_THE_END = re.compile(r"blocks\.(\{[^}]*)?-\d")
"""A block number that counts from the last, alone or in braces."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of some prompts at some sites and positions, one row per token.

    Attributes:
        values: site -> [row, ...] tensor on the CPU, in the model's dtype.
        prompt: [row] index of the prompt.
        position: [row] absolute position in the unpadded prompt.
        token_id: [row] token at that position.
        token: the text of that token, per row.
        n_prompts: number of prompts that went in.
        provenance: model, inputs, versions.

    Example:
        >>> acts = wb.collect(model, prompts, sites="blocks.*.hook_resid_post", positions=-1)
        >>> acts["blocks.7.hook_resid_post"].shape      # [prompt, position, d_model]
        torch.Size([100, 1, 576])
    """

    values: dict[str, Tensor] = field(repr=False)
    prompt: np.ndarray = field(repr=False)
    position: np.ndarray = field(repr=False)
    token_id: np.ndarray = field(repr=False)
    token: tuple[str, ...] = field(repr=False)
    n_prompts: int
    provenance: Provenance = field(repr=False)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def sites(self) -> list[str]:
        """The sites that were read, in the order of the forward pass."""
        return list(self.values)

    def _name(self, site: str) -> str:
        """The one site that a name or pattern stands for."""
        layers = [int(s.split(".")[1]) for s in self.sites if s.startswith("blocks.")]
        known = self.provenance.model.get("n_layers")
        if known is None and _FROM_THE_END.search(site):
            raise SiteError(
                f"{site!r} counts blocks from the last, but these activations do not say how many the model has: "
                f"name the block, one of {', '.join(map(str, sorted(set(layers)))) or 'none'}."
            )
        n_layers = max(layers, default=-1) + 1 if known is None else known
        found = expand(site, self.sites, n_layers=n_layers, model_name="This collection")
        if len(found) > 1:
            shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
            raise SiteError(
                f"{site!r} stands for {len(found)} sites of these activations ({shown}): name one."
            )
        return found[0]

    def rows(self, site: str) -> Tensor:
        """[row, ...] activations at one site, given by its name or a pattern that stands for it alone.

        Raises:
            SiteError: no such site was collected, or the pattern stands for several; a block counted from the last
                where the number of the model's blocks is not known.
        """
        return self.values[self._name(site)]

    def __getitem__(self, site: str) -> Tensor:
        """[prompt, position, ...] activations, where every prompt has as many positions as the others.

        Raises:
            PositionError: prompts have different numbers of positions; use `rows` or `of_prompt`.
            SiteError: as of `rows`.
        """
        rows = self.rows(site)
        if not self.n_prompts:
            return rows.reshape(0, 0, *rows.shape[1:])
        counts = np.bincount(self.prompt, minlength=self.n_prompts)
        if len(set(counts.tolist())) != 1:
            raise PositionError(
                f"Prompts have between {counts.min()} and {counts.max()} positions here, so they do not make a "
                "grid: use `acts.rows(site)` with `acts.prompt` and `acts.position`, or `acts.of_prompt(i)`."
            )
        return rows.reshape(self.n_prompts, int(counts[0]), *rows.shape[1:])

    def of_prompt(self, index: int) -> dict[str, Tensor]:
        """Site -> [position, ...] activations of one prompt."""
        if not -self.n_prompts <= index < self.n_prompts:
            raise PositionError(
                f"Prompt {index} does not exist: there are {self.n_prompts} (0 to {self.n_prompts - 1})."
            )
        chosen = torch.from_numpy(self.prompt == index % self.n_prompts)
        return {site: rows[chosen] for site, rows in self.values.items()}

    def take(self, prompts: Sequence[int] | np.ndarray) -> Activations:
        """The activations of some prompts, in the order given, which become prompts 0, 1, …

        Args:
            prompts: their numbers, or a boolean mask over all prompts.

        Raises:
            PositionError: a prompt that does not exist, or a mask of another length.

        Example:
            >>> train, test = acts.take(np.arange(60)), acts.take(np.arange(60, 100))
        """
        chosen = np.asarray(prompts)
        if chosen.dtype == bool and chosen.shape == (self.n_prompts,):
            chosen = np.flatnonzero(chosen)
        wrong = chosen.ndim != 1 or (chosen.dtype.kind not in "iu" and len(chosen) > 0)
        if wrong or ((chosen < -self.n_prompts) | (chosen >= self.n_prompts)).any():
            raise PositionError(
                f"Prompts are taken by number, from 0 to {self.n_prompts - 1}, or by a mask over all {self.n_prompts}; "
                f"given was {np.array2string(chosen, threshold=6)}."
            )
        chosen = chosen.astype(np.int64) % max(self.n_prompts, 1)
        order = np.argsort(self.prompt, kind="stable")
        starts = np.searchsorted(self.prompt[order], np.arange(self.n_prompts + 1))
        parts = [order[starts[p] : starts[p + 1]] for p in chosen]
        rows = np.concatenate([*parts, np.empty(0, np.int64)])
        return Activations(
            values={site: values[torch.from_numpy(rows)] for site, values in self.values.items()},
            prompt=np.repeat(np.arange(len(chosen)), [len(part) for part in parts]),
            position=self.position[rows],
            token_id=self.token_id[rows],
            token=tuple(self.token[i] for i in rows),
            n_prompts=len(chosen),
            provenance=self.provenance,
        )

    def stack(self) -> Tensor:
        """[site, row, ...] all sites in one tensor; they must be of one width."""
        shapes = {tuple(v.shape[1:]) for v in self.values.values()}
        if len(shapes) != 1:
            raise DataError(
                f"Sites of different shapes do not stack: {sorted(shapes)}. Take them one by one."
            )
        return torch.stack(list(self.values.values()))

    def to_xarray(self) -> Any:
        """An xarray `Dataset` with dims `row`, … (bfloat16 becomes float32, which holds it exactly)."""
        import xarray as xr

        variables = {}
        for site, rows in self.values.items():
            dims = ("row", *(f"{site}:{i}" for i in range(rows.ndim - 1)))
            variables[site] = (dims, rows.float().numpy())
        coordinates = {
            "prompt": ("row", self.prompt),
            "position": ("row", self.position),
            "token_id": ("row", self.token_id),
            "token": ("row", np.array(self.token, dtype=str)),
        }
        return xr.Dataset(variables, coordinates, attrs={"provenance": self.provenance.to_dict()})

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file (rows, index and provenance), complete or not at all."""
        from safetensors.torch import save_file

        tensors = {f"site:{name}": rows.contiguous() for name, rows in self.values.items()}
        for name in ("prompt", "position", "token_id"):
            tensors[name] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        header = {
            "format": "latent-workbench activations 1",
            "sites": json.dumps(self.sites),
            "token": json.dumps(self.token, ensure_ascii=False),
            "n_prompts": str(self.n_prompts),
            "provenance": json.dumps(self.provenance.to_dict()),
        }
        with publish_file(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=header)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Read what `save` wrote. Raises `DataError` for a missing, damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), framework="pt") as file:
                header = file.metadata() or {}
                sites = json.loads(header["sites"])
                index = {n: file.get_tensor(n).numpy() for n in ("prompt", "position", "token_id")}
                return cls(
                    values={name: file.get_tensor(f"site:{name}") for name in sites},
                    token=tuple(json.loads(header["token"])),
                    n_prompts=int(header["n_prompts"]),
                    provenance=Provenance.from_dict(json.loads(header["provenance"])),
                    **index,
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{str(path)!r} holds no activations that can be read: {error}") from error


def collect(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    positions: Positions | Sequence[Sequence[int]] = -1,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> Activations:
    """Read activations at `sites` and `positions` of every prompt, into memory.

    Args:
        model: the language model.
        prompts: one prompt or many: texts, chats or token ids.
        sites: site names, globs or lists of them.
        positions: `"all"`, an index (negative counts from each prompt's end; -1, the default, is where the
            model decides what comes next), a list of indices, or one list per prompt. Rows of a prompt come in the
            order asked for. Arrays and tensors of whole numbers are as good as lists.
        tokens_per_batch: tokens in one forward pass, padding included. Results do not depend on it.
        check_finite: raise on NaN or infinite activations (one pass over what was read).
        progress: where to report, one item per prompt.

    Raises:
        SiteError, PositionError, PromptError: what was asked for does not exist.
        DataError: NaN or infinite activations, naming the site and the prompt.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    resolved = model.resolve(sites)
    encoded = batch(model, as_list(prompts))
    ids = [encoded.ids[i, :n].tolist() for i, n in enumerate(encoded.lengths)]
    wanted = positions_per_prompt(encoded, positions)
    progress.stage("collect", len(ids))
    longest = max(encoded.lengths)
    parts: dict[str, list[Tensor]] = {site.name: [] for site in resolved}
    order: list[int] = []
    for chosen in batches([len(row) for row in ids], tokens_per_batch):
        part = from_ids(model, [ids[i] for i in chosen], with_texts=False)
        for name, read in read_rows(model, part, resolved, [wanted[i] for i in chosen], longest).items():
            rows = read.cpu()
            if check_finite and not bool(torch.isfinite(rows).all()):
                _not_finite(model, name, rows, chosen, wanted)
            parts[name].append(rows)
        order += [i for i in chosen for _ in wanted[i]]
        progress.advance(len(chosen))
    back = torch.from_numpy(np.argsort(np.array(order), kind="stable"))
    prompt = np.array([i for i, w in enumerate(wanted) for _ in w], dtype=np.int64)
    position = np.array([p for w in wanted for p in w], dtype=np.int64)
    return Activations(
        values={name: torch.cat(rows)[back] for name, rows in parts.items()},
        prompt=prompt,
        position=position,
        token_id=np.array([ids[i][p] for i, w in enumerate(wanted) for p in w], dtype=np.int64),
        token=tuple(encoded.tokens[i][p] for i, w in enumerate(wanted) for p in w),
        n_prompts=len(ids),
        provenance=provenance(
            model,
            tokens=ids,
            seconds={"collect": time.perf_counter() - started},
            settings={"positions": str(positions)},
        ),
    )


def _not_finite(
    model: LanguageModel, site: str, rows: Tensor, chosen: list[int], wanted: list[list[int]]
) -> None:
    bad = ~torch.isfinite(rows.flatten(1)).all(1)
    owners = [i for i in chosen for _ in wanted[i]]
    first = owners[int(torch.nonzero(bad)[0])]
    raise DataError(
        f"{int(bad.sum())} of {len(bad)} activations at {site!r} are NaN or infinite, the first in prompt {first}. "
        f"{model.name} runs in {str(model.dtype).removeprefix('torch.')}: try dtype='float32', or look for damaged "
        "weights; `check_finite=False` keeps such rows."
    )
