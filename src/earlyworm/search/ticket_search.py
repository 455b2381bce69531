"""The search: scores, masks, emergence and truncation, hooked into anybody's training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, is_dataclass
from typing import Any, Self

import torch
from torch import nn

from earlyworm.errors import ConfigError, SearchError
from earlyworm.inputs import ExampleInputs, unwrap
from earlyworm.masks.mask import Mask, MaskWindow, mask_of_finite
from earlyworm.masks.ratios import Ratio, check_ratio, plain_ratio
from earlyworm.masks.scorer import Scorer
from earlyworm.masks.scores import Score
from earlyworm.search.emergence import Emergence
from earlyworm.search.gradients import GradientHook
from earlyworm.search.history import Check, Overhead
from earlyworm.search.schedule import Schedule
from earlyworm.search.shrinking import Shrinking
from earlyworm.search.truncation import Truncation
from earlyworm.tickets.ticket import Ticket, library_versions
from earlyworm.units.finding import units_of
from earlyworm.units.groups import Units, gate_masks

STATE_VERSION = 6


class TicketSearch:
    """Watches a model while it is trained and notices when its ticket has emerged.

    Args:
        model: The model that is trained; wrappers (DDP, `torch.compile`) may be put around it before or after,
            but before `attach` where these make the weights of several processes equal, as DDP does: each takes masks
            of its own, which are equal only if the weights are.
        example_inputs: What its forward takes: a tensor, a sequence of arguments or a mapping of keyword arguments;
            needed for channels only, which are found by tracing.
        units: `"channels"`, `"heads"`, `"neurons"` or `"weights"`, several of them, or what `find_units` returned.
        pruning_ratio: Fraction of the units of each kind to remove, in [0, 1), or one such number per kind.
        emergence: Window and epsilon.
        truncation: Schedule of chi: `Constant`, `Greedy`, `Worm`, `Fade`; None is Early Bird.
        sparsity_penalty: Network slimming (arXiv 1708.06519): `penalty * sign(scale)` is added to the gradient of
            every batch-norm scale of the units, before truncation.
        score: `"auto"` (batch norm or filter norm for channels, else magnitude), a name in `scores.SCORES`, a
            function, or `"taylor"`: |weight x gradient|, summed up over the steps since the last check. It needs
            gradients, so that its first mask is that of the first `update`.
        min_units: How many units of every group stay: a number, at least 1, or a fraction of the group, in (0, 1);
            retraining may not mend a layer of one unit. None: a fifth of the share that stays of all units of the
            kind, so at pruning ratio 0.5 a tenth of every group, and from 0.75 on a twentieth, or half of that share if
            it is less; 1 of single weights. The papers' rule is 1.
        steps_per_epoch: Optimizer steps per epoch, at least 1; only for a half-life of `Fade` that is given in epochs.
        shrink: Cut units out of the model while it is searched, once they were static at every check of a whole window:
            as if they were zeroed then and held at zero, but every following step is cheaper. Parameters stay the
            objects that they are, and the state of the optimizers is cut along. Masks, distances and the ticket are
            over all units as before. Not for single weights, nor for several processes.

    Raises:
        UnitsError: If the model has no such units, or its weights are not there, sharded, quantised or adapted.
        ConfigError: If the ratio, the penalty, `emergence` or `min_units` is impossible, or there is nothing to shrink.

    Example:
        >>> import torch, earlyworm as ew
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))
        >>> x = torch.randn(4, 3, 8, 8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> search = ew.TicketSearch(model, example_inputs=x, emergence=ew.Emergence(window=2))
        >>> with search.attach(optimizer):
        ...     model(x).sum().backward()
        ...     optimizer.step()
        ...     emerged = search.update()
        >>> small = ew.compact(model, search.draw(force=True))
        >>> small[0].out_channels
        4
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs | None = None,
        *,
        units: str | Sequence[str] | Units = "channels",
        pruning_ratio: Ratio = 0.5,
        emergence: Emergence = Emergence(),  # noqa: B008  (frozen)
        truncation: Truncation | None = None,
        sparsity_penalty: float = 0.0,
        score: str | Score = "auto",
        min_units: float | None = None,
        steps_per_epoch: int | None = None,
        shrink: bool = False,
    ) -> None:
        if not isinstance(emergence, Emergence):
            raise ConfigError(f"emergence is {emergence!r}, but must be ew.Emergence(window, epsilon)")
        self._schedule = Schedule(truncation, emergence.window, steps_per_epoch)
        self.model = unwrap(model)
        self.pruning_ratio = plain_ratio(pruning_ratio)
        self.min_units = min_units
        self.emergence = emergence
        self.truncation = truncation
        self.sparsity_penalty = sparsity_penalty
        self._scorer = Scorer(self.model, units_of(self.model, units, example_inputs), score)
        self.units = self._scorer.units
        self.history: list[Check] = []
        self._window = MaskWindow(emergence.window)
        self._distances: tuple[float, ...] = ()
        self._seconds = 0.0  # of all checks
        self._flops = 0
        self._shrinking = Shrinking(self.model, self.units, wanted=shrink)
        self._hook = GradientHook(self.model, self.units, sparsity_penalty)
        if self._scorer.observe:
            self._hook.observers.append(self._scorer.observe)
        if not 0 <= sparsity_penalty < math.inf:
            raise ConfigError(f"sparsity_penalty is {sparsity_penalty}, but must be a number, 0 or more")
        if sparsity_penalty and not self._hook.scales:
            raise ConfigError("sparsity_penalty acts on batch-norm scales, and the units have none: set it to 0")
        if shrink and truncation is None:
            raise ConfigError("shrink=True cuts out static units, and there are none: give truncation=ew.Fade()")
        if shrink and any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
            raise ConfigError("shrink=True, but DistributedDataParallel knows the shapes as they are: leave one out")
        # An impossible ratio is an error now.
        check_ratio(self.units.sizes, self.pruning_ratio, min_units=min_units, kinds=self.units.kinds)

    @property
    def _method(self) -> str:
        if self.truncation is None:
            return "Early Bird"
        return repr(self.truncation) if is_dataclass(self.truncation) else type(self.truncation).__name__

    @property
    def steps(self) -> int:
        """Optimizer steps that were seen so far."""
        return self._hook.steps

    @property
    def overhead(self) -> Overhead:
        """What the search itself has cost so far."""
        return Overhead(self._seconds + self._hook.seconds, self._flops + self._hook.flops)

    @property
    def attached(self) -> bool:
        """Whether the search is attached to optimizers."""
        return self._hook.attached

    @property
    def shrink(self) -> bool:
        """Whether units are cut out of the model while it is searched."""
        return self._shrinking.wanted

    @property
    def cut(self) -> int:
        """How many units were cut out of the model so far, as `shrink=True` asks for."""
        return self._shrinking.cut

    @property
    def emerged(self) -> bool:
        """Whether the ticket has emerged."""
        return self.emergence.has_emerged(self._distances)

    @property
    def mask(self) -> Mask:
        """The newest mask.

        Raises:
            SearchError: If none was taken yet.
        """
        if not self.history:
            raise SearchError("no mask was taken yet: attach the search to the optimizer first")
        return self._window.newest

    def attach(self, *optimizers: torch.optim.Optimizer) -> Self:
        """Hook into the optimizers that train the model; take the first mask, unless the search is resumed.

        Use it in a `with` statement, or call `detach` afterwards. Truncation and penalty act once per optimizer
        step, right before it; for an optimizer that is called with a closure, right after each call of the closure.

        Args:
            optimizers: All optimizers that hold parameters of the units; wrappers with an `optimizer` attribute
                (accelerate, Lightning) are seen through. A wrapper that puts weights back, as Lookahead does, undoes
                some of what fading does.

        Raises:
            SearchError: If the search is attached already, or a trainable parameter that truncation or the penalty
                must act on is in none of the optimizers; where it shrinks the model, if any parameter of the units is
                not, or there are several processes.
        """
        self._hook.attach(optimizers, will_truncate=self.truncation is not None)
        try:
            self._shrinking.check(self._hook.optimizers)
            self._start()
        except BaseException:
            self.detach()  # no `with` block will
            raise
        return self

    def detach(self) -> None:
        """Unhook from the optimizers; the search can be attached again."""
        self._hook.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def update(self) -> bool:
        """Take a mask, compare it with the window, set chi. Call it once per epoch, or at any other interval.

        With `shrink=True` it may cut units out of the model, and drops the gradients of what it has cut: call it
        between an optimizer step and the next forward pass.

        Returns:
            True once the ticket has emerged; further calls do nothing and return True.

        Raises:
            SearchError: If the search is not attached, no optimizer step was seen since the last check, no score has
                changed, truncation or the penalty had, or will have, no gradient to act on, or `shrink=True` and the
                state of an optimizer cannot be cut (Adafactor, LBFGS, 8-bit Adam).
        """
        if self.emerged:
            return True
        self._hook.check_acted(since=self.history[-1].step if self.history else 0)
        self._shrinking.check(self._hook.optimizers)
        self._check()
        return self.emerged

    def draw(self, *, force: bool = False) -> Ticket:
        """The ticket: the mask at emergence and where it came from.

        Args:
            force: Take the newest mask even if no ticket has emerged.

        Raises:
            SearchError: If nothing has emerged and `force` is False, or no mask was taken yet.
        """
        mask = self.mask
        if not (self.emerged or force):
            lacking = self.emergence.lacking(self._distances)
            raise SearchError(f"no ticket has emerged after {len(self.history)} checks: {lacking}, or draw(force=True)")
        return Ticket(
            mask=mask,
            units=self.units,
            scores=self._scorer.newest,
            structure=self._shrinking.structure,
            method=self._method,
            pruning_ratio=self.pruning_ratio,
            step=self.history[-1].step,
            emerged=self.emerged,
            distances=self._distances,
            versions=library_versions(),
            left=self._shrinking.left,
        )

    def state_dict(self) -> dict[str, Any]:
        """The whole search: plain numbers, strings, lists and tensors."""
        return {
            "version": STATE_VERSION,
            "sizes": self.units.sizes,
            "window": self.emergence.window,
            "pruning_ratio": copy(self.pruning_ratio),
            "min_units": self.min_units,
            "method": self._method,
            "masks": [mask.bits.clone() for mask in self._window.masks],
            "left": None if self._shrinking.left is None else self._shrinking.left.bits.clone(),
            **self._scorer.state_dict(),
            "distances": list(self._distances),
            "history": [asdict(check) for check in self.history],
            "steps": self.steps,
            "truncations": self._hook.truncations,
            "overhead": asdict(self.overhead),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, before or after `attach`.

        If units were cut out (`shrink=True`), they are cut out of the model here, which must be as it was at first. So
        call this before the smaller weights, and the optimizer's state, are loaded.

        Raises:
            SearchError: If it is of another version, or of a search over other units or with another window, ratio,
                `min_units` or truncation, or other units were cut out of the model.
        """
        if state.get("version") != STATE_VERSION:
            raise SearchError(f"the state has version {state.get('version')}, but this one reads {STATE_VERSION}")
        if list(state["sizes"].items()) != list(self.units.sizes.items()):
            raise SearchError("the state is of a search over other units: build the same model and units first")
        if state["window"] != self.emergence.window:
            raise SearchError(f"the state is of a search with window {state['window']}, not {self.emergence.window}")
        here = {"pruning_ratio": self.pruning_ratio, "min_units": self.min_units, "method": self._method}
        for name, value in here.items():
            if state[name] != value:
                raise SearchError(f"the state is of a search with {name}={state[name]}, not {value}")
        left = self._shrinking.left_by(state["left"])
        if left is not None and self._hook.attached:
            self._shrinking.check(self._hook.optimizers)
        window = MaskWindow(self.emergence.window)
        window.masks.extend(Mask(bits.cpu().clone(), self.units.sizes, self.units.kinds) for bits in state["masks"])
        history = [Check(**check) for check in state["history"]]
        self._scorer.load_state_dict(state)  # the last that can fail; nothing has changed before
        if left is not None:
            self._cut(left)
        self._window, self.history, self._distances = window, history, tuple(state["distances"])
        self._hook.steps, self._hook.truncations = state["steps"], state["truncations"]
        self._seconds, self._flops = state["overhead"]["seconds"], state["overhead"]["flops"]
        self._hook.seconds, self._hook.flops = 0.0, 0
        if self._hook.attached:
            self._start()

    def _start(self) -> None:
        """Take the first mask, or go on from the newest."""
        self._hook.set_truncation({}, 1.0)
        if self.history:
            self._refresh()
        elif not self._scorer.observe:  # there is no gradient yet
            self._check()

    def _check(self) -> None:
        """Take a mask and everything that follows from it."""
        start = time.perf_counter()
        mask = mask_of_finite(
            self._scorer.take(), self.pruning_ratio,
            min_units=self.min_units, kinds=self.units.kinds, left=self._shrinking.left,
        )  # fmt: skip
        distances = self._window.distances(mask)
        mean = sum(distances) / len(distances) if distances else None
        recent = self._schedule.recent(distances)
        chi = self._schedule.chi(self.history, recent)  # the last that can fail; nothing has changed before
        self._window.push(mask)
        self._distances = distances
        truncated = self._static().units_removed if chi < 1 else 0
        self.history.append(Check(self.steps, mean, max(self._distances, default=None), chi, truncated, recent))
        self._hook.truncations = 0
        if self._settled() and (left := self._shrinking.after(self._window.ever_kept)):
            self._cut(left)
        self._refresh()
        self._seconds += time.perf_counter() - start
        # One comparison per unit and older mask, and the passes that select the threshold.
        self._flops += mask.units * (len(self._distances) + 4)

    def _static(self) -> Mask:
        """The mask that removes the static units."""
        window = self.truncation is not None and self.truncation.static == "window"
        return self._window.ever_kept if window else self._window.newest

    def _refresh(self) -> None:
        """Truncate by the newest check."""
        newest, here = self.history[-1], self._shrinking
        static = self._static() if here.left is None else self._static().among(here.left)
        masks = gate_masks(self.model, here.units.groups, static.kept) if newest.truncated else {}
        self._hook.set_truncation(masks, newest.chi, self._schedule.half_life(self.history))

    def _settled(self) -> bool:
        """Whether there were static units at every check of a whole window, and it goes on."""
        recent = self.history[-self.emergence.window :]
        return len(recent) == self.emergence.window and all(check.truncated for check in recent) and not self.emerged

    def _cut(self, left: Mask) -> None:
        """Cut all units but those that are to be left out of the model."""
        self._shrinking.cut_(left, self._hook.optimizers)
        self._scorer.shrink(self._shrinking.units, left)
