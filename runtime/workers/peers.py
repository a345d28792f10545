"""Peers: ask other nodes' workers, and notice soon when nobody is there.

Dask's own connect tries again for as long as its timeout when a connection is refused. Here that counts as an
answer: the process is gone. Addresses that the driver declared dead aren't tried at all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed.comm import Comm, CommClosedError, get_address_host_port
from distributed.core import ConnectionPool, send_recv

#: a connection that takes longer than this is looked into: is anybody there?
_DOUBT_SECONDS = 0.05
_PROBE_SECONDS = 0.5
_DEAD_KEPT = 1000


@dataclass(frozen=True)
class FetchOptions:
    """How patient and how greedy a fetch is.

    Attributes:
        connect_seconds: to reach a worker.
        reply_seconds: to get one message of a worker that was reached.
        message_bytes: most bytes of rows in a message; less if the task's memory is small.
        nodes_at_once: with how many nodes to talk at the same time.
    """

    connect_seconds: float = 2.0
    reply_seconds: float = 30.0
    message_bytes: int = 16 << 20
    nodes_at_once: int = 4


class Peers:
    """The workers of other nodes, as one process reaches them. All but the constructor runs in the event loop.

    Args:
        rpc: Dask's connection pool.
        loop: the event loop that the pool lives in.
        options: see `FetchOptions`.
    """

    def __init__(self, rpc: ConnectionPool, loop: asyncio.AbstractEventLoop, options: FetchOptions):
        self.rpc, self.loop, self.options = rpc, loop, options
        self._dead: OrderedDict[str, None] = OrderedDict()

    def bury(self, addresses: Iterable[str]) -> None:
        """Don't try these addresses any more, until they are revived."""
        self._dead.update((address, None) for address in addresses)
        while len(self._dead) > _DEAD_KEPT:
            self._dead.popitem(last=False)

    def revive(self, addresses: Iterable[str]) -> None:
        """The driver has just said that these live."""
        for address in addresses:
            self._dead.pop(address, None)

    async def ask(
        self, addresses: list[str], causes: list[BaseException], op: str = "headwater_fetch", **request: Any
    ) -> Any:
        """Ask one of several workers, in turn.

        Args:
            addresses: of the workers; those that fail are taken out.
            causes: gets what went wrong.
            op: the handler; by default the one that reads ranges of blocks.
            request: its arguments.

        Returns:
            The reply; None if no one answers.
        """
        while addresses:
            for _ in range(0 if addresses[0] in self._dead else 2):
                try:
                    return await self._call(addresses[0], op, **request)
                except CommClosedError as error:  # an old connection may be dead though the worker lives
                    causes.append(error)
                except Exception as error:
                    causes.append(error)
                    break
            addresses.pop(0)
        return None

    async def _call(self, address: str, op: str, **request: Any) -> Any:
        comm = await asyncio.wait_for(self._connect(address), self.options.connect_seconds * 2)
        try:
            call = send_recv(comm, op=op, **request)
            return await asyncio.wait_for(call, self.options.reply_seconds)
        except BaseException:
            comm.abort()
            raise
        finally:
            self.rpc.reuse(address, comm)

    async def _connect(self, address: str) -> Comm:
        connecting = asyncio.ensure_future(self.rpc.connect(address, timeout=self.options.connect_seconds))
        doubt = _DOUBT_SECONDS
        try:
            while not (await asyncio.wait({connecting}, timeout=doubt))[0]:
                if await refuses(address):
                    raise ConnectionRefusedError(f"nobody listens at {address}")
                doubt *= 2
            return connecting.result()
        except BaseException:
            connecting.cancel()
            raise


async def refuses(address: str) -> bool:
    """Whether the machine answers that nobody listens at an address."""
    with suppress(ValueError):  # an address without a port, as "inproc://..."
        host, port = get_address_host_port(address, strict=True)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _PROBE_SECONDS)
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        writer.transport.abort()
    return False
