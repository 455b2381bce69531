"""Labelled splits of a data set, whatever its examples are; what is trained on, and what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earlyworm.errors import ConfigError, DataError
from earlyworm.experiments.sources import HELD_OUT, open_data

if TYPE_CHECKING:
    from datasets import Dataset

FIXED_SEED = 0  # of a held-out split that is cut and of `limit`: the same examples for every run, whatever its seed

_LABEL_COLUMNS = ("label", "labels", "fine_label")
_LABEL_TYPES = ("int", "uint", "bool", "string", "large_string", "float", "double")

Indices = NDArray[np.int64]


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """A short hexadecimal digest of arrays: of their shapes, types and bytes."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(f"{array.shape} {array.dtype.str} ".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).data)
    return found.hexdigest()


@dataclass(frozen=True)
class Split:
    """Labels, int64 [n] in [0, classes), and examples that are read when asked for; what is wrong with it, in words."""

    name: str
    labels: Indices
    classes: int
    read: Callable[[Indices], Any]
    flaw: str = ""


@dataclass(frozen=True)
class Division:
    """What is trained on and what is held out: splits, and which of their examples.

    Attributes:
        train: The training split.
        kept: Its examples that are trained on, int64 [N].
        test: The split of the held-out examples.
        held: The held-out examples, int64 [M].
        words: Where they came from, in words.
    """

    train: Split
    kept: Indices
    test: Split
    held: Indices
    words: str


def divide(name: str, splits: list[Split], noun: str, limit: int | None, validation: int | None = None) -> Division:
    """Choose what to train on and what to hold out.

    Args:
        name: The name of the data.
        splits: The training split and, where there is one, the held-out split; else a fifth of every class is cut off.
        noun: What an example is called.
        limit: The most training examples to keep, at least 1; None keeps all.
        validation: How many training examples to hold out in place of what is held out otherwise. With a limit, what is
            trained on is the same with and without them.

    Raises:
        ConfigError: If no training example is left for the limit, or for training.
        DataError: If a held-out class is never trained on, or too little is left to hold out.
    """
    train, test = splits[0], splits[-1]
    if len(splits) > 1:
        kept, held = np.arange(len(train.labels)), np.arange(len(test.labels))
        words = f"held out is {test.name}"
    else:
        kept, held = _cut(train, noun)
        words = f"{name} has no test split: held out is a fifth of every class, drawn with seed {FIXED_SEED}"
    unknown = np.setdiff1d(test.labels[held], train.labels[kept])
    if len(unknown):
        raise DataError(f"{test.name} has label {unknown[0]}, but no training {noun} has: leave it out, or train on it")
    order = np.random.default_rng(FIXED_SEED).permutation(kept)
    if validation is not None:
        most = len(order) - min(limit or 1, len(order) - 1)
        if validation > most:
            raise ConfigError(f"validation is {validation}, but must be at most {most}: {len(order)} {noun}s are there")
        order, held = order[:-validation], np.sort(order[-validation:])
        test, words = train, f"held out are {validation} {noun}s of {train.name} for validation"
    return Division(train, np.sort(order[:limit]), test, held, words)


def only_classes(splits: list[Split], classes: tuple[int, ...], noun: str) -> list[Split]:
    """The same splits with the examples of some classes alone, numbered anew in the order given.

    Args:
        splits: Splits of one data set.
        classes: Two or more numbers of classes; none leaves everything as it is.
        noun: What an example is called.

    Raises:
        ConfigError: If there is no such class.
    """
    if not classes:
        return splits
    most = splits[0].classes
    if missing := [number for number in classes if number >= most]:
        raise ConfigError(f"classes has {missing[0]}, but {splits[0].name} has the classes 0 to {most - 1}")
    chosen = []
    for split in splits:
        members = np.flatnonzero(np.isin(split.labels, classes))
        if not len(members):
            raise ConfigError(f"{split.name} has no {noun} of the classes {', '.join(map(str, classes))}: name others")
        numbers = {number: position for position, number in enumerate(classes)}
        labels = np.array([numbers[label] for label in split.labels[members].tolist()], dtype=np.int64)
        chosen.append(Split(split.name, labels, len(classes), partial(_read_members, split.read, members)))
    return chosen


def _read_members(read: Callable[[Indices], Any], members: Indices, indices: Indices) -> Any:
    """Some of the examples of a split whose numbers are `members`."""
    return read(members[indices])


def _cut(split: Split, noun: str) -> tuple[Indices, Indices]:
    """Indices of the examples that are left to train on, and of those held out: a fifth of every class."""
    order = np.random.default_rng(FIXED_SEED).permutation(len(split.labels))
    members = [order[split.labels[order] == label] for label in np.unique(split.labels)]
    held = np.sort(np.concatenate([indices[: round(len(indices) / 5)] for indices in members]))
    if not len(held):
        raise DataError(f"{len(order)} {noun}s in {split.name} are too few to hold out a fifth: add {noun}s")
    return np.setdiff1d(order, held), held


