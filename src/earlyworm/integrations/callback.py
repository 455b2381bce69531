"""What all callbacks do with a search: begin it, check when it is time, draw, compact, save and load."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from earlyworm.errors import ConfigError, SearchError
from earlyworm.inputs import processes, unwrap
from earlyworm.integrations.swapping import check_wrapper, compact_in_place, parallel_in
from earlyworm.search.history import Check
from earlyworm.search.ticket_search import TicketSearch
from earlyworm.tickets.ticket import Ticket

logger = logging.getLogger(__name__)

OnEmergence = Literal["compact", "stop"]
Every = int | Literal["epoch"]


class SearchCallback:
    """A search inside of a loop that others run.

    Attributes:
        search: The search; None until there is a model.
        compacted: Whether the model that is trained is the smaller one.

    Args:
        on_emergence: What happens then.
        every: Optimizer steps between checks, or `"epoch"`.
        settings: Arguments of `TicketSearch`, all but the model.

    Raises:
        ConfigError: If a setting is impossible, or there is no such setting.
    """

    def __init__(self, on_emergence: OnEmergence, every: Every, settings: Mapping[str, Any]) -> None:
        if on_emergence not in ("compact", "stop"):
            raise ConfigError(f"on_emergence is {on_emergence!r}, but must be 'compact' or 'stop'")
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ConfigError(f"every is {every!r}, but must be 'epoch' or a number of optimizer steps, 1 or more")
        try:
            inspect.signature(TicketSearch).bind(None, **settings)
        except TypeError as error:
            raise ConfigError(
                f"{error}: the settings are those of TicketSearch, such as units, pruning_ratio, "
                "emergence=ew.Emergence(window, epsilon), truncation=ew.Worm(trigger, chi)"
            ) from None
        self.on_emergence = on_emergence
        self.every = every
        self.search: TicketSearch | None = None
        self.compacted = False
        self._settings = dict(settings)
        self._ticket: Ticket | None = None

    @property
    def history(self) -> list[Check]:
        """One record per check so far."""
        return [] if self.search is None else self.search.history

    @property
    def emerged(self) -> bool:
        """Whether the ticket has emerged."""
        return self.search is not None and self.search.emerged

    def draw(self, *, force: bool = False) -> Ticket:
        """The ticket.

        Args:
            force: Take the newest mask even if no ticket has emerged.

        Raises:
            SearchError: If nothing has emerged and `force` is False, or there was no search yet.
        """
        return self._ticket or self._searching.draw(force=force)

    @property
    def _cut(self) -> int:
        """How many units were cut out of the model before the ticket has emerged."""
        return 0 if self.search is None else self.search.cut

    @property
    def _steps_since(self) -> int:
        """Optimizer steps since the last check."""
        return self._searching.steps - (self.history[-1].step if self.history else 0)

    @property
    def _searching(self) -> TicketSearch:
        """The search, which has begun."""
        if self.search is None:
            raise SearchError("there was no search yet: is the callback added to the trainer, and has it trained?")
        return self.search

    def _begin(self, model: nn.Module) -> None:
        """Search in `model`, unless that is what is done already.

        Raises:
            UnitsError: If it has no such units, or is sharded, quantised, or carries adapters.
            SearchError: If it is to shrink, and there are several processes.
        """
        if self.search is None or self.search.model is not unwrap(model):
            self.search = TicketSearch(model, **self._settings)
            self._ticket, self.compacted = None, False

    def _attach(self, optimizers: Sequence[Any], wrapped: nn.Module) -> list[Check]:
        """Hook into the optimizers; return the checks that this has made.

        Args:
            optimizers: What trains the model, wrapped or not.
            wrapped: What the loop calls: the model, or something around it.

        Raises:
            SearchError: If the search is over, or the model could not be compacted when its ticket emerges.
        """
        search = self._searching
        if self.on_emergence == "compact" or search.shrink:
            check_wrapper(wrapped, search.model)
        if search.shrink and parallel_in(wrapped) is not None:
            raise SearchError(
                "shrink=True, but DistributedDataParallel would wait for gradients of the old shapes: leave it out, or "
                "give shrink=False"
            )
        if search.emerged and self.on_emergence == "stop":
            raise SearchError(
                f"the ticket emerged after {search.history[-1].step} steps, where training has stopped: draw() it, "
                "compact the model and train that; or on_emergence='compact' goes on from here"
            )
        before = len(search.history)
        search.detach()  # a run that was broken off has not
        search.attach(*optimizers)
        return search.history[before:]

    def _check(self, epoch_ends: bool) -> Check | None:
        """Call it after every optimizer step, and whenever an epoch ends; returns what was found, if it looked."""
        if self.search is None or self.compacted or self.search.emerged:
            return None
        if not (epoch_ends if self.every == "epoch" else self._steps_since >= self.every):
            return None
        self.search.update()
        _agree(self.search)
        return self.search.history[-1]

    def _take(self, optimizers: Sequence[torch.optim.Optimizer], wrapped: nn.Module) -> None:
        """Draw the ticket that has emerged, and compact the model if that is what is wanted."""
        search = self._searching
        search.detach()
        self._ticket = search.draw()
        kept = f"{self._ticket.mask.units_kept} of {self._ticket.mask.units} units are kept"
        logger.info("the ticket emerged after %d optimizer steps: %s", self._ticket.step, kept)
        if self.on_emergence == "compact":
            before = _size(search.model)
            compact_in_place(search.model, self._ticket, optimizers, wrapped)
            self.compacted = True
            logger.info("the model is compacted: %d of %d parameters are left", _size(search.model), before)

    def _leave(self) -> None:
        """Training has ended."""
        if self.search is None:
            return
        self.search.detach()
        if not self.search.emerged:
            logger.warning(
                "no ticket has emerged after %d checks: train longer, give emergence=ew.Emergence(window, epsilon) "
                "with a larger epsilon, or compact(model, draw(force=True))",
                len(self.history),
            )

    def _export(self) -> dict[str, Any]:
        """What a checkpoint must hold: plain numbers, strings, lists and tensors."""
        return {"compacted": self.compacted, "search": self._searching.state_dict()}

    def _restore(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Go on from what `_export` returned, before the weights of the same checkpoint are loaded into `model`.

        Raises:
            SearchError: If the state is of another search, or the model is compacted, but not as the weights are.
        """
        if self.compacted and self._searching.model is unwrap(model):
            masks = [some["masks"][-1] for some in (state["search"], self._searching.state_dict())]
            if not state["compacted"] or not torch.equal(*masks):
                raise SearchError(
                    "the model is compacted already, and the checkpoint is not one of this smaller model: build the "
                    "dense model, its trainer and the callback again"
                )
            return
        self._begin(model)
        search = self._searching
        search.load_state_dict(state["search"])
        if state["compacted"]:
            self._ticket = search.draw(force=True)
            compact_in_place(search.model, self._ticket)
            self.compacted = True


