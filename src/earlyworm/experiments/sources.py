"""Named data sets, repositories on the Hub and local files to the splits that they have."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlyworm.errors import DataError, first_line
from earlyworm.experiments.hub import hub_errors

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
}
HUB_COLLECTIONS = {"glue": "nyu-mll/glue"}
"""Repositories on the Hub that hold several data sets: sst2 of glue is glue/sst2."""

HELD_OUT = ("test", "validation")  # the first that exists and has labels


def open_data(name: str) -> dict[str, Dataset]:
    """The splits of a data set by name.

    Args:
        name: A key of `HUB_NAMES`, a collection and one of its data sets (glue/sst2), or another name on the Hub
            (owner/name), which is asked only for what is not in the local cache; `parquet:DIR` with train*.parquet,
            and test*.parquet or validation*.parquet, in DIR or DIR/data; `csv:DIR` likewise, or `csv:FILE`; or
            `imagefolder:DIR` with a folder of images for every class.

    Raises:
        DataError: If the data are missing or damaged.
    """
    scheme, colon, rest = name.partition(":")
    place = Path(rest)
    if colon and not (place.is_dir() or (scheme == "csv" and place.is_file())):
        raise DataError(f"no {'file or ' * (scheme == 'csv')}directory {rest!r} for {name!r}: check the path")
    return _read_files(place, scheme) if scheme in ("parquet", "csv") else _load(name)


def _read_files(place: Path, kind: str) -> dict[str, Dataset]:
    """Read local tables without the copy that `datasets.load_dataset` would leave in its cache."""
    import pyarrow.csv
    import pyarrow.parquet
    from datasets import Dataset

    if place.is_file():
        files = {"train": [place]}
    else:
        folders = [folder for folder in (place, place / "data") if any(folder.glob(f"train*.{kind}"))]
        if not folders:
            raise DataError(f"no train*.{kind} in {place} or its folder data: give the directory that has it")
        files = {split: sorted(folders[0].glob(f"{split}*.{kind}")) for split in ("train", *HELD_OUT)}
    # Quoted texts may hold line breaks.
    options = {"parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True)}
    read = pyarrow.parquet.read_table if kind == "parquet" else lambda path: pyarrow.csv.read_csv(path, **options)
    splits: dict[str, Any] = {}
    for split, paths in files.items():
        for path in paths:
            try:
                table = _checked(read(path), path, kind)
                splits[split] = pyarrow.concat_tables([splits[split], table]) if split in splits else table
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{path} cannot be read ({first_line(error)}): get the file again") from error
    return {split: Dataset(table) for split, table in splits.items()}


def _checked(table: Any, path: Path, kind: str) -> Any:
    """A table that was read from a file, without columns that have no name and so may be there several times.

    Raises:
        DataError: If two columns have one name, or a CSV file has no rows or is not UTF-8.
    """
    import pyarrow

    names = Counter(name.strip() for name in table.column_names)
    if names[""] > 1:  # commas at the ends of all lines
        table = table.select([number for number, name in enumerate(table.column_names) if name.strip()])
    for name, count in Counter(table.column_names).items():
        if count > 1:
            raise DataError(f"{path} has {count} columns {name!r}: rename all but one")
    if kind == "csv" and not table.num_rows:
        raise DataError(f"{path} has no rows below the names of its columns: add some")
    for field in table.schema if kind == "csv" else ():
        if pyarrow.types.is_binary(field.type):
            raise DataError(f"{path} is not UTF-8 in column {field.name!r}: save it in that encoding")
    return table


def _load(name: str) -> dict[str, Dataset]:
    """Load `imagefolder:DIR`, or a data set from the Hub's local cache, or else from the Hub."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import HfApi

    _, folder, directory = name.partition("imagefolder:")
    owner, _, short = name.rpartition("/")
    repository, subset = (
        (HUB_COLLECTIONS[owner], short) if owner in HUB_COLLECTIONS else (HUB_NAMES.get(name, name), None)
    )
    try:
        if folder:
            return dict(datasets.load_dataset("imagefolder", data_dir=directory))
        with suppress(OSError, ValueError):  # not in the cache
            cached = Cache(
                dataset_name=repository.rpartition("/")[2], config_name=subset, repo_id=repository,
                version="auto", hash="auto",
            )  # fmt: skip
            return dict(cached.as_dataset())
        with hub_errors():
            HfApi().dataset_info(repository, timeout=10)  # seconds; datasets itself would try again and again
            return dict(datasets.load_dataset(repository, *([subset] if subset else [])))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cure = "put every class into a folder of its own" if folder else "check name and network, or use parquet:DIR"
        raise DataError(f"data {name!r} cannot be loaded ({first_line(error)}): {cure}") from error
