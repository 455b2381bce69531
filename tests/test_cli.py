"""The command: what it prints, and what it says and leaves alone when it cannot do what is asked."""

import dataclasses
import io
import json
import shlex
import shutil
import subprocess
import sys

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

import earlyworm.experiments.bench
from earlyworm import cli
from earlyworm.comparisons.grid import OPTIONS
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.run_directory import RunDirectory
from runs import classifier_directory, options, small, tree
from settings import OTHER


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path_factory):
    """No network, empty caches, and a folder of its own to work in."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    datasets.disable_progress_bars()  # which the command does in a process of its own


@pytest.fixture
def refused(command):
    """Runs the command; it must fail with one line, write nothing, and change nothing. Returns that line."""

    def run_refused(*arguments, status=1):
        before = tree(".")
        found, output, errors = command(*arguments)
        assert found == status
        assert output == ""
        assert errors.startswith("earlyworm: ")
        assert errors.count("\n") == 1
        assert errors.endswith("\n")
        assert tree(".") == before
        return errors

    return run_refused


@pytest.fixture
def copied(whole):
    """A copy of a finished run, in the folder of work."""
    path = RunDirectory.of(whole).path
    shutil.copytree(path, f"runs/{path.name}")
    return RunDirectory.of(small("runs"))


HEAVY = ["torch", "numpy", "accelerate", "datasets", "transformers", "sklearn", "plotly", "jinja2", "PIL", "pyarrow"]


def test_help_and_wrong_options_import_nothing_heavy(fresh_python):
    found = fresh_python(f"""
        import contextlib, io, sys
        from earlyworm.cli import main
        cases = [["--help"], ["run", "--help"], [], ["rnu"], ["run", "--ratoi", "1"], ["run", "--ratio", "7"],
                 ["run", "--model", "resnet19"], ["run", "--method", "x"], ["report", "--help"], ["inspect"],
                 ["compare", "--help"], ["compare", "--methods", "x"], ["compare", "--seeds", "0", "0"],
                 ["compare", "--grid", "nowhere.toml"], ["compare", "--jobs", "100000"]]
        statuses = []
        for case in cases:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    statuses.append(main(case))
                except SystemExit as leaving:
                    statuses.append(leaving.code)
        print(statuses, sorted(set({HEAVY!r}) & set(sys.modules)))
    """)
    assert found == "[0, 0, 2, 2, 2, 1, 1, 2, 0, 2, 0, 1, 1, 1, 1] []\n"


def test_help_names_every_option(command):
    status, output, errors = command("run", "--help")
    assert (status, errors) == (0, "")
    assert all(f"--{field.name.replace('_', '-')}" in output for field in dataclasses.fields(RunConfig))
    status, output, errors = command("--help")
    assert (status, errors) == (0, "")
    assert all(name in output for name in ("run", "compare", "report", "inspect"))
    status, output, errors = command("compare", "--help")
    assert (status, errors) == (0, "")
    assert all(f"--{name.replace('_', '-')}" in output for name in ("methods", "seeds", "grid", "jobs", *OPTIONS))
    assert "Epochs in all, search and retraining together" in " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize("config", [RunConfig(), RunConfig(**OTHER), RunConfig(limit=3, retrain_epochs=2, chi=0.5)])
def test_the_command_of_a_configuration_gives_that_configuration(config):
    assert cli.parse(shlex.split(config.command())[1:]) == dataclasses.replace(config, overwrite=False)


# A run.


def test_run(command):
    status, output, errors = command(*options("runs"))
    assert status == 0
    directory = RunDirectory.of(small("runs"))
    result = directory.read_result()
    kinds = [line.split()[0] for line in errors.splitlines()]
    assert kinds == ["stage", *["check"] * 4, "stage", *["recovered"] * 3]
    assert output.splitlines()[-1] == f"report: {directory.report}"
    assert f"{result.accuracy.final:.1%}" in output
    assert "The ticket emerged at epoch 1.5" in output
    assert directory.report.read_text().lower().lstrip().startswith("<!doctype html>")

    # Again: the same page and the same words, and nothing is trained.
    written = tree("runs")
    status, again, errors = command(*options("runs"))
    assert (status, again) == (0, output)
    assert errors == f"note this run has ended before: {directory.path} (--overwrite starts afresh)\n"
    assert tree("runs") == written


def test_a_run_whose_ticket_does_not_emerge(command):
    arguments = options("runs", epsilon=0.0, epochs=2, search_epochs=1)
    status, output, _ = command(*arguments)
    assert status == 0
    assert "No ticket emerged within 1 epoch" in output
    assert "--force-draw" in output
    assert "epsilon is 0" in output
    status, output, _ = command(*arguments, "--force-draw")
    assert status == 0
    assert "drawn by force" in output
    assert "report: " in output


@pytest.mark.parametrize("output", ["with [brackets] and :smile:", "x[/b]", "ä ö"])
def test_paths_are_printed_as_they_are(output, command):
    status, printed, _ = command(*options(output, epochs=2, search_epochs=1))
    assert status == 0
    assert printed.splitlines()[-1].startswith(f"report: {output}/vgg11_bn-")


def test_only_the_first_process_tells(command, copied, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    status, output, _ = command(*options("runs"))
    assert (status, output) == (0, "")
    assert not copied.report.exists()


# Report and inspect.


def test_report(command, copied):
    status, output, errors = command("report", str(copied.path))
    assert (status, output, errors) == (0, f"{copied.report}\n", "")
    page = copied.report.read_text()
    copied.report.unlink()
    command("report", f"{copied.path}/")
    assert copied.report.read_text() == page


def test_a_path_that_cannot_be_shown(copied, monkeypatch):
    shutil.copytree(copied.path, "ö\udcff")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stdout)
    assert cli.main(["report", "ö\udcff"]) == 0
    assert stdout.buffer.getvalue() == b"\\xf6\\udcff/report.html\n"


def test_inspect_a_run(command, copied):
    before = tree(".")
    status, output, errors = command("inspect", str(copied.path))
    assert (status, errors) == (0, "")
    assert "vgg11_bn on digits, method worm, seed 0" in output
    assert "172 of 344 units" in output
    assert tree(".") == before


def test_inspect_several_runs(command, copied):
    unfinished = copied.path.with_name("unfinished")
    shutil.copytree(copied.path, unfinished)
    (unfinished / "result.json").unlink()
    status, output, errors = command("inspect", str(copied.path.parent))
    assert (status, errors) == (0, "")
    second, first = output.splitlines()  # by their names
    assert first.startswith(f"{copied.path.name}: A ticket emerged at epoch 1.5: ")
    assert second.startswith(f"unfinished: {unfinished} has no result yet: finish the run with earlyworm run ")


def test_inspect_a_ticket(command, copied):
    status, output, errors = command("inspect", str(copied.ticket))
    assert (status, errors) == (0, "")
    assert "A ticket that emerged after 18 optimizer steps" in output
    assert "172 of 344 channels (pruning ratio 0.5)" in output
    assert all(f"{kept} of {units}" in output for kept, units in copied.read_result().layers.values())


@pytest.mark.parametrize("what", ["report", "inspect"])
@pytest.mark.parametrize("case", ["nothing", "a folder", "a file", "unfinished", "damaged", "binary", "settings"])
def test_what_is_no_run(case, what, refused, copied):
    path = copied.path
    if case == "nothing":
        path = "nothing"
    elif case == "a folder":
        path = copied.path.parent.parent
    elif case == "a file":
        path = copied.config
    elif case == "unfinished":
        copied.result.unlink()
    elif case == "damaged":
        copied.result.write_text(copied.result.read_text()[:300])
    elif case == "binary":
        copied.result.write_bytes(bytes(range(256)))
    else:
        copied.result.write_text(copied.result.read_text().replace('"window"', '"windows"'))
    line = refused(what, str(path))
    assert str(path) in line
    if case == "unfinished":
        assert f"finish the run with {small('runs').command().removesuffix(' --output runs')}\n" in line


@pytest.mark.parametrize("what", ["report", "inspect"])
@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("accuracy", {"final": "x"}, "final is 'x'"),
        ("accuracy", {"recovery": [0.5, None, "x"]}, "recovery is (0.5, None, 'x')"),
        ("search", {"history": []}, "history is empty"),
        ("search", {"emerged": 1}, "emerged is 1"),
        ("dense", {"macs": None}, "macs is None"),
        ("layers", {"features.0": [1]}, "layers is {'features.0': (1,)"),
    ],
)
def test_a_result_of_other_types(part, changes, said, what, refused, copied):
    values = json.loads(copied.result.read_text())
    values[part].update(changes)
    copied.result.write_text(json.dumps(values))
    line = refused(what, str(copied.path))
    assert f"{copied.result} is damaged" in line
    assert said in line


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"{}"])
def test_inspect_a_damaged_ticket(damage, refused, copied):
    copied.ticket.write_bytes(damage(copied.ticket.read_bytes()))
    line = refused("inspect", str(copied.ticket))
    assert str(copied.ticket) in line
    assert "draw it again" in line


def test_inspect_other_safetensors(refused, copied):
    assert "not a ticket" in refused("inspect", str(copied.model))


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["{run, compare, report, inspect}"]),
        (["rnu"], ["rnu", "did you mean run?"]),
        (["run", "--ratoi", "0.5"], ["--ratoi", "did you mean --ratio?"]),
        (["run", "--pruning-ratio", "0.5"], ["--pruning-ratio", "did you mean --ratio?"]),
        (["run", "--search_epoch", "5"], ["--search", "did you mean --search-epochs?"]),
        (["run", "--xyzzy"], ["--xyzzy", "earlyworm run --help"]),
        (["run", "extra"], ["extra"]),
        (["run", "--method", "wrom"], ["'wrom'", "'early-bird', 'constant', 'greedy', 'worm'", "did you mean worm?"]),
        (["run", "--optimizer", "adam"], ["'adam'", "did you mean adamw?"]),
        (["run", "--ratio", "half"], ["--ratio", "'half'", "float"]),
        (["run", "--window", "2.5"], ["--window", "'2.5'", "int"]),
        (["run", "--seed"], ["--seed"]),
        (["compare", "--seed", "1"], ["--seed", "did you mean --seeds?", "earlyworm compare --help"]),
        (["compare", "--xyzzy"], ["--xyzzy", "earlyworm compare --help"]),
        (["compare", "--seeds", "one"], ["--seeds", "one"]),
        (["compare", "--launcher", "slurm"], ["'slurm'", "submitit"]),
        (["report"], ["PATH", "required", "earlyworm --help"]),
        (["inspect", "a", "b"], ["b"]),
    ],
)
@pytest.mark.parametrize("drawing", [True, False])  # how the option parser draws, which depends on the terminal
def test_wrong_options(arguments, parts, drawing, refused, monkeypatch):
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: drawing)
    line = refused(*arguments, status=2)
    assert all(part in line for part in parts), line
    assert "---" not in line
    assert "──" not in line


def test_wrong_options_in_a_terminal(fresh_python):
    found = fresh_python("""
        import os, subprocess, sys
        terminal, inside = os.openpty()
        for words in (["--ratoi", "0.5"], ["--method", "wrom"], ["--window", "2.5"]):
            command = [sys.executable, "-m", "earlyworm.cli", "run", *words]
            environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "40"}
            done = subprocess.run(command, stdout=inside, stderr=subprocess.PIPE, env=environment)
            print(done.stderr.decode(), end="")
    """)
    starts = [
        "Unrecognized options: --ratoi, 0.5; did you",
        "invalid choice 'wrom' for",
        "Error parsing --window: invalid",
    ]
    for line, start in zip(found.splitlines(), starts, strict=True):
        assert line.startswith(f"earlyworm: {start}")
        assert line.endswith(" (earlyworm run --help lists the options)")
        assert line.isprintable()
        assert not set("│─╭╯") & set(line)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "resnet-18"], ["unknown model 'resnet-18'", "did you mean 'resnet18'?"]),
        (["--data", "digit"], ["unknown data 'digit'", "did you mean 'digits'?"]),
        (["--data", "parquet"], ["unknown data 'parquet'", "parquet:DIR"]),
        (["--ratio", "1"], ["ratio is 1.0", "in [0, 1)"]),
        (["--ratio", "-0.5"], ["ratio is -0.5", "in [0, 1)"]),
        (["--ratio", "nan"], ["ratio is nan", "finite"]),
        (["--ratio", "0.99"], ["0.99 removes", "at least 1 of each of the", "at most"]),
        (["--window", "1"], ["window is 1", "at least 2"]),
        (["--epsilon", "1.5"], ["epsilon is 1.5", "in [0, 1]"]),
        (["--epsilon", "-1"], ["epsilon is -1.0", "in [0, 1]"]),
        (["--chi", "2"], ["chi is 2.0", "in [0, 1]"]),
        (["--epochs", "3", "--search-epochs", "3"], ["search_epochs is 3", "below epochs (3)"]),
        (["--batch-size", "1"], ["cannot be trained on 1 examples at once", "raise batch_size"]),
        (["--accumulation", "5"], ["accumulation is 5", "a divisor of batch_size (16)"]),
        (["--track", "tensorbord"], ["no tracker 'tensorbord'", "did you mean 'tensorboard'?"]),
        (["--weights", "nowhere.safetensors"], ["nowhere.safetensors", "give a safetensors file"]),
        (["--weights", "two\nlines"], ["two lines", "give a safetensors file"]),
        (["--data", "parquet:nowhere"], ["'nowhere'", "check the path"]),
        (["--data", "imagefolder:nowhere"], ["'nowhere'", "check the path"]),
        (["--data", "owner/pictures"], ["'owner/pictures'", "check name and network", "parquet:DIR"]),
        (["--data", "cifar10"], ["'cifar10'", "check name and network", "parquet:DIR"]),
        (["--model", "owner/network"], ["'owner/network'", "check name and network", "local directory"]),
        (["--model", "."], ["'.'", "config.json"]),
    ],
)
def test_impossible_runs(arguments, parts, refused):
    line = refused("run", *shlex.split(small("runs").command())[2:], *arguments)
    assert all(part in line for part in parts), line


def picture(path, size=(8, 8), mode="L", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with ten images of each of two classes."""
    for label in "ab":
        for number in range(10):
            picture(tmp_path / "images" / label / f"{number}.png", seed=number)
    return tmp_path / "images"


