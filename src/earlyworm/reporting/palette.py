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

# Methods of a comparison: the "muted" scheme of Paul Tol (SRON/EPS/TN/09-002), whose colours differ with any kind of
# colour vision, and the vermillion of Okabe and Ito. Pale ones are darkened until they stand out from white, and all of
# them lightened for dark mode; neighbours also differ in lightness. The first has the colour of the text.
METHODS = {
    "method-0": ("#1d2226", "#e6e8ea"),
    "method-1": ("#d55e00", "#f28e3b"),
    "method-2": ("#332288", "#9d92ee"),
    "method-3": ("#2f9484", "#5fcbb8"),
    "method-4": ("#882255", "#d878ab"),
    "method-5": ("#3a8fbf", "#88ccee"),
    "method-6": ("#117733", "#4db36f"),
    "method-7": ("#cc6677", "#ee9aa8"),
    "method-8": ("#6b5a12", "#ddcc77"),
    "method-9": ("#aa4499", "#d58acb"),
    "method-10": ("#8a8a2a", "#c8c860"),
    "method-11": ("#7d858b", "#a9b1b7"),
}

# How much is kept: from the paper to the colour of tickets, so that nothing kept looks like nothing there.
SHARES = ((0.0, PAPER), (1.0, TICKET))
