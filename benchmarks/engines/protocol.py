"""What the benchmark asks of an engine: the files it is given, and the jobs it can do with them.

An engine is a module ``engines/NAME_engine.py`` with one function:

    def open_engine(cores: int, scratch: Path) -> Engine: ...

It returns an engine that is started and warm, and that uses ``cores`` threads, or processes of one thread, at most.
Temporary files go under ``scratch``. The module runs in a process of its own, with ``benchmarks/`` on the Python path
(also of processes that it starts); what libraries print to stdout goes to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Inputs:
    """Where the generated files lie; `datafiles` makes them, and `workloads` says what is in them.

    Args:
        tpch: the folder of the TPC-H tables, one Parquet file each, as tpchgen-cli writes them: their metadata says
            that texts are Arrow's string views.
        tpch_plain: copies that say nothing of Arrow, for engines that can't read those.
        text: the text file whose words are counted.
        points: Parquet; columns `workloads.POINT_COLUMNS`, float64.
        centers: Parquet; the same columns, `workloads.CLUSTERS` rows: where k-means begins.
        samples: Parquet; columns `workloads.FEATURE_COLUMNS`, float64, and ``label``, int64, 0 or 1.
    """

    tpch: Path
    tpch_plain: Path
    text: Path
    points: Path
    centers: Path
    samples: Path

    def table(self, name: str) -> str:
        """The file of a TPC-H table, as ``inputs.table("lineitem")``."""
        return str(self.tpch / f"{name}.parquet")

    def plain_table(self, name: str) -> str:
        """The copy of a TPC-H table that says nothing of Arrow's types."""
        return str(self.tpch_plain / f"{name}.parquet")


#: Does one workload. Gets the inputs and an empty folder; returns its answer as a small Arrow table, or writes Parquet
#: into the folder and returns None. Everything that is needed for the answer happens inside, reading the files
#: included: nothing is kept from one call to the next.
Job = Callable[[Inputs, Path], pa.Table | None]


class Engine(Protocol):
    """An engine that is up.

    Attributes:
        workloads: what it can do, by the names of `workloads.WORKLOADS`.
        missing: why it can't do the others.
    """

    workloads: Mapping[str, Job]
    missing: Mapping[str, str]

    def versions(self) -> dict[str, str]:
        """Versions of the engine's own packages, by name; ``"python"`` is added."""
        ...

    def close(self) -> None:
        """Stop everything that the engine started."""
        ...
