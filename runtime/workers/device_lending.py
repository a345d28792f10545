"""DeviceLending: what a worker has on its device, for other workers of the machine to copy from there.

    headwater_lend        where the rows of segments lie, which are kept from now on; see `ops.device.ipc`
    headwater_lent        whether they were kept until now, so that what has been copied is right
    headwater_take_back   they are needed no more, nor is their memory mapped

What touches the device runs in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from ...lineage.owner import Owner, this_process
from ...ops.backend import stage_backend
from ...ops.device.cache import BlockKey, DeviceCache
from ...ops.device.ipc import IpcRefusedError, can_share, share
from ...ops.device.table import DeviceTable
from .leases import LeaseBook

#: a lease lasts at most so long; a copy takes milliseconds
LEASE_SECONDS = 60.0
_SWEEP_SECONDS = 1.0

#: a segment as it is asked for: stage, partition, attempt, offset, length, rows
Wanted = tuple[int, int, int, int, int, int]


class DeviceLending:
    """The handlers of one worker.

    Args:
        cache: the worker's; None without a device.
        lease_seconds: that something is kept at most.

    Attributes:
        counts: ``lent``, leases that were granted, and ``lent_bytes``; ``late``, those that lasted too long, or
            whose borrower had died.
        refusal: why CUDA lets nobody have this process's memory; empty if it does, as far as is known.
    """

    def __init__(self, cache: DeviceCache | None, lease_seconds: float = LEASE_SECONDS):
        self._cache = cache
        self._book = LeaseBook(lease_seconds, cache.budget if cache is not None else 0)
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None
        self.counts: Counter[str] = Counter()
        self.refusal = ""

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Return the handlers by name."""
        return {f"headwater_{call.__name__}": call for call in (self.lend, self.lent, self.take_back)}

    @property
    def leases(self) -> int:
        """How many there are now."""
        with self._lock:
            return len(self._book)

    async def lend(self, token: str, run: str, wanted: Any, borrower: Any) -> dict[str, Any]:
        """Keep the rows of segments for another process, and tell where they lie.

        Args:
            token: names the lease.
            run: whose blocks they are of.
            wanted: of one stage; see `Wanted`.
            borrower: record of the process.

        Returns:
            ``never``, a reason, if it needs to ask no more; else ``found``, the places in ``wanted`` of what is here.
            If anything is, ``shared``, a pickled `Shared` with a group for each; else ``nothing``, whether there is no
            block of the stage at all.
        """
        who = Owner(**borrower)
        if reason := self._refusal(who):
            return {"status": "OK", "never": reason}
        return await asyncio.to_thread(self._lend, token, run, [tuple(want) for want in wanted], who)

    async def lent(self, token: str) -> dict[str, Any]:
        """Tell whether a lease lasts, as ``held``."""
        return {
            "status": "OK",
            "held": token in self._book,
        }  # without the lock, under which memory may be freed

    async def take_back(self, token: str) -> dict[str, Any]:
        """End a lease; ``held`` tells whether it had lasted until now."""
        return {"status": "OK", "held": await asyncio.to_thread(self._take_back, token)}

    def forget(self, run: str) -> None:
        """End all leases of a run."""
        with self._lock:
            self._book.end_of_run(run)

    def sweep(self) -> int:
        """End the leases that have lasted too long, and those of dead processes; returns how many are left."""
        with self._lock:
            borrowers = self._book.borrowers()
        dead = [one for one in borrowers if isinstance(one, Owner) and one.is_alive() is False]
        with self._lock:
            late = self._book.end_late(time.monotonic())
            self.counts["late"] += late + sum(self._book.end_of_borrower(borrower) for borrower in dead)
            return len(self._book)

    def _refusal(self, who: Owner) -> str:
        me = this_process()
        if self._cache is None:
            return "no device"
        if who.machine != me.machine:
            return "another machine"
        return "the same process" if who == me else self.refusal

    def _lend(self, token: str, run: str, wanted: Sequence[Wanted], who: Owner) -> dict[str, Any]:
        assert self._cache is not None
        found = self._find(run, wanted)
        if not found:
            return {"status": "OK", "found": [], "nothing": not self._cache.holds(run, wanted[0][0])}
        groups = list(found.values())
        me = this_process()
        with self._lock:
            age = f"{me.pid} {me.started} {self._book.broken}"
        try:
            with stage_backend("gpu") as xp:
                shared = share(groups, groups[0][0].schema, xp, age)
        except IpcRefusedError as error:
            self.refusal = str(error)
            return {"status": "OK", "never": self.refusal}
        keys = [BlockKey(run, *wanted[place][:3]) for place in found]
        sizes: dict[Hashable, int] = {key: self._cache.size(key) for key in keys}
        with self._lock:
            if not self._book.grant(token, run, who, groups, sizes, time.monotonic()):
                return {"status": "OK", "found": [], "nothing": False}
            self.counts["lent"] += 1
            self.counts["lent_bytes"] += sum(table.nbytes for tables in groups for table in tables)
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._watch, name="headwater-leases", daemon=True)
                self._sweeper.start()
        return {"status": "OK", "found": list(found), "shared": pickle.dumps(shared, protocol=5)}

    def _take_back(self, token: str) -> bool:
        with self._lock:
            return self._book.end(token)

    def _find(self, run: str, wanted: Sequence[Wanted]) -> Mapping[int, list[DeviceTable]]:
        """What is here, by its place in ``wanted``; all of one schema."""
        assert self._cache is not None
        found: dict[int, list[DeviceTable]] = {}
        schema: pa.Schema | None = None
        for place, (stage, partition, attempt, start, length, rows) in enumerate(wanted):
            key = BlockKey(run, stage, partition, attempt)
            tables = self._cache.find(key, start, start + length, rows)
            if tables and can_share(tables):
                schema = schema or tables[0].schema
                if all(table.schema.equals(schema) for table in tables):
                    found[place] = tables
        return found

    def _watch(self) -> None:
        while True:
            time.sleep(_SWEEP_SECONDS)
            with suppress(Exception):  # or what is lent would be kept for ever
                self.sweep()
            with self._lock:
                if not len(self._book):
                    self._sweeper = None
                    return
