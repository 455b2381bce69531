"""Hugging Face transformers: the search in a `Trainer`, and compacted models as directories.

Needs the extra `transformers`: `pip install 'earlyworm[transformers]'`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earlyworm.errors import ConfigError, RunError, SearchError
from earlyworm.files import pack, unpack, write_atomically
from earlyworm.inputs import unwrap, unwrap_optimizer
from earlyworm.integrations import MissingPackageError
from earlyworm.integrations.callback import Every, OnEmergence, SearchCallback, as_logs, start_over
from earlyworm.search.history import Check

try:
    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import has_length
except ImportError as error:
    raise MissingPackageError("transformers is not installed: pip install 'earlyworm[transformers]'") from error

from earlyworm.integrations.pretrained import TICKET_NAME, load_pretrained, save_pretrained

__all__ = ["TicketCallback", "load_pretrained", "save_pretrained"]

SEARCH_NAME = "search.safetensors"  # in every checkpoint


class TicketCallback(SearchCallback, TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Finds the ticket of the model that a `Trainer` trains, and lets it go on with the smaller one.

    At emergence the model is compacted where it is: modules, optimizer, schedule and logs go on, and so does the same
    `trainer.train()`, with one process or with several (DDP). Truncation acts on the gradients that the optimizer
    uses, after accumulation and clipping.

    Every checkpoint of the trainer holds the search too, and `trainer.train(resume_from_checkpoint=...)` goes on with
    it; a checkpoint of the smaller model makes the model small before its weights are loaded. The callback stands in
    front of the trainer's `save_model` and `_load_from_checkpoint` for that: no event says which checkpoint is loaded.

    Args:
        trainer: The trainer, to which the callback must be added.
        on_emergence: `"compact"`: go on with the smaller model. `"stop"`: end the training with the model as it is.
        every: Optimizer steps between checks, or `"epoch"`.
        **settings: Arguments of `TicketSearch`: `units`, `pruning_ratio`, `truncation`, `emergence`, ...

    Raises:
        ConfigError: If a setting is impossible.
        SearchError: If the trainer shards the model (FSDP, DeepSpeed).
        UnitsError: If the model has no such units, or is quantised, or carries adapters.

    Example:
        >>> callback = TicketCallback(trainer, units=("heads", "neurons"), truncation=ew.Fade())  # doctest: +SKIP
        >>> trainer.add_callback(callback)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> save_pretrained(trainer.model, callback.draw(), "small")  # doctest: +SKIP
    """

    def __init__(
        self, trainer: Trainer, *, on_emergence: OnEmergence = "compact", every: Every = "epoch", **settings: Any
    ) -> None:
        super().__init__(on_emergence, every, settings)
        if not isinstance(trainer, Trainer):
            raise ConfigError(f"the first argument must be the trainer, not a {type(trainer).__name__}")
        sharding = ("is_fsdp_enabled", "is_deepspeed_enabled", "is_distributed_loading_by_transformers")
        if any(getattr(trainer, name, False) for name in sharding):
            raise SearchError(
                "the model is sharded over processes (FSDP, DeepSpeed), but every process must hold the whole model: "
                "use plain data parallelism for the search, and sharding for the smaller model"
            )
        self.trainer = trainer
        self._begin(trainer.model)
        load, save = trainer._load_from_checkpoint, trainer.save_model

        @functools.wraps(load)
        def load_from_checkpoint(folder: str, *args: Any, **kwargs: Any) -> Any:
            if self._is_added:
                self._before_load(Path(folder))
            return load(folder, *args, **kwargs)

        @functools.wraps(save)
        def save_model(output_dir: str | None = None, _internal_call: bool = False, **kwargs: Any) -> Any:
            if not self._is_added:
                return save(output_dir, _internal_call=_internal_call, **kwargs)
            with _own_names(unwrap(trainer.model)):
                result = save(output_dir, _internal_call=_internal_call, **kwargs)
            if trainer.args.should_save:
                self._after_save(Path(output_dir or trainer.args.output_dir), whole=_internal_call)
            return result

        trainer._load_from_checkpoint = load_from_checkpoint
        trainer.save_model = save_model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the search to the optimizer.

        Raises:
            SearchError: If the callback was added twice, or the search is over or cannot be attached.
            ConfigError: If there are no epochs to check after.
        """
        twins = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, TicketCallback)]
        if twins != [self]:
            raise SearchError(f"{len(twins)} TicketCallbacks were added to the trainer: add one, and once")
        if state.is_hyper_param_search:
            raise SearchError("a hyperparameter search trains many models: search for a ticket with the best of them")
        if self.every == "epoch" and not has_length(kwargs["train_dataloader"]):
            raise ConfigError(
                "the training data has no length, so there are no epochs to check after: give every=STEPS"
            )
        self._begin(kwargs["model"])
        if self.compacted:
            return
        self._log(*self._attach([kwargs["optimizer"]], self.trainer.model_wrapped))
        if self.emerged:  # of a run that had stopped there
            self._go_on(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Check if it is time; stop or compact if the ticket has emerged."""
        # Not `on_epoch_end`: a checkpoint that is saved after the last step of an epoch would lack the check.
        return self._look(state, control, epoch_ends=state.epoch == int(state.epoch))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Check after an epoch that was ended early, unless training ends there."""
        early = self.search is not None and self._steps_since > 0 and not control.should_training_stop
        return self._look(state, control, epoch_ends=early)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach the search."""
        self._leave()

    @property
    def _is_added(self) -> bool:
        """Whether the trainer has this callback; it may have been removed, or another one added in its place."""
        return self in self.trainer.callback_handler.callbacks

    def _look(self, state: TrainerState, control: TrainerControl, *, epoch_ends: bool) -> TrainerControl:
        """Check if it is time; stop or compact if the ticket has emerged."""
        cut = self._cut
        check = self._check(epoch_ends=epoch_ends)
        if check is not None:
            self._log(check)
            if self.emerged:
                self._go_on(state, control)
            elif self._cut > cut:
                self._forget_best(state)
        return control

    def _go_on(self, state: TrainerState, control: TrainerControl) -> None:
        self._take([unwrap_optimizer(self.trainer.optimizer)], self.trainer.model_wrapped)
        control.should_training_stop |= not self.compacted
        self._forget_best(state)

    def _forget_best(self, state: TrainerState) -> None:
        """The best checkpoint so far is not to be loaded at the end: larger, or with units that had not faded."""
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        start_over(self.trainer.lr_scheduler)

    def _log(self, *checks: Check) -> None:
        control = self.trainer.control
        should_log = control.should_log
        for check in checks:
            self.trainer.log(as_logs(check))
        control.should_log = should_log  # logging has reset it, but the trainer's own numbers are still to come

    def _after_save(self, folder: Path, *, whole: bool) -> None:
        """Put the search beside the weights that were saved, and the ticket, if they are those of the smaller model.

        Args:
            folder: Where they were saved.
            whole: Whether this is a checkpoint, and not a model that the user saves.
        """
        if whole:
            write_atomically(folder / SEARCH_NAME, pack(self._export()))
        if self.compacted:
            self.draw().save(folder / TICKET_NAME)

    def _before_load(self, folder: Path) -> None:
        """Go on with the search in a checkpoint whose weights are about to be loaded."""
        path = folder / SEARCH_NAME
        if not (folder / TRAINER_STATE_NAME).is_file():
            raise SearchError(
                f"{folder} is incomplete, as a kill while it was saved leaves it: resume from an older checkpoint"
            )
        if not path.is_file():
            raise SearchError(
                f"{folder} holds no search: it was saved without a TicketCallback; load its weights with "
                "from_pretrained and start a new training, or resume from another checkpoint"
            )
        try:
            state = unpack(path.read_bytes())
        except RunError as error:
            raise SearchError(f"{path} is damaged: resume from another checkpoint") from error
        self._restore(state, self.trainer.model)


@contextmanager
def _own_names(model: Any) -> Iterator[None]:
    """Inside of it, weights are saved under the names that the model has for them.

    Some models (ViT, Swin) are saved under older names, which a trainer that resumes does not find in them.
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained
