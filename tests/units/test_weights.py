"""Single weights as units: the paper's recipe for transformers, tickets of weights, several kinds at once."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import earlyworm as ew
from earlyworm.units.groups import Entries, make_slice
from single_weights import BOTH, WEIGHTS, batch, network, step

RECIPE = {**ew.WORM_TRANSFORMER, "units": WEIGHTS}


class SlowRecipe:
    """The paper's recipe for transformers, with a sort and a float mask for every check."""

    def __init__(self, model):
        self.model, self.masks, self.chis, self.small = model, [], [], False
        self.factor = torch.ones(24, 8)
        model.qkv.weight.register_hook(lambda gradient: gradient * self.factor)
        self.emerged = self.check()

    def check(self):
        scores = self.model.qkv.weight.detach()[:16].abs().flatten().tolist()
        worst = sorted(range(len(scores)), key=lambda i: (scores[i], -i))[: len(scores) // 2]
        mask = torch.ones(128)
        mask[worst] = 0.0
        self.masks = [*self.masks, mask][-3:]
        distances = [float((mask != older).float().mean()) for older in self.masks[:-1]]
        mean = sum(distances) / 2 if len(distances) == 2 else 1.0
        self.small = self.small or mean < 0.015
        chi = 0.01 if self.small else mean
        self.chis.append(chi)
        self.factor[:16] = (mask + chi * (1 - mask)).view(16, 8)
        return len(distances) == 2 and max(distances) <= 0.01


@pytest.mark.parametrize("rate", [0.03, 0.01])
def test_the_papers_recipe_equals_its_slow_restatement(rate):
    model, slow = network(), network()
    optimizer, slow_optimizer = SGD(model.parameters(), lr=rate), SGD(slow.parameters(), lr=rate)
    search = ew.TicketSearch(model, **RECIPE)
    recipe = SlowRecipe(slow)
    with search.attach(optimizer):
        for i in range(60):
            step(model, optimizer, i)
            step(slow, slow_optimizer, i)
            recipe.emerged = recipe.check()
            assert search.update() == recipe.emerged
            if recipe.emerged:
                break
    assert recipe.emerged
    assert [check.chi for check in search.history] == pytest.approx(recipe.chis, abs=1e-7)
    assert torch.equal(search.mask.flat, recipe.masks[-1].bool())
    for ours, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def masked_ticket(model, units, ratio=0.5):
    search = ew.TicketSearch(model, units=units, pruning_ratio=ratio)
    with search.attach(SGD(model.parameters(), lr=0.1)):
        return search.draw(force=True)


def test_a_ticket_of_weights_stays_in_force(tmp_path):
    model = network()
    masked_ticket(model, WEIGHTS).save(tmp_path / "ticket")
    ticket = ew.Ticket.load(tmp_path / "ticket")
    assert ticket.units.kinds == {"qkv.weight:query": "weights", "qkv.weight:key": "weights"}
    assert not ticket.scores
    assert "128 weights" in ticket.describe()
    optimizer = AdamW(model.parameters(), lr=0.01)
    step(model, optimizer, 0)  # gives it momentum
    applied = ticket.apply(model, optimizer)
    zeros = ~ticket.mask.flat.view(16, 8)
    for i in range(3):
        step(model, optimizer, i)
        assert not model.qkv.weight[:16][zeros].any()
    assert model.qkv.weight[:16][~zeros].all()
    assert model.qkv.weight[16:].all()
    applied.remove()


def test_compacting_weights_holds_them_and_removes_nothing():
    model = network()
    ticket = masked_ticket(model, WEIGHTS)
    small = ew.compact(model, ticket, example_inputs=batch(0)[0])
    assert [p.shape for p in small.parameters()] == [p.shape for p in model.parameters()]
    step(small, SGD(small.parameters(), lr=0.1, weight_decay=0.1), 0)
    small(batch(0)[0])
    assert int((small.qkv.weight == 0).sum()) == 64


def test_several_kinds_have_a_ratio_each():
    model = network()
    ticket = masked_ticket(model, BOTH, {"weights": 0.25, "neurons": 0.5})
    assert {name: int(kept.sum()) for name, kept in ticket.mask.kept.items()}["up"] == 6
    assert ticket.mask.units_kept == 6 + 96
    assert list(ticket.scores) == ["up"]
    assert "pruning ratio weights 0.25, neurons 0.5" in ticket.describe()
    assert "pruning ratio 0)" in masked_ticket(model, BOTH, 0).describe()
    small = ew.compact(model, ticket, example_inputs=batch(0)[0])
    assert small.up.out_features == small.down.in_features == 6
    assert int((small.qkv.weight == 0).sum()) == 32
    assert masked_ticket(model, BOTH, 0.5).mask.units_kept == 6 + 64  # one number is that of each kind


def test_heads_that_are_cut_take_their_masked_weights_along():
    """Rows of the matrix whose entries are units are removed as units of another kind."""
    rows = ew.UnitGroup(
        "rows",
        4,
        (
            make_slice("0.weight", 0, [0, 1, 2, 3], [0, 1, 2, 3], "filter", gate=True),
            make_slice("0.bias", 0, [0, 1, 2, 3], [0, 1, 2, 3], "bias", gate=True),
            make_slice("2.weight", 1, [0, 1, 2, 3], [0, 1, 2, 3], "input", gate=True),
        ),
        "neurons",
    )
    entries = ew.UnitGroup("0.weight", 12, (), "weights", Entries("0.weight", 0, 0, 4))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ticket = masked_ticket(model, ew.Units((rows, entries), (rows,)), {"neurons": 0.5, "weights": 0.5})
    small = ew.compact(model, ticket, example_inputs=torch.randn(5, 3))
    kept = ticket.mask.kept
    expected = kept["0.weight"].view(4, 3)[kept["rows"]]
    assert torch.equal(small[0].weight != 0, expected)


def test_distance_is_that_of_the_kind_that_is_farthest_apart():
    kinds = {"a": "heads", "b": "neurons", "c": "heads"}

    def mask(a, b, c):
        groups = {"a": a, "b": b, "c": c}
        return ew.Mask.from_groups({n: torch.tensor([x == "1" for x in text]) for n, text in groups.items()}, kinds)

    assert ew.mask_distance(mask("11", "11111111", "01"), mask("10", "11111111", "01")) == 0.25
    assert ew.mask_distance(mask("11", "11110000", "01"), mask("10", "00001111", "01")) == 1.0
    assert ew.mask_distance(mask("11", "11111110", "01"), mask("11", "11111111", "01")) == 0.125


def test_masks_are_packed():
    model = network()
    search = ew.TicketSearch(model, **RECIPE)
    with search.attach(SGD(model.parameters(), lr=0.1)):
        assert search.mask.bits.numel() == 16
    assert search.state_dict()["masks"][0].dtype == torch.uint8


def test_state_round_trip_in_the_middle():
    def run(interrupt):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        search = ew.TicketSearch(model, **{**RECIPE, "emergence": ew.Emergence(3, 0.0)})
        search.attach(optimizer)
        for i in range(8):
            step(model, optimizer, i)
            if i % 2:
                search.update()
            if i == interrupt:
                state = search.state_dict()
                search.detach()
                search = ew.TicketSearch(model, **{**RECIPE, "emergence": ew.Emergence(3, 0.0)})
                search.load_state_dict(state)
                search.attach(optimizer)
        search.detach()
        return search, model

    expected, model = run(None)
    for interrupt in (0, 3, 6):
        search, again = run(interrupt)
        assert search.history == expected.history
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = network().to(dtype)
    ticket = masked_ticket(model, WEIGHTS)
    weights = model.qkv.weight.detach()[:16].abs().flatten()
    kept = ticket.mask.flat
    assert weights[~kept].max() <= weights[kept].min()
    assert ticket.mask.units_kept == 64


def test_frozen_matrices_are_refused():
    model = network()
    model.qkv.requires_grad_(False)
    with pytest.raises(ew.SearchError, match="all parameters of the units are frozen"):
        ew.TicketSearch(model, units=WEIGHTS).attach(SGD(model.parameters(), lr=0.1))
