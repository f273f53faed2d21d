"""How long the first breath takes: `import workbench` and `workbench --help`, as whole processes.

Goals: `import_seconds` <= 0.3 (the figure `python -X importtime` gives for `workbench`, median of several),
`help_seconds` <= 0.5 (wall time of the whole command).
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time

from benchmarks.common import Goal, Report, machine, main


def run(repeats: int = 7) -> Report:
    """Each `repeats` times after one warm-up."""
    imports, helps = [], []
    for round_ in range(repeats + 1):
        shown = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import workbench"],
            capture_output=True,
            text=True,
            check=True,
        )
        (cumulative,) = re.findall(r"\|\s*(\d+) \| workbench$", shown.stderr, flags=re.MULTILINE)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "workbench.cli.main", "--help"], capture_output=True, check=True
        )
        if round_:
            imports.append(int(cumulative) / 1e6)
            helps.append(time.perf_counter() - started)
    report = Report(settings={**machine(), "repeats": repeats})
    for name, values in (("import workbench", imports), ("workbench --help", helps)):
        report.rows.append(
            {
                "what": name,
                "seconds": round(statistics.median(values), 4),
                "lowest": round(min(values), 4),
                "highest": round(max(values), 4),
            }
        )
    report.goals.append(Goal.at_most("import_seconds", round(statistics.median(imports), 4), 0.3))
    report.goals.append(Goal.at_most("help_seconds", round(statistics.median(helps), 4), 0.5))
    return report


if __name__ == "__main__":
    main(run, __doc__ or "", repeats=7)
