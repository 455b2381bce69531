import dataclasses
import json
import math
import shlex
from pathlib import Path

import pytest

from earlyworm.errors import ConfigError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import MODELS, check_model_name, suggest, task_by_name
from settings import BASELINES, OTHER, TEXT, WITH

FIELDS = [field.name for field in dataclasses.fields(RunConfig)]

PRESENTATION = {"output", "overwrite", "track", "force_draw", "evaluate_every"}


def refused(**values):
    """The text of the one-line error that these settings raise."""
    with pytest.raises(ConfigError) as caught:
        RunConfig(**values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_field_is_tried():
    assert set(OTHER) == set(FIELDS) - {"task", "text_columns"} - set(BASELINES)
    assert set(TEXT) == set(FIELDS) - set(BASELINES)
    assert all(value != getattr(RunConfig(), name) for name, value in OTHER.items())
    assert {name for name, value in TEXT.items() if value == getattr(RunConfig.for_text(), name)} == {"task", "augment"}


# What is impossible, and what the message has to say besides name and value.
IMPOSSIBLE = [
    ("draw_epoch", 3.0, "None for fade"),
    ("macs", 0, "above 0"),
    ("macs", 10, "None for fade"),
    ("rewind_epoch", 1.0, "0 for fade"),
    *(("rewind_epoch", value, "0 or more, and below the epochs of a round (7.5)") for value in (-1.0, 7.5)),
    ("rounds", 0, "at least 1"),
    ("half_life", 0.0, "above 0"),
    ("validation", 0, "above 0"),
    ("span", 0.2, "at least check_every (0.25 epochs)"),
    ("extrusion", -0.5, "0 or more"),
    *(("ratio", value, "in [0, 1)") for value in (-0.1, 1.0, 1, 2.5)),
    *((name, value, "in [0, 1]") for name in ("epsilon", "trigger", "chi") for value in (-0.001, 1.001)),
    *(("momentum", value, "in [0, 1)") for value in (-0.1, 1.0)),
    *(("width", value, "in (0, 4]") for value in (0.0, -1.0, 4.001)),
    *((name, value, "above 0") for name in ("lr", "max_grad_norm") for value in (0.0, -0.1)),
    *(("warmup", value, "in [0, 1)") for value in (-0.1, 1.0)),
    *(("max_length", value, "at least 1") for value in (0, -1)),
    *((name, -1e-9, "0 or more") for name in ("weight_decay", "sparsity_penalty")),
    *(("check_every", value, "above 0") for value in (0.0, -1.0)),
    *(("limit", value, "above 0") for value in (0, -5)),
    *((name, value, "at least 1") for name in ("batch_size", "accumulation", "round_to") for value in (0, -1)),
    *(("epochs", value, "at least 1") for value in (0, -1)),
    *(("min_units", value, "at least 1 (units), or in (0, 1) (a fraction of a layer)") for value in (0.0, -1.0, 1.5)),
    *(("search_epochs", value, "at least 1") for value in (0, -1)),
    *(("window", value, "at least 2") for value in (1, 0, -1)),
    *(("seed", value, "in [0, 2**31)") for value in (-1, 2**31)),
    ("retrain_epochs", -1, "0 or more"),
    ("accumulation", 3, "a divisor of batch_size (32)"),
    ("evaluate_every", 0, "at least 1"),
    ("search_epochs", 30, "below epochs (30)"),
    ("search_epochs", 31, "below epochs (30)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "cure"), IMPOSSIBLE)
def test_impossible_numbers(name, value, cure):
    text = refused(**{name: value})
    assert text.startswith(f"{name} is {float(value) if isinstance(getattr(RunConfig(), name), float) else value}, ")
    assert f"must be {cure}" in text


FRACTIONS = [field.name for field in dataclasses.fields(RunConfig) if str(field.type).startswith("float")]


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(name, value):
    assert refused(**{name: value}) == f"{name} is {value}, but must be a finite number"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", 0.0), ("ratio", 0.999), ("epsilon", 0.0), ("epsilon", 1.0), ("trigger", 0.0), ("chi", 0.999),
        ("chi", 0.0), ("width", 4.0), ("momentum", 0.0), ("window", 2), ("limit", 1), ("seed", 2**31 - 1),
        ("search_epochs", 29), ("retrain_epochs", 0), ("weight_decay", 0.0), ("accumulation", 32),
    ],
)  # fmt: skip
def test_the_ends_of_what_is_possible(name, value):
    assert getattr(RunConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"method": "rst", "draw_epoch": 30.0}, ["draw_epoch is 30.0", "below epochs (30)"]),
        ({"method": "imp", "match": "flops"}, ["match is flops", "epochs for imp"]),
        ({"match": "flops", "retrain_epochs": 3}, ["retrain_epochs is 3", "--match flops"]),
        ({"classes": (1,)}, ["classes is 1", "two or more"]),
        ({"classes": (1, 1)}, ["classes is 1 1", "different"]),
        ({"classes": (-1, 1)}, ["classes is -1 1", "0 or more"]),
    ],
)
def test_options_of_one_method(values, parts):
    text = refused(**values)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("method", "values", "epoch"),
    [
        ("worm", {}, None), ("imp", {}, None), ("dense", {}, 0), ("narrow", {}, 0), ("random", {}, 0),
        ("random", {"draw_epoch": 2.5}, 2.5), ("late", {}, 20), ("rst", {"search_epochs": 7}, 7),
        ("late", {"draw_epoch": 1.0}, 1),
    ],
)  # fmt: skip
def test_when_the_ticket_is_drawn(method, values, epoch):
    assert RunConfig(method=method, **values).drawn_at == epoch


