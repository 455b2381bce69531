"""What a comparison says, in words: which methods end better, worse, or within noise of the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from earlyworm.comparisons.statistics import FEWEST_PAIRS, Paired
from earlyworm.reporting.comparison_view import View
from earlyworm.reporting.formats import points

_BY_CHANCE = 0.05  # of methods that do not differ, this share has an interval without zero in it


class Verdict(NamedTuple):
    """What the final accuracies of one setting say: one line, and the sentences behind it."""

    headline: str
    sentences: list[str]


def verdict_of(view: View) -> Verdict:
    """Compare final accuracies with the baseline's, paired by seed: what differs has an interval without zero in it."""
    finals = {
        method: paired
        for method, summaries in view.summaries.items()
        if (paired := summaries["accuracy_final"].paired) is not None and paired.difference is not None
    }
    sure = {method: paired.difference_interval for method, paired in finals.items() if paired.difference_interval}
    better = [method for method, (low, _) in sure.items() if low > 0]
    worse = [method for method, (_, high) in sure.items() if high < 0]
    same = [method for method in sure if method not in better + worse]
    groups = {
        f"More accurate than {view.baseline} at the end": better,
        f"Within noise of {view.baseline}": same,
        f"Less accurate than {view.baseline} at the end": worse,
        "With one seed in common, the difference may be noise": [method for method in finals if method not in sure],
    }
    found = [
        f"{words}: {'; '.join(_described(view, method, finals[method]) for method in methods)}."
        for words, methods in groups.items()
        if methods
    ]
    told = f"By how many points each method's final accuracy differs, and for what share of {view.baseline}'s FLOPs:"
    fewest = min((finals[method].pairs for method in sure), default=FEWEST_PAIRS)
    doubt = f" ({fewest} seeds: too few to be sure)" if fewest < FEWEST_PAIRS else ""
    if not doubt and 0 < len(better) <= 2 * _BY_CHANCE * len(sure):
        doubt = " (of so many, some seem so by chance)"
    return Verdict(_headline(view.baseline, better, same, worse) + doubt, [told, *found] if found else [])


def _headline(baseline: str, better: Sequence[str], same: Sequence[str], worse: Sequence[str]) -> str:
    count = len(better) + len(same) + len(worse)
    if not count:
        return f"Nothing to compare with {baseline} yet"
    if count == 1:
        (method,) = [*better, *same, *worse]
        how = "more accurate than" if better else "within noise of" if same else "less accurate than"
        return f"{method} ends {how} {baseline}"
    best = f"{_listed(better)} {'ends' if len(better) == 1 else 'end'}" if better else "No method ends"
    if len(same) == count:
        return f"{best} more accurate than {baseline}: all {count} are within noise"
    parts = {"within noise": len(same), "less accurate": len(worse)}
    rest = " and ".join(
        f"{number} {'is' if number == 1 else 'are'} {words}" for words, number in parts.items() if number
    )
    return f"{best} more accurate than {baseline}" + (f": of {count}, {rest}" if rest else "")


def _listed(names: Sequence[str]) -> str:
    """At most three names."""
    if len(names) > 3:
        return f"{len(names)} methods"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _described(view: View, method: str, paired: Paired) -> str:
    """A method with its difference in points, and its training FLOPs as a share of the baseline's."""
    flops = view.summaries[method]["total_flops"].paired
    share = "" if flops is None or flops.ratio is None else f" for {flops.ratio:.0%}"
    return f"{method} {points(paired.difference or 0.0)}{share}".replace(" ", "\N{NO-BREAK SPACE}")
