"""Collect: bring the rows of blocks to the driver, a bounded window at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from distributed import Client, get_worker

from .nodes.blocks import map_range, read_segment
from .nodes.node_store import read_identity
from .task import FetchFailedError, Segment
from .workers.fetch import Fetcher, FetchOptions, Inputs

#: seconds that a task which only reads a file may take, before its worker counts as gone
_READ_SECONDS = 60.0


def fetch_segments(
    client: Client,
    segments: Sequence[Segment],
    nodes: Mapping[str, tuple[str, ...]],
    schema: pa.Schema,
    window_bytes: int = 64 << 20,
    options: FetchOptions | None = None,
    scratch: Mapping[str, str] | None = None,
) -> Iterator[pa.Table]:
    """Read segments from the driver, in order.

    Files of nodes whose scratch folder can be read here are mapped. Others are fetched from workers,
    or, if the driver can't reach a worker directly, by a Dask task through the scheduler. While a window is
    read, the next one is on its way.

    Args:
        client: of the cluster; not an asynchronous one.
        segments: what to read.
        nodes: node id to the addresses of living workers of the node.
        schema: of the rows.
        window_bytes: bytes to fetch at once.
        options: see `FetchOptions`.
        scratch: node id to the path of its scratch folder there; nodes that are left out are asked.

    Yields:
        A table for each record batch.

    Raises:
        FetchFailedError: some blocks can't be had.
    """
    fetcher = Fetcher(
        _readable(client, segments, nodes, scratch or {}),
        client.rpc,
        client.loop.asyncio_loop,
        options=options,
    )
    opened: list[tuple[list[Segment], Inputs | FetchFailedError]] = []
    try:
        for window in [*_windows(segments, window_bytes), None]:
            if window is not None:
                opened.append((window, _open(fetcher, window, nodes, window_bytes)))
            while len(opened) > (window is not None):
                yield from _read(client, *opened[0], nodes, schema)
                _close(opened.pop(0)[1])
    finally:
        for _, inputs in opened:
            _close(inputs)


def _open(
    fetcher: Fetcher, window: list[Segment], nodes: Mapping[str, tuple[str, ...]], window_bytes: int
) -> Inputs | FetchFailedError:
    try:
        return fetcher.open(window, nodes, memory_bytes=2 * window_bytes)
    except FetchFailedError as error:
        return error


def _close(inputs: Inputs | FetchFailedError) -> None:
    if isinstance(inputs, Inputs):
        inputs.close()


def _read(
    client: Client,
    window: list[Segment],
    inputs: Inputs | FetchFailedError,
    nodes: Mapping[str, tuple[str, ...]],
    schema: pa.Schema,
) -> Iterator[pa.Table]:
    for segment in window:
        try:
            if isinstance(inputs, FetchFailedError):
                raise inputs
            buffers = list(inputs.tables([segment], schema))
        except FetchFailedError as error:
            if segment.node not in error.nodes or not nodes.get(segment.node):
                raise
            buffers = _through_scheduler(client, segment, nodes[segment.node], schema, error)
        yield from buffers


def _through_scheduler(
    client: Client, segment: Segment, addresses: Sequence[str], schema: pa.Schema, error: FetchFailedError
) -> list[pa.Table]:
    known = client.scheduler_info(n_workers=-1)["workers"]
    living = [address for address in addresses if address in known]
    if not living:
        raise error
    name = f"headwater-read-{segment.path}-{segment.offset}"
    future = client.submit(_read_here, segment, key=name, workers=living, pure=False, retries=0)
    try:
        data = future.result(timeout=_READ_SECONDS)
    except Exception as cause:
        raise error from cause
    finally:
        future.cancel()
    if data is None:
        raise error
    return list(read_segment(pa.py_buffer(data), schema))


def _read_here(segment: Segment) -> bytes | None:
    """Read a segment on a worker of its node; None if it is gone."""
    from .workers.worker_plugin import runtime_of

    path = runtime_of(get_worker()).store.resolve(segment.path)
    with suppress(OSError, EOFError):
        return map_range(path, segment.offset, segment.length).to_pybytes()
    return None


def _readable(
    client: Client,
    segments: Sequence[Segment],
    nodes: Mapping[str, tuple[str, ...]],
    scratch: Mapping[str, str],
) -> dict[str, Path]:
    """Find out where the nodes' scratch folders are, and keep those that are this machine's too."""

    async def ask(address: str) -> str:
        return (await client.rpc(address).headwater_info())["scratch"]

    roots = {}
    for node in {segment.node for segment in segments}:
        for address in nodes.get(node, ()):
            with suppress(Exception):
                root = scratch.get(node) or client.sync(
                    ask, address, callback_timeout=FetchOptions.connect_seconds
                )
                if read_identity(root) == node:
                    roots[node] = Path(root)
                break
    return roots


def _windows(segments: Sequence[Segment], window_bytes: int) -> Iterator[list[Segment]]:
    window: list[Segment] = []
    held = 0
    for segment in segments:
        if window and held + segment.length > window_bytes:
            yield window
            window, held = [], 0
        window.append(segment)
        held += segment.length
    if window:
        yield window
