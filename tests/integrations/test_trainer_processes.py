"""A Hugging Face Trainer with a search in two processes of which each sees half of every batch."""

import os

import torch
from safetensors.torch import load_file, save_file

from earlyworm import Constant
from ranks import two_ranks
from sentences import make_bert, make_trainer, steps_of

SEARCH = {"truncation": Constant(chi=0.1)}
OPTIONS = {
    "save_strategy": "epoch",
    "train_sampling_strategy": "sequential",
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.3,
    "num_train_epochs": 8,
    "optim": "sgd",  # Adam makes much of rounding where gradients are nearly zero
    "optim_args": "momentum=0.9",
    "learning_rate": 0.1,
}


def on_rank(rank, port, folder):
    """What each of the processes does that a launcher starts."""
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, 2, 2, "127.0.0.1", port)), strict=True))
    options = {**OPTIONS, "per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    for name, checkpoint in (("whole", None), ("dense", "checkpoint-6"), ("small", "checkpoint-9")):
        trainer, callback = make_trainer(f"{folder}/{name}", model=make_bert(dropout=0.0), search=SEARCH, **options)
        trainer.train(resume_from_checkpoint=checkpoint and f"{folder}/whole/{checkpoint}")
        assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)
        assert trainer.model_wrapped.module is trainer.model
        assert callback.compacted
        assert steps_of(callback) == [0, 3, 6]
        save_file(trainer.model.state_dict(), f"{folder}/{name}{rank}.safetensors")
        callback.draw().save(f"{folder}/{name}{rank}-ticket.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    trainer, _ = make_trainer(tmp_path / "one", model=make_bert(dropout=0.0), search=SEARCH, **OPTIONS)
    with two_ranks(on_rank, tmp_path):
        trainer.train()
    expected = load_file(tmp_path / "whole0.safetensors")
    for name in ("whole0", "whole1", "dense0", "dense1", "small0", "small1"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(expected[name], tensor, rtol=0, atol=1e-4)
