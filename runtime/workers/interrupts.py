"""Interrupts: what worker processes do about Ctrl-C."""

from __future__ import annotations

import signal

from distributed import Worker, WorkerPlugin


class LeaveInterrupts(WorkerPlugin):
    """Makes workers deaf to Ctrl-C, which a terminal sends to every process; the driver stops them."""

    name = "headwater-leave-interrupts"

    def setup(self, worker: Worker) -> None:
        """Called in the main thread of each worker process as it starts."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
