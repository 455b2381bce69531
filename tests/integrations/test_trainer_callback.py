"""The search in a Hugging Face Trainer."""

import logging
from dataclasses import asdict

import pytest
import torch
from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from earlyworm import ConfigError, Constant, Emergence, SearchError, TicketSearch, UnitsError, compact
from earlyworm.integrations.transformers import TicketCallback, load_pretrained, save_pretrained
from earlyworm.units.groups import gate_masks
from sentences import NEVER, SOON, UNITS, Sentences, arguments, make_bert, make_trainer, numbers, steps_of


def test_goes_on_with_the_smaller_model(tmp_path):
    trainer, callback = make_trainer(tmp_path)
    model, dense = trainer.model, numbers(trainer.model)
    trainer.train()
    assert steps_of(callback) == [0, 6, 12]  # six steps an epoch
    assert callback.compacted
    assert callback.draw().emerged
    assert trainer.state.global_step == 30
    assert trainer.model is trainer.model_wrapped is model
    assert numbers(model) < 0.7 * dense
    small = compact(make_bert(), callback.draw())
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert trainer.evaluate(Sentences(seed=1))["eval_loss"] < 1
    assert trainer.predict(Sentences(seed=1)).predictions.shape == (48, 2)


def test_the_schedule_of_the_learning_rate_goes_on(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    dense = Trainer(make_bert(), arguments(tmp_path), train_dataset=Sentences())
    rates = []
    for some in (trainer, dense):
        some.train()
        rates.append([log["learning_rate"] for log in some.state.log_history if "learning_rate" in log])
    assert rates[0] == rates[1]


def test_stops_at_emergence(tmp_path):
    trainer, callback = make_trainer(tmp_path, search={"on_emergence": "stop"})
    dense = numbers(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 12
    assert not callback.compacted
    assert numbers(trainer.model) == dense
    ticket = callback.draw()
    assert ticket.emerged
    assert ticket.step == 12
    small = compact(trainer.model, ticket)
    Trainer(small, arguments(tmp_path, num_train_epochs=1), train_dataset=Sentences()).train()
    with pytest.raises(SearchError, match="emerged after 12 steps, where training has stopped"):
        trainer.train()


def test_finds_what_a_plain_loop_finds(tmp_path):
    """The same batches, clipped by hand, through the library alone."""
    truncation, norm = Constant(chi=0.2), 0.5
    trainer, callback = make_trainer(
        tmp_path, model=make_bert(dropout=0.0), search={"truncation": truncation, "every": 4, "on_emergence": "stop"},
        lr_scheduler_type="constant", max_grad_norm=norm, optim="adamw_torch", weight_decay=0.0,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer.train()
    model, data = make_bert(dropout=0.0).train(), Sentences()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    search = TicketSearch(model, **UNITS, truncation=truncation, emergence=SOON)
    with search.attach(optimizer):
        for step in range(8):
            batch = torch.utils.data.default_collate([data[i] for i in range(step % 6 * 8, step % 6 * 8 + 8)])
            optimizer.zero_grad()
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
            if step % 4 == 3:
                search.update()
    assert [asdict(check) for check in callback.history] == [asdict(check) for check in search.history]
    assert callback.draw().mask == search.draw().mask
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 4}, {"max_grad_norm": 0.05}, {"bf16": True}], ids=str
)
def test_truncation_acts_on_the_gradients_of_the_step(options, tmp_path):
    """With chi = 0 and plain SGD, what the first mask removes stays bit for bit what it was."""
    trainer, callback = make_trainer(
        tmp_path, search={"truncation": Constant(chi=0.0), "emergence": NEVER, "every": 5}, max_steps=5, optim="sgd",
        weight_decay=0.0, learning_rate=0.5, **options,
    )  # fmt: skip
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    first = []
    trainer.add_callback(AtTheFirstStep(lambda: first.append(callback.search.mask.kept)))
    trainer.train()
    masks = gate_masks(trainer.model, callback.search.units.groups, first[0])
    assert len(masks) > 10
    for name, mask in masks.items():
        kept, now = mask.expand_as(before[name]), trainer.model.get_parameter(name)
        assert torch.equal(now[~kept], before[name][~kept]), name
        if not name.endswith("key.bias"):  # whose gradient is zero: softmax does not notice it
            assert not torch.equal(now[kept], before[name][kept]), name


class AtTheFirstStep(TrainerCallback):
    def __init__(self, action):
        self.action = action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.action()


