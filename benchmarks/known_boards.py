"""Known answers about boards: what `othello-6x6` and `mazes-5x5` hold in their streams, and whether it is used.

Claims, each with the number that decides it (a row with `verdict`):

- Othello (Li et al. 2022, arXiv:2210.13382; Nanda et al. 2023, arXiv:2309.00941): whose stone a square holds (mine or
  yours) is linear; its colour is not, but a hidden layer finds it; a flipped square changes the predicted moves.
- Mazes (Ivanitskiy et al. 2023, arXiv:2312.02566): all passages can be read from the token after which the path
  starts.

Splits are by game and by maze; strength and first layer of an edit are chosen on half of the test games and
reported on the other half. The thresholds were set after a look at a smaller run of the same kind. Goals are that the
controls behave (shuffled labels at the majority's error), not that a claim comes true.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import Goal, Report, machine, main

SQUARES = [s for s in range(36) if s not in (14, 15, 20, 21)]


def run(
    games: int = 500,
    mazes: int = 2400,
    positions: int = 200,
    seed: int = 0,
    threads: int = 2,
    part: str = "both",
) -> Report:
    """Probe both organisms (or `part`: othello, mazes), and intervene on the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    report = Report(settings={**machine(), "threads": threads, "games": games, "mazes": mazes, "seed": seed})
    started, worked = time.perf_counter(), time.process_time()
    if part != "mazes":
        othello(report, games, positions, seed)
    if part != "othello":
        maze(report, mazes, seed)
    report.settings["seconds"] = round(time.perf_counter() - started, 1)
    report.settings["CPU seconds"] = round(time.process_time() - worked, 1)
    torch.set_num_threads(before)
    return report


def sites_of(model: Any) -> list[str]:
    return ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.n_layers))]


def untrained_like(model: Any, organism: Any) -> Any:
    """The organism before training, with the same tokenizer."""
    import workbench as wb

    return wb.load_model((organism.build(1), model.tokenizer))


def othello(report: Report, games: int, positions: int, seed: int) -> None:
    """Read the board, then change it."""
    import workbench as wb
    from probes.boards import othello_boards
    from probes.causal.board_sweep import board_sweep, split_groups
    from workbench.organisms.tasks.othello import Othello

    organism, model = Othello(), wb.load_model("othello-6x6", device="cpu")
    played = organism.held_out_games(games, seed=5 + seed)
    ids = organism.encode(played, np.arange(games))[0]
    boards = othello_boards(played)
    boards = boards.take(boards.position < ids.shape[1])
    place = torch.from_numpy(boards.game * ids.shape[1] + boards.position)

    def rows(of: Any) -> dict[str, torch.Tensor]:
        acts = wb.collect(of, list(torch.from_numpy(ids)), sites_of(of), "all", tokens_per_batch=8192)
        return {site: acts.rows(site)[place] for site in acts.sites}

    result, probes = board_sweep(
        rows(model), {"side": boards.side, "colour": boards.colour}, boards.game, boards.position, n_classes=3,
        kinds=("linear", "mlp"), untrained=rows(untrained_like(model, organism)), model=model, seed=seed,
        settings={"linear": {"penalties": (1e-4,), "tolerance": 1e-3}},
    )  # fmt: skip
    table(report, "othello-6x6", result)
    data, best = result.data, {}
    for name in ("side", "colour"):
        for kind in data["kind"].values:
            one = data.sel(labels=name, kind=kind)
            at = int(one["mean_error"].values.argmin())
            best[name, str(kind)] = [float(one[f"mean_error{end}"][at]) for end in ("", "_low", "_high")]
    floor = {name: float(data["position_error"].sel(labels=name).mean()) for name in ("side", "colour")}
    linear, colour = best["side", "linear"], best["colour", "linear"]
    controls = min(best["side", "shuffled"][1], best["side", "untrained"][1], floor["side"])
    claim(
        report, "mine/yours is linear (error <= 1 %: holds; under half of colour and each control: in kind)",
        verdict(linear[2] <= 0.01, linear[2] < min(controls, colour[1]) / 2),
        said(linear), against=f"colour {said(colour)}, shuffled {said(best['side', 'shuffled'])}, untrained "
        f"{said(best['side', 'untrained'])}, majority by position {floor['side']:.3f}",
    )  # fmt: skip
    bent = best["colour", "mlp"]
    claim(
        report, "black/white needs a hidden layer (error under 1/3 of the linear one: holds; under 2/3: in kind)",
        verdict(bent[2] < colour[1] / 3, bent[2] < colour[1] * 2 / 3),
        f"mlp {said(bent)}", against=f"linear {said(colour)}, linear of mine/yours {said(linear)}",
    )  # fmt: skip
    check_controls(report, "othello", best["side", "shuffled"], floor["side"])
    test, _ = split_groups(boards.game, seed=seed)
    intervene(report, model, ids, boards.take(test), probes, positions, seed)


