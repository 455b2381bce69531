"""Latency of compacted networks over the dense ones, beside the ratios of their MACs and parameters.

    python benchmarks/compacted_latency.py [--ratio 0.5] [--rounds 30] [--threads N]

Tickets keep random units: channels of convolutional networks, heads and neurons of a BERT of the size of
all-MiniLM-L6-v2, on texts of 24 tokens. `round_to=8` is shown beside. Dense and compacted network run in turn, in
float32; the table shows medians of the ratios compacted / dense.
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
from earlyworm.tickets.ticket import fingerprint
from tables import head, line


def random_ticket(model: nn.Module, units: ew.Units, ratio: float) -> ew.Ticket:
    """A ticket with random scores."""
    scores = {group.name: torch.rand(group.size) for group in units.groups}
    return ew.Ticket(
        mask=ew.make_mask(scores, ratio, kinds=units.kinds), units=units, scores=scores, structure=fingerprint(model),
        method="random", pruning_ratio=ratio, step=0, emerged=False, distances=(),
    )  # fmt: skip


def cases() -> Iterator[tuple[str, nn.Module, Tensor, Tensor, tuple[str, ...]]]:
    """Name, network, one example, 64 examples, and the units that are removed."""
    for name, width in (("vgg11_bn", 1.0), ("resnet18", 1.0), ("resnet18", 0.25), ("resnet20", 1.0)):
        network = build_model(name, classes=10, channels=3, width=width)[0]
        yield f"{name} x {width}", network, torch.randn(1, 3, 32, 32), torch.randn(64, 3, 32, 32), ("channels",)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ids = torch.randint(config.vocab_size, (64, 24))
    yield "bert, 6 layers x 384", BertModel(config), ids[:1], ids, ("heads", "neurons")


@torch.inference_mode()
def latency_ratio(dense: nn.Module, small: nn.Module, x: Tensor, rounds: int) -> float:
    """Median over rounds of the time of `small` over that of `dense`."""
    ratios = []
    for turn in range(rounds + 3):
        seconds = []
        for model in (dense, small):
            start = time.perf_counter()
            model(x)
            seconds.append(time.perf_counter() - start)
        if turn >= 3:
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def main() -> None:
    parser = timed.parser(__doc__, rounds=30)
    parser.add_argument("--ratio", type=float, default=0.5)
    options = timed.begin(parser)
    print(f"pruning ratio {options.ratio}, {options.threads} threads")
    print(head("network", "round_to", "parameters", "MACs", "latency, batch 1", "latency, batch 64"))
    for name, network, one, many, kinds in cases():
        dense = network.eval()
        ticket = random_ticket(dense, ew.find_units(dense, kinds, one), options.ratio)
        before = ew.cost(dense, one, repeats=1)
        for multiple in (1, 8):
            small = ew.compact(dense, ticket, example_inputs=one, round_to=multiple)
            after = ew.cost(small, one, repeats=1)
            ratios = [after.parameters / before.parameters, after.macs / before.macs]
            ratios += [latency_ratio(dense, small, x, options.rounds) for x in (one, many)]
            print(line(name, multiple, *(f"{ratio:.2f}" for ratio in ratios)), flush=True)


if __name__ == "__main__":
    main()
