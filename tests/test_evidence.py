"""The document of results: verdicts, words and figures from stored comparisons; what is committed comes of them."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

import evidence
import evidence_store
from comparisons import comparison_of, made_up, outcome_of, undone
from earlyworm.comparisons.comparison import Comparison, Outcome
from earlyworm.comparisons.grid import Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.comparisons.statistics import Paired
from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.reporting.method_styles import method_styles
from evidence_claims import collapsed, has_truncated, judge, judged_claims, mean_of, rivals
from evidence_curves import growth_figure, option_figure, ratio_figure
from evidence_drawing import looks, new_axes, new_figure, part_ticks, spread_apart, two_ticks
from evidence_fade import fade_summary, variants
from evidence_figures import cost_figure, course_figure, emergence_figure
from evidence_options import at_values, by_decades, varied
from evidence_overview import overview, with_overview
from evidence_settings import accuracy_of, among, over_ratios, over_sizes
from evidence_store import Stored, about, load, restore, small, store
from evidence_words import claims_summary, rivals_summary, section

SEEDS = range(5)
DOCS = Path(__file__).parent.parent / "docs"


def several(ratio=0.5, seeds=SEEDS) -> list:
    """Runs of several methods: WORM is sooner, and drops and recovers as Early Bird does, up to noise."""
    cells = []
    for seed in seeds:
        noise, other, more = 0.01 * (seed % 3), 0.01 * ((seed + 1) % 3), (0.5 - ratio) / 10
        cells += [
            made_up("early-bird", seed, ratio=ratio, epoch=12.0, pruned=0.5 + noise, final=0.93 + noise / 10 + more),
            made_up(
                "worm", seed, ratio=ratio, epoch=8.0 + seed % 2, pruned=0.5 + other, final=0.93 + other / 10 + more
            ),
            made_up("narrow", seed, ratio=ratio, final=0.92 + noise / 10 + more),
            made_up("dense", seed, ratio=ratio, final=0.95 + noise / 10),
        ]
    return cells


COMPARISON = comparison_of(*several())
(SETTING,) = COMPARISON.settings


def faded(seed: int, label: str = "fade", **changes) -> Outcome:
    """A run of Fade that was truncating for the last two epochs of its search, and loses little at pruning."""
    result = made_up("fade", seed, **{"epoch": 10.0, "pruned": 0.9, "final": 0.96 + 0.001 * (seed % 3), **changes})
    history = [*result.search.history[:-2], *(replace(c, chi=0.0, truncated=9) for c in result.search.history[-2:])]
    return outcome_of(replace(result, search=replace(result.search, history=tuple(history))), label)


WITH_FADE = comparison_of(*several(), *(faded(seed) for seed in SEEDS))


def tuned(**changes) -> Comparison:
    """Fade at several triggers and half-lives, on a validation split; with a trigger of 0.15 only three emerge."""
    usual = {"limit": 1000, "validation": 400, **changes}
    cells = []
    for seed in SEEDS:
        cells.append(outcome_of(made_up("early-bird", seed, epoch=12.0, final=0.93 + 0.01 * seed, **usual)))
        for trigger in (0.8, 0.15, 0.3):
            epoch = None if trigger == 0.15 and seed < 2 else 9.0 + seed
            cells.append(faded(seed, f"fade:trigger={trigger}", trigger=trigger, epoch=epoch, **usual))
        for half_life in (0.03, 0.3, 3.0):
            cells.append(faded(seed, f"fade:half_life={half_life}", half_life=half_life, before=0.945, **usual))
    return comparison_of(*cells)


TUNED = tuned()
(TUNED_SETTING,) = TUNED.settings
TRIGGER, HALF_LIFE = varied(TUNED)


def trained_on(size: int) -> list:
    """Cells of a training set of a size: the ticket is better than dense training with few examples."""
    cells = []
    for seed in SEEDS:
        for method, final in (("early-bird", 0.8), ("dense", 0.7 + size / 10_000)):
            result = made_up(method, seed, final=final + 0.01 * seed, limit=size)
            result = dataclasses.replace(result, data=dataclasses.replace(result.data, train=size))
            cells.append(outcome_of(result))
    return cells


def stored(name: str, comparison: Comparison, words: str = "", planned: int | None = None) -> Stored:
    """A comparison of all cells of its grid, unless `planned` is given."""
    return Stored(name, words, len(comparison.outcomes) if planned is None else planned, comparison)


def words_of(svg: str) -> list[str]:
    """The texts of a figure, which must be well-formed."""
    return [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("pairs", "won", "lost", "interval", "lower", "verdict"),
    [
        (5, 5, 0, (-3.0, -1.0), True, "holds"),
        (5, 0, 5, (-3.0, -1.0), False, "contradicted"),
        (5, 5, 0, (0.01, 0.02), False, "holds"),
        (5, 1, 4, (0.01, 0.02), True, "contradicted"),
        (5, 3, 2, (-1.0, 1.0), True, "not shown"),
        (5, 4, 0, (0.0, 1.0), False, "not shown"),
        (5, 0, 0, (0.0, 0.0), True, "equal"),
        # Something is censored: no difference can be averaged.
        (5, 5, 0, None, True, "holds"),
        (5, 4, 0, None, True, "not shown"),
        (5, 0, 5, None, True, "contradicted"),
        (4, 4, 0, (-3.0, -1.0), True, "too few seeds"),
        (1, 1, 0, None, True, "too few seeds"),
        (0, 0, 0, None, True, "no data"),
    ],
)
def test_the_rule(pairs, won, lost, interval, lower, verdict):
    assert judge(Paired(pairs, won, lost, difference_interval=interval), lower_is_better=lower) == verdict


def test_a_method_is_not_compared_with_itself():
    assert judge(None, lower_is_better=True) == "no data"


def verdicts(comparison, method="worm") -> list[str]:
    return [judged.verdict for judged in judged_claims(comparison, comparison.settings[0], method)]


def test_the_claims_of_a_comparison():
    judged = {one.claim.words: one.verdict for one in judged_claims(COMPARISON, SETTING, "worm")}
    assert judged == {
        "sooner (epochs)": "holds",
        "sooner (FLOPs)": "holds",
        "smaller drop at pruning": "not shown",
        "faster recovery (1 epoch)": "not shown",
        "faster recovery (3 epochs)": "not shown",
        "fewer FLOPs in all": "holds",
    }


def test_worm_is_compared_with_early_bird_whatever_the_baseline_is():
    assert verdicts(comparison_of(*several(), baseline="dense")) == verdicts(COMPARISON)


def test_nothing_is_judged_on_few_seeds():
    assert set(verdicts(comparison_of(*several(seeds=range(4))))) == {"too few seeds"}


def test_without_one_of_the_two_there_are_no_claims():
    assert judged_claims(comparison_of(*(made_up("early-bird", seed) for seed in SEEDS)), SETTING, "worm") == []
    assert judged_claims(COMPARISON, SETTING, "fade") == []
    waiting = comparison_of(*(undone(method, seed) for seed in SEEDS for method in ("early-bird", "worm")))
    assert set(verdicts(waiting)) == {"no data"}


def test_equal_budgets_of_flops_say_nothing_about_flops():
    assert "fewer FLOPs in all" not in [
        judged.claim.words for judged in judged_claims(comparison_of(*several(), match="flops"), SETTING, "worm")
    ]


def test_a_search_that_did_not_emerge_is_later_than_one_that_did():
    theirs = [made_up("early-bird", seed, epoch=None if seed == 0 else 12.0) for seed in SEEDS]
    ours = [made_up("worm", seed, epoch=9.0) for seed in SEEDS]
    sooner, *_ = judged_claims(comparison_of(*theirs, *ours), SETTING, "worm")
    assert (sooner.verdict, sooner.theirs.censored, sooner.ours.paired.won) == ("holds", 1, 5)
    ours = [made_up("worm", seed, epoch=13.0 if seed == 1 else 9.0) for seed in SEEDS]
    assert judged_claims(comparison_of(*theirs, *ours), SETTING, "worm")[0].verdict == "not shown"


def test_any_label_is_judged_by_the_same_claims():
    longer = [outcome_of(made_up("worm", seed, epoch=8.0, window=6), "worm:window=6") for seed in SEEDS]
    comparison = comparison_of(*several(), *longer, *(faded(seed, epoch=14.0) for seed in SEEDS))
    assert verdicts(comparison) == verdicts(COMPARISON)
    assert verdicts(comparison, "worm:window=6")[:2] == ["holds", "holds"]
    assert verdicts(comparison, "fade")[:3] == ["contradicted", "contradicted", "holds"]


def test_who_is_as_good_as_early_bird():
    found = {rival.method: (rival.standing, rival.flops) for rival in rivals(COMPARISON, SETTING)}
    assert list(found) == ["early-bird", "worm", "narrow", "dense"]
    assert [standing for standing, _ in found.values()] == ["no data", "as good", "worse", "better"]
    assert found["dense"][1] == 1
    assert found["narrow"][1] == pytest.approx(0.5**1.5, rel=1e-6)
    assert rivals(COMPARISON, SETTING, "imp") == []
    assert [rival.method for rival in rivals(COMPARISON, SETTING, "dense", ["worm"])] == ["dense", "worm"]
    assert [rival.method for rival in rivals(COMPARISON, SETTING, "dense", ["imp"])] == ["dense"]


def test_a_layer_of_a_twentieth_has_collapsed():
    result = made_up("worm", 3)
    left = {"a": (4, 64), "b": (2, 64), "c": (7, 128), "d": (6, 128)}
    comparison = comparison_of(dataclasses.replace(result, layers=left), made_up("worm", 4))
    assert collapsed(comparison, SETTING, "worm") == {3: ("b", 2, 64)}


def test_whether_worm_did_anything():
    assert has_truncated(made_up("worm", epoch=9.0))
    assert not has_truncated(made_up("early-bird"))
    late = made_up("worm", epoch=9.0)
    checks = [*(dataclasses.replace(check, chi=1.0) for check in late.search.history[:-1]), late.search.history[-1]]
    # What is truncated from the last check on is never trained.
    assert not has_truncated(dataclasses.replace(late, search=dataclasses.replace(late.search, history=tuple(checks))))


def test_means_and_their_intervals():
    assert mean_of([]) is None
    assert mean_of([0.5]) == (0.5, 0.5, 0.5)
    reach = 4.3027 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert mean_of([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach), abs=1e-5)


def test_settings_are_told_apart_by_what_differs():
    assert among(COMPARISON, SETTING) == {}
    comparison = comparison_of(*several(0.3), *several(0.5))
    assert [among(comparison, setting) for setting in comparison.settings] == [{"ratio": "0.3"}, {"ratio": "0.5"}]
    assert [[*group.values()] for group in over_ratios(comparison)] == [[0.3, 0.5]]
    assert over_sizes(comparison) == []
    sizes = comparison_of(*trained_on(200), *trained_on(2000))
    assert [[*group.values()] for group in over_sizes(sizes)] == [[200, 2000]]
    assert over_ratios(sizes) == []


def test_a_stored_comparison_is_the_same_but_for_its_digits(tmp_path):
    read = Comparison.load(store("one", COMPARISON, tmp_path))
    assert [outcome.command for outcome in read.outcomes] == [outcome.command for outcome in COMPARISON.outcomes]
    for ours, theirs in zip(read.outcomes, COMPARISON.outcomes, strict=True):
        assert ours.result.config == theirs.result.config
        assert ours.result.total.train_flops == theirs.result.total.train_flops
        assert ours.result.versions == theirs.result.versions
        assert ours.result.accuracy.final == pytest.approx(theirs.result.accuracy.final, rel=1e-5)
        assert len(ours.result.search.history) == len(theirs.result.search.history)
        assert ours.result.search.distances == ()
    assert verdicts(read) == verdicts(COMPARISON)


def test_a_comparison_goes_on_from_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = [outcome_of(made_up(method, seed)) for method, seed in (("early-bird", 0), ("early-bird", 1), ("worm", 0))]
    comparison = Comparison.load(store("one", comparison_of(*done, undone("worm", 1)), tmp_path))
    assert restore(comparison) == 3
    for outcome in comparison.outcomes[:3]:
        directory = RunDirectory.of(outcome.result.config)
        directory.check_owner(outcome.result.config)
        assert directory.ended(outcome.result.config) == outcome.result
    begun, killed = (RunDirectory.of(outcome.result.config) for outcome in comparison.outcomes[1:3])
    begun.result.unlink()  # by training
    begun.checkpoints.folder.mkdir()
    killed.result.unlink()  # while it was restored
    assert restore(comparison) == 1
    assert (begun.result.exists(), killed.result.exists()) == (False, True)


def test_what_was_stored_is_not_lost_to_a_comparison_that_has_only_begun(tmp_path):
    cells = [outcome_of(made_up("early-bird", 0)), outcome_of(made_up("worm", 0))]
    path = store("one", comparison_of(*cells, undone("worm", 1)), tmp_path)
    kept = path.read_text()
    with pytest.raises(RunError, match=r"has results that are not here.*stays as it is.*restore one"):
        store("one", comparison_of(cells[0], undone("worm", 0), outcome_of(made_up("worm", 1))), tmp_path)
    assert path.read_text() == kept
    store("one", comparison_of(cells[0], outcome_of(made_up("worm", 1))), tmp_path)  # the grid has changed
    assert len(Comparison.load(path).outcomes) == 2


def test_stored_fractions_are_short():
    text = small(COMPARISON)
    assert json.loads(text)["baseline"] == "early-bird"
    assert max(len(number) for number in re.findall(r"0\.(\d+)", text)) <= 9  # six digits, and zeros before them
    assert sum(line.startswith('{"method"') for line in text.splitlines()) == len(COMPARISON.outcomes)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ('# From scratch: a network,\n# on data.\nname = "a"\n# later\n', "From scratch: a network, on data."),
        ("# What it is.\n#\n# How to prepare it.\nseeds = [0]", "What it is."),
        ("seeds = [0]\n# no heading", ""),
    ],
)
def test_the_comment_at_the_head_of_a_grid_says_what_it_compares(grid, words):
    assert about(grid) == words


def test_stored_comparisons_are_read_by_name(tmp_path):
    for name, ratios in (("b", [0.5]), ("a", [0.3, 0.5])):
        store(name, COMPARISON, tmp_path)
        (tmp_path / f"{name}.toml").write_text(f"# About {name}.\nmethods = ['worm']\nratios = {ratios}\n")
    read = [(one.name, one.about, one.planned) for one in load(tmp_path, tmp_path)]
    assert read == [("a", "About a.", 10), ("b", "About b.", 5)]
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"a\.json is damaged"):
        load(tmp_path, tmp_path)
    (tmp_path / "a.toml").unlink()
    with pytest.raises(ConfigError, match="no comparison 'a': choose from b"):
        load(tmp_path, tmp_path)


def test_where_a_comparison_ran_is_not_stored():
    def ran_in(folder: str) -> Comparison:
        cells = [outcome_of(made_up("worm", 0, output=folder)), undone("worm", 1, "no memory", output=folder)]
        lying = [dataclasses.replace(cell, directory=f"{folder}/{cell.seed}") for cell in cells]
        waiting = dataclasses.replace(undone("narrow", 0), directory="", command="")
        output = "" if folder == "runs" else f" --output '{folder}'"
        return comparison_of(*lying, waiting, command=f"earlyworm compare{output} --epochs 3")

    assert small(ran_in("/home/some body/runs")) == small(ran_in("runs")) == small(ran_in("elsewhere"))


@pytest.mark.parametrize("one", load(), ids=lambda one: one.name)
def test_what_is_stored_belongs_to_its_grid(one):
    grid = Grid.of(read_grid(evidence_store.grid_file(one.name)))
    assert {method.label for method in grid.methods} >= set(one.comparison.methods)
    assert set(grid.seeds) >= {outcome.seed for outcome in one.comparison.outcomes}
    assert {None, *grid.ratios} >= {setting.ratio for setting in one.comparison.settings}
    assert one.planned >= len(one.comparison.outcomes)


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        ([5, 40, 90], [5, 40, 90]),
        ([50, 50], [45, 55]),
        ([52, 50, 48], [60, 50, 40]),
        ([5, 5, 90], [0, 10, 90]),
        ([99, 99, 98], [90, 100, 80]),
        ([50, 58, 65], [48, 58, 68]),
        ([], []),
    ],
)
def test_names_are_spread_apart(wanted, positions):
    assert spread_apart(wanted, 10, 0, 100) == pytest.approx(positions, abs=0.5)


FIGURES = {
    "cost": lambda: cost_figure(COMPARISON, SETTING),
    "emergence": lambda: emergence_figure(COMPARISON, SETTING),
    "course": lambda: course_figure(COMPARISON, SETTING),
    "ratios": lambda: ratio_figure(c := comparison_of(*several(0.3), *several(0.5)), over_ratios(c)[0]),
    "sizes": lambda: growth_figure(c := comparison_of(*trained_on(200), *trained_on(2000)), over_sizes(c)[0]),
    "trigger": lambda: option_figure(TUNED, TUNED_SETTING, TRIGGER),
    "half-life": lambda: option_figure(TUNED, TUNED_SETTING, HALF_LIFE),
}
LABELS = {
    "cost": ["early-bird", "worm", "narrow", "dense", "FLOPs of all training / dense training"],
    "emergence": ["early-bird", "worm", "When the ticket emerged, seed by seed"],
    "course": ["early-bird", "worm", "before", "pruned", "1 epoch", "3 epochs", "later", "final"],
    "ratios": ["early-bird", "worm", "narrow", "dense", "0.3", "0.5"],
    "sizes": ["early-bird", "dense", "200", "2,000", "training examples"],
    "trigger": [
        "before pruning", "right after it", "1 epoch later", "final", "early-bird, final", "validation accuracy",
        "0.15", "3 of 5", "emerged", "0.3", "0.8", "epoch 11", "trigger, and when tickets emerged",
    ],
    "half-life": ["0.03", "0.3", "3", "epoch 10", "Accuracy around pruning over half_life of fade"],
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_every_time_and_says_what_it_shows(name):
    svg = FIGURES[name]()
    assert svg == FIGURES[name]()
    texts = words_of(svg)
    assert set(LABELS[name]) <= set(texts)
    assert "#fcfcfb" in svg  # the background is part of it
    assert "<dc:date>" not in svg


def test_what_was_never_pruned_has_no_course_and_no_emergence():
    assert not {"narrow", "dense"} & set(words_of(FIGURES["course"]()) + words_of(FIGURES["emergence"]()))
    dense = comparison_of(*(made_up("dense", seed) for seed in SEEDS))
    assert course_figure(dense, SETTING) is emergence_figure(dense, SETTING) is None


def test_searches_without_emergence_are_told():
    comparison = comparison_of(*(made_up("worm", seed, epoch=None if seed else 9.0) for seed in SEEDS))
    assert "worm (1 of 5)" in words_of(cost_figure(comparison, SETTING))
    assert any("nothing emerged by epoch 20" in text for text in words_of(emergence_figure(comparison, SETTING)))
    assert not any("nothing emerged" in text for text in words_of(FIGURES["emergence"]()))


def test_nothing_is_drawn_of_nothing():
    waiting = comparison_of(*(undone("worm", seed, ratio=ratio) for seed in SEEDS for ratio in (0.3, 0.5)))
    for draw in (cost_figure, emergence_figure, course_figure):
        assert draw(waiting, waiting.settings[0]) is None
    assert ratio_figure(waiting, over_ratios(waiting)[0]) is None


def test_what_a_comparison_comes_to_in_words():
    text = flat(section(stored("digits", COMPARISON, "About digits."), [("a picture", SETTING, "figures/a.svg")]))
    for words in (
        "### digits About digits. 20 of 20 runs are done: `python benchmarks/evidence.py run digits`.",
        "| sooner (epochs) | 12 | 8.4 | -3.6 [-4.28, -2.92] | 5, 0 of 5 | **holds** |",
        "| sooner (FLOPs) | 720 G | 504 G | -216 G [-257 G, -175 G] | 5, 0 of 5 | **holds** |",
        "- `worm` truncated before emergence in 5 of 5 runs. - `early-bird` ends at 93.1%, for 61% of dense training's",
        "- *Better than `early-bird`*: `dense` (+2.0 [+2.0, +2.0]; 100%).",
        "- *As good as `early-bird`, as far as is shown*: `worm` (",
        "- *Worse than `early-bird`*: `narrow` (-1.0 [-1.0, -1.0]; 35%).",
        "![a picture](figures/a.svg)",
        "<details><summary>All numbers of digits</summary> **resnet20 on digits, ratio 0.5**",
    ):
        assert words in text


def test_what_is_not_done_is_told():
    cells = [*several(), undone("worm", 5), undone("early-bird", 5, "no memory")]
    text = flat(section(stored("digits", comparison_of(*cells), planned=66), []))
    assert "20 of 66 runs are done" in text
    assert "Still to be done: 1 of 22 runs." in text
    assert "early-bird, seed 5 failed: no memory" in text


def test_ratios_are_ranked_and_sizes_compared_with_dense_training():
    ratios = comparison_of(*several(0.3), *several(0.5))
    text = flat(section(stored("r", ratios), []))
    assert "#### r ratio 0.3 | claim |" in text
    assert "losses early in retraining rank final accuracies with Kendall's tau" in text
    text = flat(section(stored("s", comparison_of(*trained_on(200), *trained_on(2000))), []))
    assert "| training examples | `dense` | `early-bird` |" in text
    assert "| 200 | 74.0% | 82.0%: better (+8.0 [+8.0, +8.0]) |" in text
    assert "- `early-bird` against `dense`: better with 200; worse with 2000 training examples." in text
    assert "| claim |" not in text


def test_a_collapsed_layer_is_told():
    cells = [dataclasses.replace(made_up("worm", seed), layers={"conv": (1 + seed, 40)}) for seed in range(3)]
    text = flat(section(stored("c", comparison_of(*cells)), []))
    assert "`worm` left a layer with a twentieth of its units or less (seed 0: 1 of 40 in `conv`, 96.0% before" in text
    assert "seed 1: 2 of 40" in text
    assert "seed 2:" not in text


def test_the_summary_counts_what_holds():
    both = [stored("five", COMPARISON), stored("three", comparison_of(*several(seeds=range(3))))]
    text = claims_summary(both)
    assert "| [five](#five) | **holds** | **holds** | not shown | not shown | not shown | **holds** |" in text
    assert "*sooner (epochs)* holds in 1 of 2, is contradicted in 0 and not shown in 0; on too few seeds in 1." in text
    text = rivals_summary(both)
    assert "| method | [five](#five) | [three](#three) |" in text
    assert "| `early-bird` | 93.1% at 61% | 93.1% at 61% |" in text
    assert "| `narrow` | **worse** at 35% | too few seeds at 35% |" in text
    assert "| `dense` | **better** at 100% |" in text
    assert "- `narrow`: worse in 1, too few seeds in 1 of 2." in text


def table_with(text: str, column: str) -> list[dict[str, str]]:
    """The rows of the table in a text that has this column."""
    (found,) = [part.splitlines() for part in text.split("\n\n") if f"| {column} |" in part]
    head, _, *rows = [line.strip("| ").split(" | ") for line in found]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_same_runs_count_once_and_the_same_values_at_another_ratio_do_not():
    def compared(*ratios):
        methods = ("early-bird", "worm")
        return comparison_of(*(made_up(m, s, ratio=r, epoch=4.0) for r in ratios for m in methods for s in SEEDS))

    assert "both are equal in 1" in claims_summary([stored("a", compared(0.5)), stored("b", compared(0.5))])
    assert "both are equal in 2" in claims_summary([stored("a", compared(0.3, 0.5))])


def test_what_fade_changes_is_summed_up():
    text = fade_summary([stored("four", WITH_FADE), stored("without", COMPARISON)])
    assert "| [four](#four) | `fade` | **holds** | **holds** | **holds** |" in text
    (cost,) = table_with(text, "emerged at epoch")
    assert cost["emerged at epoch"] == "10"
    assert cost["search FLOPs of Early Bird's"] == "83% [83%, 83%]"
    assert cost["accuracy right after the cut"] == "90.0% (Early Bird 50.8%)"
    assert cost["all FLOPs of dense training's"] == "57% [57%, 57%]"
    (end,) = table_with(text, "final")
    assert end["final"] == "96.1%"
    assert re.fullmatch(r"\*\*better\*\* \(\+3\.0 \[\+\d\.\d, \+\d\.\d\]\)", end["against `early-bird`"])
    assert (end["against `random`"], end["against Early Bird made as quick"]) == ("-", "-")
    for words in (
        "At most a third of Early Bird's FLOPs of the search: in 0 of 1.",
        "No more than half a point below dense training at the end: in 1 of 1.",
        "Final accuracy with as many epochs as `narrow`: better in 1 of 1.",
    ):
        assert f"- {words}" in text
    assert "as `random`:" not in text
    assert "[without]" not in text


def test_what_shrinking_saves_is_told_once():
    smaller = [faded(seed, "fade:shrink=true", shrink=True, final=0.9 if seed else 0.96) for seed in SEEDS]
    text = flat(fade_summary([stored("four", comparison_of(*several(), *(faded(seed) for seed in SEEDS), *smaller))]))
    assert "`fade:shrink=true`" not in text
    assert "With `shrink` Fade ends with the same accuracy in 1 of 5 runs, and saves 0% of the FLOPs" in text
    assert "With `shrink`" not in fade_summary([stored("four", WITH_FADE)])


def test_where_all_spend_the_same_no_share_is_told():
    cells = [
        (cell, replace(cell.result, config=replace(cell.result.config, match="flops"))) for cell in WITH_FADE.outcomes
    ]
    outcomes = tuple(replace(cell, result=result) for cell, result in cells)
    same = stored("same", replace(WITH_FADE, match="flops", outcomes=outcomes))
    text = fade_summary([same])
    (cost,) = table_with(text, "emerged at epoch")
    assert (cost["all FLOPs of dense training's"], cost["all seconds of dense training's"]) == ("-", "-")
    assert cost["search FLOPs of Early Bird's"] == "83% [83%, 83%]"
    assert "- At most half of dense training's FLOPs: in 0 of 0." in text
    assert "- Final accuracy with as many training FLOPs as `narrow`: better in 1 of 1." in text
    assert "as many epochs" not in text
    assert "| `early-bird` | 93.1% |" in rivals_summary([same])
    told = flat(section(same, []))
    assert "- `early-bird` ends at 93.1%, with as many training FLOPs as every other." in told
    assert "of dense training's" not in told.split("<details>")[0]
    assert cost_figure(same.comparison, same.comparison.settings[0]) is None
    assert "% at " not in overview([same])


def test_fade_is_compared_with_early_bird_under_the_same_floor():
    cells = [*several(), *(faded(seed, check_every=1.0) for seed in SEEDS)]
    floor = {"min_units": 0.25}
    for label, options in {
        "guarded": {"final": 0.97, "epoch": 20.0, **floor},
        "guarded and quick": {"final": 0.5, "check_every": 0.5, **floor},
        "early-bird:epsilon=0.3": {"final": 0.99, "epsilon": 0.3},
    }.items():
        cells += [outcome_of(made_up("early-bird", seed, **options), label) for seed in SEEDS]
    for label, options in {"fade-guarded": floor, "fade-quick": {"check_every": 0.5, **floor}}.items():
        final = 0.96 + 0.001 * (label == "fade-quick")  # where values are the same, they count once
        cells += [
            faded(seed, label, epoch=5.0 + (label == "fade-quick") / 100, final=final, **options) for seed in SEEDS
        ]
    some = [stored("floors", comparison_of(*cells))]
    assert {v.label: v.early_bird for v in variants(some)} == {
        "fade": "early-bird", "fade-guarded": "guarded", "fade-quick": "guarded",
    }  # fmt: skip
    text = fade_summary(some)
    assert [row["search FLOPs of Early Bird's"] for row in table_with(text, "emerged at epoch")] == [
        "83% [83%, 83%]", "25% [25%, 25%]", "25% [25%, 25%]",
    ]  # fmt: skip
    ends = table_with(text, "final")
    assert [row["against `early-bird`"].partition(" (")[0] for row in ends] == ["**better**", "**worse**", "**worse**"]
    quick = [row["against Early Bird made as quick"].partition(" (")[0] for row in ends]
    assert quick == ["**worse**", "-", "**better**"]
    assert "- At most a third of Early Bird's FLOPs of the search: in 2 of 3." in text


def test_what_early_bird_had_spent_without_emergence_bounds_its_cost():
    cells = [made_up("early-bird", seed, epoch=None if seed < 2 else 12.0) for seed in SEEDS]
    text = fade_summary([stored("late", comparison_of(*cells, *(faded(seed, epoch=3.0) for seed in SEEDS)))])
    (cost,) = table_with(text, "emerged at epoch")
    assert re.fullmatch(r"at most \d\d% \[\d\d%, \d\d%\]", cost["search FLOPs of Early Bird's"])
    late = [faded(seed, epoch=None) for seed in SEEDS]
    (cost,) = table_with(fade_summary([stored("never", comparison_of(*several(), *late))]), "emerged at epoch")
    assert (cost["emerged at epoch"], cost["search FLOPs of Early Bird's"]) == ("0 of 5 emerged", "-")


@pytest.mark.parametrize("comparison", [COMPARISON, TUNED, comparison_of(*several(), undone("fade", 0))])
def test_without_runs_of_fade_that_is_said_plainly(comparison):
    assert fade_summary([stored("one", comparison)]) == "No comparison of Fade with Early Bird is stored yet."


def test_every_challenger_has_its_claims_in_a_setting():
    text = flat(section(stored("four", WITH_FADE), []))
    for words in (
        "| claim | `early-bird` | `worm` | `worm` - `early-bird` | seeds better, worse | verdict |",
        "| claim | `early-bird` | `fade` | `fade` - `early-bird` | seeds better, worse | verdict |",
        "| sooner (epochs) | 12 | 10 | -2 [-2, -2] | 5, 0 of 5 | **holds** |",
        "- `worm` truncated before emergence in 5 of 5 runs. - `fade` truncated before emergence in 5 of 5 runs. -",
    ):
        assert words in text
    never = comparison_of(*several(), *(made_up("fade", seed, epoch=12.0) for seed in SEEDS))
    text = flat(section(stored("never", never), []))
    assert "`fade` truncated before emergence in 0 of 5 runs; what did not is Early Bird's run." in text
    assert "`fade`" not in section(stored("without", COMPARISON), [])


def test_what_serves_to_choose_counts_in_no_summary():
    chosen = comparison_of(*several(), *(faded(seed) for seed in SEEDS))
    cells = [replace(cell, result=replace(r := cell.result, config=replace(r.config, validation=400))) for cell in
             chosen.outcomes]  # fmt: skip
    some = [stored("one", comparison_of(*cells))]
    assert claims_summary(some) == "No comparison of WORM with Early Bird is stored yet."
    assert fade_summary(some) == "No comparison of Fade with Early Bird is stored yet."
    assert rivals_summary(some) == "No comparison with Early Bird is stored yet."
    assert "| claim | `early-bird` | `fade` |" in section(some[0], [])


def test_axes_say_which_examples_accuracies_are_of():
    assert (accuracy_of(COMPARISON), accuracy_of(TUNED)) == ("held-out accuracy", "validation accuracy")
    (setting,) = TUNED.settings
    assert "final validation accuracy" in words_of(cost_figure(TUNED, setting))
    assert "validation accuracy in %; every column has its own scale" in words_of(course_figure(TUNED, setting))
    ratios = comparison_of(*(made_up("worm", seed, ratio=r, validation=9) for seed in SEEDS for r in (0.3, 0.5)))
    assert "final validation accuracy" in words_of(ratio_figure(ratios, over_ratios(ratios)[0]))
    assert "final held-out accuracy" in words_of(FIGURES["ratios"]())


def test_options_that_are_varied():
    assert [(one.method, one.option, [*one.labels.values()]) for one in varied(TUNED)] == [
        ("fade", "trigger", [0.15, 0.3, 0.8]), ("fade", "half_life", [0.03, 0.3, 3.0]),
    ]  # fmt: skip
    assert [*TRIGGER.labels] == ["fade:trigger=0.15", "fade:trigger=0.3", "fade:trigger=0.8"]


@pytest.mark.parametrize(
    "labels",
    [
        ["worm", "fade", "early-bird", "late trigger", "early"],
        ["worm:trigger=0.1", "worm:trigger=0.2"],  # too few
        ["worm:trigger=0.1", "worm:trigger=0.2", "fade:trigger=0.3"],
        ["worm:static=window", "worm:static=latest", "worm:shrink=true", "worm:shrink=false"],  # no numbers
        ["worm:trigger=0.1,chi=0.1", "worm:trigger=0.2,chi=0.1", "worm:trigger=0.3,chi=0.1"],  # two options
        ["worm:epsilon=nan", "worm:epsilon=inf", "worm:epsilon=0.1", "worm:epsilon=0.2"],
    ],
)
def test_other_labels_vary_no_option(labels):
    assert varied(comparison_of(*(outcome_of(made_up("worm"), label) for label in labels))) == []


@pytest.mark.parametrize(
    ("values", "decades"),
    [
        ([0.03, 3.0], True),
        ([1, 10], False),
        ([0.1, 1.0], False),
        ([0, 100], False),
        ([-1, 0.01, 5], False),
        ([2], False),
    ],
)
def test_a_scale_is_logarithmic_over_more_than_a_decade(values, decades):
    assert by_decades(values) is decades


def test_what_came_of_every_value():
    first, second, third = at_values(TUNED, TUNED_SETTING, TRIGGER)
    assert [point.value for point in (first, second, third)] == [0.15, 0.3, 0.8]
    assert [point.emerged for point in (first, second, third)] == ["3 of 5 emerged", "epoch 11", "epoch 11"]
    # All means are of the three runs that drew a ticket.
    assert first.course["final"].value == pytest.approx(0.96 + 0.001 * (2 + 0 + 1) / 3)
    assert second.course["before"].value == pytest.approx(0.96)
    assert [*second.course] == ["before", "pruned", "1 epoch later", "final"]
    done = comparison_of(*(cell for cell in TUNED.outcomes if cell.method != "fade:trigger=0.3"))
    assert len(at_values(done, TUNED_SETTING, TRIGGER)) == 2


def test_an_option_is_told_as_a_table():
    text = section(stored("tuned", TUNED), [])
    columns = "emerged at epoch | accuracy before | pruned | 1 epoch later | final | FLOPs |"
    assert f"| `trigger` of `fade` | {columns}\n| --- |" in text
    assert "\n| 0.15 | 3 of 5 emerged | 96.0% | 90.0% |" in text
    assert re.search(r"\n\| 0\.8 \| 11 \| 96\.0% \| 90\.0% \| 9\d\.\d% \| 96\.1% \| \d\d% \|\n", text)
    assert f"| `half_life` of `fade` | {columns}" in text
    assert "\n| 3 | 10 | 94.5% |" in text


def test_a_figure_of_an_option_without_early_bird_and_without_runs():
    alone = comparison_of(*(cell for cell in TUNED.outcomes if cell.method != "early-bird"))
    assert not any("early-bird" in words for words in words_of(option_figure(alone, TUNED_SETTING, TRIGGER)))
    waiting = comparison_of(*(replace(undone("fade", 0), method=label) for label in TRIGGER.labels))
    assert option_figure(waiting, waiting.settings[0], TRIGGER) is None
    assert "`trigger`" not in section(stored("waiting", waiting), [])
    none = comparison_of(*(faded(0, label, epoch=None) for label in TRIGGER.labels))
    assert option_figure(none, none.settings[0], TRIGGER) is None
    assert "| 0.3 | 0 of 1 emerged | - | - | - | - | - |" in section(stored("none", none), [])


def test_figures_of_options_are_named_after_them():
    drawn = {picture.file: picture for picture in evidence.pictures(stored("tuned", TUNED))}
    assert [*drawn][:2] == ["tuned-trigger.svg", "tuned-half_life.svg"]
    assert drawn["tuned-trigger.svg"].words == "tuned: accuracy around pruning over trigger of fade"
    ratios = comparison_of(*tuned(ratio=0.3).outcomes, *TUNED.outcomes)
    assert "r-ratio0.3-trigger.svg" in {picture.file for picture in evidence.pictures(stored("r", ratios))}
    other = [outcome_of(made_up("worm", 0, limit=1000), f"worm:trigger={trigger}") for trigger in (0.1, 0.2, 0.3)]
    files = {picture.file for picture in evidence.pictures(stored("b", comparison_of(*TUNED.outcomes, *other)))}
    assert {"b-fade-trigger.svg", "b-worm-trigger.svg", "b-half_life.svg"} <= files


def test_methods_look_different_without_colour():
    methods = [method.label for method in Grid.of({}).methods if ":" not in method.label]
    known = looks(methods)
    assert [*known] == methods
    assert len({look.marker for look in known.values()}) == len(known)
    assert len({known[method].dash for method in ("early-bird", "worm", "fade")}) == 3


def test_variants_share_the_colour_of_their_method():
    labels = ["fade:shrink=true", "early-bird:epsilon=0.3", "fade:check_every=0.5,span=2", "worm:chi=0"]
    labels += [f"fade:trigger={0.1 * i:.1f}" for i in range(1, 10)]
    found = looks([*labels, "fade", "early-bird", "worm", "a name of its own", "another"])
    for label in labels:
        look, usual = found[label], found[label.partition(":")[0]]
        assert look.colour == usual.colour
        assert (look.marker, look.filled) != (usual.marker, usual.filled)
        assert look.dash != usual.dash
    assert len({(look.colour, look.marker, look.filled) for look in found.values()}) == len(found)
    assert len({found[label].marker for label in labels[:4]}) == 4
    # A search that did not emerge is an open arrow in the picture of emergence.
    assert all(look.marker != ">" for look in found.values())
    assert not found["another"].filled


def test_on_pages_too_variants_share_the_colour_of_their_method():
    plain = [method.label for method in Grid.of({}).methods if ":" not in method.label]
    variants = ["early-bird:epsilon=0.3", "fade:shrink=true", "fade:check_every=0.5,span=2", "worm:static=window"]
    styles = method_styles([*variants, *plain], "early-bird")
    assert [*styles] == [*variants, *plain]
    assert len({styles[method].symbol for method in plain}) == len(plain)
    assert len({styles[method].dash for method in ("early-bird", "worm", "fade")}) == 3
    for variant in variants:
        style, usual = styles[variant], styles[variant.partition(":")[0]]
        assert (style.colour, style.name) == (usual.colour, usual.name)
        assert style.symbol != usual.symbol
        assert style.dash != usual.dash


def test_names_of_ticks_do_not_meet():
    axes = new_axes(new_figure("title", "note", 300))
    axes.set_xlim(0, 10)
    axes.set_xticks([1, 1.2, 9], ["0.1\nepoch 12", "0.11\nepoch 9.5", "7\nepoch 3"])
    part_ticks(axes)
    left, right, last = (label.get_transform().transform((tick, 0))[0] for label, tick in
                         zip(axes.get_xticklabels(), axes.get_xticks(), strict=True))  # fmt: skip
    assert right - left > 50
    assert last == pytest.approx(axes.transData.transform((9, 0))[0])


@pytest.mark.parametrize("limits", [(0.907, 0.968), (0.1, 0.95), (0.9500, 0.9505), (0.0, 1.0), (0.31, 0.329)])
def test_narrow_columns_have_two_ticks(limits):
    axes = new_axes(new_figure("title", "note", 300))
    axes.set_xlim(*limits)
    two_ticks(axes)
    first, second = axes.get_xticks()
    low, high = limits
    assert low < first < second < high
    assert second - first >= 0.4 * (high - low)


def test_without_stored_comparisons_there_is_a_page_that_says_so():
    files = evidence.written([])
    assert [*files] == ["results.md"]
    assert "No comparison of WORM with Early Bird is stored yet." in files["results.md"]
    assert "No comparison of Fade with Early Bird is stored yet." in files["results.md"]


def test_what_is_written_links_to_all_figures_and_former_ones_go(tmp_path):
    both = [stored("digits", COMPARISON), stored("r", comparison_of(*several(0.3), *several(0.5)))]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "former.svg").write_text("")
    (tmp_path / "README.md").write_text(MARKED)
    evidence.write(both, tmp_path, tmp_path / "README.md")
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        "digits-cost.svg", "digits-emergence.svg", "digits-course.svg", "r-ratios.svg",
        *(f"r-ratio{ratio}-{kind}.svg" for ratio in (0.3, 0.5) for kind in ("cost", "emergence", "course")),
    }  # fmt: skip
    assert set(re.findall(r"\(figures/([^)]+)\)", (tmp_path / "results.md").read_text())) == drawn
    evidence.write(both, tmp_path, tmp_path / "README.md")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == first


MARKED = "Before.\n<!-- measured: start -->\nold\n<!-- measured: end -->\nAfter.\n"


def test_the_table_of_the_readme_shows_each_setting_once():
    often = [faded(seed, "twice as often", check_every=0.5, window=3, final=0.9) for seed in SEEDS]
    nothing = [faded(seed, epoch=None) for seed in SEEDS[:2]] + [faded(seed) for seed in SEEDS[2:]]
    text = with_overview(MARKED, overview([
        stored("four", comparison_of(*several(), *several(0.3), *(faded(seed) for seed in SEEDS), *often)),
        stored("some", comparison_of(*several(), *nothing)),
        stored("tuned", TUNED), stored("without", COMPARISON),
        stored("begun", comparison_of(*several(), *(faded(seed) for seed in SEEDS[:4]))),
    ]))  # fmt: skip
    assert text.startswith("Before.\n<!-- measured: start -->\n| setting |")
    assert text.endswith("|\n\n- *four*:\n- *some*:\n<!-- measured: end -->\nAfter.\n")
    first, second = (line.strip("| ").split(" | ") for line in text.splitlines() if "results.md" in line)
    assert first == [
        "[four](docs/results.md#four)", "95.1%", "-", "92.1% at 35%", "93.1% at 61% (50.8%)", "93.1% at 53% (51.2%)",
        "96.1% at 57% (90.0%)",
    ]  # fmt: skip
    assert second[-1] == "3 of 5 emerged"
    assert with_overview(text, overview([])) == MARKED.replace("old", "No comparison with Fade is stored yet.")


def test_what_is_committed_is_what_the_command_writes():
    files = evidence.written(load())
    readme = evidence.README.read_text(encoding="utf-8")
    assert with_overview(readme, overview(load())) == readme, "run python benchmarks/evidence.py write"
    different = [name for name, text in files.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert not different, f"run python benchmarks/evidence.py write, for these are older: {different}"
    assert {f"figures/{path.name}" for path in (DOCS / "figures").iterdir()} == set(files) - {"results.md"}


@pytest.mark.parametrize("name", evidence_store.grid_names())
def test_the_kept_grids_are_possible(name):
    path = evidence_store.grid_file(name)
    assert about(path.read_text(encoding="utf-8"))
    assert Grid.of(read_grid(path)).name


class Kept:
    """A grid and its comparison in a folder of their own, and what the command was asked."""

    def __init__(self, folder: Path, monkeypatch):
        self.asked, self.status = [], 0
        (folder / "digits.toml").write_text('# Digits.\nname = "digits"\n')
        directory = Grid.of({"name": "digits"}).directory
        directory.mkdir(parents=True)
        (directory / "comparison.json").write_text(COMPARISON.to_json())
        monkeypatch.setattr(evidence, "grid_file", lambda name: evidence_store.grid_file(name, folder))
        monkeypatch.setattr(evidence, "grid_names", lambda: evidence_store.grid_names(folder))
        monkeypatch.setattr(evidence, "store", lambda name, comparison: store(name, comparison, folder))
        monkeypatch.setattr("earlyworm.cli.main", self.main)
        self.stored = folder / "digits.json"

    def main(self, words):
        self.asked.append(words)
        return self.status


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Kept(tmp_path, monkeypatch)


@pytest.mark.parametrize("status", [0, 1, evidence.INTERRUPTED])
def test_run_does_a_comparison_and_stores_what_there_is(kept, status):
    kept.status = status
    assert evidence.main(["run", "digits", "--jobs", "2"]) == status
    ((*words, grid, jobs, two),) = kept.asked
    assert (words, Path(grid).name, jobs, two) == (["compare", "--grid"], "digits.toml", "--jobs", "2")
    assert kept.stored.read_text() == small(COMPARISON)


def test_nothing_goes_on_after_an_interruption(kept):
    kept.status = evidence.INTERRUPTED
    assert evidence.main(["run", "digits", "digits"]) == evidence.INTERRUPTED
    assert len(kept.asked) == 1


def test_store_takes_what_lies_there(kept):
    assert evidence.main(["store"]) == 0
    assert (kept.asked, kept.stored.read_text()) == ([], small(COMPARISON))


def test_a_comparison_that_was_never_begun_cannot_be_stored(kept, monkeypatch, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evidence.main(["store"]) == 1
    assert "comparison.json cannot be read" in capsys.readouterr().err


def test_an_unknown_name_is_told_before_anything_begins(kept, capsys):
    assert evidence.main(["run", "digits", "digit"]) == 1
    assert capsys.readouterr().err == "evidence.py: no comparison 'digit': choose from digits\n"
    assert kept.asked == []


@pytest.mark.parametrize("words", [[], ["draw"], ["write", "digits"], ["run", "--jobs", "many"]])
def test_wrong_options_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        evidence.main(words)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
