"""The search in a PyTorch Lightning Trainer."""

import copy
import logging
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from types import SimpleNamespace

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.utils.data import DataLoader, TensorDataset

import residual
from earlyworm import ConfigError, Constant, SearchError, TicketSearch, compact
from earlyworm.units.groups import gate_masks
from modules import QUIET, Automatic, Manual, fit, loader, make_callback
from residual import loss_on, make_batch, make_network
from sentences import NEVER, numbers, steps_of
from stepping import UNITS

pytestmark = QUIET


@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_goes_on_with_the_smaller_model(kind, tmp_path):
    model = kind()
    net, dense = model.net, numbers(model)
    trainer, callback = fit(tmp_path, model)
    assert steps_of(callback) == [0, 6, 12]  # six batches an epoch
    assert callback.compacted
    assert callback.draw().emerged
    assert trainer.current_epoch == 5
    assert model.net is net
    assert numbers(model) < 0.5 * dense
    small = compact(make_network(), callback.draw())
    assert {n: p.shape for n, p in net.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    if kind is Automatic:
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 / 6)


def test_the_whole_module_is_searched(tmp_path):
    class Whole(Automatic):
        def forward(self, images):
            return self.net(images)

    model = Whole()
    dense = numbers(model)
    search = {"module": "", "units": "channels", "example_inputs": make_batch(0)[0]}
    trainer, callback = fit(tmp_path, model, search=search)
    assert callback.compacted
    assert trainer.lightning_module is model
    assert model.trainer is trainer
    assert numbers(model) < 0.5 * dense


def test_stops_at_emergence(tmp_path):
    model = Automatic()
    dense = numbers(model)
    trainer, callback = fit(tmp_path, model, search={"on_emergence": "stop"})
    assert trainer.global_step == 12
    assert not callback.compacted
    assert numbers(model) == dense
    assert callback.draw().step == 12
    with pytest.raises(SearchError, match="emerged after 12 steps, where training has stopped"):
        trainer.fit(model, loader())


@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_finds_what_a_plain_loop_finds(kind, tmp_path):
    search = {"truncation": Constant(chi=0.1), "emergence": NEVER}
    _, callback = fit(tmp_path, trained := kind("momentum"), search=search, max_epochs=3)
    model = kind("momentum").train()
    made = model.configure_optimizers()
    optimizers = made if kind is Manual else [made["optimizer"]]
    plain = TicketSearch(model.net, units=UNITS, **search)
    with plain.attach(*optimizers):
        for _ in range(3):
            for batch in loader():
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss_on(model.net, batch).backward()
                if kind is Manual:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                for optimizer in optimizers:
                    optimizer.step()
            plain.update()
            if kind is Automatic:
                made["lr_scheduler"].step()
    assert callback.history == plain.history
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Automatic, {}),
        (Automatic, {"accumulate_grad_batches": 4}),
        (Automatic, {"gradient_clip_val": 0.05}),
        (Automatic, {"precision": "bf16-mixed"}),
        (Manual, {}),
    ],
    ids=str,
)
def test_truncation_acts_within_the_step(kind, options, tmp_path):
    """Lightning computes the gradients in a closure that it gives to the optimizer; chi = 0 freezes all the same."""
    model, seen = kind("sgd"), []
    before = {name: parameter.detach().clone() for name, parameter in model.net.named_parameters()}

    class Look(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(trainer.callbacks[0].search.mask.kept)
            optimizer = trainer.optimizers[0]
            optimizer.register_step_pre_hook(
                lambda _, args, kwargs: seen.append(bool(kwargs.get("closure") or args[1:]))
            )

    _, callback = fit(
        tmp_path, model, [Look()], search={"truncation": Constant(chi=0.0), "emergence": NEVER}, max_epochs=1, **options
    )
    assert len(seen) > 2
    assert all(seen[1:])  # there was a closure, under manual optimization too
    for name, mask in gate_masks(model.net, UNITS.groups, seen[0]).items():
        kept, now = mask.expand_as(before[name]), model.net.get_parameter(name)
        assert torch.equal(now[~kept], before[name][~kept]), name
        assert not torch.equal(now[kept], before[name][kept]), name
    assert len(callback.history) == 2


def test_checks_every_so_many_steps(tmp_path):
    for kind, options in ((Automatic, {}), (Automatic, {"accumulate_grad_batches": 4}), (Manual, {})):
        _, callback = fit(tmp_path, kind(), search={"emergence": NEVER, "every": 4}, max_epochs=3, **options)
        assert steps_of(callback) == ([0, 4] if options else [0, 4, 8, 12, 16])


def test_checks_at_the_end_of_limited_epochs_and_of_streams(tmp_path):
    _, callback = fit(tmp_path, search={"emergence": NEVER}, limit_train_batches=4, max_epochs=2)
    assert steps_of(callback) == [0, 4, 8]

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TensorDataset(*make_batch(0, size=24)))

    callback = make_callback(emergence=NEVER)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback], max_epochs=2, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Automatic(), DataLoader(Stream(), batch_size=8))
    assert steps_of(callback) == [0, 3, 6]


