"""A compacted model of transformers as a directory: configuration, weights, ticket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from earlyworm.errors import TicketError, first_line
from earlyworm.inputs import unwrap
from earlyworm.tickets.compaction import compact
from earlyworm.tickets.ticket import Ticket, fingerprint

TICKET_NAME = "ticket.safetensors"


def save_pretrained(small: Any, ticket: Ticket, directory: str | os.PathLike[str]) -> None:
    """Save a compacted model of transformers so that `load_pretrained` gives it back.

    The directory holds the configuration of the dense model, the weights as safetensors, the generation configuration,
    and the ticket; nothing is pickled. A tokenizer can be saved beside it as always.

    Args:
        small: What `compact` returned, trained or not.
        ticket: The ticket that it was compacted by.
        directory: Where; it is made.

    Raises:
        TicketError: If it is not a compacted model of this ticket, or of a class that transformers does not define.

    Example:
        >>> small = ew.compact(model, ticket)  # doctest: +SKIP
        >>> save_pretrained(small, ticket, "small")  # doctest: +SKIP
        >>> again = load_pretrained("small")  # doctest: +SKIP
    """
    small = unwrap(small)
    if not isinstance(small, PreTrainedModel):
        raise TicketError(f"{type(small).__name__} is no model of transformers: save its state_dict with safetensors")
    _known_class(type(small).__name__, type(small))
    if ticket.units.removable and fingerprint(small) == ticket.structure:
        raise TicketError(f"this {type(small).__name__} is still dense: save what compact(model, ticket) returns")
    ticket.check_compacted(small)
    small.save_pretrained(directory, save_original_format=False)
    ticket.save(Path(directory) / TICKET_NAME)


def load_pretrained(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """Load a compacted model that `save_pretrained`, or a `Trainer` with a `TicketCallback`, has saved.

    No code from the directory is run, and nothing is unpickled.

    Args:
        directory: Where it was saved.

    Returns:
        The model on the CPU, in the dtype that it was saved in, and in eval mode.

    Raises:
        TicketError: If a file is missing or damaged, or they do not belong together.
    """
    folder = Path(directory)
    ticket = Ticket.load(folder / TICKET_NAME)
    generation = None
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cls = _known_class((config.architectures or ["?"])[0])
        with no_init_weights():
            dense = cls._from_config(config)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            generation = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise TicketError(f"the configuration in {folder} cannot be read ({first_line(error)}): save again") from error
    dense.tie_weights()
    small = compact(dense, ticket)
    _fill(small, _stored_weights(folder), folder)
    if generation is not None:
        small.generation_config = generation
    return small.eval()


def _known_class(name: str, expected: type | None = None) -> Any:
    """The class that transformers has under this name."""
    cls = getattr(transformers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, PreTrainedModel) or (expected and cls is not expected):
        raise TicketError(
            f"{name} is no class of transformers, so its code cannot be had from there: save the state_dict with "
            "safetensors and the ticket with ticket.save(); later compact a dense model by the ticket, and load it"
        )
    return cls


def _stored_weights(folder: Path) -> dict[str, Tensor]:
    try:
        names = [SAFE_WEIGHTS_NAME]
        # An index may be left of a larger model that was saved here before.
        if not (folder / SAFE_WEIGHTS_NAME).is_file() and (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise TicketError(f"the weights in {folder} cannot be read ({first_line(error)}): save again") from error


@torch.no_grad()
def _fill(small: Any, stored: dict[str, Tensor], folder: Path) -> None:
    """Load the weights, each in the dtype that it is stored in; one that is tied to a stored one is not missed."""
    tensors: dict[str, Tensor] = small.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            found = f"is {list(tensors[name].shape)} by the ticket" if name in tensors else "is unknown"
            raise TicketError(
                f"{name!r} is {list(tensor.shape)} in {folder} and {found}: the weights are not those of a model that "
                "was compacted by the ticket beside them"
            )
        tensors[name].data = tensors[name].data.to(tensor.dtype)
        tensors[name].copy_(tensor)
    filled = {id(tensors[name]) for name in stored}
    for name, tensor in tensors.items():
        if id(tensor) not in filled and name not in (small._keys_to_ignore_on_save or ()):
            raise TicketError(f"the weights in {folder} lack {name!r}: save again")
