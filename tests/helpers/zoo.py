"""Small models to test on. Each function returns a fresh model and example inputs for it; `ZOO` holds them by name."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from earlyworm import Mask, Ticket, UnitGroup, Units, compact, find_channels
from earlyworm.tickets.ticket import fingerprint
from earlyworm.units.groups import named_tensors


def images(channels: int = 3, size: int = 8, batch: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def randomise_(model: nn.Module, seed: int) -> nn.Module:
    """Random weights, biases, scales, shifts and running statistics; nothing is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                noise = 0.5 + noise.abs()
            elif tensor.dim() > 1:
                noise = noise * (1.5 / max(1, tensor[0].numel())) ** 0.5
            elif name.endswith("weight"):
                noise = (0.5 + noise.abs()) * noise.sign()
            else:
                noise = 0.5 * noise
            tensor.copy_(noise)
    return model


class ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, act: nn.Module | None = None, **conv: Any) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **conv),
            nn.BatchNorm2d(outputs),
            nn.ReLU() if act is None else act,
        )


class Head(nn.Sequential):
    def __init__(self, inputs: int, classes: int = 5) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def plain():
    return nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 12, stride=2), ConvNorm(12, 6), Head(6)), images()


def vgg():
    """A 2x2 map is flattened into hidden linear layers."""
    return nn.Sequential(
        ConvNorm(3, 6), nn.MaxPool2d(2), ConvNorm(6, 8), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5),
    ), images()  # fmt: skip


def flatten_norm():
    """Batch norm behind a flattened map: one channel passes it four times."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.Flatten(), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5),
    ), images()  # fmt: skip


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet_basic():
    return nn.Sequential(ConvNorm(3, 6), Basic(6, 6), Basic(6, 8, 2), Basic(8, 8), Head(8)), images()


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reduce = ConvNorm(inputs, middle, 1)
        self.spatial = ConvNorm(middle, middle, stride=stride, groups=groups)
        self.expand = ConvNorm(middle, outputs, 1, act=nn.Identity())
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, act=nn.Identity(), stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x))


def resnet_bottleneck():
    return nn.Sequential(ConvNorm(3, 6), Bottleneck(6, 4, 10, 2), Bottleneck(10, 5, 10), Head(10)), images()


def resnext():
    return nn.Sequential(ConvNorm(3, 8), Bottleneck(8, 8, 10, 1, 4), Bottleneck(10, 12, 10, 1, 2), Head(10)), images()


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(y))))


def pre_activation():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), PreActivation(6, 6), PreActivation(6, 9, 2), PreActivation(9, 9),
        nn.BatchNorm2d(9), nn.ReLU(), Head(9),
    ), images()  # fmt: skip


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, y], 1)


def densenet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), DenseLayer(6, 3), DenseLayer(9, 3),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1, bias=False), nn.AvgPool2d(2),
        DenseLayer(6, 4), nn.BatchNorm2d(10), nn.ReLU(), Head(10),
    ), images()  # fmt: skip


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = ConvNorm(inputs, 4, 1)
        self.three = nn.Sequential(ConvNorm(inputs, 3, 1), ConvNorm(3, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], 1)


def inception():
    return nn.Sequential(ConvNorm(3, 6), Inception(6), Inception(12), Head(12)), images()


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, 3 * inputs, 1, nn.ReLU6()),
            ConvNorm(3 * inputs, 3 * inputs, 3, nn.Hardswish(), stride=stride, groups=3 * inputs),
            ConvNorm(3 * inputs, outputs, 1, nn.Identity()),
        )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet():
    return nn.Sequential(
        ConvNorm(3, 4, stride=2), InvertedResidual(4, 4), InvertedResidual(4, 6, 2), InvertedResidual(6, 6), Head(6)
    ), images()


def depthwise_bias():
    """Depthwise convolutions without batch norm, one of them dilated, one transposed."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), nn.GELU(),
        nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Tanh(), Head(5),
    ), images()  # fmt: skip


def channel_multiplier_model() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 6), ConvNorm(6, 12, groups=6), ConvNorm(12, 6, 1), Head(6))


