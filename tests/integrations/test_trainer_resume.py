"""A Hugging Face Trainer with a search, interrupted and resumed: the same as if it had never been interrupted."""

import shutil

import pytest
import torch
from transformers import Trainer, TrainerCallback

from earlyworm import Constant, Emergence, SearchError, TicketError, Worm
from earlyworm.integrations.transformers import TicketCallback, load_pretrained
from sentences import SOON, Sentences, arguments, make_bert, make_trainer, numbers, steps_of

# Six steps an epoch; it emerges after step 12. The second one checks and saves within epochs.
WAYS = {
    "epochs": ({"truncation": Constant(chi=0.1)}, {"save_strategy": "epoch"}),
    "steps": (
        {"every": 4, "truncation": Worm(trigger=0.5, greedy_first=True), "emergence": Emergence(window=4, epsilon=1.0)},
        {"save_steps": 5, "save_strategy": "steps", "optim": "sgd", "optim_args": "momentum=0.9", "bf16": True},
    ),
    "accumulated": (
        {"units": "neurons", "pruning_ratio": 0.3, "score": "taylor", "emergence": Emergence(window=2, epsilon=1.0)},
        {"gradient_accumulation_steps": 4, "save_strategy": "steps", "save_steps": 1, "max_steps": 7},
    ),
    "shrinking": (
        {"every": 3, "truncation": Constant(chi=0.5), "emergence": Emergence(window=2, epsilon=0.0), "shrink": True},
        {"save_strategy": "steps", "save_steps": 5},
    ),
}


def result(trainer, callback):
    """Everything that must be the same, bit for bit."""
    tensors = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state = trainer.optimizer.state_dict()["state"]
    tensors |= {f"{i}.{key}": torch.as_tensor(value) for i, some in state.items() for key, value in some.items()}
    told = [log for log in trainer.state.log_history if "ticket/chi" in log]
    return tensors, callback.history, told, callback.draw().mask, trainer.state.global_step


def same(a, b):
    assert a[1:] == b[1:]
    assert a[0].keys() == b[0].keys()
    for name, tensor in a[0].items():
        assert torch.equal(tensor, b[0][name]), name


@pytest.fixture(scope="module", params=WAYS)
def whole(request, tmp_path_factory):
    """A way, the folder of checkpoints of a run that was not interrupted, and its result."""
    search, options = WAYS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    trainer, callback = make_trainer(folder, search=search, **options)
    trainer.train()
    assert callback.compacted
    return request.param, folder, result(trainer, callback)


def test_resumed_is_uninterrupted(whole, tmp_path):
    way, folder, expected = whole
    search, options = WAYS[way]
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[:-1]
    small = []
    for checkpoint in checkpoints:
        trainer, callback = make_trainer(tmp_path / checkpoint.name, search=search, model=make_bert(seed=7), **options)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        same(result(trainer, callback), expected)
        small.append((checkpoint / "ticket.safetensors").exists())
    assert not small[0]  # some are from before the ticket emerged,
    assert small[-1]  # and some from after it


