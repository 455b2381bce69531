"""A small residual network whose coupled channels are known by hand, and data that it can learn."""

import torch
from torch import Tensor, nn

# Unit group -> the batch norms that its units pass. The stem, the second layer of the block and the shortcut's sum
# are coupled; the first layer of the block stands alone.
COUPLED = {"stem": ["stem_bn", "second_bn"], "first": ["first_bn"]}


class Residual(nn.Module):
    def __init__(self, width: int = 6, inner: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.second_bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.stem_bn(self.stem(images)))
        y = torch.relu(self.first_bn(self.first(x)))
        x = torch.relu(x + self.second_bn(self.second(y)))
        return self.head(x.mean((2, 3)))


def make_network(seed: int = 0) -> Residual:
    """Scales are spread, so that no two scores are equal by accident."""
    torch.manual_seed(seed)
    model = Residual()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    return model


def make_batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images [size, 3, 6, 6] whose class is the brightest channel, and the classes [size]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=generator)
    images = torch.randn(size, 3, 6, 6, generator=generator)
    images[torch.arange(size), labels] += 1.0
    return images, labels


def loss_on(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models hold the same numbers, bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
