"""Of every known family the compacted model computes what the masked one computes."""

import copy
import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

import zoo
from earlyworm import compact, find_transformer_units
from earlyworm.units.groups import named_tensors
from earlyworm.units.surgery import copy_model, mask_units_, remove_units_
from families import FAMILIES, assert_close, build, outputs, random_kept

CASES = [(name, attention) for name, family in FAMILIES.items() for attention in family.attention]
every_family = pytest.mark.parametrize("name", FAMILIES)
every_attention = pytest.mark.parametrize(("name", "attention"), CASES)


def masked_and_cut(model: nn.Module, kept: dict[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    units = find_transformer_units(model)
    masked, small = copy_model(model), copy_model(model)
    mask_units_(masked, units.groups, kept)
    remove_units_(small, units.removable, kept)
    return masked, small


def pair(name: str, seed: int, attention: str = "") -> tuple[nn.Module, nn.Module]:
    model = build(name, attention, seed)
    return masked_and_cut(model, random_kept(find_transformer_units(model), seed))


def loss_of(tensors: list[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.stack([(torch.randn(t.shape, generator=generator) * t).mean() for t in tensors]).sum()


def kept_entries(model: nn.Module, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every parameter of the small model, which entries of the dense one it holds (found by cutting indices)."""
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape))
    remove_units_(numbered, find_transformer_units(model).removable, kept)
    return {name: parameter.detach().long() for name, parameter in numbered.named_parameters()}


# ------------------------------------------------------------------------------------ masked == compacted


@every_family
def test_all_heads_and_neurons_are_found(name: str) -> None:
    units = find_transformer_units(build(name))
    assert units.sizes == {**FAMILIES[name].heads, **FAMILIES[name].neurons}
    assert units.kinds == {
        **dict.fromkeys(FAMILIES[name].heads, "heads"), **dict.fromkeys(FAMILIES[name].neurons, "neurons")
    }  # fmt: skip
    assert units.removable is units.groups
    assert units.skipped == {}


@every_attention
def test_outputs_agree(name: str, attention: str) -> None:
    dense, inputs = outputs(build(name, attention), FAMILIES[name].inputs()), FAMILIES[name].inputs()
    for seed in range(3):
        masked, small = pair(name, seed, attention)
        expected = outputs(masked, inputs)
        for a, b, whole in zip(expected, outputs(small, inputs), dense, strict=True):
            assert_close(a, b)
            assert not torch.allclose(a, whole, rtol=0, atol=1e-3)
        widths = {tuple(p.shape) for p in small.parameters()}
        assert len(widths) > len({tuple(p.shape) for p in masked.parameters()})


@every_attention
def test_gradients_agree(name: str, attention: str) -> None:
    model, inputs = build(name, attention), FAMILIES[name].inputs()
    kept = random_kept(find_transformer_units(model), 7)
    masked, small = masked_and_cut(model, kept)
    loss_of(outputs(masked, inputs)).backward()
    loss_of(outputs(small, inputs)).backward()
    dense, entries = dict(masked.named_parameters()), kept_entries(model, kept)
    for parameter_name, parameter in small.named_parameters():
        if parameter.grad is None:
            assert dense[parameter_name].grad is None
        else:
            assert_close(dense[parameter_name].grad.flatten()[entries[parameter_name]], parameter.grad, parameter_name)


@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if FAMILIES[case[0]].generates])
def test_generated_text_agrees(name: str, attention: str) -> None:
    masked, small = pair(name, 2, attention)
    prompt = {key: value for key, value in FAMILIES[name].inputs().items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    expected, actual = (network.generate(**prompt, **options) for network in (masked, small))
    assert torch.equal(expected.sequences, actual.sequences)
    for a, b in zip(expected.logits, actual.logits, strict=True):
        assert_close(a, b)
    uncached = small.generate(**prompt, **options, use_cache=False)
    assert torch.equal(uncached.sequences, actual.sequences)
    beams = [network.generate(**prompt, max_new_tokens=4, num_beams=2, do_sample=False) for network in (masked, small)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("name", ["llama", "phi3_one_key", "gpt2", "t5", "bert_gpt2"])
def test_a_cache_of_fixed_size_is_as_narrow_as_the_layers(name: str) -> None:
    masked, small = pair(name, 2)
    prompt = {key: value for key, value in FAMILIES[name].inputs().items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    assert torch.equal(masked.generate(**prompt, **options), small.generate(**prompt, **options))


def unpadded(name: str) -> dict[str, Tensor]:
    """Inputs without positions that attend to nothing: of these every implementation makes something else."""
    inputs = FAMILIES[name].inputs()
    return {key: torch.ones_like(value) if key == "attention_mask" else value for key, value in inputs.items()}


def lose_heads(name: str, **lost: int) -> tuple[nn.Module, nn.Module]:
    """The masked and the compacted model without one head in each of some places."""
    model = build(name)
    kept = {place: torch.ones(size, dtype=torch.bool) for place, size in find_transformer_units(model).sizes.items()}
    for place, head in lost.items():
        kept[place.replace("__", ".")][head] = False
    return masked_and_cut(model, kept)


@pytest.mark.parametrize("name", ["t5", "torch_encoder"])
def test_what_has_lost_heads_can_be_pickled(name: str) -> None:
    _, small = pair(name, 1)
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    inputs = FAMILIES[name].inputs()
    expected = outputs(small, inputs)
    for twin in (again, copy.deepcopy(small)):
        assert all(torch.equal(a, b) for a, b in zip(expected, outputs(twin, inputs), strict=True))


@pytest.mark.parametrize("lost", [
    {"encoder__block__0__layer__0__SelfAttention": 1},
    {"encoder__block__1__layer__0__SelfAttention": 1},
    {"decoder__block__0__layer__1__EncDecAttention": 1},
    {"decoder__block__1__layer__1__EncDecAttention": 1},
    {"encoder__block__0__layer__0__SelfAttention": 1, "encoder__block__1__layer__0__SelfAttention": 2},
])  # fmt: skip
def test_layers_that_share_a_position_bias_lose_heads_of_their_own(lost: dict[str, int]) -> None:
    masked, small = lose_heads("t5", **lost)
    inputs = FAMILIES["t5"].inputs()
    for a, b in zip(outputs(masked, inputs), outputs(small, inputs), strict=True):
        assert_close(a, b)
    tables = [name for name, _ in small.named_parameters() if "relative_attention_bias" in name]
    assert len(tables) == 2
    assert all(named_tensors(small)[name].shape == named_tensors(masked)[name].shape for name in tables)


def test_a_position_bias_that_is_handed_on_with_the_mask_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in some versions of transformers: every layer but the first knows the mask from the bias alone."""
    attend = transformers.models.t5.modeling_t5.T5Attention.forward

    def with_the_mask(self: Any, hidden: Tensor, mask: Any = None, *, position_bias: Any = None, **more: Any) -> Any:
        if position_bias is not None:
            return attend(self, hidden, mask=None, position_bias=position_bias, **more)
        output, bias, *rest = attend(self, hidden, mask=mask, **more)
        return output, bias if mask is None else bias + mask, *rest

    monkeypatch.setattr(transformers.models.t5.modeling_t5.T5Attention, "forward", with_the_mask)
    model = build("t5", "eager")
    masked, small = masked_and_cut(model, random_kept(find_transformer_units(model), 1))
    inputs = FAMILIES["t5"].inputs()
    for a, b in zip(outputs(masked, inputs), outputs(small, inputs), strict=True):
        assert_close(a, b)


def test_layers_that_read_a_shared_config_have_numbers_of_their_own() -> None:
    _, small = lose_heads("phi3_one_key", model__layers__0__self_attn=1)
    first, second = (layer.self_attn for layer in small.model.layers[:2])
    assert (first.config.num_attention_heads, second.config.num_attention_heads) == (3, 4)
    assert small.config.num_attention_heads == 4  # as documented
    assert second.config is small.config
    clone = copy.deepcopy(small)
    small.set_attn_implementation("eager")  # it is seen through the numbers
    assert first.config._attn_implementation == "eager"
    attention = clone.model.layers[0].self_attn
    assert (attention.config.num_attention_heads, attention.config._attn_implementation) == (3, "sdpa")
    inputs = unpadded("phi3")
    assert_close(small(**inputs).logits, clone(**inputs).logits)


@every_family
def test_ties_and_names_stay(name: str) -> None:
    dense, small = pair(name, 3)

    def ties(model: nn.Module) -> set[frozenset[str]]:
        names: dict[int, set[str]] = {}
        for tensor_name, tensor in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), set()).add(tensor_name)
        return {frozenset(group) for group in names.values()}

    assert ties(small) == ties(dense)
    assert list(small.state_dict()) == list(dense.state_dict())
    if name in ("xlm_roberta", "llama_biased", "albert", "gpt2", "t5"):
        assert any(len(group) > 1 for group in ties(small))


@every_family
def test_a_copy_of_the_small_model_computes_the_same(name: str) -> None:
    _, small = pair(name, 4)
    inputs = FAMILIES[name].inputs()
    clone = copy.deepcopy(small)
    with torch.no_grad():
        expected = [tensor.clone() for tensor in outputs(small, inputs)]
        for parameter in small.parameters():
            parameter.zero_()
        for a, b in zip(expected, outputs(clone, inputs), strict=True):
            assert torch.equal(a, b)


@every_family
def test_a_small_model_can_lose_more(name: str) -> None:
    _, small = pair(name, 5)
    masked, smaller = masked_and_cut(small, random_kept(find_transformer_units(small), 6, density=0.7))
    inputs = FAMILIES[name].inputs()
    for a, b in zip(outputs(masked, inputs), outputs(smaller, inputs), strict=True):
        assert_close(a, b)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())


@every_family
def test_numbers_that_count_heads_and_neurons_are_lowered(name: str) -> None:
    """A module's own numbers are those of a fresh find: a check of every count that is described."""
    _, small = pair(name, 8)
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif type(module).__name__ == "Conv1D":
            assert (module.nx, module.nf) == module.weight.shape
    assert find_transformer_units(small).sizes.keys() == find_transformer_units(build(name)).sizes.keys()


# ------------------------------------------------------------------------------------ export


def exportable(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small model, and inputs for which it returns tensors alone."""
    return pair(name, 9)[1], {**unpadded(name), **({"use_cache": False} if FAMILIES[name].generates else {})}


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "llama_one_key", "phi3", "gpt2", "t5", "torch_encoder"])
def test_export(name: str) -> None:
    small, inputs = exportable(name)
    exported = torch.export.export(small, (), inputs)
    for a, b in zip(outputs(small, inputs), outputs(exported.module(), inputs), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_onnx(name: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    small, inputs = exportable(name)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(small, (), kwargs=inputs, dynamo=True, verbose=False)
        program.save(buffer)
        session = runtime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    found = session.run(None, {key: value.numpy() for key, value in inputs.items() if isinstance(value, Tensor)})
    for a, b in zip(outputs(small, inputs), found, strict=True):
        assert_close(a, torch.from_numpy(b))


# ------------------------------------------------------------------------------------ from files


FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_model, save_file
from earlyworm import Ticket, compact
from families import FAMILIES, build, outputs
for name in sys.argv[3:]:
    small = compact(build(name, seed=99), Ticket.load(f"{sys.argv[2]}/{name}.ticket"))
    load_model(small, f"{sys.argv[2]}/{name}.safetensors")
    found = outputs(small.eval(), FAMILIES[name].inputs())
    save_file({str(i): tensor.detach().clone() for i, tensor in enumerate(found)}, f"{sys.argv[2]}/{name}.fresh")
"""


def test_a_small_model_is_built_again_from_its_ticket_and_weights(tmp_path: Path) -> None:
    names = ["bert", "swin", "gpt2", "phi3", "gemma2", "t5", "torch_encoder"]
    expected = {}
    for name in names:
        model = build(name)
        units = find_transformer_units(model)
        ticket = zoo.ticket_for(model, units, random_kept(units, 1))
        ticket.save(tmp_path / f"{name}.ticket")
        small = compact(model, ticket, example_inputs=FAMILIES[name].inputs())
        save_model(small, str(tmp_path / f"{name}.safetensors"))
        expected[name] = outputs(small, FAMILIES[name].inputs())
    subprocess.run([sys.executable, "-W", "error", "-c", FRESH, str(Path(zoo.__file__).parent), str(tmp_path), *names],
                   check=True, timeout=100)  # fmt: skip
    for name in names:
        for i, tensor in load_file(tmp_path / f"{name}.fresh").items():
            assert torch.equal(tensor, expected[name][int(i)]), name
