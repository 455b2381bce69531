"""The colours of the pages, for light and for dark mode."""

from __future__ import annotations

# Name -> colour in light mode and in dark mode. The light colours differ, for a page's script finds the dark one by the
# light one. Colour alone tells nothing: lines differ in dash, points in shape, bars in hatching.
PALETTE = {
    "paper": ("#fcfcfb", "#15181b"),
    "ink": ("#1d2226", "#e6e8ea"),
    "muted": ("#59636b", "#9ba6ae"),
    "rule": ("#dbdfe2", "#30363c"),
    "dense": ("#2b4c7e", "#93b7ea"),
    "ticket": ("#b04a14", "#f0a263"),
}
PAPER, INK, MUTED, RULE, DENSE, TICKET = (light for light, _ in PALETTE.values())

# Cividis, from its yellow to its blue: readable with any kind of colour vision, and in black and white, since it only
# darkens. Both modes have it alike, for it lies on neither paper.
DISTANCES = ((0.0, "#fee838"), (0.25, "#bcae6c"), (0.5, "#7d7c78"), (0.75, "#42526f"), (1.0, "#00224e"))
