"""Cut units out of a model that is being searched, and know what is left of it, and where."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from earlyworm.errors import ConfigError, SearchError
from earlyworm.inputs import processes
from earlyworm.masks.mask import Mask
from earlyworm.tickets.ticket import fingerprint
from earlyworm.units.groups import Units, named_tensors
from earlyworm.units.holding import HoldAtZero
from earlyworm.units.renumbering import aliases, removable_kept, translate, units_left
from earlyworm.units.surgery import key_of_another_shape, remove_units_


class Shrinking:
    """What is left of a model and of its units.

    Args:
        model: The model, of which nothing was cut out yet.
        units: Its units.
        wanted: Whether anything is to be cut out.

    Attributes:
        left: The units that are left; None: all.
        units: These, as they are in the model now.

    Raises:
        ConfigError: If it is, but cannot be.
        SearchError: If there are several processes.
    """

    def __init__(self, model: nn.Module, units: Units, *, wanted: bool) -> None:
        if wanted and (not units.removable or "weights" in units.kinds.values()):
            kinds = ", ".join(dict.fromkeys(units.kinds.values()))
            raise ConfigError(
                f"shrink=True cuts units out of the model, but of {kinds} some are only masked: give channels, heads "
                "or neurons that can be removed, or shrink=False"
            )
        if wanted and HoldAtZero.all_in(model):
            raise ConfigError(
                "shrink=True, but a ticket holds entries of the model at zero, by their places: remove() it, or give "
                "shrink=False"
            )
        if wanted:
            _check_alone()
        self.wanted = wanted
        self.left: Mask | None = None
        self.units = units
        self._model = model
        self._all = units
        self._names = aliases(model)
        self._structure: dict[str, tuple[int, ...]] | None = None

    @property
    def structure(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the model as it was at first."""
        return self._structure or fingerprint(self._model)

    @property
    def cut(self) -> int:
        """How many units were cut out."""
        return 0 if self.left is None else self.left.units_removed

    def after(self, mask: Mask) -> Mask | None:
        """The units that are left when those that a mask removes are cut out; None if none is to be.

        Where masks are independent of the layers that channels are coupled with, some of them cannot be cut out yet.
        """
        if not self.wanted:
            return None
        before = None if self.left is None else self.left.kept
        stays = removable_kept(self._all, mask.kept, before)
        left = Mask.from_groups(translate(stays, self._all.removable, self._all.groups), mask.kinds)
        return left if left.units_removed > self.cut else None

    def check(self, optimizers: Collection[torch.optim.Optimizer]) -> None:
        """Make sure that whatever is going to be cut out can be cut out of the optimizers too.

        Raises:
            SearchError: If one of them remembers something of another shape than its parameter or has another
                optimizer do its work, a parameter that may be cut is in none of them, or there are several processes.
        """
        if not self.wanted:
            return
        _check_alone()
        tensors, held = named_tensors(self._model), set()
        for optimizer in optimizers:
            held |= {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for inner in vars(optimizer).values():
                if isinstance(inner, torch.optim.Optimizer) and inner not in optimizers:
                    raise SearchError(
                        f"{type(optimizer).__name__} has a {type(inner).__name__} do its work, and what that remembers "
                        "would not be cut as the parameters are: attach both"
                    )
            for name, parameter in self._model.named_parameters():
                key = key_of_another_shape(optimizer.state.get(parameter, {}), parameter)
                if key is not None:
                    raise SearchError(
                        f"{type(optimizer).__name__} keeps {key!r} for {name!r}, which is not of its shape, so that it "
                        "cannot be cut as the parameter is: give shrink=False, or another optimizer such as AdamW"
                    )
        for name in {piece.tensor: None for group in self.units.removable for piece in group.slices}:
            if name in tensors and tensors[name].requires_grad and id(tensors[name]) not in held:
                raise SearchError(
                    f"{name!r} is in none of the optimizers, and what another one remembers of it would not be cut as "
                    "it is: attach all optimizers that train the model"
                )

    def left_by(self, bits: Tensor | None) -> Mask | None:
        """The units that are to be left so that the model is that of a saved state; None if it is.

        Args:
            bits: Those of `left` when it was saved.

        Raises:
            SearchError: If the model has lost other units, or must not lose any.
        """
        left = None if bits is None else Mask(bits.cpu().clone(), self._all.sizes, self._all.kinds)
        if left is not None and not self.wanted:
            raise SearchError("the state is of a search that cuts units out of the model: give shrink=True")
        if self.left is not None and (left is None or bool((left.bits & ~self.left.bits).any())):
            raise SearchError(
                "other units were cut out of the model than the state says: build the dense model and the search anew"
            )
        return None if left == self.left else left

    def cut_(self, left: Mask, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Cut out all units but those that are to be left; among these are only some that are there now.

        Args:
            left: Over all units, what `after` says.
            optimizers: Their state is cut along.
        """
        structure = self.structure
        there = left if self.left is None else left.among(self.left)
        remove_units_(self._model, self.units.removable, removable_kept(self.units, there.kept), optimizers)
        self._structure, self.left = structure, left
        self.units = units_left(self._all, left.kept, self._names)


def _check_alone() -> None:
    """Make sure that there is one process."""
    if processes() > 1:
        raise SearchError(
            f"shrink=True, but {processes()} processes train together, and what exchanges their gradients would know "
            "the old shapes: give shrink=False, or train in one process"
        )
