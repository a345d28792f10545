"""Ranking: the area under the ROC curve of each group, exact, from mergeable counts for each distinct score.

A state is three lists of one length, ordered by score: the scores, how many rows have each, and how many of
those are positive. So it is as small as the number of distinct scores, and merges in any order to the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .expressions.metric_kernels import RANKED
from .grouping import Groups

State = tuple[pa.Array, ...]


def output_type(type: pa.DataType) -> pa.DataType | None:
    """The type of the area over an input type: None for all but `RANKED`."""
    return pa.float64() if type == RANKED else None


def state_fields(type: pa.DataType) -> tuple[tuple[str, pa.DataType], ...]:
    """The parts of a state."""
    return (
        ("scores", pa.list_(pa.float64())),
        ("rows", pa.list_(pa.int64())),
        ("positives", pa.list_(pa.int64())),
    )


def count_scores(groups: Groups, column: pa.Array) -> State:
    """The state of each group's rows; ``column`` is of the type `RANKED`."""
    target, score = (part.to_numpy(zero_copy_only=False) for part in column.flatten())
    return _ordered(groups.codes, groups.count, score + 0.0, np.ones(len(score), np.int64), target)


def merge_scores(groups: Groups, state: State) -> State:
    """The state of each group from states of its parts."""
    owners = groups.codes[pc.list_parent_indices(state[0]).to_numpy(zero_copy_only=False)]
    scores, rows, positives = (pc.list_flatten(part).to_numpy(zero_copy_only=False) for part in state)
    return _ordered(owners, groups.count, scores, rows, positives)


def area(state: State, options: dict[str, Any]) -> pa.Array:
    """The area under the ROC curve of each group; null where all rows are of one class.

    It is the probability that a positive row has a higher score than a negative one, an equal score counting
    half. Sums are of integers, so there is one rounding, at the end.

    Source:
        J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic
        (ROC) curve" (1982), section III.
    """
    ends = np.cumsum(pc.list_value_length(state[0]).to_numpy(zero_copy_only=False), dtype=np.int64)
    bounds = np.concatenate([[0], ends])
    _, rows, positives = (pc.list_flatten(part).to_numpy(zero_copy_only=False) for part in state)
    negatives = rows - positives
    below, above = _running(negatives), _running(positives)
    # twice the pairs that are in order, within the whole column; what is below a group is taken off again
    pairs = _running(positives * (2 * below[:-1] + negatives))
    total = above[bounds[1:]] - above[bounds[:-1]]
    others = below[bounds[1:]] - below[bounds[:-1]]
    doubled = pairs[bounds[1:]] - pairs[bounds[:-1]] - 2 * below[bounds[:-1]] * total
    both = 2.0 * total * others
    return pa.array(np.divide(doubled, both, out=np.zeros(len(total)), where=both > 0), mask=both == 0)


def _running(values: np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, 2 … values, int64; a sum that wraps round is right again in a difference."""
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])


def _ordered(
    owners: np.ndarray, count: int, scores: np.ndarray, rows: np.ndarray, positives: np.ndarray
) -> State:
    order = np.argsort(scores, kind="stable") if count == 1 else np.lexsort((scores, owners))
    owners, scores = owners[order], scores[order]
    starts = np.flatnonzero(
        np.concatenate([[True], (scores[1:] != scores[:-1]) | (owners[1:] != owners[:-1])])[: len(scores)]
    )
    lengths = np.bincount(owners[starts], minlength=count)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    totals = [np.add.reduceat(part[order], starts) if len(starts) else part for part in (rows, positives)]
    return tuple(pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (scores[starts], *totals))
