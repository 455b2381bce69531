"""Figures of masks: how far every two are apart, and which units one of them keeps."""

from __future__ import annotations

from itertools import pairwise

import plotly.graph_objects as go
from torch import Tensor

from earlyworm.experiments.results import RunResult
from earlyworm.masks.mask import Mask
from earlyworm.reporting.palette import DISTANCES, INK, RULE, TICKET

MOST_CELLS = 512  # in a row of units: more would be finer than the pixels of a page
_BARE = {"showgrid": False, "showline": False, "showticklabels": False, "ticks": ""}


def matrix_figure(result: RunResult) -> go.Figure:
    """The distance between the masks of every two epochs (arXiv 1909.11957, figure 2)."""
    search, window = result.search, result.config.emergence.window
    rows = search.distances
    # Where the first check had no mask yet, there are fewer masks than checks.
    epochs = [check.epoch for check in search.history][-len(rows) :]
    places = range(len(rows))
    full = [[0.0 if i == j else round(rows[max(i, j)][min(i, j)], 4) for j in places] for i in places]
    figure = go.Figure(go.Heatmap(x=epochs, y=epochs, z=full, zmin=0, colorscale=DISTANCES, xgap=1, ygap=1))
    figure.update_traces(showscale=False)  # the page has a scale that fits a phone
    figure.update_traces(hovertemplate="epochs %{y} and %{x}<br>distance %{z:.3f}<extra></extra>")
    if search.emerged and len(epochs) >= window:
        # Masks are evenly spaced but for the last one, so that half a space lies to each side of all but the last.
        start = (
            (epochs[-window] + epochs[-window - 1]) / 2
            if len(epochs) > window
            else epochs[0] - (epochs[1] - epochs[0]) / 2
        )
        end = epochs[-1] + (epochs[-1] - epochs[-2]) / 2
        corner = {"x0": start, "y0": start, "x1": end, "y1": end, "line": {"color": INK, "width": 2.5}}
        figure.add_shape(type="rect", **corner)
    axis = {"title": "epoch of a mask", "showgrid": False, "ticks": "outside", "constrain": "domain"}
    figure.update_xaxes(**axis, constraintoward="left")
    figure.update_yaxes(**axis, constraintoward="top", autorange="reversed", scaleanchor="x")
    return figure.update_layout(hovermode="closest", meta={"square": 540})


def units_figure(mask: Mask) -> go.Figure:
    """Which units of every layer a mask keeps: one row per layer, one cell per unit."""
    figure, rows = go.Figure(), len(mask.sizes)
    for row, (name, kept) in enumerate(mask.kept.items()):
        shares, words = _cells(kept)
        figure.add_heatmap(
            # Every layer takes the whole width, however many units it has.
            x0=0.5 / len(shares), dx=1 / len(shares), y0=row, dy=0.5, z=[shares], text=[words],
            hovertemplate=f"{name}<br>%{{text}}<extra></extra>", xgap=1 if len(shares) <= 128 else 0,
            zmin=0, zmax=1, colorscale=[(0, RULE), (1, TICKET)], showscale=False,
        )  # fmt: skip
    labels = [f"<b>{int(kept.sum())} of {kept.numel()}</b>  {name}" for name, kept in mask.kept.items()]
    text = {"text": labels, "mode": "text", "textposition": "middle right", "hoverinfo": "skip", "cliponaxis": False}
    figure.add_scatter(x=[0] * rows, y=[row - 0.47 for row in range(rows)], showlegend=False, **text)
    figure.update_xaxes(range=[0, 1.003], **_BARE)
    figure.update_yaxes(range=[rows - 0.5, -0.8], **_BARE)
    return figure.update_layout(height=40 + 40 * rows, hovermode="closest")


def _cells(kept: Tensor) -> tuple[list[float], list[str]]:
    """The kept fraction of every cell of a layer's row, and what the cell says; few units have one cell each."""
    units = kept.numel()
    if units <= MOST_CELLS:
        return kept.float().tolist(), [f"unit {i}: {'kept' if unit else 'removed'}" for i, unit in enumerate(kept)]
    edges = pairwise(units * cell // MOST_CELLS for cell in range(MOST_CELLS + 1))
    shares = {f"units {first} to {last - 1}": float(kept[first:last].float().mean()) for first, last in edges}
    return [round(share, 3) for share in shares.values()], [
        f"{cell}: {share:.0%} kept" for cell, share in shares.items()
    ]
