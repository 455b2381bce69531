"""A search that shrinks the model meanwhile does what one does whose cut units are zeroed and held at zero."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from transformers import Adafactor

import earlyworm as ew
import earlyworm.search.shrinking
import zoo
from earlyworm.inputs import call_model, floating_tensors
from earlyworm.integrations.callback import SearchCallback
from earlyworm.tickets.ticket import fingerprint
from earlyworm.units.groups import gate_masks, named_tensors
from earlyworm.units.holding import AppliedTicket
from residual import loss_on, make_batch, make_network, states_equal
from sentences import Sentences, make_bert, numbers
from stepping import UNITS

WINDOW, EVERY, STEPS = 3, 2, 17
HALF = ew.Constant(chi=0.5)  # masks go on moving


def sgd(model, lr=0.15):
    return SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)


def adamw(model, lr=0.02):
    return AdamW(model.parameters(), lr=lr, weight_decay=0.1, eps=1e-3)  # or rounding decides where gradients vanish


def bert():
    torch.manual_seed(0)
    return make_bert(dropout=0.0).double(), Sentences().batch(6)


def encoder():
    """Attention of torch, which gets another class once it has lost heads."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    return model, torch.randn(4, 5, 16, dtype=torch.float64)


@dataclass(frozen=True)
class Never(ew.Emergence):
    """Does not emerge."""

    window: int = WINDOW

    def has_emerged(self, distances):
        return False


@dataclass
class Case:
    """What is trained, and how it is searched; `everything`: scores look at weights of cut units too, if they can."""

    build: Callable[[], tuple[nn.Module, Any]]
    find: Callable[[], ew.Units]
    optimizer: Callable[[nn.Module], Any] = sgd
    search: dict[str, Any] = field(default_factory=dict)
    everything: bool = False

    def begin(self, **options):
        model, inputs = self.build()
        settings = {"truncation": HALF, "emergence": Never(), **self.search, **options}
        return model, inputs, self.optimizer(model), ew.TicketSearch(model, units=self.find(), **settings)


def of_zoo(name, optimizer=sgd, coupling="coupled", everything=False, **search):
    def build():
        model, inputs = zoo.build(name, dtype=torch.float64)
        for parameter in model.parameters():
            if parameter.dim() == 1 and not everything:
                parameter.data.mul_(0.1).add_(1)  # scales that are near to each other, so that masks move
        return model, inputs

    return Case(build, lambda: zoo.units_of(name, coupling), optimizer, search, everything)


@cache
def transformer_units(build):
    return ew.find_units(build()[0], ("heads", "neurons"))


CASES = {
    "residual": of_zoo("resnet_basic"),
    "residual-adamw-worm": of_zoo("resnet_basic", adamw, truncation=ew.Worm(trigger=1.0, chi=0.3, static="window")),
    "residual-fade": of_zoo("resnet_basic", truncation=ew.Fade(trigger=1.0, half_life=3.0, chi=0.5), steps_per_epoch=4),
    "residual-emerging": of_zoo("resnet_basic", emergence=ew.Emergence(WINDOW, epsilon=0.0)),
    "residual-greedy": of_zoo("resnet_bottleneck", truncation=ew.Greedy()),
    "residual-penalty": of_zoo("pre_activation", sparsity_penalty=0.01, min_units=0.3),
    "residual-taylor": of_zoo("resnet_basic", adamw, score="taylor"),
    "concatenation": of_zoo("densenet"),
    "concatenation-adamw": of_zoo("inception", adamw),
    "depthwise": of_zoo("mobilenet"),
    "grouped": of_zoo("resnext"),
    "several channels from one": of_zoo("channel_multiplier"),
    "doubled": of_zoo("doubled"),
    "split": of_zoo("split"),
    "tied": of_zoo("tied_twins"),
    "one dimension": of_zoo("conv1d"),
    "flattened": of_zoo("flatten_norm"),
    "memory format": of_zoo("channels_last"),
    "partly frozen": of_zoo("mixed_requires_grad"),
    "filters": of_zoo("conv_bias", everything=True),
    "tied filters": of_zoo("tied_autoencoder", everything=True),
    "independent": of_zoo("resnet_basic", coupling="independent"),
    "independent-adamw": of_zoo("densenet", adamw, coupling="independent"),
    "bert": Case(bert, lambda: transformer_units(bert), adamw, {"score": "taylor", "pruning_ratio": 0.6}),
    "encoder": Case(encoder, lambda: transformer_units(encoder), search={"pruning_ratio": 0.6}),
    "encoder-taylor": Case(encoder, lambda: transformer_units(encoder), adamw, {"score": "taylor"}),
}  # fmt: skip


