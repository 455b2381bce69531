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


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model.train()(images), labels).backward()
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
    quarter = len(train) // 32 // 4  # of an epoch, in steps

    search = ew.TicketSearch(model, x, pruning_ratio=0.5, truncation=ew.Fade())  # 1
    with search.attach(optimizer):  # 2
        for _ in range(30):
            for step, batch in enumerate(train[torch.randperm(len(train))].split(32), 1):
                train_step(model, optimizer, images[batch], labels[batch])
                if step % quarter == 0 and search.update():  # 3
                    break
            if search.emerged:
                break
    ticket = search.draw()  # an error that says how close it came, if nothing has emerged in 30 epochs
    print(f"the ticket emerged after {ticket.step} steps")
    small = ew.compact(model, ticket, example_inputs=x)  # 4

    print(f"dense: {ew.cost(model, x)}")
    print(
        f"small: {ew.cost(small, x)}, {accuracy(small, images[test], labels[test]):.3f} held-out accuracy when cut out"
    )
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for batch in train[torch.randperm(len(train))].split(32):
            train_step(small, optimizer, images[batch], labels[batch])
    print(f"small: {accuracy(small, images[test], labels[test]):.3f} held-out accuracy after ten epochs more")

    # Saved without pickle; anywhere else the dense network and the ticket give the shape, the file the weights.
    ticket.save("ticket.safetensors")
    save_file(small.state_dict(), "small.safetensors")
    again = ew.compact(FireNet(), ew.Ticket.load("ticket.safetensors"))
    again.load_state_dict(load_file("small.safetensors"))
    assert torch.equal(again.eval()(x), small.eval()(x))


if __name__ == "__main__":
    main()
