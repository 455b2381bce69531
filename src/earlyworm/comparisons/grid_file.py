"""Reads the options of a grid from a file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from earlyworm.errors import ConfigError


def read_grid(path: Path) -> dict[str, Any]:
    """The options in a TOML, YAML or JSON file, by their names.

    Args:
        path: The file; its suffix says what it is.

    Raises:
        ConfigError: If it cannot be read, or is no table of options.
    """
    import yaml

    readers = {".toml": tomllib.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".json": json.loads}
    if path.suffix not in readers:
        raise ConfigError(f"cannot tell what {str(path)!r} is: name it {', '.join('*' + end for end in readers)}")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the grid {path} ({error.strerror}): check path and permissions") from error
    except (ValueError, yaml.YAMLError) as error:  # what the readers of TOML and JSON raise are ValueErrors
        said = " ".join(str(error).split())
        raise ConfigError(f"{path} is no valid {path.suffix[1:]} ({said}): correct it") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{path} must be a table of options, such as seeds = [0, 1]: {type(values).__name__} found")
    return values
