"""Hold masked entries of a model at zero while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from earlyworm.inputs import unwrap_optimizer
from earlyworm.units.groups import named_tensors

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has only the latter


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
