"""What both analyses of neurons need: prompts, answers, weights and runs, and the way to a result."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, at_least_one
from workbench.patching.cells import check_layers
from workbench.patching.mediation_answers import Tokens, token_ids
from workbench.patching.neurons_heads import Head, last_token_without_heads
from workbench.patching.neurons_importance import Mlp, Run, mlps, sites_of, streams_and_coefficients
from workbench.patching.neurons_readout import Readout
from workbench.patching.replay import Replay
from workbench.provenance import provenance
from workbench.results import Result, array


class Work:
    """Prompts, answers and weights of one analysis.

    Args:
        model: the language model.
        prompts: one or several.
        answers: one token each.
        layers: of which blocks neurons are looked at; None for all.
        freeze: hold the final norm's scale at that of the original run.

    Raises:
        SiteError, ModelError: an architecture whose neurons cannot be told apart (see `neurons_importance`).
        PromptError, MetricError, DataError: prompts, answers or layers that cannot be.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Prompt | Sequence[Prompt],
        answers: Tokens,
        layers: Sequence[int] | int | None,
        freeze: bool,
    ) -> None:
        self.model, self.freeze = model, freeze
        self.batches: list[TokenBatch] = [model.batch(prompt) for prompt in at_least_one(prompts)]
        self.targets = token_ids(model, answers, len(self.batches))
        chosen = check_layers(layers, model.n_layers, model.name)
        self.sites = [site.name for site in model.resolve(sites_of(chosen))]
        self.blocks: list[Mlp] = mlps(model, chosen)
        self.readout = Readout(model)
        self.log_p: list[float] = []
        self.correct: list[bool] = []

    @torch.inference_mode()
    def base(self, i: int, replay: Replay) -> Run:
        """The run of prompt `i` as it is; notes its answer."""
        last = replay.inputs[-1][-1]
        self.readout.check(last, replay.logits)
        wide = replay.logits.to(self.readout.constant)
        self.log_p.append(float(wide.log_softmax(-1)[self.targets[i]]))
        self.correct.append(int(wide.argmax()) == self.targets[i])
        with self.model.hooks(read=self.sites, select=lambda value, _site: value[0, -1]) as session:
            self.model.forward(self.batches[i], logits_to_keep=1)
        values = {site: session[site] for site in self.sites}
        streams, m = streams_and_coefficients(self.model, self.blocks, values, self.readout.device)
        scale = self.readout.norm.scale(last.to(self.readout.constant)) if self.freeze else None
        return Run(streams, m, self.targets[i], scale)

    @torch.inference_mode()
    def without(self, replay: Replay, heads: Sequence[Head], base: Run, tokens_per_call: int) -> list[Run]:
        """The same run with heads of one block silent, each alone; blocks below theirs are left as they are."""
        first = heads[0][0]
        above = [block for block in self.blocks if block.layer >= first]
        sites = sites_of([block.layer for block in above])
        runs = []
        for values in last_token_without_heads(replay, heads, sites, tokens_per_call):
            streams, m = streams_and_coefficients(self.model, above, values, self.readout.device)
            n = len(self.blocks) - len(above)
            streams, m = torch.cat([base.streams[:n], streams]), torch.cat([base.coefficients[:n], m])
            runs.append(Run(streams, m, base.target, base.scale, first))
        return runs

    def dataset(self, variables: dict[str, object], attrs: dict[str, object]) -> xr.Dataset:
        """With labels."""
        variables["log_p"] = array(("prompt",), self.log_p, long_name="log p(answer), nats")
        variables["correct"] = array(("prompt",), self.correct, long_name="the answer is the first choice")
        scale = "held at the original run's last stream" if self.freeze else "each stream's own"
        return xr.Dataset(
            variables,  # pyright: ignore[reportArgumentType]
            coords={
                "prompt": np.arange(len(self.batches)),
                "layer": np.array([block.layer for block in self.blocks]),
                "neuron": np.arange(len(self.blocks[0].weight)),
            },
            attrs={**attrs, "final_norm_scale": scale, "n_prompts": len(self.batches)},
        )

    def summary(self) -> dict[str, object]:
        """What both analyses say first."""
        return {
            "n_prompts": len(self.batches),
            "n_correct": int(np.sum(self.correct)),
            "log_p": round(float(np.mean(self.log_p)), 4),
        }

    def result(
        self,
        data: xr.Dataset,
        summary: dict[str, object],
        seed: int,
        started: float,
        settings: dict[str, object],
    ) -> Result:
        """With provenance."""
        ids = [batch.ids[0].tolist() for batch in self.batches]
        seconds = {"neurons": time.perf_counter() - started}
        settings = {"answers": self.targets, **settings}
        made = provenance(self.model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
        return Result("neuron_importance", data, made, summary)
