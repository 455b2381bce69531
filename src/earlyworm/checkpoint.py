"""Checkpoints: nested state in one safetensors file, written atomically, named after its own digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from earlyworm.errors import RunError
from earlyworm.ticket import write_atomically

_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.safetensors")
_KEPT = 2  # the newest, and one to fall back on


class Checkpoints:
    """The checkpoints of one run; the two newest are kept.

    A file's name carries the digest of its content, so that damage is noticed.

    Args:
        folder: Where they lie; it is made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> Path:
        """Write `state` (nested dictionaries, lists, numbers, strings and tensors) as the newest checkpoint.

        Raises:
            RunError: If it cannot be written; the older checkpoints stay.
        """
        content = pack(state)
        older = self._files()
        number = 1 + max((int(path.name[:6]) for path in older), default=0)
        path = self.folder / f"{number:06d}-{_digest(content)}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise RunError(
                f"cannot write the checkpoint {path} ({error.strerror}): make room or choose another --output; the "
                "same command goes on from the last checkpoint"
            ) from error
        for old in older[: max(0, len(older) + 1 - _KEPT)]:
            old.unlink(missing_ok=True)
        return path

    def load(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None if there is none.

        Args:
            report: Told about each damaged file; it is removed, so as not to count as one to fall back on.
        """
        for path in reversed(self._files()):
            content = path.read_bytes()
            if _digest(content) == path.stem[-16:]:
                state: dict[str, Any] = unpack(content)
                return state
            path.unlink(missing_ok=True)
            where = "the one before" if self._files() else "the start, for there is no other"
            report(f"the checkpoint {path} is damaged; going back to {where}")
        return None

    def _files(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))


def pack(state: Any) -> bytes:
    """Nested dictionaries, lists, tuples, numbers, strings, None and tensors as one safetensors file.

    Raises:
        TypeError: If there is anything else in it.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[f"{len(tensors):06d}"] = value.detach().cpu().contiguous().clone()
            # How tensors are laid out decides how fast, and in which order, numbers are taken from them.
            return {"tensor": f"{len(tensors) - 1:06d}", "stride": torch.empty_like(value, device="meta").stride()}
        if isinstance(value, dict):
            return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [encode(item) for item in value]}
        if isinstance(value, list):
            return [encode(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")

    encoded = json.dumps(encode(state))
    return save(tensors or {"empty": torch.zeros(0)}, {"state": encoded})


def unpack(content: bytes) -> Any:
    """Inverse of `pack`.

    Raises:
        RunError: If the content is damaged.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        encoded = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["state"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"the checkpoint is damaged ({error}): start afresh with --overwrite") from error

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            return torch.empty_strided(tensor.shape, value["stride"], dtype=tensor.dtype).copy_(tensor)
        if "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        return {decode(key): decode(item) for key, item in value["dict"]}

    return decode(encoded)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