def test_checks_after_epochs_that_end_early(tmp_path):
    class Short(Automatic):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    for options in ({"max_epochs": 3}, {"max_epochs": -1, "max_steps": 14}):
        _, callback = fit(tmp_path, Short(), search={"emergence": NEVER}, **options)
        assert steps_of(callback) == [0, 4, 8, 12]


def test_logs_to_every_logger_of_the_trainer(tmp_path):
    loggers = [CSVLogger(tmp_path / name, name="", version="") for name in ("a", "b")]
    _, callback = fit(tmp_path, search={"truncation": Constant(chi=0.1)}, logger=loggers)
    for name in ("a", "b"):
        lines = (tmp_path / name / "metrics.csv").read_text().splitlines()
        columns = lines[0].split(",")
        rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
        assert [int(row["step"]) for row in rows] == [0, 6, 12]
        assert [float(row["ticket/chi"]) for row in rows] == [0.1] * 3
        assert [row["ticket/distance_max"] for row in rows] == [
            "" if check.distance_max is None else str(check.distance_max) for check in callback.history
        ]


def test_what_watches_a_metric_starts_over(tmp_path):
    class Scores(lightning.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("score", 1.0 / (1 + trainer.current_epoch))  # worse and worse

    best = ModelCheckpoint(tmp_path, monitor="score", mode="max", filename="{epoch}")
    patience = EarlyStopping("score", mode="max", patience=3)
    trainer, _ = fit(tmp_path, None, [Scores(), patience, best], validate=True, num_sanity_val_steps=0, max_epochs=6)
    assert trainer.current_epoch == 5  # counted from the compaction, and not from the start
    assert best.best_model_path.endswith("epoch=1.ckpt")  # the first of the compacted model
    trainer.validate(trainer.lightning_module, loader(), ckpt_path="best", verbose=False, weights_only=True)


def test_a_schedule_that_watches_a_metric_starts_over(tmp_path):
    class Watched(Automatic):
        def on_validation_epoch_end(self):
            callback = self.trainer.callbacks[0]
            self.log(
                "score", 0.01 * self.current_epoch + 0.5 * (not callback.compacted)
            )  # lower, and better from there

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "score"}}

    trainer, callback = fit(tmp_path, Watched(), validate=True, num_sanity_val_steps=0, max_epochs=6)
    assert callback.compacted
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


def test_a_learning_rate_is_looked_for_before(tmp_path):
    class Tuned(Automatic):
        lr = 0.01

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    _, callback = fit(tmp_path, Tuned(), [LearningRateFinder(num_training_steps=10)])
    assert steps_of(callback) == [0, 6, 12]
    assert callback.compacted


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float32), ("bf16-true", torch.float32)])
def test_example_inputs_need_not_be_what_the_strategy_makes_of_the_model(precision, dtype, tmp_path):
    search = {"units": "channels", "example_inputs": make_batch(0)[0].to(dtype)}
    images, labels = make_batch(0, size=48)
    data = DataLoader(TensorDataset(images.to(torch.float64 if "64" in precision else torch.bfloat16), labels), 8)
    options = {"precision": precision, "data": data, "max_epochs": 1, "callbacks": [ModelCheckpoint(tmp_path)]}
    trainer, _ = fit(tmp_path, search=search, **options)
    _, callback = fit(
        tmp_path, search=search, checkpoint=trainer.checkpoint_callback.best_model_path,
        **{**options, "max_epochs": 3, "callbacks": [ModelCheckpoint(tmp_path)]},
    )  # fmt: skip
    assert steps_of(callback) == [0, 6, 12]


