"""A grid: what methods can be written as, which cells there are, and what is refused before anything runs."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from comparisons import made_up
from earlyworm import cli
from earlyworm.comparisons.agreement import budget_differences
from earlyworm.comparisons.grid import METHODS, SEEDS, Grid
from earlyworm.comparisons.grid_file import read_grid
from earlyworm.comparisons.grid_methods import GridMethod
from earlyworm.errors import ConfigError, DataError
from earlyworm.experiments.config import SEARCHES, RunConfig
from earlyworm.options import Compare


def labels(grid):
    return [method.label for method in grid.methods]


def followed(grid):
    return {cell.label: cell.follows for cell in grid.cells()}


# Methods.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("worm", GridMethod("worm", "worm")),
        ("random@early-bird", GridMethod("random@early-bird", "random", "early-bird")),
        ("worm:static=window", GridMethod("worm:static=window", "worm", None, (("static", "window"),))),
        (
            "late@worm:epsilon=0.05,window=3",
            GridMethod("late@worm:epsilon=0.05,window=3", "late", "worm", (("epsilon", 0.05), ("window", 3))),
        ),
        ("w=worm", GridMethod("w", "worm")),
        ("small=narrow@w:width=1", GridMethod("small", "narrow", "w", (("width", 1.0),))),
        ("n=worm:max-grad-norm=None", GridMethod("n", "worm", None, (("max_grad_norm", None),))),
        ("g=worm:greedy_first=true", GridMethod("g", "worm", None, (("greedy_first", True),))),
        ("k=worm:units=heads+neurons", GridMethod("k", "worm", None, (("units", ("heads", "neurons")),))),
        ("c=worm:classes=3+5", GridMethod("c", "worm", None, (("classes", (3, 5)),))),
        ("p=worm:weights=a+b.safetensors", GridMethod("p", "worm", None, (("weights", "a+b.safetensors"),))),
        ("f=worm:weights=a=b.safetensors", GridMethod("f", "worm", None, (("weights", "a=b.safetensors"),))),
    ],
)
def test_a_method_in_one_word(text, expected):
    assert GridMethod.parse(text) == expected
    assert GridMethod.parse(str(expected)) == expected
    assert GridMethod.of(text) == expected


def test_a_method_as_a_table():
    assert str(GridMethod.of({"name": "worm-window", "method": "worm", "static": "window"})) == (
        "worm-window=worm:static=window"
    )
    assert str(GridMethod.of({"method": "narrow@worm", "max-length": 3})) == "narrow@worm:max_length=3"
    assert GridMethod.of({"method": "worm", "units": ["heads", "neurons"]}).options == (
        ("units", ("heads", "neurons")),
    )


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("", ["method ''", "NAME@REFERENCE", "LABEL=NAME"]),
        ("@worm", ["'@worm'", "NAME@REFERENCE"]),
        ("random@", ["'random@'", "NAME@REFERENCE"]),
        ("=worm", ["'=worm'", "LABEL=NAME"]),
        ("wrom", ["unknown method 'wrom'", "did you mean 'worm'?"]),
        ("worm:", ["'worm:'", "not an option with its value"]),
        ("worm:static", ["'static' is not an option with its value"]),
        ("worm:static=latest,static=window", ["sets static twice"]),
        ("worm:statics=window", ["unknown option 'statics'", "did you mean 'static'?"]),
        ("worm:seed=1", ["cannot set seed", "belongs to the whole grid"]),
        ("worm:ratio=0.3", ["cannot set ratio"]),
        ("worm@early-bird", ["worm follows no other method", "narrow, random, late, rst"]),
        ("narrow@worm:macs=5", ["sets macs, which @worm sets too"]),
        ({"name": "a"}, ["a table with `method`"]),
        ({"method": 3}, ["a table with `method`"]),
        ({"method": "worm", "name": "a:b"}, ["a name without : = and @"]),
        ({"method": "worm", "name": ""}, ["a name without"]),
        ({"method": "worm", "weights": "a,b.safetensors"}, ["sets weights to 'a,b.safetensors'", "without commas"]),
        ({"method": "worm", "text_columns": ["a+b"]}, ["sets text_columns to ('a+b',)", "for the whole grid"]),
        ({"method": "worm", "label_column": " a"}, ["sets label_column to ' a'", "in one word"]),
        ({"method": "worm", "text_columns": []}, ["sets text_columns to ()", "in one word"]),
        (3, ["method 3"]),
    ],
)
def test_methods_that_cannot_be(method, parts):
    with pytest.raises(ConfigError) as caught:
        GridMethod.of(method)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


# Cells.


def test_the_default_grid_has_all_methods_and_five_seeds():
    grid = Grid.of({})
    cells = grid.cells()
    assert (tuple(labels(grid)), grid.seeds, grid.baseline) == (METHODS, SEEDS, "early-bird")
    assert Grid.of({"baseline": None, "name": None}) == grid
    assert len(cells) == len(METHODS) * 5
    assert [cell.label for cell in cells[: len(METHODS)]] == list(METHODS)
    assert {cell.config.seed for cell in cells[: len(METHODS)]} == {0}
    assert {label: of for label, of in followed(grid).items() if of} == {
        "narrow": "early-bird", "random@early-bird": "early-bird"
    }  # fmt: skip
    assert cells[0].config == RunConfig(method="dense")


def test_every_combination_is_a_cell():
    grid = Grid.of({
        "methods": ["worm", "constant"], "seeds": [3, 1], "ratios": [0.3, 0.5], "models": ["resnet20", "vgg11_bn"],
        "data": ["digits", "mnist"], "epochs": 9, "search-epochs": 5,
    })  # fmt: skip
    configs = [cell.config for cell in grid.cells()]
    assert len({config.directory_name() for config in configs}) == len(configs) == 32
    assert {(config.epochs, config.search_epochs) for config in configs} == {(9, 5)}
    assert [config.seed for config in configs[:4]] == [3, 3, 1, 1]
    assert grid.baseline == "worm"
    assert str(grid.cells()[0]) == "worm, seed 3, resnet20 on digits, ratio 0.3"
    assert len({cell.setting for cell in grid.cells()}) == 8


def test_sizes_of_the_training_set_are_settings():
    grid = Grid.of({"methods": "worm", "seeds": 0, "limits": [100, 200]})
    assert [str(cell.setting) for cell in grid.cells()] == [
        "resnet18 on digits, 100 examples, ratio 0.5", "resnet18 on digits, 200 examples, ratio 0.5"
    ]  # fmt: skip


def test_a_run_may_pick_the_ratio_itself():
    grid = Grid.of({"seeds": 0, "ratios": [0.3, 0.6], "pick": "speed"})
    assert {cell.config.ratios for cell in grid.cells()} == {(0.3, 0.6)}
    assert labels(grid) == [method for method in METHODS if method.partition(":")[0] in SEARCHES]
    assert [str(setting) for setting in {cell.setting for cell in grid.cells()}] == [
        "resnet18 on digits, ratio chosen by speed"
    ]


def test_each_data_set_has_its_own_defaults():
    grid = Grid.of({"methods": "worm", "seeds": 0, "data": ["digits", "glue/sst2"], "batch_size": 16})
    images, text = (cell.config for cell in grid.cells())
    assert images == RunConfig(method="worm", batch_size=16)
    assert text == RunConfig.for_text(method="worm", data="glue/sst2", batch_size=16)
    weights = Grid.of({"methods": "worm:units=weights", "seeds": 0, "data": "glue/sst2"}).cells()[0].config
    assert weights == RunConfig.for_text(method="worm", data="glue/sst2", units=("weights",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"methods": ["narrow", "worm", "early-bird"]}, "early-bird"),
        ({"methods": ["narrow", "worm", "constant"], "baseline": "constant"}, "constant"),
        ({"methods": ["narrow", "early-bird", "worm"], "baseline": "worm"}, "early-bird"),
        ({"methods": ["narrow@worm", "early-bird", "worm"]}, "worm"),
        ({"methods": ["narrow", "random"]}, None),
        ({"methods": ["n=narrow:macs=90", "early-bird"]}, None),
        ({"methods": ["n=narrow", "eb=early-bird", "late"], "baseline": "eb"}, "eb"),
    ],
)
def test_narrow_is_as_small_as_the_ticket_of_a_search(given, expected):
    assert next(iter(cell.follows for cell in Grid.of(given).cells() if cell.config.method == "narrow")) == expected


def test_what_follows_is_completed_by_its_reference():
    cells = Grid.of({"methods": ["early-bird", "narrow", "random@early-bird"], "seeds": 0}).cells()
    reference = made_up("early-bird", epoch=7.5)
    narrow, random = (cell.after(reference) for cell in cells[1:])
    assert narrow.config == dataclasses.replace(cells[1].config, macs=reference.ticket.macs)
    assert random.config == dataclasses.replace(cells[2].config, draw_epoch=7.5)
    assert (narrow.follows, random.follows) == (None, None)
    with pytest.raises(ConfigError, match="early-bird drew no ticket that narrow could follow"):
        cells[1].after(made_up("early-bird", epoch=None))


# What is refused.


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        *(({axis: []}, [f"{axis} is empty", "no cells"]) for axis in ("methods", "seeds", "ratios", "models", "data")),
        ({"seeds": [0, 1, 0]}, ["seeds has 0 twice"]),
        ({"ratios": [0.5, 0.5]}, ["ratios has 0.5 twice"]),
        ({"methods": ["worm", "worm"]}, ["methods has 'worm' twice"]),
        ({"methods": ["a=worm", "a=constant"]}, ["methods has 'a' twice"]),
        ({"methods": ["worm", "worm:static=latest"]}, ["'worm' and 'worm:static=latest' are the same runs"]),
        ({"methods": ["early-bird", "narrow", "narrow@early-bird"]}, ["'narrow' and 'narrow@early-bird' are the same"]),
        ({"methods": ["worm"], "baseline": "early-bird"}, ["baseline 'early-bird' is not in the grid", "worm"]),
        ({"methods": ["worm"], "baseline": 3}, ["baseline is 3"]),
        ({"methods": ["worm", "random@early-bird"]}, ["follows 'early-bird'", "no such method", "choose from worm"]),
        ({"methods": ["worm", "narrow", "random@narrow"]}, ["follows 'narrow'", "follows another itself"]),
        ({"methods": ["narrow@narrow", "worm"]}, ["there is no such method"]),
        ({"seeds": ["zero"]}, ["seeds has 'zero'", "type int"]),
        ({"seeds": [True]}, ["seeds has True", "type int"]),
        ({"ratios": "half"}, ["ratios has 'half'", "type float"]),
        ({"data": [3]}, ["data has 3", "type str"]),
        ({"ratios": [1]}, ["ratio is 1.0", "in [0, 1)"]),
        ({"seeds": [-1]}, ["seed is -1"]),
        ({"models": "resnet"}, ["unknown model 'resnet'"]),
        ({"data": "digit"}, ["unknown data 'digit'"]),
        ({"seed": 3}, ["unknown option 'seed' of a grid", "did you mean 'seeds'?"]),
        ({"macs": 3}, ["unknown option 'macs' of a grid"]),
        ({"epochs": "many"}, ["epochs is 'many'", "type int"]),
        ({"classes": ["a", "b"]}, ["classes is ('a', 'b')", "type int"]),
        ({"methods": "worm:epsilon=small"}, ["worm:epsilon=small: epsilon is 'small'", "type float"]),
        ({"methods": "imp", "match": "flops"}, ["imp: match is flops"]),
        ({"name": 3}, ["name is 3"]),
        ({"limits": [5], "limit": 5}, ["limit and limits are given"]),
        ({"pick": "fast"}, ["unknown pick 'fast'", "all, speed"]),
        ({"pick": "speed"}, ["ratios is 0.5, but to pick one there must be two or more"]),
        ({"pick": "speed", "ratios": [0.3, 0.5], "methods": "dense"}, ["dense: ratios is 0.3 0.5"]),
    ],
)
def test_impossible_grids(given, parts):
    with pytest.raises(ConfigError) as caught:
        Grid.of(given).cells()
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_data_that_must_be_looked_at():
    with pytest.raises(DataError, match="no directory 'nowhere'"):
        Grid.of({"data": "parquet:nowhere", "models": "owner/network"}).cells()


def test_iterative_pruning_is_left_out_where_it_saves_nothing():
    assert labels(Grid.of({"match": "flops"})) == [method for method in METHODS if method != "imp"]
    assert Grid.of({"match": "flops"}).cells()


def test_budgets_that_differ():
    cells = Grid.of({"methods": ["worm", "worm:epochs=40", "worm:classes=0+1,batch_size=8"], "seeds": [0, 1]}).cells()
    assert budget_differences(cells) == [
        "worm:epochs=40 has epochs 40, worm has 30",
        "worm:classes=0+1,batch_size=8 has classes 0 1, worm has none",
        "worm:classes=0+1,batch_size=8 has batch_size 8, worm has 32",
    ]
    assert budget_differences(Grid.of({"data": ["digits", "glue/sst2"], "methods": "worm"}).cells()) == []


# Training set sizes, and ratios that each run chooses from.


def test_training_set_sizes_are_settings():
    grid = Grid.of({"methods": ["dense", "worm"], "seeds": [0], "limits": [100, 200]})
    assert [(cell.label, cell.config.limit) for cell in grid.cells()] == [
        ("dense", 100), ("worm", 100), ("dense", 200), ("worm", 200)
    ]  # fmt: skip
    assert [str(cell.setting) for cell in grid.cells()][::2] == [
        "resnet18 on digits, 100 examples, ratio 0.5", "resnet18 on digits, 200 examples, ratio 0.5"
    ]  # fmt: skip
    assert Grid.of(grid.given()) == grid
    assert "--limits 100 200" in grid.command()


def test_one_run_for_all_ratios_where_it_picks_one():
    grid = Grid.of({"ratios": [0.3, 0.5, 0.7], "pick": "speed", "seeds": [0, 1]})
    assert [method.method for method in grid.methods] == [
        "early-bird", "constant", "greedy", "worm", "worm", "fade"
    ]  # fmt: skip
    assert len(grid.cells()) == grid.size == 12
    assert {cell.config.ratios for cell in grid.cells()} == {(0.3, 0.5, 0.7)}
    assert {str(cell.setting) for cell in grid.cells()} == {"resnet18 on digits, ratio chosen by speed"}
    assert Grid.of(grid.given()) == grid
    assert "--pick speed" in grid.command()


def test_the_dense_network_is_trained_once_for_all_ratios():
    dense, *others = Grid.of({"methods": ["dense", "late"], "ratios": [0.3, 0.7], "seeds": [0]}).cells()
    assert [str(cell.setting) for cell in (dense, others[1])] == [
        "resnet18 on digits, ratio 0.3", "resnet18 on digits, ratio 0.7"
    ]  # fmt: skip
    assert dense.config == others[1].config
    assert (others[0].config.ratio, others[2].config.ratio) == (0.3, 0.7)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"limits": [10], "limit": 10}, "limit and limits are given"),
        ({"limits": []}, "limits is empty"),
        ({"limits": [10, 10]}, "limits has 10 twice"),
        ({"limits": [0]}, "limit is 0"),
        ({"pick": "sped"}, "unknown pick 'sped': did you mean 'speed'?"),
        ({"pick": "speed"}, "ratios is 0.5, but to pick one"),
        ({"pick": "speed", "ratios": [0.3, 0.5], "methods": ["early-bird", "dense"]}, "a method without a search"),
        ({"methods": ["worm:limit=3"]}, "cannot set limit"),
    ],
)
def test_impossible_sizes_and_choices(given, part):
    with pytest.raises(ConfigError) as caught:
        Grid.of({"methods": ["early-bird"], **given}).cells()
    assert part in str(caught.value)


# Files and the command line.

GIVEN = {
    "methods": ["early-bird", {"name": "worm-window", "method": "worm", "static": "window"}],
    "seeds": [0, 1], "baseline": "early-bird", "data": "digits", "epochs": 6, "search-epochs": 4, "augment": "flip",
}  # fmt: skip
TOML = """
seeds = [0, 1]
baseline = "early-bird"
data = "digits"
epochs = 6
search-epochs = 4
augment = "flip"
methods = ["early-bird", {name = "worm-window", method = "worm", static = "window"}]
"""
YAML = """
methods:
  - early-bird
  - {name: worm-window, method: worm, static: window}
