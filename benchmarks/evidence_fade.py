"""What Fade and its variants come to in every setting: the claims, what tickets cost, and where training ends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.statistics import FEWEST_PAIRS, Paired, Summary, compare_paired
from earlyworm.experiments.config import RunConfig
from earlyworm.reporting.formats import percent
from evidence_claims import DENSE, EARLY_BIRD, FADE, STANDINGS, judge, summaries
from evidence_store import Stored
from evidence_words import (
    bullets,
    claims_table,
    held_out,
    in_points,
    known_claims,
    share,
    standings_counted,
    weighed,
    with_interval,
)
from tables import markdown

RIVALS = (EARLY_BIRD, DENSE, "random", "narrow")
QUICK = "Early Bird made as quick"  # by the interval and window of Fade; where these are its usual ones, by its epsilon
_BUDGETS = {"epochs": "epochs", "flops": "training FLOPs"}  # what all methods of a comparison spend alike


class Variant(NamedTuple):
    """Fade with certain options in a setting: its label, and those of Early Bird with the same floor under layers.

    The first is Early Bird as usual, the second made as quick, if there is one.
    """

    place: str
    comparison: Comparison
    setting: Setting
    label: str
    early_bird: str
    as_quick: str | None

    def against(self, rival: str, name: str) -> Summary | None:
        """A quantity against that of a rival; None if there is nothing to compare."""
        other = self._label(rival)
        of = summaries(self.comparison, self.setting, other, (self.label,), [name]) if other else {}
        ours = of.get((self.label, name))
        return ours if ours is not None and ours.paired is not None and ours.paired.pairs else None

    def share_of(self, rival: str, name: str) -> tuple[Paired, bool] | None:
        """A cost as a share of that of a rival, and whether it may be less; None if that is unknown.

        What the rival had spent when its search ended without emergence counts as its cost: it would have been more.
        Where all methods spend the same on training, its share tells nothing.
        """
        if name.startswith("total") and self.comparison.match == "flops":
            return None
        other = self._label(rival)
        of = summaries(self.comparison, self.setting, other, (self.label,), [name]) if other else {}
        ours, theirs = of.get((self.label, name)), of.get((other, name))
        if ours is None or theirs is None or ours.censored:
            return None
        known = {seed: replace(reading, censored=False) for seed, reading in theirs.values.items()}
        paired = compare_paired(ours.values, known, lower_is_better=True)
        return None if paired.ratio is None else (paired, bool(theirs.censored))

    def _label(self, rival: str) -> str | None:
        return {EARLY_BIRD: self.early_bird, QUICK: self.as_quick}.get(rival, rival)


def fade_summary(stored: Sequence[Stored]) -> str:
    """The claims about Fade, what its tickets cost, where it ends, and how often it does what it is for."""
    found = [*variants(stored)]
    claims = {(v.place, f"`{v.label}`"): known_claims(v.comparison, v.setting, v.label, v.early_bird) for v in found}
    table = claims_table(["comparison", "method"], claims)
    if not table:
        return "No comparison of Fade with Early Bird is stored yet."
    costs = markdown(["comparison", "method", *(column for column, _ in _COSTS)], (_row(v, _COSTS) for v in found))
    ends = [("final", _final), *((f"against `{rival}`", _ending(rival)) for rival in RIVALS)]
    ends.append((f"against {QUICK}", _ending(QUICK)))
    final = markdown(["comparison", "method", *(column for column, _ in ends)], (_row(v, ends) for v in found))
    return "\n\n".join([
        table,
        "What tickets cost, with 95% intervals:", costs,
        "Final accuracy, and differences to others in points:", final,
        "How often; a bound is met where the whole interval meets it:",
        bullets([*_reached(found), *_shrunk(stored)]),
    ])  # fmt: skip


def variants(stored: Sequence[Stored]) -> Iterator[Variant]:
    """Fade with all options with which it has results on held-out examples, and Early Bird has too.

    That its network gets smaller during the search changes what it costs, not what comes of it: `_shrunk` tells that.
    """
    for place, comparison, setting in held_out(stored):
        configs = configs_of(comparison, setting)
        for label, config in configs.items():
            if config.method != FADE or config.shrink:
                continue
            floor = config.min_units
            twins = [other for other, of in configs.items() if of.method == EARLY_BIRD and of.min_units == floor]
            if twins:  # the first is the one with the fewest options, as grids have it
                quick = (twin for twin in twins if _is_as_quick(configs[twin], config, configs[twins[0]]))
                yield Variant(place, comparison, setting, label, twins[0], next(quick, None))


def _is_as_quick(twin: RunConfig, fade: RunConfig, usual: RunConfig) -> bool:
    """Whether Early Bird has Fade's interval and window; where these are its usual ones, whether epsilon is higher."""
    return _watched(twin) == _watched(fade) and (_watched(fade) != _watched(usual) or twin.epsilon > usual.epsilon)


def _shrunk(stored: Sequence[Stored]) -> Iterator[str]:
    """How many runs end alike with a network that gets smaller during the search, and what that saves of the search."""
    alike, saved = [], []
    for _, comparison, setting in held_out(stored):
        plain = {replace(c, seed=0): label for label, c in configs_of(comparison, setting).items() if not c.shrink}
        for label, config in configs_of(comparison, setting).items():
            twin = plain.get(replace(config, seed=0, shrink=False)) if config.shrink else None
            of = comparison.results(setting, twin) if twin else {}
            for seed, result in comparison.results(setting, label).items():
                if seed in of:
                    alike.append(result.accuracy.final == of[seed].accuracy.final)
                    saved.append(1 - result.search.train_flops / of[seed].search.train_flops)
    if alike:
        yield (
            f"With `shrink` Fade ends with the same accuracy in {sum(alike)} of {len(alike)} runs, and saves "
            f"{share(fmean(saved))} of the FLOPs of the search on average, {share(max(saved))} at most."
        )