def test_nothing_emerges(tmp_path, caplog):
    model = Automatic()
    with caplog.at_level(logging.WARNING):
        trainer, callback = fit(tmp_path, model, search={"emergence": NEVER}, max_epochs=2)
    assert "no ticket has emerged after 3 checks" in caplog.text
    assert not callback.compacted
    trainer.optimizers[0].step()
    assert callback.search.steps == 12  # detached


# What cannot be done is said before training starts.


def test_impossible_settings(tmp_path):
    with pytest.raises(ConfigError, match="'prunning_ratio'"):
        make_callback(prunning_ratio=0.5)
    with pytest.raises(ConfigError, match="on_emergence is 'prune'"):
        make_callback(on_emergence="prune")
    with pytest.raises(ConfigError, match="Automatic has no module 'nett'"):
        fit(tmp_path, search={"module": "nett"})


def test_never_trained():
    with pytest.raises(SearchError, match="is the callback added to the trainer"):
        make_callback().draw()


def test_added_twice(tmp_path):
    with pytest.raises(SearchError, match="2 TicketCallbacks were added"):
        fit(tmp_path, None, [make_callback()])


def test_averages_of_weights(tmp_path):
    averaging = StochasticWeightAveraging(swa_lrs=0.01)
    for search in ({}, {"on_emergence": "stop", "truncation": Constant(0.5), "shrink": True}):
        with pytest.raises(SearchError, match="StochasticWeightAveraging averages the weights"):
            fit(tmp_path, None, [averaging], search=search)
    fit(tmp_path, None, [copy.deepcopy(averaging)], search={"on_emergence": "stop"})


def test_sharded():
    callback = make_callback()
    trainer = SimpleNamespace(strategy=FSDPStrategy(), callbacks=[callback])
    with pytest.raises(SearchError, match="FSDPStrategy shards the model"):
        callback.setup(trainer, Automatic(), "fit")
    trainer.strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # a DDPStrategy too; its package is not needed here
    with pytest.raises(SearchError, match="DeepSpeedStrategy shards the model"):
        callback.setup(trainer, Automatic(), "fit")


def test_without_the_package(fresh_python):
    fresh_python("""
        import sys
        sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
        import earlyworm
        try:
            import earlyworm.integrations.lightning
        except ImportError as error:
            assert isinstance(error, earlyworm.EarlywormError)
            assert "pip install 'earlyworm[lightning]'" in str(error)
        else:
            raise AssertionError
    """)


@pytest.mark.skipif(not find_spec("pytorch_lightning"), reason="pytorch_lightning is not installed")
@pytest.mark.parametrize("missing", ["lightning", "nothing"])
def test_the_package_of_the_older_name(missing, tmp_path):
    """With the other one installed beside it, or not."""
    code = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(residual.__file__)!r})
        if {missing!r} == "lightning":
            sys.modules["lightning"] = None
        import pytorch_lightning, torch
        from earlyworm import Emergence
        from earlyworm.integrations.lightning import TicketCallback
        from residual import loss_on, make_batch, make_network

        class Module(pytorch_lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = make_network()
            def training_step(self, batch, i):
                return loss_on(self.net, batch)
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        callback = TicketCallback(
            module="net", example_inputs=make_batch(0)[0], emergence=Emergence(window=2, epsilon=1.0)
        )
        assert isinstance(callback, pytorch_lightning.Callback)
        trainer = pytorch_lightning.Trainer(
            default_root_dir={str(tmp_path)!r}, max_epochs=2, accelerator="cpu", logger=False, callbacks=callback,
            enable_progress_bar=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*make_batch(0, 16)), 8))
        assert callback.compacted
        assert "lightning.pytorch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
