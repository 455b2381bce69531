"""What a model costs: parameters, multiply-accumulates, FLOPs of a training step, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap as unwrap_function
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop, sdpa_flop

from earlyworm.errors import UnitsError
from earlyworm.inputs import (
    ExampleInputs,
    batch_size,
    call_model,
    check_loaded,
    copy_inputs,
    device_of,
    floating_tensors,
    private_randomness,
    synchronize,
    unwrap,
)


@dataclass(frozen=True)
class Cost:
    """What one model costs on one example.

    Attributes:
        parameters: Number of parameters, tied ones counted once.
        macs: Multiply-accumulates of one forward pass, per example.
        train_flops: FLOPs of the forward and backward pass of one training step, per example; a multiply-add is two.
        latency_seconds: Median time of one forward pass over all the example inputs.
    """

    parameters: int
    macs: int
    train_flops: int
    latency_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.macs:,} MACs, {self.train_flops:,} training FLOPs per example, "
            f"{1000 * self.latency_seconds:.3g} ms"
        )


def cost(model: nn.Module, example_inputs: ExampleInputs, *, repeats: int = 20) -> Cost:
    """Measure `model` on `example_inputs`; it is left as it is.

    Args:
        model: Any module.
        example_inputs: What its forward takes, on its device; the first dimension of the first tensor is the batch.
        repeats: Forward passes that are timed, after a fifth as many (at least 3) to warm up.

    Returns:
        The cost. Convolutions, matrix products and attention are counted, elementwise work and look-ups in embeddings
        are not, as PyTorch's `FlopCounterMode` counts.

    Raises:
        UnitsError: If the model returns no floating-point tensor, or its weights are not there.
    """
    check_loaded(unwrap(model))
    forward, training = count_flops(model, example_inputs)
    examples = batch_size(example_inputs)
    return Cost(
        parameters=sum(parameter.numel() for parameter in unwrap(model).parameters()),
        macs=forward // 2 // examples,
        train_flops=training // examples,
        latency_seconds=latency(model, example_inputs, repeats=repeats),
    )


def count_flops(model: nn.Module, example_inputs: ExampleInputs) -> tuple[int, int]:
    """FLOPs of one forward pass, and of one forward and backward pass, over all the example inputs.

    The passes run in eval mode, so that running statistics stay as they are, and gradients are not accumulated.

    Raises:
        UnitsError: If the model returns no floating-point tensor.
    """
    model = unwrap(model)
    inputs = copy_inputs(example_inputs)
    # Two counters: at its end the first one takes the hooks away that some graphs could not be differentiated with.
    there, back = (FlopCounterMode(display=False, custom_mapping=_FORMULAS) for _ in range(2))
    with (
        torch.inference_mode(False), torch.enable_grad(),
        private_randomness(model), _left_as_it_is(model), _no_fast_path(),
    ):  # fmt: skip
        with there:
            outputs = list(floating_tensors(call_model(model.eval(), inputs)))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not outputs:
            raise UnitsError(f"{type(model).__name__} returns no floating-point tensor to count a backward pass of")
        differentiable = [output.sum() for output in outputs if output.requires_grad]
        if trainable and differentiable:
            with back:
                torch.autograd.grad(torch.stack(differentiable).sum(), trainable, allow_unused=True)
        return there.get_total_flops(), there.get_total_flops() + back.get_total_flops()


@contextmanager
def _left_as_it_is(*models: nn.Module) -> Iterator[None]:
    """Afterwards models are in the mode that they were in, and have the buffers that they had."""
    modules = [module for model in models for module in model.modules()]
    modes = [module.training for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    with torch.no_grad():
        values = [(buffer, buffer.clone()) for own in buffers for buffer in own.values() if buffer is not None]
    try:
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for module, mode, own in zip(modules, modes, buffers, strict=True):
                module.training = mode
                module._buffers.update(own)
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Inside of it, layers of transformers call what the counter counts, not one fused operation that it cannot see."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _conv_backward_flops(
    gradient: list[int], inputs: list[int], weight: list[int], *arguments: Any, out_shape: object = None
) -> int:
    """FLOPs of a convolution's backward pass, from the shapes of its arguments.

    Each of the two gradients takes as many products as the forward pass. PyTorch's own formula multiplies the weight's
    by the number of groups.
    """
    transposed, output_mask = arguments[4], arguments[7]
    return int(output_mask[0] + output_mask[1]) * conv_flop_count(inputs, weight, gradient, transposed)


def _lstm_flops(
    inputs: list[int], input_weight: list[int], state_weight: list[int], *_: Any, out_shape: object = None
) -> int:
    """FLOPs of one direction of one layer of an LSTM on a CPU, from the shapes of its arguments.

    Args:
        inputs: [steps, batch, features].
        input_weight: [4 times the state's size, features].
        state_weight: [4 times the state's size, the state's size].
        out_shape: Of what it returns.
    """
    return 2 * math.prod(inputs[:-1]) * (math.prod(input_weight) + math.prod(state_weight))


def _lstm_backward_flops(*arguments: Any, out_shape: object = None) -> int:
    """FLOPs of its backward pass: two gradients, each of which takes as many products."""
    return 2 * _lstm_flops(*arguments)


def _matrix_vector_flops(matrix: list[int], *_: Any, out_shape: object = None) -> int:
    """FLOPs of a matrix times a vector."""
    return 2 * math.prod(matrix)


def _addmv_flops(added: list[int], matrix: list[int], *_: Any, out_shape: object = None) -> int:
    """FLOPs of a matrix times a vector, added to another."""
    return _matrix_vector_flops(matrix)


def _addbmm_flops(added: list[int], first: list[int], second: list[int], *_: Any, out_shape: object = None) -> int:
    """FLOPs of products of matrices, [b, n, m] times [b, m, p], that are summed up."""
    return 2 * math.prod(first) * second[-1]


def _trilinear_flops(
    first: list[int], second: list[int], third: list[int], *arguments: Any, out_shape: object = None
) -> int:
    """FLOPs of a product of three tensors, as of `nn.Bilinear`: where each gets dimensions of 1 is in the arguments."""
    sizes = []
    for shape, places in zip((first, second, third), arguments, strict=False):
        size = list(shape)
        for place in places:
            size.insert(place, 1)
        sizes.append(size)
    return int(2 * math.prod(map(max, *sizes)))


# What PyTorch counts wrongly, or knows no formula for: attention on a CPU, which takes as much as elsewhere. Its own
# formulas are unwrapped, since the counter wraps whatever it is given.
_FORMULAS = {
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: _lstm_backward_flops,
    torch.ops.aten.mv: _matrix_vector_flops,
    torch.ops.aten.addmv: _addmv_flops,
    torch.ops.aten.addbmm: _addbmm_flops,
    torch.ops.aten._trilinear: _trilinear_flops,
    torch.ops.aten.convolution_backward: _conv_backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: unwrap_function(sdpa_flop),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: unwrap_function(sdpa_backward_flop),
}


def latency(model: nn.Module, example_inputs: ExampleInputs, *, repeats: int = 20) -> float:
    """Median seconds of one forward pass in eval mode, after warming up; of a compiled model, compiled."""
    return latencies([model], example_inputs, repeats=repeats)[0]


@torch.inference_mode(False)  # a tensor that a forward keeps must be fit for training afterwards
@torch.no_grad()
def latencies(models: Sequence[nn.Module], example_inputs: ExampleInputs, *, repeats: int = 20) -> list[float]:
    """The `latency` of several models, which take turns, so that whatever else the machine does slows all alike."""
    inputs = copy_inputs(example_inputs)
    seconds: list[list[float]] = [[] for _ in models]
    warm_up = max(3, repeats // 5)
    with _left_as_it_is(*models):
        for model in models:
            model.eval()
        for _ in range(warm_up + repeats):
            for model, own in zip(models, seconds, strict=True):
                own.append(_forward_seconds(model, inputs))
    return [statistics.median(own[warm_up:]) for own in seconds]


def _forward_seconds(model: nn.Module, inputs: ExampleInputs) -> float:
    device = device_of(model)
    with private_randomness(model):
        synchronize(device)
        start = time.perf_counter()
        call_model(model, inputs)
        synchronize(device)
        return time.perf_counter() - start
