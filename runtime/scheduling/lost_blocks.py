"""Lost blocks: those that can't be read any more, unless another node has a copy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..placement import Attempt
from ..stage_run import StageRun
from .run_state import RunState


def mark_lost(state: RunState, lost: Iterable[tuple[int, int, int]], reader: Attempt | None = None) -> bool:
    """Blocks can't be read; those that lie elsewhere by now than their reader was told can.

    Returns:
        Whether that is news.
    """
    found: dict[int, list[int]] = {}
    news, lost = False, list(lost)
    told = {} if reader is None else reader.told({(stage, partition) for stage, partition, _ in lost})
    for stage_id, partition, attempt in lost:
        stage = state.stages[stage_id]
        block = stage.block(partition)
        if (
            block is not None
            and block.attempt == attempt
            and stage.alive[partition]
            and block.node == told.get((stage_id, partition), block.node)
        ):
            news = True
            stage.orphans.append(block)
            if not stage.use_copy(partition, state.placement.living_nodes() - {block.node}):
                stage.alive[partition] = False
                found.setdefault(stage_id, []).append(partition)
            state.lossy = True
    if found:
        count = sum(map(len, found.values()))
        state.losses.begin("unreadable", f"{count} blocks", state.now).recovered = state.now
        for stage_id, partitions in found.items():
            count_lost(state, state.stages[stage_id], np.array(partitions))
    return news


def count_lost(state: RunState, stage: StageRun, partitions: np.ndarray) -> None:
    """Enter lost partitions in the ledger, under the loss that was noticed last."""
    size = sum(block.bytes for p in partitions if (block := stage.block(int(p))) is not None)
    state.losses.lose(state.losses.all[-1], len(partitions), size)
    state.recovery.blocks_lost += len(partitions)