def noisy(inputs: Any, i: int) -> Any:
    """Inputs of step number i; words are turned around."""
    generator = torch.Generator().manual_seed(i)

    def other(tensor):
        if tensor.is_floating_point():
            return tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor.roll(i, 0)

    return torch.utils._pytree.tree_map_only(Tensor, other, inputs)


def step(model, optimizer, inputs, i):
    optimizer.zero_grad()
    outputs = list(floating_tensors(call_model(model, noisy(inputs, i))))
    generator = torch.Generator().manual_seed(1000 + i)
    wanted = [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]
    loss = sum(F.mse_loss(output, target) for output, target in zip(outputs, wanted, strict=True))
    loss.backward()
    optimizer.step()
    return loss  # holds the graph of the old shapes, as the loss in a loop does until the next one is there


class Masked:
    """The search without shrinking; what it would cut is zeroed and held at zero, as brute force says what that is."""

    def __init__(self, case):
        self.model, self.inputs, self.optimizer, self.search = case.begin()
        self.everything = case.everything
        self.dense = copy.deepcopy(self.model)
        self.masks, self.hold = [], None
        self.entries = self._entries({name: torch.ones(size) for name, size in self.search.units.sizes.items()})
        self.cuts = 0

    def _entries(self, kept):
        """For every tensor, which of its entries a network has that lost the units whose gates are all closed."""
        removable = self.search.units.removable
        gates = gate_masks(self.model, self.search.units.groups, {name: mask.bool() for name, mask in kept.items()})
        units = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in removable}
        for group in removable:
            for piece in group.gates():
                for position, unit in zip(piece.positions, piece.units, strict=True):
                    units[group.name][unit] |= gates[piece.tensor].flatten()[position]
        return zoo.kept_entries(self.dense, zoo.ticket_for(self.dense, ew.Units(removable, removable), units))

    def update(self):
        self.search.update()
        self.masks = [*self.masks, self.search.mask.kept][-WINDOW:]
        recent = self.search.history[-WINDOW:]
        if len(recent) < WINDOW or not all(check.truncated for check in recent) or self.search.emerged:
            return
        ever = {name: torch.stack([kept[name] for kept in self.masks]).any(0) for name in self.masks[0]}
        entries = self._entries(ever)
        self.cuts += sum(map(len, entries.values())) < sum(map(len, self.entries.values()))
        self.entries = entries
        if self.hold:
            self.hold.remove()
        gates = gate_masks(self.model, self.search.units.groups, ever)
        alive = {}
        for name, parameter in self.model.named_parameters():
            if name in gates or self.everything:
                alive[name] = torch.zeros(parameter.shape, dtype=torch.bool)
                alive[name].view(-1)[entries[name].flatten()] = True
                parameter.data.mul_(alive[name])
        self.hold = AppliedTicket(self.model, alive, (self.optimizer,))


def close(a, b, what):
    assert a.shape == b.shape, what
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=what)


