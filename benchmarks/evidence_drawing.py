"""What all figures share: how methods look, labels that do not cover each other, and SVG that is always the same."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from earlyworm.reporting.palette import DENSE, INK, METHODS, MUTED, PAPER, RULE, TICKET

# The background is part of the picture, so that it can be read on a dark page too.
_STYLE = {
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": PAPER, "figure.dpi": 72,
    "font.size": 11, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8, "axes.titlelocation": "left", "axes.titlesize": 12,
    "axes.titlepad": 12, "lines.linewidth": 1.4,
    "font.sans-serif": ["DejaVu Sans", "Verdana"], "svg.fonttype": "none", "svg.hashsalt": "earlyworm",
}  # fmt: skip
_LABEL = 10  # the size of labels
_LETTER, _LINE = 0.58 * _LABEL, 1.25 * _LABEL  # the width of a letter, about, and the height of a line
_STEPS = [1, 2, 5, 10]  # between ticks, in units of a digit
WIDTH = 540.0  # of all figures, in points

Box = tuple[float, float, float, float]  # left, bottom, right, top


Dash = str | tuple[float, tuple[float, ...]]


class Look(NamedTuple):
    """How a method is drawn: shape and dash tell methods apart without colour."""

    colour: str
    marker: str
    dash: Dash = "-"
    filled: bool = True


_FADE = METHODS["method-9"][0]
_LOOKS = {
    "early-bird": Look(DENSE, "s", "--"),
    "worm": Look(TICKET, "o"),
    "fade": Look(_FADE, "d", (0, (9, 2, 2, 2))),
    "constant": Look(TICKET, "^", ":"),
    "greedy": Look(TICKET, "v", "-."),
    "dense": Look(INK, "*"),
    "narrow": Look(INK, "D", (0, (3, 1, 1, 1, 1, 1))),
    "random": Look(MUTED, "X", ":"),
    "random@early-bird": Look(MUTED, "P", "-."),
    "late": Look(DENSE, "<", (0, (1, 2))),
    "imp": Look(DENSE, "p", (0, (5, 1))),
    "rst": Look(MUTED, "h", (0, (4, 1, 1, 1))),
}
_UNKNOWN = Look(MUTED, "8", ":")
_MARKERS = ("o", "^", "s", "v", "D", "<", "p", "P", "h", "X", "d", "*")  # an open ">" is a search without emergence
_DASHES: tuple[Dash, ...] = (":", "-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (9, 2, 2, 2)))


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """How each method is drawn; variants of one, in their order, in its colour with open markers and other dashes."""
    found = {method: _LOOKS[method] for method in methods if method in _LOOKS}
    variants: list[Look] = []
    for method in methods:
        if method not in _LOOKS:
            found[method] = _variant(_LOOKS.get(method.partition(":")[0], _UNKNOWN), variants)
            variants.append(found[method])
    return {method: found[method] for method in methods}


def _variant(of: Look, others: Sequence[Look]) -> Look:
    """A look in the colour of another one: with the marker and dash that others, of this colour above all, lack."""
    alike = [look for look in others if look.colour == of.colour]
    shapes, same_shapes = [look.marker for look in others], [look.marker for look in alike]
    dashes = [look.dash for look in (*_LOOKS.values(), *alike) if look.colour == of.colour]
    marker = min((of.marker, *_MARKERS), key=lambda shape: (same_shapes.count(shape), shapes.count(shape)))
    dash = min((dash for dash in _DASHES if dash != of.dash), key=dashes.count)
    return Look(of.colour, marker, dash, filled=False)


def point_style(look: Look) -> dict[str, object]:
    """The arguments with which a method's points are drawn."""
    face = look.colour if look.filled else PAPER
    size = 11 if look.marker == "*" else 7  # of a star, much of its size is between its points
    return {
        "marker": look.marker, "markersize": size, "color": look.colour, "markerfacecolor": face,
        "markeredgecolor": look.colour,
    }  # fmt: skip


