"""Network: how a coordinator reaches workers: over Dask's RPC, or nobody but itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from distributed import Worker

from ..workers.peers import refuses
from .service import TrainingService

#: seconds for the Dask scheduler to tell which workers there are
_SCHEDULER_SECONDS = 1.0
#: an answer that takes longer than this is looked into: is anybody there?
_DOUBT_SECONDS = 0.05

Answers = dict[str, dict[str, Any] | BaseException]


class DaskNetwork:
    """The workers of a Dask cluster, from a thread of one of them.

    The last known workers are remembered, so that training goes on without a Dask scheduler.

    Args:
        worker: gives the process's present Dask worker.
        service: its own.
        known: addresses that are known at the start.
    """

    def __init__(self, worker: Callable[[], Worker], service: TrainingService, known: Sequence[str] = ()):
        self._present, self._service = worker, service
        self._known = list(known)

    @property
    def address(self) -> str:
        """Of the present worker."""
        return str(self._present().address)

    def workers(self) -> list[str]:
        """The workers that the Dask scheduler has, or had when it last answered."""

        async def ask() -> list[str]:
            return list(await asyncio.wait_for(self._present().scheduler.ncores(), _SCHEDULER_SECONDS))

        with suppress(Exception):
            self._known = self._run(ask())
        return self._known

    def call_all(
        self,
        addresses: Sequence[str],
        operation: str,
        timeout: float,
        arguments: Mapping[str, Mapping[str, Any]],
    ) -> Answers:
        """Call a handler on several workers at once; errors are returned."""
        if not addresses:
            return {}

        async def call(address: str) -> Any:
            if address == self.address:
                return await self._service.handlers()[operation](**arguments[address])
            remote = getattr(self._present().rpc(address), operation)
            async with asyncio.timeout(timeout):
                return await _answered(address, asyncio.ensure_future(remote(**arguments[address])))

        async def call_each() -> list[Any]:
            return await asyncio.gather(*map(call, addresses), return_exceptions=True)

        return dict(zip(addresses, self._run(call_each())))

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._present().loop.asyncio_loop).result()


async def _answered(address: str, calling: asyncio.Future[Any]) -> Any:
    """Wait for an answer, but not for a process that is gone: Dask would go on to try its address."""
    doubt = _DOUBT_SECONDS
    try:
        while not (await asyncio.wait({calling}, timeout=doubt))[0]:
            if await refuses(address):
                raise ConnectionRefusedError(f"nobody listens at {address}")
            doubt *= 2
        return calling.result()
    except BaseException:
        calling.cancel()
        raise


class Alone:
    """No other worker."""

    def __init__(self, service: TrainingService, address: str = "inline"):
        self._service, self.address = service, address

    def workers(self) -> list[str]:
        """Itself."""
        return [self.address]

    def call_all(
        self,
        addresses: Sequence[str],
        operation: str,
        timeout: float,
        arguments: Mapping[str, Mapping[str, Any]],
    ) -> Answers:
        """Call its own handler."""
        handler = self._service.handlers()[operation]
        return {address: asyncio.run(handler(**arguments[address])) for address in addresses}