def check_equal(model, optimizer, masked):
    """Every entry of every tensor is that of the masked network, and so is what the optimizer remembers."""
    theirs, entries = named_tensors(masked.model), masked.entries
    for name, tensor in named_tensors(model).items():
        if name.endswith("own_heads"):
            continue
        if name not in entries:
            assert torch.equal(tensor, theirs[name]), name
            continue
        close(tensor.detach(), theirs[name].detach().flatten()[entries[name]], name)
        if isinstance(tensor, nn.Parameter):
            assert (tensor.grad is None) or tensor.grad.shape == tensor.shape
            state, other = optimizer.state.get(tensor, {}), masked.optimizer.state.get(theirs[name], {})
            assert state.keys() == other.keys()
            for key, value in state.items():
                expected = other[key].flatten()[entries[name]] if other[key].dim() else other[key]
                if key == "momentum_buffer" or key.startswith("exp_avg"):
                    close(value, expected, f"{name} {key}")
                else:
                    assert torch.equal(value, expected)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_masked_run(name):
    case = CASES[name]
    model, inputs, optimizer, search = case.begin(shrink=True)
    masked = Masked(case)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    sizes = []
    with search.attach(optimizer), masked.search.attach(masked.optimizer):
        if masked.search.history:
            masked.masks.append(masked.search.mask.kept)
        for i in range(STEPS):
            loss, other_loss = step(model, optimizer, inputs, i), step(masked.model, masked.optimizer, inputs, i)
            close(loss.detach(), other_loss.detach(), "loss")
            if i % EVERY:
                continue
            search.update()
            masked.update()
            assert search.history == pytest.approx(masked.search.history)
            assert search.mask == masked.search.mask
            assert search.emerged == masked.search.emerged
            check_equal(model, optimizer, masked)
            sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert masked.cuts > 0
    assert min(sizes) < numbers(masked.model)

    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert {id(buffer) for buffer in buffers} <= {id(buffer) for buffer in model.buffers()}
    assert search.overhead.flops < masked.search.overhead.flops

    ticket, other = search.draw(force=True), masked.search.draw(force=True)
    assert ticket.mask == other.mask
    assert ticket.structure == other.structure
    small, expected = ew.compact(model, ticket, example_inputs=inputs), ew.compact(masked.model, other)
    assert [p.shape for p in small.parameters()] == [p.shape for p in expected.parameters()]
    for (key, ours), theirs in zip(small.state_dict().items(), expected.state_dict().values(), strict=True):
        close(ours, theirs, key)
    assert search.emerged == (name == "residual-emerging")


# --------------------------------------------------------------------------------------------------------- the ticket


def shrunk(coupling="coupled", steps=STEPS, **search):
    """A residual network that has got smaller while it was searched, inputs for it, and the search."""
    model, inputs, optimizer, search = of_zoo("resnet_basic", coupling=coupling, **search).begin(shrink=True)
    with search.attach(optimizer):
        for i in range(steps):
            step(model, optimizer, inputs, i)
            if i % EVERY == 0:
                search.update()
    assert search.cut
    return model.eval(), inputs, search


@pytest.mark.parametrize("coupling", ["coupled", "independent"])
def test_the_ticket_fits_both_the_dense_model_and_the_smaller_one(coupling, tmp_path):
    model, inputs, search = shrunk(coupling, steps=7)
    search.draw(force=True).save(tmp_path / "ticket")
    ticket = ew.Ticket.load(tmp_path / "ticket")
    assert ticket.left == search.draw(force=True).left
    assert ticket.mask.units_removed > search.cut == ticket.left.units_removed
    small = ew.compact(model, ticket, example_inputs=inputs)
    dense = zoo.build("resnet_basic", seed=5, dtype=torch.float64)[0].eval()
    rebuilt = ew.compact(dense, ticket, example_inputs=inputs)
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(inputs), small(inputs))
    assert [m.extra_repr() for m in rebuilt.modules()] == [m.extra_repr() for m in small.modules()]
    again = ticket.fitted(model)
    assert again.left is None
    assert again.fitted(model) is again
    assert ticket.fitted(dense) is ticket
    applied = ticket.apply(model)
    close(model(inputs).detach(), small(inputs).detach(), "output")
    applied.remove()
    with pytest.raises(ew.TicketError, match=r"weight' is \[6, .* in the ticket and \["):
        ticket.fitted(small)


