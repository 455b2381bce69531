"""How methods are told apart on a comparison's page: by colour, symbol and dash at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from earlyworm.reporting.palette import METHODS

# Name of plotly's symbol -> its outline in a box of 16 by 16, for the buttons.
_SYMBOLS = {
    "circle": "M3 8a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "diamond": "M8 2l6 6-6 6-6-6z",
    "square": "M3.5 3.5h9v9h-9z",
    "triangle-up": "M8 2.5l6 10.5h-12z",
    "star": "M8 1.5l1.7 4.5 4.8.2-3.8 3 1.3 4.6-4-2.6-4 2.6 1.3-4.6-3.8-3 4.8-.2z",
    "cross": "M6 2.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "triangle-down": "M8 13.5l-6-10.5h12z",
    "x": "M4.5 2.5l3.5 3.5 3.5-3.5 2 2-3.5 3.5 3.5 3.5-2 2-3.5-3.5-3.5 3.5-2-2 3.5-3.5-3.5-3.5z",
    "hourglass": "M2.5 2.5h11l-11 11h11z",
    "pentagon": "M8 2l6 4.4-2.3 7.1h-7.4l-2.3-7.1z",
    "bowtie": "M2.5 2.5v11l11-11v11z",
    "triangle-left": "M2.5 8l10.5-6v12z",
}
# The same patterns for plotly and for the buttons.
_DASHES = ("solid", "8px 3px", "2px 3px", "8px 3px 2px 3px", "14px 4px")


class MethodStyle(NamedTuple):
    """What a method looks like; the colour is that of light mode, `name` the palette's name of it."""

    name: str
    colour: str
    symbol: str
    outline: str
    dash: str


def method_styles(methods: Sequence[str], baseline: str) -> dict[str, MethodStyle]:
    """One style per method, in their order; the baseline has the colour of the text.

    A dozen differ in colour and in symbol; of more, those that share a colour differ in symbol and in dash. Variants of
    a method, behind whose name are options, have its colour with another symbol and dash.
    """
    colours, symbols = list(METHODS.items()), list(_SYMBOLS.items())
    # Symbols repeat after a dozen: among variants rather than among methods.
    ranked = [baseline, *sorted((method for method in methods if method != baseline), key=lambda method: ":" in method)]
    families: dict[str, list[str]] = {}
    for method in ranked:
        families.setdefault(method.partition(":")[0], []).append(method)
    numbers, styles = {family: i for i, family in enumerate(families)}, {}
    for i, method in enumerate(ranked):
        family = method.partition(":")[0]
        number, variant = numbers[family], families[family].index(method)
        name, (light, _) = colours[number % len(colours)]
        symbol, outline = symbols[(i + i // len(symbols)) % len(symbols)]
        styles[method] = MethodStyle(name, light, symbol, outline, _DASHES[(number + variant) % len(_DASHES)])
    return {method: styles[method] for method in methods}
