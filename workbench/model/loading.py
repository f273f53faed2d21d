"""`load_model`: an alias, a Hugging Face hub id, a local folder, or objects already in memory.

Nothing about the model is changed on the way in: its attention implementation (SDPA, flash, eager) and its
weights stay as transformers loads them. `trust_remote_code` stays off unless asked for by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ModelError, did_you_mean
from workbench.model.language_model import LanguageModel
from workbench.model.quiet import quiet_transformers

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_model(
    source: str | Path | tuple[Any, Any],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    loops: int | None = None,
    **kwargs: Any,
) -> LanguageModel:
    """Load a causal language model and name its sites.

    Args:
        source: an alias (`smollm2-135m`), a model organism (`addition`, see `workbench models list`), a hub id
            (`org/model`), a folder, or `(hf_model, tokenizer)`.
        device: `"auto"` takes CUDA, then Apple's MPS, then the CPU; or any torch device. A model given as an
            object stays where it is. Not together with `device_map`.
        dtype: `"auto"` keeps the checkpoint's own; or `float32`, `bfloat16`, `float16`. On recent CPUs
            bfloat16 is about three times as fast; float32 is the exact choice and what `smollm2-135m` comes in.
        device_map: spread over several GPUs as transformers does it, for instance `"auto"`.
        revision: branch, tag or commit on the hub; only for a hub id.
        trust_remote_code: run Python that comes with the checkpoint. Off unless you say so.
        loops: how often a depth-recurrent model runs its core (`workbench.model.looped`); None takes the
            checkpoint's own number. Every repetition has its own sites.
        **kwargs: to `AutoModelForCausalLM.from_pretrained` (for instance `quantization_config`,
            `attn_implementation`).

    A model given as an object is taken as it is: `dtype`, `device_map`, `revision` and `kwargs` are then errors.

    Raises:
        ModelError: unknown name (near ones are listed), no network, unreadable folder, unknown architecture, a
            checkpoint that lacks weights, an argument that would have no effect.

    Example:
        >>> model = wb.load_model("smollm2-135m", dtype="bfloat16")
        >>> model.n_layers
        30
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ModelError(f"A model given as objects is (hf_model, tokenizer), not {len(source)} items.")
        hf, tokenizer = source
        _refuse_for_objects({"dtype": dtype, "device_map": device_map, "revision": revision, **kwargs})
        _unroll(hf, loops)
        return LanguageModel(hf, tokenizer, name=_object_name(hf))
    if device_map is not None and device != "auto":
        raise ModelError(
            f"device={str(device)!r} and device_map={device_map!r} both say where the model goes: give one of them."
        )
    folder, name = _locate(source)
    if revision is not None and Path(folder).is_dir():
        raise ModelError(
            f"revision={revision!r} names a branch, tag or commit on the hub, but {name!r} is a folder "
            f"({folder}), which has none: leave it away."
        )
    target = resolve_device(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **kwargs}
    if revision is not None:
        options["revision"] = revision
    hf, tokenizer = _from_pretrained(folder, name, resolve_dtype(dtype), device_map, options)
    if device_map is None and not getattr(hf, "is_quantized", False):
        hf = hf.to(target)
    _unroll(hf, loops)
    return LanguageModel(hf, tokenizer, name=name, revision=revision)


