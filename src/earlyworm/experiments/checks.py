"""Checks of settings: each says what is wrong, and what it must be instead."""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from earlyworm.errors import ConfigError
from earlyworm.experiments.names import MODELS, SEARCHES, TRUNCATING, UnitKind, suggest, task_by_name

if TYPE_CHECKING:
    from earlyworm.experiments.config import RunConfig


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for: of whole numbers and fractions, equal ones must read alike."""
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in choices:
            raise ConfigError(f"unknown {name.replace('_', ' ')} {value!r}: {suggest(str(value), choices)}")
        return value
    kinds = [get_origin(kind) or kind for kind in (choices if isinstance(hint, UnionType) else (hint,))]
    if float in kinds and type(value) is int:
        return float(value)
    wanted = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
    require(type(value) in kinds, name, repr(value), f"of type {wanted}")
    if type(value) is tuple:
        kind = next((kind for kind in (int, float) if kind in choices), str)
        value = tuple(float(item) if kind is float and type(item) is int else item for item in value)
        require(all(type(item) is kind for item in value), name, repr(value), f"each of type {kind.__name__}")
    return value


def require(condition: bool, name: str, value: object, cure: str) -> None:
    """Raise a `ConfigError` that names a setting, its value and what it must be, unless a condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {value}, but must be {cure}")


def check_ranges(config: RunConfig) -> None:
    """Numbers must be finite, and in the ranges that make sense."""
    finite = {f.name: v for f in dataclasses.fields(config) if isinstance(v := getattr(config, f.name), float)}
    for name, value in finite.items():
        require(math.isfinite(value), name, value, "a finite number")
    require(0 < config.width <= 4, "width", config.width, "in (0, 4]")
    for name in ("ratio", "head_ratio"):
        value = getattr(config, name)
        require(value is None or 0 <= value < 1, name, value, "in [0, 1); it is the fraction of units removed")
    require(config.window >= 2, "window", config.window, "at least 2, to have masks to compare")
    fit = config.span is None or config.span >= config.effective_check_every
    require(fit, "span", config.span, f"at least check_every ({config.effective_check_every:g} epochs)")
    require(0 <= config.epsilon <= 1, "epsilon", config.epsilon, "in [0, 1]")
    require(config.trigger is None or 0 <= config.trigger <= 1, "trigger", config.trigger, "in [0, 1]")
    require(config.half_life is None or config.half_life > 0, "half_life", config.half_life, "above 0 (epochs)")
    require(config.chi is None or 0 <= config.chi <= 1, "chi", config.chi, "in [0, 1]")
    require(0 <= config.momentum < 1, "momentum", config.momentum, "in [0, 1)")
    require(0 <= config.warmup < 1, "warmup", config.warmup, "in [0, 1); it is a fraction of all epochs")
    require(config.lr > 0, "lr", config.lr, "above 0")
    require(config.max_grad_norm is None or config.max_grad_norm > 0, "max_grad_norm", config.max_grad_norm, "above 0")
    require(config.weight_decay >= 0, "weight_decay", config.weight_decay, "0 or more")
    require(config.sparsity_penalty >= 0, "sparsity_penalty", config.sparsity_penalty, "0 or more")
    require(config.effective_check_every > 0, "check_every", config.check_every, "above 0 (epochs)")
    require(config.limit is None or config.limit > 0, "limit", config.limit, "above 0")
    require(config.validation is None or config.validation > 0, "validation", config.validation, "above 0")
    require(config.extrusion >= 0, "extrusion", config.extrusion, "0 or more")
    least = 1 if config.min_units is None else config.min_units
    fit = 0 < least < 1 or (least >= 1 and least == int(least))
    require(fit, "min_units", config.min_units, "at least 1 (units), or in (0, 1) (a fraction of a layer)")
    require(config.macs is None or config.macs > 0, "macs", config.macs, "above 0")
    for name in (
        "batch_size", "accumulation", "round_to", "search_epochs", "epochs", "max_length", "rounds", "evaluate_every",
        "probe_epochs",
    ):  # fmt: skip
        require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    require(0 <= config.seed < 2**31, "seed", config.seed, "in [0, 2**31)")
    require(
        config.batch_size % config.accumulation == 0,
        "accumulation",
        config.accumulation,
        f"a divisor of batch_size ({config.batch_size})",
    )
    require(
        config.retrain_epochs is None or config.retrain_epochs >= 0,
        "retrain_epochs",
        config.retrain_epochs,
        "0 or more",
    )
    require(
        config.retrain_epochs is not None or config.search_epochs < config.epochs,
        "search_epochs",
        config.search_epochs,
        f"below epochs ({config.epochs}), so that epochs are left to retrain: give --search-epochs too",
    )


