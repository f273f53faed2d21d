"""What periodic codes the shipped organisms have, and which claims of the papers hold on them.

Rows: for `addition` how numbers are written, R² by layer and basis on held-out numbers, the causal patch at the
token of a with decimal and with chosen periods; spectra of embeddings; for `multiplication-cot` running sums by
token. Then one row a claim: the paper's words, the verdict ("holds", "holds in kind", "does not hold", "cannot be
tested at this size") and the numbers. Goals: what must be found if the probes work on these models.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.common import Goal, Report, machine, main
from benchmarks.known_periodic_claims import best, claims, periods_text


def run(seed: int = 0, problems: int = 1500, pairs: int = 200, threads: int = 2) -> Report:
    """Probe the three organisms."""
    import torch

    import workbench as wb
    from probes import periodic

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    report = Report(settings={**machine(), "seed": seed, "problems": problems, "pairs": pairs})
    found: dict[str, Any] = {}
    started = time.perf_counter()

    model = wb.load_model("addition", device="cpu", dtype="float32")
    task = periodic.NumberTask("{a} + {b} =", range(100), range(100))
    acts = periodic.read_numbers(model, task, seed=seed)
    _layout(report, model, task, acts)
    sweep = periodic.helix_sweep(acts.rows, acts.numbers, n_splits=8, seed=seed, where=acts.provenance).data
    _r2_rows(report, sweep)
    decimal = periodic.helix_patch(model, task, n_pairs=pairs, seed=seed).data
    own = periodic.helix_patch(model, task, periods=4, n_pairs=pairs, seed=seed).data
    found["last"] = _sums_at_the_last_token(report, wb, periodic, model, seed)
    _patch_rows(report, decimal, "2, 5, 10, 100")
    _patch_rows(report, own, periods_text(own["period"].values[0, 0]) + " (chosen; first fold)")
    found |= {"sweep": sweep, "decimal": decimal, "own": own}

    found["spectra"] = _spectra(report, wb, periodic, model, seed)
    found["digits"] = _digits(report, wb, periodic, seed)
    for name in ("multiplication-cot", "multiplication-direct"):
        one = wb.load_model(name, device="cpu", dtype="float32")
        sums = periodic.running_sum_probe(one, name, n=problems, n_shuffles=3, seed=seed).data
        _sum_rows(report, name, sums)
        found[name] = sums
    report.rows += claims(found)
    _goals(report, found)
    report.settings["seconds"] = round(time.perf_counter() - started, 1)
    torch.set_num_threads(before)
    return report


def _layout(report: Report, model: Any, task: Any, acts: Any) -> None:
    ids = model.batch(task.prompt(12, 34)).ids[0].tolist()
    report.rows.append(
        {
            "table": "layout",
            "model": model.name,
            "prompt": task.prompt(12, 34),
            "tokens": " | ".join(model.tokenizer.decode([i]) for i in ids),
            "token of a": acts.position,
            "note": "every number from -99 to 198 is one word; before the other operand, so one vector a number",
        }
    )


def _r2_rows(report: Report, data: Any) -> None:
    for layer in data["layer"].values:
        for basis in data["basis"].values:
            here = data.sel(layer=layer, basis=basis, k=9)
            report.rows.append(
                {
                    "table": "R² on held-out numbers",
                    "layer": int(layer),
                    "basis": str(basis),
                    "columns": int(here["n_columns"]),
                    "R²": round(float(here["r2"]), 3),
                    "over splits": f"{float(here['r2_low']):.3f} to {float(here['r2_high']):.3f}",
                    "null": round(float(here["null_r2"]), 3),
                    "numbers": data.attrs["n_numbers"],
                }
            )


def _patch_rows(report: Report, data: Any, periods: str) -> None:
    for layer in data["layer"].values:
        for source in data["source"].values:
            here = data.sel(layer=layer, source=source)
            ends = f"{float(here['mean_effect_low']):.2f} to {float(here['mean_effect_high']):.2f}"
            report.rows.append(
                {
                    "table": "causal patch at a",
                    "periods": periods,
                    "layer": int(layer),
                    "put in": str(source),
                    "columns": int(here["n_columns"]),
                    "effect": round(float(here["mean_effect"]), 2),
                    "interval": ends,
                    "share of layer patch": round(float(here["share"]), 3),
                    "logit change": round(float(here["mean_logit_change"]), 2),
                    "p(new)": round(float(here["mean_probability"]), 3),
                    "new answer first": round(float(here["mean_success"]), 3),
                    "n": data.attrs["n"],
                }
            )


def _sums_at_the_last_token(report: Report, wb: Any, periodic: Any, model: Any, seed: int) -> Any:
    """R² of a helix of a + b at the last token, 800 sums."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 100, (2, 800))
    acts = wb.collect(
        model, [f"{x} + {y} =" for x, y in zip(a, b, strict=True)], "blocks.*.hook_resid_post", -1
    )
    rows = {i + 1: acts[site][:, 0].numpy() for i, site in enumerate(acts.sites)}
    data = periodic.helix_sweep(rows, a + b, sizes=(9,), n_splits=4, seed=seed, where=acts.provenance).data
    for layer in data["layer"].values:
        here = data.sel(layer=layer, k=9)
        row = {"table": "a + b at the last token", "layer": int(layer), "n": data.attrs["n"]}
        row |= {
            f"R² {basis}": round(float(here["r2"].sel(basis=basis)), 3)
            for basis in ("chosen", "helix", "pca")
        }
        row |= {"null": round(float(here["null_r2"].sel(basis="chosen")), 3)}
        report.rows.append(row | {"between sums": round(float(here["between"]), 3)})
    return data


