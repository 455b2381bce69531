"""Tables of comparisons: for the terminal, as Markdown, CSV and JSON."""

import csv
import io
import textwrap

import pytest
from rich.console import Console

from comparisons import comparison_of, made_up, outcome_of, undone
from earlyworm.reporting.comparison_tables import (
    comparison_csv,
    comparison_markdown,
    comparison_table,
)

SEEDS = range(3)
COMPARISON = comparison_of(
    *(made_up("early-bird", s, epoch=10.0 + s, pruned=0.7 - 0.1 * s, final=0.94 + 0.01 * s) for s in SEEDS),
    *(made_up("worm", s, epoch=8.0 + s, pruned=0.6, final=0.95 + 0.005 * s) for s in SEEDS),
    *(made_up("greedy", s, epoch=(9.0, None, None)[s], final=0.96) for s in SEEDS),
    *(made_up("random", s, final=0.93) for s in SEEDS),
    *(made_up("dense", s, final=0.97 - 0.01 * s) for s in SEEDS),
)
UNDONE = comparison_of(
    made_up("early-bird", 0),
    undone("early-bird", 1, "no [red]memory | for 3 < 4 batches: lower --batch-size " + "and again " * 12),
    made_up("worm", 0),
    made_up("worm", 1, epoch=None, forced=True),
    undone("worm", 2),
    made_up("worm", 0, ratio=0.7),
    marks=("the runs differ in lr",),
    match="flops",
)


def rendered(comparison, width: int = 100) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(comparison_table(comparison))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_table_says_what_decides():
    assert rendered(COMPARISON) == textwrap.dedent("""\
        resnet20 on digits, ratio 0.5
                        drawn at      accuracy     accuracy      final against
        method             epoch        pruned        final         early-bird  FLOPs    time  MACs
        ────────────────────────────────────────────────────────────────────────────────────────────
        early-bird        11 ± 1  60.0 ± 10.0%  95.0 ± 1.0%                  -    59%  40.4 s   35%
        worm               9 ± 1   60.0 ± 0.0%  95.5 ± 0.5%  +0.5 [-0.7, +1.7]    55%  38.3 s   35%
        greedy      >20 (1 of 3)         70.0%        96.0%               +2.0    55%  38.3 s   35%
        random           0 (set)   70.0 ± 0.0%  93.0 ± 0.0%  -2.0 [-4.5, +0.5]    35%    29 s   35%
        dense                  -             -  96.0 ± 1.0%  +1.0 [-4.0, +6.0]   100%    60 s  100%

        Matched by epochs: every method trains for 30 epochs, search and retraining together.
        Means ± standard deviations over 3 seeds; FLOPs of all training, and MACs, are shares of the dense
        network's.
        Against early-bird: paired by seed, with 95% intervals (of twenty methods that do not differ, one
        seems to); accuracies in points.
        (set): drawn when the method says, not by a search.
        (k of n): only k of n runs emerged. The epoch before it is by when half had (Kaplan-Meier); > means
        that fewer than half had when the search ended.
        greedy: no ticket in 2 of 3 runs, which have no final accuracy, size or total.""")


def test_markdown_has_more_columns_and_the_command():
    text = comparison_markdown(COMPARISON)
    assert text.startswith(
        textwrap.dedent("""\
        ### WORM against Early Bird

        **resnet20 on digits, ratio 0.5**

        | method | drawn at epoch | FLOPs until then | FLOPs against early-bird | accuracy before | accuracy pruned """)
    )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[1] == ["---", *["---:"] * 13]
    assert rows[2:5] == [
        ["early-bird", "11 ± 1", "660 G ± 60 G", "-", "96.0 ± 0.0%", "60.0 ± 10.0%", "77.6 ± 4.5%", "90.7 ± 0.3%",
         "95.0 ± 1.0%", "-", "59%", "40.4 s", "35%", "0.966 ms ± 0 ms"],
        ["worm", "9 ± 1", "540 G ± 60 G", "0.82 [0.78, 0.86]", "96.0 ± 0.0%", "60.0 ± 0.0%", "77.9 ± 0.3%",
         "91.2 ± 0.4%", "95.5 ± 0.5%", "+0.5 [-0.7, +1.7]", "55%", "38.3 s", "35%", "0.966 ms ± 0 ms"],
        ["greedy", ">20 (1 of 3)", "-", "less in 1 of 3, more in 2", "96.0%", "70.0%", "83.1%", "92.8%",
         "96.0%", "+2.0", "55%", "38.3 s", "35%", "0.966 ms"],
    ]  # fmt: skip
    assert "- Matched by epochs: every method trains for 30 epochs, search and retraining together.\n" in text
    assert "deviations over 3 seeds" in text
    assert text.endswith("\n\n```\nearlyworm compare --methods early-bird worm --seeds 0 1 2\n```\n")
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


