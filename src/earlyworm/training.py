"""Train and evaluate an image classifier on images in memory, a given number of optimizer steps at a time."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlyworm.config import RunConfig
from earlyworm.data import ImageData, augment, epoch_order, normalise
from earlyworm.errors import ConfigError, RunError, first_line
from earlyworm.inputs import synchronize
from earlyworm.models import logits
from earlyworm.surgery import copy_model

if TYPE_CHECKING:
    from accelerate import Accelerator

_EVALUATION_BATCH = 512
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Pace:
    """How training is divided.

    Attributes:
        batch: Images per optimizer step, over all processes.
        steps_per_epoch: Optimizer steps per epoch; the images left over by whole batches wait for the next epoch,
            which has another order.
        check_steps: Optimizer steps between two checks of the search.
    """

    batch: int
    steps_per_epoch: int
    check_steps: int

    @classmethod
    def of(cls, config: RunConfig, images: int, processes: int) -> Pace:
        """The pace of a run on `images` training images.

        Raises:
            ConfigError: If a batch cannot be divided evenly over micro-batches and processes.
        """
        batch = min(config.batch_size, images)
        parts = config.accumulation * processes
        if batch % parts:
            raise ConfigError(
                f"a batch of {batch} images cannot be divided over {config.accumulation} micro-batches and "
                f"{processes} processes: choose a batch_size that is a multiple of {parts}"
            )
        steps = images // batch
        return cls(batch, steps, max(1, round(config.check_every * steps)))

    def epochs(self, steps: int) -> float:
        """How many epochs `steps` are."""
        return steps / self.steps_per_epoch


def check_batch(model: nn.Module, images: Tensor) -> None:
    """Make sure that `model` can be trained on as few images as a process sees at once.

    Args:
        model: The network; a copy of it is tried.
        images: As many images as a process sees of a micro-batch, float32 [N, C, H, W].

    Raises:
        ConfigError: If it cannot: batch norm, for one, needs more than one value per channel.
    """
    try:
        with torch.no_grad():
            copy_model(model).train()(images)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot be trained on {len(images)} images at once ({first_line(error)}): raise batch_size or "
            "limit, or lower accumulation"
        ) from error


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`; fused, as small networks gain by it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(config: RunConfig, progress: float) -> float:
    """The learning rate after a fraction of all epochs.

    Args:
        config: Peak rate and schedule: constant; step, a tenth in the last seventh; or cosine, down to 0.
        progress: In [0, 1].
    """
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if config.schedule == "step":
        return config.lr * (0.1 if progress >= 6 / 7 else 1.0)
    return config.lr


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    config: RunConfig,
    pace: Pace,
    accelerator: Accelerator,
    *,
    stage: str,
    first: int,
    steps: int,
    horizon: float,
    start: float = 0.0,
    report: Callable[[float, float], None] | None = None,
) -> float:
    """Take `steps` optimizer steps from step `first` of a stage on.

    What happens depends only on the weights, the optimizer's state and the arguments: order and augmentation come from
    seed, stage and step, so that an interrupted run goes on as if nothing had happened.

    Args:
        model: The network, prepared by `accelerator`.
        optimizer: Its optimizer, likewise.
        data: Images on the accelerator's device.
        config: Settings.
        pace: How training is divided.
        accelerator: Where and how it runs.
        stage: Names the stage; each has its own random numbers.
        first: Steps of this stage that were taken before.
        steps: Steps to take.
        horizon: Epochs over which the learning rate is scheduled.
        start: Epochs of the horizon that lie before this stage.
        report: Told the epoch of the stage and the loss, every now and then.

    Returns:
        The mean training loss.

    Raises:
        RunError: If the loss is not finite; the message names the epoch and the learning rate.
    """
    seed = stable_seed(config.seed, stage, first, accelerator.process_index)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype_format = torch.channels_last if config.precision == "bf16" else torch.contiguous_format
    device = accelerator.device
    model.train()
    total, since_report, last_report = torch.zeros((), device=device), 0, time.monotonic()
    reported = torch.zeros((), device=device)
    order, order_epoch = torch.empty(0, dtype=torch.long), -1
    for step in range(first, first + steps):
        epoch, position = divmod(step, pace.steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(data.train_labels), stable_seed(config.seed, stage), epoch), epoch
        rate = learning_rate(config, (start + pace.epochs(step)) / horizon)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = order[position * pace.batch : (position + 1) * pace.batch].to(device)
        loss = torch.zeros((), device=device)
        for part in batch.chunk(config.accumulation):
            own = part[accelerator.process_index :: accelerator.num_processes]
            images = augment(data.train_images[own], config.augment, generator)
            images = normalise(images, data.mean, data.std, torch.float32)
            with accelerator.accumulate(model):
                output = logits(model(images.contiguous(memory_format=dtype_format)))
                part_loss = F.cross_entropy(output.float(), data.train_labels[own])
                accelerator.backward(part_loss)
                optimizer.step()
                optimizer.zero_grad()
            loss += part_loss.detach() / config.accumulation
        total += loss
        reported += loss
        since_report += 1
        if time.monotonic() - last_report > _REPORT_SECONDS:
            value = float(reported) / since_report
            _require_finite(value, stage, pace.epochs(step + 1), rate)
            if report:
                report(pace.epochs(step + 1), value)
            since_report, last_report = 0, time.monotonic()
            reported.zero_()
    synchronize(device)
    mean = float(accelerator.reduce(total, "mean")) / steps
    _require_finite(mean, stage, pace.epochs(first + steps), rate)
    return mean


@torch.inference_mode()
def evaluate(model: nn.Module, data: ImageData, config: RunConfig, accelerator: Accelerator) -> float:
    """Accuracy on the held-out images, in [0, 1]; every process evaluates its share."""
    model.eval()
    memory_format = torch.channels_last if config.precision == "bf16" else torch.contiguous_format
    correct, processes = torch.zeros((), device=accelerator.device), accelerator.num_processes
    # Shares are of equal size, for processes wait for each other in every pass; what is past the end is not counted.
    end = -(-len(data.test_labels) // processes) * processes
    positions = torch.arange(accelerator.process_index, end, processes, device=accelerator.device)
    for part in torch.split(positions, _EVALUATION_BATCH):
        own = part % len(data.test_labels)
        inputs = normalise(data.test_images[own], data.mean, data.std, torch.float32)
        right = logits(model(inputs.contiguous(memory_format=memory_format))).argmax(1) == data.test_labels[own]
        correct += (right & (part < len(data.test_labels))).sum()
    return float(accelerator.reduce(correct, "sum")) / len(data.test_labels)


def example_images(data: ImageData, config: RunConfig, count: int) -> Tensor:
    """The first `count` training images as the network sees them, float32 [count, C, H, W]."""
    images = normalise(data.train_images[:count], data.mean, data.std, torch.float32)
    return images.contiguous(
        memory_format=torch.channels_last if config.precision == "bf16" else torch.contiguous_format
    )


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on `parts` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _require_finite(loss: float, stage: str, epoch: float, rate: float) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss became {loss} in epoch {math.ceil(epoch)} of the {stage} at learning rate {rate:g}: lower --lr; "
            "the last checkpoint stays"
        )
