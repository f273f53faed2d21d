"""Edge attribution patching (EAP): which node's output matters to which later node, every pair at once.

    score(s -> r)  =  sum over positions of  (a'_s - a_s) · g_r

a_s is what sender s adds to the residual stream in the base run, a'_s in the source run; g_r is the gradient of the
metric at the input of receiver r: at the residual stream *as r reads it*, before r's own norm, through r's branch
alone. The skip connection that runs past r is not in it, so a score is the first-order effect of changing what r, and
only r, is told by s.

Senders, in the order they write: `input` (the stream that enters block 0: token and position embeddings), `a3.h5` (head
5 of block 3, projected to the stream) or `a3` (the whole attention), `m3` (the MLP of block 3). Receivers: `a3`, `m3`
and `logits` (the last norm and what follows). A pair has a score where the sender writes before the receiver reads:
in sequential blocks a3 -> m3 is an edge; in parallel ones (NeoX, GPT-J) attention and MLP read the same stream and it
is not. Where they share one norm, which then cannot be told apart, they are one receiver, `a3+m3`. Other pairs are NaN.

Since the stream is the sum of what senders add, the scores of all senders of r add up to
(stream' - stream) · g_r. Where a norm stands behind the attention's projection (Gemma 2), a head's part of the sum is
defined to first order: the difference in z, projected, through that norm's Jacobian at the base run.

Syed et al. 2023 (2310.10348); with `integrate`, EAP-IG "inputs" (Hanna et al. 2024, 2403.17806). There, q,
k and v of each head are receivers of their own; here a block's attention is one, whose score is the sum of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import SiteError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.first_order import Direction, Expansion, Runs
from workbench.patching.gradients import INPUT, TOKENS_PER_BACKWARD, Activations, precise
from workbench.patching.metrics import Metric, MetricFunction
from workbench.progress import Progress, Silent
from workbench.results import Result, array
from workbench.sites.catalog import Site


@torch.inference_mode(False)
def edges(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | MetricFunction | Sequence[Metric],
    *,
    heads: bool = True,
    direction: Direction = "denoising",
    integrate: int = 0,
    control: bool = True,
    seed: int = 0,
    tokens_per_backward: int = TOKENS_PER_BACKWARD,
    progress: Progress | None = None,
) -> Result:
    """Score every edge between a node's output and a later node's input.

    Args:
        model: the language model, with frozen parameters or not.
        clean, corrupt: one prompt each, or as many as there are pairs. All have the same number of tokens.
        metric: logits -> number, differentiable; one for all pairs, or one per pair.
        heads: senders are attention heads; else whole attention layers.
        direction, integrate, control, seed, tokens_per_backward, progress: as in `attribution`. EAP-IG is integrate=5.

    Returns:
        A `Result` of kind `edge_attribution`, dims `pair`, `sender`, `receiver`, float64, NaN where there is no edge:
        `score` (in the metric's units), `effect` (divided by m(source) - m(base)), `control_effect`, `mean_effect` with
        `effect_se`, `effect_low`, `effect_high` and `p_value`, `clean_metric`, `corrupt_metric`. `summary["strongest"]`
        is the edge of largest mean effect, `summary["n_edges"]` their number.

    Raises:
        PromptError, MetricError: as in `attribution`.
        SiteError: this architecture's stream is not the sum of what its nodes add, or a node reads something else.

    Example:
        >>> result = edges(model, clean, corrupt, wb.LogitDifference(" Mary", " John"), integrate=5)
        >>> result.data["mean_effect"].sel(sender="a9.h6", receiver="logits")
    """
    progress, started = progress or Silent(), time.perf_counter()
    runs = Runs.to_expand(model, clean, corrupt, metric, direction, integrate)
    graph = Graph.of(model, heads=heads)
    scores, wrong, ends = [], [], []
    progress.stage("attribute edges", len(runs.pairs))
    for one in runs.expand(
        graph.points, [r.point for r in graph.receivers], control, seed, tokens_per_backward
    ):
        graph.check(one.base)
        ends.append(one.ends)
        scores.append(graph.scores(one, one.delta))
        if one.wrong is not None:
            wrong.append(graph.scores(one, one.wrong))
        progress.advance()
    causal = graph.causal
    listed = runs.outcome(
        ends, [s[causal] for s in scores], [s[causal] for s in wrong] if control else None,
        layers=range(int(causal.sum())), axes=(), settings={"kind": "edges", "heads": str(heads)},
        seed=seed, seconds=time.perf_counter() - started,
    ).result(model)  # fmt: skip
    return _as_matrix(listed, graph, np.stack(scores))


@dataclass(frozen=True)
class Sender:
    """A node's output: where it is, and from when on it is in the stream."""

    name: str
    site: str
    stage: int
    head: int | None = None


@dataclass(frozen=True)
class Receiver:
    """A node's input: where it is, when it is read, and the site that equals it."""

    name: str
    point: str
    stage: int
    stream: str


class Graph:
    """Senders and receivers of one model, and the places to read them from."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.senders: list[Sender] = [Sender("input", INPUT, 0)]
        self.receivers: list[Receiver] = []
        self._points: dict[str, Site] = {}
        self.heads = False

    @classmethod
    def of(cls, model: LanguageModel, *, heads: bool) -> Graph:
        """The graph of a model; raises `SiteError` where it has none."""
        graph = cls(model)
        graph.heads = heads
        parallel = model.catalog.map.parallel
        paths = model.catalog.map.paths
        for layer in range(model.n_layers):
            block = f"blocks.{layer}"
            graph._add(f"{block}.hook_resid_pre", f"{block}.hook_attn_out", f"{block}.hook_mlp_out")
            if heads:
                graph._add(f"{block}.attn.hook_z")
                graph.senders += [
                    Sender(f"a{layer}.h{h}", f"{block}.attn.hook_z", 2 * layer + 1, h)
                    for h in range(model.n_heads)
                ]
            else:
                graph.senders.append(Sender(f"a{layer}", f"{block}.hook_attn_out", 2 * layer + 1))
            graph.senders.append(Sender(f"m{layer}", f"{block}.hook_mlp_out", 2 * layer + 2))
            shared = parallel and "block.ln2" not in paths
            name = f"a{layer}+m{layer}" if shared else f"a{layer}"
            graph._reads(layer, name, "ln1", 2 * layer, f"{block}.hook_resid_pre")
            if not shared:
                stream = f"{block}.{'hook_resid_pre' if parallel else 'hook_resid_mid'}"
                graph._add(stream)
                graph._reads(layer, f"m{layer}", "ln2", 2 * layer + (not parallel), stream)
        last = f"blocks.{model.n_layers - 1}.hook_resid_post"
        graph._add(last)
        graph.receivers.append(Receiver("logits", last, 2 * model.n_layers, last))
        return graph

    @property
    def points(self) -> list[Site]:
        return list(self._points.values())

    @property
    def causal(self) -> np.ndarray:
        """[sender, receiver] whether the sender writes before the receiver reads."""
        written = np.array([s.stage for s in self.senders])
        read = np.array([r.stage for r in self.receivers])
        return written[:, None] <= read[None, :]

    def check(self, base: Activations) -> None:
        """Does every receiver read the stream, and do heads make up the attention's output, in this very run?"""
        for receiver in self.receivers:
            self._same(
                base[receiver.point], base[receiver.stream], f"{receiver.name} does not read the stream"
            )
        for layer in range(self.model.n_layers) if self.heads else ():
            with torch.no_grad():
                whole = self._after(layer, self._projected(layer, base[f"blocks.{layer}.attn.hook_z"]))
            out = base[f"blocks.{layer}.hook_attn_out"]
            self._same(whole, out, f"the heads of block {layer} do not make up its attention's output")

    @torch.no_grad()
    def scores(self, one: Expansion, delta: Activations) -> np.ndarray:
        """[sender, receiver] sum over positions and coordinates of a change times the receivers' gradients."""
        first = one.gradients[self.receivers[0].point].device
        gradients = torch.stack([precise(one.gradients[r.point]).to(first) for r in self.receivers])
        rows = [delta[INPUT][None]]
        for layer in range(self.model.n_layers):
            block = f"blocks.{layer}"
            z = f"{block}.attn.hook_z"
            rows.append(
                self._heads(layer, one.base[z], delta[z])
                if self.heads
                else delta[f"{block}.hook_attn_out"][None]
            )
            rows.append(delta[f"{block}.hook_mlp_out"][None])
        parts = [torch.einsum("spd,rpd->sr", precise(row).to(first), gradients) for row in rows]
        return torch.cat(parts).double().cpu().numpy()

    def _heads(self, layer: int, z: Tensor, delta: Tensor) -> Tensor:
        """[head, position, d_model] what a change of each head's z alone adds to the stream."""
        n = delta.shape[1]
        alone = torch.zeros(n, *delta.shape, dtype=delta.dtype, device=delta.device)
        index = torch.arange(n, device=delta.device)
        alone[index, :, index] = delta.transpose(0, 1)
        change = self._projected(layer, alone) - self._projected(layer, torch.zeros_like(delta))
        if self._post_norm(layer) is None:
            return change
        at = self._projected(layer, z).expand_as(change).clone()
        return torch.func.jvp(lambda x: self._after(layer, x), (at,), (change,))[1]  # type: ignore[return-value]

    def _projected(self, layer: int, z: Tensor) -> Tensor:
        site = self.model.catalog[f"blocks.{layer}.attn.hook_z"]
        return self.model.module(site.module)(z.flatten(-2))

    def _after(self, layer: int, projected: Tensor) -> Tensor:
        norm = self._post_norm(layer)
        return projected if norm is None else norm(projected)

    def _post_norm(self, layer: int) -> torch.nn.Module | None:
        path = self.model.catalog.map.paths.get("block.ln1_post")
        return None if path is None else self.model.block(layer).get_submodule(path)

    def _add(self, *names: str) -> None:
        for name in names:
            self._points[name] = self.model.resolve(name)[0]

    def _reads(self, layer: int, name: str, norm: str, stage: int, stream: str) -> None:
        path = self.model.catalog.map.paths.get(f"block.{norm}")
        module = f"{self.model.catalog.blocks_path}.{layer}.{path}"
        if path is None or not self.model.catalog.has_module(module):
            self._refuse(f"TransformerLens names no norm ({norm}) before {name}")
        like = self.model.catalog[f"blocks.{layer}.hook_resid_pre"]
        point = f"blocks.{layer}.{norm}.hook_in"
        self._points[point] = replace(like, name=point, part=f"{norm}.hook_in", module=module, flat=True)
        self.receivers.append(Receiver(name, point, stage, stream))

    def _same(self, a: Tensor, b: Tensor, otherwise: str) -> None:
        scale = b.abs().max().clamp(min=1e-6)
        if bool((a.to(b) - b).abs().max() > 2e-2 * scale):
            self._refuse(otherwise)

    def _refuse(self, why: str) -> None:
        raise SiteError(
            f"{self.model.name} ({self.model.catalog.map.architecture}) has no edges to score: {why}. Use "
            "`attribution`, which needs no graph, or heads=False."
        )


def _as_matrix(listed: Result, graph: Graph, scores: np.ndarray) -> Result:
    """From a list of edges to sender × receiver."""
    causal = graph.causal
    variables = {"score": array(("pair", "sender", "receiver"), np.where(causal, scores, np.nan))}
    for name, value in listed.data.data_vars.items():
        if "layer" not in value.dims or name == "metric":
            continue
        full = np.full((*value.shape[:-1], *causal.shape), np.nan)
        full[..., causal] = value.values
        dims = (*map(str, value.dims[:-1]), "sender", "receiver")
        variables[str(name)] = array(dims, full, **value.attrs)
    variables["score"][2]["long_name"] = f"{listed.data.attrs['metric']}, estimated change"
    for name in ("clean_metric", "corrupt_metric"):
        variables[name] = array(("pair",), listed.data[name].values, **listed.data[name].attrs)
    coords = {
        "pair": listed.data["pair"].values,
        "sender": np.array([s.name for s in graph.senders]),
        "receiver": np.array([r.name for r in graph.receivers]),
    }
    data = xr.Dataset(variables, coords=coords, attrs=listed.data.attrs)
    summary = dict(listed.summary)
    strongest = dict(summary["strongest"])
    at = np.argwhere(causal)[strongest.pop("layer")]
    names = {"sender": str(coords["sender"][at[0]]), "receiver": str(coords["receiver"][at[1]])}
    summary |= {"strongest": names | strongest, "n_edges": int(causal.sum())}
    return Result("edge_attribution", data, listed.provenance, summary)
