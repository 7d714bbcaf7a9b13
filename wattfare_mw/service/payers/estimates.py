"""Estimates what a cap buys from the past costs of the app's answers."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection as Sql
from sqlalchemy import func, select

from ..ledger import schema

#: How many of the service's latest calls are read.
LATEST = 5000


class Estimate(msgspec.Struct, frozen=True):
    """The cost of an answer.

    Attributes:
        model: the model that the app uses most.
        answer: the average cost of an answer, in nano-dollars; above 0.
    """

    model: str
    answer: int

    def answers(self, cap: int) -> int:
        """The approximate number of answers that a cap buys, with two significant digits."""
        return rounded(cap // self.answer)


def rounded(number: int) -> int:
    """A whole number rounded down to two significant digits."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit


def of_app(sql: Sql, app_id: str) -> Estimate | None:
    """The average cost of an answer of the model that the app uses most; None without recent
    calls."""
    table = schema.ledger
    newest = sql.execute(select(func.max(table.c.id))).scalar()
    if newest is None:
        return None
    row = sql.execute(
        select(table.c.model, func.count(), func.sum(table.c.billed_nanos))
        .where(
            table.c.id > newest - LATEST,
            table.c.app_id == app_id,
            table.c.corrects.is_(None),
            table.c.billed_nanos > 0,
        )
        .group_by(table.c.model)
        .order_by(func.count().desc(), table.c.model)
        .limit(1)
    ).first()
    return None if row is None else Estimate(row[0], max(int(row[2]) // int(row[1]), 1))
