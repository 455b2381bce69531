"""One search for tickets of several pruning ratios: training is shared, and masks cost next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from earlyworm.errors import ConfigError, SearchError
from earlyworm.inputs import ExampleInputs
from earlyworm.masks.mask import Mask
from earlyworm.masks.scores import Score
from earlyworm.search.emergence import Emergence
from earlyworm.search.history import Check, Overhead
from earlyworm.search.ticket_search import TicketSearch
from earlyworm.search.truncation import Truncation
from earlyworm.tickets.ticket import Ticket
from earlyworm.units.groups import Units


class RatioSweep:
    """Watches a model while it is trained, and notices when its ticket of each pruning ratio has emerged.

    All ratios see the same training. Gradients are truncated, if at all, as the search for the lowest ratio says, whose
    masks remove what those of all others remove at the same check. Once its ticket has emerged, its last mask goes on
    being truncated.

    Args:
        model: The model that is trained.
        example_inputs: What its forward takes; needed for channels only.
        ratios: The pruning ratios, two or more different ones, each in [0, 1).
        units: As for `TicketSearch`; so are all others.
        emergence: Window and epsilon, for every ratio.
        truncation: Schedule of chi, of the lowest ratio.
        sparsity_penalty: Network slimming.
        score: What makes a unit important.
        min_units: How many units of every group stay, as for one search.
        steps_per_epoch: Optimizer steps per epoch.

    Raises:
        ConfigError: If the ratios are fewer than two, or one is there twice or impossible.
        UnitsError: If the model has no such units.

    Example:
        >>> import torch, earlyworm as ew
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))
        >>> x, optimizer = torch.randn(4, 3, 8, 8), torch.optim.SGD(model.parameters(), lr=0.01)
        >>> sweep = ew.RatioSweep(model, x, ratios=(0.25, 0.75), emergence=ew.Emergence(2, epsilon=1))
        >>> small = {}
        >>> with sweep.attach(optimizer):
        ...     model(x).sum().backward()
        ...     optimizer.step()
        ...     for ratio in sweep.update():  # those that have emerged just now
        ...         small[ratio] = ew.compact(model, sweep.draw(ratio))
        >>> {ratio: network[0].out_channels for ratio, network in small.items()}
        {0.25: 6, 0.75: 2}
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs | None = None,
        *,
        ratios: Sequence[float],
        units: str | Sequence[str] | Units = "channels",
        emergence: Emergence = Emergence(),  # noqa: B008  (frozen)
        truncation: Truncation | None = None,
        sparsity_penalty: float = 0.0,
        score: str | Score = "auto",
        min_units: float | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        if len(ratios) < 2 or len(set(ratios)) < len(ratios):
            given = " ".join(map(str, ratios)) or "empty"
            raise ConfigError(f"ratios are {given}, but must be two or more different ones")
        lowest, *others = sorted(ratios)
        leader = TicketSearch(
            model, example_inputs, units=units, pruning_ratio=lowest, emergence=emergence, truncation=truncation,
            sparsity_penalty=sparsity_penalty, score=score, min_units=min_units, steps_per_epoch=steps_per_epoch,
        )  # fmt: skip
        self.searches: dict[float, TicketSearch] = {lowest: leader}
        """The search for every ratio, the lowest first."""
        for ratio in others:
            self.searches[ratio] = TicketSearch(
                model, units=leader.units, pruning_ratio=ratio, emergence=emergence, score=score, min_units=min_units
            )
        self._leader = leader

    @property
    def model(self) -> nn.Module:
        """The model, unwrapped."""
        return self._leader.model

    @property
    def units(self) -> Units:
        """Its units."""
        return self._leader.units

    @property
    def steps(self) -> int:
        """Optimizer steps that were seen so far."""
        return self._leader.steps

    @property
    def history(self) -> list[Check]:
        """The checks of the lowest ratio, until it has emerged."""
        return self._leader.history

    @property
    def mask(self) -> Mask:
        """The newest mask of the lowest ratio."""
        return self._leader.mask

    @property
    def overhead(self) -> Overhead:
        """What all searches together have cost so far."""
        each = [search.overhead for search in self.searches.values()]
        return Overhead(sum(cost.seconds for cost in each), sum(cost.flops for cost in each))

    @property
    def emerged(self) -> bool:
        """Whether the tickets of all ratios have emerged."""
        return all(search.emerged for search in self.searches.values())

    def attach(self, *optimizers: torch.optim.Optimizer) -> Self:
        """Hook into the optimizers that train the model; see `TicketSearch.attach`."""
        if any(search.attached for search in self.searches.values()):
            raise SearchError("the sweep is attached already: detach it first")
        try:
            # The lowest ratio last: the others are to see gradients before it truncates them.
            for search in reversed(self.searches.values()):
                search.attach(*optimizers)
        except BaseException:
            self.detach()
            raise
        return self

    def detach(self) -> None:
        """Unhook from the optimizers."""
        for search in self.searches.values():
            search.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def update(self) -> tuple[float, ...]:
        """Take a mask of every ratio that has not emerged yet; see `TicketSearch.update`.

        Returns:
            The ratios whose tickets have emerged just now. Draw them before training goes on, and compact the model
            then or keep a copy of its weights: those are the weights that the ticket emerged with.
        """
        waiting = {ratio: search for ratio, search in self.searches.items() if not search.emerged}
        return tuple(ratio for ratio, search in waiting.items() if search.update())

    def draw(self, ratio: float, *, force: bool = False) -> Ticket:
        """The ticket of one ratio; see `TicketSearch.draw`.

        Raises:
            SearchError: If the ratio is not one of the sweep's, or nothing has emerged and `force` is False.
        """
        if ratio not in self.searches:
            raise SearchError(
                f"no ticket of ratio {ratio} was searched for: choose {', '.join(map(str, self.searches))}"
            )
        return self.searches[ratio].draw(force=force)

    def state_dict(self) -> dict[str, Any]:
        """The state of every search: plain numbers, strings, lists and tensors."""
        return {str(ratio): search.state_dict() for ratio, search in self.searches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            SearchError: If it is of other ratios, or does not fit for another reason.
        """
        if list(state) != [str(ratio) for ratio in self.searches]:
            raise SearchError(f"the state is of the ratios {', '.join(state)}: give the same")
        for ratio, search in self.searches.items():
            search.load_state_dict(state[str(ratio)])
