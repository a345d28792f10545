"""Preload: what a worker's first task would have to import. Imported by the process that workers are forked from."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from importlib import import_module

with suppress(Exception):  # a worker then imports it itself, and says what is wrong
    import numpy

    for name in (
        *(
            "distributed.nanny",
            "distributed.worker",
            "distributed.http.worker",
            "distributed.http.prometheus",
        ),
        *("pyarrow.compute", "pyarrow.csv", "pyarrow.dataset", "pyarrow.parquet"),
        "pandas",  # which Arrow imports when it first makes an array of Python values
        *("headwater.datasets.csv", "headwater.datasets.parquet", "headwater.datasets.range"),
        *("headwater.datasets.sinks", "headwater.datasets.table"),
        *(
            "headwater.ops.aggregate",
            "headwater.ops.distinct",
            "headwater.ops.join",
            "headwater.ops.map_batches",
        ),
        *("headwater.ops.sort", "headwater.ops.union", "headwater.ops.write"),
        *("headwater.runtime.workers.interrupts", "headwater.runtime.workers.memory_watch"),
        *("headwater.runtime.workers.worker_plugin", "headwater.runtime.workers.worker_runtime"),
    ):
        import_module(name)
    os.register_at_fork(after_in_child=numpy.random.seed)  # else all workers would draw the same numbers
    gc.collect()
    gc.freeze()  # what is never freed is never touched, and stays shared