def intervene(
    report: Report, model: Any, ids: np.ndarray, boards: Any, probes: dict[Any, Any], n: int, seed: int
) -> None:
    """Flip one square inside the model; choose strength and first layer on one half of the games, report the
    other."""
    from probes.boards import flip_stones, legal_moves
    from probes.causal.closed_form import turn
    from probes.causal.optimise import optimise
    from probes.causal.rewrite import push, rewrite
    from probes.causal.rows import next_logits
    from workbench.statistics import bootstrap_interval

    picked, square = flips(boards, n, seed)
    old = boards.take(picked)
    wanted = flip_stones(old.side, square)
    flipped, legal = wanted != old.side, legal_moves(wanted)
    prompts = [ids[g][: p + 1].tolist() for g, p in zip(old.game, old.position, strict=True)]
    choosing = np.isin(old.game, np.unique(old.game)[::2])

    def score(logits: torch.Tensor, allowed: np.ndarray) -> np.ndarray:
        """False and missed moves among the N most likely, N as many as are legal (Li et al.)."""
        may = allowed[:, SQUARES]
        rank = logits[:, 1:].argsort(-1, descending=True).argsort(-1).numpy()
        return ((rank < may.sum(1, keepdims=True)) ^ may).sum(1).astype(float)

    plain = next_logits(model, prompts)
    unchanged, before = score(plain, old.legal), score(plain, legal)
    ways: dict[str, tuple[str, list[Any]]] = {
        "add one probe's direction": (
            "linear",
            [partial(turn, keep=False, strength=s) for s in (1.0, 2.0, 3.0)],
        ),
        "least squares, other squares kept": ("linear", [partial(turn, strength=s) for s in (1.0, 2.0, 3.0)]),
        "optimise the linear probe": (
            "linear",
            [partial(optimise, method="lbfgs", confidence=c) for c in (0.9, 0.99)],
        ),
        "optimise the MLP": ("mlp", [partial(optimise, method="lbfgs", confidence=c) for c in (0.9, 0.99)]),
    }
    found: dict[str, list[float]] = {}
    for name, (kind, edits) in ways.items():
        tried = {}
        some = np.flatnonzero(choosing)
        for first in (1, 2, 3):
            use = {
                f"blocks.{i}.hook_resid_post": probes[f"blocks.{i}.hook_resid_post", "side", kind]
                for i in range(first, model.n_layers)
            }
            for edit in edits:
                out = rewrite(model, [prompts[i] for i in some], use, wanted[some], flipped[some], edit=edit)
                tried[first, edits.index(edit)] = score(out.logits, legal[some]).mean(), use, edit
        at = min(tried, key=lambda key: tried[key][0])
        _, use, edit = tried[at]
        rest, start = np.flatnonzero(~choosing), next(iter(use))
        chosen = [prompts[i] for i in rest]
        out = rewrite(model, chosen, use, wanted[rest], flipped[rest], edit=edit)
        random = np.mean(
            [score(push(model, chosen, out.norm, seed=seed + s), legal[rest]) for s in range(3)], 0
        )
        values = {"after": score(out.logits, legal[rest]), "random": random, "before": before[rest]}
        ends = {
            k: [float(v.mean()), *(float(e) for e in bootstrap_interval(v, seed))] for k, v in values.items()
        }
        gain = bootstrap_interval(random - values["after"], seed)
        found[name] = ends["after"] + [float(gain[0])]
        strength = edit.keywords.get("strength", edit.keywords.get("confidence"))
        report.rows.append(
            {
                "part": "othello-6x6 intervention", "way": name, "from layer": at[0], "strength": strength,
                "errors of the unedited model on its own board": round(float(unchanged[rest].mean()), 3),
                **{f"errors {k}": said(v, 2) for k, v in ends.items()},
                "random − edit": f"{float((random - values['after']).mean()):.2f} [{gain[0]:.2f}, {gain[1]:.2f}]",
                "relative norm at the first layer": round(float((out.norm[start] / out.size[start]).mean()), 3),
                "n": len(rest),
            }
        )  # fmt: skip
    best = min(found, key=lambda name: found[name][0])
    null = float(before[~choosing].mean())
    claim(
        report, "writing a flipped square changes the moves (errors < 1/10: holds; < 1/2 and below random: in kind)",
        verdict(found[best][2] < null / 10, found[best][2] < null / 2 and found[best][3] > 0),
        f"{best}: {said(found[best], 2)}", against=f"before {null:.2f}; random directions of the same norm: its row",
    )  # fmt: skip


