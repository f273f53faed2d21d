"""Loading sparse autoencoders in sae-lens' formats. The one module that imports sae_lens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from saes.autoencoder import SparseAutoencoder
from workbench.errors import ModelError


def load(source: str | Path, sae_id: str | None = None, *, device: str = "cpu") -> SparseAutoencoder:
    """Load a sparse autoencoder.

    Args:
        source: a folder that sae-lens wrote (`cfg.json` and `sae_weights.safetensors`), or the name of one of
            its releases, with `sae_id` naming the autoencoder in it.
        sae_id: within a release, for instance `blocks.7.hook_resid_pre`.
        device: where its weights go.

    Raises:
        ModelError: no such folder, a folder without the two files or with damaged ones, an unknown release, no
            network, or a transcoder or temporal autoencoder (neither gives back what it reads, row by row).

    Example:
        >>> saes.load("my-sae").d_sae
        >>> saes.load("gpt2-small-res-jb", "blocks.7.hook_resid_pre").site
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens import SAE
    from safetensors import SafetensorError

    unreadable = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
    folder = Path(source).expanduser()
    if folder.is_dir():
        missing = [n for n in ("cfg.json", "sae_weights.safetensors") if not (folder / n).is_file()]
        if missing:
            raise ModelError(
                f"Folder {str(source)!r} is not a sae-lens autoencoder: {', '.join(missing)} missing."
            )
        try:
            return _wrap(SAE.load_from_disk(folder, device=device), str(source))
        except unreadable as error:
            why = f"its settings lack {error}" if isinstance(error, KeyError) else error
            raise ModelError(f"The autoencoder in {str(source)!r} cannot be loaded: {why}") from error
    if sae_id is None:
        raise ModelError(
            f"{str(source)!r} is no folder. For a sae-lens release also give the autoencoder in it: "
            "saes.load(release, sae_id)."
        )
    try:
        return _wrap(SAE.from_pretrained(str(source), sae_id, device=device), f"{source}/{sae_id}")
    except unreadable as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"Autoencoder {sae_id!r} of release {str(source)!r} cannot be loaded: {first}"
        ) from error


def _wrap(sae: Any, source: str) -> SparseAutoencoder:
    from sae_lens import TemporalSAE, Transcoder

    if isinstance(sae, Transcoder | TemporalSAE):
        raise ModelError(
            f"{source!r} holds a {sae.cfg.architecture()}, not an autoencoder that gives back the activations it "
            "reads row by row: use it with sae_lens itself."
        )
    # Heads are flattened here, for every autoencoder alike.
    sae.turn_off_forward_pass_hook_z_reshaping()
    settings = sae.cfg.to_dict()
    metadata = settings.get("metadata") or {}
    normalises = sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale")
    return SparseAutoencoder(
        site=metadata.get("hook_name") or "",
        d_in=sae.cfg.d_in,
        d_sae=sae.cfg.d_sae,
        decoder=sae.W_dec.detach(),
        source=source,
        settings=settings,
        encode_flat=sae.encode,
        decode_flat=sae.decode,
        scale_from=sae.run_time_activation_norm_fn_in if normalises else None,
    )
