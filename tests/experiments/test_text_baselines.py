"""The baselines on text: heads and neurons of a small encoder instead of channels."""

import pytest
import torch

from earlyworm.experiments.networks import build_network, load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.ticket import Ticket
from texts import small_text, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize("method", ["dense", "narrow", "random", "late", "imp", "rst"])
def test_every_method_takes_heads_and_neurons(folder, tmp_path, method):
    config = small_text(folder, tmp_path, method=method, ratio=0.5)
    result = run(config)
    assert result.search.set_by_method
    assert 0 <= result.accuracy.final <= 1
    kinds = set(Ticket.load(RunDirectory.of(config).ticket).units.kinds.values())
    assert kinds == ({"weights"} if method == "imp" else {"heads", "neurons"})
    network = load_network(RunDirectory.of(config).path)
    assert sum(parameter.numel() for parameter in network.parameters()) == result.ticket.parameters


def test_narrow_forgets_the_pretrained_weights(folder, tmp_path, first_weights):
    config = small_text(folder, tmp_path, method="narrow", ratio=0.5)
    run(config)
    initial = build_network(config, classes=2, shape=(4,))[0].state_dict()
    key = "bert.embeddings.word_embeddings.weight"
    assert first_weights[0][key].shape == initial[key].shape
    assert not torch.equal(first_weights[0][key], initial[key])
    # As the encoder's own configuration says.
    drawn = torch.cat([tensor.flatten() for tensor in first_weights[0].values() if tensor.dim() == 2])
    assert float(drawn[drawn != 0].std()) == pytest.approx(0.2, rel=0.05)


def test_narrow_has_the_macs_asked_for(folder, tmp_path):
    random = run(small_text(folder, tmp_path, method="random", ratio=0.5))
    narrow = run(small_text(folder, tmp_path, method="narrow", ratio=0.5, macs=random.ticket.macs))
    assert 0.98 * random.ticket.macs <= narrow.ticket.macs <= random.ticket.macs
