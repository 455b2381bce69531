"""Labelled texts as token ids in memory, and batches of them that hold little padding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from earlyworm.errors import ConfigError, DataError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.pretrained import load_tokenizer
from earlyworm.experiments.splits import Indices, digest, divide, only_classes, open_splits

if TYPE_CHECKING:
    from datasets import Dataset

_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("sentence",),
    ("text",),
)
_POOL = 16  # batches whose texts are sorted by length together: more is less padding, and less chance


@dataclass(frozen=True)
class Tokens:
    """Sequences of tokens of several lengths.

    Attributes:
        columns: What is known of every token, one sequence after the other, int32 [tokens] by the name under which the
            network takes it.
        padding: What stands in each column where a sequence has ended.
        starts: Where every sequence begins, int64 [n].
        lengths: Its length, int64 [n], on the CPU.
    """

    columns: dict[str, Tensor]
    padding: dict[str, int]
    starts: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same tokens on `device`."""
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return replace(self, columns=columns, starts=self.starts.to(device))

    def padded(self, indices: Tensor) -> dict[str, Tensor]:
        """Some sequences as inputs of a network, int64 [n, length of the longest]; the mask is 1 at every token."""
        lengths, device = self.lengths[indices], self.starts.device
        places = torch.arange(int(lengths.max()), device=device)
        inside = places < lengths.to(device)[:, None]
        # Past the end of a sequence lies the next one, and past the last one nothing.
        positions = (self.starts[indices.to(device)][:, None] + places).where(inside, 0)
        inputs = {
            name: column[positions].long().where(inside, self.padding[name]) for name, column in self.columns.items()
        }
        return {**inputs, "attention_mask": inside.long()}


@dataclass(frozen=True)
class TextData:
    """A data set for text classification, in memory.

    Attributes:
        train: The training texts.
        train_labels: int64 [N], in [0, classes).
        test: The held-out texts, from short to long.
        test_labels: int64 [M], in [0, classes).
        classes: Number of classes.
        split: Where the held-out texts came from, in words.
        tokenizer: What made tokens of them.
    """

    train: Tokens
    train_labels: Tensor
    test: Tokens
    test_labels: Tensor
    classes: int
    split: str
    tokenizer: Any

    noun: ClassVar[str] = "text"
    evaluation_batch: ClassVar[int] = 64

    @property
    def shape(self) -> tuple[int, ...]:
        """The typical length of a training text, in tokens: that of the text nearest to the mean."""
        return (int(self.train.lengths[self._typical()[0]]),)

    @property
    def digest(self) -> str:
        """Of all tokens and labels, trained on and held out."""
        tensors = [
            tensor
            for tokens, labels in ((self.train, self.train_labels), (self.test, self.test_labels))
            for tensor in (*tokens.columns.values(), tokens.starts, tokens.lengths, labels)
        ]
        return digest(tensor.numpy(force=True) for tensor in tensors)

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            train_labels=self.train_labels.to(device),
            test=self.test.to(device),
            test_labels=self.test_labels.to(device),
        )

    def epoch_order(self, seed: int, epoch: int, batch: int) -> Tensor:
        """The order of the training texts in an epoch: in every batch they are of similar length."""
        return bucketed_order(self.train.lengths, seed, epoch, batch)

    def train_batch(
        self, indices: Tensor, config: RunConfig, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Training texts, padded to the longest of them, int64 [n, length] by argument of the network, and labels."""
        return self.train.padded(indices), self.train_labels[indices.to(self.train_labels.device)]

    def test_batch(self, indices: Tensor, config: RunConfig) -> tuple[dict[str, Tensor], Tensor]:
        """Held-out texts, padded to the longest of them, int64 [n, length] by argument of the network, and labels."""
        return self.test.padded(indices.cpu()), self.test_labels[indices.to(self.test_labels.device)]

    def example_inputs(self, count: int, config: RunConfig) -> dict[str, Tensor]:
        """The `count` training texts of the most typical length, as the network takes them."""
        return self.train.padded(self._typical()[:count])

    def check_model(self, model: nn.Module, config: RunConfig) -> None:
        """Make sure that the network knows every token and position.

        Raises:
            ConfigError: If texts may be longer than it can take.
            DataError: If the tokenizer has more words than the network.
        """
        words = len(self.tokenizer)
        known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]  # of transformers' networks
        if words > known:
            raise DataError(
                f"the tokenizer of {config.model!r} has {words} words, but its network knows {known}: give a model "
                "and the tokenizer that it was trained with"
            )
        positions = getattr(model.config, "max_position_embeddings", -1)
        if 0 < positions < config.max_length:
            raise ConfigError(
                f"max_length is {config.max_length}, but must be at most {positions}, the positions of {config.model!r}"
            )

    def files(self) -> dict[str, bytes]:
        """The files of the tokenizer."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

    def _typical(self) -> Tensor:
        """The training texts by how near their length is to the mean, int64 [N]."""
        lengths = self.train.lengths.double()
        return (lengths - lengths.mean()).abs().argsort(stable=True)


def bucketed_order(lengths: Tensor, seed: int, epoch: int, batch: int) -> Tensor:
    """A random order in which every batch is of texts of similar length.

    Texts are drawn at random in pools of several batches; each pool is sorted by length and cut into batches, and the
    batches of all pools are put into a random order.

    Args:
        lengths: int64 [n].
        seed: Together with the epoch decides everything.
        epoch: The epoch.
        batch: Texts per batch, at most n.

    Returns:
        A permutation, int64 [n]; the texts left over by whole batches, drawn at random too, come last.
    """
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(len(lengths)))
    whole = len(lengths) // batch * batch
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in torch.split(order[:whole], batch * _POOL)]
    batches = torch.cat(pools).view(-1, batch)
    return torch.cat([batches[torch.from_numpy(generator.permutation(len(batches)))].flatten(), order[whole:]])


