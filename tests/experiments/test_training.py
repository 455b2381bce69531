import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from earlyworm.errors import ConfigError, RunError
from earlyworm.experiments import training
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.image_data import ImageData, epoch_order, normalise
from earlyworm.experiments.run import make_accelerator
from earlyworm.experiments.run_directory import RunDirectory
from earlyworm.experiments.training import (
    Pace,
    Progress,
    check_batch,
    evaluate,
    learning_rate,
    make_optimizer,
    stable_seed,
    train_steps,
)
from earlyworm.files import pack, unpack

IMAGES, TEST, CLASSES = 44, 20, 3


def make_data(train=IMAGES, test=TEST, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def some(count):
        labels = torch.randint(CLASSES, (count,), generator=generator)
        images = torch.randint(256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
        return images // (1 + labels[:, None, None, None]).to(torch.uint8), labels  # something to learn

    images, labels = some(train)
    return ImageData(images, labels, *some(test), CLASSES, "drawn", torch.full((channels,), 0.5), torch.ones(channels))


class Net(nn.Module):
    """Everything that training has to take care of: batch norm, dropout, a frozen layer."""

    def __init__(self, *, plain=False, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.Identity() if plain else nn.BatchNorm2d(6)
        self.drop = nn.Identity() if plain else nn.Dropout(0.2)
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.classifier = nn.Linear(6, CLASSES)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        x = self.drop(F.relu(self.norm(self.conv(images)))).mean((2, 3))
        return self.classifier(self.fixed(x))


def settings(**changes):
    return RunConfig(**{"batch_size": 8, "device": "cpu", "schedule": "constant", "lr": 0.1, **changes})


class Lesson:
    """A network in training."""

    def __init__(self, config, data=None, model=None, state=None):
        self.config, self.data = config, data or make_data()
        self.pace = Pace.of(config, len(self.data.train_labels), 1)
        self.accelerator = make_accelerator(config, RunDirectory(Path("unused")))
        self.network = model or Net()
        self.optimizer = make_optimizer(self.network, config)
        if state:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.model, self.prepared = self.accelerator.prepare(self.network, self.optimizer)

    def train(self, first, steps, **options):
        options = {"stage": "search", "progress": Progress(50), **options}
        return train_steps(
            self.model, self.prepared, self.data, self.config, self.pace, self.accelerator,
            first=first, steps=steps, **options,
        )  # fmt: skip

    def state(self):
        return unpack(pack({"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}))


def content(lesson):
    return pack({"model": lesson.network.state_dict(), "optimizer": lesson.optimizer.state_dict()})


# The schedule.


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("constant", 0.0, 0.5), ("constant", 0.999, 0.5), ("constant", 1.0, 0.5),
        ("step", 0.0, 0.5), ("step", 0.5, 0.5), ("step", 0.8571, 0.5), ("step", 6 / 7, 0.05), ("step", 1.0, 0.05),
        ("cosine", 0.0, 0.5), ("cosine", 0.25, 0.4267766952966369), ("cosine", 0.5, 0.25),
        ("cosine", 0.75, 0.07322330470336313), ("cosine", 1.0, 0.0), ("cosine", 1.25, 0.0),
    ],
)  # fmt: skip
def test_learning_rate(schedule, progress, expected):
    assert learning_rate(RunConfig(schedule=schedule, lr=0.5), progress) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("linear", 0.0, 0.05), ("linear", 0.1, 0.3), ("linear", 0.19, 0.5), ("linear", 0.2, 0.5), ("linear", 0.6, 0.25),
        ("linear", 1.0, 0.0), ("linear", 1.1, 0.0), ("constant", 0.1, 0.3), ("constant", 0.2, 0.5),
        ("cosine", 0.5, 0.25),
    ],
)  # fmt: skip
def test_warm_up(schedule, progress, expected):
    config = RunConfig(schedule=schedule, lr=0.5, warmup=0.2)
    assert learning_rate(config, progress, 0.02) == pytest.approx(expected, abs=1e-15)


def test_the_rate_is_never_zero_and_warms_up_over_the_whole_schedule():
    lesson = Lesson(settings(schedule="linear", warmup=0.5))
    rates = []
    lesson.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    lesson.train(0, 10, progress=Progress(10))  # ten steps in all, half of them warm-up
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])


def test_the_schedule_goes_on_where_the_stage_before_has_ended():
    lesson = Lesson(settings(schedule="cosine"))
    rates = []
    lesson.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    lesson.train(0, 3, progress=Progress(20))
    lesson.train(3, 2, progress=Progress(20))
    lesson.train(0, 2, stage="retrain", progress=Progress(15, 0.25))
    progress = [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2]  # epochs: five steps each
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * epochs / 4)) for epochs in progress])


