"""A compacted model of transformers as a directory that a fresh process loads with one call."""

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import sentences
from earlyworm import EarlywormError, TicketError, TicketSearch, compact
from earlyworm.integrations.transformers import load_pretrained, save_pretrained
from sentences import UNITS, Sentences, make_bert

IDS = torch.arange(3, 15).reshape(2, 6)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def llama(**options):
    config = transformers.LlamaConfig(
        vocab_size=40, num_key_value_heads=2, **SMALL, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options
    )
    return transformers.LlamaForCausalLM(config)


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config)


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


MODELS = {
    "bert": (make_bert, Sentences().batch()),
    "llama": (llama, {"input_ids": IDS}),
    "llama-tied": (lambda: llama(tie_word_embeddings=True), {"input_ids": IDS}),
    "vit": (vit, {"pixel_values": torch.arange(384.0).reshape(2, 3, 8, 8) / 384}),
    "t5": (t5, {"input_ids": IDS, "decoder_input_ids": IDS + 1}),
}


def make(name, dtype=torch.float32, units=UNITS["units"]):
    """A compacted model, its ticket, and inputs."""
    torch.manual_seed(0)
    model = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    search = TicketSearch(model, units=units)
    search.attach(torch.optim.SGD(model.parameters(), lr=0.1)).detach()
    ticket = search.draw(force=True)
    return compact(model, ticket), ticket, MODELS[name][1]


def outputs(model, inputs):
    """Logits, and what is generated from a prompt if the model can do that."""
    with torch.inference_mode():
        found = {"logits": model(**inputs).logits}
        if model.can_generate():
            prompt = {"input_ids": inputs["input_ids"][:, :3]}
            found["greedy"] = model.generate(**prompt)  # as long as the generation config says
            found["beams"] = model.generate(**prompt, num_beams=2)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def test_loads_in_a_fresh_process(tmp_path, fresh_python):
    expected = {}
    for name in MODELS:
        small, ticket, inputs = make(name)
        if small.can_generate():
            small.generation_config.max_length = 9
            small.generation_config.pad_token_id = 0
        save_pretrained(small, ticket, tmp_path / name)
        assert {path.suffix for path in (tmp_path / name).iterdir()} == {".json", ".safetensors"}
        save_file(inputs, tmp_path / f"{name}.inputs")
        expected[name] = outputs(small, inputs)
    assert expected["llama"]["greedy"].shape == (2, 9)
    folders = [os.path.dirname(__file__), os.path.dirname(sentences.__file__)]
    fresh_python(f"""
        import pathlib, pickle, sys, torch
        from safetensors.torch import load_file, save_file
        sys.path[:0] = {folders!r}
        from test_pretrained_directories import MODELS, load_pretrained, outputs
        torch.load = pickle.load = pickle.loads = None
        folder = pathlib.Path({str(tmp_path)!r})
        for name in MODELS:
            model = load_pretrained(folder / name)
            save_file(outputs(model, load_file(folder / f"{{name}}.inputs")), folder / f"{{name}}.outputs")
    """)
    for name, some in expected.items():
        found = load_file(tmp_path / f"{name}.outputs")
        assert found.keys() == some.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in some.items()), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(name, dtype, tmp_path):
    small, ticket, inputs = make(name, dtype)
    save_pretrained(small, ticket, tmp_path)
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    found = load_pretrained(tmp_path)
    assert type(found) is type(small)
    assert not found.training
    assert found.dtype == dtype
    assert torch.equal(found(**inputs).logits, small(**inputs).logits)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in small.named_parameters()]  # ties too
    assert all(parameter.requires_grad for parameter in found.parameters())
    loss = found.train()(**inputs).logits.square().mean()
    loss.backward()  # it can be trained on


def test_weights_that_are_masked_and_not_removed(tmp_path):
    small, ticket, inputs = make("bert", units="weights")
    save_pretrained(small, ticket, tmp_path)
    found = load_pretrained(tmp_path)
    assert torch.equal(found(**inputs).logits, small(**inputs).logits)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    with torch.no_grad():
        found.get_parameter(name).add_(1)
    assert (found.state_dict()[name] == 0).sum() > 50  # still held at zero