def test_other_libraries_show_nothing(folder, tmp_path, monkeypatch):
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = classifier_directory(tmp_path / "tiny", pretrained=True)
    changes = {"model": model, "data": f"imagefolder:{folder}", "limit": None, "epochs": 2, "search_epochs": 1}
    command = [sys.executable, "-m", "earlyworm.cli", *options("runs", force_draw=True, **changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kinds = [line.split()[0] for line in done.stderr.splitlines()]
    assert kinds == ["note", "stage", "check", "check", "stage", "recovered"]
    assert "classifier.1.weight is for 10 classes" in done.stderr
    assert "report: runs/" in done.stdout


def test_images_of_mixed_sizes(refused, folder):
    picture(folder / "a" / "3.png", size=(9, 8))
    line = refused(*options("runs", limit=None, data=f"imagefolder:{folder}"))
    assert "are mixed, 8x8 L and 8x9 L" in line or "are mixed, 8x9 L and 8x8 L" in line
    assert "one size" in line


def test_images_of_mixed_modes(refused, folder):
    picture(folder / "a" / "3.png", mode="RGB")
    assert "are mixed" in refused(*options("runs", limit=None, data=f"imagefolder:{folder}"))


def test_greyscale_for_a_model_of_rgb_images(refused, tmp_path):
    line = refused(*options("runs", model=classifier_directory(tmp_path / "tiny", channels=3)))
    assert "greyscale (1) data" in line
    assert "RGB (3) images" in line
    assert "convert the data, or change the model" in line


def test_a_folder_without_images(refused, tmp_path):
    (tmp_path / "images").mkdir()
    assert f"'imagefolder:{tmp_path}/images'" in refused(*options("runs", data=f"imagefolder:{tmp_path}/images"))


def parquet(path, count=20):
    images = [Image.fromarray(np.full((8, 8), number, dtype=np.uint8)) for number in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"image": images, "label": [number % 2 for number in range(count)]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(path)


def test_an_empty_split(refused, tmp_path):
    parquet(tmp_path / "set" / "train.parquet")
    parquet(tmp_path / "set" / "test.parquet", count=0)
    line = refused(*options("runs", data=f"parquet:{tmp_path}/set"))
    assert "the test split of" in line
    assert "is empty: add images" in line


def test_missing_parquet(refused, tmp_path):
    line = refused(*options("runs", data=f"parquet:{tmp_path}"))
    assert f"no train*.parquet in {tmp_path}" in line


@pytest.mark.parametrize("split", ["train", "test"])
def test_truncated_parquet(split, refused, tmp_path):
    parquet(tmp_path / "train.parquet")
    parquet(tmp_path / "test.parquet")
    path = tmp_path / f"{split}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    line = refused(*options("runs", data=f"parquet:{tmp_path}"))
    assert f"{path} cannot be read" in line
    assert "get the file again" in line


def test_a_loss_that_is_not_finite(command):
    status, output, errors = command(*options("runs", lr=1e25))
    assert (status, output) == (1, "")
    *progress, line = errors.splitlines()
    assert all(shown.startswith(("stage ", "check ")) for shown in progress)
    assert line.startswith("earlyworm: the loss became nan in epoch 1 of the search at learning rate 1e+25: lower --lr")


def test_a_loss_that_is_not_finite_leaves_a_run_that_goes_on(command, whole, monkeypatch):
    real, calls = earlyworm.experiments.bench.train_steps, []

    def poisoned(model, *args, **rest):
        calls.append(rest["stage"])
        if len(calls) == 3:
            next(model.parameters()).data.fill_(float("inf"))
        return real(model, *args, **rest)

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", poisoned)
    status, _, errors = command(*options("runs"))
    assert status == 1
    assert "the last checkpoint stays" in errors.splitlines()[-1]
    status, output, errors = command(*options("runs"))
    assert status == 0
    assert errors.splitlines()[0] == "stage name=search epochs=3 done=1"
    assert f"{RunDirectory.of(whole).read_result().accuracy.final:.1%}" in output


def test_a_ticket_for_another_model(refused, copied, untrained):
    copied.config.write_text(copied.config.read_text().replace('"width": 0.125', '"width": 0.0625'))
    line = refused(*options("others", weights=str(copied.path), width=0.0625))
    assert "the ticket is for another model: 'features.0.weight' is [8, 1, 3, 3] in the ticket and [4, 1, 3, 3]" in line


def test_an_output_folder_that_is_a_file(refused):
    with open("mine", "w") as file:
        file.write("precious")
    line = refused(*options("mine"))
    assert "mine/" in line
    assert "choose another --output" in line


def test_an_output_folder_that_holds_something_else(refused):
    path = RunDirectory.of(small("runs")).path
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("precious")
    line = refused(*options("runs"))
    assert f"{path} holds something that is not a run: choose another --output" in line
    assert refused(*options("runs"), "--overwrite") == line


@pytest.mark.parametrize("output", ["/proc", "n" * 300])
def test_an_output_folder_that_cannot_be_made(output, refused):
    assert "choose another --output" in refused(*options(output))


def test_a_page_that_cannot_be_written(refused, copied):
    copied.report.mkdir()
    line = refused("report", str(copied.path))
    assert str(copied.report) in line


def test_a_path_that_no_file_system_takes(refused):
    assert "File name too long" in refused("inspect", "n" * 300)
    assert "File name too long" in refused("report", "n" * 300)


def test_ctrl_c(command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(earlyworm.experiments.bench, "train_steps", interrupt)
    for more, same in (((), "the same command"), (("--overwrite",), "the same command without --overwrite")):
        status, output, errors = command(*options("runs"), *more)
        assert (status, output) == (130, "")
        assert errors.splitlines()[-1] == f"earlyworm: stopped; {same} goes on from the last checkpoint"


def test_a_reader_who_leaves(copied, fresh_python):
    found = fresh_python(f"""
        import os, subprocess, sys
        for words in (["inspect", {str(copied.ticket)!r}], ["report", {str(copied.path)!r}]):
            read, write = os.pipe()
            os.close(read)
            code = "import sys; from earlyworm.cli import main; sys.exit(main())"
            done = subprocess.run([sys.executable, "-c", code, *words], stdout=write, stderr=subprocess.PIPE)
            print(done.returncode, done.stderr.decode())
            os.close(write)
    """)
    assert found == "1 \n1 \n"


def test_without_a_standard_output(copied, fresh_python):
    found = fresh_python(f"""
        import subprocess, sys
        for words in (["inspect", {str(copied.ticket)!r}], ["report", {str(copied.path)!r}]):
            command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "earlyworm.cli", *words]
            done = subprocess.run(command, stderr=subprocess.PIPE)
            print(done.returncode, done.stderr.decode())
    """)
    assert found == "0 \n0 \n"
