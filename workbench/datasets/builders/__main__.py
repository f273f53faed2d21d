"""Build the shipped prompt sets: `python -m workbench.datasets.builders [NAME ...]`.

Without names, builds every set that needs no Debian package. Example of the other one:

    python -m workbench.datasets.builders plain-text --kjv kjv.txt \\
        --python-docs /usr/share/doc/python3.11/html/_sources --us-documents /usr/share/state
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.datasets.builders import BuiltSet, capitals, indirect_objects, plain_text, sentiment, write_set
from workbench.datasets.paths import prompts_folder
from workbench.errors import DataError

SELF_CONTAINED: dict[str, Callable[[int], BuiltSet]] = {
    "indirect-objects": indirect_objects.build,
    "capitals": capitals.build,
    "sentiment": sentiment.build,
}
SOURCES = ("kjv", "python_docs", "us_documents")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.datasets.builders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*SELF_CONTAINED, "plain-text")))
    parser.add_argument("--out", type=Path, help="folder to write to (default: the project's data/prompts)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kjv", type=Path, help="all verses, from the program of Debian's bible-kjv")
    parser.add_argument("--python-docs", type=Path, help="folder html/_sources of Debian's python3.11-doc")
    parser.add_argument("--us-documents", type=Path, help="folder /usr/share/state of Debian's miscfiles")
    options = parser.parse_args(arguments)
    names = options.names or list(SELF_CONTAINED)
    unknown = sorted(set(names) - {*SELF_CONTAINED, "plain-text"})
    if unknown:
        parser.error(f"there is no set {', '.join(unknown)}")
    missing = [f"--{name.replace('_', '-')}" for name in SOURCES if getattr(options, name) is None]
    if "plain-text" in names and missing:
        parser.error(f"plain-text needs {', '.join(missing)}")
    try:
        folder = options.out or prompts_folder()
        for name in names:
            if name == "plain-text":
                sources = {source: getattr(options, source) for source in SOURCES}
                built = plain_text.build(**sources, seed=options.seed)
            else:
                built = SELF_CONTAINED[name](options.seed)
            write_set(built, folder)
            print(f"{folder / built.file}: {len(built.records)} records")
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
