"""Zero units in a model, once or for good, or cut them out of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from earlyworm.errors import UnitsError, first_line
from earlyworm.inputs import ExampleInputs, few_examples, probe, unwrap_optimizer
from earlyworm.units.groups import Slice, UnitGroup, gate_masks, named_tensors, tensor_of
from earlyworm.units.narrow_attention import keep_heads_

_NORMS = (nn.modules.batchnorm._NormBase,)  # batch and instance norms
_CONVS = (nn.modules.conv._ConvNd,)
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has only the latter


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
        raise UnitsError(f"{_culprit(model)} cannot be copied: {first_line(error)}") from error
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


def _culprit(model: nn.Module) -> str:
    """What of a model cannot be copied: the first attribute of a module that cannot, or else all of it."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value)
            except (RuntimeError, TypeError):
                place = f"{name}.{attribute}" if name else attribute
                return f"{type(model).__name__}: {place}, a {type(value).__name__},"
    return type(model).__name__


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


class AppliedTicket:
    """Holds masked entries of a model at zero until `remove` is called."""

    def __init__(
        self, model: nn.Module, masks: dict[str, Tensor], optimizers: tuple[torch.optim.Optimizer, ...] = ()
    ) -> None:
        hold = HoldAtZero(masks)
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(hold),
            model.register_state_dict_pre_hook(hold),  # type: ignore[no-untyped-call]  # torch's own
        ]
        for optimizer in optimizers:
            self._handles.append(unwrap_optimizer(optimizer).register_step_post_hook(lambda *_: hold(model)))
        tensors = named_tensors(model)
        for name in masks:
            if tensors[name].requires_grad:
                self._handles.append(_zero_gradient(tensors[name], hold, name))

    def remove(self) -> None:
        """Let the masked entries move again; they start from zero."""
        for handle in self._handles:
            handle.remove()


def _zero_gradient(parameter: Tensor, hold: HoldAtZero, name: str) -> RemovableHandle:
    """Multiply the gradients of `parameter` by its mask from now on, wherever the parameter is moved."""
    handle: RemovableHandle = parameter.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient * hold.masks[name].to(gradient.device)
    )
    return handle


class HoldAtZero:
    """A forward pre-hook and state-dict pre-hook that zeroes the masked entries of the module that it is called on.

    It finds them by name, so that a deep copy of the module carries a hook that acts on the copy.
    """

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks

    def __call__(self, module: nn.Module, *_: object) -> None:
        """Zero the masked entries of `module`."""
        if _is_exporting():  # an exported forward must not write to parameters
            return
        for name, mask in self.masks.items():
            path, _dot, attribute = name.rpartition(".")
            tensor = getattr(module.get_submodule(path), attribute)
            tensor.data.mul_(mask.to(tensor.device))  # .data: a backward pass may still be pending

    @staticmethod
    def all_in(model: nn.Module) -> list[tuple[str, HoldAtZero]]:
        """All such hooks on modules of `model`, each with what goes before the names of its masks there."""
        return [
            (f"{name}." if name else "", hook)
            for name, module in model.named_modules()
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, HoldAtZero)
        ]

    @staticmethod
    def masks_in(model: nn.Module) -> dict[str, Tensor]:
        """All masks of such hooks by the names of the tensors in `model`."""
        masks: dict[str, Tensor] = {}
        for prefix, hold in HoldAtZero.all_in(model):
            for name, mask in hold.masks.items():
                masks[prefix + name] = mask & masks.get(prefix + name, mask)
        return masks

    @staticmethod
    def strip_(model: nn.Module) -> None:
        """Remove all such hooks from the modules of `model`."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._state_dict_pre_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, HoldAtZero)]:
                    del hooks[key]
