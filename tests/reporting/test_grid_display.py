"""What the command shows while it compares: plain lines, or one live display for all runs."""

import io

import pytest
from rich.console import Console

from comparisons import made_up, outcome_of, undone
from earlyworm.comparisons.grid import Grid
from earlyworm.reporting.grid_display import GridDisplay

CHECK = {"epoch": 2.5, "loss": 0.75, "distance_mean": 0.123, "distance_max": 0.2, "accuracy": 0.9}


class Clock:
    """A time that passes when it is told."""

    now = 0.0

    def __call__(self):
        return self.now


def play(console, models=("resnet20",)):
    """A comparison of eight runs: two were there, one is done after a minute, one fails, two are going on."""
    clock = Clock()
    grid = Grid.of({"methods": ["early-bird", "worm"], "seeds": [0, 1, 2, 3], "models": list(models)})
    with GridDisplay(console, clock) as display:
        display.planned(grid.cells())
        display.ended(0, outcome_of(made_up("early-bird", 0)))
        display.ended(1, outcome_of(made_up("worm", 0)))
        display.started(2)
        display.started(3)
        clock.now = 5.0
        display.told(2, "stage", ["search", 20.0, 0.0])
        display.told(3, "stage", ["search", 20.0, 0.0])
        display.told(2, "progress", [1.5, 2.0])
        clock.now = 65.0
        display.ended(2, outcome_of(made_up("early-bird", 1, epoch=8.0, final=0.9375)))
        display.started(4)
        display.ended(3, undone("worm", 1, error="the loss became nan [in epoch 1] :smile: " + "lower --lr " * 9))
        display.started(5)
        clock.now = 85.0
        display.told(4, "stage", ["search", 20.0, 0.0])
        display.told(4, "check", [CHECK])
        display.told(5, "note", ["two masks"])
        display.told(5, "stage", ["search", 20.0, 0.0])
        display.told(5, "check", [CHECK])
        display.told(5, "stage", ["retrain", 12.0, 2.0])
        display.told(5, "recovered", [3.0, 0.5, 0.9])
        if display._live is not None:
            display._live.refresh()


def lines(**changes):
    file = io.StringIO()
    play(Console(file=file, force_terminal=False, width=80), **changes)
    assert "\x1b" not in file.getvalue()
    return file.getvalue().splitlines()


def test_without_a_terminal_there_are_plain_lines():
    found = lines()
    assert found[:5] == [
        "grid cells=8",
        "note 2 of 8 runs were there already",
        "started method=early-bird seed=1",
        "started method=worm seed=1",
        # Five runs are left, one of which is going on for a minute, which is what the only one that has ended took.
        "done method=early-bird seed=1 epoch=8 accuracy=0.9375 finished=3 of=8 left=0:04:00",
    ]
    # One line however long, and what looks like markup stays as it is.
    assert found[6].startswith(
        "failed worm, seed 1, resnet20 on digits, ratio 0.5: the loss became nan [in epoch 1] :smile: lower --lr"
    )
    assert found[5::2] == ["started method=early-bird seed=2", "started method=worm seed=2"]


def test_the_setting_is_told_where_there_are_several():
    assert lines(models=("resnet20", "vgg11_bn"))[2] == (
        "started method=early-bird seed=1 model=resnet20 data=digits ratio=0.5"
    )


def test_a_terminal_gets_one_live_display():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100, _environ={"TERM": "xterm"})
    play(console)
    text = file.getvalue()
    assert "note 2 of 8 runs were there already" in text
    assert "failed worm, seed 1" in text
    assert not any(word in text for word in ("started", "cells=", "done method"))
    last = [" ".join(line.split()) for line in text.rsplit("\x1b[2K", 1)[-1].splitlines()]
    # Two wait, two are going on and have just begun: of these, as many at a time, a minute each.
    assert last[0].startswith("3 done, 2 running, 2 waiting, 1 failed")
    assert last[0].endswith("left 0:02:00")
    assert last[1] == "early-bird seed 2 search epoch 2.50 of 20 distance 0.123 loss 0.750"
    assert last[2].startswith("worm seed 2 retrain epoch 3.00 of 12 loss 0.500")


def test_a_run_that_has_not_begun_says_so():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100, _environ={"TERM": "xterm"})
    with GridDisplay(console) as display:
        display.planned(Grid.of({"methods": "worm", "seeds": 7}).cells())
        display.started(0)
    last = file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "0 done, 1 running, 0 waiting, 0 failed" in last
    assert "left -" in last
    assert "worm  seed 7  starts" in last


def test_a_dumb_terminal_gets_plain_lines():
    file = io.StringIO()
    play(Console(file=file, force_terminal=True, color_system=None, _environ={"TERM": "dumb"}))
    assert "started method=worm seed=1" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_runs_without_a_ticket_are_done_too():
    file = io.StringIO()
    with GridDisplay(Console(file=file, force_terminal=False, width=80)) as display:
        display.planned(Grid.of({"methods": "worm", "seeds": 0}).cells())
        display.started(0)
        display.ended(0, outcome_of(made_up("worm", 0, epoch=None)))
    assert file.getvalue().splitlines()[-1].startswith("done method=worm seed=0 epoch=- accuracy=- finished=1 of=1")


def test_standard_output_stays_free_and_the_terminal_is_given_back(capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with GridDisplay() as display:
        display.planned(())
    assert capsys.readouterr() == ("", "grid cells=0\n")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), GridDisplay(console):
        raise KeyboardInterrupt
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1
