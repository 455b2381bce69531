"""Example inputs: how a model is called on them, and the tensors that it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, positional arguments, or keyword arguments of a model's forward."""


def call_model(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Call `model` on a tensor, a sequence of positional arguments or a mapping of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs)


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """All floating-point tensors inside nested tuples, lists and mappings (such as a model's output), in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from floating_tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from floating_tensors(value)


def batch_size(example_inputs: ExampleInputs) -> int:
    """The size of the first dimension of the first tensor in `example_inputs`; 1 if there is none."""
    if isinstance(example_inputs, Tensor):
        return example_inputs.shape[0] if example_inputs.dim() else 1
    values = example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs
    return next((value.shape[0] for value in values if isinstance(value, Tensor) and value.dim()), 1)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `DistributedDataParallel`, `DataParallel` and `torch.compile` wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done its work, so that a clock can be read; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
