"""Lloyd: k-means as a program, from drawing the first centers to the last shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..backend import Array, array_namespace, to_host
from ..device.arrays.assignment import CenterSums, fits
from ..objectives.direct import check_finite, on_host, put_rows, times
from ..objectives.losses import sum_all, sum_rows
from .blocks import pass_over
from .program import BLOCK_ROWS, Batch, DataInfo, Shard, State
from .sampling import generator

if TYPE_CHECKING:
    from ..objectives.kmeans import KMeans

#: passes of k-means|| that draw rows, and rows drawn in each for one cluster
ROUNDS, OVERSAMPLING = 3, 2
#: how often centers are chosen among the rows that k-means|| drew; the best choice is taken
RESTARTS = 4
#: up to so many clusters, rows are summed by a product with their indicators; above, sorted by cluster
INDICATED = 32
#: purpose of random streams
_SAMPLE = 1


class Lloyd:
    """Lloyd's algorithm, as a program.

    Its passes: "moments" of the features, and rows drawn by number; for k-means++ some of "sample", which draw rows by
    their squared distance, and "weigh", which counts rows near each drawn one; then "assign", which puts rows to
    clusters. "farthest" finds rows for clusters that have become empty.

    A state's centers are relative to the features' mean.

    Args:
        objective: what to fit.
    """

    def __init__(self, objective: KMeans):
        self.objective = objective

    def start(self, info: DataInfo) -> State:
        """Return the first state; which rows are drawn by number is in it."""
        objective, rng = self.objective, info.rng(_SAMPLE)
        drawn = (
            {"k-means++": 1, "random": objective.k}[objective.initial]
            if isinstance(objective.initial, str)
            else 0
        )
        return {
            "step": 0,
            "phase": "moments",
            "iteration": 0,
            "history": [],
            "width": info.width,
            "shards": info.shards,
            "dtype": info.columns["x"][1],
            "drawn": np.sort(rng.choice(info.rows, drawn, replace=False)).astype(np.int64),
            "seed": int(rng.integers(2**63)),
            "done": False,
        }

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return a shard's sums for the phase the state is in."""
        state = on_host(state)
        return {
            "moments": self._moments,
            "sample": self._sample,
            "weigh": self._assign,
            "assign": self._assign,
            "farthest": self._farthest,
        }[state["phase"]](state, shard)

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the state after a pass."""
        state, host = on_host(state), on_host(sums)
        after = {
            "moments": self._after_moments,
            "sample": self._after_sample,
            "weigh": self._after_weigh,
            "assign": self._after_assign,
            "farthest": self._after_farthest,
        }[state["phase"]](state, host)
        return {**state, **after, "step": state["step"] + 1}

    def finished(self, state: State) -> bool:
        """Say whether the centers rest, or there were as many iterations as allowed."""
        return bool(state["done"])

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss", the mean squared distance before the last shift, and others; nothing before the first."""
        return dict(state["history"][-1]) if state["history"] else {}

    def params(self, state: State) -> dict[str, Array]:
        """Return ``centers``, shape (k, features), float64."""
        state = on_host(state)
        return {"centers": state["centers"] + state["mean"]}

    def progress(self, state: State) -> float:
        """Return the share of the allowed iterations that is done."""
        return 1.0 if state["done"] else state["iteration"] / self.objective.max_iterations

    # a shard's sums

    def _moments(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        xp, d = array_namespace(), state["width"]
        total, squares, weight = xp.zeros(d), xp.zeros(d), xp.zeros(1)
        rows, first = np.zeros((len(state["drawn"]), d)), shard.first_row
        for batch in pass_over(shard, 2 * d):
            x = batch["x"].astype(xp.float64)
            by_weight = times(x, batch.get("weight"))
            total += sum_rows(by_weight)
            squares += xp.einsum("ij,ij->j", by_weight, x) if xp is np else sum_rows(by_weight * x)
            weight += x.shape[0] if batch.get("weight") is None else sum_all(batch["weight"])
            put_rows(rows, state["drawn"], first, x)
            first += x.shape[0]
        sums = {"total": to_host(total), "squares": to_host(squares), "weight": to_host(weight)}
        return {**sums, "rows": rows} if len(rows) else sums

    def _sample(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        """Draw rows without replacement, in proportion to their squared distance: those of the smallest keys, where
        a row's key is exponentially distributed with that rate (Efraimidis and Spirakis 2006)."""
        xp, many, shards = array_namespace(), self._draws(state), state["shards"]
        rng = shard.rng(_SAMPLE, state["step"])
        keys, rows, cost = np.full(many, np.inf), np.zeros((many, state["width"])), 0.0
        scored = _Scored(state, state["candidates"], xp)
        for batch in pass_over(shard, state["width"] + len(scored.weights)):
            x, distance, _ = scored.distances(batch["x"])
            if batch.get("weight") is not None:
                distance = distance * batch["weight"]
            distance = to_host(distance).astype(np.float64)
            cost += float(distance.sum())
            with np.errstate(divide="ignore", invalid="ignore"):
                key = rng.standard_exponential(len(distance)) / distance
            key[~(distance > 0)] = np.inf
            best = np.argpartition(key, many - 1)[:many] if len(key) > many else np.arange(len(key))
            keys = np.concatenate([keys, key[best]])
            rows = np.concatenate([rows, to_host(x[xp.asarray(best)])])
            kept = np.argsort(keys, kind="stable")[:many]
            keys, rows = keys[kept], rows[kept]
        slots = np.zeros((shards, many, state["width"] + 1))
        found = np.isfinite(keys)
        slots[shard.index, found, :-1] = rows[found]
        slots[shard.index, found, -1] = 1
        return {"slots": slots, "cost": np.array([cost])}

    def _assign(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        xp, kind = array_namespace(), _kind(state)
        centers = state["candidates"] if state["phase"] == "weigh" else state["centers"]
        if xp is not np and fits(*centers.shape):
            nearest = CenterSums(centers, state["mean"], kind, xp)
            for batch in pass_over(shard, state["width"]):
                nearest.add(batch["x"], batch.get("weight"))
            return {"sums": to_host(nearest.total())}
        sums = xp.zeros((len(centers), state["width"] + 1))
        if shard.rows:
            add = _adder(_Scored(state, centers, xp), xp)
            for batch in pass_over(shard, state["width"] + len(centers)):
                sums += add(batch)
        return {"sums": to_host(sums)}

    def _farthest(self, state: State, shard: Shard) -> dict[str, np.ndarray]:
        xp = array_namespace()
        slots, best = np.zeros((state["shards"], state["width"] + 1)), 0.0
        scored = _Scored(state, state["centers"], xp)
        for batch in pass_over(shard, state["width"] + len(scored.weights)):
            x, _, nearest = scored.distances(batch["x"])
            apart = x - scored.centers[nearest]
            distance = xp.einsum("ij,ij->i", apart, apart)
            if batch.get("weight") is not None:
                distance = distance * (batch["weight"] > 0)
            row = int(distance.argmax())
            if float(distance[row]) > best:
                best = float(distance[row])
                slots[shard.index, 0], slots[shard.index, 1:] = best, to_host(x[row])
        return {"slots": slots}

    # what becomes of the sums over all shards

    def _after_moments(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        weight = max(float(sums["weight"][0]), np.finfo(np.float64).tiny)
        mean = sums["total"] / weight
        check_finite("KMeans", mean, sums["squares"])
        spread = np.maximum(sums["squares"] / weight - mean**2, 0.0)
        after = {
            "mean": mean,
            "weight": weight,
            "spread": float(spread.sum()),
            "variance": float(spread.mean()),
        }
        init = self.objective.initial
        if not isinstance(init, str):
            return {**after, "phase": "assign", "centers": init - mean}
        if init == "random":
            return {**after, "phase": "assign", "centers": sums["rows"] - mean}
        return {**after, "phase": "sample", "round": 0, "candidates": sums["rows"] - mean}

    def _after_sample(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        check_finite("KMeans", sums["cost"])
        slots = sums["slots"].reshape(-1, state["width"] + 1)
        candidates = np.concatenate([state["candidates"], slots[slots[:, -1] > 0, :-1]])
        rounds = state["round"] + 1
        return {
            "candidates": np.unique(candidates, axis=0) if rounds == ROUNDS else candidates,
            "round": rounds,
            "phase": "weigh" if rounds == ROUNDS else "sample",
        }

    def _after_weigh(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        rng = generator(state["seed"])
        centers = choose(state["candidates"], sums["sums"][:, -1], self.objective.k, rng)
        return {"phase": "assign", "centers": centers, "candidates": None}

    def _after_assign(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        total, count = sums["sums"][:, :-1], sums["sums"][:, -1]
        check_finite("KMeans", total)
        old, full = state["centers"], count > 0
        centers = np.where(full[:, None], total / np.where(full, count, 1)[:, None], old)
        shift = float(((centers - old) ** 2).sum())
        # the squared distances, from the sums alone: each row's own norm adds up to the features' spread
        explained = float((2 * (old * total).sum() - (count * (old**2).sum(axis=1)).sum()) / state["weight"])
        figures = {
            "loss": max(state["spread"] - explained, 0.0),
            "shift": shift,
            "empty": float(np.count_nonzero(~full)),
        }
        iteration = state["iteration"] + 1
        reseed = self.objective.empty == "reseed" and not full.all()
        rests = shift <= self.objective.tolerance * state["variance"]
        last = iteration >= self.objective.max_iterations
        return {
            "centers": centers,
            "counts": count,
            "iteration": iteration,
            "history": [*state["history"], figures],
            "phase": "farthest" if reseed and not last else "assign",
            "done": last or (rests and not reseed),
        }

    def _after_farthest(self, state: State, sums: Mapping[str, np.ndarray]) -> State:
        """Move empty clusters to the shards' farthest rows, as many as there are; rest if all rows are centers."""
        empty = np.flatnonzero(state["counts"] <= 0)
        order = np.argsort(-sums["slots"][:, 0], kind="stable")
        far = sums["slots"][order]
        far = far[far[:, 0] > 1e-12 * state["variance"] * state["width"]][: len(empty), 1:]
        centers = state["centers"].copy()
        centers[empty[: len(far)]] = far
        rests = state["history"][-1]["shift"] <= self.objective.tolerance * state["variance"]
        return {"centers": centers, "phase": "assign", "done": rests and not len(far)}

    def _draws(self, state: State) -> int:
        """How many rows each shard draws in a pass of k-means||."""
        return -(-OVERSAMPLING * self.objective.k // state["shards"])


class _Scored:
    """Rows shifted to the features' mean, and their scores against centers, in the features' own type.

    A last column of ones makes one product of the distance with the centers' norms, and of the sums with the counts.
    """

    def __init__(self, state: State, centers: np.ndarray, xp: ModuleType):
        self.kind = _kind(state)
        self.xp, self.width = xp, state["width"]
        self.mean = xp.asarray(state["mean"], dtype=self.kind)
        self.centers = xp.asarray(centers, dtype=self.kind)
        norms = (self.centers * self.centers).sum(axis=1, keepdims=True)
        self.weights = xp.concatenate([-2 * self.centers, norms], axis=1)
        self.room = xp.empty((BLOCK_ROWS, self.width + 1), self.kind)
        self.room[:, -1] = 1

    def rows(self, x: Array) -> Array:
        """Return rows less the mean, and a one; valid until the next call."""
        if x.shape[0] > self.room.shape[0]:
            self.room = self.xp.ones((x.shape[0], self.width + 1), self.kind)
        room = self.room[: x.shape[0]]
        self.xp.subtract(x, self.mean, out=room[:, :-1])
        return room

    def distances(self, x: Array) -> tuple[Array, Array, Array]:
        """Return the shifted rows, their squared distances to the nearest center, and which it is."""
        room = self.rows(x)
        scores = room @ self.weights.T
        nearest = scores.argmin(axis=1)
        shifted = room[:, :-1]
        least = scores[self.xp.arange(len(nearest)), nearest] + self.xp.einsum("ij,ij->i", shifted, shifted)
        return shifted, self.xp.maximum(least, 0), nearest


def _kind(state: State) -> np.dtype:
    """The type that distances are computed in."""
    kind = np.dtype(state["dtype"])
    return kind if kind.kind == "f" else np.dtype(np.float64)


def _adder(scored: _Scored, xp: ModuleType) -> Callable[[Batch], Array]:
    """Return a function that gives a block's sums for each center: of its rows, and of their weights."""
    k = len(scored.weights)
    if xp is not np or k <= INDICATED:
        return lambda batch: _by_indicators(scored, batch, xp)
    return lambda batch: _by_sorting(scored, batch)


def _by_indicators(scored: _Scored, batch: Batch, xp: ModuleType) -> Array:
    room, weight = scored.rows(batch["x"]), batch.get("weight")
    scores = scored.weights @ room.T
    indicators = (scores == scores.min(axis=0)).astype(scored.kind)
    sums = indicators @ room
    if int(sums[:, -1].sum()) != len(room):  # two centers at one distance: the first counts
        indicators = (scores.argmin(axis=0) == xp.arange(len(scores))[:, None]).astype(scored.kind)
        sums = indicators @ room if weight is None else sums
    return sums if weight is None else (indicators * weight.astype(scored.kind)) @ room


def _by_sorting(scored: _Scored, batch: Batch) -> np.ndarray:
    room = scored.rows(batch["x"])
    nearest = (room @ scored.weights.T).argmin(axis=1).astype(np.int32)
    order = np.argsort(nearest, kind="stable")
    nearest = nearest[order]
    starts = np.flatnonzero(np.diff(nearest, prepend=-1))
    sums = np.zeros((len(scored.weights), scored.width + 1))
    weight = batch.get("weight")
    rows = times(room[order], None if weight is None else weight[order])
    sums[nearest[starts]] = np.add.reduceat(rows, starts, axis=0)
    return sums


def choose(points: np.ndarray, weight: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Choose k centers for weighted points: k-means++ and some iterations of Lloyd's, the best of a few times.

    Args:
        points: shape (n, d), different from each other.
        weight: shape (n,), not negative.
        k: number of centers.
        rng: random numbers.

    Returns:
        Shape (k, d); with fewer points than k, some are equal.
    """
    if len(points) <= k:
        return points[np.arange(k) % len(points)]
    best, least = points[:k], np.inf
    for _ in range(RESTARTS):
        centers, cost = _lloyd(points, weight, _plus_plus(points, weight, k, rng))
        if cost < least:
            best, least = centers, cost
    return best


def _plus_plus(points: np.ndarray, weight: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++: of some points drawn by squared distance, take the one that lowers the cost most."""
    trials = 2 + int(np.log(k))
    chosen = [_draw(weight, 1, rng)[0]]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(1, k):
        tried = _draw(weight * distance, trials, rng)
        nearer = np.minimum(distance, ((points - points[tried][:, None]) ** 2).sum(axis=2))
        winner = int((nearer @ weight).argmin())
        chosen.append(tried[winner])
        distance = nearer[winner]
    return points[chosen]


def _draw(chance: np.ndarray, many: int, rng: np.random.Generator) -> np.ndarray:
    total = np.cumsum(chance)
    if not total[-1] > 0:
        return rng.integers(len(chance), size=many)
    return np.minimum(np.searchsorted(total, rng.random(many) * total[-1], side="right"), len(chance) - 1)


def _lloyd(points: np.ndarray, weight: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, float]:
    cost = np.inf
    for _ in range(20):
        scores = points @ (-2 * centers.T) + (centers**2).sum(axis=1)
        nearest = scores.argmin(axis=1)
        indicators = (nearest[:, None] == np.arange(len(centers))) * weight[:, None]
        count = indicators.sum(axis=0)
        before, cost = cost, float((scores.min(axis=1) + (points**2).sum(axis=1)) @ weight)
        if not cost < before:
            break
        centers = np.where(
            (count > 0)[:, None], (indicators.T @ points) / np.where(count > 0, count, 1)[:, None], centers
        )
    return centers, cost
