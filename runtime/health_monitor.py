"""Health monitor: listens to the beacons of all workers, and fences the workers that the rules give up.

Lives in the event loop of one Dask client, and ends with it. Several clients may watch the same workers.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from distributed import Client

from .health import Report, Rules, Turns, Verdict, WorkerHealth
from .scheduler_events import Cause

#: seconds between looks at who is silent, and between attempts to reach a beacon
_TICK_SECONDS = 0.1
_RECONNECT_SECONDS = 0.25
#: seconds for a beacon to accept a connection, and for each step of fencing
_CONNECT_SECONDS = 2.0
_FENCE_SECONDS = 1.0

_CAUSES = {Verdict.HUNG: Cause.HUNG, Verdict.UNREACHABLE: Cause.UNREACHABLE}


class HealthMonitor:
    """Watches workers by their beacons.

    Args:
        client: of the cluster; its event loop is used.
        left: called in that loop with address, cause and seconds of silence, once a worker is given up and fenced.
        rules: how long is too long.
    """

    def __init__(self, client: Client, left: Callable[[str, Cause, float], None], rules: Rules | None = None):
        self._client, self._left = client, left
        self._rules = rules or Rules()
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._turns = Turns(time.monotonic(), self._rules.gap)
        self._watches: dict[str, _Watch] = {}
        self._fencing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._closed = False

    def watch(self, address: str, info: Mapping[str, Any]) -> None:
        """Watch a worker; to be called in the event loop.

        Args:
            address: of the worker.
            info: what it answers to ``headwater_info``. One without a beacon, or in this process, isn't watched.
        """
        here = info.get("pid") == os.getpid() and info.get("host") == platform.node()
        if self._closed or here or not info.get("beacon") or address in self._watches:
            return
        now = time.monotonic()
        if self._ticker is None or self._ticker.done():
            self._turns.late(now)
            self._ticker = self._spawn(self._tick())
        watch = self._watches[address] = _Watch(address, WorkerHealth(now, self._rules))
        self._listen_at(watch, info)

    def forget(self, address: str) -> None:
        """Watch a worker no more; from any thread."""
        self._call_soon(self._forget, address)

    def fencing(self, address: str) -> bool:
        """Whether a worker is given up, and `left` about to be called for it; from any thread."""
        return address in self._fencing

    def close(self) -> None:
        """Stop watching; from any thread. Idempotent."""
        self._closed = True
        self._call_soon(self._stop)

    # -- in the event loop ----------------------------------------------------------------------

    async def _tick(self) -> None:
        """Look who is silent, for as long as somebody is watched."""
        while self._watches:
            self._take_turn()
            for watch in list(self._watches.values()):
                self._judge(watch)
            await asyncio.sleep(_TICK_SECONDS)

    def _take_turn(self) -> bool:
        """Begin all windows anew if this process was held up; say whether it was."""
        now = time.monotonic()
        if not self._turns.late(now):
            return False
        for watch in self._watches.values():
            watch.health.restart(now)
            self._listen(watch)  # what waits in the old connection tells of the past
        return True

    def _judge(self, watch: _Watch) -> None:
        if watch.address in self._fencing:
            return
        verdict = watch.health.judge(time.monotonic())
        if verdict in _CAUSES:
            self._fencing.add(watch.address)
            self._spawn(self._fence(watch, _CAUSES[verdict]))
        elif verdict is Verdict.DOUBTFUL and not watch.asking:
            watch.asking = True
            self._spawn(self._ask(watch))

    async def _ask(self, watch: _Watch) -> None:
        """Ask the worker itself; one that answers tells where its beacon is now."""
        asked = time.monotonic()
        try:
            rpc = self._client.rpc(watch.address)
            info = await asyncio.wait_for(rpc.headwater_info(), self._rules.answer)
        except (TimeoutError, OSError):
            if not self._take_turn() and time.monotonic() - asked <= self._rules.answer + self._rules.gap:
                watch.health.unanswered()
        except Exception:  # an answer, if not the one expected
            watch.health.answered()
        else:
            watch.health.answered()
            if info.get("beacon") and watch.address in self._watches:
                self._listen_at(watch, info)
        finally:
            watch.asking = False

    async def _fence(self, watch: _Watch, cause: Cause) -> None:
        """Make sure that a worker that is given up does no more, then say so."""
        address = watch.address
        try:
            removed = await self._unregister(address, cause)
            if cause is Cause.UNREACHABLE and not removed:  # then it is us who can't be reached
                watch.health.restart(time.monotonic())
                return
            with suppress(Exception):
                await asyncio.wait_for(self._kill(watch), _FENCE_SECONDS)
            with suppress(Exception):
                self._client.rpc.remove(address)  # whoever waits for its answer waits no more
            self._forget(address)
            if not self._closed:
                self._left(address, cause, watch.health.silence(time.monotonic()))
        finally:
            self._fencing.discard(address)

    async def _unregister(self, address: str, cause: Cause) -> bool:
        """Have Dask's scheduler drop a worker, before it is killed, so that Dask blames no task; say whether it did."""
        stimulus = f"headwater-{cause.name.lower()}-{time.time()}"
        call = self._client.scheduler.unregister(address=address, stimulus_id=stimulus, expected=True)
        try:
            await asyncio.wait_for(call, _FENCE_SECONDS)
            return True
        except Exception:
            return False

    async def _kill(self, watch: _Watch) -> None:
        if watch.writer is None:
            return
        watch.reply = self._loop.create_future()
        watch.writer.write(b"kill %.3f\n" % self._rules.hung)
        await watch.reply

    def _listen_at(self, watch: _Watch, info: Mapping[str, Any]) -> None:
        host, port = info["beacon"]
        watch.place, watch.token = (host, port), info.get("beacon_token", "")
        self._listen(watch)

    def _listen(self, watch: _Watch) -> None:
        if watch.listener is not None:
            watch.listener.cancel()
        watch.listener = self._spawn(self._follow(watch))

    async def _follow(self, watch: _Watch) -> None:
        """Keep a connection to a beacon, and take in what it says."""
        while True:
            writer = None
            try:
                connecting = asyncio.open_connection(*watch.place)
                reader, writer = await asyncio.wait_for(connecting, _CONNECT_SECONDS)
                writer.write(watch.token.encode() + b"\n")
                watch.writer = writer
                while line := await reader.readline():
                    self._hear(watch, line)
            except (TimeoutError, OSError, ValueError):  # ValueError: an endless line
                pass
            finally:
                if writer is not None:
                    writer.transport.abort()
                    if watch.writer is writer:
                        watch.writer = None
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _hear(self, watch: _Watch, line: bytes) -> None:
        if self._take_turn():
            return
        report = Report.parse(line)
        if report is not None:
            watch.health.heard(time.monotonic(), report)
            self._judge(watch)
        elif watch.reply is not None and not watch.reply.done():
            watch.reply.set_result(line)

    def _forget(self, address: str) -> None:
        watch = self._watches.pop(address, None)
        if watch is not None and watch.listener is not None:
            watch.listener.cancel()

    def _stop(self) -> None:
        self._watches.clear()
        for task in list(self._tasks):
            task.cancel()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _call_soon(self, function: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, and all of this with it
            self._loop.call_soon_threadsafe(function, *args)


class _Watch:
    """One worker that is watched."""

    def __init__(self, address: str, health: WorkerHealth):
        self.address, self.health = address, health
        self.place: tuple[str, int] = ("", 0)
        self.token = ""
        self.listener: asyncio.Task[None] | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.reply: asyncio.Future[bytes] | None = None
        self.asking = False