def channel_multiplier():
    """A grouped convolution that makes two channels of each."""
    return channel_multiplier_model(), images()


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class SqueezeExciteLinear(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        return x * self.fc(x.mean((2, 3))).view(batch, channels, 1, 1)


def squeeze_excite():
    return nn.Sequential(
        ConvNorm(3, 8), SqueezeExcite(8, 4), ConvNorm(8, 6), SqueezeExciteLinear(6, 3), ConvNorm(6, 6), Head(6)
    ), images()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = ConvNorm(3, 6)
        self.down = nn.Sequential(nn.MaxPool2d(2), ConvNorm(6, 8), ConvNorm(8, 8))
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.leave = nn.Sequential(ConvNorm(11, 6), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(torch.cat([x, self.up(self.down(x))], 1))


def unet():
    return UNet(), images()


class TransposedNorm(nn.Module):
    """Transposed convolutions with batch norm, and an upsampled sum as in a feature pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = ConvNorm(3, 6)
        self.down = ConvNorm(6, 7, stride=2)
        self.up, self.norm = nn.ConvTranspose2d(7, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.lateral = nn.Conv2d(7, 6, 1)
        self.leave = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.down(x)
        return self.leave(F.leaky_relu(self.norm(self.up(y)) + x + F.interpolate(self.lateral(y), scale_factor=2)))


def transposed():
    return TransposedNorm(), images()


def conv_bias():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 7, 3), nn.GELU(), nn.Conv2d(7, 6, 3), nn.SiLU(), nn.Conv2d(6, 5, 1),
        nn.LeakyReLU(), nn.Flatten(), nn.Linear(20, 5),
    ), images()  # fmt: skip


class PReLUs(nn.Module):
    """One slope per channel, and a single slope shared by layers of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 6, 3), nn.PReLU(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 5, 3)
        self.shared = nn.PReLU()
        self.head = Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.bn2(self.conv2(self.act1(self.conv1(x)))))
        return self.head(self.shared(self.conv3(x)))


def prelu():
    return PReLUs(), images()


class TwoOutputs(nn.Module):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(ConvNorm(3, 8), ConvNorm(8, 6))
        self.classes, self.boxes = Head(6), nn.Conv2d(6, 4, 1)
        self.as_dict = as_dict

    def forward(self, images: Tensor) -> Any:
        x = self.trunk(images)
        scores, boxes = self.classes(x), self.boxes(x)
        return {"scores": scores, "nested": [boxes, scores.argmax(1)]} if self.as_dict else (scores, boxes)


def two_outputs():
    return TwoOutputs(as_dict=False), images()


def dict_output():
    return TwoOutputs(as_dict=True), {"images": images()}


class Features(nn.Module):
    """Returns its logits and the map that they are made from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = ConvNorm(3, 8), ConvNorm(8, 6), Head(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(self.stem(x))
        return self.head(x), x


def features_output():
    return Features(), images()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = ConvNorm(3, 6), ConvNorm(1, 6)
        self.join = ConvNorm(12, 8)
        self.head = Head(8)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = self.left(left), self.right(right)
        return self.head(self.join(torch.cat([left, right * left], 1)))


def two_inputs():
    return TwoInputs(), (images(3), images(1))


class TiedAutoencoder(nn.Module):
    """The decoder's transposed convolutions use the encoder's weights: one Parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 6, 3), nn.ConvTranspose2d(6, 3, 3)
        self.up2.weight, self.up1.weight = self.conv2.weight, self.conv1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up1(F.relu(self.up2(F.relu(self.conv2(F.relu(self.conv1(x)))))))


def tied_autoencoder():
    return TiedAutoencoder(), images()


class TiedTwins(nn.Module):
    """Two convolutions with one weight, each with a batch norm of its own, that meet in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.a, self.bn_a = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b.weight = self.a.weight
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.bn_a(self.a(x)) + self.bn_b(self.b(x.flip(3)))))


def tied_twins():
    return TiedTwins(), images()


class SharedModules(nn.Module):
    """A convolution and its norm that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.last, self.head = ConvNorm(3, 6), ConvNorm(6, 6), ConvNorm(6, 7), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.again(self.again(self.stem(x)))))


