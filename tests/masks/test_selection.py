"""Selection without sorting gives what sorting gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlyworm.masks import selection
from earlyworm.masks.selection import absolute_sum, lowest, pack, unpack


def by_sorting(scores, count):
    flat = torch.cat([score.detach().abs().float().flatten().cpu() for score in scores])
    order = flat.numel() - 1 - flat.flip(0).sort(stable=True).indices  # of equal ones the later comes first
    marks = torch.zeros(flat.numel(), dtype=torch.bool)
    marks[order[:count]] = True
    return marks


def marked(scores, count):
    bits = lowest(scores, count)
    assert [len(some) for some in bits] == [-(-score.numel() // 8) for score in scores]
    return torch.cat([unpack(some, score.numel()) for some, score in zip(bits, scores, strict=True)])


@pytest.fixture(params=["numpy", "torch"])
def tiny_pieces(monkeypatch, request):
    """Limits so small that every branch is taken on small tensors; by PyTorch as on any device but a CPU."""
    for name, value in {"_PIECE": 64, "_PIECE_ELSEWHERE": 64, "_SAMPLE": 32, "_GATHER": 40}.items():
        monkeypatch.setattr(selection, name, value)
    if request.param == "torch":
        monkeypatch.setattr(selection, "_IN_NUMPY", ())


@pytest.mark.usefixtures("tiny_pieces")
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    levels=st.sampled_from([1, 2, 5, 1000]),
    share=st.floats(0, 1),
)
def test_same_as_sorting(seed, sizes, levels, share):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randint(-levels, levels + 1, (size,), generator=generator) / levels for size in sizes]
    count = round(share * sum(sizes))
    assert torch.equal(marked(scores, count), by_sorting(scores, count))


@pytest.mark.usefixtures("tiny_pieces")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_views(dtype):
    torch.manual_seed(0)
    fused = torch.randn(30, 96).to(dtype)
    scores = [fused.narrow(1, 32, 32), torch.randn(7, 3, 5).to(dtype), torch.randn(1).to(dtype)]
    for count in (1, 333, 700, 1065, 1066):
        assert torch.equal(marked(scores, count), by_sorting(scores, count))


@pytest.mark.usefixtures("tiny_pieces")
def test_dtypes_are_compared_with_each_other():
    scores = [torch.tensor([1.0, 3.0]).bfloat16(), torch.tensor([2.0, -0.5]), torch.tensor([-2.5]).double()]
    assert marked(scores, 3).tolist() == [True, False, True, True, False]


@pytest.mark.usefixtures("tiny_pieces")
def test_a_sample_that_misleads():
    """Large scores where the sample looks, small ones elsewhere."""
    score = torch.full((2000,), 0.25)
    score[:: 2000 // 32 | 1] = 100.0
    score[1] = 0.125
    for count in (1, 2, 1000, 1969):
        assert torch.equal(marked([score], count), by_sorting([score], count))
    assert torch.equal(marked([1 / score], 40), by_sorting([1 / score], 40))


def test_large():
    torch.manual_seed(0)
    scores = [torch.randn(1200, 1001) * 0.02, torch.randn(500_003)]
    for count in (1, 600_000, 1_701_202):
        assert torch.equal(marked(scores, count), by_sorting(scores, count))


def test_scores_are_left_as_they_are():
    score = torch.tensor([[-1.0, 2.0], [0.5, -3.0]], requires_grad=True)
    assert marked([score], 2).tolist() == [True, False, True, False]
    assert score.tolist() == [[-1.0, 2.0], [0.5, -3.0]]


@pytest.mark.parametrize(
    ("text", "bits"), [("1", [1]), ("10000000", [1]), ("00000001", [128]), ("111111111", [255, 1]), ("0101", [10])]
)
def test_bits(text, bits):
    marks = torch.tensor([c == "1" for c in text])
    assert pack(marks).tolist() == bits
    assert torch.equal(unpack(pack(marks), len(text)), marks)


def test_absolute_sum():
    assert absolute_sum(torch.tensor([[1.0, -2.0], [0.5, 0.0]])) == 3.5
    assert np.isnan(absolute_sum(torch.tensor([1.0, float("nan")])))
    assert np.isinf(absolute_sum(torch.tensor([1.0, -float("inf")])))
