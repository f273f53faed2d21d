"""Small tables."""

from __future__ import annotations

from typing import Any, Literal

import dash_mantine_components as dmc


def table(
    columns: list[str], rows: list[list[Any]], *, numbers: tuple[int, ...] = (), caption: str = ""
) -> Any:
    """A table that scrolls sideways where it must; columns in `numbers` are set flush right."""
    head = dmc.TableThead(dmc.TableTr([dmc.TableTh(c, ta=_align(i, numbers)) for i, c in enumerate(columns)]))
    body = dmc.TableTbody(
        [
            dmc.TableTr(
                [
                    dmc.TableTd(
                        c,
                        ta=_align(i, numbers),
                        className="short" if isinstance(c, str) and len(c) < 20 else None,
                    )
                    for i, c in enumerate(row)
                ]
            )
            for row in rows
        ]
    )
    parts = [head, body, *([dmc.TableCaption(caption)] if caption else [])]
    inner = dmc.Table(
        parts,
        verticalSpacing=4,
        horizontalSpacing="sm",
        fz="sm",
        tabularNums=True,
        captionSide="top",
        className="listing",
    )
    return dmc.TableScrollContainer(inner, minWidth=0, type="native")


def facts(pairs: dict[str, Any]) -> dmc.Table:
    """Names and values, one a line."""
    rows = [
        dmc.TableTr([dmc.TableTh(name.replace("_", " "), className="fact-name"), dmc.TableTd(value)])
        for name, value in pairs.items()
    ]
    return dmc.Table(
        dmc.TableTbody(rows),
        verticalSpacing=3,
        horizontalSpacing="sm",
        fz="sm",
        tabularNums=True,
        className="facts",
    )


def _align(column: int, numbers: tuple[int, ...]) -> Literal["left", "right"]:
    return "right" if column in numbers else "left"
