"""Which description a module answers to: only if the class that defines its `forward` is a class that is described."""

from __future__ import annotations

from torch import nn

from earlyworm.units.blocks import Attention, Blocks, Description, FeedForward
from earlyworm.units.known_blocks import KNOWN


def defining_class(module: nn.Module) -> type[nn.Module] | None:
    """The class that defines what `module` does: its forward, and all that this calls; None if parts are replaced."""
    if "forward" in vars(module) and not hasattr(module, "_original_forward"):  # accelerate keeps the original there
        return None
    classes = type(module).__mro__
    defining = next(cls for cls in classes if "forward" in vars(cls))
    used = {name for cls in defining.__mro__ if cls not in nn.Module.__mro__ for name in vars(cls)}
    for derived in classes[: classes.index(defining)]:
        if any(name in used and not name.startswith("__") for name in vars(derived)):
            return None
    return defining


def describe(module: nn.Module, blocks: Blocks) -> tuple[Attention | FeedForward, ...]:
    """The descriptions of `module`, the user's own before the known ones; none if it, or a part of it, is not known.

    Args:
        module: Any module.
        blocks: The user's descriptions; they hold for subclasses that inherit `forward`.
    """
    defining = defining_class(module)
    if defining is None:
        return ()
    classes = type(module).__mro__
    for cls in classes[: classes.index(defining) + 1]:
        for key in (cls, cls.__name__):
            if key in blocks:
                return _several(blocks[key])
    package, known = _known_as(defining)
    return tuple(description for description in known if _consists_of(module, description, package))


def resembles(module: nn.Module, wanted: type[Attention] | type[FeedForward]) -> bool:
    """Whether `module` is derived from a class that is known as the wanted kind of block."""
    return any(isinstance(known, wanted) for cls in type(module).__mro__ for known in _known_as(cls)[1])


def look_up(module: nn.Module, path: str) -> object:
    """What a path from `module` leads to; None if it leads nowhere."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _known_as(cls: type) -> tuple[str, tuple[Attention | FeedForward, ...]]:
    """The package that defines a class, and the descriptions of the class, if these are known."""
    for package, known in KNOWN.items():
        if cls.__name__ in known and _is_in(cls, package):
            return package, _several(known[cls.__name__])
    return "", ()


def _consists_of(module: nn.Module, description: Attention | FeedForward, package: str) -> bool:
    """Whether a module has all that is described, and nothing on the way to it is from another package."""
    for path in description.names():
        names = path.split(".")
        parts = [look_up(module, ".".join(names[:end])) for end in range(1, len(names))]
        if not all(_is_in(defining_class(part), package) for part in parts if isinstance(part, nn.Module)):
            return False
        if look_up(module, path) is None:
            return False
    return True


def _is_in(cls: type | None, package: str) -> bool:
    """Whether a class is defined in a package."""
    return cls is not None and f"{cls.__module__}.".startswith(f"{package}.")


def _several(description: Description) -> tuple[Attention | FeedForward, ...]:
    return (description,) if isinstance(description, (Attention, FeedForward)) else tuple(description)
