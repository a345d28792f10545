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

from headwater.ops.training.aligned import aligned_array
from headwater.ops.training.local_shard import make_info
from headwater.ops.training.program import DataInfo, Settings
from headwater.ops.training.sampling import Order, shard_bounds, shard_shares
from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.group import Group, form
from headwater.runtime.training.mapped_shard import MappedShard
from headwater.runtime.training.prefetch import PrefetchedShard, Prefetcher
from headwater.runtime.training.shard_file import ShardFile

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


def shard_of(columns: dict[str, np.ndarray], info: DataInfo, index: int) -> MappedShard:
    """Make a shard as a member of a gang has it, but for its file."""
    first, stop = shard_bounds(info.rows, info.shards, info.batch_size).tolist()[index : index + 2]
    arrays = {name: aligned_array(array[first:stop], np.float32) for name, array in columns.items()}
    file = ShardFile(index, first, stop - first, dict(info.columns), {}, None, arrays)
    share = int(shard_shares(info.shards, info.batch_size)[index])
    return MappedShard(file, Order(info.seed, index, stop - first, share))


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
        shards = [shard_of(columns, info, index) for index in range(start, stop)]
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