def open_splits(
    name: str,
    noun: str,
    label_column: str | None,
    reader: Callable[[Dataset, str, str | None], Callable[[Indices], Any]],
) -> list[Split]:
    """The training split and, where there is one, the held-out split: test, or validation where test has no labels.

    Args:
        name: What `open_data` takes.
        noun: What an example is called.
        label_column: The column of the labels; None: found by name and type.
        reader: From a split, its name in words and the column of the labels to what reads its examples.

    Raises:
        DataError: If the data are missing or damaged, or labels are missing or out of range.
    """
    data = open_data(name)
    if "train" not in data:
        raise DataError(f"{name} has no split 'train', only {', '.join(data)}: name another data set")

    found: list[_Labels] = []
    for split in ("train", *HELD_OUT):
        if split not in data:
            continue
        dataset, where = data[split], f"the {split} split of {name}"
        column = _label_column(dataset, label_column)
        if column is None and split == "test" and "validation" in data:
            continue  # the labels are held back
        there = ", ".join(dataset.features)
        if column is None and label_column is not None:
            raise DataError(f"no column {label_column!r} for the labels in {where}: choose from {there}")
        read = reader(dataset, where, column)
        if column is None:
            cure = "call it label, or name it with --label-column"
            raise DataError(f"no column of labels in {where} (it has {there}): {cure}")
        values, feature = dataset.select_columns([column])[:][column], dataset.features[column]
        found.append(_Labels(where, column, values, feature, read))
        if len(found) > 1 and any(map(_known, values)):
            found[1:] = found[-1:]
            break  # else the labels are held back, as those of GLUE's test splits are
    used = [_split(labels, noun) for labels in _numbered(found[:2], noun)]
    for part in used:
        if part.flaw:
            raise DataError(part.flaw)
    _check_classes(found[0], used[0], noun)
    return used


@dataclass(frozen=True)
class _Labels:
    """The labels of a split as they are stored, in which column, of which type; and what reads its examples."""

    where: str
    column: str
    values: list[Any]
    feature: Any
    read: Callable[[Indices], Any]


def _known(value: Any) -> bool:
    """Whether a label says something: neither empty nor a negative number."""
    return value not in (None, "") and not (isinstance(value, (int, float)) and not value >= 0)


def _label_column(dataset: Dataset, wanted: str | None) -> str | None:
    """The column of the labels, if there is one."""
    import datasets

    if wanted is not None:
        return wanted if wanted in dataset.features else None
    found = []
    for column, feature in dataset.features.items():
        # Without the metadata of datasets, labels are integers; in CSV files they may be words, or such as 1.0.
        kind = str(getattr(feature, "dtype", ""))
        named = column in _LABEL_COLUMNS and kind.startswith(_LABEL_TYPES)
        if isinstance(feature, datasets.ClassLabel) or named:
            found.append(column)
    return pick(found, _LABEL_COLUMNS)


def pick(found: list[str], preferred: Iterable[str]) -> str | None:
    """The first preferred column that was found, or else the only one."""
    return next((column for column in preferred if column in found), found[0] if len(found) == 1 else None)


def _numbered(splits: list[_Labels], noun: str) -> list[_Labels]:
    """The same labels as numbers: where those of one split are words, those of every split are."""
    if not any("string" in str(getattr(labels.feature, "dtype", "")) for labels in splits):
        return splits
    in_words = [[_word(value, labels.feature) for value in labels.values] for labels in splits]
    numbers = {word: number for number, word in enumerate(sorted({word for word in in_words[0] if word}))}
    for labels, words in zip(splits, in_words, strict=True):
        for word in words:
            if word and word not in numbers:
                cure = "leave it out, or train on it"
                raise DataError(f"{labels.where} has label {word!r}, but no training {noun} has: {cure}")
    return [
        replace(labels, values=[numbers.get(word or "") for word in words])
        for labels, words in zip(splits, in_words, strict=True)
    ]


def _word(value: Any, feature: Any) -> str | None:
    """A label as it is written where labels are words."""
    import datasets

    if value is None or isinstance(value, str):
        return value
    named = isinstance(feature, datasets.ClassLabel) and 0 <= value < feature.num_classes
    return str(feature.names[value] if named else value)


def _split(stored: _Labels, noun: str) -> Split:
    """A split with these labels."""
    import datasets

    where, values, feature = stored.where, stored.values, stored.feature
    try:
        labels = np.array([value if _known(value) else -1 for value in values] or np.empty(0, np.int64))
        if labels.dtype.kind == "f" and (labels == labels.round()).all():
            labels = labels.round().astype(np.int64)
        labels = labels.astype(np.int64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the labels of {where} are {feature}, not classes: make them whole numbers or words, or name another "
            "--label-column"
        ) from error
    classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else int(labels.max(initial=-1)) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    flaw = "" if len(labels) else f"{where} is empty: add {noun}s to it"
    if len(wrong):
        flaw = f"{noun} {wrong[0]} of {where} has label {values[wrong[0]]}: leave it out or give it a class"
    return Split(where, labels, classes, stored.read, flaw)


def _check_classes(stored: _Labels, train: Split, noun: str) -> None:
    """Make sure that there are classes to tell apart, and that what are none, such as dates, is not taken for them."""
    import datasets

    count, most = len(train.labels), train.classes - 1
    if len(np.unique(train.labels)) < 2:
        raise DataError(f"every {noun} of {train.name} has label {stored.values[0]}: add {noun}s of another class")
    if train.classes > count and not isinstance(stored.feature, datasets.ClassLabel):
        raise DataError(
            f"column {stored.column!r} of {train.name} has label {most}, which would make {train.classes} classes of "
            f"{count} {noun}s: number the classes from 0, or name another --label-column"
        )
