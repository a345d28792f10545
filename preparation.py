"""FittedPrep: a preparation chain fitted on a dataset, ready to transform others; saved and loaded.

The steps themselves are operators (`headwater.ops.prep`); here they meet the Dataset handle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import fsspec
import pyarrow as pa

from .datasets import table_source
from .errors import SourceNotFoundError, TypeMismatchError
from .ops.node import Node
from .ops.prep import FittedNodes, dump, load_text
from .ops.scan import Scan
from .session import Session, session_or_current

if TYPE_CHECKING:
    from .pipeline import Dataset


class FittedPrep:
    """A chain of preparation steps with their fitted states, which are datasets until computed.

    Example:
        >>> import headwater as hw
        >>> train = hw.from_arrow({"x": [0.0, 2.0]})
        >>> scaled = hw.prep.MinMax("x").fit(train).transform(train)
        >>> scaled.compute(hw.Session("inline")).to_pydict()
        {'x': [0.0, 1.0]}
    """

    def __init__(self, fitted: FittedNodes):
        self._fitted = fitted

    def transform(self, dataset: Dataset) -> Dataset:
        """Apply the fitted steps to rows, lazily.

        Args:
            dataset: rows with the columns the steps name.

        Returns:
            A dataset with those columns changed.
        """
        node = getattr(dataset, "node", None)
        if not isinstance(node, Node):
            raise TypeMismatchError(f"transform() takes a Dataset, not {type(dataset).__name__}.")
        return type(dataset)(self._fitted.transform_node(node))

    def __repr__(self) -> str:
        return f"FittedPrep({' | '.join(map(str, self._fitted.steps))})"

    def states(self, session: Session | None = None) -> tuple[pa.Table, ...]:
        """Compute and return the state of each step: means, ranges, categories."""
        session = session_or_current(session)
        nodes = {f"state{i}": node for i, node in enumerate(self._fitted.states)}
        with session.run(nodes) as result:
            return tuple(result.table(name) for name in nodes)

    def compute(self, session: Session | None = None) -> FittedPrep:
        """Compute the states now, so that later transforms don't fit again."""
        return FittedPrep(FittedNodes(self._fitted.steps, tuple(_scan(t) for t in self.states(session))))

    def save(self, url: str, session: Session | None = None) -> None:
        """Compute the states and save steps and states as readable JSON.

        Args:
            url: a local path or any fsspec URL.
            session: where to compute.
        """
        text = dump(self._fitted.steps, self.states(session))
        with fsspec.open(url, "w", encoding="utf-8") as file:
            file.write(text)


def load(url: str) -> FittedPrep:
    """Load a fitted chain that `FittedPrep.save` wrote.

    Args:
        url: a local path or any fsspec URL.

    Raises:
        SourceNotFoundError: there is no such file.
        CorruptFileError: the file isn't one.
    """
    try:
        with fsspec.open(url, "r", encoding="utf-8") as file:
            steps, states = load_text(file.read())
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"there is no fitted preparation {url!r}; FittedPrep.save(...) writes one."
        ) from error
    return FittedPrep(FittedNodes(steps, tuple(_scan(state) for state in states)))


def _scan(table: pa.Table) -> Node:
    return Scan(table_source(table))
