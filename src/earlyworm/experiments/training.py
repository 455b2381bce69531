"""Train and evaluate a classifier on data in memory, a given number of optimizer steps at a time."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from earlyworm.errors import ConfigError, RunError, first_line
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.data import Data
from earlyworm.experiments.models import logits
from earlyworm.inputs import ExampleInputs, batch_size, call_model, synchronize
from earlyworm.units.surgery import copy_model

if TYPE_CHECKING:
    from accelerate import Accelerator

_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """How far the schedule of the learning rate is, as a stage goes on.

    Attributes:
        steps: The optimizer steps in which the stage would bring it to its end.
        start: Where the stage finds it, in [0, 1).
    """

    steps: int
    start: float = 0.0

    def after(self, steps: int) -> float:
        """The fraction of the schedule that is over after `steps` steps of the stage."""
        return self.start + (1 - self.start) * steps / self.steps


@dataclass(frozen=True)
class Pace:
    """How training is divided.

    Attributes:
        batch: Examples per optimizer step, over all processes.
        steps_per_epoch: Optimizer steps per epoch; the examples left over by whole batches wait for the next epoch,
            which has another order.
        check_steps: Optimizer steps between two checks of the search.
    """

    batch: int
    steps_per_epoch: int
    check_steps: int

    @classmethod
    def of(cls, config: RunConfig, examples: int, processes: int) -> Pace:
        """The pace of a run on `examples` training examples.

        Raises:
            ConfigError: If a batch cannot be divided evenly over micro-batches and processes.
        """
        batch = min(config.batch_size, examples)
        parts = config.accumulation * processes
        if batch % parts:
            raise ConfigError(
                f"a batch of {batch} examples cannot be divided over {config.accumulation} micro-batches and "
                f"{processes} processes: choose a batch_size that is a multiple of {parts}"
            )
        steps = examples // batch
        return cls(batch, steps, max(1, round(config.effective_check_every * steps)))

    def epochs(self, steps: int) -> float:
        """How many epochs `steps` are."""
        return steps / self.steps_per_epoch

    def epochs_end(self, done: int, steps: int, epochs: int = 1) -> bool:
        """Whether another `epochs` epochs have ended within the last `steps` of `done` steps."""
        length = epochs * self.steps_per_epoch
        return done // length > (done - steps) // length


def check_batch(model: nn.Module, inputs: ExampleInputs) -> None:
    """Make sure that `model` can be trained on as few examples as a process sees at once.

    Args:
        model: The network; a copy of it is tried.
        inputs: As many examples as a process sees of a micro-batch.

    Raises:
        ConfigError: If it cannot: batch norm, for one, needs more than one value per channel.
    """
    try:
        with torch.no_grad():
            call_model(copy_model(model).train(), inputs)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot be trained on {batch_size(inputs)} examples at once ({first_line(error)}): if it needs "
            "more of them, raise batch_size or limit, or lower accumulation; otherwise give another model"
        ) from error


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`; fused, as small networks gain by it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw" and config.task == "text":
        # Biases and norms do not decay, as is usual for transformers.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(config: RunConfig, progress: float, step: float = 0.0) -> float:
    """The learning rate after a fraction of all epochs.

    Args:
        config: Peak rate and schedule: constant; step, a tenth in the last seventh; cosine or linear, down to 0. It
            begins once the warm-up is over, during which the rate rises in proportion.
        progress: In [0, 1].
        step: The fraction that one optimizer step is; the first step of a warm-up has the rate of its end.
    """
    if progress < config.warmup:
        return config.lr * min(1.0, (progress + step) / config.warmup)
    if config.schedule == "linear":
        return config.lr * max(0.0, 1 - progress) / (1 - config.warmup)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if config.schedule == "step":
        return config.lr * (0.1 if progress >= 6 / 7 else 1.0)
    return config.lr


def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    config: RunConfig,
    pace: Pace,
    accelerator: Accelerator,
    *,
    stage: str,
    first: int,
    steps: int,
    progress: Progress,
    report: Callable[[float, float], None] | None = None,
) -> float:
    """Take `steps` optimizer steps from step `first` of a stage on.

    What happens depends only on the weights, the optimizer's state and the arguments: order and augmentation come from
    seed, stage and step, so that an interrupted run goes on as if nothing had happened.

    Args:
        model: The network, prepared by `accelerator`.
        optimizer: Its optimizer, likewise.
        data: Data on the accelerator's device.
        config: Settings.
        pace: How training is divided.
        accelerator: Where and how it runs.
        stage: Names the stage; each has its own random numbers.
        first: Steps of this stage that were taken before.
        steps: Steps to take.
        progress: How far the schedule of the learning rate is after as many steps of the stage.
        report: Told the epoch of the stage and the loss, every now and then.

    Returns:
        The mean training loss.

    Raises:
        RunError: If the loss is not finite; the message names the epoch and the learning rate.
    """
    seed = stable_seed(config.seed, stage, first, accelerator.process_index)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device = accelerator.device
    model.train()
    total, since_report, last_report = torch.zeros((), device=device), 0, time.monotonic()
    reported = torch.zeros((), device=device)
    order, order_epoch = torch.empty(0, dtype=torch.long), -1
    for step in range(first, first + steps):
        epoch, position = divmod(step, pace.steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = data.epoch_order(stable_seed(config.seed, stage), epoch, pace.batch), epoch
        rate = learning_rate(config, progress.after(step), (1 - progress.start) / progress.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = order[position * pace.batch : (position + 1) * pace.batch]
        loss = torch.zeros((), device=device)
        for part in batch.chunk(config.accumulation):
            own = part[accelerator.process_index :: accelerator.num_processes]
            inputs, labels = data.train_batch(own, config, generator)
            with accelerator.accumulate(model):
                part_loss = F.cross_entropy(logits(call_model(model, inputs)).float(), labels)
                accelerator.backward(part_loss)
                if config.max_grad_norm is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
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
def evaluate(model: nn.Module, data: Data, config: RunConfig, accelerator: Accelerator) -> float:
    """Accuracy on the held-out examples, in [0, 1]; every process evaluates its share."""
    model.eval()
    correct, processes = torch.zeros((), device=accelerator.device), accelerator.num_processes
    # Shares are of equal size, for processes wait for each other in every pass; what is past the end is not counted.
    end = -(-len(data.test_labels) // processes) * processes
    positions = torch.arange(accelerator.process_index, end, processes, device=accelerator.device)
    for part in torch.split(positions, data.evaluation_batch):
        inputs, labels = data.test_batch(part % len(data.test_labels), config)
        right = logits(call_model(model, inputs)).argmax(1) == labels
        correct += (right & (part < len(data.test_labels))).sum()
    return float(accelerator.reduce(correct, "sum")) / len(data.test_labels)


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on `parts` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _require_finite(loss: float, stage: str, epoch: float, rate: float) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the loss became {loss} in epoch {math.ceil(epoch)} of the {stage} at learning rate {rate:g}: lower --lr; "
            "the last checkpoint stays"
        )
