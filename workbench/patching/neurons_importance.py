"""Importance of all neurons of all blocks: how much more probable the answer is with one neuron's value in the stream.

    v_{l,k} = m_{l,k} W_down[:, k]                       m: input of the down projection at the last token
    r_l     = resid_pre_l + attn_out_l                   what is there when the MLP of block l writes, at the last token
    Imp(l,k) = log p(t | r_l + v_{l,k}) - log p(t | r_l)

p is read off through the final norm and the unembedding. With M the linear map of `neurons_readout` and δ = M v / σ the
change of all logits, and q = softmax(logits of r_l),

    Imp = δ_t - log(1 + Σ_j q_j (e^{δ_j} - 1))

in which nothing cancels where δ is small, as for most neurons. M W_down[:, k] depends on the weights alone: it is one
matrix product per block for all prompts and all runs (d_mlp × d_model × d_vocab); what is left per run are
d_mlp × d_vocab exponentials. With the scale not held, σ of r_l + v is one number per neuron, and δ follows from it.

Where a norm stands behind the MLP (Gemma 2), v is taken through it at that run's own scale, so that the values of all
neurons (and the bias) still add up to what the MLP adds to the stream. That sum is checked on every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import ModelError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.patching.neurons_readout import AffineNorm, Readout, tolerance, working_dtype
from workbench.progress import Progress

NEURONS_PER_CALL = 256
"""Rows of d_vocab numbers that are held at once."""


@dataclass(frozen=True)
class Mlp:
    """What the neurons of one block write.

    Attributes:
        layer: the block.
        weight: [d_mlp, d_model] down projection, one row a neuron, as the model keeps it.
        bias: [d_model] of the down projection, in the precision that is worked in.
        post: the norm behind it (none for most).
    """

    layer: int
    weight: Float[Tensor, "neuron d_model"]
    bias: Float[Tensor, " d_model"]
    post: AffineNorm

    @classmethod
    def of(cls, model: LanguageModel, layer: int) -> Mlp:
        """The MLP of a block.

        Raises:
            SiteError: this architecture has no neurons in its blocks (routed experts).
            ModelError: a down projection without weights of its own (quantised).
        """
        (site,) = model.resolve(f"blocks.{layer}.mlp.hook_post")
        down, dtype = model.module(site.module), working_dtype(model)
        weight = getattr(down, "weight", None)
        transposed = type(down).__name__ == "Conv1D"  # GPT-2 stores [in, out]
        if not isinstance(weight, Tensor) or not (transposed or isinstance(down, nn.Linear)):
            raise ModelError(
                f"The down projection {site.module} is a {type(down).__name__}, not a linear layer with weights of its "
                "own. Load the model without quantisation."
            )
        rows = (weight if transposed else weight.T).detach()
        bias = getattr(down, "bias", None)
        post = AffineNorm.none(model.d_model, dtype, rows.device)
        if (path := model.catalog.map.paths.get("block.ln2_post")) is not None:
            module = model.module(f"{model.catalog.blocks_path}.{layer}.{path}")
            post = AffineNorm.of(module, model.d_model, dtype, rows.device)
        zero = torch.zeros(model.d_model, dtype=dtype, device=rows.device)
        return cls(layer, rows, zero if bias is None else bias.detach().to(zero), post)

    def coefficients(
        self, post: Float[Tensor, "... neuron"], out: Float[Tensor, "... d_model"], most: float
    ) -> Float[Tensor, "... neuron"]:
        """m over the scale of the norm behind, so that v = coefficient · direction.

        Args:
            post: input of the down projection.
            out: what the MLP added to the stream, which the neurons' values must add up to.
            most: how far off they may be, relative to the largest value.

        Raises:
            ModelError: they do not.
        """
        m = post.to(self.bias)
        written = m @ self.rows + self.bias
        scale = self.post.scale(written)[..., None]
        total, own = self.post.linear(written) / scale + self.post.bias, out.to(self.bias)
        error = float((total - own).abs().max() / own.abs().max().clamp(min=1e-6))
        if error > most:
            raise ModelError(
                f"In block {self.layer} the neurons' values do not add up to what the MLP adds to the stream (relative "
                f"difference {error:.1e}): this architecture changes them in between in a way that is not known here."
            )
        return m / scale

    @property
    def rows(self) -> Float[Tensor, "neuron d_model"]:
        """The down projection in the precision that is worked in: a copy where the model's is less."""
        return self.weight.to(self.bias)

    @property
    def directions(self) -> Float[Tensor, "neuron d_model"]:
        """What one unit of each neuron's coefficient adds to the stream."""
        return self.post.linear(self.rows)


def mlps(model: LanguageModel, layers: Sequence[int]) -> list[Mlp]:
    """The MLPs of some blocks, all of one width. Raises `SiteError` where they differ."""
    found = [Mlp.of(model, layer) for layer in layers]
    widths = sorted({len(one.weight) for one in found})
    if len(widths) > 1:
        raise SiteError(f"The MLPs have {widths} neurons in different blocks: ask for blocks of one width.")
    return found


