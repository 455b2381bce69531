"""Two processes of which each sees half of every batch, beside one that sees all of it."""

import torch
from torch import nn
from torch.optim import SGD

from earlyworm import Constant, Emergence, Ticket, TicketSearch
from ranks import two_ranks
from residual import loss_on, make_batch, make_network
from stepping import UNITS


def train_two_ways(model, search, optimizer, batches):
    """Three plain steps, then three that accumulate two micro-batches each without exchanging in the first."""
    histories = []
    with search.attach(optimizer):
        for i, (images, labels) in enumerate(batches):
            optimizer.zero_grad()
            if i < 3:
                loss_on(model, (images, labels)).backward()
            else:
                half = len(labels) // 2
                first, second = (images[:half], labels[:half]), (images[half:], labels[half:])
                if isinstance(model, nn.parallel.DistributedDataParallel):
                    with model.no_sync():
                        (loss_on(model, first) / 2).backward()
                else:
                    (loss_on(model, first) / 2).backward()
                (loss_on(model, second) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            search.update()
            histories.append(search.mask.flat.tolist())
    return histories


def parallel_search(model):
    return TicketSearch(
        model, units=UNITS, truncation=Constant(chi=0.1), emergence=Emergence(window=3, epsilon=0.0),
        sparsity_penalty=0.05,
    )  # fmt: skip


def on_one_rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        model = make_network(seed=rank).eval()  # rank 1 gets the weights of rank 0
        parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        search = parallel_search(parallel)
        optimizer = SGD(parallel.parameters(), lr=0.5, momentum=0.9)
        batches = [tuple(part[rank::2] for part in make_batch(i, size=16)) for i in range(6)]
        masks = train_two_ways(parallel, search, optimizer, batches)
        ticket = search.draw(force=True)
        ticket.save(f"{folder}/ticket{rank}.safetensors")
        torch.save(
            {"masks": masks, "weights": model.state_dict(), "search": search.state_dict()}, f"{folder}/rank{rank}.pt"
        )
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    model = make_network(seed=0).eval()
    search = parallel_search(model)
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    # Each half of a batch holds what the two processes have in that half of theirs.
    batches = [make_batch(i, size=16) for i in range(6)]
    with two_ranks(on_one_rank, tmp_path):
        masks = train_two_ways(model, search, optimizer, batches)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["masks"] == second["masks"] == masks
    assert len({str(some) for some in masks}) > 1  # the masks did change
    tickets = [Ticket.load(tmp_path / f"ticket{rank}.safetensors") for rank in range(2)]
    assert tickets[0].mask == tickets[1].mask
    assert tickets[0].mask.flat.tolist() == masks[-1]
    assert (tickets[0].step, tickets[0].distances) == (tickets[1].step, tickets[1].distances)
    assert all(torch.equal(score, tickets[1].scores[name]) for name, score in tickets[0].scores.items())
    assert first["search"]["history"] == second["search"]["history"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(tensor, first["weights"][name], rtol=0, atol=1e-5)
