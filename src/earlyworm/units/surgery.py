"""Copy a model, zero units in it, or cut them out of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from earlyworm.errors import UnitsError, first_line
from earlyworm.inputs import ExampleInputs, few_examples, probe
from earlyworm.units.groups import Slice, UnitGroup, gate_masks, named_tensors, tensor_of
from earlyworm.units.holding import HoldAtZero
from earlyworm.units.narrow_attention import keep_heads_

_NORMS = (nn.modules.batchnorm._NormBase,)  # batch and instance norms
_CONVS = (nn.modules.conv._ConvNd,)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with `model`, and that can be trained even if it is made in inference mode.

    Nothing holds masked entries of the copy at zero, even if a ticket is applied to `model`.

    Raises:
        UnitsError: If it cannot be copied, or if the `forward` of an instance was replaced by something that is bound
            to the original model.
    """
    try:
        with torch.inference_mode(False):
            clone = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise UnitsError(_why_not_copied(model, error)) from error
    for parameter, copied_parameter in zip(model.parameters(), clone.parameters(), strict=True):
        vars(copied_parameter).update(vars(parameter))  # a parameter's own deepcopy forgets its attributes
    for original, copied in zip(model.modules(), clone.modules(), strict=True):
        vars(copied).pop("_is_accelerate_prepared", None)  # else accelerate would not prepare the copy
        if "forward" not in vars(original):
            continue
        if not hasattr(original, "_original_forward"):
            if getattr(vars(original)["forward"], "__self__", None) is original:
                continue  # a bound method is copied with what it is bound to
            raise UnitsError(
                f"the forward of {type(original).__name__} was replaced on the instance, so a copy would still run "
                "the original's: put it into a subclass (and do not wrap parts of a model with torch.compile, but call "
                "their own compile())"
            )
        # accelerate wraps forward for mixed precision and keeps the original beside it.
        for name in ("forward", "_original_forward"):
            vars(copied).pop(name, None)
    HoldAtZero.strip_(clone)
    return clone


def _why_not_copied(model: nn.Module, error: Exception) -> str:
    """What of a model cannot be copied, the first attribute of a module that cannot or else all of it, and why."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value)
            except (RuntimeError, TypeError):
                place = f"{type(model).__name__}: {f'{name}.' if name else ''}{attribute}, a {type(value).__name__},"
                if any(isinstance(leaf, Tensor) and not leaf.is_leaf for leaf in tree_leaves(value)):
                    return (
                        f"{place} cannot be copied: it was computed from others. If it is what a forward pass has left "
                        "there, clear it; if a layer computes its weight, make that permanent (prune.remove, "
                        "remove_weight_norm)"
                    )
                return f"{place} cannot be copied: {first_line(error)}"
    return f"{type(model).__name__} cannot be copied: {first_line(error)}"


def comparable_copies(example_inputs: ExampleInputs, *models: nn.Module) -> tuple[tuple[nn.Module, ...], ExampleInputs]:
    """Copies of models in eval mode, and inputs for them, whose outputs differ only where the models do.

    In float64 rounding (and TF32 on a GPU) is far below any real difference, and two examples are enough; where the
    forward of the first model does not allow that, or returns no numbers then, copies and inputs are as given.
    """
    few = few_examples(example_inputs, 2, torch.float64)
    try:
        copies = tuple(copy_model(model).double().eval() for model in models)
        if not any(output.isnan().any() for output in probe(copies[0], few)):  # as where -1e308 is cast to float32
            return copies, few
    except Exception:  # noqa: BLE001  (foreign code may fix a dtype or the size of a batch; some devices lack float64)
        pass
    return tuple(copy_model(model).eval() for model in models), example_inputs


@torch.no_grad()
def mask_units_(
    model: nn.Module,
    groups: tuple[UnitGroup, ...],
    kept: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Zero every gate of the units that are not kept, in place.

    Args:
        model: The model.
        groups: Its unit groups.
        kept: One boolean tensor [group size] per group name; True is kept.
        optimizers: What they remember of these gates is zeroed too.
    """
    tensors = named_tensors(model)
    for name, mask in gate_masks(model, groups, kept).items():
        tensors[name].mul_(mask)
        for _, _, value in _states(tensors[name], optimizers):
            value.mul_(mask)


