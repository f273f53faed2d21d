"""Run benchmarks, one process each, and write `docs/performance.md`'s tables.

    python -m benchmarks.all                 all of them
    python -m benchmarks.all store patching  some; what was measured of the others before stays
    python -m benchmarks.all --page          none: write the page anew from `docs/measured`

What each one printed is kept as `docs/measured/NAME.json`, with the day. Benchmarks that need a GPU exit with code 3
without one and are listed as not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BENCHMARKS = (
    "reading",
    "imports",
    "patching",
    "organisms",
    "store",
    "collect",
    "probes",
    "known_truth",
    "known_boards",
    "known_periodic",
    "steering",
    "known_reconstruction",
    "steering_results",
    "gpu_collect",
)
DOCS = Path(__file__).parent.parent / "docs"
PAGE, KNOWN, MEASURED = DOCS / "performance.md", DOCS / "results" / "known.md", DOCS / "measured"
MARK = "<!-- measured: everything below is written by `make bench` -->"


def main() -> None:
    """Run, collect, write; exits with 1 if a goal that was measured now does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: known are {', '.join(BENCHMARKS)}")
    names = () if given.page else given.names or BENCHMARKS
    reports = [measure(name) for name in names]
    write_page()
    sys.exit(0 if all(goal["holds"] for r in reports for goal in r.get("goals", [{"holds": False}])) else 1)


def measure(name: str) -> dict[str, Any]:
    """Run one benchmark and keep what it says."""
    print(f"benchmarks.{name} …", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json"], capture_output=True, text=True, check=False
    )
    try:
        report = (
            {"goals": [], "not_run": "it needs a GPU"} if done.returncode == 3 else json.loads(done.stdout)
        )
    except ValueError:
        report = {"failed": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}
    report["day"] = f"{datetime.now(UTC):%Y-%m-%d}"
    keep(name, report)
    return report


def keep(name: str, report: dict[str, Any]) -> None:
    """`docs/measured/NAME.json`."""
    MEASURED.mkdir(parents=True, exist_ok=True)
    (MEASURED / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def write_page() -> None:
    """The tables of all that was measured, below what is written by hand; known answers on a page of their own."""
    pages: dict[Path, list[str]] = {PAGE: [], KNOWN: []}
    for name in BENCHMARKS:
        path = MEASURED / f"{name}.json"
        if path.is_file():
            page = KNOWN if name.startswith("known_") else PAGE
            pages[page].append(section(name, json.loads(path.read_text(encoding="utf-8"))))
    for page, sections in pages.items():
        head = page.read_text(encoding="utf-8").split(MARK)[0] if page.is_file() else ""
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(head + MARK + "\n\n" + "\n".join(sections), encoding="utf-8")
        print(f"wrote {page.relative_to(DOCS.parent)}")


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as Markdown tables, one for each run of rows with the same columns."""
    lines: list[str] = []
    last: list[str] = []
    for row in rows:
        if list(row) != last:
            last = list(row)
            lines += ["", "| " + " | ".join(last) + " |", "|" + "---|" * len(last)]
        lines.append("| " + " | ".join(str(value) for value in row.values()) + " |")
    return lines


def section(name: str, report: dict[str, Any]) -> str:
    """One benchmark as Markdown."""
    lines = [f"## {name}", ""]
    if "not_run" in report:
        return "\n".join([*lines, f"Not run ({report['day']}): {report['not_run']}.", ""])
    if "failed" in report:
        return "\n".join([*lines, f"Failed ({report['day']}): `{report['failed']}`", ""])
    settings = ", ".join(f"{k} {v}" for k, v in report["settings"].items())
    lines += [f"`python -m benchmarks.{name}`, {report['day']}. {settings}.", ""]
    lines += ["| goal | value | wanted | |", "|---|---|---|---|"]
    for goal in report["goals"]:
        state = "holds" if goal["holds"] else "**does not hold**"
        lines.append(f"| `{goal['name']}` | {goal['value']:.4g} | {goal['goal']} | {state} |")
    return "\n".join([*lines, *tables(report["rows"])]) + "\n"


if __name__ == "__main__":
    main()