def test_heads_that_were_lost_before_the_search_began():
    """Attention that has lost heads has a tensor more, which gets smaller too."""
    model, x = encoder()
    units = transformer_units(encoder)
    kept = {group.name: torch.arange(group.size) > 0 for group in units.groups}
    model = ew.compact(model, zoo.ticket_for(model, units, kept))
    optimizer, start = sgd(model), copy.deepcopy(model)
    search = ew.TicketSearch(
        model, units=("heads", "neurons"), pruning_ratio=0.4, truncation=HALF, emergence=Never(), shrink=True
    )
    with search.attach(optimizer):
        for i in range(6):
            step(model, optimizer, x, i)
            search.update()
    ticket = search.draw(force=True)
    assert not all(ticket.left.kept[f"layers.{i}.self_attn"].all() for i in range(2))
    small, rebuilt = ew.compact(model, ticket, example_inputs=x), ew.compact(start, ticket)
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt.eval()(x), small.eval()(x))


def test_rounding_keeps_what_is_left():
    _, _, search = shrunk(steps=7)
    ticket = search.draw(force=True)
    left, kept = ticket.left.kept, ticket.mask.kept
    name = next(name for name in kept if kept[name].sum() < left[name].sum() < len(left[name]))
    alone = {other: torch.ones(size) for other, size in ticket.units.sizes.items()}
    ticket = ticket.with_mask(ew.Mask.from_groups({**alone, name: kept[name]}))
    width, least = int(left[name].sum()), int(kept[name].sum())
    assert torch.equal(ew.round_ticket(ticket, width).mask.kept[name], left[name])
    missing, spare = width + 1 - least, width - least
    message = f"round_to is {width + 1}, for which '{name}' needs {missing} units more, and {spare} are left: "
    with pytest.raises(ew.TicketError, match=message):
        ew.round_ticket(ticket, width + 1)


# ----------------------------------------------------------------------------------------------------------- resuming


def residual(seed):
    model = make_network(seed)
    search = ew.TicketSearch(
        model, units=UNITS, truncation=ew.Fade(trigger=1.0, half_life=9, chi=0.5), steps_per_epoch=4, score="taylor",
        emergence=ew.Emergence(WINDOW, epsilon=0.0), shrink=True,
    )  # fmt: skip
    return model, search


def go(model, optimizer, search, first, last):
    for i in range(first, last):
        optimizer.zero_grad()
        loss_on(model, make_batch(i)).backward()
        optimizer.step()
        if (i + 1) % EVERY == 0:
            search.update()


@pytest.fixture(scope="module")
def uninterrupted():
    model, search = residual(0)
    optimizer, cuts = sgd(model), []
    with search.attach(optimizer):
        for i in range(STEPS):
            go(model, optimizer, search, i, i + 1)
            cuts.append(search.cut)
    assert len(set(cuts)) > 2
    return model, optimizer, search


@pytest.mark.parametrize("order", ["attached before", "made before", "made after"])
@pytest.mark.parametrize("stop", range(STEPS + 1))
def test_interrupted_and_resumed_equals_uninterrupted(stop, order, uninterrupted):
    model, search = residual(0)
    optimizer = sgd(model)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, stop)
    file = io.BytesIO()
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "s": search.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    model, search = residual(7)
    if order != "made after":
        optimizer = sgd(model)
    if order == "attached before":
        search.attach(optimizer)
    search.load_state_dict(saved["s"])
    model.load_state_dict(saved["m"])
    if order == "made after":
        optimizer = sgd(model)
    optimizer.load_state_dict(saved["o"])
    if order != "attached before":
        search.attach(optimizer)
    with search:
        go(model, optimizer, search, stop, STEPS)

    expected_model, expected_optimizer, expected = uninterrupted
    assert states_equal(model, expected_model)
    for ours, theirs in zip(model.parameters(), expected_model.parameters(), strict=True):
        momentum = (some.state[p]["momentum_buffer"] for some, p in ((optimizer, ours), (expected_optimizer, theirs)))
        assert torch.equal(*momentum)
    assert (search.history, search.cut, search.steps) == (expected.history, expected.cut, expected.steps)
    assert search.overhead.flops == expected.overhead.flops
    ours, theirs = search.draw(force=True), expected.draw(force=True)
    assert (ours.mask, ours.left, ours.structure) == (theirs.mask, theirs.left, theirs.structure)
    assert all(torch.equal(score, theirs.scores[name]) for name, score in ours.scores.items())


