"""Named data sets and local files to image tensors, and what happens to these on the device."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from earlyworm.errors import DataError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
}
FIXED_SEED = 0  # of a held-out split that is cut and of `limit`: the same images for every run, whatever its seed

_HELD_OUT = ("test", "validation")  # the first that exists
_LABEL_COLUMNS = ("label", "labels", "fine_label")


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


@dataclass(frozen=True)
class _Split:
    """Labels, and images that are decoded when asked for: indices [n] to uint8 [n, C, H, W]."""

    name: str
    labels: NDArray[np.int64]
    classes: int
    decode: Callable[[NDArray[np.int64]], NDArray[np.uint8]]


def load_images(name: str, *, limit: int | None) -> ImageData:
    """Load a data set by name, or from local files; every run trains on the same images and holds out the same.

    Args:
        name: `digits`; a key of `HUB_NAMES` or another name on the Hub (owner/name), which is asked only for what is
            not in the local cache; `parquet:DIR` with train*.parquet, and test*.parquet or validation*.parquet, in
            DIR or DIR/data; or `imagefolder:DIR` with a folder of images for every class.
        limit: The most training images to keep, at least 1; None keeps all. Held-out images are never left out.

    Raises:
        DataError: If the data are missing or damaged, or no labelled images of one size, all greyscale or all RGB.
    """
    train, *tests = _open(name)
    if tests:
        test, kept, held = tests[0], np.arange(len(train.labels)), np.arange(len(tests[0].labels))
        split = f"held out is {test.name}"
    else:
        test, (kept, held) = train, _cut(train)
        split = f"{name} has no test split: held out is a fifth of every class, drawn with seed {FIXED_SEED}"
    unknown = np.setdiff1d(test.labels[held], train.labels[kept])
    if len(unknown):
        raise DataError(f"{test.name} has label {unknown[0]}, but no training image has: leave it out, or train on it")
    if limit is not None:
        kept = np.sort(np.random.default_rng(FIXED_SEED).permutation(kept)[:limit])
    images, test_images = torch.from_numpy(train.decode(kept)), torch.from_numpy(test.decode(held))
    if images.shape[1:] != test_images.shape[1:]:
        shapes = f"{list(images.shape[1:])} to train on and {list(test_images.shape[1:])} held out"
        raise DataError(f"images of {name} are mixed, {shapes} (channels, height, width): bring all to one size")
    labels, test_labels = torch.from_numpy(train.labels[kept]), torch.from_numpy(test.labels[held])
    return ImageData(images, labels, test_images, test_labels, train.classes, split, *_statistics(images))


def _open(name: str) -> list[_Split]:
    """The training split and, where there is one, the held-out split."""
    if name == "digits":
        return [_digits()]
    scheme, colon, directory = name.partition(":")
    if colon and not Path(directory).is_dir():
        raise DataError(f"no directory {directory!r} for {name!r}: check the path")
    splits = _read_parquet(Path(directory)) if scheme == "parquet" else _load(name)
    if "train" not in splits:
        raise DataError(f"{name} has no split 'train', only {', '.join(splits)}: name another data set")
    used = ["train", *[split for split in _HELD_OUT if split in splits][:1]]
    return [_labelled(splits[split], f"the {split} split of {name}") for split in used]


def _digits() -> _Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)  # from 0..16
    return _Split("digits", digits.target.astype(np.int64), 10, images.__getitem__)


def _read_parquet(directory: Path) -> dict[str, Dataset]:
    """Read parquet files without the copy that `datasets.load_dataset` would leave in its cache."""
    import pyarrow.parquet
    from datasets import Dataset

    folders = [folder for folder in (directory, directory / "data") if any(folder.glob("train*.parquet"))]
    if not folders:
        raise DataError(f"no train*.parquet in {directory} or its folder data: give the directory that has it")
    splits: dict[str, Any] = {}
    for split in ("train", *_HELD_OUT):
        for path in sorted(folders[0].glob(f"{split}*.parquet")):
            try:
                table = pyarrow.parquet.read_table(path)
                splits[split] = pyarrow.concat_tables([splits[split], table]) if split in splits else table
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{path} cannot be read ({first_line(error)}): get the file again") from error
    return {split: Dataset(table) for split, table in splits.items()}


def _load(name: str) -> dict[str, Dataset]:
    """Load `imagefolder:DIR`, or a data set from the Hub's local cache, or else from the Hub."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # re-exported from whichever HTTP client the hub library uses

    _, folder, directory = name.partition("imagefolder:")
    repository = HUB_NAMES.get(name, name)
    try:
        if folder:
            return dict(datasets.load_dataset("imagefolder", data_dir=directory))
        with suppress(OSError, ValueError):  # not in the cache
            short = repository.rpartition("/")[2]
            return dict(Cache(dataset_name=short, repo_id=repository, version="auto", hash="auto").as_dataset())
        HfApi().dataset_info(repository, timeout=10)  # seconds; datasets itself would try again and again
        return dict(datasets.load_dataset(repository))
    except (HTTPError, OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cure = "put every class into a folder of its own" if folder else "check name and network, or use parquet:DIR"
        raise DataError(f"data {name!r} cannot be loaded ({first_line(error)}): {cure}") from error


def _labelled(dataset: Dataset, name: str) -> _Split:
    """Find the columns of images and labels, and read the labels."""
    import datasets

    images, labels = [], []
    for column, feature in dataset.features.items():
        # Without the metadata of datasets, images are bytes or structures with bytes, and labels are integers.
        dtype = str(getattr(feature, "dtype", ""))
        if isinstance(feature, datasets.Image) or "binary" in str(feature):
            images.append(column)
        elif isinstance(feature, datasets.ClassLabel) or ("int" in dtype and column in _LABEL_COLUMNS):
            labels.append(column)
    image, label = _pick(images, ("image", "img")), _pick(labels, _LABEL_COLUMNS)
    if image is None or label is None:
        found, what = ", ".join(dataset.features), "images" if image is None else "labels"
        raise DataError(f"no column of {what} in {name} (it has {found}): call them image and label, or use folders")
    values = dataset.select_columns([label])[:][label]
    targets = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if not len(targets):
        raise DataError(f"{name} is empty: add images to it")
    feature = dataset.features[label]
    classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else int(targets.max()) + 1
    wrong = np.flatnonzero((targets < 0) | (targets >= classes))
    if len(wrong):
        raise DataError(f"image {wrong[0]} of {name} has label {values[wrong[0]]}: leave it out or give it a class")
    encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return _Split(name, targets, classes, lambda indices: _decode(encoded[indices][image], indices, name))


def _pick(found: list[str], preferred: Iterable[str]) -> str | None:
    """The first preferred column that was found, or else the only one."""
    return next((column for column in preferred if column in found), found[0] if len(found) == 1 else None)


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


def _cut(split: _Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the images that are left to train on, and of those held out: a fifth of every class."""
    order = np.random.default_rng(FIXED_SEED).permutation(len(split.labels))
    members = [order[split.labels[order] == label] for label in range(split.classes)]
    held = np.sort(np.concatenate([indices[: round(len(indices) / 5)] for indices in members]))
    if not len(held):
        raise DataError(f"{len(order)} images in {split.name} are too few to hold out a fifth: add images")
    return np.setdiff1d(order, held), held


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
