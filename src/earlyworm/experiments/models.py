"""The reference networks, models of transformers, and initial weights for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from earlyworm.errors import ConfigError, RunError, first_line
from earlyworm.experiments.names import HUB_NAME, Task
from earlyworm.experiments.pretrained import load_classifier


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, and at least 4: the channel rule of every reference network."""
    return max(4, round(width * channels))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return _draw_filters_(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False))


def _draw_filters_(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class VGG(nn.Module):
    """VGG with batch norm and a single linear classifier (Simonyan and Zisserman 2015, arXiv 1409.1556).

    Args:
        stages: Output channels of the convolutions of each stage, before scaling; a max pool ends every stage.
        classes: Number of classes.
        channels: Channels of an image.
        width: What every number of channels in `stages` is multiplied by, see `scaled`.
    """

    def __init__(self, stages: Sequence[Sequence[int]], *, classes: int, channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in stages:
            for outputs in (scaled(c, width) for c in stage):
                layers += [_conv(channels, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            # ceil_mode leaves a 1x1 map as it is, so that images below 32x32 pass all pools too.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        x = self.features(images)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, width of the last stage]
        logits: Tensor = self.classifier(x)
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for small images: a 3x3 stem without pooling (He et al. 2016, arXiv 1512.03385, section 4.2).

    Args:
        stages: Channels of each stage, before scaling; all but the first halve height and width.
        blocks: Blocks per stage.
        classes: Number of classes.
        channels: Channels of an image.
        width: What every number of channels in `stages` is multiplied by, see `scaled`.
    """

    def __init__(self, stages: Sequence[int], *, blocks: int, classes: int, channels: int, width: float) -> None:
        super().__init__()
        inputs = scaled(stages[0], width)
        self.conv = _conv(channels, inputs, 3)
        self.bn = nn.BatchNorm2d(inputs)
        layers: list[nn.Module] = []
        for index, outputs in enumerate(scaled(c, width) for c in stages):
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                layers.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        x = F.relu(self.bn(self.conv(images)))
        x = self.blocks(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, width of the last stage]
        logits: Tensor = self.classifier(x)
        return logits


vgg11_bn = partial(VGG, ((64,), (128,), (256, 256), (512, 512), (512, 512)))
vgg16_bn = partial(VGG, ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)))
resnet18 = partial(ResNet, (64, 128, 256, 512), blocks=2)
resnet20 = partial(ResNet, (16, 32, 64), blocks=3)

REFERENCE: dict[str, Callable[..., nn.Module]] = {
    "vgg11_bn": vgg11_bn,
    "vgg16_bn": vgg16_bn,
    "resnet18": resnet18,
    "resnet20": resnet20,
}


def build_model(
    name: str, *, classes: int, channels: int, width: float, task: Task = "images", pretrained: bool = True
) -> tuple[nn.Module, list[str]]:
    """Build a network, in float32 and training mode, on the CPU.

    Random weights come from PyTorch's global generator: seed it first.

    Args:
        name: A key of `REFERENCE`, for images; a directory with the `config.json` of a model of transformers, and its
            weights as safetensors if it has any; or the name of such a model on the Hub (owner/name), which is asked
            only for what its local cache lacks.
        classes: Number of classes of the data, at least 1.
        channels: Channels of an image of the data, at least 1; ignored for text.
        width: Width multiplier, above 0; the reference networks alone have one.
        task: What it classifies. A text encoder gets a new classifier.
        pretrained: Whether to take the weights that a model of transformers comes with.

    Returns:
        The network, and notes for the user: a line where its classifier is replaced, else none.

    Raises:
        ConfigError: If `name` is no reference network, no directory, and no name that the Hub could know.
        DataError: If the network expects another number of image channels.
        RunError: If the network cannot be loaded.
    """
    if name in REFERENCE:
        return REFERENCE[name](classes=classes, channels=channels, width=width), []
    if not Path(name).is_dir() and not HUB_NAME.fullmatch(name):
        raise ConfigError(f"no model {name!r}: choose {', '.join(REFERENCE)}, a directory, or owner/name on the Hub")
    model, stored = load_classifier(name, task, classes=classes, channels=channels, pretrained=pretrained)
    if stored is None:
        return model.train(), []
    classifier = _classifier(model)
    for key, shape in _shapes(model).items():
        if key not in stored and key.startswith(f"{classifier}."):
            stored[key] = torch.Size((0, *shape[1:]))  # a network without a classifier has one of no classes
        elif key not in stored and _before_classifier(model, key):
            stored[key] = shape
    return model.train(), _compare(model, stored, name)[1]


def initialise_(model: nn.Module) -> nn.Module:
    """Draw all weights anew, as they were when the network was built; widths may have changed since.

    Random weights come from PyTorch's global generator: seed it first.

    Args:
        model: A reference network or a model of transformers, or what was compacted of one; it is changed in place.

    Returns:
        The same model.
    """
    initialise: Callable[[], None] | None = getattr(model, "initialize_weights", None)  # a model of transformers
    if initialise is not None:
        for part in (*model.modules(), *model.parameters(), *model.buffers()):
            if hasattr(part, "_is_hf_initialized"):
                part._is_hf_initialized = False
        initialise()
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw_filters_(module)
        elif isinstance(module, nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return model


def load_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the tensors of a safetensors file into `model`.

    The classifier, which is the last linear layer or convolution, may have been made for another number of classes:
    then it keeps the values that it has. On an error nothing is changed.

    Args:
        model: The network; it is changed in place.
        path: A safetensors file with every tensor of the model's `state_dict`, and no other.

    Returns:
        Notes for the user: a line where the classifier is left as it was, else none.

    Raises:
        RunError: If the file is missing or damaged, or a tensor is missing, unexpected, or of another shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"weights {path} cannot be read ({first_line(error)}): give a safetensors file") from error
    replaced, notes = _compare(model, {key: tensor.shape for key, tensor in tensors.items()}, str(path))
    model.load_state_dict({k: t for k, t in tensors.items() if k not in replaced}, strict=not replaced)
    return notes


def save_weights(model: nn.Module) -> bytes:
    """The parameters and buffers of `model` as a safetensors file; a tied tensor is stored under each of its names."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()})


def replace_classifier(model: nn.Module, classes: int) -> str:
    """Put a fresh linear classifier for `classes` classes in the place of the last linear layer; return a note."""
    name = _classifier(model)
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise RunError(f"the classifier {name} is no linear layer: give data with its {old.out_channels} classes")
    new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    model.set_submodule(name, new.to(old.weight))
    return f"{name} was for {old.out_features} classes: a new one for {classes} classes starts at random"


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def _classifier(model: nn.Module) -> str:
    """The name of the last linear layer or convolution."""
    return str([name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1])


def _before_classifier(model: nn.Module, key: str) -> bool:
    """Whether a tensor stands between an encoder and the classifier: an encoder may come without it."""
    encoder = str(getattr(model, "base_model_prefix", ""))
    return hasattr(model, encoder) and (not key.startswith(f"{encoder}.") or key.startswith(f"{encoder}.pooler."))


def _compare(model: nn.Module, stored: dict[str, torch.Size], source: str) -> tuple[list[str], list[str]]:
    """The tensors of the classifier that are stored for another number of classes, and a note about them."""
    expected, classifier = _shapes(model), _classifier(model)
    cure = "give weights of this very model and width"
    replaced = []
    for key, shape in expected.items():
        if key not in stored:
            raise RunError(f"{source} has no tensor {key}: {cure}")
        if stored[key] == shape:
            continue
        if not (key.startswith(classifier + ".") and stored[key][1:] == shape[1:]):
            raise RunError(f"tensor {key} is {list(stored[key])} in {source}, but {list(shape)} in the model: {cure}")
        replaced.append(key)
    for key in stored:
        if key not in expected:
            raise RunError(f"{source} has a tensor {key}, which the model lacks: {cure}")
    notes = []
    for key in replaced[:1]:
        there = f"is for {stored[key][0]} classes" if stored[key][0] else "is missing"
        notes.append(f"{key} {there} in {source}: a new one for {expected[key][0]} classes starts at random")
    return replaced, notes


def logits(output: Any) -> Tensor:
    """The logits [N, classes] in what a classifier returned: a tensor, or an output of transformers.

    Raises:
        RunError: If there are none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise RunError(f"the model returned a {type(output).__name__} without logits: give a classifier")
    return found
