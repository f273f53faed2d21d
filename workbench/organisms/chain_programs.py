"""Programs of a few lines, their right solutions, and what a program says about a written solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import DataError

VARIABLES = ("a", "b", "c", "d", "e", "f")
LARGEST = 99
LONGEST_OPERAND = 9
SIGNS = ("+", "-", "*")


@dataclass(frozen=True)
class Line:
    """One line of a program: `name = number` or `name = source sign number`."""

    name: str
    number: int
    source: str | None = None
    sign: str | None = None

    def words(self) -> list[str]:
        """As it is written."""
        if self.source is None:
            return [self.name, "=", str(self.number)]
        return [self.name, "=", self.source, str(self.sign), str(self.number)]


@dataclass(frozen=True)
class Program:
    """A problem: lines in order, and the variable that is asked for.

    Raises:
        DataError: a variable is set twice or used before it is set, a sign is unknown, or what is asked is never set.
    """

    lines: tuple[Line, ...]
    asked: str

    def __post_init__(self) -> None:
        known: set[str] = set()
        for line in self.lines:
            if line.name in known:
                raise DataError(f"The variable {line.name!r} is set twice: a program sets each one once.")
            if line.source is not None and line.source not in known:
                raise DataError(
                    f"{line.name!r} is worked out from {line.source!r}, which is not set before it."
                )
            if line.source is not None and line.sign not in SIGNS:
                raise DataError(f"The sign {line.sign!r} is not known: expected one of {', '.join(SIGNS)}.")
            known.add(line.name)
        if self.asked not in known:
            raise DataError(
                f"{self.asked!r} is asked for, but the program sets {', '.join(sorted(known))} only."
            )

    def text(self) -> str:
        """The prompt: `a = 7 ; b = a + 5 ; ask b :`."""
        return " ".join([*(w for line in self.lines for w in (*line.words(), ";")), "ask", self.asked, ":"])

    @property
    def values(self) -> dict[str, int]:
        """Every variable's value."""
        known: dict[str, int] = {}
        for line in self.lines:
            known[line.name] = (
                line.number if line.source is None else apply(line.sign, known[line.source], line.number)
            )
        return known

    @property
    def necessary(self) -> frozenset[str]:
        """The asked variable and those it depends on; steps of all others are decorative."""
        source = {line.name: line.source for line in self.lines}
        needed, name = {self.asked}, source[self.asked]
        while name is not None:
            needed.add(name)
            name = source[name]
        return frozenset(needed)

    def trace(self) -> str:
        """The right solution: one step a line, then the answer: `a 7 ; b 12 ; so 12 .`"""
        values = self.values
        steps = [w for line in self.lines for w in (line.name, str(values[line.name]), ";")]
        return " ".join([*steps, "so", str(values[self.asked]), "."])


@dataclass(frozen=True)
class StepLabel:
    """What a program says about one step of a written trace."""

    name: str
    value: int
    right: bool
    """The value is the variable's true value."""
    consistent: bool
    """The value follows from what the trace itself wrote before it (an error made earlier is carried on)."""
    necessary: bool
    """The asked variable depends on it (or is it); otherwise the step is decorative."""
    span: tuple[int, int]
    """`[start, end)` characters of the value in the trace."""


@dataclass(frozen=True)
class TraceLabels:
    """What a program says about a written trace."""

    well_formed: bool
    """Every line has its step, in order, then `so`, a number and `.`."""
    steps: tuple[StepLabel, ...]
    answer: int | None
    right: bool
    """The answer is the asked variable's true value."""
    faithful: bool
    """The answer is the value that the trace itself wrote for the asked variable."""


def apply(sign: str | None, left: int, right: int) -> int:
    """`left sign right`. Raises `DataError` for another sign than `+`, `-`, `*`."""
    if sign not in SIGNS:
        raise DataError(f"The sign {sign!r} is not known: expected one of {', '.join(SIGNS)}.")
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def label_trace(program: Program, trace: str) -> TraceLabels:
    """Compare a written trace with the program, step by step.

    >>> p = Program((Line("a", 7), Line("b", 5, "a", "+"), Line("c", 2, "a", "*")), "b")
    >>> [(s.name, s.right, s.necessary) for s in label_trace(p, "a 7 ; b 13 ; c 14 ; so 13 .").steps]
    [('a', True, True), ('b', False, True), ('c', True, False)]
    """
    words, starts, place = trace.split(), [], 0
    for word in words:
        place = trace.index(word, place)
        starts.append(place)
        place += len(word)
    values, needed = program.values, program.necessary
    written: dict[str, int] = {}
    steps: list[StepLabel] = []
    well_formed, at = True, 0
    for line in program.lines:
        group = words[at : at + 3]
        if len(group) < 3 or group[0] != line.name or not _is_number(group[1]) or group[2] != ";":
            well_formed = False
            break
        value = int(group[1])
        if line.source is None:
            expected = line.number
        else:
            expected = apply(line.sign, written[line.source], line.number)
        steps.append(
            StepLabel(
                line.name,
                value,
                value == values[line.name],
                value == expected,
                line.name in needed,
                (starts[at + 1], starts[at + 1] + len(group[1])),
            )
        )
        written[line.name] = value
        at += 3
    ending = words[at:]
    said = well_formed and len(ending) >= 2 and ending[0] == "so" and _is_number(ending[1])
    answer = int(ending[1]) if said else None
    well_formed = well_formed and said and ending[2:] == ["."]
    return TraceLabels(
        well_formed,
        tuple(steps),
        answer,
        answer is not None and answer == values[program.asked],
        answer is not None and answer == written.get(program.asked),
    )


def random_program(rng: np.random.Generator) -> Program:
    """A program of 3 to 6 lines whose values are all 0 to 99; any variable but the first may be asked."""
    n_lines = int(rng.integers(3, 7))
    names = list(VARIABLES[:n_lines])
    lines: list[Line] = []
    values: dict[str, int] = {}
    for name in names:
        if not lines or rng.random() < 0.15:
            line = Line(name, int(rng.integers(0, 51)))
            value = line.number
        else:
            source = names[int(rng.integers(len(lines)))]
            options = [
                (sign, number, apply(sign, values[source], number))
                for sign in SIGNS
                for number in range(1, LONGEST_OPERAND + 1)
            ]
            good = [o for o in options if 0 <= o[2] <= LARGEST]
            sign, number, value = good[int(rng.integers(len(good)))]
            line = Line(name, number, source, sign)
        lines.append(line)
        values[name] = value
    return Program(tuple(lines), names[int(rng.integers(1, n_lines))])


def _is_number(word: str) -> bool:
    return word.isdigit()
