"""Sentences of made-up words, tiny transformers that read them, and a Hugging Face Trainer for these."""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from earlyworm import Emergence
from earlyworm.integrations.transformers import TicketCallback

WORDS, LENGTH = 30, 8
UNITS = {"units": ("heads", "neurons")}
SOON = Emergence(window=3, epsilon=1.0)  # at the second check
NEVER = Emergence(window=50)


class Sentences(torch.utils.data.Dataset):
    """Word numbers [length] of which the last few may be padding; the class says whether large ones prevail."""

    def __init__(self, count=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(2, WORDS, (count, LENGTH), generator=generator)
        self.labels = (self.ids.float().mean(1) > WORDS / 2).long()
        lengths = torch.randint(5, LENGTH + 1, (count, 1), generator=generator)
        self.mask = (torch.arange(LENGTH) < lengths).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}

    def batch(self, count=4):
        return {"input_ids": self.ids[:count], "attention_mask": self.mask[:count]}


def make_bert(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=LENGTH, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():  # larger than the usual start, so that the masks move while so little is learnt
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def arguments(folder, **options):
    defaults = {
        "num_train_epochs": 5, "per_device_train_batch_size": 8, "learning_rate": 0.01, "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1, "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**defaults, **options})


def make_trainer(folder, *, model=None, data=None, search=None, callbacks=None, trainer=None, **options):
    """A trainer with a callback that finds heads and neurons.

    `search` are settings of the callback, `trainer` of the trainer, `options` training arguments.
    """
    made = Trainer(
        None if trainer and "model_init" in trainer else make_bert() if model is None else model,
        arguments(folder, **options),
        train_dataset=Sentences() if data is None else data,
        callbacks=callbacks,
        **(trainer or {}),
    )
    callback = TicketCallback(made, **{**UNITS, "emergence": SOON, **(search or {})})
    made.add_callback(callback)
    return made, callback


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def steps_of(callback):
    return [check.step for check in callback.history]
