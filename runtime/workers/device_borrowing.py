"""DeviceBorrowing: rows that other workers of this machine have on their devices, copied from there to this one's.

Each sibling is asked what it has of some segments (see `device_lending`), which it then keeps; they are copied at
once. Only what the sibling confirms to have kept until then is used. Its memory stays mapped for a moment, since what
is asked for next lies in the same allocations; then it is unmapped, and the sibling is told. Whatever else happens,
nothing is found, and the rows come from the host: a sibling that is silent isn't asked for a while, and one with which
CUDA shares no memory never again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import pickle
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ...lineage.owner import this_process
from ...ops.backend import array_namespace
from ...ops.device.ipc import IpcRefusedError, Mapped, OutdatedError, Shared, copied
from ...ops.device.memory import DeviceMemoryError, retried
from ...ops.device.table import DeviceTable
from ..task import CancelledTask, Segment
from .peers import Peers

_log = logging.getLogger(__name__)
#: less than this, in bytes of blocks, is brought from the host sooner than it is asked for
LEAST_BYTES = 256 << 10
#: segments are asked for together up to this, so that a device isn't filled at once
_MOST_BYTES = 1 << 30
#: for an answer; a sibling that takes longer is left alone for a while
_ANSWER_SECONDS = 5.0
_SILENT_SECONDS = 30.0
#: memory that isn't read stays mapped for so long
_LINGER_SECONDS = 1.0
_POLL_SECONDS = 0.1


@dataclass
class _Loan:
    """What a sibling keeps for this process; ``over`` ends it before its time."""

    address: str
    token: str
    run: str
    mapped: Mapped | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class DeviceBorrowing:
    """What one worker knows of its siblings. `borrow` is called by the threads of tasks, several at once.

    Attributes:
        counts: ``borrowed`` and ``borrowed_bytes``, segments that were copied; ``failed``, copies that came to nothing;
            ``silent``, questions without an answer.
        never: address to the reason why it isn't asked.
    """

    def __init__(self) -> None:
        self._peers: Peers | None = None
        self._address = ""
        self._lock = threading.Lock()
        self._silent: dict[str, float] = {}
        #: (address, run, stage) of which there is nothing
        self._without: set[tuple[str, str, int]] = set()
        self._loans: dict[str, _Loan] = {}
        self.counts: Counter[str] = Counter()
        self.never: dict[str, str] = {}

    def attach(self, peers: Peers, address: str) -> None:
        """From now on, ask by these peers, as the worker of this address."""
        self._end_loans()
        self._peers, self._address = peers, address

    def forget(self, run: str) -> None:
        """End the loans of a run, and forget what was learnt of its stages."""
        with self._lock:
            self._without = {key for key in self._without if key[1] != run}
        self._end_loans(run)

    def borrow(
        self,
        run: str,
        segments: Sequence[Segment],
        schema: pa.Schema,
        siblings: Iterable[str],
        cancelled: threading.Event,
    ) -> dict[Segment, list[DeviceTable]]:
        """Copy what siblings have of some segments.

        Args:
            run: whose blocks they are of.
            segments: of one stage.
            schema: of the rows.
            siblings: addresses of the node's workers.
            cancelled: ends waiting.

        Returns:
            The tables of segments that were found, in this process's memory.

        Raises:
            CancelledTask: the flag was set.
        """
        wanted = _affordable(segments)
        asked = self._willing(siblings, run, segments[0].stage)
        if self._peers is None or not asked or sum(segment.length for segment in wanted) < LEAST_BYTES:
            return {}
        loans = {address: _Loan(address, secrets.token_hex(8), run) for address in asked}
        request = {"run": run, "wanted": [_wanted(s) for s in wanted], "borrower": this_process().record()}
        found: dict[Segment, list[DeviceTable]] = {}
        try:
            replies = self._ask_all(
                {at: {"op": "headwater_lend", "token": loan.token, **request} for at, loan in loans.items()},
                cancelled,
            )
            for address, reply in replies.items():
                places = self._answered(address, run, wanted[0].stage, reply)
                groups = [number for number, place in enumerate(places) if wanted[place] not in found]
                copies = self._copied(loans[address], reply, groups, schema) if groups else []
                if copies and self._was_lent(loans[address], cancelled):
                    found |= {wanted[places[number]]: tables for number, tables in zip(groups, copies)}
                elif reply is not None and not places:
                    del loans[address]
        finally:
            for loan in loans.values():
                self._give_back(loan)
        with self._lock:
            self.counts["borrowed"] += len(found)
            self.counts["borrowed_bytes"] += sum(t.nbytes for tables in found.values() for t in tables)
        return found

    def _willing(self, siblings: Iterable[str], run: str, stage: int) -> list[str]:
        """Those of whom something may be had."""
        now = time.monotonic()
        with self._lock:
            return [
                address
                for address in siblings
                if address != self._address
                and address not in self.never
                and self._silent.get(address, 0.0) <= now
                and (address, run, stage) not in self._without
            ]

    def _answered(self, address: str, run: str, stage: int, reply: Any) -> list[int]:
        """Learn from an answer; what was found."""
        with self._lock:
            if reply is None:
                self.counts["silent"] += 1
                self._silent[address] = time.monotonic() + _SILENT_SECONDS
                return []
            if "never" in reply:
                self.never[address] = reply["never"]
                return []
            if reply.get("nothing"):
                self._without.add((address, run, stage))
            return list(reply["found"])

    def _copied(
        self, loan: _Loan, reply: Mapping[str, Any], groups: Sequence[int], schema: pa.Schema
    ) -> list[list[DeviceTable]]:
        """The tables of groups; none if it fails."""
        try:
            shared: Shared = pickle.loads(reply["shared"])
            if not shared.fits(schema):
                return []
            tables, loan.mapped = retried(copied, shared, schema, groups, array_namespace())
            return tables
        except (DeviceMemoryError, OutdatedError):
            pass  # what comes from the host may come in smaller pieces, and what is mapped now is let go soon
        except IpcRefusedError as error:
            self.never[loan.address] = str(error)
        except Exception:
            _log.warning("rows on the GPU of worker %s couldn't be copied", loan.address, exc_info=True)
        with self._lock:
            self.counts["failed"] += 1
        return []

    def _was_lent(self, loan: _Loan, cancelled: threading.Event) -> bool:
        """Whether the owner has kept until now what was copied."""
        request = {"op": "headwater_lent", "token": loan.token}
        reply = self._ask_all({loan.address: request}, cancelled)[loan.address]
        if reply is not None and reply["held"]:
            return True
        with self._lock:
            self.counts["failed"] += 1
            self._silent[loan.address] = time.monotonic() + _SILENT_SECONDS
        return False

    def _give_back(self, loan: _Loan) -> None:
        """End a loan; soon, if memory is mapped for it, else now."""
        assert self._peers is not None
        with self._lock:
            self._loans[loan.token] = loan
        seconds = 0.0 if loan.mapped is None else _LINGER_SECONDS
        asyncio.run_coroutine_threadsafe(self._end(self._peers, loan, seconds), self._peers.loop)

    async def _end(self, peers: Peers, loan: _Loan, seconds: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(loan.over.wait(), seconds)
        if loan.mapped is not None:
            await asyncio.to_thread(loan.mapped.close)
        with self._lock:
            self._loans.pop(loan.token, None)
        await _ask(peers, loan.address, {"op": "headwater_take_back", "token": loan.token})

    def _end_loans(self, run: str | None = None) -> None:
        """End the loans of a run, or all, now."""
        with self._lock:
            ending = [loan for loan in self._loans.values() if run in (None, loan.run)]
        for loan in ending:
            assert self._peers is not None
            self._peers.loop.call_soon_threadsafe(loan.over.set)

    def _ask_all(
        self, requests: Mapping[str, Mapping[str, Any]], cancelled: threading.Event
    ) -> dict[str, Any]:
        """Ask several workers at once; by address their answers, None for those that didn't."""
        assert self._peers is not None
        peers = self._peers
        asked = {
            address: asyncio.run_coroutine_threadsafe(_ask(peers, address, request), peers.loop)
            for address, request in requests.items()
        }
        waiting, end = set(asked.values()), time.monotonic() + 2 * _ANSWER_SECONDS
        while waiting and time.monotonic() < end:  # the loop itself may be stuck
            if cancelled.is_set():
                for future in waiting:
                    future.cancel()
                raise CancelledTask("cancelled while it asked for rows on other devices")
            _, waiting = concurrent.futures.wait(waiting, _POLL_SECONDS)
        return {address: None if future in waiting else future.result() for address, future in asked.items()}


async def _ask(peers: Peers, address: str, request: Mapping[str, Any]) -> Any:
    try:
        return await asyncio.wait_for(peers.ask([address], [], **request), _ANSWER_SECONDS)
    except Exception:  # the loop is closing, or it took too long
        return None


def _wanted(segment: Segment) -> tuple[int, int, int, int, int, int]:
    return (
        segment.stage,
        segment.partition,
        segment.attempt,
        segment.offset,
        segment.length,
        segment.rows,
    )


def _affordable(segments: Sequence[Segment]) -> list[Segment]:
    """The first ones that together aren't too large."""
    found, size = [], 0
    for segment in segments:
        size += segment.length
        if size > _MOST_BYTES:
            break
        found.append(segment)
    return found
