"""PyTorch Lightning: the search in a `Trainer`, imported as `lightning` or as `pytorch_lightning`.

Needs the extra `lightning`: `pip install 'earlyworm[lightning]'`.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from typing import Any

import torch
from torch import nn

from earlyworm.errors import ConfigError, SearchError
from earlyworm.inputs import unwrap
from earlyworm.integrations import MissingPackageError
from earlyworm.integrations.callback import Every, OnEmergence, SearchCallback, as_logs, start_over
from earlyworm.search.history import Check

__all__ = ["TicketCallback"]

STATE = "earlyworm"  # the key of the search in a checkpoint


def _callback_class() -> Any:
    """The base class of callbacks, of the package that is imported already; both packages accept either."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise MissingPackageError("lightning is not installed: pip install 'earlyworm[lightning]'")


class TicketCallback(SearchCallback, _callback_class()):  # type: ignore[misc]  # whichever package there is
    """Finds the ticket of the model that a Lightning `Trainer` trains, and lets it go on with the smaller one.

    At emergence the model is compacted where it is: modules, optimizers, schedules and logs go on, and so does the same
    `trainer.fit()`, with one process or with several (DDP), under automatic and manual optimization. Truncation acts
    after the closure that Lightning gives to the optimizer.

    Every checkpoint but those of weights alone holds the search too, and `trainer.fit(ckpt_path=...)` goes on with it;
    a checkpoint of the smaller model makes the model small before its weights are loaded.

    Args:
        module: Which part of the `LightningModule` is searched, such as `"net"`; all of it by default.
        on_emergence: `"compact"`: go on with the smaller model. `"stop"`: end the training with the model as it is.
        every: Optimizer steps between checks, or `"epoch"`.
        **settings: Arguments of `TicketSearch`: `units`, `pruning_ratio`, `truncation`, `emergence`, ...

    Raises:
        ConfigError: If a setting is impossible.

    Example:
        >>> callback = TicketCallback(module="net", example_inputs=x, truncation=ew.Fade())  # doctest: +SKIP
        >>> trainer = L.Trainer(max_epochs=30, callbacks=[callback])  # doctest: +SKIP
        >>> trainer.fit(model, loader)  # doctest: +SKIP
        >>> callback.draw().save("ticket.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self, *, module: str = "", on_emergence: OnEmergence = "compact", every: Every = "epoch", **settings: Any
    ) -> None:
        super().__init__(on_emergence, every, settings)
        self.module = module

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand in front of the loading of weights: callbacks are told of a checkpoint only after that.

        Raises:
            SearchError: If the callback was added twice, the model is sharded, or another callback keeps a copy of it.
        """
        self._refuse_trainer(trainer)
        load = pl_module.on_load_checkpoint

        @functools.wraps(load)
        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            load(checkpoint)
            self._before_load(checkpoint, pl_module, must=stage == "fit")

        pl_module.on_load_checkpoint = on_load_checkpoint

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Undo `setup`."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the search to the optimizers.

        Raises:
            SearchError: If the model cannot be searched or compacted, or the search is over.
        """
        self._begin(self._part(pl_module))
        if self.compacted:
            return
        self._log(trainer, *self._attach(trainer.optimizers, trainer.strategy.model))
        if self.emerged:  # of a run that had stopped there
            self._go_on(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check if it is time; stop or compact if the ticket has emerged."""
        # Not `on_train_epoch_end`: a checkpoint that is saved after the validation would lack the check.
        self._look(trainer, epoch_ends=trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Check after an epoch that was ended early, unless training ends there."""
        ends = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
        self._look(trainer, epoch_ends=self.search is not None and self._steps_since > 0 and not ends)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the search."""
        self._leave()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the search into a checkpoint; None if it has not begun, as where a learning rate is looked for before."""
        checkpoint[STATE] = None if self.search is None else self._export()

    def _look(self, trainer: Any, *, epoch_ends: bool) -> None:
        """Check if it is time; stop or compact if the ticket has emerged."""
        cut = self._cut
        check = self._check(epoch_ends=epoch_ends)
        if check is not None:
            self._log(trainer, check)
            if self.emerged:
                self._go_on(trainer)
            elif self._cut > cut:
                _forget_best(trainer)

    def _go_on(self, trainer: Any) -> None:
        self._take(trainer.optimizers, trainer.strategy.model)
        if self.compacted:
            _forget_best(trainer)
        else:
            trainer.should_stop = True

    def _log(self, trainer: Any, *checks: Check) -> None:
        for check in checks:
            for logger in trainer.loggers:
                logger.log_metrics(as_logs(check), step=check.step)

    def _before_load(self, checkpoint: dict[str, Any], pl_module: Any, *, must: bool) -> None:
        """Go on with the search in a checkpoint whose weights are about to be loaded.

        Args:
            checkpoint: The checkpoint.
            pl_module: What its weights are loaded into.
            must: Whether there must be a search in it.
        """
        if STATE in checkpoint:
            if checkpoint[STATE] is not None:
                self._restore(checkpoint[STATE], self._part(pl_module))
        elif must:
            raise SearchError(
                "the checkpoint holds no search: it was saved without a TicketCallback, or with weights alone; load "
                "its weights with load_from_checkpoint and start a new training, or resume from another checkpoint"
            )

    def _part(self, pl_module: Any) -> nn.Module:
        try:
            part: nn.Module = unwrap(pl_module.get_submodule(self.module))
        except AttributeError as error:
            raise ConfigError(f"{type(pl_module).__name__} has no module {self.module!r}: {error}") from error
        return part

    def _refuse_trainer(self, trainer: Any) -> None:
        twins = [callback for callback in trainer.callbacks if isinstance(callback, TicketCallback)]
        if twins != [self]:
            raise SearchError(f"{len(twins)} TicketCallbacks were added to the trainer: add one, and once")
        strategies = {cls.__name__ for cls in type(trainer.strategy).__mro__}
        if not strategies & {"SingleDeviceStrategy", "DDPStrategy"} or "DeepSpeedStrategy" in strategies:
            raise SearchError(
                f"{type(trainer.strategy).__name__} shards the model over processes, but every process must hold the "
                "whole model: use strategy='ddp' for the search, and sharding for the smaller model"
            )
        smaller = self.on_emergence == "compact" or self._settings.get("shrink")
        for callback in trainer.callbacks if smaller else ():
            if {cls.__name__ for cls in type(callback).__mro__} & {"StochasticWeightAveraging", "WeightAveraging"}:
                raise SearchError(
                    f"{type(callback).__name__} averages the weights of a model whose size would change: leave it out, "
                    "or stop at emergence (on_emergence='stop', shrink=False) and average in a second run with the "
                    "smaller model"
                )


def _forget_best(trainer: Any) -> None:
    """Let what watches a metric start over: the smaller model has to beat itself, and not the dense one."""
    for config in trainer.lr_scheduler_configs:
        start_over(config.scheduler)
    for callback in trainer.callbacks:
        classes = {cls.__name__ for cls in type(callback).__mro__}
        if "ModelCheckpoint" in classes and callback.monitor is not None:
            callback.best_k_models, callback.best_model_path, callback.kth_best_model_path = {}, "", ""
            callback.best_model_score = None
            callback.kth_value = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
        elif "EarlyStopping" in classes:
            callback.wait_count = 0
            callback.best_score = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
