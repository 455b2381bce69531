"""Latency of compacted networks over the dense ones, beside the ratios of their MACs and parameters.

    python benchmarks/compacted_latency.py [--ratio 0.5] [--rounds 30] [--threads N]

Tickets keep random units, as many of every group; `round_to=8` is shown beside. Dense and compacted network run in
turn; the table shows medians of the ratios compacted / dense.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import earlyworm as ew
from earlyworm.models import build_model
from earlyworm.ticket import fingerprint


def random_ticket(model: nn.Module, x: Tensor, ratio: float) -> ew.Ticket:
    """A ticket with random scores."""
    units = ew.find_channels(model, x)
    scores = {group.name: torch.rand(group.size) for group in units.groups}
    return ew.Ticket(
        mask=ew.make_mask(scores, ratio), units=units, scores=scores, structure=fingerprint(model),
        method="random", pruning_ratio=ratio, step=0, emerged=False, distances=(),
    )  # fmt: skip


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"pruning ratio {options.ratio}, {options.threads} threads, 3x32x32 images, float32")
    print("| network | round_to | parameters | MACs | latency, batch 1 | latency, batch 64 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, width in (("vgg11_bn", 1.0), ("resnet18", 1.0), ("resnet18", 0.25), ("resnet20", 1.0)):
        dense = build_model(name, classes=10, channels=3, width=width)[0].eval()
        one, many = torch.randn(1, 3, 32, 32), torch.randn(64, 3, 32, 32)
        ticket = random_ticket(dense, one, options.ratio)
        before = ew.cost(dense, one, repeats=1)
        for multiple in (1, 8):
            small = ew.compact(dense, ticket, example_inputs=one, round_to=multiple)
            after = ew.cost(small, one, repeats=1)
            single, batch = (latency_ratio(dense, small, x, options.rounds) for x in (one, many))
            print(
                f"| {name} x {width} | {multiple} | {after.parameters / before.parameters:.2f} "
                f"| {after.macs / before.macs:.2f} | {single:.2f} | {batch:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
