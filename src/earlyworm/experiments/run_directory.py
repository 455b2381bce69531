"""The directory of a run: what lies where, how it is begun, read, ended and cleared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from earlyworm.errors import ConfigError, RunError, first_line
from earlyworm.experiments.checkpoint import Checkpoints
from earlyworm.experiments.claim import LOCK, claim
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.models import save_weights
from earlyworm.experiments.results import RunResult
from earlyworm.files import TEMPORARY, write_atomically


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of one run lies.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """The result; it exists once the run has ended."""
        return self.path / "result.json"

    @property
    def ticket(self) -> Path:
        """The ticket."""
        return self.path / "ticket.safetensors"

    @property
    def model(self) -> Path:
        """The weights of the compacted network."""
        return self.path / "model.safetensors"

    @property
    def network(self) -> Path:
        """What a network of transformers is built from: its configuration, and the tokenizer of a text model."""
        return self.path / "network"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints; they go when the run has ended with a ticket."""
        return Checkpoints(self.path / "checkpoint")

    @property
    def candidates(self) -> Path:
        """What there is of every ratio while several are searched for."""
        return self.path / "candidates"

    @property
    def trackers(self) -> Path:
        """What trackers write."""
        return self.path / "track"

    @classmethod
    def of(cls, config: RunConfig) -> RunDirectory:
        """The directory of the run with these settings."""
        return cls(Path(config.output) / config.directory_name())

    def check_owner(self, config: RunConfig) -> None:
        """Make sure that the directory is absent, empty, or that of a run with the same settings.

        Raises:
            RunError: If something else lies there.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path} is a file: choose another --output")
            nothing = (TEMPORARY, LOCK)
            if not self.path.is_dir() or all(any(map(path.match, nothing)) for path in self.path.iterdir()):
                return
        except OSError as error:
            raise RunError(f"cannot read {self.path} ({error.strerror}): choose another --output") from error
        if not self.config.exists():
            raise RunError(f"{self.path} holds something that is not a run: choose another --output")
        found, wanted = self.read_config().settings(), config.settings()
        if found != wanted:
            name = next(name for name, value in wanted.items() if found[name] != value)
            raise RunError(f"{self.path} holds another run, with another {name}: choose another --output")

    def prepare(self, config: RunConfig) -> None:
        """Make the directory, without what a killed process left; `overwrite` removes the files of the same run first.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.rglob(TEMPORARY):
                left.unlink(missing_ok=True)
            if config.overwrite:
                self._clear()
            if config.overwrite or not self.config.exists():
                write_atomically(self.config, (json.dumps(asdict(config), indent=1) + "\n").encode())
        except OSError as error:
            raise RunError(f"cannot write to {self.path} ({error.strerror}): choose another --output") from error

    @contextmanager
    def claimed(self, patience: float = 0.0) -> Iterator[None]:
        """Keep other processes from working on the same run; see `claim`."""
        with claim(self.path, patience):
            yield

    def read_config(self) -> RunConfig:
        """The settings of the run.

        Raises:
            RunError: If this is not the directory of a run.
        """
        try:
            return RunConfig.from_dict(json.loads(self.config.read_text()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(f"{self.path} is not the directory of a run: it has no config.json") from error
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise RunError(f"{self.config} is damaged ({error}): remove {self.path}, or choose another") from error

    def read_result(self) -> RunResult:
        """The result of the run.

        Raises:
            RunError: If it has none yet, or it is damaged.
        """
        try:
            return RunResult.from_json(self.result.read_bytes(), str(self.result))
        except (FileNotFoundError, NotADirectoryError) as error:
            command = replace(self.read_config(), output=str(self.path.parent)).command()
            raise RunError(f"{self.path} has no result yet: finish the run with {command}") from error
        except OSError as error:
            raise RunError(f"{self.result} cannot be read ({error.strerror}): run again with --overwrite") from error

    def ended(self, config: RunConfig) -> RunResult | None:
        """The result of the run with these settings, if it has ended and is not to go on or start afresh.

        Raises:
            RunError: If it is damaged.
        """
        if config.overwrite or not self.result.exists():
            return None
        result = self.read_result()
        return None if result.ticket is None and config.force_draw else result

    def check_network(self) -> None:
        """Make sure that ticket and weights of a run that has ended with them are still there.

        Raises:
            RunError: If one is gone or damaged.
        """
        for path in (self.ticket, self.model):
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{path} cannot be read ({first_line(error)}), though the run has ended: put it back, or run again "
                    "with --overwrite"
                ) from error

    def write(self, path: Path, content: bytes) -> None:
        """Write one of the files, atomically.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            write_atomically(path, content)
        except OSError as error:
            raise RunError(
                f"cannot write {path} ({error.strerror}): make room or choose another --output; the same command goes "
                "on from the last checkpoint"
            ) from error

    def write_network(self, network: nn.Module, files: dict[str, bytes]) -> None:
        """Write the compacted network, so that it loads without what it was made from.

        Args:
            network: The network; what a network of transformers is built from goes with its weights.
            files: What is needed beside it, by name.

        Raises:
            RunError: If it cannot be written.
        """
        described: Any = getattr(network, "config", None)
        if hasattr(described, "to_json_string"):
            files = {"config.json": described.to_json_string().encode(), **files}
            self.network.mkdir(exist_ok=True)
        for name, content in files.items():
            self.write(self.network / name, content)
        self.write(self.model, save_weights(network))

    def finish(self, result: RunResult) -> None:
        """Write the result, and remove what only an unfinished run needs.

        Without a ticket the checkpoints stay: `force_draw` goes on from them.

        Raises:
            RunError: If it cannot be written.
        """
        self.write(self.result, result.to_json().encode())
        if result.ticket is not None:
            self._remove(self.checkpoints.folder, self.candidates)

    def _clear(self) -> None:
        # The result first, and checkpoints before the ticket that they need: interrupted here, the run can still go on.
        self.result.unlink(missing_ok=True)
        self._remove(self.checkpoints.folder, self.candidates, self.trackers, self.network)
        for path in (self.ticket, self.model, self.report):
            path.unlink(missing_ok=True)

    def _remove(self, *folders: Path) -> None:
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