def test_an_earlier_state_is_for_a_dense_model(uninterrupted):
    model, search = residual(0)
    optimizer = sgd(model)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 4)
        earlier = search.state_dict()
        assert earlier["left"] is None
        go(model, optimizer, search, 4, 12)
        assert search.cut
        history = list(search.history)
        dense = ew.Mask.from_groups({name: torch.ones(size) for name, size in search.units.sizes.items()})
        for state in (earlier, {**search.state_dict(), "left": dense.bits}):
            with pytest.raises(ew.SearchError, match="other units were cut out of the model than the state says"):
                search.load_state_dict(state)
        assert search.history == history
        search.load_state_dict(search.state_dict())  # which it is in
        go(model, optimizer, search, 12, STEPS)
    assert states_equal(model, uninterrupted[0])


def test_a_later_state_makes_a_smaller_model_smaller(uninterrupted):
    model, search = residual(0)
    optimizer = sgd(model)
    with search.attach(optimizer):
        go(model, optimizer, search, 0, 12)
        assert 0 < search.cut < uninterrupted[2].cut
        search.load_state_dict(uninterrupted[2].state_dict())
    model.load_state_dict(uninterrupted[0].state_dict())
    assert states_equal(model, uninterrupted[0])


def test_a_state_of_a_smaller_model_needs_shrink(uninterrupted):
    options = {
        "truncation": uninterrupted[2].truncation,
        "steps_per_epoch": 1,
        "emergence": ew.Emergence(WINDOW),
        "score": "taylor",
    }
    search = ew.TicketSearch(make_network(), units=UNITS, **options)
    with pytest.raises(ew.SearchError, match="cuts units out of the model: give shrink=True"):
        search.load_state_dict(uninterrupted[2].state_dict())


# ----------------------------------------------------------------------------------------- what is around the search


def test_schedules_groups_hooks_and_several_optimizers():
    (model, search), (expected, other) = residual(0), residual(0)
    norms, others = ([p for n, p in model.named_parameters() if ("bn" in n) == wanted] for wanted in (True, False))
    optimizers = [SGD([{"params": others[:2]}, {"params": others[2:]}], lr=0.15), SGD(norms, lr=0.15)]
    reference = SGD(expected.parameters(), lr=0.15)
    for group in [group for some in (*optimizers, reference) for group in some.param_groups]:
        group.update(momentum=0.9, weight_decay=0.01)
    schedules = [StepLR(optimizer, 5) for optimizer in (*optimizers, reference)]
    seen, accumulated = [], []
    model.stem.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    model.stem.weight.register_post_accumulate_grad_hook(lambda p: accumulated.append(p.grad.shape))
    with search.attach(*optimizers), other.attach(reference):
        for i in range(STEPS):
            for some, of in ((model, optimizers), (expected, [reference])):
                some.zero_grad()
                loss_on(some, make_batch(i)).backward()
                for optimizer in of:
                    optimizer.step()
            for schedule in schedules:
                schedule.step()
            if (i + 1) % EVERY == 0:
                search.update()
                other.update()
    assert states_equal(model, expected)
    assert seen == accumulated
    assert seen[0] != seen[-1] == model.stem.weight.shape


def test_compiled():
    (model, search), (plain, other) = residual(0), residual(0)
    optimizer, reference = sgd(model), sgd(plain)
    with search.attach(optimizer), other.attach(reference):
        go(torch.compile(model, backend="aot_eager"), optimizer, search, 0, 12)
        go(plain, reference, other, 0, 12)
    assert search.cut == other.cut > 0
    for (name, ours), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_of_what_is_cut_are_dropped():
    model, search = residual(0)
    optimizer = sgd(model)
    dense, i = fingerprint(model), 0
    with search.attach(optimizer):
        while not search.cut:
            loss = loss_on(model, make_batch(i))  # its graph lives on until there is the next one
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            i += 1
            if i % EVERY == 0:
                search.update()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (parameter.shape != dense[name]), name
    loss = loss_on(model, make_batch(10))
    loss.backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "shrink=True cuts out static units, and there are none: give truncation=ew.Fade"),
        ({"truncation": HALF, "units": "weights"}, "of weights some are only masked: give channels"),
        ({"truncation": HALF, "units": ("heads", "weights")}, "of heads, weights some are only masked: give channels"),
    ],
)
def test_nothing_to_shrink(options, message):
    with pytest.raises(ew.ConfigError, match=message):
        ew.TicketSearch(bert()[0], **{"units": "heads", **options}, shrink=True)


