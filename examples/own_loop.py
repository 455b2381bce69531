"""Find the ticket of your own network in your own training loop: the four lines are marked.

python examples/own_loop.py
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import earlyworm as ew


class FireNet(nn.Module):
    """A network that the library knows nothing of: two branches per block, put side by side, and a skip."""

    class Fire(nn.Module):
        def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
            super().__init__()
            self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.BatchNorm2d(squeezed), nn.SiLU())
            self.narrow = nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.BatchNorm2d(expanded))
            self.wide = nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.BatchNorm2d(expanded))

        def forward(self, x: Tensor) -> Tensor:
            x = self.squeeze(x)
            return F.silu(torch.cat([self.narrow(x), self.wide(x)], dim=1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU())
        self.first = self.Fire(32, 16, 16)
        self.second = self.Fire(32, 16, 16)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:  # [batch, 1, 8, 8] -> [batch, 10]
        x = self.first(self.stem(x))
        x = x + self.second(x)
        return self.head(x.mean(dim=(2, 3)))


def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    for batch in torch.randperm(len(labels)).split(32):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[:1440], order[1440:]  # the second part is held out

    model = FireNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = images[:1]

    search = ew.TicketSearch(model, x, pruning_ratio=0.5, truncation=ew.Fade())  # 1
    with search.attach(optimizer):  # 2
        for epoch in range(1, 31):
            train_one_epoch(model, optimizer, images[train], labels[train])
            if search.update():  # 3
                print(f"the ticket emerged at epoch {epoch}")
                break
    ticket = search.draw()
    small = ew.compact(model, ticket, example_inputs=x)  # 4

    print(f"dense: {accuracy(model, images[test], labels[test]):.3f} held-out accuracy, {ew.cost(model, x)}")
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        train_one_epoch(small, optimizer, images[train], labels[train])
    print(f"small: {accuracy(small, images[test], labels[test]):.3f} held-out accuracy, {ew.cost(small, x)}")

    # Saved without pickle; anywhere else the dense network and the ticket give the shape, the file the weights.
    ticket.save("ticket.safetensors")
    save_file(small.state_dict(), "small.safetensors")
    again = ew.compact(FireNet(), ew.Ticket.load("ticket.safetensors"))
    again.load_state_dict(load_file("small.safetensors"))
    assert torch.equal(again.eval()(x), small.eval()(x))


if __name__ == "__main__":
    main()
