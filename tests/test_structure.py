"""The project as a whole: arrows point down, nothing unsafe, no test data of a machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = [p for room in ("workbench", "probes", "saes", "dashboards") for p in (ROOT / room).rglob("*.py")]


def test_import_contracts_hold():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "word", ["import pickle", "pickle.load", "torch.load(", "yaml.load(", "trust_remote_code=True", "eval("]
)
def test_nothing_unsafe_is_called(word):
    found = [str(p) for p in CODE if re.search(rf"(?<![\w.]){re.escape(word)}", p.read_text())]
    assert found == []


def test_no_module_is_too_long_to_be_found_by_its_name():
    long = {str(p.relative_to(ROOT)): n for p in CODE if (n := len(p.read_text().splitlines())) > 330}
    assert long == {}


def test_every_module_says_what_it_is_for():
    silent = [
        str(p.relative_to(ROOT))
        for p in CODE
        if p.read_text().strip() and not p.read_text().startswith('"""')
    ]
    assert silent == []
