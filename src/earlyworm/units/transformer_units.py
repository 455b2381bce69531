"""Find heads, neurons and single weights of transformers, without tracing, from what their blocks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from earlyworm.errors import UnitsError
from earlyworm.inputs import unwrap
from earlyworm.units.block_slices import Block, head_group, matrix_groups, neuron_group
from earlyworm.units.blocks import Attention, Blocks, FeedForward
from earlyworm.units.groups import Kind, UnitGroup, Units, named_tensors, weight_group
from earlyworm.units.narrow_attention import reason_against_losing_heads
from earlyworm.units.recognition import describe, resembles
from earlyworm.units.weights import check_weights

_DESCRIBED_BY: dict[Kind, type[Attention | FeedForward]] = {
    "heads": Attention,
    "neurons": FeedForward,
    "weights": Attention,
}
_LOOKS_LIKE = {Attention: ("attention",), FeedForward: ("mlp", "ffn", "feedforward", "moe")}  # in names of classes
_EXAMPLES = {
    Attention: "{'MyAttention': Attention('q_proj', 'k_proj', 'v_proj', 'out_proj', head_size='head_dim')}",
    FeedForward: "{'MyMLP': FeedForward('fc1', 'fc2')}",
}


def find_transformer_units(
    model: nn.Module,
    kinds: str | Sequence[str] = ("heads", "neurons"),
    *,
    blocks: Blocks | None = None,
    matrices: str | Sequence[str] | None = None,
) -> Units:
    """Find attention heads, feed-forward neurons or single weights of `model`.

    Nothing is traced or run: the blocks of many families are known, and others can be described. A head is the rows of
    the query, key and value projections that make it and the columns of the output projection that read it. Where
    several query heads share a key/value head, these together are one unit; where all share one, a query head is. A
    neuron is the row of the layer that makes it, or of both layers in a gated block, and the column of the one that
    reads it. Single weights are masked, never removed.

    Removing units changes the modules, and leaves `config` as it is: its number of heads is still that of the model
    that the units were found in.

    Args:
        model: Any module, wrapped (DDP, `torch.compile`) or not.
        kinds: `"heads"`, `"neurons"`, `"weights"`, or several of them.
        blocks: Descriptions of blocks by class or class name; they go before those that are known.
        matrices: The matrices whose weights are units: one or more patterns over parameter names, such as
            `"*.query.weight"`. By default all query and key projections.

    Returns:
        The units. A group of heads is named after its block, a group of neurons after the layer that makes them, a
        group of weights after its matrix, with `:query` or `:key` behind it if that holds both. Sizes are the number
        of units: key/value heads (query heads, if there is a single key/value head), neurons, and entries of the
        matrix. `skipped` names the blocks that are left out, with the reason.

    Raises:
        UnitsError: If the model has none of the units asked for, a block is not as it is described, or its weights are
            not loaded, quantised, sharded, or wrapped in adapters.

    Example:
        >>> import torch, earlyworm as ew
        >>> layer = torch.nn.TransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=2)
        >>> ew.find_transformer_units(model).sizes
        {'layers.0.self_attn': 4, 'layers.1.self_attn': 4, 'layers.0.linear1': 64, 'layers.1.linear1': 64}
    """
    model = unwrap(model)
    chosen = [kinds] if isinstance(kinds, str) else list(kinds)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(_DESCRIBED_BY):
        raise UnitsError(f"kinds are {kinds!r}, but must be one or more of {', '.join(_DESCRIBED_BY)}, each once")
    check_weights(model)
    finder = _Finder(model, blocks or {})
    groups: list[UnitGroup] = []
    for kind in _DESCRIBED_BY:
        if kind in chosen and kind == "weights" and matrices is not None:
            groups += finder.matching([matrices] if isinstance(matrices, str) else matrices)
        elif kind in chosen:
            groups += finder.groups(kind)
    everything = tuple(groups)
    removable = tuple(group for group in groups if group.entries is None)
    return Units(everything, everything if len(removable) == len(groups) else removable, finder.skipped)


class _Finder:
    """Goes through the blocks of one model.

    Attributes:
        skipped: What is left out of the kinds that were looked for, and why.
    """

    def __init__(self, model: nn.Module, blocks: Blocks) -> None:
        self.skipped: dict[str, str] = {}
        self._model = model
        self._tensors = named_tensors(model)
        self._known: list[tuple[Block, tuple[Attention | FeedForward, ...]]] = []
        self._homes: dict[int, dict[nn.Module, str]] = {}  # the modules that have a parameter
        self._claims: dict[tuple[str | int, ...], str] = {}
        for name, module in model.named_modules():
            if descriptions := describe(module, blocks):
                self._known.append((Block(name, module), descriptions))
            for parameter in module.parameters(recurse=False):
                self._homes.setdefault(id(parameter), {})[module] = name
        classes = {cls for module in model.modules() for cls in type(module).__mro__}
        for key in set(blocks) - classes - {cls.__name__ for cls in classes}:
            raise UnitsError(f"blocks describes {key!r}, but {type(model).__name__} has no such module")

    def groups(self, kind: Kind) -> list[UnitGroup]:
        """All groups of one kind.

        Raises:
            UnitsError: If there is none, or a block is not as it is described.
        """
        wanted = _DESCRIBED_BY[kind]
        found: list[UnitGroup] = []
        left_out = self._unknown(wanted)
        for block, descriptions in self._known:
            try:
                found += self._groups_of(block, descriptions, kind, left_out)
            except UnitsError as error:
                if descriptions != describe(block.module, {}):  # the user's own description is wrong
                    raise
                left_out[block.label] = str(error)
        if not found:
            reasons = _some([f"{name}: {reason}" for name, reason in left_out.items()], "; ")
            raise UnitsError(
                f"no {kind} found in {type(self._model).__name__} ({reasons or 'it has no block that is known'}); "
                f"describe its blocks to find_transformer_units, as in blocks={_EXAMPLES[wanted]}"
                + (", or take those of all layers: find_all_weights(model)" if kind == "weights" else "")
            )
        self.skipped |= left_out
        return found

    def _groups_of(
        self, block: Block, descriptions: Sequence[Attention | FeedForward], kind: Kind, left_out: dict[str, str]
    ) -> list[UnitGroup]:
        """The groups of one block, none if it has none of the kind; if it has an obstacle, that goes to `left_out`.

        Raises:
            UnitsError: If the block is not as it is described.
        """
        chosen = _fitting(block, descriptions, _DESCRIBED_BY[kind])
        if chosen is None:
            return []
        if kind == "weights" and isinstance(chosen, Attention):
            return [*filter(self._is_new, matrix_groups(block, chosen))]
        group = neuron_group(block, chosen) if isinstance(chosen, FeedForward) else head_group(block, chosen)
        if reason := self._obstacle(block, chosen, group):
            left_out[block.label] = reason
            return []
        return [group]

    def matching(self, patterns: Sequence[str]) -> list[UnitGroup]:
        """The weights of all matrices whose names match one of the patterns.

        Raises:
            UnitsError: If a pattern matches none.
        """
        matrices = {name: tensor for name, tensor in self._model.named_parameters() if tensor.dim() > 1}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise UnitsError(f"no matrix matches {pattern!r}; there are {_some([*matrices], ', ') or 'none'}")
        return [
            weight_group(name, tensor)
            for name, tensor in matrices.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def _is_new(self, group: UnitGroup) -> bool:
        """Whether no other group has these weights, as where matrices are tied."""
        entries = group.entries
        return entries is not None and self._claim(group, entries.tensor, "from", entries.start) == group.name

    def _obstacle(self, block: Block, description: Attention | FeedForward, group: UnitGroup) -> str | None:
        """Why the units of a block cannot be removed, if they cannot."""
        for path in description.unless:
            if block.is_set(path):
                return f"{type(block.module).__name__} with {path} is not supported"
        needs_class = isinstance(description, Attention) and description.argument
        if needs_class and (reason := reason_against_losing_heads(block.module)):
            return reason
        for piece in group.slices:
            if piece.tensor not in self._tensors:
                continue
            own = self._model.get_submodule(piece.tensor.rpartition(".")[0])
            for module, name in self._homes.get(id(self._tensors[piece.tensor]), {}).items():
                if module is not own:
                    return f"{piece.tensor} is tied to a weight of {name}"
            if (owner := self._claim(group, piece.tensor, "along", piece.dim)) != group.name:
                return f"{piece.tensor} belongs to {owner} already"
        return None

    def _claim(self, group: UnitGroup, tensor: str, *where: str | int) -> str:
        """The group that first claimed a place in a tensor, this one if none has."""
        return self._claims.setdefault((id(self._tensors[tensor]), *where), group.name)

    def _unknown(self, wanted: type[Attention] | type[FeedForward]) -> dict[str, str]:
        """Blocks that seem to be of the wanted kind, but are not known, with the reason."""
        known = [block.name for block, described in self._known if any(isinstance(one, wanted) for one in described)]
        unknown: dict[str, str] = {}
        root, *others = self._model.named_modules()
        for name, module in (*others, root):  # the model itself, if nothing in it is such a block
            cls = type(module).__name__
            derived = resembles(module, wanted)
            if not derived and not any(part in cls.lower() for part in _LOOKS_LIKE[wanted]):
                continue
            around = any(_inside(name, other) or _inside(other, name) for other in (*known, *unknown))
            if not around and any(True for _ in module.parameters()):
                reason = "differs from the class that is known" if derived else "is not known"
                unknown[name or cls] = f"{cls} {reason}"
        return unknown


def _some(texts: list[str], separator: str) -> str:
    """The first few texts, and how many more there are."""
    more = [f"{len(texts) - 3} more"] if len(texts) > 3 else []
    return separator.join(texts[:3] + more)


def _inside(name: str, other: str) -> bool:
    """Whether a module is another one or lies inside of it."""
    return not other or f"{name}.".startswith(f"{other}.")


def _fitting(
    block: Block, descriptions: Sequence[Attention | FeedForward], wanted: type[Attention] | type[FeedForward]
) -> Attention | FeedForward | None:
    """The first description of the wanted type whose names the block has; None if there is none of that type.

    Raises:
        UnitsError: If the block fits none of several.
    """
    suitable = [description for description in descriptions if isinstance(description, wanted)]
    for description in suitable:
        if all(block.has(path) for path in description.names()):
            return description
    if suitable:
        missing = ", ".join(path for path in suitable[0].names() if not block.has(path))
        raise UnitsError(f"{block} is not as it is described: it has no {missing}; give its description in blocks")
    return None