def flips(boards: Any, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` rows of different games (as far as there are), and a stone each whose colour changes what is legal."""
    from probes.boards import flip_stones, legal_moves

    rng = np.random.default_rng(seed)
    middle = np.flatnonzero((boards.position >= 4) & (boards.position <= 27))
    rows, squares = [], []
    seen: dict[int, int] = {}
    for row in rng.permutation(middle):
        if len(rows) == n or seen.get(int(boards.game[row]), 0) >= max(
            1, n // len(np.unique(boards.game)) + 1
        ):
            continue
        stones = rng.permutation(np.flatnonzero(boards.side[row] > 0))
        after = legal_moves(flip_stones(np.repeat(boards.side[[row]], len(stones), 0), stones))
        good = np.flatnonzero(after.any(1) & (after != boards.legal[row]).any(1))
        if len(good):
            rows.append(int(row))
            squares.append(int(stones[good[0]]))
            seen[int(boards.game[row])] = seen.get(int(boards.game[row]), 0) + 1
    return np.array(rows), np.array(squares)


def maze(report: Report, n: int, seed: int) -> None:
    """Read the passages at <PATH_START>."""
    import workbench as wb
    from probes.boards import maze_edges
    from probes.causal.board_sweep import board_sweep
    from workbench.organisms.tasks.mazes import KINDS, Mazes

    organism, model = Mazes(), wb.load_model("mazes-5x5", device="cpu")
    words = organism.words()
    for kind in KINDS:
        drawn, _, _ = organism.draw(n // 2, np.random.default_rng([seed, 77]), "train", (kind,))
        prompts = [[int(token) for token in prompt] for prompt in drawn]
        edges = maze_edges([" ".join(words[t] for t in prompt) for prompt in prompts])
        _, group = np.unique(edges, axis=0, return_inverse=True)  # one maze is never on both sides

        def rows(of: Any, prompts: Any = prompts) -> dict[str, torch.Tensor]:
            acts = wb.collect(of, prompts, sites_of(of), -1, tokens_per_batch=8192)
            return {site: acts.rows(site) for site in acts.sites}

        result, _ = board_sweep(
            rows(model), {"open": edges.astype(int)}, group, np.zeros(len(edges), int), n_classes=2, seed=seed,
            untrained=rows(untrained_like(model, organism)), model=model,
            settings={"linear": {"penalties": (1e-1, 1e-2, 1e-3), "tolerance": 1e-3}},
        )  # fmt: skip
        table(report, f"mazes-5x5, {kind}", result)
        data, best = result.data.sel(labels="open"), {}
        for name in data["kind"].values:
            one = data.sel(kind=name)
            at = int(one["mean_error"].values.argmin())
            best[str(name)] = [float(one[f"mean_error{end}"][at]) for end in ("", "_low", "_high")]
            best[f"{name} exact"] = [float(one[f"exact{end}"][at]) for end in ("", "_low", "_high")]
        floor = float(data["majority_error"].mean())
        error, exact = best["linear"], best["linear exact"]
        beats = error[2] < min(floor, best["untrained"][1], best["shuffled"][1])
        claim(
            report, f"all passages are read from <PATH_START>, {kind} (error <= 2 % and beats each control: "
            "holds; beats majority, shuffled and untrained: in kind)",
            "holds" if error[2] <= 0.02 and beats else "holds in kind" if beats else "does not hold",
            f"error {said(error)}, exact mazes {said(exact)}",
            against=f"majority {floor:.3f}, untrained {said(best['untrained'])} (exact "
            f"{said(best['untrained exact'])}), shuffled {said(best['shuffled'])}",
        )  # fmt: skip
        check_controls(report, f"mazes_{kind}", best["shuffled"], floor)


def table(report: Report, part: str, result: Any) -> None:
    """One row per site, labels and kind."""
    data = result.data
    for site in data["site"].values:
        for name in data["labels"].values:
            row = {
                "part": part,
                "site": str(site),
                "labels": str(name),
                "n": data.attrs["n_test"],
                "groups": data.attrs["n_groups"],
            }
            for kind in data["kind"].values:
                one = data.sel(site=site, labels=name, kind=kind)
                row[f"{kind} error"] = said([float(one[f"mean_error{end}"]) for end in ("", "_low", "_high")])
                row[f"{kind} exact"] = round(float(one["exact"]), 4)
            row["majority"] = round(float(data["majority_error"].sel(labels=name).mean()), 4)
            row["majority by position"] = round(float(data["position_error"].sel(labels=name).mean()), 4)
            report.rows.append(row)


def verdict(holds: bool, in_kind: bool) -> str:
    return "holds" if holds else "holds in kind" if in_kind else "does not hold"


def claim(report: Report, text: str, decided: str, value: str, *, against: str) -> None:
    report.rows.append({"claim": text, "verdict": decided, "value": value, "against": against})


def check_controls(report: Report, name: str, shuffled: list[float], floor: float) -> None:
    """Shuffled labels are read no better than by position alone (2 % of it allowed)."""
    report.goals.append(Goal.at_least(f"{name}_shuffled_over_majority", round(shuffled[2] / floor, 4), 0.98))


def said(value: list[float], digits: int = 4) -> str:
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


if __name__ == "__main__":
    main(run, __doc__ or "", games=500, mazes=2400, positions=200, seed=0, threads=2, part="both")
