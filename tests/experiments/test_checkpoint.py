import json
import math
import shutil
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import earlyworm.experiments.checkpoint
import earlyworm.tickets.ticket
from earlyworm.errors import RunError
from earlyworm.experiments.checkpoint import Checkpoints, Pauses
from earlyworm.files import TEMPORARY, pack, unpack
from runs import largest_file


def bits(value):
    """Something that is equal only for values that are equal in type and in every bit, tensors in layout too."""
    if isinstance(value, torch.Tensor):
        dense = value.contiguous()
        raw = dense.reshape(-1).view(torch.uint8).tolist() if dense.numel() else []
        return "tensor", str(value.dtype), tuple(value.shape), value.stride() if value.numel() else None, raw
    if isinstance(value, dict):
        return "dict", [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [bits(item) for item in value]
    return type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value


def same(value):
    again = unpack(pack(value))
    assert bits(again) == bits(value)


DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    seed = draw(st.integers(0, 2**16))
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(draw(st.sampled_from(DTYPES)))


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.text() | tensors()
    | st.floats().map(lambda x: math.nan if math.isnan(x) else x)
)  # fmt: skip
KEYS = st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False) | st.none() | st.tuples(st.integers())
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(STATES)
def test_round_trip(state):
    same(state)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2])
def test_floats_keep_every_bit(value):
    same({"float": value, 3: [value, (value,)], "tensor": torch.tensor([value, 1], dtype=torch.float64)})


def test_tensors_keep_values_that_are_no_numbers():
    raw = torch.tensor([0x7FC00001, -0x400001, 0x7F800001, -0x80000000], dtype=torch.int32)
    same(raw.view(torch.float32))
    same(raw.view(torch.bfloat16))


@pytest.mark.parametrize("key", ["tensor", "tuple", "dict", "order", "state", "__metadata__"])
def test_keys_that_mean_something_in_the_file(key):
    same({key: [1, 2], "inner": {key: {key: "000000"}}})
    same([{key: torch.ones(2)}, (key,)])


@pytest.mark.parametrize("state", [None, 3, "text", [], (), {}, torch.ones(2), torch.zeros(0, 3), torch.tensor(True)])
def test_the_smallest_states(state):
    same(state)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 1, 1), (4, 1, 3, 3), (1, 4, 3, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_layout(shape, memory_format):
    same(torch.randn(shape).to(memory_format=memory_format))


def test_no_flipped_bit_goes_unnoticed():
    content = pack({"a": torch.arange(3), "b": [1, 2.5, None, "x", (True,)]})
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(RunError, match="the saved state is damaged"):
                unpack(bytes(damaged))


def test_views_store_what_they_show():
    base = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(unpack(pack(base[:, 1])), base[:, 1])
    assert torch.equal(unpack(pack(base.transpose(0, 2))), base.transpose(0, 2))
    assert torch.equal(unpack(pack(torch.ones(3, 1).expand(3, 5))), torch.ones(3, 5))
    assert len(pack(torch.zeros(1000)[:2])) < 1000


def test_tied_tensors_come_back_equal_and_apart():
    weight = torch.nn.Parameter(torch.randn(3, 3))
    again = unpack(pack({"a": weight, "b": weight, "c": weight.T}))
    assert torch.equal(again["a"], weight)
    assert torch.equal(again["b"], weight)
    assert torch.equal(again["c"], weight.T)
    assert not any(tensor.requires_grad for tensor in again.values())
    again["a"].zero_()
    assert not torch.equal(again["a"], again["b"])


def test_the_state_of_an_optimizer_in_the_middle_of_training():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 3)).to(
        memory_format=torch.channels_last
    )
    for make in (torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):
        optimizer = make(model.parameters())
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        same(optimizer.state_dict())


def test_the_bytes_depend_on_the_state_alone():
    state = {"weights": torch.ones(3), "history": [{"epoch": 1.0, "loss": None}]}
    assert pack(state) == pack({"weights": torch.ones(3), "history": [{"epoch": 1.0, "loss": None}]})


def test_a_state_is_not_changed_by_what_happens_later():
    weight = torch.ones(3)
    content = pack({"weight": weight})
    weight.zero_()
    assert torch.equal(unpack(content)["weight"], torch.ones(3))


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, {"deep": [torch.nn.Linear(1, 1)]}])
def test_what_a_checkpoint_cannot_hold(value):
    with pytest.raises(TypeError, match="a saved state cannot hold a "):
        pack(value)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, pack({"a": torch.ones(9)})[:-1]])
def test_content_that_is_no_checkpoint(content):
    with pytest.raises(RunError, match="the saved state is damaged"):
        unpack(content)


def test_other_safetensors_are_no_checkpoint():
    from safetensors.torch import save

    with pytest.raises(RunError, match="the saved state is damaged"):
        unpack(save({"a": torch.ones(2)}))
    with pytest.raises(RunError, match="the saved state is damaged"):
        unpack(save({"a": torch.ones(2)}, {"state": "{"}))


# Files.


def state(number):
    return {"number": number, "weights": torch.full((50,), float(number))}


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def load(checkpoints):
    """The number of the state that is loaded, and what is reported."""
    reports = []
    loaded = checkpoints.load(reports.append)
    if loaded is not None:
        assert bits(loaded) == bits(state(loaded["number"]))
    return loaded and loaded["number"], reports


