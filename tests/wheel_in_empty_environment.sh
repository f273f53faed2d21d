#!/usr/bin/env bash
# The built wheel, installed into an empty environment outside the checkout, runs the demo.
set -euo pipefail
wheel=$(realpath "$1")
constraints=$(realpath "$(dirname "$0")/../constraints.txt")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" torch
env/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" "$wheel"
env/bin/workbench demo --json --runs "$place/runs"
