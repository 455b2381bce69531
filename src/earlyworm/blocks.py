"""What transformer blocks are made of: one description per class, and the classes that are known.

A description names modules, parameters and attributes by their path from the block. With it heads and neurons are
found without tracing, in every model that has such blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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


_BERT = Attention(
    "self.query", "self.key", "self.value", "output.dense",
    head_size="self.attention_head_size",
    counts={"self.num_attention_heads": "heads", "self.all_head_size": "channels"},
)  # fmt: skip
_BERT_LAYER = FeedForward("intermediate.dense", "output.dense")

_ALBERT = Attention(
    "query", "key", "value", "dense",
    head_size="attention_head_size",
    counts={"num_attention_heads": "heads", "all_head_size": "channels"},
)  # fmt: skip
_DEBERTA = Attention(
    "self.query_proj", "self.key_proj", "self.value_proj", "output.dense",
    head_size="self.attention_head_size",
    counts={"self.num_attention_heads": "heads", "self.all_head_size": "channels"},
    more=("self.pos_key_proj", "self.pos_query_proj"),
)  # fmt: skip

_VIT = Attention("q_proj", "k_proj", "v_proj", "o_proj", head_size="head_dim", counts={"num_attention_heads": "heads"})
_OLD_VIT = Attention(
    "attention.query", "attention.key", "attention.value", "output.dense",
    head_size="attention.attention_head_size",
    counts={"attention.num_attention_heads": "heads", "attention.all_head_size": "channels"},
)  # fmt: skip
_SWIN_TABLE = "relative_position_bias_table"  # one for every layer, [relative positions, heads]

_GPT2 = Attention(
    fused="c_attn", output="c_proj", head_size="head_dim", counts={"num_heads": "heads", "split_size": "channels"}
)

_LLAMA = Attention(
    "q_proj", "k_proj", "v_proj", "o_proj",
    head_size="head_dim",
    counts={"num_key_value_groups": "heads_per_key_value"},
)  # fmt: skip
_LLAMA_MLP = FeedForward(("gate_proj", "up_proj"), "down_proj", counts=("intermediate_size",))

_PHI3 = Attention(
    fused="qkv_proj", output="o_proj",
    head_size="head_dim",
    counts={"config.num_attention_heads": "heads", "num_key_value_heads": "key_value_heads",
            "num_key_value_groups": "heads_per_key_value"},
)  # fmt: skip

_T5 = Attention(
    "q", "k", "v", "o",
    head_size="key_value_proj_dim",
    counts={"n_heads": "heads", "inner_dim": "channels"},
    argument="position_bias",
)  # fmt: skip

_TORCH = Attention(
    fused="in_proj_weight", output="out_proj",
    head_size="head_dim",
    counts={"num_heads": "heads"},
    argument="attn_mask",
    unless=("bias_k", "bias_v", "add_zero_attn"),
)  # fmt: skip

KNOWN: dict[str, dict[str, Description]] = {
    # Encoders of text; MiniLM is a BERT
    "transformers.models.bert": {"BertAttention": _BERT, "BertLayer": _BERT_LAYER},
    "transformers.models.roberta": {"RobertaAttention": _BERT, "RobertaLayer": _BERT_LAYER},
    "transformers.models.xlm_roberta": {"XLMRobertaAttention": _BERT, "XLMRobertaLayer": _BERT_LAYER},
    "transformers.models.electra": {"ElectraAttention": _BERT, "ElectraLayer": _BERT_LAYER},
    "transformers.models.deberta_v2": {"DebertaV2Attention": _DEBERTA, "DebertaV2Layer": _BERT_LAYER},
    "transformers.models.distilbert": {
        "DistilBertSelfAttention": Attention(
            "q_lin", "k_lin", "v_lin", "out_lin", head_size="attention_head_size", counts={"n_heads": "heads"}
        ),
        "FFN": FeedForward("lin1", "lin2"),
    },
    "transformers.models.albert": {
        "AlbertAttention": _ALBERT,
        "AlbertLayer": FeedForward("ffn", "ffn_output"),
    },
    # Images; the first releases of transformers 5 build these like BERT
    "transformers.models.vit": {
        "ViTAttention": (_VIT, _OLD_VIT),
        "ViTMLP": FeedForward("fc1", "fc2"),
        "ViTLayer": _BERT_LAYER,
    },
    "transformers.models.deit": {
        "DeiTAttention": (_VIT, _OLD_VIT),
        "DeiTMLP": FeedForward("fc1", "fc2"),
        "DeiTLayer": _BERT_LAYER,
    },
    "transformers.models.swin": {
        "SwinAttention": (
            replace(_VIT, tables={f"relative_position_bias.{_SWIN_TABLE}": 1}),
            replace(_BERT, tables={f"self.{_SWIN_TABLE}": 1}),
        ),
        "SwinMLP": FeedForward("fc1", "fc2"),
        "SwinLayer": _BERT_LAYER,
    },
    # Decoders
    "transformers.models.gpt2": {
        "GPT2Attention": (replace(_GPT2, query="q_attn"), _GPT2),  # to another sequence, or within one
        "GPT2MLP": FeedForward("c_fc", "c_proj"),
    },
    "transformers.models.opt": {
        "OPTAttention": Attention(
            "q_proj", "k_proj", "v_proj", "out_proj", head_size="head_dim", counts={"num_heads": "heads"}
        ),
        "OPTDecoderLayer": FeedForward("fc1", "fc2"),
    },
    "transformers.models.llama": {"LlamaAttention": _LLAMA, "LlamaMLP": _LLAMA_MLP},
    "transformers.models.mistral": {"MistralAttention": _LLAMA, "MistralMLP": _LLAMA_MLP},
    "transformers.models.qwen2": {"Qwen2Attention": _LLAMA, "Qwen2MLP": _LLAMA_MLP},
    "transformers.models.qwen3": {"Qwen3Attention": _LLAMA, "Qwen3MLP": _LLAMA_MLP},
    "transformers.models.gemma": {"GemmaAttention": _LLAMA, "GemmaMLP": _LLAMA_MLP},
    "transformers.models.gemma2": {"Gemma2Attention": _LLAMA, "Gemma2MLP": _LLAMA_MLP},
    "transformers.models.phi3": {
        "Phi3Attention": _PHI3,
        "Phi3MLP": FeedForward("gate_up_proj", "down_proj", parts=2),
    },
    # Both
    "transformers.models.t5": {
        "T5Attention": _T5,
        "T5DenseActDense": FeedForward("wi", "wo"),
        "T5DenseGatedActDense": FeedForward(("wi_0", "wi_1"), "wo"),
    },
    "transformers.models.mt5": {
        "MT5Attention": _T5,
        "MT5DenseActDense": FeedForward("wi", "wo"),
        "MT5DenseGatedActDense": FeedForward(("wi_0", "wi_1"), "wo"),
    },
    # PyTorch's own
    "torch.nn": {
        "MultiheadAttention": _TORCH,
        "TransformerEncoderLayer": FeedForward("linear1", "linear2"),
        "TransformerDecoderLayer": FeedForward("linear1", "linear2"),
    },
    # Blocks that have lost heads before
    "earlyworm.narrow_attention": {"NarrowMultiheadAttention": _TORCH, "NarrowBiasedAttention": _T5},
}
"""The blocks that need no description: per package that defines them, by the name of their class."""


def defining_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that defines what `module` does: its forward, and all that this calls; None if parts are replaced."""
    if "forward" in vars(module) and not hasattr(module, "_original_forward"):  # accelerate keeps the original there
        return None
    classes = type(module).__mro__
    defining = next(cls for cls in classes if "forward" in vars(cls))
    used = {name for cls in defining.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)}
    for derived in classes[: classes.index(defining)]:
        if any(name in used and not name.startswith("__") for name in vars(derived)):
            return None
    return defining


