"""The settings of the WORM paper (arXiv 2406.11872), each one argument list of `TicketSearch`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from earlyworm.search.emergence import Emergence
from earlyworm.search.truncation import Worm

WORM_CNN: Mapping[str, Any] = MappingProxyType(
    {
        "units": "channels",
        "pruning_ratio": 0.5,
        "emergence": Emergence(window=5, epsilon=0.1),
        "truncation": Worm(trigger=0.15, chi=0.003),
    }
)
"""Channels of ResNet-18 and VGG-11 on CIFAR-10: `TicketSearch(model, x, **WORM_CNN)`."""

WORM_TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "units": "weights",
        "pruning_ratio": 0.5,
        "emergence": Emergence(window=3, epsilon=0.01),
        "truncation": Worm(trigger=0.015, chi=0.01, greedy_first=True),
    }
)
"""Single weights of all query and key projections of BERT and Gemma: `TicketSearch(model, **WORM_TRANSFORMER)`."""
