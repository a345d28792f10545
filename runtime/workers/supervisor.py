"""Supervisor: several worker hosts on one scratch folder, which make one node; one that dies is started again.

It runs no task and has no scheduler to lose. Its processes are in sessions of their own, so Ctrl-C reaches
only the supervisor, and they are killed when it dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ...ops.device.discovery import has_cupy, visible_devices
from ..devices.assignment import bind
from .worker_host import NO_SCHEDULER, HostOptions, tell

#: exit codes after which a process isn't started again: it left, it found no scheduler, its options are wrong
_FINAL = (0, NO_SCHEDULER, 2)
#: a process that lived longer, in seconds, begins again with the first of the pauses; after the last it is given up
_STEADY_SECONDS = 60.0
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

_REACT_SECONDS = 3.0


def supervise(
    commands: Sequence[Sequence[str]],
    pauses: Sequence[float] = _PAUSES,
    tell: Callable[[str], None] = tell,
    environments: Sequence[Mapping[str, str]] = (),
) -> int:
    """Keep processes running until they leave or this one is told to leave. Call in the main thread.

    A first SIGTERM or SIGINT asks all to leave politely, a second one to leave at once.

    Args:
        commands: one for each process.
        pauses: seconds before a process that died is started again, the first time, the second time and so on;
            after the last it is given up.
        tell: takes lines for whoever watches.
        environments: of each process, what it has beyond this one's; left out, nothing.

    Returns:
        The largest of the processes' exit codes; 1 for one that was given up.
    """
    return asyncio.run(_Supervisor(commands, pauses, tell, environments).run())


class _Supervisor:
    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        pauses: Sequence[float],
        tell: Callable[[str], None],
        environments: Sequence[Mapping[str, str]],
    ):
        self._environments = environments or [{}] * len(commands)
        self._commands, self._pauses, self._tell = commands, pauses, tell
        self._running: set[asyncio.subprocess.Process] = set()
        self._leaving = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        try:
            return max(await asyncio.gather(*map(self._keep, self._commands, self._environments)))
        finally:
            self._kill()

    async def _keep(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a process, again if it dies."""
        clock, deaths = asyncio.get_running_loop().time, 0
        while True:
            began = clock()
            process = await asyncio.create_subprocess_exec(
                *command, start_new_session=True, env={**os.environ, **environment}
            )
            self._running.add(process)
            if self._leaving.is_set():
                process.terminate()
            code = await process.wait()
            self._running.discard(process)
            if code in _FINAL or self._leaving.is_set():
                return code if code >= 0 else 1
            deaths = 0 if clock() - began >= _STEADY_SECONDS else deaths
            cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            if deaths == len(self._pauses):
                self._tell(f"Worker process {process.pid} {cause}; it is given up after {deaths + 1} deaths.")
                return 1
            self._tell(f"Worker process {process.pid} {cause}; another one takes its place.")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), self._pauses[deaths])
                return 0
            deaths += 1

    def _kill(self) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.kill()

    def _leave(self) -> None:
        if self._leaving.is_set():  # a second time: those that don't react are killed
            asyncio.get_running_loop().call_later(_REACT_SECONDS, self._kill)
        self._leaving.set()
        for process in self._running:  # a process that is asked a second time leaves at once
            with suppress(ProcessLookupError):
                process.terminate()


def supervise_workers(options: HostOptions, workers: int) -> int:
    """Run worker hosts in processes of their own until they leave; as `supervise`.

    Where the machine has GPUs, each gets one of them, in turn.
    """
    devices = visible_devices()
    bound = [binding.environment for binding in bind(workers, devices)] if devices and has_cupy() else []
    return supervise([_command(options, number) for number in range(workers)], environments=bound)


def _command(options: HostOptions, number: int) -> list[str]:
    arguments = {
        "--nthreads": options.threads,
        "--scratch": options.scratch,
        "--quota": options.quota_bytes,
        "--name": options.name and f"{options.name}-{number}",
        "--host": options.host,
        "--memory-limit": options.memory_limit,
        "--grace": options.grace_seconds,
        "--drain-timeout": options.drain_seconds,
        "--parent": os.getpid(),
    }
    words = [f"{option}={value}" for option, value in arguments.items() if value is not None]
    debug = ["--debug"] if options.verbose else []
    return [sys.executable, "-P", "-m", "headwater.cli", "worker", options.scheduler, *words, *debug]
