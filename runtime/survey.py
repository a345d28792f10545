"""Survey: ask the nodes of a cluster which blocks of a run they have."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from distributed import Client

from .cluster import open_executor

#: seconds for a node to list its blocks
_ANSWER_SECONDS = 10.0

#: (node, stage, partition, attempt)
FoundBlock = tuple[str, int, int, int]


def find_blocks(address: str, run: str) -> list[FoundBlock]:
    """List the blocks of a run that lie on living nodes.

    Args:
        address: of the Dask scheduler, as "tcp://10.0.0.1:8786".
        run: the run's id.

    Returns:
        (node, stage, partition, attempt) of each; none of a node that doesn't answer.

    Raises:
        ParameterError: the text isn't an address.
        ClusterError: no scheduler answers, or it has no workers.
        VersionMismatchError: versions differ.
    """
    executor = open_executor(address)
    try:
        return executor.client.sync(_ask_all, executor.client, executor.membership.nodes(), run)
    finally:
        executor.close()


async def _ask_all(client: Client, nodes: dict[str, Sequence[str]], run: str) -> list[FoundBlock]:
    answers = await asyncio.gather(*(_ask(client, node, addresses, run) for node, addresses in nodes.items()))
    return [block for answer in answers for block in answer]


async def _ask(client: Client, node: str, addresses: Sequence[str], run: str) -> list[FoundBlock]:
    """Ask the first worker of a node that answers."""
    for address in addresses:
        try:
            call = client.rpc(address).headwater_blocks(run=run)
            answer = await asyncio.wait_for(call, _ANSWER_SECONDS)
        except (OSError, TimeoutError):
            continue
        return [(node, *block) for block in answer["blocks"]]
    return []
