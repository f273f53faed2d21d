"""Where the files that ship with the project lie: prompt sets, small trained weights, an example run.

In an installed wheel they are `workbench/_data/`; in a source checkout they are the top-level `data/`.
"""

from __future__ import annotations

from pathlib import Path

from workbench.errors import DataError

__all__ = ["data_folder", "models_folder", "prompts_folder"]

# A folder counts only if it holds this file: next to an installed package there may well be some other
# project's `data` folder.
MARKER = Path("prompts") / "index.json"


def data_folder() -> Path:
    """The folder of shipped data: the wheel's `workbench/_data`, or the checkout's `data`.

    Raises `DataError` naming the places looked at when neither is there.

    >>> (data_folder() / "prompts" / "index.json").is_file()
    True
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "_data", package.parent / "data")
    for folder in candidates:
        if (folder / MARKER).is_file():
            return folder
    looked = " and ".join(str(folder / MARKER) for folder in candidates)
    raise DataError(
        f"The data that ships with Latent Workbench was not found: looked for {looked}. "
        "Reinstall the package, or work from a complete checkout."
    )


def prompts_folder() -> Path:
    """The folder of the shipped prompt sets and their `index.json`."""
    return data_folder() / "prompts"


def models_folder() -> Path:
    """The folder of the shipped models, one folder each."""
    return data_folder() / "models"
