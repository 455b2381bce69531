"""The command on text: it sees what the data are, and says in one line what cannot be."""

import shlex
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from test_config import TEXT

from earlyworm import cli
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.run_directory import RunDirectory
from runs import classifier_directory, tree
from texts import encoder_directory, reviews, small_text, write_all, write_csv


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The encoder and the reviews of small runs, in the folder of work."""
    monkeypatch.chdir(tmp_path)
    return write_all(".")


def test_run_inspect_and_report(command):
    config = small_text(".", "runs", epochs=2, search_epochs=1, epsilon=0.5)
    words = shlex.split(config.command())[1:]
    assert "--task" not in words
    status, output, errors = command(*words)
    assert status == 0
    directory = RunDirectory.of(config)
    assert "stage name=search" in errors
    assert "recovered epoch=1 " in errors
    assert "latency per text of 8 tokens" in output
    assert output.splitlines()[-1] == f"report: {directory.report}"
    assert max(map(len, output.splitlines()[:14])) <= 80
    status, again, errors = command(*words)
    assert (status, again) == (0, output)
    assert errors.startswith("note this run has ended before")
    status, output, _ = command("inspect", str(directory.path))
    assert status == 0
    assert "120 training and 30 held-out texts" in output
    assert "--overwrite" not in output
    status, output, _ = command("inspect", str(directory.ticket))
    assert (status, "of 56 heads and neurons" in output) == (0, True)
    page = directory.report.read_text()
    assert command("report", str(directory.path))[0] == 0
    assert directory.report.read_text() == page


@pytest.mark.parametrize(
    "config",
    [
        RunConfig.for_text(), RunConfig(**{**TEXT, "overwrite": False}), RunConfig.for_text(units=("weights",)),
        RunConfig.for_text(units=("weights",), epsilon=0.1, score="taylor"),
        RunConfig.for_text(data="csv:x.csv", epochs=3, search_epochs=2, lr=1e-3),
    ],
)  # fmt: skip
def test_the_command_of_a_configuration_gives_that_configuration(config):
    assert cli.parse(shlex.split(config.command())[1:]) == config


def test_columns_tell_what_the_data_are():
    for name, column in (("texts", pyarrow.array(["good"])), ("pictures", pyarrow.array([b"png"]))):
        table = pyarrow.table({"x": column, "label": [0]})
        Path(name).mkdir()
        pyarrow.parquet.write_table(table, Path(name) / "train.parquet")
    encoder = ["--model", "encoder"]
    assert cli.parse(["run", *encoder, "--data", "parquet:texts"]) == RunConfig.for_text(
        model="encoder", data="parquet:texts"
    )
    assert cli.parse(["run", *encoder, "--data=parquet:texts", "--units", "weights"]).epsilon == 0.01
    assert cli.parse(["run", *encoder, "--data", "parquet:pictures"]).task == "images"
    # Reference networks take images, and what is said need not be seen.
    assert cli.parse(["run", "--model", "resnet18", "--data", "parquet:nowhere"]).task == "images"
    assert cli.parse(["run", *encoder, "--task", "text", "--data", "parquet:nowhere"]).task == "text"


def test_help_of_text_has_the_defaults_of_text(capsys):
    with pytest.raises(SystemExit):
        cli.parse(["run", "--data", "csv:x", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "for text 5e-5. (default: 5e-05)" in words


def bad_files():
    classifier_directory("pictures", pretrained=True)
    encoder_directory("small", vocab_size=10)
    encoder_directory("bare", tokenizer=False)
    texts, labels = reviews(20)
    write_csv(Path("negative.csv"), texts, [-1, *labels[1:]])
    write_csv(Path("empty.csv"), ["", *texts[1:]], labels)
    write_csv(Path("two.csv"), texts, labels, names=("body", "stars"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data", "csv:gone.csv"], ["no file or directory 'gone.csv'", "check the path"]),
        (["--data", "parquet:gone"], ["no directory 'gone'", "check the path"]),
        (["--data", "csv:negative.csv"], ["text 0 of", "has label -1", "leave it out"]),
        (["--data", "csv:empty.csv"], ["text 0 of", "is empty in column 'text'"]),
        (["--data", "csv:two.csv"], ["no column of labels", "(it has body, stars)", "--label-column"]),
        (["--data", "csv:two.csv", "--text-columns", "bdy"], ["no column of text 'bdy'", "choose from body"]),
        (["--model", "bare"], ["the tokenizer of 'bare'", "no vocabulary"]),
        (["--model", "small"], ["19 words", "its network knows 10", "the tokenizer that it was trained with"]),
        (["--model", "pictures"], ["'pictures'", "cannot be loaded", "a text model"]),
        (["--model", "resnet18"], ["reviews.csv", "give a --model of transformers"]),
        (["--max-length", "33"], ["max_length is 33", "at most 32"]),
        (["--warmup", "1"], ["warmup is 1.0", "in [0, 1)"]),
        (["--units", "weights", "weights"], ["units is weights weights", "each once"]),
        (["--head-ratio", "0.99"], ["0.99", "at least 1 of each"]),
        (["--augment", "flip"], ["augment is flip", "none for text"]),
        (["--data", "digits"], ["cannot be loaded", "give an image classifier"]),
    ],
)
def test_impossible_runs(arguments, parts, command):
    bad_files()
    words = shlex.split(small_text(".", "runs").command())[1:]
    if "--data" in arguments:
        del words[words.index("--data") : words.index("--data") + 2]
    if "--model" in arguments:
        del words[words.index("--model") : words.index("--model") + 2]
    before = tree(".")
    status, output, errors = command(*words, *arguments)
    assert (status, output) == (1, "")
    lines = [line for line in errors.splitlines() if line.startswith("earlyworm: ")]
    assert len(lines) == 1
    assert errors.endswith(lines[0] + "\n")
    assert all(part in lines[0] for part in parts), errors
    assert tree(".") == before