def new_figure(title: str, note: str, height: float) -> Figure:
    """A figure with a title and a line below it; all lengths are in points."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
    figure.text(12 / WIDTH, 1 - 20 / height, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(12 / WIDTH, 1 - 36 / height, note, fontsize=_LABEL, color=MUTED)
    return figure


def new_axes(figure: Figure, left: float = 68, right: float = WIDTH - 14, below: float = 44, above: float = 54) -> Axes:
    """Axes from `left` to `right` with space below and above them, in points."""
    height = 72 * figure.get_figheight()
    with matplotlib.rc_context(_STYLE):
        return figure.add_axes((left / WIDTH, below / height, (right - left) / WIDTH, 1 - (below + above) / height))


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of axes whose first row is the highest."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), ["\n".join(_lines(name)) for name in names], color=INK)
    axes.tick_params(axis="y", left=False)


def part_ticks(axes: Axes) -> None:
    """Shift the names of places along the x axis sideways, as far as they would cover each other."""
    labels = axes.get_xticklabels()
    wide = _LETTER * max(len(line) for label in labels for line in label.get_text().splitlines())
    places = [axes.transData.transform((tick, 0))[0] for tick in axes.get_xticks()]
    left, right = axes.transData.transform(axes.viewLim.get_points())[:, 0]
    for label, place, parted in zip(labels, places, spread_apart(places, wide + _LETTER, left, right), strict=True):
        shift = ScaledTranslation((parted - place) / 72, 0, axes.figure.dpi_scale_trans)
        label.set_transform(label.get_transform() + shift)


def space_for(names: Sequence[str]) -> float:
    """The space that the longest of the names of rows takes at the left, in points."""
    return 24 + 1.1 * _LETTER * max(len(line) for name in names for line in _lines(name))


def row_for(names: Sequence[str]) -> float:
    """The least height of rows with these names, in points."""
    return 24 if all(len(_lines(name)) == 1 for name in names) else 30


def _lines(name: str) -> list[str]:
    """A method's name, and below it its options if both together are long."""
    head, colon, options = name.partition(":")
    return [name] if len(name) <= 22 or not options else [head + colon, options]


def svg(figure: Figure) -> str:
    """The picture as text, the same at every call: no date, no random names, coordinates to a hundredth of a point."""
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", file.getvalue())
    return re.sub(r"\s*\n\s*", "\n", text)