@pytest.mark.parametrize(
    ("config", "trigger", "chi"),
    [
        (RunConfig(), 0.3, 0.0), (RunConfig(method="worm"), 0.15, 0.003), (RunConfig(method="greedy"), None, None),
        (RunConfig(method="constant", trigger=0.5), None, 0.1), (RunConfig(method="fade", trigger=0.5), 0.5, 0.0),
        (RunConfig.for_text(), 0.3, 0.0), (RunConfig.for_text(method="worm"), 0.15, 0.01),
        (RunConfig.for_text(method="worm", units=("weights",)), 0.015, 0.01),
    ],
)  # fmt: skip
def test_what_a_method_does_with_static_units_unless_it_is_told(config, trigger, chi):
    assert (config.effective_trigger, config.effective_chi) == (trigger, chi)


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        (RunConfig(), 0.25), (RunConfig(method="worm"), 1.0), (RunConfig(method="dense"), 1.0),
        (RunConfig(check_every=1.0), 1.0), (RunConfig(method="early-bird", check_every=0.5), 0.5),
        (RunConfig.for_text(), 0.25), (RunConfig.for_text(method="worm"), 0.25),
    ],
)  # fmt: skip
def test_how_often_a_method_looks_unless_it_is_told(config, epochs):
    assert config.effective_check_every == epochs


def test_a_span_is_measured_in_checks_of_the_method():
    assert RunConfig(span=1.0).emergence.window == 5
    assert RunConfig(method="worm", span=1.0).emergence.window == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "imp", "sparsity_penalty": 0.1}, "sparsity_penalty is 0.1, but must be 0 for imp, whose units"),
        (
            {"method": "worm", "search_epochs": 3},
            "search_epochs is 3, but must be at least 4, to fill a window of 5 masks; or lower window or check_every",
        ),
        ({"search_epochs": 1, "span": 2.0}, "search_epochs is 1, but must be at least 2, to fill a window of 9 masks"),
        ({"search_epochs": 1, "score": "taylor"}, "search_epochs is 1, but must be at least 1.25, to fill a window"),
        ({"method": "fade", "chi": 1.0}, "chi is 1.0, but must be below 1 for fade"),
        *(
            ({"method": method, "shrink": True}, f"shrink is True, but must be False for {method}: only constant, ")
            for method in ("early-bird", "dense", "late", "imp", "rst")
        ),
        ({"shrink": True, "ratios": (0.3, 0.5)}, "shrink is True, but must be False with ratios, which share"),
        ({"shrink": True, "units": ("weights",)}, "and for weights, which are only masked"),
        ({"shrink": True, "round_to": 8}, "round_to is 8, but must be 1 with shrink: units that would be kept for it"),
    ],
)
def test_what_a_method_cannot_do(values, message):
    assert message in refused(**values)


def test_retraining_epochs_free_the_search_of_the_budget():
    assert RunConfig(epochs=5, search_epochs=20, retrain_epochs=3).search_epochs == 20


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("method", "wrom", "worm"), ("method", "earlybird", "early-bird"),
        ("data", "digit", "digits"), ("data", "cifar-10", "cifar10"),
        ("data", "parket:x", "parquet:DIR"), ("data", "parquet:", "parquet:DIR"), ("data", "csv:", "csv:FILE"),
        ("optimizer", "adam", "adamw"),
        ("schedule", "cosin", "cosine"), ("precision", "bf-16", "bf16"), ("augment", "crop_flip", "crop-flip"),
        ("retrain_from", "reinitialize", "reinitialise"), ("static", "windows", "window"),
        ("coupling", "couple", "coupled"), ("score", "filterl1", "filter-l1"), ("device", "cp", "cpu"),
    ],
)  # fmt: skip
def test_unknown_names(name, value, nearest):
    text = refused(**{name: value})
    assert text.startswith(f"unknown {name.replace('_', ' ')} {value!r}: did you mean {nearest!r}? choose from ")


