"""Methods against each other over seeds: grids of runs, what came of them, and the statistics."""
