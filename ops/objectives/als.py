"""ALS: ratings of items by users as products of factors, by alternating least squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ...errors import ParameterError, TypeMismatchError
from ..backend import Array, array_namespace
from ..training.program import Batch, DataInfo, Program, Settings
from .direct import at_least, refuse_optimizer, whole
from .objective import Objective


class ALS(Objective):
    """Ratings as products of a factor of the user and one of the item; the rating is the target.

    Users and items are whole numbers from 0, such as `hw.prep.OrdinalEncode` gives. The penalty of a factor is ``reg``
    times the number of its ratings. A user or item without training ratings is predicted as NaN. All in float64.

    Args:
        user, item: columns of whole numbers.
        rank: length of a factor.
        reg: penalty, above 0.
        iterations: how often users and items are solved for.
        implicit: the target isn't a rating, but how often or long a user took an item. What is predicted is a
            preference: 1 for pairs with a positive target, 0 for all others, also those that aren't in the rows; with
            a confidence of ``1 + alpha * |target|``.
        alpha: how much confidence a target gives.
        users, items: how many there are; None takes the largest number in the rows, plus one.

    Raises:
        ParameterError: an argument out of range.

    Example:
        >>> ALS("user", "item", rank=8).columns
        ('user', 'item')

    Source: Zhou et al., Large-scale parallel collaborative filtering for the Netflix Prize (2008); for implicit
    ratings Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets (2008).
    """

    def __init__(
        self,
        user: str,
        item: str,
        *,
        rank: int = 10,
        reg: float = 0.1,
        iterations: int = 10,
        implicit: bool = False,
        alpha: float = 1.0,
        users: int | None = None,
        items: int | None = None,
    ):
        if user == item:
            raise ParameterError(f"ALS(user={user!r}, item={item!r}): give two columns.")
        self.user, self.item = user, item
        self.columns = (user, item)
        self.rank = whole("ALS", "rank", rank, 1)
        self.reg = at_least("ALS", "reg", reg, 0.0)
        if not self.reg:
            raise ParameterError("ALS(reg=0): factors of few ratings have no one solution. Give 0.1.")
        self.iterations = whole("ALS", "iterations", iterations, 1)
        self.implicit = bool(implicit)
        self.alpha = at_least("ALS", "alpha", alpha, 0.0)
        self.users = None if users is None else whole("ALS", "users", users, 1)
        self.items = None if items is None else whole("ALS", "items", items, 1)

    def check(self, info: DataInfo) -> None:
        """Raise if users or items aren't whole numbers, or there is no target."""
        for name in (self.user, self.item):
            shape, dtype = info.columns[name]
            if shape or not dtype.startswith(("int", "uint")):
                raise TypeMismatchError(
                    f"ALS: the column {name!r} is {dtype}{list(shape) or ''}, and must hold whole numbers from 0. "
                    "Number its values first, as with hw.prep.OrdinalEncode."
                )
        if "y" not in info.columns:
            raise ParameterError("ALS learns from ratings. Give target='the column of ratings'.")
        if info.rows < 1:
            raise ParameterError("ALS: there are no training rows.")

    def predict(self, params: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
        """Return the ``prediction`` of each pair, float64; NaN for users and items without training ratings."""
        xp = array_namespace()
        known = xp.ones(len(batch[self.user]), bool)
        factors = []
        for column, side in ((self.user, "users"), (self.item, "items")):
            numbers, counts = batch[column], xp.asarray(params[f"{side}_ratings"])
            inside = (numbers >= 0) & (numbers < len(counts))
            numbers = xp.where(inside, numbers, 0).astype(xp.int64)
            known &= inside & (counts[numbers] > 0)
            factors.append(xp.asarray(params[side])[numbers])
        return {"prediction": xp.where(known, xp.einsum("ij,ij->i", *factors), xp.nan)}

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        """Return the field that `predict` adds."""
        return [pa.field("prediction", pa.float64())]

    def program(self, settings: Settings) -> Program:
        """Return alternating least squares.

        Raises:
            ParameterError: an optimizer, epochs, steps or early stopping were given.
        """
        from ..training.alternating import AlternatingLeastSquares

        refuse_optimizer("ALS", settings)
        return AlternatingLeastSquares(self)
