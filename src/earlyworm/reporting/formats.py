"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Callable


def epochs(number: float) -> str:
    """A number of epochs, with the word: 2.5 epochs."""
    return f"{number:.4g} epoch" if number == 1 else f"{number:.4g} epochs"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage: 97.2%; a dash for what there is not."""
    return "-" if fraction is None else f"{fraction:.1%}"


def si(value: float) -> str:
    """Three digits and a prefix: 1.23 M."""
    prefixes = ["", " k", " M", " G", " T", " P", " E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g}{prefixes[0]}"


def seconds(value: float) -> str:
    """A duration in the unit that suits it: 1.84 ms, 12.3 s, 4 min 12 s, 2 h 05 min."""
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    if value < 90:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def points(difference: float) -> str:
    """A difference of two fractions, in percentage points: +0.4."""
    return f"{100 * difference:+z.1f}"


def spread(mean: float | None, deviation: float | None, show: Callable[[float], str]) -> str:
    """A mean and its standard deviation: 9.33 ± 1.5; the mean alone where there is no deviation."""
    if mean is None:
        return "-"
    return show(mean) if deviation is None else f"{show(mean)} ± {show(deviation)}"