def shared_modules():
    return SharedModules(), images()


def conv1d():
    signal = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, groups=2), nn.BatchNorm1d(6),
        nn.ReLU(), nn.Conv1d(6, 5, 3), nn.SiLU(), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(10, 4),
    ), signal  # fmt: skip


def conv3d():
    volume = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 6, 3, groups=6, bias=False),
        nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(5, 4),
    ), volume  # fmt: skip


def instance_norm():
    """Instance norms without parameters, with scale and shift, and with running statistics too."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(), nn.Conv2d(6, 7, 3), nn.InstanceNorm2d(7, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv2d(7, 6, 1), nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.ReLU(), nn.Conv2d(6, 3, 1),
    ), images()  # fmt: skip


def channels_last():
    model, x = nn.Sequential(ConvNorm(3, 8), Basic(8, 8), Bottleneck(8, 4, 6), Head(6)), images()
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def mixed_requires_grad():
    """Frozen at the front, trained at the back, and one frozen scale."""
    model, x = resnet_basic()
    model[:2].requires_grad_(False)
    model[2].bn1.weight.requires_grad_(False)
    return model, x


class Doubled(nn.Module):
    """Every channel goes on twice, as itself and as its opposite (CReLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.next, self.head = ConvNorm(12, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(self.next(torch.cat([F.relu(x), F.relu(-x)], 1)))


def doubled():
    return Doubled(), images()


class Scaled(nn.Module):
    """Learned scales per channel outside of any norm (as ConvNeXt's), and a temperature under a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = ConvNorm(3, 6), ConvNorm(6, 6), Head(6)
        self.gamma, self.temperature = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.gamma * self.body(x)) * self.temperature.exp()


def scaled():
    return Scaled(), images()


class Split(nn.Module):
    """Half of the channels go on, the other half goes through more layers (as in YOLO's blocks)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.enter, self.more = ConvNorm(3, 6), ConvNorm(6, 12, 1), ConvNorm(6, 6)
        self.leave, self.head = ConvNorm(18, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(self.stem(x)).chunk(2, 1))
        parts.append(self.more(parts[-1]))
        return self.head(self.leave(torch.cat(parts, 1)))


def split():
    return Split(), images()


class Auxiliary(nn.Module):
    """A second head that is used in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = ConvNorm(3, 6), ConvNorm(6, 8), ConvNorm(8, 7)
        self.head, self.auxiliary = Head(7), nn.Sequential(ConvNorm(8, 4), Head(4))

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x))
        scores = self.head(self.last(x))
        return (scores, self.auxiliary(x)) if self.training else scores


def auxiliary_head():
    return Auxiliary(), images()


def mlp():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)
    ), x


class PaddedShortcut(nn.Module):
    """A residual sum of narrow and wide channels (option A with the zeros behind)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = ConvNorm(3, 4), ConvNorm(4, 8, act=nn.Identity()), Head(6)
        self.last = ConvNorm(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(F.relu(self.body(x) + F.pad(x, (0, 0, 0, 0, 0, 4)))))


def padded_shortcut():
    return PaddedShortcut(), images()


def _hf_images(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": images(size=size, batch=2)}


def hf_resnet_basic():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 8], depths=[2, 1], layer_type="basic", num_labels=4, num_channels=3
    )
    return ResNetForImageClassification(config), _hf_images()


def hf_resnet_bottleneck():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=6, hidden_sizes=[16, 24], depths=[2, 1], layer_type="bottleneck", num_labels=4)
    return ResNetForImageClassification(config), _hf_images()


def _hf_regnet(layer_type: str):
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        embedding_size=6, hidden_sizes=[8, 12], depths=[1, 2], groups_width=4, layer_type=layer_type, num_labels=4
    )
    return RegNetForImageClassification(config), _hf_images()


def hf_regnet_x():
    return _hf_regnet("x")


def hf_regnet_y():
    return _hf_regnet("y")


def hf_mobilenet_v1():
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(depth_multiplier=0.125, min_depth=4, num_labels=4, classifier_dropout_prob=0.0)
    return MobileNetV1ForImageClassification(config), _hf_images(32)


