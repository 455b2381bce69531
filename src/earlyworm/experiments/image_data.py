"""Labelled images in memory, and what happens to them on the device."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from earlyworm.errors import DataError, first_line
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.splits import Indices, Split, digest, divide, only_classes, open_splits, pick

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ImageData:
    """A data set for image classification, in memory.

    Attributes:
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N], in [0, classes).
        test_images: The held-out images, uint8 [M, C, H, W].
        test_labels: int64 [M], in [0, classes).
        classes: Number of classes.
        split: Where the held-out images came from, in words.
        mean: Mean of each channel of the training images, float32 [C], in [0, 1].
        std: Their standard deviation, float32 [C], at least 1/255 so that it can be divided by.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    split: str
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same data with every tensor on `device`."""
        tensors: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    noun: ClassVar[str] = "image"
    evaluation_batch: ClassVar[int] = 512

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return tuple(self.train_images.shape[1:])

    @property
    def digest(self) -> str:
        """Of all images and labels, trained on and held out."""
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return digest(tensor.numpy(force=True) for tensor in tensors)

    def epoch_order(self, seed: int, epoch: int, batch: int) -> Tensor:
        """The order of the training images in an epoch."""
        return epoch_order(len(self.train_labels), seed, epoch)

    def train_batch(self, indices: Tensor, config: RunConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images as the network sees them, augmented, float32 [n, C, H, W], and their labels [n]."""
        indices = indices.to(self.train_labels.device)
        images = augment(self.train_images[indices], config.augment, generator)
        return self._inputs(images, config), self.train_labels[indices]

    def test_batch(self, indices: Tensor, config: RunConfig) -> tuple[Tensor, Tensor]:
        """Held-out images as the network sees them, float32 [n, C, H, W], and their labels [n]."""
        indices = indices.to(self.test_labels.device)
        return self._inputs(self.test_images[indices], config), self.test_labels[indices]

    def example_inputs(self, count: int, config: RunConfig) -> Tensor:
        """The first `count` training images as the network sees them, float32 [count, C, H, W]."""
        return self._inputs(self.train_images[:count], config)

    def check_model(self, model: nn.Module, config: RunConfig) -> None:
        """Nothing: the channels of an image are compared before a network is built."""

    def files(self) -> dict[str, bytes]:
        """Nothing is needed beside the network."""
        return {}

    def _inputs(self, images: Tensor, config: RunConfig) -> Tensor:
        memory_format = torch.channels_last if config.precision == "bf16" else torch.contiguous_format
        return normalise(images, self.mean, self.std, torch.float32).contiguous(memory_format=memory_format)


def load_images(
    name: str,
    *,
    limit: int | None,
    label_column: str | None = None,
    classes: tuple[int, ...] = (),
    validation: int | None = None,
) -> ImageData:
    """Load a data set by name, or from local files; every run trains on the same images and holds out the same.

    Args:
        name: `digits`, or what `sources.open_data` takes.
        limit: The most training images to keep, at least 1; None keeps all. Held-out images are never left out.
        label_column: The column of the labels; None: found by name and type.
        classes: The classes whose images are kept, numbered anew; none: all.
        validation: How many training images to hold out in place of those that are held out otherwise.

    Raises:
        ConfigError: If there is no such class, or too few images are left to train on.
        DataError: If the data are missing or damaged, or no labelled images of one size, all greyscale or all RGB.
    """
    splits = [_digits()] if name == "digits" else open_splits(name, "image", label_column, _reader)
    division = divide(name, only_classes(splits, classes, "image"), "image", limit, validation)
    train, test = division.train, division.test
    images, test_images = torch.from_numpy(train.read(division.kept)), torch.from_numpy(test.read(division.held))
    if images.shape[1:] != test_images.shape[1:]:
        shapes = f"{list(images.shape[1:])} to train on and {list(test_images.shape[1:])} held out"
        raise DataError(f"images of {name} are mixed, {shapes} (channels, height, width): bring all to one size")
    labels, test_labels = (torch.from_numpy(s.labels[i]) for s, i in ((train, division.kept), (test, division.held)))
    return ImageData(images, labels, test_images, test_labels, train.classes, division.words, *_statistics(images))


def _digits() -> Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)  # from 0..16
    return Split("digits", digits.target.astype(np.int64), 10, images.__getitem__)


