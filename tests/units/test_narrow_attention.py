"""Attention that has lost heads is called as before, and computes what the masked one computes."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earlyworm import find_transformer_units
from earlyworm.units.narrow_attention import NarrowMultiheadAttention, reason_against_losing_heads
from earlyworm.units.surgery import mask_units_, remove_units_

WIDTH, HEADS, KEPT = 24, 4, torch.tensor([True, False, True, True])
L, S, N = 5, 7, 3


def random_(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def masked_and_narrow(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    units = find_transformer_units(model, "heads")
    kept = dict.fromkeys(units.sizes, KEPT)
    masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
    mask_units_(masked, units.groups, kept)
    remove_units_(narrow, units.removable, kept)
    return masked, narrow


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sequences(layout: str, length: int) -> Tensor:
    return noise(
        *{"batch first": (N, length, WIDTH), "batch second": (length, N, WIDTH), "no batch": (length, WIDTH)}[layout]
    )


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(a.detach().abs().max())))


LAYOUTS = ["batch first", "batch second", "no batch"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("itself", [True, False])
def test_masks_and_layouts(layout: str, bias: bool, itself: bool) -> None:
    masked, narrow = masked_and_narrow(random_(
        nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=layout == "batch first")
    ))  # fmt: skip
    assert type(narrow) is NarrowMultiheadAttention
    query, keys = sequences(layout, L), L if itself else S
    others = (query, query) if itself else (sequences(layout, S), 2 * sequences(layout, S))
    batch = (N,) if query.dim() == 3 else ()
    hidden = noise(L, keys) > 0.5
    hidden[:, 0] = False  # every position attends to something
    padding = torch.arange(keys).expand(*batch, keys) > 3
    per_head = noise(HEADS * N if batch else HEADS, L, keys)
    masks = (None, hidden, noise(L, keys), per_head)
    for attn_mask, key_padding_mask, need_weights in itertools.product(masks, (None, padding), (True, False)):
        options: dict[str, Any] = {"attn_mask": attn_mask, "need_weights": need_weights}
        if key_padding_mask is not None:  # masks of one type, as PyTorch asks for
            additive = attn_mask is not None and attn_mask.is_floating_point()
            options["key_padding_mask"] = (
                torch.zeros(padding.shape).masked_fill(padding, -torch.inf) if additive else padding
            )
        expected, _ = masked(query, *others, **options)
        found, weights = narrow(query, *others, **options)
        assert close(expected, found), options
        assert (weights is None) == (not need_weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_of_the_heads_that_are_left(layout: str) -> None:
    masked, narrow = masked_and_narrow(random_(nn.MultiheadAttention(WIDTH, HEADS, batch_first=layout == LAYOUTS[0])))
    x = sequences(layout, L)
    _, expected = masked(x, x, x, average_attn_weights=False)
    _, found = narrow(x, x, x, average_attn_weights=False)
    _, mean = narrow(x, x, x)
    of_kept = expected[..., KEPT, :, :]
    assert close(of_kept, found)
    assert close(of_kept.mean(-3), mean)


def test_a_mask_for_every_head_may_be_for_those_that_are_left() -> None:
    _, narrow = masked_and_narrow(random_(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)))
    x, per_head = sequences("batch first", L), noise(N, HEADS, L, L)
    of_all = narrow(x, x, x, attn_mask=per_head.flatten(0, 1))[0]
    assert torch.equal(of_all, narrow(x, x, x, attn_mask=per_head[:, KEPT].flatten(0, 1))[0])


@pytest.mark.parametrize("need_weights", [True, False])
def test_causal(need_weights: bool) -> None:
    masked, narrow = masked_and_narrow(random_(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)))
    x, mask = sequences("batch first", L), nn.Transformer.generate_square_subsequent_mask(L)
    options = {"attn_mask": mask, "is_causal": True, "need_weights": need_weights}
    assert close(masked(x, x, x, **options)[0], narrow(x, x, x, **options)[0])
    for network in (masked, narrow):
        with pytest.raises(RuntimeError, match="attn_mask"):
            network(x, x, x, is_causal=True)


def test_gradients_and_dropout() -> None:
    masked, narrow = masked_and_narrow(random_(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5)))
    x = sequences("batch second", L)
    for network in (masked, narrow):
        network(x, x, x)[0].square().sum().backward()
    assert close(masked.out_proj.weight.grad[:, KEPT.repeat_interleave(6)], narrow.out_proj.weight.grad)
    assert close(masked.in_proj_weight.grad.view(3, HEADS, 6, WIDTH)[:, KEPT].flatten(0, 2), narrow.in_proj_weight.grad)
    narrow.train()
    for need_weights in (True, False):
        assert not torch.equal(
            narrow(x, x, x, need_weights=need_weights)[0], narrow(x, x, x, need_weights=need_weights)[0]
        )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_fast_path_of_an_encoder(norm_first: bool, padded: bool) -> None:
    """Without gradients an encoder fuses whole layers, and packs padded text; a narrow layer takes part in both."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=norm_first)
    model = random_(nn.TransformerEncoder(layer, 3, enable_nested_tensor=not norm_first))
    units = find_transformer_units(model)
    kept = {name: torch.arange(size) % 2 == 0 for name, size in units.sizes.items()}
    kept["layers.1.self_attn"][:] = True  # one layer keeps the class that it has
    masked, narrow = copy.deepcopy(model), copy.deepcopy(model)
    mask_units_(masked, units.groups, kept)
    remove_units_(narrow, units.removable, kept)
    classes = [type(layer.self_attn) for layer in narrow.layers]
    assert classes == [NarrowMultiheadAttention, nn.MultiheadAttention, NarrowMultiheadAttention]
    x = noise(N, L, WIDTH)
    padding = torch.arange(L) >= torch.tensor([[5], [3], [2]]) if padded else None
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert close(masked(x, src_key_padding_mask=padding), narrow(x, src_key_padding_mask=padding))