def hf_mobilenet_v2():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.125, min_depth=4, depth_divisible_by=4, num_labels=4,
                               finegrained_output=True, classifier_dropout_prob=0.0)  # fmt: skip
    return MobileNetV2ForImageClassification(config), _hf_images(32)


def hf_efficientnet():
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, in_channels=[32, 8], out_channels=[8, 12], kernel_sizes=[3, 5],
        strides=[1, 2], num_block_repeats=[1, 2], expand_ratios=[1, 4], depthwise_padding=[], hidden_dim=1280,
        num_labels=4, dropout_rate=0.0, drop_connect_rate=0.0, depth_divisor=4,
    )  # fmt: skip
    return EfficientNetForImageClassification(config), _hf_images(16)


def hf_convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, num_labels=4, layer_scale_init_value=0.5)
    return ConvNextForImageClassification(config), _hf_images(16)


def hf_convnext_v2():
    """Nothing of it can be removed: layer norms and response norms across channels everywhere."""
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, num_labels=4)
    return ConvNextV2ForImageClassification(config), _hf_images(16)


ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    build.__name__: build
    for build in (
        plain, vgg, flatten_norm, resnet_basic, resnet_bottleneck, resnext, pre_activation, densenet, inception,
        mobilenet, depthwise_bias, channel_multiplier, squeeze_excite, unet, transposed, conv_bias, prelu, two_outputs,
        dict_output, features_output, two_inputs, tied_autoencoder, tied_twins, shared_modules, conv1d, conv3d,
        instance_norm, channels_last, mixed_requires_grad, doubled, scaled, split, auxiliary_head, mlp, padded_shortcut,
        hf_resnet_basic, hf_resnet_bottleneck, hf_regnet_x, hf_regnet_y, hf_mobilenet_v1, hf_mobilenet_v2,
        hf_efficientnet, hf_convnext,
    )
}  # fmt: skip


@cache
def _built(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return ZOO[name]()


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """A model of the zoo with random values everywhere, and example inputs."""
    model, inputs = copy.deepcopy(_built(name))
    return randomise_(model.to(dtype), seed), tree_map_only(Tensor, lambda tensor: tensor.to(dtype), inputs)


@cache
def units_of(name: str, coupling: str = "coupled") -> Units:
    """The units of a model of the zoo."""
    return find_channels(*_built(name), coupling=coupling)


def random_kept(groups: tuple[UnitGroup, ...], seed: int, density: float = 0.5) -> dict[str, Tensor]:
    """Any pattern that keeps at least one unit of every group."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        kept[group.name] = torch.rand(group.size, generator=generator) < density
        kept[group.name][torch.randint(group.size, (), generator=generator)] = True
    return kept


def ticket_for(model: nn.Module, units: Units, kept: dict[str, Tensor], seed: int = 0) -> Ticket:
    """A ticket with that mask and random scores."""
    generator = torch.Generator().manual_seed(seed)
    return Ticket(
        mask=Mask.from_groups(kept),
        units=units,
        scores={group.name: torch.rand(group.size, generator=generator) for group in units.groups},
        structure=fingerprint(model),
        method="a test",
        pruning_ratio=0.5,
        step=7,
        emerged=True,
        distances=(0.1, 0.05),
        versions={"torch": torch.__version__},
    )


def random_ticket(name: str, seed: int, *, density: float = 0.5, coupling: str = "coupled") -> Ticket:
    """A ticket for a model of the zoo with a random mask."""
    units = units_of(name, coupling)
    return ticket_for(_built(name)[0], units, random_kept(units.groups, seed, density), seed)


def kept_entries(model: nn.Module, ticket: Ticket) -> dict[str, Tensor]:
    """For every tensor of the small model, which entries of the dense one it holds (found by compacting indices)."""
    numbered = copy.deepcopy(model).double()
    with torch.no_grad():
        for tensor in named_tensors(numbered).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(1, 1 + tensor.numel(), dtype=torch.float64).view(tensor.shape))
    small = compact(numbered, ticket)
    return {
        name: tensor.detach().long() - 1 for name, tensor in named_tensors(small).items() if tensor.is_floating_point()
    }
