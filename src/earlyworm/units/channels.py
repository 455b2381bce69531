"""Find the channels of a network that can be removed as one, and make sure that they can."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError
from earlyworm.inputs import (
    ExampleInputs,
    agree,
    call_model,
    copy_inputs,
    device_of,
    fitting,
    floating_tensors,
    private_randomness,
    probe,
    unwrap,
)
from earlyworm.units.groups import Slice, UnitGroup, Units, make_slice, named_tensors
from earlyworm.units.surgery import comparable_copies, copy_model, mask_units_, remove_units_
from earlyworm.units.tracing import trace_channels
from earlyworm.units.weights import check_weights

Coupling = Literal["coupled", "independent"]
T = TypeVar("T")

_TRIALS = 3
_MORE_TRIALS = 20  # at most, for groups of which no trial has told anything yet
_EFFECT = 1e-3  # of a group on the output, relative to the output: what is less may drown in rounding


def find_channels(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    coupling: Coupling = "coupled",
    time_limit: float = 120.0,
) -> Units:
    """Find the channels of `model`, coupled channels as one unit.

    The model is traced on `example_inputs` (a copy of it; the given model is not touched). Each group that was found
    is then tried: on copies with random weights, cutting units out must give what masking them gives, in eval mode and
    in train mode (there of whatever is not random), and the output must depend on them, or the group is left out. The
    classifier's outputs and the image's channels are never units.

    Args:
        model: Any module.
        example_inputs: What its forward takes: a tensor, a sequence of arguments, or a mapping of keyword arguments,
            on any device; a batch of one is enough.
        coupling: `"coupled"`: channels that meet in a sum, a concatenation, or a depthwise or grouped convolution
            are one unit. `"independent"`: every batch norm's channels are units for themselves, as in the papers; a
            channel can then be cut out only where all the batch norms that share it agree.
        time_limit: Seconds that tracing and trying may take.

    Returns:
        The units; `skipped` names the layers that are left out, and why.

    Raises:
        UnitsError: If there is nothing to prune, the weights are not there, sharded, quantised or adapted, the model
            cannot be traced, or tracing takes longer than the limit.
    """
    if coupling not in ("coupled", "independent"):
        raise UnitsError(f"coupling is {coupling!r}, but must be 'coupled' or 'independent'")
    model = unwrap(model)
    check_weights(model)
    if not any(True for _ in model.parameters()):
        raise UnitsError(f"{type(model).__name__} has no parameters: there is nothing to prune")

    inputs = fitting(example_inputs, model)

    def work() -> tuple[tuple[UnitGroup, ...], tuple[UnitGroup, ...], dict[str, str]]:
        found, skipped = trace_channels(copy_model(model).requires_grad_(True), inputs)
        (scratch,), some = comparable_copies(inputs, model)
        exact = removable = _exact(scratch, some, found, skipped)
        if coupling == "independent":
            removable = _exact(scratch, some, list(_gated_by_norms(exact)), {})
        return exact, removable, skipped

    exact, removable, skipped = _within(time_limit, work)
    if not exact:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no such layers"
        raise UnitsError(
            f"no channels to prune in {type(model).__name__}: looked for convolutions and linear layers whose output "
            f"channels can be removed without changing the shape of the model's output ({reasons})"
        )
    groups = exact if coupling == "coupled" else tuple(_batch_norm_groups(exact))
    if not groups:
        raise UnitsError(
            f"coupling='independent' looks for batch norms, and {type(model).__name__} has none that can be pruned: "
            "take coupling='coupled'"
        )
    return Units(groups, removable, skipped)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run `work` in a thread that is stopped after `seconds`; tracing can loop for ever on some models.

    In a thread of its own it also knows nothing of the caller's autocast, gradient and inference modes.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001  (handed to the caller below)
            failure.append(error)

    thread = threading.Thread(target=target, name="earlyworm-trace", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(1.0)  # it hears of it between two instructions of Python, and puts the random state back
        raise UnitsError(f"tracing took longer than {seconds:g} seconds and was stopped: raise time_limit")
    if failure:
        raise failure[0]
    return outcome[0]


def _gated_by_norms(coupled: tuple[UnitGroup, ...]) -> Iterator[UnitGroup]:
    """The groups that pass norms, with only their scales and shifts as gates: independent masks zero nothing else."""
    for group in coupled:
        if any(True for _ in group.with_role("scale")):
            pieces = tuple(replace(piece, gate=piece.role in ("scale", "shift")) for piece in group.slices)
            yield replace(group, slices=pieces)


def _batch_norm_groups(coupled: tuple[UnitGroup, ...]) -> Iterator[UnitGroup]:
    """Every batch norm's channels as units of their own."""
    widths: dict[str, set[int]] = {}
    for group in coupled:
        for piece in group.with_role("scale"):
            widths.setdefault(piece.tensor.removesuffix(".weight"), set()).update(piece.positions.tolist())
    for name, positions in widths.items():
        channels, own = sorted(positions), list(range(len(positions)))
        yield UnitGroup(name, len(own), (
            make_slice(f"{name}.weight", 0, channels, own, "scale", True),
            make_slice(f"{name}.bias", 0, channels, own, "shift", True),
        ))  # fmt: skip


