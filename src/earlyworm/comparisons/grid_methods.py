"""A method of a grid: what it is called, what it changes, and which other method's ticket it is fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from earlyworm.errors import ConfigError
from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.names import Method, suggest

FORM = "NAME, NAME@REFERENCE or LABEL=NAME, and behind that :option=value,option=value where options differ"

FOLLOWED = {"narrow": "macs", "random": "draw_epoch", "late": "draw_epoch", "rst": "draw_epoch"}
"""What a method takes from the ticket of the one that it follows, which is known once that is done."""

OF_ONE_METHOD = frozenset({"draw_epoch", "macs", "rewind_epoch"})
"""Options that only some methods have: no grid can set them for all of its methods."""

_OF_THE_GRID = frozenset({
    "task", "method", "model", "data", "limit", "validation", "ratio", "ratios", "seed", "device", "force_draw",
    "track", "output", "overwrite",
})  # fmt: skip
_HINTS = get_type_hints(RunConfig)


@dataclass(frozen=True)
class GridMethod:
    """A method of a grid.

    Attributes:
        label: What tables call it; every method of a grid has its own.
        method: The name of the method.
        follows: The label of the method whose ticket sets `macs` or `draw_epoch`; None: nothing is taken from another.
        options: Names and values of options that differ from those of the grid.

    Raises:
        ConfigError: If there is no such method or option.
    """

    label: str
    method: str
    follows: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"unknown method {self.method!r}: {suggest(self.method, get_args(Method))}")
        own = [name for name in _HINTS if name not in _OF_THE_GRID]
        for name, value in self.options:
            if name in _OF_THE_GRID:
                raise ConfigError(f"{self.label!r} cannot set {name}, which belongs to the whole grid: leave it out")
            if name not in own:
                raise ConfigError(f"{self.label!r} sets an unknown option {name!r}: {suggest(name, own)}")
            if not _readable(value):
                raise ConfigError(
                    f"{self.label!r} sets {name} to {value!r}, which cannot be written in one word: choose a value "
                    "without commas, pluses and spaces at its ends, or set it for the whole grid"
                )
        if self.follows is None:
            return
        if self.method not in FOLLOWED:
            raise ConfigError(
                f"{self.label!r}: {self.method} follows no other method; leave out @{self.follows}, which only "
                f"{', '.join(FOLLOWED)} can have"
            )
        if (taken := FOLLOWED[self.method]) in dict(self.options):
            raise ConfigError(f"{self.label!r} sets {taken}, which @{self.follows} sets too: leave one of them out")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a method from one word, such as `worm`, `random@early-bird` or `worm:static=window,epsilon=0.05`.

        Raises:
            ConfigError: If it is not of this form.
        """
        head, colon, tail = text.partition(":")
        label, named, plain = head.partition("=") if "=" in head else ("", "", head)
        name, at, reference = plain.partition("@")
        if not name or (at and not reference) or (named and not label):
            raise ConfigError(f"method {text!r} must be {FORM}")
        options: dict[str, Any] = {}
        for word in tail.split(",") if colon else ():
            option, equals, value = word.partition("=")
            option = option.strip().replace("-", "_")
            if not equals:
                raise ConfigError(f"method {text!r}: {word!r} is not an option with its value; the form is {FORM}")
            if option in options:
                raise ConfigError(f"method {text!r} sets {option} twice: leave one of them out")
            options[option] = _value(option, value.strip())
        found = cls(label or text, name, reference or None, tuple(options.items()))
        return found if label else dataclasses.replace(found, label=found.word())

    @classmethod
    def of(cls, given: Any) -> Self:
        """Read a method from a word, or from a table of a file: `name`, `method`, and options.

        Raises:
            ConfigError: If it is neither.
        """
        if isinstance(given, str):
            return cls.parse(given)
        if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
            raise ConfigError(f"method {given!r} must be a word or a table with `method`: {FORM}")
        parsed = cls.parse(given["method"])
        options = dict(parsed.options) | {
            str(name).replace("-", "_"): tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if name not in ("name", "method")
        }
        found = dataclasses.replace(parsed, options=tuple(options.items()))
        label = given.get("name", found.word())
        if not isinstance(label, str) or not label or ("name" in given and set(label) & set(":=@")):
            raise ConfigError(f"method {given!r} must have a name without : = and @, or none")
        return dataclasses.replace(found, label=label)

    def word(self) -> str:
        """The method without its label, as it is written in one word."""
        follows = f"@{self.follows}" if self.follows else ""
        options = ",".join(f"{name}={_text(value)}" for name, value in self.options)
        return f"{self.method}{follows}{':' if options else ''}{options}"

    def __str__(self) -> str:
        return self.label if self.label == self.word() else f"{self.label}={self.word()}"


def _value(option: str, text: str) -> Any:
    """The value that `text` stands for."""
    hint = _HINTS.get(option, str)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if text == "None" and NoneType in kinds:
        return None
    if get_origin(kinds[0]) is tuple:
        return tuple(_single(word, get_args(kinds[0])[0]) for word in text.split("+"))
    return _single(text, kinds[0])


def _readable(value: Any) -> bool:
    """Whether `_text` of a value can be read again: what parts options, or the values of one, must not be in it."""
    several = isinstance(value, tuple)
    texts = [str(part) for part in (value if several else (value,))]
    parting = {",", "+"} if several else {","}
    return bool(texts) and not any(parting & set(text) or text != text.strip() for text in texts)


def _single(text: str, kind: Any) -> Any:
    """`text` as one value of this kind; what cannot be one stays, and the check of all settings says what is wrong."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        return text


def _text(value: Any) -> str:
    """Inverse of `_value`."""
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
