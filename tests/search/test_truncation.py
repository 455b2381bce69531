import math

import pytest
import torch

from earlyworm import ConfigError, Constant, Greedy, Worm, truncate_, truncation_factor


def chis(schedule, distances):
    """Chi after every check, as the distances come in."""
    return [schedule.chi_after(distances[: i + 1]) for i in range(len(distances))]


@pytest.mark.parametrize(
    ("schedule", "distances", "expected"),
    [
        (Constant(), [1.0, 1.0, 0.3, 0.0], [0.1, 0.1, 0.1, 0.1]),
        (Constant(0.0), [1.0, 0.0], [0.0, 0.0]),
        (Greedy(), [1.0, 1.0, 0.3, 0.25, 0.4, 0.0], [1.0, 1.0, 0.3, 0.25, 0.4, 0.0]),
        (Worm(), [1.0, 1.0, 0.2, 0.14, 0.1], [1.0, 1.0, 1.0, 0.003, 0.003]),
        # strictly below the trigger
        (Worm(), [1.0, 0.15, 0.15], [1.0, 1.0, 1.0]),
        (Worm(), [1.0, math.nextafter(0.15, 0)], [1.0, 0.003]),
        # stays on
        (Worm(), [1.0, 0.1, 0.5, 1.0], [1.0, 0.003, 0.003, 0.003]),
        # greedy until then
        (Worm(0.015, 0.01, greedy_first=True), [1.0, 0.2, 0.015, 0.014, 0.5], [1.0, 0.2, 0.015, 0.01, 0.01]),
        # the limits of the trigger
        (Worm(trigger=0.0, chi=0.5), [1.0, 0.0], [1.0, 1.0]),
        (Worm(trigger=1.0, chi=0.5), [1.0, 0.99], [1.0, 0.5]),
        (Worm(trigger=0.5, chi=1.0), [1.0, 0.1], [1.0, 1.0]),
    ],
)  # fmt: skip
def test_distances_to_chi(schedule, distances, expected):
    assert chis(schedule, distances) == expected


def test_defaults_are_the_papers():
    assert Worm() == Worm(trigger=0.15, chi=0.003, static="latest", greedy_first=False)
    assert Constant() == Constant(chi=0.1, static="latest")
    assert Greedy().static == "latest"


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "name"),
    [(Constant, "chi"), (lambda v: Worm(chi=v), "chi"), (lambda v: Worm(trigger=v), "trigger")],
)
def test_values_outside_their_range(make, name, value):
    with pytest.raises(ConfigError, match=rf"{name} is {value}, but must be in \[0, 1\]"):
        make(value)


@pytest.mark.parametrize("schedule", [Constant, Greedy, Worm])
def test_unknown_static(schedule):
    with pytest.raises(ConfigError, match="static is 'ever', but must be 'latest' or 'window'"):
        schedule(static="ever")
    assert schedule(static="window").static == "window"


SHAPES = [((5,), (5,)), ((5, 3), (5, 1)), ((3, 5), (1, 5)), ((5, 2, 3, 3), (5, 1, 1, 1)), ((2, 5, 3, 3), (1, 5, 1, 1))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chi", [0.0, 0.003, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("shape", "mask_shape"), SHAPES)
def test_gradients_follow_the_papers_formula(shape, mask_shape, chi, dtype):
    kept = torch.tensor([True, False, False, True, False]).view(mask_shape)
    gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    original = gradient.clone()

    m = kept.to(dtype)
    expected = original * (m + torch.tensor(chi, dtype=dtype) * (1 - m))
    truncate_([gradient], [truncation_factor(kept, chi, dtype)])

    assert torch.equal(gradient, expected)
    everywhere = kept.expand(shape)
    assert torch.equal(gradient[everywhere], original[everywhere])  # what is kept is untouched, bit for bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_factor(dtype):
    factor = truncation_factor(torch.tensor([[True, False]]), 0.1, dtype)
    assert factor.dtype == dtype
    assert factor.tolist() == torch.tensor([[1, 0.1]], dtype=dtype).tolist()  # chi in full precision


def test_all_gradients_at_once():
    gradients = [torch.ones(2, 2), torch.ones(3, dtype=torch.bfloat16), torch.ones(2, 1, 3, 3, dtype=torch.float64)]
    masks = [torch.tensor([[True], [False]]), torch.tensor([False, True, True]), torch.ones(2, 1, 1, 1) > 1]
    factors = [truncation_factor(m, 0.5, g.dtype) for m, g in zip(masks, gradients, strict=True)]
    same = list(gradients)
    truncate_(gradients, factors)
    assert gradients[0].tolist() == [[1, 1], [0.5, 0.5]]
    assert gradients[1].tolist() == [0.5, 1, 1]
    assert gradients[2].unique().tolist() == [0.5]
    assert all(a is b for a, b in zip(gradients, same, strict=True))


def test_no_gradients():
    truncate_([], [])


def test_gradients_that_are_in_a_graph():
    parameter = torch.tensor([1.0, 2.0], requires_grad=True)
    (parameter**3).sum().backward(create_graph=False)
    assert parameter.grad is not None
    truncate_([parameter.grad], [truncation_factor(torch.tensor([True, False]), 0.0, torch.float32)])
    assert parameter.grad.tolist() == [3.0, 0.0]
    leaf = torch.ones(2, requires_grad=True)
    truncate_([leaf], [torch.zeros(2)])  # in place on a leaf that requires a gradient: outside of any graph
    assert leaf.tolist() == [0.0, 0.0]