def _exact(
    model: nn.Module, example_inputs: ExampleInputs, groups: list[UnitGroup], skipped: dict[str, str]
) -> tuple[UnitGroup, ...]:
    """The groups whose removal gives exactly what masking gives; the others go to `skipped`."""
    trial = copy_model(model)
    _randomise_(trial, torch.Generator().manual_seed(0), gently=False)
    gently = any(output.isnan().any() for output in probe(trial, example_inputs))
    exact: list[UnitGroup] = []
    pending = [groups] if groups else []
    while pending:  # all at once, which is the rule; where that fails, halves of them
        some = pending.pop()
        reason = _difference(model, example_inputs, exact, some, gently=gently)
        if reason is None:
            exact.extend(some)
        elif len(some) == 1:
            skipped[some[0].name] = reason
        else:
            middle = len(some) // 2
            pending += [some[middle:], some[:middle]]
    return tuple(exact)


@torch.no_grad()
def _randomise_(model: nn.Module, generator: torch.Generator, *, gently: bool) -> None:
    """Random weights and running statistics: what is zero or one in a fresh network would hide differences.

    Other vectors and single numbers only vary around their values, so that their logarithms, say, stay possible;
    gently, matrices do so, too.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.5)
        elif name.endswith("running_mean"):
            tensor.copy_(0.3 * noise)
        elif not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            continue
        elif gently:
            tensor.mul_(1 + 0.5 * noise.tanh().to(tensor))
        elif tensor.dim() > 1:
            tensor.copy_(noise * (2 / max(1, tensor.shape[1:].numel())) ** 0.5)
        else:
            tensor.add_((0.3 * noise).to(tensor))


def _difference(
    model: nn.Module, example_inputs: ExampleInputs, exact: list[UnitGroup], some: list[UnitGroup], *, gently: bool
) -> str | None:
    """Why random units of `some`, and of those that are exact, cannot go; None if cutting is masking.

    Equal outputs tell nothing of units that do not act on them, as behind a last activation that is saturated: there
    is another trial then.
    """
    generator = torch.Generator().manual_seed(0)
    groups, untold = (*exact, *some), list(some)
    for number in range(_TRIALS + _MORE_TRIALS):
        if number >= _TRIALS and not untold:
            return None
        masked = copy_model(model)
        _randomise_(masked, generator, gently=gently)
        kept = {}
        for place, group in enumerate(groups):
            kept[group.name] = torch.ones(group.size, dtype=torch.bool)
            gone = torch.randperm(group.size, generator=generator)[: _removed(number, place, group.size)]
            kept[group.name][gone] = False
        cut = copy_model(masked)
        mask_units_(masked, groups, kept)
        try:
            remove_units_(cut, groups, kept)
        except UnitsError as error:
            return str(error)
        for training in (False, True):
            if reason := _output_difference(_in_mode(masked, training), _in_mode(cut, training), example_inputs):
                return reason
            if untold:
                untold = _without_effect(masked, example_inputs, untold, kept)
    return "with random weights its channels change next to nothing in the output, so that nothing can be compared"


def _removed(trial: int, place: int, size: int) -> int:
    """How many units of a group go: a third in the first trial; then all but one of every other group, and by turns.

    Where one unit is left it may be silent, and would hide what is wrong with the groups before and behind.
    """
    if trial not in (1, 2):
        return max(1, size // 3)
    return size - 1 if (place + trial) % 2 else 1


def _without_effect(
    masked: nn.Module, example_inputs: ExampleInputs, groups: list[UnitGroup], kept: dict[str, Tensor]
) -> list[UnitGroup]:
    """Those of the groups whose kept units hardly act on the output of a masked network.

    What a unit does is what the output would lose without it, to first order: |gate x gradient|.
    """
    tensors = named_tensors(masked.requires_grad_(True))
    names = list({piece.tensor: None for group in groups for piece in group.gates() if tensors[piece.tensor].is_leaf})
    try:
        with torch.enable_grad(), private_randomness(masked):
            outputs = floating_tensors(call_model(masked, copy_inputs(example_inputs)))
            projections = [_projection(output) for output in outputs if output.requires_grad]
            found = torch.autograd.grad(projections, [tensors[name] for name in names], allow_unused=True)
    except Exception:  # foreign code fails as it likes: in eval mode that is an error
        if not masked.training:
            raise
        return groups  # as where training takes other inputs
    gradients = dict(zip(names, found, strict=True))

    def effect(piece: Slice, stays: Tensor) -> float:
        gradient = gradients.get(piece.tensor)
        if gradient is None:
            return 0.0
        positions = piece.positions[stays[piece.units]].to(gradient.device)
        return float((gradient * tensors[piece.tensor].detach()).index_select(piece.dim, positions).abs().sum())

    return [group for group in groups if not sum(effect(piece, kept[group.name]) for piece in group.gates()) > _EFFECT]


def _projection(output: Tensor) -> Tensor:
    """An output as one number, in units of its largest entry, or of 1 if that is larger; see `agree`."""
    largest = float(output.detach().abs().nan_to_num(posinf=1.0).amax()) if output.numel() else 1.0
    return (output * torch.randn_like(output)).sum() / max(1e-30, min(1.0, largest))


def _in_mode(model: nn.Module, training: bool) -> nn.Module:
    """The model in eval mode, or in a train mode that is not random and takes a batch of one."""
    for module in model.train(training).modules():
        known = type(module).forward.__module__.startswith("torch.nn.")  # what a forward of one's own does is tried
        if known and isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.eval()
    return model


def _output_difference(masked: nn.Module, cut: nn.Module, example_inputs: ExampleInputs) -> str | None:
    """How the outputs differ; in train mode what is random may."""
    try:
        expected = probe(masked, example_inputs)
    except Exception:  # foreign code fails as it likes: in eval mode that is an error
        if not masked.training:
            raise
        return None  # nothing to compare: as where training takes other inputs
    try:
        actual = probe(cut, example_inputs)
    except Exception as error:  # noqa: BLE001  (any failure of foreign code means: not removable; it is reported)
        return f"the forward fixes its width ({str(error).partition(chr(10))[0] or type(error).__name__})"
    pairs = [*zip(expected, actual, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return "removing its channels changes the shape of the output"
    if any(a.isnan().any() for a in expected):
        return "with other weights the output is not a number, so that nothing can be compared (are its own numbers?)"
    differing = [number for number, (a, b) in enumerate(pairs) if not agree(a, b)]
    if differing and masked.training:
        again = _probe_with_other_randomness(masked, example_inputs)
        differing = [number for number in differing if torch.equal(expected[number], again[number])]
    if differing:
        return (
            "a removed channel differs from a zeroed one (as after an activation that does not map zero to zero, or a "
            "norm without scale and shift)"
        )
    return None


def _probe_with_other_randomness(model: nn.Module, example_inputs: ExampleInputs) -> list[Tensor]:
    """What `probe` gives with other random numbers."""
    with private_randomness(model):
        random.random()
        np.random.random()
        torch.rand(1)
        torch.rand(1, device=device_of(model))
        return probe(model, example_inputs)
