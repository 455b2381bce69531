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
    assert "the ticket emerged after" in printed
    cut_out, retrained = (float(number) for number in re.findall(r"(\d\.\d+) held-out", printed))
    assert retrained > max(cut_out, 0.9)
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "ticket.safetensors"}


def make_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """What the first lines of the README leave behind, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def train_step(model, batch, optimizer):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    model, x = make_network(), torch.randn(16, 3, 8, 8)
    names = {
        "model": model, "x": x, "loader": x.split(2), "epochs": 20, "train_step": train_step,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "torch": torch, "lr": 0.01, "Net": make_network,
    }  # fmt: skip
    exec(PYTHON[0], names)
    return names


def test_the_lines_of_the_readme_find_a_ticket(loop):
    assert loop["small"][0].out_channels == 4
    assert isinstance(loop["search"], ew.TicketSearch)
    assert loop["ticket"].emerged
    assert loop["step"] % 2 == 0


def test_the_lines_about_training_loops_run(loop):
    text = (ROOT / "docs" / "training_loops.md").read_text()
    span, after, watch, save, load, frozen, draw = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(span, loop)
    assert loop["emergence"] == ew.Emergence(window=9)

    # The schedule goes on where it was.
    plain = torch.optim.SGD(loop["model"].parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=20)
    rates = []
    for epoch in range(20):
        if epoch == 7:
            exec(after, {**loop, "schedule": schedule}, here := {})
        if epoch >= 7:
            here["optimizer"].step()
            rates.append((here["optimizer"].param_groups[0]["lr"], plain.param_groups[0]["lr"]))
            here["rest"].step()
        plain.step()
        schedule.step()
    assert all(mine == pytest.approx(whole) for mine, whole in rates)
    assert rates[-1][0] < 0.01

    exec(watch, {**loop, "evaluate": lambda small: small[0].out_channels}, seen := {})
    assert seen["accuracy"] == 4
    loop["optimizer"] = torch.optim.SGD(loop["model"].parameters(), lr=0.01)
    exec(save, loop)
    loop["model"] = loop["Net"]()
    loop["optimizer"] = torch.optim.SGD(loop["model"].parameters(), lr=0.01)
    before = loop["search"]
    loop["search"] = ew.TicketSearch(loop["model"], loop["x"], truncation=ew.Fade())
    exec(load, loop)
    assert loop["search"].mask == before.mask
    exec(draw, loop)
    assert loop["small"][0].out_channels == 4
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), make_network())
    model[0].requires_grad_(False)
    exec(frozen, names := {"model": model, "x": torch.randn(2, 3, 8, 8), "ew": ew})
    assert names["search"].units.sizes == {"2.0": 8}
    assert names["search"].units.skipped == {"0": "frozen"}


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
