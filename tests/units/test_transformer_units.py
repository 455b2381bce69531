"""Heads, neurons and single weights are found where they are, and refused where they could not be removed rightly."""

import copy
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import earlyworm as ew
from earlyworm import Attention, FeedForward, Units, UnitsError, find_transformer_units
from earlyworm.units.groups import named_tensors
from earlyworm.units.surgery import mask_units_, remove_units_
from families import FAMILIES, HEADS, NEURONS, WIDTH, assert_close, build, outputs, random_kept

SIZE = WIDTH // HEADS


def pieces(units: Units, group: str) -> dict[tuple[str, int, str], tuple[list[int], list[int]]]:
    """Positions and units of every slice of a group, by tensor (without the group's own path), dimension and role."""
    (found,) = (one for one in units.groups if one.name == group)
    sliced: dict[tuple[str, int, str], tuple[list[int], list[int]]] = {}
    for piece in found.slices:
        positions, owners = sliced.setdefault((piece.tensor.removeprefix(f"{group}."), piece.dim, piece.role), ([], []))
        positions += piece.positions.tolist()
        owners += piece.units.tolist()
    return sliced


def gates(units: Units, group: str) -> set[str]:
    (found,) = (one for one in units.groups if one.name == group)
    return {piece.tensor.removeprefix(f"{group}.") for piece in found.gates()}


def per_unit(count: int, size: int) -> list[int]:
    return [unit for unit in range(count) for _ in range(size)]


# ------------------------------------------------------------------------------------ what is found


def test_slices_of_heads_and_neurons() -> None:
    units = find_transformer_units(build("bert"))
    name = "bert.encoder.layer.1.attention"
    rows = (list(range(WIDTH)), per_unit(HEADS, SIZE))
    projections = [f"self.{part}" for part in ("query", "key", "value")]
    assert pieces(units, name) == {
        **{(f"{part}.weight", 0, "filter"): rows for part in projections},
        **{(f"{part}.bias", 0, "bias"): rows for part in projections},
        ("output.dense.weight", 1, "input"): rows,
        ("self.all_head_size", 0, "width"): rows,
        ("self.num_attention_heads", 0, "width"): (list(range(HEADS)), list(range(HEADS))),
    }
    assert gates(units, name) == {tensor for tensor, _, role in pieces(units, name) if role != "width"}
    one_each = (list(range(NEURONS)), list(range(NEURONS)))
    neurons = {key[0].rpartition("layer.1.")[2]: value for key, value in
               pieces(units, "bert.encoder.layer.1.intermediate.dense").items()}  # fmt: skip
    assert neurons == {"weight": one_each, "bias": one_each, "output.dense.weight": one_each}
    assert [group.positions_per_unit() for group in units.groups] == [SIZE] * 3 + [1] * 3


def test_a_shared_key_takes_its_queries_along() -> None:
    found = pieces(find_transformer_units(build("llama")), "model.layers.0.self_attn")
    assert found["q_proj.weight", 0, "filter"] == (list(range(WIDTH)), per_unit(2, 2 * SIZE))
    assert found["k_proj.weight", 0, "filter"] == (list(range(2 * SIZE)), per_unit(2, SIZE))
    assert found["o_proj.weight", 1, "input"] == (list(range(WIDTH)), per_unit(2, 2 * SIZE))
    assert ("num_key_value_groups", 0, "width") not in found


def test_a_single_key_stays() -> None:
    found = pieces(find_transformer_units(build("llama_one_key")), "model.layers.0.self_attn")
    assert found == {
        ("q_proj.weight", 0, "filter"): (list(range(WIDTH)), per_unit(HEADS, SIZE)),
        ("o_proj.weight", 1, "input"): (list(range(WIDTH)), per_unit(HEADS, SIZE)),
        ("num_key_value_groups", 0, "width"): (list(range(HEADS)), list(range(HEADS))),
    }


