"""Statistics of comparisons: what is read off a run, summaries over seeds, pairs, censoring, ranked ratios."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from comparisons import DENSE, FLOPS_PER_EPOCH, comparison_of, made_up, undone
from earlyworm.comparisons.comparison import Setting
from earlyworm.comparisons.quantities import QUANTITIES, Reading, training_speed
from earlyworm.comparisons.statistics import (
    Paired,
    Summary,
    compare_paired,
    difference_interval,
    median_until,
    ranking_agreement,
    ratio_interval,
    summarise,
)
from earlyworm.reporting.run_words import sentences


def read(result):
    return {quantity.name: quantity.read(result) for quantity in QUANTITIES}


def summary_of(comparison, method, quantity) -> Summary:
    (found,) = (s for s in summarise(comparison) if (s.method, s.quantity) == (method, quantity))
    return found


def readings(*values) -> list[Reading]:
    """Numbers as they are; strings such as ">20" are censored."""
    return [Reading(float(v[1:]), censored=True) if isinstance(v, str) else Reading(v) for v in values]


def by_seed(*values) -> dict[int, Reading]:
    return dict(enumerate(readings(*values)))


def test_every_quantity_of_a_run():
    result = made_up("worm", epoch=9.0, before=0.96, pruned=0.7, final=0.95)
    values = {name: reading.value for name, reading in read(result).items()}
    assert values == pytest.approx({
        "emergence_epoch": 9,
        "emergence_flops": 9 * FLOPS_PER_EPOCH,
        "emergence_seconds": 18,
        "accuracy_before": 0.96,
        "accuracy_pruned": 0.7,
        "accuracy_drop": 0.26,
        "accuracy_recovery_1": 0.95 - 0.25 * math.exp(-0.7),
        "accuracy_recovery_3": 0.95 - 0.25 * math.exp(-2.1),
        "accuracy_final": 0.95,
        "total_flops": FLOPS_PER_EPOCH * (9 + 21 * 0.5**1.5),
        "total_seconds": 2 * (9 + 21 * 0.5**1.05),
        "relative_flops": (9 + 21 * 0.5**1.5) / 30,
        "parameters": round(DENSE.parameters * 0.5**1.5),
        "macs": round(DENSE.macs * 0.5**1.5),
        "relative_macs": 0.5**1.5,
        "latency_seconds": DENSE.latency_seconds * 0.5**1.05,
    }, rel=1e-6)  # fmt: skip
    assert not any(reading.censored for reading in read(result).values())


@pytest.mark.parametrize("forced", [False, True])
def test_a_search_without_emergence_is_censored_at_its_budget(forced):
    values = read(made_up("early-bird", epoch=None, forced=forced))
    assert values["emergence_epoch"] == Reading(20.0, censored=True)
    assert values["emergence_flops"] == Reading(20 * FLOPS_PER_EPOCH, censored=True)
    assert values["emergence_seconds"] == Reading(40.0, censored=True)
    # What comes of a ticket is known only if it was drawn all the same.
    assert values["accuracy_before"] == (Reading(0.96) if forced else None)
    for name in ("accuracy_pruned", "accuracy_drop", "accuracy_final", "total_flops", "macs", "latency_seconds"):
        assert (values[name] is not None) == forced
        assert values[name] is None or not values[name].censored


@pytest.mark.parametrize(("method", "epoch"), [("random", 0), ("late", 20), ("rst", 20), ("imp", 22.5)])
def test_an_epoch_that_is_set_by_the_method_is_a_plain_value(method, epoch):
    assert read(made_up(method))["emergence_epoch"] == Reading(epoch)


@pytest.mark.parametrize("method", ["dense", "narrow"])
def test_what_is_never_pruned_has_nothing_to_say_about_pruning(method):
    values = read(made_up(method))
    missing = {name for name, reading in values.items() if reading is None}
    assert missing == {
        "emergence_epoch", "emergence_flops", "emergence_seconds", "accuracy_before", "accuracy_pruned",
        "accuracy_drop",
    }  # fmt: skip
    assert values["relative_macs"].value == pytest.approx({"dense": 1, "narrow": 0.5**1.5}[method], rel=1e-6)


def test_a_short_retraining_has_no_third_epoch():
    values = read(made_up("late", draw_epoch=28.0))
    assert values["accuracy_recovery_1"] is not None
    assert values["accuracy_recovery_3"] is None


def test_a_part_of_an_epoch_is_not_one():
    for drawn, third in ((27.0, True), (27.25, False)):
        result = made_up("late", draw_epoch=drawn)
        assert result.retrain_length == 30 - drawn
        longer = dataclasses.replace(result.accuracy, recovery=(0.7, 0.8, 0.9))
        values = read(dataclasses.replace(result, accuracy=longer))
        assert values["accuracy_recovery_1"] == Reading(0.7)
        assert (values["accuracy_recovery_3"] == Reading(0.9)) == third
        assert values["accuracy_final"] is not None


def test_what_was_drawn_and_never_trained_has_no_share_of_the_flops():
    result = made_up("random")
    untrained = dataclasses.replace(result, total=dataclasses.replace(result.total, train_flops=0, dense_train_flops=0))
    assert read(untrained)["relative_flops"] is None
    assert "All training took" in " ".join(sentences(untrained))


def test_mean_and_deviation_over_seeds():
    comparison = comparison_of(*(made_up("early-bird", s, final=f) for s, f in enumerate((0.94, 0.95, 0.96))))
    summary = summary_of(comparison, "early-bird", "accuracy_final")
    assert summary.values == {0: Reading(0.94), 1: Reading(0.95), 2: Reading(0.96)}
    assert (summary.n, summary.censored, summary.median, summary.paired) == (3, 0, None, None)
    assert summary.mean == pytest.approx(0.95)
    assert summary.deviation == pytest.approx(0.01)


def test_one_seed_has_no_deviation_and_no_interval():
    summary = summary_of(
        comparison_of(made_up("early-bird", final=0.9), made_up("worm", final=0.95)), "worm", "accuracy_final"
    )
    assert (summary.n, summary.mean, summary.deviation) == (1, 0.95, None)
    assert summary.paired == Paired(1, 1, 0, pytest.approx(0.05), None, pytest.approx(0.95 / 0.9), None)


def test_pairs_tell_what_unpaired_seeds_would_hide():
    # Seeds differ by far more than methods do, but of each pair the method is the better one.
    theirs, gains = (0.7, 0.8, 0.9, 0.75), (0.01, 0.02, 0.03, 0.02)
    paired = compare_paired(
        by_seed(*(a + b for a, b in zip(theirs, gains, strict=True))), by_seed(*theirs), lower_is_better=False
    )
    assert (paired.pairs, paired.won, paired.lost) == (4, 4, 0)
    assert paired.difference == pytest.approx(0.02)
    reach = 3.1824 * math.sqrt(2e-4 / 3 / 4)  # Student's t with three degrees of freedom
    assert paired.difference_interval == pytest.approx((0.02 - reach, 0.02 + reach), rel=1e-4)


def test_intervals_of_two_pairs_by_hand():
    paired = compare_paired(by_seed(3.0, 6.0), by_seed(2.0, 2.0), lower_is_better=True)
    reach = 12.7062 * 1.5  # the differences 1 and 4 deviate by 1.5 from their mean
    assert (paired.pairs, paired.won, paired.lost, paired.difference, paired.ratio) == (2, 0, 2, 2.5, 2.25)
    assert paired.difference_interval == pytest.approx((2.5 - reach, 2.5 + reach), rel=1e-5)
    factor = math.exp(12.7062 / 3)  # 1.5 and 3 deviate by a third of the ratio
    assert paired.ratio_interval == pytest.approx((2.25 / factor, 2.25 * factor), rel=1e-4)


def test_an_interval_of_many_pairs_is_that_of_normal_theory():
    values = np.sort(np.random.default_rng(3).normal(5, 2, 200))
    theirs = np.linspace(0, 100, 200)
    interval = difference_interval(theirs + values, theirs)
    half = 1.96 * values.std() / math.sqrt(200)
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert difference_interval(theirs + values, theirs) == interval


@pytest.mark.parametrize("pairs", [5, 20, 50])
def test_intervals_leave_out_the_truth_once_in_twenty_times(pairs):
    numbers, wrong = np.random.default_rng(5), {"difference": 0, "ratio": 0}
    repeats = 2000 if pairs < 50 else 200
    for _ in range(repeats):
        theirs = numbers.normal(10, 1, pairs)
        ours = theirs + numbers.normal(0, 1, pairs)
        low, high = difference_interval(ours, theirs)
        wrong["difference"] += not low <= 0 <= high
        low, high = ratio_interval(3 * ours, theirs)
        wrong["ratio"] += not low <= 3 <= high
    assert all(0.02 <= number / repeats <= 0.08 for number in wrong.values()), wrong


def test_the_bootstrap_of_five_pairs_leaves_it_out_far_more_often():
    numbers, wrong = np.random.default_rng(5), 0
    for _ in range(300):
        pairs = (numbers.normal(0, 1, 5),)
        low, high = stats.bootstrap(pairs, np.mean, n_resamples=999, method="BCa", rng=numbers).confidence_interval
        wrong += not low <= 0 <= high
    assert 0.12 <= wrong / 300 <= 0.2  # about once in six times


def test_a_share_of_dense_training_is_told_only_where_budgets_of_flops_differ():
    flops = dataclasses.replace(made_up("worm"), config=dataclasses.replace(made_up("worm").config, match="flops"))
    assert read(flops)["relative_flops"] is None
    assert read(made_up("worm"))["relative_flops"] is not None


def test_only_seeds_of_both_are_paired():
    ours, theirs = {0: Reading(3.0), 1: Reading(5.0), 7: Reading(100.0)}, {0: Reading(2.0), 1: Reading(2.0)}
    paired = compare_paired(ours, theirs, lower_is_better=True)
    assert (paired.pairs, paired.difference) == (2, 2.0)
    assert compare_paired(ours, {}, lower_is_better=True) == Paired(0, 0, 0)


def test_equal_values_have_an_interval_without_width():
    assert compare_paired(by_seed(4.0, 4.0, 4.0), by_seed(4.0, 4.0, 4.0), lower_is_better=True) == Paired(
        3, 0, 0, 0.0, (0.0, 0.0), 1.0, (1.0, 1.0)
    )
    shifted = compare_paired(by_seed(6.0, 7.0, 8.0), by_seed(4.0, 5.0, 6.0), lower_is_better=True)
    assert (shifted.difference, shifted.difference_interval) == (2.0, (2.0, 2.0))


@pytest.mark.parametrize(("ours", "theirs"), [((1.0, 2.0), (0.0, 2.0)), ((-0.1, 0.2), (0.1, 0.2))])
def test_there_is_no_ratio_of_what_is_not_above_zero(ours, theirs):
    paired = compare_paired(by_seed(*ours), by_seed(*theirs), lower_is_better=True)
    assert (paired.ratio, paired.ratio_interval) == (None, None)
    assert paired.difference_interval is not None


@pytest.mark.parametrize(
    ("ours", "theirs", "won", "lost"),
    [
        (9.0, ">20", 1, 0),
        (">20", 9.0, 0, 1),
        (20.0, ">20", 1, 0),  # what is censored comes later than its value
        (25.0, ">20", 0, 0),  # nobody knows
        (">20", ">20", 0, 0),
        (">20", ">30", 0, 0),
    ],
)
def test_a_censored_pair_is_won_or_lost_only_where_that_is_known(ours, theirs, won, lost):
    paired = compare_paired(by_seed(9.0, ours), by_seed(9.0, theirs), lower_is_better=True)
    assert paired == Paired(2, won, lost)


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ((9.0, 12.0, 14.0, ">20", ">20"), 14.0),
        ((9.0, 12.0, ">20", ">20"), 12.0),  # exactly half of them
        ((9.0, ">20", ">20"), None),
        ((">20", ">20"), None),
        # Of the three that are left after 10 epochs, one third emerges at 12, one at 15: 3/4 * 2/3 = 1/2.
        ((9.0, 12.0, 15.0, ">10", ">20"), 15.0),
        ((9.0, ">10", 12.0, 15.0), 12.0),
    ],
)
def test_median_by_kaplan_and_meier(values, median):
    assert median_until(readings(*values)) == median


def test_censored_runs_are_counted_and_not_averaged():
    epochs = [9.0, 12.0, 14.0, None, None]
    comparison = comparison_of(
        *(made_up("early-bird", seed, epoch=15.0) for seed in range(5)),
        *(made_up("worm", seed, epoch=epoch, final=0.9) for seed, epoch in enumerate(epochs)),
    )
    summary = summary_of(comparison, "worm", "emergence_epoch")
    assert (summary.n, summary.censored, summary.mean, summary.deviation, summary.median) == (5, 2, None, None, 14.0)
    assert summary.paired == Paired(5, 3, 2)
    final = summary_of(comparison, "worm", "accuracy_final")
    assert (final.n, final.censored, final.mean, final.paired.pairs) == (3, 0, pytest.approx(0.9), 3)


def test_settings_are_apart_and_cells_without_a_result_count_nowhere():
    comparison = comparison_of(
        made_up("early-bird", 0, final=0.9), made_up("early-bird", 0, final=0.8, ratio=0.7),
        made_up("worm", 0, final=0.92), undone("worm", 1, "no memory"), undone("worm", 0, ratio=0.7),
    )  # fmt: skip
    finals = {
        (s.setting.ratio, s.method): (s.n, s.mean, s.paired)
        for s in summarise(comparison)
        if s.quantity == "accuracy_final"
    }
    assert finals == {
        (0.5, "early-bird"): (1, 0.9, None),
        (0.5, "worm"): (1, 0.92, Paired(1, 1, 0, pytest.approx(0.02), None, pytest.approx(0.92 / 0.9), None)),
        (0.7, "early-bird"): (1, 0.8, None),
        (0.7, "worm"): (0, None, Paired(0, 0, 0)),
    }


def with_losses(losses, final, ratio, seed=0, method="worm"):
    result = made_up(method, seed, ratio=ratio)
    accuracy = dataclasses.replace(result.accuracy, losses=losses, final=final)
    return dataclasses.replace(result, accuracy=accuracy)


@pytest.mark.parametrize(
    ("count", "epochs", "expected"),
    [(0, None, None), (1, None, 1.0), (2, None, 1.0), (6, None, 1.5), (7, None, 1.5), (6, 1, 1.0), (6, 4, 1.875)],
)
def test_training_speed_sums_the_first_losses(count, epochs, expected):
    losses = tuple(0.5**epoch for epoch in range(count))
    assert training_speed(with_losses(losses, 0.9, 0.5), epochs) == expected


@pytest.mark.parametrize(
    ("finals", "tau"),
    [
        ((0.95, 0.93, 0.9), 1.0),
        ((0.9, 0.93, 0.95), -1.0),
        ((0.93, 0.95, 0.9), 1 / 3),
        ((0.95, 0.95, 0.95), None),
        ((0.95,), None),
    ],
)
def test_kendalls_tau_of_ranked_ratios(finals, tau):
    runs = [with_losses((0.1 + i, 0.1), final, 0.3 + 0.2 * i) for i, final in enumerate(finals)]
    (agreement,) = ranking_agreement(comparison_of(*runs))
    assert (agreement.setting, agreement.method) == (Setting("resnet20", "digits", None), "worm")
    assert agreement.taus == ({} if tau is None else {0: pytest.approx(tau)})
    assert agreement.mean == agreement.least_first == (None if tau is None else pytest.approx(tau))


def test_ratios_are_ranked_over_equally_many_epochs():
    # The larger ratio has retrained for longer: three epochs of it, or of both, would make it the slower one.
    runs = [with_losses((1.0, 0.1, 0.1), 0.9, 0.3), with_losses((0.9,) * 9, 0.95, 0.7)]
    (agreement,) = ranking_agreement(comparison_of(*runs))
    assert (agreement.taus, agreement.least_first) == ({0: 1.0}, -1.0)


def test_agreement_is_the_mean_over_seeds_that_have_one():
    runs = [
        with_losses((0.1 + i,), 0.9 + sign * 0.01 * i, 0.3 + 0.2 * i, seed)
        for seed, sign in ((0, -1), (1, -1), (2, 1))
        for i in range(3)
    ]
    runs.append(made_up("worm", 3, epoch=None, ratio=0.3))
    (agreement,) = ranking_agreement(comparison_of(*runs))
    assert agreement.taus == pytest.approx({0: 1.0, 1: 1.0, 2: -1.0})
    assert agreement.mean == pytest.approx(1 / 3)