def resolve_device(device: str | torch.device) -> torch.device:
    """`"auto"` -> CUDA, MPS or CPU, in that order; anything else as torch reads it."""
    if device != "auto":
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"Device {device!r} is not known: give auto, cpu, cuda, cuda:1 or mps."
            ) from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ModelError("Device 'cuda' was asked for, but torch sees no GPU here: use device='auto'.")
        if found.type == "cuda" and (found.index or 0) >= (n := torch.cuda.device_count()):
            raise ModelError(
                f"Device {str(found)!r} was asked for, but torch sees {n} GPU{'s' * (n > 1)} here, counted from 0."
            )
        if found.type == "mps" and not torch.backends.mps.is_available():
            raise ModelError("Device 'mps' was asked for, but torch has no MPS here: use device='auto'.")
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """`"auto"` stays; names become torch dtypes."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known: give auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _unroll(hf: Any, loops: int | None) -> None:
    """Repeat the core of a depth-recurrent model; nothing for all others."""
    if loops is not None or getattr(getattr(hf, "config", None), "looped", None) is not None:
        from workbench.model.looped import unroll

        unroll(hf, loops)


def _locate(source: str | Path) -> tuple[str, str]:
    """Where transformers should load from, and the name to show."""
    from workbench.model import aliases, pull

    text = str(source)
    path = Path(text).expanduser()
    looks_local = isinstance(source, Path) or text.startswith((".", "/", "~"))
    if not looks_local:
        if text in aliases.BUILT_IN:
            return str(pull.ensure(text)), text
        organisms = shipped_models()
        if text in organisms:
            return str(organisms[text]), text
        if text in aliases.known():  # only now: the entry points of installed packages
            return str(pull.ensure(text)), text
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"Folder {text!r} holds no config.json: expected a transformers checkpoint.")
        return str(path), path.resolve().name
    if looks_local and path.exists():
        raise ModelError(f"{text!r} is a file: give the folder of the checkpoint, with its config.json.")
    if looks_local:
        raise ModelError(f"Folder {text!r} does not exist.")
    if text.count("/") != 1:
        known = sorted({*aliases.known(), *shipped_models()})
        raise ModelError(
            f"No model is called {text!r}.{did_you_mean(text, known)} Give one of {', '.join(known)}, a hub id "
            "such as 'EleutherAI/pythia-70m', or a folder."
        )
    return text, text


def shipped_models() -> dict[str, Path]:
    """The small trained models that come with the project: name -> folder."""
    from workbench.datasets.paths import models_folder

    folder = models_folder()
    if not folder.is_dir():
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def _from_pretrained(
    folder: str, name: str, dtype: Any, device_map: Any, options: dict[str, Any]
) -> tuple[Any, Any]:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    placed = options | ({"device_map": device_map} if device_map is not None else {})
    shared = {k: v for k, v in options.items() if k in ("revision", "trust_remote_code")}
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **placed
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **shared)
        except (
            OSError,
            ValueError,
            ImportError,
            RuntimeError,
            SafetensorError,
            StrictDataclassError,
        ) as error:
            raise ModelError(_why(folder, name, error)) from error
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ModelError(_why(folder, name, error)) from error
    hf, report = loaded
    _refuse_incomplete(name, report)
    return hf, tokenizer


def _refuse_incomplete(name: str, report: dict[str, Any]) -> None:
    """What a checkpoint lacks transformers draws at random, and says so in a warning only."""
    resized = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    missing = sorted(
        set(report["missing_keys"]) - resized
    )  # other sizes were allowed by name, or have raised
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"The checkpoint {name!r} lacks {len(missing)} of the model's weights ({shown}), which would be random "
            "numbers. Is it whole, and of the architecture that its config.json names?"
        )


def _refuse_for_objects(given: dict[str, Any]) -> None:
    """Arguments about how a checkpoint is read say nothing about a model that is in memory already."""
    unused = [
        key for key, value in given.items() if value is not None and not (key == "dtype" and value == "auto")
    ]
    if unused:
        raise ModelError(
            f"{', '.join(unused)}: without effect on a model given as (hf_model, tokenizer), which is taken as it is. "
            "Set it when you make the model."
        )


def _why(folder: str, name: str, error: Exception) -> str:
    """One line out of transformers' many."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines) if lines[0].endswith(":") else lines[0]  # where what matters comes after it
    if Path(folder).is_dir():
        return f"The checkpoint {name!r} cannot be loaded: {first}"
    offline = os.environ.get("HF_HUB_OFFLINE") == "1" or os.environ.get("TRANSFORMERS_OFFLINE") == "1"
    unreachable = (
        "couldn't connect",
        "offline",
        "connection",
        "name resolution",
        "to resolve",  # not alone: every address of a file on the hub has the word in it
        "timed out",
        "not found in the cache",
    )
    if offline or any(word in text.lower() for word in unreachable):
        state = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        return (
            f"Model {name!r} is not in the local hub cache and {state}: download it where there is network, "
            "give a local folder, or use the alias smollm2-135m."
        )
    return f"Model {name!r} cannot be loaded from the hub: {first}"


def _object_name(hf: Any) -> str:
    return getattr(getattr(hf, "config", None), "_name_or_path", "") or type(hf).__name__
