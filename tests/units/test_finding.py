"""Every way to the units of a model refuses weights that are no plain numbers, and looks at them once."""

import pytest
import torch
from torch import nn

import earlyworm as ew
from earlyworm.units import channels, finding, transformer_units
from earlyworm.units.weights import check_weights
from residual import make_batch, make_network
from stepping import UNITS

INPUTS = make_batch(0)[0]


def encoder():
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)


WAYS = {
    "channels": (make_network, lambda model: ew.find_channels(model, INPUTS)),
    "transformer units": (encoder, ew.find_transformer_units),
    "all weights": (make_network, ew.find_all_weights),
    "a kind": (make_network, lambda model: ew.TicketSearch(model, INPUTS)),
    "kinds": (encoder, lambda model: ew.TicketSearch(model, units=("heads", "neurons"))),
    "units that are given": (make_network, lambda model: ew.TicketSearch(model, units=UNITS)),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_not_there(way):
    build, find = WAYS[way]
    with torch.device("meta"):
        model = build()
    with pytest.raises(ew.UnitsError, match="is on the meta device: load the weights first"):
        find(model)


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_looked_at_once(way, monkeypatch):
    checked = []
    for module in (channels, finding, transformer_units):
        monkeypatch.setattr(module, "check_weights", lambda model: checked.append(check_weights(model)))
    build, find = WAYS[way]
    find(build())
    assert len(checked) == 1


def test_lazy_weights():
    with pytest.raises(ew.UnitsError, match=r"0\.weight has no shape yet: run one forward pass first"):
        ew.find_channels(nn.Sequential(nn.LazyConv2d(3, 3), nn.BatchNorm2d(3)), INPUTS)


class Hybrid(nn.Module):
    """A convolution with a norm before an encoder, whose neurons are the channels of its first linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.encoder = encoder()
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def test_channels_that_are_neurons_are_found_once():
    x = torch.randn(2, 3, 6, 6)
    units = ew.find_units(Hybrid(), ("channels", "neurons"), x)
    assert units.sizes == {"stem.0": 6, "encoder.linear1": 12}
    assert units.kinds == {"stem.0": "channels", "encoder.linear1": "neurons"}
    assert "encoder.linear1" not in units.skipped
    ew.TicketSearch(Hybrid(), x, units=("channels", "neurons"), pruning_ratio={"channels": 0.5, "neurons": 0.25})
    with pytest.raises(ew.UnitsError, match="all channels are neurons too: leave channels out"):
        ew.find_units(encoder(), ("channels", "neurons"), torch.randn(2, 5, 8))
    with pytest.raises(ew.UnitsError, match="a group is named 'first' in both"):
        UNITS.together_with(UNITS)


def test_units_of_another_model_are_refused():
    with pytest.raises(ew.UnitsError, match="these units belong to another model"):
        ew.TicketSearch(encoder(), units=UNITS)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_model(way):
    with pytest.raises(ew.UnitsError, match=r"a Tensor is no model: give a torch\.nn\.Module"):
        WAYS[way][1](INPUTS)


def test_groups_are_left_out_by_name():
    units = ew.find_channels(make_network(), INPUTS)
    first, *others = units.sizes
    left = units.without({first: "kept whole"})
    assert list(left.sizes) == others
    assert left.skipped == {**units.skipped, first: "kept whole"}
    with pytest.raises(ew.UnitsError, match=f"'03' is none of the groups {first}, "):
        units.without({"03": "kept whole"})
    with pytest.raises(ew.UnitsError, match=f"all groups are left out: {first}: kept whole; "):
        units.without(dict.fromkeys(units.sizes, "kept whole"))