def as_logs(check: Check) -> dict[str, float]:
    """A check as numbers with names, for a logger; the first one knows no distance."""
    numbers = {name: value for name, value in vars(check).items() if name != "step" and value is not None}
    return {f"ticket/{name}": float(value) for name, value in numbers.items()}


def start_over(scheduler: Any) -> None:
    """Let a schedule that watches a metric begin anew: the smaller model has to beat itself, and not the dense one."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # inside of accelerate's wrapper
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    if names & {"ReduceLROnPlateau", "GreedyLR"}:
        scheduler.best, scheduler.num_bad_epochs = math.inf if scheduler.mode == "min" else -math.inf, 0
    if "GreedyLR" in names:  # of transformers
        scheduler.num_good_epochs = 0
        if scheduler.smooth:
            scheduler._streaming_avg = type(scheduler._streaming_avg)(scheduler.window_size)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _agree(search: TicketSearch) -> None:
    """Make sure that all processes have found the same mask: models of different sizes would wait forever.

    Raises:
        SearchError: If they have not.
    """
    if processes() == 1:
        return
    digest = hashlib.sha256(search.state_dict()["masks"][-1].numpy().tobytes()).hexdigest()
    digests: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        raise SearchError(
            "the processes have found different masks, so their weights differ: wrap the model in "
            "DistributedDataParallel, or start all processes from the same weights"
        )
