"""Costs against counts by hand, and that measuring leaves the model as it is."""

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from earlyworm import Cost, UnitsError, compact, cost
from earlyworm.costs import count_flops, latency
from earlyworm.units.groups import named_tensors

# [3, 8, 8] -> 3x3, 4 channels, bias: [4, 8, 8] -> 3x3 in 2 groups, stride 2: [6, 4, 4] -> 5 classes from [96]
CONV1, CONV2, FC = 4 * 8 * 8 * 3 * 9, 6 * 4 * 4 * 2 * 9, 96 * 5


def tiny() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


def test_by_hand() -> None:
    measured = cost(tiny(), zoo.images(batch=4), repeats=1)
    assert measured.parameters == (4 * 3 * 9 + 4) + 8 + 6 * 2 * 9 + (96 * 5 + 5)
    assert measured.macs == CONV1 + CONV2 + FC
    # Forward, gradient of the weights, gradient of the inputs; the images need none.
    assert measured.train_flops == 2 * (2 * CONV1 + 3 * CONV2 + 3 * FC)
    assert measured.latency_seconds > 0


def test_attention_on_a_cpu() -> None:
    """Queries times keys, and weights times values, of 2 texts with 5 tokens, 3 heads of width 4."""
    layer = nn.TransformerEncoderLayer(12, 3, 8, batch_first=True)
    forward, step = count_flops(layer, torch.randn(2, 5, 12))
    products, attention = 5 * (4 * 12 * 12 + 2 * 12 * 8), 2 * 5 * 5 * 12
    assert forward == 2 * 2 * (products + attention)
    # Backward, attention computes its weights again, and four products more; the inputs need no gradient.
    assert step == forward + 2 * 2 * (2 * products - 5 * 3 * 12 * 12 + 5 * attention // 2)


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_layers_of_a_transformer_cost_as_much(frozen: int) -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(2, 5, 12)
    expected = count_flops(encoder, x)[0]
    for part in encoder.layers[:frozen]:
        part.requires_grad_(False)
    assert count_flops(encoder, x)[0] == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_per_example(batch: int) -> None:
    assert cost(tiny(), zoo.images(batch=batch), repeats=1).macs == CONV1 + CONV2 + FC
    assert count_flops(tiny(), zoo.images(batch=batch))[0] == 2 * batch * (CONV1 + CONV2 + FC)


@pytest.mark.parametrize(("layer", "macs"), [
    (nn.Conv2d(4, 6, 3), 6 * 4 * 9 * 36),
    (nn.Conv2d(4, 6, 3, groups=2), 6 * 2 * 9 * 36),
    (nn.Conv2d(4, 4, 3, groups=4), 4 * 9 * 36),
    (nn.Conv2d(4, 8, 3, groups=4, dilation=2), 8 * 9 * 16),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), 64 * 4 * 6 * 4),
    (nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4), 64 * 4 * 4),
    (nn.Linear(8, 5), 4 * 8 * 8 * 5),
])  # fmt: skip
def test_one_layer(layer: nn.Module, macs: int) -> None:
    """A step takes the forward pass and as much again for the weights, and again for inputs that need gradients."""
    x = zoo.images(channels=4, batch=1)
    assert count_flops(layer, x) == (2 * macs, 4 * macs)
    first = nn.Conv2d(4, 4, 1)
    assert count_flops(nn.Sequential(first, layer), x) == (2 * (macs + 1024), 2 * (3 * macs + 2 * 1024))
    first.requires_grad_(False)
    assert count_flops(nn.Sequential(first, layer), x) == (2 * (macs + 1024), 2 * (2 * macs + 1024))
    layer.requires_grad_(False)
    assert count_flops(nn.Sequential(first, layer), x) == (2 * (macs + 1024),) * 2
    first.requires_grad_(True)
    assert count_flops(nn.Sequential(first, layer), x) == (2 * (macs + 1024), 2 * (2 * macs + 2 * 1024))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions(dimensions: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions](4, 6, 3, groups=2)
    macs = 6 * 2 * 3**dimensions * 6**dimensions
    assert count_flops(conv, torch.randn(1, 4, *[8] * dimensions)) == (2 * macs, 4 * macs)