seeds: [0, 1]
baseline: early-bird
data: digits
epochs: 6
search-epochs: 4
augment: flip
"""


@pytest.mark.parametrize(
    ("name", "text"), [("grid.toml", TOML), ("grid.yaml", YAML), ("grid.yml", YAML), ("grid.json", json.dumps(GIVEN))]
)
def test_a_grid_in_a_file(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_grid(tmp_path / name) == GIVEN
    options = cli.parse(["compare", "--grid", str(tmp_path / name)])
    assert options == Compare(Grid.of(GIVEN))
    assert labels(options.grid) == ["early-bird", "worm-window"]
    # The command line wins, and it tells what the file did not say.
    words = ["--seeds", "7", "--no-greedy-first", "--jobs", "1", "--force", "--epochs=5"]
    options = cli.parse(["compare", "--grid", str(tmp_path / name), *words])
    assert options == Compare(Grid.of({**GIVEN, "seeds": [7], "greedy_first": False, "epochs": 5}), 1, None, True)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("grid.toml", "seeds = [", ["grid.toml is no valid toml", "correct it"]),
        ("grid.yaml", "seeds: [", ["grid.yaml is no valid yaml"]),
        ("grid.json", "{", ["grid.json is no valid json"]),
        ("grid.yaml", "- worm", ["must be a table of options", "list found"]),
        ("grid.yaml", "", ["must be a table of options"]),
        ("grid.yaml", "1: 2", ["must be a table of options"]),
        ("grid.ini", "", ["cannot tell what", "*.toml"]),
        ("grid.toml", "jobs = 'two'", ["jobs is 'two'"]),
        ("grid.toml", "force = 1", ["force is 1"]),
        ("grid.toml", "launcher = 'slurm'", ["unknown launcher 'slurm'"]),
        ("grid.toml", "seed = 1", ["unknown option 'seed'"]),
        ("grid.toml", "jobs = 100000", ["jobs is 100000", "the cores that this process may use"]),
    ],
)
def test_files_that_are_no_grid(name, text, parts, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        cli.parse(["compare", "--grid", str(tmp_path / name)])
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_grid(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match="no valid toml"):
        read_grid(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    "given",
    [
        {},
        GIVEN,
        {"methods": ["worm", "narrow@worm"], "ratios": [0.3, 0.6], "models": ["vgg11_bn"], "name": "two words"},
        {"pick": "speed", "ratios": [0.3, 0.6], "limits": [100, 200]},
        {"methods": ["worm", "narrow", "random@narrow"], "baseline": "narrow"},
        {"span": 4, "lr": 1, "methods": ["worm"]},
        {"match": "flops", "greedy_first": True, "classes": [1, 2], "output": "else where", "limit": 30},
    ],
)
def test_the_command_of_a_grid_gives_that_grid(given):
    grid = Grid.of(given)
    assert cli.parse(shlex.split(grid.command())[1:]) == Compare(grid)
    assert Grid.of(json.loads(json.dumps(grid.given()))) == grid
    assert Grid.of(grid.given()).directory == grid.directory
    assert cli.parse(shlex.split(grid.command())[1:]).grid.directory.name == grid.directory.name


def test_the_directory_tells_grids_apart_but_not_where_they_lie():
    grid = Grid.of({})
    assert grid.directory.parent == Path("runs")
    assert grid.directory.name.startswith("compare-digits-")
    assert Grid.of({"name": "first"}).directory.name.startswith("compare-first-")
    assert Grid.of({"output": "x"}).directory == Path("x", grid.directory.name)
    assert Grid.of({"output": "x", "overwrite": True}).directory == Path("x", grid.directory.name)
    others = [{"seeds": [0]}, {"epochs": 31}, {"methods": ["early-bird"]}, {"baseline": "worm"}, {"ratios": [0.4]}]
    names = {Grid.of(other).directory.name for other in others}
    assert len(names | {grid.directory.name}) == 1 + len(others)
    assert "--overwrite" not in Grid.of({"overwrite": True}).command()


def test_the_title_says_how_large_it_is():
    assert Grid.of({"methods": "worm"}).title == "digits: 1 method, 5 seeds"
