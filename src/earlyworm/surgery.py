"""Zero units in a model, or cut them out of it."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError
from earlyworm.units import UnitGroup, gate_masks, named_tensors

_NORMS = (nn.modules.batchnorm._NormBase,)  # batch and instance norms
_CONVS = (nn.modules.conv._ConvNd,)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with `model`.

    Raises:
        UnitsError: If the instance's `forward` was replaced by something that is bound to the original model.
    """
    clone = copy.deepcopy(model)
    for original, copied in zip(model.modules(), clone.modules(), strict=True):
        if "forward" not in vars(original):
            continue
        if not hasattr(original, "_original_forward"):
            raise UnitsError(
                f"the forward of {type(original).__name__} was replaced on the instance, so a copy would still run "
                "the original's: put it into a subclass"
            )
        # accelerate wraps forward for mixed precision and keeps the original beside it.
        for name in ("forward", "_original_forward"):
            vars(copied).pop(name, None)
    return clone


@torch.no_grad()
def mask_units_(model: nn.Module, groups: tuple[UnitGroup, ...], kept: dict[str, Tensor]) -> None:
    """Zero every gate of the units that are not kept, in place.

    Args:
        model: The model.
        groups: Its unit groups.
        kept: One boolean tensor [group size] per group name; True is kept.
    """
    tensors = named_tensors(model)
    for name, mask in gate_masks(model, groups, kept).items():
        tensors[name].mul_(mask)


@torch.no_grad()
def remove_units_(model: nn.Module, groups: tuple[UnitGroup, ...], kept: dict[str, Tensor]) -> None:
    """Cut the units that are not kept out of every tensor of `model`, in place.

    Parameters keep `requires_grad`, dtype, device, memory format, ties and attributes; gradients are dropped.

    Args:
        model: The model.
        groups: Its removable unit groups.
        kept: One boolean tensor [group size] per group name; True is kept.

    Raises:
        UnitsError: If the groups do not fit the model.
    """
    tensors = named_tensors(model)
    gone: dict[int, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        removed = ~kept[group.name].cpu()
        for piece in group.slices:
            tensor = tensors.get(piece.tensor)
            if tensor is None or tensor.dim() <= piece.dim or tensor.shape[piece.dim] <= int(piece.positions.max()):
                found = "absent" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise UnitsError(f"{piece.tensor!r} is {found}: these units belong to another model")
            gone[id(tensor)][piece.dim].append(piece.positions[removed[piece.units]])

    replaced: dict[int, Tensor] = {}  # one new tensor per old one keeps ties
    touched: dict[nn.Module, None] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in gone:
            continue
        if id(tensor) not in replaced:
            replaced[id(tensor)] = _without(tensor, gone[id(tensor)])
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        slots = module._parameters if attribute in module._parameters else module._buffers
        slots[attribute] = replaced[id(tensor)]  # type: ignore[assignment]  # _without returns what it was given
        touched[module] = None
    for module in touched:
        _sync_widths(module)


def _without(tensor: Tensor, gone: dict[int, list[Tensor]]) -> Tensor:
    """A copy of `tensor` without the given positions per dimension."""
    result = tensor.detach()
    for dim, positions in gone.items():
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
        keep[torch.cat(positions)] = False
        result = result.index_select(dim, keep.nonzero().flatten().to(tensor.device))
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        result = result.contiguous(memory_format=torch.channels_last)
    if not isinstance(tensor, nn.Parameter):
        return result
    parameter = nn.Parameter(result, requires_grad=tensor.requires_grad)
    vars(parameter).update(vars(tensor))
    return parameter


def _sync_widths(module: nn.Module) -> None:
    """Set the attributes that describe a module's width from the shapes of its tensors."""
    if isinstance(module, _CONVS):
        depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        first, second = module.weight.shape[:2]
        if depthwise:
            module.groups = first
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NORMS):
        module.num_features = next(t for t in (module.weight, module.running_mean) if t is not None).shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
