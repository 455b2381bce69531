"""What a run is asked to do: `RunConfig`, whose fields are the options of the command.

Nothing heavy is imported here, so that the command can answer a wrong option at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from earlyworm.errors import ConfigError
from earlyworm.experiments.checks import check_method, check_ranges, check_task, check_units, require, typed
from earlyworm.experiments.names import SEARCHES, Method, Task, UnitKind, check_data_name, suggest
from earlyworm.search.emergence import Emergence

DEFAULT_CHI = {
    "images": {"constant": 0.1, "worm": 0.003, "fade": 0.0},
    "text": {"constant": 0.1, "worm": 0.01, "fade": 0.0},
}
DEFAULT_TRIGGER = {"worm": 0.15, "fade": 0.3}
DEFAULT_CHECK_EVERY = {"fade": 0.25}

# A pretrained encoder is fine-tuned. Magnitudes of heads and neurons hardly change meanwhile, so that their masks would
# tell nothing; how much the loss depends on them does.
TEXT_DEFAULTS: dict[str, Any] = {
    "task": "text", "model": "google-bert/bert-base-uncased", "data": "glue/sst2", "epochs": 4, "search_epochs": 3,
    "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01, "schedule": "linear", "warmup": 0.1, "max_grad_norm": 1.0,
    "units": ("heads", "neurons"), "score": "taylor", "window": 3, "epsilon": 0.1, "greedy_first": True,
    "check_every": 0.25,
}  # fmt: skip
# Single weights: WORM's recipe for transformers (arXiv 2406.11872).
WEIGHTS_DEFAULTS: dict[str, Any] = {"method": "worm", "score": "auto", "epsilon": 0.01, "trigger": 0.015}

# Fields that say where and how a run is shown and stored, not what it computes.
_NOT_SETTINGS = frozenset({"output", "overwrite", "track", "force_draw", "evaluate_every"})


@dataclass(frozen=True)
class RunConfig:
    """Find a ticket, compact the network, retrain it."""

    # Every field is an option of the command, its docstring the option's help; impossible values raise ConfigError.
    # The defaults are those for images; `for_text` has those for text.

    task: Task = "images"
    """What the data are; the command sees it from their columns."""

    method: Method = "fade"
    """A search, by how it truncates the gradients of static units, or a baseline that draws its ticket otherwise; for
    weights of text worm."""
    model: str = "resnet18"
    """vgg11_bn, vgg16_bn, resnet18, resnet20, or an image or text classifier of transformers: directory or Hub name."""
    width: float = 0.25
    """Width multiplier of the reference networks, in (0, 4]."""
    data: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, mnist, other Hub names, parquet:DIR, imagefolder:DIR or csv:FILE."""
    text_columns: tuple[str, ...] = ()
    """The column of the texts, or the two columns of pairs; none: found by name."""
    label_column: str | None = None
    """The column of the labels; None: found by name."""
    max_length: int = 128
    """Tokens after which a text is cut off."""
    classes: tuple[int, ...] = ()
    """Only examples of these classes, which are numbered anew in this order; none: all."""
    limit: int | None = None
    """Train on no more than this many examples (a subset that is the same for every seed)."""
    validation: int | None = None
    """Hold back this many training examples, and evaluate on them in place of the held-out ones: for tuning."""
    weights: str | None = None
    """Initial weights: a safetensors file, or the directory of an earlier run."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    epochs: int = 30
    """Epochs in all, search and retraining together; for text 4."""
    search_epochs: int = 20
    """The most epochs that the search may take; for text 3."""
    retrain_epochs: int | None = None
    """Epochs of retraining; None: those that the search has left of --epochs."""
    match: Literal["epochs", "flops"] = "epochs"
    """Retrain until all epochs are over, or until dense training's FLOPs of as many epochs are spent."""
    draw_epoch: float | None = None
    """When random, late and rst draw their ticket; None: random at once, the others after the search epochs."""
    macs: int | None = None
    """MACs per example that narrow comes down to; None: those that the pruning ratio leaves of every layer."""
    rounds: int = 3
    """Rounds of imp: each trains, removes weights, and rewinds; the epochs are divided evenly over them and the end."""
    rewind_epoch: float = 0.0
    """The epoch of the first round to whose weights imp rewinds."""
    extrusion: float = 1.0
    """What the penalty of rst on the squared weights of removed units grows to, from 0."""
    retrain_from: Literal["emergence", "rewind", "reinitialise"] = "emergence"
    """Retrain from the weights at emergence, from the initial weights, or from new random ones."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer; for text adamw."""
    lr: float = 0.01
    """Peak learning rate; for text 5e-5."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay; for text 0.01, without biases and norms."""
    max_grad_norm: float | None = None
    """The norm to which gradients are clipped; None: not at all; for text 1."""
    schedule: Literal["constant", "step", "cosine", "linear"] = "step"
    """Learning rate over all epochs; step: a tenth in the last seventh; for text linear."""
    warmup: float = 0.0
    """The fraction of all epochs over which the learning rate rises, in [0, 1); for text 0.1."""
    batch_size: int = 32
    """Examples per optimizer step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches into which the batch of one step is divided."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 trains under autocast with channels_last."""
    augment: Literal["none", "flip", "crop", "crop-flip"] = "none"
    """Random augmentation of training images, on the device."""
    units: tuple[UnitKind, ...] = ("channels",)
    """channels; of transformers heads, neurons or both (so for text); or weights, held at zero and not removed."""
    ratio: float = 0.5
    """Pruning ratio: the fraction of units that is removed, in [0, 1)."""
    ratios: tuple[float, ...] = ()
    """Several pruning ratios to search for at once; the one whose retraining begins fastest is trained to the end."""
    probe_epochs: int = 2
    """Epochs of retraining after which ratios are ranked by the sum of their training losses."""
    head_ratio: float | None = None
    """Pruning ratio of heads, where it is not that of the other units."""
    min_units: float | None = None
    """How many units of every layer a mask must keep: a number, or a fraction of the layer, in (0, 1); None: a fifth of
    the share that stays of all, mostly a twentieth at least, and of weights 1; in the papers 1."""
    window: int = 5
    """How many of the latest masks are compared, at least 2; for text 3."""
    span: float | None = None
    """Epochs from the oldest to the newest mask that is compared, in place of --window; so it means the same at any
    --check-every."""
    epsilon: float = 0.1
    """The largest mask distance in the window at which the ticket has emerged, in [0, 1]; for weights of text 0.01."""
    trigger: float | None = None
    """The mean mask distance below which worm and fade start, in [0, 1], of fade that to the latest quarter of the
    window, once it no longer grows; None: worm 0.15, for weights of text 0.015; fade 0.3."""
    chi: float | None = None
    """What gradients of static units are multiplied by, in [0, 1]; None: worm 0.003, for text 0.01;
    constant 0.1; fade 0."""
    half_life: float | None = None
    """Epochs in which fade shrinks static units to a half; None: a twelfth of what the window spans."""
    greedy_first: bool = False
    """Before worm is triggered, multiply by the mean mask distance; so for text."""
    static: Literal["latest", "window"] = "latest"
    """Static units: those that the newest mask removes, or those that every mask of the window removes."""
    shrink: bool = False
    """Remove units from the network while the search goes on, once they were static for a whole window."""
    coupling: Literal["coupled", "independent"] = "coupled"
    """Coupled channels as one unit, or every batch norm for itself as in the papers."""
    score: Literal["auto", "batch-norm", "filter-l1", "filter-l2", "magnitude", "taylor"] = "auto"
    """What makes a unit important; auto: batch-norm or else filter-l2, of transformers magnitude; for text taylor."""
    sparsity_penalty: float = 0.0
    """Network slimming: penalty * sign(scale) is added to the gradient of the batch-norm scales."""
    check_every: float | None = None
    """Epochs between two masks; fractions are allowed; None: 1, of fade 0.25; for text 0.25."""
    evaluate_every: int = 1
    """Epochs between two evaluations; there always is one where a ticket is drawn, after each of the first three epochs
    that follow, and at the end."""
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
        for name, hint in HINTS.items():
            object.__setattr__(self, name, typed(name, getattr(self, name), hint))
        check_ranges(self)
        check_units(self)
        check_method(self)
        check_data_name(self.data)
        check_task(self)

    @classmethod
    def for_text(cls, **changes: Any) -> Self:
        """Settings with the defaults for text and for the units in question, but for `changes`."""
        weights = WEIGHTS_DEFAULTS if "weights" in changes.get("units", ()) else {}
        return cls(**{**TEXT_DEFAULTS, **weights, **changes})

    def defaults(self) -> Self:
        """The defaults for data and units of the same kind."""
        return type(self).for_text(units=self.units) if self.task == "text" else type(self)()

    @property
    def effective_chi(self) -> float | None:
        """The chi in force: the given one, or the method's own default."""
        return DEFAULT_CHI[self.task].get(self.method) if self.chi is None else self.chi

    @property
    def emergence(self) -> Emergence:
        """When the ticket of a search counts as emerged."""
        if self.span is None:
            return Emergence(self.window, self.epsilon)
        return Emergence.spanning(self.span, check_every=self.effective_check_every, epsilon=self.epsilon)

    @property
    def effective_check_every(self) -> float:
        """The epochs between two masks: the given ones, or the method's own default."""
        return DEFAULT_CHECK_EVERY.get(self.method, 1.0) if self.check_every is None else self.check_every

    @property
    def effective_trigger(self) -> float | None:
        """The trigger in force: the given one, or the method's own default; None: the method has none."""
        usual = DEFAULT_TRIGGER.get(self.method)
        return usual if usual is None or self.trigger is None else self.trigger

    @property
    def drawn_at(self) -> float | None:
        """The epoch at which the method draws its ticket; None: when a search says so, or after rounds of imp."""
        if self.method in SEARCHES or self.method == "imp":
            return None
        if self.method in ("dense", "narrow"):
            return 0.0
        if self.draw_epoch is not None:
            return self.draw_epoch
        return 0.0 if self.method == "random" else float(self.search_epochs)

    @property
    def pruning_ratio(self) -> float | dict[str, float]:
        """The pruning ratio, or one for every kind of units where heads have their own."""
        if self.head_ratio is None:
            return self.ratio
        return {kind: self.head_ratio if kind == "heads" else self.ratio for kind in self.units}

    def settings(self) -> dict[str, Any]:
        """The fields that determine what is computed; two runs with equal settings are the same run."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_SETTINGS}

    def command(self) -> str:
        """The command line of this run: every option that differs from its default, but for `overwrite`.

        That is done once; with it, going on would be starting afresh.
        """
        words = ["earlyworm", "run"]
        # Data and units of text tell what the other defaults are.
        telling = {"data": None, "units": TEXT_DEFAULTS["units"]} if self.task == "text" else {}
        usual = {**dataclasses.asdict(self.defaults()), **telling}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value != usual[option.name] and option.name != "overwrite":
                words += option_words(option.name, value)
        return shlex.join(words)

    def directory_name(self) -> str:
        """A readable name that ends with a hash of the settings."""
        # Without what has its default, so that an option more in a later version leaves the names of older runs.
        usual = dataclasses.asdict(type(self)())
        changed = {name: value for name, value in self.settings().items() if value != usual[name]}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        model, data = (Path(name.rstrip("/")).name.replace(":", "-")[:64] for name in (self.model, self.data))
        return f"{model}-{data}-{self.method}-s{self.seed}-{digest}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict` after a trip through JSON; unknown fields are an error."""
        names = [f.name for f in dataclasses.fields(cls)]
        require(isinstance(values, dict), "the configuration", values, "a JSON object of options")
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown option {name!r}: {suggest(name, names)}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**settings)


def option_words(name: str, value: Any) -> list[str]:
    """The words of the command line that give an option this value."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *(map(str, value) if isinstance(value, (list, tuple)) else (str(value),))]


HINTS = get_type_hints(RunConfig)
