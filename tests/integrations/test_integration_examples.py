"""The examples of the integrations run, and go on after an interruption; on real sentences where there are any."""

import os
import re
import runpy
from pathlib import Path

import lightning.pytorch
import pyarrow
import pyarrow.parquet
import pytest
import torch

from earlyworm import Ticket
from earlyworm.integrations.callback import SearchCallback
from earlyworm.integrations.transformers import load_pretrained
from modules import QUIET
from sentences import Sentences

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = Path(os.environ.get("EARLYWORM_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")]


@pytest.fixture(params=["made-up", "sst2"])
def folder(request, tmp_path):
    """A folder of sentences."""
    if request.param == "sst2":
        if not (REAL / "sst2" / "train.parquet").exists():
            pytest.skip("no local copy of the data: set EARLYWORM_DATA")
        return REAL / "sst2"
    for split, count in (("train", 320), ("validation", 80)):
        data = Sentences(count, seed=count)
        sentences = [" ".join(f"word{i}" for i in ids) for ids in data.ids.tolist()]
        table = pyarrow.table({"sentence": sentences, "label": data.labels.tolist()})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    return tmp_path


def run(name, *args, monkeypatch, interrupted_at=()):
    """Run an example, again and again if it is interrupted after so many checks of the search."""
    main = runpy.run_path(str(EXAMPLES / name))["main"]
    check = SearchCallback._check
    for at in interrupted_at:

        def fail(self, epoch_ends, at=at):
            if len(self.history) == at:
                raise RuntimeError("the power is off")
            return check(self, epoch_ends)

        monkeypatch.setattr(SearchCallback, "_check", fail)
        with pytest.raises(RuntimeError, match="the power is off"):
            main(*args)
    monkeypatch.setattr(SearchCallback, "_check", check)
    main(*args)


def shown(capsys):
    """What is printed at the end: steps until emergence, held-out accuracy, parameters of the two networks."""
    printed = capsys.readouterr().out
    steps = re.findall(r"emerged after (\d+) steps", printed)
    accuracy, small, dense = re.findall(r"(\d\.\d+) held-out accuracy, ([\d,]+) of ([\d,]+) parameters", printed)[-1]
    return int(steps[-1]), float(accuracy), int(small.replace(",", "")), int(dense.replace(",", ""))


def test_trainer(folder, tmp_path, monkeypatch, capsys):
    run("trainer.py", folder, tmp_path / "whole", None, 320, monkeypatch=monkeypatch)
    whole = shown(capsys)
    assert whole[2] < whole[3]
    assert whole[1] > 0.55
    run("trainer.py", folder, tmp_path / "parts", None, 320, monkeypatch=monkeypatch, interrupted_at=(3, 4))
    assert shown(capsys) == whole
    first, second = (load_pretrained(tmp_path / name / "small").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_lightning_module(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lightning, "Trainer", quiet_trainer)
    run("lightning_module.py", folder, tmp_path, 320, monkeypatch=monkeypatch, interrupted_at=(3, 4))
    steps, accuracy, small, dense = shown(capsys)
    assert small < dense
    assert accuracy > 0.5
    assert Ticket.load(tmp_path / "ticket.safetensors").step == steps
    run("lightning_module.py", folder, tmp_path, 320, monkeypatch=monkeypatch)  # it has ended
    assert shown(capsys) == (steps, accuracy, small, dense)


def quiet_trainer(**options):
    """The trainer of the example without bars, tables and a logger."""
    return lightning.pytorch.Trainer(
        **options, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