def check_method(config: RunConfig) -> None:
    """Options of one method must not be given to another, which would ignore them."""
    drawn, macs, rewind = config.draw_epoch, config.macs, config.rewind_epoch
    window = config.emergence.window
    filled = (window - (config.score != "taylor")) * config.effective_check_every
    require(
        config.method not in SEARCHES or config.force_draw or config.search_epochs >= filled,
        "search_epochs", config.search_epochs,
        f"at least {filled:g}, to fill a window of {window} masks; or lower window or check_every",
    )  # fmt: skip
    require(
        drawn is None or config.method in ("random", "late", "rst"),
        "draw_epoch", drawn, f"None for {config.method}: only random, late and rst draw when they are told",
    )  # fmt: skip
    last = config.epochs if config.retrain_epochs is None else math.inf
    require(drawn is None or 0 <= drawn < last, "draw_epoch", drawn, f"0 or more, and below epochs ({config.epochs})")
    require(macs is None or config.method == "narrow", "macs", macs, f"None for {config.method}: only narrow has it")
    each = config.epochs / (config.rounds + 1)
    require(0 <= rewind < each, "rewind_epoch", rewind, f"0 or more, and below the epochs of a round ({each:g})")
    require(rewind == 0 or config.method == "imp", "rewind_epoch", rewind, f"0 for {config.method}: only imp rewinds")
    require(
        config.method != "imp" or config.match == "epochs",
        "match", config.match, "epochs for imp: single weights that are held at zero save no FLOPs",
    )  # fmt: skip
    require(
        config.method != "imp" or config.sparsity_penalty == 0,
        "sparsity_penalty", config.sparsity_penalty,
        "0 for imp, whose units are single weights without scales: in a grid, write imp:sparsity_penalty=0",
    )  # fmt: skip
    require(
        config.method != "fade" or config.effective_chi != 1,
        "chi", config.chi, "below 1 for fade: what moves freely does not fade",
    )  # fmt: skip
    ratios = config.ratios
    fit = not ratios or (2 <= len(set(ratios)) == len(ratios) and all(0 <= ratio < 1 for ratio in ratios))
    require(fit, "ratios", " ".join(map(str, ratios)), "two or more different numbers in [0, 1), or none")
    require(
        not ratios or (config.method in SEARCHES and config.head_ratio is None),
        "ratios", " ".join(map(str, ratios)), "empty for a method without a search, and with head_ratio",
    )  # fmt: skip
    require(
        not config.shrink or config.method in TRUNCATING,
        "shrink", config.shrink, f"False for {config.method}: only {', '.join(TRUNCATING)} have static units",
    )  # fmt: skip
    require(
        not config.shrink or (not ratios and "weights" not in config.units),
        "shrink", config.shrink, "False with ratios, which share a network, and for weights, which are only masked",
    )  # fmt: skip
    require(
        not config.shrink or config.round_to == 1,
        "round_to", config.round_to, "1 with shrink: units that would be kept for it may be gone by then",
    )  # fmt: skip
    require(
        config.match == "epochs" or config.retrain_epochs is None,
        "retrain_epochs", config.retrain_epochs, "None where --match flops says how long to retrain",
    )  # fmt: skip
    distinct = len(set(config.classes)) == len(config.classes) != 1 and all(number >= 0 for number in config.classes)
    require(distinct, "classes", " ".join(map(str, config.classes)), "two or more different numbers, 0 or more")


def check_units(config: RunConfig) -> None:
    """The kinds of units must be known, each once; a ratio for heads needs heads."""
    kinds, ratio = get_args(UnitKind), config.head_ratio
    for kind in config.units:
        if kind not in kinds:
            raise ConfigError(f"unknown units {kind!r}: {suggest(str(kind), kinds)}")
    distinct = 0 < len(config.units) == len(set(config.units))
    require(distinct, "units", " ".join(config.units) or "empty", f"one or more of {', '.join(kinds)}, each once")
    require(ratio is None or "heads" in config.units, "head_ratio", ratio, "None where heads are not among the units")


def check_task(config: RunConfig) -> None:
    """Model, data and options must be for one kind of data."""
    named = task_by_name(None, config.data)
    if config.task == "images":
        require(
            named != "text", "data", config.data,
            f"images for {config.model}: for text, give a --model of transformers (in Python: RunConfig.for_text)",
        )  # fmt: skip
        require(not config.text_columns, "text_columns", " ".join(config.text_columns), "empty for images")
        return
    require(named != "images", "data", config.data, "text, such as csv:FILE, parquet:DIR or glue/sst2")
    require(config.model not in MODELS, "model", config.model, "a text model of transformers, since the data are text")
    require(config.augment == "none", "augment", config.augment, "none for text")
    require("channels" not in config.units, "units", " ".join(config.units), "heads, neurons or weights for text")
    require(len(config.text_columns) <= 2, "text_columns", " ".join(config.text_columns), "one column, or two of pairs")
