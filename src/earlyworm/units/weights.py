"""Whether the weights of a model are there, whole and plain, so that they can be scored, masked and cut."""

from __future__ import annotations

import torch
from torch import nn

from earlyworm.errors import UnitsError
from earlyworm.inputs import check_loaded


def check_weights(model: nn.Module) -> None:
    """Make sure that the weights of a model can be masked and cut.

    Raises:
        UnitsError: If they are compiled by TorchScript, wrapped in adapters, sharded, not there yet, or quantised; the
            message names the cure.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnitsError(
                f"{name or 'the model'} is compiled by TorchScript: search the module that it was made from"
            )
        if _package(type(module)) == "peft" or hasattr(module, "lora_A"):
            raise UnitsError(
                f"{name or 'the model'} is wrapped in an adapter ({type(module).__name__}): search the model that "
                "merge_and_unload() returns"
            )
        if type(module).__name__ == "FullyShardedDataParallel":
            raise UnitsError(f"{name or 'the model'} is sharded (FSDP): search before sharding, or train with DDP")
    if getattr(model, "is_quantized", False):
        raise UnitsError(f"{type(model).__name__} is quantised: load it in full or half precision")
    check_loaded(model)
    for name, parameter in model.named_parameters():
        kind = type(parameter)
        if kind.__name__ in ("DTensor", "FlatParameter") or hasattr(parameter, "ds_id"):  # the latter is DeepSpeed's
            raise UnitsError(f"{name} is sharded ({kind.__name__}): search before sharding, or train with DDP")
        if parameter.is_complex():
            raise UnitsError(f"{name} is complex ({parameter.dtype}), and only real weights can be scored and cut")
        wrapped = not issubclass(kind, nn.Parameter) or _package(kind) in ("bitsandbytes", "torchao")
        if wrapped or not parameter.is_floating_point() or parameter.element_size() < 2:
            raise UnitsError(
                f"{name} is quantised ({kind.__name__}, {parameter.dtype}): load the model in full or half precision"
            )


def _package(cls: type) -> str:
    """The library that defines a class."""
    return cls.__module__.partition(".")[0]
