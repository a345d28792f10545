"""One process of the PyTorch baseline: DistributedDataParallel over gloo, one thread; torchrun starts it.

With ``--checkpoint`` the first rank saves module and optimizer every so many steps, to a file that is replaced, and
all begin from that file: checkpoint and restart, as torchrun's own examples do it.

    torchrun --standalone --nproc-per-node 2 benchmarks/ddp_worker.py --data .bench/mlp --steps 100 --trace steps.txt
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import mlp_job
import numpy as np
import torch
import torch.distributed as dist
from step_log import StepLog
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train, with the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="rows of a global batch")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--pids", type=Path, help="file for the numbers of the processes")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--every", type=int, default=0, help="steps between checkpoints")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp_job.build())
    optimizer = mlp_job.torch_optimizer(options.optimizer, model.parameters())
    x = torch.from_numpy(np.load(options.data / "x.npy", mmap_mode="c")[: options.rows])
    y = torch.from_numpy(np.load(options.data / "y.npy")[: options.rows])
    done = 0
    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    if options.pids:
        with open(options.pids, "a") as file:
            file.write(f"{os.getpid()} {rank}\n")
    log = StepLog(options.trace)
    per_epoch = -(-options.rows // options.batch)
    known, order = -1, torch.empty(0, dtype=torch.int64)
    for step in range(done, options.steps):
        epoch, place = divmod(step, per_epoch)
        if epoch != known:
            known, order = epoch, torch.randperm(options.rows, generator=torch.Generator().manual_seed(epoch))
        batch = order[place * options.batch : (place + 1) * options.batch]
        mine = batch[len(batch) * rank // size : len(batch) * (rank + 1) // size]
        loss = torch.nn.functional.cross_entropy(model(x[mine]), y[mine])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            log.write(step + 1)
            if options.checkpoint and options.every and (step + 1) % options.every == 0:
                state = {
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
                staged = options.checkpoint.with_suffix(".new")
                torch.save(state, staged)
                os.replace(staged, options.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
