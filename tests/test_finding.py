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


def test_units_of_another_model_are_refused():
    with pytest.raises(ew.UnitsError, match="these units belong to another model"):
        ew.TicketSearch(encoder(), units=UNITS)
