"""A ticket survives its file, refuses a damaged one and another model, and keeps what it masks at zero."""

import copy
import errno
import importlib.metadata
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from earlyworm import (
    Mask,
    Slice,
    Ticket,
    TicketError,
    TicketSearch,
    UnitGroup,
    Units,
    UnitsError,
    compact,
    find_channels,
)
from earlyworm.files import write_atomically
from earlyworm.tickets.ticket import FORMAT_VERSION, fingerprint
from earlyworm.units.groups import named_tensors


def same_groups(a: tuple[UnitGroup, ...], b: tuple[UnitGroup, ...]) -> bool:
    def plain(groups: tuple[UnitGroup, ...]) -> list[Any]:
        return [
            (group.name, group.size, [
                {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(piece).items()}
                for piece in group.slices
            ]) for group in groups
        ]  # fmt: skip

    dtypes = {
        value.dtype for group in b for s in group.slices for value in vars(s).values() if isinstance(value, Tensor)
    }
    return plain(a) == plain(b) and dtypes == {torch.int64}


def assert_same(a: Ticket, b: Ticket) -> None:
    assert a.mask == b.mask
    assert list(a.mask.sizes) == list(b.mask.sizes)
    assert same_groups(a.units.groups, b.units.groups)
    assert same_groups(a.units.removable, b.units.removable)
    assert (a.units.removable is a.units.groups) == (b.units.removable is b.units.groups)
    assert a.units.skipped == b.units.skipped
    assert a.scores.keys() == b.scores.keys()
    assert all(torch.equal(a.scores[name].float(), b.scores[name]) for name in a.scores)
    assert a.structure == b.structure
    assert list(a.structure) == list(b.structure)
    for name in ("method", "pruning_ratio", "step", "emerged", "distances", "versions"):
        assert getattr(a, name) == getattr(b, name), name
        assert type(getattr(a, name)) is type(getattr(b, name)), name


@pytest.fixture
def ticket() -> Ticket:
    return zoo.random_ticket("resnext", 1)


# ------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("name", ["plain", "resnext", "flatten_norm", "inception", "doubled", "instance_norm",
                                  "tied_autoencoder", "squeeze_excite", "hf_convnext"])  # fmt: skip
def test_round_trip(name: str, tmp_path: Path) -> None:
    ticket = zoo.random_ticket(name, 3)
    ticket.save(tmp_path / "ticket.safetensors")
    assert_same(ticket, Ticket.load(tmp_path / "ticket.safetensors"))
    assert_same(ticket, Ticket.load(str(tmp_path / "ticket.safetensors")))
    assert os.listdir(tmp_path) == ["ticket.safetensors"]


def test_round_trip_with_independent_coupling(tmp_path: Path) -> None:
    ticket = zoo.random_ticket("densenet", 3, coupling="independent")
    ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(tmp_path / "ticket.safetensors")
    assert_same(ticket, loaded)
    model, _ = zoo.build("densenet")
    for a, b in zip(compact(model, ticket).parameters(), compact(model, loaded).parameters(), strict=True):
        assert torch.equal(a, b)


def test_round_trip_of_unusual_values(tmp_path: Path, ticket: Ticket) -> None:
    shared = torch.rand(100, dtype=torch.float64)
    sizes = ticket.units.sizes
    odd = replace(
        ticket,
        scores={name: shared[:size] for name, size in sizes.items()},  # views of one tensor
        units=Units(ticket.units.groups, ticket.units.groups, {"späť": 'a "reason"\nin two lines'}),
        method="Würm(Δ=0.1)", emerged=False, step=2**40, pruning_ratio=1 / 3, distances=(1 / 3, 0.1, 1e-300),
        versions={},
    )  # fmt: skip
    odd.save(tmp_path / "t")
    assert_same(odd, Ticket.load(tmp_path / "t"))
    replace(odd, distances=()).save(tmp_path / "t")  # drawn by force after the first mask
    assert Ticket.load(tmp_path / "t").distances == ()


def test_slices_that_are_no_ranges(tmp_path: Path) -> None:
    piece = Slice("weight", 1, torch.tensor([0, 3, 4, 9]), torch.tensor([1, 0, 1, 0]), "input")
    gate = Slice("bias", 0, torch.tensor([5, 6]), torch.tensor([0, 1]), "bias", gate=True)
    model = nn.Linear(10, 8)
    group = UnitGroup("here", 2, (piece, gate))
    ticket = zoo.ticket_for(model, Units((group,), (group,)), {"here": torch.tensor([False, True])})
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert_same(ticket, loaded)
    assert loaded.units.groups[0].slices[0].positions.tolist() == [0, 3, 4, 9]
    assert loaded.units.groups[0].slices[1].gate


