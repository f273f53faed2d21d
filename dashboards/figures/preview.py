"""`preview`: a grid that is still being computed, as it is."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, theme
from workbench.progress import Preview


def preview(seen: Preview) -> go.Figure:
    """A heat map of what is known; cells that are not yet are left open.

    Example:
        >>> preview(Preview("pair 1 of 8", np.full((30, 14), np.nan), "layer", "position"))
    """
    rows, columns = seen.values.shape
    labels = [str(i) for i in range(columns)]
    known = np.isfinite(seen.values)
    cells = go.Heatmap(
        x=labels,
        y=grid.layer_labels(range(rows)),
        z=theme.f32(seen.values),
        colorscale=theme.SEQUENTIAL,
        **grid.gaps(columns),
        colorbar={"title": {"text": "metric"}},
        hovertemplate=f"{seen.rows} %{{y}}, {seen.columns} %{{x}}: %{{z:.3f}}<extra></extra>",
    )
    x, y = grid.axes(seen.columns, labels, grid.layer_labels(range(rows)))
    made = theme.layout(
        "So far",
        f"{seen.title}: {int(known.sum())} of {known.size} cells.",
        plot_height=grid.row_height(rows, False),
        bottom=grid.bottom(labels),
    )
    return go.Figure(cells, layout={**made, "xaxis": x, "yaxis": y})
