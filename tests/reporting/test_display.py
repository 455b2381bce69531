"""What the command shows: progress (plain lines or one live bar), the table, and sentences."""

import dataclasses
import io

import pytest
from rich.console import Console

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import CheckRecord, RunResult
from earlyworm.reporting.display import Display
from earlyworm.reporting.run_report import describe_run, result_table, summary
from results import EMERGED, FORCED, NOT_EMERGED, SAMPLES

FIRST = CheckRecord(
    epoch=0.0, distance_mean=None, distance_max=None, chi=1.0, truncated=0, loss=None, accuracy=0.1
)  # fmt: skip
LATER = CheckRecord(
    epoch=6.5, distance_mean=0.12, distance_max=0.1834, chi=0.003, truncated=480, loss=0.5, accuracy=0.9
)  # fmt: skip


def play(console: Console) -> None:
    with Display(console) as display:
        display.stage("search", 20, 0)
        display.check(FIRST)
        display.note("the classifier [bold] was replaced :smile: " + "because its classes differ " * 6)
        display.progress(6.25, 0.6)
        display.check(LATER)
        display.stage("retrain", 13, 2.5)
        display.recovered(3, 0.25, 0.95)


def test_without_a_terminal_there_are_plain_lines():
    file = io.StringIO()
    play(Console(file=file, force_terminal=False, width=80))
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert lines[:2] == [
        "stage name=search epochs=20 done=0",
        "check epoch=0 loss=- accuracy=0.1000 distance_mean=- distance_max=- chi=1 truncated=0",
    ]
    # One line however long, and what looks like markup stays as it is.
    assert lines[2].startswith("note the classifier [bold] was replaced :smile: because")
    assert lines[3:] == [
        "check epoch=6.5 loss=0.5000 accuracy=0.9000 distance_mean=0.1200 distance_max=0.1834 chi=0.003 truncated=480",
        "stage name=retrain epochs=13 done=2.5",
        "recovered epoch=3 loss=0.2500 accuracy=0.9500",
    ]


def test_each_line_is_out_at_once():
    class File(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    file = File()
    with Display(Console(file=file, force_terminal=False)) as display:
        display.note("here")
        assert file.flushed == "note here\n"


def test_standard_output_stays_free(capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with Display() as display:
        display.note("here")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "note here\n")


def test_a_dumb_terminal_gets_plain_lines():
    file = io.StringIO()
    play(Console(file=file, force_terminal=True, color_system=None, _environ={"TERM": "dumb"}))
    assert "check epoch=6.5" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_a_terminal_gets_one_live_display():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=80, _environ={"TERM": "xterm"})
    with Display(console) as display:
        display.stage("search", 20, 0)
        display.progress(6.25, 0.6)
        display.check(LATER)
        display._live.refresh()
        frame = file.getvalue()
        assert "search" in frame
        assert "epoch 6.50 of 20" in frame
        assert "loss 0.500  accuracy 90.0%  distance 0.120, max 0.183  chi 0.003  truncated 480" in frame
        display.note("above the bar")
        display.stage("retrain", 13, 2.5)
        display.recovered(3, 0.25, 0.95)
    last = file.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "note above the bar" in file.getvalue()
    assert "check epoch" not in file.getvalue()
    # What belongs to the search is gone once retraining begins.
    assert "retrain" in last
    assert "epoch 3.00 of 13" in last
    assert "loss 0.250  accuracy 95.0%" in last
    assert "distance" not in last


def test_epochs_done_before_a_resume_do_not_count_as_speed():
    display = Display(Console(file=io.StringIO(), force_terminal=False))
    now = [0.0]
    display._progress.get_time = lambda: now[0]
    display.stage("search", 20, 10)
    for epoch in (11, 12, 13):
        now[0] += 60
        display.progress(epoch, 1.0)
    assert display._progress.tasks[0].time_remaining == pytest.approx(7 * 60, abs=1)


def test_an_error_passes_through_and_the_terminal_is_given_back():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), Display(console):
        raise KeyboardInterrupt
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1


def rendered(result: RunResult) -> str:
    file = io.StringIO()
    Console(file=file, width=80, force_terminal=False).print(result_table(result))
    return file.getvalue()


def test_table_of_a_ticket():
    lines = [line.split() for line in rendered(EMERGED).splitlines()]
    for expected in (
        "accuracy when pruned 96.1% 70.8% -25.3 points",
        "accuracy after retraining - 97.2% -",
        "units 96 48 0.50",
        "parameters 933 k 301 k 0.32",
        "MACs per image 21.3 M 9.1 M 0.43",
        "latency per image 3.21 ms 1.84 ms 0.57",
        "FLOPs, search - 841 G -",
        "FLOPs, retraining - 789 G -",
        "FLOPs, all training 2.76 T 1.63 T 0.59",
        "time, all training - 4 min 12 s -",
        "accuracy after each epoch of retraining: 88.1% 95.3% 97.2%",
    ):
        assert expected.split() in lines


