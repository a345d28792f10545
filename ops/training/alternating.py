"""AlternatingLeastSquares: the factors of users and items, solved for in turns, as a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import HeadwaterError
from ..backend import Array, array_namespace, to_host
from ..device.arrays.row_segments import segment_rows
from ..device.crossing import staged
from ..objectives.direct import on_host
from ..objectives.losses import sum_all
from .blocks import device_rows, pass_over
from .program import BLOCK_ROWS, Batch, DataInfo, Shard, State
from .sampling import generator

if TYPE_CHECKING:
    from ..objectives.als import ALS

#: bytes of the normal equations that are summed in one step; more users or items take more steps
STEP_BYTES = 32 << 20
#: normal equations that are solved at once
_SOLVED = 8192
#: blocks of ratings that are sorted together
_SORTED_BLOCKS = 32
_OTHER = {"users": "items", "items": "users"}
#: purpose of random streams
_FACTORS = 5


class AlternatingLeastSquares:
    """Alternating least squares, as a program.

    Its phases: "count" finds how many users and items there are; "users" and "items" sum the normal equations of a
    range of them and solve these; "measure" is one last pass, for the loss.

    Args:
        objective: what to fit.
    """

    def __init__(self, objective: ALS):
        self.objective = objective
        self.pairs = np.triu_indices(objective.rank)

    @property
    def chunk(self) -> int:
        """How many users or items are solved for in a step."""
        return max(1, STEP_BYTES // (8 * (len(self.pairs[0]) + self.objective.rank + 1)))

    def start(self, info: DataInfo) -> State:
        """Return the first state."""
        seed = int(info.rng(_FACTORS).integers(2**63))
        return {
            "step": 0,
            "phase": "count",
            "iteration": 0,
            "from": 0,
            "shards": info.shards,
            "seed": seed,
            "history": [],
            "loss": 0.0,
        }

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return a shard's sums for the phase the state is in."""
        state = on_host(state)
        if state["phase"] == "count":
            return self._count(state, shard)
        if state["phase"] == "measure":
            return self._measure(state, shard)
        return self._equations(state, shard)

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state after a pass."""
        state, sums = on_host(state), on_host(sums)
        after = {**state, "step": state["step"] + 1}
        if state["phase"] == "count":
            return {**after, **self._after_count(state, sums)}
        loss = state["loss"] + float(sums["loss"][0])
        if state["phase"] == "measure":
            return {**after, "phase": "done", "history": [*state["history"], self._figures(state, loss)]}
        return {**after, **self._after_equations(state, sums["equations"], loss)}

    def finished(self, state: State) -> bool:
        """Say whether all iterations are done, and the loss is known."""
        return state["phase"] == "done"

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss", the mean (with implicit ratings: confident) squared error after the last whole iteration."""
        return dict(state["history"][-1]) if state["history"] else {}

    def params(self, state: State) -> dict[str, Any]:
        """Return the factors ``users`` (users, rank) and ``items``, and how many ratings each had, all float64."""
        state = on_host(state)
        return {name: state[name] for name in ("users", "items", "users_ratings", "items_ratings")}

    def progress(self, state: State) -> float:
        """Return the share of the iterations that is done."""
        return 1.0 if state["phase"] == "done" else state["iteration"] / self.objective.iterations

    def _count(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        slots, weight = np.zeros((state["shards"], 3)), 0.0
        for batch in pass_over(shard, 4):
            users, items = batch[self.objective.user], batch[self.objective.item]
            least = min(int(users.min()), int(items.min()), int(slots[shard.index, 2]))
            slots[shard.index] = (
                max(int(users.max()) + 1, slots[shard.index, 0]),
                max(int(items.max()) + 1, slots[shard.index, 1]),
                least,
            )
            by_row = batch.get("weight")
            weight += len(users) if by_row is None else sum_all(by_row)
        return {"slots": slots, "weight": np.array([weight])}

    def _after_count(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        objective, slots = self.objective, sums["slots"]
        if slots[:, 2].min() < 0:
            raise HeadwaterError(
                f"ALS: {objective.user!r} or {objective.item!r} holds {int(slots[:, 2].min())}. They are numbered from "
                "0; leave rows out whose value is unknown, as with filter(col(...) >= 0)."
            )
        sizes = []
        for name, given, found in (
            ("users", objective.users, int(slots[:, 0].max())),
            ("items", objective.items, int(slots[:, 1].max())),
        ):
            if given is not None and found > given:
                raise HeadwaterError(
                    f"ALS({name}={given}): the rows hold number {found - 1}. Give {found} or more."
                )
            sizes.append(given or found)
        rank = objective.rank
        items = generator(state["seed"]).standard_normal((sizes[1], rank)) / np.sqrt(rank)
        return {
            "phase": "users",
            "weight": float(sums["weight"][0]),
            "users": np.zeros((sizes[0], rank)),
            "items": items,
            "users_ratings": np.zeros(sizes[0]),
            "items_ratings": np.zeros(sizes[1]),
        }

    def _measure(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        xp = array_namespace()
        factors = [staged(xp, state[side]) for side in ("users", "items")]
        loss = 0.0
        for batch in pass_over(shard, 4 * self.objective.rank):
            users, items = batch[self.objective.user], batch[self.objective.item]
            loss += self._loss(factors[0][users], factors[1][items], *self._targets(batch, xp), xp)
        return {"loss": np.array([loss])}

    def _equations(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        """Sum the products of the other side's factors for each user or item of the range; and, for users, the loss
        of the factors that are about to be replaced."""
        xp, objective, side = array_namespace(), self.objective, state["phase"]
        own, other = (objective.user, objective.item)[:: 1 if side == "users" else -1]
        low = state["from"]
        high = min(low + self.chunk, len(state[side]))
        rank, products = objective.rank, len(self.pairs[0])
        equations, loss = xp.zeros((high - low, products + rank + 1)), 0.0
        factors, replaced = staged(xp, state[_OTHER[side]]), staged(xp, state[side])
        for numbers, others, targets in self._sorted(shard, own, other, low, high):
            factor = factors[others]
            wanted, weight, counted = targets
            rows = xp.empty((len(numbers), products + rank + 1))
            weighted = factor * (weight - counted if objective.implicit else weight)[:, None]
            place = 0
            for i in range(rank):  # the upper triangle of the outer product
                xp.multiply(factor[:, i : i + 1], weighted[:, i:], out=rows[:, place : place + rank - i])
                place += rank - i
            xp.multiply(factor, (weight * wanted)[:, None], out=rows[:, products:-1])
            rows[:, -1] = wanted * counted if objective.implicit else counted
            places, sums = _by_number(numbers - low, rows, xp)
            equations[places] += sums
            if side == "users" and state["iteration"]:
                loss += self._loss(replaced[numbers], factor, wanted, weight, counted, xp)
        return {"equations": to_host(equations), "loss": np.array([loss])}

    def _sorted(
        self, shard: Shard, own: str, other: str, low: int, high: int
    ) -> Iterator[tuple[Array, Array, list[Array]]]:
        """Give a shard's ratings of users (or items) from ``low`` to ``high``, sorted by them within many blocks, so
        that sums have many rows each: their numbers, those of the other side, and the targets."""
        xp = array_namespace()
        held: list[list[Array]] = []
        width = len(self.pairs[0]) + 2 * self.objective.rank
        many, rows = (_SORTED_BLOCKS, BLOCK_ROWS) if xp is np else (1, device_rows(width))
        for batch in pass_over(shard, width):
            numbers = batch[own]
            chosen = xp.flatnonzero((numbers >= low) & (numbers < high))
            columns = (numbers, batch[other], *self._targets(batch, xp))
            held.append([column[chosen] for column in columns])
            if len(held) == many:
                yield from _in_order(held, xp, rows)
                held = []
        if held:
            yield from _in_order(held, xp, rows)

    def _after_equations(self, state: State, equations: np.ndarray, loss: float) -> State:
        side, low = state["phase"], state["from"]
        high = low + len(equations)
        products = len(self.pairs[0])
        count = equations[:, -1]
        factors, ratings = state[side].copy(), state[f"{side}_ratings"].copy()
        factors[low:high] = self._solve(
            state[_OTHER[side]], equations[:, :products], equations[:, products:-1], count
        )
        ratings[low:high] = count
        after: State = {side: factors, f"{side}_ratings": ratings, "from": high, "loss": loss}
        if high < len(factors):
            return after
        after["from"] = 0
        if side == "users":
            if state["iteration"]:
                after["history"] = [*state["history"], self._figures(state, loss)]
            return {**after, "phase": "items", "loss": 0.0}
        iteration = state["iteration"] + 1
        last = iteration >= self.objective.iterations
        return {**after, "iteration": iteration, "loss": 0.0, "phase": "measure" if last else "users"}

    def _targets(self, batch: Batch, xp: ModuleType) -> tuple[Array, Array, Array]:
        """Return what each row's product should be, how much that weighs, and how often the row counts."""
        target = batch["y"].astype(xp.float64)
        by_row = batch.get("weight")
        counted = xp.ones(len(target)) if by_row is None else by_row.astype(xp.float64)
        if not self.objective.implicit:
            return target, counted, counted
        confidence = 1 + self.objective.alpha * xp.abs(target)
        return (target > 0).astype(xp.float64), counted * confidence, counted

    def _loss(
        self, own: Array, other: Array, wanted: Array, weight: Array, counted: Array, xp: ModuleType
    ) -> float:
        """Return the rows' squared errors; for implicit ratings less what the sum over all pairs counts for them."""
        product = xp.einsum("ij,ij->i", own, other)
        loss = sum_all(weight * (wanted - product) ** 2)
        return loss - sum_all(counted * product**2) if self.objective.implicit else loss

    def _figures(self, state: State, loss: float) -> dict[str, float]:
        if self.objective.implicit:  # all pairs, as if none had been rated
            users, items = state["users"], state["items"]
            loss += float(((users.T @ users) * (items.T @ items)).sum())
        return {"loss": loss / max(state["weight"], np.finfo(np.float64).tiny)}

    def _solve(
        self, other: np.ndarray, squares: np.ndarray, rhs: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        """Solve the normal equations, some thousand at a time; zeros where there are no ratings."""
        objective, solution = self.objective, np.zeros_like(rhs)
        left, right = self.pairs
        base = other.T @ other if objective.implicit else np.zeros((objective.rank, objective.rank))
        rated = np.flatnonzero(count > 0)
        for start in range(0, len(rated), _SOLVED):
            some = rated[start : start + _SOLVED]
            matrix = np.empty((len(some), objective.rank, objective.rank))
            matrix[:, left, right] = matrix[:, right, left] = squares[some]
            matrix += base
            matrix += (objective.reg * count[some])[:, None, None] * np.eye(objective.rank)
            solution[some] = np.linalg.solve(matrix, rhs[some][:, :, None])[:, :, 0]
        return solution


def _by_number(numbers: Array, rows: Array, xp: ModuleType) -> tuple[Array, Array]:
    """Return the different ones of ascending numbers, and the sum of the rows of each."""
    first = xp.ones(len(numbers), bool)
    first[1:] = numbers[1:] != numbers[:-1]
    starts = xp.flatnonzero(first)
    sums = np.add.reduceat(rows, starts, axis=0) if xp is np else segment_rows(rows, starts, xp)
    return numbers[starts], sums


def _in_order(
    held: list[list[Array]], xp: ModuleType, size: int
) -> Iterator[tuple[Array, Array, list[Array]]]:
    """Give the rows of blocks sorted by their first column, so many at a time."""
    columns = [xp.concatenate(parts) for parts in zip(*held)]
    order = xp.argsort(columns[0], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        mine, others, *targets = (column[rows] for column in columns)
        yield mine.astype(xp.int64), others, targets
