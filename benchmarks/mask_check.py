"""One check over single weights, beside the way of the published research code, in one process.

    python benchmarks/mask_check.py [--millions 50 200] [--rounds 3] [--threads N] [--device cpu]

A check is: the threshold, the mask, and its distance to the older masks in a window of 3. The other way copies all
weights into one vector, sorts it, makes a float mask from the threshold, and compares float masks. Times are medians;
memory is what one remembered mask holds, and how far memory in use rises above the weights and masks while a check is
made. All weights are read once before each check. They are random, in matrices of 4096 x 4096.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

import timed
from earlyworm import make_mask
from earlyworm.masks.mask import MaskWindow
from tables import head, line

RATIO, WINDOW = 0.5, 3


def matrices(millions: float, device: str) -> dict[str, Tensor]:
    """Random weights, in matrices of at most 4096 x 4096."""
    left, found = round(millions * 1e6) // 4096, {}
    while left:
        rows = min(left, 4096)
        found[str(len(found))] = torch.randn(rows, 4096, device=device) * 0.02
        left -= rows
    return found


def ours(weights: dict[str, Tensor]) -> tuple[Callable[[], tuple[float, ...]], Callable[[], int]]:
    """A check of earlyworm's, and the bytes of one mask."""
    window = MaskWindow(WINDOW)
    return lambda: window.push(make_mask(weights, RATIO)), lambda: window.newest.bits.nbytes


def by_sorting(weights: dict[str, Tensor]) -> tuple[Callable[[], tuple[float, ...]], Callable[[], int]]:
    """The same by one sort of everything and float masks."""
    masks: deque[Tensor] = deque(maxlen=WINDOW)

    def check() -> tuple[float, ...]:
        scores = torch.cat([weight.flatten().abs().clone() for weight in weights.values()])
        ordered, _ = torch.sort(scores)
        threshold = ordered[int(len(ordered) * RATIO)]
        masks.append(torch.cat([weight.flatten().abs().clone().gt(threshold).float() for weight in weights.values()]))
        newest = masks[-1]
        return tuple(1 - float(torch.sum(newest == older)) / newest.numel() for older in list(masks)[:-1])

    return check, lambda: masks[-1].nbytes


def peak_rise(check: Callable[[], object], device: str) -> int:
    """Bytes by which memory in use rises while `check` runs."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        check()
        return torch.cuda.max_memory_allocated() - before
    with open("/proc/self/clear_refs", "w") as reset:  # the highest resident size starts anew
        reset.write("5")
    before = _status("VmRSS")
    check()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def read(weights: dict[str, Tensor]) -> None:
    """Make sure that all weights are in memory, wherever they were during the minutes of a sort."""
    assert all(bool(weight.sum().isfinite()) for weight in weights.values())


def train_a_little(weights: dict[str, Tensor]) -> None:
    """Move every weight, so that masks differ."""
    for weight in weights.values():
        weight.add_(torch.empty_like(weight).normal_(), alpha=1e-4)


def measure(millions: float, rounds: int, device: str) -> str:
    """One row of the table."""
    weights = matrices(millions, device)
    ways = [ours(weights), by_sorting(weights)]
    seconds: list[list[float]] = [[], []]
    for turn in range(WINDOW - 1 + rounds):  # the first ones fill the window
        for (check, _), measured in zip(ways, seconds, strict=True):
            read(weights)
            start = time.perf_counter()
            distances = check()
            if turn >= WINDOW - 1:
                measured.append(time.perf_counter() - start)
                assert len(distances) == WINDOW - 1
        train_a_little(weights)
    medians = [statistics.median(some) for some in seconds]
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    held = [bytes_of() for _, bytes_of in ways]
    rises = []
    for check, _ in ways:
        read(weights)
        rises.append(peak_rise(check, device))
    return line(
        f"{millions:g} M", f"{medians[0]:.3f} s", f"{medians[1]:.2f} s", f"{ratio:.0f}", f"{held[0] / 1e6:.1f} MB",
        f"{held[1] / 1e6:.0f} MB", f"{held[1] / held[0]:.0f}", *(f"{rise / 1e6:.0f} MB" for rise in rises),
    )  # fmt: skip


def main() -> None:
    """Read the options."""
    parser = timed.parser(__doc__, rounds=3)
    parser.add_argument("--millions", type=float, nargs="+", default=[50, 200])
    parser.add_argument("--device", default="cpu")
    options = timed.begin(parser)
    columns = (
        "weights", "check", "by sorting", "times faster", "a mask", "a float mask", "times smaller", "rise",
        "by sorting",
    )  # fmt: skip
    print(head(*columns))
    for millions in options.millions:
        print(measure(millions, options.rounds, options.device), flush=True)


if __name__ == "__main__":
    main()
