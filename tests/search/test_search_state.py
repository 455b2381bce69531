"""A search that is saved, loaded and continued, wherever it was interrupted."""

import io

import pytest
import torch
from torch import nn
from torch.optim import SGD

import earlyworm as ew
from residual import make_network, states_equal
from stepping import UNITS, plain

STEPS, EVERY = 13, 2  # it emerges at step 12


def begin(seed):
    model = make_network(seed)
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    search = ew.TicketSearch(
        model, units=UNITS, truncation=ew.Worm(trigger=0.2, chi=0.01, static="window", greedy_first=True),
        emergence=ew.Emergence(window=3, epsilon=0.0), sparsity_penalty=0.02,
    )  # fmt: skip
    return model, optimizer, search


def go(model, optimizer, search, first, last):
    for i in range(first, last):
        plain(model, optimizer, i)
        if (i + 1) % EVERY == 0:
            search.update()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted():
    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, STEPS)
    chis = [check.chi for check in search.history]
    assert len(set(chis)) == 4  # not truncated, greedily, and triggered: all of it is carried over
    assert search.emerged
    return model, optimizer, search


@pytest.mark.parametrize("load", ["before attach", "after attach"])
@pytest.mark.parametrize("step", [None, *range(STEPS + 1)])
def test_interrupted_and_resumed_equals_uninterrupted(uninterrupted, step, load):
    model, optimizer, search = begin(0)
    if step is not None:  # None: saved before the first mask
        with search.attach(optimizer):
            go(model, optimizer, search, 0, step)
    saved = through_a_file({"m": model.state_dict(), "o": optimizer.state_dict(), "s": search.state_dict()})

    model, optimizer, search = begin(7)
    model.load_state_dict(saved["m"])
    optimizer.load_state_dict(saved["o"])
    if load == "before attach":
        search.load_state_dict(saved["s"])
        search.attach(optimizer)
    else:
        search.attach(optimizer)
        search.load_state_dict(saved["s"])
    with search:
        go(model, optimizer, search, step or 0, STEPS)

    expected_model, expected_optimizer, expected = uninterrupted
    assert states_equal(model, expected_model)
    for ours, theirs in zip(model.parameters(), expected_model.parameters(), strict=True):
        assert torch.equal(
            optimizer.state[ours]["momentum_buffer"], expected_optimizer.state[theirs]["momentum_buffer"]
        )
    assert search.history == expected.history
    assert search.steps == expected.steps
    assert list(search._window.masks) == list(expected._window.masks)
    assert search.emerged == expected.emerged
    assert search.overhead.flops == expected.overhead.flops
    ours, theirs = search.draw(force=True), expected.draw(force=True)
    assert ours.mask == theirs.mask
    assert (ours.step, ours.distances) == (theirs.step, theirs.distances)
    assert all(torch.equal(score, theirs.scores[name]) for name, score in ours.scores.items())


def test_a_search_that_was_saved_right_before_a_check_can_take_it():
    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 5)
        assert search.history[-1].truncated
    model, optimizer, resumed = begin(0)
    resumed.load_state_dict(search.state_dict())
    with resumed.attach(optimizer):
        resumed.update()  # the step that it needs, and its truncation, were before
    assert resumed.history[-1].step == 5


def test_loading_takes_the_place_of_what_was_there():
    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 4)
        state = through_a_file(search.state_dict())
        go(model, optimizer, search, 4, 8)
        assert search.overhead.flops > state["overhead"]["flops"]
        search.load_state_dict(state)
        again = search.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(again.pop("masks"), state.pop("masks"), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(again.pop("scores").values(), state.pop("scores").values(), strict=True)
    )
    assert again == state


def test_a_state_from_before_the_first_check_ends_truncation():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=0.1)
    search = ew.TicketSearch(model, units=UNITS, score="taylor", truncation=ew.Constant(0.0))
    empty = search.state_dict()
    with search.attach(optimizer):
        for i in range(2):
            plain(model, optimizer, i)
            search.update()
        assert search._hook.truncating
        search.load_state_dict(empty)
        assert not search._hook.truncating


def test_a_state_is_a_copy(uninterrupted):
    _, _, search = uninterrupted
    state = search.state_dict()
    history, masks = list(search.history), [mask.flat.clone() for mask in search._window.masks]
    for mask in state["masks"]:
        mask.logical_not_()
    state["history"].clear()
    state["sizes"].clear()
    assert search.history == history
    assert all(torch.equal(a.flat, b) for a, b in zip(search._window.masks, masks, strict=True))
    assert search.mask.sizes == search.units.sizes


def test_states_that_do_not_fit(uninterrupted):
    state = uninterrupted[2].state_dict()
    _, _, search = begin(0)
    plain_layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    other = ew.TicketSearch(plain_layers, torch.randn(1, 3, 6, 6), emergence=ew.Emergence(window=3))
    wider = ew.TicketSearch(make_network(), units=UNITS, emergence=ew.Emergence(window=4))
    turned = {**state, "sizes": dict(reversed(state["sizes"].items()))}
    for target, wrong, message in [
        (search, {**state, "version": 2}, "the state has version 2, but this one reads 6"),
        (search, {}, "the state has version None"),
        (other, state, "over other units"),
        (search, turned, "over other units"),
        (wider, state, "window 3, not 4"),
        (search, {**state, "pruning_ratio": 0.25}, "pruning_ratio=0.25, not 0.5"),
        (search, {**state, "min_units": 3}, "min_units=3, not None"),
        (search, {**state, "method": "Early Bird"}, r"method=Early Bird, not \w+\(.*\)"),
        (
            search,
            {**state, "score": {"channels": "filter-l1"}},
            r"with another score \(filter-l1\) than this one \(.+\)",
        ),
    ]:
        with pytest.raises(ew.SearchError, match=message):
            target.load_state_dict(wrong)
        assert target.history == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"score": {"channels": "mine"}}, ew.SearchError),
        ({"window": 4}, ew.SearchError),
        ({"history": [{"epoch": 3}]}, TypeError),
    ],
)
def test_after_a_refused_state_a_search_is_as_before(uninterrupted, wrong, error):
    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 4)
        before, masks = through_a_file(search.state_dict()), list(search._window.masks)
        with pytest.raises(error):
            search.load_state_dict({**uninterrupted[2].state_dict(), **wrong})
        after = search.state_dict()
        assert list(search._window.masks) == masks
        for name, score in before.pop("scores").items():
            assert torch.equal(after["scores"][name], score)
        assert {**after, "masks": None, "scores": None} == {**before, "masks": None, "scores": None}
        go(model, optimizer, search, 4, STEPS)
    assert search.history == uninterrupted[2].history


def test_another_window_is_noticed_before_it_is_full():
    model, optimizer, search = begin(0)
    with search.attach(optimizer):
        state = search.state_dict()
    assert len(state["masks"]) == 1
    with pytest.raises(ew.SearchError, match="window 3, not 2"):
        ew.TicketSearch(model, units=UNITS, emergence=ew.Emergence(window=2)).load_state_dict(state)