def test_a_ticket_from_a_search_on_another_device_type_is_plain_data(tmp_path: Path) -> None:
    model, inputs = zoo.plain()
    search = TicketSearch(model, inputs)
    with search.attach(torch.optim.SGD(model.parameters(), 0.1)):
        ticket = search.draw(force=True)
    ticket.save(tmp_path / "t")
    loaded = Ticket.load(tmp_path / "t")
    assert_same(ticket, loaded)
    assert not loaded.emerged
    assert loaded.versions["torch"] == importlib.metadata.version("torch")
    with safe_open(tmp_path / "t", framework="pt") as file:
        assert list(file.metadata()) == ["earlyworm.ticket"]
        assert {file.get_tensor(name).dtype for name in file.keys()} <= {torch.uint8, torch.float32, torch.int32}  # noqa: SIM118


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ticket") / "t"
    zoo.random_ticket("resnext", 1).save(path)
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    """The message of the error that loading these bytes gives."""
    path.write_bytes(content)
    with pytest.raises(TicketError) as caught:
        Ticket.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_truncated_files(tmp_path: Path, content: bytes) -> None:
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(content), 397), len(content) - 1]:
        assert "damaged" in refused(tmp_path / "t", content[:length])
    assert "damaged" in refused(tmp_path / "t", content + b"\0")


def test_flipped_bits_anywhere(tmp_path: Path, content: bytes) -> None:
    generator = torch.Generator().manual_seed(0)
    places = [*range(8), *torch.randint(len(content), (400,), generator=generator).tolist()]
    for place in [*places, *range(len(content) - 60, len(content))]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        refused(tmp_path / "t", bytes(damaged))


@pytest.mark.parametrize("bad", [b"", b"not a ticket", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_other_files(bad: bytes, tmp_path: Path) -> None:
    assert "damaged or not a ticket" in refused(tmp_path / "t", bad)


def test_other_safetensors_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(3)}, path, metadata)
        with pytest.raises(TicketError, match=r"is a safetensors file, but not a ticket$"):
            Ticket.load(path)
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        envelope = json.loads(file.metadata()["earlyworm.ticket"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"earlyworm.ticket": json.dumps({**envelope, "version": 99})})
    with pytest.raises(
        TicketError, match=f"has format version 99, but this version .* reads {FORMAT_VERSION}: draw it"
    ):
        Ticket.load(path)
    for bad in ("{", "[]", "1", "{}", *(json.dumps({**envelope, key: None}) for key in ("sha256", "ticket"))):
        save_file(tensors, path, {"earlyworm.ticket": bad})
        with pytest.raises(TicketError, match="is damaged"):
            Ticket.load(path)


def test_one_ticket_is_always_the_same_file(content: bytes) -> None:
    for _ in range(5):
        assert zoo.random_ticket("resnext", 1).to_bytes() == content


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "no" / "where"):
        with pytest.raises(TicketError, match=f"^there is no ticket at {path}$"):
            Ticket.load(path)