def test_a_model_that_a_ticket_is_applied_to():
    model = make_network()
    ticket = zoo.ticket_for(model, UNITS, zoo.random_kept(UNITS.groups, 0))
    applied = ticket.apply(model)
    with pytest.raises(ew.ConfigError, match="a ticket holds entries of the model at zero, by their places: remove"):
        ew.TicketSearch(model, units=UNITS, truncation=HALF, shrink=True)
    applied.remove()
    ew.TicketSearch(model, units=UNITS, truncation=HALF, shrink=True)


def adafactor(model):
    return Adafactor(model.parameters(), lr=0.01, relative_step=False, scale_parameter=False)


@pytest.mark.parametrize("make", [adafactor, lambda model: LBFGS(model.parameters())])
def test_optimizers_that_remember_something_of_another_shape(make, uninterrupted):
    model, search = residual(0)
    optimizer = make(model)

    @torch.enable_grad()
    def closure():
        optimizer.zero_grad()
        loss = loss_on(model, make_batch(0))
        loss.backward()
        return loss

    message = f"{type(optimizer).__name__} keeps '\\w+' for 'stem.weight', .* give shrink=False, or another optimizer"
    with search.attach(optimizer):
        optimizer.step(closure)
        with pytest.raises(ew.SearchError, match=message):
            search.update()
        with pytest.raises(ew.SearchError, match=message):
            search.load_state_dict(uninterrupted[2].state_dict())
    assert search.history == []
    assert fingerprint(model) == fingerprint(make_network())


def test_a_parameter_that_no_optimizer_holds():
    model, search = residual(0)
    norms = [parameter for name, parameter in model.named_parameters() if "bn" in name]
    message = "'stem.weight' is in none of the optimizers, and what another one remembers .*: attach all"
    with pytest.raises(ew.SearchError, match=message):
        search.attach(SGD(norms, lr=0.1))
    model.stem.weight.requires_grad_(False)
    with pytest.raises(ew.SearchError, match=r"'first\.weight' is in none of the optimizers"):
        search.attach(SGD(norms, lr=0.1))
    search.attach(sgd(model)).detach()


def test_an_optimizer_inside_of_another_has_to_be_attached_too():
    class Wrapping(SGD):
        def __init__(self, inner):
            super().__init__(inner.param_groups, lr=0.1)
            self.inner = inner

    model, search = residual(0)
    outer = Wrapping(sgd(model))
    with pytest.raises(ew.SearchError, match=r"Wrapping has a SGD do its work, .*: attach both"):
        search.attach(outer)
    search.attach(outer, outer.inner).detach()


def test_what_exchanges_gradients_is_refused_by_callbacks(tmp_path):
    callback = SearchCallback("stop", 1, {"units": UNITS, "truncation": HALF, "shrink": True})
    model = make_network()
    callback._begin(model)
    with pytest.raises(ew.SearchError, match="not the Residual itself, but a copy"):
        callback._attach([sgd(model)], copy.copy(model))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ew.SearchError, match=r"shrink=True, but DistributedDataParallel .*: leave it out"):
            callback._attach([sgd(model)], nn.parallel.DistributedDataParallel(model))
        with pytest.raises(ew.ConfigError, match=r"shrink=True, but DistributedDataParallel .*: leave one out"):
            ew.TicketSearch(nn.parallel.DistributedDataParallel(model), units=UNITS, truncation=HALF, shrink=True)
    finally:
        torch.distributed.destroy_process_group()
    assert callback._attach([sgd(model)], model) == callback.history


def test_several_processes(monkeypatch):
    model, search = residual(0)
    monkeypatch.setattr(earlyworm.search.shrinking, "processes", lambda: 2)
    message = "shrink=True, but 2 processes train together, .*: give shrink=False, or train in one process"
    with pytest.raises(ew.SearchError, match=message):
        search.attach(sgd(model))
    with pytest.raises(ew.SearchError, match=message):
        residual(0)
