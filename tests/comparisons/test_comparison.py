"""Comparisons and their JSON."""

import dataclasses
import json

import pytest

from comparisons import comparison_of, made_up, undone
from earlyworm.comparisons.comparison import Comparison, Setting
from earlyworm.errors import RunError

COMPARISON = comparison_of(
    made_up("early-bird", 0),
    made_up("worm", 0, epoch=None),
    made_up("imp", 0),
    undone("worm", 1, "loss is not finite: lower --lr"),
    undone("early-bird", 1, ratio=0.7),
    marks=("the methods differ in lr",),
    match="flops",
)


def test_json_round_trip():
    assert Comparison.from_json(COMPARISON.to_json()) == COMPARISON
    assert Comparison.from_json(COMPARISON.to_json().encode()) == COMPARISON


def test_it_is_read_from_a_file(tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text(COMPARISON.to_json())
    assert Comparison.load(path) == COMPARISON
    with pytest.raises(RunError, match=r"other\.json cannot be read .*compare again"):
        Comparison.load(tmp_path / "other.json")


def test_methods_and_settings_keep_the_order_of_the_grid():
    assert COMPARISON.methods == ("early-bird", "worm", "imp")
    first, second = COMPARISON.settings
    assert (first, second) == (Setting("resnet20", "digits", 0.5), Setting("resnet20", "digits", 0.7))
    assert str(first) == "resnet20 on digits, ratio 0.5"


def test_only_cells_that_are_done_have_results():
    first, second = COMPARISON.settings
    assert COMPARISON.results(first, "worm") == {0: COMPARISON.outcomes[1].result}
    assert COMPARISON.results(second, "early-bird") == {}
    assert COMPARISON.results(first, "rst") == {}


def changed(**values):
    return lambda text: json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"setting"', '"set"', 1),
        lambda text: text.replace('"baseline"', '"base"'),
        lambda text: text.replace('"parameters"', '"params"', 1),
        lambda text: text.replace('"limit": null}', '"limit": null, "extra": 1}', 1),
        changed(extra=1),
        changed(outcomes=None),
        changed(outcomes=[]),
        changed(baseline=None),
        changed(command=None),
        changed(match="time"),
        changed(marks=[1]),
        lambda text: text.replace('"ratio": 0.5', '"ratio": "0.5"', 1),
        lambda text: text.replace('"method": "early-bird"', '"method": null', 1),
        lambda text: text.replace('"state": "done"', '"state": "gone"', 1),
        changed(outcomes=["worm"]),
        changed(outcomes=[dict.fromkeys(field.name for field in dataclasses.fields(COMPARISON.outcomes[0]))]),
    ],
)
def test_damaged_json_names_the_file_and_the_cure(damage):
    with pytest.raises(RunError, match=r"^a/comparison\.json is damaged \(.*\): .*again") as caught:
        Comparison.from_json(damage(COMPARISON.to_json()), "a/comparison.json")
    assert "\n" not in str(caught.value)


def test_another_schema_is_refused():
    with pytest.raises(RunError, match=r"comparison\.json has schema 7, but this version reads 1: compare again"):
        Comparison.from_json(changed(schema=7)(COMPARISON.to_json()))
