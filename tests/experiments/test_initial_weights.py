"""Where a run starts: files, earlier runs, networks of transformers."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from earlyworm import compact
from earlyworm.errors import DataError, RunError
from earlyworm.experiments.image_data import load_images
from earlyworm.experiments.networks import build_network, digest_weights, load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.tickets.ticket import Ticket
from runs import (
    Recorder,
    classifier_directory,
    copied,
    elsewhere,
    held_out_accuracy,
    outcome,
    refused,
    run_interrupted,
    same_tensors,
    small,
    tree,
)


def test_weights_from_a_file(whole, tmp_path):
    network, _ = build_network(whole, classes=10, shape=(1, 8, 8), seed=77)
    tensors = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "same.safetensors")
    save_file(
        {**tensors, "classifier.weight": torch.zeros(3, 64), "classifier.bias": torch.zeros(3)},
        tmp_path / "three.safetensors",
    )
    same, notes = build_network(
        elsewhere(whole, tmp_path, weights=str(tmp_path / "same.safetensors")), classes=10, shape=(1, 8, 8)
    )
    assert notes == []
    assert same_tensors(same.state_dict(), tensors)

    config = small(tmp_path / "runs", weights=str(tmp_path / "three.safetensors"), retrain_from="rewind")
    recorder = Recorder()
    result = run(config, recorder)
    note = (
        f"classifier.weight is for 3 classes in {tmp_path}/three.safetensors: a new one for 10 classes starts at random"
    )
    assert result.notes == (note,)
    assert recorder.told("note") == [(note,)]
    # The network of the run needs that file no longer.
    (tmp_path / "three.safetensors").unlink()
    assert held_out_accuracy(config) == result.accuracy.final


@pytest.mark.parametrize("event", [4, 8])  # in the search, in retraining
def test_a_run_does_not_go_on_with_other_weights(event, tmp_path):
    weights = tmp_path / "weights.safetensors"
    config = small(tmp_path / "runs", weights=str(weights))
    files = []
    for seed in (77, 78):
        network, _ = build_network(small(tmp_path), classes=10, shape=(1, 8, 8), seed=seed)
        save_file(network.state_dict(), weights)
        files.append(weights.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run(config, Recorder(stop=event))
    before = tree(tmp_path / "runs")
    weights.write_bytes(files[0])
    refused(config, RunError, str(RunDirectory.of(config).path), "was begun with other weights", "--overwrite")
    assert tree(tmp_path / "runs") == before
    weights.write_bytes(files[1])
    assert run(config).weights == digest_weights(config)


def test_the_digest_of_weights(whole, tmp_path):
    assert digest_weights(whole) == ""
    bare, model = (classifier_directory(tmp_path / str(some), pretrained=some) for some in (False, True))
    earlier = RunDirectory.of(whole)
    starts = [{"weights": str(earlier.path)}, {"weights": str(earlier.ticket)}, {"model": model}]
    digests = [digest_weights(small(tmp_path, **start)) for start in starts]
    assert len(set(digests)) == 3
    assert all(len(digest) == 16 for digest in digests)
    assert digest_weights(small(tmp_path, weights=str(earlier.model))) == digests[0]
    assert digest_weights(small(tmp_path, model=bare)) == ""


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model": "resnet18"}, ("resnet18", "model vgg11_bn")),
        ({"width": 0.25}, ("width 0.125", "--width is 0.25")),
    ],
)
def test_weights_of_another_run_that_does_not_fit(changes, parts, whole, tmp_path, untrained):
    config = small(tmp_path, weights=str(RunDirectory.of(whole).path), **changes)
    refused(config, RunError, *parts)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("case", ["missing", "text", "other width", "not a run", "unfinished"])
def test_weights_that_cannot_be_used(case, whole, tmp_path, untrained):
    path = tmp_path / "weights"
    if case == "text":
        path.write_text("text")
    elif case == "other width":
        network, _ = build_network(small(tmp_path, width=0.25), classes=10, shape=(1, 8, 8))
        save_file(dict(network.state_dict()), path)
    elif case in ("not a run", "unfinished"):
        path.mkdir()
    if case == "unfinished":
        shutil.copy(RunDirectory.of(whole).config, path / "config.json")
    before = tree(tmp_path)
    refused(small(tmp_path / "runs", weights=str(path)), RunError, str(path))
    assert tree(tmp_path) == before


def test_weights_of_another_run(whole, tmp_path):
    earlier = RunDirectory.of(whole).path
    config = small(tmp_path, weights=str(earlier), ratio=0.25)
    network, notes = build_network(config, classes=10, shape=(1, 8, 8))
    assert notes == []
    assert same_tensors(network.state_dict(), load_network(earlier).state_dict())
    result = run(config)
    assert result.dense.parameters == RunDirectory.of(whole).read_result().ticket.parameters
    assert held_out_accuracy(config) == result.accuracy.final
    assert result.search.history[0].accuracy == RunDirectory.of(whole).read_result().accuracy.final


def test_what_began_with_another_run_loads_from_anywhere(whole, tmp_path, monkeypatch):
    earlier = RunDirectory.of(copied(whole, tmp_path / "runs")).path
    monkeypatch.chdir(tmp_path)
    config = small("runs", weights=f"runs/{earlier.name}", ratio=0.25)
    expected = run(config).ticket.parameters
    monkeypatch.chdir(tmp_path.parent)
    path = tmp_path / RunDirectory.of(config).path
    assert sum(parameter.numel() for parameter in load_network(path).parameters()) == expected
    shutil.move(earlier, tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"began with runs/{earlier.name}, which is gone: put it back, or beside"):
        load_network(path)


@pytest.fixture
def two_classes(tmp_path):
    """Pictures of two classes, of the size of digits."""
    from PIL import Image

    data, generator = load_images("digits", limit=None), torch.Generator().manual_seed(0)
    for label in (0, 1):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        own = data.train_images[data.train_labels == label]
        for number in torch.randperm(len(own), generator=generator)[:60].tolist():
            Image.fromarray(own[number, 0].numpy()).save(tmp_path / "pictures" / str(label) / f"{number}.png")
    return f"imagefolder:{tmp_path / 'pictures'}"


def test_weights_of_another_run_for_other_classes(whole, tmp_path, two_classes, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    earlier = RunDirectory.of(whole).path
    config = small(tmp_path / "runs", weights=str(earlier), data=two_classes, retrain_from="rewind", limit=None)
    networks = []
    for _ in range(2):
        torch.rand(3)  # whatever happened before
        network, notes = build_network(config, classes=2, shape=(1, 8, 8))
        networks.append(network.state_dict())
        assert notes == ["classifier was for 10 classes: a new one for 2 classes starts at random"]
    assert same_tensors(*networks)
    assert not same_tensors(
        networks[0], build_network(dataclasses.replace(config, seed=1), classes=2, shape=(1, 8, 8))[0].state_dict()
    )
    result = run(config)
    assert result.notes == ("classifier was for 10 classes: a new one for 2 classes starts at random",)
    assert result.data.classes == 2
    assert "has no test split" in result.data.split
    assert held_out_accuracy(config) == result.accuracy.final


# Networks of transformers.


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_classifier_of_transformers(pretrained, tmp_path):
    model = classifier_directory(tmp_path / "tiny", pretrained=pretrained)
    configs = [small(tmp_path / name, model=model, epsilon=0.5, retrain_epochs=2) for name in ("whole", "again")]
    result = run(configs[0])
    assert result.search.emerged
    assert result.ticket.parameters < result.dense.parameters
    run_interrupted(configs[1], 2, 3)  # at the second check, and at the first epoch of retraining
    assert outcome(configs[1]) == outcome(configs[0])
    assert held_out_accuracy(configs[0]) == result.accuracy.final


def test_a_run_of_transformers_that_began_with_another_one(tmp_path):
    model = classifier_directory(tmp_path / "tiny")
    options = {"model": model, "method": "random", "epochs": 1, "search_epochs": 1, "retrain_epochs": 1}
    first = small(tmp_path, **options)
    run(first)
    second = small(tmp_path, weights=str(RunDirectory.of(first).path), **options)
    result = run(second)
    assert result.ticket.parameters < RunDirectory.of(first).read_result().ticket.parameters
    assert held_out_accuracy(second) == result.accuracy.final


def test_pretrained_weights_are_where_training_starts_and_where_it_is_rewound_to(tmp_path, first_weights):
    model = classifier_directory(tmp_path / "tiny", pretrained=True)
    pretrained = load_file(tmp_path / "tiny" / "model.safetensors")
    for number, retrain_from in enumerate(("rewind", "reinitialise")):
        config = small(tmp_path, model=model, epsilon=0.3, retrain_epochs=1, retrain_from=retrain_from)
        initial, _ = build_network(config, classes=10, shape=(1, 8, 8))
        assert same_tensors(dict(sorted(initial.state_dict().items())), dict(sorted(pretrained.items())))
        run(config)
        cut = compact(initial, Ticket.load(RunDirectory.of(config).ticket)).state_dict()
        assert same_tensors(first_weights[number], cut) == (retrain_from == "rewind")
        weights = [key for key, tensor in cut.items() if tensor.dim() > 1]
        assert any(torch.equal(first_weights[number][key], cut[key]) for key in weights) == (retrain_from == "rewind")


def test_greyscale_images_for_a_network_of_rgb_images(tmp_path, untrained):
    model = classifier_directory(tmp_path / "tiny", channels=3)
    before = tree(tmp_path)
    refused(small(tmp_path / "runs", model=model), DataError, "greyscale (1) data", "RGB (3) images")
    assert tree(tmp_path) == before