def test_checks_at_the_end_of_epochs_of_uneven_length(tmp_path):
    trainer, callback = make_trainer(
        tmp_path, data=Sentences(43), gradient_accumulation_steps=4, search={"emergence": NEVER}, max_steps=5
    )
    trainer.train()  # six batches an epoch, in steps of four and of two
    assert steps_of(callback) == [0, 2, 4]


def test_checks_after_epochs_that_end_early(tmp_path):
    class Short(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step % 4 == 0
            return control

    trainer, callback = make_trainer(tmp_path, callbacks=[Short()], search={"emergence": NEVER}, num_train_epochs=3)
    trainer.train()
    assert steps_of(callback) == [0, 4, 8, 12]


def test_checks_every_so_many_steps(tmp_path):
    trainer, callback = make_trainer(tmp_path, search={"emergence": NEVER, "every": 4}, max_steps=11)
    trainer.train()
    assert steps_of(callback) == [0, 4, 8]


def test_logs_to_every_logger_of_the_trainer(tmp_path):
    class Logger(TrainerCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs, **kwargs):
            self.logs.append((state.global_step, dict(logs)))

    logger = Logger()
    trainer, callback = make_trainer(
        tmp_path, callbacks=[logger], search={"truncation": Constant(chi=0.1)}, logging_steps=3
    )
    trainer.train()
    told = [(step, logs) for step, logs in logger.logs if "ticket/chi" in logs]
    assert [step for step, _ in told] == [0, 6, 12]
    for check, (_, logs) in zip(callback.history, told, strict=True):
        assert logs["ticket/chi"] == 0.1
        assert logs["ticket/truncated"] == check.truncated == 28
        assert logs.get("ticket/distance_max") == check.distance_max
        assert logs.get("ticket/distance_mean") == check.distance_mean
    assert [step for step, logs in logger.logs if "loss" in logs] == list(range(3, 31, 3))  # the trainer's own


def train_worse_and_worse(folder, **search):
    """Train with a score that falls from epoch to epoch, and load the best model at the end."""
    scores = iter((0.9, 0.8, 0.7, 0.6, 0.5))
    trainer, callback = make_trainer(
        folder, trainer={"eval_dataset": Sentences(seed=1), "compute_metrics": lambda _: {"score": next(scores)}},
        search=search, save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True, save_total_limit=2,
    )  # fmt: skip
    trainer.train()
    return trainer, callback, [*scores]


def test_the_best_model_is_one_of_the_smaller_ones(tmp_path):
    """The dense model may have been better, but its weights would not fit any more."""
    trainer, _, left = train_worse_and_worse(tmp_path)
    assert left == []
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-12")  # the first of the compacted model
    stored = load_pretrained(trainer.state.best_model_checkpoint)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(stored.state_dict()[name], tensor), name


def test_what_stops_at_emergence_is_not_replaced_by_an_earlier_model(tmp_path):
    trainer, callback, _ = train_worse_and_worse(tmp_path, on_emergence="stop")
    assert callback.draw().step == trainer.state.global_step == 12
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-12")


@pytest.mark.parametrize(
    ("schedule", "more"), [("reduce_lr_on_plateau", {}), ("greedy", {}), ("greedy", {"smooth": True})]
)
def test_a_schedule_that_watches_a_metric_starts_over(schedule, more, tmp_path):
    seen = []

    def score(_):  # lower, and better from there
        seen.append(1)
        return {"score": 0.01 * len(seen) + 0.5 * (not callback.compacted)}

    trainer, callback = make_trainer(
        tmp_path, trainer={"eval_dataset": Sentences(seed=1), "compute_metrics": score},
        eval_strategy="epoch", lr_scheduler_type=schedule, metric_for_best_model="score", greater_is_better=True,
        lr_scheduler_kwargs={"patience": 1, "mode": "max", **more}, num_train_epochs=6,
    )  # fmt: skip
    first = trainer.args.learning_rate
    trainer.train()
    assert callback.compacted
    assert min(group["lr"] for group in trainer.optimizer.param_groups) >= first


def test_the_best_model_is_one_of_those_after_the_last_cut(tmp_path):
    trainer, callback = make_trainer(
        tmp_path, trainer={"eval_dataset": Sentences(seed=1), "compute_metrics": lambda _: {"score": 0.5}},
        search={"shrink": True, "truncation": Constant(0.5), "emergence": Emergence(window=4, epsilon=0.0), "every": 3},
        save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="score",
        num_train_epochs=2, save_total_limit=1,
    )  # fmt: skip
    dense = numbers(trainer.model)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-12")  # it was cut after step 9
    assert numbers(trainer.model) < dense
    assert callback.search.cut
    assert not callback.compacted


def test_what_the_trainer_saves_can_be_loaded(tmp_path):
    trainer, callback = make_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    trainer.save_model(tmp_path / "mine")
    save_pretrained(trainer.model, callback.draw(), tmp_path / "again")
    batch, model = Sentences().batch(), trainer.model.eval()
    for folder in ("checkpoint-30", "mine", "again"):
        assert torch.equal(load_pretrained(tmp_path / folder)(**batch).logits, model(**batch).logits), folder
    assert (tmp_path / "checkpoint-6" / "search.safetensors").exists()
    assert not (tmp_path / "checkpoint-6" / "ticket.safetensors").exists()
    assert not (tmp_path / "mine" / "search.safetensors").exists()


@pytest.mark.parametrize("name", ["vit", "swin"])  # whose weights transformers saves under other names
def test_models_of_older_names_go_on_and_are_loaded(name, tmp_path):
    class Pictures(torch.utils.data.Dataset):
        def __init__(self):
            self.images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return {"pixel_values": self.images[i], "labels": (self.images[i].mean() > 0).long()}

    def make():
        torch.manual_seed(0)
        if name == "vit":
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
            return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
        sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2}
        return SwinForImageClassification(SwinConfig(image_size=8, patch_size=2, **sizes))

    options = {"data": Pictures(), "save_strategy": "epoch", "num_train_epochs": 3, "logging_strategy": "no"}
    whole, callback = make_trainer(tmp_path / "whole", model=make(), **options)
    whole.train()
    assert callback.compacted
    expected = whole.model.state_dict()
    for step in (6, 12):  # the dense model, the smaller one
        trainer, _ = make_trainer(tmp_path / "part", model=make(), **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for key, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, expected[key]), (step, key)
    whole.save_model(tmp_path / "mine")
    for folder in ("whole/checkpoint-18", "mine"):
        assert load_pretrained(tmp_path / folder).state_dict().keys() == expected.keys()
    assert "save_pretrained" not in vars(whole.model)


