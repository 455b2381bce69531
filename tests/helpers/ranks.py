"""Two processes that train together, while the test does the same in one."""

import os
import socket
from contextlib import contextmanager

import torch


def free_port():
    """A port on which nobody listens."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@contextmanager
def two_ranks(on_rank, folder, *, seconds=240):
    """Runs `on_rank(rank, port, folder)` in two processes beside the body of the `with`; then both must succeed."""
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    ranks = [
        context.Process(target=on_rank, args=(rank, port, os.fspath(folder)), daemon=True)  # none outlives the tests
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    yield
    for process in ranks:
        process.join(seconds)
        assert process.exitcode == 0
