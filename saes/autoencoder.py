"""`SparseAutoencoder`: activations at one site <-> sparse features.

    f = encode(x)        x_hat = decode(f)        error = x - x_hat

Whatever the architecture (standard, top-k, JumpReLU, gated, …), `encode` and `decode` are pure functions:
nothing is attached to the model, so no other hook is disturbed. Heads are flattened ([..., head, d_head] ->
[..., d]) on the way in and restored on the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A dictionary of features for one site.

    Attributes:
        site: TransformerLens name of the site it reads, or "" if its file does not say.
        d_in: width of the activation (heads flattened).
        d_sae: number of features.
        decoder: [d_sae, d_in] decoder rows.
        source: where it was loaded from.
        settings: its own configuration.

    Example:
        >>> sae = saes.load("sae-folder")
        >>> sae.direction(17).scale        # norm of the decoder row
    """

    site: str
    d_in: int
    d_sae: int
    decoder: Tensor = field(repr=False)
    source: str
    settings: dict[str, Any] = field(repr=False)
    encode_flat: Callable[[Tensor], Tensor] = field(repr=False)
    decode_flat: Callable[[Tensor], Tensor] = field(repr=False)

    @torch.inference_mode()
    def encode(self, activations: Tensor) -> Tensor:
        """[..., d_in] (or [..., head, d_head]) activations -> [..., d_sae] features."""
        return self.encode_flat(self._flat(activations))

    @torch.inference_mode()
    def decode(self, features: Tensor) -> Tensor:
        """[..., d_sae] features -> [..., d_in] reconstruction."""
        if features.shape[-1] != self.d_sae:
            raise DataError(f"{features.shape[-1]} features were given, this autoencoder has {self.d_sae}.")
        return self.decode_flat(features.to(self.decoder.dtype))

    def reconstruct(self, activations: Tensor) -> Tensor:
        """`decode(encode(x))` in the shape of `x`."""
        return self.decode(self.encode(activations)).reshape(activations.shape)

    def explained_variance(self, activations: Tensor) -> float:
        """1 - ||x - x_hat||² / ||x - mean(x)||² over rows [row, ...]; 1 is perfect, 0 is the mean."""
        flat = self._flat(activations).float()
        residual = flat - self._flat(self.reconstruct(activations)).float()
        total = (flat - flat.mean(0)).square().sum()
        return float(1 - residual.square().sum() / total)

    def direction(self, feature: int) -> Direction:
        """A feature's decoder row as a `Direction`; its scale is the row's norm."""
        if not 0 <= feature < self.d_sae:
            raise DataError(f"Feature {feature} does not exist: this autoencoder has 0–{self.d_sae - 1}.")
        return Direction.from_vector(
            self.decoder[feature].detach().float(),
            site=self.site,
            name=f"feature {feature}",
            source="sae",
            settings={"feature": feature, "sae": self.source},
        )

    def _flat(self, activations: Tensor) -> Tensor:
        if activations.ndim >= 2 and activations.shape[-2:].numel() == self.d_in:
            activations = activations.flatten(-2)
        if activations.shape[-1] != self.d_in:
            raise DataError(
                f"Activations of width {activations.shape[-1]} were given; this autoencoder reads "
                f"{self.d_in} at {self.site or 'an unnamed site'}."
            )
        return activations.to(self.decoder.dtype)
