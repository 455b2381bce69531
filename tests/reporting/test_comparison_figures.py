"""Pictures and words of a comparison's page: what they are made from, and how methods are told apart."""

import dataclasses

import pytest

from comparisons import METHODS_SHOWN, ONE, comparison_of, made_up, outcome_of
from earlyworm.reporting.comparison_curves import layers_by_method_figure
from earlyworm.reporting.comparison_figures import decision_figure, emergence_figure
from earlyworm.reporting.comparison_verdict import verdict_of
from earlyworm.reporting.comparison_view import views_of
from earlyworm.reporting.learning_curves import LearningCurve, learning_curve, mean_curve
from earlyworm.reporting.method_styles import method_styles
from earlyworm.reporting.palette import METHODS, PALETTE
from earlyworm.reporting.run_settings import changed_settings


def test_decision_shows_means_and_their_intervals():
    view = views_of(ONE)[ONE.settings[0]]
    traces = decision_figure(view).data
    assert [trace.meta["method"] for trace in traces] == METHODS_SHOWN
    for trace in traces:
        accuracy, flops = (view.summaries[trace.meta["method"]][name] for name in ("accuracy_final", "total_flops"))
        low, high = accuracy.interval
        assert ([*trace.x], [*trace.y]) == ([flops.mean], [accuracy.mean])
        assert [*trace.error_y.array, *trace.error_y.arrayminus] == pytest.approx([high - accuracy.mean] * 2)
        assert low < accuracy.mean < high


def test_what_had_not_emerged_is_an_open_arrow_at_the_budget():
    traces = emergence_figure(views_of(ONE)[ONE.settings[0]]).data
    [dots] = [trace for trace in traces if trace.meta["method"] == "greedy" and trace.text]
    assert [*dots.x] == [9, 20]
    assert [*dots.text] == ["1", "2"]
    assert [*dots.marker.symbol] == ["circle", "triangle-right"]
    assert dots.marker.color[1] == PALETTE["paper"][0]


def test_layers_of_one_shortened_name_are_two_rows():
    names = [f"{part}.layers.0.attention.self.query_projection" for part in ("encoder", "decoder")]
    layers = {name: (kept, 4) for kept, name in enumerate(names, 1)}
    comparison = comparison_of(dataclasses.replace(made_up("worm"), layers=layers))
    figure = layers_by_method_figure(views_of(comparison)[comparison.settings[0]])
    assert [*figure.layout.yaxis.ticktext] == ["…attention.self.query_projection"[:1] + names[0][-25:]] * 2
    assert [*figure.data[0].y] == [0, 1]
    assert [[*row] for row in figure.data[0].z] == [[25.0], [50.0]]


def test_a_dozen_methods_differ_in_colour_and_in_symbol():
    names = [f"method {i}" for i in range(30)]
    styles = method_styles(names, "method 3")
    assert list(styles) == names
    assert styles["method 3"].colour == PALETTE["ink"][0]
    dozen = [styles[name] for name in names[:12]]
    for part in ("colour", "symbol", "outline"):
        assert len({getattr(style, part) for style in dozen}) == 12
    assert len({(style.colour, style.symbol) for style in styles.values()}) == 30
    assert len({(style.colour, style.dash) for style in styles.values()}) == 30


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_methods_stand_out_from_the_paper(mode):
    paper = luminance(PALETTE["paper"][mode])
    for colours in METHODS.values():
        low, high = sorted((paper, luminance(colours[mode])))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.2, 1.4.11


def test_every_light_colour_has_one_dark_one():
    colours = {**PALETTE, **METHODS}
    assert len({light for light, _ in colours.values()}) == len({*colours.values()})


def test_one_curve_through_search_pruning_and_retraining():
    run = made_up("worm", epoch=9.0, before=0.96, pruned=0.7, final=0.95)
    curve = learning_curve(run)
    assert len(curve.epochs) == len(curve.flops) == len(curve.accuracy) == 10 + 1 + 21
    assert curve.epochs[9:12] == [9, 9, 10]
    assert curve.accuracy[9:11] == [0.96, 0.7]
    assert curve.flops[9] == curve.flops[10] == run.search.train_flops
    assert (curve.epochs[-1], curve.flops[-1]) == (30, run.total.train_flops)
    assert curve.flops[:2] == [0, run.search.train_flops / 9]


