"""Groups of real processes: every operation on every transport, what happens when members die, hang or are late."""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from headwater.errors import HeadwaterError, ParameterError
from headwater.runtime.collectives.endpoint import Endpoint
from headwater.runtime.collectives.errors import GroupBrokenError, PeerLostError, PeerTimeoutError
from headwater.runtime.collectives.group import form

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

# the processes don't have this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SERVE = """
import sys, cloudpickle
from multiprocessing.connection import Connection
line, here = Connection(int(sys.argv[1])), {}
while True:
    job, arguments = cloudpickle.loads(line.recv_bytes())
    try:
        answer = (True, job(here, *arguments))
    except BaseException as error:
        answer = (False, error)
    line.send_bytes(cloudpickle.dumps(answer))
"""
SPLITS = [
    ("a", [(0, 8)]),
    ("aa", [(0, 4), (4, 8)]),
    ("ab", [(0, 3), (3, 8)]),
    ("aaa", [(5, 8), (0, 2), (2, 5)]),
    ("abc", [(0, 1), (1, 7), (7, 8)]),
    ("aab", [(0, 3), (3, 5), (5, 8)]),
    ("abaab", [(0, 1), (1, 3), (3, 5), (5, 7), (7, 8)]),
    ("aaaaa", [(0, 2), (2, 3), (3, 4), (4, 6), (6, 8)]),
]
LAYOUT = [(0, 1), (1, 2), (2, 3)]
#: lengths and types of what is added; the first set goes in one round, the second by chunks
SMALL = [(1000, "f4"), (1, "f8"), (0, "f4"), (7, "i8")]
LARGE = [(120_000, "f4"), (1, "f8"), (50_001, "f8"), (0, "i8"), (4097, "i8")]


class Process:
    """A process that runs functions of this module, one at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.line = Connection(ours.detach())
        self.pid = self.process.pid
        self.due = 0  # answers that nobody has taken yet

    def start(self, job: Callable[..., Any], *arguments: Any) -> None:
        self.line.send_bytes(cloudpickle.dumps((job, arguments)))
        self.due += 1

    def result(self, seconds: float = 60.0) -> Any:
        assert self.line.poll(seconds), "no answer"
        done, value = cloudpickle.loads(self.line.recv_bytes())
        self.due -= 1
        if not done:
            raise value
        return value

    def error(self) -> HeadwaterError:
        with pytest.raises(HeadwaterError) as caught:
            self.result()
        return caught.value

    def outcome(self) -> HeadwaterError | None:
        try:
            self.result()
        except HeadwaterError as error:
            return error
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.line.close()


