"""Releasing: which blocks nobody will read again, and which nodes keep for later runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..scheduler_events import Keep, Release
from ..stage_run import StageRun, StageState, is_same
from ..task import Block, PartitionResult
from .run_state import RunState


def collect(state: RunState, *stages: StageRun) -> None:
    """Release the blocks that nobody will read again.

    Args:
        state: of the run.
        stages: whose blocks, ascending.
    """
    settled: dict[int, bool] = {}
    for stage in stages:
        if not (stage.orphans or stage.alive.any()):
            continue
        mask = stage.alive & stage.taken if stage.is_output else stage.alive.copy()
        if (stage.orphans or mask.any()) and _is_read_no_more(state, stage.stage.id, settled):
            release(state, stage, mask)


def _is_read_no_more(state: RunState, stage_id: int, settled: dict[int, bool]) -> bool:
    """Whether all stages that read a stage are finished, and won't have to run again.

    They may have to as long as blocks of theirs are lost, and those who read them run: these have perhaps
    read them, and perhaps not.
    """
    return all(_is_settled(state, reader, settled) for reader in state.lineage.consumers[stage_id])


def _is_settled(state: RunState, stage_id: int, settled: dict[int, bool]) -> bool:
    """Whether a stage won't have to run again; `settled` holds what was found out before, and takes this."""
    path = [stage_id]  # in place of a recursion: a plan may be thousands of stages deep
    while path:
        at = path[-1]
        stage, readers = state.stages[at], state.lineage.consumers[at]
        if stage.state is not StageState.FINISHED:
            settled[at] = False
        elif stage.alive.all():
            settled[at] = True
        elif unknown := [reader for reader in readers if reader not in settled]:
            path += unknown
            continue
        else:
            settled[at] = all(settled[reader] for reader in readers)
        path.pop()
    return settled[stage_id]


def keep(state: RunState, stage: StageRun) -> None:
    """Let nodes keep what a stage has made, for later runs."""
    storage = stage.stage.storage
    reusable = state.reuse and stage.stage.sink is None and stage.stage.id not in state.indeterminate
    if storage is not None or reusable:
        found = (stage.block(int(p)) for p in np.flatnonzero(stage.alive))
        blocks = [block for block in found if block is not None and not block.is_kept]
        if blocks:
            state.out.append(Keep(blocks, storage))


def release(state: RunState, stage: StageRun, mask: np.ndarray) -> None:
    blocks = [b for p in np.flatnonzero(mask) if (b := stage.block(int(p))) is not None]
    if blocks or stage.orphans:
        partitions = [block.partition for block in blocks]
        stage.alive[partitions] = False
        gone = [*blocks, *stage.take_copies(partitions), *stage.orphans]
        stage.orphans = []
        _give_back(state, gone)


def release_strays(state: RunState, stage: StageRun, results: Iterable[PartitionResult]) -> None:
    strays = [r.block for r in results if r.block is not None and not stage.has(r.block)]
    if strays:
        stage.orphans = [o for o in stage.orphans if not any(is_same(o, stray) for stray in strays)]
        _give_back(state, strays)


def _give_back(state: RunState, blocks: list[Block]) -> None:
    """Delete blocks; there is room again where they were."""
    state.placement.full -= {block.node for block in blocks}
    state.out.append(Release([block for block in blocks if not block.is_kept]))