def test_mean_curves_end_where_the_first_one_does():
    one = LearningCurve([0, 10], [0, 100], [0.0, 1.0])
    other = LearningCurve([0, 20], [0, 400], [0.5, 0.5])
    places, means = mean_curve([one, other], "epochs")
    assert (places[0], places[-1]) == (0, 10)
    assert (means[0], means[60], means[-1]) == (0.25, 0.5, 0.75)
    assert mean_curve([one, other], "flops")[0][-1] == 100


@pytest.mark.parametrize(
    ("finals", "headline"),
    [
        ({"worm": 0.0}, "worm ends within noise of early-bird"),
        ({"worm": 0.01}, "worm ends more accurate than early-bird"),
        ({"worm": -0.01}, "worm ends less accurate than early-bird"),
        ({"worm": 0.0, "late": 0.0}, "No method ends more accurate than early-bird: all 2 are within noise"),
        ({"worm": 0.01, "late": 0.01}, "worm and late end more accurate than early-bird"),
        (dict.fromkeys(("worm", "late", "rst", "imp"), 0.01), "4 methods end more accurate than early-bird"),
        (
            {"worm": -0.01, "late": 0.0, "rst": 0.0},
            "No method ends more accurate than early-bird: of 3, 2 are within noise and 1 is less accurate",
        ),
    ],
)
def test_verdict(finals, headline):
    noise = (-0.001, 0.0, 0.001)
    runs = [made_up("early-bird", seed, final=0.95) for seed in range(3)]
    runs += [made_up(m, s, final=0.95 + gain + noise[s]) for m, gain in finals.items() for s in range(3)]
    comparison = comparison_of(*runs)
    found = verdict_of(views_of(comparison)[comparison.settings[0]]).headline
    assert found == f"{headline} (3 seeds: too few to be sure)"


def test_five_seeds_are_a_verdict():
    runs = [
        made_up(method, seed, final=final)
        for seed in range(5)
        for method, final in (("early-bird", 0.9), ("worm", 0.95))
    ]
    comparison = comparison_of(*runs)
    found = verdict_of(views_of(comparison)[comparison.settings[0]]).headline
    assert found == "worm ends more accurate than early-bird"


def test_of_many_methods_one_seems_better_by_chance():
    labels = [f"worm:lr={number}" for number in range(10)]
    runs = [outcome_of(made_up("early-bird", seed, final=0.9)) for seed in range(5)]
    runs += [
        outcome_of(made_up("worm", seed, final=0.9 + 0.01 * (label == labels[3])), label)
        for label in labels
        for seed in range(5)
    ]
    comparison = comparison_of(*runs)
    found = verdict_of(views_of(comparison)[comparison.settings[0]]).headline
    headline = "worm:lr=3 ends more accurate than early-bird: of 10, 9 are within noise"
    assert found == f"{headline} (of so many, some seem so by chance)"


def test_one_seed_is_no_verdict():
    comparison = comparison_of(made_up("early-bird"), made_up("worm", final=0.99))
    verdict = verdict_of(views_of(comparison)[comparison.settings[0]])
    assert verdict.headline == "Nothing to compare with early-bird yet"
    assert "worm\N{NO-BREAK SPACE}+4.0" in verdict.sentences[-1]


def test_settings_that_differ_from_the_defaults():
    runs = [made_up("early-bird", seed, lr=0.05, epochs=40) for seed in (0, 1)]
    narrow = [made_up("narrow", seed, lr=0.05, epochs=40, macs=1000 + seed) for seed in range(5)]
    window = outcome_of(made_up("worm", lr=0.05, epochs=40, static="window"), "worm:static=window")
    changed = changed_settings(comparison_of(*runs, *narrow, window))
    assert changed.common == {"lr": (0.05, 0.01), "epochs": (40, 30)}
    assert changed.own == {"narrow": {"macs": "1000 to 1004"}, "worm:static=window": {"static": "window"}}
