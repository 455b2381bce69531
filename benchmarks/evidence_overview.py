"""The table of the README: where methods end in every setting, for how much training, and where the cut leaves them."""

from collections.abc import Sequence

from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.comparisons.statistics import FEWEST_PAIRS
from earlyworm.reporting.formats import percent
from evidence_claims import DENSE, EARLY_BIRD, FADE, WORM, mean_over
from evidence_settings import among, on_validation
from evidence_store import Stored
from evidence_words import bullets, share
from tables import markdown

RATIO = 0.5  # of other pruning ratios, docs/results.md tells
METHODS = {
    DENSE: "dense", "random": "random ticket", "narrow": "narrower network", EARLY_BIRD: "Early Bird", WORM: "WORM",
    FADE: "Fade",
}  # fmt: skip


def overview(stored: Sequence[Stored]) -> str:
    """Where methods end, in every setting on held-out examples in which Fade is compared with Early Bird."""
    shown = [
        (one, setting)
        for one in stored
        if not on_validation(one.comparison)
        for setting in one.comparison.settings
        if setting.ratio == RATIO and {FADE, EARLY_BIRD} <= _compared(one.comparison, setting)
    ]
    if not shown:
        return "No comparison with Fade is stored yet."
    table = markdown(["setting", *METHODS.values()], (_row(one, setting) for one, setting in shown))
    return f"{table}\n\n{bullets(dict.fromkeys(f'*{one.name}*: {one.about}' for one, _ in shown))}"


def with_overview(text: str, table: str) -> str:
    """The text of the README with this table in place of the one between its marks."""
    start, end = (f"<!-- measured: {where} -->" for where in ("start", "end"))
    before, _, rest = text.partition(start)
    old, _, after = rest.partition(end)
    assert old, f"the README must have {start} and {end}"
    return f"{before}{start}\n{table}\n{end}{after}"


def _row(one: Stored, setting: Setting) -> list[str]:
    compared = _compared(one.comparison, setting)
    told = [f"{value}" for name, value in among(one.comparison, setting).items() if name != "ratio"]
    place = " ".join([f"[{one.name}](docs/results.md#{one.name})", *told])
    return [place, *(_cell(one.comparison, setting, method) if method in compared else "-" for method in METHODS)]


def _compared(comparison: Comparison, setting: Setting) -> set[str]:
    """The methods with enough seeds."""
    return {method for method in METHODS if len(comparison.results(setting, method)) >= FEWEST_PAIRS}


def _cell(comparison: Comparison, setting: Setting, method: str) -> str:
    """Final accuracy, share of dense training's FLOPs, and accuracy right after the cut, on average over seeds."""
    results = comparison.results(setting, method).values()
    if missing := sum(result.ticket is None for result in results):
        return f"{len(results) - missing} of {len(results)} emerged"
    means = [mean_over(results, name) for name in ("accuracy_final", "relative_flops", "accuracy_pruned")]
    final, flops, pruned = (None if mean is None else mean.value for mean in means)
    if method == DENSE:
        return percent(final)
    told = percent(final) if flops is None else f"{percent(final)} at {share(flops)}"
    return told if method in ("random", "narrow") else f"{told} ({percent(pruned)})"