def test_a_callback_that_was_removed_or_replaced_leaves_the_trainer_alone(tmp_path):
    trainer, callback = make_trainer(tmp_path, search={"emergence": NEVER}, save_strategy="epoch", num_train_epochs=2)
    second = TicketCallback(trainer, **UNITS, emergence=SOON)
    trainer.remove_callback(callback)
    trainer.add_callback(second)
    trainer.train()
    assert second.compacted
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    trainer.remove_callback(second)
    trainer.save_model(tmp_path / "mine")
    assert not (tmp_path / "mine" / "ticket.safetensors").exists()


def test_nothing_emerges(tmp_path, caplog):
    trainer, callback = make_trainer(tmp_path, search={"emergence": NEVER})
    dense = numbers(trainer.model)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert numbers(trainer.model) == dense
    assert "no ticket has emerged after 6 checks" in caplog.text
    with pytest.raises(SearchError, match="no ticket has emerged"):
        callback.draw()
    assert callback.draw(force=True).step == 30
    trainer.optimizer.step()
    assert callback.search.steps == 30  # detached


def test_a_second_call_goes_on_searching(tmp_path):
    trainer, callback = make_trainer(tmp_path, num_train_epochs=1)
    trainer.train()
    assert not callback.emerged
    trainer.train()
    assert steps_of(callback) == [0, 6, 12]
    assert callback.compacted
    small = numbers(trainer.model)
    trainer.train()  # the smaller model, once more
    assert steps_of(callback) == [0, 6, 12]
    assert numbers(trainer.model) == small


def test_a_run_that_was_broken_off_can_be_started_again(tmp_path):
    def fail():
        raise KeyboardInterrupt

    trainer, callback = make_trainer(tmp_path)
    trainer.add_callback(AtTheFirstStep(fail))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(AtTheFirstStep)
    trainer.train()
    assert callback.compacted
    assert callback.search.steps == 12


def new_bert():
    return make_bert()


def test_a_model_that_the_trainer_makes(tmp_path):
    trainer, callback = make_trainer(tmp_path, trainer={"model_init": new_bert})
    trainer.train()
    first = callback.search
    assert callback.compacted
    trainer.train()  # a new dense model
    assert callback.search is not first
    assert callback.search.model is trainer.model
    assert callback.compacted


