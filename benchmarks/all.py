"""Run every benchmark, one process each, and write `docs/performance.md`'s tables.

Benchmarks that need a GPU exit with code 3 without one and are listed as not run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

BENCHMARKS = ("reading", "imports", "organisms")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARK = "<!-- measured: everything below is written by `make bench` -->"


def main() -> None:
    """Run, collect, write; exits with 1 if a goal does not hold."""
    sections, holds = [], True
    for name in BENCHMARKS:
        print(f"benchmarks.{name} …", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 3:
            sections.append(f"## {name}\n\nNot run: it needs a GPU.\n")
            continue
        try:
            report = json.loads(done.stdout)
        except ValueError:
            sections.append(f"## {name}\n\nFailed: `{done.stderr.strip().splitlines()[-1]}`\n")
            holds = False
            continue
        sections.append(_section(name, report))
        holds = holds and all(goal["holds"] for goal in report["goals"])
    head = PAGE.read_text(encoding="utf-8").split(MARK)[0]
    stamp = f"Measured {datetime.now(UTC):%Y-%m-%d}.\n"
    PAGE.write_text(head + MARK + "\n\n" + stamp + "\n" + "\n".join(sections), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parent.parent)}")
    sys.exit(0 if holds else 1)


def _section(name: str, report: dict) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in report["settings"].items())
    lines = [f"## {name}", "", f"`python -m benchmarks.{name}`. {settings}.", ""]
    lines += ["| goal | value | wanted | |", "|---|---|---|---|"]
    for goal in report["goals"]:
        state = "holds" if goal["holds"] else "**does not hold**"
        lines.append(f"| `{goal['name']}` | {goal['value']:.4g} | {goal['goal']} | {state} |")
    columns = list(dict.fromkeys(key for row in report["rows"] for key in row))
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in report["rows"]:
        lines.append("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