class Gang:
    """Processes, some of which form a group."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.members: list[Process] = []

    def form(self, nodes: str, ranges: Sequence[tuple[int, int]], **options: Any) -> None:
        """Have as many processes as there are nodes form a group, one for each letter."""
        alive = [process for process in self.processes if process.process.poll() is None and not process.due]
        for process in set(self.processes) - set(alive):
            process.end()
        alive += [Process() for _ in range(len(nodes) - len(alive))]
        self.processes = alive
        self.members = alive[: len(nodes)]
        tls = options.pop("tls", None)
        addresses = self.call(open_endpoint, each=[(node, tls) for node in nodes])
        token = secrets.token_hex()
        self.call(join, each=[(rank, addresses, ranges, token, options) for rank in range(len(nodes))])

    def start(self, job: Callable[..., Any], *arguments: Any) -> None:
        for member in self.members:
            member.start(job, *arguments)

    def call(
        self, job: Callable[..., Any], *arguments: Any, each: Sequence[Sequence[Any]] | None = None
    ) -> list[Any]:
        for rank, member in enumerate(self.members):
            member.start(job, *(each[rank] if each else arguments))
        return [member.result() for member in self.members]


@pytest.fixture(scope="module")
def gang() -> Iterator[Gang]:
    gang = Gang()
    yield gang
    for process in gang.processes:
        process.end()


# what the processes do


def open_endpoint(here: dict, node: str, tls: str | None) -> str:
    for thing in (here.pop("group", None), here.pop("endpoint", None)):
        if thing is not None:
            thing.close()
    contexts = {}
    if tls:
        for name, purpose in [("server", ssl.PROTOCOL_TLS_SERVER), ("client", ssl.PROTOCOL_TLS_CLIENT)]:
            context = contexts[f"{name}_context"] = ssl.SSLContext(purpose)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(f"{tls}/cert.pem")
            context.load_cert_chain(f"{tls}/cert.pem", f"{tls}/key.pem")
    here["endpoint"] = Endpoint(node, **contexts)
    return here["endpoint"].address


def join(here: dict, rank: int, addresses: list[str], ranges: Any, token: str, options: dict) -> None:
    here["group"] = form(
        here["endpoint"], rank, addresses, ranges, options.pop("generation", 1), token, 30.0, **options
    )


def leaf(index: int, shape: Sequence[tuple[int, str]]) -> list[np.ndarray]:
    """Numbers whose sum depends on the order of additions."""
    random = np.random.default_rng(index)
    return [
        (
            random.standard_normal(n) * 10.0 ** random.integers(-5, 5, n) * (1e6 if dtype == "i8" else 1)
        ).astype(dtype)
        for n, dtype in shape
    ]


def parts(here: dict, shape: Sequence[tuple[int, str]]) -> dict[int, list[np.ndarray]]:
    group = here["group"]
    return {index: leaf(index, shape) for index in range(*group.layout[group.rank])}


def tree_sum(shape: Sequence[tuple[int, str]], start: int = 0, size: int = 8) -> list[np.ndarray]:
    if size == 1:
        return leaf(start, shape)
    left, right = (tree_sum(shape, at, size // 2) for at in (start, start + size // 2))
    return [a + b for a, b in zip(left, right)]


def same(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> bool:
    return [(a.dtype, a.tobytes()) for a in got] == [(a.dtype, a.tobytes()) for a in want]


def add_in_every_way(here: dict, shape: Sequence[tuple[int, str]]) -> None:
    group = here["group"]
    rank, want, mine = group.rank, tree_sum(shape), parts(here, shape)
    notes = [b"note %d" % number * (1 + number) for number in range(group.size)]
    for _ in range(3):
        sums, got = group.all_reduce(mine, notes[rank])
        assert got == notes == group.notes
        assert same(sums, want)
    own = group.reduce_scatter(mine, notes[rank])
    assert same(own, [array[group.chunk(len(array))] for array in want])
    assert group.notes == notes
    assert same(group.all_gather(own, [length for length, _ in shape], notes[rank]), want)
    assert group.notes == notes
    for root in range(group.size):
        sums = group.reduce(mine, root, b"%d" % root)
        assert sums is None if rank != root else same(sums, want)
        assert group.notes == [b"%d" % root] * group.size
    assert same(
        [array for index in sorted(mine) for array in mine[index]],
        [array for index in sorted(mine) for array in leaf(index, shape)],
    )


def take_results_without_copies(here: dict) -> None:
    group = here["group"]
    for shape in (SMALL, LARGE):
        want, mine = tree_sum(shape), parts(here, shape)
        out = [np.empty_like(array) for array in want]
        sums, _ = group.all_reduce(mine, out=out)
        assert all(a is b for a, b in zip(sums, out))
        assert same(out, want)
        for _ in range(3):
            borrowed, _ = group.all_reduce(mine, borrow=True)
            assert same(borrowed, want)
            assert not any(array.flags.writeable for array in borrowed)
        # what was borrowed may go straight into the next operation
        twice = group.all_reduce(dict.fromkeys(mine, borrowed), borrow=True)[0]
        assert same(twice, [array * 8 for array in want])
        own = group.reduce_scatter(mine, borrow=True)
        again = group.all_gather(own, [length for length, _ in shape], borrow=True)
        assert same(again, want)


def send_around(here: dict) -> None:
    group = here["group"]
    rank, size = group.rank, group.size
    assert group.barrier(b"%d" % rank) == [b"%d" % number for number in range(size)]
    for root in range(size):
        arrays = [np.arange(200_000, dtype="f4") + root, np.array([root]), np.zeros(0)]
        got = group.broadcast(arrays if rank == root else None, root, b"of %d" % rank)
        assert same(got, arrays)
        assert group.notes == [b"of %d" % number for number in range(size)]
        got[0][:] = 0  # it is one's own
    for length in (3, 300_000):
        got = group.all_to_all([b"%d to %d" % (rank, other) * length for other in range(size)], b"n")
        assert got == [b"%d to %d" % (other, rank) * length for other in range(size)]
        assert group.notes == [b"n"] * size
    assert group.all_reduce(parts(here, SMALL), bytes(3_000_000))[1] == [bytes(3_000_000)] * size


def grow_and_shrink(here: dict) -> None:
    group = here["group"]
    for length in (10, 150_000, 100, 300_000, 300_000, 50_000):
        shape = [(length, "f4")]
        assert same(group.all_reduce(parts(here, shape), borrow=True)[0], tree_sum(shape))


def files_open(here: dict) -> int:
    return len(os.listdir("/proc/self/fd"))


def add(here: dict, length: int = 1000, timeout: float | None = None) -> list[str]:
    return [
        a.tobytes().hex() for a in here["group"].all_reduce(parts(here, [(length, "f4")]), timeout=timeout)[0]
    ]


def add_twice(here: dict) -> None:
    add(here)
    add(here)


def add_on_and_on(here: dict, length: int, flag: str) -> None:
    mine = parts(here, [(length, "f4")])
    for turn in range(100_000):
        here["group"].all_reduce(mine, borrow=True)
        if turn == 3:
            Path(flag).touch()


def close_group(here: dict) -> None:
    here["group"].close()


# tests


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("nodes", "ranges"), SPLITS, ids=[nodes for nodes, _ in SPLITS])
def test_sums_have_the_same_bytes_for_any_split_over_processes_and_nodes(gang, nodes, ranges, shape):
    gang.form(nodes, ranges)
    gang.call(add_in_every_way, shape)


@pytest.mark.parametrize(("nodes", "ranges"), SPLITS[::2], ids=[nodes for nodes, _ in SPLITS[::2]])
def test_everything_else_that_members_send_each_other(gang, nodes, ranges):
    gang.form(nodes, ranges)
    gang.call(take_results_without_copies)
    gang.call(send_around)
    gang.call(grow_and_shrink)


def test_groups_leave_no_file_open_and_none_in_shared_memory(gang):
    gang.form("aab", [(0, 3), (3, 5), (5, 8)])
    gang.call(grow_and_shrink)
    first = gang.call(files_open)
    gang.form("aab", [(0, 3), (3, 5), (5, 8)])
    gang.call(grow_and_shrink)
    assert gang.call(files_open) == first
    assert not list(Path("/dev/shm").glob("headwater*"))


@pytest.mark.fault
@pytest.mark.parametrize("nodes", ["aaa", "abc", "aab"])
@pytest.mark.parametrize("length", [1000, 2_000_000])
def test_a_killed_member_is_named_by_all_others(gang, nodes, length, tmp_path):
    gang.form(nodes, [(0, 3), (3, 5), (5, 8)], operation_timeout=120.0)
    gang.start(add_on_and_on, length, str(tmp_path / "running"))
    wait_until((tmp_path / "running").exists)
    gang.members[1].process.kill()
    for rank in (0, 2):
        error = gang.members[rank].error()
        assert type(error) is PeerLostError
        assert 1 in error.missing
    assert not list(Path("/dev/shm").glob("headwater*"))


@pytest.mark.fault
@pytest.mark.parametrize("nodes", ["aaa", "abc"])
def test_a_member_killed_while_all_wait_for_another_is_named(gang, nodes):
    gang.form(nodes, [(0, 3), (3, 5), (5, 8)], operation_timeout=120.0)
    for rank in (0, 1):
        gang.members[rank].start(add)
    wait_until(lambda: sleeping(gang.members[1].pid))
    gang.members[1].process.kill()
    assert gang.members[0].error().missing == (1,)
    gang.members[2].start(add_twice)  # the first may succeed: it has all it needs
    assert gang.members[2].error().missing == (1,)


@pytest.mark.fault
@pytest.mark.parametrize("nodes", ["aaa", "abc"])
@pytest.mark.parametrize("length", [1000, 2_000_000])
def test_the_deadline_names_a_member_that_hangs(gang, nodes, length):
    gang.form(nodes, [(0, 3), (3, 5), (5, 8)])
    gang.call(add, length)
    os.kill(gang.members[2].pid, signal.SIGSTOP)
    try:
        gang.start(add, length, 1.0)
        for rank in (0, 1):
            error = gang.members[rank].error()
            assert isinstance(error, PeerLostError)
            assert error.missing == (2,)
            assert "rank 2" in str(error)
    finally:
        os.kill(gang.members[2].pid, signal.SIGCONT)
    gang.members[2].start(add_twice)
    errors = [error for error in (gang.members[2].outcome(), gang.members[2].outcome()) if error]
    assert all(error.missing == (2,) for error in errors)
    assert errors  # the first may have had all it needed


@pytest.mark.parametrize("nodes", ["aaa", "abc"])
def test_abandon_wakes_everyone_from_another_thread(gang, nodes):
    def wait_and_give_up(here: dict) -> None:
        group = here["group"]

        def give_up() -> None:
            wait_until(lambda: group.waiting == (2,), 20.0)
            group.abandon("enough")

        thread = threading.Thread(target=give_up)
        thread.start()
        try:
            add(here, 1000, 120.0)
        finally:
            thread.join()

    gang.form(nodes, [(0, 3), (3, 5), (5, 8)])
    gang.members[0].start(wait_and_give_up)
    gang.members[1].start(add, 1000, 120.0)
    for rank in (0, 1):
        error = gang.members[rank].error()
        assert type(error) is GroupBrokenError
        assert "rank 0 abandoned the group: enough" in str(error)
    gang.members[2].start(add_twice)
    assert "enough" in str(gang.members[2].error())


def test_a_member_that_abandons_between_operations_frees_the_others(gang):
    gang.form("aab", [(0, 3), (3, 5), (5, 8)])
    gang.members[0].start(add, 1000, 120.0)
    gang.members[1].start(lambda here: here["group"].abandon())
    gang.members[1].result()
    assert "rank 1 abandoned" in str(gang.members[0].error())
    gang.members[1].start(add)
    assert "abandoned" in str(gang.members[1].error())


@pytest.mark.parametrize("nodes", ["aa", "ab"])
def test_members_in_different_operations_are_told(gang, nodes):
    gang.form(nodes, [(0, 4), (4, 8)])
    gang.members[0].start(add, 1000)
    gang.members[1].start(add, 1001)
    errors = [member.error() for member in gang.members]
    assert all(type(error) is GroupBrokenError for error in errors)
    assert any("the same operations in the same order" in str(error) for error in errors)


def test_wrong_arguments_are_told_here_and_free_the_others(gang):
    def give_wrong_parts(here: dict) -> None:
        here["group"].all_reduce({0: [np.zeros(3)]})

    gang.form("aa", [(0, 4), (4, 8)])
    gang.members[0].start(give_wrong_parts)
    gang.members[1].start(add, 1000, 120.0)
    assert isinstance(gang.members[0].error(), ParameterError)
    assert "rank 0 left" in str(gang.members[1].error())


@pytest.mark.parametrize("nodes", ["aaa", "abc"])
def test_leaving_after_the_last_operation_disturbs_nobody(gang, nodes):
    def add_and_close(here: dict) -> None:
        add(here, 300_000)
        here["group"].close()

    for _ in range(5):
        gang.form(nodes, [(0, 3), (3, 5), (5, 8)])
        gang.call(add_and_close)


def test_using_a_group_that_a_member_closed_names_it(gang):
    gang.form("aa", [(0, 4), (4, 8)])
    gang.members[1].start(close_group)
    gang.members[1].result()
    gang.members[0].start(add)
    error = gang.members[0].error()
    assert error.missing == (1,)
    assert "closed" in str(error)


def test_tls(gang, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    gang.form("aab", [(0, 3), (3, 5), (5, 8)], tls=str(tmp_path))
    gang.call(add_in_every_way, SMALL)
    gang.call(add_in_every_way, LARGE)
    gang.call(send_around)


# forming


def form_in_threads(
    endpoints: Sequence[Endpoint], changes: dict[int, dict], timeout: float = 20.0
) -> list[Any]:
    """Form a group of endpoints of this process; what each member got, a group or an error."""
    got: list[Any] = [None] * len(endpoints)

    def one(rank: int) -> None:
        arguments: dict[str, Any] = {
            "addresses": [endpoint.address for endpoint in endpoints],
            "layout": [(index, index + 1) for index in range(len(endpoints))],
            "generation": 5,
            "token": "secret",
            "timeout": timeout,
        } | changes.get(rank, {})
        try:
            got[rank] = form(endpoints[rank], rank, **arguments)
        except HeadwaterError as error:
            got[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(endpoints))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


@pytest.fixture
def endpoints() -> Iterator[list[Endpoint]]:
    made = [Endpoint(node) for node in "aab"]
    yield made
    for endpoint in made:
        endpoint.close()


def close_all(groups: Sequence[Any]) -> None:
    for group in groups:
        group.close()


def test_an_older_generation_is_turned_away(endpoints):
    got = form_in_threads(endpoints, {1: {"generation": 4}}, timeout=1.0)
    assert "newer generation" in str(got[1])
    assert isinstance(got[0], PeerTimeoutError)
    assert 1 in got[0].missing


def test_a_newer_generation_ends_the_forming_of_an_older_one(endpoints):
    addresses = [endpoint.address for endpoint in endpoints]
    got: list[Any] = []

    def member(rank: int, *generations: int) -> None:
        for generation in generations:
            try:
                got.append(form(endpoints[rank], rank, addresses, LAYOUT, generation, "secret", 60.0))
            except GroupBrokenError as error:
                got.append(str(error))

    threads = [threading.Thread(target=member, args=args) for args in [(0, 4, 5), (1, 5), (2, 5)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "generation 4 is over: 5 is being formed" in got.pop(0)
    assert [group.generation for group in got] == [5] * 3
    close_all(got)


def test_strangers_are_turned_away(endpoints):
    got = form_in_threads(endpoints, {2: {"token": "guessed"}}, timeout=1.0)
    assert "turned rank 2 away" in str(got[2])
    assert isinstance(got[0], PeerTimeoutError)


def test_noise_at_the_door_disturbs_nobody(endpoints):
    host, port = endpoints[0].address.split("?")[0].removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as noisy, socket.create_connection((host, int(port))):
        noisy.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        close_all(form_in_threads(endpoints, {}))


def test_a_member_that_nobody_runs_is_named_at_once(endpoints):
    endpoints[1].close()
    with pytest.raises(PeerLostError) as caught:
        form(
            endpoints[2], 1, [endpoints[1].address, endpoints[2].address], [(0, 1), (1, 2)], 5, "secret", 60.0
        )
    assert caught.value.missing == (0,)


def test_members_that_do_not_come_are_named(endpoints):
    addresses = [endpoint.address for endpoint in endpoints]
    with pytest.raises(PeerTimeoutError) as caught:
        form(endpoints[0], 0, addresses, LAYOUT, 5, "secret", 0.2)
    assert caught.value.missing == (1, 2)


def test_the_same_endpoints_form_one_generation_after_the_other(endpoints):
    for generation in range(5, 9):
        changes = {rank: {"generation": generation} for rank in range(3)}
        groups = form_in_threads(endpoints, changes)
        assert [group.generation for group in groups] == [generation] * 3
        if generation % 2:
            groups[1].abandon()
        close_all(groups)


@pytest.mark.parametrize("length", [10, 400_000])
def test_one_member_with_one_part(endpoints, length):
    array = np.arange(length, dtype="f4")
    with form(endpoints[0], 0, [endpoints[0].address], [(0, 1)], 1, "secret") as group:
        for borrow in (False, True):
            (got,), notes = group.all_reduce({0: [array]}, b"x", borrow=borrow)
            assert same([got], [array])
            assert notes == [b"x"]
            assert not np.shares_memory(got, array)
        assert same(group.reduce_scatter({0: [array]}), [array])
        assert same(group.all_gather([array], [length]), [array])
        assert same(group.broadcast([array], 0), [array])
        assert group.all_to_all([b"self"]) == [b"self"]


@pytest.mark.parametrize("nodes", ["aa", "ab"])
def test_arrays_with_gaps_and_sums_over_their_own_parts(gang, nodes):
    def add_odd_arrays(here: dict) -> None:
        group = here["group"]
        for length in (10, 400_000):
            wide = np.arange(2 * length, dtype="f8")
            (got,), _ = group.all_reduce({group.rank: [wide[::2]]})
            assert same([got], [wide[::2] * 2])
            mine = np.arange(length, dtype="f8")
            group.all_reduce({group.rank: [mine]}, out=[mine])
            assert same([mine], [np.arange(length) * 2.0])

    gang.form(nodes, [(0, 1), (1, 2)])
    gang.call(add_odd_arrays)


def test_closing_the_endpoint_ends_the_forming(endpoints):
    addresses = [endpoint.address for endpoint in endpoints]
    threading.Timer(0.1, endpoints[0].close).start()
    with pytest.raises(GroupBrokenError, match="closed"):
        form(endpoints[0], 0, addresses, LAYOUT, 5, "secret", 60.0)


def test_errors_travel_between_processes():
    for error in (PeerLostError("gone", [2, 1]), PeerTimeoutError("late", [3]), GroupBrokenError("broken")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
        assert getattr(copy, "missing", None) == getattr(error, "missing", None)


def wait_until(met: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.005)


def sleeping(pid: int) -> bool:
    """Whether a process waits in poll, which only an operation does here."""
    return "poll" in Path(f"/proc/{pid}/wchan").read_text()
