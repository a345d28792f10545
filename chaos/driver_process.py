"""The driver of a run as a process of its own, so that it can be killed: ``python -m headwater.chaos.driver_process``.

It reads what to run as JSON from standard input, and tells how it goes as lines of JSON on standard output.
"""

from __future__ import annotations

import copy
import faulthandler
import hashlib
import json
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..datasets.commit import Destination
from ..datasets.file_sink import FileSink
from ..lineage.fingerprint import Fingerprint
from ..ops.node import Node
from ..ops.write import Write
from ..pipeline_file import find_pipeline, load_module, split_reference
from ..planner.options import PlanOptions
from ..runtime.snapshot import Snapshot
from ..session import RunResult, Session

#: the name under which a pipeline file may give its `PlanOptions`
OPTIONS = "OPTIONS"


@dataclass(frozen=True)
class DriverSpec:
    """What a driver process is to run.

    Attributes:
        file: ``FILE[:NAME]`` of the pipeline.
        scheduler: address of the Dask scheduler.
        journal: folder of journals.
        sinks: folder to write to in place of where the pipeline would.
        params: of the pipeline.
        quota: most bytes of scratch a node may use.
        resume: id of the run to go on with; None begins one.
        device: what may use GPUs, as in `Session`.
    """

    file: str
    scheduler: str
    journal: str
    sinks: str
    params: Mapping[str, str] = field(default_factory=dict)
    quota: int | None = None
    resume: str | None = None
    device: str = "auto"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Run what standard input says, and tell how it goes; exit with 1 if it fails."""
    faulthandler.register(signal.SIGUSR1)
    spec = DriverSpec(**json.loads(sys.stdin.readline()))
    sys.stdout = sys.stderr  # what a pipeline prints is none of the harness's lines
    try:
        _tell("ended", **_run(spec))
    except Exception as error:
        report = getattr(error, "report", None)
        _tell(
            "failed",
            error=f"{type(error).__name__}: {error}",
            trace="".join(traceback.format_exception(error)),
            report=None if report is None else report.to_dict(),
        )
        raise SystemExit(1) from None


def _run(spec: DriverSpec) -> dict[str, Any]:
    path, name = split_reference(spec.file)
    module = load_module(path)
    pipeline = find_pipeline(module, path, name)
    options = getattr(module, OPTIONS, None)
    with Session(
        spec.scheduler,
        journal=spec.journal,
        progress=_observe,
        quota=spec.quota,
        device=spec.device,
        options=options if isinstance(options, PlanOptions) else None,
    ) as session:
        _tell("running")
        with _start(session, spec, pipeline) as result:
            told = {
                "report": result.report.to_dict(),
                "rows": {name: _rows_digest(result, name) for name in result.outputs},
                "files": _files(Path(spec.sinks)),
                "nodes": _nodes(session),
            }
        return told


def _start(session: Session, spec: DriverSpec, pipeline: Any) -> RunResult:
    if spec.resume is not None:
        return session.resume(spec.resume)
    nodes = {name: dataset.node for name, dataset in pipeline.bind(dict(spec.params)).items()}
    return session.run(
        {name: _redirected(node, name, Path(spec.sinks)) for name, node in nodes.items()}, pipeline.name
    )


def _redirected(node: Node, name: str, folder: Path) -> Node:
    """Let an output's files go to a folder of the harness."""
    if not isinstance(node, Write) or not isinstance(node.sink, FileSink):
        return node
    sink = copy.copy(node.sink)
    target = folder / (f"{name}{sink.suffix}" if sink.single_file else name)
    sink.destination = Destination.at(target, None, sink.single_file)
    return Write(node.input, sink)


def _nodes(session: Session) -> list[str]:
    """Ids of the nodes that are there, and so can be told to clean up."""
    assert session._executor is not None
    return sorted({worker.node for worker in session._executor.workers()})


def _rows_digest(result: RunResult, name: str) -> str:
    """Read an output as its user would, and digest the rows."""
    fingerprint = Fingerprint(result.schema(name))
    for table in result.batches(name):
        fingerprint.update(table)
    return fingerprint.hexdigest()


def _files(folder: Path) -> dict[str, str]:
    """Digests of the bytes of all files that were written, by path, hidden and forgotten ones included."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _bytes_digest(path) for path in found}


def _bytes_digest(path: Path) -> str:
    if path.name.startswith("_"):
        return "there"  # a marker, which names its run
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _observe(snapshot: Snapshot) -> None:
    done = sum(stage.done for stage in snapshot.stages)
    total = sum(stage.total for stage in snapshot.stages)
    stages = [[stage.label, stage.state, stage.done, stage.total] for stage in snapshot.stages]
    _tell("progress", run=snapshot.run, share=done / total if total else 0.0, stages=stages)


def _tell(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, **more}), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
