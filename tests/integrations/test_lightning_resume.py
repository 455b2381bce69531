"""A Lightning Trainer with a search, interrupted and resumed: the same as if it had never been interrupted."""

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from earlyworm import Constant, Emergence, SearchError
from modules import QUIET, Automatic, Manual, fit, loader, make_callback

pytestmark = QUIET


def result(trainer, callback):
    tensors = dict(trainer.lightning_module.state_dict())
    for k, optimizer in enumerate(trainer.optimizers):
        for i, some in optimizer.state_dict()["state"].items():
            tensors |= {f"{k}.{i}.{key}": torch.as_tensor(value) for key, value in some.items()}
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return tensors, callback.history, callback.draw().mask, trainer.global_step, trainer.current_epoch, rates


def same(a, b):
    assert a[1:] == b[1:]
    assert a[0].keys() == b[0].keys()
    for name, tensor in a[0].items():
        assert torch.equal(tensor, b[0][name]), name


RESUMED = {
    "epochs": (Automatic, {"truncation": Constant(chi=0.1)}, {"every_n_epochs": 1}, {}),
    "validated": (Automatic, {}, {"every_n_epochs": 1, "save_on_train_epoch_end": False}, {"validate": True}),
    "last-step": (Automatic, {"emergence": Emergence(window=4, epsilon=1.0)}, {"every_n_train_steps": 6}, {}),
    "manual": (Manual, {"every": 6}, {"every_n_epochs": 1}, {}),
    "accumulated": (Automatic, {"score": "taylor"}, {"every_n_epochs": 1}, {"accumulate_grad_batches": 4}),
    "shrinking": (
        Automatic,
        {"every": 3, "truncation": Constant(0.5), "emergence": Emergence(2, 0.0), "score": "taylor", "shrink": True},
        {"every_n_epochs": 1},
        {},
    ),
}


@pytest.mark.parametrize("way", RESUMED)
def test_resumed_is_uninterrupted(way, tmp_path):
    kind, search, saving, options = RESUMED[way]
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **saving)
    expected = result(*fit(tmp_path, kind(), [saver], search=search, **options))
    checkpoints = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    small = []
    for checkpoint in checkpoints[:-1]:
        small.append(torch.load(checkpoint, weights_only=True)["earlyworm"]["compacted"])
        other = ModelCheckpoint(tmp_path / "other", save_top_k=-1, **saving)
        same(result(*fit(tmp_path, kind(seed=7), [other], search=search, checkpoint=checkpoint, **options)), expected)
    assert not small[0]  # some are from before the ticket emerged,
    assert small[-1]  # and some from after it


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fit(folder, None, [ModelCheckpoint(folder, save_top_k=-1, filename="{step}", every_n_epochs=1)])
    return folder


def test_a_checkpoint_without_a_search(tmp_path):
    trainer = lightning.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False,
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model := Automatic(), loader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(SearchError, match="holds no search"):
        fit(tmp_path, model, checkpoint=tmp_path / "plain.ckpt")


def test_a_checkpoint_of_another_search(saved, tmp_path):
    for step in (6, 18):
        with pytest.raises(SearchError, match="with window 3, not 4"):
            fit(tmp_path, checkpoint=saved / f"step={step}.ckpt", search={"emergence": Emergence(window=4)})


def test_a_checkpoint_that_the_smaller_model_does_not_fit(saved, tmp_path):
    trainer, _ = fit(tmp_path)
    with pytest.raises(SearchError, match="not one of this smaller model"):
        trainer.fit(trainer.lightning_module, loader(), ckpt_path=saved / "step=6.ckpt", weights_only=True)


def test_a_smaller_checkpoint_is_evaluated_in_a_dense_model(saved, tmp_path):
    callback, model = make_callback(), Automatic(seed=5)
    trainer = lightning.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[callback],
                                enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.validate(model, loader(), ckpt_path=saved / "step=30.ckpt", verbose=False, weights_only=True)
    assert callback.compacted
    stored = torch.load(saved / "step=30.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    assert "on_load_checkpoint" not in vars(model)


def test_stopped_then_compacted(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="stopped", every_n_epochs=1)
    fit(tmp_path, None, [saver], search={"on_emergence": "stop"})
    resumed = result(*fit(tmp_path, checkpoint=tmp_path / "stopped.ckpt"))
    same(resumed, result(*fit(tmp_path)))
