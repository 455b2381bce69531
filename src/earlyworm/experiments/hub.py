"""The Hugging Face Hub: its failures as those of any other place that files come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_errors() -> Iterator[None]:
    """What the Hub's HTTP client raises is an OSError, whichever client it uses."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # re-exported from that client

    try:
        yield
    except HTTPError as error:
        raise OSError(str(error)) from error