@pytest.mark.parametrize("value", ["", "qqq"])
def test_data_that_are_near_to_none(value):
    text = refused(data=value)
    assert text.startswith(f"unknown data {value!r}: choose from ")
    assert "did you mean" not in text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet-18", "did you mean 'resnet18'? choose from "), ("vgg11", "did you mean 'vgg11_bn'? choose from "),
        ("xyz", "choose from "), ("", "choose from "), ("a" * 300, "choose from "), ("digits\0", "choose from "),
        ("file", "choose from "),
    ],
)  # fmt: skip
def test_models_that_cannot_be(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check_model_name(name)
    assert str(caught.value).startswith(f"unknown model {name!r}: {hint}")


def test_directories_and_hub_names_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network").mkdir()
    check_model_name("network")
    check_model_name("microsoft/resnet-50")
    assert RunConfig(data="owner/data").data == "owner/data"


def test_settings_name_models_that_lie_elsewhere():
    assert RunConfig.from_dict({"model": "network"}) == RunConfig(model="network")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("ratio", "0.5", "of type float"), ("ratio", True, "of type float"), ("window", 5.0, "of type int"),
        ("window", True, "of type int"), ("limit", "all", "of type int or None"), ("chi", "none", "of type float or"),
        ("force_draw", 1, "of type bool"), ("model", None, "of type str"), ("output", Path("runs"), "of type str"),
        ("track", "tensorboard", "of type tuple"), ("track", ["tensorboard"], "of type tuple"),
    ],
)  # fmt: skip
def test_values_of_another_type(name, value, wanted):
    text = refused(**{name: value})
    assert text.startswith(f"{name} is {value!r}, but must be ")
    assert wanted in text


def test_a_name_of_another_type():
    assert refused(method=3).startswith("unknown method 3: choose from early-bird")


def test_suggest_names_the_nearest_and_all():
    assert suggest("resnet19", MODELS) == "did you mean 'resnet18'? choose from vgg11_bn, vgg16_bn, resnet18, resnet20"


@pytest.mark.parametrize("config", [RunConfig(), RunConfig(**OTHER), RunConfig.for_text(), RunConfig(**TEXT)])
def test_round_trip_through_json(config):
    again = RunConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert again.directory_name() == config.directory_name()
    assert {type(value) for value in (again.track, again.units, again.text_columns)} == {tuple}


def test_a_missing_field_has_its_default():
    assert RunConfig.from_dict({"seed": 4}) == RunConfig(seed=4)


@pytest.mark.parametrize(("name", "hint"), [("ratoi", "did you mean 'ratio'? "), ("xyzzy", "choose from ")])
def test_unknown_fields(name, hint):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict({name: 1})
    assert str(caught.value).startswith(f"unknown option {name!r}: {hint}")


@pytest.mark.parametrize("values", [[], None, "seed", 3])
def test_json_that_is_no_object(values):
    with pytest.raises(ConfigError, match="must be a JSON object"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("name", FIELDS)
def test_the_directory_depends_on_every_setting_and_on_nothing_else(name):
    given = WITH.get(name, {})
    name_of = RunConfig(**given).directory_name()
    changed = {**TEXT, **OTHER, **{name: value for name, (value, _) in BASELINES.items()}}[name]
    other = RunConfig(**{**given, name: changed}).directory_name()
    assert (other == name_of) == (name in PRESENTATION)
    assert (name in RunConfig().settings()) == (name not in PRESENTATION)


def test_equal_settings_have_one_directory():
    whole = RunConfig(width=1, ratio=0, lr=1, chi=0, check_every=2)
    assert whole == RunConfig(width=1.0, ratio=0.0, lr=1.0, chi=0.0, check_every=2.0)
    assert whole.directory_name() == RunConfig(width=1.0, ratio=0.0, lr=1.0, chi=0.0, check_every=2.0).directory_name()


def test_the_directory_is_readable_and_the_same_on_every_machine():
    assert RunConfig(seed=2).directory_name().startswith("resnet18-digits-fade-s2-")
    assert len(RunConfig().directory_name().rpartition("-")[2]) == 8


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"data": "parquet:../some where/cifar10/"}, "resnet18-cifar10-fade-"),
        ({"data": "parquet:cifar10"}, "resnet18-parquet-cifar10-fade-"),
        ({"data": "uoft-cs/cifar10", "model": "microsoft/resnet-50"}, "resnet-50-cifar10-fade-"),
    ],
)
def test_the_directory_is_one_folder(values, start):
    name = RunConfig(**values).directory_name()
    assert name.startswith(start)
    assert "/" not in name