# ------------------------------------------------------------------------------------ writing atomically


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, ticket: Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ticket.safetensors"
    ticket.save(path)
    before = path.read_bytes()
    calls = []

    def fail(*_: Any) -> None:
        calls.append(sorted(os.listdir(tmp_path)))
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with pytest.raises(KeyboardInterrupt):
                replace(ticket, step=8).save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name]
    assert [len(names) for names in calls] == [2, 2]  # in the folder itself, or the rename would not be atomic


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, ticket: Ticket) -> None:
    path = tmp_path / "ticket.safetensors"
    ticket.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            replace(ticket, step=8).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_the_new_file_is_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the name changes hands, the content is on the disk."""
    path, events = tmp_path / "file", []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", os.fstat(fd).st_size)), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("replace", os.stat(a).st_size)), rename(a, b))[1])
    write_atomically(path, b"0123456789")
    assert events[:2] == [("fsync", 10), ("replace", 10)]
    assert path.read_bytes() == b"0123456789"


def test_a_folder_that_is_not_there(tmp_path: Path, ticket: Ticket) -> None:
    with pytest.raises(FileNotFoundError):
        ticket.save(tmp_path / "nowhere" / "ticket.safetensors")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------ another model


def test_the_first_difference_is_named(ticket: Ticket) -> None:
    model, _ = zoo.build("resnext")
    ticket.fitted(model)
    ticket.fitted(model.to(torch.bfloat16).requires_grad_(False))  # these may differ

    other, _ = zoo.build("resnext")
    other[1].reduce[0] = nn.Conv2d(8, 9, 1, bias=False)
    other[2].reduce[0] = nn.Conv2d(10, 13, 1, bias=False)
    expected = r"'1.reduce.0.weight' is \[8, 8, 1, 1\] in the ticket and \[9, 8, 1, 1\] in this one$"
    check_refusal(ticket, other, expected)

    other, _ = zoo.build("resnext")
    del other[1].spatial
    check_refusal(ticket, other, "this one has no tensor '1.spatial.0.weight'$")

    other, _ = zoo.build("resnext")
    other[1].reduce[0].bias = nn.Parameter(torch.ones(8))
    check_refusal(ticket, other, "it knows no tensor '1.reduce.0.bias'$")

    other, _ = zoo.build("resnext")
    other.register_buffer("extra", torch.ones(1))
    check_refusal(ticket, other, "it knows no tensor 'extra'$")


def check_refusal(ticket: Ticket, model: nn.Module, message: str) -> None:
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    for use in (
        ticket.fitted,
        ticket.apply,
        lambda m: compact(m, ticket),
        lambda m: compact(m, ticket, round_to=8),
    ):
        with pytest.raises(TicketError, match=f"^the ticket is for another model: {message}"):
            use(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())
    assert not model._forward_pre_hooks


class Growing(nn.Module):
    """Keeps a table in a buffer that is not saved, as long as its longest input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 2, 1)
        self.register_buffer("table", None, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None or self.table.shape[-1] < x.shape[-1]:
            self.table = torch.arange(float(x.shape[-1])) / 100
        return self.last(torch.relu(self.first(x + self.table[: x.shape[-1]])))


def test_buffers_that_are_not_saved_may_differ(tmp_path: Path) -> None:
    model, x = Growing(), torch.randn(2, 3, 8)
    model(x)
    units = find_channels(model, x)
    zoo.ticket_for(model, units, zoo.random_kept(units.groups, 0)).save(tmp_path / "ticket")
    ticket = Ticket.load(tmp_path / "ticket")
    model(torch.randn(2, 3, 16))
    assert compact(model, ticket, example_inputs=x).first.out_channels < 8
    assert compact(Growing(), ticket, example_inputs=x).first.out_channels < 8


def test_a_compacted_model_is_another_model(ticket: Ticket) -> None:
    with pytest.raises(TicketError, match="the ticket is for another model"):
        compact(compact(zoo.build("resnext")[0], ticket), ticket)


def test_units_of_another_model() -> None:
    """Units that were made by hand may not fit even where the shapes do."""
    model = nn.Linear(4, 3)
    group = UnitGroup("x", 3, (Slice("nowhere", 0, torch.arange(3), torch.arange(3), "filter", gate=True),))
    ticket = zoo.ticket_for(model, Units((group,), (group,)), {"x": torch.tensor([True, False, True])})
    with pytest.raises(UnitsError, match="'nowhere' is absent: these units belong to another model"):
        ticket.apply(model)


# ------------------------------------------------------------------------------------ applied as a mask


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, steps: int = 1) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.tensor([0, 1, 2])).backward()
        optimizer.step()


