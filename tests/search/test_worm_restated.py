"""WORM once more, slowly and plainly, beside the search."""

from collections import deque

import pytest
import torch
from torch.optim import SGD, AdamW

from earlyworm import Emergence, TicketSearch, Worm
from residual import COUPLED, make_network, states_equal
from stepping import UNITS, plain


class SlowWorm:
    """The method as the papers write it, with a hook on every parameter's gradient."""

    def __init__(self, model, ratio, window, trigger, chi):
        self.model, self.ratio, self.trigger, self.low = model, ratio, trigger, chi
        self.masks = deque(maxlen=window)
        self.triggered = False
        self.chis = []
        self.factors = {}
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda gradient, name=name: gradient * self.factors.get(name, 1.0))
        self.check()

    def check(self):
        tensors = dict(self.model.named_parameters())
        scores = []
        for group, norms in COUPLED.items():
            for unit in range(len(tensors[f"{norms[0]}.weight"])):
                members = [abs(float(tensors[f"{norm}.weight"].detach()[unit])) for norm in norms]
                scores.append((sum(members) / len(members), group, unit))
        best = {max(score for score in scores if score[1] == group) for group in COUPLED}
        removed = {score[1:] for score in sorted(set(scores) - best)[: int(self.ratio * len(scores))]}
        older = list(self.masks)
        self.masks.append(removed)
        distances = [len(removed ^ other) / len(scores) for other in older]
        if len(distances) == self.masks.maxlen - 1 and sum(distances) / len(distances) < self.trigger:
            self.triggered = True
        chi = self.low if self.triggered else 1.0
        self.chis.append(chi)
        self.factors = {}
        for group, norms in COUPLED.items():
            for norm in norms:
                factor = torch.tensor([
                    chi if (group, unit) in removed else 1.0 for unit in range(len(tensors[f"{norm}.weight"]))
                ])  # fmt: skip
                self.factors[f"{norm}.weight"] = self.factors[f"{norm}.bias"] = factor


@pytest.mark.parametrize("make_optimizer", [
    lambda p: SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-3), lambda p: AdamW(p, lr=0.03),
])  # fmt: skip
def test_same_weights_as_the_slow_restatement(make_optimizer):
    model, slow = make_network(1), make_network(1)
    optimizer, slow_optimizer = make_optimizer(model.parameters()), make_optimizer(slow.parameters())
    truncation = Worm(trigger=0.3, chi=0.01)
    search = TicketSearch(model, units=UNITS, truncation=truncation, emergence=Emergence(window=3, epsilon=0.0))
    worm = SlowWorm(slow, ratio=0.5, window=3, trigger=0.3, chi=0.01)
    with search.attach(optimizer):
        for i in range(12):
            plain(model, optimizer, i)
            plain(slow, slow_optimizer, i)
            if i % 2:
                emerged = search.update()
                worm.check()
                assert states_equal(model, slow)
                if emerged:
                    break
    assert [check.chi for check in search.history] == worm.chis
    assert {1.0, 0.01} == set(worm.chis)
    removed = {
        (group, unit) for group, kept in search.mask.kept.items() for unit in (~kept).nonzero().flatten().tolist()
    }
    assert removed == worm.masks[-1]
