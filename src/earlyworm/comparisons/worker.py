"""A process that does runs for another one: settings come in as lines of JSON, what happens goes out as such.

It ends with the process that has started it, however that one ends: a comparison that was killed leaves nothing behind
that goes on training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from earlyworm.errors import EarlywormError, first_line
from earlyworm.experiments.results import CheckRecord

DONE = "done"
FAILED = "failed"

# A process that was killed gives its lock up within moments; one of an earlier comparison may be ending right now.
LOCK_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class Reporter:
    """An observer of a run that sends everything it is told as lines of JSON: a word and values.

    Attributes:
        send: Takes a line.
    """

    send: Callable[[str], Any]

    def tell(self, kind: str, *values: Any) -> None:
        """Send one line."""
        self.send(json.dumps([kind, *values]) + "\n")

    def stage(self, name: str, epochs: float, done: float) -> None:
        """See `Observer`."""
        self.tell("stage", name, epochs, done)

    def progress(self, epoch: float, loss: float) -> None:
        """See `Observer`."""
        self.tell("progress", epoch, loss)

    def check(self, record: CheckRecord) -> None:
        """See `Observer`."""
        self.tell("check", dataclasses.asdict(record))

    def recovered(self, epoch: float, loss: float, accuracy: float | None) -> None:
        """See `Observer`."""
        self.tell("recovered", epoch, loss, accuracy)

    def note(self, text: str) -> None:
        """See `Observer`."""
        self.tell("note", text)


def run_cell(settings: dict[str, Any], reporter: Reporter, patience: float = LOCK_PATIENCE_SECONDS) -> bool:
    """Do one run and tell how it ended.

    Args:
        settings: The fields of a `RunConfig`.
        reporter: Is told what happens; at last "done", or "failed" with the error in one line and what is returned.
        patience: Seconds to wait for another process that is at work on the same run.

    Returns:
        Whether this process is fit for another run: an error that nobody expected may have left anything.
    """
    from earlyworm.experiments.config import RunConfig
    from earlyworm.experiments.run import run

    try:
        run(RunConfig.from_dict(settings), reporter, patience)
    except EarlywormError as error:
        reporter.tell(FAILED, " ".join(str(error).splitlines()), True)
        return True
    except Exception as error:  # noqa: BLE001  (whatever ends one cell must not end the others)
        traceback.print_exc()
        reporter.tell(FAILED, f"{type(error).__name__}: {first_line(error)}", False)
        return False
    reporter.tell(DONE)
    return True


def main(threads: int) -> int:
    """Do the runs that standard input asks for, until it ends or one ends with an error that nobody expected.

    Args:
        threads: How many threads an operation of PyTorch may use.
    """
    # What libraries print must not come between the lines that are sent.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # writes every line at once: what was said before a process is killed stays in its log
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, asked), daemon=True).start()

    import torch

    torch.set_num_threads(threads)
    while run_cell(json.loads(asked.get()), Reporter(output.write)):
        pass
    return 1


def _read(lines: TextIO, asked: queue.SimpleQueue[str]) -> None:
    """Hand on what is asked for; at its end the process that asks has ended, and so does this one, whatever it does."""
    for line in lines:
        asked.put(line)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
