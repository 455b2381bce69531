import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, ResNetConfig, ResNetForImageClassification, ResNetModel
from transformers.modeling_outputs import ImageClassifierOutput

from earlyworm.errors import ConfigError, DataError, RunError
from earlyworm.experiments.models import REFERENCE, build_model, load_weights, logits, replace_classifier, scaled
from earlyworm.experiments.names import MODELS


def tiny_config(**changes):
    values = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetConfig(**{**values, "num_labels": 4, **changes})


def reference(classes=5, name="resnet20", width=0.25):
    torch.manual_seed(0)
    return build_model(name, classes=classes, channels=1, width=width)[0]


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_options_name_the_reference_networks():
    assert set(MODELS) == set(REFERENCE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_reference_networks_take_images_of_any_size(name, channels, size):
    model, notes = build_model(name, classes=5, channels=channels, width=0.1)
    assert notes == []
    assert model.training
    assert logits(model(torch.rand(2, channels, size, size))).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg11_bn", 9_228_362), ("vgg16_bn", 14_724_042), ("resnet18", 11_173_962), ("resnet20", 272_474)],
)
def test_parameters_at_full_width(name, parameters):
    with torch.device("meta"):
        model, _ = build_model(name, classes=10, channels=3, width=1)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(64, 1, 64), (64, 0.25, 16), (16, 0.3, 5), (16, 0.1, 4), (64, 1.5, 96)]
)
def test_scaled(channels, width, expected):
    assert scaled(channels, width) == expected


def test_width_scales_every_layer():
    model = reference(name="resnet18", width=0.25)
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16] * 5 + [32] * 5 + [64] * 5 + [128] * 5
    assert model.classifier.in_features == 128


def test_the_seed_decides_the_weights():
    first, second = reference().state_dict(), reference().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resnet_halves_the_image_twice_in_resnet20():
    model = reference()
    with torch.no_grad():
        assert model.blocks(model.conv(torch.rand(1, 1, 32, 32))).shape[2:] == (8, 8)


