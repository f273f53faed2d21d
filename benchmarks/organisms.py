"""Held-out accuracy of every model organism, measured again from the shipped weights.

Goals: the figures the organisms must reach (`accuracy_addition` >= 0.99 and so on). Rows: figures, parameters, file
size, training minutes and machine, as stated on each card, and how far the measured figure is from the card's.
"""

from __future__ import annotations

import time

from benchmarks.common import Goal, Report, machine, main


def run(threads: int = 2) -> Report:
    """Evaluate each shipped organism on its whole held-out set."""
    import torch

    import workbench as wb
    from workbench import organisms

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    report = Report(
        settings={**machine(), "threads": threads, "data": "held out, greedy unless the metric says sampled"}
    )
    missing = [name for name in organisms.names() if name not in {card.name for card in organisms.cards()}]
    for name in missing:
        for goal in organisms.get(name).goals:
            report.goals.append(Goal(goal.name, 0.0, "a shipped model", False))
    for card in organisms.cards():
        organism = organisms.get(card.name)
        organism.trained_with = card.seed
        model = wb.load_model(card.name, device="cpu", dtype="float32")
        started = time.perf_counter()
        figures = organism.evaluate(model.hf, full=True)
        report.rows.append(
            {
                "model": card.name,
                **{name: round(value, 4) for name, value in figures.items() if name in _shown(organism)},
                "n": int(figures["n"]),
                "largest difference from the card": round(
                    max(abs(value - card.figures[name]) for name, value in figures.items()), 6
                ),
                "parameters": card.n_parameters,
                "MB": round(card.bytes / 1e6, 2),
                "training minutes": card.minutes,
                "trained on": card.machine,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
        for goal in organism.goals:
            value = round(figures[goal.metric], 5)
            if goal.at_most < 1:
                wanted = f"{goal.at_least:g} to {goal.at_most:g}"
                report.goals.append(Goal(goal.name, value, wanted, goal.at_least <= value <= goal.at_most))
            else:
                report.goals.append(Goal.at_least(goal.name, value, goal.at_least))
    torch.set_num_threads(before)
    return report


def _shown(organism: object) -> set[str]:
    metrics = {goal.metric for goal in organism.goals}  # type: ignore[attr-defined]
    return metrics or {"accuracy"}


if __name__ == "__main__":
    main(run, __doc__ or "", threads=2)
