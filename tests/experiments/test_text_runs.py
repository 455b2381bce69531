"""Whole runs on text: what they write and tell, that they resume bit for bit, and what they refuse."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

import earlyworm.experiments.bench
import earlyworm.experiments.run
from earlyworm.errors import ConfigError, DataError, RunError
from earlyworm.experiments.data import load_data
from earlyworm.experiments.networks import build_network, load_network
from earlyworm.experiments.run import run
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.reporting.run_report import describe_run, summary, write_report
from earlyworm.tickets.ticket import Ticket
from runs import (
    Recorder,
    copied,
    elsewhere,
    forget_garbage,
    held_out_accuracy,
    interrupt_at_step,
    outcome,
    refused,
    run_interrupted,
    tree,
)
from texts import VOCABULARY, encoder_directory, reviews, small_text, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The encoder and the reviews of small runs."""
    return write_all(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A small run on text that nobody has interrupted: its settings, and what its observer was told."""
    forget_garbage()
    config, recorder = small_text(folder, tmp_path_factory.mktemp("finished")), Recorder()
    run(config, recorder)
    return config, recorder


@pytest.fixture
def whole(finished):
    """The settings of a run that nobody has interrupted; its directory must be left as it is."""
    return finished[0]


def test_the_result_agrees_with_itself(finished):
    config, recorder = finished
    directory = RunDirectory.of(config)
    result, ticket = directory.read_result(), Ticket.load(directory.ticket)
    search = result.search
    assert (search.emerged, search.epoch, search.triggered_epoch) == (True, 32 / 15, 24 / 15)
    chis, means = [check.chi for check in search.history], [check.distance_mean for check in search.history]
    assert chis[:2] == [1, 1]  # the window is not full
    assert chis[2] == means[2]  # greedy, until WORM triggers
    assert chis[3:] == [0.01, 0.01]
    assert [check.truncated for check in search.history] == [0, 0, 14, 14, 14]
    assert result.accuracy.final == 1
    assert len(result.accuracy.recovery) == 2
    data = result.data
    assert (data.train, data.test, data.classes, data.shape) == (120, 30, 2, (8,))
    assert (result.ticket.units, result.ticket.units_kept) == (56, 42)
    assert result.layers == {name: (int(kept.sum()), len(kept)) for name, kept in ticket.mask.kept.items()}
    assert sum(kept for name, (kept, units) in result.layers.items() if units == 4) == 6  # of 8 heads
    assert 0 < result.ticket.parameters < result.dense.parameters
    assert 0 < result.ticket.macs < result.dense.macs
    assert search.train_flops == pytest.approx(32 * 8 * 3 * 2 * result.dense.macs, rel=0.15)
    assert set(result.versions) >= {"transformers", "tokenizers"}
    assert recorder.told("check") == [(check,) for check in search.history]
    assert recorder.told("note") == []


def test_macs_are_those_of_the_encoder_at_the_typical_length(whole):
    result = RunDirectory.of(whole).read_result()
    hidden, neurons, length = 16, 24, 8
    layer = length * (4 * hidden * hidden + 2 * hidden * neurons) + 2 * length * length * hidden
    assert result.dense.macs == 2 * layer + hidden * hidden + hidden * 2  # pooler, classifier; no embeddings


def test_the_network_loads_without_what_it_was_made_from(whole, folder, tmp_path, fresh_python):
    copy = copied(whole, tmp_path / "copy")
    directory = RunDirectory.of(copy)
    assert {path.name for path in directory.network.iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    config = json.loads(directory.config.read_text())
    config["model"], config["data"] = "gone/encoder", "csv:gone.csv"
    result = json.loads(directory.result.read_text())
    result["config"] |= {"model": "gone/encoder", "data": "csv:gone.csv"}
    directory.config.write_text(json.dumps(config))
    directory.result.write_text(json.dumps(result))
    found = fresh_python(f"""
        import torch
        from transformers import AutoTokenizer
        from earlyworm.experiments.networks import load_network
        model = load_network({str(directory.path)!r}).eval()
        tokenizer = AutoTokenizer.from_pretrained({str(directory.network)!r})
        texts = ["the film was good", "a very bad plot", "bad", "it was good and the end"]
        with torch.inference_mode():
            print(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(1).tolist())
    """)
    assert found == "[1, 0, 0, 1]\n"


def test_the_saved_network_has_the_recorded_accuracy(whole):
    result = RunDirectory.of(whole).read_result()
    assert held_out_accuracy(whole) == result.accuracy.final
    network = load_network(RunDirectory.of(whole).path)
    assert sum(p.numel() for p in network.parameters()) == result.ticket.parameters


def test_words_speak_of_texts(whole, tmp_path):
    result = RunDirectory.of(whole).read_result()
    words = describe_run(result)
    assert "120 training and 30 held-out texts of 2 classes" in words
    assert "MACs per text of 8 tokens" in words
    assert "score              magnitude (default taylor)" in words  # the defaults are those for text
    assert "task" not in words
    assert "It keeps 42 of 56 units (75.0%)." in summary(result)
    write_report(result, tmp_path / "page.html")
    page = " ".join((tmp_path / "page.html").read_text().split())
    assert "held-out texts" in page
    assert "8 (tokens)" in page
    assert "images" not in page.partition("plotly")[0]


# Interruptions.


@pytest.mark.parametrize("event", range(8))
def test_interrupted_at_every_event(event, finished, tmp_path):
    config = elsewhere(finished[0], tmp_path)
    assert len(finished[1].events) == 9  # two stages, five checks, two epochs of retraining
    run_interrupted(config, event)
    assert outcome(config) == outcome(finished[0])


def test_interrupted_in_the_middle_of_an_epoch(whole, tmp_path, monkeypatch):
    config = elsewhere(whole, tmp_path)
    interrupt_at_step(20, config, monkeypatch)
    run(config)
    assert outcome(config) == outcome(whole)


def test_interrupted_while_the_network_is_written(whole, tmp_path, monkeypatch):
    config, real = elsewhere(whole, tmp_path), RunDirectory.write

    def write(directory, path, content):
        if path.name == "tokenizer.json":
            raise KeyboardInterrupt
        real(directory, path, content)

    monkeypatch.setattr(RunDirectory, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    with pytest.raises(RunError, match="has no result yet"):
        load_network(RunDirectory.of(config).path)
    monkeypatch.undo()
    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", None)  # everything else is there already
    run(config)
    assert outcome(config) == outcome(whole)
    assert tree(RunDirectory.of(config).network) == tree(RunDirectory.of(whole).network)


@pytest.mark.parametrize(
    "changes",
    [
        {"units": ("weights",), "precision": "bf16", "score": "auto"},
        {"units": ("neurons",), "score": "taylor", "accumulation": 2, "retrain_from": "rewind"},
        {"units": ("heads", "neurons"), "head_ratio": 0.5, "method": "early-bird", "retrain_from": "reinitialise"},
    ],
)
def test_other_runs_are_resumed_bit_for_bit_too(changes, folder, tmp_path):
    configs = [small_text(folder, tmp_path / name, epsilon=0.5, retrain_epochs=2, **changes) for name in "ab"]
    recorder = Recorder()
    result = run(configs[0], recorder)
    assert result.search.emerged
    assert held_out_accuracy(configs[0]) == result.accuracy.final
    # At the last check, and at the last epoch of retraining.
    run_interrupted(configs[1], len(recorder.told("check")), 3)
    assert outcome(configs[1]) == outcome(configs[0])


# What the options do.


def test_single_weights_stay_where_they_are_but_at_zero(folder, tmp_path):
    config = small_text(folder, tmp_path, units=("weights",), epsilon=0.5, retrain_epochs=1, ratio=0.5)
    result = run(config)
    assert result.ticket.parameters == result.dense.parameters
    assert (result.ticket.units_kept, result.ticket.units) == (512, 1024)  # of the queries and keys of two layers
    assert "single weights are held at zero: nothing gets smaller" in result.notes[-1]
    network = load_network(RunDirectory.of(config).path)
    pruned = [p for name, p in network.named_parameters() if name.endswith(("query.weight", "key.weight"))]
    assert sum(int((p == 0).sum()) for p in pruned) == 512


def test_held_out_texts_are_never_trained_on(whole, tmp_path, monkeypatch):
    def poisoned(config):
        data = load_data(config)
        tokens = data.test.columns["input_ids"]
        test = dataclasses.replace(data.test, columns={"input_ids": tokens.flip(0)})
        return dataclasses.replace(data, test=test, test_labels=1 - data.test_labels)

    monkeypatch.setattr(earlyworm.experiments.run, "load_data", poisoned)
    config = elsewhere(whole, tmp_path)
    result = run(config)
    assert result.accuracy.final != RunDirectory.of(whole).read_result().accuracy.final
    assert outcome(config)[1] == outcome(whole)[1]


def test_batches_are_padded_to_their_longest_text(folder, tmp_path, monkeypatch):
    shapes, real = [], earlyworm.experiments.bench.train_steps

    def watched(model, *args, **options):
        handle = model.register_forward_pre_hook(
            lambda _, args, inputs: shapes.append(tuple(inputs["attention_mask"].sum(1).tolist())), with_kwargs=True
        )
        loss = real(model, *args, **options)
        handle.remove()
        return loss

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", watched)
    run(small_text(folder, tmp_path, epochs=2, search_epochs=1))
    assert len(shapes) == 15
    assert len({max(lengths) for lengths in shapes}) > 3
    assert all(max(lengths) - min(lengths) <= 4 for lengths in shapes)


def test_pairs_and_three_classes(folder, tmp_path):
    first, second = reviews(60)[0], reviews(60, seed=1)[0]
    rows = [f"{a},{b},{['yes', 'no', 'maybe'][n % 3]}" for n, (a, b) in enumerate(zip(first, second, strict=True))]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.csv").write_text("\n".join(["premise,hypothesis,label", *rows]) + "\n")
    recorder = Recorder()
    config = small_text(
        folder, tmp_path / "runs", data=f"csv:{tmp_path}/pairs", max_length=24, epochs=2, search_epochs=1,
        force_draw=True,
    )  # fmt: skip
    result = run(config, recorder)
    assert result.data.classes == 3
    assert recorder.told("note")[0] == (
        f"classifier.weight is for 2 classes in {folder}/encoder: a new one for 3 classes starts at random",
    )
    assert held_out_accuracy(config) == result.accuracy.final


def test_another_run_goes_on_from_the_ticket(whole, folder, tmp_path):
    config = small_text(folder, tmp_path, weights=str(RunDirectory.of(whole).path), epochs=2, search_epochs=1)
    result = run(config)
    earlier = RunDirectory.of(whole).read_result()
    assert result.dense.parameters == earlier.ticket.parameters
    assert result.search.history[0].accuracy == earlier.accuracy.final


# What cannot be done is found out before anything is written.


def test_models_and_data_that_do_not_fit(folder, tmp_path):
    runs, other = tmp_path / "runs", tmp_path / "other"
    for model, kind, parts in (
        (encoder_directory(other / "small", vocab_size=10), DataError, ("19 words", "knows 10")),
        (encoder_directory(other / "short", max_position_embeddings=8), ConfigError, ("max_length is 12", "most 8")),
        (encoder_directory(other / "bare", tokenizer=False), RunError, ("the tokenizer of", "no vocabulary")),
        (encoder_directory(other / "large", words=[*VOCABULARY, "more"]), DataError, ("20 words", "knows 19")),
    ):
        refused(small_text(folder, runs, model=model), kind, *parts)
    refused(small_text(folder, runs, head_ratio=0.9), ConfigError, "0.9")
    assert not runs.exists()


def test_a_finished_run_is_not_overwritten_by_an_impossible_one(whole, folder, tmp_path):
    config = copied(whole, tmp_path / "runs")
    shutil.copytree(folder, tmp_path / "texts")
    before = tree(tmp_path / "runs")
    moved = dataclasses.replace(config, data=f"csv:{tmp_path}/texts/gone.csv", overwrite=True)
    refused(moved, DataError, "gone.csv", "check the path")
    assert tree(tmp_path / "runs") == before


def test_an_encoder_without_a_classifier(folder, tmp_path):
    from transformers import BertForMaskedLM, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    dense = load_data(small_text(folder, tmp_path))
    masked = BertForMaskedLM.from_pretrained(f"{folder}/encoder")
    masked.save_pretrained(tmp_path / "masked")  # it has no pooler either, and a head that is not used
    config = small_text(folder, tmp_path, model=str(tmp_path / "masked"))
    model, notes = build_network(config, classes=2, shape=dense.shape)
    assert notes == [f"classifier.weight is missing in {tmp_path}/masked: a new one for 2 classes starts at random"]
    key = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.state_dict()[key], masked.state_dict()[key])
    assert isinstance(model, nn.Module)
    assert model.training
    roberta = RobertaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    RobertaModel(roberta, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    config = small_text(folder, tmp_path, model=str(tmp_path / "roberta"))
    _, notes = build_network(config, classes=4, shape=dense.shape)
    assert notes == [
        f"classifier.out_proj.weight is missing in {tmp_path}/roberta: a new one for 4 classes starts at random"
    ]
