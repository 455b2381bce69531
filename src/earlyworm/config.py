"""What a run is asked to do: `RunConfig`, whose fields are the options of the command.

Nothing heavy is imported here, so that the command can answer a wrong option at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from earlyworm.errors import ConfigError

MODELS = ("vgg11_bn", "vgg16_bn", "resnet18", "resnet20")
DATA_NAMES = ("digits", "cifar10", "cifar100", "fashion_mnist", "mnist")
DATA_FORMATS = ("parquet", "imagefolder")
DEFAULT_CHI = {"constant": 0.1, "worm": 0.003}

# Fields that say where and how a run is shown and stored, not what it computes.
_NOT_SETTINGS = frozenset({"output", "overwrite", "track", "force_draw"})


def suggest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, and all of them."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(valid)}"


@dataclass(frozen=True)
class RunConfig:
    """Find a ticket, compact the network, retrain it."""

    # Every field is an option of the command, its docstring the option's help; impossible values raise ConfigError.

    method: Literal["early-bird", "constant", "greedy", "worm"] = "worm"
    """How the gradients of static units are truncated while searching (early-bird: not at all)."""
    model: str = "resnet18"
    """vgg11_bn, vgg16_bn, resnet18, resnet20, or an image classifier of transformers: a directory or a Hub name."""
    width: float = 0.25
    """Width multiplier of the reference networks, in (0, 4]."""
    data: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, mnist, another Hub name, parquet:DIR or imagefolder:DIR."""
    limit: int | None = None
    """Train on no more than this many images (a subset that is the same for every seed)."""
    weights: str | None = None
    """Initial weights: a safetensors file, or the directory of an earlier run."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    epochs: int = 30
    """Epochs in all, search and retraining together."""
    search_epochs: int = 20
    """The most epochs that the search may take."""
    retrain_epochs: int | None = None
    """Epochs of retraining; None: those that the search has left of --epochs."""
    retrain_from: Literal["emergence", "rewind", "reinitialise"] = "emergence"
    """Retrain from the weights at emergence, from the initial weights, or from new random ones."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer."""
    lr: float = 0.01
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay."""
    schedule: Literal["constant", "step", "cosine"] = "step"
    """Learning rate over all epochs; step: a tenth in the last seventh."""
    batch_size: int = 32
    """Images per optimizer step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches into which the batch of one step is divided."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 trains under autocast with channels_last."""
    augment: Literal["none", "flip", "crop", "crop-flip"] = "none"
    """Random augmentation of training images, on the device."""
    ratio: float = 0.5
    """Pruning ratio: the fraction of units that is removed, in [0, 1)."""
    min_units: int = 1
    """How many units of every layer a mask must keep."""
    window: int = 5
    """How many of the latest masks are compared, at least 2."""
    epsilon: float = 0.1
    """The largest mask distance inside the window at which the ticket counts as emerged, in [0, 1]."""
    trigger: float = 0.15
    """The mean mask distance below which worm starts to truncate, in [0, 1]."""
    chi: float | None = None
    """What gradients of static units are multiplied by, in [0, 1]; None: 0.003 for worm, 0.1 for constant."""
    static: Literal["latest", "window"] = "latest"
    """Static units: those that the newest mask removes, or those that every mask of the window removes."""
    coupling: Literal["coupled", "independent"] = "coupled"
    """Coupled channels as one unit, or every batch norm for itself as in the papers."""
    score: Literal["auto", "batch-norm", "filter-l1", "filter-l2"] = "auto"
    """What makes a channel important; auto: batch-norm where there is batch norm, else filter-l2."""
    sparsity_penalty: float = 0.0
    """Network slimming: penalty * sign(scale) is added to the gradient of the batch-norm scales."""
    check_every: float = 1.0
    """Epochs between two masks; fractions are allowed."""
    round_to: int = 1
    """Keep the best removed units until every width is a multiple of this."""
    force_draw: bool = False
    """Draw the newest mask even if no ticket has emerged."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    track: tuple[str, ...] = ()
    """Trackers of accelerate that log the history, such as tensorboard."""
    output: str = "runs"
    """The folder in which the run's directory is made."""
    overwrite: bool = False
    """Start afresh where the same run exists."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint))
        finite = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), float)}
        for name, value in finite.items():
            _require(math.isfinite(value), name, value, "a finite number")
        _require(0 < self.width <= 4, "width", self.width, "in (0, 4]")
        _require(0 <= self.ratio < 1, "ratio", self.ratio, "in [0, 1); it is the fraction of units removed")
        _require(self.window >= 2, "window", self.window, "at least 2, to have masks to compare")
        _require(0 <= self.epsilon <= 1, "epsilon", self.epsilon, "in [0, 1]")
        _require(0 <= self.trigger <= 1, "trigger", self.trigger, "in [0, 1]")
        _require(self.chi is None or 0 <= self.chi <= 1, "chi", self.chi, "in [0, 1]")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.lr > 0, "lr", self.lr, "above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.sparsity_penalty >= 0, "sparsity_penalty", self.sparsity_penalty, "0 or more")
        _require(self.check_every > 0, "check_every", self.check_every, "above 0 (epochs)")
        _require(self.limit is None or self.limit > 0, "limit", self.limit, "above 0")
        for name in ("batch_size", "accumulation", "round_to", "min_units", "search_epochs", "epochs"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2**31)")
        _require(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            self.accumulation,
            f"a divisor of batch_size ({self.batch_size})",
        )
        _require(
            self.retrain_epochs is None or self.retrain_epochs >= 0, "retrain_epochs", self.retrain_epochs, "0 or more"
        )
        _require(
            self.retrain_epochs is not None or self.search_epochs < self.epochs,
            "search_epochs",
            self.search_epochs,
            f"below epochs ({self.epochs}), so that epochs are left to retrain: give --search-epochs too",
        )
        _check_model_name(self.model)
        _check_data_name(self.data)

    @property
    def effective_chi(self) -> float | None:
        """The chi in force: the given one, or the method's own default."""
        return DEFAULT_CHI.get(self.method) if self.chi is None else self.chi

    def settings(self) -> dict[str, Any]:
        """The fields that determine what is computed; two runs with equal settings are the same run."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_SETTINGS}

    def command(self) -> str:
        """The command line of this run: every option that differs from its default."""
        words = ["earlyworm", "run"]
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value == option.default:
                continue
            name = option.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else (str(value),))]
        return shlex.join(words)

    def directory_name(self) -> str:
        """A readable name that ends with a hash of the settings."""
        digest = hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:8]
        model, data = (Path(name.rstrip("/")).name.replace(":", "-")[:64] for name in (self.model, self.data))
        return f"{model}-{data}-{self.method}-s{self.seed}-{digest}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict` after a trip through JSON; unknown fields are an error."""
        names = [f.name for f in dataclasses.fields(cls)]
        _require(isinstance(values, dict), "the configuration", values, "a JSON object of options")
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown option {name!r}: {suggest(name, names)}")
        return cls(**{**values, "track": tuple(values.get("track", ()))})


def _typed(name: str, value: Any, hint: Any) -> Any:
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
    _require(type(value) in kinds, name, repr(value), f"of type {wanted}")
    return value


def _require(condition: bool, name: str, value: object, cure: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value}, but must be {cure}")


def _check_model_name(model: str) -> None:
    if model not in MODELS and "/" not in model and not os.path.isdir(model):
        raise ConfigError(
            f"unknown model {model!r}: {suggest(model, MODELS)}, or name a directory or Hub model (owner/name)"
        )


def _check_data_name(data: str) -> None:
    scheme, colon, rest = data.partition(":")
    if colon and (scheme not in DATA_FORMATS or not rest):
        raise ConfigError(f"unknown data {data!r}: {suggest(scheme, [f'{f}:DIR' for f in DATA_FORMATS])}")
    if not colon and data not in DATA_NAMES and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data):
        valid = [*DATA_NAMES, *(f"{f}:DIR" for f in DATA_FORMATS)]
        raise ConfigError(f"unknown data {data!r}: {suggest(data, valid)}, or a Hub name (owner/name)")
