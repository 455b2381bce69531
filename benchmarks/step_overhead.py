"""What the search costs: an optimizer step with truncation over one without, and a check over an epoch of training.

    python benchmarks/step_overhead.py

Goals: at most 1.02 and at most 1 %. Both sides of a ratio are timed in turn, in one run, on the same tensors.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import earlyworm as ew
from earlyworm.experiments.models import resnet18


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step_overhead(pairs: int) -> tuple[float, float, float]:
    """Medians: a step with truncation, one without, and the ratio of neighbours; ResNet-18, SGD with momentum."""
    torch.manual_seed(0)
    model = resnet18(classes=10, channels=3, width=1.0)
    images = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    search = ew.TicketSearch(model, images, truncation=ew.Constant(0.1))
    model(images).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    fresh = [gradient.clone() for gradient in gradients]

    def timed_step() -> float:
        # A gradient that is truncated again and again would become denormal, and slow.
        torch._foreach_copy_(gradients, fresh)
        return seconds(optimizer.step)

    def truncated_step() -> float:
        with search.attach(optimizer):
            return timed_step()

    for _ in range(5):
        timed_step(), truncated_step()
    timings = []
    for i in range(pairs):
        if i % 2:
            plain, truncated = timed_step(), truncated_step()
        else:
            truncated, plain = truncated_step(), timed_step()
        timings.append((truncated, plain, truncated / plain))
    truncated, plain, ratio = (statistics.median(column) for column in zip(*timings, strict=True))
    return truncated, plain, ratio


def check_overhead(epochs: int) -> tuple[float, float, float]:
    """Medians: a check, an epoch of training without it, and their ratio; ResNet-18 at width 0.25, data as digits."""
    torch.manual_seed(0)
    images, labels = torch.rand(1437, 1, 8, 8), torch.randint(10, (1437,))
    model = resnet18(classes=10, channels=1, width=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    search = ew.TicketSearch(
        model, images[:2], truncation=ew.Worm(), emergence=ew.Emergence(epsilon=0.0), sparsity_penalty=1e-4
    )

    def train_one_epoch() -> None:
        for some in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()

    timings = []
    with search.attach(optimizer):
        for _ in range(epochs):
            epoch, check = seconds(train_one_epoch), seconds(search.update)
            timings.append((check, epoch, check / epoch))
    check, epoch, ratio = (statistics.median(column) for column in zip(*timings, strict=True))
    return check, epoch, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400, help="pairs of optimizer steps")
    parser.add_argument("--epochs", type=int, default=7, help="epochs of training")
    options = parser.parse_args()
    print(f"{'':28}{'with':>12}{'without':>12}{'ratio':>10}{'goal':>10}")
    truncated, plain, ratio = step_overhead(options.pairs)
    print(f"{'optimizer step':28}{1000 * truncated:>9.2f} ms{1000 * plain:>9.2f} ms{ratio:>10.4f}{'1.02':>10}")
    check, epoch, ratio = check_overhead(options.epochs)
    print(f"{'check, over one epoch':28}{1000 * check:>9.2f} ms{1000 * epoch:>9.0f} ms{ratio:>10.2%}{'1 %':>10}")


if __name__ == "__main__":
    main()