def _spectra(report: Report, wb: Any, periodic: Any, addition: Any, seed: int) -> dict[str, Any]:
    from workbench import organisms

    zero = organisms.get("addition").table["0"]
    modular = wb.load_model("modular-addition", device="cpu", dtype="float32")
    tables = {
        "modular-addition": {
            "embedding": _weights(modular, "in")[:113],
            "unembedding": _weights(modular, "out")[:113],
        },
        "addition": {
            "embedding": _weights(addition, "in")[zero : zero + 100],
            "unembedding": _weights(addition, "out")[zero : zero + 100],
        },
    }
    found = {}
    for name, each in tables.items():
        data = periodic.number_spectrum(each, seed=seed).data
        found[name] = data
        for table in data["table"].values:
            for removed in data["removed"].values:
                here = data.sel(table=table, removed=removed)
                best = np.argsort(-here["power"].values)[:6]
                report.rows.append(
                    {
                        "table": "spectrum",
                        "model": name,
                        "weights": str(table),
                        "removed": str(removed),
                        "strongest periods": ", ".join(f"{data['period'].values[i]:.3g}" for i in best),
                        "power in 4": round(float(here["share"].sel(top=4)), 3),
                        "in 6": round(float(here["share"].sel(top=6)), 3),
                        "in 6, permuted (97.5 %)": round(float(here["null_share_high"].sel(top=6)), 3),
                        "p": round(float(here["p_value"].sel(top=6)), 4),
                        "line": round(float(data["line"].sel(table=table)), 3),
                        "n": data.attrs["n"],
                    }
                )
    return found


def _weights(model: Any, side: str) -> Any:
    layer = model.hf.get_input_embeddings() if side == "in" else model.hf.get_output_embeddings()
    return layer.weight.detach()


def _digits(report: Report, wb: Any, periodic: Any, seed: int) -> dict[str, Any]:
    from workbench import organisms

    model = wb.load_model("multiplication-cot", device="cpu", dtype="float32")
    zero = organisms.get("multiplication-cot").table["0"]
    found = {}
    for side, name in (("in", "embedding"), ("out", "unembedding")):
        found[name] = periodic.digit_fit(_weights(model, side)[zero : zero + 10], seed=seed)
        report.rows.append(
            {"table": "digit Fourier basis", "model": model.name, "weights": name}
            | {key: round(value, 3) for key, value in found[name].items()}
        )
    return found


def _sum_rows(report: Report, name: str, data: Any) -> None:
    """At each token the layer after which a target is read best; n held out and controls beside it."""
    for target in data["target"].values:
        for position, at in enumerate(data["at"].values):
            here = data.sel(target=target, position=position)
            if not np.isfinite(here["r2"].values).any() or not _shown(str(target), str(at)):
                continue
            best = here.isel(layer=int(np.nanargmax(here["r2"].values)))
            report.rows.append(
                {
                    "table": "running sums",
                    "model": name,
                    "target": str(target),
                    "at": str(best["at"].values),
                    "best layer": int(best["layer"]),
                    "R²": round(float(best["r2"]), 3),
                    "interval": f"{float(best['r2_low']):.3f} to {float(best['r2_high']):.3f}",
                    "visible text": round(float(best["visible_r2"]), 3),
                    "beyond": round(float(best["beyond"]), 2)
                    if float(best["visible_r2"]) < 0.999
                    else "written",
                    "null": round(float(best["null_r2"]), 3),
                    "MAE": round(float(best["mae"]), 2),
                    "MAE of median": round(float(best["baseline_mae"]), 2),
                    "n held out": data.attrs["n_held_out"],
                }
            )


def _shown(target: str, at: str) -> bool:
    """Running sums at `=`, in and before their own column, at `#` and before their digit; all of `product` "
    "and `next`."""
    if target in ("product", "next"):
        return True
    k = int(target.split("_")[1])
    return at in ("=", "#", f"d{k - 1}") or at.startswith((f"s{k - 1},", f"s{k},"))


def _goals(report: Report, found: dict[str, Any]) -> None:
    sweep, own = found["sweep"].sel(layer=1, k=9), found["own"].sel(layer=0)["mean_success"]
    modular = found["spectra"]["modular-addition"].sel(table="embedding", removed="mean", top=6)
    cot = found["multiplication-cot"]
    names = ("multiplication-cot", "multiplication-direct")
    null = max(float(np.nanmax(found[name]["null_r2"].values)) for name in names)
    report.goals += [
        Goal.at_least("addition_chosen_helix_r2", float(sweep["r2"].sel(basis="chosen")), 0.9),
        Goal.at_most("addition_chosen_null_r2", float(sweep["null_r2"].sel(basis="chosen")), 0.0),
        Goal.at_least("addition_helix_success", float(own.sel(source="helix")), 0.8),
        Goal.at_least(
            "addition_helix_over_polynomial",
            float(own.sel(source="helix") - own.sel(source="polynomial")),
            0.2,
        ),
        Goal.at_most("addition_permuted_success", float(own.sel(source="permuted")), 0.05),
        Goal.at_least("modular_power_in_6", float(modular["share"]), 0.9),
        Goal.at_most("modular_permuted_power_in_6", float(modular["null_share_high"]), 0.3),
        Goal.at_least("running_sum_next_r2", best(cot, "next", "s1,01"), 0.95),
        Goal.at_most("running_sum_null_r2", null, 0.1),
    ]


if __name__ == "__main__":
    main(run, __doc__ or "", seed=0, problems=1500, pairs=200, threads=2)
