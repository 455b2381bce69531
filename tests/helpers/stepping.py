"""Ways in which a training loop computes gradients and steps, and what truncation must make of them."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from earlyworm import Emergence, TicketSearch, find_channels
from residual import COUPLED, loss_on, make_batch, make_network

LR = 0.1
UNITS = find_channels(make_network(), torch.randn(1, 3, 6, 6))
LONG = Emergence(window=50)  # never emerges here


def search_on(model, truncation, **options):
    return TicketSearch(model, units=UNITS, truncation=truncation, emergence=LONG, **options)


def factors(model, mask, chi):
    """What each gradient must be multiplied by, from the names of the network and not from what was found in it."""
    found = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    for group, norms in COUPLED.items():
        for norm in norms:
            for unit, kept in enumerate(mask.kept[group].tolist()):
                if not kept:
                    found[f"{norm}.weight"][unit] = found[f"{norm}.bias"][unit] = chi
    return found


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_multiplied(model, reference, expected):
    """The gradients of one model are those of another one times the factors that are expected."""
    theirs = gradients(reference)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, theirs[name] * expected[name]), name


# ------------------------------------------------------------------- ways to take one step on batch number `i` of a run


def plain(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


def in_place_zero_grad(model, optimizer, i):
    optimizer.zero_grad(set_to_none=False)
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


def accumulated(model, optimizer, i):
    optimizer.zero_grad()
    for part in range(3):
        (loss_on(model, make_batch(100 * i + part)) / 3).backward()
    optimizer.step()


def autocast(model, optimizer, i):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_on(model, make_batch(i))
    loss.backward()
    optimizer.step()


def scaled(model, optimizer, i):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_on(model, make_batch(i))).backward()
    scaler.step(optimizer)
    scaler.update()


def scaled_and_clipped(model, optimizer, i):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    for part in range(2):
        scaler.scale(loss_on(model, make_batch(100 * i + part)) / 2).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    scaler.step(optimizer)
    scaler.update()


def clipped(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


def make_closure(model, optimizer, i):
    def closure():
        optimizer.zero_grad()
        loss = loss_on(model, make_batch(i))
        loss.backward()
        return loss

    return closure


def positional_closure(model, optimizer, i):
    assert optimizer.step(make_closure(model, optimizer, i)) > 0  # the loss comes through


def keyword_closure(model, optimizer, i):
    assert optimizer.step(closure=make_closure(model, optimizer, i)) > 0


def no_closure(model, optimizer, i):
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step(closure=None)


def accelerated(model, optimizer, i):
    optimizer = Accelerator(cpu=True).prepare(optimizer)
    optimizer.zero_grad()
    loss_on(model, make_batch(i)).backward()
    optimizer.step()


WAYS = [plain, in_place_zero_grad, accumulated, autocast, scaled, scaled_and_clipped, clipped, positional_closure,
        keyword_closure, no_closure, accelerated]  # fmt: skip
CLOSURES = [positional_closure, keyword_closure]


class Halving(SGD):
    """An optimizer whose step calls the step of its base, which has the same hooks."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] /= 2
        return super().step(closure)


def groups_of(model):
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    return [{"params": biases, "lr": LR / 2}, {"params": others}]


OPTIMIZERS = {
    "sgd": lambda model: SGD(model.parameters(), lr=LR),
    "sgd-foreach": lambda model: SGD(model.parameters(), lr=LR, foreach=True),
    "sgd-fused": lambda model: SGD(model.parameters(), lr=LR, fused=True),
    "sgd-loop": lambda model: SGD(model.parameters(), lr=LR, foreach=False),
    "sgd-groups": lambda model: SGD(groups_of(model), lr=LR),
    "sgd-named": lambda model: SGD(model.named_parameters(), lr=LR),
    "sgd-subclass": lambda model: Halving(model.parameters(), lr=LR),
    "momentum": lambda model: SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=0.01),
    "adamw": lambda model: AdamW(model.parameters(), lr=LR, weight_decay=0),
    "adamw-fused": lambda model: AdamW(model.parameters(), lr=LR, fused=True, weight_decay=0),
    "adamw-decay": lambda model: AdamW(model.parameters(), lr=LR, weight_decay=0.1),
    "adam-amsgrad": lambda model: Adam(model.parameters(), lr=LR, amsgrad=True, foreach=True),
    "rmsprop": lambda model: RMSprop(model.parameters(), lr=LR),
}
DECAYING = ("momentum", "adamw-decay")  # weight decay moves static units too
PAIRS = (
    [(way, "sgd") for way in WAYS]
    + [(way, "sgd-fused") for way in (accumulated, scaled, scaled_and_clipped, positional_closure)]
    + [(way, "adamw-fused") for way in (scaled, scaled_and_clipped)]
    + [(way, "sgd-subclass") for way in (plain, positional_closure, scaled)]
    + [(plain, optimizer) for optimizer in OPTIMIZERS if optimizer not in ("sgd", "sgd-subclass")]
)


def over(pairs):
    return pytest.mark.parametrize(("way", "optimizer"), pairs, ids=lambda value: getattr(value, "__name__", value))
