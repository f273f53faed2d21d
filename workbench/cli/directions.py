"""`workbench directions`: the library of directions, and what one stands for."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SeedOption,
    new_app,
    print_summary,
    print_table,
    progress_bars,
)
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.directions import Entry, Library
    from workbench.results import Result

app = new_app("List, compare, read and write directions.")

LibraryOption = Annotated[
    Path | None,
    typer.Option(
        "--library",
        help="Folder of the library [default: $WORKBENCH_DIRECTIONS or the user's data folder].",
    ),
]
Name = Annotated[str, typer.Argument(help="Name in the library (see `workbench directions list`).")]
ForceOption = Annotated[bool, typer.Option("--force", help="Use it on, or beside, another model's.")]


@app.command("list", epilog="Example: workbench directions list --tag probe")
def list_(
    words: Annotated[
        list[str] | None, typer.Argument(help="Words that name, site, source, model or tags have.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Only those at this site.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """List the directions of the library, all or those in which some words occur."""
    mine = _library(library)
    matching = {e.name for e in mine.search(" ".join(words))} if words else None
    found = [e for e in mine.entries(site=site, tag=tag) if matching is None or e.name in matching]
    if json:
        typer.echo(jsonlib.dumps([_facts(e) for e in found], indent=1, ensure_ascii=False))
        return
    columns = ["name", "site", "width", "source", "model", "scale", "saved", "tags"]
    if found:
        print_table(columns, [_row(e) for e in found])
    typer.echo(f"{len(found)} of {len(mine)} in {mine.folder}")


@app.command(epilog="Example: workbench directions show truth")
def show(name: Name, library: LibraryOption = None, json: JsonOption = False) -> None:
    """Show what is known about a direction: where it belongs, how it was made, what its scale rests on."""
    mine = _library(library)
    entry = mine.entry(name)
    found = mine.load(name)  # an error here says what is wrong with the file
    members = [found] if entry.kind == "direction" else list(found)  # type: ignore[arg-type]
    keys = ("name", "site", "width", "scale", "source", "model_fingerprint", "settings", "provenance")
    facts = [{key: getattr(d, key) for key in keys} for d in members]  # type: ignore[union-attr]
    if json:
        typer.echo(jsonlib.dumps({**_facts(entry), "directions": facts}, indent=1, ensure_ascii=False))
        return
    print_summary({k: v for k, v in _facts(entry).items() if v not in ("", None, [], ())})
    rows = [[d["name"], d["site"], f"{d['scale']:.4g}", d["source"]] for d in facts]
    if len(rows) > 1:
        print_table(["direction", "site", "scale", "source"], rows)
    if settings := {k: v for k, v in facts[0]["settings"].items() if len(rows) == 1}:
        print_summary({k: jsonlib.dumps(v, ensure_ascii=False) for k, v in settings.items()})


@app.command(epilog="Example: workbench directions tokens truth --model smollm2-135m -k 10")
def tokens(
    name: Name,
    model: ModelOption = "smollm2-135m",
    k: Annotated[int, typer.Option("-k", help="Tokens of each side.")] = 10,
    at: Annotated[str | None, typer.Option(help="Site, of a set that has several.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Norm of what is added [default: the direction's scale].")
    ] = None,
    network: Annotated[bool, typer.Option(help="Also with the blocks after its site running.")] = True,
    n_random: Annotated[int, typer.Option(help="Random directions of the control.")] = 20,
    seed: SeedOption = 0,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    save: Annotated[Path | None, typer.Option(help="Also save the result, as a Zarr folder.")] = None,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Show the tokens a direction promotes and suppresses, beside random directions of the same strength."""
    from workbench.directions import DirectionSet, top_tokens
    from workbench.model.loading import load_model

    mine = _library(library)
    found = mine.load(name)
    if isinstance(found, DirectionSet):
        one = found[at] if at else mine.direction(name)
    elif at in (None, found.site):
        one = found
    else:
        raise DataError(f"{name!r} is one direction, at {found.site!r} and not at {at!r}: leave --at out.")
    loaded = load_model(model, device=device, dtype=dtype)
    with progress_bars(show=not json) as progress:
        result = top_tokens(
            loaded,
            one,
            k,
            strength=strength,
            network=network,
            n_random=n_random,
            seed=seed,
            force=force,
            progress=progress,
        )
    _keep(result, save)
    data = result.data
    if json:
        typer.echo(jsonlib.dumps(_tokens_json(result), indent=1, ensure_ascii=False))
        return
    for effect in data["effect"].values:
        at_effect = data.sel(effect=effect)
        typer.echo(f"\n{str(effect).replace('_', ' ')} ({at_effect['units'].item()})")
        columns, rows = ["k"], [[str(i + 1)] for i in range(data.sizes["k"])]
        for side in data["side"].values:
            columns += [str(side), "change", "95 % interval", "random"]
            cell = at_effect.sel(side=side)
            for i, row in enumerate(rows):
                low, high, control = (float(cell[n][i]) for n in ("low", "high", "control_mean"))
                value = float(cell["value"][i])
                interval = f"[{low:+.3f}, {high:+.3f}]" if low == low else ""
                row += [repr(str(cell["token"].values[i])), f"{value:+.3f}", interval, f"{control:+.3f}"]
        print_table(columns, rows)
    print_summary(result.summary)


