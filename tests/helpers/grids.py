"""Small grids of runs, a watcher that remembers, and the processes that a comparison has started."""

import subprocess

from earlyworm.comparisons.grid import Grid
from runs import SMALL

OF_CELLS = ("method", "model")  # which a grid has in another way


TINY = {**{name: SMALL[name] for name in SMALL if name not in OF_CELLS}, "models": "vgg11_bn", "seeds": [0, 1]}


# Ends at once, without a ticket.
BRIEF = {"search_epochs": 1, "epochs": 2, "epsilon": 0.0}


def grid_of(output, *methods, **changes):
    return Grid.of({**TINY, "methods": list(methods), "output": str(output), **changes})


class Watched:
    """Remembers what a watcher is told."""

    def __init__(self):
        self.events = []

    def planned(self, cells):
        self.cells = cells

    def started(self, number):
        self.events.append(("started", number))

    def told(self, number, kind, values):
        self.events.append(("told", number, kind, *values))

    def ended(self, number, outcome):
        self.events.append(("ended", number, outcome.state))

    def numbers(self, kind):
        return [event[1] for event in self.events if event[0] == kind]


def states(comparison):
    return [(cell.method, cell.seed, cell.state) for cell in comparison.outcomes]


def workers_of(process):
    """The processes that a process has started; servers of Python's multiprocessing, which stay, are none of ours."""

    def found(*words):
        told = subprocess.run(["pgrep", "-P", str(process), *words], capture_output=True, text=True, check=False)
        return {int(number) for number in told.stdout.split()}

    return sorted(found() - found("-f", "multiprocessing"))
