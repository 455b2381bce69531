"""What the README and the examples show is true: it runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer

import earlyworm as ew
from earlyworm.cli import parse
from earlyworm.integrations.transformers import load_pretrained
from sentences import Sentences, arguments, make_bert

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
COMMANDS = [line.partition("#")[0].strip() for _, block in BLOCKS for line in block.splitlines()]


def test_the_example_runs_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "own_loop.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "the ticket emerged at epoch" in printed
    dense, small = (float(number) for number in re.findall(r"(\d\.\d+) held-out", printed))
    assert small > dense - 0.1
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "ticket.safetensors"}


def test_the_lines_of_the_readme_find_a_ticket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def make_network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )

    model = make_network()
    x = torch.randn(16, 3, 8, 8)

    def train_one_epoch(model, loader, optimizer):
        optimizer.zero_grad()
        model(loader).square().mean().backward()
        optimizer.step()

    names = {
        "model": model, "x": x, "loader": x, "epochs": 20, "train_one_epoch": train_one_epoch,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "torch": torch, "lr": 0.01, "Net": make_network,
    }  # fmt: skip
    exec(PYTHON[0], names)
    assert names["small"][0].out_channels == 4
    assert isinstance(names["search"], ew.TicketSearch)


def test_the_lines_for_the_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(make_bert(), arguments("out", num_train_epochs=10), train_dataset=Sentences())
    sooner = PYTHON[1].replace("every=100", "every=10, emergence=ew.Emergence(3, epsilon=1.0)")
    exec(sooner, {"trainer": trainer})
    small = load_pretrained("small")
    assert small.num_parameters() == trainer.model.num_parameters() < make_bert().num_parameters()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("earlyworm ")])
def test_the_commands_of_the_readme_have_valid_options(line):
    assert parse(shlex.split(line)[1:]) is not None


def test_the_first_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_file_that_a_document_links_to_exists():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