@app.command(epilog="Example: workbench directions compare truth sentiment happy")
def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more of the library; of sets all members.")],
    force: ForceOption = False,
    save: Annotated[Path | None, typer.Option(help="Also save the result, as a Zarr folder.")] = None,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Show the cosines between directions, beside those of random ones."""
    from workbench.directions import direction_cosines
    from workbench.directions.named import members_named

    result = direction_cosines(members_named(names, _library(library)), force=force)
    _keep(result, save)
    if json:
        cosines = {
            "labels": result.data["direction"].values.tolist(),
            "cosine": result.data["cosine"].values.tolist(),
        }
        typer.echo(jsonlib.dumps({**cosines, "summary": result.summary}, indent=1, ensure_ascii=False))
        return
    labels = [str(label) for label in result.data["direction"].values]
    rows = [
        [label, *(f"{c:+.3f}" for c in row)]
        for label, row in zip(labels, result.data["cosine"].values, strict=True)
    ]
    print_table(["cosine", *labels], rows)
    print_summary(result.summary)


@app.command("import", epilog="Example: workbench directions import happy.gguf --name happy --tag repeng")
def import_(
    file: Annotated[Path, typer.Argument(help="Ours, a GGUF control vector, safetensors or JSON by layer.")],
    name: Annotated[str | None, typer.Option(help="Name in the library [default: the file's].")] = None,
    layer_type: Annotated[
        str, typer.Option(help="decoder_block, self_attn or mlp, where the file does not say.")
    ] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given several times.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over what has that name.")] = False,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Read a direction file into the library. Pickles are refused."""
    from workbench.directions import DirectionSet, read

    mine = _library(library)
    found = read(file, name=name or "", layer_type=layer_type)
    mine.save(name or file.stem, found, tags=tag or (), replace=replace)
    entry = mine.entry(name or file.stem)
    zero = found.settings.get("zero_layers", []) if isinstance(found, DirectionSet) else []
    if json:
        typer.echo(jsonlib.dumps({**_facts(entry), "zero_layers": zero}, indent=1, ensure_ascii=False))
        return
    several = "s" if entry.n > 1 else ""
    typer.echo(f"{entry.name}: {entry.n} direction{several} of width {entry.width} at {entry.site}.")
    if zero:
        typer.echo(f"Left out, because nothing is added there: layers {', '.join(map(str, zero))}.")


@app.command(epilog="Example: workbench directions export happy happy.gguf --hint llama")
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="Ends in .gguf, .safetensors or .json.")],
    hint: Annotated[str, typer.Option(help="Architecture, for a GGUF control vector.")] = "",
    native: Annotated[
        bool, typer.Option("--native", help="Our own format (safetensors), which keeps everything.")
    ] = False,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Write a direction or set for other programs: scale times vector, by layer."""
    from workbench.directions import Direction, DirectionSet, write

    found = _library(library).load(name)
    if native:
        found.save(file)
    else:
        write(DirectionSet([found]) if isinstance(found, Direction) else found, file, model_hint=hint)
    size = file.stat().st_size
    typer.echo(
        jsonlib.dumps({"name": name, "file": str(file), "bytes": size})
        if json
        else f"Wrote {file} ({size:,} bytes)."
    )


@app.command(epilog="Example: workbench directions rename truth truth-14")
def rename(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new name.")],
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Give a direction of the library another name."""
    path = _library(library).rename(name, new)
    typer.echo(jsonlib.dumps({"name": new, "path": str(path)}) if json else f"{name} is called {new} now.")


@app.command(epilog="Example: workbench directions tag truth --add probe --add layer-14")
def tag(
    name: Name,
    add: Annotated[list[str] | None, typer.Option(help="A tag to add; may be given several times.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to take away.")] = None,
    library: LibraryOption = None,
    json: JsonOption = False,
) -> None:
    """Add tags to a direction of the library, or take some away."""
    tags = _library(library).tag(name, add=add or (), remove=remove or ())
    typer.echo(
        jsonlib.dumps({"name": name, "tags": tags}) if json else f"{name}: {', '.join(tags) or 'no tags'}"
    )


@app.command(epilog="Example: workbench directions delete truth")
def delete(name: Name, library: LibraryOption = None, json: JsonOption = False) -> None:
    """Remove a direction from the library for good."""
    mine = _library(library)
    mine.delete(name)
    typer.echo(jsonlib.dumps({"deleted": name}) if json else f"Deleted {name} from {mine.folder}.")


def _library(path: Path | None) -> Library:
    from workbench.directions import library

    return library(path)


def _facts(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "sites": list(entry.sites), "tags": list(entry.tags)}


def _row(e: Entry) -> list[str]:
    if e.problem:
        return [e.name, f"cannot be read: {e.problem}", "", "", "", "", "", ""]
    scale = "" if e.scale is None else f"{e.scale:.4g}"
    model = e.model or e.fingerprint[:8]
    return [
        e.name,
        e.site,
        str(e.width),
        e.source,
        model,
        scale,
        e.saved[:16].replace("T", " "),
        ", ".join(e.tags),
    ]


def _tokens_json(result: Result) -> dict[str, Any]:
    names = ("token", "token_id", "value", "low", "high", "control_mean", "p_value")
    data = result.data
    cells = {
        str(effect): {
            str(side): {name: data[name].sel(effect=effect, side=side).values.tolist() for name in names}
            for side in data["side"].values
        }
        for effect in data["effect"].values
    }
    return {"summary": result.summary, "effects": cells, "provenance": result.provenance.to_dict()}


def _keep(result: Result, path: Path | None) -> None:
    if path is not None:
        result.save(path)
