import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import earlyworm as ew
from earlyworm.search.truncation import Static
from residual import Residual, loss_on, make_batch, make_network, states_equal
from stepping import LR, UNITS, plain

# ------------------------------------------------------------------------------- the use that the design promises


class Unseen(nn.Module):
    """A concatenation, a depthwise convolution and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.left_bn, self.right_bn = nn.BatchNorm2d(6), nn.BatchNorm2d(4)
        self.depthwise, self.depthwise_bn = nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.BatchNorm2d(10)
        self.mix, self.mix_bn = nn.Conv2d(10, 10, 1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, images):
        left, right = self.left_bn(self.left(images)), self.right_bn(self.right(images))
        x = torch.relu(torch.cat([left, right], 1))
        y = torch.relu(self.depthwise_bn(self.depthwise(x)))
        x = torch.relu(x + self.mix_bn(self.mix(y)))
        return self.head(x.mean((2, 3)))


def test_the_four_lines_on_a_model_that_the_library_has_never_seen(tmp_path):
    torch.manual_seed(0)
    model = Unseen()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = torch.randn(2, 3, 6, 6)

    def train_one_epoch():
        for i in range(4):
            plain(model, optimizer, i)

    search = ew.TicketSearch(
        model,
        example_inputs=x,
        units="channels",
        pruning_ratio=0.5,
        emergence=ew.Emergence(window=3, epsilon=0.1),
        truncation=ew.Worm(trigger=0.3, chi=0.003),
        sparsity_penalty=0.001,
    )
    with search.attach(optimizer):
        for _epoch in range(30):
            train_one_epoch()
            if search.update():
                break
    assert search.emerged
    assert search.history[0].chi == 1
    assert search.history[-1].distance_max <= 0.1
    assert search.history[-1].step == search.steps == 4 * (len(search.history) - 1)

    ticket = search.draw()
    ticket.save(tmp_path / "ticket.safetensors")
    before = copy.deepcopy(model)
    small = ew.compact(model, ew.Ticket.load(tmp_path / "ticket.safetensors"), example_inputs=x)
    assert states_equal(model, before)
    assert ew.cost(small, x, repeats=1).parameters < ew.cost(model, x, repeats=1).parameters / 1.5
    assert ticket.emerged
    assert ticket.mask.units_removed == math.floor(0.5 * ticket.mask.units)
    assert ticket.method == repr(ew.Worm(trigger=0.3, chi=0.003))
    assert (ticket.step, ticket.pruning_ratio) == (search.steps, 0.5)
    assert len(ticket.distances) == 2


def test_everything_is_deterministic():
    def run():
        torch.manual_seed(0)
        model = Unseen()
        optimizer = SGD(model.parameters(), lr=0.05)
        search = ew.TicketSearch(model, torch.randn(1, 3, 6, 6), truncation=ew.Greedy())
        with search.attach(optimizer):
            for i in range(6):
                plain(model, optimizer, i)
                search.update()
        return model, search

    (model, search), (again, same) = run(), run()
    assert states_equal(model, again)
    assert search.history == same.history
    assert search.mask == same.mask


def test_searching_leaves_the_model_and_the_random_numbers_alone():
    model = make_network()
    model.first.eval()
    loss_on(model, make_batch(0)).backward()
    optimizer = SGD(model.parameters(), lr=LR)
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    search = ew.TicketSearch(model, torch.ones(1, 3, 6, 6), truncation=ew.Constant(), sparsity_penalty=0.1)
    with search.attach(optimizer):
        search.draw(force=True)
        search.state_dict()
    assert torch.equal(torch.get_rng_state(), random)
    assert states_equal(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------ a search whose masks are scripted


class Scripted:
    """A search over four units whose masks come from a script: one text per check."""

    def __init__(self, first: str, **options) -> None:
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
        self.optimizer = SGD(self.model.parameters(), lr=1e-3)
        self.now, self.checks = first, 0
        self.search = ew.TicketSearch(self.model, torch.randn(1, 3, 6, 6), score=self.score, **options)
        self.search.attach(self.optimizer)

    def score(self, tensors, group):
        """Fresh numbers at every check that put the kept units of the script first."""
        self.checks += 1
        return torch.tensor([float(c == "1") for c in self.now]) * 10 + self.checks

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        self.optimizer.step()

    def check(self, mask: str) -> bool:
        self.now = mask
        self.step()
        return self.search.update()

    def column(self, name):
        return [getattr(check, name) for check in self.search.history]


def run_script(masks: list[str], **options) -> Scripted:
    scripted = Scripted(masks[0], **options)
    for mask in masks[1:]:
        scripted.check(mask)
    return scripted


MASKS = ["1100", "0011", "0110", "1100", "1100", "1010", "1010"]
MEANS = [None, 1.0, 0.5, 0.75, 0.25, 0.5, 0.25]  # to the two older masks at most
MAXIMA = [None, 1.0, 0.5, 1.0, 0.5, 0.5, 0.5]


def test_history_of_a_script():
    scripted = run_script(MASKS, emergence=ew.Emergence(window=3, epsilon=0.1))
    assert scripted.column("step") == [0, 1, 2, 3, 4, 5, 6]
    assert scripted.column("distance_mean") == MEANS
    assert scripted.column("distance_max") == MAXIMA
    assert scripted.column("chi") == [1.0] * 7
    assert scripted.column("truncated") == [0] * 7
    assert scripted.search.mask.flat.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("truncation", "chis"),
    [
        (ew.Constant(0.2), [0.2] * 7),
        # the distance of a window that is not yet full counts as 1
        (ew.Greedy(), [1.0, 1.0, 0.5, 0.75, 0.25, 0.5, 0.25]),
        (ew.Worm(trigger=0.5, chi=0.01), [1.0, 1.0, 1.0, 1.0, 0.01, 0.01, 0.01]),
        (ew.Worm(trigger=0.6, chi=0.01), [1.0, 1.0, 0.01, 0.01, 0.01, 0.01, 0.01]),
        (ew.Worm(trigger=0.3, chi=0.01, greedy_first=True), [1.0, 1.0, 0.5, 0.75, 0.01, 0.01, 0.01]),
    ],
)
def test_chi_of_a_script(truncation, chis):
    scripted = run_script(MASKS, emergence=ew.Emergence(window=3, epsilon=0.1), truncation=truncation)
    assert scripted.column("chi") == chis
    assert scripted.column("truncated") == [2 if chi < 1 else 0 for chi in chis]


def test_a_window_that_is_not_full_does_not_trigger():
    scripted = run_script(["1100"] * 4, emergence=ew.Emergence(window=5), truncation=ew.Worm(trigger=0.9, chi=0.5))
    assert scripted.column("distance_mean") == [None, 0.0, 0.0, 0.0]
    assert scripted.column("chi") == [1.0, 1.0, 1.0, 1.0]
    scripted.check("1100")
    assert scripted.column("chi")[-1] == 0.5


@pytest.mark.parametrize(
    ("window", "first"),  # the first check whose distance has one before it
    [(2, 2), (3, 2), (5, 2), (6, 3), (9, 3), (10, 4), (17, 5)],
)
def test_fade_waits_for_a_quarter_of_the_window_and_a_check(window, first):
    fade = ew.Fade(trigger=0.5, chi=0.25)
    chis = run_script(
        ["1100"] * 20, emergence=ew.Emergence(window), truncation=fade, steps_per_epoch=10
    ).column("chi")  # fmt: skip
    assert chis == [1.0] * first + [0.25] * (window - first)


def test_fade_goes_by_the_latest_quarter_of_the_window():
    masks = ["0011", "1100", "1010", "1010", "1010", "1010"]
    options = {"emergence": ew.Emergence(9), "truncation": ew.Fade(trigger=0.3, chi=0.25), "steps_per_epoch": 10}
    scripted = run_script(masks, **options)  # the two latest of the older masks count
    assert scripted.column("distance_recent") == [None, None, 0.5, 0.25, 0.0, 0.0]
    assert scripted.column("distance_mean") == [None, 1.0, 0.5, 1 / 3, 0.25, 0.2]
    assert scripted.column("chi") == [1.0, 1.0, 1.0, 0.25, 0.25, 0.25]
    worm = run_script(masks, emergence=ew.Emergence(5), truncation=ew.Worm(trigger=0.3, chi=0.5))
    assert worm.column("distance_recent") == [None, None, None, None, 0.25, 0.125]
    assert worm.column("chi") == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    plain = run_script(masks, emergence=ew.Emergence(5))
    assert plain.column("distance_recent") == [None] * 6


@pytest.mark.parametrize(
    ("static", "truncated"),
    [
        ("latest", [2, 2, 2, 2, 2, 2, 2]),
        # what every mask of the window removes; where it is nothing, nothing is truncated
        ("window", [2, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_static_units(static: Static, truncated):
    options = {"emergence": ew.Emergence(window=3, epsilon=0.0), "truncation": ew.Constant(0.0, static=static)}
    scripted = run_script(MASKS, **options)
    assert scripted.column("truncated") == truncated

    start = scripted.model[1].bias.detach().clone()
    scripted.step()
    moved = scripted.model[1].bias != start
    assert moved.tolist() == ([True, False, True, False] if static == "latest" else [True, True, True, False])


def test_emergence_of_a_script():
    scripted = Scripted("1100", emergence=ew.Emergence(window=3, epsilon=0.25), pruning_ratio=0.5)
    assert [scripted.check(mask) for mask in ("1010", "1010")] == [False, False]
    assert scripted.search.emerged is False
    assert scripted.check("1010") is True
    assert scripted.search.emerged is True
    ticket = scripted.search.draw()
    assert ticket.mask.flat.tolist() == [True, False, True, False]
    assert ticket.scores["0"].tolist() == [15.0, 5.0, 15.0, 5.0]  # of the fifth check, the constructor's included
    assert (ticket.step, ticket.distances, ticket.emerged) == (3, (0.0, 0.0), True)
    assert ticket.method == "Early Bird"


def test_after_emergence_updates_do_nothing():
    scripted = run_script(["1100"] * 3, emergence=ew.Emergence(window=3))
    history = list(scripted.search.history)
    assert scripted.search.update() is True  # no step since
    assert scripted.check("0011") is True
    scripted.search.detach()
    assert scripted.search.update() is True
    assert scripted.search.history == history
    assert scripted.search.draw().mask.flat.tolist() == [True, True, False, False]


def test_draw_before_emergence_names_the_distance():
    scripted = run_script(MASKS[:4], emergence=ew.Emergence(window=3, epsilon=0.1))
    message = r"after 4 checks: the largest distance in the window is 1\.000, epsilon is 0\.1;"
    with pytest.raises(ew.SearchError, match=message):
        scripted.search.draw()
    ticket = scripted.search.draw(force=True)
    assert not ticket.emerged
    assert ticket.mask.flat.tolist() == [True, True, False, False]
    assert ticket.distances == (1.0, 0.5)


def test_draw_of_the_first_mask():
    scripted = Scripted("1100")
    with pytest.raises(
        ew.SearchError, match="after 1 checks: 1 of the 5 masks of the window are taken; search longer, or draw"
    ):
        scripted.search.draw()
    assert scripted.search.draw(force=True).distances == ()


@pytest.mark.parametrize("force", [False, True])
def test_no_mask_to_draw(force):
    search = ew.TicketSearch(make_network(), units=UNITS)
    with pytest.raises(ew.SearchError, match="no mask was taken yet"):
        search.draw(force=force)
    with pytest.raises(ew.SearchError, match="no mask was taken yet"):
        _ = search.mask
    assert not search.emerged


def test_updates_at_any_interval():
    """The masks are those of the weights at that moment, however many steps lie between."""
    model = make_network()
    optimizer = SGD(model.parameters(), lr=1.0)
    search = ew.TicketSearch(model, units=UNITS, emergence=ew.Emergence(window=20), sparsity_penalty=0.02)
    taken, steps = [], [0]
    with search.attach(optimizer):
        for interval in (1, 3, 2, 5, 1):
            for i in range(interval):
                plain(model, optimizer, i)
            search.update()
            steps.append(steps[-1] + interval)
            taken.append(search.mask)
            fresh = ew.TicketSearch(model, units=UNITS).attach(optimizer)
            assert fresh.mask == search.mask
            fresh.detach()
    assert [check.step for check in search.history] == steps
    assert [check.distance_max for check in search.history[2:]] == [
        max(ew.mask_distance(mask, older) for older in [search._window.masks[0], *taken[:i]])
        for i, mask in enumerate(taken) if i
    ]  # fmt: skip
    assert search.history[-1].distance_max > 0


def test_min_units():
    model = make_network()
    with torch.no_grad():
        model.first_bn.weight.mul_(0.01)
    for min_units, kept in [(1, {"stem": 4, "first": 1}), (2, {"stem": 3, "first": 2}), (3, {"stem": 3, "first": 3})]:
        ratio = 0.4 if min_units == 3 else 0.5
        search = ew.TicketSearch(model, units=UNITS, pruning_ratio=ratio, min_units=min_units)
        search.attach(SGD(model.parameters(), lr=LR))
        assert {name: int(mask.sum()) for name, mask in search.mask.kept.items()} == kept


def test_pruning_ratio_zero():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(
        model, units=UNITS, pruning_ratio=0.0, truncation=ew.Constant(0.0), emergence=ew.Emergence(window=2)
    )
    with search.attach(optimizer):
        plain(model, optimizer, 0)
        assert search.update()
    assert [check.truncated for check in search.history] == [0, 0]
    assert search.draw().mask.units_removed == 0


# ----------------------------------------------------------------------------------------------------------- overhead


def test_overhead_grows_with_everything_that_is_done():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(model, units=UNITS, truncation=ew.Constant(), sparsity_penalty=0.1)
    seen = [search.overhead]
    assert seen[0] == type(seen[0])(0.0, 0)
    with search.attach(optimizer):
        seen.append(search.overhead)
        for i in range(3):
            plain(model, optimizer, i)
            seen.append(search.overhead)
            search.update()
            seen.append(search.overhead)
    for before, after in itertools.pairwise(seen):
        assert after.seconds > before.seconds
        assert after.flops > before.flops
    other = ew.TicketSearch(model, units=UNITS, truncation=ew.Constant(), sparsity_penalty=0.1)
    other.load_state_dict(search.state_dict())
    assert other.overhead == search.overhead


def test_flops_of_a_step():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(model, units=UNITS, truncation=ew.Constant(), sparsity_penalty=0.1)
    with search.attach(optimizer):
        before = search.overhead.flops
        plain(model, optimizer, 0)
    # 16 scales: sign, multiply, add; and one multiplication of each of 32 gradients
    assert search.overhead.flops - before == 3 * 16 + 32


# ---------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pruning_ratio": 1.0}, ew.ConfigError, "pruning_ratio is 1.0"),
        ({"pruning_ratio": -0.1}, ew.ConfigError, "pruning_ratio is -0.1"),
        ({"pruning_ratio": "0.5"}, ew.ConfigError, "pruning_ratio is '0.5'"),
        ({"pruning_ratio": 0.95}, ew.ConfigError, r"at most 0\.800 is possible"),
        ({"pruning_ratio": 0.01}, ew.ConfigError, r"0\.01 removes none of \d+ channels: 0\.\d+ removes one"),
        ({"pruning_ratio": 0.5, "min_units": 3}, ew.ConfigError, r"at least 3 of each .* at most 0\.400 is possible"),
        ({"min_units": 0}, ew.ConfigError, "min_units is 0"),
        ({"emergence": 5}, ew.ConfigError, r"emergence is 5, but must be ew\.Emergence\(window, epsilon\)"),
        ({"sparsity_penalty": -1e-4}, ew.ConfigError, "sparsity_penalty is -0.0001"),
        ({"sparsity_penalty": math.nan}, ew.ConfigError, "sparsity_penalty is nan"),
        ({"sparsity_penalty": math.inf}, ew.ConfigError, "sparsity_penalty is inf"),
        ({"score": "size"}, ew.UnitsError, "unknown score 'size'"),
        ({"units": "layers"}, ew.ConfigError, "unknown units 'layers'"),
        ({"units": ["channels", "channels"]}, ew.ConfigError, "each once"),
        ({"pruning_ratio": {"heads": 0.5}}, ew.ConfigError, "no entry for 'channels'"),
        ({"pruning_ratio": {"channels": 0.5, "heads": 0.5}}, ew.ConfigError, "an entry for 'heads'"),
        ({"units": "channels"}, ew.ConfigError, "give example_inputs"),
    ],
)
def test_bad_values(options, error, message):
    with pytest.raises(error, match=message):
        ew.TicketSearch(make_network(), **{"units": UNITS, **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("score", ["auto", "taylor"])
def test_another_default_dtype(dtype, score):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = make_network()
        search = ew.TicketSearch(model, units=UNITS, score=score)
        with search.attach(SGD(model.parameters(), lr=0.1)):
            model(torch.randn(4, 3, 8, 8)).sum().backward()
            search._hook.optimizers[0].step()
            search.update()
        ticket = search.draw(force=True)
        ew.compact(model, ticket, round_to=2)(torch.randn(4, 3, 8, 8))
        assert {score.dtype for score in ticket.scores.values()} == {torch.float32}
    finally:
        torch.set_default_dtype(before)


def test_a_ratio_of_another_kind_of_number():
    search = ew.TicketSearch(make_network(), units=UNITS, pruning_ratio=np.float32(0.25))
    assert search.pruning_ratio == 0.25
    assert type(search.pruning_ratio) is float


def test_penalty_on_a_network_without_scales():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ew.ConfigError, match="the units have none"):
        ew.TicketSearch(model, torch.randn(1, 3, 6, 6), sparsity_penalty=0.1)


def test_diverged_training():
    model = make_network()
    optimizer = SGD(model.parameters(), lr=LR)
    search = ew.TicketSearch(model, units=UNITS, truncation=ew.Constant())
    with torch.no_grad():
        model.first_bn.weight[0] = math.nan
    with pytest.raises(ew.SearchError, match=r"the scores of 'first' are not finite"):
        search.attach(optimizer)
    with torch.no_grad():
        model.first_bn.weight[0] = 1.0
    with search.attach(optimizer):  # the failed attempt left nothing behind
        assert len(search.history) == 1
        plain(model, optimizer, 0)
        scores = search.draw(force=True).scores
        with torch.no_grad():
            model.stem_bn.weight[0] = math.inf
        with pytest.raises(ew.SearchError, match=r"the scores of 'stem' are not finite"):
            search.update()
    assert len(search.history) == len(search._window.masks) == 1
    assert all(torch.equal(score, scores[name]) for name, score in search.draw(force=True).scores.items())


def test_units_of_a_narrower_model_are_refused():
    units = ew.find_channels(Residual(width=8), make_batch(0)[0])
    with pytest.raises(ew.UnitsError, match="belong to another model"):
        ew.TicketSearch(Residual(width=4), units=units)


@pytest.mark.parametrize("chi", [-0.1, 1.5, float("nan")])
def test_a_schedule_that_gives_an_impossible_chi_is_refused(chi):
    class Odd(ew.Constant):
        def chi_after(self, distances):
            return chi

    model = make_network()
    search = ew.TicketSearch(model, units=UNITS, truncation=Odd())
    with pytest.raises(ew.ConfigError, match="chi"):
        search.attach(SGD(model.parameters(), lr=0.1))


def test_a_schedule_that_fails_leaves_the_search_as_it_was():
    class Failing(ew.Constant):
        fails = False

        def chi_after(self, distances):
            if self.fails:
                raise RuntimeError("not now")
            return 1.0

    model, schedule = make_network(), Failing()
    optimizer = SGD(model.parameters(), lr=0.0001)
    search = ew.TicketSearch(model, units=UNITS, truncation=schedule, emergence=ew.Emergence(2, 1.0))
    with search.attach(optimizer):
        plain(model, optimizer, 0)
        object.__setattr__(schedule, "fails", True)
        with pytest.raises(RuntimeError, match="not now"):
            search.update()
        assert not search.emerged
        assert len(search.history) == len(search._window.masks) == 1
        object.__setattr__(schedule, "fails", False)
        plain(model, optimizer, 1)
        assert search.update()


class WithoutStatic:
    def chi_after(self, distances):
        return 0.5


@pytest.mark.parametrize("truncation", [ew.Worm, "worm", WithoutStatic()])
def test_what_is_no_schedule_is_refused_at_once(truncation):
    with pytest.raises(ew.ConfigError, match=r"such as ew\.Worm\(\)"):
        ew.TicketSearch(make_network(), units=UNITS, truncation=truncation)