def test_resumed_with_the_last_checkpoint_again_and_again(tmp_path):
    """The folder that is resumed from is the one that is written to."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == self.at

    options = {"save_strategy": "steps", "save_steps": 3}
    trainer, callback = make_trainer(tmp_path / "whole", **options)
    trainer.train()
    expected = result(trainer, callback)
    for i, at in enumerate((4, 10, 13, 26, 30)):
        trainer, callback = make_trainer(tmp_path / "parts", callbacks=[stop := Stop()], **options)
        stop.at = at
        trainer.train(resume_from_checkpoint=i > 0)
    same(result(trainer, callback), expected)


def test_stopped_then_compacted(tmp_path):
    """What has stopped at emergence can be taken up by a trainer that goes on with the smaller model."""
    stopped, callback = make_trainer(tmp_path / "stop", search={"on_emergence": "stop"}, save_strategy="epoch")
    stopped.train()
    again, other = make_trainer(tmp_path / "stop", search={"on_emergence": "stop"}, save_strategy="epoch")
    with pytest.raises(SearchError, match="emerged after 12 steps, where training has stopped"):
        again.train(resume_from_checkpoint=True)
    assert other.draw().mask == callback.draw().mask  # it can be drawn all the same
    trainer, callback = make_trainer(tmp_path / "on")
    trainer.train(resume_from_checkpoint=str(tmp_path / "stop" / "checkpoint-12"))
    whole, _ = make_trainer(tmp_path / "whole")
    whole.train()
    assert trainer.state.global_step == 30
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(folder, save_strategy="epoch", num_train_epochs=3)[0].train()
    return folder


def refused(error, message, folder, tmp_path, **options):
    trainer, _ = make_trainer(tmp_path / "other", **options)
    with pytest.raises(error, match=message):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_without_a_search(tmp_path):
    Trainer(
        make_bert(), arguments(tmp_path, max_steps=2, save_steps=2, save_strategy="steps"), train_dataset=Sentences()
    ).train()
    refused(SearchError, "holds no search: it was saved without a TicketCallback", tmp_path / "checkpoint-2", tmp_path)


@pytest.mark.parametrize("step", [6, 18])
def test_a_damaged_search(step, saved, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(saved / f"checkpoint-{step}", folder)
    path = folder / "search.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    refused(SearchError, "search.safetensors is damaged", folder, tmp_path)


def test_a_checkpoint_that_was_not_finished(saved, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(saved / "checkpoint-18", folder)
    (folder / "trainer_state.json").unlink()
    refused(
        SearchError, "is incomplete, as a kill while it was saved leaves it: resume from an older", folder, tmp_path
    )
    (folder / "search.safetensors").unlink()
    refused(SearchError, "is incomplete", folder, tmp_path)


@pytest.mark.parametrize("step", [6, 18])
def test_a_checkpoint_of_another_search(step, saved, tmp_path):
    folder = saved / f"checkpoint-{step}"
    refused(SearchError, "over other units", folder, tmp_path, search={"units": "neurons"})
    refused(SearchError, "with window 3, not 4", folder, tmp_path, search={"emergence": Emergence(window=4)})


def test_a_checkpoint_that_the_smaller_model_does_not_fit(saved, tmp_path):
    trainer, callback = make_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    expected = result(trainer, callback)
    for checkpoint in (saved / "checkpoint-6", saved / "checkpoint-18"):  # of the dense model, of another ticket
        with pytest.raises(SearchError, match="not one of this smaller model"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
    same(result(trainer, callback), expected)


def test_a_smaller_checkpoint_without_the_callback(saved, tmp_path):
    """Without the callback the trainer itself refuses; the model can be loaded and trained on."""
    trainer = Trainer(make_bert(), arguments(tmp_path), train_dataset=Sentences())
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-18"))
    small = load_pretrained(saved / "checkpoint-18")
    Trainer(small, arguments(tmp_path), train_dataset=Sentences()).train(
        resume_from_checkpoint=str(saved / "checkpoint-18")
    )
    with pytest.raises(TicketError, match="there is no ticket at"):
        load_pretrained(saved / "checkpoint-6")


def test_resumed_by_a_trainer_that_makes_its_model(saved, tmp_path):
    def new_bert():
        return make_bert(seed=3)

    trainer = Trainer(args=arguments(tmp_path, num_train_epochs=4), model_init=new_bert, train_dataset=Sentences())
    callback = TicketCallback(trainer, units=("heads", "neurons"), emergence=SOON)
    trainer.add_callback(callback)
    dense = numbers(trainer.model)
    trainer.train(resume_from_checkpoint=str(saved / "checkpoint-18"))
    assert steps_of(callback) == [0, 6, 12]
    assert numbers(trainer.model) < dense
