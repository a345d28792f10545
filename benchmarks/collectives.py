"""All-reduce beside PyTorch's gloo: vectors of float32 between processes of this machine.

Each process forms a group of ours within one node (shared memory), one of two nodes (sockets between them) and a gloo
group, and runs them in turn, so that all see the same other work. Ours adds in a fixed order, so that the sum has the
same bytes for any number of processes; gloo doesn't. Figures are medians of rank 0, each turn after a barrier. With
--cpu they are of processor time, which other work on the machine disturbs less.

    python benchmarks/collectives.py --processes 2 4 --repeats 21
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import markdown
import numpy as np

from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.group import Group, form

#: name to length of the vector
SIZES = {"40 KB": 10_000, "4 MB": 1_000_000, "40 MB": 10_000_000}
SYSTEMS = ("shared memory", "shared memory, borrowed", "sockets", "gloo")


def member(
    rank: int, size: int, repeats: int, port: int, token: str, clock: Callable[[], float], line: Connection
) -> None:
    """Run all systems in turn as one of the processes; rank 0 sends what it measured."""
    with Endpoint("one") as one, Endpoint(f"two-{rank * 2 // size}") as two:
        line.send((one.address, two.address))
        addresses = line.recv()
        layout = [(index, index + 1) for index in range(size)]
        shared = form(one, rank, [near for near, _ in addresses], layout, 1, token)
        sockets = form(two, rank, [far for _, far in addresses], layout, 1, token)
    gloo = start_gloo(rank, size, port)
    times: dict[str, dict[str, list[float]]] = {}
    for name, length in SIZES.items():
        vector = np.random.default_rng(rank).standard_normal(length).astype(np.float32)
        jobs = {
            "shared memory": ours(shared, rank, vector, borrow=False),
            "shared memory, borrowed": ours(shared, rank, vector, borrow=True),
            "sockets": ours(sockets, rank, vector, borrow=False),
            "gloo": gloo(vector),
        }
        times[name] = {system: [] for system in jobs}
        for turn in range(repeats + 2):
            for system, job in jobs.items():
                shared.barrier()
                begin = clock()
                job()
                if turn >= 2:
                    times[name][system].append(1000 * (clock() - begin))
    shared.barrier()
    line.send(times)
    for group in (shared, sockets):
        group.close()


def ours(group: Group, rank: int, vector: np.ndarray, *, borrow: bool) -> Callable[[], Any]:
    """Return an all-reduce of ours."""
    out = None if borrow else [np.empty_like(vector)]
    return lambda: group.all_reduce({rank: [vector]}, out=out, borrow=borrow)


def start_gloo(rank: int, size: int, port: int) -> Callable[[np.ndarray], Callable[[], Any]]:
    """Form a gloo group; returns what makes an all-reduce of a vector."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)

    def prepare(vector: np.ndarray) -> Callable[[], Any]:
        tensor = torch.from_numpy(vector / np.float32(1e30))  # it adds in place, again and again
        return lambda: dist.all_reduce(tensor)

    return prepare


def measure(size: int, repeats: int, clock: Callable[[], float]) -> dict[str, dict[str, list[float]]]:
    """Run everything with so many processes; milliseconds by size and system."""
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = secrets.token_hex()
    lines, processes = [], []
    for rank in range(size):
        line, theirs = context.Pipe()
        process = context.Process(target=member, args=(rank, size, repeats, port, token, clock, theirs))
        process.start()
        lines.append(line)
        processes.append(process)
    addresses = [line.recv() for line in lines]
    for line in lines:
        line.send(addresses)
    times = [line.recv() for line in lines]
    for process in processes:
        process.join()
    return times[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--cpu", action="store_true", help="processor time of rank 0 instead of time")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    rows = []
    for size in options.processes:
        for name, times in measure(size, options.repeats, clock).items():
            medians = [statistics.median(times[system]) for system in SYSTEMS]
            rows.append([name, size, *medians, medians[0] / medians[-1], medians[2] / medians[-1]])
    print(f"All-reduce, ms{' of processor time' * options.cpu}; {markdown.load()}\n")
    head = ["vector", "processes", *SYSTEMS, "shared memory / gloo", "sockets / gloo"]
    print(markdown.table(head, rows))


if __name__ == "__main__":
    main()
