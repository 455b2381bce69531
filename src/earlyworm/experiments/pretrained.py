"""Classifiers and tokenizers of transformers: from a directory, the local cache, or the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from earlyworm.errors import DataError, RunError, first_line
from earlyworm.experiments.hub import hub_errors
from earlyworm.experiments.names import Task

_KINDS = {"images": "an image classifier", "text": "a text model"}


def load_classifier(
    name: str, task: Task, *, classes: int, channels: int, pretrained: bool
) -> tuple[nn.Module, dict[str, torch.Size] | None]:
    """Load a classifier, or put a new one on a pretrained network, in float32 on the CPU.

    Random weights come from PyTorch's global generator.

    Args:
        name: A directory, or a name on the Hub, which is asked only for what is not in the local cache.
        task: What it classifies.
        classes: Number of classes.
        channels: Channels of an image; ignored for text.
        pretrained: Whether to take the weights that it comes with.

    Returns:
        The network, and the shapes of the tensors that were stored for it; None if no weights were taken.

    Raises:
        DataError: If it expects another number of image channels.
        RunError: If it cannot be loaded.
    """

    def load(local_only: bool) -> tuple[nn.Module, dict[str, torch.Size] | None]:
        return _load(name, task, classes, channels, pretrained=pretrained, local_only=local_only)

    cure = f"give {_KINDS[task]} of transformers, with a config.json and weights as safetensors"
    found: tuple[nn.Module, dict[str, torch.Size] | None] = _from_anywhere(name, f"model {name!r}", cure, load)
    return found


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer that belongs to a text model.

    Raises:
        RunError: If there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    def load(local_only: bool) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_only, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # where there are no files, it is made without words
            raise OSError("it has no vocabulary")
        if tokenizer.pad_token_id is None:
            raise ValueError("it has no padding token")
        return tokenizer

    cure = "give a text model of transformers that has its tokenizer beside it"
    return _from_anywhere(name, f"the tokenizer of {name!r}", cure, load)


def _from_anywhere(name: str, what: str, cure: str, load: Callable[[bool], Any]) -> Any:
    """What `load` makes of local files alone (True), or else of the Hub's (False); what goes wrong, in one line."""
    try:
        try:
            return load(True)
        except OSError:
            if Path(name).is_dir():
                raise
        _ask_hub(name)
        return load(False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise RunError(f"{what} cannot be loaded ({first_line(error)}): {cure}") from error


def _ask_hub(name: str) -> None:
    """One request that fails within seconds, where transformers would try again and again."""
    from huggingface_hub import HfApi

    try:
        with hub_errors():
            HfApi().model_info(name, timeout=10)  # seconds
    except OSError as error:
        cure = "check name and network, or give a local directory"
        raise RunError(f"model {name!r} cannot be had from the Hub ({first_line(error)}): {cure}") from error


def _load(
    name: str, task: Task, classes: int, channels: int, *, pretrained: bool, local_only: bool
) -> tuple[nn.Module, dict[str, torch.Size] | None]:
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    kind = AutoModelForImageClassification if task == "images" else AutoModelForSequenceClassification
    # Neither code from a repository nor a pickle is ever run.
    options: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
    with _quiet():
        config = AutoConfig.from_pretrained(name, num_labels=classes, **options)
        if task == "images":
            _check_channels(name, getattr(config, "num_channels", channels), channels)
        if Path(name).is_dir() and not any(f for p in ("*.safetensors", "*.bin") for f in Path(name).glob(p)):
            pretrained = False
        if not pretrained:
            return kind.from_config(config, dtype=torch.float32), None
        model, info = kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    stored = {key: tensor.shape for key, tensor in model.state_dict().items()}
    stored |= {key: torch.Size(shape) for key, shape, _ in info["mismatched_keys"]}
    for key in info["missing_keys"]:
        del stored[key]
    return model, stored


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of replaced tensors, which says in ten lines what a note says in one."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_channels(name: str, expected: int, channels: int) -> None:
    if expected != channels:
        kinds = {1: "greyscale", 3: "RGB"}
        data, model = (f"{kinds.get(c, 'multi-channel')} ({c})" for c in (channels, expected))
        raise DataError(f"{data} data for {name!r}, a model for {model} images: convert the data, or change the model")