def load_text(config: RunConfig) -> TextData:
    """Load the data of a run on text and make tokens of them, once for all.

    Raises:
        EarlywormError: If data or tokenizer are missing or damaged, a text is empty, or texts may become too long.
    """
    splits = open_splits(config.data, "text", config.label_column, _reader(config.text_columns))
    division = divide(
        config.data, only_classes(splits, config.classes, "text"), "text", config.limit, config.validation
    )
    texts, test_texts = division.train.read(division.kept), division.test.read(division.held)
    tokenizer = load_tokenizer(config.model)
    if config.max_length > tokenizer.model_max_length:
        raise ConfigError(
            f"max_length is {config.max_length}, but must be at most {tokenizer.model_max_length}, what the tokenizer "
            f"of {config.model!r} allows"
        )
    train, test = (_tokens(tokenizer, some, config.max_length) for some in (texts, test_texts))
    by_length = test.lengths.argsort(stable=True)
    return TextData(
        train=train,
        train_labels=torch.from_numpy(division.train.labels[division.kept]),
        test=replace(test, starts=test.starts[by_length], lengths=test.lengths[by_length]),
        test_labels=torch.from_numpy(division.test.labels[division.held])[by_length],
        classes=division.train.classes,
        split=division.words,
        tokenizer=tokenizer,
    )


def _tokens(tokenizer: Any, texts: list[list[str]], max_length: int) -> Tokens:
    """Texts, or the first and second texts of pairs, as tokens."""
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False, verbose=False)
    lengths = torch.tensor([len(sequence) for sequence in encoded["input_ids"]])
    columns = {
        name: torch.from_numpy(np.concatenate([np.asarray(sequence, dtype=np.int32) for sequence in sequences]))
        for name, sequences in encoded.items()
    }
    # Of texts that are no pairs they are all 0, which networks take for granted; some do not have them at all.
    if "token_type_ids" in columns and not columns["token_type_ids"].any():
        del columns["token_type_ids"]
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return Tokens(columns, {name: padding[name] for name in columns}, lengths.cumsum(0) - lengths, lengths)


def _reader(
    wanted: tuple[str, ...],
) -> Callable[[Dataset, str, str | None], Callable[[Indices], list[list[str]]]]:
    """What finds the columns of texts of a split; the texts of indices [n] are one list per column."""

    def reader(dataset: Dataset, name: str, label: str | None) -> Callable[[Indices], list[list[str]]]:
        columns = _text_columns(dataset, name, label, wanted)
        return lambda indices: _read(dataset.select_columns(list(columns))[indices], columns, indices, name)

    return reader


def _text_columns(dataset: Dataset, name: str, label: str | None, wanted: tuple[str, ...]) -> tuple[str, ...]:
    strings = [
        column
        for column, feature in dataset.features.items()
        if "string" in str(getattr(feature, "dtype", "")) and column != label
    ]
    for column in wanted:
        if column not in strings:
            raise DataError(f"{name} has no column of text {column!r}: choose from {', '.join(strings) or 'none'}")
    alone = [(strings[0],)] if len(strings) == 1 else []
    found = next((some for some in (*_COLUMNS, *alone) if set(some) <= set(strings)), None)
    if not (wanted or found):
        columns = ", ".join(dataset.features)
        cure = "call it text or sentence, or name it with --text-columns"
        raise DataError(f"no column of text in {name} (it has {columns}): {cure}")
    return wanted or found or ()


def _read(records: dict[str, list[Any]], columns: tuple[str, ...], indices: Indices, name: str) -> list[list[str]]:
    """The texts of `columns`, none of them empty; `indices` are their numbers in the split `name`."""
    for column in columns:
        for text, index in zip(records[column], indices, strict=True):
            if not (text and text.strip()):
                raise DataError(f"text {index} of {name} is empty in column {column!r}: leave it out or give it words")
    return [list(records[column]) for column in columns]