def test_attention_is_counted() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 6, 8)
    forward, _ = count_flops(layer, (x, x, x))
    assert forward == 2 * (6 * 8 * 24 + 2 * 2 * 6 * 6 * 4 + 6 * 8 * 8)


def test_a_compacted_network_costs_less() -> None:
    model, inputs = zoo.build("plain")
    units = zoo.units_of("plain")
    kept = {group.name: torch.arange(group.size) < group.size // 2 for group in units.groups}
    small = compact(model, zoo.ticket_for(model, units, kept))
    before, after = cost(model, inputs, repeats=1), cost(small, inputs, repeats=1)
    assert before.macs == 8 * 27 * 64 + 12 * 8 * 9 * 16 + 6 * 12 * 9 * 16 + 30
    assert after.macs == 4 * 27 * 64 + 6 * 4 * 9 * 16 + 3 * 6 * 9 * 16 + 15
    assert after.parameters == 4 * 27 + 8 + 6 * 4 * 9 + 12 + 3 * 6 * 9 + 6 + 3 * 5 + 5


def test_tied_parameters_count_once() -> None:
    model, inputs = zoo.build("tied_autoencoder")
    assert cost(model, inputs, repeats=1).parameters == (6 * 3 * 9) + (8 * 6 * 9) + 6 + 8 + 6 + 3


def test_inputs_and_outputs_of_all_kinds() -> None:
    for name in ("dict_output", "two_inputs", "two_outputs", "conv1d", "conv3d", "hf_resnet_basic"):
        model, inputs = zoo.build(name)
        measured = cost(model, inputs, repeats=1)
        assert measured.macs > 0
        assert measured.train_flops > 3 * measured.macs
    with pytest.raises(UnitsError, match="Argmax returns no floating-point tensor to count a backward pass of"):
        cost(Argmax(3, 2), torch.randn(2, 3))


class Argmax(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Restless(nn.Module):
    """Has all that could be changed by a forward pass: dropout, statistics, random numbers, writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), zoo.Head(4)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.norm(self.conv(x.mul_(2))))
        return self.head(self.dropout(F.relu(x + torch.randn_like(x))))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_is(mode: Any) -> None:
    model, x = Restless(), zoo.images()
    model(x).sum().backward()
    model.conv.weight.requires_grad_(False)
    tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    modes = {name: module.training for name, module in model.named_modules()}
    given, random_state = x.clone(), torch.get_rng_state()
    with mode():
        measured = cost(model, x, repeats=2)
    assert measured.macs == 4 * 27 * 36 + 4 * 5
    assert measured.train_flops == 2 * (measured.macs + 2 * 4 * 5)  # in any mode; conv is frozen
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in named_tensors(model).items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), random_state)


class Remembering(nn.Module):
    """Keeps in a buffer what it has seen, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * self.scale
        with torch.no_grad():
            self.scale = 0.9 * self.scale + 0.1 * y.detach().abs().mean(0)
        return y


def test_buffers_that_a_forward_replaces_come_back() -> None:
    model = Remembering()
    scale = model.scale
    cost(model, torch.randn(2, 4), repeats=1)
    assert model.scale is scale
    assert torch.equal(scale, torch.ones(4))
    model(torch.randn(2, 4)).sum().backward()


def test_an_lstm_and_a_vector() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(16, 32, batch_first=True, bidirectional=True)
            self.vector = nn.Parameter(torch.randn(64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.mv(self.lstm(x)[0][:, -1], self.vector)

    measured = cost(Reader(), torch.randn(2, 10, 16), repeats=1)
    assert measured.macs == 2 * 10 * (4 * 32 * 16 + 4 * 32 * 32) + 64


def test_products_of_three_tensors_and_sums_of_products() -> None:
    measured = cost(nn.Bilinear(3, 4, 5), (torch.randn(7, 3), torch.randn(7, 4)), repeats=1)
    assert measured.macs == 3 * 4 * 5
    assert measured.train_flops == 2 * measured.macs * 2  # with the gradient of the weight

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:  # [2, 3, 6]
            summed = torch.addbmm(torch.zeros(3, 4), x, self.matrix.expand(2, 6, 4))
            return torch.addmv(torch.zeros(3), summed, self.vector)

    assert cost(Sums(), torch.randn(2, 3, 6), repeats=1).macs * 2 == 2 * 3 * 6 * 4 + 3 * 4


def test_a_module_that_is_given_a_parameter() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.norm = nn.Parameter(torch.randn(1, 2, 8)), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            query = self.norm(self.query).expand(len(x), -1, -1)
            pooled: Tensor = self.attention(query, x, x)[0]
            return pooled

    measured = cost(Pool(), torch.randn(3, 5, 8), repeats=1)
    projections, products = (2 + 5 + 5 + 2) * 8 * 8, 2 * 2 * 5 * 8
    assert measured.macs == projections + products
    plain, normed = nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    assert cost(normed, x, repeats=1).train_flops == cost(plain, x, repeats=1).train_flops


def test_the_batch_of_nested_inputs() -> None:
    class Both(nn.Linear):
        def forward(self, xs: list[Tensor]) -> Tensor:
            return super().forward(xs[0]) + super().forward(xs[1])

    assert cost(Both(4, 2), {"xs": [torch.randn(32, 4), torch.randn(32, 4)]}, repeats=1).macs == 2 * 8


def test_weights_that_are_not_there() -> None:
    with pytest.raises(UnitsError, match="weight is on the meta device: load the weights first"):
        cost(nn.Conv2d(3, 4, 3, device="meta"), zoo.images())


def test_modes_come_back_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    model[1].eval()
    for measure in (count_flops, latency):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            measure(model, torch.randn(2, 4))
        assert [module.training for module in model.modules()] == [True, True, False]


def test_frozen_model_has_no_backward_pass() -> None:
    measured = cost(tiny().requires_grad_(False), zoo.images(), repeats=1)
    assert measured.train_flops == 2 * measured.macs


def test_wrapped_models() -> None:
    expected = cost(tiny(), zoo.images(), repeats=1)
    for wrapped in (nn.DataParallel(tiny()), torch.compile(tiny(), backend="eager")):
        measured = cost(wrapped, zoo.images(), repeats=1)
        assert (measured.parameters, measured.macs, measured.train_flops) == (
            expected.parameters, expected.macs, expected.train_flops,
        )  # fmt: skip


def test_the_latency_of_a_compiled_model_is_that_of_its_compiled_forward() -> None:
    calls = []

    def backend(graph: Any, _: Any) -> Any:
        return lambda *inputs: (calls.append(None), graph(*inputs))[1]

    cost(torch.compile(tiny(), backend=backend), zoo.images(), repeats=4)
    assert len(calls) == 7
    torch._dynamo.reset()


def test_latency_is_the_median_after_warming_up() -> None:
    class Slow(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Slow.calls += 1
            time.sleep(0.05 if Slow.calls <= 3 or Slow.calls == 5 else 0.002)
            return x

    seconds = latency(Slow(), torch.ones(1), repeats=5)
    assert Slow.calls == 8
    assert 0.002 <= seconds < 0.03


def test_in_words() -> None:
    words = str(Cost(parameters=1234567, macs=8901234, train_flops=56789012, latency_seconds=0.012345))
    assert words == "1,234,567 parameters, 8,901,234 MACs, 56,789,012 training FLOPs per example, 12.3 ms"
