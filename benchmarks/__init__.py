"""Benchmarks: `python -m benchmarks.NAME` prints a table, `--json` one object with settings, rows and goals."""
