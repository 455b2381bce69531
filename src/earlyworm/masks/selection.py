"""Select the lowest of very many scores exactly, without sorting them and without a copy of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIECE = 1 << 18  # scores looked at together on a CPU: a megabyte stays in the cache of a core
_PIECE_ELSEWHERE = 1 << 24
_SAMPLE = 1 << 16  # scores that the first guess of the threshold rests on
_GATHER = 1 << 20  # scores that are copied, at most
_IN_NUMPY = ("cpu",)  # device types whose tensors NumPy can read


def lowest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark the `count` scores of the lowest absolute value; of equal ones the later goes first.

    A sample brackets the threshold, a pass counts what lies below the bracket and gathers what lies inside of it, the
    exact threshold is selected from that, and a last pass marks. If too much lies inside, the pass gathers a sample of
    it, which brackets the threshold more closely.

    Args:
        scores: Tensors of any shapes, floating-point dtypes and devices, compared in float32; views are read in place.
        count: How many to mark, in [0, number of all scores].

    Returns:
        For each tensor its marks in row-major order as bits, uint8 [ceil(entries / 8)] on the CPU (see `pack`).
    """
    if count in (0, sum(score.numel() for score in scores)):
        return [pack(torch.full((score.numel(),), count > 0)) for score in scores]
    threshold, below, equal = _threshold(scores, count)
    spared = below + equal - count  # of those at the threshold, the first so many stay
    marks = []
    for score in scores:
        bits = []
        for piece, xp in _pieces(score):
            gone = piece <= threshold
            if spared:
                ties = xp.argwhere(piece == threshold)[:spared, 0]
                gone[ties] = False
                spared -= len(ties)
            bits.append(pack(gone))
        marks.append(torch.cat(bits))
    return marks


def pack(marks: Any) -> Tensor:
    """Booleans [n] as bits, uint8 [ceil(n / 8)] on the CPU, the first in the lowest bit; what is left over is 0."""
    if isinstance(marks, Tensor):
        marks = marks.cpu().numpy()
    return torch.from_numpy(np.packbits(marks, bitorder="little"))


def unpack(bits: Tensor, count: int) -> Tensor:
    """The booleans [count] that `pack` packed."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little")).bool()


def absolute_sum(score: Tensor) -> float:
    """The sum of all absolute values, not finite if one of them is not."""
    return sum(float(piece.sum()) for piece, _ in _pieces(score))


def _threshold(scores: Sequence[Tensor], count: int) -> tuple[float, int, int]:
    """The `count`-th lowest score, how many are lower, and how many are equal to it."""
    low, high = 0.0, math.inf
    if sum(score.numel() for score in scores) > _GATHER:
        low, high = _bracket(_sample(scores), count / sum(score.numel() for score in scores))
    while True:
        below, inside, values = _look(scores, low, high)
        if below >= count:  # the sample misled
            low, high = 0.0, float(np.nextafter(np.float32(low), np.float32(0)))
        elif below + inside < count:
            low, high = _after(high), math.inf
        elif low == high:
            return low, below, inside
        elif inside == values.numel():
            threshold = float(values.kthvalue(count - below).values)
            return threshold, below + int((values < threshold).sum()), int((values == threshold).sum())
        else:
            closer = _bracket(values, (count - below) / inside)
            tied = max(low, closer[0]) == low and min(high, closer[1]) == high
            low, high = _halve(scores, low, high, count) if tied else (max(low, closer[0]), min(high, closer[1]))


def _sample(scores: Sequence[Tensor]) -> Tensor:
    """Some of the scores, evenly spread."""
    stride = sum(score.numel() for score in scores) // _SAMPLE | 1
    picked = []
    for score in scores:
        places = torch.arange(0, score.numel(), stride, device=score.device)
        picked.append(score.detach()[torch.unravel_index(places, score.shape)].abs().float().cpu())
    return torch.cat(picked)


def _bracket(sample: Tensor, share: float) -> tuple[float, float]:
    """Two values between which the lowest `share` of all scores very likely ends, by a sample of them."""
    ordered, size = sample.sort().values, sample.numel()
    margin = 4 * math.sqrt(size * share * (1 - share)) + 1  # standard errors
    low, high = math.floor(share * size - margin), math.ceil(share * size + margin)
    return float(ordered[low]) if low >= 0 else 0.0, float(ordered[high]) if high < size else math.inf


def _look(scores: Sequence[Tensor], low: float, high: float) -> tuple[int, int, Tensor]:
    """How many scores are below `low`, how many from `low` to `high`, and these, or an even sample if they are many."""
    below, inside, held, every = 0, 0, 0, 1
    gathered: list[Tensor] = []
    for score in scores:
        for piece, xp in _pieces(score):
            within = (piece >= low) & (piece <= high)
            below += int(xp.count_nonzero(piece < low))
            found = torch.as_tensor(piece[within])
            inside += len(found)
            gathered.append(found[::every].cpu())
            held += len(gathered[-1])
            if held > _GATHER:
                gathered, every = [torch.cat(gathered)[::2]], 2 * every
                held = len(gathered[0])
    return below, inside, torch.cat(gathered)


def _halve(scores: Sequence[Tensor], low: float, high: float, count: int) -> tuple[float, float]:
    """The half of [low, high] that holds the `count`-th lowest score; the bits of floats are in order of value."""
    first, last = (int(np.float32(end).view(np.int32)) for end in (low, high))
    middle = float(np.int32((first + last) // 2).view(np.float32))
    until = sum(int(xp.count_nonzero(piece <= middle)) for score in scores for piece, xp in _pieces(score))
    return (low, middle) if until >= count else (_after(middle), high)


def _after(value: float) -> float:
    """The next larger float32."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


@torch.no_grad()
def _pieces(score: Tensor) -> Iterator[tuple[Any, Any]]:
    """Absolute values of `score` in float32, row-major, in flat pieces that end at whole bytes of marks.

    Each comes with the library that it is an array of: NumPy on a CPU, where it compares several times faster than
    PyTorch, else PyTorch.
    """
    score = score.detach()
    if score.is_contiguous():
        score = score.view(-1)
    in_numpy = score.device.type in _IN_NUMPY
    row = math.prod(score.shape[1:])
    rows = max(8, (_PIECE if in_numpy else _PIECE_ELSEWHERE) // max(1, row) // 8 * 8)
    for part in torch.split(score, rows):
        piece = part.abs().float().reshape(-1)
        yield (piece.numpy(), np) if in_numpy else (piece, torch)
