"""Find the channels of a network that can be removed as one, and make sure that they can."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import nn

from earlyworm.errors import UnitsError
from earlyworm.inputs import ExampleInputs, call_model, floating_tensors, unwrap
from earlyworm.surgery import copy_model, mask_units_, remove_units_
from earlyworm.tracing import trace_channels
from earlyworm.units import UnitGroup, Units, make_slice

Coupling = Literal["coupled", "independent"]
T = TypeVar("T")

_TOLERANCE = 1e-3  # relative to the largest output; float32 rounding stays far below, a forgotten channel far above


def find_channels(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    coupling: Coupling = "coupled",
    time_limit: float = 120.0,
) -> Units:
    """Find the channels of `model`, coupled channels as one unit.

    The model is traced on `example_inputs` (a copy of it; the given model is not touched). Each group that was found
    is then tried: on a copy with random weights, cutting units out must give what masking them gives, or the group is
    left out. The classifier's outputs and the image's channels are never units.

    Args:
        model: Any module.
        example_inputs: What its forward takes: a tensor, a sequence of arguments, or a mapping of keyword arguments,
            on the model's device; a batch of one is enough.
        coupling: `"coupled"`: channels that meet in a sum, a concatenation, or a depthwise or grouped convolution
            are one unit. `"independent"`: every batch norm's channels are units for themselves, as in the papers; a
            channel can then be cut out only where all the batch norms that share it agree.
        time_limit: Seconds that tracing may take.

    Returns:
        The units; `skipped` names the layers that are left out, and why.

    Raises:
        UnitsError: If there is nothing to prune, the model cannot be traced, or tracing takes longer than the limit.
    """
    if coupling not in ("coupled", "independent"):
        raise UnitsError(f"coupling is {coupling!r}, but must be 'coupled' or 'independent'")
    model = unwrap(model)
    if not any(True for _ in model.parameters()):
        raise UnitsError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    scratch = copy_model(model).requires_grad_(True)
    found, skipped = _within(time_limit, lambda: trace_channels(scratch, example_inputs))
    exact = _exact(copy_model(model), example_inputs, found, skipped)
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
    return Units(groups, exact, skipped)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Run `work` in a thread that is stopped after `seconds`; tracing can loop for ever on some models."""
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
        raise UnitsError(f"tracing took longer than {seconds:g} seconds and was stopped: raise time_limit")
    if failure:
        raise failure[0]
    return outcome[0]


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
    _randomise_(model.eval())
    exact: list[UnitGroup] = []
    pending = [groups] if groups else []
    while pending:  # all at once, which is the rule; where that fails, halves of them
        some = pending.pop()
        reason = _difference(model, example_inputs, some)
        if reason is None:
            exact.extend(some)
        elif len(some) == 1:
            skipped[some[0].name] = reason
        else:
            middle = len(some) // 2
            pending += [some[middle:], some[:middle]]
    if len(exact) < len(groups) and exact and (reason := _difference(model, example_inputs, exact)):
        raise UnitsError(f"the channels of {type(model).__name__} can be removed one layer at a time, but not all "
                         f"together ({reason})")  # fmt: skip
    return tuple(exact)


@torch.no_grad()
def _randomise_(model: nn.Module) -> None:
    """Random values everywhere: what is zero or one in a fresh network would hide differences."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            noise = noise.abs() + 0.5
        elif tensor.dim() > 1:
            noise = noise * (2 / max(1, tensor[0].numel())) ** 0.5
        elif name.endswith("weight"):
            noise = 1 + 0.3 * noise
        else:
            noise = 0.3 * noise
        tensor.copy_(noise)


@torch.no_grad()
def _difference(model: nn.Module, example_inputs: ExampleInputs, groups: list[UnitGroup]) -> str | None:
    """How the masked and the cut network differ when a third of the units of `groups` go; None if they do not."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups:
        kept[group.name] = torch.ones(group.size, dtype=torch.bool)
        gone = torch.randperm(group.size, generator=generator)[: max(1, group.size // 3)]
        kept[group.name][gone] = False
    masked, cut = copy_model(model), copy_model(model)
    mask_units_(masked, tuple(groups), kept)
    expected = list(floating_tensors(call_model(masked, example_inputs)))
    try:
        remove_units_(cut, tuple(groups), kept)
        actual = list(floating_tensors(call_model(cut, example_inputs)))
    except Exception as error:  # noqa: BLE001  (any failure of foreign code means: not removable; it is reported)
        return f"the forward fixes its width ({str(error).splitlines()[0]})"
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            return "removing its channels changes the shape of the output"
        if not torch.allclose(a, b, rtol=0, atol=_TOLERANCE * max(1e-30, float(a.abs().max()))):
            return "a removed channel differs from a zeroed one (as after an activation that does not map zero to zero)"
    return None
