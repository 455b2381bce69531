"""What stored comparisons come to, in words: generated from their statistics, never written by hand."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.quantities import Unit
from earlyworm.comparisons.statistics import Summary, ranking_agreement
from earlyworm.reporting.comparison_tables import comparison_markdown
from earlyworm.reporting.formats import percent, points, si
from evidence_claims import (
    CHALLENGERS,
    CLAIMS,
    DENSE,
    EARLY_BIRD,
    WORM,
    Judged,
    Rival,
    Standing,
    Verdict,
    collapsed,
    has_truncated,
    judged_claims,
    quantity,
    rivals,
)
from evidence_options import COURSE, Varied, at_values, varied
from evidence_settings import among, on_validation, over_ratios, over_sizes
from evidence_store import Stored
from tables import markdown

_STANDINGS = {
    "better": "Better than {}",
    "as good": "As good as {}, as far as is shown",
    "worse": "Worse than {}",
    "equal": "Equal to {} in every seed",
    "too few seeds": "On too few seeds to compare with {}",
}


def claims_summary(stored: Sequence[Stored]) -> str:
    """The claims about WORM against all settings: a table, and how often each holds."""
    found = {(place,): known_claims(comparison, setting, WORM) for place, comparison, setting in held_out(stored)}
    return claims_table(["comparison"], found) or "No comparison of WORM with Early Bird is stored yet."


def claims_table(columns: Sequence[str], found: Mapping[tuple[str, ...], Sequence[Judged]]) -> str:
    """Verdicts on all claims, and how often each holds; nothing if there are none.

    Args:
        columns: The titles of what tells the rows.
        found: What was found for each row.
    """
    verdicts = {row: {judged.claim: judged.verdict for judged in some} for row, some in found.items() if some}
    if not verdicts:
        return ""
    rows = [[*row, *(weighed(of.get(claim, "-")) for claim in CLAIMS)] for row, of in verdicts.items()]
    once = {judged.values: judged for some in found.values() for judged in some}.values()
    lines = [f"*{claim.words}* {_counted(one.verdict for one in once if one.claim == claim)}" for claim in CLAIMS]
    return markdown([*columns, *(claim.words for claim in CLAIMS)], rows) + "\n\n" + bullets(lines)


def rivals_summary(stored: Sequence[Stored]) -> str:
    """Final accuracies against Early Bird's in all settings, with shares of FLOPs, and how often each is as good.

    What is compared in one setting only stands in the section of that; so do training sets that grow.
    """
    found = {
        place: {rival.method: rival for rival in some}
        for place, comparison, setting in held_out(stored)
        if not over_sizes(comparison) and (some := rivals(comparison, setting))
    }
    if not found:
        return "No comparison with Early Bird is stored yet."
    places = Counter(method for of in found.values() for method in of)
    methods = [method for method, count in places.items() if count > 1 or len(found) == 1]
    rows = [[f"`{method}`", *(_standing(of.get(method)) for of in found.values())] for method in methods]
    lines = []
    for method in methods[1:]:
        once = {of[method].values: of[method].standing for of in found.values() if method in of}
        told = standings_counted(once.values())
        lines += [f"`{method}`: {told}."] if told else []
    return markdown(["method", *found], rows) + "\n\n" + bullets(lines)


def section(one: Stored, figures: Iterable[tuple[str, Setting | None, str]]) -> str:
    """Everything about one stored comparison.

    Args:
        one: The comparison.
        figures: What each shows, of which setting (None: of all), and where it lies.
    """
    comparison, shown = one.comparison, [*figures]
    done = sum(outcome.result is not None for outcome in comparison.outcomes)
    head = [f"### {one.name}", *([wrapped(one.about)] if one.about else [])]
    head.append(f"{done} of {one.planned} runs are done: `python benchmarks/evidence.py run {one.name}`.")
    parts = [*head, *_pictures(shown, None)]
    grown = over_sizes(comparison)
    parts += [_growth(comparison, sizes) for sizes in grown]
    # Setting by setting, training sets that grow would be a long list of what their table has side by side.
    for setting in () if grown else comparison.settings:
        if len(comparison.settings) > 1:
            parts.append(f"#### {_title(one, setting)}")
        parts += [*_of_setting(comparison, setting), *_pictures(shown, setting)]
    if over_ratios(comparison):
        parts.append(bullets(_rankings(comparison)))
    numbers = comparison_markdown(comparison).removeprefix(f"### {comparison.title}\n\n").rstrip()
    parts += [f"<details><summary>All numbers of {one.name}</summary>", numbers, "</details>"]
    return "\n\n".join(part for part in parts if part)


def bullets(lines: Iterable[str]) -> str:
    """A list in Markdown."""
    return "\n".join(wrapped(f"- {line}", indent="  ") for line in lines)


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 120 letters."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _counted(verdicts: Iterable[Verdict]) -> str:
    """How often a claim holds, and how often not."""
    counts = Counter(verdict for verdict in verdicts if verdict != "no data")
    equal = f"; both are equal in {counts['equal']}" if counts["equal"] else ""
    few = f"; on too few seeds in {counts['too few seeds']}" if counts["too few seeds"] else ""
    return (
        f"holds in {counts['holds']} of {counts.total()}, is contradicted in {counts['contradicted']} and not shown in "
        f"{counts['not shown']}{equal}{few}."
    )


def standings_counted(standings: Iterable[Standing]) -> str:
    """How often a method is better, as good and worse; nothing if that is known of no setting."""
    counts = Counter(standing for standing in standings if standing != "no data")
    told = [f"{standing} in {counts[standing]}" for standing in _STANDINGS if counts[standing]]
    return f"{', '.join(told)} of {counts.total()}" if told else ""


def held_out(stored: Sequence[Stored]) -> Iterator[tuple[str, Comparison, Setting]]:
    """All settings with links to their comparisons, but for those on validation splits, which served to choose."""
    for one in stored:
        if not on_validation(one.comparison):
            for setting in one.comparison.settings:
                yield f"[{_title(one, setting)}](#{one.name})", one.comparison, setting


def known_claims(comparison: Comparison, setting: Setting, method: str, against: str = EARLY_BIRD) -> list[Judged]:
    """The claims about a method in a setting, if there are data on any of them."""
    found = judged_claims(comparison, setting, method, against)
    return found if any(judged.verdict != "no data" for judged in found) else []


def _title(one: Stored, setting: Setting) -> str:
    """What a setting is called among those of all stored comparisons."""
    return " ".join([one.name, *(f"{name} {value}" for name, value in among(one.comparison, setting).items())])


def _of_setting(comparison: Comparison, setting: Setting) -> list[str]:
    """What options do, the claims in a setting, then who is as good as Early Bird, and what collapsed."""
    parts = [_over(comparison, setting, option) for option in varied(comparison)]
    for method in CHALLENGERS:
        if claims := known_claims(comparison, setting, method):
            both = [f"`{EARLY_BIRD}`", f"`{method}`", f"`{method}` - `{EARLY_BIRD}`"]
            parts.append(markdown(["claim", *both, "seeds better, worse", "verdict"], map(_claim, claims)))
    lines = [*(_truncations(comparison, setting, method) for method in CHALLENGERS)]
    lines += [*_standings(rivals(comparison, setting)), *_collapses(comparison, setting)]
    return [*parts, bullets(line for line in lines if line)]


def _over(comparison: Comparison, setting: Setting, option: Varied) -> str:
    """What came of every value of an option, as a table."""
    rows = [
        [
            f"{point.value:g}",
            point.emerged.removeprefix("epoch "),
            *(percent(None if mean is None else mean.value) for mean in point.course.values()),
            share(None if point.flops is None else point.flops.value),
        ]
        for point in at_values(comparison, setting, option)
    ]
    first, *others = COURSE
    columns = [f"`{option.option}` of `{option.method}`", "emerged at epoch", f"accuracy {first}", *others, "FLOPs"]
    return markdown(columns, rows) if rows else ""


def _truncations(comparison: Comparison, setting: Setting, method: str) -> str:
    """In how many runs a method did anything before the ticket emerged."""
    runs = comparison.results(setting, method).values()
    acted = sum(map(has_truncated, runs))
    same = "" if acted == len(runs) else "; what did not is Early Bird's run"
    return f"`{method}` truncated before emergence in {acted} of {len(runs)} runs{same}." if runs else ""


def _claim(judged: Judged) -> list[str]:
    show, show_difference = _SHOWN[quantity(judged.claim.quantity).unit]
    paired, difference = judged.ours.paired, with_interval(judged.ours, show_difference)
    seeds = f"{paired.won}, {paired.lost} of {paired.pairs}" if paired else "-"
    of_both = [_mean(summary, show) for summary in (judged.theirs, judged.ours)]
    return [judged.claim.words, *of_both, difference, seeds, weighed(judged.verdict)]


def _standings(found: Sequence[Rival]) -> list[str]:
    """Who is better than the first of them in final accuracy, as good, and worse."""
    if not found or found[0].final.mean is None:
        return []
    first, *others = found
    of_dense = f"for {share(first.flops)} of dense training's FLOPs"
    cost = "with as many training FLOPs as every other" if first.flops is None else of_dense
    lines = [f"`{first.method}` ends at {percent(first.final.mean)}, {cost}."]
    for standing, words in _STANDINGS.items():
        names = [
            f"`{rival.method}` ({'; '.join([with_interval(rival.final, in_points), *_share(rival)])})"
            for rival in others
            if rival.standing == standing
        ]
        if names:
            lines.append(f"*{words.format(f'`{first.method}`')}*: {', '.join(names)}.")
    return lines


def _collapses(comparison: Comparison, setting: Setting) -> list[str]:
    """In which runs a layer was left with next to nothing, and where these ended."""
    lines = []
    for method in comparison.methods:
        runs, found = comparison.results(setting, method), collapsed(comparison, setting, method)
        if not found:
            continue
        cases = "; ".join(
            f"seed {seed}: {kept} of {units} in `{layer}`, {percent(runs[seed].accuracy.before)} before pruning and "
            f"{percent(runs[seed].accuracy.final)} at the end"
            for seed, (layer, kept, units) in sorted(found.items())
        )
        lines.append(f"`{method}` left a layer with a twentieth of its units or less ({cases}).")
    return lines


def _growth(comparison: Comparison, sizes: Mapping[Setting, int]) -> str:
    """Final accuracies against dense training, size by size, and at which sizes a method is better or worse."""
    found = {size: rivals(comparison, setting, DENSE) for setting, size in sizes.items()}
    methods = [*dict.fromkeys(rival.method for of in found.values() for rival in of)]
    rows, where = [], dict[str, dict[Standing, list[str]]]()
    for size, of in sorted(found.items()):
        by_method = {rival.method: rival for rival in of}
        rows.append([f"{size}", *(_against_dense(by_method.get(method)) for method in methods)])
        for rival in of[1:]:
            where.setdefault(rival.method, {}).setdefault(rival.standing, []).append(f"{size}")
    lines = []
    for method, of in where.items():
        told = "; ".join(f"{standing} with {', '.join(some)}" for standing, some in of.items())
        lines.append(f"`{method}` against `{DENSE}`: {told} training examples.")
    columns = ["training examples", *(f"`{method}`" for method in methods)]
    return f"{markdown(columns, rows)}\n\n{bullets(lines)}" if methods else ""


def _against_dense(rival: Rival | None) -> str:
    if rival is None or rival.final.mean is None:
        return "-"
    if rival.final.paired is None:
        return percent(rival.final.mean)
    return f"{percent(rival.final.mean)}: {rival.standing} ({with_interval(rival.final, in_points)})"


def _rankings(comparison: Comparison) -> list[str]:
    """How well the training speed ranks pruning ratios."""
    return [
        f"Over pruning ratios, losses early in retraining rank final accuracies with Kendall's tau {one.mean:.2f} for "
        f"`{one.method}` ({len(one.taus)} seeds; 1: the same order, -1: the opposite). To put the smallest ratio "
        f"first, whatever its losses, does so with {one.least_first:.2f}."
        for one in ranking_agreement(comparison)
        if one.mean is not None and one.method in (EARLY_BIRD, *CHALLENGERS)
    ]


def _pictures(figures: Sequence[tuple[str, Setting | None, str]], of: Setting | None) -> list[str]:
    return [f"![{words}]({path})" for words, setting, path in figures if setting == of]


def _standing(rival: Rival | None) -> str:
    if rival is None or rival.standing == "no data":
        known = rival is not None and rival.final.mean is not None
        return " at ".join([percent(rival.final.mean), *_share(rival)]) if known else "-"
    return " at ".join([weighed(rival.standing), *_share(rival)])


def _share(rival: Rival) -> list[str]:
    """What share of dense training's FLOPs a method takes, if they are not the same for all."""
    return [] if rival.flops is None else [share(rival.flops)]


