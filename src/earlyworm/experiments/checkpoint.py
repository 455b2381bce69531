"""The checkpoints of a run: nested state in files that are named after their own digest."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from earlyworm.errors import RunError
from earlyworm.files import pack, unpack, write_atomically

_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.safetensors")
_KEPT = 2  # the newest, and one to fall back on

TIME_SHARE = 0.05
"""Of the time of a run, at most about as much goes into checkpoints that could be spared."""


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


class Pauses:
    """Says when the next checkpoint is worth its time: the pause after each grows with what it took to write.

    A small network is saved at nearly every check; one of gigabytes so rarely that training hardly waits for it. What
    an interruption loses is at most about `1 / TIME_SHARE` times what a checkpoint takes.
    """

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Whether a checkpoint is due."""
        return time.perf_counter() >= self._until

    @contextmanager
    def after(self) -> Iterator[None]:
        """What is done within is the writing of a checkpoint; a pause follows."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        self._until = end + (end - start) * (1 / TIME_SHARE - 1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
