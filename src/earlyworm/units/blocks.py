"""What transformer blocks are made of: descriptions of attention and of feed-forward blocks.

A description names modules, parameters and attributes by their path from the block. With it heads and neurons are
found without tracing, in every model that has such blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import nn

from earlyworm.errors import UnitsError

Count: TypeAlias = Literal["heads", "key_value_heads", "heads_per_key_value", "channels"]


@dataclass(frozen=True)
class Attention:
    """An attention block: where its heads are, and which of its numbers depend on how many there are.

    A projection is an `nn.Linear`, transformers' `Conv1D`, or a parameter, as in `nn.MultiheadAttention`. Its output
    channels are those of the first head, then those of the second, and so on. A `fused` projection makes the queries
    of all heads, then all keys, then all values.

    Attributes:
        query: The projection that makes queries; left out if `fused` does.
        key: The projection that makes keys; left out if `fused` does.
        value: The projection that makes values; left out if `fused` does.
        output: The projection that reads what the heads return.
        fused: The projection that makes queries, keys and values, or with a `query` of its own keys and values.
        head_size: The attribute that holds the channels of one head; left out if the number of heads is in `counts`.
        counts: Attributes that have to shrink, and what they count: (query) `"heads"`, `"key_value_heads"`,
            `"heads_per_key_value"`, or the `"channels"` of all (query) heads.
        more: Further projections with outputs for every query head; those that a block has not are passed over.
        tables: Parameters with one entry for every query head, and the dimension along which these lie.
        argument: An argument of `forward` with one entry for every head that the block once had, of which the smaller
            block takes its own; only for `nn.MultiheadAttention` and for blocks that share a position bias as T5 does.
        unless: Attributes that must not be set, since `forward` then does more than is described here.
    """

    query: str = ""
    key: str = ""
    value: str = ""
    output: str = ""
    fused: str = ""
    head_size: str = ""
    counts: Mapping[str, Count] = field(default_factory=dict)
    more: Sequence[str] = ()
    tables: Mapping[str, int] = field(default_factory=dict)
    argument: str = ""
    unless: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.output or not (self.fused or (self.query and self.key and self.value)):
            raise UnitsError(f"{self} lacks a projection: name query, key, value and output, or fused and output")
        if self.fused and (self.key or self.value):
            raise UnitsError(f"{self} has a fused projection, so key and value are part of it: leave them out")
        if not self.head_size and "heads" not in self.counts.values():
            raise UnitsError(f"{self} does not say how large a head is: name head_size, or a count of 'heads'")

    def names(self) -> list[str]:
        """The paths of everything that a block must have."""
        projections = (self.query, self.key, self.value, self.fused, self.output)
        return [name for name in (*projections, self.head_size, *self.counts, *self.tables) if name]


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward block: two layers with neurons between them, or three if it is gated.

    Attributes:
        up: The projection that makes the neurons, or several of which each makes a part of every neuron.
        down: The projection that reads the neurons.
        parts: Into how many equal parts `forward` splits what `up` returns (2 where gate and values are fused).
        counts: Attributes that count the neurons.
        unless: Attributes that must not be set, since `forward` then does more than is described here.
    """

    up: str | Sequence[str]
    down: str
    parts: int = 1
    counts: Sequence[str] = ()
    unless: Sequence[str] = ()

    @property
    def ups(self) -> tuple[str, ...]:
        """The projections that make the neurons."""
        return (self.up,) if isinstance(self.up, str) else tuple(self.up)

    def names(self) -> list[str]:
        """The paths of everything that a block must have."""
        return [*self.ups, self.down, *self.counts]


Description: TypeAlias = Attention | FeedForward | Sequence[Attention | FeedForward]
"""What a block is: a description, or several. Of each kind the first one counts whose names the block has."""

Blocks: TypeAlias = Mapping[type[nn.Module] | str, Description]
"""Descriptions by class or class name."""
