"""How long it takes to find the units of a network: channels by tracing, heads and neurons from what is known.

    python benchmarks/finding_units.py [--rounds 5] [--threads N]

The table shows medians. The weights of BERT-large, with 24 layers of width 1024, are never filled: nothing reads them.
"""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import earlyworm as ew
import timed
from earlyworm.experiments.models import build_model
from tables import head, line


def bert(layers: int, width: int, heads: int) -> nn.Module:
    """A BERT without initial weights, which for a large one would take longer than all else."""
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
    )
    with torch.device("meta"):
        model = BertModel(config)
    return model.to_empty(device="cpu")


def cases() -> Iterator[tuple[str, nn.Module, tuple[str, ...], Tensor | None]]:
    """Name, network, kinds of units, and what tracing needs."""
    for name in ("vgg11_bn", "resnet18", "resnet20"):
        yield name, build_model(name, classes=10, channels=3, width=1.0)[0], ("channels",), torch.randn(2, 3, 32, 32)
    yield "bert, 6 layers x 384", bert(6, 384, 12), ("heads", "neurons"), None
    yield "bert-large, 24 layers x 1024", bert(24, 1024, 16), ("heads", "neurons"), None


def main() -> None:
    rounds = timed.begin(timed.parser(__doc__, rounds=5)).rounds
    print(head("network", "units", "how many", "seconds"))
    for name, network, kinds, example in cases():
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            units = ew.find_units(network, kinds, example)
            seconds.append(time.perf_counter() - start)
        count = sum(group.size for group in units.groups)
        print(line(name, " and ".join(kinds), count, f"{statistics.median(seconds):.3f}"), flush=True)


if __name__ == "__main__":
    main()
