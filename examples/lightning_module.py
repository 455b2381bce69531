"""Find the ticket of a network that PyTorch Lightning trains: the four lines are marked.

python examples/lightning_module.py [FOLDER]

FOLDER holds train.parquet and validation.parquet with the columns `sentence` and `label`, such as SST-2. The same
command goes on after a kill.
"""

import sys
from collections import Counter
from pathlib import Path

import lightning
import pyarrow.parquet
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import earlyworm as ew
from earlyworm.integrations.lightning import TicketCallback  # 1

LENGTH = 24


def read(path: Path, words: dict[str, int], limit: int | None = None) -> TensorDataset:
    """Word numbers [sentences, LENGTH], 0 is padding and 1 an unknown word, and labels [sentences]."""
    table = pyarrow.parquet.read_table(path).to_pydict()
    ids = [[words.get(word, 1) for word in sentence.split()][:LENGTH] for sentence in table["sentence"][:limit]]
    padded = torch.tensor([some + [0] * (LENGTH - len(some)) for some in ids])
    return TensorDataset(padded, torch.tensor(table["label"][:limit]))


class Reader(nn.Module):
    """A plain transformer of PyTorch."""

    def __init__(self, words: int, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=256, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:  # [batch, LENGTH] -> [batch, 2]
        padding = ids == 0
        x = self.encoder(self.words(ids) + self.places, src_key_padding_mask=padding)
        return self.head(x.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True))


class Classifier(lightning.LightningModule):
    """What is to be trained, and how."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, i) -> Tensor:
        ids, labels = batch
        return F.cross_entropy(self.net(ids), labels)

    def validation_step(self, batch, i) -> None:
        ids, labels = batch
        self.log("accuracy", (self.net(ids).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=12)]


def main(folder: Path, output: Path, limit: int | None = None) -> None:
    lightning.seed_everything(0)
    sentences = pyarrow.parquet.read_table(folder / "train.parquet")["sentence"].to_pylist()
    common = Counter(word for sentence in sentences for word in sentence.split()).most_common(2000)
    words = {word: number for number, (word, _) in enumerate(common, start=2)}
    train = DataLoader(read(folder / "train.parquet", words, limit), batch_size=64, shuffle=True)
    validation = DataLoader(read(folder / "validation.parquet", words), batch_size=1000)

    model = Classifier(Reader(len(words) + 2))
    dense = sum(parameter.numel() for parameter in model.parameters())
    callback = TicketCallback(module="net", units=("heads", "neurons"), pruning_ratio=0.5, truncation=ew.Fade())  # 2
    trainer = lightning.Trainer(
        max_epochs=12,
        callbacks=[callback, ModelCheckpoint(output, save_last=True)],  # 3
        default_root_dir=output,
    )
    last = output / "last.ckpt"
    trainer.fit(model, train, validation, ckpt_path=last if last.exists() else None)

    ticket, small = callback.draw(), sum(parameter.numel() for parameter in model.parameters())
    ticket.save(output / "ticket.safetensors")  # 4
    result = trainer.validate(model, validation, verbose=False)[0]["accuracy"]
    print(f"the ticket emerged after {ticket.step} steps: {ticket.mask.units_kept} of {ticket.mask.units} units")
    print(f"{result:.3f} held-out accuracy, {small:,} of {dense:,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/sst2"), Path("lightning-output"))