def test_weights_in_several_files(tmp_path):
    small, ticket, inputs = make("llama")
    save_pretrained(small, ticket, tmp_path)
    shutil.rmtree(tmp_path)
    small.save_pretrained(tmp_path, max_shard_size="5KB")
    ticket.save(tmp_path / "ticket.safetensors")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(load_pretrained(tmp_path)(**inputs).logits, small(**inputs).logits)


# What cannot be saved or loaded.


def test_only_compacted_models_of_transformers_are_saved(tmp_path):
    class Mine(transformers.BertForSequenceClassification):
        pass

    small, ticket, _ = make("bert")
    with pytest.raises(TicketError, match="Linear is no model of transformers"):
        save_pretrained(nn.Linear(2, 2), ticket, tmp_path)
    with pytest.raises(TicketError, match="is still dense: save what compact"):
        save_pretrained(make_bert(), ticket, tmp_path)
    with pytest.raises(TicketError, match="was not compacted by this ticket"):
        save_pretrained(make("llama")[0], ticket, tmp_path)
    with pytest.raises(TicketError, match=r"it has a '.*' of \[\d.*\], but that leaves .* round_ticket\(ticket, N\)"):
        save_pretrained(compact(make_bert(), ticket, round_to=16), ticket, tmp_path)
    with pytest.raises(TicketError, match="Mine is no class of transformers"):
        save_pretrained(Mine(small.config), ticket, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    small, ticket, _ = make("bert")
    save_pretrained(small, ticket, folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    """A copy that can be broken."""
    shutil.copytree(saved, tmp_path / "broken")
    return tmp_path / "broken"


def refused(folder, message):
    with pytest.raises(EarlywormError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ticket.safetensors", "there is no ticket at"),
        ("config.json", "the configuration in .* cannot be read"),
        ("model.safetensors", "the weights in .* cannot be read"),
    ],
)
def test_missing_or_damaged(name, message, broken):
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: len(content) // 2])
    refused(broken, message if name != "ticket.safetensors" else "damaged or not a ticket")
    (broken / name).unlink()
    refused(broken, message)


def test_no_directory(tmp_path):
    refused(tmp_path / "nowhere", "there is no ticket at")


def test_the_ticket_of_another_model(broken):
    make("vit")[1].save(broken / "ticket.safetensors")
    refused(broken, "the ticket is for another model")


def test_another_ticket(broken):
    model = make_bert(seed=4)
    search = TicketSearch(model, units="neurons", pruning_ratio=0.25)
    search.attach(torch.optim.SGD(model.parameters(), lr=0.1)).detach()
    search.draw(force=True).save(broken / "ticket.safetensors")
    refused(broken, "the weights are not those of a model that was compacted by the ticket")


def test_dense_weights(broken):
    make_bert().save_pretrained(broken)
    refused(broken, "is .* by the ticket: the weights are not those")


def test_weights_that_lack_some(broken):
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("classifier.weight")
    save_file(tensors, broken / "model.safetensors")
    refused(broken, "lack 'classifier.weight'")


def test_an_index_that_a_larger_model_has_left(saved, tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path / "here", max_shard_size="5KB")
    assert (tmp_path / "here" / "model.safetensors.index.json").exists()
    small, ticket, inputs = make("bert")
    save_pretrained(small, ticket, tmp_path / "here")
    assert torch.equal(outputs(load_pretrained(tmp_path / "here"), inputs)["logits"], outputs(small, inputs)["logits"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 7), ("hidden_size", "x"), ("hidden_act", "zzz"), ("hidden_size", None)],
)
def test_a_configuration_that_says_impossible_things(key, value, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    refused(broken, "the configuration in .* cannot be read")


def test_a_damaged_generation_config(broken):
    (broken / "generation_config.json").write_text("{")
    refused(broken, "the configuration in .* cannot be read")


@pytest.mark.parametrize(
    ("key", "value"), [("architectures", ["Mine"]), ("architectures", None), ("model_type", "mine")]
)
def test_a_configuration_of_a_class_that_transformers_does_not_have(key, value, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    refused(
        broken, "is no class of transformers" if key == "architectures" else "the configuration in .* cannot be read"
    )