def test_an_empty_batch() -> None:
    model = random_(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    empty = torch.zeros(0, L, WIDTH)
    for attention in masked_and_narrow(model):
        assert attention(empty, empty, empty, need_weights=False)[0].shape == (0, L, WIDTH)


def test_names_are_those_of_the_base_class() -> None:
    dense = nn.MultiheadAttention(WIDTH, HEADS)
    _, narrow = masked_and_narrow(dense)
    assert list(narrow.state_dict()) == list(dense.state_dict())
    assert narrow.num_heads == 3
    assert narrow.own_heads.tolist() == [0, 2, 3]
    _, again = masked_and_narrow_further(narrow)
    assert again.own_heads.tolist() == [2]
    assert again.all_heads == HEADS


def masked_and_narrow_further(narrow: nn.Module) -> tuple[nn.Module, nn.Module]:
    units = find_transformer_units(narrow, "heads")
    kept = {"NarrowMultiheadAttention": torch.tensor([False, True, False])}
    masked, further = copy.deepcopy(narrow), copy.deepcopy(narrow)
    mask_units_(masked, units.groups, kept)
    remove_units_(further, units.removable, kept)
    x = noise(L, N, WIDTH)
    assert close(masked(x, x, x)[0], further(x, x, x)[0])
    return masked, further


class Named(nn.MultiheadAttention):
    """A subclass that changes nothing."""


def test_a_subclass_stays_one() -> None:
    _, narrow = masked_and_narrow(random_(Named(WIDTH, HEADS)))
    assert isinstance(narrow, Named)
    assert isinstance(narrow, NarrowMultiheadAttention)


class OldBias(nn.Module):
    def compute_bias(self, query_length: int, key_length: int, cache_position: Tensor) -> Tensor: ...


def test_a_bias_that_is_computed_in_another_way_is_a_reason_against() -> None:
    assert "OldBias" in reason_against_losing_heads(OldBias())
    assert "Linear" in reason_against_losing_heads(nn.Linear(1, 1))
