"""A model and its example inputs: how it is called on them, what it returns, and what it is wrapped in."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves, tree_map_only

from earlyworm.errors import UnitsError

# Relative to the largest output that differs. Rounding stays far below, a wrong cut is far above.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, positional arguments, or keyword arguments of a model's forward."""


def call_model(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Call `model` on a tensor, a sequence of positional arguments or a mapping of keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs)


def copy_inputs(example_inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs in tensors of their own.

    A forward may change its inputs in place, and tensors that were made in inference mode cannot be trained on.
    """
    if isinstance(example_inputs, Mapping):
        example_inputs = dict(example_inputs)  # what a tokenizer returns is a mapping, but no dict
    with torch.inference_mode(False):
        copied: ExampleInputs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), example_inputs)
    return copied


def fitting(example_inputs: ExampleInputs, model: nn.Module) -> ExampleInputs:
    """The same inputs where the model is, and floating-point ones in the dtype of its parameters, if these have one."""
    device, dtypes = device_of(model), {p.dtype for p in model.parameters() if p.is_floating_point()}

    def fit(tensor: Tensor) -> Tensor:
        alike = len(dtypes) == 1 and tensor.is_floating_point()
        return tensor.to(device, next(iter(dtypes)) if alike else tensor.dtype)

    fitted: ExampleInputs = tree_map_only(Tensor, fit, copy_inputs(example_inputs))
    return fitted


def few_examples(example_inputs: ExampleInputs, count: int, dtype: torch.dtype) -> ExampleInputs:
    """A copy of the first `count` of a batch, floating-point tensors in `dtype`, at a scale that tells networks apart.

    Inputs whose first dimensions differ are no plain batch: of them all is copied. On zeros, a common dummy, networks
    that compute different things may all return 0: they become noise in [0, 1). On large numbers, such as bytes of an
    image, random networks saturate: where all are finite, they come to be at most 4, as of standard normal noise.
    """
    generator = torch.Generator().manual_seed(0)
    copied = copy_inputs(example_inputs)
    sizes = {tensor.shape[:1] for tensor in tree_leaves(copied) if isinstance(tensor, Tensor)}

    def some(tensor: Tensor) -> Tensor:
        tensor = tensor[:count] if len(sizes) == 1 and tensor.dim() else tensor
        if not tensor.is_floating_point():
            return tensor
        if not tensor.any():
            return torch.rand(tensor.shape, generator=generator, dtype=dtype).to(tensor.device)
        largest = float(tensor.abs().amax())
        return tensor.to(dtype) * (4 / largest if 4 < largest < math.inf else 1.0)

    chosen: ExampleInputs = tree_map_only(Tensor, some, copied)
    return chosen


@torch.inference_mode(False)
@torch.no_grad()
def probe(model: nn.Module, example_inputs: ExampleInputs) -> list[Tensor]:
    """The floating-point tensors that a scratch model returns, fit to be compared with those of another one.

    Autocast is off, and each call draws the same random numbers; the caller's random state and inputs stay as they
    are.
    """
    with private_randomness(model), torch.autocast(device_of(model).type, enabled=False):
        return list(floating_tensors(call_model(model, copy_inputs(example_inputs))))


def agree(expected: Tensor, actual: Tensor) -> bool:
    """Whether two outputs have one shape and, but for rounding, one value; what is no number is so in both."""
    if expected.shape != actual.shape:
        return False
    differing = expected[(expected != actual) & ~(expected.isnan() & actual.isnan())].abs()
    if not differing.numel():
        return True
    # A constant that masks a logit is equal in both: however large it is, it says nothing of how large rounding is. Of
    # outputs that differ only where they are about 0, the others say it, up to 1.
    scale = max(float(differing.amax()), min(1.0, float(expected.abs().nan_to_num().amax())))
    tolerance = max(1e-30, _TOLERANCES.get(expected.dtype, 0.05) * scale)
    return torch.allclose(expected, actual, rtol=0, atol=tolerance, equal_nan=True)


@contextmanager
def private_randomness(model: nn.Module) -> Iterator[None]:
    """Inside of it, random numbers that `model` draws, of torch, numpy or Python, leave the caller's state as it is."""
    device = device_of(model)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """All floating-point tensors inside an output of nested tuples, lists, mappings and data classes, in order.

    Complex ones are real ones [..., 2].
    """
    if isinstance(output, Tensor):
        if output.is_complex():
            yield torch.view_as_real(output.resolve_conj())
        elif output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from floating_tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from floating_tensors(value)
    elif isinstance(output, SimpleNamespace):
        yield from floating_tensors(vars(output))
    elif is_dataclass(output) and not isinstance(output, type):
        yield from floating_tensors([getattr(output, field.name) for field in fields(output)])


def batch_size(example_inputs: ExampleInputs) -> int:
    """The size of the first dimension of the first tensor in `example_inputs`; 1 if there is none."""
    inputs = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    return next((leaf.shape[0] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def check_loaded(model: nn.Module) -> None:
    """Make sure that the weights of a model are there.

    Raises:
        UnitsError: If they are not; the message names the cure.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise UnitsError(f"{name} has no shape yet: run one forward pass first")
        if parameter.is_meta:
            raise UnitsError(f"{name} is on the meta device: load the weights first")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `DistributedDataParallel`, `DataParallel`, `torch.compile` and averaging wrappers.

    Raises:
        UnitsError: If it is no module.
    """
    if not isinstance(model, nn.Module):
        raise UnitsError(f"a {type(model).__name__} is no model: give a torch.nn.Module")
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def unwrap_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside wrappers such as accelerate's and Lightning's."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done its work, so that a clock can be read; nothing to do on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