def test_the_directory_fits_into_a_file_name():
    assert len(RunConfig(model="o/" + "m" * 250, data="o/" + "d" * 250).directory_name()) < 200


@pytest.mark.parametrize(
    ("method", "chi", "effective"),
    [
        ("early-bird", None, None), ("greedy", None, None), ("constant", None, 0.1), ("worm", None, 0.003),
        ("worm", 0.0, 0.0), ("constant", 0.5, 0.5),
    ],
)  # fmt: skip
def test_effective_chi(method, chi, effective):
    assert RunConfig(method=method, chi=chi).effective_chi == effective


def test_effective_chi_for_text():
    assert RunConfig.for_text(method="worm").effective_chi == 0.01
    assert RunConfig.for_text(method="constant").effective_chi == 0.1


@pytest.mark.parametrize(
    ("values", "ratio"),
    [
        ({}, 0.5),
        ({"units": ("heads", "neurons"), "ratio": 0.25}, 0.25),
        ({"units": ("heads", "neurons"), "head_ratio": 0.0}, {"heads": 0.0, "neurons": 0.5}),
        ({"units": ("heads",), "head_ratio": 0.75}, {"heads": 0.75}),
    ],
)
def test_pruning_ratio(values, ratio):
    assert RunConfig(**values).pruning_ratio == ratio


# What the data are.


@pytest.mark.parametrize(
    ("model", "data", "task"),
    [
        (None, "digits", "images"), (None, "cifar10", "images"), (None, "imagefolder:x", "images"),
        ("resnet18", "parquet:x", "images"), ("resnet18", "csv:x", "images"), (None, "csv:x", "text"),
        ("owner/network", "csv:x", "text"), (None, "glue/sst2", "text"), (None, "parquet:x", None),
        ("owner/network", "parquet:x", None), (None, "owner/data", None),
    ],
)  # fmt: skip
def test_what_names_tell_of_the_data(model, data, task):
    assert task_by_name(model, data) == task


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"data": "csv:x"}, ["data is csv:x", "images for resnet18", "for_text"]),
        ({"data": "glue/qnli", "model": "owner/network"}, ["data is glue/qnli", "images"]),
        ({"task": "text"}, ["data is digits", "text, such as csv:FILE"]),
        ({"task": "text", "data": "csv:x"}, ["model is resnet18", "a text model"]),
        ({"text_columns": ("text",)}, ["text_columns is text", "empty for images"]),
        ({**TEXT, "augment": "flip"}, ["augment is flip", "none for text"]),
        ({**TEXT, "text_columns": ("a", "b", "c")}, ["text_columns is a b c", "one column, or two"]),
        ({"units": ("head",)}, ["unknown units 'head'", "did you mean 'heads'?"]),
        ({"units": ()}, ["units is empty", "one or more of channels"]),
        (
            {"task": "text", "model": "a/b", "data": "csv:f"},
            ["units is channels", "heads, neurons or weights"],
        ),
        ({"units": ("heads", "heads")}, ["units is heads heads", "each once"]),
        ({"head_ratio": 0.5}, ["head_ratio is 0.5", "None where heads are not among the units"]),
        ({"head_ratio": 1.0, "units": ("heads",)}, ["head_ratio is 1.0", "in [0, 1)"]),
    ],
)
def test_settings_that_contradict_each_other(values, parts):
    text = refused(**values)
    assert all(part in text for part in parts), text


def test_the_command_of_the_defaults():
    assert RunConfig().command() == "earlyworm run"
    assert RunConfig.for_text().command() == "earlyworm run --data glue/sst2"  # or it would be images
    assert RunConfig.for_text(units=("weights",)).command() == "earlyworm run --data glue/sst2 --units weights"
    assert RunConfig.for_text(lr=1.0).defaults() == RunConfig.for_text()


def test_the_command_names_what_differs():
    words = shlex.split(RunConfig(**OTHER).command())
    assert words[:2] == ["earlyworm", "run"]
    named = OTHER.keys() - {"overwrite"}  # which is done once
    assert {word for word in words if word.startswith("--")} == {f"--{name.replace('_', '-')}" for name in named}
    assert words[words.index("--track") + 1 :][:2] == ["tensorboard", "wandb"]
    assert words[words.index("--data") + 1] == "imagefolder:pictures of cats"
    words = shlex.split(RunConfig(**TEXT).command())
    assert words[words.index("--text-columns") + 1 :][:2] == ["title", "review"]