def percents(axes: Axes, which: str, sign: str = "%") -> None:
    """Write the numbers of one axis, x or y, which are fractions, as percentages, with few digits."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator("auto", steps=_STEPS))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}{sign}")


def two_ticks(axes: Axes) -> None:
    """Leave two ticks of the x axis, of round numbers and away from its ends, for there is room for no more."""
    low, high = axes.get_xlim()
    for bins in range(2, 16):
        ticks = MaxNLocator(bins, steps=_STEPS).tick_values(low, high)
        inside = [tick for tick in ticks if 0.12 <= (tick - low) / (high - low) <= 0.88]
        if inside and inside[-1] - inside[0] >= 0.4 * (high - low):
            axes.set_xticks([inside[0], inside[-1]])
            return


def label_points(axes: Axes, points: Sequence[tuple[float, float, str, str]], bars: Iterable[Box] = ()) -> None:
    """Write a name beside each point where it covers nothing, with a line to the point where it is further away.

    Args:
        axes: Where limits are final.
        points: Place, text and colour of each.
        bars: What should not be covered either, in the units of the axes.
    """
    inside = _box(axes, axes.viewLim.extents)
    places = [tuple(axes.transData.transform(point[:2])) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places] + [_wider(_box(axes, bar)) for bar in bars]
    for (x, y), (_, _, text, colour) in sorted(zip(places, points, strict=True), key=lambda pair: -pair[0][1]):
        size = (_LETTER * len(text), _LINE)
        boxes = [_beside(x, y, size, distance, turn) for distance in (9, 16, 26, 38, 52, 68) for turn in range(12)]
        best = min(boxes, key=lambda box: _cost(box, taken, inside, (x, y)))
        taken.append(best)
        middle = ((best[0] + best[2]) / 2, (best[1] + best[3]) / 2)
        axes.annotate(text, middle, xycoords="figure pixels", ha="center", va="center", fontsize=_LABEL, color=colour)
        end = (min(max(x, best[0]), best[2]), min(max(y, best[1]), best[3]))
        if math.dist(end, (x, y)) > 12:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", (x, y), end, "figure pixels", "figure pixels", arrowprops=line)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names in a column at the right, each as near to the height of its line's end as the others allow.

    Args:
        axes: Where limits are final; the space for the names is at its right.
        ends: Place, text and colour of each.
    """
    left = axes.transData.transform((axes.viewLim.x1, 0))[0] + 14
    places = [tuple(axes.transData.transform(end[:2])) for end in ends]
    bottom, top = axes.transData.transform(axes.viewLim.get_points())[:, 1]
    heights = spread_apart([y for _, y in places], _LINE, bottom, top)
    for (x, y), height, (_, _, text, colour) in zip(places, heights, ends, strict=True):
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
        axes.annotate("", (x, y), (left - 2, height), "figure pixels", "figure pixels", arrowprops=line)
        axes.annotate(text, (left, height), xycoords="figure pixels", va="center", fontsize=_LABEL, color=colour)


def spread_apart(wanted: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Positions as near to the wanted ones as a gap between any two allows, within limits as far as there is room.

    Example:
        >>> spread_apart([5.0, 5.0, 90.0], 10.0, 0.0, 100.0)
        [0.0, 10.0, 90.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []  # the lowest position of a row of neighbours, and who they are
    for i in order:
        start, row = min(max(wanted[i], lowest), highest), [i]
        while blocks and blocks[-1][0] + gap * len(blocks[-1][1]) > start:
            _, before = blocks.pop()
            row = before + row
            mean = sum(wanted[j] - gap * k for k, j in enumerate(row)) / len(row)
            start = max(lowest, min(mean, highest - gap * (len(row) - 1)))
        blocks.append((start, row))
    positions = {i: start + gap * k for start, row in blocks for k, i in enumerate(row)}
    return [positions[i] for i in range(len(wanted))]


def _box(axes: Axes, extents: Iterable[float]) -> Box:
    """A box of the axes' units, in points of the figure."""
    left, bottom, right, top = extents
    (x0, y0), (x1, y1) = axes.transData.transform([(left, bottom), (right, top)])
    return (x0, y0, x1, y1)


def _wider(box: Box) -> Box:
    """A box with a margin, without which that of a line would cover nothing."""
    left, bottom, right, top = box
    return (left - 2, bottom - 2, right + 2, top + 2)


def _beside(x: float, y: float, size: tuple[float, float], distance: float, turn: int) -> Box:
    """A box of a size beside a point: to the right first, then around it."""
    angle = (0, 6, 3, 9, 1, 11, 5, 7, 2, 10, 4, 8)[turn] * math.pi / 6
    across, up = math.cos(angle), math.sin(angle)
    middle_x, middle_y = x + across * (distance + size[0] / 2), y + up * (distance + size[1] / 2)
    return (middle_x - size[0] / 2, middle_y - size[1] / 2, middle_x + size[0] / 2, middle_y + size[1] / 2)


def _cost(box: Box, taken: Iterable[Box], inside: Box, point: tuple[float, float]) -> tuple[float, float]:
    """How much of a box covers others or lies outside, then how far it is from its point."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    covered = sum(_common(box, other) for other in taken) + area - _common(box, inside)
    nearest = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    return (round(covered, 3), round(math.dist(nearest, point), 3))


def _common(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
