"""From a block and its description to the slices of its heads, neurons or matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from earlyworm.errors import UnitsError
from earlyworm.units.blocks import Attention, FeedForward
from earlyworm.units.groups import Entries, Role, Slice, UnitGroup
from earlyworm.units.recognition import defining_class, look_up


@dataclass(frozen=True)
class Projection:
    """A linear map of a block, or an equal part of the outputs of one.

    Attributes:
        weight: Qualified name of its weight.
        bias: Qualified name of its bias; empty if it has none.
        output_dim: The dimension of the weight along which its outputs lie; inputs lie along the other one.
        start: The first of its outputs.
        outputs: How many outputs it has.
        inputs: How many inputs it has.
        counts: Qualified names of the numbers of outputs and inputs that its forward reads, if it reads any.
        fused: Whether it is a part of a larger map.
    """

    weight: str
    bias: str
    output_dim: int
    start: int
    outputs: int
    inputs: int
    counts: tuple[str, str] | None
    fused: bool = False

    def part(self, start: int, outputs: int) -> Projection:
        """A part of it, from output `start` on."""
        return replace(self, start=self.start + start, outputs=outputs, fused=True)

    def written_by(self, units: int) -> Iterator[Slice]:
        """The slices that make equal shares of the outputs for each of `units` units."""
        positions, owners = _shares(self.start, units, self.outputs // units)
        yield Slice(self.weight, self.output_dim, positions, owners, "filter", gate=True)
        if self.bias:
            yield Slice(self.bias, 0, positions, owners, "bias", gate=True)
        if self.counts:
            yield Slice(self.counts[0], 0, positions, owners, "width")

    def read_by(self, units: int) -> Iterator[Slice]:
        """The slices that read equal shares of the inputs from each of `units` units."""
        positions, owners = _shares(0, units, self.inputs // units)
        yield Slice(self.weight, 1 - self.output_dim, positions, owners, "input", gate=True)
        if self.counts:
            yield Slice(self.counts[1], 0, positions, owners, "width")

    def matrix(self, part: str) -> UnitGroup:
        """Its weights, each a unit; `part` says what it is if it is a part of a larger matrix."""
        entries = Entries(self.weight, self.output_dim, self.start, self.outputs)
        name = f"{self.weight}:{part}" if self.fused else self.weight
        return UnitGroup(name, self.outputs * self.inputs, (), "weights", entries)


def _shares(start: int, units: int, size: int) -> tuple[Tensor, Tensor]:
    """Positions from `start` on, `size` for each of `units` units, and the unit of each."""
    return torch.arange(start, start + units * size), torch.arange(units).repeat_interleave(size)


@dataclass(frozen=True)
class Block:
    """A block of a model.

    Attributes:
        name: Its qualified name; empty if it is the model.
        module: The module.
    """

    name: str
    module: nn.Module

    def __str__(self) -> str:
        return f"{self.name} ({type(self.module).__name__})" if self.name else type(self.module).__name__

    @property
    def label(self) -> str:
        """A name that is never empty."""
        return self.name or type(self.module).__name__

    def has(self, path: str) -> bool:
        """Whether something is there."""
        return look_up(self.module, path) is not None

    def is_set(self, path: str) -> bool:
        """Whether an attribute is there and neither None, False nor zero."""
        value = look_up(self.module, path)
        return value is not None and (isinstance(value, Tensor) or bool(value))

    def number(self, path: str) -> int:
        """The value of an attribute."""
        value = look_up(self.module, path)
        if not isinstance(value, int):
            raise UnitsError(f"{self}: {path} is {value!r}, but must be a whole number")
        return value

    def qualified(self, path: str) -> str:
        """The name that `path` has in the model."""
        return f"{self.name}.{path}" if self.name else path

    def tensor(self, path: str) -> tuple[str, Tensor]:
        """A parameter, or the weight of a module: its qualified name and itself."""
        found = look_up(self.module, path)
        if isinstance(found, nn.Module):
            path, found = f"{path}.weight", found._parameters.get("weight")
        if not isinstance(found, Tensor):
            raise UnitsError(f"{self}: {path} is {type(found).__name__}, but must be a parameter")
        return self.qualified(path), found

    def projection(self, path: str) -> Projection:
        """The linear map at `path`."""
        found = look_up(self.module, path)
        output_dim, counts = 0, None
        if isinstance(found, nn.Module):
            kind = defining_class(found)
            if kind is not None and f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D":
                output_dim, counts = 1, (self.qualified(f"{path}.nf"), self.qualified(f"{path}.nx"))
            elif kind is not nn.Linear:
                raise UnitsError(
                    f"{self}: {path} is a {type(found).__name__}, but must be an nn.Linear or transformers' Conv1D"
                )
        weight, tensor = self.tensor(path)
        if tensor.dim() != 2:
            raise UnitsError(f"{self}: {path} has a weight of shape {list(tensor.shape)}, but must be a matrix")
        bias = f"{weight.removesuffix('weight')}bias"
        has_bias = look_up(self.module, bias.removeprefix(f"{self.name}.")) is not None
        outputs, inputs = tensor.shape[output_dim], tensor.shape[1 - output_dim]
        return Projection(weight, bias if has_bias else "", output_dim, 0, outputs, inputs, counts)

    def check(self, fits: bool, numbers: str) -> None:
        """Make sure that the numbers of the block fit together.

        Raises:
            UnitsError: If they do not; the message names them.
        """
        if not fits:
            raise UnitsError(f"{self} is not as it is described: {numbers}")


def head_group(block: Block, attention: Attention) -> UnitGroup:
    """The heads of a block; where several query heads share a key/value head, all of these are one unit.

    Raises:
        UnitsError: If the block is not as it is described.
    """
    heads = _heads(block, attention)
    units = heads.units
    counted = {
        "heads": heads.queries,
        "key_value_heads": heads.keys,
        "heads_per_key_value": heads.queries // heads.keys,
        "channels": heads.queries * heads.size,
    }
    slices = [*heads.query.written_by(units), *heads.output.read_by(units)]
    if heads.keys == units:
        slices += [*heads.key.written_by(units), *heads.value.written_by(units)]
    for path in filter(block.has, attention.more):
        more = block.projection(path)
        block.check(more.outputs == counted["channels"], f"{path} has {more.outputs} outputs for {heads}")
        slices += more.written_by(units)
    for path, dim in attention.tables.items():
        name, table = block.tensor(path)
        block.check(table.dim() > dim, f"{path} has no dimension {dim}")
        block.check(table.shape[dim] == heads.queries, f"{path} has {table.shape[dim]} entries for {heads}")
        slices.append(_slice(name, dim, units, heads.queries, "bias"))
    for path, count in attention.counts.items():
        block.check(block.number(path) == counted[count], f"{path} is {block.number(path)} for {heads}")
        fixed = "heads_per_key_value" if heads.keys == units else "key_value_heads"
        if count != fixed:
            slices.append(_slice(block.qualified(path), 0, units, counted[count], "width"))
    if attention.argument:
        slices.append(_slice(block.qualified(attention.argument), 0, units, heads.queries, "argument"))
    return UnitGroup(block.label, units, tuple(slices), "heads")


def matrix_groups(block: Block, attention: Attention) -> list[UnitGroup]:
    """The weights of the query and the key projection of a block, a group for each.

    Raises:
        UnitsError: If the block is not as it is described.
    """
    heads = _heads(block, attention)
    return [heads.query.matrix("query"), heads.key.matrix("key")]


def neuron_group(block: Block, forward: FeedForward) -> UnitGroup:
    """The neurons of a block.

    Raises:
        UnitsError: If the block is not as it is described.
    """
    down = block.projection(forward.down)
    units = down.inputs
    slices = list(down.read_by(units))
    for path in forward.ups:
        up = block.projection(path)
        block.check(
            up.outputs == forward.parts * units,
            f"{path} has {up.outputs} outputs and {forward.down} {units} inputs, {forward.parts} for each",
        )
        for i in range(forward.parts):
            slices += up.part(i * units, units).written_by(units)
    for path in forward.counts:
        block.check(block.number(path) == units, f"{path} is {block.number(path)}, but there are {units} neurons")
        slices.append(_slice(block.qualified(path), 0, units, units, "width"))
    return UnitGroup(block.qualified(forward.ups[0]), units, tuple(slices), "neurons")


@dataclass(frozen=True)
class _Heads:
    """How the heads of a block lie in its projections."""

    size: int
    queries: int
    keys: int
    query: Projection
    key: Projection
    value: Projection
    output: Projection

    def __str__(self) -> str:
        return f"{self.queries} heads of {self.size} channels"

    @property
    def units(self) -> int:
        """How many can be removed one by one: a key/value head takes its query heads along, unless it is alone."""
        return self.queries if self.keys == 1 else self.keys


def _heads(block: Block, attention: Attention) -> _Heads:
    """Find the heads of a block and check that the numbers fit together."""
    output = block.projection(attention.output)
    if attention.fused:
        fused = block.projection(attention.fused)
        first = 0 if attention.query else output.inputs
        query = block.projection(attention.query) if attention.query else fused.part(0, first)
        rest = (fused.outputs - first) // 2
        block.check(
            rest > 0 and first + 2 * rest == fused.outputs,
            f"{attention.fused} has {fused.outputs} outputs and {attention.output} {output.inputs} inputs",
        )
        key, value = fused.part(first, rest), fused.part(first + rest, rest)
    else:
        query, key, value = (block.projection(path) for path in (attention.query, attention.key, attention.value))
    if attention.head_size:
        size = block.number(attention.head_size)
    else:
        path = next(path for path, counted in attention.counts.items() if counted == "heads")
        count = block.number(path)
        block.check(
            count > 0 and query.outputs % count == 0, f"queries have {query.outputs} channels, {path} is {count}"
        )
        size = query.outputs // count
    for name, channels in (("queries", query.outputs), ("keys", key.outputs)):
        block.check(size > 0 and channels % size == 0, f"{name} have {channels} channels, a head has {size}")
    block.check(
        query.outputs == output.inputs,
        f"queries have {query.outputs} channels, {attention.output} reads {output.inputs}",
    )
    block.check(key.outputs == value.outputs, f"keys have {key.outputs} channels and values {value.outputs}")
    block.check(query.outputs % key.outputs == 0, f"queries have {query.outputs} channels and keys {key.outputs}")
    return _Heads(size, query.outputs // size, key.outputs // size, query, key, value, output)


def _slice(name: str, dim: int, units: int, size: int, role: Role) -> Slice:
    """A slice of something that holds `size` numbers, or counts up to it, in equal shares for `units` units."""
    positions, owners = _shares(0, units, size // units)
    return Slice(name, dim, positions, owners, role)