# The pace.


@pytest.mark.parametrize(
    ("options", "images", "processes", "expected"),
    [
        ({"batch_size": 8}, 44, 1, (8, 5, 5)),  # four images wait for the next epoch
        ({"batch_size": 8}, 40, 1, (8, 5, 5)),
        ({"batch_size": 64}, 44, 1, (44, 1, 1)),  # a batch is never larger than the data
        ({"batch_size": 8, "accumulation": 4}, 44, 2, (8, 5, 5)),
        ({"batch_size": 44, "accumulation": 2}, 44, 2, (44, 1, 1)),
        ({"batch_size": 8, "check_every": 0.5}, 40, 1, (8, 5, 2)),
        ({"batch_size": 8, "check_every": 0.25}, 64, 1, (8, 8, 2)),
        ({"batch_size": 8, "check_every": 1.5}, 64, 1, (8, 8, 12)),
        ({"batch_size": 8, "check_every": 1e-9}, 64, 1, (8, 8, 1)),
        ({"batch_size": 8, "check_every": 3.0}, 44, 1, (8, 5, 15)),
    ],
)
def test_pace(options, images, processes, expected):
    assert dataclasses.astuple(Pace.of(RunConfig(method="worm", **options), images, processes)) == expected


@pytest.mark.parametrize(
    ("options", "images", "processes", "multiple"),
    [
        ({"batch_size": 8}, 44, 3, "multiple of 3"),
        ({"batch_size": 8, "accumulation": 4}, 44, 4, "multiple of 16"),
        ({"batch_size": 64, "accumulation": 8}, 44, 1, "multiple of 8"),  # 44 images are the batch
    ],
)
def test_batches_that_cannot_be_divided(options, images, processes, multiple):
    with pytest.raises(ConfigError, match=multiple) as caught:
        Pace.of(RunConfig(**options), images, processes)
    assert str(min(options["batch_size"], images)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_epochs():
    assert [Pace(8, 5, 2).epochs(steps) for steps in (0, 2, 5, 12)] == [0, 0.4, 1, 2.4]


# Training.


@pytest.mark.parametrize(
    "options",
    [
        {}, {"optimizer": "adamw", "weight_decay": 0.1}, {"augment": "crop-flip"}, {"accumulation": 4},
        {"precision": "bf16", "augment": "flip"}, {"schedule": "cosine"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("boundary", [3, 5])  # within an epoch, and at its end
def test_going_on_from_a_saved_state_is_exact(boundary, options):
    config = settings(**options)
    lesson = Lesson(config)
    lesson.train(0, boundary)
    state = lesson.state()
    losses = [lesson.train(boundary, 4), lesson.train(boundary + 4, 3)]

    torch.manual_seed(99)  # whatever another process did before
    torch.rand(7)
    again = Lesson(config, state=state)
    assert [again.train(boundary, 4), again.train(boundary + 4, 3)] == losses
    assert content(again) == content(lesson)


def test_what_happens_depends_on_seed_stage_and_step():
    contents = set()
    for config, stage, first in (
        (settings(), "search", 0),
        (settings(seed=1), "search", 0),
        (settings(), "retrain", 0),
        (settings(), "search", 5),
    ):
        lesson = Lesson(config)
        lesson.train(first, 2, stage=stage)
        contents.add(content(lesson))
    assert len(contents) == 4


def test_every_epoch_takes_every_image_at_most_once():
    data = make_data()
    data.train_images[:] = torch.arange(IMAGES, dtype=torch.uint8)[:, None, None, None]
    lesson = Lesson(settings(), data)
    lesson.train(0, 3)
    lesson.train(3, 7)
    pixels = [((batch[:, 0, 0, 0] + 0.5) * 255).round().int().tolist() for batch in lesson.network.seen]
    epochs = [[pixel for batch in part for pixel in batch] for part in (pixels[:5], pixels[5:])]
    assert all(len(set(epoch)) == len(epoch) == 40 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert all(0 <= pixel < IMAGES for epoch in epochs for pixel in epoch)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 0.01}])
def test_accumulation_computes_what_the_whole_batch_computes(options):
    # Without batch norm, which sees micro-batches.
    whole = Lesson(settings(**options), model=Net(plain=True))
    loss = whole.train(0, 7)
    parts = Lesson(settings(accumulation=4, **options), model=Net(plain=True))
    assert parts.train(0, 7) == pytest.approx(loss, abs=1e-5)
    for expected, found in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert [len(batch) for batch in parts.network.seen] == [2] * 28


def test_one_optimizer_step_for_each_batch_of_micro_batches():
    lesson, steps = Lesson(settings(accumulation=4)), []
    lesson.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    lesson.train(0, 6)
    assert len(steps) == 6


def test_a_step_is_that_of_a_plain_loop():
    config = settings(weight_decay=0.01)
    lesson, plain = Lesson(config, model=Net(plain=True)), Net(plain=True)
    lesson.train(0, 5)
    optimizer = make_optimizer(plain, config)
    order = epoch_order(IMAGES, stable_seed(0, "search"), 0)
    for batch in order[:40].split(8):
        images = normalise(lesson.data.train_images[batch], lesson.data.mean, lesson.data.std, torch.float32)
        optimizer.zero_grad()
        F.cross_entropy(plain(images), lesson.data.train_labels[batch]).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), lesson.network.parameters(), strict=True))


