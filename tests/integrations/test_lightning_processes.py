"""A Lightning Trainer with a search in two processes of which each sees half of every batch."""

import os

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from modules import QUIET, Automatic, fit, loader
from ranks import two_ranks

pytestmark = QUIET


def on_rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    wrapped = Wrapped()
    saver = ModelCheckpoint(f"{folder}/whole", save_top_k=-1, filename="{step}", every_n_epochs=1)
    for name, checkpoint in (("whole", None), ("dense", "step=6"), ("small", "step=18")):
        trainer, callback = fit(
            folder, Evaluated("momentum", seed=rank), [wrapped] if checkpoint else [wrapped, saver],
            checkpoint=checkpoint and f"{folder}/whole/{checkpoint}.ckpt", strategy="ddp", devices=2,
            data=loader(rank, 2), use_distributed_sampler=False,
        )  # fmt: skip
        assert callback.compacted
        torch.save(trainer.lightning_module.state_dict(), f"{folder}/{name}{rank}.pt")
    assert wrapped.kinds == [torch.nn.parallel.DistributedDataParallel] * 3
    torch.distributed.destroy_process_group()


class Wrapped(lightning.Callback):
    def __init__(self):
        self.kinds = []

    def on_train_end(self, trainer, pl_module):
        self.kinds.append(type(trainer.strategy.model))


class Evaluated(Automatic):
    """Batch norm is in eval mode: the statistics of half a batch are not those of the whole."""

    def on_train_epoch_start(self):
        self.net.eval()


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    model = Evaluated("momentum")
    with two_ranks(on_rank, tmp_path):
        fit(tmp_path / "one", model)
    expected = torch.load(tmp_path / "whole0.pt", weights_only=True)
    for name in ("whole1", "dense0", "dense1", "small0", "small1"):
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(expected[name], tensor, rtol=0, atol=1e-4)
