"""One process of a gang without anything that makes it recoverable: the same program, shards and collectives in a loop.

No Dask, no coordinator that watches, no notes, no check of determinism, no blocks: what a training would be that ends
with the first process that dies. The benchmark compares with it what recovery costs as long as nothing fails.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mlp_job
import numpy as np
from step_log import StepLog
from threadpoolctl import threadpool_limits

from headwater.ops.training.local_shard import local_shards, make_info
from headwater.ops.training.program import Settings
from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.group import Group, form
from headwater.runtime.training.prefetch import PrefetchedShard, Prefetcher

START_SECONDS = 60.0


def meet(folder: Path, rank: int, size: int, shards: int) -> Group:
    """Form the group; members tell each other their addresses by files."""
    endpoint = Endpoint(f"bare-{rank}")  # each a node of its own, as the benchmark's workers are
    staged = folder / f"{rank}.new"
    staged.write_text(endpoint.address)
    staged.rename(folder / f"{rank}.address")
    places = [folder / f"{peer}.address" for peer in range(size)]
    deadline = time.monotonic() + START_SECONDS
    while not all(place.exists() for place in places):
        if time.monotonic() > deadline:
            raise TimeoutError("the other members don't come")
        time.sleep(0.01)
    layout = [(shards * peer // size, shards * (peer + 1) // size) for peer in range(size)]
    addresses = [place.read_text() for place in places]
    return form(endpoint, rank, addresses, layout, 1, "bare", START_SECONDS)


def main() -> None:
    """Train, with the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="to meet in")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--trace", type=Path, required=True)
    options = parser.parse_args()
    x = np.load(options.data / "x.npy", mmap_mode="r")[: options.rows]
    columns = {"x": x, "y": np.load(options.data / "y.npy")[: options.rows].astype(np.float32)}
    info = make_info(columns, shards=options.shards, batch_size=options.batch)
    settings = Settings(mlp_job.optimizer(options.optimizer), steps=options.steps, batch_size=options.batch)
    program = mlp_job.objective().program(settings)
    log = StepLog(options.trace)
    group = meet(options.folder, options.rank, options.size, options.shards)
    with threadpool_limits(limits=1), Prefetcher() as prefetcher:
        start, stop = group.layout[group.rank]
        shards = local_shards(columns, info)[start:stop]
        own = [PrefetchedShard(shard, prefetcher, info.steps_per_epoch) for shard in shards]
        state = program.start(info)
        while not program.finished(state):
            found = {shard.index: program.statistics(state, shard) for shard in own}
            first = next(iter(found.values()))
            parts = {index: [np.reshape(a, -1) for a in sums.values()] for index, sums in found.items()}
            sums, _ = group.all_reduce(parts)
            shaped = {name: a.reshape(np.shape(first[name])) for name, a in zip(first, sums)}
            state = program.update(state, shaped)
            if group.rank == 0:
                log.write(state["step"])
    group.close()


if __name__ == "__main__":
    main()
