"""The way from a stream to logits, taken apart so that what one vector adds to all logits is a matrix product.

A layer norm or RMS norm is affine but for one number, its scale:

    N(x) = g ∘ (x - c mean(x)) / σ(x) + b        σ(x) = sqrt(mean((x - c mean(x))²) + eps)
                                                 c = 1 for a layer norm, 0 for an RMS norm

With σ held at σ0, logits are affine in the stream: logits(x) = M x / σ0 + constant, where M takes away c times the
mean, multiplies by g, and unembeds. So M v is worked out once for a vector v and serves every stream it is added to and
every scale.

g, b, c and eps are found by giving the norm a few inputs, so every class of norm that has this form is read right,
whatever its gain is called (Gemma's is 1 + weight); one that does not have it is an error. `Readout.check` holds the
result against the model's own logits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.model.language_model import LanguageModel


def working_dtype(model: LanguageModel) -> torch.dtype:
    """What neurons' values and logits are worked out in: single precision, or the model's where it is double."""
    return torch.promote_types(model.dtype, torch.float32)


def tolerance(model: LanguageModel) -> float:
    """How far sums of parts may be from the model's own values, relative to the largest of them."""
    return (
        1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    )  # norms of double models work in single


@dataclass(frozen=True)
class AffineNorm:
    """A norm as gain, bias and the rule for its scale.

    Attributes:
        gain, bias: [d_model].
        centred: whether the mean is taken away (layer norm).
        eps: added to the mean square; None where there is no norm, so that the scale is 1.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    eps: float | None

    @classmethod
    def of(cls, module: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> AffineNorm:
        """Read a norm by its outputs.

        Raises:
            ModelError: it is neither a layer norm nor an RMS norm.
        """
        norm = copy.deepcopy(module).to("cpu", torch.float64)
        for one in norm.modules():
            one._forward_hooks.clear()
            one._forward_pre_hooks.clear()
        probe = torch.ones(width, dtype=torch.float64)
        with torch.inference_mode():
            bias = norm(torch.zeros_like(probe))
            centred = bool(torch.allclose(norm(probe), bias, atol=1e-6))
            probe[1::2] = -1
            plain = cls(torch.ones_like(bias), torch.zeros_like(bias), centred, 0.0)
            gain = (norm(1e3 * probe) - bias) / (plain.linear(probe) / plain.scale(probe))
            small = gain * plain.linear(1e-3 * probe)
            inverse = (norm(1e-3 * probe) - bias) @ small / (small @ small)
            eps = max(0.0, float(inverse**-2 - plain.scale(1e-3 * probe) ** 2))
            found = cls(gain, bias, centred, eps)
            generator = torch.Generator().manual_seed(0)
            for size in (0.03, 1.0, 30.0):
                x = size * (torch.randn(width, generator=generator, dtype=torch.float64) + 0.3)
                expected, got = norm(x), found.linear(x) / found.scale(x) + bias
                if not torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
                    raise ModelError(
                        f"The norm {type(module).__name__} is neither a layer norm nor an RMS norm, so what one neuron "
                        "adds cannot be told apart from the rest. Ablate neurons instead (`ablate_neurons`)."
                    )
        return cls(gain.to(device, dtype), bias.to(device, dtype), centred, eps)

    @classmethod
    def none(cls, width: int, dtype: torch.dtype, device: torch.device) -> AffineNorm:
        """No norm: the identity."""
        one = torch.ones(width, dtype=dtype, device=device)
        return cls(one, torch.zeros_like(one), centred=False, eps=None)

    def linear(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """g ∘ (x - c mean(x)): the norm but for its scale and its bias."""
        return self._centre(x) * self.gain

    def scale(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
        """σ(x)."""
        if self.eps is None:
            return torch.ones_like(x[..., 0])
        return (self._centre(x).pow(2).mean(-1) + self.eps).sqrt()

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


class Readout:
    """Final norm and unembedding of a model, as a linear map, a constant and a cap.

    Args:
        model: the language model. Its unembedding is taken in single precision (a copy where it is in less).

    Attributes:
        norm: the final norm.
        constant: [d_vocab] logits that biases give, whatever the stream is.

    Raises:
        ModelError: a final norm or an unembedding of another form.

    Example:
        >>> readout = Readout(model)
        >>> at_scale = readout.norm.scale(stream)
        >>> readout.logits(stream, at_scale)          # the model's own
    """

    def __init__(self, model: LanguageModel) -> None:
        paths, catalog = model.catalog.map.paths, model.catalog
        self._name, self._tolerance = model.name, tolerance(model)
        dtype = working_dtype(model)
        unembed = model.module(paths["unembed"])
        if not isinstance(unembed, nn.Linear):
            raise ModelError(
                f"The unembedding of {model.name} is a {type(unembed).__name__}, not a linear layer with weights of "
                "its own, so logits cannot be taken apart by neuron. Load the model without quantisation."
            )
        self.device = unembed.weight.device
        self._unembed = unembed.weight.detach().to(dtype)
        self._project: nn.Linear | None = None
        if "project_out" in paths and catalog.has_module(paths["project_out"]):
            self._project = model.module(paths["project_out"])  # type: ignore[assignment]
        self.norm = AffineNorm.none(model.d_model, dtype, self.device)
        if "ln_final" in paths:
            self.norm = AffineNorm.of(model.module(paths["ln_final"]), model.d_model, dtype, self.device)
        config = model.config
        self._factor = float(getattr(config, "logit_scale", None) or 1) / float(
            getattr(config, "logits_scaling", None) or 1
        )
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        zero = self._logits_of(self.norm.bias)
        if self._project is not None and self._project.bias is not None:
            zero = zero + self._project.bias.detach().to(zero) @ self._unembed.T * self._factor
        if unembed.bias is not None:
            zero = zero + unembed.bias.detach().to(zero) * self._factor
        self.constant: Float[Tensor, " d_vocab"] = zero

    def direction(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """What vectors add to the logits (before a cap) at scale 1: M v."""
        return self._logits_of(self.norm.linear(vectors))

    def finish(self, logits: Float[Tensor, "... d_vocab"]) -> Float[Tensor, "... d_vocab"]:
        """What the model does last: a soft cap, or nothing."""
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @property
    def capped(self) -> bool:
        """Whether logits are not linear even at a fixed scale."""
        return self._cap is not None

    def logits(
        self, stream: Float[Tensor, "*row d_model"], scale: Float[Tensor, "*row"]
    ) -> Float[Tensor, "*row d_vocab"]:
        """Logits of a stream, with the final norm's scale held at `scale`."""
        return self.finish(self.direction(stream) / scale[..., None] + self.constant)

    def check(self, stream: Float[Tensor, " d_model"], logits: Float[Tensor, " d_vocab"]) -> None:
        """Raise `ModelError` unless the last stream gives the model's own logits."""
        x = stream.to(self.constant)
        own, got = logits.to(self.constant), self.logits(x, self.norm.scale(x))
        error = float((got - own).abs().max() / own.abs().max().clamp(min=1.0))
        if error > self._tolerance:
            raise ModelError(
                f"Norm and unembedding of {self._name} do not give its own logits from the last stream (relative "
                f"difference {error:.1e}): this architecture does more after its last block than is known here, so "
                "neurons' contributions would mislead."
            )

    def _logits_of(self, normed: Tensor) -> Tensor:
        if self._project is not None:
            normed = normed @ self._project.weight.detach().to(normed).T
        return normed @ self._unembed.T * self._factor
