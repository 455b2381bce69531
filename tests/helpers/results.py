"""Made-up results of single runs: a ticket has emerged, has not, or was drawn by force."""

import dataclasses
import math

from earlyworm.experiments.config import RunConfig
from earlyworm.experiments.results import (
    AccuracyResult,
    CheckRecord,
    DataSummary,
    DenseCost,
    RunResult,
    SearchResult,
    TicketCost,
    TotalCost,
)


def history(epochs: int, floor: float, trigger: int | None) -> tuple[CheckRecord, ...]:
    records = [CheckRecord(0.0, None, None, 1.0, 0, None, 0.1)]
    for epoch in range(1, epochs + 1):
        truncating = trigger is not None and epoch >= trigger
        records.append(
            CheckRecord(
                epoch=float(epoch),
                distance_mean=floor * 0.8 + 0.36 * math.exp(-epoch / 5),
                distance_max=floor + 0.47 * math.exp(-epoch / 4.9),
                chi=0.003 if truncating else 1.0,
                truncated=528 if truncating else 0,
                loss=2.3 * math.exp(-epoch / 3),
                accuracy=0.97 - 0.85 * math.exp(-epoch / 2),
            )
        )
    return tuple(records)


EMERGED = RunResult(
    config=RunConfig(method="worm", model="vgg16_bn", lr=0.05),
    versions={"earlyworm": "0.1.0", "torch": "2.9.0"},
    seed=0,
    device="cpu",
    data=DataSummary(1437, 360, 10, (1, 8, 8), "a fifth held out"),
    search=SearchResult("worm", True, False, 9.0, 6.0, 31.2, 841_000_000_000, 0.4, 0, history(9, 0.0, 6)),
    accuracy=AccuracyResult(0.961, 0.708, (0.881, 0.953, 0.972), 0.972),
    dense=DenseCost(933_000, 21_300_000, 0.00321),
    ticket=TicketCost(301_000, 9_100_000, 0.00184, 48, 96),
    total=TotalCost(1_630_000_000_000, 789_000_000_000, 252.4, 2_760_000_000_000),
    layers={"features.0": (13, 16), "features.1": (5, 16), "features.2 & its < coupled > friends": (30, 64)},
    notes=("the classifier was replaced </script><script>alert(1)</script>",),
)


NOT_EMERGED = dataclasses.replace(
    EMERGED,
    search=SearchResult("worm", False, False, None, None, 60.0, 1_840_000_000_000, 0.4, 0, history(20, 0.13, None)),
    accuracy=AccuracyResult(0.961, None, (), None),
    ticket=None,
    total=TotalCost(1_840_000_000_000, 0, 60.0, 1_840_000_000_000),
    layers={},
    notes=(),
)


FORCED = dataclasses.replace(EMERGED, search=dataclasses.replace(NOT_EMERGED.search, forced=True))


SAMPLES = {"emerged": EMERGED, "not emerged": NOT_EMERGED, "forced": FORCED}