def test_the_loss_is_the_mean_over_the_steps():
    lesson = Lesson(settings(lr=1e-30), model=Net(plain=True))
    reported = lesson.train(0, 5)
    order = epoch_order(IMAGES, stable_seed(0, "search"), 0)[:40]
    images = normalise(lesson.data.train_images[order], lesson.data.mean, lesson.data.std, torch.float32)
    expected = F.cross_entropy(Net(plain=True)(images), lesson.data.train_labels[order])
    assert reported == pytest.approx(expected.item(), rel=1e-5)


def test_training_learns_and_leaves_frozen_parameters_alone():
    lesson = Lesson(settings(optimizer="adamw", lr=0.02))
    fixed = lesson.network.fixed.weight.clone()
    first, *_, last = (lesson.train(5 * epoch, 5) for epoch in range(30))
    assert last < 0.5 * first
    assert torch.equal(lesson.network.fixed.weight, fixed)
    known = dataclasses.replace(lesson.data, test_images=lesson.data.train_images, test_labels=lesson.data.train_labels)
    assert evaluate(lesson.model, known, lesson.config, lesson.accelerator) > 0.8


def test_bf16_trains_float32_weights_on_channels_last():
    lesson = Lesson(settings(precision="bf16"), make_data(channels=3), Net(channels=3))
    dtypes = []
    lesson.network.conv.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    lesson.train(0, 2)
    assert set(dtypes) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in lesson.network.parameters())
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in lesson.network.seen)


def test_held_out_images_are_never_trained_on():
    clean, poisoned = make_data(), make_data()
    poisoned.test_images.random_()
    poisoned.test_labels.fill_(-100)
    lessons = [Lesson(settings(), data) for data in (clean, poisoned)]
    for lesson in lessons:
        lesson.train(0, 5)
    assert content(lessons[0]) == content(lessons[1])


def test_progress_is_reported(monkeypatch):
    monkeypatch.setattr(training, "_REPORT_SECONDS", -1.0)
    lesson, reports = Lesson(settings()), []
    mean = lesson.train(5, 7, report=lambda *report: reports.append(report))
    assert [epoch for epoch, _ in reports] == pytest.approx([1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4])
    assert sum(loss for _, loss in reports) / 7 == pytest.approx(mean, rel=1e-5)


def test_progress_is_not_reported_all_the_time(monkeypatch):
    monkeypatch.setattr(training, "_REPORT_SECONDS", 1e9)
    lesson, reports = Lesson(settings()), []
    lesson.train(0, 3, report=lambda *report: reports.append(report))
    assert reports == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("seconds", "epoch"), [(-1.0, 2), (1e9, 3)])
def test_a_loss_that_is_not_finite(value, seconds, epoch, monkeypatch):
    monkeypatch.setattr(training, "_REPORT_SECONDS", seconds)
    lesson = Lesson(settings(lr=0.25), model=Net(plain=True))
    lesson.network.classifier.bias.data[0] = value
    with pytest.raises(RunError) as caught:
        lesson.train(5, 10)
    text = str(caught.value)
    assert "\n" not in text
    assert f"the loss became nan in epoch {epoch} of the search at learning rate 0.25: lower --lr" in text
    assert "the last checkpoint stays" in text


# Evaluation.


def plain_accuracy(model, data):
    model.eval()
    with torch.no_grad():
        images = normalise(data.test_images, data.mean, data.std, torch.float32)
        return float((model(images).argmax(1) == data.test_labels).float().mean())


