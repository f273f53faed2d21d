"""What every benchmark shares: alternating timing, the median and spread of a ratio, and how it is printed.

Machines are noisy, so two sides are timed in turn (A B A B …) in one process and compared pair by pair: the
value is the median of the pairwise ratios and the rows carry their spread. Absolute seconds are shown for
orientation only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A number and what it should be."""

    name: str
    value: float
    goal: str
    holds: bool

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> Goal:
        return cls(name, value, f"<= {limit:g}", value <= limit)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> Goal:
        return cls(name, value, f">= {limit:g}", value >= limit)


@dataclass
class Report:
    """What a benchmark gives back."""

    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "rows": self.rows,
            "goals": [g.__dict__ for g in self.goals],
        }


@dataclass(frozen=True)
class Timing:
    """Seconds of several sides, timed in turn."""

    seconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def ratios(self, side: str, over: str) -> list[float]:
        """Seconds of `side` over seconds of `over`, pair by pair."""
        return [a / b for a, b in zip(self.seconds[side], self.seconds[over], strict=True)]

    def row(self, side: str, over: str, **more: Any) -> dict[str, Any]:
        """Median seconds of a side and the median and spread of its ratio to another."""
        ratios = self.ratios(side, over)
        return {
            "side": side,
            "seconds": round(self.median(side), 4),
            f"ratio to {over}": round(statistics.median(ratios), 4),
            "lowest": round(min(ratios), 4),
            "highest": round(max(ratios), 4),
            "n": len(ratios),
            **more,
        }


def alternate(sides: dict[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1) -> Timing:
    """Time each side `repeats` times, in turn, after `warm_up` untimed rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warm_up + repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            taken = time.perf_counter() - started
            if round_ >= warm_up:
                seconds[name].append(taken)
    return Timing(seconds)


def machine() -> dict[str, Any]:
    """Settings every report states."""
    import torch

    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "transformer-lens")},
    }


def main(
    run: Callable[..., Report], description: str, argv: Sequence[str] | None = None, **options: Any
) -> None:
    """Command line of a benchmark: `--json`, and one option per keyword with its default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for name, default in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args(argv))
    as_json = given.pop("json")
    report = run(**given)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        show(report)
    sys.exit(0 if all(goal.holds for goal in report.goals) else 1)


def show(report: Report) -> None:
    """A report as tables."""
    print("settings: " + ", ".join(f"{k} {v}" for k, v in report.settings.items()))
    for row in report.rows:
        print("  " + "   ".join(f"{k}: {v}" for k, v in row.items()))
    for goal in report.goals:
        mark = "holds" if goal.holds else "DOES NOT HOLD"
        print(f"{goal.name:<34} {goal.value:10.4g}   goal {goal.goal:<10} {mark}")