def image_columns(dataset: Dataset) -> list[str]:
    """The columns that can hold images: without the metadata of datasets, bytes or structures with bytes."""
    import datasets

    return [c for c, f in dataset.features.items() if isinstance(f, datasets.Image) or "binary" in str(f)]


def _reader(dataset: Dataset, name: str, label: str | None) -> Callable[[Indices], NDArray[np.uint8]]:
    """What decodes the images of a split, indices [n] to uint8 [n, C, H, W]."""
    import datasets

    image = pick(image_columns(dataset), ("image", "img"))
    if image is None:
        found = ", ".join(dataset.features)
        raise DataError(f"no column of images in {name} (it has {found}): call them image and label, or use folders")
    encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return lambda indices: _decode(encoded[indices][image], indices, name)


def _decode(records: Sequence[dict[str, Any]], indices: NDArray[np.int64], name: str) -> NDArray[np.uint8]:
    """Encoded images to pixels [n, C, H, W]; `indices` are their numbers in the split `name`."""
    # In one thread: with small images, threads lose more time to Python's lock than they gain.
    pixels, first = np.empty(0, dtype=np.uint8), ""
    for position, (record, index) in enumerate(zip(records, indices, strict=True)):
        source = record and (record["bytes"] or record["path"])
        if not source:
            raise DataError(f"image {index} of {name} is empty: leave it out")
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                kind, values = f"{image.width}x{image.height} {image.mode}", np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"image {index} of {name} cannot be decoded ({first_line(error)}): leave it out") from error
        if not kind.endswith((" L", " RGB")):
            raise DataError(f"image {index} of {name} is {kind}: convert all images to RGB, or to L (greyscale)")
        values = np.atleast_3d(values).transpose(2, 0, 1)  # [C, H, W]
        if position == 0:
            first, pixels = kind, np.empty((len(indices), *values.shape), dtype=np.uint8)
        if kind != first:
            raise DataError(f"images of {name} are mixed, {first} and {kind}: bring all to one size and mode")
        pixels[position] = values
    return pixels


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], as in `ImageData`."""
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for chunk in torch.split(images, 1024):  # little memory at a time, and sums of integers are exact
        total += chunk.sum(dim=(0, 2, 3))
        squares += chunk.int().square().sum(dim=(0, 2, 3))
    count = images[:, 0].numel()
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp_min(0).sqrt()
    return (mean / 255).float(), (std / 255).clamp_min(1 / 255).float()


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels, uint8 [N, C, H, W], to inputs of `dtype` with zero mean and unit deviation, on the same device.

    The arithmetic is done in float32. `mean` and `std` are [C], for values in [0, 1], as in `ImageData`.
    """
    return ((images.float() / 255 - mean[:, None, None]) / std[:, None, None]).to(dtype)


def augment(images: Tensor, how: Literal["none", "flip", "crop", "crop-flip"], generator: torch.Generator) -> Tensor:
    """Randomly shift and mirror every image of a batch.

    A crop is taken from the image with a border that reflects it, an eighth of its size and at least one pixel: 4
    pixels for 32x32. A flip mirrors left and right with probability 1/2.

    Args:
        images: [N, C, H, W], of any type; so is the result.
        how: What is done; `crop-flip` does both.
        generator: Where all randomness comes from; on the CPU, it augments alike on every device.
    """
    if how == "none":
        return images
    (n, channels, height, width), home = images.shape, generator.device
    rows = torch.arange(height, device=home).expand(n, -1)  # [N, H]: the row of the input that the output shows
    columns = torch.arange(width, device=home).expand(n, -1)  # [N, W]
    if "crop" in how:
        rows, columns = _shift(rows, generator), _shift(columns, generator)
    if "flip" in how:
        mirrored = torch.randint(2, (n, 1), generator=generator, device=home).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    image, channel = (torch.arange(count, device=images.device) for count in (n, channels))
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _shift(index: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every row of `index`, int64 [N, size], by up to an eighth of its size, reflecting it at both ends."""
    n, size = index.shape
    border = min(size - 1, max(1, size // 8))
    shifted = index + torch.randint(-border, border + 1, (n, 1), generator=generator, device=index.device)
    return (size - 1) - ((size - 1) - shifted.abs()).abs()


def epoch_order(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """The order of `n` training images in an epoch: a permutation, int64 [n], that depends on seed and epoch alone."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n)).to(device)