def test_fused_projections() -> None:
    found = pieces(find_transformer_units(build("gpt2")), "transformer.h.0.attn")
    thrice = (list(range(3 * WIDTH)), 3 * per_unit(HEADS, SIZE))
    assert found["c_attn.weight", 1, "filter"] == found["c_attn.bias", 0, "bias"] == thrice
    assert found["c_attn.nf", 0, "width"] == thrice
    assert found["c_proj.nx", 0, "width"] == found["split_size", 0, "width"] == (
        list(range(WIDTH)), per_unit(HEADS, SIZE)
    )  # fmt: skip
    phi = find_transformer_units(build("phi3"))
    rows = pieces(phi, "model.layers.0.self_attn")["qkv_proj.weight", 0, "filter"]
    assert sorted(zip(*rows, strict=True)) == [*enumerate(per_unit(2, 2 * SIZE) + 2 * per_unit(2, SIZE))]
    both = [value for key, value in pieces(phi, "model.layers.0.mlp.gate_up_proj").items() if key[2] == "filter"]
    assert both == [(list(range(2 * NEURONS)), 2 * list(range(NEURONS)))]


def test_tables_are_cut_and_not_masked() -> None:
    units = find_transformer_units(build("swin"))
    table = "relative_position_bias.relative_position_bias_table"
    assert pieces(units, "swin.encoder.layers.1.blocks.0.attention")[table, 1, "bias"] == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert table not in gates(units, "swin.encoder.layers.1.blocks.0.attention")
    shared = pieces(find_transformer_units(build("t5")), "encoder.block.0.layer.0.SelfAttention")
    assert not any("relative_attention_bias" in tensor for tensor, _, _ in shared)


def test_kinds() -> None:
    model, family = build("bert"), FAMILIES["bert"]
    assert find_transformer_units(model, "heads").sizes == family.heads
    assert find_transformer_units(model, ["neurons"]).sizes == family.neurons
    everything = find_transformer_units(model, ("weights", "neurons", "heads"))
    assert [group.kind for group in everything.groups] == ["heads"] * 3 + ["neurons"] * 3 + ["weights"] * 6
    assert everything.removable == everything.groups[:6]
    only_weights = find_transformer_units(model, "weights")
    assert only_weights.removable == ()


@pytest.mark.parametrize("kinds", ["channels", "head", (), ("heads", "heads"), ("heads", "filters")])
def test_unknown_kinds(kinds: Any) -> None:
    with pytest.raises(UnitsError, match="must be one or more of heads, neurons, weights, each once"):
        find_transformer_units(build("bert"), kinds)


# ------------------------------------------------------------------------------------ single weights


def weights(name: str, **options: Any) -> dict[str, tuple[str, int, int, int]]:
    found = {}
    for group in find_transformer_units(build(name), "weights", **options).groups:
        assert group.slices == ()
        found[group.name] = tuple(vars(group.entries).values())
    return found


def test_weights_of_query_and_key() -> None:
    found = weights("bert")
    names = [
        f"bert.encoder.layer.{layer}.attention.self.{part}.weight" for layer in range(3) for part in ("query", "key")
    ]
    assert found == {name: (name, 0, 0, WIDTH) for name in names}
    assert find_transformer_units(build("llama"), "weights").sizes["model.layers.0.self_attn.k_proj.weight"] == (
        WIDTH * WIDTH // 2
    )


