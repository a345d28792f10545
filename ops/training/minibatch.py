"""Minibatch: the program that trains any objective by an optimizer's steps on global batches of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DivergedError, ParameterError
from ..backend import Array, array_namespace, to_host
from ..objectives.objective import Objective
from .history import new_history, read_history, record_epoch, record_step
from .norm_blocks import NORM_BLOCK, block_squares
from .program import DataInfo, Settings, Shard, State, Tree
from .row_means import Means, add_loss, add_value_and_grad, first_parameters
from .tree import TreeSpec, leaves, load_spec, pack, spec_of, unpack

#: passes where a training names neither epochs nor steps
EPOCHS = 10
#: what random numbers are for
FOR_INIT, FOR_BATCH, FOR_VALIDATION = 0, 1, 2

_ADVICE = (
    "Lower the learning rate, clip gradients (hw.optim.clip_by_global_norm), scale the features "
    "(hw.prep.Standardize), or look for NaN and infinite values in them; on_nan='skip' leaves such batches out, "
    "on_nan='stop' ends with the last good parameters."
)


@dataclass(frozen=True)
class Piece:
    """What an optimizer's step made of a slice of the parameters.

    Attributes:
        params: the new parameters of the slice.
        optimizer: the optimizer's new state of the slice.
        squares: sums of the squared gradient for each `NORM_BLOCK` elements of the slice, float64.
    """

    params: Array
    optimizer: dict[str, Array]
    squares: np.ndarray


class Minibatch:
    """Stochastic gradient descent and its kin, as a `Program`.

    A step draws a global batch; its gradient is the sum over shards of mean gradient times rows (or weight), by
    the sum of rows. At the end of an epoch, if there are validation rows, a step of its own sums up their loss.

    The parameters are one flat vector, ``state["params"]``; `params` shows them as the tree that they are.

    Args:
        objective: what is minimized.
        settings: the optimizer (Adam with a learning rate of 0.001 if none is given), the epochs (10) or steps,
            and what to do about early stopping and losses that aren't finite.
    """

    #: the statistics that `update_slice` needs a slice of only
    sliced = frozenset(["grad"])

    def __init__(self, objective: Objective, settings: Settings):
        from ..optim.algorithms import adam

        self.objective, self.settings = objective, settings
        self.optimizer = settings.optimizer if settings.optimizer is not None else adam(1e-3)

    # -- the Program ---------------------------------------------------------------------------------

    def start(self, info: DataInfo) -> State:
        """Return the first state: parameters as the objective starts them.

        Raises:
            ParameterError: there are no rows, or early stopping without validation rows.
            HeadwaterError: the objective refuses the data.
        """
        settings, objective = self.settings, self.objective
        if info.rows < 1:
            raise ParameterError(f"{objective.label}: there are no training rows. Has a filter removed all?")
        if settings.early_stopping is not None and not info.validation_rows:
            raise ParameterError(
                f"{objective.label}: early stopping goes by the loss of validation rows, and there are none. "
                "Give validation=..., or leave early_stopping out."
            )
        objective.check(info)
        tree = first_parameters(objective, info.rng(FOR_INIT), info)
        what = f"{objective.label}.init"
        trained, averaged, constant = self._split(tree, what)
        spec = spec_of(trained, info.dtype, what)
        params = pack(trained, spec, what)
        if not bool(array_namespace().isfinite(params).all()):
            raise DivergedError(f"{what} gave parameters that aren't finite. Start at finite numbers.")
        total = settings.steps or (settings.epochs or EPOCHS) * info.steps_per_epoch
        state: State = {
            "step": 0,
            "batch": 0,
            "updates": 0,
            "skipped": 0,
            "phase": "train",
            "end": "",
            "total": total,
            "steps_per_epoch": info.steps_per_epoch,
            "shards": info.shards,
            "validation_rows": info.validation_rows,
            "spec": spec.text,
            "dtype": info.dtype,
            "params": params,
            "optimizer": self.optimizer.init(self._named(params, spec)),
            "epoch_loss": 0.0,
            "epoch_rows": 0.0,
            "metrics": {},
            "history": new_history(total, info.steps_per_epoch, self.objective.metrics),
        }
        for name, part in (("buffers", averaged), ("constants", constant)):
            if part:
                own = spec_of(part, info.dtype, what)
                state |= {f"{name}_spec": own.text, name: pack(part, own, what)}
        if settings.early_stopping is not None:
            state |= {"best_loss": math.inf, "best_epoch": 0, "since_best": 0}
        return state

    def statistics(self, state: State, shard: Shard) -> Mapping[str, Array]:
        """Return what a shard adds to a step.

        Returns:
            "totals": rows (or weight), loss times rows, and the objective's metrics times rows, float64; "bad": for
            each shard, 1 where the loss or gradient isn't finite. While training also "grad": the gradient times
            rows, of the parameters' dtype; and "buffers" if the objective has any. A validation step has no "grad".
        """
        objective = self.objective
        means = Means(self.view(state), objective, shard.index, state["batch"])
        totals = np.zeros(2 + len(objective.metrics))
        if state["phase"] == "validate":
            for i, block in enumerate(shard.validation.blocks() if shard.validation is not None else ()):
                add_loss(means, block, shard.rng(FOR_VALIDATION, state["batch"], i), totals)
            return self._totals(state, shard, totals)
        epoch, step = divmod(state["batch"], state["steps_per_epoch"])
        spec = self._spec(state)
        buffer_spec = self._spec(state, "buffers") if "buffers" in state else None
        xp = array_namespace()
        grad = None
        buffers = None if buffer_spec is None else xp.zeros(buffer_spec.size, buffer_spec.dtype)
        batch = shard.batch(epoch, step)
        rows, slices = len(next(iter(batch.values()))), self.settings.accumulate
        for i in range(slices):
            start, stop = rows * i // slices, rows * (i + 1) // slices
            if start == stop:
                continue
            part = batch if slices == 1 else {name: array[start:stop] for name, array in batch.items()}
            rng = shard.rng(FOR_BATCH, state["batch"], i)
            found = add_value_and_grad(means, part, rng, totals)
            if found is None:
                continue
            grads, weight = found
            trained, averaged, _ = self._split(grads, means.label)
            grad = pack(trained, spec, f"the gradient of {means.label}", grad, weight)
            if buffer_spec is not None:
                pack(averaged, buffer_spec, f"the buffers of {means.label}", buffers, weight)
        if grad is None:
            grad = xp.zeros(spec.size, spec.dtype)
        result = self._totals(state, shard, totals, grad)
        result["grad"] = grad
        if buffers is not None:
            result["buffers"] = buffers
        return result

    def update(self, state: State, sums: Mapping[str, Array]) -> State:
        """Return the next state; arrays of ``state`` and ``sums`` may be used up."""
        piece = None
        # looked at number by number, each of which would wait for a device
        sums = {name: to_host(array) if name in ("totals", "bad") else array for name, array in sums.items()}
        if self.makes_update(state, sums):
            piece = self.update_slice(state, sums, slice(0, len(state["params"])))
        return self.finish(state, sums, piece)

    def finished(self, state: State) -> bool:
        return bool(state["end"])

    def metrics(self, state: State) -> dict[str, float]:
        """Return "loss" of the last batch, "epoch", "grad_norm", "lr", "validation_loss" and so on, as far as known."""
        return dict(state["metrics"])

    def params(self, state: State) -> Tree:
        return self.view(state)

    def progress(self, state: State) -> float:
        return 1.0 if state["end"] else state["batch"] / state["total"]

    def history(self, state: State) -> dict[str, dict[str, list[float]]]:
        """Return the figures of all steps so far (of 10,000 at most, evenly spread), and of all epochs.

        Returns:
            "steps" and "epochs", each name to list: "step", "epoch", "loss", "lr", "grad_norm" and the
            objective's metrics of steps; "step", "epoch", "loss" (the mean over the epoch) and "validation_loss"
            of epochs. Unknown ones are NaN.
        """
        return read_history(state["history"], self.objective.metrics)

    # -- a step in parts, so that owners of slices can make it -----------------------------------------

    @property
    def elementwise(self) -> bool:
        """Whether `update_slice` may be called with slices that aren't the whole."""
        return bool(self.optimizer.elementwise)

    def makes_update(self, state: State, sums: Mapping[str, Array]) -> bool:
        """Say whether this step changes the parameters; goes by the small sums, "totals" and "bad", alone.

        Raises:
            DivergedError: a loss isn't finite, and ``on_nan`` is "raise"; or the parameters aren't.
        """
        if state["phase"] != "train":
            return False
        bad = self._bad(sums)
        if not bad:
            return float(sums["totals"][0]) > 0
        if self.settings.on_nan == "raise":
            raise DivergedError(self._diverged(state, bad))
        if self.settings.on_nan == "skip" and not bool(array_namespace().isfinite(state["params"]).all()):
            raise DivergedError(
                f"{self._diverged(state, bad)} The parameters themselves aren't finite any more, so that skipping "
                "batches doesn't help."
            )
        return False

    def update_slice(self, state: State, sums: Mapping[str, Array], where: slice) -> Piece:
        """Make the optimizer's step on a slice of the parameter vector.

        Args:
            state: with all of "params"; if ``where`` isn't the whole, "optimizer" holds that slice of each of
                its arrays (see `optimizer_slice`).
            sums: "totals", and of "grad" the slice.
            where: starts at a multiple of `NORM_BLOCK`, and stops at one or at the end. The whole may be
                written in place; anything less is copied first, so that a broken step can be made again.

        Returns:
            Pieces in order of their slices, put together by `finish`, are the same as one of the whole.
        """
        xp = array_namespace()
        spec = self._spec(state)
        grad = sums["grad"]
        writable = getattr(getattr(grad, "flags", None), "writeable", True)
        grad = xp.divide(grad, grad.dtype.type(float(sums["totals"][0])), out=grad if writable else None)
        squares = block_squares(grad)
        params, slots = state["params"], state["optimizer"]
        if (where.start, where.stop) != (0, spec.size):
            if where.start % NORM_BLOCK or (where.stop != spec.size and where.stop % NORM_BLOCK):
                raise ParameterError(f"update_slice({where}): cut at multiples of {NORM_BLOCK}.")
            params = params[where].copy()
            slots = {name: array.copy() for name, array in slots.items()}
        elif self.settings.on_nan == "stop":
            params = params.copy()
        named = {"": params} if self.elementwise else leaves(params, spec)
        grads = {"": grad} if self.elementwise else leaves(grad, spec)
        new, slots = self.optimizer.update(grads, slots, named, state["updates"])
        if self.elementwise:
            return Piece(new[""], slots, squares)
        for name, view in named.items():
            if new[name] is not view:
                view[...] = new[name]
        return Piece(params, slots, squares)

    def optimizer_slice(self, state: State, where: slice) -> dict[str, Array]:
        """Return a slice of an elementwise optimizer's state; all its arrays are as long as the parameters."""
        return {name: array[where] for name, array in state["optimizer"].items()}

    def finish(self, state: State, sums: Mapping[str, Array], piece: Piece | None) -> State:
        """Return the next state.

        Args:
            state: before the step.
            sums: all but "grad".
            piece: the whole new parameters; "optimizer" may be a slice. None if `makes_update` said no.
        """
        new = dict(state)
        new["step"] += 1
        if state["phase"] == "validate":
            return self._validated(new, sums)
        totals = [float(value) for value in sums["totals"]]
        rows, loss = totals[0], totals[1] / totals[0] if totals[0] else math.nan
        bad = self._bad(sums)
        norm = math.nan
        if piece is not None:
            if self.settings.on_nan == "stop":
                new["good_params"] = state["params"]
            new["params"], new["optimizer"] = piece.params, piece.optimizer
            norm = math.sqrt(math.fsum(piece.squares.tolist()))
            if "buffers" in state:
                new["buffers"] = state["buffers"] + sums["buffers"] / sums["buffers"].dtype.type(rows)
            new["epoch_loss"] += totals[1]
            new["epoch_rows"] += rows
            new["updates"] += 1
        elif bad:
            new["skipped"] += 1
        new["batch"] += 1
        rate = (
            self.optimizer.learning_rate(state["updates"])
            if hasattr(self.optimizer, "learning_rate")
            else None
        )
        figures = {"loss": loss, "lr": math.nan if rate is None else rate, "grad_norm": norm}
        figures |= {
            name: value / rows if rows else math.nan
            for name, value in zip(self.objective.metrics, totals[2:])
        }
        epoch = state["batch"] // state["steps_per_epoch"]
        record_step(new["history"], new["batch"], epoch + 1, figures.values(), new["total"])
        kept = {name: value for name, value in state["metrics"].items() if name.startswith("validation_")}
        known = {name: value for name, value in figures.items() if not math.isnan(value) or name == "loss"}
        new["metrics"] = {"step": float(new["batch"]), "epoch": float(epoch + 1), **known, **kept}
        if new["skipped"]:
            new["metrics"]["skipped"] = float(new["skipped"])
        if bad and self.settings.on_nan == "stop":
            if "good_params" in new:
                new["params"] = new["good_params"]
            return self._ended(new, "not finite")
        if new["batch"] == new["total"] or new["batch"] % new["steps_per_epoch"] == 0:
            return self._epoch_ended(new)
        return new

    # -- epochs ----------------------------------------------------------------------------------------

    def _epoch_ended(self, new: State) -> State:
        mean = new["epoch_loss"] / new["epoch_rows"] if new["epoch_rows"] else math.nan
        record_epoch(new["history"], new["batch"], new["steps_per_epoch"], mean)
        new["epoch_loss"] = new["epoch_rows"] = 0.0
        if not bool(array_namespace().isfinite(new["params"]).all()):
            if self.settings.on_nan == "stop" and "good_params" in new:
                new["params"] = new["good_params"]
                return self._ended(new, "not finite")
            epoch = -(-new["batch"] // new["steps_per_epoch"])
            raise DivergedError(
                f"{self.objective.label}: the parameters aren't finite after epoch {epoch}. {_ADVICE}"
            )
        if new["validation_rows"]:
            new["phase"] = "validate"
            return new
        return self._ended(new, "complete") if new["batch"] == new["total"] else new

    def _validated(self, new: State, sums: Mapping[str, Array]) -> State:
        totals = [float(value) for value in sums["totals"]]
        means = [value / totals[0] if totals[0] else math.nan for value in totals[1:]]
        names = ["validation_loss", *(f"validation_{name}" for name in self.objective.metrics)]
        new["metrics"] = new["metrics"] | dict(zip(names, means))
        new["phase"] = "train"
        record_epoch(new["history"], new["batch"], new["steps_per_epoch"], validation=means[0])
        stopping = self.settings.early_stopping
        if stopping is not None:
            if means[0] < new["best_loss"] - stopping.min_delta:
                epoch = -(-new["batch"] // new["steps_per_epoch"])
                new |= {"best_loss": means[0], "best_epoch": epoch, "since_best": 0}
                if stopping.restore_best:
                    new["best_params"] = new["params"].copy()
                    if "buffers" in new:
                        new["best_buffers"] = new["buffers"].copy()
            else:
                new["since_best"] += 1
                if new["since_best"] >= stopping.patience:
                    return self._ended(new, "early stopping")
        return self._ended(new, "complete") if new["batch"] == new["total"] else new

    def _ended(self, new: State, reason: str) -> State:
        new["end"] = reason
        new.pop("good_params", None)
        for name in ("params", "buffers"):
            if f"best_{name}" in new:
                new[name] = new.pop(f"best_{name}")
        return new

    # -- parts -------------------------------------------------------------------------------------------

    def view(self, state: State) -> Tree:
        """Return the parameters as the objective's tree, read-only unless it is trusted."""
        tree = unpack(state["params"], self._spec(state), self.objective.trusted)
        for part in ("buffers", "constants"):
            if part in state:
                tree = {**tree, **unpack(state[part], self._spec(state, part), self.objective.trusted)}
        return tree

    def _spec(self, state: State, part: str = "") -> TreeSpec:
        text = state[f"{part}_spec"] if part else state["spec"]
        return load_spec(text, state["dtype"])

    def _split(self, tree: Tree, what: str) -> tuple[Tree, dict[str, Any], dict[str, Any]]:
        """The trained, the averaged and the constant part of a tree."""
        buffers, constants = self.objective.buffers, self.objective.constants
        if not buffers and not constants:
            return tree, {}, {}
        if missing := [name for name in (*buffers, *constants) if name not in tree]:
            raise ParameterError(f"{what} returned nothing for {missing[0]!r}, which isn't trained.")
        return (
            {name: value for name, value in tree.items() if name not in buffers and name not in constants},
            {name: tree[name] for name in buffers},
            {name: tree[name] for name in constants},
        )

    def _named(self, params: Array, spec: TreeSpec) -> dict[str, Array]:
        return {"": params} if self.elementwise else leaves(params, spec)

    def _totals(
        self, state: State, shard: Shard, totals: np.ndarray, grad: Array | None = None
    ) -> dict[str, Array]:
        xp = array_namespace()
        bad = np.zeros(state["shards"])
        fine = math.isfinite(totals[1]) and (grad is None or bool(xp.isfinite(grad.sum())))
        bad[shard.index] = 0.0 if fine else 1.0
        return {"totals": totals, "bad": bad}  # small, and looked at on the host

    def _bad(self, sums: Mapping[str, Array]) -> list[int]:
        return [i for i, flag in enumerate(sums["bad"].tolist()) if flag]

    def _diverged(self, state: State, bad: list[int]) -> str:
        epoch, step = divmod(state["batch"], state["steps_per_epoch"])
        shards = f"shard {bad[0]}" if len(bad) == 1 else f"shards {', '.join(map(str, bad))}"
        last = state["metrics"].get("loss")
        before = "" if last is None else f" The loss of the step before was {last:.6g}."
        return (
            f"{self.objective.label}: the loss or gradient isn't finite in {shards}, at step {step + 1} of epoch "
            f"{epoch + 1}.{before} {_ADVICE}"
        )
