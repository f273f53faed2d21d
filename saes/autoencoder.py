"""`SparseAutoencoder`: activations at one site <-> sparse features.

    f = encode(x)        x_hat = decode(f)        error = x - x_hat

Whatever the architecture (standard, top-k, JumpReLU, gated, …), nothing is attached to the model, so no other
hook is disturbed. Where an autoencoder scales its input row by row (layer norm, constant norm), features alone do
not say how large the activation was: `decode` then takes the activations as well. Heads are flattened
([..., head, d_head] -> [..., d_in]) on the way in; `reconstruct` restores them.
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
    scale_from: Callable[[Tensor], object] | None = field(default=None, repr=False)
    """Takes the scale of [..., d_in] activations for the next `decode_flat`; None where none is needed."""

    @torch.inference_mode()
    def encode(self, activations: Tensor) -> Tensor:
        """[..., d_in] activations -> [..., d_sae] features; [..., head, d_head] where d_head is not d_in itself.

        Raises:
            DataError: another width.
        """
        return self.encode_flat(self._flat(activations))

    @torch.inference_mode()
    def decode(self, features: Tensor, like: Tensor | None = None) -> Tensor:
        """[..., d_sae] features -> [..., d_in] reconstruction.

        Args:
            features: [..., d_sae], also edited ones.
            like: [..., d_in] the activations the features belong to, row by row. Needed only where the
                autoencoder normalises its input: their scale is given back to the reconstruction.

        Raises:
            DataError: another number of features; `like` is missing where it is needed, or has other rows.
        """
        if features.shape[-1] != self.d_sae:
            raise DataError(f"{features.shape[-1]} features were given, this autoencoder has {self.d_sae}.")
        if self.scale_from is not None:
            if like is None:
                raise DataError(
                    "This autoencoder normalises its input, so features alone do not say how large the "
                    "activation was: decode(features, like=activations), or reconstruct(activations)."
                )
            flat = self._flat(like)
            if flat.shape[:-1] != features.shape[:-1]:
                raise DataError(
                    f"`like` has rows {list(flat.shape[:-1])}, the features {list(features.shape[:-1])}: give the "
                    "activations that the features were encoded from."
                )
            self.scale_from(flat)
        return self.decode_flat(features.to(self.decoder.dtype))

    def reconstruct(self, activations: Tensor) -> Tensor:
        """`decode(encode(x))` in the shape of `x`."""
        return self.decode(self.encode(activations), like=activations).reshape(activations.shape)

    def explained_variance(self, activations: Tensor) -> float:
        """1 - ||x - x_hat||² / ||x - mean(x)||²; 1 is perfect, 0 is the mean.

        Every axis but the last (or the last two: heads) counts rows, and the mean is that of all rows.

        Raises:
            DataError: the rows do not differ (or there is only one), so that there is no variance to explain.
        """
        flat = self._flat(activations).float().reshape(-1, self.d_in)
        total = (flat - flat.mean(0)).square().sum()
        if len(flat) < 2 or total == 0:
            raise DataError(
                f"There is no variance to explain in {len(flat)} row{'s' * (len(flat) != 1)} of activations: "
                "at least two that differ are needed."
            )
        residual = flat - self._flat(self.reconstruct(activations)).float().reshape(-1, self.d_in)
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
        # A last axis of the right width is no head: [1, d_in] is one row.
        by_head = activations.ndim >= 2 and activations.shape[-1] != self.d_in
        if by_head and activations.shape[-2:].numel() == self.d_in:
            activations = activations.flatten(-2)
        if activations.shape[-1] != self.d_in:
            raise DataError(
                f"Activations of width {activations.shape[-1]} were given; this autoencoder reads "
                f"{self.d_in} at {self.site or 'an unnamed site'}."
            )
        return activations.to(self.decoder.dtype)