def test_transformers_classifier_from_a_config_alone(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    model, notes = build_model(str(tmp_path), classes=7, channels=3, width=1)
    assert notes == []
    assert model.training
    assert logits(model(torch.rand(2, 3, 8, 8))).shape == (2, 7)


def test_transformers_classifier_with_weights(tmp_path):
    saved = ResNetForImageClassification(tiny_config()).half()
    saved.save_pretrained(tmp_path)
    model, notes = build_model(str(tmp_path), classes=4, channels=3, width=1)
    assert notes == []
    assert model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(
        torch.equal(v.to(model.state_dict()[k].dtype), model.state_dict()[k]) for k, v in saved.state_dict().items()
    )


def test_transformers_classifier_for_other_classes_starts_anew(tmp_path, caplog):
    saved = ResNetForImageClassification(tiny_config())
    saved.save_pretrained(tmp_path)
    model, notes = build_model(str(tmp_path), classes=7, channels=3, width=1)
    assert notes == [f"classifier.1.weight is for 4 classes in {tmp_path}: a new one for 7 classes starts at random"]
    assert logits(model(torch.rand(2, 3, 8, 8))).shape == (2, 7)
    key = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(model.state_dict()[key], saved.state_dict()[key])


def test_transformers_network_without_a_classifier(tmp_path):
    ResNetModel(tiny_config()).save_pretrained(tmp_path)
    _, notes = build_model(str(tmp_path), classes=7, channels=3, width=1)
    assert notes == [f"classifier.1.weight is missing in {tmp_path}: a new one for 7 classes starts at random"]


def test_incomplete_weights_are_an_error(tmp_path):
    ResNetForImageClassification(tiny_config()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["resnet.embedder.embedder.convolution.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="has no tensor resnet") as caught:
        build_model(str(tmp_path), classes=4, channels=3, width=1)
    one_line(caught)


def test_greyscale_for_an_rgb_model(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="greyscale") as caught:
        build_model(str(tmp_path), classes=4, channels=1, width=1)
    assert "greyscale (1) data" in one_line(caught)
    assert "RGB (3) images" in one_line(caught)


def _no_config(path):
    (path / "model.safetensors").write_bytes(b"")


def _text_model(path):
    BertConfig().save_pretrained(path)


def _damaged_config(path):
    (path / "config.json").write_text("{")


def _damaged_weights(path):
    ResNetForImageClassification(tiny_config()).save_pretrained(path)
    (path / "model.safetensors").write_bytes(b"nonsense" * 10)


def _pickled_weights(path):
    tiny_config().save_pretrained(path)
    torch.save({}, path / "pytorch_model.bin")


@pytest.mark.parametrize("spoil", [_no_config, _text_model, _damaged_config, _damaged_weights, _pickled_weights])
def test_a_directory_that_cannot_be_loaded(spoil, tmp_path):
    spoil(tmp_path)
    with pytest.raises(RunError, match="cannot be loaded") as caught:
        build_model(str(tmp_path), classes=4, channels=3, width=1)
    assert str(tmp_path) in one_line(caught)


@pytest.mark.parametrize("name", ["resnet19", "./nowhere", "/no/such/directory", "a/b/c", "owner/"])
def test_unknown_names(name):
    with pytest.raises(ConfigError, match="choose vgg11_bn") as caught:
        build_model(name, classes=4, channels=3, width=1)
    assert repr(name) in one_line(caught)


def test_hub_out_of_reach(offline):
    with pytest.raises(RunError, match="check name and network, or give a local directory") as caught:
        build_model("nobody/nothing", classes=4, channels=3, width=1)
    assert "'nobody/nothing'" in one_line(caught)


def test_hub_model_from_the_cache(offline):
    repository = offline / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    ResNetForImageClassification(tiny_config()).save_pretrained(repository / "snapshots" / ("0" * 40))
    _, notes = build_model("owner/tiny", classes=5, channels=3, width=1)
    assert notes == ["classifier.1.weight is for 4 classes in owner/tiny: a new one for 5 classes starts at random"]


def test_load_weights_round_trip(tmp_path):
    source, target = reference(), build_model("resnet20", classes=5, channels=1, width=0.25)[0]
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") == []
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in target.state_dict().items())


def test_load_weights_keeps_a_classifier_for_other_classes(tmp_path):
    file = tmp_path / "w.safetensors"
    source, target = reference(classes=10), reference(classes=5)
    nn.init.ones_(source.conv.weight)
    save_file(source.state_dict(), file)
    fresh = target.classifier.weight.clone(), target.classifier.bias.clone()
    assert load_weights(target, file) == [
        f"classifier.weight is for 10 classes in {file}: a new one for 5 classes starts at random"
    ]
    assert torch.equal(target.conv.weight, source.conv.weight)
    assert torch.equal(target.classifier.weight, fresh[0])
    assert torch.equal(target.classifier.bias, fresh[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.0.bn1.weight"), "has no tensor blocks.0.bn1.weight"),
        (lambda t: t.pop("classifier.bias"), "has no tensor classifier.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "has a tensor extra, which the model lacks"),
        (lambda t: t.update({"conv.weight": torch.zeros(4, 3, 3, 3)}), r"tensor conv.weight is \[4, 3, 3, 3\] in"),
        (lambda t: t.update({"conv.weight": torch.zeros(8, 1, 3, 3)}), r"tensor conv.weight is \[8, 1, 3, 3\] in"),
        (lambda t: t.update({"classifier.weight": torch.zeros(5, 9)}), r"tensor classifier.weight is \[5, 9\] in"),
    ],
)
def test_load_weights_that_do_not_fit(change, message, tmp_path):
    tensors = {key: tensor + 1 for key, tensor in reference().state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    target = reference()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(RunError, match=message) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    assert "give weights of this very model and width" in one_line(caught)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 10])
def test_load_weights_from_a_missing_or_damaged_file(content, tmp_path):
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read") as caught:
        load_weights(reference(), tmp_path / "w.safetensors")
    assert str(tmp_path / "w.safetensors") in one_line(caught)


def test_load_weights_from_a_truncated_file(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(reference().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read"):
        load_weights(reference(), file)


def test_logits():
    tensor = torch.rand(2, 3)
    assert logits(tensor) is tensor
    assert logits(ImageClassifierOutput(logits=tensor)) is tensor
    with pytest.raises(RunError, match="a tuple without logits"):
        logits((tensor,))


def test_replace_classifier():
    model = reference(classes=10)
    assert replace_classifier(model, 3) == "classifier was for 10 classes: a new one for 3 classes starts at random"
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(RunError, match="classifier 0 is no linear layer: give data with its 4 classes"):
        replace_classifier(nn.Sequential(nn.Conv2d(1, 4, 1)), 3)
