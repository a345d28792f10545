"""One engine in a process of its own, which does jobs as lines of JSON on stdin ask, and answers on stdout.

    python benchmarks/engine_process.py duckdb --cores 2 --scratch FOLDER

Started by `compare` with the Python in which the engine is installed. Once the engine is up it writes a line with
``versions``, ``workloads`` and ``missing``; then, for each line ``{"workload", "inputs", "folder", "answer"}``, one
with ``seconds``, or with ``error``. A returned table is left in the file ``answer``, as Arrow. The end of stdin
closes it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# NumPy's products keep to the thread that asks for them: engines have threads of their own. Before NumPy is imported.
os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")

import pyarrow as pa
from engines.protocol import Engine, Inputs


def main() -> None:
    """Open the engine, serve, close it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print isn't taken for a reply
    keep_to_cores(options.cores)
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    start = time.perf_counter()
    module = importlib.import_module(f"engines.{options.engine}_engine")
    engine: Engine = module.open_engine(options.cores, options.scratch)
    reply(
        {
            "seconds": time.perf_counter() - start,
            "versions": {**engine.versions(), "python": platform.python_version()},
            "workloads": list(engine.workloads),
            "missing": dict(engine.missing),
        }
    )
    try:
        for line in sys.stdin:
            reply(run(engine, json.loads(line)))
    finally:
        engine.close()


def run(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Do one job; only the job itself is timed."""
    inputs = Inputs(**{name: Path(path) for name, path in request["inputs"].items()})
    job = engine.workloads[request["workload"]]
    start = time.perf_counter()
    try:
        table = job(inputs, Path(request["folder"]))
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - start
    if table is not None:
        with pa.OSFile(request["answer"], "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return {"seconds": seconds}


def keep_to_cores(cores: int) -> None:
    """Let this process, and all that it starts, run on so many processors only, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


if __name__ == "__main__":
    main()