@pytest.fixture
def three(tmp_path):
    """Checkpoints after three were saved, and the paths of those that are kept."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoint")
    paths = [checkpoints.save(state(number)) for number in (1, 2, 3)]
    return checkpoints, paths[1:]


def test_no_checkpoint(tmp_path):
    assert load(Checkpoints(tmp_path / "none")) == (None, [])
    assert not (tmp_path / "none").exists()


def test_the_two_newest_are_kept(three):
    checkpoints, kept = three
    assert names(checkpoints) == [path.name for path in kept]
    assert [path.name[:7] for path in kept] == ["000002-", "000003-"]
    assert load(checkpoints) == (3, [])


def test_equal_states_are_two_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.save(state(1)) != checkpoints.save(state(1))
    assert len(names(checkpoints)) == 2


def test_other_files_are_left_alone(three):
    checkpoints, _ = three
    (checkpoints.folder / "notes.txt").write_text("mine")
    (checkpoints.folder / "000009-0.safetensors").touch()
    assert load(checkpoints) == (3, [])
    checkpoints.save(state(4))
    assert set(names(checkpoints)) >= {"notes.txt", "000009-0.safetensors"}


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) - 60
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(content):
    return b""


def replaced(content):
    return pack(state(99))


DAMAGES = [truncated, flipped, empty, replaced]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, three):
    checkpoints, (_, newest) = three
    newest.write_bytes(damage(newest.read_bytes()))
    assert load(checkpoints) == (2, [f"the checkpoint {newest} is damaged; going back to the one before"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_all_are_damaged_the_run_starts_afresh_and_says_so(damage, three):
    checkpoints, kept = three
    for path in kept:
        path.write_bytes(damage(path.read_bytes()))
    loaded, reports = load(checkpoints)
    assert loaded is None
    assert reports == [
        f"the checkpoint {kept[1]} is damaged; going back to the one before",
        f"the checkpoint {kept[0]} is damaged; going back to the start, for there is no other",
    ]


def test_a_damaged_checkpoint_does_not_count_as_one_to_fall_back_on(three):
    checkpoints, (_, newest) = three
    newest.write_bytes(b"")
    load(checkpoints)
    again = checkpoints.save(state(4))
    again.write_bytes(b"")
    assert load(checkpoints)[0] == 2


def test_a_damaged_older_checkpoint_does_no_harm(three):
    checkpoints, (older, _) = three
    older.write_bytes(b"")
    assert load(checkpoints) == (3, [])


def test_numbers_go_on_after_damage(three):
    checkpoints, (_, newest) = three
    newest.write_bytes(b"")
    load(checkpoints)
    assert checkpoints.save(state(4)).name > newest.name[:6]
    assert load(checkpoints) == (4, [])


def one_line(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts)


def test_a_full_disk_keeps_the_older_checkpoints(three):
    checkpoints, kept = three
    with largest_file(100), pytest.raises(RunError) as caught:
        checkpoints.save(state(4))
    one_line(caught, "cannot write the checkpoint", "File too large", "make room", "goes on from the last checkpoint")
    assert names(checkpoints) == [path.name for path in kept]
    assert load(checkpoints) == (3, [])
    checkpoints.save(state(4))
    assert load(checkpoints) == (4, [])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_nothing_behind(call, three, monkeypatch):
    checkpoints, kept = three

    def fail(*_):
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(earlyworm.tickets.ticket.os, "fsync", fail)
    else:
        monkeypatch.setattr(earlyworm.tickets.ticket.Path, "replace", fail)
    with pytest.raises(RunError) as caught:
        checkpoints.save(state(4))
    one_line(caught, "No space left on device")
    assert names(checkpoints) == [path.name for path in kept]


def test_an_interrupt_within_a_write_leaves_nothing_behind(three, monkeypatch):
    checkpoints, kept = three

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(earlyworm.tickets.ticket.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(state(4))
    assert names(checkpoints) == [path.name for path in kept]


def test_killed_within_a_write(three):
    checkpoints, (_, newest) = three
    left = newest.with_name(f".{newest.name}.123.tmp")  # half a file under another name, which nothing reads
    left.write_bytes(newest.read_bytes()[:50])
    assert left.match(TEMPORARY)
    assert load(checkpoints) == (3, [])


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoint").touch()
    with pytest.raises(RunError) as caught:
        Checkpoints(tmp_path / "checkpoint").save(state(1))
    one_line(caught, "cannot write the checkpoint")


def test_the_folder_may_move(three, tmp_path):
    checkpoints, _ = three
    shutil.move(checkpoints.folder, tmp_path / "elsewhere")
    assert load(Checkpoints(tmp_path / "elsewhere")) == (3, [])


@pytest.mark.parametrize(("takes", "pause"), [(0.25, 4.75), (30.0, 570.0)])
def test_a_twentieth_of_the_time_goes_into_checkpoints(takes, pause, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(earlyworm.experiments.checkpoint.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(earlyworm.experiments.checkpoint, "TIME_SHARE", 0.05)
    pauses = Pauses()
    assert pauses.over
    with pauses.after():
        now[0] += takes
    assert not pauses.over
    now[0] += pause * 0.999
    assert not pauses.over
    now[0] += pause * 0.002
    assert pauses.over


def test_nothing_is_pickled(three):
    _, kept = three
    content = kept[0].read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["state"])