@torch.inference_mode(False)
@torch.no_grad()
def remove_units_(
    model: nn.Module,
    groups: tuple[UnitGroup, ...],
    kept: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Cut the units that are not kept out of every tensor of `model`, in place.

    Parameters and buffers stay the objects that they are, with `requires_grad`, dtype, device, memory format, ties,
    attributes and hooks; gradients are dropped. So it has to be between an optimizer step and the next forward pass.

    Args:
        model: The model.
        groups: Its removable unit groups.
        kept: One boolean tensor [group size] per group name; True is kept.
        optimizers: Their state is cut as their parameters are, so that momentum and step counts go on; see
            `key_of_another_shape` for what must not be in it.

    Raises:
        UnitsError: If the groups do not fit the model; nothing has changed then.
    """
    tensors = named_tensors(model)
    gone: dict[Tensor, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    narrower: list[tuple[Slice, Tensor]] = []
    for group in groups:
        removed = ~kept[group.name].cpu()
        for piece in group.slices:
            tensor = None if piece.role in ("width", "argument") else tensor_of(piece, tensors)
            some = removed[piece.units]
            if not some.any():
                continue
            if tensor is None:
                narrower.append((piece, some))
            else:
                gone[tensor][piece.dim].append(piece.positions[some])
    for piece, some in narrower:
        _narrow_(model, piece, some)
    for tensor, positions in gone.items():
        for state, key, value in _states(tensor, optimizers):
            state[key] = _without(value, positions)
        _put_(tensor, _without(tensor, positions))
    for module in {model.get_submodule(name.rpartition(".")[0]) for name, tensor in tensors.items() if tensor in gone}:
        _sync_widths(module)
    for prefix, hold in HoldAtZero.all_in(model):
        for name, mask in hold.masks.items():
            cuts = gone.get(tensors[prefix + name], {})
            hold.masks[name] = _without(mask, {dim: some for dim, some in cuts.items() if mask.shape[dim] > 1})


def key_of_another_shape(state: Mapping[str, Any], parameter: Tensor) -> str | None:
    """The first entry of an optimizer's state of `parameter` that cannot be cut as the parameter is, if there is one.

    Single numbers need not be cut, and plain floating-point tensors of the parameter's shape can be; those that only
    seem to be such, as torchao's of eight bits, cannot.
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            plain = type(value) in (Tensor, nn.Parameter)
            if not plain or value.shape != parameter.shape or not value.is_floating_point():
                return key
        elif isinstance(value, (list, tuple, dict)):
            return key
    return None


def _states(parameter: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """What the optimizers remember of a parameter in tensors of its shape, each with the place where they keep it."""
    states = [optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state]
    return [
        (state, key, value)
        for state in states
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]


def _put_(tensor: Tensor, value: Tensor) -> None:
    """Give a parameter or buffer another value of another shape."""
    if isinstance(tensor, nn.Parameter):
        tensor.grad = None
        # What accumulates its gradient knows the old shape, and is made anew only where the dtype has changed too.
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value


def _without(tensor: Tensor, gone: dict[int, list[Tensor]]) -> Tensor:
    """A copy of `tensor` without the given positions per dimension."""
    result = tensor.detach()
    for dim, positions in gone.items():
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool)
        keep[torch.cat(positions)] = False
        result = result.index_select(dim, keep.nonzero().flatten().to(tensor.device))
    # The order of the dimensions in memory is the memory format.
    order = sorted(range(tensor.dim()), key=lambda dim: (tensor.stride(dim), tensor.shape[dim]), reverse=True)
    return result.permute(order).contiguous().permute([order.index(dim) for dim in range(tensor.dim())])


def _narrow_(model: nn.Module, piece: Slice, removed: Tensor) -> None:
    """Let a module know that something is removed, of which no tensor of it tells.

    Args:
        model: The model.
        piece: A slice of a number, which is lowered, or of an argument, of which the module takes less from now on.
        removed: bool [positions of the slice].
    """
    *path, attribute = piece.tensor.split(".")
    owner: Any = model
    for name in path:
        part = getattr(owner, name)
        if not isinstance(part, (nn.Module, _OwnNumbers)):  # a config, which other layers share
            part = _OwnNumbers(part)
            setattr(owner, name, part)
        owner = part
    if piece.role == "argument":
        keep_heads_(owner, ~removed)
    else:
        setattr(owner, attribute, getattr(owner, attribute) - int(removed.sum()))


class _OwnNumbers:
    """What a module sees in the place of a config: some numbers of its own, and otherwise the config itself.

    A copy would not follow later changes of the config, such as of the attention's implementation.
    """

    def __init__(self, shared: object) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        if name == "_shared" or name.startswith("__"):  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self._shared, name)


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
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
