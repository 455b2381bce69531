"""Several pruning ratios in one search: each is what a search of its own would be."""

import pytest
import torch
from torch import nn

import earlyworm as ew
from earlyworm.errors import ConfigError, SearchError

RATIOS = (0.25, 0.5, 0.75)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 4),
    )  # fmt: skip


def train(model, search, checks, *, seed=1, lr=0.3):
    """Train with a search until it is over; yields after every check."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    with search.attach(optimizer):
        for _ in range(checks):
            x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield search.update()


def sweep_of(model, **options):
    options = {"ratios": RATIOS, "emergence": ew.Emergence(window=3, epsilon=0.05), **options}
    return ew.RatioSweep(model, torch.zeros(2, 3, 8, 8), **options)


def test_every_ratio_is_what_a_search_of_its_own_would_be():
    model = network()
    sweep = sweep_of(model)
    found = [*train(model, sweep, 12)]
    assert any(found)
    for ratio in RATIOS:
        alone = network()
        search = ew.TicketSearch(
            alone, torch.zeros(2, 3, 8, 8), pruning_ratio=ratio, emergence=ew.Emergence(window=3, epsilon=0.05)
        )
        emerged = [*train(alone, search, 12)]
        own = sweep.searches[ratio]
        assert own.history == search.history
        assert own.mask.bits.equal(search.mask.bits)
        when = [check for check, ratios in enumerate(found) if ratio in ratios]
        assert when == ([emerged.index(True)] if any(emerged) else [])


def test_tickets_are_nested_and_drawn_at_their_own_emergence():
    model = network()
    sweep = sweep_of(model)
    tickets = {}
    for ratios in train(model, sweep, 30):
        tickets |= {ratio: sweep.draw(ratio) for ratio in ratios}
        if sweep.emerged:
            break
    assert set(tickets) == set(RATIOS)
    assert {ratio: ticket.mask.units_removed for ratio, ticket in tickets.items()} == {0.25: 5, 0.5: 10, 0.75: 15}
    assert all(ticket.emerged for ticket in tickets.values())


def test_only_the_lowest_ratio_truncates():
    model = network()
    sweep = sweep_of(model, truncation=ew.Constant(0.0), sparsity_penalty=0.1)
    frozen = model[1].weight.detach().clone()
    steps = train(model, sweep, 3)
    next(steps)
    low, *others = sweep.searches.values()
    assert low.history[-1].truncated == 5
    assert all(check.truncated == 0 for search in others for check in search.history)
    still = ~sweep.searches[0.25].mask.kept[next(iter(sweep.units.sizes))]
    assert torch.equal(model[1].weight.detach()[still], frozen[still])
    assert (model[1].weight.detach() != frozen).any()
    assert low.sparsity_penalty == 0.1  # added once, and not once per ratio
    assert all(search.sparsity_penalty == 0 for search in others)


def test_every_ratio_sees_gradients_before_the_lowest_truncates_them():
    model = network()
    sweep = sweep_of(model, truncation=ew.Constant(0.0), score="taylor")
    steps = train(model, sweep, 3)
    next(steps)
    next(steps)
    low, *others = (search.draw(force=True).scores for search in sweep.searches.values())
    assert all(torch.equal(low[name], scores[name]) for scores in others for name in low)


def test_it_goes_on_from_its_state():
    model = network()
    sweep = sweep_of(model)
    expected = [*train(model, sweep, 8)]

    again = network()
    first = sweep_of(again)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    found, search = [], first
    for check in range(8):
        if check == 4:
            search = sweep_of(again)
            search.load_state_dict(first.state_dict())
        with search.attach(optimizer):
            x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(4, (16,), generator=generator)
            nn.functional.cross_entropy(again(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(search.update())
    assert found == expected
    assert [s.history for s in search.searches.values()] == [s.history for s in sweep.searches.values()]
    assert search.overhead.flops == sweep.overhead.flops > 0


@pytest.mark.parametrize("ratios", [(), (0.5,), (0.5, 0.5), (0.2, 0.5, 0.2)])
def test_too_few_ratios(ratios):
    with pytest.raises(ConfigError, match="must be two or more different ones"):
        sweep_of(network(), ratios=ratios)


def test_impossible_ratios_and_states():
    with pytest.raises(ConfigError, match=r"1\.5"):
        sweep_of(network(), ratios=(0.5, 1.5))
    sweep = sweep_of(network())
    with pytest.raises(SearchError, match=r"no ticket of ratio 0\.1 was searched for: choose 0\.25, 0\.5, 0\.75"):
        sweep.draw(0.1)
    with pytest.raises(SearchError, match="give the same"):
        sweep.load_state_dict(sweep_of(network(), ratios=(0.25, 0.5)).state_dict())


def test_a_second_attachment_is_refused_and_leaves_the_first():
    model = network()
    sweep, optimizer = sweep_of(model), torch.optim.SGD(model.parameters(), lr=0.1)
    with sweep.attach(optimizer):
        with pytest.raises(SearchError, match="the sweep is attached already: detach it first"):
            sweep.attach(optimizer)
        assert all(search.attached for search in sweep.searches.values())


def test_nothing_stays_attached_after_an_error():
    sweep = sweep_of(network(), truncation=ew.Worm())
    with pytest.raises(SearchError):
        sweep.attach(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    assert not any(search._hook.attached for search in sweep.searches.values())