@dataclass(frozen=True)
class Run:
    """One run at its last token.

    Attributes:
        streams: [layer, d_model] r_l.
        coefficients: [layer, neuron].
        target: the answer's token.
        scale: what the final norm's scale is held at; None: each stream's own.
        first: blocks below this one are not worked out (they are another run's).
    """

    streams: Float[Tensor, "layer d_model"]
    coefficients: Float[Tensor, "layer neuron"]
    target: int
    scale: Float[Tensor, ""] | None
    first: int = 0


SITES = ("hook_resid_pre", "hook_attn_out", "mlp.hook_post", "hook_mlp_out")


def sites_of(layers: Sequence[int]) -> list[str]:
    """What is read of a run."""
    return [f"blocks.{layer}.{part}" for layer in layers for part in SITES]


def streams_and_coefficients(
    model: LanguageModel, blocks: Sequence[Mlp], values: dict[str, Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """[layer, d_model] r_l and [layer, neuron] coefficients, from activations [...] of one token."""
    streams, coefficients = [], []
    for mlp in blocks:
        resid, attn, post, out = (values[f"blocks.{mlp.layer}.{part}"] for part in SITES)
        streams.append((resid.to(mlp.bias) + attn.to(mlp.bias)).to(device))
        coefficients.append(mlp.coefficients(post, out, tolerance(model)).to(device))
    return torch.stack(streams), torch.stack(coefficients)


@torch.inference_mode()
def importances(
    readout: Readout,
    blocks: Sequence[Mlp],
    runs: Sequence[Run],
    *,
    neurons_per_call: int,
    progress: Progress,
    also: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "run layer neuron"], Float[Tensor, "run layer neuron"] | None]:
    """Imp of every neuron in every run, on the CPU; 0 in blocks below a run's first.

    Args:
        readout: the model's.
        blocks: of which neurons; one for each layer of the runs.
        runs: streams and coefficients.
        neurons_per_call: rows of d_vocab numbers held at once. Results do not depend on it.
        progress: one item a block.
        also: another token of each run, whose importances are given second; they cost next to nothing.
    """
    shape = (len(runs), len(blocks), len(blocks[0].weight))
    out = torch.zeros(2 if also is not None else 1, *shape, dtype=readout.constant.dtype)
    for at, mlp in enumerate(blocks):
        here = [i for i, run in enumerate(runs) if run.first <= mlp.layer]
        bases = [_Base.of(readout, runs[i], at) for i in here]
        directions = mlp.directions.to(readout.device)
        some = torch.stack([runs[i].coefficients[at] != 0 for i in here]).any(0) if here else None
        alive = some.nonzero()[:, 0] if some is not None else torch.empty(0, dtype=torch.long)
        for chunk in alive.split(neurons_per_call):
            adds = readout.direction(directions[chunk])
            for i, base in zip(here, bases, strict=True):
                delta = base.change(readout, adds, directions[chunk], runs[i].coefficients[at, chunk])
                spread = base.log_normaliser(delta)
                targets = [runs[i].target] if also is None else [runs[i].target, also[i]]
                for n, target in enumerate(targets):
                    out[n, i, at, chunk.cpu()] = (delta[:, target] - spread).cpu()
        progress.advance()
    return out[0], out[1] if also is not None else None


@dataclass(frozen=True)
class _Base:
    """Reading off one stream, before a neuron's value is added."""

    stream: Tensor
    scale: Tensor
    held: bool
    log_p: Tensor
    linear: Tensor | None
    """[d_vocab] M r, where it is needed again."""

    @classmethod
    def of(cls, readout: Readout, run: Run, at: int) -> _Base:
        stream, held = run.streams[at], run.scale is not None
        scale = readout.norm.scale(stream) if run.scale is None else run.scale
        linear = readout.direction(stream)
        log_p = readout.finish(linear / scale + readout.constant).log_softmax(-1)
        return cls(stream, scale, held, log_p, linear if readout.capped or not held else None)

    def change(self, readout: Readout, adds: Tensor, directions: Tensor, m: Tensor) -> Tensor:
        """[neuron, d_vocab] δ of all logits, for directions whose M v is `adds` and their coefficients."""
        if self.held:
            delta = adds * (m / self.scale)[:, None]
        else:
            assert self.linear is not None
            scale = readout.norm.scale(self.stream + m[:, None] * directions)
            shrink = (self.scale - scale) / (scale * self.scale)
            delta = adds * (m / scale)[:, None] + self.linear * shrink[:, None]
        if readout.capped:
            assert self.linear is not None
            before = self.linear / self.scale + readout.constant
            delta = readout.finish(before + delta) - readout.finish(before)
        return delta

    def log_normaliser(self, delta: Tensor) -> Tensor:
        """[neuron] log Σ_j q_j e^{δ_j}."""
        grown = torch.expm1(delta) @ self.log_p.exp()
        found = torch.log1p(grown)
        wild = ~((grown > -0.5) & (grown < 1e6))  # cancels, or too large to be exact: by logarithms
        if wild.any():
            found[wild] = (self.log_p + delta[wild]).logsumexp(-1)
        return found
