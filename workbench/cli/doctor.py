"""`workbench doctor`: is everything here that is needed, and what can this machine do?"""

from __future__ import annotations

import json as jsonlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from workbench.cli.common import DtypeOption, JsonOption, new_app, print_table

app = new_app()
PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens", "xarray", "zarr", "plotly", "dash")


@app.command(epilog="Example: workbench doctor --model smollm2-135m")
def doctor(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also load this model and check its sites.")
    ] = None,
    dtype: DtypeOption = "auto",
    json: JsonOption = False,
) -> None:
    """Check packages, devices, caches and, with --model, that a model's sites mean what they say."""
    facts: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing: reinstall latent-workbench"
    facts.update(_devices())
    facts.update(_folders())
    if model is not None:
        facts.update(_check_model(model, dtype))
    if json:
        typer.echo(jsonlib.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_table(["", ""], [[name.replace("_", " "), str(value)] for name, value in facts.items()])


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": gpus or "none",
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
    }


def _folders() -> dict[str, Any]:
    from workbench.model.cache import cache_folder
    from workbench.runs import list_runs, runs_folder

    cache = cache_folder()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    return {
        "cache": str(cache),
        "cache_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "runs": f"{runs_folder()} ({len(list_runs())} runs)",
    }


def _check_model(name: str, dtype: str) -> dict[str, Any]:
    from workbench.model.loading import load_model

    model = load_model(name, dtype=dtype)
    sites = model.sites()
    missing = dict(model.catalog.missing)
    return {
        "model": repr(model),
        "fingerprint": model.fingerprint,
        "sites": len(sites),
        "residual_bookkeeping": "holds" if "blocks.0.hook_attn_out" in sites else "does not hold",
        "sites_it_lacks": missing or "none",
    }
