"""The blocks that need no description: those of known families of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from earlyworm.units.blocks import Attention, Description, FeedForward

_Family: TypeAlias = Mapping[str, Description]  # by what the names of classes end with


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

_TEXT_ENCODER: _Family = {"Attention": _BERT, "Layer": _BERT_LAYER}
_IMAGE_ENCODER: _Family = {  # the first releases of transformers 5 build these like BERT
    "Attention": (_VIT, _OLD_VIT),
    "MLP": FeedForward("fc1", "fc2"),
    "Layer": _BERT_LAYER,
}
_DECODER: _Family = {"Attention": _LLAMA, "MLP": _LLAMA_MLP}
_ENCODER_DECODER: _Family = {
    "Attention": _T5,
    "DenseActDense": FeedForward("wi", "wo"),
    "DenseGatedActDense": FeedForward(("wi_0", "wi_1"), "wo"),
}


def _named(prefix: str, family: _Family) -> dict[str, Description]:
    """The blocks of a family by the names that their classes have in one of its members."""
    return {f"{prefix}{name}": description for name, description in family.items()}


KNOWN: dict[str, dict[str, Description]] = {
    # Encoders of text; MiniLM is a BERT
    "transformers.models.bert": _named("Bert", _TEXT_ENCODER),
    "transformers.models.roberta": _named("Roberta", _TEXT_ENCODER),
    "transformers.models.xlm_roberta": _named("XLMRoberta", _TEXT_ENCODER),
    "transformers.models.electra": _named("Electra", _TEXT_ENCODER),
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
    # Images
    "transformers.models.vit": _named("ViT", _IMAGE_ENCODER),
    "transformers.models.deit": _named("DeiT", _IMAGE_ENCODER),
    "transformers.models.swin": {
        **_named("Swin", _IMAGE_ENCODER),
        "SwinAttention": (
            replace(_VIT, tables={f"relative_position_bias.{_SWIN_TABLE}": 1}),
            replace(_BERT, tables={f"self.{_SWIN_TABLE}": 1}),
        ),
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
    "transformers.models.llama": _named("Llama", _DECODER),
    "transformers.models.mistral": _named("Mistral", _DECODER),
    "transformers.models.qwen2": _named("Qwen2", _DECODER),
    "transformers.models.qwen3": _named("Qwen3", _DECODER),
    "transformers.models.gemma": _named("Gemma", _DECODER),
    "transformers.models.gemma2": _named("Gemma2", _DECODER),
    "transformers.models.phi3": {
        "Phi3Attention": _PHI3,
        "Phi3MLP": FeedForward("gate_up_proj", "down_proj", parts=2),
    },
    # Both
    "transformers.models.t5": _named("T5", _ENCODER_DECODER),
    "transformers.models.mt5": _named("MT5", _ENCODER_DECODER),
    # PyTorch's own
    "torch.nn": {
        "MultiheadAttention": _TORCH,
        "TransformerEncoderLayer": FeedForward("linear1", "linear2"),
        "TransformerDecoderLayer": FeedForward("linear1", "linear2"),
    },
    # Blocks that have lost heads before
    "earlyworm.units.narrow_attention": {"NarrowMultiheadAttention": _TORCH, "NarrowBiasedAttention": _T5},
}
"""The blocks that need no description: per package that defines them, by the name of their class."""
