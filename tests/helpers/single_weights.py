"""A small network with attention whose single weights are units, beside neurons, and data that it can learn."""

import torch
import torch.nn.functional as F
from torch import nn

import earlyworm as ew
from earlyworm.units.groups import Entries, make_slice


class Attention(nn.Module):
    """Query, key and value in one matrix, as GPT-2 has it, and a feed-forward pair."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):  # [batch, 5, 8]
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.down(F.relu(self.up(x + self.out(F.scaled_dot_product_attention(q, k, v))))).mean(1)


def network(seed=0):
    torch.manual_seed(seed)
    return Attention()


def batch(i):
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(16, 5, 8, generator=generator)
    return x, (x[:, 0, :3] + x[:, 1, 3:6]).argmax(1)


def step(model, optimizer, i):
    x, y = batch(i)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


QUERY = ew.UnitGroup("qkv.weight:query", 64, (), "weights", Entries("qkv.weight", 0, 0, 8))


KEY = ew.UnitGroup("qkv.weight:key", 64, (), "weights", Entries("qkv.weight", 0, 8, 8))


NEURONS = ew.UnitGroup(
    "up",
    12,
    (
        make_slice("up.weight", 0, list(range(12)), list(range(12)), "filter", gate=True),
        make_slice("up.bias", 0, list(range(12)), list(range(12)), "bias", gate=True),
        make_slice("down.weight", 1, list(range(12)), list(range(12)), "input", gate=True),
    ),
    "neurons",
)


WEIGHTS = ew.Units((QUERY, KEY), ())


BOTH = ew.Units((QUERY, NEURONS, KEY), (NEURONS,))
