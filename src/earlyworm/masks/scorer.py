"""The scores that a search takes at every check, and whether any has changed since the check before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from earlyworm.errors import SearchError
from earlyworm.masks.mask import Mask, check_finite
from earlyworm.masks.scores import Score, choose_score, magnitude, score_name, score_units
from earlyworm.masks.selection import absolute_sum
from earlyworm.masks.taylor import TaylorScore
from earlyworm.units.groups import Units


class Scorer:
    """Scores the units of one model again and again, and remembers enough to notice that no score has changed.

    Args:
        model: The model that is trained.
        units: Its units.
        score: `"auto"`, a name in `scores.SCORES`, a function, or `"taylor"`.

    Attributes:
        units: Those of the units that the score can judge.
        observe: What has to be called with the gradients of every step, see `GradientHook.observers`; None if the
            score needs no gradients.
        newest: The newest scores of all units that can be removed, float32 [group size] per group name, on the CPU; 0
            for those that were cut out.

    Raises:
        UnitsError: If there is no such score, or none for some unit.
    """

    def __init__(self, model: nn.Module, units: Units, score: str | Score) -> None:
        self._model = model
        self._taylor = TaylorScore(model, units) if score == "taylor" else None
        self._scores, self.units = choose_score(units, magnitude if self._taylor else score)
        self.observe = self._taylor.observe if self._taylor else None
        self.newest: dict[str, Tensor] = {}
        self._sums: dict[str, float] = {}  # of all newest absolute scores, per group
        self._left: Mask | None = None
        score_units(model, self.units.groups, self._scores)  # units without a score are an error now

    def take(self) -> dict[str, Tensor]:
        """The scores of all units that are left, finite, per group name; those of single weights are not copied.

        Raises:
            SearchError: If no score has changed since the last call, one is not finite, or, where gradients are
                needed, a group has seen none.
        """
        scores = self._taylor.take() if self._taylor else score_units(self._model, self.units.groups, self._scores)
        # The sums tell of scores that are not finite too; of single weights they are all that is remembered.
        sums = {name: absolute_sum(score) for name, score in scores.items()}
        newest = {group.name: scores[group.name].cpu() for group in self.units.groups if group.entries is None}
        if self._left is not None:
            for name, there in self._left.kept.items():
                newest[name] = torch.zeros(len(there), dtype=torch.float32).masked_scatter(there, newest[name])
        if sums == self._sums and all(torch.equal(score, self.newest[name]) for name, score in newest.items()):
            raise SearchError(
                "no score has changed since the last check: equal masks would look like emergence; are the parameters "
                "that are scored frozen, is another model trained, or are steps too small for half-precision weights?"
            )
        check_finite(sums)
        self._sums, self.newest = sums, newest
        return scores

    def shrink(self, units: Units, left: Mask) -> None:
        """Go on with the units that are left, after `take`.

        Args:
            units: These, as they are in the model now.
            left: Which of all units these are.
        """
        self.units, self._left = units, left
        self.newest = {name: score.where(left.kept[name], 0) for name, score in self.newest.items()}
        if self._taylor:
            self._taylor.units = units

    @property
    def _names(self) -> dict[str, str]:
        """The name of the score of each kind of units."""
        return {kind: "taylor" if self._taylor else score_name(score) for kind, score in self._scores.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {
            "score": self._names,
            "scores": dict(self.newest),
            "sums": dict(self._sums),
            "taylor": self._taylor.state_dict() if self._taylor else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; other entries are passed over.

        Raises:
            SearchError: If it is of another score; nothing has changed then.
        """
        if state["score"] != self._names:
            there, here = (", ".join(dict.fromkeys(names.values())) for names in (state["score"], self._names))
            raise SearchError(f"the state is of a search with another score ({there}) than this one ({here})")
        self.newest = {name: score.cpu() for name, score in state["scores"].items()}
        self._sums = dict(state["sums"])
        if self._taylor:
            self._taylor.load_state_dict(state["taylor"])