@pytest.mark.parametrize(("name", "tensor", "dim", "keys"), [
    ("gpt2", "transformer.h.0.attn.c_attn.weight", 1, WIDTH),
    ("phi3", "model.layers.0.self_attn.qkv_proj.weight", 0, WIDTH // 2),
    ("torch_encoder", "layers.0.self_attn.in_proj_weight", 0, WIDTH),
])  # fmt: skip
def test_weights_of_a_fused_matrix(name: str, tensor: str, dim: int, keys: int) -> None:
    found = weights(name)
    assert found[f"{tensor}:query"] == (tensor, dim, 0, WIDTH)
    assert found[f"{tensor}:key"] == (tensor, dim, WIDTH, keys)
    model = build(name)
    sizes = find_transformer_units(model, "weights").sizes
    assert sizes[f"{tensor}:key"] == keys * named_tensors(model)[tensor].shape[1 - dim]


def test_the_second_matrix_of_cross_attention_holds_keys_first() -> None:
    found = weights("bert_gpt2")
    name = "decoder.transformer.h.0.crossattention"
    assert found[f"{name}.q_attn.weight"] == (f"{name}.q_attn.weight", 1, 0, WIDTH)
    assert found[f"{name}.c_attn.weight:key"] == (f"{name}.c_attn.weight", 1, 0, WIDTH)


def test_weights_of_chosen_matrices() -> None:
    one = "bert.encoder.layer.0.output.dense.weight"
    assert weights("bert", matrices=one) == {one: (one, 0, 0, WIDTH)}
    assert len(weights("bert", matrices=("*.value.weight", "*.query.weight"))) == 6
    cnn = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    found = find_transformer_units(cnn, "weights", matrices="*.weight")
    assert found.sizes == {"0.weight": 108, "2.weight": 8}
    with pytest.raises(UnitsError, match=r"no matrix matches '\*.query.weight'; there are 0.weight, 2.weight"):
        find_transformer_units(cnn, "weights", matrices=("*.weight", "*.query.weight"))


def test_tied_matrices_count_once() -> None:
    model = build("bert")
    layers = model.bert.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    assert len(find_transformer_units(model, "weights").groups) == 5
    every = find_transformer_units(model, "weights", matrices="*.query.weight")
    assert [group.name.split(".")[3] for group in every.groups] == ["0", "2"]


# ------------------------------------------------------------------------------------ blocks of one's own


class MyAttention(nn.Module):
    """Written by hand: one projection, its heads counted by an attribute."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inner = heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.slopes = nn.Parameter(torch.rand(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).split(self.inner, -1))
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        return self.out(
            F.scaled_dot_product_attention(q, k, v, -self.slopes * distance.abs()).transpose(1, 2).flatten(2)
        )


class MyBlock(nn.Module):
    def __init__(self, width: int = 16, neurons: int = 20) -> None:
        super().__init__()
        self.attention, self.neurons = MyAttention(width), neurons
        self.both, self.down = nn.Linear(width, 2 * neurons), nn.Linear(neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        gate, value = self.both(x).split(self.neurons, -1)
        return x + self.down(gate.sigmoid() * value)


BLOCKS = {
    "MyAttention": Attention(
        fused="qkv", output="out", counts={"heads": "heads", "inner": "channels"}, tables={"slopes": 0}
    ),
    MyBlock: FeedForward("both", "down", parts=2, counts=("neurons",)),
}


@pytest.mark.parametrize("names", [BLOCKS, {
    MyBlock: (BLOCKS[MyBlock], Attention(
        fused="attention.qkv", output="attention.out",
        counts={"attention.heads": "heads", "attention.inner": "channels"}, tables={"attention.slopes": 0},
    )),
}])  # fmt: skip
def test_described_blocks(names: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(MyBlock(), MyBlock()), torch.randn(2, 5, 16)
    units = find_transformer_units(model, blocks=names)
    assert list(units.sizes.values()) == [4, 4, 20, 20]
    kept = random_kept(units, 1)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    mask_units_(masked, units.groups, kept)
    remove_units_(small, units.removable, kept)
    assert_close(masked(x), small(x))
    assert small[0].attention.heads == int(kept[units.groups[0].name].sum())


def test_tables_may_be_buffers() -> None:
    model = MyAttention().eval()
    slopes = model.slopes.detach()
    del model.slopes
    model.register_buffer("slopes", slopes)
    units = find_transformer_units(model, "heads", blocks={"MyAttention": BLOCKS["MyAttention"]})
    masked, small, x = copy.deepcopy(model), copy.deepcopy(model), torch.randn(2, 5, 16)
    kept = {"MyAttention": torch.tensor([True, False, False, True])}
    mask_units_(masked, units.groups, kept)
    remove_units_(small, units.removable, kept)
    assert_close(masked(x), small(x))
    assert torch.equal(small.slopes, slopes[[0, 3]])


def test_long_lists_are_cut_short() -> None:
    with pytest.raises(UnitsError, match=r"2\.attention: MyAttention is not known; 5 more\); describe"):
        find_transformer_units(nn.Sequential(*(MyBlock() for _ in range(8))))
    with pytest.raises(UnitsError, match=r"word_embeddings\.weight.*, \d+ more$"):
        find_transformer_units(build("minilm"), "weights", matrices="none")


def test_the_model_itself_may_be_a_block() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 6)
    assert find_transformer_units(model).sizes == {"self_attn": 2, "linear1": 6}
    assert find_transformer_units(model.self_attn, "heads").sizes == {"MultiheadAttention": 2}
    mine = {"MyAttention": BLOCKS["MyAttention"]}
    assert find_transformer_units(MyAttention(), "heads", blocks=mine).sizes == {"MyAttention": 4}


def test_unknown_family() -> None:
    model = nn.Sequential(MyBlock(), MyBlock())
    with pytest.raises(UnitsError) as raised:
        find_transformer_units(model)
    assert str(raised.value) == (
        "no heads found in Sequential (0.attention: MyAttention is not known; 1.attention: MyAttention is not known); "
        "describe its blocks to find_transformer_units, as in "
        "blocks={'MyAttention': Attention('q_proj', 'k_proj', 'v_proj', 'out_proj', "
        "head_size='head_dim')}"
    )
    with pytest.raises(UnitsError, match=r"no neurons found in Sequential \(it has no block that is known\); describe"):
        find_transformer_units(model, "neurons")
    with pytest.raises(UnitsError, match=r"no heads found in MyAttention \(MyAttention: MyAttention is not known\)"):
        find_transformer_units(MyAttention())


def test_unknown_blocks_beside_known_ones_are_named() -> None:
    model = nn.ModuleList([nn.TransformerEncoderLayer(16, 4, 20), MyBlock()])
    units = find_transformer_units(model)
    assert units.sizes == {"0.self_attn": 4, "0.linear1": 20}
    assert units.skipped == {"1.attention": "MyAttention is not known"}
    assert find_transformer_units(model, "neurons").skipped == {}


def test_descriptions_for_nothing() -> None:
    with pytest.raises(UnitsError, match="blocks describes 'MyAttentoin', but Sequential has no such module"):
        find_transformer_units(nn.Sequential(MyBlock()), blocks={**BLOCKS, "MyAttentoin": BLOCKS["MyAttention"]})


@pytest.mark.parametrize(("description", "message"), [
    (Attention(fused="qvk", output="out", head_size="inner"), "has no qvk"),
    (Attention(fused="qkv", output="out", counts={"heds": "heads"}), "has no heds"),
    (Attention(fused="qkv", output="out", head_size="qkv"), "qkv is .*, but must be a whole number"),
    (Attention(fused="out", output="out", head_size="heads"), "out has 16 outputs and out 16 inputs"),
    (Attention("qkv", "out", "out", "out", head_size="heads"), "queries have 48 channels, out reads 16"),
    (Attention("out", "qkv", "out", "out", head_size="heads"), "keys have 48 channels and values 16"),
    (Attention("out", "qkv", "qkv", "out", head_size="heads"), "queries have 16 channels and keys 48"),
    (Attention("out", "out", "out", "out", counts={"odd": "heads"}), "queries have 16 channels, odd is 3"),
    (Attention("out", "out", "out", "out", head_size="odd"), "queries have 16 channels, a head has 3"),
    (Attention(fused="qkv", output="out", counts={"heads": "heads", "odd": "channels"}), "odd is 3 for 4 heads"),
    (Attention(fused="qkv", output="out", head_size="odd", tables={"slopes": 0}), "a head has 3"),
    (Attention(fused="qkv", output="out", head_size="two", tables={"slopes": 0}), "slopes has 4 entries for 8 heads"),
    (Attention(fused="qkv", output="out", head_size="heads", tables={"slopes": 4}), "slopes has no dimension 4"),
    (Attention(fused="qkv", output="out", head_size="heads", tables={"heads": 0}), "heads is int, but must be"),
    (Attention(fused="qkv", output="out", head_size="heads", more=("qkv",)), "qkv has 48 outputs for 4 heads of 4"),
    (Attention(fused="slopes", output="out", head_size="heads"), "slopes has a weight of shape .* must be a matrix"),
    (Attention(fused="norm", output="out", head_size="heads"), "norm is a LayerNorm, but must be an nn.Linear"),
])  # fmt: skip
def test_blocks_that_are_not_as_described(description: Attention, message: str) -> None:
    model = nn.Sequential(MyAttention())
    model[0].odd, model[0].two, model[0].norm = 3, 2, nn.LayerNorm(16)
    with pytest.raises(UnitsError, match=rf"^0 \(MyAttention\).*({message})"):
        find_transformer_units(model, "heads", blocks={"MyAttention": description})


@pytest.mark.parametrize(("description", "message"), [
    (FeedForward("both", "down"), "both has 40 outputs and down 20 inputs, 1 for each"),
    (FeedForward("both", "down", parts=3), "both has 40 outputs and down 20 inputs, 3 for each"),
    (FeedForward("both", "down", parts=2, counts=("odd",)), "odd is 3, but there are 20 neurons"),
    (FeedForward("up", "down"), "has no up"),
])  # fmt: skip
def test_feed_forward_blocks_that_are_not_as_described(description: FeedForward, message: str) -> None:
    model = nn.Sequential(MyBlock())
    model[0].odd = 3
    with pytest.raises(UnitsError, match=rf"^0 \(MyBlock\).*{message}"):
        find_transformer_units(model, "neurons", blocks={"MyBlock": description})


# ------------------------------------------------------------------------------------ never wrong in silence


class OtherForward(hf.models.bert.modeling_bert.BertAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OtherPart(hf.models.bert.modeling_bert.BertSelfAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OtherLayer(hf.models.bert.modeling_bert.BertLayer):
    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return super().feed_forward_chunk(attention_output)


class OtherLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def test_what_is_replaced_is_left_out_and_named() -> None:
    model = build("minilm")
    model.encoder.layer[0].attention.__class__ = OtherForward
    model.encoder.layer[1].attention.self.__class__ = OtherPart
    model.encoder.layer[2].__class__ = OtherLayer
    units = find_transformer_units(model)
    assert list(units.sizes) == [
        "encoder.layer.2.attention",
        *(f"encoder.layer.{i}.intermediate.dense" for i in (0, 1)),
    ]
    assert units.skipped == {
        "encoder.layer.0.attention": "OtherForward differs from the class that is known",
        "encoder.layer.1.attention": "BertAttention differs from the class that is known",
        "encoder.layer.2": "OtherLayer differs from the class that is known",
    }
    model.encoder.layer[2].attention.output.dense.__class__ = OtherLinear
    with pytest.raises(UnitsError, match=r"layer\.2\.attention.*output\.dense is a OtherLinear, but must be"):
        find_transformer_units(model)


@pytest.mark.parametrize(("options", "reason"), [
    ({"add_bias_kv": True}, "MultiheadAttention with bias_k is not supported"),
    ({"add_zero_attn": True}, "MultiheadAttention with add_zero_attn is not supported"),
    ({"kdim": 4}, "MultiheadAttention differs from the class that is known"),
    ({"vdim": 4}, "MultiheadAttention differs from the class that is known"),
])  # fmt: skip
def test_options_of_pytorchs_attention(options: dict[str, Any], reason: str) -> None:
    model = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, **options)])
    units = find_transformer_units(model, "heads")
    assert units.sizes == {"0": 2}
    assert units.skipped == {"1": reason}


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_known_block_with_a_part_of_its_own_is_left_out_and_no_other() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model.layers[0].linear1 = OwnLinear(16, 12)
    nn.utils.parametrizations.weight_norm(model.layers[1].self_attn.out_proj)
    units = find_transformer_units(model)
    assert units.sizes == {"layers.0.self_attn": 4, "layers.1.linear1": 12}
    assert "linear1 is a OwnLinear, but must be an nn.Linear" in units.skipped["layers.0"]
    assert "out_proj" in units.skipped["layers.1.self_attn"]


def test_tied_weights_are_left_out() -> None:
    model = build("minilm")
    layers = model.encoder.layer
    layers[1].output.dense.weight = layers[0].output.dense.weight
    units = find_transformer_units(model)
    one, other = (f"encoder.layer.{i}.output.dense" for i in (0, 1))
    assert units.skipped == {
        "encoder.layer.0": f"{one}.weight is tied to a weight of {other}",
        "encoder.layer.1": f"{other}.weight is tied to a weight of {one}",
    }
    assert len(units.groups) == 4


def test_a_projection_that_has_a_second_name_is_not_tied() -> None:
    model = build("minilm")
    named = nn.ModuleDict({"alias": model.encoder.layer[0].output.dense, "model": model})
    assert find_transformer_units(named).skipped == {}


def test_a_module_that_is_used_twice_has_its_units_once() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 20, batch_first=True).eval()
    model = nn.Sequential(layer, nn.LayerNorm(16), layer)
    units = find_transformer_units(model)
    assert units.sizes == {"0.self_attn": 4, "0.linear1": 20}
    kept = random_kept(units, 3)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    mask_units_(masked, units.groups, kept)
    remove_units_(small, units.removable, kept)
    x = torch.randn(2, 5, 16)
    assert_close(masked(x), small(x))
    assert small[0] is small[2]


# ------------------------------------------------------------------------------------ weights that cannot be cut


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks transformers for it
def test_adapters() -> None:
    peft = pytest.importorskip("peft")
    model = build("minilm")
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["query", "value"]))
    for adapted in (wrapped, wrapped.get_base_model()):
        with pytest.raises(UnitsError, match=r"wrapped in an adapter \(.*\): .* that merge_and_unload\(\) returns"):
            find_transformer_units(adapted)
    assert find_transformer_units(wrapped.merge_and_unload()).sizes == find_transformer_units(model).sizes


class Params4bit(nn.Parameter):
    pass


class QuantisedTensor(Tensor):
    """Looks like half precision and is something else, as torchao's."""


class DTensor(Tensor):
    pass


class FullyShardedDataParallel(nn.Sequential):
    pass


def with_weight(weight: Tensor) -> nn.Module:
    model = build("minilm")
    model.encoder.layer[1].output.dense.weight = weight
    return model


def parameter(dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros(WIDTH, NEURONS).to(dtype), requires_grad=False)


@pytest.mark.parametrize(("weight", "message"), [
    (parameter(torch.int8), "quantised .*torch.int8.*: load the model in full or half precision"),
    (parameter(torch.float8_e4m3fn), "quantised .*float8.*: load the model in full or half precision"),
    (Params4bit(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False), "quantised .*Params4bit, torch.uint8"),
    (nn.Parameter(torch.zeros(WIDTH, NEURONS).as_subclass(QuantisedTensor)), "quantised .*QuantisedTensor"),
    (nn.Parameter(torch.zeros(WIDTH, NEURONS).as_subclass(DTensor)), "sharded .*: search before sharding"),
    (nn.Parameter(torch.zeros(WIDTH, NEURONS, device="meta")), "meta device: load the weights first"),
    (parameter(torch.complex64), "complex .*torch.complex64.*only real weights"),
])  # fmt: skip
def test_weights_that_are_no_plain_numbers(weight: nn.Parameter, message: str) -> None:
    with pytest.raises(UnitsError, match=rf"^encoder\.layer\.1\.output\.dense\.weight is .*{message}"):
        find_transformer_units(with_weight(weight))


def test_models_that_are_quantised_or_sharded() -> None:
    model = build("minilm")
    with pytest.raises(UnitsError, match=r"^0 is sharded \(FSDP\): search before sharding, or train with DDP"):
        find_transformer_units(nn.Sequential(FullyShardedDataParallel(model)))
    model.embeddings.word_embeddings.weight.ds_id = 3
    with pytest.raises(UnitsError, match=r"word_embeddings\.weight is sharded"):
        find_transformer_units(model)
    model = build("minilm")
    model.is_quantized = True
    with pytest.raises(UnitsError, match="BertModel is quantised: load it in full or half precision"):
        find_transformer_units(model)


# ------------------------------------------------------------------------------------ beside


def test_wrappers_are_seen_through() -> None:
    model = build("minilm")
    units = find_transformer_units(torch.compile(model, backend="eager"))
    assert units.sizes == find_transformer_units(model).sizes


def test_half_precision_and_frozen_parameters() -> None:
    model = build("llama").to(torch.bfloat16).requires_grad_(False)
    units = find_transformer_units(model)
    remove_units_(model, units.removable, random_kept(units, 1))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    outputs(model, FAMILIES["llama"].inputs())


def test_attention_weights_are_those_of_the_heads_that_are_left() -> None:
    for name in ("bert", "t5"):
        model = build(name, "eager")
        units = find_transformer_units(model)
        kept = random_kept(units, 2)
        masked, small = copy.deepcopy(model), copy.deepcopy(model)
        mask_units_(masked, units.groups, kept)
        remove_units_(small, units.removable, kept)
        inputs = {**FAMILIES[name].inputs(), "output_attentions": True}
        a, b = masked(**inputs), small(**inputs)
        found = (a.attentions, b.attentions) if name == "bert" else (a.encoder_attentions, b.encoder_attentions)
        for group, whole, part in zip(units.groups, *found, strict=False):
            assert_close(whole[:, kept[group.name]], part)


def test_24_layers_take_less_than_a_second() -> None:
    config = hf.BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        model = hf.BertModel(config)
    model.to_empty(device="cpu")
    start = time.perf_counter()
    units = find_transformer_units(model, ("heads", "neurons", "weights"))
    assert time.perf_counter() - start < 1
    assert len(units.groups) == 96


def test_a_search_over_heads_and_neurons() -> None:
    model, inputs = build("bert"), FAMILIES["bert"].inputs()
    units = find_transformer_units(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    search = ew.TicketSearch(model, units=units, emergence=ew.Emergence(window=2))
    with search.attach(optimizer):
        for _ in range(2):
            model(**inputs).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            search.update()
    small = ew.compact(model, search.draw(force=True), example_inputs=inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
