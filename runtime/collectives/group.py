"""Group: the operations of processes that work together, with deadlines, and the same bytes for any split."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ...errors import ParameterError
from .channel import DATA, DONE, HELLO, Buffers
from .endpoint import Endpoint, connect_all, node_of
from .layout import Layout, chunk_span
from .mesh import Mesh
from .ordered_sum import Memory, Scratch, ordered_sum
from .plans import Plan, is_small
from .rooms import Rooms
from .shape import Shape, check_arrays, check_parts, shape_of
from .tree import Span

_FIRST_STRIDE = 64 << 10
_PLANS = 16
_LENGTH = struct.Struct("<I")

Arrays = Sequence[np.ndarray]


def form(
    endpoint: Endpoint,
    rank: int,
    addresses: Sequence[str],
    layout: Sequence[Span],
    generation: int,
    token: str,
    timeout: float = 30.0,
    *,
    operation_timeout: float = 60.0,
    folder: str | None = None,
) -> Group:
    """Form a group; every member calls it with the same arguments but its own endpoint and rank.

    Args:
        endpoint: of this process. It stays open, for the next generation.
        rank: of this member: 0 … size - 1.
        addresses: ``Endpoint.address`` of all members, by rank.
        layout: the range (start, stop) of logical indices that each rank carries; together ``0 … S - 1``.
        generation: number of this constellation; must count up in a run.
        token: a secret that the run's members share, as ``secrets.token_hex()`` gives.
        timeout: seconds until all must have come.
        operation_timeout: seconds that an operation may take, where it isn't told otherwise.
        folder: where files of shared memory go, on systems without anonymous ones and without ``/dev/shm``.

    Raises:
        PeerLostError: a member is gone; see its ``missing``.
        PeerTimeoutError: members didn't come in time.
        GroupBrokenError: others form another generation, or have another token.
        ParameterError: the layout or an address is wrong.
    """
    deadline = time.monotonic() + timeout
    nodes = [node_of(address) for address in addresses]
    places = Layout(layout, nodes)
    if not 0 <= rank < places.size:
        raise ParameterError(f"rank={rank}: must be 0 … {places.size - 1} in a group of {places.size}")
    mesh = connect_all(endpoint, rank, addresses, generation, token, deadline)
    with mesh.operation():
        mesh.digest = zlib.crc32(repr((places.ranges, places.nodes, generation)).encode())
        peers = list(mesh.channels)
        mesh.round(HELLO, dict.fromkeys(peers, ((), b"")), dict.fromkeys(peers, ()), deadline)
        rooms = Rooms(mesh, places, folder)
        mapped = rooms.grow(_FIRST_STRIDE, deadline, strict=False)
        mesh.round(HELLO, dict.fromkeys(peers, ((), b"x" * mapped)), dict.fromkeys(peers, ()), deadline)
        if not (mapped and all(mesh.channels[peer].note for peer in peers)):
            # Some can't see each other's memory, as in containers of their own: then every member is a node.
            places = Layout(layout, [f"{node} {number}" for number, node in enumerate(nodes)])
            rooms = Rooms(mesh, places, folder)
            rooms.grow(_FIRST_STRIDE, deadline)
    return Group(mesh, places, rooms, generation, operation_timeout)


class Group:
    """Processes that work together. Made by `form`.

    One thread calls its operations, in the same order as all other members do. Each takes a ``note``, some bytes
    that reach every member with it: ``notes`` has those of all ranks after each operation. Each takes a
    ``timeout`` in seconds.

    Arrays are 1-d NumPy arrays. Results are new arrays, unless ``out`` names arrays that get them, or ``borrow``
    asks for read-only views of the exchange's own memory: these cost nothing, may be given to the next operation,
    and mean nothing after it.

    An operation that fails ends the group, here and at all other members: it raises `PeerLostError` with the ranks that
    are gone, `PeerTimeoutError` with those that are late, or `GroupBrokenError`.

    Attributes:
        rank: of this member.
        size: how many members there are.
        generation: of the constellation.
        layout: the range of indices of each rank.
        notes: of the last operation, by rank.
        timeout: seconds that an operation may take, where it isn't told otherwise.
        on_device: whether arrays are a device's.
        transport: which way they go.
    """

    on_device = False
    transport = "host"

    def __init__(self, mesh: Mesh, places: Layout, rooms: Rooms, generation: int, timeout: float):
        self.rank, self.size, self.generation = mesh.rank, places.size, generation
        self.layout = places.ranges
        self.timeout = timeout
        self.notes: list[bytes] = []
        self._mesh, self.places, self._rooms = mesh, places, rooms
        self._peers = tuple(mesh.channels)
        self._nothing: dict[int, Buffers] = dict.fromkeys(self._peers, ())
        self._slot = 0
        self._scratch = Scratch()
        self._plans: dict[tuple[Shape, int], Plan] = {}
        self._private = Memory()

    @property
    def waiting(self) -> tuple[int, ...]:
        """The ranks that the operation in progress waits for at this moment; for other threads to look at."""
        return tuple(sorted(self._mesh.waiting))

    def chunk(self, length: int, rank: int | None = None) -> slice:
        """Return the part of a vector that a member owns.

        Args:
            length: of the vector, in elements.
            rank: of the member; this one if left out.
        """
        return chunk_span(length, self.rank if rank is None else rank, self.size)

    def all_reduce(
        self,
        parts: Mapping[int, Arrays],
        note: bytes = b"",
        *,
        out: Arrays | None = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> tuple[list[np.ndarray], list[bytes]]:
        """Add up the parts of all indices, in the order of the fixed tree. Everyone gets the sums.

        Args:
            parts: by index that this member carries, its arrays; left as they are.
            note, out, borrow, timeout: see the class.

        Returns:
            The sums, and the notes of all members by rank.
        """
        with self._operation(timeout) as deadline:
            plan = self._sum(parts, note, deadline, "all_reduce", out=out, borrow=borrow)
            if plan.small:
                return self._add_small(plan, out, borrow), self.notes
            self._spread(plan, deadline)
            return self._deliver(plan.result, out, borrow, there=plan.direct), self.notes

    def reduce_scatter(
        self,
        parts: Mapping[int, Arrays],
        note: bytes = b"",
        *,
        out: Arrays | None = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Add up as `all_reduce` does, and return only this member's `chunk` of each sum."""
        with self._operation(timeout) as deadline:
            plan = self._sum(parts, note, deadline, "reduce_scatter")
            if plan.small:
                sums = self._add_small(plan, None, True)
                return self._deliver([array[self.chunk(len(array))] for array in sums], out, borrow)
            return self._deliver(plan.chunks, out, borrow)

    def reduce(
        self, parts: Mapping[int, Arrays], root: int, note: bytes = b"", *, timeout: float | None = None
    ) -> list[np.ndarray] | None:
        """Add up as `all_reduce` does; only ``root`` gets the sums, others None."""
        self._check_root(root)
        with self._operation(timeout) as deadline:
            plan = self._sum(parts, note, deadline, "reduce", root)
            if plan.small:
                return self._add_small(plan, None, False) if self.rank == root else None
            self._spread(plan, deadline, self.places.nodes[root])
            return self._deliver(plan.result, None, False) if self.rank == root else None

    def all_gather(
        self,
        chunks: Arrays,
        lengths: Sequence[int],
        note: bytes = b"",
        *,
        out: Arrays | None = None,
        borrow: bool = False,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Put vectors together of which each member has its `chunk`.

        Args:
            chunks: this member's chunk of each vector.
            lengths: of the whole vectors.
            note, out, borrow, timeout: see the class.
        """
        with self._operation(timeout) as deadline:
            got = [len(chunk) for chunk in chunks]
            due = [(part := self.chunk(length)).stop - part.start for length in lengths]
            if got != due:
                raise ParameterError(
                    f"all_gather: rank {self.rank} owns chunks of {due} elements, and gave {got}"
                )
            shape = shape_of(tuple(lengths), check_arrays(chunks, "all_gather").key[1])
            plan = self._plan(shape, deadline, result=self._targets(shape, out, borrow))
            for mine, chunk in zip(plan.chunks, chunks):
                np.copyto(mine, chunk)
            self._hello(shape.digest("all_gather"), note, deadline)
            if plan.others:
                self._spread(plan, deadline)
            return self._deliver(plan.result, out, borrow, there=plan.direct)

    def broadcast(
        self, arrays: Arrays | None, root: int, note: bytes = b"", *, timeout: float | None = None
    ) -> list[np.ndarray]:
        """Give everyone the arrays of one member.

        Args:
            arrays: of ``root``; what others give is ignored, so None will do.
            root: the rank that has them.
            note, timeout: see the class.
        """
        self._check_root(root)
        with self._operation(timeout) as deadline:
            mine = check_arrays(arrays or (), "broadcast") if self.rank == root else None
            head = json.dumps(mine.key).encode() if mine else b""
            digest = zlib.crc32(f"broadcast {root}".encode())
            self._hello(digest, _LENGTH.pack(len(head)) + head + note, deadline)
            texts = [(text[4 : (end := 4 + _LENGTH.unpack_from(text)[0])], text[end:]) for text in self.notes]
            self.notes = [text for _, text in texts]
            lengths, dtypes = json.loads(texts[root][0])
            shape = shape_of(tuple(lengths), tuple(dtypes))
            self._fit(shape, deadline)
            holder, agents = root, [self.places.agent(node, root) for node in self.places.members]
            if self.places.nodes[root] != self.places.nodes[self.rank]:
                holder = self.places.agent(self.places.nodes[self.rank], root)
            room = shape.views(self._rooms.piece(holder, 0, self._slot, shape.stride))
            body = [array.view(np.uint8) for array in room if len(array)]
            if self.rank == root:
                for target, array in zip(room, arrays or ()):
                    np.copyto(target, array)
                sends = {agent: (body, b"") for agent in agents if agent != root}
                self._mesh.round(DATA, sends, {}, deadline)
            elif self.rank == holder:
                self._mesh.round(DATA, {}, {root: body}, deadline)
            near = self._rooms.neighbours
            if self.rank == holder:
                self._mesh.round(DONE, dict.fromkeys(near, ((), b"")), {}, deadline)
            else:
                self._mesh.round(DONE, {}, {holder: ()}, deadline)
            return self._deliver(room, None, False)

    def all_to_all(
        self, payloads: Sequence[bytes], note: bytes = b"", *, timeout: float | None = None
    ) -> list[bytes]:
        """Send some bytes to each member, and get some of each.

        Args:
            payloads: for each rank, of any lengths.
            note, timeout: see the class.

        Returns:
            What each rank had for this one.
        """
        if len(payloads) != self.size:
            raise ParameterError(
                f"all_to_all: {len(payloads)} payloads for {self.size} members; give one for each rank"
            )
        with self._operation(timeout) as deadline:
            head = _LENGTH.pack(len(note)) + note
            texts = self._greet(
                zlib.crc32(b"all_to_all"),
                {rank: head + payloads[rank] for rank in range(self.size)},
                deadline,
            )
            ends = [4 + _LENGTH.unpack_from(text)[0] for text in texts]
            self.notes = [text[4:end] for text, end in zip(texts, ends)]
            return [text[end:] for text, end in zip(texts, ends)]

    def barrier(self, note: bytes = b"", *, timeout: float | None = None) -> list[bytes]:
        """Wait until all members are here. Returns the notes of all, by rank."""
        with self._operation(timeout) as deadline:
            self._hello(zlib.crc32(b"barrier"), note, deadline)
            return self.notes

    @contextmanager
    def together(
        self, what: str, shape: Shape | None = None, note: bytes = b"", *, timeout: float | None = None
    ) -> Iterator[float]:
        """Begin an operation whose data goes another way than this group's; what fails in it ends the group.

        Args:
            what: names the operation.
            shape: of what it is about.
            note, timeout: see the class.

        Yields:
            When it must be over, in ``time.monotonic()``; all members are in it by then.
        """
        with self._operation(timeout) as deadline:
            digest = zlib.crc32(what.encode()) if shape is None else shape.digest(what)
            self._hello(digest, note, deadline)
            yield deadline

    def tell(self, words: Mapping[int, bytes], deadline: float) -> dict[int, bytes]:
        """Send words to each other member, and get theirs, in an operation of `together`.

        Args:
            words: by rank; empty ones may be left out.
            deadline: of the operation.

        Returns:
            What each other member had for this one.
        """
        sends = {rank: ((), words.get(rank, b"")) for rank in self._peers}
        self._mesh.round(DATA, sends, self._nothing, deadline)
        return {rank: channel.note for rank, channel in self._mesh.channels.items()}

    def look(self) -> None:
        """See, in an operation of `together`, whether all members are still there, without waiting.

        Raises:
            PeerLostError: a member is gone.
            GroupBrokenError: the group was abandoned.
        """
        self._mesh.look()

    @property
    def secured(self) -> bool:
        """Whether some connections are encrypted."""
        return any(channel.secure for channel in self._mesh.channels.values())

    def abandon(self, why: str = "") -> None:
        """End the group from any thread: operations of all members fail at once with `GroupBrokenError`.

        Args:
            why: what they are told.
        """
        self._mesh.abandon(f"rank {self.rank} abandoned the group" + (f": {why}" if why else ""))

    def close(self) -> None:
        """Leave the group, after the last operation."""
        self._mesh.close()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close() if error is None else self.abandon(str(error))

    @contextmanager
    def _operation(self, timeout: float | None) -> Iterator[float]:
        with self._mesh.operation():
            self._mesh.number = (self._mesh.number + 1) % 2**32
            self._slot = 1 - self._slot
            yield time.monotonic() + (self.timeout if timeout is None else timeout)

    def _hello(
        self,
        digest: int,
        note: bytes,
        deadline: float,
        sends: Mapping[int, Buffers] | None = None,
        receives: Mapping[int, Buffers] | None = None,
    ) -> None:
        self.notes = self._greet(digest, dict.fromkeys(range(self.size), note), deadline, sends, receives)

    def _greet(
        self,
        digest: int,
        notes: Mapping[int, bytes],
        deadline: float,
        sends: Mapping[int, Buffers] | None = None,
        receives: Mapping[int, Buffers] | None = None,
    ) -> list[bytes]:
        """Exchange the first words of an operation with everyone, with a body for some."""
        self._mesh.digest = digest
        bodies = sends or {}
        outgoing = {rank: (bodies.get(rank, ()), notes[rank]) for rank in self._peers}
        self._mesh.round(
            HELLO, outgoing, {**self._nothing, **receives} if receives else self._nothing, deadline
        )
        found = {rank: channel.note for rank, channel in self._mesh.channels.items()}
        found[self.rank] = notes[self.rank]
        return [found[rank] for rank in range(self.size)]

    def _fit(self, shape: Shape, deadline: float) -> None:
        if shape.stride > self._rooms.stride:
            self._plans.clear()
            self._rooms.grow(shape.stride, deadline)

    def _targets(self, shape: Shape, out: Arrays | None, borrow: bool) -> list[np.ndarray] | None:
        """The arrays into which a result can go without a detour, which a node's shared memory would be."""
        if self._rooms.neighbours or borrow:
            return None
        fresh = [np.empty(length, dtype) for length, dtype in zip(shape.lengths, shape.dtypes)]
        return fresh if out is None else self._check_out(fresh, out)

    def _leaves(self, parts: Mapping[int, Arrays]) -> dict[int, list[np.ndarray]]:
        """Parts that are whole subtrees by themselves, and can be sent from where they are."""
        if self._rooms.neighbours or self.size == 1:
            return {}
        return {
            number: list(parts[start])
            for number, (start, stop) in enumerate(self.places.pieces[self.rank])
            if stop - start == 1 and all(array.flags.c_contiguous for array in parts[start])
        }

    def _plan(
        self,
        shape: Shape,
        deadline: float,
        leaves: dict[int, list[np.ndarray]] | None = None,
        result: list[np.ndarray] | None = None,
    ) -> Plan:
        self._fit(shape, deadline)
        if leaves or result:  # of this operation alone
            plan = Plan(self.rank, self.places, self._rooms, shape, self._slot, self._private, leaves, result)
            plan.prepare_large()
            return plan
        if (shape, self._slot) not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = Plan(self.rank, self.places, self._rooms, shape, self._slot, self._private)
            plan.prepare_small() if plan.small else plan.prepare_large()
            self._plans[shape, self._slot] = plan
        return self._plans[shape, self._slot]

    def _sum(
        self,
        parts: Mapping[int, Arrays],
        note: bytes,
        deadline: float,
        *what: object,
        out: Arrays | None = None,
        borrow: bool = True,
    ) -> Plan:
        """Bring the partial sums to where they are finished; large ones are finished then, chunk by chunk."""
        parts = dict(parts)
        shape = check_parts(parts, *self.layout[self.rank], str(what[0]))
        if is_small(self.places, shape):
            plan = self._plan(shape, deadline)
        else:
            plan = self._plan(shape, deadline, self._leaves(parts), self._targets(shape, out, borrow))
        plan.fill(parts, self._scratch)
        digest = shape.digest(*what)
        if plan.small:
            self._hello(digest, note, deadline, plan.outgoing, plan.ingoing)
            return plan
        self._hello(digest, note, deadline)
        for addition, operands, target, in_place in plan.merges:
            ordered_sum(addition, operands, target, self._scratch, in_place=in_place)
        if plan.others:
            sends = {rank: (body, b"") for rank, body in plan.partials_out.items()}
            self._mesh.round(DATA, sends, plan.partials_in, deadline)
        for addition, operands, target, in_place in plan.finish:
            ordered_sum(addition, operands, target, self._scratch, in_place=in_place)
        return plan

    def _add_small(self, plan: Plan, out: Arrays | None, borrow: bool) -> list[np.ndarray]:
        if borrow:
            targets = plan.shape.views(self._private(("sums", self._slot), plan.shape.stride))
        elif out is not None:
            targets = self._check_out(plan.result, out)
        else:
            targets = [
                np.empty(length, dtype) for length, dtype in zip(plan.shape.lengths, plan.shape.dtypes)
            ]
        for (addition, operands), target in zip(plan.whole, targets):
            ordered_sum(addition, operands, target, self._scratch)
        return [_read_only(target) for target in targets] if borrow else targets

    def _spread(self, plan: Plan, deadline: float, node: str | None = None) -> None:
        """Bring finished chunks to all nodes, or to one, and wait until those of this node have theirs there."""
        here = node is None or node == plan.node
        if plan.others:
            sends = {
                rank: (body, b"")
                for rank, body in plan.results_out.items()
                if node is None or self.places.nodes[rank] == node
            }
            self._mesh.round(DATA, sends, plan.results_in if here else {}, deadline)
        if here and self._rooms.neighbours:
            near = self._rooms.neighbours
            self._mesh.round(DONE, dict.fromkeys(near, ((), b"")), dict.fromkeys(near, ()), deadline)

    def _deliver(
        self, arrays: Arrays, out: Arrays | None, borrow: bool, *, there: bool = False
    ) -> list[np.ndarray]:
        if borrow:
            return [_read_only(array) for array in arrays]
        if there:
            return list(arrays)
        if out is None:
            return [array.copy() for array in arrays]
        for target, array in zip(self._check_out(arrays, out), arrays):
            np.copyto(target, array)
        return list(out)

    def _check_out(self, arrays: Arrays, out: Arrays) -> list[np.ndarray]:
        due, got = ([(array.dtype.str, array.shape) for array in some] for some in (arrays, out))
        if due != got:
            raise ParameterError(f"out: arrays of {due} are needed, and got {got}")
        return list(out)

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise ParameterError(f"root={root}: must be a rank of this group, 0 … {self.size - 1}")


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