def describe(module: nn.Module, blocks: Blocks) -> tuple[Attention | FeedForward, ...]:
    """The descriptions of `module`, the user's own before the known ones; none if it, or a part of it, is not known.

    Args:
        module: Any module.
        blocks: The user's descriptions; they hold for subclasses that inherit `forward`.
    """
    defining = defining_class(module)
    if defining is None:
        return ()
    classes = type(module).__mro__
    for cls in classes[: classes.index(defining) + 1]:
        for key in (cls, cls.__name__):
            if key in blocks:
                return _several(blocks[key])
    package, known = _known_as(defining)
    return tuple(description for description in known if _consists_of(module, description, package))


def resembles(module: nn.Module, wanted: type[Attention] | type[FeedForward]) -> bool:
    """Whether `module` is derived from a class that is known as the wanted kind of block."""
    return any(isinstance(known, wanted) for cls in type(module).__mro__ for known in _known_as(cls)[1])


def look_up(module: nn.Module, path: str) -> object:
    """What a path from `module` leads to; None if it leads nowhere."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _known_as(cls: type) -> tuple[str, tuple[Attention | FeedForward, ...]]:
    """The package that defines a class, and the descriptions of the class, if these are known."""
    for package, known in KNOWN.items():
        if cls.__name__ in known and _is_in(cls, package):
            return package, _several(known[cls.__name__])
    return "", ()


def _consists_of(module: nn.Module, description: Attention | FeedForward, package: str) -> bool:
    """Whether a module has all that is described, and nothing on the way to it is from another package."""
    for path in description.names():
        names = path.split(".")
        parts = [look_up(module, ".".join(names[:end])) for end in range(1, len(names))]
        if not all(_is_in(defining_class(part), package) for part in parts if isinstance(part, nn.Module)):
            return False
        if look_up(module, path) is None:
            return False
    return True


def _is_in(cls: type | None, package: str) -> bool:
    """Whether a class is defined in a package."""
    return cls is not None and f"{cls.__module__}.".startswith(f"{package}.")


def _several(description: Description) -> tuple[Attention | FeedForward, ...]:
    return (description,) if isinstance(description, (Attention, FeedForward)) else tuple(description)
