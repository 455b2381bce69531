"""Folders that one process at a time works in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from earlyworm.errors import RunError

LOCK = ".lock"


@contextmanager
def claim(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Make a folder, and keep other processes out that claim it too; a process that is killed gives it up.

    Args:
        folder: The folder.
        patience: Seconds to wait until another process gives it up.

    Raises:
        RunError: If one does not, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=patience)
        lock.acquire()
    except Timeout as error:
        raise RunError(f"another process is at work in {folder}: wait for it, or stop it") from error
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}): choose another --output") from error
    try:
        yield
    finally:
        lock.release()
