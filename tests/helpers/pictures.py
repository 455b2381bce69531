"""Data sets of random images."""

import datasets
import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image


def pictures(count, size=(8, 8), mode="RGB", seed=0):
    """`count` random images of (height, width)."""
    shape = (count, *size) if mode == "L" else (count, *size, len(mode))
    return [Image.fromarray(image) for image in np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)]


def table(count=10, *, images=None, labels=None, image="image", label="label", classes=2, **extra):
    """A data set with `count` images, alternating between the classes."""
    labels = [i % classes for i in range(count)] if labels is None else labels
    columns = {image: pictures(count) if images is None else images, label: labels, **extra}
    kinds = {image: datasets.Image(), label: ClassLabel(names=[f"class {c}" for c in range(classes)])}
    return Dataset.from_dict(columns, features=Features({**kinds, **{name: Value("int64") for name in extra}}))


def write(path, dataset, *, metadata=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)
    if not metadata:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).replace_schema_metadata(None), path)
