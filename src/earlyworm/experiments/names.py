"""Names of models and data that the command knows, and what they alone tell.

Nothing heavy is imported here, so that the command can answer a wrong name at once.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from typing import Literal

from earlyworm.errors import ConfigError

Task = Literal["images", "text"]

TRUNCATING = ("constant", "greedy", "worm", "fade")
SEARCHES = ("early-bird", *TRUNCATING)
Method = Literal["early-bird", "constant", "greedy", "worm", "fade", "dense", "narrow", "random", "late", "imp", "rst"]
UnitKind = Literal["channels", "heads", "neurons", "weights"]

MODELS = ("vgg11_bn", "vgg16_bn", "resnet18", "resnet20")
DATA_NAMES = ("digits", "cifar10", "cifar100", "fashion_mnist", "mnist")
DATA_FORMATS = {"parquet": "DIR", "imagefolder": "DIR", "csv": "FILE"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def suggest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the nearest valid name, and all of them."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(valid)}"


def task_by_name(model: str | None, data: str) -> Task | None:
    """What the data are, as far as the names of the model and the data tell; None: look at the data."""
    if model in MODELS or data in DATA_NAMES or data.startswith("imagefolder:"):
        return "images"
    return "text" if data.startswith(("csv:", "glue/")) else None


def check_model_name(model: str) -> None:
    """Make sure that there can be a model of this name.

    Raises:
        ConfigError: If there cannot.
    """
    if model not in MODELS and "/" not in model and not os.path.isdir(model):
        raise ConfigError(
            f"unknown model {model!r}: {suggest(model, MODELS)}, or name a directory or Hub model (owner/name)"
        )


def check_data_name(data: str) -> None:
    """Make sure that there can be data of this name.

    Raises:
        ConfigError: If there cannot.
    """
    scheme, colon, rest = data.partition(":")
    formats = [f"{name}:{place}" for name, place in DATA_FORMATS.items()]
    if colon and (scheme not in DATA_FORMATS or not rest):
        raise ConfigError(f"unknown data {data!r}: {suggest(scheme, formats)}")
    if not colon and data not in DATA_NAMES and not HUB_NAME.fullmatch(data):
        raise ConfigError(
            f"unknown data {data!r}: {suggest(data, [*DATA_NAMES, *formats])}, or a Hub name (owner/name)"
        )