@pytest.mark.parametrize("test", [1, 20, 512, 513, 1100])
def test_evaluate(test):
    lesson = Lesson(settings(), make_data(test=test))
    lesson.train(0, 5)
    before = content(lesson)
    accuracy = evaluate(lesson.model, lesson.data, lesson.config, lesson.accelerator)
    assert accuracy == pytest.approx(plain_accuracy(lesson.network, lesson.data), abs=1e-6)
    assert content(lesson) == before


@pytest.mark.parametrize("test", [1, 2, 7, 9, 1025, 1538])
def test_processes_share_the_held_out_images(test):
    data, model = make_data(test=test), Net()
    shares = []
    for rank in range(3):
        model.seen.clear()
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), process_index=rank, num_processes=3, reduce=lambda tensor, _: tensor
        )
        shares.append((evaluate(model, data, settings(), accelerator), len(model.seen)))
    assert sum(share for share, _ in shares) == pytest.approx(plain_accuracy(model, data), abs=1e-6)
    assert len({passes for _, passes in shares}) == 1  # else a process that still computes waits for one that does not


@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_share_every_batch(accumulation):
    data, config = make_data(), settings(accumulation=accumulation)
    data.train_images[:] = torch.arange(IMAGES, dtype=torch.uint8)[:, None, None, None]

    def seen(rank, processes):
        lesson = Lesson(config, data)
        real = lesson.accelerator
        lesson.accelerator = SimpleNamespace(
            device=real.device, process_index=rank, num_processes=processes, accumulate=real.accumulate,
            backward=real.backward, reduce=lambda tensor, _: tensor,
        )  # fmt: skip
        lesson.train(0, 3)
        return [((part[:, 0, 0, 0] + 0.5) * 255).round().int().tolist() for part in lesson.network.seen]

    alone, first, second = seen(0, 1), seen(0, 2), seen(1, 2)
    assert [len(part) for part in first] == [len(part) for part in second] == [4 // accumulation] * 3 * accumulation
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(part) for part in alone]


# Clipping.


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_are_clipped_once_a_step(accumulation):
    norms = {}
    for limit in (None, 0.01):
        lesson = Lesson(settings(max_grad_norm=limit, accumulation=accumulation), model=Net(plain=True))
        seen = []

        def record(optimizer, *_, seen=seen):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            seen.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

        lesson.optimizer.register_step_pre_hook(record)
        lesson.train(0, 3)
        norms[limit] = seen
    assert min(norms[None]) > 0.02
    assert norms[0.01] == pytest.approx([0.01] * 3, rel=1e-3)


# Small parts.


def test_make_optimizer():
    model = Net()
    sgd = make_optimizer(model, settings(momentum=0.5, weight_decay=0.1))
    adamw = make_optimizer(model, settings(optimizer="adamw", weight_decay=0.2))
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.1, 0.5, 0.1)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.1, 0.2)
    assert not any(p is model.fixed.weight for p in sgd.param_groups[0]["params"])


def test_biases_and_norms_do_not_decay_where_text_is_learned():
    model = Net()
    adamw = make_optimizer(model, RunConfig.for_text(lr=0.1, weight_decay=0.2))
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    expected = {"conv.weight": 0.2, "conv.bias": 0, "norm.weight": 0, "norm.bias": 0}
    expected |= {"classifier.weight": 0.2, "classifier.bias": 0}
    assert {name: decays[id(p)] for name, p in model.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_example_images(precision):
    data = make_data(channels=3)
    images = data.example_inputs(2, settings(precision=precision))
    assert torch.equal(images, normalise(data.train_images[:2], data.mean, data.std, torch.float32))
    assert images.is_contiguous(memory_format=torch.channels_last) == (precision == "bf16")


def test_batches_too_small_for_batch_norm():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)).eval()
    with pytest.raises(ConfigError) as caught:
        check_batch(model, torch.zeros(1, 1, 8, 8))
    text = str(caught.value)
    assert "cannot be trained on 1 examples at once" in text
    assert "raise batch_size or limit, or lower accumulation" in text
    assert "\n" not in text
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    check_batch(model, torch.randn(2, 1, 8, 8))
    assert not model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_stable_seed_is_the_same_everywhere():
    assert stable_seed(0, "search", 3) == 2116898901643541664
    assert len({stable_seed(0), stable_seed("0"), stable_seed(0, 0), stable_seed(1)}) == 4
    assert all(0 <= stable_seed(i) < 2**63 for i in range(200))