def weighed(verdict: str) -> str:
    """Bold, if it says anything."""
    return f"**{verdict}**" if verdict in ("holds", "contradicted", "better", "worse") else verdict


def _mean(summary: Summary, show: Callable[[float], str]) -> str:
    if summary.censored:
        return f"{summary.n - summary.censored} of {summary.n} emerged"
    return "-" if summary.mean is None else show(summary.mean)


def with_interval(summary: Summary, show: Callable[[float], str]) -> str:
    """The difference to the baseline and its interval; a dash if there is none."""
    paired = summary.paired
    if paired is None or paired.difference is None:
        return "-"
    interval = paired.difference_interval
    return show(paired.difference) + (f" [{show(interval[0])}, {show(interval[1])}]" if interval else "")


def share(flops: float | None) -> str:
    """A share of something, in whole percents; a dash for what there is not."""
    return "-" if flops is None else f"{flops:.0%}"


def in_points(difference: float) -> str:
    """A difference in percentage points, with a digit more where it would seem to be 0."""
    return points(difference) if abs(difference) >= 0.0005 or not difference else f"{100 * difference:+.2f}"


def _signed_si(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{si(abs(value))}"


_SHOWN: dict[Unit, tuple[Callable[[float], str], Callable[[float], str]]] = {
    "epochs": ("{:.3g}".format, "{:+.3g}".format),
    "FLOPs": (si, _signed_si),
    "fraction": (percent, in_points),
    "ratio": (percent, in_points),
}
"""How a quantity is written, and a difference of two."""
