"""Options of the benchmarks that take times."""

import argparse

import torch


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all of them have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    return options


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options; what follows has these threads, and the same random numbers every time."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options
