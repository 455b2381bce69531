"""Tickets that no search has found: random, uniformly narrower, and those of iterative magnitude pruning."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import SGD, AdamW

import earlyworm as ew
from earlyworm.inputs import agree, probe
from earlyworm.masks.scores import magnitude, score_units
from earlyworm.units.groups import named_tensors
from families import BERT_LIKE, text
from residual import loss_on, make_batch, make_network

HEADS_AND_NEURONS = {"a": ("heads", 4), "b": ("heads", 2), "c": ("neurons", 10), "d": ("neurons", 1)}


def groups(**sizes):
    """Units of no model, from kinds and sizes."""
    some = tuple(ew.UnitGroup(name, size, (), kind) for name, (kind, size) in sizes.items())
    return ew.Units(some, some)


def kept(mask):
    return {name: "".join(str(int(bit)) for bit in bits) for name, bits in mask.kept.items()}


def counts(mask):
    return {name: int(bits.sum()) for name, bits in mask.kept.items()}


def network(kind):
    """A model, its units, and inputs."""
    if kind == "residual":
        model, (inputs, _) = make_network(), make_batch(0)
        return model, ew.find_channels(model, inputs), inputs
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 20, 0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))
    return model, ew.find_transformer_units(model), torch.randn(3, 5, 16)


def test_a_full_mask_keeps_everything():
    mask = ew.full_mask(groups(**HEADS_AND_NEURONS))
    assert kept(mask) == {"a": "1111", "b": "11", "c": "1" * 10, "d": "1"}
    assert mask.kinds == {"a": "heads", "b": "heads", "c": "neurons", "d": "neurons"}


@pytest.mark.parametrize(
    ("ratio", "min_units", "expected"),
    [
        (0.0, 1, {"a": "1111", "b": "11", "c": "1111111111", "d": "1"}),
        (0.5, 1, {"a": "1100", "b": "10", "c": "1111100000", "d": "1"}),
        ({"heads": 0.75, "neurons": 0.26}, 1, {"a": "1000", "b": "10", "c": "1111111000", "d": "1"}),
        (0.99, 1, {"a": "1000", "b": "10", "c": "1000000000", "d": "1"}),
        (0.99, 3, {"a": "1110", "b": "11", "c": "1110000000", "d": "1"}),
    ],
)
def test_uniform_masks(ratio, min_units, expected):
    mask = ew.uniform_mask(groups(**HEADS_AND_NEURONS), ratio, min_units=min_units)
    assert kept(mask) == expected
    assert mask.kinds["c"] == "neurons"


def test_a_seed_gives_the_same_random_mask_on_every_machine():
    units = groups(**HEADS_AND_NEURONS)
    assert kept(ew.random_mask(units, 0.5, seed=3)) == {"a": "0110", "b": "10", "c": "1111010000", "d": "1"}
    assert ew.random_mask(units, 0.5, seed=3) == ew.random_mask(units, 0.5, seed=3)
    assert ew.random_mask(units, 0.5, seed=3) != ew.random_mask(units, 0.5, seed=4)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, {"heads": 0.5, "neurons": 0.75}])
def test_a_random_mask_removes_as_many_as_a_search(ratio):
    units = groups(**HEADS_AND_NEURONS, e=("neurons", 40))
    scores = {name: torch.arange(1.0, 1 + size) for name, size in units.sizes.items()}
    expected = ew.make_mask(scores, ratio, kinds=units.kinds)

    def removed(mask, kind):
        return sum(int((~bits).sum()) for name, bits in mask.kept.items() if mask.kinds[name] == kind)

    for seed in range(5):
        mask = ew.random_mask(units, ratio, seed=seed)
        assert [removed(mask, kind) for kind in ("heads", "neurons")] == [
            removed(expected, kind) for kind in ("heads", "neurons")
        ]


def test_every_unit_has_the_same_chance():
    units = groups(a=("channels", 3), b=("channels", 20))
    masks = torch.stack([ew.random_mask(units, 0.5, seed=seed).flat for seed in range(400)])
    share = masks[:, 3:].float().mean(0)
    assert share.min() > 0.4
    assert share.max() < 0.65
    assert abs(masks[:, :3].float().mean() - masks[:, 3:].float().mean()) < 0.05


@pytest.mark.parametrize("min_units", [1, 2])
def test_every_group_keeps_some(min_units):
    units = groups(a=("channels", 3), b=("channels", 3), c=("channels", 100))
    for seed in range(20):
        mask = ew.random_mask(units, 0.93, seed=seed, min_units=min_units)
        assert min(counts(mask).values()) >= min_units
        assert mask.units_removed == 98


@pytest.mark.parametrize(
    ("ratio", "min_units", "message"),
    [
        (1.0, 1, r"pruning_ratio is 1\.0, but must be in \[0, 1\)"),
        ({"heads": 0.5}, 1, "no entry for 'neurons'"),
        ({"heads": 0.5, "neurons": 0.5, "weights": 0.5}, 1, "an entry for 'weights'"),
        (0.5, 0, "min_units is 0"),
    ],
)
def test_impossible_numbers(ratio, min_units, message):
    units = groups(**HEADS_AND_NEURONS)
    with pytest.raises(ew.ConfigError, match=message):
        ew.uniform_mask(units, ratio, min_units=min_units)
    with pytest.raises(ew.ConfigError, match=message):
        ew.random_mask(units, ratio, min_units=min_units, seed=0)


@pytest.mark.parametrize("kind", ["residual", "transformer"])
@pytest.mark.parametrize("make", [lambda units: ew.random_mask(units, 0.5, seed=1), lambda u: ew.uniform_mask(u, 0.5)])
def test_such_tickets_are_compacted_like_any(kind, make, tmp_path):
    model, units, inputs = network(kind)
    model.eval()
    drawn = ew.ticket_of(model, units, make(units), method="baseline", pruning_ratio=0.5, step=12)
    drawn.save(tmp_path / "ticket")
    ticket = ew.Ticket.load(tmp_path / "ticket")
    assert ticket.mask == drawn.mask
    assert (ticket.method, ticket.step, ticket.emerged, ticket.distances) == ("baseline", 12, False, ())
    small = ew.compact(model, ticket, example_inputs=inputs)
    ticket.apply(model)
    [(expected, found)] = zip(probe(model, inputs), probe(small, inputs), strict=True)
    assert agree(expected, found)
    assert ew.cost(small, inputs).parameters < ew.cost(model, inputs).parameters


def test_a_uniform_ticket_is_a_narrower_network():
    model, units, inputs = network("residual")
    ticket = ew.ticket_of(model, units, ew.uniform_mask(units, 0.5), method="uniform", pruning_ratio=0.5)
    assert ew.compact(model, ticket, example_inputs=inputs).first.weight.shape == (2, 3, 3, 3)
    assert torch.equal(ew.compact(model, ticket).head.weight, model.head.weight[:, :3])


def test_the_first_of_the_removed_stay_when_a_ticket_is_rounded():
    model, units, _ = network("transformer")
    mask = ew.uniform_mask(units, {"heads": 0.0, "neurons": 0.75})
    ticket = ew.ticket_of(model, units, mask, method="uniform", pruning_ratio=0.75)
    rounded = ew.round_ticket(ticket, 8).mask
    assert kept(rounded)["0.layers.0.linear1"] == "1" * 8 + "0" * 12


def test_a_mask_over_other_units_makes_no_ticket():
    model, units, _ = network("residual")
    with pytest.raises(ew.TicketError, match="the mask is over other units"):
        ew.ticket_of(model, units, ew.full_mask(groups(a=("channels", 3))), method="full", pruning_ratio=0)


def by_sorting(mask, scores, keep, min_units):
    """The next mask, one unit after the other."""
    names = [(name, i) for name, size in mask.sizes.items() for i in range(size) if mask.kept[name][i]]
    left = {name: int(bits.sum()) for name, bits in mask.kept.items()}
    gone, count = set(), mask.units_kept - keep
    values = [abs(float(scores[name][i])) for name, i in names]
    for place in sorted(range(len(names)), key=lambda place: (values[place], -place)):
        name, i = names[place]
        if len(gone) < count and left[name] > min_units:
            gone.add((name, i))
            left[name] -= 1
    return {
        name: "".join(str(int((name, i) in names and (name, i) not in gone)) for i in range(size))
        for name, size in mask.sizes.items()
    }


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    levels=st.sampled_from([1, 3, 1000]),
    share=st.floats(0, 1),
    min_units=st.integers(1, 3),
)
def test_further_masks_are_those_of_a_plain_sort(seed, sizes, levels, share, min_units):
    generator = torch.Generator().manual_seed(seed)
    mask = ew.Mask.from_groups({str(i): torch.rand(size, generator=generator) < 0.7 for i, size in enumerate(sizes)})
    scores = {str(i): torch.randint(-levels, levels + 1, (n,), generator=generator) / 7 for i, n in enumerate(sizes)}
    fewest = sum(min(min_units, count) for count in counts(mask).values())
    keep = fewest + round(share * (mask.units_kept - fewest))
    further = ew.further_mask(mask, scores, keep, min_units=min_units)
    assert kept(further) == by_sorting(mask, scores, keep, min_units)
    assert further.units_kept == keep
    assert not (further.flat & ~mask.flat).any()


def test_further_masks_take_matrices_of_any_layout_and_type():
    torch.manual_seed(0)
    scores = {"a": torch.randn(6, 7).T, "b": torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)}
    scores = {name: nn.Parameter(score.bfloat16()) for name, score in scores.items()}
    mask = ew.make_mask(scores, 0.2)
    flat = {name: score.detach().float().flatten() for name, score in scores.items()}
    assert kept(ew.further_mask(mask, scores, 40)) == by_sorting(mask, flat, 40, 1)


@pytest.mark.parametrize("keep", [1, 8, -3])
def test_as_many_units_cannot_stay(keep):
    mask = ew.Mask.from_groups({"a": torch.ones(4), "b": torch.tensor([1, 1, 1, 0])})
    with pytest.raises(ew.ConfigError, match=f"keep is {keep}, but must be from 2 .* to 7"):
        ew.further_mask(mask, {"a": torch.ones(4), "b": torch.ones(4)}, keep)


def test_further_masks_are_of_one_kind_and_of_finite_scores():
    units = groups(**HEADS_AND_NEURONS)
    scores = {name: torch.ones(size) for name, size in units.sizes.items()}
    with pytest.raises(ew.ConfigError, match="several kinds"):
        ew.further_mask(ew.full_mask(units), scores, 5)
    nan = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(ew.SearchError, match="not finite"):
        ew.further_mask(ew.Mask.from_groups({"a": torch.ones(3)}), {"a": nan}, 2)
    removed = ew.Mask.from_groups({"a": torch.tensor([1, 0, 1])})
    assert kept(ew.further_mask(removed, {"a": nan}, 1)) == {"a": "001"}  # what is removed has no say


def test_all_weights_of_a_residual_network():
    units = ew.find_all_weights(make_network())
    assert units.sizes == {"stem.weight": 162, "first.weight": 216, "second.weight": 216, "head.weight": 18}
    assert set(units.kinds.values()) == {"weights"}
    assert not units.removable
    assert not units.skipped


def test_all_weights_of_transformers():
    transformers = pytest.importorskip("transformers")
    model, _, _ = network("transformer")
    assert list(ew.find_all_weights(model).sizes)[:5] == [
        "0.layers.0.self_attn.in_proj_weight",
        "0.layers.0.self_attn.out_proj.weight",
        "0.layers.0.linear1.weight",
        "0.layers.0.linear2.weight",
        "0.layers.1.self_attn.in_proj_weight",
    ]
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**BERT_LIKE))
    sizes = ew.find_all_weights(bert).sizes
    assert len(sizes) == 3 * 6 + 2
    assert sizes["cls.predictions.decoder.weight"] == 60 * 32  # tied to the word embeddings, which are not looked at
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=9, n_positions=8))
    assert ew.find_all_weights(gpt2).sizes == {
        "h.0.attn.c_attn.weight": 768,
        "h.0.attn.c_proj.weight": 256,
        "h.0.mlp.c_fc.weight": 1024,
        "h.0.mlp.c_proj.weight": 1024,
    }


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    assert ew.find_all_weights(model).sizes == {"0.weight": 9, "3.weight": 6}


def test_weights_that_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    units = ew.find_all_weights(model)
    assert list(units.sizes) == ["2.weight"]
    assert units.skipped == {
        "0": "its weight is frozen",
        "1": "its weight is no parameter (is it parametrised?)",
    }
    with pytest.raises(ew.UnitsError, match="Sequential has no linear layer"):
        ew.find_all_weights(model[:2])
    with pytest.raises(ew.UnitsError, match="meta device"):
        ew.find_all_weights(nn.Linear(2, 2, device="meta"))


def zeros(model, ticket):
    """Whether exactly those weights are zero that the ticket removes."""
    found = named_tensors(model)
    return all(torch.equal(found[name].flatten() != 0, bits) for name, bits in ticket.mask.kept.items())


def test_iterative_magnitude_pruning_of_a_residual_network():
    model, mask = make_network(), None
    units = ew.find_all_weights(model)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask, keep = ew.full_mask(units), 612
    for level in (0.2, 0.36, 0.488):
        ticket = ew.ticket_of(model, units, mask, method="IMP", pruning_ratio=level)
        model.load_state_dict(first)
        trained = ew.compact(model, ticket, example_inputs=make_batch(0)[0])
        optimizer = SGD(trained.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for i in range(3):
            optimizer.zero_grad()
            loss_on(trained, make_batch(i)).backward()
            optimizer.step()
        trained.eval()(make_batch(0)[0])
        assert zeros(trained, ticket)
        keep = round(0.8 * keep)
        further = ew.further_mask(mask, score_units(trained, units.groups, {"weights": magnitude}), keep)
        assert not (further.flat & ~mask.flat).any()
        mask = further
    assert mask.units_kept == keep == 314


def test_a_pruned_transformer_stays_sparse():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT_LIKE))
    units, inputs = ew.find_all_weights(model), text()
    scores = score_units(model, units.groups, {"weights": magnitude})
    mask = ew.further_mask(ew.full_mask(units), scores, 5000)
    ticket = ew.ticket_of(model, units, mask, method="magnitude", pruning_ratio=0.5)
    small = ew.compact(model, ticket, example_inputs=inputs)
    optimizer = AdamW(small.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        small(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    small(**inputs)
    assert zeros(small, ticket)
    assert small.cls.predictions.decoder.weight is small.bert.embeddings.word_embeddings.weight