@pytest.mark.parametrize("show", [rendered, comparison_markdown])
def test_what_is_not_in_the_tables_is_told(show):
    text = flat(show(UNDONE))
    for sentence in (
        "Matched by FLOPs: every method spends those of 30 epochs of dense training.",
        "Questionable: the runs differ in lr",
        "resnet20 on digits, ratio 0.5, worm: drawn by force in 1 of 2 runs, whose accuracies count.",
        "ratio 0.5, early-bird: no final accuracy of seed 1, which differences to it leave out.",
        "ratio 0.7, early-bird: no final accuracy of seed 0, which differences to it leave out.",
        "Still to be done: 1 of 6 runs.",
    ):
        assert sentence in text
    assert "9 (1 of 2)" in text


def test_an_error_is_shown_as_it_is():
    assert "early-bird, seed 1 failed: no [red]memory | for 3 < 4 batches: lower" in flat(rendered(UNDONE))
    assert r"early-bird, seed 1 failed: no [red]memory \| for 3 \< 4 batches: lower" in flat(
        comparison_markdown(UNDONE)
    )


def test_budgets_that_are_not_matched_are_said_to_be():
    comparison = comparison_of(made_up("early-bird"), made_up("worm", retrain_epochs=5))
    assert "Budgets are not matched" in rendered(comparison)
    by_force = comparison_of(made_up("early-bird"), made_up("worm", epochs=31))
    assert "Budgets are not matched: methods train for different numbers of epochs." in flat(rendered(by_force))


def test_means_over_different_numbers_of_seeds_are_said_to_be():
    comparison = comparison_of(*(made_up("early-bird", seed) for seed in range(3)), made_up("worm"))
    assert "Means ± standard deviations over 1 to 3 seeds;" in flat(rendered(comparison))


def test_ranked_ratios_are_told():
    ratios = (0.3, 0.5, 0.7)
    comparison = comparison_of(*(made_up("worm", s, ratio=r, final=1 - r / 10) for r in ratios for s in range(2)))
    sentence = "resnet20 on digits, worm: losses early in retraining rank the pruning ratios as their final accuracies"
    assert f"{sentence} do with Kendall's tau 1.00 (mean over seeds: 2; " in flat(rendered(comparison))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_nothing_is_wider_than_the_terminal_nor_than_100_columns(width):
    widest = [
        made_up("worm", s, epoch=17.25 - 3 * s, final=0.5 + 0.3 * s, pruned=0.2 * s, seconds_per_epoch=300.0)
        for s in SEEDS
    ]
    labelled = [outcome_of(result, "worm-static-window") for result in widest]
    text = rendered(comparison_of(*(made_up("early-bird", s) for s in SEEDS), *labelled), width)
    assert all(len(line) <= min(width, 100) for line in text.splitlines())
    assert "…" not in text


def lines_of(comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comparison_csv(comparison))))


def test_csv_has_a_line_per_cell_and_every_quantity():
    lines = lines_of(COMPARISON)
    assert len(lines) == len(COMPARISON.outcomes)
    assert list(lines[0]) == [
        "model", "data", "ratio", "limit", "method", "seed", "state", "error", "emerged", "forced", "censored",
        "emergence_epoch", "emergence_flops", "emergence_seconds", "accuracy_before", "accuracy_pruned",
        "accuracy_drop", "accuracy_recovery_1", "accuracy_recovery_3", "accuracy_final", "total_flops",
        "total_seconds", "relative_flops", "parameters", "macs", "relative_macs", "latency_seconds",
        "training_speed", "directory", "command",
    ]  # fmt: skip
    worm = lines[4]
    assert (worm["method"], worm["seed"], worm["emergence_epoch"], worm["accuracy_final"]) == (
        "worm", "1", "9.0", "0.955",
    )  # fmt: skip
    assert worm["command"] == COMPARISON.outcomes[4].command
    censored = lines[7]
    assert (censored["method"], censored["emerged"], censored["censored"]) == ("greedy", "False", "True")
    assert (censored["emergence_epoch"], censored["accuracy_final"]) == ("20.0", "")


def test_csv_keeps_cells_without_a_result():
    failed, waiting = lines_of(UNDONE)[1], lines_of(UNDONE)[4]
    assert (failed["state"], failed["error"]) == ("failed", UNDONE.outcomes[1].error)
    assert (waiting["state"], waiting["error"], waiting["accuracy_final"]) == ("waiting", "", "")
