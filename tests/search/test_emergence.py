import math

import pytest
import torch

from earlyworm import ConfigError, Emergence, Mask, SearchError
from earlyworm.masks.mask import MaskWindow


def mask(text: str) -> Mask:
    return Mask.from_groups({"a": torch.tensor([c == "1" for c in text])})


def pushed(window: MaskWindow, newest: Mask) -> tuple[float, ...]:
    distances = window.distances(newest)
    window.push(newest)
    return distances


def follow(emergence: Emergence, texts: list[str]) -> tuple[list[tuple[float, ...]], list[bool]]:
    window = MaskWindow(emergence.window)
    distances = [pushed(window, mask(text)) for text in texts]
    return distances, [emergence.has_emerged(some) for some in distances]


def test_window_of_three():
    distances, emerged = follow(
        Emergence(window=3, epsilon=0.25), ["1100", "0011", "0110", "0110", "1110", "1110", "1111", "0000", "0000"]
    )
    assert distances == [
        (),
        (1.0,),
        (0.5, 0.5),
        (0.5, 0.0),
        (0.25, 0.25),  # emerged: exactly epsilon counts
        (0.25, 0.0),
        (0.25, 0.25),
        (0.75, 1.0),  # one far mask is enough to undo it
        (1.0, 0.0),  # the maximum counts, not the mean and not the newest
    ]
    assert emerged == [False, False, False, False, True, True, True, False, False]


def test_window_of_two_compares_with_the_last_mask_only():
    distances, emerged = follow(Emergence(window=2, epsilon=0.0), ["10", "01", "01", "10", "10"])
    assert distances == [(), (1.0,), (0.0,), (1.0,), (0.0,)]
    assert emerged == [False, False, True, False, True]


def test_window_of_five_must_be_full():
    distances, emerged = follow(Emergence(), ["10"] * 6)
    assert [len(some) for some in distances] == [0, 1, 2, 3, 4, 4]
    assert emerged == [False, False, False, False, True, True]


def test_epsilon_one_emerges_as_soon_as_the_window_is_full():
    _, emerged = follow(Emergence(window=2, epsilon=1.0), ["10", "01", "10"])
    assert emerged == [False, True, True]


@pytest.mark.parametrize(
    ("distances", "emerged"),
    [
        ((), False),
        ((0.0,), False),
        ((0.0, 0.0), True),
        ((0.1, 0.1), True),
        ((0.1, math.nextafter(0.1, 1)), False),
        ((0.2, 0.0), False),
    ],
)
def test_emergence_at_epsilon(distances, emerged):
    assert Emergence(window=3, epsilon=0.1).has_emerged(distances) is emerged


def test_window_forgets_the_oldest():
    window = MaskWindow(2)
    for text in ("111", "110", "100"):
        window.push(mask(text))
    assert [m.flat.tolist() for m in window.masks] == [[True, True, False], [True, False, False]]
    assert window.newest == mask("100")


def test_ever_kept_removes_what_every_mask_removes():
    window = MaskWindow(3)
    for text, expected in [("1100", "1100"), ("1010", "1110"), ("0110", "1110"), ("0010", "1110"), ("0010", "0110")]:
        window.push(mask(text))
        assert window.ever_kept == mask(expected)


def test_masks_over_other_units_in_one_window():
    window = MaskWindow(3)
    window.push(mask("11"))
    with pytest.raises(SearchError, match="different units"):
        window.distances(mask("111"))


@pytest.mark.parametrize("window", [1, 0, -3, 5.0, 2.5])
def test_bad_window(window):
    with pytest.raises(ConfigError, match=f"window is {window}, but must be a whole number, at least 2"):
        Emergence(window=window)


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, math.nan, math.inf])
def test_bad_epsilon(epsilon):
    with pytest.raises(ConfigError, match=rf"epsilon is {epsilon}, but must be in \[0, 1\]"):
        Emergence(epsilon=epsilon)


@pytest.mark.parametrize(
    ("epochs", "check_every", "window"),
    [(4, 1, 5), (4, 0.5, 9), (4, 0.125, 33), (1, 1, 2), (0.5, 0.25, 3), (2, 0.3, 8), (4, 3, 2)],
)
def test_a_window_that_spans_epochs(epochs, check_every, window):
    assert Emergence.spanning(epochs, check_every=check_every, epsilon=0.2) == Emergence(window, 0.2)


@pytest.mark.parametrize(("epochs", "check_every"), [(1, 2), (0, 1), (4, 0), (4, -1), (math.inf, 1), (math.nan, 1)])
def test_bad_spans(epochs, check_every):
    with pytest.raises(
        ConfigError, match=f"the window spans {epochs} epochs with a check every {check_every}: it must"
    ):
        Emergence.spanning(epochs, check_every=check_every)


@pytest.mark.parametrize("checks_per_epoch", [1, 2, 4])
def test_the_epoch_of_emergence_does_not_depend_on_the_interval(checks_per_epoch):
    """Masks in which ever fewer units change per time: 5 masks come sooner with more checks, 2 epochs do not."""

    def emerges(emergence):
        window = MaskWindow(emergence.window)
        for check in range(20 * checks_per_epoch):
            threshold = round(300 * (1 - 0.75 ** (check / checks_per_epoch)))  # it creeps to its place
            bits = torch.arange(1000) < threshold
            if emergence.has_emerged(pushed(window, Mask.from_groups({"a": bits}))):
                return check / checks_per_epoch
        raise AssertionError("it has not emerged")

    spanning = Emergence.spanning(2, check_every=1 / checks_per_epoch, epsilon=0.05)
    # In 2 epochs 0.3 * (0.75 ** (t - 2) - 0.75 ** t) of the units change: 0.05 at epoch 5.36.
    assert emerges(spanning) == {1: 6, 2: 5.5, 4: 5.5}[checks_per_epoch]
    assert emerges(Emergence(3, 0.05)) == {1: 6, 2: 2.5, 4: 0.5}[checks_per_epoch]
