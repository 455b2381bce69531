"""The network at the start of a run, and the one that it has ended with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from earlyworm.errors import RunError, TicketError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.models import build_model, load_weights, replace_classifier
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.compaction import compact
from earlyworm.tickets.ticket import Ticket


def build_network(
    config: RunConfig, *, classes: int, shape: Sequence[int], seed: int | None = None
) -> tuple[nn.Module, list[str]]:
    """The network at the start of a run: built from the seed, then given the initial weights of `config.weights`.

    Args:
        config: Settings of the run.
        classes: Number of classes of the data.
        shape: Of an example of the data; of an image, channels come first.
        seed: If given, the weights are random from this seed, whatever `config` says of them.

    Returns:
        The network on the CPU, and notes about what was replaced.

    Raises:
        EarlywormError: If it cannot be built or the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if seed is None else seed)
        if config.weights is not None and Path(config.weights).is_dir():
            return _continue_network(RunDirectory(Path(config.weights)), config, classes, shape, seed)
        model, notes = build_model(
            config.model,
            classes=classes,
            channels=shape[0],
            width=config.width,
            task=config.task,
            pretrained=seed is None,
        )
    if config.weights is not None and seed is None:
        notes = [*notes, *load_weights(model, config.weights)]
    return model, notes


def digest_weights(config: RunConfig) -> str:
    """A short hexadecimal digest of the files whose weights a run starts with.

    Empty if there are none: its weights are random, or come from the Hub.
    """
    path = Path(config.model if config.weights is None else config.weights)
    if not path.is_dir():
        files = [] if config.weights is None else [path]
    else:
        files = sorted(path.glob("*.safetensors")) if config.weights is None else [RunDirectory(path).model]
    found = hashlib.blake2b(digest_size=8)
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest() if files else ""


def load_network(path: str | Path, *, seed: int | None = None) -> nn.Module:
    """The compacted network of a finished run, rebuilt from its files; nothing is unpickled.

    Args:
        path: The run's directory.
        seed: If given, random weights from this seed instead of the trained ones.

    Returns:
        The network, on the CPU, in train mode.

    Raises:
        EarlywormError: If the directory holds no finished run with a ticket, or a file is damaged.
    """
    directory = RunDirectory(Path(path))
    config, result = directory.read_config(), directory.read_result()
    if result.ticket is None:
        raise RunError(f"{directory.path} drew no ticket, so it holds no network: choose another run")
    # Random weights are enough for those that are read next; the run may have started from a file that is gone.
    start = config.seed if seed is None else seed
    if (earlier := _earlier(config, directory.path.parent)) is not None:
        config = replace(config, weights=str(earlier))
    elif directory.network.is_dir():
        config = replace(config, model=str(directory.network))
    dense, _ = build_network(config, classes=result.data.classes, shape=result.data.shape, seed=start)
    ticket = Ticket.load(directory.ticket)
    try:
        model = compact(dense, ticket)
    except TicketError as error:
        if config.weights is None or Path(config.weights).exists():
            raise
        raise RunError(
            f"{directory.path} began with {config.weights}, which is gone: put it back, or beside {directory.path}"
        ) from error
    if seed is None:
        directory.check_network()
        load_weights(model, directory.model)
    return model


def _earlier(config: RunConfig, beside: Path) -> Path | None:
    """The earlier run that a run began with: where it was then, or beside it."""
    if config.weights is None:
        return None
    places = (Path(config.weights), beside / Path(config.weights).name)
    return next((path for path in places if path.is_dir()), None)


def _continue_network(
    earlier: RunDirectory, config: RunConfig, classes: int, shape: Sequence[int], seed: int | None
) -> tuple[nn.Module, list[str]]:
    """The network that an earlier run ended with, with a new classifier where the classes differ."""
    before, data = earlier.read_config(), earlier.read_result().data
    for name in ("task", "model", "width"):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise RunError(f"{earlier.path} holds a network of {name} {old}, but --{name} is {new}: make them agree")
    if config.task == "images" and data.shape[0] != shape[0]:
        raise RunError(f"{earlier.path} was trained on images of {data.shape[0]} channels, these have {shape[0]}")
    model = load_network(earlier.path, seed=seed)
    return model, [] if data.classes == classes else [replace_classifier(model, classes)]
