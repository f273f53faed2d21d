"""`workbench collect`: activations of a file or set of prompts, into a store or one safetensors file."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    new_app,
    print_table,
    progress_bars,
)

app = new_app()

Engine = Literal["local", "ray"]
_OF_ONE_FILE = ("data", "out", "sites", "positions", "limit", "model", "device", "dtype", "json")
_OF_RAY = ("workers", "cpus_per_worker", "gpus_per_worker", "address")


@app.command(
    epilog="Example: workbench collect plain-text --sites 'blocks.15.hook_resid_post' --positions all --out acts/"
)
def collect(
    command: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="A prompt set by name; a .jsonl, .parquet, .csv or .txt file; a folder or hub id of `datasets`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store, or one file ending in .safetensors.")],
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Site names or globs, several times [default: blocks.*.hook_resid_post]."),
    ] = None,
    positions: Annotated[
        list[str] | None,
        typer.Option(
            "--positions",
            "--position",
            help="all, last, -1 or 0,3,-1, span:NAME, answer, match:REGEX, token:TEXT, role:NAME; several times "
            "for all of them together [default: last].",
        ),
    ] = None,
    special: Annotated[str, typer.Option(help="keep or drop special tokens (BOS, EOS, template).")] = "keep",
    context: Annotated[
        int | None, typer.Option(help="Split longer texts into contexts of so many tokens.")
    ] = None,
    overlap: Annotated[int, typer.Option(help="Tokens that neighbouring contexts share.")] = 0,
    pack: Annotated[bool, typer.Option("--pack", help="Join texts into contexts of that length.")] = False,
    generate: Annotated[
        int | None, typer.Option(help="Let the model write so many tokens and store their rows.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of that generation; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of that generation's sampling.")] = 0,
    rows_dtype: Annotated[
        str, typer.Option(help="Of the rows: auto (the model's), float32, bfloat16 or float16.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="At most so many items.")] = None,
    text_column: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows in one file of the store.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Tokens in one forward pass.")] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Refuse a folder that holds a store, rather than going on with it."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="NaN or infinite values are an error.")] = False,
    engine: Annotated[
        Engine,
        typer.Option(help="local: in this process. ray: several models at once, on one machine or many."),
    ] = "local",
    workers: Annotated[int, typer.Option(help="Of the engine ray: models at once.")] = 1,
    cpus_per_worker: Annotated[float, typer.Option(help="Of the engine ray.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="Of the engine ray.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster, auto for the one of this machine [default: one for this call]."),
    ] = None,
    model: ModelOption = "smollm2-135m",
    device: DeviceOption = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="Spread the model over several GPUs, for instance auto.")
    ] = None,
    dtype: DtypeOption = "auto",
    json: JsonOption = False,
) -> None:
    """Collect activations at some sites and positions of every prompt.

    A store that was begun is gone on with when the same command is given again.
    """
    from workbench.model.loading import load_model

    wanted = _positions(positions or ["last"])
    chosen = sites or ["blocks.*.hook_resid_post"]
    if out.suffix == ".safetensors":
        others = [name for name in command.params if name not in _OF_ONE_FILE]
        _refuse(
            command, others, "is for a store (--out FOLDER), not for one file: give a folder, or leave it out"
        )
        _into_one_file(data, out, chosen, wanted, limit, model, device, dtype, json)
        return
    if generate is None:
        _refuse(command, ("temperature", "seed"), "is for --generate: give how many tokens, or leave it out")
    if engine == "local":
        _refuse(command, _OF_RAY, "is for --engine ray: give that as well, or leave it out")
    from workbench.collection.generation import Generation
    from workbench.collection.to_store import collect_to

    sizes = {"rows_per_shard": rows_per_shard, "tokens_per_batch": tokens_per_batch}
    options: dict[str, Any] = {
        "sites": chosen,
        "positions": wanted,
        "dtype": rows_dtype,
        "special": special,
        "context": context,
        "overlap": overlap,
        "pack": pack,
        "limit": limit,
        "strict": strict,
        **{name: size for name, size in sizes.items() if size is not None},
    }
    if generate is not None:
        options["generate"] = Generation(max_new_tokens=generate, temperature=temperature, seed=seed)
    began = time.monotonic()
    with progress_bars(show=not json) as progress:
        if engine == "ray":
            from workbench.collection.on_ray import collect_with_ray

            store = collect_with_ray(
                out,
                model,
                data,
                **options,
                workers=workers,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                address=address,
                model_options={"device": device, "dtype": dtype, "device_map": device_map},
                text_column=text_column,
                resume=not fresh,
                progress=progress,
            )
        else:
            loaded = load_model(model, device=device, dtype=dtype, device_map=device_map)
            store = collect_to(
                out, loaded, data, **options, text_column=text_column, resume=not fresh, progress=progress
            )
    facts = {
        "store": str(out),
        "rows": len(store),
        "sites": len(store.sites),
        "prompts": store.manifest.n_prompts,
        "dtype": store.manifest.sites[0].dtype,
        "seconds": round(time.monotonic() - began, 1),
    }
    _show(facts, json)


def _refuse(command: typer.Context, names: Iterable[str], why: str) -> None:
    """An error for options that would have no effect, where they are not at their defaults."""
    from workbench.errors import DataError

    options = {option.name: option for option in command.command.params}
    given = [options[n].opts[0] for n in names if command.params[n] != options[n].default]
    if given:
        raise DataError(f"{', '.join(given)} {why}.")


def _positions(given: list[str]) -> Any:
    """Rules as they are; `0,3,-1` as indices."""
    out: list[Any] = []
    for rule in given:
        pieces = rule.split(",")
        if all(piece.strip().lstrip("-").isdigit() for piece in pieces):
            out += [int(piece) for piece in pieces]
        else:
            out.append(rule)
    return out[0] if len(out) == 1 else out


def _into_one_file(
    data: str, out: Path, sites: list[str], positions: Any, limit: int | None, model: str, device: str, dtype: str,
    json: bool,
) -> None:  # fmt: skip
    from workbench.activations import collect as collect_activations
    from workbench.datasets import load
    from workbench.errors import PositionError
    from workbench.model.loading import load_model

    known = -1 if positions == "last" else positions
    if (isinstance(known, str) and known != "all") or (
        isinstance(known, list) and any(isinstance(p, str) for p in known)
    ):
        raise PositionError(
            f"One file holds rows by index: give 'all', 'last' or whole numbers such as '-1' or '0,3', not "
            f"{positions!r}; a store (`--out FOLDER`) knows all rules."
        )
    prompts = load(data, limit=limit).texts
    loaded = load_model(model, device=device, dtype=dtype)
    with progress_bars(show=not json) as progress:
        acts = collect_activations(loaded, prompts, sites, known, progress=progress)
    acts.save(out)
    seconds, tokens = acts.provenance.seconds["collect"], acts.provenance.inputs["n_tokens"]
    facts = {
        "file": str(out),
        "rows": len(acts),
        "sites": len(acts.sites),
        "prompts": acts.n_prompts,
        "tokens_per_second": round(tokens / seconds, 1),
    }
    _show(facts, json)


def _show(facts: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps(facts, indent=1))
    else:
        print_table(["", ""], [[name.replace("_", " "), str(value)] for name, value in facts.items()])