@pytest.mark.parametrize("result", SAMPLES.values(), ids=SAMPLES)
def test_table_fits_80_columns(result):
    assert all(len(line) <= 80 and "…" not in line for line in rendered(result).splitlines())


def test_table_without_a_ticket():
    text = rendered(NOT_EMERGED)
    assert "this run" in text
    assert "1.84 T" in text
    assert "units" not in text
    assert "retraining" not in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.00032, "0.32 ms"), (0.0321, "32.1 ms"), (12.34, "12.3 s"), (252.4, "4 min 12 s"), (7500, "2 h 05 min")],
)
def test_times_read_well(seconds, expected):
    total = dataclasses.replace(EMERGED.total, seconds=seconds)
    assert expected in rendered(dataclasses.replace(EMERGED, total=total))


def test_numbers_round_into_the_next_unit():
    dense = dataclasses.replace(EMERGED.dense, parameters=999_600, macs=950)
    text = " ".join(rendered(dataclasses.replace(EMERGED, dense=dense)).split())
    assert "parameters 1 M 301 k" in text
    assert "MACs per image 950 9.1 M" in text


def test_summary_of_a_ticket():
    assert summary(EMERGED).splitlines() == [
        "The ticket emerged at epoch 9 (WORM triggered at epoch 6).",
        "It keeps 48 of 96 units (50.0%).",
        "Held-out accuracy: 96.1% before pruning, 70.8% right after, 97.2% after 3 epochs of retraining from the "
        "weights at emergence.",
        "All training took 4 min 12 s on cpu and 1.63 T FLOPs, 59% of what dense training takes for as many epochs.",
        f"Note: {EMERGED.notes[0]}",
    ]


def test_summary_of_a_fade_that_never_triggered():
    config = dataclasses.replace(EMERGED.config, method="fade")
    search = dataclasses.replace(EMERGED.search, method="fade", triggered_epoch=None)
    assert summary(dataclasses.replace(EMERGED, config=config, search=search)).startswith(
        "The ticket emerged at epoch 9 (Fade never triggered: no mean distance to the latest masks was below 0.3 "
        "without having grown)."
    )


def test_summary_without_a_ticket_names_the_cures():
    first = summary(NOT_EMERGED).splitlines()[0]
    assert first == (
        "No ticket emerged within 20 epochs: smallest window maximum reached 0.138, epsilon is 0.1 (WORM never "
        "triggered: no mean distance was below 0.15); raise --search-epochs or --epsilon, lower --check-every, or take "
        "the newest mask with --force-draw."
    )


def test_a_small_maximum_before_the_window_is_full_does_not_count():
    early = dataclasses.replace(NOT_EMERGED.search.history[1], distance_max=0.01)
    records = (NOT_EMERGED.search.history[0], early, *NOT_EMERGED.search.history[2:])
    search = dataclasses.replace(NOT_EMERGED.search, history=records)
    assert "reached 0.138," in summary(dataclasses.replace(NOT_EMERGED, search=search))
    search = dataclasses.replace(search, history=records[:4])
    assert "the window never filled" in summary(dataclasses.replace(NOT_EMERGED, search=search))


def test_summary_marks_a_forced_draw():
    first = summary(FORCED).splitlines()[0]
    assert "No ticket emerged within 20 epochs" in first
    assert first.endswith("the newest mask was drawn by force at epoch 20.")
    assert "--force-draw" not in first


def test_the_last_epoch_of_retraining_may_be_a_part_of_one():
    config = RunConfig(epochs=12, search_epochs=10)
    search = dataclasses.replace(EMERGED.search, epoch=9.25)
    text = summary(dataclasses.replace(EMERGED, config=config, search=search))
    assert "emerged at epoch 9.25" in text
    assert "after 2.75 epochs of retraining" in text


def test_other_methods_say_nothing_of_worm():
    config = RunConfig(method="early-bird")
    search = dataclasses.replace(EMERGED.search, method="early-bird", triggered_epoch=None)
    text = summary(dataclasses.replace(EMERGED, config=config, search=search))
    assert "emerged at epoch 9." in text
    assert "WORM" not in text


def test_description_of_a_run():
    text = describe_run(EMERGED)
    assert text.isascii()
    for expected in (
        "vgg16_bn on digits, method worm, seed 0, on cpu",
        "lr                 0.05 (default 0.01)",
        "################....  13 of 16",
        "######..............  5 of 16",
        "WORM triggered at epoch 6",
        "MACs per image",
    ):
        assert expected in text
    assert "momentum" not in text


def test_description_of_a_run_with_default_settings_and_no_ticket():
    text = describe_run(dataclasses.replace(NOT_EMERGED, config=RunConfig()))
    assert "Settings that differ from the defaults\n  none\n" in text
    assert "Units kept" not in text
    assert "this run" in text
