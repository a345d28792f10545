"""Injector: makes the faults of one run happen, each at its moment, and puts replacements in their places."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from .cluster import ChaosCluster, Node
from .processes import ChildProcess
from .schedule import Fault, victim_order

#: seconds until a dead process or node is replaced; until a returning node is back
REPLACE_SECONDS = 0.5
RETURN_SECONDS = 1.0
#: a slow worker runs a part of each of these periods
_PERIOD_SECONDS = 0.1


@dataclass(frozen=True)
class Injected:
    """A fault that happened.

    Attributes:
        fault: as planned.
        victim: whom it met, as "n2" or "n2.0".
        at: seconds of the run.
        share: of the partitions that were done.
    """

    fault: Fault
    victim: str
    at: float
    share: float


class Injector:
    """Carries out a schedule; call `step` often while the run goes on.

    Args:
        cluster: whom to break.
        faults: what is to happen.
        seed: decides on victims that the moment doesn't name.
        kill_driver: kills the run's driver process.
        replace: whether nodes that died are replaced by fresh ones.
        quota: bytes of a node's scratch that a full disk takes.

    Attributes:
        injected: what happened so far.
    """

    def __init__(
        self,
        cluster: ChaosCluster,
        faults: Sequence[Fault],
        seed: int,
        kill_driver: Callable[[], None],
        replace: bool = True,
        quota: int = 0,
    ):
        self._cluster, self._seed, self._kill_driver = cluster, seed, kill_driver
        self._deeds: dict[tuple[str, str], Callable[[Fault, int | None], str]] = {
            ("kill", "worker"): self._kill_worker,
            ("kill", "node"): self._kill_node,
            ("kill", "scheduler"): self._kill_scheduler,
            ("kill", "driver"): self._kill_the_driver,
            ("hang", "worker"): self._hang_worker,
            ("hang", "node"): self._hang_node,
            ("return", "node"): self._return_node,
            ("fill", "node"): self._fill_node,
            ("slow", "worker"): self._slow_worker,
            ("join", "node"): self._join_node,
            ("leave", "node"): self._leave_node,
        }
        self._replace, self._quota = replace, quota
        self.injected: list[Injected] = []
        self._waiting = dict(enumerate(faults))
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._slowed: list[_Slowed] = []
        self._chosen = 0
        self._started = time.monotonic()
        self._share = 0.0
        for number, fault in self._waiting.items():
            if fault.moment.phase is not None:
                (cluster.faults / f"{fault.moment.phase}@{number}").touch()

    @property
    def pending(self) -> list[Fault]:
        """What hasn't happened yet."""
        return list(self._waiting.values())

    def begin(self) -> None:
        """The run begins now."""
        self._started = time.monotonic()

    def step(self, share: float) -> None:
        """Do what is due.

        Args:
            share: of the run's partitions that are done, 0 to 1.
        """
        self._share, now = share, time.monotonic()
        for when, action in [due for due in self._later if due[0] <= now]:
            self._later.remove((when, action))
            action()
        for number, fault in list(self._waiting.items()):
            moment = fault.moment
            if moment.phase is not None:
                self._look_for_token(number, fault)
            elif (moment.share is not None and share >= moment.share) or (
                moment.seconds is not None and now - self._started >= moment.seconds
            ):
                self._strike(number, fault, None)

    def end(self) -> None:
        """The run is over: nothing more happens, and what was promised to come back does."""
        self._waiting.clear()
        for name in os.listdir(self._cluster.faults):
            (self._cluster.faults / name).unlink(missing_ok=True)
        for slowed in self._slowed:
            slowed.stop()
        for _, action in self._later:
            action()
        self._later.clear()

    # -- one fault ---------------------------------------------------------------------------------

    def _look_for_token(self, number: int, fault: Fault) -> None:
        prefix = f"{fault.moment.phase}@{number}~"
        for name in os.listdir(self._cluster.faults):
            if name.startswith(prefix):
                self._strike(number, fault, int(name.removeprefix(prefix)))
                with suppress(FileNotFoundError):
                    (self._cluster.faults / name).unlink()

    def _strike(self, number: int, fault: Fault, taker: int | None) -> None:
        del self._waiting[number]
        victim = self._deeds[fault.action, fault.target](fault, taker)
        at = round(time.monotonic() - self._started, 3)
        self.injected.append(Injected(fault, victim, at, round(self._share, 3)))

    def _kill_worker(self, fault: Fault, taker: int | None) -> str:
        node, place = self._worker(taker)
        node.workers[place].kill()
        self._after(REPLACE_SECONDS, lambda: self._restart(node, place))
        return f"{node.name}.{place}"

    def _kill_node(self, fault: Fault, taker: int | None) -> str:
        node = self._node(taker)
        self._cluster.kill_node(node)
        if self._replace:
            self._cluster.nodes.remove(node)
            self._after(REPLACE_SECONDS, self._cluster.add_node)
        return node.name

    def _return_node(self, fault: Fault, taker: int | None) -> str:
        node = self._node(taker)
        self._cluster.kill_node(node, keep_scratch=True)
        for place in range(len(node.workers)):
            self._after(RETURN_SECONDS, partial(self._restart, node, place))
        return node.name

    def _hang_worker(self, fault: Fault, taker: int | None) -> str:
        node, place = self._worker(taker)
        node.workers[place].signal(signal.SIGSTOP)
        return f"{node.name}.{place}"

    def _hang_node(self, fault: Fault, taker: int | None) -> str:
        node = self._node(taker)
        for worker in node.workers:
            worker.signal(signal.SIGSTOP, whole=True)
        return node.name

    def _fill_node(self, fault: Fault, taker: int | None) -> str:
        node = self._node(taker)
        self._cluster.fill(node, self._quota)
        return node.name

    def _slow_worker(self, fault: Fault, taker: int | None) -> str:
        node, place = self._worker(taker)
        self._slowed.append(_Slowed(node.workers[place], fault.factor))
        return f"{node.name}.{place}"

    def _join_node(self, fault: Fault, taker: int | None) -> str:
        return self._cluster.add_node().name

    def _leave_node(self, fault: Fault, taker: int | None) -> str:
        node = self._node(taker)
        for worker in node.workers:
            worker.signal(signal.SIGTERM)
        return node.name

    def _kill_scheduler(self, fault: Fault, taker: int | None) -> str:
        assert self._cluster.scheduler is not None
        self._cluster.scheduler.kill()
        self._after(REPLACE_SECONDS, self._cluster.start_scheduler)
        return "scheduler"

    def _kill_the_driver(self, fault: Fault, taker: int | None) -> str:
        self._kill_driver()
        return "driver"

    # -- inside ------------------------------------------------------------------------------------

    def _node(self, taker: int | None) -> Node:
        """The node of the process that took the token, or else one of those that live, by seed."""
        if taker is not None and (found := self._cluster.node_of(taker)) is not None:
            return found
        living = [node for node in self._cluster.nodes if node.lives() and node.id] or self._cluster.nodes
        self._chosen += 1
        return living[victim_order(self._seed * 1000 + self._chosen, len(living))[0]]

    def _worker(self, taker: int | None) -> tuple[Node, int]:
        node = self._node(taker)
        places = [n for n, worker in enumerate(node.workers) if worker.lives() and not worker.stopped]
        for place in places:
            if taker is not None and taker in node.workers[place].pids():
                return node, place
        return node, places[victim_order(self._seed * 1000 + self._chosen, len(places))[0]]

    def _restart(self, node: Node, place: int) -> None:
        if node in self._cluster.nodes and not node.workers[place].lives():
            self._cluster.start_worker(node, place)

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, action))


class _Slowed:
    """A process that is let run for a part of the time only."""

    def __init__(self, process: ChildProcess, factor: float):
        self._process, self._running = process, _PERIOD_SECONDS / factor
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let it run freely again."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        running = False
        while not self._stop.wait(self._running if running else _PERIOD_SECONDS - self._running):
            running = not running
            self._send(signal.SIGCONT if running else signal.SIGSTOP)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if self._process.lives():
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
