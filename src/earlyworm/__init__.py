"""Cheaper training through early tickets: find them, cut the rest away for real, train what is left.

The names below are loaded when they are first used, so that the command can answer before PyTorch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earlyworm.blocks import Attention, FeedForward
    from earlyworm.channels import find_channels
    from earlyworm.compaction import compact, round_ticket
    from earlyworm.costs import Cost, cost
    from earlyworm.drawing import full_mask, further_mask, random_mask, ticket_of, uniform_mask
    from earlyworm.emergence import Emergence
    from earlyworm.errors import (
        ConfigError,
        DataError,
        EarlywormError,
        RunError,
        SearchError,
        TicketError,
        UnitsError,
    )
    from earlyworm.finding import find_all_weights, find_units
    from earlyworm.history import Check
    from earlyworm.masks import Mask, make_mask, mask_distance
    from earlyworm.recipes import WORM_CNN, WORM_TRANSFORMER
    from earlyworm.search import TicketSearch
    from earlyworm.sweep import RatioSweep
    from earlyworm.ticket import Ticket
    from earlyworm.transformer_units import find_transformer_units
    from earlyworm.truncation import Constant, Fade, Greedy, Worm, truncate_, truncation_factor
    from earlyworm.units import Entries, Slice, UnitGroup, Units

__all__ = [
    "WORM_CNN",
    "WORM_TRANSFORMER",
    "Attention",
    "Check",
    "ConfigError",
    "Constant",
    "Cost",
    "DataError",
    "EarlywormError",
    "Emergence",
    "Entries",
    "Fade",
    "FeedForward",
    "Greedy",
    "Mask",
    "RatioSweep",
    "RunError",
    "SearchError",
    "Slice",
    "Ticket",
    "TicketError",
    "TicketSearch",
    "UnitGroup",
    "Units",
    "UnitsError",
    "Worm",
    "compact",
    "cost",
    "find_all_weights",
    "find_channels",
    "find_transformer_units",
    "find_units",
    "full_mask",
    "further_mask",
    "make_mask",
    "mask_distance",
    "random_mask",
    "round_ticket",
    "ticket_of",
    "truncate_",
    "truncation_factor",
    "uniform_mask",
]

_HOMES = (
    "blocks",
    "channels",
    "compaction",
    "costs",
    "drawing",
    "emergence",
    "errors",
    "finding",
    "history",
    "masks",
    "recipes",
    "search",
    "sweep",
    "ticket",
    "transformer_units",
    "truncation",
    "units",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            value = vars(module).get(name)
            if value is not None and getattr(value, "__module__", module.__name__) == module.__name__:
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