def gates(model: nn.Module, ticket: Ticket) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of a gate, its values at removed units, its values at kept ones."""
    tensors = named_tensors(model)
    for group in ticket.units.groups:
        kept = ticket.mask.kept[group.name]
        for piece in group.gates():
            values = tensors[piece.tensor].detach().movedim(piece.dim, 0)[piece.positions]
            yield piece.tensor, values[~kept[piece.units]], values[kept[piece.units]]


def assert_masked(model: nn.Module, ticket: Ticket) -> None:
    removed = 0
    for name, dead, alive in gates(model, ticket):
        assert not dead.any(), name
        assert alive.all(), name
        removed += dead.numel()
    assert removed


@pytest.mark.parametrize("name", ["resnet_basic", "vgg", "squeeze_excite", "tied_twins"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_masked_stays_zero_while_training(name: str, optimizer: str) -> None:
    model, inputs = zoo.build(name, dtype=torch.float64)
    ticket = zoo.random_ticket(name, 2)
    ticket.apply(model)
    assert_masked(model, ticket)
    trained = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(4):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(model, trained, inputs)
        assert_masked(model, ticket)
        assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("given", [True, False])
def test_momentum_from_before(optimizer: str, given: bool) -> None:
    model, inputs = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 2)
    trained = OPTIMIZERS[optimizer](model.parameters())
    train(model, trained, inputs, steps=3)
    ticket.apply(model, *([trained] if given else []))
    for _ in range(3):
        train(model, trained, inputs)
        if given:
            assert_masked(model, ticket)
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert_masked(model, ticket)  # a state_dict and a forward pass put the zeros back at the latest
        for name, tensor in expected.items():
            assert torch.equal(tensor, named_tensors(model)[name])


def test_optimizer_that_accelerate_wraps() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, inputs = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 2)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, inputs, steps=2)
    try:
        wrapped = Accelerator(cpu=True).prepare(optimizer)
        applied = ticket.apply(model, wrapped)
        train(model, wrapped, inputs)
        assert_masked(model, ticket)
        applied.remove()
        assert not optimizer._optimizer_step_post_hooks
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_state_dict_shows_zeros_under_any_prefix() -> None:
    model, _ = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 2)
    whole = nn.ModuleDict({"inside": model})
    ticket.apply(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    state = whole.state_dict()
    zeros = {name: int((tensor == 0).sum()) for name, tensor in state.items()}
    for group in ticket.units.groups:
        removed = int((~ticket.mask.kept[group.name]).sum())
        for piece in group.gates():
            assert zeros[f"inside.{piece.tensor}"] == removed
    assert_masked(model, ticket)


def test_mask_equals_training_without_the_units() -> None:
    """Training under the mask is training the compacted network."""
    model, inputs = zoo.build("resnet_bottleneck", dtype=torch.float64)
    ticket = zoo.random_ticket("resnet_bottleneck", 2)
    small = compact(model, ticket)
    ticket.apply(model)
    for network in (model, small):
        train(network, OPTIMIZERS["sgd"](network.parameters()), inputs, steps=5)
    difference = model.eval()(inputs) - small.eval()(inputs)
    assert float(difference.detach().abs().max()) < 1e-9


def test_gradients_of_removed_units_are_zero_and_the_others_untouched() -> None:
    model, inputs = zoo.build("conv_bias")
    ticket = zoo.random_ticket("conv_bias", 2)
    free = copy.deepcopy(model)
    ticket.apply(free).remove()
    ticket.apply(model)
    for network in (model, free):
        network(inputs).square().sum().backward()
    grads = copy.deepcopy(model)
    for parameter, other in zip(grads.parameters(), model.parameters(), strict=True):
        parameter.data = other.grad.clone()
    assert all(not dead.any() for _, dead, _ in gates(grads, ticket))
    for (name, parameter), other in zip(model.named_parameters(), free.parameters(), strict=True):
        different = parameter.grad != other.grad
        assert not (different & (parameter.grad != 0)).any(), name
    assert any(not torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), free.parameters(), strict=True))


def test_frozen_gates() -> None:
    model, inputs = zoo.build("mixed_requires_grad")
    ticket = zoo.random_ticket("mixed_requires_grad", 2)
    applied = ticket.apply(model)
    assert_masked(model, ticket)
    train(model, OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad]), inputs)
    assert_masked(model, ticket)
    applied.remove()


def test_accumulated_and_interrupted_backward_passes() -> None:
    """A second forward pass before the backward pass of the first one disturbs nothing."""
    model, inputs = zoo.build("resnet_basic")
    zoo.random_ticket("resnet_basic", 2).apply(model)
    first = model(inputs).sum()
    model.eval()(inputs)
    model.state_dict()
    first.backward()


def test_copy_of_a_masked_model_masks_itself() -> None:
    model, inputs = zoo.build("resnet_basic")
    ticket = zoo.random_ticket("resnet_basic", 2)
    applied = ticket.apply(model)
    twin = copy.deepcopy(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.5)
    twin(inputs)
    assert_masked(twin, ticket)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    applied.remove()
    assert_masked(twin, ticket)
    with torch.no_grad():
        twin[0][1].weight.add_(1)
    twin.state_dict()
    assert_masked(twin, ticket)


def test_remove() -> None:
    model, inputs = zoo.build("conv_bias")  # without batch norms and with GELU a zeroed unit can revive
    ticket = zoo.random_ticket("conv_bias", 2)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    ticket.apply(model, optimizer).remove()
    assert_masked(model, ticket)  # they start from zero
    assert not model._forward_pre_hooks
    assert not model._state_dict_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, inputs, steps=3)
    assert any(dead.any() for _, dead, _ in gates(model, ticket))


def test_wrapped_models() -> None:
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model, inputs = zoo.build("plain")
        ticket = zoo.random_ticket("plain", 2)
        wrapped = wrap(model)
        ticket.apply(wrapped)
        assert_masked(model, ticket)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        wrapped(inputs)
        assert_masked(model, ticket)
    torch._dynamo.reset()


def test_keeping_all_masks_nothing() -> None:
    model, inputs = zoo.build("plain")
    expected = model(inputs)
    ticket = zoo.random_ticket("plain", 0, density=1.1)
    ticket.apply(model)
    assert torch.equal(model(inputs), expected)


def test_with_mask() -> None:
    ticket = zoo.random_ticket("plain", 1)
    flipped = Mask.from_groups({name: ~kept for name, kept in ticket.mask.kept.items()})
    other = ticket.with_mask(flipped)
    assert other.mask == flipped
    assert other.units is ticket.units
    assert ticket.mask != flipped


def test_fingerprint_names_ties_and_buffers() -> None:
    found = fingerprint(zoo.build("tied_twins")[0])
    assert found["a.weight"] == found["b.weight"] == (8, 6, 3, 3)
    assert found["bn_a.running_mean"] == (8,)
    assert found["bn_a.num_batches_tracked"] == ()
