"""Images per second of earlyworm's training loop, beside loops written by hand, on the same network.

    python benchmarks/throughput.py [--rounds 7] [--threads N]

`samples`: a DataLoader over decoded images with per-sample transforms (pad and crop, flip, to tensor, normalise).
`tensors`: a plain loop over uint8 tensors in memory, with the same augmentation batch by batch.
`plain`: as `samples`, in float32 and default memory format, as a loop without any thought of speed is; the others have
the precision and memory format of earlyworm's.
All run in turn, round by round; the table shows medians of the ratios earlyworm / other. Random images, as many
labels as the network has classes; the numbers speak of speed alone.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import timed
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.image_data import ImageData
from earlyworm.experiments.models import build_model
from earlyworm.experiments.run import make_accelerator
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.training import Pace, Progress, make_optimizer, train_steps
from tables import head, line

CASES = [
    ("resnet18", 0.25, 8, 1, "fp32", 32),
    ("vgg11_bn", 0.25, 32, 3, "bf16", 64),
    ("resnet20", 0.5, 32, 3, "bf16", 64),
    ("resnet18", 0.25, 32, 3, "bf16", 64),
]
STEPS = 12


class Samples(Dataset):
    """Decoded images with transforms, sample by sample."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        arrays = images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(a.squeeze(-1) if a.shape[-1] == 1 else a) for a in arrays]
        self.labels = labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        size, border = image.width, max(1, image.width // 8)
        left, top = random.randint(0, 2 * border), random.randint(0, 2 * border)
        image = ImageOps.expand(image, border).crop((left, top, left + size, top + size))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).float().div(255)
        return pixels.sub(0.5).div(0.25), self.labels[index]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, precision: str) -> float:
    """One training step as anybody writes it."""
    if precision == "bf16":
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(model(x).float(), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def tensor_batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, cropped, flipped and normalised on tensors."""
    border = max(1, images.shape[-1] // 8)
    while True:
        for batch in torch.randperm(len(labels)).split(size):
            x = F.pad(images[batch].float(), (border,) * 4, mode="reflect")
            n, c, h, w = images[batch].shape
            top, left = torch.randint(2 * border + 1, (2, n))
            rows, columns = top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)
            columns = torch.where((torch.rand(n) < 0.5)[:, None], columns.flip(1), columns)
            x = x[torch.arange(n)[:, None, None, None], torch.arange(c)[:, None, None], rows[:, None, :, None],
                  columns[:, None, None, :]]  # fmt: skip
            yield x.div(255).sub(0.5).div(0.25), labels[batch]


def measure(model_name: str, width: float, size: int, channels: int, precision: str, batch: int, rounds: int) -> str:
    """One row of the table."""
    count = batch * STEPS
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    labels = torch.randint(10, (count,))
    config = RunConfig(model=model_name, width=width, precision=precision, batch_size=batch, augment="crop-flip")
    half = torch.full((channels,), 0.5)
    data = ImageData(images, labels, images, labels, 10, "", half, half / 2)

    def network(precision: str) -> nn.Module:
        model, _ = build_model(model_name, classes=10, channels=channels, width=width)
        return model.to(memory_format=torch.channels_last) if precision == "bf16" else model

    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(config, RunDirectory(Path(folder)))
    ours = network(precision)
    prepared, ours_optimizer = accelerator.prepare(ours, make_optimizer(ours, config))
    pace = Pace.of(config, count, 1)

    def with_earlyworm() -> None:
        train_steps(prepared, ours_optimizer, data, config, pace, accelerator, stage="search", first=0,
                    steps=STEPS, progress=Progress(STEPS))  # fmt: skip

    def by_hand(batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], precision: str) -> Callable[[], None]:
        model = network(precision).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def loop() -> None:
            for _, (x, y) in zip(range(STEPS), batches(), strict=False):
                plain_step(model, optimizer, x, y, precision)

        return loop

    samples = Samples(images, labels)
    loops = [
        with_earlyworm,
        by_hand(lambda: iter(DataLoader(samples, batch_size=batch, shuffle=True)), "fp32"),
        by_hand(lambda: iter(DataLoader(samples, batch_size=batch, shuffle=True)), precision),
        by_hand(lambda: tensor_batches(images, labels, batch), precision),
    ]
    seconds: list[list[float]] = [[] for _ in loops]
    for turn in range(rounds + 1):
        for loop, measured in zip(loops, seconds, strict=True):
            start = time.perf_counter()
            loop()
            if turn:  # the first round warms up
                measured.append(time.perf_counter() - start)
    ratios = [statistics.median(b / a for a, b in zip(seconds[0], other, strict=True)) for other in seconds[1:]]
    return line(
        f"{model_name} x {width}", f"{channels}x{size}x{size}", precision, batch,
        f"{count / statistics.median(seconds[0]):.0f}", *(f"{ratio:.2f}" for ratio in ratios),
    )  # fmt: skip


def main() -> None:
    options = timed.begin(timed.parser(__doc__, rounds=7))
    print(f"{options.threads} threads")
    print(
        head(
            "network", "images", "precision", "batch", "earlyworm, images/s", "over plain", "over samples",
            "over tensors",
        )
    )  # fmt: skip
    for case in CASES:
        print(measure(*case, options.rounds), flush=True)


if __name__ == "__main__":
    main()
