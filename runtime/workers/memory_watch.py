"""MemoryWatch: remembers the most anonymous memory that each worker process has held."""

from __future__ import annotations

from distributed import Worker, WorkerPlugin

from .memory import PeakMemory

#: seconds between samples
_SAMPLE_SECONDS = 0.02


class MemoryWatch(WorkerPlugin):
    """Samples a worker's memory from its start to its end."""

    name = "headwater-memory"

    def setup(self, worker: Worker) -> None:
        """Begin to sample."""
        self._watch = PeakMemory(_SAMPLE_SECONDS).__enter__()
        worker.headwater_memory = self._watch

    def teardown(self, worker: Worker) -> None:
        """Stop sampling."""
        self._watch.__exit__()


def read_peak(dask_worker: Worker) -> int:
    """Return the peak so far, in bytes; for ``Client.run``."""
    watch: PeakMemory = dask_worker.headwater_memory
    return watch.peak
