"""What the numbers of a comparison say about claims: a rule, the claims, and what they come to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.quantities import QUANTITIES, Quantity
from earlyworm.comparisons.statistics import FEWEST_PAIRS, Paired, Summary, difference_interval, summarise
from earlyworm.experiments.results import RunResult

EARLY_BIRD, WORM, FADE, DENSE = "early-bird", "worm", "fade", "dense"
CHALLENGERS = (WORM, FADE)  # what the claims are about


Verdict = Literal["holds", "not shown", "contradicted", "equal", "too few seeds", "no data"]
Standing = Literal["better", "as good", "worse", "equal", "too few seeds", "no data"]

STANDINGS: dict[Verdict, Standing] = {
    "holds": "better", "not shown": "as good", "contradicted": "worse",
    "equal": "equal", "too few seeds": "too few seeds", "no data": "no data",
}  # fmt: skip
"""What the verdict on "its final accuracy is higher" says about a method."""


@dataclass(frozen=True)
class Claim:
    """Something that is claimed of a method against Early Bird: that a quantity is on its better side."""

    words: str
    quantity: str


CLAIMS = (
    Claim("sooner (epochs)", "emergence_epoch"),
    Claim("sooner (FLOPs)", "emergence_flops"),
    Claim("smaller drop at pruning", "accuracy_drop"),
    Claim("faster recovery (1 epoch)", "accuracy_recovery_1"),
    Claim("faster recovery (3 epochs)", "accuracy_recovery_3"),
    Claim("fewer FLOPs in all", "relative_flops"),
)
"""What WORM's authors claim; any other method is judged by the same."""


@dataclass(frozen=True)
class Judged:
    """A claim in a setting: the numbers of the method and of Early Bird, and what they come to."""

    claim: Claim
    ours: Summary
    theirs: Summary
    verdict: Verdict

    @property
    def values(self) -> tuple[object, ...]:
        """What was judged; where two comparisons have runs in common, it is the same."""
        ours = self.ours
        return self.claim, ours.method, ours.setting.ratio, *ours.values.items(), *self.theirs.values.items()


@dataclass(frozen=True)
class Rival:
    """A method against another one in final accuracy, and its share of dense training's FLOPs; None: says nothing."""

    method: str
    final: Summary
    standing: Standing
    flops: float | None

    @property
    def values(self) -> tuple[object, ...]:
        """What was compared; where two comparisons have runs in common, it is the same."""
        return self.final.setting.ratio, self.final.paired, *self.final.values.items()


class Mean(NamedTuple):
    """A mean over seeds with its 95% interval, which is the mean itself with one seed."""

    value: float
    low: float
    high: float


def mean_of(values: Iterable[float]) -> Mean | None:
    """The mean of some numbers; None if there are none."""
    numbers = np.array([*values], dtype=float)
    if not len(numbers):
        return None
    interval = difference_interval(numbers, 0 * numbers)
    value = float(np.mean(numbers))
    return Mean(value, *(interval or (value, value)))


def mean_over(results: Iterable[RunResult], name: str) -> Mean | None:
    """The mean of a quantity over the runs that have it."""
    readings = [quantity(name).read(result) for result in results]
    return mean_of(reading.value for reading in readings if reading is not None)


def quantity(name: str) -> Quantity:
    """The quantity of a name."""
    return next(one for one in QUANTITIES if one.name == name)


def judge(paired: Paired | None, *, lower_is_better: bool) -> Verdict:
    """Whether a method is on the better side of another one.

    It holds if the 95% interval of the difference, paired by seed, lies on the better side of 0, is contradicted if it
    lies on the other, and is not shown if it contains 0. Where a search did not emerge there is no difference to
    average: then it holds only if it holds for every seed. Where the two have the same values, they are equal: there is
    nothing to judge.
    """
    if paired is None or not paired.pairs:
        return "no data"
    if paired.pairs < FEWEST_PAIRS:
        return "too few seeds"
    if paired.difference_interval is None:
        better, worse = paired.won == paired.pairs, paired.lost == paired.pairs
    elif not paired.won + paired.lost:
        return "equal"
    else:
        low, high = paired.difference_interval
        better, worse = (high < 0, low > 0) if lower_is_better else (low > 0, high < 0)
    return "holds" if better else "contradicted" if worse else "not shown"


def judged_claims(comparison: Comparison, setting: Setting, method: str, against: str = EARLY_BIRD) -> list[Judged]:
    """The claims about a method against Early Bird, both by their labels; none if one of them is not compared.

    Where all methods spend the same FLOPs, nothing is said about who spends fewer.
    """
    claims = [claim for claim in CLAIMS if comparison.match == "epochs" or claim.quantity != "relative_flops"]
    of = summaries(comparison, setting, against, (method,), [claim.quantity for claim in claims])
    judged = []
    for claim in claims:
        ours, theirs = of.get((method, claim.quantity)), of.get((against, claim.quantity))
        if ours is not None and theirs is not None:
            verdict = judge(ours.paired, lower_is_better=quantity(claim.quantity).better == "lower")
            judged.append(Judged(claim, ours, theirs, verdict))
    return judged


def rivals(
    comparison: Comparison, setting: Setting, against: str = EARLY_BIRD, methods: Sequence[str] | None = None
) -> list[Rival]:
    """Methods in a setting in final accuracy against one of them, which is first; none if it is not compared.

    Args:
        comparison: The comparison.
        setting: The setting.
        against: The label of the method that the others are compared with.
        methods: The labels of the others; None: all.
    """
    others = comparison.methods if methods is None else methods
    of = summaries(comparison, setting, against, others, ["accuracy_final", "relative_flops"])
    if (against, "accuracy_final") not in of:
        return []
    found = []
    for method in dict.fromkeys([against, *(method for method, _ in of)]):
        final = of[method, "accuracy_final"]
        standing = STANDINGS[judge(final.paired, lower_is_better=False)]
        found.append(Rival(method, final, standing, of[method, "relative_flops"].mean))
    return found


def has_truncated(result: RunResult) -> bool:
    """Whether gradients were truncated before the search ended; without that, the run is Early Bird's."""
    return any(check.chi < 1 for check in result.search.history[:-1])


def collapsed(comparison: Comparison, setting: Setting, method: str) -> dict[int, tuple[str, int, int]]:
    """Which runs were left with a layer of a twentieth of its units or less: by seed, the worst such layer.

    Returns:
        Its name, how many units are left, and how many there were.
    """
    found = {}
    for seed, result in comparison.results(setting, method).items():
        layers = [(kept / units, name, kept, units) for name, (kept, units) in result.layers.items()]
        if layers and min(layers)[0] <= 1 / 20:
            found[seed] = min(layers)[1:]
    return found


def summaries(
    comparison: Comparison, setting: Setting, baseline: str, methods: Sequence[str], names: Sequence[str]
) -> dict[tuple[str, str], Summary]:
    """Some quantities of some methods in one setting, by method and name, against a baseline that counts among them."""
    outcomes = tuple(
        outcome
        for outcome in comparison.outcomes
        if outcome.setting == setting and outcome.method in (baseline, *methods)
    )
    part = replace(comparison, baseline=baseline, outcomes=outcomes)
    return {(s.method, s.quantity): s for s in summarise(part, [quantity(name) for name in names])}