def test_a_compiled_model(tmp_path):
    models = []
    for options in ({"torch_compile": True, "torch_compile_backend": "eager"}, {}):
        trainer, callback = make_trainer(
            tmp_path, num_train_epochs=3, model=make_bert(dropout=0.0), train_sampling_strategy="sequential", **options
        )
        trainer.train()
        assert callback.compacted
        assert (trainer.model_wrapped is trainer.model) == (not options)
        models.append(trainer.model.state_dict())
    for name, tensor in models[1].items():
        torch.testing.assert_close(models[0][name], tensor, rtol=0, atol=1e-4)


# What cannot be done is said before training starts.


def refused(error, message, tmp_path, **options):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **options)[0].train()


def test_impossible_settings(tmp_path):
    refused(ConfigError, "'prunning_ratio'", tmp_path, search={"prunning_ratio": 0.5})
    refused(ConfigError, "on_emergence is 'prune'", tmp_path, search={"on_emergence": "prune"})
    refused(ConfigError, "every is 0,", tmp_path, search={"every": 0})
    refused(ConfigError, "every is 'step'", tmp_path, search={"every": "step"})
    refused(UnitsError, "no heads found", tmp_path, model=nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="must be the trainer, not a Bert"):
        TicketCallback(make_bert())


def test_added_twice(tmp_path):
    trainer, callback = make_trainer(tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(SearchError, match="2 TicketCallbacks were added"):
        trainer.train()


def test_never_trained(tmp_path):
    _, callback = make_trainer(tmp_path)
    with pytest.raises(SearchError, match="no mask was taken yet"):
        callback.draw()


@pytest.mark.parametrize("what", ["is_fsdp_enabled", "is_deepspeed_enabled", "is_distributed_loading_by_transformers"])
def test_sharded(what, tmp_path, monkeypatch):
    trainer = Trainer(make_bert(), arguments(tmp_path), train_dataset=Sentences())
    monkeypatch.setattr(trainer, what, True, raising=False)
    with pytest.raises(SearchError, match="sharded over processes"):
        TicketCallback(trainer)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft uses an old name
def test_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    refused(UnitsError, "wrapped in an adapter", tmp_path, model=peft.get_peft_model(make_bert(), config))
    model = make_bert()
    model.add_adapter(config)
    refused(UnitsError, "wrapped in an adapter", tmp_path, model=model)


def test_quantised(tmp_path):
    model = make_bert()
    weight = model.classifier.weight
    model.classifier.weight = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    refused(UnitsError, "classifier.weight is quantised", tmp_path, model=model)
    trainer = Trainer(make_bert(), arguments(tmp_path))
    trainer.model.is_quantized = True
    with pytest.raises(UnitsError, match="quantised"):
        TicketCallback(trainer, **UNITS)


def test_data_without_epochs(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            data = Sentences()
            return iter([data[i] for i in range(len(data))])

    refused(ConfigError, "give every=STEPS", tmp_path, data=Stream(), max_steps=20)
    trainer, callback = make_trainer(tmp_path, data=Stream(), max_steps=20, search={"every": 5})
    trainer.train()
    assert steps_of(callback) == [0, 5, 10]
    assert trainer.state.global_step == 20


def test_many_trainings(tmp_path):
    trainer, _ = make_trainer(tmp_path, trainer={"model_init": new_bert})
    trainer.state.is_hyper_param_search = True
    with pytest.raises(SearchError, match="a hyperparameter search"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_processes_that_disagree(tmp_path, monkeypatch):
    distributed = torch.distributed
    trainer, _ = make_trainer(tmp_path)
    trainer.add_callback(AtTheFirstStep(lambda: monkeypatch.setattr(distributed, "is_initialized", lambda: True)))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, "x"]))
    with pytest.raises(SearchError, match="different masks"):
        trainer.train()


def test_without_the_package(fresh_python):
    fresh_python("""
        import sys
        sys.modules["transformers"] = None
        import earlyworm
        try:
            import earlyworm.integrations.transformers
        except ImportError as error:
            assert isinstance(error, earlyworm.EarlywormError)
            assert "pip install 'earlyworm[transformers]'" in str(error)
        else:
            raise AssertionError
    """)


def test_the_library_needs_none_of_it(fresh_python):
    fresh_python("""
        import sys, earlyworm
        earlyworm.TicketSearch, earlyworm.compact
        assert not {"transformers", "accelerate", "lightning", "pytorch_lightning"} & set(sys.modules)
    """)
