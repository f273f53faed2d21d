"""`python -m workbench.organisms.ship WORK`: put finished trainings into `data/models`.

WORK holds working folders of `train`, named NAME-SEED. The training with the organism's own seed (`trained_with`) is
shipped, or the one `--seed NAME=SEED` names; where there are several seeds of an organism that notes weight statistics,
the curves of all of them are kept in `training_runs.parquet`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.organisms.model_card import table
from workbench.organisms.organism import Organism
from workbench.organisms.registry import get, names
from workbench.organisms.shipped import cards, models_folder, write
from workbench.organisms.training import STATE, Trained, snapshots_of, train

RUNS = "training_runs.parquet"


def finished(work: Path, organism: Organism) -> dict[int, Path]:
    """Seed -> working folder of every training of the organism that reached its last step with the present plan."""
    found: dict[int, Path] = {}
    for state in sorted(work.glob(f"{organism.name}-*/{STATE}")):
        seed = state.parent.name.removeprefix(f"{organism.name}-")
        if seed.isdigit() and json.loads(state.read_text(encoding="utf-8"))["step"] == organism.plan.steps:
            found[int(seed)] = state.parent
    return found


def write_runs(curves: dict[int, list[dict[str, float]]], target: Path) -> None:
    """One row for each seed and evaluation: `seed`, `step`, `loss`, held-out figures, `weights_*`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = [
        {"seed": seed, **point, "step": int(point["step"])}
        for seed, points in sorted(curves.items())
        for point in points
    ]
    pq.write_table(pa.Table.from_pylist(rows), target, compression="zstd")


def ship(work: Path, chosen: dict[str, int], machine: str | None = None) -> list[str]:
    """Write every organism that is finished; gives their names."""
    done: list[str] = []
    for name in names():
        organism = get(name)
        folders = finished(work, organism)
        if not folders:
            continue
        seed = chosen.get(name, organism.trained_with)
        if seed not in folders:
            raise ModelError(f"{name} with seed {seed} is not finished in {work}.")
        trained: Trained = train(organism, seed=seed, folder=folders[seed])  # nothing is left to do: loads it
        target = models_folder() / name
        write(
            organism,
            trained,
            seed=seed,
            target=target,
            snapshots=snapshots_of(folders[seed]),
            machine=machine,
        )
        if organism.weight_statistics and len(folders) > 1:
            curves = {
                s: json.loads((f / STATE).read_text(encoding="utf-8"))["curve"]["points"]
                for s, f in folders.items()
            }
            write_runs(curves, target / RUNS)
        done.append(name)
    (models_folder() / "README.md").write_text(table(cards()), encoding="utf-8")
    return done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of working folders NAME-SEED")
    parser.add_argument("--seed", action="append", default=[], metavar="NAME=SEED", help="which seed to ship")
    parser.add_argument("--machine", help="what to state as the machine")
    given = parser.parse_args()
    chosen = {name: int(seed) for name, seed in (pair.split("=") for pair in given.seed)}
    print("shipped: " + (", ".join(ship(given.work, chosen, given.machine)) or "nothing is finished"))


if __name__ == "__main__":
    main()
