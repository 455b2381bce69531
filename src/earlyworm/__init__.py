"""Cheaper training through early tickets: find them, cut the rest away for real, train what is left.

The names below are loaded when they are first used, so that the command can answer before PyTorch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earlyworm.costs import Cost, cost
    from earlyworm.errors import (
        ConfigError,
        DataError,
        EarlywormError,
        RunError,
        SearchError,
        TicketError,
        UnitsError,
    )
    from earlyworm.masks.mask import Mask, make_mask, mask_distance
    from earlyworm.search.emergence import Emergence
    from earlyworm.search.history import Check
    from earlyworm.search.recipes import WORM_CNN, WORM_TRANSFORMER
    from earlyworm.search.sweep import RatioSweep
    from earlyworm.search.ticket_search import TicketSearch
    from earlyworm.search.truncation import Constant, Fade, Greedy, Worm, truncate_, truncation_factor
    from earlyworm.tickets.compaction import compact, round_ticket
    from earlyworm.tickets.drawing import full_mask, further_mask, random_mask, ticket_of, uniform_mask
    from earlyworm.tickets.ticket import Ticket
    from earlyworm.units.blocks import Attention, FeedForward
    from earlyworm.units.channels import find_channels
    from earlyworm.units.finding import find_all_weights, find_units
    from earlyworm.units.groups import Entries, Slice, UnitGroup, Units
    from earlyworm.units.transformer_units import find_transformer_units

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
    "costs",
    "errors",
    "masks.mask",
    "search.emergence",
    "search.history",
    "search.recipes",
    "search.sweep",
    "search.ticket_search",
    "search.truncation",
    "tickets.compaction",
    "tickets.drawing",
    "tickets.ticket",
    "units.blocks",
    "units.channels",
    "units.finding",
    "units.groups",
    "units.transformer_units",
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
