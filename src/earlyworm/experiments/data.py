"""Data of any kind as training sees them: batches of inputs and labels."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.image_data import image_columns, load_images
from earlyworm.experiments.names import Task, task_by_name
from earlyworm.experiments.sources import open_data
from earlyworm.experiments.text_data import load_text
from earlyworm.inputs import ExampleInputs


class Data(Protocol):
    """A data set for classification, in memory, on one device."""

    @property
    def noun(self) -> str:
        """What an example is called."""

    @property
    def train_labels(self) -> Tensor:
        """int64 [N], in [0, classes)."""

    @property
    def test_labels(self) -> Tensor:
        """Of the held-out examples, int64 [M], in [0, classes)."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example: channels, height and width of an image; the typical number of tokens of a text."""

    @property
    def split(self) -> str:
        """Where the held-out examples came from, in words."""

    @property
    def digest(self) -> str:
        """A short one of all examples and labels, as they are used."""

    @property
    def evaluation_batch(self) -> int:
        """How many held-out examples are evaluated at once."""

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""

    def epoch_order(self, seed: int, epoch: int, batch: int) -> Tensor:
        """The order of the training examples in an epoch, a permutation, int64 [N] on the CPU.

        It depends on the arguments alone. Whole batches of `batch` are taken from its front.
        """

    def train_batch(
        self, indices: Tensor, config: RunConfig, generator: torch.Generator
    ) -> tuple[ExampleInputs, Tensor]:
        """What the network takes for these training examples, and their labels; `generator` augments them."""

    def test_batch(self, indices: Tensor, config: RunConfig) -> tuple[ExampleInputs, Tensor]:
        """What the network takes for these held-out examples, and their labels."""

    def example_inputs(self, count: int, config: RunConfig) -> ExampleInputs:
        """What the network takes for `count` typical training examples."""

    def check_model(self, model: nn.Module, config: RunConfig) -> None:
        """Make sure that `model` can take these data.

        Raises:
            EarlywormError: If it cannot.
        """

    def files(self) -> dict[str, bytes]:
        """What is needed beside the network to give it such inputs, by the name of a file."""


def load_data(config: RunConfig) -> Data:
    """Load the data of a run; every run trains on the same examples and holds out the same.

    Raises:
        EarlywormError: If they are missing, damaged, or not what the settings say.
    """
    if config.task == "images":
        return load_images(
            config.data, limit=config.limit, label_column=config.label_column, classes=config.classes,
            validation=config.validation,
        )  # fmt: skip
    return load_text(config)


def task_of(model: str | None, data: str) -> Task:
    """What the data are: images if they have a column of images, else text.

    Args:
        model: The name of the model, if one was chosen; the reference networks take images.
        data: The name of the data.

    Raises:
        DataError: If it takes a look at the data to tell, and they cannot be opened.
    """
    known = task_by_name(model, data)
    if known is not None:
        return known
    splits: dict[str, Any] = open_data(data)
    return "images" if any(image_columns(split) for split in splits.values()) else "text"
