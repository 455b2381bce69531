import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from earlyworm import ConfigError, Mask, SearchError, make_mask, mask_distance
from earlyworm.masks.ratios import fewest_per_group, fewest_units


def mask_of(scores, ratio, min_units=1):
    found = make_mask({name: torch.tensor(values) for name, values in scores.items()}, ratio, min_units=min_units)
    return {name: [int(kept) for kept in mask.tolist()] for name, mask in found.kept.items()}


@pytest.mark.parametrize(
    ("scores", "ratio", "min_units", "expected"),
    [
        # the lowest scores go, across groups
        ({"a": [4.0, 1.0], "b": [3.0, 2.0]}, 0.5, 1, {"a": [1, 0], "b": [1, 0]}),
        ({"a": [4.0, 3.0], "b": [2.0, 1.0, 0.5]}, 0.4, 1, {"a": [1, 1], "b": [1, 0, 0]}),
        ({"a": [0.1, 9.0, 0.2, 8.0]}, 0.5, 1, {"a": [0, 1, 0, 1]}),
        # of equal scores the later unit goes first, inside a group and across groups
        ({"a": [1.0, 1.0, 1.0, 1.0]}, 0.5, 1, {"a": [1, 1, 0, 0]}),
        ({"a": [1.0, 1.0], "b": [1.0, 1.0]}, 0.25, 1, {"a": [1, 1], "b": [1, 0]}),
        ({"a": [1.0, 2.0, 1.0], "b": [2.0, 1.0, 2.0]}, 0.34, 1, {"a": [1, 1, 0], "b": [1, 0, 1]}),
        ({"a": [0.0, -0.0, 0.0, 5.0]}, 0.5, 1, {"a": [1, 0, 0, 1]}),
        # all scores equal: the later group gives first, down to its best unit, which is its first
        ({"a": [1.0, 1.0], "b": [1.0, 1.0]}, 0.5, 1, {"a": [1, 0], "b": [1, 0]}),
        ({"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}, 0.5, 1, {"a": [1, 1, 0], "b": [1, 0, 0]}),
        # a whole layer unimportant: its best units stay and the next best of others go instead
        ({"a": [0.1, 0.3, 0.2], "b": [5.0, 6.0, 7.0]}, 0.5, 1, {"a": [0, 1, 0], "b": [0, 1, 1]}),
        ({"a": [0.1, 0.3, 0.2], "b": [5.0, 6.0, 7.0]}, 0.34, 2, {"a": [0, 1, 1], "b": [0, 1, 1]}),
        ({"a": [0.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0]}, 0.5, 1, {"a": [1, 0, 0], "b": [1, 1, 0]}),
        # min_units 2; a group with no more units than that is whole
        ({"a": [0.1, 0.2, 0.3, 0.4], "b": [9.0, 8.0]}, 0.34, 2, {"a": [0, 0, 1, 1], "b": [1, 1]}),
        ({"a": [0.1], "b": [5.0, 4.0, 6.0, 7.0]}, 0.4, 2, {"a": [1], "b": [0, 0, 1, 1]}),
        # nothing, or less than one unit
        ({"a": [0.0, 0.0], "b": [0.0, 0.0]}, 0.0, 1, {"a": [1, 1], "b": [1, 1]}),
        ({"a": [1.0, 2.0, 3.0]}, 0.33, 1, {"a": [1, 1, 1]}),
        ({"a": [1.0]}, 0.99, 1, {"a": [1]}),
        # as much as is possible
        ({"a": [1.0, 2.0], "b": [4.0, 3.0]}, 0.74, 1, {"a": [0, 1], "b": [1, 0]}),
        ({"a": [3.0, 2.0, 1.0, 4.0]}, 0.75, 1, {"a": [0, 0, 0, 1]}),
    ],
)
def test_scores_to_mask(scores, ratio, min_units, expected):
    assert mask_of(scores, ratio, min_units) == expected


@pytest.mark.parametrize(("ratio", "units", "removed"), [
    (0.3, 10, 3), (0.7, 10, 7), (0.29, 100, 29), (0.57, 100, 57), (0.58, 50, 29), (0.1, 30, 3), (0.6, 5, 3),
    (1 / 3, 3, 1), (2 / 3, 3, 2), (1 / 3, 10, 3), (0.5, 7, 3), (0.999, 1000, 999), (0.9999, 1000, 999),
    (0.0, 5, 0), (1e-6, 10, 0), (0.999999, 1, 0),
])  # fmt: skip
def test_number_of_removed_units_is_exact(ratio, units, removed):
    assert make_mask({"a": torch.rand(units)}, ratio).units_removed == removed


def test_number_of_removed_units_is_exact_for_every_percentage():
    for units in (1, 2, 3, 7, 10, 50, 99, 100, 101, 700, 1000):
        scores = {"a": torch.arange(units, dtype=torch.float32)}
        for percent in range(100):
            removed = math.floor(Fraction(percent, 100) * units)
            assert make_mask(scores, percent / 100).units_removed == removed, (percent, units)


@pytest.mark.parametrize("ratio", [-0.1, -1e-9, 1.0, 1.5, math.nan, math.inf, -math.inf])
def test_ratio_outside_its_range(ratio):
    with pytest.raises(ConfigError, match=rf"pruning_ratio is {ratio}, but must be in \[0, 1\)"):
        make_mask({"a": torch.rand(4)}, ratio)


@pytest.mark.parametrize(
    ("sizes", "ratio", "min_units", "possible"),
    [
        ([2, 2], 0.75, 1, "0.500"),
        ([3, 3, 3], 0.78, 1, "0.666"),  # 0.667 would be too much of larger groups
        ([3000], 0.9999, 2, "0.999"),
        ([1, 1], 0.5, 1, "0.000"),
        ([5, 1], 0.5, 3, "0.333"),
    ],
)
def test_ratio_that_would_empty_a_group(sizes, ratio, min_units, possible):
    scores = {str(i): torch.rand(size) for i, size in enumerate(sizes)}
    with pytest.raises(ConfigError, match=f"pruning_ratio {ratio} .*at most {re.escape(possible)} is possible"):
        make_mask(scores, ratio, min_units=min_units)
    make_mask(scores, float(possible), min_units=min_units)  # the cure works


@pytest.mark.parametrize("sizes", [[3, 4, 10], [1000, 2000], [1, 1, 1, 97], [7]])
def test_possible_ratio_in_the_message_is_possible(sizes):
    scores = {str(i): torch.rand(size) for i, size in enumerate(sizes)}
    with pytest.raises(ConfigError) as error:
        make_mask(scores, math.nextafter(1, 0), min_units=2)
    possible = re.search(r"at most ([\d.]+) is possible", str(error.value))
    assert possible is not None
    removable = sum(max(0, size - 2) for size in sizes)
    assert make_mask(scores, float(possible[1]), min_units=2).units_removed <= removable
    with pytest.raises(ConfigError):
        make_mask(scores, min(0.9999999, float(possible[1]) + 0.001 + 1 / sum(sizes)), min_units=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_named(value):
    with pytest.raises(SearchError, match=r"the scores of 'b' are not finite"):
        make_mask({"a": torch.rand(3), "b": torch.tensor([1.0, value]), "c": torch.rand(1)}, 0.5)


def test_scores_beyond_float32_are_not_finite():
    with pytest.raises(SearchError, match=r"the scores of 'b' are not finite"):
        make_mask({"a": torch.rand(2), "b": torch.tensor([1e300, 1.0], dtype=torch.float64)}, 0.5)


@pytest.mark.parametrize("min_units", [0, -1])
def test_layers_that_could_vanish(min_units):
    with pytest.raises(ConfigError, match=f"min_units is {min_units}, but must be at least 1"):
        make_mask({"a": torch.rand(3)}, 0.5, min_units=min_units)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_scores_of_any_dtype(dtype):
    scores = {"a": torch.tensor([4, 1], dtype=dtype), "b": torch.tensor([3, 2], dtype=dtype)}
    assert make_mask(scores, 0.5).flat.tolist() == [True, False, True, False]


def test_scores_are_left_as_they_are():
    scores = {"a": torch.tensor([3.0, 1.0, 2.0], requires_grad=True)}
    mask = make_mask(scores, 0.34)
    assert scores["a"].tolist() == [3.0, 1.0, 2.0]
    assert not mask.flat.requires_grad
    assert mask.flat.dtype == torch.bool


def plain_mask(scores, percent, min_units):
    """The same again, slowly: walk from the worst unit to the best and remove what is not protected."""
    units = [(name, i) for name, values in scores.items() for i in range(len(values))]
    worst_first = sorted(units, key=lambda unit: (scores[unit[0]][unit[1]], -units.index(unit)))
    protected = set()
    for name in scores:
        protected.update([unit for unit in reversed(worst_first) if unit[0] == name][:min_units])
    removable = [unit for unit in worst_first if unit not in protected]
    remove = math.floor(Fraction(percent, 100) * len(units))
    if remove > len(removable):
        return None
    return {name: [(name, i) not in removable[:remove] for i in range(len(values))] for name, values in scores.items()}


SCORES = st.one_of(
    st.integers(0, 3).map(float),  # many ties
    st.floats(0, 100, width=32),
)
GROUPS = st.lists(st.lists(SCORES, min_size=1, max_size=7), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(groups=GROUPS, percent=st.integers(0, 99), min_units=st.integers(1, 3))
def test_properties_of_a_mask(groups, percent, min_units):
    scores = {f"group{i}": values for i, values in enumerate(groups)}
    tensors = {name: torch.tensor(values) for name, values in scores.items()}
    expected = plain_mask(scores, percent, min_units)
    if expected is None:
        with pytest.raises(ConfigError, match="is possible"):
            make_mask(tensors, percent / 100, min_units=min_units)
        return
    mask = make_mask(tensors, percent / 100, min_units=min_units)
    kept = {name: values.tolist() for name, values in mask.kept.items()}
    assert kept == expected
    assert mask.units_removed == math.floor(Fraction(percent, 100) * mask.units)
    assert mask.units_kept + mask.units_removed == mask.units == sum(map(len, groups))
    for values in kept.values():
        assert sum(values) >= min(min_units, len(values))

    # No removed unit outscores a kept one, unless the kept one is among the best of its group.
    pairs = [(name, i) for name in scores for i in range(len(scores[name]))]
    removed = [scores[name][i] for name, i in pairs if not kept[name][i]]
    for name, i in pairs:
        if kept[name][i] and removed and max(removed) > scores[name][i]:
            assert sum(kept[name]) <= min_units


@settings(max_examples=50, deadline=None)
@given(groups=GROUPS, low=st.integers(0, 99), high=st.integers(0, 99))
def test_a_larger_ratio_removes_the_same_and_more(groups, low, high):
    tensors = {str(i): torch.tensor(values) for i, values in enumerate(groups)}
    try:
        less = make_mask(tensors, min(low, high) / 100)
        more = make_mask(tensors, max(low, high) / 100)
    except ConfigError:
        return
    assert not (more.flat & ~less.flat).any()


# ------------------------------------------------------------------------------------------------ masks to distances


def bits(text: str) -> Mask:
    """`"10 011"`: two groups."""
    groups = text.split()
    return Mask.from_groups({str(i): torch.tensor([c == "1" for c in group]) for i, group in enumerate(groups)})


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("1111", "1111", 0.0),
        ("1111", "0000", 1.0),
        ("1100", "1010", 0.5),
        ("1100", "1101", 0.25),
        ("10 01", "10 01", 0.0),
        ("10 01", "01 01", 0.5),
        ("10 01", "10 10", 0.5),  # every group counts
        ("1 0110", "0 0111", 0.4),
        ("1", "0", 1.0),
    ],
)
def test_masks_to_distance(a, b, distance):
    assert mask_distance(bits(a), bits(b)) == distance
    assert mask_distance(bits(b), bits(a)) == distance


BITS = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(BITS, BITS, BITS)
def test_distance_is_a_metric(a, b, c):
    a, b, c = (Mask.from_groups({"x": torch.tensor(flat[:4]), "y": torch.tensor(flat[4:])}) for flat in (a, b, c))
    assert 0 <= mask_distance(a, b) <= 1
    assert mask_distance(a, b) == mask_distance(b, a)
    assert (mask_distance(a, b) == 0) == (a == b)
    assert mask_distance(a, c) <= mask_distance(a, b) + mask_distance(b, c) + 1e-12


@pytest.mark.parametrize("sizes", [{"a": 4}, {"a": 1, "b": 3}, {"a": 2, "c": 2}, {"b": 2, "a": 2}, {"a": 2, "b": 3}])
def test_masks_over_other_units(sizes):
    ours, theirs = (
        Mask.from_groups({name: torch.ones(size, dtype=torch.bool) for name, size in some.items()})
        for some in ({"a": 2, "b": 2}, sizes)
    )
    with pytest.raises(SearchError, match="different units"):
        mask_distance(ours, theirs)
    assert ours != theirs


def test_mask_counts_groups_and_equality():
    mask = bits("110 01")
    assert (mask.units, mask.units_kept, mask.units_removed) == (5, 3, 2)
    assert mask.sizes == {"0": 3, "1": 2}
    assert [kept.tolist() for kept in mask.kept.values()] == [[True, True, False], [False, True]]
    assert mask == bits("110 01")
    assert mask != bits("110 10")
    assert mask != "110 01"
    with pytest.raises(TypeError, match="unhashable"):
        hash(mask)


# At least a fraction of every group.


@pytest.mark.parametrize(
    ("min_units", "size", "fewest"),
    [
        (1, 128, 1), (5, 128, 5), (200, 128, 128), (0.1, 128, 13), (0.1, 16, 2), (0.25, 16, 4), (0.25, 3, 1),
        (0.999, 4, 4), (0.3, 10, 3), (1e-9, 7, 1),
    ],
)  # fmt: skip
def test_fewest_units(min_units, size, fewest):
    assert fewest_units(min_units, size) == fewest


def test_a_fraction_of_every_group_stays():
    scores = {"a": torch.arange(10.0) + 10, "b": torch.arange(10.0)}
    assert [int(kept.sum()) for kept in make_mask(scores, 0.5).kept.values()] == [9, 1]
    assert [int(kept.sum()) for kept in make_mask(scores, 0.5, min_units=0.3).kept.values()] == [7, 3]
    assert make_mask(scores, 0.5, min_units=0.3).kept["b"].tolist() == [False] * 7 + [True] * 3


@pytest.mark.parametrize(
    ("ratio", "fewest"),  # a fifth of what stays, a twentieth at least, of groups of 128, 64 and 4 units
    [
        (0.0, {"a": 26, "b": 13, "c": 1}), (0.5, {"a": 13, "b": 7, "c": 1}), (0.7, {"a": 8, "b": 4, "c": 1}),
        (0.9, {"a": 7, "b": 4, "c": 1}), (0.95, {"a": 4, "b": 2, "c": 1}), (0.99, {"a": 1, "b": 1, "c": 1}),
        ({"units": 0.5, "heads": 0.0, "weights": 0.5}, {"a": 26, "b": 7, "c": 1}),
        ({"units": 0.5, "heads": 0.5, "weights": 0.5}, {"a": 13, "b": 7, "w": 1}),
    ],
)  # fmt: skip
def test_what_stays_of_every_group_by_default(ratio, fewest):
    sizes = {"a": 128, "b": 64, "c": 4, "w": 1000}
    kinds = {"a": "heads", "w": "weights"} if isinstance(ratio, dict) else {}
    sizes = sizes if kinds else {name: size for name, size in sizes.items() if name != "w"}
    found = fewest_per_group(sizes, ratio, min_units=None, kinds=kinds)
    assert {name: found[name] for name in fewest} == fewest


@example(groups=[1, 1, 1, 1, 1, 40], ratio=0.867)
@example(groups=[1] * 100 + [102], ratio=0.5)
@given(groups=st.lists(st.integers(1, 40), min_size=1, max_size=6), ratio=st.floats(0, 0.999))
def test_what_stays_by_default_leaves_a_ratio_as_possible_as_one_unit_does(groups, ratio):
    scores = {f"{place}": torch.arange(float(size)) for place, size in enumerate(groups)}
    try:
        expected = make_mask(scores, ratio, min_units=1).units_removed
    except ConfigError:
        return
    assert make_mask(scores, ratio).units_removed == expected


@pytest.mark.parametrize("min_units", [0, -1, 1.5, 0.0, -0.5])
def test_neither_a_number_of_units_nor_a_fraction(min_units):
    with pytest.raises(ConfigError, match=r"min_units is .*, but must be at least 1.*or a fraction in \(0, 1\)"):
        make_mask({"a": torch.arange(4.0)}, 0.5, min_units=min_units)


def test_a_fraction_that_leaves_too_much():
    with pytest.raises(ConfigError, match=r"pruning_ratio 0\.5 removes 4 of 8 units, but at least 0\.75 of each"):
        make_mask({"a": torch.arange(4.0), "b": torch.arange(4.0)}, 0.5, min_units=0.75)