def configs_of(comparison: Comparison, setting: Setting) -> dict[str, RunConfig]:
    """The settings of a run of every method that has results, by its label."""
    done = {label: [*comparison.results(setting, label).values()] for label in comparison.methods}
    return {label: results[0].config for label, results in done.items() if results}


Cell = Callable[[Variant], str]
Reached = Callable[[Variant], tuple[Paired, bool] | None]  # numbers, and whether they are as good as is wished


def _row(variant: Variant, columns: Iterable[tuple[str, Cell]]) -> list[str]:
    return [variant.place, f"`{variant.label}`", *(cell(variant) for _, cell in columns)]


def _epoch(variant: Variant) -> str:
    summary = variant.against(EARLY_BIRD, "emergence_epoch")
    if summary is None or summary.mean is None:
        return "-" if summary is None else f"{summary.n - summary.censored} of {summary.n} emerged"
    return f"{summary.mean:.3g}"


def _cost(rival: str, name: str) -> Cell:
    def cell(variant: Variant) -> str:
        of = variant.share_of(rival, name)
        if of is None:
            return "-"
        paired, at_most = of
        if paired.pairs < FEWEST_PAIRS:
            return "too few seeds"
        interval = paired.ratio_interval
        told = share(paired.ratio) + (f" [{share(interval[0])}, {share(interval[1])}]" if interval else "")
        return f"at most {told}" if at_most else told

    return cell


def _after_the_cut(variant: Variant) -> str:
    def mean(label: str) -> str:
        of = summaries(variant.comparison, variant.setting, label, (), ["accuracy_pruned"])
        summary = of.get((label, "accuracy_pruned"))
        return "-" if summary is None else percent(summary.mean)

    return f"{mean(variant.label)} (Early Bird {mean(variant.early_bird)})"


_COSTS: tuple[tuple[str, Cell], ...] = (
    ("emerged at epoch", _epoch),
    ("search FLOPs of Early Bird's", _cost(EARLY_BIRD, "emergence_flops")),
    ("of Early Bird's, made as quick", _cost(QUICK, "emergence_flops")),
    ("accuracy right after the cut", _after_the_cut),
    ("all FLOPs of dense training's", _cost(DENSE, "total_flops")),
    ("all seconds of dense training's", _cost(DENSE, "total_seconds")),
)


def _final(variant: Variant) -> str:
    summary = variant.against(EARLY_BIRD, "accuracy_final")
    return "-" if summary is None else percent(summary.mean)


def _ending(rival: str) -> Cell:
    def cell(variant: Variant) -> str:
        summary = variant.against(rival, "accuracy_final")
        if summary is None:
            return "-"
        standing = STANDINGS[judge(summary.paired, lower_is_better=False)]
        return f"{weighed(standing)} ({with_interval(summary, in_points)})"

    return cell


def _watched(config: RunConfig) -> tuple[float, int]:
    """The interval between checks and the window."""
    return config.effective_check_every, config.emergence.window


def _reached(found: Sequence[Variant]) -> list[str]:
    """How often tickets and training are as cheap, and the end as good, as they are meant to be: by interval."""

    def counted(words: str, holds: Reached) -> str:
        # Where two comparisons have runs in common, these count once.
        known = {(v.label, v.setting.ratio, reached[0]): reached[1] for v in found if (reached := holds(v)) is not None}
        return f"{words}: in {sum(known.values())} of {len(known)}."

    def cost(rival: str, name: str, bound: float) -> Reached:
        def holds(variant: Variant) -> tuple[Paired, bool] | None:
            of = variant.share_of(rival, name)
            if of is None or of[0].pairs < FEWEST_PAIRS or of[0].ratio_interval is None:
                return None
            return of[0], of[0].ratio_interval[1] <= bound

        return holds

    def end(rival: str, least: float) -> Reached:
        def holds(variant: Variant) -> tuple[Paired, bool] | None:
            summary = variant.against(rival, "accuracy_final")
            paired = None if summary is None else summary.paired
            if paired is None or paired.pairs < FEWEST_PAIRS or paired.difference_interval is None:
                return None
            return paired, paired.difference_interval[0] > least

        return holds

    def standing(rival: str, match: str) -> Iterator[str]:
        some = [v.against(rival, "accuracy_final") for v in found if v.comparison.match == match]
        told = {
            (s.method, s.setting.ratio, s.paired): STANDINGS[judge(s.paired, lower_is_better=False)]
            for s in some
            if s is not None
        }
        if told:
            name = rival if rival == QUICK else f"`{rival}`"
            yield f"Final accuracy with as many {_BUDGETS[match]} as {name}: {standings_counted(told.values())}."

    return [
        counted("At most a third of Early Bird's FLOPs of the search", cost(EARLY_BIRD, "emergence_flops", 1 / 3)),
        counted(f"At most a third of those of {QUICK}", cost(QUICK, "emergence_flops", 1 / 3)),
        counted("At most half of dense training's FLOPs", cost(DENSE, "total_flops", 0.5)),
        counted("At most half of dense training's seconds", cost(DENSE, "total_seconds", 0.5)),
        counted("No more than half a point below Early Bird at the end", end(EARLY_BIRD, -0.005)),
        counted(f"No more than half a point below {QUICK} at the end", end(QUICK, -0.005)),
        counted("No more than half a point below dense training at the end", end(DENSE, -0.005)),
        *(line for match in _BUDGETS for rival in (*RIVALS, QUICK) for line in standing(rival, match)),
    ]
