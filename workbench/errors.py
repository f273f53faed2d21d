"""Errors a user can act on.

Every message says what was wrong, what was expected and what to do. The command line turns any
`WorkbenchError` into one line and exit code 2; the dashboard turns it into a notification. Anything
else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of every error caused by what was asked for rather than by a bug."""


class ModelError(WorkbenchError):
    """A model name, folder, download or architecture that cannot be used."""


class SiteError(WorkbenchError):
    """A site that does not exist on this model, or that its architecture does not have."""


class PromptError(WorkbenchError):
    """A prompt that is empty, too long, or whose partner has another shape."""


class PositionError(WorkbenchError):
    """A token position outside the prompt."""


class HookError(WorkbenchError):
    """A hook that did not fire, or an edit that returned something unusable."""


class MetricError(WorkbenchError):
    """A metric whose tokens or range do not make sense."""


class DataError(WorkbenchError):
    """A data set, label or activation that cannot be used (wrong length, NaN, unknown name)."""


class RunError(WorkbenchError):
    """A run folder that is missing, unreadable or cannot be written."""


class Cancelled(Exception):
    """Raised inside a job after `cancel` was asked for; not an error."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` names of `known` most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.4)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x' or 'y'?"` for an error message, or an empty string where nothing is near."""
    near = nearest(name, known)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
