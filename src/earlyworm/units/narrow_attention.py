"""Attention that has lost heads, for the classes whose own forward cannot go on without them."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earlyworm.inputs import device_of

OWN_HEADS = "own_heads"  # the buffer that such attention has


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """An `nn.MultiheadAttention` whose heads together are narrower than its inputs and outputs.

    It is called as before. A mask per head may be for the heads that are left or for all that there were; the attention
    weights that it returns are those of the heads that are left.

    Attributes:
        own_heads: int64 [heads left], which of all heads these are.
        all_heads: How many heads there were.
    """

    own_heads: Tensor
    all_heads: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see the base class for shapes."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says that attn_mask is causal: give attn_mask too")
        q, k, v = self._heads(query, key, value)
        if key_padding_mask is not None and query.dim() == 2:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            weights = F.dropout(scores.softmax(-1), dropout)
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        x = x.transpose(1, 2).reshape(x.size(0), _length(x, 2), self.num_heads * self.head_dim)
        x = self.out_proj(x)  # [N, L, E]
        if query.dim() == 2:
            return x.squeeze(0), None if weights is None else weights.squeeze(0)
        return x if self.batch_first else x.transpose(0, 1), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values of the heads, each [N, heads, L, head size]."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key and key is value:
            projected = F.linear(query, weight, bias).chunk(3, -1)
        else:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            inputs = (query, key, value)
            projected = tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weight.chunk(3), biases, strict=True))
        if query.dim() == 2:
            projected = tuple(x.unsqueeze(0) for x in projected)
        elif not self.batch_first:
            projected = tuple(x.transpose(0, 1) for x in projected)
        heads = [x.reshape(x.size(0), _length(x, 1), self.num_heads, self.head_dim).transpose(1, 2) for x in projected]
        return [x.contiguous() if x.is_nested else x for x in heads]  # nested tensors are attended to only so

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores [N, heads, L, S], if anything is; it broadcasts against them."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, q)
            if mask.dim() == 3:
                mask = torch.unflatten(mask, 0, (q.shape[0], -1))
                if mask.shape[1] == self.all_heads:
                    mask = mask.index_select(1, self.own_heads)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _length(x: Tensor, dim: int) -> int:
    """The size of a dimension; of a nested tensor, in which it varies, what `reshape` takes instead."""
    return -1 if x.is_nested else x.size(dim)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that is added; a boolean one is True where nothing is attended to."""
    return like.new_zeros(mask.shape).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask


class NarrowBiasedAttention(nn.Module):
    """What goes before an attention class that shares a position bias as T5 does, once it has lost heads.

    The first layer of a stack computes the bias of all heads and hands it on to the others, each of which has heads of
    its own. So the bias that is handed on stays that of all heads, and every layer takes its own from it.

    Attributes:
        own_heads: int64 [heads left], which of all heads these are.
        all_heads: How many heads there were.
    """

    own_heads: Tensor
    all_heads: int

    def forward(self, *args: Any, position_bias: Tensor | None = None, past_key_values: Any = None, **more: Any) -> Any:
        """Attend with the own part of `position_bias` [1 or N, all heads, L, S], and return all of it."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        seen = seen.clone() if isinstance(seen, Tensor) else seen  # the cache goes on counting in place
        own = None if position_bias is None else position_bias.index_select(1, self.own_heads)
        base: Any = super()
        output, own, *rest = base.forward(*args, position_bias=own, past_key_values=past_key_values, **more)
        if position_bias is None and self.has_relative_attention_bias:
            position_bias = base.compute_bias(*own.shape[2:], device=own.device, past_seen_tokens=seen)
            # In some versions of transformers what is handed on holds the mask too, which is the same for all heads.
            position_bias = position_bias + (own[:, :1] - position_bias.index_select(1, self.own_heads[:1]))
        elif position_bias is None:  # zeros for each of the own heads
            position_bias = own[:, :1].expand(-1, self.all_heads, -1, -1)
        return output, position_bias, *rest

    def compute_bias(self, *args: Any, **options: Any) -> Tensor:
        """The bias [1, heads left, L, S] that the forward of the base class adds to its scores."""
        base: Any = super()
        everything: Tensor = base.compute_bias(*args, **options)
        return everything.index_select(1, self.own_heads)


def reason_against_losing_heads(module: nn.Module) -> str | None:
    """Why no narrow class can go before that of `module`, if none can."""
    if isinstance(module, (nn.MultiheadAttention, NarrowBiasedAttention)):
        return None
    compute_bias = getattr(module, "compute_bias", None)
    if compute_bias is not None and "past_seen_tokens" in inspect.signature(compute_bias).parameters:
        return None
    return f"the position bias of {type(module).__name__} is not computed as in current transformers: update them"


def keep_heads_(module: nn.Module, kept: Tensor) -> None:
    """Give a module whose tensors have lost heads the class that can go on without them, in place.

    Args:
        module: A module without a reason against it.
        kept: bool [heads], which heads of the module are left.
    """
    if not isinstance(module, (NarrowMultiheadAttention, NarrowBiasedAttention)):
        cls: Any = type(module)
        module.__class__ = _narrow(cls)
        assert isinstance(module, (NarrowMultiheadAttention, NarrowBiasedAttention))
        module.all_heads = kept.numel()
        module.register_buffer(OWN_HEADS, torch.arange(kept.numel(), device=device_of(module)), persistent=False)
    if isinstance(module, nn.MultiheadAttention):
        module._qkv_same_embed_dim = False  # else nn.TransformerEncoderLayer passes it over and does its work
    module.own_heads = module.own_heads[kept.to(module.own_heads.device)]


@cache
def _narrow(cls: Any) -> type[nn.Module]:
    """The narrow class for a class of modules; pickle cannot find it by its name, so it says how it is made."""
    base = NarrowMultiheadAttention if issubclass(cls, nn.MultiheadAttention) else NarrowBiasedAttention
    if cls is nn.MultiheadAttention:
        return base
    return type(f"Narrow{cls.__name__}", (base, cls), {"__reduce__": lambda self: (_new, (cls,), vars(self))})


def _new(cls: Any) -> nn.Module:
    """An empty module of the narrow class for a class of modules, which pickle fills."""
    narrow = _narrow(cls)
    return narrow.__new__(narrow)
