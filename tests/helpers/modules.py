"""Lightning modules around a small network, and a trainer with a callback for them."""

import lightning.pytorch as lightning
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from earlyworm.integrations.lightning import TicketCallback
from residual import loss_on, make_batch, make_network
from sentences import SOON
from stepping import UNITS

QUIET = [  # Lightning's advice on data loaders, logging and folders, and what it makes of newer versions of PyTorch
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`"),
]
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


class Automatic(lightning.LightningModule):
    def __init__(self, optimizer="adamw", seed=0):
        super().__init__()
        self.net = make_network(seed)
        self.optimizer = optimizer

    def training_step(self, batch, i):
        return loss_on(self.net, batch)

    def validation_step(self, batch, i):
        self.log("val_loss", loss_on(self.net, batch))

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Manual(Automatic):
    """Two optimizers that take turns, and clipping by hand."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, i):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss_on(self.net, batch))
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.5)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        norms = [parameter for name, parameter in self.named_parameters() if "bn" in name]
        others = [parameter for name, parameter in self.named_parameters() if "bn" not in name]
        return [OPTIMIZERS[self.optimizer](norms), OPTIMIZERS[self.optimizer](others)]


def loader(rank=0, processes=1):
    """Six batches of eight, or the part of each of them that a process sees."""
    images, labels = (part[rank::processes] for part in make_batch(0, size=48))
    return DataLoader(TensorDataset(images, labels), batch_size=8 // processes)


def make_callback(**search):
    return TicketCallback(**{"module": "net", "units": UNITS, "emergence": SOON, **search})


def fit(folder, model=None, callbacks=None, *, search=None, checkpoint=None, validate=False, data=None, **options):
    """Train a network; returns the trainer and the callback of the search."""
    callback = make_callback(**(search or {}))
    trainer = lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback, *(callbacks or [])],
        **{"max_epochs": 5, "logger": False, "enable_checkpointing": bool(callbacks), **options},
    )  # fmt: skip
    model = Automatic() if model is None else model
    trainer.fit(model, data or loader(), loader() if validate else None, ckpt_path=checkpoint, weights_only=True)
    return trainer, callback
