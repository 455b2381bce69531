"""Trace a network and read its coupled channels as units; the only file that knows torch-pruning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE

from earlyworm.errors import UnitsError, first_line
from earlyworm.inputs import ExampleInputs, call_model, copy_inputs, floating_tensors, private_randomness
from earlyworm.units.groups import Role, Slice, UnitGroup, make_slice, named_tensors

_CONVS = (nn.modules.conv._ConvNd,)
_CHANNEL_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_MIXING_NORMS = (nn.LayerNorm, nn.GroupNorm)
_IS_OUTPUT = "its channels reach the model's output without passing another layer"
_MOST_POSITIONS = 3_000_000  # a group of a large network has some 100,000; one that never ends has any number


def trace_channels(model: nn.Module, example_inputs: ExampleInputs) -> tuple[list[UnitGroup], dict[str, str]]:
    """Trace `model` and group its coupled channels.

    Args:
        model: A model whose parameters all require gradients; it is switched to eval mode.
        example_inputs: What its forward takes.

    Returns:
        The groups in the order of the modules, and the layers that are left out with the reason.

    Raises:
        UnitsError: If the forward fails on the example inputs.
    """
    graph, outputs = tp.DependencyGraph(), _Outputs()
    with warnings.catch_warnings(), torch.enable_grad(), private_randomness(model):
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                model,
                copy_inputs(example_inputs),
                forward_fn=call_model,
                output_transform=outputs,
                customized_pruners={},
                # One slope for all channels couples nothing, but torch-pruning couples all layers that share it.
                ignored_layers=[m for m in model.modules() if isinstance(m, nn.PReLU) and m.num_parameters == 1],
                ignored_params=[],
                verbose=False,
            )
        except Exception as error:
            place = f"{type(model).__name__} cannot be traced on the example inputs: "
            said = str(error) if " " in str(error) else f"{type(error).__name__}: {error}"
            if outputs.shapes:
                raise UnitsError(f"{place}torch-pruning cannot follow what its forward does ({said})") from error
            hint = "" if isinstance(example_inputs, Tensor) else " (a sequence is taken as the forward's arguments)"
            raise UnitsError(f"{place}{said}{hint}") from error

    effort = _Effort(graph)
    tensors = named_tensors(model)
    groups: list[UnitGroup] = []
    skipped: dict[str, str] = {}
    visited: set[nn.Module] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (*_CONVS, nn.Linear)) or module in visited:
            continue
        if module not in graph.module2node:
            skipped[name] = "the forward on the example inputs does not use it"
            continue
        effort.begin()
        try:
            group = _Group(graph, module)
        except Exception as error:  # noqa: BLE001  (any failure of foreign code means: not removable; it is reported)
            skipped[name] = f"its channels cannot be followed ({first_line(error)})"
            continue
        visited.update(group.producers())
        if reason := group.reason_to_skip():
            if reason != _IS_OUTPUT or not outputs.may_be(group.width):
                skipped[name] = reason
            continue
        unit_group = group.read(name)
        if lost := next((piece.tensor for piece in unit_group.slices if not _exists(piece, tensors)), None):
            skipped[name] = f"its channels cannot be followed to {lost}"
        elif unit_group.size < 2:
            skipped[name] = "its channels can only be removed all together"
        else:
            groups.append(unit_group)
    return groups, skipped


class _Outputs:
    """Picks the tensors of an output from which the graph can be followed back, and remembers their shapes."""

    def __init__(self) -> None:
        self.shapes: set[torch.Size] = set()

    def __call__(self, output: Any) -> list[Tensor]:
        """The tensors."""
        tensors = [tensor for tensor in floating_tensors(output) if tensor.requires_grad]
        if not tensors:
            raise ValueError("it returns no floating-point tensor that autograd can follow back to a parameter")
        self.shapes.update(tensor.shape for tensor in tensors)
        return tensors

    def may_be(self, channels: int) -> bool:
        """Whether that many channels may be what the model returns, and not only reach it."""
        return any(size % channels == 0 for shape in self.shapes for size in shape)


class _Effort:
    """Ends the search for a group that goes round in circles, as that of an `einsum` may.

    Torch-pruning passes all positions along every edge of its graph through the edge's index mappings; this is one
    more of them, which changes nothing.
    """

    def __init__(self, graph: Any) -> None:
        self.positions = 0
        for node in graph.module2node.values():
            for edge in node.dependencies:
                edge.index_mapping.append(self)

    def begin(self) -> None:
        """Count from 0 again."""
        self.positions = 0

    def __call__(self, positions: list[Any]) -> list[Any]:
        """Count the positions that pass an edge."""
        self.positions += 1 + len(positions)
        if self.positions > _MOST_POSITIONS:
            raise ValueError("what they are coupled with does not end")
        return positions


class _Group:
    """One of torch-pruning's groups of coupled layers, read as units: that of a layer's output channels."""

    def __init__(self, graph: Any, layer: nn.Module) -> None:
        width = getattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels")
        group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, [*range(width)])
        self.graph = graph
        self.items = [(item.dep.target, item.dep.handler, item.idxs, item.root_idxs) for item in group.items]
        self.width = 1 + max(group[0].idxs)

    def producers(self) -> Iterator[nn.Module]:
        """The layers whose output channels the group holds."""
        for node, handler, _, _ in self.items:
            if isinstance(node.module, (*_CONVS, nn.Linear)) and self._is_output_side(node, handler):
                yield node.module

    def reason_to_skip(self) -> str | None:
        """Why the group cannot be removed exactly, as far as the graph tells; None if it can."""
        for node, handler, positions, roots in self.items:
            module = node.module
            if node.type == OPTYPE.OUTPUT or (not node.outputs and self._is_output_side(node, handler)):
                return _IS_OUTPUT
            if isinstance(module, _MIXING_NORMS):
                return f"its channels pass {node.name.split(' ')[0]}, which normalises across channels"
            if isinstance(module, (nn.MultiheadAttention, nn.Embedding, nn.LSTM)):
                return f"its channels pass a {type(module).__name__}, which is not a convolutional unit"
            if any(root is None for root in roots):
                return f"its channels cannot be followed through {node.name.split(' ')[0]}"
            if not all(
                0 <= position < _MOST_POSITIONS for position in positions
            ):  # as where time is sliced from the end
                return f"its channels cannot be followed to {node.name.split(' ')[0]}"
            if isinstance(module, _CONVS) and module.groups > 1:
                if _is_depthwise(module):
                    if not node.inputs:
                        return "its channels are the image's"
                elif module.transposed:
                    return "grouped transposed convolutions are not supported"
                elif len(set(positions)) != (
                    module.out_channels if self._is_output_side(node, handler) else module.in_channels
                ):
                    return f"only some of its channels pass the grouped convolution {node.name.split(' ')[0]}"
        return None

    def read(self, name: str) -> UnitGroup:
        """The group as units with their slices."""
        unit_of = self._units()
        slices: dict[tuple[str, int], Slice] = {}
        for node, handler, positions, roots in self.items:
            units = [unit_of[root] for root in roots]
            for piece in self._slices(node, self._is_output_side(node, handler), positions, units):
                slices.setdefault((piece.tensor, piece.dim), piece)
        return UnitGroup(name, 1 + max(unit_of), tuple(slices.values()))

    def _units(self) -> list[int]:
        """The unit of each root channel: channels at the same place of a grouped convolution's groups are one."""
        parent = list(range(self.width))

        def find(channel: int) -> int:
            while parent[channel] != channel:
                channel = parent[channel]
            return channel

        for node, handler, positions, roots in self.items:
            module = node.module
            if isinstance(module, _CONVS) and module.groups > 1 and not _is_depthwise(module):
                width = module.out_channels if self._is_output_side(node, handler) else module.in_channels
                first: dict[int, int] = {}
                for position, root in zip(positions, roots, strict=True):
                    a, b = find(first.setdefault(position % (width // module.groups), root)), find(root)
                    parent[max(a, b)] = min(a, b)
        leaders = sorted({find(channel) for channel in range(self.width)})
        number = {leader: unit for unit, leader in enumerate(leaders)}
        return [number[find(channel)] for channel in range(self.width)]

    def _slices(self, node: Any, is_output: bool, positions: list[int], units: list[int]) -> Iterator[Slice]:
        """What goes from one layer's tensors when units go."""
        module = node.module
        if isinstance(module, nn.Parameter):
            name = self.graph._param_to_name[module]
            yield make_slice(name, node.pruning_dim % module.dim(), positions, units, "input")
            return
        if not isinstance(module, (*_CONVS, *_CHANNEL_NORMS, nn.Linear, nn.PReLU)):
            return
        prefix = self.graph._module2name[module]
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        transposed = int(isinstance(module, _CONVS) and module.transposed)
        if isinstance(module, (*_CONVS, nn.Linear)) and (is_output or _is_depthwise(module)):
            bare = not self._is_normalised(node)
            yield make_slice(
                f"{prefix}.weight", 0 if _is_depthwise(module) else transposed, positions, units, "filter", bare
            )
            if "bias" in tensors:
                yield make_slice(f"{prefix}.bias", 0, positions, units, "bias", bare)
        elif isinstance(module, (*_CONVS, nn.Linear)):
            # A grouped convolution's weight holds the inputs of one group; those of the others are the same units.
            inputs = int(module.weight.shape[1 - transposed])
            local = {position % inputs: unit for position, unit in zip(positions, units, strict=True)}
            yield make_slice(f"{prefix}.weight", 1 - transposed, list(local), list(local.values()), "input")
        else:
            roles: dict[str, Role] = {"weight": "scale", "bias": "shift"}
            for attribute, tensor in tensors.items():
                if tensor.dim():
                    gate = isinstance(module, _CHANNEL_NORMS) and attribute in roles
                    role: Role = roles.get(attribute, "statistic") if gate else "statistic"
                    yield make_slice(f"{prefix}.{attribute}", 0, positions, units, role, gate)
            if not tensors:
                yield make_slice(f"{prefix}.num_features", 0, positions, units, "width")

    def _is_output_side(self, node: Any, handler: Any) -> bool:
        """Whether an item removes what a layer produces, and not what it reads."""
        pruner = self.graph.get_pruner_of_module(node.module)
        return bool(handler == pruner.prune_out_channels)

    def _is_normalised(self, node: Any) -> bool:
        """Whether all that a layer produces passes a norm's scale and shift before another layer reads it."""
        pending, seen = list(node.outputs), set()
        while pending:
            follower = pending.pop()
            if follower in seen or (isinstance(follower.module, _CHANNEL_NORMS) and follower.module.affine):
                continue
            if not follower.outputs or isinstance(follower.module, (*_CONVS, nn.Linear)):
                return False
            seen.add(follower)
            pending.extend(follower.outputs)
        return True


def _exists(piece: Slice, tensors: dict[str, Tensor]) -> bool:
    """Whether the model has the tensor of a slice, as long as it should be."""
    if piece.role == "width":
        return True
    tensor = tensors.get(piece.tensor)
    return tensor is not None and int(piece.positions.max()) < tensor.shape[piece.dim]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _CONVS) and 1 < module.groups == module.in_channels == module.out_channels
